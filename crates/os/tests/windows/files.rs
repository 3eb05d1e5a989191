//! Content of files and images against what the generator put into the machines.

use crate::common::{Made, cell, machines, rows, text};
use ramsift_os::Machine;
use ramsift_os::by_name;
use ramsift_os::content::Recovered;
use ramsift_os::files::{FilesError, UNKNOWN_TIME, Viewer};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// The SHA-256 of content, holes as zeros.
fn digest(machine: &dyn Machine, content: &ramsift_os::content::Content) -> String {
    let mut file = Vec::new();
    content.write(machine.memory(), &mut file).unwrap();
    Sha256::digest(&file)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

/// All that a view recovers.
fn recovered(m: &Made, machine: &dyn Machine, view: &str, pid: Option<i64>) -> Vec<Recovered> {
    let mut out = Vec::new();
    let mut doubts = Vec::new();
    machine
        .recover(by_name(view).unwrap(), pid, &mut doubts, &mut |r| {
            out.push(r);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(doubts, Vec::<String>::new(), "{} {view}", m.name);
    out
}

/// Files of the truth that have content in memory.
fn with_content(m: &Made) -> impl Iterator<Item = &Value> {
    let all = m.truth["files"].as_array().unwrap().iter();
    all.filter(|f| f["kind"] == "data" || f["kind"] == "image")
}

/// `C:\Windows\x` as `/C:/Windows/x`.
fn place(f: &Value) -> String {
    format!("/{}", text(&f["dos"]).replace('\\', "/"))
}

#[test]
fn files_in_memory_are_those_of_the_sections_and_of_the_cache() {
    for m in machines() {
        let t = m.build("windows/dumpfiles");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", m.name);
        let mut want: Vec<Vec<String>> = with_content(m)
            .map(|f| {
                let of = |field: &str| text(&f[field]);
                let place = place(f);
                vec![
                    of("path"),
                    place,
                    of("kind"),
                    of("size"),
                    of("present"),
                    of("control_area"),
                    of("file_object_pa"),
                ]
            })
            .collect();
        want.sort();
        let columns = [
            "path",
            "place",
            "section",
            "size",
            "present",
            "control_area",
            "physical",
        ];
        assert_eq!(rows(&t, &columns), want, "{}", m.name);
        // What the cache has mapped says so.
        let cached = with_content(m).filter(|f| f["cached"] == true).count();
        let mapped = (0..t.rows.len()).filter(|r| !cell(&t, *r, "cache_map").is_empty());
        assert_eq!(mapped.count(), cached, "{}", m.name);
    }
}

#[test]
fn recovered_files_have_the_bytes_of_the_machines_and_holes_for_the_rest() {
    for m in machines() {
        m.ask(|machine| {
            let mut want: BTreeMap<(String, &str), String> = BTreeMap::new();
            for f in with_content(m) {
                let kind = if f["kind"] == "data" {
                    "cached_file"
                } else {
                    "image_section"
                };
                want.insert((place(f), kind), text(&f["sha256_zero_filled"]));
            }
            let mut got = BTreeMap::new();
            for r in recovered(m, machine, "windows/dumpfiles", None) {
                let sum = digest(machine, &r.content);
                assert_eq!(
                    got.insert((r.name, r.kind), sum),
                    None,
                    "{}: once each",
                    m.name
                );
            }
            assert_eq!(got, want, "{}", m.name);
        });
    }
}

#[test]
fn files_are_listed_below_the_letters_of_drives() {
    for m in machines() {
        m.ask(|machine| {
            let files = machine.files(&Viewer::Machine).unwrap();
            assert_eq!(files.doubts(), Vec::<String>::new(), "{}", m.name);
            for f in with_content(m) {
                let id = files
                    .find(&place(f))
                    .unwrap_or_else(|| panic!("{} {f}", m.name));
                // As Windows writes it, and in any case.
                let other = text(&f["dos"]).to_uppercase();
                assert_eq!(files.find(&other), Some(id), "{}", m.name);
                assert_eq!(files.path(id), place(f), "{}", m.name);
                let metadata = files.metadata(id).unwrap();
                assert!(metadata.is_regular(), "{} {f}", m.name);
                assert_eq!(Some(metadata.size), f["size"].as_u64(), "{} {f}", m.name);
                assert_eq!(metadata.modified, UNKNOWN_TIME);
                let content = files.content(id, &mut Vec::new()).unwrap();
                let want = text(&f["sha256_zero_filled"]);
                assert_eq!(digest(machine, &content), want, "{} {f}", m.name);
            }
            let tasks = files.find("/c:/windows/TASKS").unwrap();
            let own: Vec<String> = files
                .children(tasks)
                .iter()
                .map(|c| files.name(*c).0)
                .collect();
            assert_eq!(own, ["stage.ps1"], "{}", m.name);
            assert!(!files.metadata(tasks).unwrap().is_regular());
            // A name without content: the pipe is open, and no file.
            let pipe = files.find("/Device/NamedPipe/lsass").unwrap();
            assert_eq!(files.metadata(pipe), None);
            let e = files.content(pipe, &mut Vec::new()).unwrap_err();
            assert!(e.to_string().contains("nothing of the content"), "{e}");
            assert_eq!(files.find("/C:/nowhere"), None);
        });
    }
    let m = &machines()[0];
    m.ask(|machine| {
        let own = m.running().next().unwrap()["pid"].as_u64().unwrap();
        assert!(
            machine
                .files(&Viewer::Process(u32::try_from(own).unwrap()))
                .is_ok()
        );
        let e = machine.files(&Viewer::Process(3)).map(|_| ()).unwrap_err();
        assert!(matches!(e, FilesError::NoProcess(3)), "{e}");
        let e = machine
            .files(&Viewer::Namespace(7))
            .map(|_| ())
            .unwrap_err();
        assert!(matches!(e, FilesError::NoNamespace(7)), "{e}");
    });
}

#[test]
fn images_of_processes_and_drivers_are_rebuilt() {
    for m in machines() {
        let t = m.build("windows/pedump");
        let mut want = Vec::new();
        for p in m.running() {
            let program = p["modules"][0]["base"].clone();
            for l in p["modules"].as_array().unwrap() {
                let kind = if l["base"] == program {
                    "program"
                } else {
                    "library"
                };
                want.push(vec![
                    text(&p["pid"]),
                    text(&l["base"]),
                    text(&l["size"]),
                    kind.to_owned(),
                ]);
            }
            for l in p["modules32"].as_array().unwrap().iter().skip(1) {
                want.push(vec![
                    text(&p["pid"]),
                    text(&l["base"]),
                    text(&l["size"]),
                    "library".to_owned(),
                ]);
            }
        }
        let odd = &m.truth["story"]["unlinked_dll"];
        want.push(vec![
            text(&odd["pid"]),
            text(&odd["base"]),
            (0x8000).to_string(),
            "library".to_owned(),
        ]);
        let injected = m.truth["story"]["injected"].as_array().unwrap().iter();
        let private = injected.clone().filter(|i| i["kind"] == "pe").count();
        // Where a program was emptied nothing is left of it.
        let hollowed = &m.truth["story"]["hollowed"];
        want.retain(|r| {
            *r != [
                text(&hollowed["pid"]),
                text(&hollowed["base"]),
                r[2].clone(),
                "program".to_owned(),
            ]
        });
        for i in injected.filter(|i| i["kind"] == "pe") {
            want.push(vec![
                text(&i["pid"]),
                text(&i["start"]),
                text(&i["size"]),
                "private".to_owned(),
            ]);
        }
        want.sort();
        assert_eq!(
            rows(&t, &["pid", "base", "size", "kind"]),
            want,
            "{}",
            m.name
        );
        // One program has a page of code that is its own.
        let patched = &m.truth["story"]["patched_code"];
        let changed: Vec<Vec<String>> = rows(&t, &["pid", "base", "changed"]);
        let changed: Vec<_> = changed
            .into_iter()
            .filter(|r| !r[2].is_empty() && r[2] != "0")
            .collect();
        assert_eq!(
            changed,
            [[
                text(&patched["pid"]),
                text(&patched["base"]),
                "1".to_owned()
            ]],
            "{}",
            m.name
        );
        let rules: Vec<&str> = t.anomalies.iter().map(|a| a.rule).collect();
        assert_eq!(rules, ["changed_code"], "{}", m.name);
        m.ask(|machine| {
            let all = recovered(m, machine, "windows/pedump", None);
            // Each file once, that with the changed page again, and what was injected.
            let of = |part: &str| all.iter().filter(|r| r.name.contains(part)).count();
            assert_eq!(
                (of("ntdll.dll"), of(".private"), of("user32.dll")),
                (2, private, 2),
                "{}",
                m.name
            );
            for r in &all {
                let mut file = Vec::new();
                r.content.write(machine.memory(), &mut file).unwrap();
                assert!(file.starts_with(b"MZ"), "{} {}", m.name, r.name);
                assert_eq!(r.kind, "pe_image");
            }
            let pid = m.running().find(|p| p["name"] == "explorer.exe").unwrap()["pid"].as_i64();
            let own = recovered(m, machine, "windows/pedump", pid);
            let prefix = format!("{}.explorer.exe.", pid.unwrap());
            assert!(
                own.len() > 5 && own.iter().all(|r| r.name.starts_with(&prefix)),
                "{}",
                m.name
            );
            let drivers = recovered(m, machine, "windows/modules", None);
            let listed = m.truth["drivers"].as_array().unwrap().iter();
            let mut want: Vec<String> = listed
                .filter(|d| d["in_list"] == true)
                .map(|d| format!("{:x}.{}", d["base"].as_u64().unwrap(), text(&d["name"])))
                .collect();
            let mut got: Vec<String> = drivers.iter().map(|r| r.name.clone()).collect();
            want.sort();
            got.sort();
            assert_eq!(got, want, "{}", m.name);
            for r in drivers.iter().filter(|r| !r.name.contains("ntoskrnl")) {
                let d = m.truth["drivers"].as_array().unwrap().iter();
                let d = d
                    .clone()
                    .find(|d| r.name.ends_with(&text(&d["name"])))
                    .unwrap();
                assert_eq!(
                    digest(machine, &r.content),
                    text(&d["sha256"]),
                    "{} {}",
                    m.name,
                    r.name
                );
            }
        });
    }
}

#[test]
fn processes_are_dumped_as_minidumps() {
    for m in machines() {
        m.ask(|machine| {
            let secret = &m.truth["story"]["secret"];
            let pid = secret["pid"].as_i64().unwrap();
            let own = recovered(m, machine, "windows/procdump", Some(pid));
            assert_eq!(own.len(), 1, "{}", m.name);
            assert_eq!(own[0].name, format!("{pid}.notepad.exe.dmp"), "{}", m.name);
            let mut file = Vec::new();
            let lost = own[0].content.write(machine.memory(), &mut file).unwrap();
            assert_eq!(lost, [], "{}", m.name);
            let word = |at: usize| u32::from_le_bytes(*file[at..].first_chunk().unwrap()) as usize;
            let long = |at: usize| u64::from_le_bytes(*file[at..].first_chunk().unwrap());
            // MINIDUMP_HEADER, MINIDUMP_DIRECTORY.
            assert_eq!(&file[..4], b"MDMP");
            assert_eq!(word(4) & 0xffff, 0xa793);
            let directory = word(12);
            let stream = |kind: usize| {
                let all = (0..word(8)).map(|i| directory + i * 12);
                let at = all.clone().find(|at| word(*at) == kind).unwrap();
                (word(at + 8), word(at + 4))
            };
            // SystemInfoStream: AMD64, version and build.
            let (at, len) = stream(7);
            assert_eq!((len >= 56, word(at) & 0xffff), (true, 9));
            assert_eq!(
                Some(word(at + 16) as u64),
                m.truth["build"].as_u64(),
                "{}",
                m.name
            );
            // ThreadListStream: records of 48 bytes.
            let p = m.processes().find(|p| p["pid"] == pid).unwrap();
            let (at, len) = stream(3);
            assert_eq!(len, 4 + 48 * word(at));
            let mut threads: Vec<usize> = (0..word(at)).map(|i| word(at + 4 + i * 48)).collect();
            let mut want: Vec<usize> = p["threads"]
                .as_array()
                .unwrap()
                .iter()
                .map(|t| t["tid"].as_u64().unwrap() as usize)
                .collect();
            threads.sort();
            want.sort();
            assert_eq!(threads, want, "{}", m.name);
            // ModuleListStream: records of 108 bytes; names are MINIDUMP_STRINGs.
            let (at, len) = stream(4);
            assert_eq!(len, 4 + 108 * word(at));
            let module = |i: usize| {
                let at = at + 4 + i * 108;
                let name = word(at + 20);
                let units = file[name + 4..name + 4 + word(name)].chunks_exact(2);
                let units: Vec<u16> = units.map(|u| u16::from_le_bytes([u[0], u[1]])).collect();
                (
                    long(at),
                    word(at + 8) as u64,
                    String::from_utf16(&units).unwrap(),
                )
            };
            let modules: Vec<_> = (0..word(at)).map(module).collect();
            let own = p["modules"].as_array().unwrap().iter();
            let want: Vec<_> = own
                .map(|l| {
                    (
                        l["base"].as_u64().unwrap(),
                        l["size"].as_u64().unwrap(),
                        text(&l["path"]),
                    )
                })
                .collect();
            assert_eq!(modules, want, "{}", m.name);
            // MemoryInfoListStream: one for each reserved area.
            let (at, _) = stream(16);
            assert_eq!((word(at), word(at + 4)), (16, 48));
            assert_eq!(
                long(at + 8) as usize,
                p["vads"].as_array().unwrap().len(),
                "{}",
                m.name
            );
            // Memory64ListStream: the secret, and the page that was on its way out.
            let (at, len) = stream(9);
            let count = long(at) as usize;
            assert_eq!(len, 16 + 16 * count);
            let from = long(at + 8) as usize;
            let read = |va: u64, n: usize| {
                let mut base = from;
                for i in 0..count {
                    let (start, len) = (long(at + 16 + i * 16), long(at + 24 + i * 16));
                    if (start..start + len).contains(&va) {
                        let at = base + (va - start) as usize;
                        return Some(file[at..at + n].to_vec());
                    }
                    base += len as usize;
                }
                None
            };
            let page = read(secret["va"].as_u64().unwrap(), 4096).unwrap();
            let wanted = text(&secret["text"]);
            assert!(
                page.windows(wanted.len()).any(|w| w == wanted.as_bytes()),
                "{}",
                m.name
            );
            let page = read(secret["transition_va"].as_u64().unwrap(), 15).unwrap();
            assert_eq!(page, b"TRANSITION-PAGE", "{}", m.name);
            assert_eq!(
                read(secret["pagefile_va"].as_u64().unwrap(), 1),
                None,
                "{}",
                m.name
            );
            let total: u64 = (0..count).map(|i| long(at + 24 + i * 16)).sum();
            assert_eq!(from + total as usize, file.len(), "{}", m.name);
        });
    }
}
