//! Views of files and mounts.

use crate::common::{Capture, build, each, listed, number, text};
use std::collections::{BTreeMap, BTreeSet};

/// The process that wrote the truth: it opens and closes files while it does.
fn is_witness(p: &serde_json::Value) -> bool {
    let args = p["cmdline"].as_array().into_iter().flatten();
    args.filter_map(|a| a.as_str())
        .any(|a| a.ends_with("truth.py"))
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn open_files_are_those_that_proc_showed() {
    each(|c, k| {
        let t = build(k, "linux/lsof");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        assert_eq!(t.anomalies, Vec::new(), "{}", c.name);
        let mut got: BTreeMap<i128, BTreeMap<String, String>> = BTreeMap::new();
        for r in 0..t.rows.len() {
            let fds = got.entry(number(&t, r, "pid")).or_default();
            let fd = number(&t, r, "fd").to_string();
            fds.insert(fd, text(&t, r, "path").to_owned());
        }
        let mut some = 0;
        for (pid, p) in listed(c) {
            if is_witness(p) {
                continue;
            }
            let fds = p["fd"].as_object().into_iter().flatten();
            let want: BTreeMap<String, String> = fds
                .filter_map(|(fd, path)| Some((fd.clone(), path.as_str()?.to_owned())))
                .collect();
            some += want.len();
            assert_eq!(
                got.remove(&pid).unwrap_or_default(),
                want,
                "{} pid {pid}",
                c.name
            );
        }
        assert!(some > 100, "{}: {some}", c.name);
    });
}

/// Lines of mountinfo without the options of the file system, which its own functions print.
fn lines(text: &str) -> BTreeSet<Vec<String>> {
    let unescape = |s: &str| s.replace("\\040", " ").replace("\\134", "\\");
    let line = |l: &str| {
        let (left, right) = l.split_once(" - ").unwrap();
        let mut f: Vec<String> = left.split(' ').map(unescape).collect();
        // Optional fields become one.
        let optional = f.split_off(6).join(" ");
        f.push(optional);
        let right: Vec<String> = right.split(' ').map(unescape).collect();
        f.extend(right.into_iter().take(2));
        f
    };
    text.lines().map(line).collect()
}

fn namespace(link: &str) -> i128 {
    link.trim_start_matches("mnt:[")
        .trim_end_matches(']')
        .parse()
        .unwrap()
}

fn mounts(c: &Capture) -> BTreeMap<i128, BTreeSet<Vec<String>>> {
    let all = c.truth["mounts_by_ns"].as_object().unwrap();
    all.iter()
        .map(|(link, l)| (namespace(link), lines(l.as_str().unwrap())))
        .collect()
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn mounts_are_those_of_mountinfo() {
    each(|c, k| {
        let t = build(k, "linux/mountinfo");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        let mut got: BTreeMap<i128, BTreeSet<Vec<String>>> = BTreeMap::new();
        for r in 0..t.rows.len() {
            let of = |column: &str| text(&t, r, column).to_owned();
            let (id, parent) = (number(&t, r, "id"), number(&t, r, "parent"));
            let row = vec![
                id.to_string(),
                parent.to_string(),
                of("device"),
                of("root"),
                of("path"),
                of("options"),
                of("propagation"),
                of("type"),
                of("source"),
            ];
            let namespace = number(&t, r, "namespace");
            got.entry(namespace).or_default().insert(row);
        }
        let want = mounts(c);
        assert_eq!(
            got.keys().collect::<Vec<_>>(),
            want.keys().collect::<Vec<_>>(),
            "{}",
            c.name
        );
        for (ns, want) in want {
            // The first root of each namespace lies below the root of its processes, who don't see
            // it.
            let mut rows = got.remove(&ns).unwrap();
            rows.retain(|r| r[0] != r[1]);
            assert_eq!(rows, want, "{} namespace {ns}", c.name);
        }
    });
}
