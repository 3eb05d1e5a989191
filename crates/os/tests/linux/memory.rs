//! Memory of processes against what the machine said of it.

use crate::common::{
    Capture, Image, build, each_with_tasks, is_recorder, listed, number, status, text,
};
use ramsift_layers::PhysAddr;
use ramsift_layers::translate::{PhysError, PhysRead};
use ramsift_os::discover::discover;
use ramsift_os::linux::{AddressSpace, Kernel};
use ramsift_os::table::{Table, Value};
use std::collections::BTreeMap;

/// A line of /proc/<pid>/maps.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Line {
    pub(crate) start: i128,
    pub(crate) end: i128,
    pub(crate) permissions: String,
    pub(crate) offset: i128,
    pub(crate) device: String,
    pub(crate) inode: i128,
    pub(crate) path: String,
}

pub(crate) fn hex(text: &str) -> i128 {
    i128::from_str_radix(text, 16).unwrap()
}

fn line(l: &str) -> Line {
    let mut words = l.splitn(6, ' ');
    let mut next = || words.next().unwrap();
    let (start, end) = next().split_once('-').unwrap();
    let (permissions, offset, device) = (next().to_owned(), hex(next()), next());
    let (major, minor) = device.split_once(':').unwrap();
    Line {
        start: hex(start),
        end: hex(end),
        permissions,
        offset,
        device: format!("{}:{}", hex(major), hex(minor)),
        inode: next().parse().unwrap(),
        path: words.next().unwrap_or_default().trim_start().to_owned(),
    }
}

/// The processes whose memory the machine described and didn't change any more.
pub(crate) fn truth(c: &Capture) -> BTreeMap<i128, (&serde_json::Value, Vec<Line>)> {
    let all = listed(c).into_iter().filter(|(_, p)| !is_recorder(p));
    all.map(|(pid, p)| {
        (
            pid,
            (p, p["maps"].as_str().unwrap().lines().map(line).collect()),
        )
    })
    .filter(|(_, (_, lines)): &(_, (_, Vec<Line>))| !lines.is_empty())
    .collect()
}

pub(crate) fn note(c: &Capture, name: &str) -> i128 {
    c.truth["notes"][name].as_i64().unwrap().into()
}

pub(crate) fn optional(t: &Table, row: usize, column: &str) -> String {
    match t.cell(row, column) {
        Some(Value::Text(s)) => s.clone(),
        Some(Value::Null) => String::new(),
        other => panic!("{column} of row {row}: {other:?}"),
    }
}

pub(crate) fn flag(t: &Table, row: usize, column: &str) -> Option<bool> {
    match t.cell(row, column) {
        Some(Value::Flag(b)) => Some(*b),
        Some(Value::Null) => None,
        other => panic!("{column} of row {row}: {other:?}"),
    }
}

/// A whole number; 0 where there is none.
pub(crate) fn count(t: &Table, row: usize, column: &str) -> i128 {
    match t.cell(row, column) {
        Some(Value::Null) => 0,
        _ => number(t, row, column),
    }
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn areas_are_those_of_maps() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/maps");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        let mut got: BTreeMap<i128, Vec<Line>> = BTreeMap::new();
        for r in 0..t.rows.len() {
            let device = optional(&t, r, "device");
            let line = Line {
                start: number(&t, r, "start"),
                end: number(&t, r, "end"),
                permissions: text(&t, r, "permissions").to_owned(),
                offset: number(&t, r, "offset"),
                device: if device.is_empty() {
                    "0:0".into()
                } else {
                    device
                },
                inode: count(&t, r, "inode_number"),
                path: optional(&t, r, "path"),
            };
            got.entry(number(&t, r, "pid")).or_default().push(line);
            let deleted = optional(&t, r, "path").ends_with(" (deleted)");
            assert_eq!(
                flag(&t, r, "deleted").unwrap_or(false),
                deleted,
                "{} row {r}",
                c.name
            );
        }
        for (pid, (_, want)) in truth(c) {
            let got = got.remove(&pid).unwrap_or_default();
            assert_eq!(got, want, "{} pid {pid}", c.name);
        }
        // What is left: the recorder.
        assert_eq!(got.len(), 1, "{}: {:?}", c.name, got.keys());
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn resident_pages_are_those_of_status() {
    const VM_PFNMAP: u64 = 0x400;
    each_with_tasks(|c, k| {
        let t = build(k, "linux/maps");
        let (mut got, mut tasks) = (BTreeMap::new(), BTreeMap::new());
        for r in 0..t.rows.len() {
            // The kernel doesn't count pages without a struct page, as those of its clocks.
            let area = u64::try_from(number(&t, r, "area")).unwrap();
            let flags = k.object("vm_area_struct", area).number("vm_flags").unwrap();
            let n = if flags & VM_PFNMAP == 0 {
                number(&t, r, "resident")
            } else {
                0
            };
            *got.entry(number(&t, r, "pid")).or_insert(0) += n * 4;
            tasks.insert(number(&t, r, "pid"), number(&t, r, "task"));
        }
        let mut exact = 0;
        for (pid, (p, _)) in truth(c) {
            let rss = status(p["status"].as_str().unwrap(), "VmRSS");
            let rss: i128 = rss.trim_end_matches(" kB").trim().parse().unwrap();
            // Until 6.1 threads count for themselves at first, which /proc doesn't show.
            let task = k.object("task_struct", u64::try_from(tasks[&pid]).unwrap());
            let mut own = 0;
            if let Ok(at) = task.at("rss_stat.count") {
                if p["tasks"].as_object().unwrap().len() > 1 {
                    assert!(
                        got[&pid] >= rss,
                        "{} pid {pid}: {} {rss}",
                        c.name,
                        got[&pid]
                    );
                    continue;
                }
                // Of files, anonymous, swapped, of shared memory.
                let mut raw = [0; 16];
                k.space.read(at, &mut raw).unwrap();
                let n = |i: usize| i32::from_le_bytes(*raw[i * 4..].first_chunk().unwrap());
                own = i128::from(n(0) + n(1) + n(3)) * 4;
            }
            // The page of zeros isn't counted; a program may have read from memory that it never wrote.
            let more = got[&pid] - rss - own;
            assert!(
                (0..=4).contains(&more),
                "{} pid {pid}: {} {rss} {own}",
                c.name,
                got[&pid]
            );
            exact += 1;
        }
        assert!(exact > 30, "{}: {exact}", c.name);
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn executable_memory_is_what_was_planted() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/malfind");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        let got: Vec<(i128, i128, &str)> = (0..t.rows.len())
            .map(|r| {
                (
                    number(&t, r, "pid"),
                    number(&t, r, "start"),
                    t.anomalies[r].rule,
                )
            })
            .collect();
        assert_eq!(t.anomalies.len(), t.rows.len(), "{}", c.name);
        assert!(
            t.anomalies.iter().enumerate().all(|(i, a)| a.row == i),
            "{}",
            c.name
        );
        let mut want = Vec::new();
        for (note_name, rule, what) in [
            ("rwx", "rwx_memory", "rwxp"),
            ("memfd", "deleted_executable_mapping", "r-xp"),
            ("deletedexe", "deleted_executable_mapping", "r-xp"),
            ("preload", "deleted_executable_mapping", "r-xp"),
        ] {
            let pid = note(c, note_name);
            let (_, lines) = &truth(c)[&pid];
            let gone = |l: &&Line| {
                l.permissions == what && (l.path.is_empty() || l.path.ends_with(" (deleted)"))
            };
            let one: Vec<&Line> = lines.iter().filter(gone).collect();
            assert_eq!(one.len(), 1, "{} {note_name}", c.name);
            want.push((pid, one[0].start, rule));
        }
        want.sort_unstable();
        let mut sorted = got.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, want, "{}", c.name);
        // The shellcode that the scenario wrote.
        let rwx = got.iter().position(|g| g.2 == "rwx_memory").unwrap();
        assert_eq!(text(&t, rwx, "hex"), ["90"; 64].join(" "), "{}", c.name);
        if c.info["arch"] == "arm64" {
            assert_eq!(t.cell(rwx, "disasm"), Some(&Value::Null), "{}", c.name);
        } else {
            assert_eq!(
                text(&t, rwx, "disasm"),
                ["nop"; 64].join("; "),
                "{}",
                c.name
            );
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
                if let Some(to) = to.and_then(|to| buf.get_mut(to as usize)) {
                    *to = b;
                }
            }
        }
        Ok(())
    }
}

/// Where the entry of the last level lies that maps an address, and what it is.
fn entry(k: &Kernel<'_>, dtb: u64, va: u64) -> (u64, u64) {
    let shape = k.space.shape();
    let (mut at, mut left) = (dtb, shape.va_bits());
    let levels = &shape.bits[..shape.levels()];
    let mut found = (0, 0);
    for bits in levels {
        left -= bits;
        let place = (at & shape.address) + (va >> left & ((1 << bits) - 1)) * 8;
        let mut raw = [0; 8];
        k.space
            .memory()
            .read_phys(PhysAddr(place), &mut raw)
            .unwrap();
        found = (place, u64::from_le_bytes(raw));
        at = found.1;
    }
    found
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn changed_code_and_torn_lists_of_libraries_are_flagged() {
    each_with_tasks(|c, k| {
        let pid = note(c, "envsecrets");
        let ps = build(k, "linux/pslist");
        let row = (0..ps.rows.len())
            .find(|r| number(&ps, *r, "pid") == pid)
            .unwrap();
        let dtb = number(&ps, row, "dtb") as u64;
        let space = k.space.with_table(ramsift_layers::Dtb(dtb));
        let (shape, top) = (*k.space.shape(), k.space.dtb());
        let list = build(k, "linux/library_list");
        let libc = (0..list.rows.len())
            .find(|r| {
                number(&list, *r, "pid") == pid && text(&list, *r, "path").ends_with("/libc.so.6")
            })
            .unwrap();
        // A breakpoint makes a page of a library the process's own, which the table calls dirty.
        let maps = build(k, "linux/maps");
        let code = |r: &usize| {
            number(&maps, *r, "pid") == pid
                && optional(&maps, *r, "path").ends_with("/libc.so.6")
                && text(&maps, *r, "permissions") == "r-xp"
        };
        let code = number(&maps, (0..maps.rows.len()).find(code).unwrap(), "start") as u64;
        let page = (0..400)
            .map(|i| code + i * 4096)
            .find(|va| space.translate(*va).is_ok())
            .unwrap();
        let (place, old) = entry(k, dtb, page);
        let dirty = if c.info["arch"] == "arm64" {
            1 << 55
        } else {
            1 << 6
        };
        // A list that leaves a library out: the one before leads to the one behind.
        let node = number(&list, libc, "link_map") as u64;
        let physical = |va: u64| space.translate(va).unwrap().0;
        let next = space.u64(node + 24).unwrap();
        let before = space.u64(node + 32).unwrap();
        // One that names what is nowhere: its dynamic section is.
        for (view, words, rules) in [
            (
                "linux/malfind",
                vec![(place, old | dirty)],
                vec!["modified_code"],
            ),
            (
                "linux/library_list",
                vec![(physical(before + 24), next)],
                vec!["library_not_in_link_map"],
            ),
            (
                "linux/library_list",
                vec![(physical(node + 16), 0x1000)],
                vec!["library_not_in_link_map", "library_without_mapping"],
            ),
        ] {
            let clean = build(k, view).anomalies;
            let forged = Forged {
                image: &c.image,
                words,
            };
            let d = discover(&c.input());
            let mut other = c.kernel(&d);
            other.space = AddressSpace::new(&forged, shape, top);
            let t = build(&other, view);
            let new: Vec<_> = t
                .anomalies
                .iter()
                .filter(|a| clean.iter().all(|o| o.reason != a.reason))
                .collect();
            let got: Vec<&str> = new.iter().map(|a| a.rule).collect();
            assert_eq!(got, rules, "{} {view}", c.name);
            for a in new {
                assert_eq!(number(&t, a.row, "pid"), pid, "{} {view}", c.name);
            }
        }
    });
}
