//! ELF files, images and cores of processes against what the machine said of their memory.

use crate::common::{build, each_with_tasks, number, text};
use crate::memory::{Line, count, flag, hex, note, optional, truth};
use ramsift_os::content::Recovered;
use ramsift_os::linux::Kernel;
use ramsift_os::{Machine as _, by_name};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

/// Files of ELF in a process: path and first address, by what the machine said. The scenario's programs
/// are mapped from a file's start, and so are their libraries.
fn elf_files(lines: &[Line]) -> BTreeMap<String, i128> {
    let code = |path: &str| {
        let own = |l: &&Line| l.path == path;
        path.starts_with('/')
            && lines
                .iter()
                .filter(own)
                .any(|l| l.permissions.contains('x'))
    };
    let first = lines.iter().filter(|l| l.offset == 0 && code(&l.path));
    first.rev().map(|l| (l.path.clone(), l.start)).collect()
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn libraries_are_those_that_are_mapped() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/library_list");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        assert_eq!(t.anomalies, [], "{}", c.name);
        let mut got: BTreeMap<i128, BTreeMap<String, i128>> = BTreeMap::new();
        let (mut all, mut linked, mut named) = (0, 0, 0);
        for r in 0..t.rows.len() {
            let path = text(&t, r, "path").to_owned();
            let file = path.rsplit('/').next().unwrap();
            assert_eq!(flag(&t, r, "in_areas"), Some(true), "{} row {r}", c.name);
            assert_eq!(
                flag(&t, r, "deleted"),
                Some(path.ends_with(" (deleted)")),
                "{}",
                c.name
            );
            // The stopped process was stopped before its linker had begun.
            if number(&t, r, "pid") != note(c, "stopped") {
                all += 1;
                linked += usize::from(flag(&t, r, "in_link_map") == Some(true));
            }
            // What the linker calls it, and what it calls itself, begin as the file's name does.
            for name in [optional(&t, r, "link_name"), optional(&t, r, "soname")] {
                let name = name.rsplit('/').next().unwrap();
                let stem = name.split(".so").next().unwrap();
                // The scenario's injected library is a copy of another one.
                let stem = if path.starts_with("/tmp/libinject.so") && stem == "libutil" {
                    "libinject"
                } else {
                    stem
                };
                assert!(file.starts_with(stem), "{} {path} {name}", c.name);
            }
            named += usize::from(optional(&t, r, "soname") == file);
            got.entry(number(&t, r, "pid"))
                .or_default()
                .insert(path, number(&t, r, "base"));
        }
        for (pid, (_, lines)) in truth(c) {
            let got = got.remove(&pid).unwrap_or_default();
            assert_eq!(got, elf_files(&lines), "{} pid {pid}", c.name);
        }
        // Pages that a process didn't touch are taken from the page cache, so that all lists are read.
        assert_eq!(linked, all, "{}", c.name);
        assert!(named > 100, "{}: {named}", c.name);
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn images_of_elf_hold_the_code_of_their_files() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/elfs");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        assert_eq!(t.anomalies, [], "{}", c.name);
        let machine = if c.info["arch"] == "arm64" {
            "aarch64"
        } else {
            "x86-64"
        };
        let mut got: BTreeMap<i128, BTreeMap<String, i128>> = BTreeMap::new();
        for r in 0..t.rows.len() {
            assert_eq!(text(&t, r, "machine"), machine, "{} row {r}", c.name);
            assert_eq!(count(&t, r, "changed"), 0, "{} row {r}", c.name);
            let path = text(&t, r, "path").to_owned();
            if path != "[vdso]" {
                got.entry(number(&t, r, "pid"))
                    .or_default()
                    .insert(path, number(&t, r, "start"));
            }
        }
        for (pid, (_, lines)) in truth(c) {
            let (got, want) = (got.remove(&pid).unwrap_or_default(), elf_files(&lines));
            assert_eq!(got, want, "{} pid {pid}", c.name);
        }
        let files = recovered(k, "linux/pagecache_files");
        let files: BTreeMap<&str, Vec<u8>> = files
            .iter()
            .filter(|r| r.content.holes().is_empty())
            .map(|r| (&*r.name, bytes(k, r)))
            .collect();
        let (mut names, mut checked) = (BTreeSet::new(), 0);
        for r in recovered(k, "linux/elfs") {
            let raw = bytes(k, &r);
            assert!(raw.starts_with(b"\x7fELF"), "{} {}", c.name, r.name);
            assert!(names.insert(r.name.clone()), "{} {} twice", c.name, r.name);
            let (pid, base) = (
                r.name.split('.').next().unwrap(),
                r.name.rsplit('.').nth(1).unwrap(),
            );
            let (pid, base) = (pid.parse::<i128>().unwrap(), hex(&base[2..]));
            let Some((_, lines)) = truth(c).remove(&pid) else {
                continue;
            };
            let first = lines.iter().find(|l| l.start == base).unwrap();
            let Some(file) = files.get(&*first.path) else {
                continue;
            };
            let code = |l: &&Line| l.path == first.path && l.permissions == "r-xp";
            for l in lines.iter().filter(code) {
                let (from, len) = ((l.start - base) as usize, (l.end - l.start) as usize);
                let want = &file[l.offset as usize..];
                let want = &want[..want.len().min(len)];
                assert!(
                    &raw[from..from + want.len()] == want,
                    "{} {}",
                    c.name,
                    r.name
                );
                checked += 1;
            }
        }
        assert!(names.len() > 40, "{}: {}", c.name, names.len());
        assert!(checked > 10, "{}: {checked}", c.name);
    });
}

fn recovered(k: &Kernel<'_>, view: &str) -> Vec<Recovered> {
    let (mut out, mut doubts) = (Vec::new(), Vec::new());
    k.recover(by_name(view).unwrap(), None, &mut doubts, &mut |r| {
        out.push(r);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(doubts, Vec::<String>::new(), "{view}");
    out
}

fn bytes(k: &Kernel<'_>, r: &Recovered) -> Vec<u8> {
    let mut out = Vec::new();
    r.content.write(k.space.memory(), &mut out).unwrap();
    out
}

fn word(raw: &[u8], at: u64) -> u64 {
    u64::from_le_bytes(*raw[at as usize..].first_chunk().unwrap())
}

fn half(raw: &[u8], at: u64) -> u64 {
    word(raw, at) & 0xffff_ffff
}

/// Notes of a core: their kinds and where their texts are.
fn notes(raw: &[u8], at: u64, len: u64) -> Vec<(u64, std::ops::Range<u64>)> {
    let (mut out, mut note) = (Vec::new(), at);
    while note < at + len {
        // The name of the owner takes eight bytes.
        let (text, size) = (note + 20, half(raw, note + 4));
        out.push((half(raw, note + 8), text..text + size));
        note = text + size.next_multiple_of(4);
    }
    out
}

/// The files that a core names, with start and end.
fn named_files(raw: &[u8], text: std::ops::Range<u64>) -> Vec<(i128, i128, String)> {
    let (n, at) = (word(raw, text.start), text.start);
    assert_eq!(word(raw, at + 8), 4096);
    let names = &raw[(at + 16 + n * 24) as usize..text.end as usize];
    let names = names.split(|b| *b == 0).map(String::from_utf8_lossy);
    let place = |i: u64| word(raw, at + 16 + i * 8).into();
    (0..n)
        .zip(names)
        .map(|(i, name)| (place(i * 3), place(i * 3 + 1), name.into_owned()))
        .collect()
}

/// Threads of a core: pid, program counter and stack pointer.
fn threads(raw: &[u8], notes: &[(u64, std::ops::Range<u64>)], arm: bool) -> Vec<(u64, i128, i128)> {
    let (pc, sp) = if arm { (32, 31) } else { (16, 19) };
    let all = notes.iter().filter(|n| n.0 == 1);
    all.map(|(_, t)| {
        assert_eq!(t.end - t.start, if arm { 392 } else { 336 });
        let register = |i: u64| i128::from(word(raw, t.start + 112 + i * 8));
        (half(raw, t.start + 32), register(pc), register(sp))
    })
    .collect()
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn cores_have_the_areas_of_maps_and_their_bytes() {
    let on_request: Vec<&str> = ramsift_os::views()
        .filter(|v| v.on_request && v.name.starts_with("linux/"))
        .map(|v| v.name)
        .collect();
    assert_eq!(on_request, ["linux/procdump"]);
    each_with_tasks(|c, k| {
        let t = build(k, "linux/procdump");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        let maps = build(k, "linux/maps");
        let mut cores: BTreeMap<i128, Recovered> = BTreeMap::new();
        for (r, core) in recovered(k, "linux/procdump").into_iter().enumerate() {
            let (pid, comm) = (number(&t, r, "pid"), text(&t, r, "comm"));
            assert_eq!(core.name, format!("{pid}.{comm}.core"), "{}", c.name);
            assert_eq!(
                i128::from(core.content.size()),
                number(&t, r, "core_bytes"),
                "{}",
                c.name
            );
            let own = (0..maps.rows.len()).filter(|m| number(&maps, *m, "pid") == pid);
            let pages: i128 = own.map(|m| number(&maps, m, "resident")).sum();
            assert_eq!(
                number(&t, r, "resident_bytes"),
                pages * 4096,
                "{} {pid}",
                c.name
            );
            cores.insert(pid, core);
        }
        // One process alone gives the same.
        let pid = i128::from(c.truth["notes"]["worker"].as_i64().unwrap());
        let mut one = Vec::new();
        let view = by_name("linux/procdump").unwrap();
        let done = k.recover(view, Some(pid as i64), &mut Vec::new(), &mut |r| {
            one.push(r);
            ControlFlow::Continue(())
        });
        assert!(done.is_ok(), "{}", c.name);
        assert_eq!(one, [cores[&pid].clone()], "{}", c.name);
        for (pid, (process, lines)) in truth(c) {
            let at = format!("{} pid {pid}", c.name);
            let raw = bytes(k, &cores[&pid]);
            assert!(raw.starts_with(b"\x7fELF\x02\x01\x01"), "{at}");
            assert_eq!(half(&raw, 16) & 0xffff, 4, "{at}: a core");
            let (phoff, n) = (word(&raw, 32), half(&raw, 56) & 0xffff);
            let mut loads = Vec::new();
            for p in (0..n).map(|i| phoff + i * 56) {
                let (offset, stored, len) =
                    (word(&raw, p + 8), word(&raw, p + 32), word(&raw, p + 40));
                if half(&raw, p) == 4 {
                    let want = lines.iter().filter(|l| l.inode != 0);
                    let want: Vec<_> = want.map(|l| (l.start, l.end, l.path.clone())).collect();
                    let notes = notes(&raw, offset, stored);
                    let files = notes.iter().find(|n| n.0 == 0x4649_4c45).unwrap();
                    assert_eq!(named_files(&raw, files.1.clone()), want, "{at}");
                    // Every thread is in code of the process, and the main one on its stack.
                    let got = threads(&raw, &notes, c.info["arch"] == "arm64");
                    let pids: BTreeSet<String> = got.iter().map(|t| t.0.to_string()).collect();
                    let tasks = process["tasks"]
                        .as_object()
                        .unwrap()
                        .keys()
                        .cloned()
                        .collect();
                    assert_eq!(pids, tasks, "{at}");
                    let within = |at: i128, l: &&Line| l.start <= at && at < l.end;
                    for (n, (_, pc, sp)) in got.iter().enumerate() {
                        let code = lines.iter().find(|l| within(*pc, l)).unwrap();
                        assert!(code.permissions.contains('x'), "{at}: {pc:#x}");
                        let stack = lines.iter().find(|l| within(*sp, l)).unwrap();
                        assert!(n > 0 || stack.path == "[stack]", "{at}: {sp:#x} {stack:?}");
                    }
                    continue;
                }
                assert!(stored == 0 || stored == len, "{at}");
                assert!(
                    offset % 4096 == 0 && offset + stored <= raw.len() as u64,
                    "{at}"
                );
                let start = i128::from(word(&raw, p + 16));
                let letter = |bit: u64, l| if half(&raw, p + 4) & bit != 0 { l } else { '-' };
                let flags: String = [letter(4, 'r'), letter(2, 'w'), letter(1, 'x')]
                    .iter()
                    .collect();
                loads.push((start, start + i128::from(len), flags));
            }
            let want = lines
                .iter()
                .map(|l| (l.start, l.end, l.permissions[..3].to_owned()));
            assert_eq!(loads, want.collect::<Vec<_>>(), "{at}");
        }
        // What the scenario wrote stands at its address.
        let raw = bytes(k, &cores[&note(c, "rwx")]);
        let start = truth(c)[&note(c, "rwx")]
            .1
            .iter()
            .find(|l| l.permissions == "rwxp")
            .unwrap()
            .start;
        let phoff = word(&raw, 32);
        let p = (0..)
            .map(|i| phoff + i * 56)
            .find(|p| i128::from(word(&raw, p + 16)) == start)
            .unwrap();
        let from = word(&raw, p + 8) as usize;
        assert!(raw[from..].starts_with(&[0x90; 64]), "{}", c.name);
        assert!(
            raw[from + 64..].starts_with(b"\xccMALFIND-MARKER-LAB-e81f/bin/sh\0"),
            "{}",
            c.name
        );
        // The machine was told secrets, and they are in the environment of one process.
        let secret = b"AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI";
        let raw = bytes(k, &cores[&note(c, "envsecrets")]);
        assert!(memchr::memmem::find(&raw, secret).is_some(), "{}", c.name);
    });
}
