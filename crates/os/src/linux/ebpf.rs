//! `linux/ebpf`: loaded eBPF programs.
//!
//! ```text
//! prog_idr: id -> bpf_prog { type, expected_attach_type, len, jited, jited_len, tag, bpf_func, aux }
//! aux: bpf_prog_aux { id, name, load_time, user, used_map_cnt }
//! ```
//!
//! Classic filters (of sockets and seccomp) have no id and are not here.
//!
//! Sources: Linux `include/linux/bpf.h`, `include/linux/filter.h`, `kernel/bpf/syscall.c`.

use super::{Kernel, LinuxError, LinuxView, Object};
use crate::table::{Column, Kind, Table, Value, column};

/// `linux/ebpf`.
pub(super) const EBPF: LinuxView = LinuxView {
    name: "linux/ebpf",
    meaning: "loaded eBPF programs",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/ebpf`.
const COLUMNS: &[Column] = &[
    column("id", Kind::Number, "its id"),
    column("name", Kind::Text, "its name, 15 bytes at most"),
    column("type", Kind::Text, "its type: `socket_filter`, `kprobe`, …"),
    column(
        "attach",
        Kind::Text,
        "what it was made to be attached to; null where its type says all",
    ),
    column(
        "tag",
        Kind::Text,
        "hash of its instructions, as bpftool shows it",
    ),
    column("loaded", Kind::Time, "when it was loaded"),
    column("uid", Kind::Number, "user who loaded it"),
    column("instructions", Kind::Number, "how many instructions it has"),
    column(
        "jit",
        Kind::Hex,
        "virtual address of its machine code; null: interpreted",
    ),
    column("jit_size", Kind::Number, "bytes of that"),
    column("maps", Kind::Number, "how many maps it uses"),
    column("va", Kind::Hex, "virtual address of its struct bpf_prog"),
    column("physical", Kind::Hex, "physical address of that"),
];

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let idr = kernel.address("prog_idr")?;
    for (id, va) in kernel.idr(idr, &mut out.doubts)? {
        let prog = kernel.object("bpf_prog", va);
        if let Err(e) = row(kernel, id, &prog, &mut out) {
            out.doubts.push(format!("bpf_prog at {va:#x}: {e}"));
        }
    }
    Ok(out)
}

/// The name of a constant, without what all of its enumeration begin with.
fn constant(kernel: &Kernel<'_>, ty: &str, value: u64, prefix: &str) -> Option<String> {
    let value = i64::try_from(value & 0xffff_ffff).ok()?;
    let name = kernel.symbols.types().enum_name(ty, value)?;
    Some(name.strip_prefix(prefix).unwrap_or(name).to_lowercase())
}

fn row(kernel: &Kernel<'_>, id: u64, prog: &Object<'_>, out: &mut Table) -> Result<(), LinuxError> {
    let Some(aux) = prog.follow("aux", "bpf_prog_aux")? else {
        return Ok(());
    };
    let number = prog.number("type")?;
    let kind = constant(kernel, "bpf_prog_type", number, "BPF_PROG_TYPE_");
    let kind = kind.unwrap_or_else(|| number.to_string());
    let attach = match prog.number("expected_attach_type")? {
        // The first constant stands for "none" too.
        0 => None,
        n => constant(kernel, "bpf_attach_type", n, "BPF_"),
    };
    let tag: Vec<String> = prog
        .number("tag")?
        .to_le_bytes()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let uid = match aux.follow("user", "user_struct")? {
        Some(u) => Value::from(u.number("uid.val")?),
        None => Value::Null,
    };
    let loaded = kernel.to_utc(aux.number("load_time")?);
    let jited = prog.number("jited")? != 0;
    let (jit, size) = (prog.number("bpf_func")?, prog.number("jited_len")?);
    let name = aux.text("name")?;
    out.push(vec![
        id.into(),
        name.as_str().into(),
        kind.as_str().into(),
        attach.into(),
        tag.concat().into(),
        loaded.into(),
        uid,
        prog.number("len")?.into(),
        jited.then_some(jit).into(),
        jited.then_some(size).into(),
        aux.number("used_map_cnt")?.into(),
        prog.va.into(),
        prog.physical().into(),
    ]);
    if let Some(t) = loaded {
        let text = format!("eBPF program {id} {name:?} of type {kind} was loaded");
        out.event(t, "eBPF program loaded", text);
    }
    Ok(())
}
