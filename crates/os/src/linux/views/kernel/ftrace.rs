//! `linux/ftrace`: who is called at the start of functions.
//!
//! ```text
//! ftrace_ops_list -> ftrace_ops { func, next, flags, func_hash, trampoline } -> … -> ftrace_list_end
//! func_hash -> ftrace_ops_hash { filter_hash -> ftrace_hash { size_bits, buckets -> hlist_head[] } }
//! bucket -> ftrace_func_entry { hlist, ip }
//! ftrace_mod_maps -> ftrace_mod_map { list, mod, funcs -> ftrace_mod_func { list, name, ip, size } }
//! ```
//!
//! Sources: Linux `include/linux/ftrace.h`, `kernel/trace/ftrace.c`, `kernel/trace/trace.h`.

use crate::linux::hooks::judge;
use crate::linux::{CodeMap, Kernel, LinuxError, LinuxView, Object};
use crate::table::{Column, Kind, Table, column};

/// `linux/ftrace`.
pub(in crate::linux) const FTRACE: LinuxView = LinuxView {
    name: "linux/ftrace",
    meaning: "functions that ftrace calls at the start of others",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/ftrace`.
const COLUMNS: &[Column] = &[
    column("handler", Kind::Hex, "the function that is called"),
    column("symbol", Kind::Text, "whose code that is"),
    column("module", Kind::Text, "the module, where it is one's"),
    column(
        "hooked",
        Kind::Number,
        "how many functions its filter names; 0: all",
    ),
    column("functions", Kind::Text, "their names, the first 16"),
    column("flags", Kind::Hex, "its flags"),
    column(
        "trampoline",
        Kind::Hex,
        "virtual address of its trampoline; null where it has none",
    ),
    column("va", Kind::Hex, "virtual address of its struct ftrace_ops"),
    column("physical", Kind::Hex, "physical address of that"),
];

/// Bits of a filter's size at most.
const MAX_BITS: u64 = 16;
/// Names of hooked functions that are told.
const TOLD: usize = 16;

/// A function whose code was freed and whose name ftrace keeps, for it may be in a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::linux) struct Freed {
    pub(in crate::linux) name: String,
    /// Where its code was.
    pub(in crate::linux) address: u64,
    pub(in crate::linux) size: u64,
    /// The struct module that it was of.
    pub(in crate::linux) module: u64,
}

/// Freed functions at most.
const MAX_FREED: usize = 1 << 20;
/// Bytes of a name at most (`KSYM_NAME_LEN`).
const MAX_NAME: usize = 512;

/// Functions of modules' code for starting that ftrace keeps by name; nothing where the kernel doesn't.
pub(in crate::linux) fn freed(
    kernel: &Kernel<'_>,
    doubts: &mut Vec<String>,
) -> Result<Vec<Freed>, LinuxError> {
    let mut out = Vec::new();
    let Some(head) = kernel.symbols.address("ftrace_mod_maps") else {
        return Ok(out);
    };
    let maps = kernel.list(head.0, "ftrace_mod_map", "list")?;
    doubts.extend(maps.broken);
    for map in maps.items {
        let map = kernel.object("ftrace_mod_map", map);
        let module = map.number("mod")?;
        let funcs = kernel.list(map.at("funcs")?, "ftrace_mod_func", "list")?;
        doubts.extend(funcs.broken);
        for va in funcs.items {
            if out.len() >= MAX_FREED {
                doubts.push(format!("ftrace keeps more than {MAX_FREED} names"));
                return Ok(out);
            }
            let f = kernel.object("ftrace_mod_func", va);
            out.push(Freed {
                name: kernel.text(f.number("name")?, MAX_NAME)?,
                address: f.number("ip")?,
                size: f.number("size")? & 0xffff_ffff,
                module,
            });
        }
    }
    Ok(out)
}

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let first = kernel.u64_at("ftrace_ops_list")?;
    let end = kernel.address("ftrace_list_end")?;
    let code = CodeMap::new(kernel, &mut out.doubts)?;
    let next = kernel.symbols.types().field("ftrace_ops", "next")?.offset;
    let walk = kernel.chain_until(first, next, end);
    out.doubts.extend(walk.broken);
    for va in walk.items {
        let ops = kernel.object("ftrace_ops", va);
        if let Err(e) = row(kernel, &code, &ops, &mut out) {
            out.doubts.push(format!("ftrace_ops at {va:#x}: {e}"));
        }
    }
    Ok(out)
}

fn row(
    kernel: &Kernel<'_>,
    code: &CodeMap<'_>,
    ops: &Object<'_>,
    out: &mut Table,
) -> Result<(), LinuxError> {
    // Where another function stands between, this is the one that was registered.
    let handler = match ops.has("saved_func") {
        true => ops.number("saved_func")?,
        false => 0,
    };
    let handler = if handler == 0 {
        ops.number("func")?
    } else {
        handler
    };
    let mut ips = Vec::new();
    if ops.has("func_hash")
        && let Some(hash) = ops.follow("func_hash", "ftrace_ops_hash")?
        && let Some(hash) = hash.follow("filter_hash", "ftrace_hash")?
    {
        ips = filter(kernel, &hash, &mut out.doubts)?;
    }
    let names: Vec<String> = ips
        .iter()
        .take(TOLD)
        .map(|ip| code.owner(*ip).to_string())
        .collect();
    let trampoline = ops.number("trampoline")?;
    let owner = code.owner(handler);
    out.push(vec![
        handler.into(),
        owner.to_string().into(),
        owner.module().into(),
        ips.len().into(),
        names.join(" ").into(),
        ops.number("flags")?.into(),
        (trampoline != 0).then_some(trampoline).into(),
        ops.va.into(),
        ops.physical().into(),
    ]);
    let what = format!(
        "the ftrace hook at {:#x} on {}",
        ops.va,
        if names.is_empty() {
            "all functions".to_owned()
        } else {
            names.join(", ")
        }
    );
    judge(out, code, "ftrace_hook", &what, handler);
    Ok(())
}

/// The addresses that a filter names, in order.
fn filter(
    kernel: &Kernel<'_>,
    hash: &Object<'_>,
    doubts: &mut Vec<String>,
) -> Result<Vec<u64>, LinuxError> {
    if hash.number("count")? == 0 {
        return Ok(Vec::new());
    }
    let (bits, buckets) = (hash.number("size_bits")?, hash.number("buckets")?);
    if bits > MAX_BITS {
        doubts.push(format!(
            "ftrace_hash at {:#x}: it claims {bits} bits",
            hash.va
        ));
    }
    let types = kernel.symbols.types();
    let node = types.field("ftrace_func_entry", "hlist")?.offset;
    let ip = types.field("ftrace_func_entry", "ip")?.offset;
    let mut out = Vec::new();
    for i in 0..1u64 << bits.min(MAX_BITS) {
        let first = kernel.space.u64(buckets.wrapping_add(i * 8))?;
        let walk = kernel.chain(first, 0);
        doubts.extend(walk.broken);
        for n in walk.items {
            out.push(kernel.space.u64(n.wrapping_sub(node).wrapping_add(ip))?);
        }
    }
    out.sort_unstable();
    Ok(out)
}
