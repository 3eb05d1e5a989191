//! Views that say whether the kernel was tampered with. What was planted is in the truth of the
//! tampered capture; every other capture is clean and must give no anomaly.

use crate::common::{
    Capture, build, captures, each, each_with_tasks, has_data_symbols, number, text,
};
use ramsift_os::discover::discover;
use ramsift_os::linux::{CodeMap, Kernel, LinuxError, Owner};
use ramsift_os::machine::ViewError;
use ramsift_os::table::{Anomaly, Table, Value};
use ramsift_os::{Machine as _, by_name};
use std::collections::{BTreeMap, BTreeSet};

/// The views of this file.
const VIEWS: [&str; 12] = [
    "linux/hidden_modules",
    "linux/check_syscall",
    "linux/check_idt",
    "linux/check_afinfo",
    "linux/check_fops",
    "linux/netfilter",
    "linux/ftrace",
    "linux/kprobes",
    "linux/tracepoints",
    "linux/keyboard_notifiers",
    "linux/tty_check",
    "linux/inline_hooks",
];

/// Functions among the symbols that the truth has.
const FUNCTIONS: [&str; 8] = [
    "schedule",
    "vfs_read",
    "vfs_mkdir",
    "do_exit",
    "tcp_sendmsg",
    "ksys_write",
    "register_kprobe",
    "panic",
];

/// A number that the truth has as text in hexadecimal, with or without `0x`.
fn hex(v: &serde_json::Value) -> i128 {
    let s = v.as_str().unwrap();
    i128::from_str_radix(s.strip_prefix("0x").unwrap_or(s), 16).unwrap()
}

/// What is wrong but for the probe that the scenario sets by the kernel's own means.
fn hooks(t: &Table) -> Vec<&Anomaly> {
    let all = t.anomalies.iter();
    all.filter(|a| a.rule != "kprobe_in_use").collect()
}

/// Builds a view that must give `doubts` of none, and on clean captures no anomaly. Gives the rows
/// that are flagged with `rule`, which must be all that are flagged.
fn flagged(c: &Capture, k: &Kernel<'_>, view: &str, rule: &str) -> (Table, Vec<usize>) {
    let t = build(k, view);
    assert_eq!(t.doubts, Vec::<String>::new(), "{} {view}", c.name);
    let all = hooks(&t);
    if c.truth["tamper"].is_null() {
        assert_eq!(all, Vec::<&Anomaly>::new(), "{} {view}", c.name);
    }
    assert!(
        all.iter().all(|a| a.rule == rule),
        "{} {view}: {all:?}",
        c.name
    );
    let rows = all.iter().map(|a| a.row).collect();
    (t, rows)
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn a_changed_system_call_is_found() {
    each_with_tasks(|c, k| {
        let (t, rows) = flagged(c, k, "linux/check_syscall", "syscall_hook");
        assert!(t.rows.len() > 300, "{}: {}", c.name, t.rows.len());
        // The table's own symbols say which call an entry is.
        let named = |r: &usize| text(&t, *r, "symbol").contains("sys_") && !rows.contains(r);
        let odd: Vec<usize> = (0..t.rows.len()).filter(|r| !named(r)).collect();
        let odd_names: Vec<&str> = odd.iter().map(|r| text(&t, *r, "symbol")).collect();
        assert_eq!(odd, rows, "{}: {odd_names:?}", c.name);
        let Some(p) = c.truth["tamper"]["syscall"].as_object() else {
            return;
        };
        let [row] = rows[..] else {
            panic!("{}: {rows:?}", c.name)
        };
        assert_eq!(text(&t, row, "table"), "sys_call_table");
        assert_eq!(
            number(&t, row, "index"),
            i128::from(p["nr"].as_i64().unwrap())
        );
        assert_eq!(
            number(&t, row, "va"),
            hex(&p["table"]) + number(&t, row, "index") * 8
        );
        assert_eq!(number(&t, row, "handler"), hex(&p["wrapper"]));
        assert_eq!(text(&t, row, "module"), "lab_tamper");
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn all_gates_lead_into_the_kernel() {
    each(|c, k| {
        let (t, _) = flagged(c, k, "linux/check_idt", "idt_hook");
        assert_eq!(t.anomalies, [], "{}", c.name);
        assert!(t.rows.len() > 200, "{}: {} gates", c.name, t.rows.len());
        // The processor's table is the same memory under another address.
        let base = c.info["idt"][0].as_str().unwrap();
        let base = u64::from_str_radix(base, 16).unwrap();
        let pa = k.space.translate(base).unwrap().0;
        assert_eq!(number(&t, 0, "physical"), i128::from(pa), "{}", c.name);
        let row = (0..t.rows.len())
            .find(|r| number(&t, *r, "index") == 14)
            .unwrap();
        assert!(text(&t, row, "symbol").contains("page_fault"), "{}", c.name);
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn a_netfilter_hook_is_found() {
    each_with_tasks(|c, k| {
        let (t, rows) = flagged(c, k, "linux/netfilter", "netfilter_hook");
        // iptables-nft made a chain on INPUT and one on OUTPUT.
        for hook in ["LOCAL_IN", "LOCAL_OUT"] {
            let nft = |r: &usize| {
                text(&t, *r, "family") == "ipv4"
                    && text(&t, *r, "hook") == hook
                    && text(&t, *r, "symbol").starts_with("nft_do_chain")
            };
            let found: Vec<usize> = (0..t.rows.len()).filter(nft).collect();
            let [row] = found[..] else {
                panic!("{} {hook}: {found:?}", c.name)
            };
            // As iptables calls them; the structs are those of a module.
            let chain = hook.trim_start_matches("LOCAL_").to_owned() + "PUT";
            let saved = c.truth["iptables"].as_str().unwrap();
            let filter = saved.split("*filter\n").nth(1).unwrap();
            assert!(filter.contains(&format!(":{chain} ACCEPT")), "{}", c.name);
            if !c.truth["btf"]["nf_tables"].is_null() && k.symbols.find("btf_modules").is_some() {
                assert_eq!(
                    text(&t, row, "chain"),
                    format!("filter {chain}"),
                    "{}",
                    c.name
                );
            }
        }
        let Some(p) = c.truth["tamper"]["netfilter"].as_object() else {
            return;
        };
        let [row] = rows[..] else {
            panic!("{}: {rows:?}", c.name)
        };
        assert_eq!(text(&t, row, "hook"), p["hook"].as_str().unwrap());
        assert_eq!(text(&t, row, "family"), "ipv4");
        assert_eq!(number(&t, row, "position"), 0);
        assert_eq!(
            number(&t, row, "priority"),
            i128::from(p["priority"].as_i64().unwrap())
        );
        assert_eq!(number(&t, row, "ops"), hex(&p["ops"]));
        assert_eq!(number(&t, row, "handler"), hex(&p["handler"]));
        assert_eq!(
            text(&t, row, "symbol"),
            "lab_nf_handler [hidden module lab_tamper]"
        );
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn an_ftrace_hook_is_found() {
    each_with_tasks(|c, k| {
        let (t, rows) = flagged(c, k, "linux/ftrace", "ftrace_hook");
        let Some(p) = c.truth["tamper"]["ftrace"].as_object() else {
            return;
        };
        let [row] = rows[..] else {
            panic!("{}: {rows:?}", c.name)
        };
        assert_eq!(number(&t, row, "va"), hex(&p["ops"]));
        assert_eq!(number(&t, row, "handler"), hex(&p["handler"]));
        assert_eq!(number(&t, row, "hooked"), 1);
        let hooked = text(&t, row, "functions").split('+').next().unwrap();
        assert_eq!(hooked, p["function"].as_str().unwrap());
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn kprobes_are_the_scenarios_and_a_hook_is_found() {
    each_with_tasks(|c, k| {
        let (t, rows) = flagged(c, k, "linux/kprobes", "kprobe_hook");
        let place = |r| text(&t, r, "place").split('+').next().unwrap().to_owned();
        let mut want = vec!["do_sys_openat2"];
        let tamper = c.truth["tamper"]["kprobe"].as_object();
        want.extend(tamper.map(|p| p["function"].as_str().unwrap()));
        let mut got: Vec<String> = (0..t.rows.len()).map(place).collect();
        got.sort();
        assert_eq!(got, want, "{}", c.name);
        // The scenario's is told as one that is in use.
        let used = t.anomalies.iter().filter(|a| a.rule == "kprobe_in_use");
        let used: Vec<String> = used.map(|a| place(a.row)).collect();
        assert_eq!(used, ["do_sys_openat2"], "{}", c.name);
        let Some(p) = tamper else { return };
        let [row] = rows[..] else {
            panic!("{}: {rows:?}", c.name)
        };
        assert_eq!(number(&t, row, "va"), hex(&p["kprobe"]));
        assert_eq!(number(&t, row, "handler"), hex(&p["handler"]));
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn a_keyboard_notifier_is_found() {
    each_with_tasks(|c, k| {
        let (t, rows) = flagged(c, k, "linux/keyboard_notifiers", "keyboard_hook");
        let Some(p) = c.truth["tamper"]["keyboard"].as_object() else {
            return;
        };
        assert_eq!(rows, [0], "{}", c.name);
        assert_eq!(number(&t, 0, "va"), hex(&p["notifier_block"]));
        assert_eq!(number(&t, 0, "handler"), hex(&p["handler"]));
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn code_belongs_to_whom_the_machine_says() {
    each_with_tasks(|c, k| {
        let mut doubts = Vec::new();
        let code = CodeMap::new(k, &mut doubts).unwrap();
        assert_eq!(doubts, Vec::<String>::new(), "{}", c.name);
        let mut checked = 0;
        for (module, sections) in c.truth["module_sections"].as_object().unwrap() {
            let Some(at) = sections.get(".text") else {
                continue;
            };
            let at = at.as_str().unwrap().trim().trim_start_matches("0x");
            let va = u64::from_str_radix(at, 16).unwrap();
            assert_eq!(code.owner(va).module(), Some(&module[..]), "{}", c.name);
            checked += 1;
        }
        assert!(checked > 10, "{}", c.name);
        for line in c.truth["kallsyms"].as_array().unwrap() {
            let f: Vec<&str> = line.as_str().unwrap().split_whitespace().collect();
            let va = u64::from_str_radix(f[0], 16).unwrap();
            // 7.x gives data of the linker's script the letter T too, so functions by name.
            let want = match f[1] {
                "t" | "T" if FUNCTIONS.contains(&f[2]) => true,
                "d" | "D" | "b" | "B" | "r" | "R" => false,
                _ => continue,
            };
            let owner = code.owner(va);
            let kernel = matches!(owner, Owner::Kernel { offset: 0, .. });
            assert_eq!(kernel, want, "{} {line}: {owner:?}", c.name);
        }
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn a_hidden_module_is_found_in_every_other_place() {
    each_with_tasks(|c, k| {
        let (t, rows) = flagged(c, k, "linux/hidden_modules", "hidden_module");
        let listed: BTreeSet<&str> = c.truth["modules"]
            .as_str()
            .unwrap()
            .lines()
            .map(|l| l.split(' ').next().unwrap())
            .collect();
        let hidden = &c.truth["tamper"]["module"];
        let flag = |r: usize, column: &str| match t.cell(r, column) {
            Some(Value::Flag(f)) => Some(*f),
            Some(Value::Null) => None,
            other => panic!("{column}: {other:?}"),
        };
        let mut got = BTreeSet::new();
        for r in 0..t.rows.len() {
            let name = text(&t, r, "name");
            let own = hidden["name"] != name;
            let at = format!("{} {name}", c.name);
            assert_eq!(flag(r, "list"), Some(own), "{at}");
            assert_eq!(flag(r, "sysfs"), Some(own), "{at}");
            assert_eq!(flag(r, "memory"), Some(true), "{at}");
            assert_eq!(flag(r, "tree"), Some(true), "{at}");
            assert_eq!(flag(r, "area"), Some(true), "{at}");
            if own {
                got.insert(name);
            }
        }
        assert_eq!(got, listed, "{}", c.name);
        // Which modules have types is what /sys/kernel/btf lists.
        let btf = c.truth["btf"].as_object().unwrap();
        let typed: BTreeSet<&str> = (0..t.rows.len())
            .filter(|r| flag(*r, "btf") == Some(true))
            .map(|r| text(&t, r, "name"))
            .collect();
        let want: BTreeSet<&str> = btf
            .keys()
            .map(String::as_str)
            .filter(|n| *n != "vmlinux")
            .collect();
        assert_eq!(typed, want, "{}", c.name);
        if hidden.is_null() {
            return;
        }
        let [row] = rows[..] else {
            panic!("{}: {rows:?}", c.name)
        };
        assert_eq!(number(&t, row, "module"), hex(&hidden["struct_module"]));
        assert_eq!(number(&t, row, "base"), hex(&hidden["base"]));
        assert_eq!(
            number(&t, row, "size"),
            i128::from(hidden["size"].as_i64().unwrap())
        );
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn patched_functions_are_those_that_are_probed() {
    each(|c, k| {
        let (t, rows) = flagged(c, k, "linux/inline_hooks", "inline_hook");
        let name = |r: usize| text(&t, r, "function");
        let got: BTreeSet<&str> = (0..t.rows.len()).map(name).collect();
        // The scenario's kprobe, in all captures; and what the tampering module hooked.
        let mut want: BTreeSet<&str> = ["do_sys_openat2"].into();
        let tamper = &c.truth["tamper"];
        for hook in ["kprobe", "ftrace"] {
            want.extend(tamper[hook]["function"].as_str());
        }
        assert_eq!(got, want, "{}", c.name);
        if tamper.is_null() {
            return;
        }
        let [row] = rows[..] else {
            panic!("{}: {rows:?}", c.name)
        };
        assert_eq!(name(row), tamper["ftrace"]["function"].as_str().unwrap());
        assert_eq!(number(&t, row, "va"), hex(&tamper["ftrace"]["address"]));
        // /sys/kernel/tracing/enabled_functions tells the trampoline.
        let mut lines = tamper["ftrace"]["enabled_functions"]
            .as_str()
            .unwrap()
            .lines();
        let line = lines.find(|l| l.starts_with("vfs_rmdir")).unwrap();
        let at = line
            .split("tramp: 0x")
            .nth(1)
            .unwrap()
            .split(' ')
            .next()
            .unwrap();
        let at = i128::from_str_radix(at, 16).unwrap();
        assert_eq!(number(&t, row, "target"), at);
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn files_of_proc_net_are_the_kernels() {
    each_with_tasks(|c, k| {
        let (t, _) = flagged(c, k, "linux/check_afinfo", "proc_net_hook");
        assert_eq!(t.anomalies, [], "{}", c.name);
        let init = c.truth["ps"]["1"]["ns"]["net"].as_str().unwrap();
        let init: i128 = init[5..init.len() - 1].parse().unwrap();
        let names: BTreeSet<&str> = (0..t.rows.len())
            .filter(|r| number(&t, *r, "net_ns") == init && text(&t, *r, "member") == "show")
            .map(|r| text(&t, r, "name"))
            .collect();
        // All files that the truth could read; 7.x has no udplite.
        for (name, content) in c.truth["net"].as_object().unwrap() {
            assert!(
                content.is_null() || names.contains(&name[..]),
                "{} {name}",
                c.name
            );
        }
        let show = |r: &usize| text(&t, *r, "name") == "tcp" && text(&t, *r, "member") == "show";
        for r in (0..t.rows.len()).filter(show) {
            assert_eq!(text(&t, r, "symbol"), "tcp4_seq_show", "{}", c.name);
        }
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn terminals_are_the_kernels() {
    each_with_tasks(|c, k| {
        let (t, _) = flagged(c, k, "linux/tty_check", "tty_hook");
        assert_eq!(t.anomalies, [], "{}", c.name);
        let all = 0..t.rows.len();
        let has = |name: &str, kind: &str, member: &str, symbol: &str| {
            all.clone().any(|r| {
                text(&t, r, "name") == name
                    && text(&t, r, "kind") == kind
                    && text(&t, r, "member") == member
                    && text(&t, r, "symbol") == symbol
            })
        };
        // The console that every guest has.
        let driver = match c.info["arch"].as_str() {
            Some("arm64") => "ttyAMA",
            _ => "ttyS",
        };
        assert!(has(driver, "driver", "write", "uart_write"), "{}", c.name);
        let first = format!("{driver}0");
        assert!(
            has(&first, "discipline", "receive_buf", "n_tty_receive_buf"),
            "{}",
            c.name
        );
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn functions_of_files_are_the_kernels() {
    each(|c, k| {
        let (t, _) = flagged(c, k, "linux/check_fops", "file_operations_hook");
        assert_eq!(t.anomalies, [], "{}", c.name);
        let mut users = BTreeMap::new();
        for r in 0..t.rows.len() {
            assert_eq!(number(&t, r, "unknown"), 0, "{}", c.name);
            if let Some(Value::Text(s)) = t.cell(r, "symbol") {
                users.insert(s.as_str(), number(&t, r, "users"));
            }
        }
        // What every machine has open or mounted, ext4 of whose disk is a module or built in.
        for ops in [
            "proc_sops",
            "socket_file_ops",
            "shmem_aops",
            "proc_root_operations",
        ] {
            assert!(users.contains_key(ops), "{} {ops}: {users:?}", c.name);
        }
        // Each socket in /proc/<pid>/fd is a file with these functions.
        let fds = c.truth["ps"].as_object().unwrap().values();
        let fds = fds.flat_map(|p| p["fd"].as_object().unwrap().values());
        let sockets = fds.filter(|l| l.as_str().is_some_and(|l| l.starts_with("socket:")));
        assert!(
            users["socket_file_ops"] >= sockets.count() as i128,
            "{}",
            c.name
        );
    });
}

/// Whether a view is not there for want of a name or a type.
fn lacks(e: &ViewError) -> bool {
    let own = e.reason().downcast_ref();
    matches!(own, Some(LinuxError::Symbol(_) | LinuxError::Type(_)))
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn kernels_that_lack_names_give_reasons_and_no_anomalies() {
    for c in captures().iter().filter(|c| c.truth["tamper"].is_null()) {
        let d = discover(&c.input());
        let k = c.kernel(&d);
        for view in VIEWS {
            match k.build(by_name(view).unwrap()) {
                Ok(t) => assert_eq!(hooks(&t), Vec::<&Anomaly>::new(), "{} {view}", c.name),
                // Debian's arm64 kernels have no names of data, nor what is of x86.
                Err(e) if lacks(&e) => {
                    assert!(!has_data_symbols(&k), "{} {view}", c.name);
                }
                Err(e) => panic!("{} {view}: {e}", c.name),
            }
        }
    }
}
