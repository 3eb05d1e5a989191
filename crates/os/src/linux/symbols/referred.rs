//! Variables without a name, by the code that refers to them: kernels whose table has functions only.
//!
//! ```text
//! function that certainly uses it -> addresses that its code refers to -> the one whose object is sound
//! ```
//!
//! A candidate counts when what lies there is an object of its kind and no other candidate is one. What is
//! empty and hence could be many things (a list that points to itself, a table of nulls) counts only where two
//! functions agree on it. So a name that is missing here is missing for a reason, and no guess.
//!
//! Sources: the functions themselves in Linux `kernel/`, `net/`, `fs/`, `drivers/tty/`; see
//! [`aarch64`](crate::linux::aarch64) for the code.

use crate::linux::aarch64::{References, references};
use crate::linux::fits::{self, Fit};
use crate::linux::{Kernel, LinuxError};
use ramsift_layers::VirtAddr;
use std::collections::{BTreeMap, BTreeSet};

/// A variable that is looked for.
struct Wanted {
    name: &'static str,
    /// Functions that refer to it. Which of them there are differs between versions.
    functions: &'static [&'static str],
    /// Where it must be the first argument of a call, of one of these.
    calls: &'static [&'static str],
    fits: fn(&Kernel<'_>, u64) -> Result<Fit, LinuxError>,
}

const fn wanted(
    name: &'static str,
    functions: &'static [&'static str],
    fits: fn(&Kernel<'_>, u64) -> Result<Fit, LinuxError>,
) -> Wanted {
    Wanted {
        name,
        functions,
        calls: &[],
        fits,
    }
}

const fn passed(
    name: &'static str,
    functions: &'static [&'static str],
    calls: &'static [&'static str],
    fits: fn(&Kernel<'_>, u64) -> Result<Fit, LinuxError>,
) -> Wanted {
    Wanted {
        name,
        functions,
        calls,
        fits,
    }
}

/// In an order in which later ones may rest on earlier ones.
#[rustfmt::skip]
const ALL: &[Wanted] = &[
    wanted("tk_core", &["ktime_get", "ktime_get_real_ts64", "ktime_get_coarse_real_ts64"], fits::clock),
    wanted("saved_command_line", &["cmdline_proc_show"], fits::command_line),
    wanted("super_blocks", &["user_get_super", "get_active_super", "sget_fc", "iterate_supers"], fits::super_blocks),
    wanted("net_namespace_list", &["register_netdevice_notifier", "unregister_netdevice_notifier", "rtnl_link_unregister", "__rtnl_link_unregister"], fits::network_namespaces),
    wanted("proto_list", &["proto_seq_start", "proto_seq_next", "proto_register"], fits::protocols),
    wanted("nl_table", &["netlink_has_listeners", "__netlink_kernel_create", "netlink_insert", "netlink_release"], fits::netlink),
    wanted("arp_tbl", &["arp_ifdown", "arp_invalidate", "arp_netdev_event"], fits::arp),
    wanted("nd_tbl", &["ndisc_netdev_event", "ndisc_cleanup", "ndisc_recv_ns", "ndisc_router_discovery"], fits::ndisc),
    wanted("tty_drivers", &["tty_register_driver", "show_tty_driver", "t_start", "t_next"], fits::tty_drivers),
    passed("keyboard_notifier_list", &["register_keyboard_notifier", "unregister_keyboard_notifier"],
        &["atomic_notifier_chain_register", "atomic_notifier_chain_unregister"], fits::notifiers),
    passed("prog_idr", &["bpf_prog_by_id", "bpf_prog_get_curr_or_next", "bpf_prog_free_id"],
        &["idr_find", "idr_get_next", "idr_remove"], fits::programs),
    wanted("bpf_kallsyms", &["bpf_get_kallsym", "bpf_ksym_add"], fits::bpf_symbols),
    wanted("kprobe_table", &["get_kprobe", "show_kprobe_addr", "register_kprobe"], fits::kprobes),
    wanted("kprobe_insn_slots", &["arch_prepare_kprobe", "arch_remove_kprobe", "kprobe_get_kallsym"], fits::slots),
    wanted("ftrace_list_end", &["arch_ftrace_ops_list_func", "ftrace_ops_list_func", "__unregister_ftrace_function"], fits::ftrace_end),
    wanted("ftrace_ops_list", &["arch_ftrace_ops_list_func", "ftrace_ops_list_func", "__unregister_ftrace_function"], fits::ftrace_list),
    wanted("ftrace_mod_maps", &["ftrace_mod_get_kallsym", "ftrace_mod_address_lookup"], fits::ftrace_modules),
    wanted("module_kset", &["module_add_driver", "mod_sysfs_setup", "lookup_or_create_module_kobject"], fits::module_kset),
    wanted("mod_tree", &["__module_address", "mod_tree_remove", "mod_tree_insert"], fits::module_tree),
    wanted("btf_modules", &["btf_try_get_module", "btf_get_module_btf", "bpf_find_btf_id", "btf_module_notify"], fits::btf_modules),
    wanted("sys_call_table", &["do_el0_svc", "el0_svc_handler"], fits::system_calls),
    wanted("compat_sys_call_table", &["do_el0_svc_compat", "el0_svc_compat_handler"], fits::compat_calls),
];

/// Bytes of a function's code at most that are looked at.
const MAX_CODE: u64 = 16 << 10;
/// What compilers append to the name of a function that they changed or of which they cut a part.
const SUFFIXES: [&str; 4] = ["", ".constprop.0", ".isra.0", ".part.0"];

/// Adds what the kernel's code tells of variables that have no name.
pub(in crate::linux) fn complete(kernel: &mut Kernel<'_>) {
    for w in ALL {
        if kernel.symbols.address(w.name).is_some() {
            continue;
        }
        if let Some(va) = find(kernel, w) {
            crate::linux::unnamed::add(kernel, [(w.name.to_owned(), va)]);
        }
    }
    let tables = fits::protocol_tables(kernel).unwrap_or_default();
    crate::linux::unnamed::add(kernel, tables);
    for (table, function) in [
        ("sys_call_table", "do_el0_svc"),
        ("compat_sys_call_table", "do_el0_svc_compat"),
    ] {
        let numbers: Vec<u64> = code(kernel, function)
            .into_iter()
            .flat_map(|r| r.numbers)
            .collect();
        if let Some(at) = kernel.symbols.address(table) {
            let entries = fits::entries(kernel, at.0, &numbers);
            kernel.ends.insert(at.0, at.0.wrapping_add(entries * 8));
        }
    }
}

/// The address of a variable.
fn find(kernel: &Kernel<'_>, w: &Wanted) -> Option<u64> {
    // How many functions refer to a candidate.
    let mut candidates: BTreeMap<u64, usize> = BTreeMap::new();
    for function in w.functions {
        let mut own = BTreeSet::new();
        for r in code(kernel, function) {
            own.extend(match w.calls {
                [] => r.addresses,
                calls => arguments(kernel, &r, calls),
            });
        }
        for a in own {
            *candidates.entry(a).or_default() += 1;
        }
    }
    let fits: Vec<(u64, Fit)> = candidates
        .iter()
        .filter(|(a, _)| kernel.space.translate(**a).is_ok())
        .map(|(a, n)| match (w.fits)(kernel, *a) {
            Ok(Fit::Empty) if *n > 1 => (*a, Fit::Empty),
            Ok(Fit::Sound) => (*a, Fit::Sound),
            _ => (*a, Fit::No),
        })
        .collect();
    let only = |wanted: Fit| {
        let mut all = fits.iter().filter(|(_, f)| *f == wanted);
        match (all.next(), all.next()) {
            (Some((a, _)), None) => Some(*a),
            _ => None,
        }
    };
    let sound = fits.iter().any(|(_, f)| *f == Fit::Sound);
    if sound {
        only(Fit::Sound)
    } else {
        only(Fit::Empty)
    }
}

/// What goes to one of these functions as its first argument.
fn arguments(kernel: &Kernel<'_>, r: &References, calls: &[&str]) -> Vec<u64> {
    let is = |target: u64| {
        calls
            .iter()
            .any(|c| kernel.symbols.address(c).is_some_and(|a| a.0 == target))
    };
    let all = r.arguments.iter().filter(|(_, target)| is(*target));
    all.map(|(first, _)| *first).collect()
}

/// What the functions of a name refer to.
fn code(kernel: &Kernel<'_>, name: &str) -> Vec<References> {
    let mut out = Vec::new();
    for suffix in SUFFIXES {
        for s in kernel.symbols.symbols(&format!("{name}{suffix}")) {
            let VirtAddr(start) = s.address;
            let end = kernel.symbols.next_address(s.address).map_or(0, |e| e.0);
            let len = end.saturating_sub(start).min(MAX_CODE);
            let mut raw = vec![0; usize::try_from(len).unwrap_or(0)];
            if kernel.space.read(start, &mut raw).is_ok() {
                out.push(references(&raw, start));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::testing::{FREE, Machine, Type};
    use ramsift_symbols::NewSymbol;

    const TYPES: &[Type<'_>] = &[
        (
            "list_head",
            16,
            &[("next", 0, "pointer"), ("prev", 8, "pointer")],
        ),
        (
            "ftrace_mod_map",
            32,
            &[
                ("list", 0, "pointer"),
                ("start_addr", 16, "pointer"),
                ("end_addr", 24, "pointer"),
            ],
        ),
    ];
    const WANTED: Wanted = wanted("maps", &["one", "two"], fits::ftrace_modules);
    const ONE: u64 = FREE;
    const TWO: u64 = FREE + 0x100;
    const DATA: u64 = FREE + 0x1000;

    /// A function that loads these addresses into x0: adrp, add.
    fn function(m: &mut Machine, at: u64, refers: &[u64]) {
        for (i, target) in refers.iter().enumerate() {
            let pc = at + 8 * i as u64;
            let pages = (target >> 12) - (pc >> 12);
            let adrp = 0x9000_0000 | (pages & 3) << 29 | (pages >> 2) << 5;
            let add = 0x9100_0000 | (target & 0xfff) << 10;
            m.put(pc, add << 32 | adrp);
        }
    }

    /// A closed list of one member at `head + 0x20`.
    fn list(m: &mut Machine, head: u64, range: (u64, u64)) {
        let node = head + 0x20;
        for (at, word) in [
            (head, node),
            (head + 8, node),
            (node, head),
            (node + 8, head),
            (node + 16, range.0),
            (node + 24, range.1),
        ] {
            m.put(at, word);
        }
    }

    fn empty(m: &mut Machine, head: u64) {
        m.put(head, head);
        m.put(head + 8, head);
    }

    fn found(m: &Machine) -> Option<u64> {
        let mut kernel = m.kernel(TYPES);
        let at = [("one", ONE), ("two", TWO), ("end", TWO + 0x100)];
        kernel.symbols.add(at.map(|(name, address)| NewSymbol {
            name,
            address,
            kind: b'T',
            ty: None,
        }));
        find(&kernel, &WANTED)
    }

    #[test]
    fn an_object_counts_where_it_is_sound_and_the_only_one() {
        let (a, b, torn) = (DATA, DATA + 0x100, DATA + 0x200);
        let mut m = Machine::new(0x6000);
        list(&mut m, a, (1, 2));
        list(&mut m, torn, (1, 2));
        // Its node says that it is in another list.
        m.put(torn + 0x20 + 8, a);
        function(&mut m, ONE, &[torn, a]);
        assert_eq!(found(&m), Some(a));
        // A member that makes no sense.
        m.put(a + 0x20 + 24, 0);
        assert_eq!(found(&m), None);
        // Two that do.
        list(&mut m, a, (1, 2));
        list(&mut m, b, (3, 4));
        function(&mut m, TWO, &[b]);
        assert_eq!(found(&m), None);
    }

    #[test]
    fn what_is_empty_needs_two_functions_that_agree() {
        let (a, b) = (DATA, DATA + 0x100);
        let mut m = Machine::new(0x6000);
        empty(&mut m, a);
        empty(&mut m, b);
        function(&mut m, ONE, &[a]);
        assert_eq!(found(&m), None);
        function(&mut m, TWO, &[b, a]);
        assert_eq!(found(&m), Some(a));
        function(&mut m, ONE, &[a, b]);
        assert_eq!(found(&m), None);
    }
}
