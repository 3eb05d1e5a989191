//! Views of files and mounts.

use crate::common::{Capture, build, each_with_tasks, listed, number, text};
use ramsift_os::content::Recovered;
use ramsift_os::linux;
use ramsift_os::table::Value;
use ramsift_os::{Machine as _, by_name};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

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
    each_with_tasks(|c, k| {
        let t = build(k, "linux/lsof");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        // The removed file that the scenario keeps open, and no other.
        let flagged: Vec<(&str, i128, &str)> = t
            .anomalies
            .iter()
            .map(|a| (a.rule, number(&t, a.row, "pid"), text(&t, a.row, "path")))
            .collect();
        let pid = i128::from(c.truth["notes"]["deletedfile"].as_i64().unwrap());
        let want = [("deleted_open_file", pid, "/tmp/exfil.dat (deleted)")];
        assert_eq!(flagged, want, "{}", c.name);
        let mut got: BTreeMap<i128, BTreeMap<String, String>> = BTreeMap::new();
        for r in 0..t.rows.len() {
            let fds = got.entry(number(&t, r, "pid")).or_default();
            let fd = number(&t, r, "fd").to_string();
            let path = text(&t, r, "path");
            fds.insert(fd, path.to_owned());
            let deleted = Value::Flag(path.ends_with(" (deleted)"));
            assert_eq!(t.cell(r, "deleted"), Some(&deleted), "{} {path}", c.name);
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
    each_with_tasks(|c, k| {
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
            // What lies below the root of its processes they don't see: the first root of each
            // namespace, and the rootfs on it (7.0 has a nullfs below).
            let mut rows = got.remove(&ns).unwrap();
            rows.retain(|r| r[0] != r[1] && (r[4] != "/" || r[7] != "rootfs"));
            assert_eq!(rows, want, "{} namespace {ns}", c.name);
        }
    });
}

/// A file of the truth.
struct Truth<'c> {
    path: &'c str,
    of: &'c serde_json::Value,
    /// Pages that were in the cache.
    resident: i128,
}

/// The files of the truth; symbolic links, which it follows, left out.
fn truth(c: &Capture) -> Vec<Truth<'_>> {
    let resident: BTreeMap<String, i128> = c.truth["fincore"]
        .as_str()
        .unwrap()
        .lines()
        .map(|l| {
            let f: Vec<&str> = l.trim_start().splitn(4, ' ').collect();
            (f[3].to_owned(), f[1].parse().unwrap())
        })
        .collect();
    let escape = |path: &str| {
        let plain = |b: u8| (0x21..0x7f).contains(&b) && b != b'\\';
        path.bytes().fold(String::new(), |mut out, b| {
            if plain(b) {
                out.push(b.into());
            } else {
                out += &format!("\\x{b:02x}");
            }
            out
        })
    };
    let all = c.truth["files"].as_array().unwrap().iter();
    all.map(|of| {
        let path = of["path"].as_str().unwrap();
        let resident = *resident
            .get(&escape(path))
            .unwrap_or_else(|| panic!("{}: no fincore of {path}", c.name));
        Truth { path, of, resident }
    })
    .filter(|t| t.path != "/srv/docs/link-to-report")
    .collect()
}

/// Logs, and what is written while the truth is.
fn grows(path: &str) -> bool {
    path.starts_with("/var/log/")
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn cached_inodes_are_the_files_that_the_machine_listed() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/pagecache_files");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        assert_eq!(t.anomalies, Vec::new(), "{}", c.name);
        let mut by_path: BTreeMap<&str, usize> = BTreeMap::new();
        for r in 0..t.rows.len() {
            if t.cell(r, "path") != Some(&Value::Null) {
                by_path.insert(text(&t, r, "path"), r);
            }
        }
        let files = truth(c);
        assert!(files.len() > 30, "{}", c.name);
        for f in files {
            let at = format!("{} {}", c.name, f.path);
            // /bin and /lib are links.
            let r = *by_path
                .get(f.path)
                .unwrap_or_else(|| panic!("{at} is not there"));
            let n = |key: &str| i128::from(f.of[key].as_u64().unwrap());
            assert_eq!(number(&t, r, "inode_number"), n("ino"), "{at}");
            assert_eq!(number(&t, r, "mode"), n("mode"), "{at}");
            assert_eq!(number(&t, r, "uid"), n("uid"), "{at}");
            let (major, minor) = (n("dev") >> 8, n("dev") & 0xff);
            assert_eq!(text(&t, r, "device"), format!("{major}:{minor}"), "{at}");
            assert_eq!(t.cell(r, "deleted"), Some(&Value::Flag(false)), "{at}");
            if grows(f.path) {
                continue;
            }
            assert_eq!(number(&t, r, "size"), n("size"), "{at}");
            // A cache may hold an empty page behind the end, read ahead; fincore doesn't ask for it.
            let (pages, needed) = (number(&t, r, "pages"), number(&t, r, "pages_needed"));
            assert!(
                pages == f.resident || (pages == needed + 1 && f.resident == needed),
                "{at}: {pages} of {needed}, fincore: {}",
                f.resident
            );
            for (column, key) in [("modified", "mtime"), ("changed", "ctime")] {
                // A double holds today's seconds to a quarter of a microsecond.
                let want = (f.of[key].as_f64().unwrap() * 1e6).round() as i128;
                let got = number(&t, r, column);
                assert!((got - want).abs() <= 1, "{at}: {column} {got} {want}");
            }
        }
        // The planted files without a name.
        for gone in ["/tmp/exfil.dat (deleted)", "/memfd:labfileless (deleted)"] {
            let r = *by_path
                .get(gone)
                .unwrap_or_else(|| panic!("{}: no {gone}", c.name));
            assert_eq!(t.cell(r, "deleted"), Some(&Value::Flag(true)));
        }
        let link = by_path["/srv/docs/link-to-report"];
        assert_eq!(text(&t, link, "type"), "LNK");
        assert_eq!(
            text(&t, link, "target"),
            "/srv/docs/report.txt",
            "{}",
            c.name
        );
        // The times of files are on the timeline, those of /proc and /sys are not.
        let at = |path: &str| t.events.iter().filter(|e| e.row == by_path[path]).count();
        assert_eq!(at("/srv/docs/report.txt"), 3, "{}", c.name);
        for e in &t.events {
            let fs = text(&t, e.row, "filesystem");
            assert!(!["proc", "sysfs"].contains(&fs), "{} {e:?}", c.name);
        }
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn whole_files_of_the_page_cache_have_the_hash_that_the_machine_computed() {
    each_with_tasks(|c, k| {
        let mut doubts = Vec::new();
        let mut got: BTreeMap<String, Recovered> = BTreeMap::new();
        let view = by_name("linux/pagecache_files").unwrap();
        k.recover(view, None, &mut doubts, &mut |r| {
            got.insert(r.name.clone(), r);
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(doubts, Vec::<String>::new(), "{}", c.name);
        let mut whole = 0;
        for f in truth(c) {
            let size = f.of["size"].as_u64().unwrap();
            if grows(f.path) || f.resident == 0 {
                continue;
            }
            let at = format!("{} {}", c.name, f.path);
            let r = got
                .get(f.path)
                .unwrap_or_else(|| panic!("{at} is not there"));
            let present = i128::from(r.content.present().div_ceil(4096));
            assert_eq!(present, f.resident, "{at}");
            if r.content.present() < size {
                continue;
            }
            let mut hash = Sha256::new();
            let lost = r.content.write(k.space.memory(), &mut hash).unwrap();
            assert_eq!(lost, vec![], "{at}");
            let hex: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(hex, f.of["sha256"].as_str().unwrap(), "{at}");
            whole += 1;
        }
        assert!(whole > 20, "{}: {whole}", c.name);
        // A deleted file that is still open, and a memfd: what is known of their content.
        let read = |name: &str| {
            let mut out = Vec::new();
            got[name].content.write(k.space.memory(), &mut out).unwrap();
            out
        };
        let gone = read("/tmp/exfil.dat (deleted)");
        assert!(
            gone == b"DELETED-OPEN-FILE-MARKER\n".repeat(500),
            "{}",
            c.name
        );
        assert_eq!(
            read("/memfd:labfileless (deleted)"),
            read("/usr/bin/sleep"),
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
fn the_tree_leads_to_the_files_that_the_machine_listed() {
    let inside = std::cell::Cell::new(0);
    each_with_tasks(|c, k| {
        let tree = linux::FileTree::new(k).unwrap();
        assert_eq!(tree.doubts, Vec::<String>::new(), "{}", c.name);
        let inodes = linux::Inodes::new(k).unwrap();
        for f in truth(c) {
            let at = format!("{} {}", c.name, f.path);
            let id = tree.find(f.path).unwrap_or_else(|| panic!("{at}"));
            assert_eq!(tree.path(id), f.path, "{at}");
            let inode = inodes.read(tree.node(id).unwrap().inode).unwrap();
            assert_eq!(Some(inode.number), f.of["ino"].as_u64(), "{at}");
        }
        let id = tree.find("/srv/docs/link-to-report").unwrap();
        let link = inodes.read(tree.node(id).unwrap().inode).unwrap();
        assert!(link.is_symlink(), "{}", c.name);
        assert_eq!(tree.find("/srv/docs/nothing-of-this-name"), None);
        // The one place where the names of /mnt/ramdisk are is the file system mounted there.
        let names = |path: &str| -> BTreeSet<String> {
            let id = tree.find(path).unwrap();
            let there = tree.children(id).filter(|(_, n)| n.inode != 0);
            there.map(|(_, n)| n.name.clone()).collect()
        };
        let want = ["dropper.sh", "keys.bin"].map(str::to_owned).into();
        assert_eq!(names("/mnt/ramdisk"), want, "{}", c.name);
        // A container's own root.
        if let Some(pid) = c.truth["notes"]["engine_child"].as_i64() {
            inside.set(inside.get() + 1);
            let tasks = k.processes(&mut Vec::new()).unwrap();
            let is = |t: &&linux::Object<'_>| t.int("tgid").unwrap() == pid;
            let task = tasks.iter().find(is).unwrap();
            let tree = linux::FileTree::of(k, task).unwrap();
            assert_eq!(tree.doubts, Vec::<String>::new(), "{}", c.name);
            assert!(tree.find("/etc/lab-web.conf").is_some(), "{}", c.name);
            assert_eq!(tree.find("/srv/docs/report.txt"), None, "{}", c.name);
        }
    });
    let made = |c: &Capture| c.truth["notes"]["engine_child"].is_i64();
    let made = crate::common::captures().iter().filter(|c| made(c)).count();
    assert_eq!(inside.get(), made);
}
