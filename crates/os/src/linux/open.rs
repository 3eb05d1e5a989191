//! From what discovery confirmed to a kernel that can be read.

use super::{AddressSpace, Kernel, unnamed};
use crate::kernel::Discovery;
use crate::view::ViewInput;
use ramsift_layers::translate::{AARCH64_4K_48, Shape, X86_64, X86_64_LA57};
use ramsift_layers::{ImageOffset, PhysAddr, VirtAddr};
use ramsift_symbols::kallsyms::{Hints, Places, image_delta};
use ramsift_symbols::{Btf, Kallsyms, Provenance, Source, SymbolTable, VmCoreInfo, btf, kallsyms};

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
    #[error("the kernel's symbol table can't be read: {0}")]
    Symbols(String),
    /// No types.
    #[error("the kernel's types (BTF) can't be read: {0}")]
    Types(String),
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
    let info = input
        .anchors
        .iter()
        .filter(|a| a.kind == "vmcoreinfo")
        .filter_map(|a| VmCoreInfo::parse(&a.data).ok())
        .find(|v| v.release() == d.release.as_deref() && image_delta(v).is_some())
        .ok_or(OpenError::NoVmCoreInfo)?;
    let delta = image_delta(&info).ok_or(OpenError::NoVmCoreInfo)?;
    let (symbols, from) = read_symbols(input, &info, delta)?;
    let (types, types_from) = read_types(input, &symbols, delta)?;
    let provenance = Provenance {
        symbols: from,
        types: types_from,
    };
    let symbols = SymbolTable::from_kernel(&symbols, btf::to_types(&types), provenance)
        .with_banner(d.banner.clone());
    let mut kernel = Kernel {
        space: AddressSpace::new(input.memory, shape, table.dtb),
        symbols,
        info,
    };
    unnamed::complete(input, &mut kernel, delta);
    Ok(kernel)
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

fn read_symbols(
    input: &ViewInput<'_>,
    info: &VmCoreInfo,
    delta: u64,
) -> Result<(Kallsyms, Source), OpenError> {
    let known: Vec<(&str, VirtAddr)> = KNOWN
        .iter()
        .filter_map(|name| Some((*name, VirtAddr(info.symbol(name)?))))
        .collect();
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
        .ok_or(OpenError::Symbols(why))
}

fn read_types(
    input: &ViewInput<'_>,
    symbols: &Kallsyms,
    delta: u64,
) -> Result<(Btf, Source), OpenError> {
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
        .ok_or(OpenError::Types(why))
}
