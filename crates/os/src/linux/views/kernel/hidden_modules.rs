//! `linux/hidden_modules`: modules by every place that knows of them.
//!
//! | place | what |
//! | --- | --- |
//! | list | `modules`, what lsmod shows |
//! | sysfs | kobjects of `module_kset`, what `/sys/module` shows |
//! | tree | `mod_tree`, by which the kernel finds whose code an address is |
//! | area | areas of virtual memory that the module loader asked for |
//! | btf | `btf_modules`, modules with types of their own (5.11 and later) |
//! | memory | a scan of the mapped pages near the kernel image: a struct module holds its own address in `mkobj.mod` |
//!
//! A module that is being loaded or unloaded is in some of the places only; its state tells.
//!
//! Sources: Linux `kernel/module/main.c`, `include/linux/module.h`, `kernel/bpf/btf.c`.

use crate::linux::areas::{Area, areas};
use crate::linux::module::{self, Part};
use crate::linux::{CodeMap, Kernel, LinuxError, LinuxView, Object, Owner, ReadError};
use crate::table::{Column, Kind, Table, Value, column};
use ramsift_layers::Severity;
use ramsift_layers::translate::TranslateError;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// `linux/hidden_modules`.
pub(in crate::linux) const HIDDEN_MODULES: LinuxView = LinuxView {
    name: "linux/hidden_modules",
    meaning: "modules by every place that knows of them; those missing from the list are hidden",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/hidden_modules`.
const COLUMNS: &[Column] = &[
    column(
        "name",
        Kind::Text,
        "its name; null of an area that no module claims",
    ),
    column(
        "state",
        Kind::Text,
        "`live`, `coming`, `going` or `unformed`",
    ),
    column("list", Kind::Flag, "whether it is in the list of modules"),
    column(
        "sysfs",
        Kind::Flag,
        "whether it is in /sys/module; null: the kernel does not say where that is",
    ),
    column(
        "tree",
        Kind::Flag,
        "whether its memory is in the tree of modules' memory; null: no tree",
    ),
    column(
        "area",
        Kind::Flag,
        "whether its memory is an area of virtual memory; null: not known",
    ),
    column(
        "btf",
        Kind::Flag,
        "whether its types are in the kernel's list; null: no such list. Not all modules have types",
    ),
    column(
        "memory",
        Kind::Flag,
        "whether a scan of mapped pages found it",
    ),
    column("base", Kind::Hex, "virtual address of its first memory"),
    column("size", Kind::Number, "bytes of its core"),
    column("taints", Kind::Hex, "taint flags"),
    column(
        "module",
        Kind::Hex,
        "virtual address of its struct module; null of an area that no module claims",
    ),
    column(
        "physical",
        Kind::Hex,
        "physical address of that, or of the area",
    ),
];

/// From where to where modules' memory may lie around the kernel image: the kernel's branches reach
/// two GiB.
const REACH: u64 = 2 << 30;
const PAGE: u64 = 4096;
/// What a last-level table covers.
const TABLE: u64 = 2 << 20;

/// Functions that ask for modules' memory, by version.
const LOADERS: [&str; 5] = [
    "load_module",
    "move_module",
    "layout_and_allocate",
    "module_alloc",
    "module_memory_alloc",
];

#[derive(Default)]
struct Seen {
    list: BTreeSet<u64>,
    sysfs: Option<BTreeSet<u64>>,
    tree: Option<BTreeSet<u64>>,
    btf: Option<BTreeSet<u64>>,
    memory: BTreeSet<u64>,
    areas: Option<Vec<Area>>,
}

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let code = CodeMap::new(kernel, &mut out.doubts)?;
    let seen = gather(kernel, &mut out.doubts)?;
    let mut all = seen.list.clone();
    all.extend(seen.sysfs.iter().flatten());
    all.extend(seen.tree.iter().flatten());
    all.extend(seen.btf.iter().flatten());
    all.extend(&seen.memory);
    let mut claimed = BTreeSet::new();
    for va in all {
        let m = kernel.object("module", va);
        match module::parts(&m) {
            Ok(parts) => {
                claimed.extend(parts.iter().map(|p| p.base));
                if let Err(e) = row(&m, &parts, &seen, &mut out) {
                    out.doubts.push(format!("struct module at {va:#x}: {e}"));
                }
            }
            Err(e) => out.doubts.push(format!("struct module at {va:#x}: {e}")),
        }
    }
    for a in seen.areas.iter().flatten() {
        unclaimed(kernel, &code, &claimed, a, &mut out);
    }
    Ok(out)
}

/// Asks every place.
fn gather(kernel: &Kernel<'_>, doubts: &mut Vec<String>) -> Result<Seen, LinuxError> {
    let image = image(kernel)?;
    let mut seen = Seen {
        list: kernel.modules(doubts)?.iter().map(|m| m.va).collect(),
        sysfs: sysfs(kernel, doubts)?,
        areas: areas(kernel, &image, doubts)?,
        ..Seen::default()
    };
    if kernel.symbols.find("mod_tree").is_some() {
        seen.tree = Some(kernel.modules_in_tree(doubts)?);
    }
    if let Some(head) = kernel.symbols.address("btf_modules")
        && kernel.symbols.types().has_field("btf_module", "module")
    {
        let walk = kernel.list(head.0, "btf_module", "list")?;
        doubts.extend(walk.broken);
        let module = |va: &u64| kernel.object("btf_module", *va).number("module");
        seen.btf = Some(walk.items.iter().map(module).collect::<Result<_, _>>()?);
    }
    seen.memory = scan(kernel, image)?;
    Ok(seen)
}

/// Where modules' memory may lie: as far from the image as code may reach.
fn image(kernel: &Kernel<'_>) -> Result<Range<u64>, LinuxError> {
    let start = kernel.address("_stext")?;
    let from = start.saturating_sub(REACH) & !(TABLE - 1);
    Ok(from..start.saturating_add(REACH).min(u64::MAX - TABLE))
}

/// What /sys/module shows; `None` where the kernel does not say where that is.
fn sysfs(
    kernel: &Kernel<'_>,
    doubts: &mut Vec<String>,
) -> Result<Option<BTreeSet<u64>>, LinuxError> {
    let Ok(kset) = kernel.u64_at("module_kset") else {
        return Ok(None);
    };
    let head = kernel.object("kset", kset).at("list")?;
    let walk = kernel.list(head, "kobject", "entry")?;
    doubts.extend(walk.broken);
    let kobj = kernel
        .symbols
        .types()
        .field("module_kobject", "kobj")?
        .offset;
    let mut out = BTreeSet::new();
    for k in walk.items {
        let m = kernel
            .object("module_kobject", k.wrapping_sub(kobj))
            .number("mod")?;
        // What is built in has a directory and no struct module.
        out.extend((m != 0).then_some(m));
    }
    Ok(Some(out))
}

/// Structs module in mapped pages: 8 bytes that are the address of the struct they would be in.
fn scan(kernel: &Kernel<'_>, range: Range<u64>) -> Result<BTreeSet<u64>, LinuxError> {
    let inside = kernel.symbols.types().field("module", "mkobj.mod")?.offset;
    let (text, end) = (kernel.address("_stext")?, kernel.address("_end").ok());
    let image = text..end.unwrap_or(text);
    let mut out = BTreeSet::new();
    let mut page = vec![0; 4096];
    let mut at = range.start;
    while at < range.end {
        if image.contains(&at) {
            at = (image.end | (PAGE - 1)).saturating_add(1);
            continue;
        }
        match kernel.space.read(at, &mut page) {
            Ok(()) => {
                for (i, w) in page.as_chunks::<8>().0.iter().enumerate() {
                    let field = at.wrapping_add(i as u64 * 8);
                    let module = field.wrapping_sub(inside);
                    if u64::from_le_bytes(*w) == module && is_module(kernel, module) {
                        out.insert(module);
                    }
                }
            }
            // Nothing in the whole table.
            Err(ReadError::Translate(TranslateError::NotPresent { level: 2.., .. })) => {
                at = (at | (TABLE - 1)).saturating_add(1);
                continue;
            }
            Err(_) => {}
        }
        at = at.saturating_add(PAGE);
    }
    Ok(out)
}

fn is_module(kernel: &Kernel<'_>, va: u64) -> bool {
    let m = kernel.object("module", va);
    m.text("name").is_ok_and(|n| module::is_name(&n))
        && m.number("state").is_ok_and(|s| s & 0xffff_ffff < 4)
}

/// What a state is called.
fn state(m: &Object<'_>) -> Result<&'static str, LinuxError> {
    let types = m.kernel().symbols.types();
    let value = m.int("state")?;
    Ok(match types.enum_name("module_state", value) {
        Some("MODULE_STATE_LIVE") => "live",
        Some("MODULE_STATE_COMING") => "coming",
        Some("MODULE_STATE_GOING") => "going",
        Some("MODULE_STATE_UNFORMED") => "unformed",
        _ => "unknown",
    })
}

fn row(m: &Object<'_>, parts: &[Part], seen: &Seen, out: &mut Table) -> Result<(), LinuxError> {
    let core = || parts.iter().filter(|p| !p.init);
    let base = core().map(|p| p.base).min();
    let within = |a: &Area| base.is_some_and(|b| (a.start..a.end).contains(&b));
    let area = seen.areas.as_ref().map(|all| all.iter().any(within));
    let has = |set: &Option<BTreeSet<u64>>| set.as_ref().map(|s| s.contains(&m.va));
    let (list, sysfs) = (seen.list.contains(&m.va), has(&seen.sysfs));
    let (tree, btf, memory) = (has(&seen.tree), has(&seen.btf), seen.memory.contains(&m.va));
    let (name, state) = (m.text("name")?, state(m)?);
    out.push(vec![
        name.as_str().into(),
        state.into(),
        list.into(),
        sysfs.into(),
        tree.into(),
        area.into(),
        btf.into(),
        memory.into(),
        base.into(),
        core().fold(0u64, |n, p| n.saturating_add(p.size)).into(),
        m.number("taints")?.into(),
        m.va.into(),
        m.physical().into(),
    ]);
    // A place that can't be asked says nothing.
    if list && (sysfs != Some(false) || state != "live") {
        return Ok(());
    }
    let places: BTreeMap<&str, bool> = [
        ("the list", list),
        ("sysfs", sysfs == Some(true)),
        ("the tree of modules' memory", tree == Some(true)),
        ("an area of its own", area == Some(true)),
        ("the list of types", btf == Some(true)),
        ("a scan of memory", memory),
    ]
    .into();
    let found: Vec<&str> = places
        .iter()
        .filter(|(_, f)| **f)
        .map(|(p, _)| *p)
        .collect();
    let (what, severity) = match (list, state) {
        (true, _) => ("missing from sysfs", Severity::High),
        (false, "live") => ("missing from the list of modules", Severity::Critical),
        // It may just be on its way in or out.
        (false, _) => (
            "missing from the list of modules while it is not live",
            Severity::Low,
        ),
    };
    let reason = format!(
        "module {name} (struct module at {:#x}, {state}) is {what}; found by: {}",
        m.va,
        found.join(", ")
    );
    out.flag("hidden_module", severity, reason);
    Ok(())
}

/// A row for an area that the module loader asked for and no module has.
fn unclaimed(
    kernel: &Kernel<'_>,
    code: &CodeMap<'_>,
    claimed: &BTreeSet<u64>,
    a: &Area,
    out: &mut Table,
) {
    let caller = code.owner(a.caller);
    let loader = matches!(&caller, Owner::Kernel { symbol, .. }
        if LOADERS.iter().any(|l| symbol.starts_with(l)));
    let used = claimed.iter().any(|b| (a.start..a.end).contains(b));
    if !loader || used || code.place(a.start) != Owner::Unknown {
        return;
    }
    let mut cells = vec![Value::Null; COLUMNS.len()];
    let physical = kernel.space.translate(a.start).ok().map(|p| p.0);
    for (name, value) in [
        ("list", Value::from(false)),
        ("sysfs", false.into()),
        ("area", true.into()),
        ("memory", false.into()),
        ("base", a.start.into()),
        ("size", a.end.wrapping_sub(a.start).into()),
        ("physical", physical.into()),
    ] {
        if let Some(i) = COLUMNS.iter().position(|c| c.name == name) {
            cells[i] = value;
        }
    }
    out.push(cells);
    let reason = format!(
        "memory at {:#x}-{:#x} was asked for by the module loader ({caller}) and belongs to no \
         module (vmap_area at {:#x})",
        a.start, a.end, a.va
    );
    // The init part of a module that has just been loaded goes a moment later.
    out.flag("module_memory_without_module", Severity::Medium, reason);
}
