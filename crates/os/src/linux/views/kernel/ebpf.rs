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

use crate::linux::programs::{Program, programs};
use crate::linux::{Kernel, LinuxError, LinuxView, Object};
use crate::table::{Column, Kind, Table, Value, column};
use ramsift_layers::Severity;
use std::collections::{HashMap, HashSet};

/// `linux/ebpf`.
pub(in crate::linux) const EBPF: LinuxView = LinuxView {
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
    let all = kernel.idr(idr, &mut out.doubts)?;
    let owners = owners(kernel, &all.iter().map(|p| p.1).collect());
    for (id, va) in all {
        let prog = kernel.object("bpf_prog", va);
        if let Err(e) = row(kernel, id, &prog, owners.get(&va), &mut out) {
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

/// A process that has a program open.
struct Holder {
    pid: i64,
    comm: String,
    program: Program,
}

/// The processes that have programs open, or links of theirs, by program: the first of those that are no known
/// service, else the first. linux/lsof tells what can't be read.
fn owners(kernel: &Kernel<'_>, all: &HashSet<u64>) -> HashMap<u64, Holder> {
    let mut out: HashMap<u64, Holder> = HashMap::new();
    let programs = programs(kernel).unwrap_or_default();
    for task in kernel.processes(&mut Vec::new()).unwrap_or_default() {
        let (Ok(pid), Ok(comm)) = (task.int("tgid"), task.text("comm")) else {
            continue;
        };
        for open in kernel
            .open_files(&task, &mut Vec::new())
            .unwrap_or_default()
        {
            let Ok(private) = kernel.object("file", open.file).number("private_data") else {
                continue;
            };
            let link = kernel.object("bpf_link", private);
            let held = match all.contains(&private) {
                true => Some(private),
                false if private != 0 && link.has("prog") => link.number("prog").ok(),
                false => None,
            };
            let Some(prog) = held.filter(|p| all.contains(p)) else {
                continue;
            };
            if out.get(&prog).is_none_or(Holder::is_known) {
                let program = programs.get(&pid).cloned().unwrap_or_default();
                let comm = comm.clone();
                out.insert(prog, Holder { pid, comm, program });
            }
        }
    }
    out
}

impl Holder {
    /// Whether it is a service that works with eBPF, out of a package.
    fn is_known(&self) -> bool {
        const SERVICES: [&str; 30] = [
            "systemd",
            "init",
            "containerd",
            "dockerd",
            "runc",
            "crun",
            "podman",
            "conmon",
            "lxc-start",
            "lxd",
            "incusd",
            "cilium-agent",
            "calico-node",
            "falco",
            "tetragon",
            "system-probe",
            "datadog-agent",
            "snapd",
            "NetworkManager",
            "suricata",
            "tailscaled",
            "auditbeat",
            "osqueryd",
            "libvirtd",
            "virtqemud",
            "keepalived",
            "kubelet",
            "firewalld",
            "bluetoothd",
            "udev-hid-bpf",
        ];
        let name = self.program.name.as_str();
        let known = SERVICES.contains(&name)
            || name.starts_with("systemd-")
            || name.starts_with("containerd-shim");
        // A container's services lie in its own folders.
        known && (self.program.is_packaged() || !self.program.here)
    }
}

/// Why a program is worth a look, if it is: no service that is known for it has it open, and it isn't of those
/// that services attach and leave (to control groups), or that the kernel brings along.
fn stranger(name: &str, kind: &str, holder: Option<&Holder>) -> Option<String> {
    match holder {
        Some(h) if h.is_known() => None,
        Some(h) => Some(format!(
            "{} (pid {}, {}) has it open",
            h.comm, h.pid, h.program.path
        )),
        None if name.starts_with("sd_")
            || name.starts_with("hid_")
            || name.starts_with("dump_bpf_") =>
        {
            None
        }
        None if kind.starts_with("cgroup_") || kind == "lirc_mode2" => None,
        None => {
            Some("no process has it open: it stays by what it is attached to or pinned".to_owned())
        }
    }
}

/// Types that see what all processes or the whole network do.
fn is_tracing(kind: &str) -> bool {
    const TRACING: [&str; 11] = [
        "kprobe",
        "tracepoint",
        "raw_tracepoint",
        "raw_tracepoint_writable",
        "tracing",
        "perf_event",
        "lsm",
        "xdp",
        "sched_cls",
        "sched_act",
        "ext",
    ];
    TRACING.contains(&kind)
}

fn row(
    kernel: &Kernel<'_>,
    id: u64,
    prog: &Object<'_>,
    holder: Option<&Holder>,
    out: &mut Table,
) -> Result<(), LinuxError> {
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
    if let Some(why) = stranger(&name, &kind, holder) {
        let severity = if is_tracing(&kind) {
            Severity::Medium
        } else {
            Severity::Low
        };
        let reason = format!(
            "eBPF program {id} {name:?} of type {kind} (struct bpf_prog at {:#x}) was loaded by no known service: {why}. \
             Tools that trace or filter look like this",
            prog.va
        );
        out.flag("unknown_ebpf_program", severity, reason);
    }
    if let Some(t) = loaded {
        let text = format!("eBPF program {id} {name:?} of type {kind} was loaded");
        out.event(t, "eBPF program loaded", text);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(path: &str, here: bool) -> Holder {
        Holder {
            pid: 7,
            comm: "x".into(),
            program: Program {
                name: path.rsplit('/').next().unwrap_or_default().into(),
                path: path.into(),
                here,
            },
        }
    }

    #[test]
    fn services_are_known_by_their_files() {
        let odd =
            |name, kind, holder: Option<Holder>| stranger(name, kind, holder.as_ref()).is_some();
        assert!(!odd(
            "sd_devices",
            "cgroup_device",
            Some(holder("/usr/lib/systemd/systemd", true))
        ));
        assert!(!odd("sd_fw_egress", "cgroup_skb", None));
        assert!(!odd("", "cgroup_device", None));
        assert!(!odd("dump_bpf_map", "tracing", None));
        assert!(!odd(
            "cil_from_netdev",
            "sched_cls",
            Some(holder("/cilium-agent", false))
        ));
        assert!(odd("x", "kprobe", Some(holder("/tmp/systemd", true))));
        assert!(odd(
            "lab_filter",
            "socket_filter",
            Some(holder("/usr/bin/python3.11", true))
        ));
        assert!(odd("x", "xdp", None));
        assert!(is_tracing("xdp") && !is_tracing("socket_filter"));
    }
}
