//! Views of tasks: threads, executables, rights, namespaces, and what hides or poses.

use crate::common::{
    Capture, Image, build, captures, each_with_tasks, is_pool_worker, listed, number, status, text,
};
use ramsift_layers::PhysAddr;
use ramsift_layers::translate::{PhysError, PhysRead, X86_64};
use ramsift_os::discover::discover;
use ramsift_os::linux::AddressSpace;
use ramsift_os::table::{Table, Value};
use std::collections::{BTreeMap, BTreeSet};

/// The process that plays a part of the scenario.
fn part(c: &Capture, name: &str) -> i128 {
    i128::from(c.truth["notes"][name].as_i64().unwrap())
}

/// The processes that a rule flags, and nothing but that rule.
fn flagged(t: &Table, rule: &str) -> BTreeSet<i128> {
    let of = t.anomalies.iter().filter(|a| a.rule == rule);
    of.map(|a| number(t, a.row, "pid")).collect()
}

fn rules(t: &Table) -> BTreeSet<&str> {
    t.anomalies.iter().map(|a| a.rule).collect()
}

/// Whether a process had memory of its own: neither the kernel's nor ended.
fn is_user(p: &serde_json::Value) -> bool {
    p["status"].as_str().unwrap().contains("VmSize:")
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn the_tree_is_that_of_the_parents_that_proc_named() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/pstree");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        assert_eq!(t.anomalies, [], "{}", c.name);
        let ps = listed(c);
        let mut depths = BTreeMap::new();
        for row in 0..t.rows.len() {
            let pid = number(&t, row, "pid");
            let path = text(&t, row, "path");
            let depth = number(&t, row, "depth");
            let parent = number(&t, row, "ppid");
            // Behind its parent, one deeper, and below it by name.
            let want = depths.get(&parent).map_or(0, |(d, _)| d + 1);
            assert_eq!(depth, want, "{} {path}", c.name);
            if let Some((_, above)) = depths.get(&parent) {
                assert!(path.starts_with(above), "{} {path}", c.name);
            }
            depths.insert(pid, (depth, format!("{path}/")));
            if let Some(p) = ps.get(&pid) {
                let truth = p["status"].as_str().unwrap();
                assert_eq!(parent.to_string(), status(truth, "PPid"), "{}", c.name);
            }
        }
        for (pid, p) in &ps {
            let (depth, _) = depths[pid];
            let mut at = status(p["status"].as_str().unwrap(), "PPid");
            let mut want = 0;
            while at != "0" {
                want += 1;
                let above = &c.truth["ps"][at]["status"];
                at = status(above.as_str().unwrap(), "PPid");
            }
            assert_eq!(depth, want, "{} pid {pid}", c.name);
        }
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn threads_are_those_of_proc_task() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/threads");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        let ps = listed(c);
        let mut got: BTreeMap<i128, BTreeMap<String, String>> = BTreeMap::new();
        for row in 0..t.rows.len() {
            let pid = number(&t, row, "pid");
            let Some(p) = ps.get(&pid) else {
                continue;
            };
            let tid = number(&t, row, "tid").to_string();
            let mut name = text(&t, row, "comm").to_owned();
            if t.cell(row, "kernel_thread") == Some(&Value::Flag(true)) {
                // /proc gives the whole name of threads of the kernel, or what a worker is busy with.
                let whole = p["tasks"][&tid].as_str().unwrap();
                assert!(whole.starts_with(&name), "{} {whole} {name}", c.name);
                name = whole.to_owned();
            }
            if text(&t, row, "state") != "Z" {
                assert!(number(&t, row, "stack") > 1 << 63, "{} {tid}", c.name);
            }
            let cpus = i128::from(c.truth["ncpu"].as_i64().unwrap());
            assert!((0..cpus).contains(&number(&t, row, "cpu")), "{}", c.name);
            got.entry(pid).or_default().insert(tid, name);
        }
        let want = ps.iter().map(|(pid, p)| {
            let all = p["tasks"].as_object().unwrap().iter();
            let all = all.map(|(t, n)| (t.clone(), n.as_str().unwrap().to_owned()));
            (*pid, all.collect())
        });
        assert_eq!(got, want.collect(), "{}", c.name);
        assert_eq!(got[&part(c, "worker")].len(), 4, "{}", c.name);
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn threads_of_the_kernel_run_its_functions() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/kthreads");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        assert_eq!(t.anomalies, [], "{}", c.name);
        let rows = || (0..t.rows.len()).filter(|r| !is_pool_worker(text(&t, *r, "comm")));
        let got: BTreeSet<i128> = rows().map(|r| number(&t, r, "pid")).collect();
        // Bit 0x200000 of the ninth field of stat: PF_KTHREAD.
        let want = listed(c).into_iter().filter(|(_, p)| {
            let stat = p["stat"].as_str().unwrap().rsplit(") ").next().unwrap();
            let flags: u64 = stat.split(' ').nth(6).unwrap().parse().unwrap();
            flags & 0x0020_0000 != 0
        });
        assert_eq!(got, want.map(|(pid, _)| pid).collect(), "{}", c.name);
        let mut known = BTreeMap::new();
        for row in 0..t.rows.len() {
            let name = text(&t, row, "comm");
            if name == "kthreadd" {
                assert_eq!(t.cell(row, "function"), Some(&Value::Null), "{}", c.name);
            } else {
                known.insert(name, text(&t, row, "symbol"));
            }
        }
        for (name, function) in [
            ("ksoftirqd/0", "smpboot_thread_fn"),
            ("migration/0", "smpboot_thread_fn"),
            ("kswapd0", "kswapd"),
            ("khungtaskd", "watchdog"),
            ("oom_reaper", "oom_reaper"),
            ("kdevtmpfs", "devtmpfsd"),
        ] {
            if let Some(symbol) = known.get(name) {
                assert_eq!(*symbol, function, "{} {name}", c.name);
            }
        }
        assert!(known["kswapd0"] == "kswapd", "{}", c.name);
        let worker = known.iter().find(|(n, _)| is_pool_worker(n)).unwrap();
        assert_eq!(*worker.1, "worker_thread", "{}", c.name);
        // A module's thread is the module's.
        let owned = |r: &usize| matches!(t.cell(*r, "module"), Some(Value::Text(_)));
        let modules = c.truth["modules"].as_str().unwrap();
        if modules.contains("jbd2 ") {
            assert!((0..t.rows.len()).any(|r| owned(&r)), "{}", c.name);
        }
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn executables_are_those_of_proc_exe() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/exe");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        let ps = listed(c);
        let mut hashes = BTreeMap::new();
        for f in c.truth["files"].as_array().unwrap() {
            hashes.insert(f["path"].as_str().unwrap(), f);
        }
        let (mut got, mut hashed) = (BTreeMap::new(), 0);
        for row in 0..t.rows.len() {
            let path = text(&t, row, "path");
            got.insert(number(&t, row, "pid"), path);
            let (Some(Value::Text(sha)), Some(file)) = (t.cell(row, "sha256"), hashes.get(path))
            else {
                continue;
            };
            assert_eq!(
                number(&t, row, "size"),
                i128::from(file["size"].as_i64().unwrap())
            );
            // The container's files are the same ones, through another file system.
            assert_eq!(
                Some(sha.as_str()),
                file["sha256"].as_str(),
                "{} {path}",
                c.name
            );
            hashed += 1;
        }
        let want = ps.iter().filter(|(_, p)| is_user(p));
        let want = want.map(|(pid, p)| (*pid, p["exe"].as_str().unwrap()));
        assert_eq!(got, want.collect(), "{}", c.name);
        assert!(hashed > 20, "{}: {hashed}", c.name);
        let planted = |name: &str| BTreeSet::from([part(c, name)]);
        assert_eq!(
            flagged(&t, "deleted_executable"),
            planted("deletedexe"),
            "{}",
            c.name
        );
        assert_eq!(
            flagged(&t, "memfd_executable"),
            planted("memfd"),
            "{}",
            c.name
        );
        assert_eq!(t.anomalies.len(), 2, "{}", c.name);
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn rights_are_those_of_proc_status() {
    each_with_tasks(|c, k| {
        let ps = listed(c);
        let t = build(k, "linux/capabilities");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        let (mut seen, mut without_root) = (BTreeSet::new(), BTreeSet::new());
        let host = &c.truth["ps"]["1"]["ns"]["user"];
        for row in 0..t.rows.len() {
            let pid = number(&t, row, "pid");
            let Some(p) = ps.get(&pid) else {
                continue;
            };
            let truth = p["status"].as_str().unwrap();
            for (column, key) in [
                ("inheritable", "CapInh"),
                ("permitted", "CapPrm"),
                ("effective", "CapEff"),
                ("bounding", "CapBnd"),
                ("ambient", "CapAmb"),
            ] {
                let want = i128::from_str_radix(status(truth, key), 16).unwrap();
                assert_eq!(number(&t, row, column), want, "{} {pid} {key}", c.name);
            }
            seen.insert(pid);
            let euid = status(truth, "Uid").split_whitespace().nth(1);
            let none = status(truth, "CapPrm").chars().all(|d| d == '0');
            if euid != Some("0") && !none && p["ns"]["user"] == *host {
                without_root.insert(pid);
            }
        }
        assert_eq!(seen, ps.keys().copied().collect(), "{}", c.name);
        assert!(without_root.contains(&part(c, "caps")), "{}", c.name);
        assert_eq!(
            flagged(&t, "capable_without_root"),
            without_root,
            "{}",
            c.name
        );
        assert_eq!(t.anomalies.len(), without_root.len(), "{}", c.name);
        let row = (0..t.rows.len()).find(|r| number(&t, *r, "pid") == part(c, "caps"));
        let names = text(&t, row.unwrap(), "effective_names");
        assert_eq!(names, "net_raw sys_admin", "{}", c.name);

        let t = build(k, "linux/creds");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        assert_eq!(t.anomalies, [], "{}", c.name);
        for row in 0..t.rows.len() {
            let Some(p) = ps.get(&number(&t, row, "pid")) else {
                continue;
            };
            let truth = p["status"].as_str().unwrap();
            let ids = |names: [&str; 4]| -> Vec<String> {
                names
                    .iter()
                    .map(|n| number(&t, row, n).to_string())
                    .collect()
            };
            let want = |key| -> Vec<&str> { status(truth, key).split_whitespace().collect() };
            assert_eq!(
                ids(["uid", "euid", "suid", "fsuid"]),
                want("Uid"),
                "{}",
                c.name
            );
            assert_eq!(
                ids(["gid", "egid", "sgid", "fsgid"]),
                want("Gid"),
                "{}",
                c.name
            );
            let groups = text(&t, row, "groups").to_owned();
            assert_eq!(groups, status(truth, "Groups").trim(), "{}", c.name);
            let seccomp = number(&t, row, "seccomp").to_string();
            assert_eq!(seccomp, status(truth, "Seccomp"), "{}", c.name);
            let Some(Value::Flag(locked)) = t.cell(row, "no_new_privs") else {
                panic!("{}: no_new_privs", c.name);
            };
            assert_eq!(u8::from(*locked).to_string(), status(truth, "NoNewPrivs"));
        }
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn impostors_tracers_and_preloads_are_those_that_were_planted() {
    each_with_tasks(|c, k| {
        let planted = |name: &str| BTreeSet::from([part(c, name)]);
        let t = build(k, "linux/psaux");
        assert_eq!(
            flagged(&t, "fake_kernel_thread"),
            planted("masquerade"),
            "{}",
            c.name
        );
        assert_eq!(rules(&t), ["fake_kernel_thread"].into(), "{}", c.name);
        let t = build(k, "linux/ptrace");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        let want = listed(c).into_iter().filter_map(|(pid, p)| {
            let tracer = status(p["status"].as_str().unwrap(), "TracerPid").parse();
            Some((pid, tracer.unwrap())).filter(|(_, t)| *t != 0)
        });
        let want: Vec<(i128, i128)> = want.collect();
        assert_eq!(want, [(part(c, "traced"), part(c, "tracer"))], "{}", c.name);
        let pair = |r| (number(&t, r, "pid"), number(&t, r, "tracer_pid"));
        let got: Vec<_> = (0..t.rows.len()).map(pair).collect();
        assert_eq!(got, want, "{}", c.name);
        assert_eq!(flagged(&t, "traced"), planted("traced"), "{}", c.name);
        assert_eq!(t.cell(0, "seized"), Some(&Value::Flag(true)), "{}", c.name);
        assert_eq!(t.anomalies.len(), 1, "{}", c.name);
        let t = build(k, "linux/ld_preload");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        assert_eq!(flagged(&t, "ld_preload"), planted("preload"), "{}", c.name);
        // The one that is empty is shown and not flagged.
        assert_eq!(t.anomalies.len(), 1, "{}", c.name);
        let empty = (0..t.rows.len()).filter(|r| text(&t, *r, "libraries").is_empty());
        let empty: BTreeSet<i128> = empty.map(|r| number(&t, r, "pid")).collect();
        assert_eq!(empty, planted("envsecrets"), "{}", c.name);
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn namespaces_and_groups_are_those_of_proc() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/namespaces");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        // What the scenario put into namespaces with `unshare`, less its container.
        let parent = |pid: i128| -> i128 {
            let of = &c.truth["ps"][pid.to_string()]["status"];
            status(of.as_str().unwrap(), "PPid").parse().unwrap()
        };
        let own: BTreeSet<i128> = flagged(&t, "namespaces_without_container")
            .into_iter()
            .map(parent)
            .collect();
        let mut planted = BTreeSet::from([part(c, "container")]);
        if !c.truth["notes"]["rootless"].is_null() {
            planted.insert(part(c, "rootless"));
        }
        assert_eq!(own, planted, "{}", c.name);
        assert_eq!(t.anomalies.len(), planted.len(), "{}", c.name);
        let ps = listed(c);
        let mut seen = BTreeSet::new();
        for row in 0..t.rows.len() {
            let pid = number(&t, row, "pid");
            let Some(p) = ps.get(&pid) else {
                continue;
            };
            seen.insert(pid);
            for (kind, link) in p["ns"].as_object().unwrap() {
                let got = match t.cell(row, &format!("{kind}_ns")) {
                    Some(Value::Number(n)) => Some(format!("{kind}:[{n}]")),
                    _ => None,
                };
                assert_eq!(got.as_deref(), link.as_str(), "{} {pid} {kind}", c.name);
            }
            let pids: Vec<&str> = text(&t, row, "pids").split(' ').collect();
            let truth = status(p["status"].as_str().unwrap(), "NSpid");
            assert_eq!(
                pids,
                truth.split_whitespace().collect::<Vec<_>>(),
                "{}",
                c.name
            );
            let groups = p["cgroup"].as_str().unwrap().trim_end();
            assert_eq!(text(&t, row, "cgroup"), groups, "{} {pid}", c.name);
            let inside = groups.contains("/ctr-");
            let id = t.cell(row, "container") != Some(&Value::Null);
            assert_eq!(id, inside, "{} {pid}", c.name);
            if inside {
                assert!(groups.contains(text(&t, row, "container")), "{}", c.name);
            }
        }
        assert_eq!(seen, ps.keys().copied().collect(), "{}", c.name);
        let hosts: BTreeSet<&str> = (0..t.rows.len())
            .filter(|r| t.cell(*r, "hostname") != Some(&Value::Null))
            .map(|r| text(&t, r, "hostname"))
            .collect();
        let own = c.truth["uname"][1].as_str().unwrap();
        let mut want = BTreeSet::from([own, "lab-container"]);
        if c.truth["notes"].get("engine_child").is_some() {
            want.insert("lab-web");
        }
        assert_eq!(hosts, want, "{}", c.name);
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn a_scan_finds_the_tasks_that_the_machine_listed() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/psscan");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        let ps = listed(c);
        let mut got = BTreeSet::new();
        let (mut idle, mut gone) = (0, 0);
        for row in 0..t.rows.len() {
            let (pid, tid) = (number(&t, row, "pid"), number(&t, row, "tid"));
            let ended = t.cell(row, "ended") == Some(&Value::Flag(true));
            if tid == 0 {
                assert!(text(&t, row, "comm").starts_with("swapper/"), "{}", c.name);
                idle += 1;
            } else if ended {
                // Numbers are not used again so soon.
                assert!(!ps.contains_key(&tid), "{} {tid} is listed", c.name);
                gone += 1;
            } else if !is_pool_worker(text(&t, row, "comm")) {
                assert!(got.insert((pid, tid)), "{} {tid}: twice", c.name);
            }
        }
        let tasks = |(pid, p): (&i128, &&serde_json::Value)| -> Vec<(i128, i128)> {
            let all = p["tasks"].as_object().unwrap().keys();
            all.map(|t| (*pid, t.parse().unwrap())).collect()
        };
        let want: BTreeSet<_> = ps.iter().flat_map(tasks).collect();
        assert_eq!(got, want, "{}", c.name);
        // The commands that wrote the truth have ended, and memory is zeroed only where that is set.
        let zeroed = c.truth["cmdline"]
            .as_str()
            .unwrap()
            .contains("init_on_free=1");
        assert!(zeroed || gone > 0, "{}: nothing that has ended", c.name);
        // One for each CPU; the first one's is in the kernel's image.
        assert_eq!(idle, c.truth["ncpu"].as_i64().unwrap() - 1, "{}", c.name);
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn all_places_know_the_processes_of_machines_that_hide_none() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/psxview");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        assert_eq!(t.anomalies, [], "{}", c.name);
        let rows = || (0..t.rows.len()).filter(|r| !is_pool_worker(text(&t, *r, "comm")));
        let got: BTreeSet<i128> = rows().map(|r| number(&t, r, "pid")).collect();
        assert_eq!(got, listed(c).into_keys().collect(), "{}", c.name);
        for row in 0..t.rows.len() {
            for place in ["list", "pid_table", "parent", "scan", "cgroup"] {
                // What has ended leaves its control group before its parent asks for it.
                if place == "cgroup" && number(&t, row, "pid") == part(c, "zombie") {
                    continue;
                }
                let at = format!("{} {} {place}", c.name, text(&t, row, "comm"));
                assert_eq!(t.cell(row, place), Some(&Value::Flag(true)), "{at}");
            }
        }
    });
}

/// An image with other words at some places.
struct Forged<'i> {
    image: &'i Image,
    words: Vec<(u64, u64)>,
}

impl PhysRead for Forged<'_> {
    fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
        self.image.read_phys(pa, buf)?;
        for (at, word) in &self.words {
            for (i, b) in word.to_le_bytes().into_iter().enumerate() {
                let to = (at + i as u64).checked_sub(pa.0);
                if let Some(to) = to.and_then(|a| buf.get_mut(a as usize)) {
                    *to = b;
                }
            }
        }
        Ok(())
    }
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn processes_that_were_unlinked_or_given_a_cred_are_flagged() {
    let mut checked = 0;
    for c in captures() {
        let d = discover(&c.input());
        let table = d.page_tables.iter().find(|p| p.confirmed).unwrap();
        if table.shape != X86_64.name {
            continue;
        }
        let k = c.kernel(&d);
        let task = |pid: i128| {
            let all = k.processes(&mut Vec::new()).unwrap();
            let is = |t: &&ramsift_os::linux::Object<'_>| i128::from(t.int("tgid").unwrap()) == pid;
            *all.iter().find(is).unwrap()
        };
        let pa = |va: u64| k.space.translate(va).unwrap().0;
        let victim = task(part(c, "worker"));
        let unlink = |list: &str| -> Vec<(u64, u64)> {
            let at = victim.at(list).unwrap();
            let (next, prev) = (k.space.u64(at).unwrap(), k.space.u64(at + 8).unwrap());
            vec![(pa(prev), next), (pa(next + 8), prev)]
        };
        let pid = victim.follow("thread_pid", "pid").unwrap().unwrap();
        let init = k.object("task_struct", k.address("init_task").unwrap());
        let first = init.number("real_cred").unwrap();
        let both = [unlink("tasks"), unlink("sibling")].concat();
        let cases = [
            ("linux/psxview", "hidden_process", unlink("tasks")),
            ("linux/psxview", "hidden_process", both),
            (
                "linux/psxview",
                "hidden_process",
                vec![(pa(pid.at("tasks").unwrap()), 0)],
            ),
            (
                "linux/creds",
                "shared_credentials",
                vec![(pa(victim.at("real_cred").unwrap()), first)],
            ),
        ];
        for (view, rule, words) in cases {
            let forged = Forged {
                image: &c.image,
                words,
            };
            let mut k = c.kernel(&d);
            k.space = AddressSpace::new(&forged, X86_64, table.dtb);
            let t = build(&k, view);
            let want = BTreeSet::from([part(c, "worker")]);
            assert_eq!(flagged(&t, rule), want, "{} {view}", c.name);
            assert_eq!(t.anomalies.len(), 1, "{} {view}", c.name);
        }
        checked += 1;
    }
    assert!(checked > 0);
}
