//! The frame map and the memory of processes against what the generator put into the machines.

use crate::common::{KERNELS, Made, machines, make, text};
use ramsift_layers::PhysAddr;
use ramsift_os::frames::Frame;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

/// The map of a machine.
fn map(m: &Made) -> Vec<Frame> {
    m.ask(|machine| {
        let (mut out, mut doubts) = (Vec::new(), Vec::new());
        machine
            .frames(&m.runs, &mut doubts, &mut |f| out.push(f))
            .unwrap();
        assert_eq!(doubts, Vec::<String>::new(), "{}", m.name);
        out
    })
}

fn owner(f: &Frame) -> &str {
    f.owner.as_deref().unwrap_or("")
}

#[test]
fn every_page_has_one_owner() {
    for m in machines() {
        let all = map(m);
        // From the first byte to the last, without a gap.
        let mut at = 0;
        for f in &all {
            assert_eq!(f.start.0, at, "{}", m.name);
            at += f.len;
        }
        assert_eq!(at, m.runs.image_len(), "{}", m.name);
        let of = |pa: u64| {
            let i = all.partition_point(|f| f.start.0 + f.len <= pa);
            &all[i]
        };
        // Tables are those of their processes; System's are the kernel's.
        for p in m.running() {
            let f = of(p["dtb"].as_u64().unwrap());
            let who = format!("{}[{}]", text(&p["image_file_name"]), p["pid"]);
            let who = if p["pid"] == 4 {
                "the kernel".to_owned()
            } else {
                who
            };
            assert_eq!(
                (f.state, owner(f)),
                ("page table", format!("page table of {who}").as_str()),
                "{}",
                m.name
            );
        }
        // Objects of the kernel lie in its memory, images in those of modules.
        for p in m.processes() {
            let f = of(p["eprocess_pa"].as_u64().unwrap());
            assert_eq!(f.state, "kernel", "{} {f:?}", m.name);
        }
        for d in m.truth["drivers"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|d| d["in_list"] == true)
        {
            let base = d["base"].as_u64().unwrap();
            let own = all
                .iter()
                .filter(|f| f.va.is_some_and(|va| (va..va + f.len).contains(&base)));
            let names: Vec<&str> = own.filter(|f| f.state == "kernel").map(owner).collect();
            assert_eq!(
                names,
                [format!("module {}", text(&d["name"]))],
                "{}",
                m.name
            );
        }
        let pools = all.iter().filter(|f| owner(f).starts_with("pool ")).count();
        assert!(pools > 0, "{}", m.name);
        // Private memory of the program with the secret, the page on its way out included.
        let secret = &m.truth["story"]["secret"];
        let who = m.processes().find(|p| p["pid"] == secret["pid"]).unwrap();
        let who = format!("{}[{}]", text(&who["image_file_name"]), secret["pid"]);
        for va in ["va", "transition_va"] {
            let va = secret[va].as_u64().unwrap();
            let own = all
                .iter()
                .filter(|f| f.va.is_some_and(|at| (at..at + f.len).contains(&va)));
            let found: Vec<_> = own.map(|f| (f.state, owner(f))).collect();
            assert_eq!(found, [("process", who.as_str())], "{} {va:#x}", m.name);
        }
        let free: u64 = all
            .iter()
            .filter(|f| f.state == "free")
            .map(|f| f.len)
            .sum();
        assert_eq!(
            Some(free / 4096),
            m.truth["free_pages"].as_u64(),
            "{}",
            m.name
        );
    }
}

#[test]
fn pages_of_files_are_told_with_their_place_in_the_file() {
    for m in machines() {
        let mut pages: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
        for f in map(m).iter().filter(|f| f.state == "file") {
            let path = owner(f).split(", mapped by ").next().unwrap();
            // The page of two names, as of a program that is read as data too, has the first.
            let own = pages.entry(path.to_owned()).or_default();
            let first = f.file_offset.unwrap() / 4096;
            own.extend(first..first + f.len / 4096);
        }
        for f in m.truth["files"].as_array().unwrap() {
            let place = format!("/{}", text(&f["dos"]).replace('\\', "/"));
            if f["kind"] == "image" {
                let resident = f["resident_pages"].as_array().unwrap().iter();
                let want: BTreeSet<u64> = resident.map(|p| p.as_u64().unwrap()).collect();
                assert_eq!(pages.get(&place), Some(&want), "{} {place}", m.name);
            } else if f["kind"] == "data" {
                let present = f["present"].as_u64().unwrap().div_ceil(4096);
                assert_eq!(pages[&place].len() as u64, present, "{} {place}", m.name);
            }
        }
    }
}

#[test]
fn processes_share_the_units_of_files_and_have_the_pages_that_they_changed() {
    for m in machines() {
        m.ask(|machine| {
            let mut units = BTreeMap::new();
            let mut doubts = Vec::new();
            let all = machine
                .resident(&mut doubts, &mut |u| {
                    units.insert(u.number, u);
                    ControlFlow::Continue(())
                })
                .unwrap();
            assert_eq!(doubts, Vec::<String>::new(), "{}", m.name);
            // No byte twice.
            let mut seen = BTreeSet::new();
            for e in units.values().flat_map(|u| &u.extents) {
                for page in (e.pa.0..e.pa.0 + e.len).step_by(4096) {
                    assert!(seen.insert(page), "{}: the page at {page:#x} twice", m.name);
                }
            }
            // A library is a unit that many processes have, each at its place.
            let kernel32 = units.values().find(|u| {
                u.file
                    .as_deref()
                    .is_some_and(|f| f.ends_with("System32\\kernel32.dll"))
            });
            let kernel32 = kernel32.unwrap().number;
            let with = all
                .iter()
                .filter(|r| r.units.iter().any(|(n, _)| *n == kernel32))
                .count();
            assert!(with > 10, "{}: {with}", m.name);
            // What a process sees at the address of its hooked function is its own page.
            let patched = &m.truth["story"]["patched_code"];
            let (pid, base) = (
                patched["pid"].as_i64().unwrap(),
                patched["base"].as_u64().unwrap(),
            );
            let read = |r: &ramsift_os::resident::Resident| {
                let mut out = Vec::new();
                for (n, shift) in &r.units {
                    for e in &units[n].extents {
                        let va = e.offset.wrapping_add(*shift);
                        if (va..va + e.len).contains(&(base + 4096)) {
                            let mut first = [0; 2];
                            let pa = PhysAddr(e.pa.0 + (base + 4096 - va));
                            machine.memory().read_phys(pa, &mut first).unwrap();
                            out.push(first);
                        }
                    }
                }
                out
            };
            let hooked = all.iter().find(|r| r.pid == pid).unwrap();
            assert_eq!(read(hooked), [[0x48, 0xb8]], "{}", m.name);
            let clean: Vec<_> = all
                .iter()
                .filter(|r| r.pid != pid)
                .map(read)
                .filter(|r| !r.is_empty())
                .collect();
            assert!(
                !clean.is_empty() && clean.iter().all(|r| *r == [[0x48, 0x89]]),
                "{} {clean:?}",
                m.name
            );
        });
    }
}

#[test]
fn a_machine_of_one_gib_is_mapped_like_a_small_one() {
    let (name, guid) = KERNELS[8];
    let m = make(name, guid, 71, &["--mem-mb", "1024"]);
    let all = map(&m);
    let end = all.last().unwrap();
    assert_eq!(end.start.0 + end.len, 1 << 30);
    let free: u64 = all
        .iter()
        .filter(|f| f.state == "free")
        .map(|f| f.len)
        .sum();
    assert_eq!(Some(free / 4096), m.truth["free_pages"].as_u64());
}
