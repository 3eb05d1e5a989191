//! Pages that were written out: read from the page file beside the capture, refused from another machine's, told where missing.

use crate::common::{KERNELS, Made, anchors, cell, make_with, rows};
use ramsift_layers::page_file::{self, PageFile};
use ramsift_layers::translate::{PhysError, PhysRead};
use ramsift_layers::{PhysAddr, SourcePin};
use ramsift_os::discover::discover;
use ramsift_os::input::ViewInput;
use ramsift_os::table::Table;
use ramsift_os::{Machine, by_name, open};
use serde_json::Value;
use std::ops::ControlFlow;

/// An image, and a page file with the number 0 where that is at hand.
struct Paged<'a> {
    image: &'a dyn PhysRead,
    file: &'a [u8],
}

impl PhysRead for Paged<'_> {
    fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
        let Some((0, at)) = page_file::place_of(pa.0) else {
            return self.image.read_phys(pa, buf);
        };
        let at = usize::try_from(at).unwrap();
        let own = self.file.get(at..at + buf.len());
        buf.copy_from_slice(own.ok_or(PhysError::NotInImage { pa })?);
        Ok(())
    }
}

/// Asks a machine something, with this page file.
fn ask<T>(m: &Made, file: Option<&[u8]>, question: impl FnOnce(&dyn Machine) -> T) -> T {
    let anchors = anchors();
    let files: Vec<PageFile> = file
        .map(|f| PageFile {
            number: 0,
            pin: SourcePin::Ram {
                name: "pagefile.sys".into(),
                size: f.len() as u64,
            },
            found: true,
        })
        .into_iter()
        .collect();
    let memory = Paged {
        image: &m.image,
        file: file.unwrap_or_default(),
    };
    let input = ViewInput {
        memory: &memory,
        page_files: &files,
        ..m.input(&anchors)
    };
    let d = discover(&input);
    let machine = open(&input, &d).unwrap_or_else(|e| panic!("{}: {e}", m.name));
    question(machine.as_ref())
}

fn build(m: &Made, file: Option<&[u8]>, view: &str) -> Table {
    let of = |machine: &dyn Machine| {
        let view = by_name(view).unwrap();
        machine
            .build(view)
            .unwrap_or_else(|e| panic!("{} {}: {e}", m.name, view.name))
    };
    ask(m, file, of)
}

/// A machine that wrote pages out, and its page file.
fn machine(i: usize, seed: u32) -> (Made, Vec<u8>) {
    let (name, guid) = KERNELS[i];
    let (m, mut files) = make_with(name, guid, seed, &["--page-out"], &["pagefile.sys"]);
    (m, files.remove(0))
}

/// The command line of a process in a table.
fn line_of(t: &Table, pid: &Value) -> (String, String) {
    let pid = pid.to_string();
    let row = (0..t.rows.len()).find(|r| cell(t, *r, "pid") == pid);
    let row = row.expect("a row of the process");
    (cell(t, row, "args"), cell(t, row, "reason"))
}

/// All bytes that processes have, by address, of one process.
fn bytes_at(m: &Made, file: Option<&[u8]>, pid: i64, va: u64, len: usize) -> Option<Vec<u8>> {
    ask(m, file, |machine| {
        let mut units = Vec::new();
        let all = machine
            .resident(&mut Vec::new(), &mut |u| {
                units.push(u);
                ControlFlow::Continue(())
            })
            .unwrap();
        let r = all.iter().find(|r| r.pid == pid)?;
        r.units.iter().find_map(|(n, shift)| {
            let u = units.iter().find(|u| u.number == *n)?;
            let at = va.wrapping_sub(*shift);
            let e = u
                .extents
                .iter()
                .find(|e| (e.offset..e.offset + e.len).contains(&at))?;
            let mut out = vec![0; len];
            let pa = PhysAddr(e.pa.0 + (at - e.offset));
            machine.memory().read_phys(pa, &mut out).ok()?;
            Some(out)
        })
    })
}

#[test]
fn what_was_written_out_is_read_from_the_page_file() {
    for i in 0..KERNELS.len() {
        let (m, file) = machine(i, 61 + i as u32);
        let story = &m.truth["story"];
        let paged = &story["paged"];
        // The process block lies in the file, and so do the parameters of the first.
        let with = build(&m, Some(&file), "windows/cmdline");
        let without = build(&m, None, "windows/cmdline");
        let all = m
            .processes()
            .filter(|p| paged["emptied"].as_array().unwrap().contains(&p["pid"]));
        let mut some = 0;
        for p in all {
            let want = p["cmdline"].as_str().unwrap();
            assert_eq!(line_of(&with, &p["pid"]).0, want, "{}", m.name);
            let (args, reason) = line_of(&without, &p["pid"]);
            assert_eq!(args, "", "{}", m.name);
            assert!(reason.contains("page file 0"), "{}: {reason}", m.name);
            some += 1;
        }
        assert_eq!(some, 2, "{}", m.name);
        // Injected code that was written out is found.
        let injected = &paged["injected"];
        let found = |t: &Table| {
            let hit = |r: &usize| {
                let is = |column| {
                    let want = injected[column].to_string();
                    cell(t, *r, column) == want
                };
                is("pid") && is("start")
            };
            (0..t.rows.len())
                .find(hit)
                .map(|r| cell(t, r, "hex").replace(' ', ""))
        };
        let code = found(&build(&m, Some(&file), "windows/malfind")).unwrap_or_default();
        assert!(code.starts_with("fc4883e4f0e8c0"), "{}: {code}", m.name);
        assert_eq!(
            found(&build(&m, None, "windows/malfind")),
            None,
            "{}",
            m.name
        );
        // A page whose page table was written out as well.
        let table = &paged["table"];
        let (pid, va) = (
            table["pid"].as_i64().unwrap(),
            table["va"].as_u64().unwrap(),
        );
        let text = table["text"].as_str().unwrap().as_bytes();
        let got = bytes_at(&m, Some(&file), pid, va, text.len());
        assert_eq!(got.as_deref(), Some(text), "{}", m.name);
        assert_eq!(bytes_at(&m, None, pid, va, text.len()), None, "{}", m.name);
        // And the secret, which every machine has.
        let secret = &story["secret"];
        let (pid, va) = (
            secret["pid"].as_i64().unwrap(),
            secret["pagefile_va"].as_u64().unwrap(),
        );
        let text = secret["pagefile_text"].as_str().unwrap().as_bytes();
        let got = bytes_at(&m, Some(&file), pid, va, text.len());
        assert_eq!(got.as_deref(), Some(text), "{}", m.name);
    }
}

#[test]
fn page_files_are_listed_with_what_they_gave_and_lack() {
    for i in [0, 3, 8] {
        let (m, file) = machine(i, 261 + i as u32);
        let t = build(&m, Some(&file), "windows/pagefiles");
        let want: Vec<Vec<String>> = m.truth["page_files"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| {
                let path = f["path"].as_str().unwrap_or_default();
                let number = f["number"].to_string();
                vec![
                    number,
                    path.to_owned(),
                    f["bytes"].to_string(),
                    f["kind"].as_str().unwrap().to_owned(),
                ]
            })
            .collect();
        assert_eq!(
            rows(&t, &["number", "path", "kernel_bytes", "kind"]),
            want,
            "{}",
            m.name
        );
        assert_eq!(cell(&t, 0, "trust"), "own", "{}", m.name);
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", m.name);
        assert_eq!(cell(&t, 0, "missing"), "0", "{}", m.name);
        assert!(
            cell(&t, 0, "there").parse::<u64>().unwrap() > 12,
            "{}",
            m.name
        );
        // One page lies in the store of compressed memory, where the system has one.
        if let Some(c) = m.truth["story"]["paged"]["compressed"].as_object() {
            let row = t.rows.len() - 1;
            assert_eq!(
                (cell(&t, row, "kind"), cell(&t, row, "missing")),
                ("compressed".into(), "1".into())
            );
            assert!(
                bytes_at(
                    &m,
                    Some(&file),
                    c["pid"].as_i64().unwrap(),
                    c["va"].as_u64().unwrap(),
                    1
                )
                .is_none()
            );
        }
        // A file that ends too early is said to lack what it lacks.
        let short = build(&m, Some(&file[..0x62 * 4096]), "windows/pagefiles");
        assert_ne!(cell(&short, 0, "missing"), "0", "{}", m.name);
        assert!(
            short.doubts.iter().any(|d| d.contains("the kernel's had")),
            "{:?}",
            short.doubts
        );
        assert!(
            short.doubts.iter().any(|d| d.contains("are not there")),
            "{:?}",
            short.doubts
        );
    }
}

#[test]
fn a_page_file_of_another_machine_or_time_is_not_believed() {
    let ((m, own), (_, other)) = (machine(6, 67), machine(6, 167));
    let t = build(&m, Some(&other), "windows/pagefiles");
    assert_eq!(cell(&t, 0, "trust"), "foreign");
    assert_eq!(cell(&t, 0, "there"), "0");
    assert!(
        t.doubts.iter().any(|d| d.contains("another machine's")),
        "{:?}",
        t.doubts
    );
    let lines = build(&m, Some(&other), "windows/cmdline");
    let pid = &m.truth["story"]["paged"]["emptied"][0];
    let (args, reason) = line_of(&lines, pid);
    assert_eq!(args, "");
    assert!(reason.contains("not this machine's"), "{reason}");
    // Half of it is of another time.
    let mut mixed = own.clone();
    let from = 0x63 * 4096;
    mixed[from..from + 4096].fill(0);
    let t = build(&m, Some(&mixed), "windows/pagefiles");
    assert_eq!(cell(&t, 0, "trust"), "mixed");
    assert!(
        t.doubts.iter().any(|d| d.contains("another time")),
        "{:?}",
        t.doubts
    );
    // Of a machine that wrote out nothing that is known nothing tells.
    let (name, guid) = KERNELS[6];
    let (m, files) = make_with(name, guid, 68, &[], &["pagefile.sys"]);
    let t = build(&m, Some(&files[0]), "windows/pagefiles");
    assert_eq!(cell(&t, 0, "trust"), "unproved");
    assert_eq!(cell(&t, 0, "there"), "1");
    assert_eq!(t.doubts.len(), 1, "{:?}", t.doubts);
}

#[test]
fn a_dump_holds_pages_of_the_page_file() {
    let (m, file) = machine(6, 367);
    let table = &m.truth["story"]["paged"]["table"];
    let pid = table["pid"].as_i64().unwrap();
    let text = table["text"].as_str().unwrap().as_bytes();
    let has = |file: Option<&[u8]>| {
        ask(&m, file, |machine| {
            let (view, mut out) = (by_name("windows/procdump").unwrap(), Vec::new());
            let made = machine.recover(view, Some(pid), &mut Vec::new(), &mut |r| {
                r.content.write(machine.memory(), &mut out).unwrap();
                ControlFlow::Continue(())
            });
            made.unwrap();
            out.windows(text.len()).any(|w| w == text)
        })
    };
    assert!(has(Some(&file)));
    assert!(!has(None));
}
