//! Whether an object of the kernel lies at an address: what tells a variable from its neighbours.
//!
//! Each check rests on what the object must be to work at all: lists close, nodes point back, pointers
//! lead to objects of the right kind, names are the kernel's own.
//!
//! Sources: Linux `include/linux/list.h`, `include/net/sock.h` (`struct proto`),
//! `include/net/neighbour.h`, `include/linux/tty_driver.h`, `kernel/kprobes.c`, `kernel/bpf/core.c`,
//! `kernel/trace/ftrace.c`, `kernel/module/tree_lookup.c`.

use crate::linux::{Kernel, LinuxError};
use ramsift_layers::VirtAddr;
use std::collections::BTreeSet;

/// What lies at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::linux) enum Fit {
    /// Something else.
    No,
    /// What may be such an object and holds nothing yet.
    Empty,
    /// An object of this kind.
    Sound,
}

type Checked = Result<Fit, LinuxError>;

/// Bytes of a name at most.
const NAME: usize = 128;
/// Bytes of a command line at most: more than any kernel takes.
const LINE: usize = 1 << 16;
/// Kernel's own inode numbers of namespaces begin here (`PROC_DYNAMIC_FIRST`).
const FIRST_NAMESPACE: u64 = 0xf000_0000;

impl Fit {
    fn of(sound: bool) -> Self {
        if sound { Self::Sound } else { Self::No }
    }
}

/// Whether a text is one of those that people give to things.
fn is_text(s: &str) -> bool {
    !s.is_empty() && s.bytes().all(|b| (b' '..0x7f).contains(&b))
}

/// Members of a list at most: none of those that are looked for has as many.
const MAX_MEMBERS: usize = 1 << 16;

/// The members of a list whose nodes all point back; `None` where one does not.
fn ring(
    kernel: &Kernel<'_>,
    head: u64,
    ty: &'static str,
    member: &str,
) -> Result<Option<Vec<u64>>, LinuxError> {
    let offset = kernel.symbols.types().field(ty, member)?.offset;
    let (mut at, mut out) = (head, Vec::new());
    while out.len() <= MAX_MEMBERS {
        let next = kernel.space.u64(at)?;
        if kernel.space.u64(next.wrapping_add(8))? != at {
            return Ok(None);
        }
        if next == head {
            return Ok(Some(out));
        }
        out.push(next.wrapping_sub(offset));
        at = next;
    }
    Ok(None)
}

/// A list whose nodes point back and whose members are all of a kind.
fn list(
    kernel: &Kernel<'_>,
    head: u64,
    ty: &'static str,
    member: &str,
    is: impl Fn(u64) -> Result<bool, LinuxError>,
) -> Checked {
    let Some(members) = ring(kernel, head, ty, member)? else {
        return Ok(Fit::No);
    };
    for va in &members {
        if !is(*va)? {
            return Ok(Fit::No);
        }
    }
    Ok(match members.is_empty() {
        true => Fit::Empty,
        false => Fit::Sound,
    })
}

/// The modules of the kernel's list, by address.
fn modules(kernel: &Kernel<'_>) -> Result<BTreeSet<u64>, LinuxError> {
    let all = kernel.modules(&mut Vec::new())?;
    Ok(all.iter().map(|m| m.va).collect())
}

/// A timekeeper behind a lock, which begins a line of the cache.
pub(in crate::linux) fn clock(kernel: &Kernel<'_>, at: u64) -> Checked {
    Ok(Fit::of(
        at.is_multiple_of(64) && kernel.clock_at(at, 64).is_some(),
    ))
}

/// A pointer to the command line.
pub(in crate::linux) fn command_line(kernel: &Kernel<'_>, at: u64) -> Checked {
    let line = kernel.text(kernel.space.u64(at)?, LINE)?;
    Ok(Fit::of(is_text(&line)))
}

pub(in crate::linux) fn super_blocks(kernel: &Kernel<'_>, at: u64) -> Checked {
    list(kernel, at, "super_block", "s_list", |va| {
        let sb = kernel.object("super_block", va);
        let Some(of) = sb.follow("s_type", "file_system_type")? else {
            return Ok(false);
        };
        Ok(is_text(&kernel.text(of.number("name")?, NAME)?))
    })
}

pub(in crate::linux) fn network_namespaces(kernel: &Kernel<'_>, at: u64) -> Checked {
    list(kernel, at, "net", "list", |va| {
        let inode = kernel.object("net", va).number("ns.inum")? & 0xffff_ffff;
        Ok(inode >= FIRST_NAMESPACE)
    })
}

/// The list of protocols, with those that every machine has.
pub(in crate::linux) fn protocols(kernel: &Kernel<'_>, at: u64) -> Checked {
    let named = |va: u64| kernel.object("proto", va).text("name");
    let fit = list(kernel, at, "proto", "node", |va| Ok(is_text(&named(va)?)))?;
    if fit != Fit::Sound {
        return Ok(Fit::No);
    }
    let all = ring(kernel, at, "proto", "node")?.unwrap_or_default();
    let names: BTreeSet<String> = all.into_iter().flat_map(named).collect();
    Ok(Fit::of(
        ["TCP", "UDP", "RAW"].iter().all(|n| names.contains(*n)),
    ))
}

/// The tables of sockets that protocols have.
pub(in crate::linux) fn protocol_tables(
    kernel: &Kernel<'_>,
) -> Result<Vec<(String, u64)>, LinuxError> {
    const TABLES: [(&str, &str, &str); 5] = [
        ("TCP", "h.hashinfo", "tcp_hashinfo"),
        ("UDP", "h.udp_table", "udp_table"),
        ("UDP-Lite", "h.udp_table", "udplite_table"),
        ("RAW", "h.raw_hash", "raw_v4_hashinfo"),
        ("RAWv6", "h.raw_hash", "raw_v6_hashinfo"),
    ];
    let mut out = Vec::new();
    let all = ring(kernel, kernel.address("proto_list")?, "proto", "node")?;
    for va in all.unwrap_or_default() {
        let proto = kernel.object("proto", va);
        let name = proto.text("name")?;
        for (of, field, symbol) in TABLES {
            // From 6.2 on a table may be each namespace's own, and is null here.
            if name == of && kernel.symbols.address(symbol).is_none() && proto.has(field) {
                let table = proto.number(field)?;
                out.extend((table != 0).then(|| (symbol.to_owned(), table)));
            }
        }
    }
    Ok(out)
}

/// A pointer to the tables of netlink's protocols, of which two are always in use.
pub(in crate::linux) fn netlink(kernel: &Kernel<'_>, at: u64) -> Checked {
    /// `NETLINK_ROUTE` and `NETLINK_GENERIC`.
    const USED: [u64; 2] = [0, 16];
    let first = kernel.space.u64(at)?;
    let size = kernel.symbols.types().size_of("netlink_table")?;
    for i in USED {
        let table = kernel.object("netlink_table", first.wrapping_add(i * size));
        if table.number("registered")? & 0xffff_ffff == 0 {
            return Ok(Fit::No);
        }
        let Some(buckets) = table.follow("hash.tbl", "bucket_table")? else {
            return Ok(Fit::No);
        };
        if !(buckets.number("size")? & 0xffff_ffff).is_power_of_two() {
            return Ok(Fit::No);
        }
    }
    Ok(Fit::Sound)
}

fn neighbours(kernel: &Kernel<'_>, at: u64, family: u64, key: u64, id: &str) -> Checked {
    let table = kernel.object("neigh_table", at);
    let of = (table.number("family")?, table.number("key_len")?);
    Ok(Fit::of(
        of == (family, key) && kernel.text(table.number("id")?, NAME)? == id,
    ))
}

pub(in crate::linux) fn arp(kernel: &Kernel<'_>, at: u64) -> Checked {
    neighbours(kernel, at, 2, 4, "arp_cache")
}

pub(in crate::linux) fn ndisc(kernel: &Kernel<'_>, at: u64) -> Checked {
    neighbours(kernel, at, 10, 16, "ndisc_cache")
}

pub(in crate::linux) fn tty_drivers(kernel: &Kernel<'_>, at: u64) -> Checked {
    list(kernel, at, "tty_driver", "tty_drivers", |va| {
        let d = kernel.object("tty_driver", va);
        let name = kernel.text(d.number("name")?, NAME)?;
        Ok(is_text(&name) && d.number("ops")? != 0 && d.number("num")? & 0xffff_ffff != 0)
    })
}

/// A chain of functions that are told of something, behind a lock.
pub(in crate::linux) fn notifiers(kernel: &Kernel<'_>, at: u64) -> Checked {
    let first = kernel.object("atomic_notifier_head", at).number("head")?;
    let next = kernel
        .symbols
        .types()
        .field("notifier_block", "next")?
        .offset;
    let walk = kernel.chain_until(first, next, 0);
    for va in &walk.items {
        let call = kernel
            .object("notifier_block", *va)
            .number("notifier_call")?;
        if kernel.space.translate(call).is_err() {
            return Ok(Fit::No);
        }
    }
    Ok(match (walk.broken, walk.items.is_empty()) {
        (Some(_), _) => Fit::No,
        (None, true) => Fit::Empty,
        (None, false) => Fit::Sound,
    })
}

/// eBPF programs by their numbers, which they know themselves.
pub(in crate::linux) fn programs(kernel: &Kernel<'_>, at: u64) -> Checked {
    let mut doubts = Vec::new();
    let all = kernel.idr(at, &mut doubts)?;
    for (id, va) in &all {
        let prog = kernel.object("bpf_prog", *va);
        let Some(aux) = prog.follow("aux", "bpf_prog_aux")? else {
            return Ok(Fit::No);
        };
        if aux.number("prog")? != *va || aux.number("id")? & 0xffff_ffff != *id {
            return Ok(Fit::No);
        }
    }
    Ok(match (doubts.is_empty(), all.is_empty()) {
        (false, _) => Fit::No,
        (true, true) => Fit::Empty,
        (true, false) => Fit::Sound,
    })
}

pub(in crate::linux) fn bpf_symbols(kernel: &Kernel<'_>, at: u64) -> Checked {
    list(kernel, at, "bpf_ksym", "lnode", |va| {
        let s = kernel.object("bpf_ksym", va);
        Ok(s.number("start")? < s.number("end")? && is_text(&s.text("name")?))
    })
}

/// A table of chains whose nodes know who points to them.
pub(in crate::linux) fn kprobes(kernel: &Kernel<'_>, at: u64) -> Checked {
    /// `KPROBE_TABLE_SIZE`
    const BUCKETS: u64 = 64;
    let node = kernel.symbols.types().field("kprobe", "hlist")?.offset;
    let mut fit = Fit::Empty;
    for i in 0..BUCKETS {
        let bucket = at.wrapping_add(i * 8);
        let first = kernel.space.u64(bucket)?;
        if first == 0 {
            continue;
        }
        let probe = kernel.object("kprobe", first.wrapping_sub(node));
        let back = kernel.space.u64(first.wrapping_add(8))? == bucket;
        if !back || kernel.space.translate(probe.number("addr")?).is_err() {
            return Ok(Fit::No);
        }
        fit = Fit::Sound;
    }
    Ok(fit)
}

/// Slots for instructions, which know by which function they get their pages.
pub(in crate::linux) fn slots(kernel: &Kernel<'_>, at: u64) -> Checked {
    let alloc = kernel.object("kprobe_insn_cache", at).number("alloc")?;
    let page = kernel.symbols.address("alloc_insn_page");
    Ok(Fit::of(page.is_some_and(|a| a.0 == alloc)))
}

/// The end of ftrace's list: it calls the function that does nothing.
pub(in crate::linux) fn ftrace_end(kernel: &Kernel<'_>, at: u64) -> Checked {
    let func = kernel.object("ftrace_ops", at).number("func")?;
    let stub = kernel.symbols.symbols("ftrace_stub");
    Ok(Fit::of(stub.iter().any(|s| s.address.0 == func)))
}

/// A pointer to the first of those that lead to the end of ftrace's list.
pub(in crate::linux) fn ftrace_list(kernel: &Kernel<'_>, at: u64) -> Checked {
    /// Registered users of ftrace at most.
    const MAX: usize = 4096;
    let next = kernel.symbols.types().field("ftrace_ops", "next")?.offset;
    let end = kernel.address("ftrace_list_end")?;
    let mut ops = kernel.space.u64(at)?;
    for _ in 0..MAX {
        if ops == end {
            return Ok(Fit::Sound);
        }
        ops = kernel.space.u64(ops.wrapping_add(next))?;
    }
    Ok(Fit::No)
}

pub(in crate::linux) fn ftrace_modules(kernel: &Kernel<'_>, at: u64) -> Checked {
    list(kernel, at, "ftrace_mod_map", "list", |va| {
        let map = kernel.object("ftrace_mod_map", va);
        Ok(map.number("start_addr")? < map.number("end_addr")?)
    })
}

/// A pointer to the kset that is called `module`.
pub(in crate::linux) fn module_kset(kernel: &Kernel<'_>, at: u64) -> Checked {
    let kset = kernel.object("kset", kernel.space.u64(at)?);
    let name = kernel.text(kset.number("kobj.name")?, NAME)?;
    Ok(Fit::of(name == "module"))
}

/// A tree of the memory of modules that are in the list; one that is not would be hidden.
pub(in crate::linux) fn module_tree(kernel: &Kernel<'_>, at: u64) -> Checked {
    let mut doubts = Vec::new();
    let found = kernel.modules_below(at, &mut doubts)?;
    let listed = modules(kernel)?;
    Ok(Fit::of(
        doubts.is_empty() && found.iter().any(|m| listed.contains(m)),
    ))
}

pub(in crate::linux) fn btf_modules(kernel: &Kernel<'_>, at: u64) -> Checked {
    let listed = modules(kernel)?;
    let mut any = false;
    let fit = list(kernel, at, "btf_module", "list", |va| {
        let of = kernel.object("btf_module", va);
        Ok(kernel.object("btf", of.number("btf")?).number("data")? != 0)
    })?;
    if fit == Fit::Sound {
        for va in ring(kernel, at, "btf_module", "list")?.unwrap_or_default() {
            any |= listed.contains(&kernel.object("btf_module", va).number("module")?);
        }
        return Ok(Fit::of(any));
    }
    Ok(fit)
}

/// How many entries of system calls every machine has.
const CALLS: u64 = 256;
/// Entries at most.
const MAX_CALLS: u64 = 1024;

/// Whether an entry leads to the start of a function with such a name.
fn is_call(kernel: &Kernel<'_>, entry: u64, begins: &[&str]) -> bool {
    let near = kernel.symbols.nearest(VirtAddr(entry));
    near.is_some_and(|(s, into)| into == 0 && begins.iter().any(|b| s.name.starts_with(b)))
}

const NATIVE: &str = "__arm64_sys_";
const COMPAT: &str = "__arm64_compat_sys_";

/// A table of which most entries lead to system calls: some may have been changed.
fn calls(kernel: &Kernel<'_>, at: u64) -> Result<(u64, u64), LinuxError> {
    let (mut all, mut compat) = (0, 0);
    for i in 0..CALLS {
        let entry = kernel.space.u64(at.wrapping_add(i * 8))?;
        all += u64::from(is_call(kernel, entry, &[NATIVE, COMPAT]));
        compat += u64::from(is_call(kernel, entry, &[COMPAT]));
    }
    Ok((all, compat))
}

pub(in crate::linux) fn system_calls(kernel: &Kernel<'_>, at: u64) -> Checked {
    let (all, compat) = calls(kernel, at)?;
    Ok(Fit::of(all > CALLS * 3 / 4 && compat == 0))
}

pub(in crate::linux) fn compat_calls(kernel: &Kernel<'_>, at: u64) -> Checked {
    let (all, compat) = calls(kernel, at)?;
    Ok(Fit::of(all > CALLS * 3 / 4 && compat > 8))
}

/// Entries of a table of system calls: the number that the code checks against, if the entry before it is
/// one and the numbers leave no choice; else those up to the first that leads to no start of a function.
pub(in crate::linux) fn entries(kernel: &Kernel<'_>, at: u64, numbers: &[u64]) -> u64 {
    let leads = |i: u64| {
        let entry = kernel.space.u64(at.wrapping_add(i * 8));
        entry.is_ok_and(|e| is_call(kernel, e, &[NATIVE, COMPAT]))
    };
    let fit = |n: &&u64| (CALLS..=MAX_CALLS).contains(*n) && leads(**n - 1);
    let mut told = numbers.iter().filter(fit);
    match (told.next(), told.next()) {
        (Some(n), None) => *n,
        _ => (0..MAX_CALLS).find(|i| !leads(*i)).unwrap_or(MAX_CALLS),
    }
}
