//! Every provider gives the same answers: BTF of a kernel in a capture, the ISF of the same kernel,
//! and an ISF written from either.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::capture::{self, Capture};
use ramsift_layers::{PhysAddr, VirtAddr};
use ramsift_symbols::kallsyms::{Hints, Places};
use ramsift_symbols::{
    Btf, Field, Kallsyms, Provenance, Source, SymbolTable, TypeId, Types, btf, isf, kallsyms,
};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// The structs and unions that views read.
const STRUCTS: &[&str] = &[
    // Processes.
    "task_struct",
    "thread_struct",
    "thread_info",
    "signal_struct",
    "sighand_struct",
    "cred",
    "user_struct",
    "group_info",
    "pid",
    "upid",
    "pid_namespace",
    "nsproxy",
    "mnt_namespace",
    "uts_namespace",
    "ipc_namespace",
    "cgroup_namespace",
    "user_namespace",
    "ns_common",
    "css_set",
    "cgroup",
    "cgroup_subsys_state",
    "kernfs_node",
    "sched_entity",
    "rq",
    "cfs_rq",
    "timespec64",
    // Memory.
    "mm_struct",
    "vm_area_struct",
    "maple_tree",
    "maple_node",
    "maple_range_64",
    "maple_arange_64",
    "page",
    "folio",
    "address_space",
    "xarray",
    "xa_node",
    "kmem_cache",
    "kmem_cache_node",
    "slab",
    "anon_vma",
    "anon_vma_chain",
    "vm_struct",
    "vmap_area",
    "mem_section",
    "pglist_data",
    "zone",
    "swap_info_struct",
    // Files.
    "file",
    "files_struct",
    "fdtable",
    "fs_struct",
    "dentry",
    "qstr",
    "inode",
    "path",
    "mount",
    "vfsmount",
    "mountpoint",
    "super_block",
    "file_system_type",
    "file_operations",
    "inode_operations",
    "pipe_inode_info",
    "block_device",
    "char_device_struct",
    "cdev",
    // Network.
    "net",
    "sock",
    "sock_common",
    "inet_sock",
    "inet_connection_sock",
    "inet_timewait_sock",
    "tcp_sock",
    "unix_sock",
    "netlink_sock",
    "packet_sock",
    "socket",
    "socket_alloc",
    "sk_buff",
    "proto",
    "inet_hashinfo",
    "inet_ehash_bucket",
    "inet_listen_hashbucket",
    "udp_table",
    "udp_hslot",
    "net_device",
    "in_device",
    "in_ifaddr",
    "inet6_dev",
    "inet6_ifaddr",
    "neigh_table",
    "neigh_hash_table",
    "neighbour",
    "fib_info",
    "fib_nh",
    "fib_table",
    "fib_alias",
    "nf_hook_entries",
    "nf_hook_entry",
    "nf_hook_ops",
    "netns_nf",
    // Modules, hooks.
    "module",
    "module_kobject",
    "module_layout",
    "mod_tree_root",
    "kset",
    "kobject",
    "latch_tree_root",
    "latch_tree_node",
    "bpf_prog",
    "bpf_prog_aux",
    "bpf_ksym",
    "bpf_map",
    "ftrace_ops",
    "ftrace_page",
    "dyn_ftrace",
    "kprobe",
    "kprobe_insn_cache",
    "gate_struct",
    "idt_bits",
    "desc_ptr",
    "tty_struct",
    "tty_driver",
    "tty_ldisc",
    "tty_ldisc_ops",
    "notifier_block",
    "atomic_notifier_head",
    // The log, time.
    "printk_ringbuffer",
    "prb_desc_ring",
    "prb_data_ring",
    "prb_desc",
    "printk_info",
    "timekeeper",
    "tk_read_base",
    // What all of them are made of.
    "list_head",
    "hlist_head",
    "hlist_node",
    "hlist_nulls_head",
    "hlist_bl_head",
    "rb_root",
    "rb_node",
    "rb_root_cached",
    "idr",
    "kuid_t",
    "kgid_t",
    "kref",
    "atomic_t",
    "atomic64_t",
    "refcount_struct",
];

/// What a struct looks like, whoever told: each name with offset, size, bits and elements.
type Look = BTreeMap<String, BTreeSet<(u64, u64, Option<(u8, u8)>, u32)>>;

/// Elements of an array in all dimensions: BTF has arrays of arrays as one.
fn elements(types: &Types, field: &Field) -> u32 {
    let (mut n, mut ty) = (1, field.ty);
    while let Some((element, count)) = types.array(ty) {
        n *= count;
        ty = element;
    }
    n
}

fn look(types: &Types, id: TypeId) -> Look {
    let mut out = Look::new();
    for (name, f) in types.fields(id) {
        let bits = f.bits.map(|b| (b.offset, b.size));
        let row = (f.offset, f.size, bits, elements(types, &f));
        out.entry(name.to_owned()).or_default().insert(row);
    }
    out
}

/// Compares the structs that both have; gives those that one lacks.
fn compare(a: &Types, b: &Types, what: &str) -> Vec<&'static str> {
    let mut missing = Vec::new();
    let mut fields = 0;
    for name in STRUCTS {
        let (x, y) = (a.composites(name), b.composites(name));
        let (Some(x), Some(y)) = (x.first(), y.first()) else {
            assert_eq!(x.is_empty(), y.is_empty(), "{what}: {name} is in one only");
            missing.push(*name);
            continue;
        };
        assert_eq!(a.size(*x), b.size(*y), "{what}: size of {name}");
        let (la, lb) = (look(a, *x), look(b, *y));
        fields += la.len();
        for (field, rows) in &la {
            assert_eq!(Some(rows), lb.get(field), "{what}: {name}.{field}");
            // The place by name must be one of those.
            let f = a.field(name, field).expect("a member");
            let g = b.field(name, field).expect("a member");
            assert_eq!(f.offset, g.offset, "{what}: {name}.{field}");
        }
        assert_eq!(la.len(), lb.len(), "{what}: members of {name}");
    }
    assert!(fields > 2000, "{what}: {fields} fields compared");
    missing
}

fn load(c: &Capture) -> (Kallsyms, PhysAddr, Btf) {
    let places = Places::from_vmcoreinfo(&c.info, c.delta()).expect("places");
    let known = [("_stext", VirtAddr(c.info.symbol("_stext").unwrap()))];
    let hints = Hints {
        known: &known,
        delta: None,
    };
    let k = kallsyms::decode(&c.image, &places, &hints).expect("kallsyms");
    // arm64's kallsyms names functions only: there the header is looked for.
    let found: Vec<(PhysAddr, Btf)> = match k.find("__start_BTF") {
        Some(s) => {
            let pa = PhysAddr(s.address.0.wrapping_sub(c.delta()));
            vec![(pa, btf::read_kernel_at(&c.image, pa).expect("BTF"))]
        }
        None => carve(c),
    };
    let (pa, b) = found.into_iter().next().expect("BTF");
    (k, pa, b)
}

fn carve(c: &Capture) -> Vec<(PhysAddr, Btf)> {
    c.hits(b"\x9f\xeb\x01")
        .into_iter()
        .filter_map(|pa| Some((pa, btf::read_kernel_at(&c.image, pa).ok()?)))
        .collect()
}

fn table(c: &Capture) -> SymbolTable {
    let (k, _, b) = load(c);
    let provenance = Provenance {
        symbols: Source::KallsymsVmcoreinfo,
        types: Source::BtfSymbol,
    };
    SymbolTable::from_kernel(&k, btf::to_types(&b), provenance)
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: see docs/symbols.md"
)]
fn btf_is_the_guests_own_and_no_decoy() {
    for name in capture::names("") {
        let c = capture::open(&name);
        let (_, pa, b) = load(&c);
        let hash = hex::encode(Sha256::digest(b.bytes()));
        assert_eq!(c.truth["btf_vmlinux_sha256"].as_str(), Some(hash.as_str()));
        assert_eq!(
            c.truth["btf"]["vmlinux"].as_u64(),
            Some(b.bytes().len() as u64)
        );
        let carved = carve(&c);
        assert_eq!(carved.len(), 1, "{name}");
        assert_eq!(carved[0].0, pa);
        assert!(c.hits(b"\x9f\xeb\x01").len() > 1, "{name}: decoys");
    }
}

#[test]
#[cfg_attr(
    not(feature = "isf"),
    ignore = "needs symbol files of exactly the captured kernels: see docs/symbols.md"
)]
fn btf_and_isf_of_one_kernel_agree_field_by_field() {
    for (name, file) in [
        ("deb6.1-amd64-256m", "debian-6.1.0-56-amd64.json.xz"),
        (
            "deb6.1-cloud-256m-zerofree",
            "debian-6.1.0-56-cloud-amd64.json.xz",
        ),
    ] {
        let c = capture::open(name);
        let own = table(&c);
        let raw = capture::read(&format!("isf/{file}"));
        let isf = isf::parse(file, &raw).expect("ISF");
        let missing = compare(own.types(), isf.types(), name);
        assert!(missing.len() < 8, "{name}: {missing:?}");
        // The same kernel, moved.
        let banner = c.truth["proc_version"].as_str().unwrap().trim();
        assert_eq!(isf.banner(), Some(banner));
        let shift = c.info.kernel_offset().unwrap();
        let isf = isf.shifted(shift);
        let mut same = 0;
        for s in own.iter() {
            let places: Vec<u64> = isf.symbols(s.name).iter().map(|s| s.address.0).collect();
            // An ISF has one address per name.
            if own.symbols(s.name).len() == 1 && !places.is_empty() {
                assert_eq!(places, [s.address.0], "{name}: {}", s.name);
                same += 1;
            }
        }
        assert!(same > 80_000, "{name}: {same} symbols compared");
        // Types of globals: the table in the code against the debug information.
        let mut globals = 0;
        let single = |n: &str| own.symbols(n).len() == 1;
        for s in own.iter().filter(|s| single(s.name)) {
            if let (Some(a), Some(b)) = (own.type_of(s.name), isf.type_of(s.name)) {
                let (ta, tb) = (own.types(), isf.types());
                // Where the debug information has an anonymous type or `void`, there is no name.
                if tb.name(b.base).is_empty() {
                    continue;
                }
                // Producers of ISF prefer a typedef's name to a struct's here and there, so what
                // counts is what is in it.
                let (x, y) = (ta.resolve(a.base), tb.resolve(b.base));
                assert_eq!(ta.size(x), tb.size(y), "{}", s.name);
                assert_eq!(look(ta, x), look(tb, y), "{}", s.name);
                assert_eq!(a.pointers, b.pointers, "{}", s.name);
                assert_eq!(a.array.is_some(), b.array.is_some(), "{}", s.name);
                globals += 1;
            }
        }
        assert!(globals > 150, "{name}: {globals} globals compared");
    }
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: see docs/symbols.md"
)]
fn a_written_isf_says_what_it_was_written_from() {
    let c = capture::open("deb6.1-cloud-256m-zerofree");
    let banner = c.truth["proc_version"].as_str().unwrap().trim().to_owned();
    let own = table(&c).with_banner(Some(banner.clone()));
    let mut xz = Vec::new();
    isf::write_xz(&own, &mut xz).expect("written");
    let back = isf::parse("own", &xz).expect("read");
    assert_eq!(back.banner(), Some(banner.as_str()));
    compare(own.types(), back.types(), "written from BTF");
    for name in ["init_task", "_stext", "runqueues", "sys_call_table"] {
        assert_eq!(own.address(name), back.address(name), "{name}");
    }
    for (constant, value) in [("PIDTYPE_PID", 0), ("TCP_LISTEN", 10)] {
        assert_eq!(own.types().constant(constant), Some(value));
        assert_eq!(back.types().constant(constant), Some(value));
    }
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: see docs/symbols.md"
)]
fn questions_that_views_ask() {
    for name in capture::names("") {
        let c = capture::open(&name);
        let t = table(&c);
        let types = t.types();
        let comm = types.field("task_struct", "comm").expect("comm");
        assert_eq!(comm.size, 16);
        assert_eq!(types.array(comm.ty).map(|a| a.1), Some(16));
        let mm = types.field("task_struct", "mm").expect("mm");
        let target = types.target(mm.ty).expect("a pointer");
        assert_eq!(types.name(types.resolve(target)), "mm_struct");
        // Through a struct, and an anonymous one.
        let next = types.field("task_struct", "tasks.next").expect("next");
        let tasks = types.field("task_struct", "tasks").expect("tasks");
        assert_eq!(next.offset, tasks.offset);
        assert!(types.has_field("page", "compound_head"));
        let hook = types.field("net", "nf.hooks_ipv4[1]").expect("an element");
        let hooks = types.field("net", "nf.hooks_ipv4").expect("an array");
        assert_eq!(hook.offset, hooks.offset + 8);
        let err = types.field("task_struct", "tasks.no").expect_err("nothing");
        assert!(err.to_string().contains("list_head"), "{err}");
        assert!(types.field("task_struct", "pid.x").is_err());
        assert!(types.field("net", "nf.hooks_ipv4[99]").is_err());
        assert!(types.field("no_such_struct", "x").is_err());
        assert_eq!(types.enum_name("pid_type", 0), Some("PIDTYPE_PID"));
        // The table.
        let stext = t.address("_stext").expect("_stext");
        let (s, above) = t.nearest(VirtAddr(stext.0 + 5)).expect("near");
        assert_eq!(above, VirtAddr(stext.0 + 5).0 - s.address.0);
        assert!(s.kind.is_ascii_uppercase());
        assert!(t.nearest(VirtAddr(0xffff_0000_0000_0000)).is_none());
        // Both together, and the types alone, are small.
        assert!(types.memory_bytes() < 40 << 20, "{}", types.memory_bytes());
        assert!(t.memory_bytes() < 64 << 20, "{}", t.memory_bytes());
    }
}

#[test]
#[cfg_attr(
    not(feature = "isf"),
    ignore = "needs symbol files of exactly the captured kernels: see docs/symbols.md"
)]
fn an_isf_of_an_older_kernel_answers_too() {
    let file = "debian-5.10.0-32-cloud-amd64.json.xz";
    let t = isf::parse(file, &capture::read(&format!("isf/{file}"))).expect("ISF");
    assert!(
        t.banner()
            .is_some_and(|b| b.starts_with("Linux version 5.10.0-32-cloud-amd64 "))
    );
    // Before the maple tree.
    assert!(t.types().has_field("mm_struct", "mmap"));
    assert!(!t.types().has_field("mm_struct", "mm_mt"));
    assert!(t.len() > 100_000);
    let known = STRUCTS.iter().filter(|s| t.types().has_type(s)).count();
    assert!(known + 12 > STRUCTS.len(), "{known}");
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: see docs/symbols.md"
)]
fn damaged_captures_end_in_a_result() {
    let mut c = capture::open("deb6.1-cloud-256m-zerofree");
    let places = Places::from_vmcoreinfo(&c.info, c.delta()).expect("places");
    let (_, pa, b) = load(&c);
    let mut rng = common::synthetic::Rng(7);
    for round in 0..30 {
        let (at, len) = if round % 2 == 0 {
            (
                places.addresses.0,
                places.token_index.0 + 512 - places.addresses.0,
            )
        } else {
            (pa.0, b.bytes().len() as u64)
        };
        let (at, len) = (usize::try_from(at).unwrap(), usize::try_from(len).unwrap());
        let good = c.image.bytes[at..at + len].to_vec();
        if round % 3 == 0 {
            // A page that was overwritten.
            let page = at + rng.below(len.saturating_sub(4096));
            c.image.bytes[page..page + 4096].fill(u8::try_from(rng.below(256)).unwrap());
        } else {
            for _ in 0..1 + rng.below(50) {
                c.image.bytes[at + rng.below(len)] = u8::try_from(rng.below(256)).unwrap();
            }
        }
        let start = std::time::Instant::now();
        let _ = kallsyms::decode(&c.image, &places, &Hints::default());
        if let Some(hit) = c.hits(kallsyms::DIGITS).last() {
            let _ = kallsyms::carve(&c.image, *hit, &Hints::default());
        }
        if let Ok(b) = btf::read_kernel_at(&c.image, pa) {
            let types = btf::to_types(&b);
            for name in STRUCTS {
                let ids = types.composites(name);
                let _ = ids.iter().map(|id| types.fields(*id).len()).sum::<usize>();
            }
        }
        assert!(start.elapsed().as_secs() < 5, "round {round}");
        c.image.bytes[at..at + len].copy_from_slice(&good);
    }
}
