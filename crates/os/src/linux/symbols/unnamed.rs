//! Data whose names are not in the kernel's symbol table: kernels without `CONFIG_KALLSYMS_ALL`, as
//! Debian's for arm64, list functions only.
//!
//! ```text
//! VMCOREINFO    SYMBOL(prb), SYMBOL(vmap_area_list), ...
//! init_task     a task named swapper/0 with number 0 that its neighbours in the list know
//! modules       a struct module holds its own address (mkobj.mod); the one node of their list that is no
//!               module is its head
//! ```
//!
//! Others are found by the code that refers to them ([`referred`](crate::linux::referred)).
//!
//! Sources: Linux `kernel/vmcore_info.c`, `include/linux/module.h` (`module_kobject`),
//! `arch/arm64/include/asm/memory.h` (modules lie in the 2 GiB below the image).

use crate::input::ViewInput;
use crate::linux::memory::is_x86;
use crate::linux::{Kernel, open, referred};
use ramsift_layers::translate::{Mapped, mappings};
use ramsift_symbols::NewSymbol;
use std::collections::HashSet;

/// Keys of VMCOREINFO that hold the value of a variable, not its address.
const VALUES: [&str; 3] = ["mem_section", "node_data", "contig_page_data"];
/// Bytes below the kernel's text in which modules lie.
const MODULES: u64 = 2 << 30;
/// Modules at most.
const MAX: usize = 1 << 16;
/// Pages of tables that are read on the way to them.
const BUDGET: usize = 1 << 16;

/// Adds what can be found, where the table has no data.
pub(in crate::linux) fn complete(input: &ViewInput<'_>, kernel: &mut Kernel<'_>, delta: u64) {
    let whole = kernel.damage().is_none();
    if whole && kernel.symbols.address("init_task").is_some() {
        return;
    }
    let told: Vec<(String, u64)> = kernel
        .info
        .symbols()
        .filter(|(name, _)| !VALUES.contains(name) && kernel.symbols.address(name).is_none())
        .map(|(name, va)| (name.to_owned(), va))
        .collect();
    add(kernel, told);
    if kernel.symbols.address("init_task").is_none() {
        let va = init_task(input, kernel, delta);
        add(kernel, va.map(|va| ("init_task".to_owned(), va)));
    }
    if kernel.symbols.address("modules").is_none() {
        let va = modules(kernel);
        add(kernel, va.map(|va| ("modules".to_owned(), va)));
    }
    if whole && !is_x86(kernel) {
        referred::complete(kernel);
    }
}

/// Adds names with their addresses to the kernel's own.
pub(in crate::linux) fn add(
    kernel: &mut Kernel<'_>,
    found: impl IntoIterator<Item = (String, u64)>,
) {
    let found: Vec<(String, u64)> = found.into_iter().collect();
    if found.is_empty() {
        return;
    }
    kernel
        .found
        .extend(found.iter().map(|(name, _)| name.clone()));
    kernel.symbols.add(found.iter().map(|(name, va)| NewSymbol {
        name,
        address: *va,
        kind: b'D',
        ty: None,
    }));
}

/// The first task.
fn init_task(input: &ViewInput<'_>, kernel: &Kernel<'_>, delta: u64) -> Option<u64> {
    let types = kernel.symbols.types();
    let comm = types.field("task_struct", "comm").ok()?.offset;
    open::places(input, "swapper").find_map(|pa| {
        // It lies in the kernel's image.
        let va = pa.0.wrapping_add(delta).wrapping_sub(comm);
        let task = kernel.object("task_struct", va);
        let tasks = task.at("tasks").ok()?;
        let back = |path: &str, side: u64| {
            let next = task.number(path).ok()?;
            kernel.space.u64(next.wrapping_add(side)).ok()
        };
        let number = task.number("pid").ok()? | task.number("tgid").ok()?;
        let closed = back("tasks.next", 8) == Some(tasks) && back("tasks.prev", 0) == Some(tasks);
        (number == 0 && closed).then_some(va)
    })
}

/// The head of the list of modules.
fn modules(kernel: &Kernel<'_>) -> Option<u64> {
    let types = kernel.symbols.types();
    let own = types.field("module", "mkobj.mod").ok()?.offset;
    let list = types.field("module", "list").ok()?.offset;
    let text = kernel.symbols.address("_stext")?.0;
    let shape = *kernel.space.shape();
    let low = |va: u64| va & ((1 << shape.va_bits()) - 1);
    let high = text & !((1 << shape.va_bits()) - 1);
    let mut pages = Vec::new();
    let mut budget = BUDGET;
    mappings(
        kernel.space.memory(),
        &shape,
        kernel.space.dtb(),
        low(text).saturating_sub(MODULES)..low(text),
        &mut budget,
        &mut |m| {
            if let Mapped::Page { va, len: 4096, .. } = m {
                pages.push(high | va);
            }
        },
    );
    let is_module = |va: u64| {
        let held = kernel.space.u64(va.wrapping_add(own));
        held.is_ok_and(|held| held == va)
    };
    let mut raw = [0; 4096];
    for page in pages {
        if kernel.space.read(page, &mut raw).is_err() {
            continue;
        }
        for (i, word) in raw.chunks_exact(8).enumerate() {
            let held = word.first_chunk().map_or(0, |w| u64::from_le_bytes(*w));
            if held == 0 || held.wrapping_add(own) != page + i as u64 * 8 {
                continue;
            }
            if let Some(head) = head(kernel, held.wrapping_add(list), list, &is_module) {
                return Some(head);
            }
        }
    }
    None
}

/// The node of a closed list that belongs to no module, if it is the only one.
fn head(
    kernel: &Kernel<'_>,
    first: u64,
    list: u64,
    is_module: &dyn Fn(u64) -> bool,
) -> Option<u64> {
    let (mut at, mut found, mut seen) = (first, None, HashSet::new());
    loop {
        if !seen.insert(at) || seen.len() > MAX {
            return None;
        }
        if !is_module(at.wrapping_sub(list)) && found.replace(at).is_some() {
            return None;
        }
        at = kernel.space.u64(at).ok()?;
        if at == first {
            return found;
        }
    }
}
