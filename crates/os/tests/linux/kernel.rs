//! Views of the kernel itself.

use crate::common::{build, captures, each, each_with_tasks, has_data_symbols, number, text};
use ramsift_layers::translate::{PhysError, PhysRead};
use ramsift_layers::{ImageOffset, PhysAddr};
use ramsift_os::discover::discover;
use ramsift_os::input::KernelSymbols;
use ramsift_os::linux::{self, Kernel};
use ramsift_symbols::{SymbolTable, isf};
use std::collections::BTreeMap;

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn modules_are_those_that_the_machine_listed() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/lsmod");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        // name size users dependants state address
        let want: BTreeMap<String, (i128, i128)> = c.truth["modules"]
            .as_str()
            .unwrap()
            .lines()
            .map(|l| {
                let f: Vec<&str> = l.split_whitespace().collect();
                let base = f.iter().find_map(|w| w.strip_prefix("0x")).unwrap();
                let base = i128::from_str_radix(base, 16).unwrap();
                (f[0].to_owned(), (f[1].parse().unwrap(), base))
            })
            .collect();
        let got: BTreeMap<String, (i128, i128)> = (0..t.rows.len())
            .map(|r| {
                let name = text(&t, r, "name").to_owned();
                (name, (number(&t, r, "size"), number(&t, r, "base")))
            })
            .collect();
        assert_eq!(got, want, "{}", c.name);
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn a_carved_symbol_table_is_the_one_that_vmcoreinfo_names() {
    use ramsift_layers::VirtAddr;
    use ramsift_symbols::kallsyms::{Hints, Places, carve, decode, image_delta};
    let mut checked = 0;
    for c in captures() {
        let infos = c.anchors.iter().filter(|a| a.kind == "vmcoreinfo");
        let info = infos
            .filter_map(|a| ramsift_symbols::VmCoreInfo::parse(&a.data).ok())
            .find(|v| v.len() > 10)
            .unwrap();
        let delta = image_delta(&info).unwrap();
        let known = [("_stext", VirtAddr(info.symbol("_stext").unwrap()))];
        let hints = Hints {
            known: &known,
            delta: Some(delta),
        };
        // 5.10 names no tables.
        let Ok(places) = Places::from_vmcoreinfo(&info, delta) else {
            continue;
        };
        checked += 1;
        let told = decode(&c.image, &places, &hints).unwrap();
        let tokens = c
            .anchors
            .iter()
            .filter(|a| a.kind == "kallsyms_token_table");
        let carved = tokens
            .filter_map(|a| c.runs.to_phys(ramsift_layers::ImageOffset(a.image_offset)))
            .find_map(|pa| carve(&c.image, pa, &hints).ok())
            .unwrap_or_else(|| panic!("{}: nothing carved", c.name));
        assert_eq!(told.len(), carved.len(), "{}", c.name);
        let differ = told
            .iter()
            .zip(carved.iter())
            .find(|(a, b)| (a.name, a.address) != (b.name, b.address));
        assert!(differ.is_none(), "{}: {differ:?}", c.name);
    }
    assert!(checked > 0, "no capture with kallsyms in VMCOREINFO");
}

/// An image whose types are torn: their header reads as zeros.
struct Torn<'i> {
    image: &'i dyn PhysRead,
    headers: Vec<u64>,
}

impl PhysRead for Torn<'_> {
    fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
        self.image.read_phys(pa, buf)?;
        for h in &self.headers {
            for at in *h..*h + 4 {
                let i = at.checked_sub(pa.0).and_then(|i| usize::try_from(i).ok());
                if let Some(b) = i.and_then(|i| buf.get_mut(i)) {
                    *b = 0;
                }
            }
        }
        Ok(())
    }
}

/// A store with one file, for one banner.
#[derive(Debug)]
struct One(String, Vec<u8>, u64);

impl KernelSymbols for One {
    fn find(&self, banner: &str) -> Result<Option<SymbolTable>, String> {
        let table = isf::parse("one", &self.1).map_err(|e| e.to_string())?;
        // As linked: the kernel was moved.
        let linked = table.shifted(self.2.wrapping_neg());
        Ok((banner == self.0).then_some(linked))
    }
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn a_kernel_with_torn_types_is_read_through_a_symbol_file_for_its_banner() {
    each(|c, k| {
        let d = discover(&c.input());
        let headers = c.anchors.iter().filter(|a| a.kind == "btf");
        let torn = Torn {
            image: &c.image,
            headers: headers
                .filter_map(|a| c.runs.to_phys(ImageOffset(a.image_offset)))
                .map(|p| p.0)
                .collect(),
        };
        // Without a file the error says which would do.
        let mut input = c.input();
        input.memory = &torn;
        let e = linux::open(&input, &d).expect_err("torn").to_string();
        let release = c.truth["uname"]["release"]
            .as_str()
            .or(d.release.as_deref());
        assert!(e.contains(release.unwrap()), "{}: {e}", c.name);
        assert!(
            e.contains(d.build_id.as_deref().unwrap_or("build id")),
            "{e}"
        );
        // With one the views are what they are with the kernel's own types.
        let mut file = Vec::new();
        isf::write(&k.symbols, &mut file).unwrap();
        let moved = k.info.kernel_offset().unwrap();
        let store = One(d.banner.clone().unwrap(), file, moved);
        input.symbols = Some(&store);
        let through = linux::open(&input, &d).unwrap();
        let pids = |k: &Kernel<'_>| {
            let t = build(k, "linux/pslist");
            (0..t.rows.len())
                .map(|r| number(&t, r, "pid"))
                .collect::<Vec<_>>()
        };
        assert_eq!(pids(&through), pids(k), "{}", c.name);
        let other = One("another".into(), store.1.clone(), moved);
        input.symbols = Some(&other);
        assert!(linux::open(&input, &d).is_err(), "{}", c.name);
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn variables_without_names_are_found_by_the_code_that_uses_them() {
    // Some sets of captures have no such kernel.
    for c in captures() {
        let d = discover(&c.input());
        let k = c.kernel(&d);
        if has_data_symbols(&k) {
            continue;
        }
        // The views that start there are compared with what the machine said. 6.1 has all of these; its TCP table
        // is each namespace's.
        for name in [
            "init_task",
            "modules",
            "tk_core",
            "saved_command_line",
            "super_blocks",
            "net_namespace_list",
            "proto_list",
            "udp_table",
            "udplite_table",
            "raw_v4_hashinfo",
            "raw_v6_hashinfo",
            "nl_table",
            "arp_tbl",
            "nd_tbl",
            "tty_drivers",
            "keyboard_notifier_list",
            "prog_idr",
            "bpf_kallsyms",
            "kprobe_table",
            "kprobe_insn_slots",
            "ftrace_list_end",
            "ftrace_ops_list",
            "ftrace_mod_maps",
            "module_kset",
            "mod_tree",
            "btf_modules",
            "sys_call_table",
            "compat_sys_call_table",
        ] {
            let va = k.symbols.address(name);
            assert!(va.is_some(), "{}: {name}", c.name);
        }
    }
}
