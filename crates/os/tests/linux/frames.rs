//! The frame map against what the machine said of its memory.

use crate::common::{Capture, each, each_with_tasks, listed};
use ramsift_os::frames::Frame;
use ramsift_os::linux::frames;
use std::collections::BTreeMap;

fn map(c: &Capture, k: &ramsift_os::linux::Kernel<'_>) -> Vec<Frame> {
    let (mut all, mut doubts) = (Vec::new(), Vec::new());
    frames(k, &c.runs, &mut doubts, &mut |f| all.push(f)).unwrap();
    assert_eq!(doubts, Vec::<String>::new(), "{}", c.name);
    all
}

/// A line of /proc/meminfo, in bytes.
fn meminfo(c: &Capture, key: &str) -> u64 {
    let text = c.truth["meminfo"].as_str().unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(key)).unwrap();
    let kib: u64 = line
        .trim_start_matches(':')
        .trim_end_matches("kB")
        .trim()
        .parse()
        .unwrap();
    kib << 10
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn every_byte_has_one_state_and_sums_are_those_of_meminfo() {
    each_with_tasks(|c, k| {
        let all = map(c, k);
        let mut at = c.runs.runs()[0].pa;
        let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
        for f in &all {
            assert_eq!(f.start.0, at, "{}: a hole or an overlap", c.name);
            at += f.len;
            *sums.entry(f.state).or_default() += f.len;
        }
        assert_eq!(at, c.runs.runs()[0].pa + c.runs.image_len(), "{}", c.name);
        // The machine goes on while it writes down what it has, and what it writes fills some MiB
        // of memory that was free.
        let near = |got: u64, want: u64, slack: u64, what: &str| {
            let most = want / 10 + slack;
            assert!(got.abs_diff(want) < most, "{} {what}: {got} {want}", c.name);
        };
        near(sums["free"], meminfo(c, "MemFree"), 8 << 20, "free");
        near(sums["slab"], meminfo(c, "Slab"), 1 << 19, "slab");
        // The kernel counts the two lowest levels of its tables alone, and since 6.15 all, its own
        // included. The map has all levels, of programs alone: the top and a few in between more.
        let (got, want) = (sums["page table"], meminfo(c, "PageTables"));
        let programs = listed(c).values().filter(|p| p["maps"] != "").count() as u64;
        let most = want + want / 10 + programs * 5 * 4096;
        assert!(
            want < got + want / 10 + (1 << 19) && got < most,
            "{} page tables: {got} {want}",
            c.name
        );
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn the_kernel_lies_where_iomem_says() {
    each(|c, k| {
        let all = map(c, k);
        let code = c.truth["iomem"]
            .as_str()
            .unwrap()
            .lines()
            .find_map(|l| l.trim().strip_suffix(" : Kernel code"))
            .unwrap();
        let (from, _) = code.split_once('-').unwrap();
        let from = u64::from_str_radix(from, 16).unwrap();
        let f = all
            .iter()
            .find(|f| f.start.0 <= from && from < f.start.0 + f.len)
            .unwrap();
        assert_eq!(
            (f.state, f.owner.as_deref()),
            ("kernel", Some("kernel text")),
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
fn a_secret_of_an_environment_belongs_to_its_process() {
    each_with_tasks(|c, k| {
        let all = map(c, k);
        let mut checked = 0;
        for (pid, p) in listed(c) {
            let name = p["status"].as_str().unwrap().lines().next().unwrap();
            let name = name.strip_prefix("Name:\t").unwrap();
            for env in p["environ"].as_array().unwrap() {
                let env = env.as_str().unwrap();
                if !env.starts_with("AWS_SECRET_ACCESS_KEY=") {
                    continue;
                }
                // Where the text lies in memory, one place must be that process's stack.
                let bytes = c.image();
                let hits = memchr::memmem::find_iter(bytes, env.as_bytes());
                let base = c.runs.runs()[0].pa;
                let owners: Vec<String> = hits
                    .filter_map(|at| {
                        let pa = base + at as u64;
                        let i = all.partition_point(|f| f.start.0 <= pa).checked_sub(1)?;
                        all[i].owner.as_deref().map(str::to_owned)
                    })
                    .collect();
                let want = format!("{name}[{pid}] [stack]");
                assert!(owners.contains(&want), "{} {env}: {owners:?}", c.name);
                checked += 1;
            }
        }
        assert!(checked > 0, "{}: no secret in an environment", c.name);
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn modules_own_the_pages_of_their_text() {
    each_with_tasks(|c, k| {
        let all = map(c, k);
        let mut checked = 0;
        // name size users dependants state address
        for line in c.truth["modules"].as_str().unwrap().lines() {
            let name = line.split(' ').next().unwrap();
            let at = line.split_whitespace().find_map(|w| w.strip_prefix("0x"));
            let va = u64::from_str_radix(at.unwrap(), 16).unwrap();
            let pa = k.space.translate(va).unwrap().0;
            let i = all.partition_point(|f| f.start.0 <= pa) - 1;
            let owner = all[i].owner.as_deref();
            assert_eq!(owner, Some(&*format!("module {name}")), "{}", c.name);
            checked += 1;
        }
        assert!(checked > 10, "{}", c.name);
    });
}
