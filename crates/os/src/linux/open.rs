//! From what discovery confirmed to a kernel that can be read.

use super::discover::BY_ARITHMETIC;
use super::{AddressSpace, Kernel, linear, module_types, unnamed};
use crate::discover::Discovery;
use crate::input::ViewInput;
use ramsift_layers::translate::{AARCH64_4K_48, Shape, X86_64, X86_64_LA57};
use ramsift_layers::{ImageOffset, PhysAddr, VirtAddr};
use ramsift_symbols::kallsyms::{Hints, Places, image_delta};
use ramsift_symbols::{Btf, Kallsyms, Provenance, Source, SymbolTable, VmCoreInfo, btf, kallsyms};
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Why a kernel that was found can't be read.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No page table was confirmed.
    #[error("no page table of the kernel was confirmed")]
    NoTable,
    /// There is no VMCOREINFO to start from.
    #[error("no VMCOREINFO of this kernel was found")]
    NoVmCoreInfo,
    /// No symbols.
    #[error("the kernel's symbol table can't be read: {why}; {wanted}")]
    Symbols {
        /// What is wrong with it.
        why: String,
        /// What file would help.
        wanted: String,
    },
    /// No types.
    #[error("the kernel's types (BTF) can't be read: {why}; {wanted}")]
    Types {
        /// What is wrong with them.
        why: String,
        /// What file would help.
        wanted: String,
    },
    /// The symbol file for this kernel is no use.
    #[error("{0}")]
    File(String),
}

/// Anchors of one kind that are tried at most.
const TRIES: usize = 4096;

/// Opens the kernel of the first confirmed page table.
pub fn open<'a>(input: &ViewInput<'a>, d: &Discovery) -> Result<Kernel<'a>, OpenError> {
    let table = d
        .page_tables
        .iter()
        .find(|p| p.confirmed)
        .ok_or(OpenError::NoTable)?;
    let shape = [X86_64, X86_64_LA57, AARCH64_4K_48]
        .into_iter()
        .find(|s: &Shape| s.name == table.shape)
        .ok_or(OpenError::NoTable)?;
    // Of several kernels of one release, the one whose table this is.
    let info = input
        .anchors
        .iter()
        .filter(|a| a.kind == "vmcoreinfo" && Some(a.image_offset) == table.vmcoreinfo)
        .find_map(|a| VmCoreInfo::parse(&a.data).ok())
        .ok_or(OpenError::NoVmCoreInfo)?;
    let delta = image_delta(&info).ok_or(OpenError::NoVmCoreInfo)?;
    let (symbols, types) = match carried(input, d, &info, delta) {
        Ok((symbols, types)) => (symbols, Some(types)),
        Err(e) => match from_file(input, d, &info)? {
            Some(symbols) => (symbols, None),
            None => damaged(input, d, &info, delta).ok_or(e)?,
        },
    };
    let provenance = symbols.provenance();
    let torn = [&provenance.symbols, &provenance.types]
        .iter()
        .any(|s| matches!(s, Source::Damaged { .. }))
        || table.source == BY_ARITHMETIC;
    let linear = linear::of(input, &info, &symbols, delta);
    let mut kernel = Kernel {
        space: AddressSpace::new(input.memory, shape, table.dtb).with_linear(linear, torn),
        symbols,
        info,
        scanned: OnceCell::new(),
        found: BTreeSet::new(),
        ends: BTreeMap::new(),
        untyped: Vec::new(),
    };
    unnamed::complete(input, &mut kernel, delta);
    // Those of modules go on from the kernel's own blob, and from nothing else.
    if let Some(base) = types.filter(|t| t.has_end()) {
        module_types::add(&mut kernel, &base);
    }
    Ok(kernel)
}

impl Kernel<'_> {
    /// What of the kernel's own tables could not be read, in words; `None` when all of it could.
    pub fn damage(&self) -> Option<String> {
        let p = self.symbols.provenance();
        let mut out: Vec<String> = [("symbols", &p.symbols), ("types", &p.types)]
            .into_iter()
            .filter(|(_, s)| matches!(s, Source::Damaged { .. }))
            .map(|(what, s)| format!("{what}: {s}"))
            .collect();
        if self.space.prefers_linear() {
            out.push(
                "addresses of the kernel's image and of its map of all memory are translated by arithmetic, \
                 without page tables"
                    .into(),
            );
        }
        (!out.is_empty()).then(|| out.join("; "))
    }
}

/// What the kernel carries itself, and its types as they lie in it.
fn carried(
    input: &ViewInput<'_>,
    d: &Discovery,
    info: &VmCoreInfo,
    delta: u64,
) -> Result<(SymbolTable, Arc<Btf>), OpenError> {
    let (symbols, from) = read_symbols(input, info, delta).map_err(|why| OpenError::Symbols {
        why,
        wanted: wanted(d),
    })?;
    let (types, types_from) =
        read_types(input, &symbols, delta).map_err(|why| OpenError::Types {
            why,
            wanted: wanted(d),
        })?;
    let provenance = Provenance {
        symbols: from,
        types: types_from,
    };
    let table = SymbolTable::from_kernel(&symbols, btf::to_types(&types), provenance);
    Ok((table.with_banner(d.banner.clone()), Arc::new(types)))
}

/// What the kernel carries itself, as far as it is sound.
fn damaged(
    input: &ViewInput<'_>,
    d: &Discovery,
    info: &VmCoreInfo,
    delta: u64,
) -> Option<(SymbolTable, Option<Arc<Btf>>)> {
    let (symbols, from) = read_symbols(input, info, delta).ok().or_else(|| {
        let known = known(info);
        let hints = Hints {
            known: &known,
            delta: Some(delta),
        };
        let places = Places::from_vmcoreinfo(info, delta).ok()?;
        let k = kallsyms::decode_damaged(input.memory, &places, &hints).ok()?;
        let from = damaged_source(Source::KallsymsVmcoreinfo, k.lost(), k.len());
        Some((k, from))
    })?;
    let (types, types_from) = read_types(input, &symbols, delta)
        .ok()
        .or_else(|| damaged_types(input, &symbols, delta))?;
    let provenance = Provenance {
        symbols: from,
        types: types_from,
    };
    let table = SymbolTable::from_kernel(&symbols, btf::to_types(&types), provenance);
    Some((table.with_banner(d.banner.clone()), Some(Arc::new(types))))
}

fn damaged_source(of: Source, lost: usize, read: usize) -> Source {
    Source::Damaged {
        of: Box::new(of),
        lost,
        all: lost + read,
    }
}

fn damaged_types(input: &ViewInput<'_>, symbols: &Kallsyms, delta: u64) -> Option<(Btf, Source)> {
    let place = |name: &str| {
        let va = symbols.find(name)?.address.0;
        Some(PhysAddr(va.wrapping_sub(delta)))
    };
    let start = place("__start_BTF");
    let total = start
        .zip(place("__stop_BTF"))
        .and_then(|(start, stop)| usize::try_from(stop.0.checked_sub(start.0)?).ok());
    let told = start
        .and_then(|pa| btf::read_damaged(input.memory, pa, total).ok())
        .map(|b| (b, Source::BtfSymbol));
    let carved = || {
        let mut all = places(input, "btf");
        all.find_map(|pa| btf::read_damaged(input.memory, pa, None).ok())
            .map(|b| (b, Source::BtfCarved))
    };
    let (types, from) = told.or_else(carved)?;
    let (lost, read) = (types.lost(), types.len() - types.lost());
    Some((types, damaged_source(from, lost, read)))
}

/// The table of a symbol file for exactly this kernel, moved to where the kernel is.
fn from_file(
    input: &ViewInput<'_>,
    d: &Discovery,
    info: &VmCoreInfo,
) -> Result<Option<SymbolTable>, OpenError> {
    let (Some(store), Some(banner)) = (input.symbols, d.banner.as_deref()) else {
        return Ok(None);
    };
    let Some(table) = store.find(banner).map_err(OpenError::File)? else {
        return Ok(None);
    };
    let both = info.symbol("_stext").zip(table.address("_stext"));
    let (here, linked) = both.ok_or_else(|| {
        OpenError::File("the symbol file for this kernel has no symbol _stext".into())
    })?;
    Ok(Some(table.shifted(here.wrapping_sub(linked.0))))
}

/// What file would help, for people.
pub(crate) fn wanted(d: &Discovery) -> String {
    let banner = d.banner.as_deref().unwrap_or("no banner was found");
    let release = d.release.as_deref().unwrap_or("?");
    let has = |text: &str| banner.contains(text) || release.contains(text);
    let package = if has("Debian") {
        format!("Debian's package linux-image-{release}-dbg")
    } else if has("Ubuntu") || has("buildd@") {
        format!("Ubuntu's package linux-image-unsigned-{release}-dbgsym")
    } else if has(".el") || has(".fc") || has("amzn") {
        format!("the package kernel-debuginfo-{release}")
    } else if has("suse") {
        format!("the package kernel-default-debuginfo of {release}")
    } else {
        format!("the vmlinux with debug information of {release}")
    };
    let id = d.build_id.as_deref().unwrap_or("not known");
    format!(
        "a symbol file for exactly this kernel would do: {package} (build id {id}; {banner}), read by \
         ramsift symbols build"
    )
}

/// Physical addresses of the anchors of a kind.
pub(super) fn places<'i>(
    input: &'i ViewInput<'_>,
    kind: &'i str,
) -> impl Iterator<Item = PhysAddr> + 'i {
    input
        .anchors
        .iter()
        .filter(move |a| a.kind == kind)
        .filter_map(|a| input.runs.to_phys(ImageOffset(a.image_offset)))
        .take(TRIES)
}

/// Symbols of VMCOREINFO that a carved table must agree with: one alone can agree by chance, where
/// its neighbour has the same address.
const KNOWN: [&str; 3] = ["_stext", "init_uts_ns", "clear_seq"];

fn known(info: &VmCoreInfo) -> Vec<(&'static str, VirtAddr)> {
    let known = |name: &&'static str| Some((*name, VirtAddr(info.symbol(name)?)));
    KNOWN.iter().filter_map(known).collect()
}

fn read_symbols(
    input: &ViewInput<'_>,
    info: &VmCoreInfo,
    delta: u64,
) -> Result<(Kallsyms, Source), String> {
    let known = known(info);
    let hints = Hints {
        known: &known,
        delta: Some(delta),
    };
    let told = Places::from_vmcoreinfo(info, delta)
        .and_then(|p| kallsyms::decode(input.memory, &p, &hints));
    let why = match told {
        Ok(k) => return Ok((k, Source::KallsymsVmcoreinfo)),
        Err(e) => e.to_string(),
    };
    places(input, "kallsyms_token_table")
        .find_map(|pa| kallsyms::carve(input.memory, pa, &hints).ok())
        .map(|k| (k, Source::KallsymsCarved))
        .ok_or(why)
}

fn read_types(
    input: &ViewInput<'_>,
    symbols: &Kallsyms,
    delta: u64,
) -> Result<(Btf, Source), String> {
    let mut why = "there is no symbol __start_BTF, and no header of BTF was found".to_owned();
    if let Some(s) = symbols.find("__start_BTF") {
        let pa = PhysAddr(s.address.0.wrapping_sub(delta));
        match btf::read_kernel_at(input.memory, pa) {
            Ok(b) => return Ok((b, Source::BtfSymbol)),
            Err(e) => why = e.to_string(),
        }
    }
    places(input, "btf")
        .find_map(|pa| btf::read_kernel_at(input.memory, pa).ok())
        .map(|b| (b, Source::BtfCarved))
        .ok_or(why)
}
