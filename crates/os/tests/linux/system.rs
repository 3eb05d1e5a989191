//! Views of the machine as a whole: clocks, names, logs.

use crate::common::{build, each_with_tasks, number, text};
use ramsift_os::table::Value;
use ramsift_os::{Machine as _, by_name};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn the_clock_is_the_machines() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/boottime");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        assert_eq!(t.rows.len(), 1, "{}: one time namespace", c.name);
        // The second in which the boot lies, as /proc/stat cuts it.
        let boot = number(&t, 0, "boot");
        let btime = i128::from(c.truth["btime"].as_i64().unwrap());
        assert_eq!(boot.div_euclid(1_000_000), btime, "{}", c.name);
        // The machine went on while it told the truth, a minute at most.
        let when = c.truth["when"].as_f64().unwrap() as i128;
        let captured = number(&t, 0, "captured") / 1_000_000;
        assert!(
            (when - 1..when + 300).contains(&captured),
            "{}: {captured} {when}",
            c.name
        );
        let clock = k.clock().unwrap();
        assert_eq!(
            clock.utc(1_000).unwrap(),
            clock.boot().unwrap() + 1,
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
fn the_log_is_what_dmesg_showed() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/kmsg");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        let levels = [
            "emerg", "alert", "crit", "err", "warn", "notice", "info", "debug",
        ];
        let mut got = Vec::new();
        for r in 0..t.rows.len() {
            let level = levels
                .iter()
                .position(|l| *l == text(&t, r, "level"))
                .unwrap();
            // dmesg joins them with LOG_MAKEPRI, which takes a facility that is shifted already: of
            // user programs (1) and `warn` (4) it makes 5.
            let priority = number(&t, r, "facility") | level as i128;
            let ns = number(&t, r, "time_ns");
            // dmesg cuts the time to microseconds.
            // Further lines of a record stand below the first one's text.
            let (s, us) = (ns / 1_000_000_000, ns % 1_000_000_000 / 1000);
            let mut start = format!("<{priority}>[{s:>5}.{us:06}] ");
            for line in text(&t, r, "text").split('\n') {
                got.push(format!("{start}{line}"));
                start = " ".repeat(start.len());
            }
        }
        let want: Vec<&str> = c.truth["dmesg"].as_str().unwrap().lines().collect();
        // What was logged after the truth comes behind it.
        let equal = got.len() >= want.len() && got.iter().zip(&want).all(|(g, w)| g == w);
        let differ = got.iter().zip(&want).find(|(g, w)| g != w);
        assert!(
            equal,
            "{}: {} of {}: {differ:?}",
            c.name,
            got.len(),
            want.len()
        );
        let clock = k.clock().unwrap();
        for e in &t.events {
            let ns = u64::try_from(number(&t, e.row, "time_ns")).unwrap();
            assert_eq!(Some(e.time), clock.utc(ns), "{}", c.name);
        }
        assert_eq!(t.events.len(), t.rows.len(), "{}", c.name);
        // Only a module from outside taints.
        let tainted = c.truth["taint"].as_str().unwrap().trim() != "0";
        assert_eq!(
            !t.anomalies.is_empty(),
            tainted,
            "{}: {:?}",
            c.name,
            t.anomalies
        );
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn names_and_command_line_are_the_machines() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/cmdline");
        let want = c.truth["cmdline"].as_str().unwrap();
        assert_eq!(
            text(&t, 0, "command_line"),
            want.trim_end_matches('\n'),
            "{}",
            c.name
        );
        let t = build(k, "linux/uname");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        let mut want: BTreeMap<i128, i128> = BTreeMap::new();
        for p in c.truth["ps"].as_object().unwrap().values() {
            if let Some(ns) = p["ns"]["uts"].as_str() {
                *want
                    .entry(ns[5..ns.len() - 1].parse().unwrap())
                    .or_default() += 1;
            }
        }
        let rows = 0..t.rows.len();
        let got: BTreeSet<i128> = rows.clone().map(|r| number(&t, r, "uts_ns")).collect();
        assert_eq!(got, want.keys().copied().collect(), "{}", c.name);
        let init = c.truth["ps"]["1"]["ns"]["uts"].as_str().unwrap();
        let init: i128 = init[5..init.len() - 1].parse().unwrap();
        let row = rows
            .clone()
            .find(|r| number(&t, *r, "uts_ns") == init)
            .unwrap();
        let names = c.truth["uname"].as_array().unwrap();
        for (column, name) in ["sysname", "nodename", "release", "version", "machine"]
            .iter()
            .zip(names)
        {
            assert_eq!(text(&t, row, column), name.as_str().unwrap(), "{}", c.name);
        }
        // The scenario's namespace has a name of its own.
        assert!(
            rows.clone()
                .any(|r| text(&t, r, "nodename") == "lab-container"),
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
fn symbols_are_those_of_proc_kallsyms() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/kallsyms");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        let row = |r: usize| {
            let module = match t.cell(r, "module") {
                Some(Value::Text(m)) => format!("\t[{m}]"),
                _ => String::new(),
            };
            let (va, kind) = (number(&t, r, "va"), text(&t, r, "kind"));
            format!("{va:016x} {kind} {}{module}", text(&t, r, "name"))
        };
        let all: BTreeSet<String> = (0..t.rows.len()).map(row).collect();
        for line in c.truth["kallsyms"].as_array().unwrap() {
            let line = line.as_str().unwrap();
            assert!(all.contains(line), "{}: {line}", c.name);
        }
        let own = c.truth["tamper"]["module"]["kallsyms"].as_object();
        for (name, at) in own.into_iter().flatten() {
            let end = format!(" {name}\t[lab_tamper]");
            let start = at.as_str().unwrap();
            let has = all
                .iter()
                .any(|l| l.starts_with(start) && l.ends_with(&end));
            assert!(has, "{}: {name}", c.name);
        }
        // Its init function is freed, and in ftrace's names only: those /proc/kallsyms still showed.
        let left = c.truth["tamper"]["hidden"]["left in /proc/kallsyms"].as_object();
        for (name, at) in left.into_iter().flatten() {
            let line = format!("{} T {name}\t[lab_tamper]", at.as_str().unwrap());
            assert!(all.contains(&line), "{}: {line}", c.name);
        }
        // As many as the machine counted. A hidden module's are not among those, but for the former.
        let hidden = |r: &usize| t.cell(*r, "hidden") == Some(&Value::Flag(true));
        let hidden = (0..t.rows.len()).filter(hidden).count();
        let lines = t.rows.len() - hidden + left.map_or(0, |l| l.len());
        assert_eq!(
            Some(lines as i64),
            c.truth["kallsyms_lines"].as_i64(),
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
fn the_scenarios_program_is_there() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/ebpf");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        let named = |r: &usize| text(&t, *r, "name") == "lab_filter";
        let rows: Vec<usize> = (0..t.rows.len()).filter(named).collect();
        let [row] = rows[..] else {
            panic!("{}: {rows:?}", c.name)
        };
        assert_eq!(text(&t, row, "type"), "socket_filter", "{}", c.name);
        assert_eq!(number(&t, row, "uid"), 0, "{}", c.name);
        assert_eq!(number(&t, row, "instructions"), 2, "{}", c.name);
        let flagged: Vec<(&str, usize)> = t.anomalies.iter().map(|a| (a.rule, a.row)).collect();
        assert_eq!(flagged, [("unknown_ebpf_program", row)], "{}", c.name);
        let holder = format!("(pid {}, /usr/bin/python3", c.truth["notes"]["ebpf"]);
        let reason = &t.anomalies[0].reason;
        assert!(reason.contains(&holder), "{}: {reason}", c.name);
        // Loaded by a process that started at most a minute before.
        let pid = c.truth["notes"]["ebpf"].as_i64().unwrap().to_string();
        let stat = c.truth["ps"][&pid]["stat"].as_str().unwrap();
        let ticks: i128 = stat
            .rsplit(") ")
            .next()
            .unwrap()
            .split(' ')
            .nth(19)
            .unwrap()
            .parse()
            .unwrap();
        let started = i128::from(k.clock().unwrap().boot().unwrap()) + ticks * 10_000;
        let loaded = number(&t, row, "loaded");
        assert!(
            (started..started + 60_000_000).contains(&loaded),
            "{}: {started} {loaded}",
            c.name
        );
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn recovered_modules_hold_their_sections() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/module_extract");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        let mut content = BTreeMap::new();
        let mut doubts = Vec::new();
        let view = by_name("linux/module_extract").unwrap();
        k.recover(view, None, &mut doubts, &mut |r| {
            content.insert(r.name.clone(), r);
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(doubts, Vec::<String>::new(), "{}", c.name);
        let modules = c.truth["modules"].as_str().unwrap().lines();
        let mut names: BTreeSet<&str> = modules.map(|l| l.split(' ').next().unwrap()).collect();
        names.extend(c.truth["tamper"]["module"]["name"].as_str());
        let got: BTreeSet<&str> = content.keys().map(String::as_str).collect();
        assert_eq!(got, names, "{}", c.name);
        for (name, r) in &content {
            let at = format!("{} {name}", c.name);
            let c = &r.content;
            assert!(
                c.size() > 0 && c.present() == c.size(),
                "{at}: {}",
                c.present()
            );
            // The struct module is in it, and begins with its state and list; its name follows.
            let mut out = Vec::new();
            assert_eq!(c.write(k.space.memory(), &mut out).unwrap(), [], "{at}");
            let needle = format!("{name}\0");
            assert!(
                out.windows(needle.len()).any(|w| w == needle.as_bytes()),
                "{at}"
            );
        }
        // Bytes at the place of a part are those at its address.
        for row in 0..t.rows.len() {
            let r = &content[text(&t, row, "name")];
            let mut out = Vec::new();
            r.content.write(k.space.memory(), &mut out).unwrap();
            let (offset, base) = (
                number(&t, row, "offset") as usize,
                number(&t, row, "base") as u64,
            );
            let mut want = vec![0; number(&t, row, "size") as usize];
            k.space.read(base, &mut want).unwrap();
            assert_eq!(
                out[offset..offset + want.len()],
                want,
                "{} row {row}",
                c.name
            );
        }
    });
}
