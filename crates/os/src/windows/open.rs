//! From what discovery confirmed to a kernel that can be read.

use super::page_files::{self, PageFiles};
use super::space::Entries;
use super::{Kernel, Space, WindowsError, image, lists, nearest};
use crate::discover::{Discovery, PageTable};
use crate::input::ViewInput;
use ramsift_layers::translate::{Shape, X86_64, X86_64_LA57};
use ramsift_symbols::SymbolTable;
use ramsift_symbols::layouts::{LayoutError, Layouts};
use std::cell::OnceCell;
use std::rc::Rc;

/// Why a kernel that was found can't be read.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No page table was confirmed.
    #[error("no page table of the kernel was confirmed")]
    NoTable,
    /// The kernel's image is not where it was found.
    #[error("the kernel's image can't be read")]
    NoImage,
    /// The layouts of this kernel are not known.
    #[error(
        "the layouts of this kernel are neither built in nor in the symbol store: {key} (the name and GUID-age of its symbol \
         file); an ISF of exactly that file would do, see ramsift symbols import"
    )]
    Unknown {
        /// Name, GUID and age of the symbol file.
        key: String,
    },
    /// The layouts don't fit what is in memory.
    #[error("the layouts of {key} don't fit this kernel: {why}")]
    Misfit {
        /// Name, GUID and age of the symbol file.
        key: String,
        /// What does not fit.
        why: String,
    },
    /// The table of layouts, or the symbol file, is damaged.
    #[error("{0}")]
    File(String),
}

impl From<&LayoutError> for OpenError {
    fn from(e: &LayoutError) -> Self {
        Self::File(e.to_string())
    }
}

/// Opens the kernel of the first confirmed page table.
pub(super) fn open<'a>(input: &ViewInput<'a>, d: &Discovery) -> Result<Kernel<'a>, OpenError> {
    let table = d.page_tables.iter().find(|p| p.confirmed);
    let table = table.ok_or(OpenError::NoTable)?;
    let kernel = below(input, d, table)?;
    page_files::examine(&kernel);
    Ok(kernel)
}

/// Opens the kernel below a table, which may be that of any process.
fn below<'a>(
    input: &ViewInput<'a>,
    d: &Discovery,
    table: &PageTable,
) -> Result<Kernel<'a>, OpenError> {
    let shape = [X86_64, X86_64_LA57]
        .into_iter()
        .find(|s: &Shape| s.name == table.shape)
        .ok_or(OpenError::NoTable)?;
    let space = Space::new(input.memory, shape, table.dtb.0);
    let base = d.kernel_base.ok_or(OpenError::NoImage)?;
    let (size, pdb) = image::image(&space, base).ok_or(OpenError::NoImage)?;
    let key = pdb.key();
    let make = |symbols| Kernel {
        space: Space::new(input.memory, shape, table.dtb.0),
        symbols,
        base,
        size,
        runs: input.runs.clone(),
        cookie: None,
        pool: input.pool.cloned(),
        scanned: OnceCell::new(),
    };
    let layouts = Layouts::built_in()?;
    let built_in = layouts.kernel(&pdb.guid, base);
    let symbols = match built_in.transpose().map_err(|e| OpenError::from(&e))? {
        Some(s) => s,
        None => from_file(input, &key, base).or_else(|unknown| {
            let near = nearest::find(layouts, &key, &space, base, &make);
            near.ok_or(unknown)
        })?,
    };
    let mut kernel = make(symbols);
    kernel.cookie = cookie(&kernel);
    let entries = Entries {
        page_files: Rc::new(PageFiles::new(input.page_files)),
        ..entries(&kernel)
    };
    let dtb = own_table(&kernel, &pdb).unwrap_or(table.dtb.0);
    kernel.space = Space::new(input.memory, shape, dtb).with_entries(entries);
    fits(&kernel).map_err(|why| OpenError::Misfit { key, why })?;
    Ok(kernel)
}

/// The kernel's own table, by the System process: what led to the kernel may be that of any process, since all map it. `None` where
/// that maps another kernel, or nothing.
fn own_table(k: &Kernel<'_>, pdb: &image::Pdb) -> Option<u64> {
    let system = k.global("PsInitialSystemProcess").ok()?;
    let system = k.object("_EPROCESS", system);
    let dtb = system.number("Pcb.DirectoryTableBase").ok()? & !0xfff;
    let own = Space::new(k.memory(), *k.space.shape(), dtb);
    let (size, found) = image::image(&own, k.base)?;
    (size == k.size && found == *pdb).then_some(dtb)
}

/// The table of a symbol file for exactly this kernel.
fn from_file(input: &ViewInput<'_>, key: &str, base: u64) -> Result<SymbolTable, OpenError> {
    let found = input.symbols.map_or(Ok(None), |s| s.find(key));
    let found = found.map_err(OpenError::File)?;
    let symbols = found.ok_or_else(|| OpenError::Unknown {
        key: key.to_owned(),
    })?;
    Ok(symbols.based(base))
}

/// What the numbers of types are mixed with: where the symbol is not known, by the number that the System process must have.
fn cookie(k: &Kernel<'_>) -> Option<u8> {
    if let Some(at) = k.symbols.address("ObHeaderCookie") {
        let mut raw = [0];
        return k.space.read(at.0, &mut raw).ok().map(|()| raw[0]);
    }
    let system = k.global("PsInitialSystemProcess").ok()?;
    let process = k.global("PsProcessType").ok()?;
    let number = k.object("_OBJECT_TYPE", process).number("Index").ok()?;
    let body = k
        .symbols
        .types()
        .field("_OBJECT_HEADER", "Body")
        .ok()?
        .offset;
    let header = system.wrapping_sub(body);
    let raw = k
        .object("_OBJECT_HEADER", header)
        .number("TypeIndex")
        .ok()?;
    let mixed = (raw ^ number ^ (header >> 8)) as u8;
    // Before Windows 10 the number stands as it is.
    (raw != number).then_some(mixed)
}

/// What entries that are not present look like in this build.
fn entries(k: &Kernel<'_>) -> Entries {
    let types = k.symbols.types();
    let page_file_low = types
        .field("_MMPTE_SOFTWARE", "PageFileLow")
        .ok()
        .and_then(|f| f.bits)
        .map_or(1, |b| u32::from(b.offset));
    let swizzles = types.has_field("_MMPTE_TRANSITION", "SwizzleBit")
        || types.has_field("_MMPTE_SOFTWARE", "SwizzleBit");
    let mask = || {
        if let Some(at) = k.symbols.address("MiInvalidPteMask") {
            return k.space.u64(at.0).ok();
        }
        let state = k.symbols.address("MiState")?;
        let f = types.field("_MI_SYSTEM_INFORMATION", "Hardware.InvalidPteMask");
        k.space.u64(state.0 + f.ok()?.offset).ok()
    };
    // Bits of a page's number, no others.
    let mask = mask().filter(|m| swizzles && m & !0x000f_ffff_ffff_f000 == 0);
    Entries {
        invalid_mask: mask.unwrap_or(0),
        page_file_low,
        ..Entries::default()
    }
}

/// Whether the layouts lead to what must be there: the System process, by the pointer to it and by the list, the kernel itself
/// as the first module, and the type of types.
fn fits(k: &Kernel<'_>) -> Result<(), String> {
    let told = |e: WindowsError| e.to_string();
    let system = k.global("PsInitialSystemProcess").map_err(told)?;
    let p = k.object("_EPROCESS", system);
    let name = p.text("ImageFileName").map_err(told)?;
    let pid = p.number("UniqueProcessId").map_err(told)?;
    if (name.as_str(), pid) != ("System", 4) {
        return Err(format!(
            "the first process should be System, 4; there is {name:?}, {pid}"
        ));
    }
    let dtb = p.number("Pcb.DirectoryTableBase").map_err(told)? & !0xfff;
    if dtb != k.space.dtb().0 {
        return Err(format!(
            "the page table of System should be {}; there is {dtb:#x}",
            k.space.dtb().0
        ));
    }
    let head = k.address("PsActiveProcessHead").map_err(told)?;
    let list = lists::list(k, head, "_EPROCESS", "ActiveProcessLinks").map_err(told)?;
    // What is torn is told by the views; a list that leads to no process at all is another layout.
    let first = list.items.first().copied().unwrap_or(system);
    let pid = k
        .object("_EPROCESS", first)
        .number("UniqueProcessId")
        .map_err(told)?;
    if !pid.is_multiple_of(4) || pid > 1 << 26 {
        return Err(format!(
            "the first process in the list has the number {pid}"
        ));
    }
    // The two that follow may be torn or, of the nearest layouts, not known: they count where they can be read.
    let ty = k.module_type();
    if let Ok(first) = k.global("PsLoadedModuleList")
        && let Ok(base) = k.object(ty, first).number("DllBase")
        && base != k.base
    {
        return Err(format!(
            "the first module should be the kernel at {:#x}; there is one at {base:#x}",
            k.base
        ));
    }
    if let Ok(table) = k.address("ObTypeIndexTable")
        && let Ok(of_types) = k.space.u64(table.wrapping_add(16))
        && let Ok(name) = k.object("_OBJECT_TYPE", of_types).unicode("Name")
        && name != "Type"
    {
        return Err(format!(
            "the first type of objects should be Type; there is {name:?}"
        ));
    }
    Ok(())
}
