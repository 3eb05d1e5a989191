//! Views of processes.

use crate::common::{
    build, each_with_tasks, is_pool_worker, is_recorder, listed, number, status, text,
};
use ramsift_os::table::Value;
use std::collections::{BTreeMap, BTreeSet};

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn processes_are_those_that_the_machine_listed() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/pslist");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        let ps = listed(c);
        let rows = || (0..t.rows.len()).filter(|r| !is_pool_worker(text(&t, *r, "comm")));
        let want: BTreeSet<i128> = ps.keys().copied().collect();
        let got: BTreeSet<i128> = rows().map(|r| number(&t, r, "pid")).collect();
        assert_eq!(got, want, "{}", c.name);
        for row in rows() {
            let pid = number(&t, row, "pid");
            let truth = ps[&pid]["status"].as_str().unwrap();
            let at = format!("{} pid {pid}", c.name);
            let name = status(truth, "Name");
            if t.cell(row, "kernel_thread") == Some(&Value::Flag(true)) {
                // /proc adds to a worker's name what it is busy with.
                assert!(name.starts_with(text(&t, row, "comm")), "{at}: {name}");
            } else {
                assert_eq!(text(&t, row, "comm"), name, "{at}");
            }
            let numbers = |key: &str| -> Vec<i128> {
                let line = status(truth, key).split_whitespace();
                line.map(|n| n.parse().unwrap()).collect()
            };
            assert_eq!(number(&t, row, "ppid"), numbers("PPid")[0], "{at}");
            let ids = |a: &str, b: &str| vec![number(&t, row, a), number(&t, row, b)];
            assert_eq!(ids("uid", "euid"), numbers("Uid")[..2], "{at}");
            assert_eq!(ids("gid", "egid"), numbers("Gid")[..2], "{at}");
            // Field 22 of stat: start after boot in ticks of 10 ms.
            let stat = ps[&pid]["stat"].as_str().unwrap();
            let rest = stat.rsplit(") ").next().unwrap();
            let ticks: i128 = rest.split(' ').nth(19).unwrap().parse().unwrap();
            assert_eq!(number(&t, row, "start_ns") / 10_000_000, ticks, "{at}");
            // btime is the boot in whole seconds.
            if k.clock().is_none() {
                assert_eq!(t.cell(row, "start"), Some(&Value::Null), "{at}");
                continue;
            }
            let boot = i128::from(c.truth["btime"].as_i64().unwrap()) * 1_000_000;
            let start = number(&t, row, "start") - boot - ticks * 10_000;
            assert!((-1_000_000..2_000_000).contains(&start), "{at}: {start}");
        }
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn command_lines_and_environments_are_what_proc_said() {
    each_with_tasks(|c, k| {
        let ps = listed(c);
        let strings = |v: &serde_json::Value| -> Vec<String> {
            let all = v.as_array().into_iter().flatten();
            all.filter_map(|s| s.as_str()).map(str::to_owned).collect()
        };
        let mut whole = 0;
        let t = build(k, "linux/psaux");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        let rows = || (0..t.rows.len()).filter(|r| !is_pool_worker(text(&t, *r, "comm")));
        assert_eq!(rows().count(), ps.len(), "{}", c.name);
        for row in rows() {
            let pid = number(&t, row, "pid");
            let got = match t.cell(row, "args") {
                Some(Value::Text(s)) => s.as_str(),
                _ => "",
            };
            let want = strings(&ps[&pid]["cmdline"]).join(" ");
            if number(&t, row, "missing") == 0 {
                assert_eq!(got.trim_end(), want.trim_end(), "{} pid {pid}", c.name);
                whole += usize::from(!want.is_empty());
            }
        }
        // Nothing was swapped out on these machines.
        let users = ps.values().filter(|p| !strings(&p["cmdline"]).is_empty());
        assert_eq!(whole, users.count(), "{}", c.name);
        let t = build(k, "linux/envars");
        let mut got: BTreeMap<i128, BTreeSet<String>> = BTreeMap::new();
        for row in 0..t.rows.len() {
            let pid = number(&t, row, "pid");
            let pair = format!("{}={}", text(&t, row, "key"), text(&t, row, "value"));
            got.entry(pid).or_default().insert(pair);
        }
        for (pid, p) in &ps {
            let want = strings(&p["environ"]);
            let want: BTreeSet<String> = want.into_iter().filter(|e| e.contains('=')).collect();
            let got = got.remove(pid).unwrap_or_default();
            assert_eq!(got, want, "{} pid {pid}", c.name);
        }
        // The scenario's secrets, and nothing that everybody's environment has.
        let secrets: BTreeMap<&str, &str> = t
            .anomalies
            .iter()
            .map(|a| {
                assert_eq!(a.rule, "secret_in_environment");
                (text(&t, a.row, "key"), a.reason.as_str())
            })
            .collect();
        let keys: Vec<&str> = secrets.keys().copied().collect();
        assert_eq!(keys, ["AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"], "{}", c.name);
        assert!(secrets["DB_PASSWORD"].ends_with("DB_PASSWORD=S3****"));
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn memory_areas_are_those_of_proc_maps() {
    each_with_tasks(|c, k| {
        let ps = listed(c);
        let mut doubts = Vec::new();
        let mut areas = 0;
        for task in k.processes(&mut doubts).unwrap() {
            let Some(mm) = task.follow("mm", "mm_struct").unwrap() else {
                continue;
            };
            let pid = i128::from(task.int("tgid").unwrap());
            let Some(truth) = ps.get(&pid).filter(|p| !is_recorder(p)) else {
                continue;
            };
            let got: Vec<String> = k
                .vmas(&mm, &mut doubts)
                .unwrap()
                .iter()
                .map(|v| {
                    let offset = if v.file == 0 { 0 } else { v.pgoff << 12 };
                    let range = format!("{:08x}-{:08x}", v.start, v.end);
                    format!("{range} {} {offset:08x}", v.permissions())
                })
                .collect();
            // range permissions offset device inode path; the gate page has no area.
            let maps = truth["maps"].as_str().unwrap();
            let want: Vec<String> = maps
                .lines()
                .filter(|l| !l.ends_with("[vsyscall]"))
                .map(|l| l.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
                .collect();
            areas += want.len();
            assert_eq!(got, want, "{} pid {pid}", c.name);
        }
        assert_eq!(doubts, Vec::<String>::new(), "{}", c.name);
        assert!(areas > 500, "{}: {areas}", c.name);
    });
}
