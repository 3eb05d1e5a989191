//! Torn and forged memory: views end, and nothing panics.

use crate::common::{KERNELS, Made, anchors, make};
use ramsift_layers::PhysAddr;
use ramsift_layers::translate::{PhysError, PhysRead};
use ramsift_os::discover::discover;
use ramsift_os::input::ViewInput;
use ramsift_os::{open, views};

/// Memory of which one page in so many is missing, or has bytes turned over.
struct Torn<'m> {
    of: &'m Made,
    seed: u64,
    one_in: u64,
    lies: bool,
}

impl Torn<'_> {
    fn is_hit(&self, page: u64) -> bool {
        // A mix of all bits (splitmix64).
        let mut x = page.wrapping_add(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ x >> 31).is_multiple_of(self.one_in)
    }
}

impl PhysRead for Torn<'_> {
    fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
        self.of.image.read_phys(pa, buf)?;
        let mut at = 0;
        while at < buf.len() {
            let here = pa.0 + at as u64;
            let n = usize::try_from(4096 - here % 4096)
                .unwrap()
                .min(buf.len() - at);
            if self.is_hit(here / 4096) {
                if !self.lies {
                    return Err(PhysError::NotInImage { pa: PhysAddr(here) });
                }
                for (i, b) in buf[at..at + n].iter_mut().enumerate() {
                    if (here + i as u64) % 61 == self.seed % 61 {
                        *b ^= 0x5a;
                    }
                }
            }
            at += n;
        }
        Ok(())
    }
}

#[test]
fn views_end_on_torn_and_forged_memory() {
    let (mut opened, mut refused) = (0, 0);
    for (name, guid) in [KERNELS[0], KERNELS[7]] {
        let made = make(name, guid, 5, &[]);
        for seed in 0..12 {
            for (one_in, lies) in [(200, false), (40, false), (200, true), (40, true)] {
                let memory = Torn {
                    of: &made,
                    seed,
                    one_in,
                    lies,
                };
                let anchors = anchors();
                let input = ViewInput {
                    memory: &memory,
                    ..made.input(&anchors)
                };
                let d = discover(&input);
                let Ok(machine) = open(&input, &d) else {
                    refused += 1;
                    continue;
                };
                opened += 1;
                for v in views().filter(|v| v.name.starts_with("windows/")) {
                    // That a view can't be built at all is a fair answer too.
                    let _ = machine.build(v);
                    if v.recovers {
                        let mut sink = std::io::sink();
                        let _ = machine.recover(v, None, &mut Vec::new(), &mut |r| {
                            r.content.write(machine.memory(), &mut sink).unwrap();
                            std::ops::ControlFlow::Continue(())
                        });
                    }
                }
                if let Ok(files) = machine.files(&ramsift_os::files::Viewer::Machine) {
                    let mut todo = files.children(0);
                    while let Some(id) = todo.pop() {
                        let _ = files.metadata(id);
                        todo.extend(files.children(id));
                    }
                }
                let _ = machine.frames(&made.runs, &mut Vec::new(), &mut |_| {});
                let _ =
                    machine.resident(
                        &mut Vec::new(),
                        &mut |_| std::ops::ControlFlow::Continue(()),
                    );
            }
        }
    }
    assert!(
        opened > 40 && refused > 0,
        "{opened} opened, {refused} refused"
    );
}

#[test]
fn layouts_of_another_family_are_refused() {
    use ramsift_os::input::KernelSymbols;
    use ramsift_symbols::SymbolTable;
    use ramsift_symbols::layouts::Layouts;

    /// Gives the layouts of another kernel for whatever is asked.
    #[derive(Debug)]
    struct Wrong(&'static str);

    impl KernelSymbols for Wrong {
        fn find(&self, _: &str) -> Result<Option<SymbolTable>, String> {
            let layouts = Layouts::built_in().map_err(|e| e.to_string())?;
            let table = layouts.kernel(self.0, 0).expect("known");
            table.map(Some).map_err(|e| e.to_string())
        }
    }

    for (i, (name, guid)) in KERNELS.iter().enumerate() {
        let made = make(
            name,
            guid,
            41,
            &["--record-guid", "0123456789ABCDEF0123456789ABCDEF"],
        );
        let anchors = anchors();
        let is_19041 = |name: &str| name.starts_with("10-19041");
        for (other, wrong) in KERNELS.iter().enumerate().filter(|(o, _)| *o != i) {
            // Two revisions of one build have the same structs.
            if is_19041(name) && is_19041(wrong.0) {
                continue;
            }
            let symbols = Wrong(wrong.1);
            let input = ViewInput {
                symbols: Some(&symbols),
                page_files: &[],
                pool: None,
                ..made.input(&anchors)
            };
            let d = discover(&input);
            let e = open(&input, &d).err().map(|e| e.to_string());
            let e = e.unwrap_or_else(|| panic!("{name} opened as {}", KERNELS[other].0));
            assert!(e.contains("don't fit"), "{name} as {}: {e}", wrong.0);
        }
    }
}

#[test]
fn what_a_broken_list_lacks_is_not_said_to_be_hidden() {
    /// Memory in which one word is another.
    struct Broken<'m> {
        of: &'m Made,
        at: u64,
    }

    impl PhysRead for Broken<'_> {
        fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
            self.of.image.read_phys(pa, buf)?;
            for (i, b) in buf.iter_mut().enumerate() {
                if (self.at..self.at + 8).contains(&(pa.0 + i as u64)) {
                    *b = 0x5a;
                }
            }
            Ok(())
        }
    }

    for (name, guid) in [KERNELS[0], KERNELS[6]] {
        let made = make(name, guid, 51, &[]);
        let layouts = ramsift_symbols::layouts::Layouts::built_in().unwrap();
        let types = layouts.kernel(guid, 0).unwrap().unwrap();
        let links = types
            .types()
            .field("_EPROCESS", "ActiveProcessLinks")
            .unwrap();
        // Both links of a process in the middle of the list.
        let listed: Vec<_> = made
            .processes()
            .filter(|p| p["in_active_list"] == true)
            .collect();
        let middle = listed[listed.len() / 2]["eprocess_pa"].as_u64().unwrap();
        let memory = Broken {
            of: &made,
            at: middle + links.offset,
        };
        let anchors = anchors();
        let input = ViewInput {
            memory: &memory,
            ..made.input(&anchors)
        };
        let d = discover(&input);
        let machine = open(&input, &d).unwrap();
        let view = |name| machine.build(ramsift_os::by_name(name).unwrap()).unwrap();
        let t = view("windows/pslist");
        assert!(
            t.doubts.iter().any(|d| d.contains("broken")),
            "{name}: {:?}",
            t.doubts
        );
        // Those behind the break are reached from the other end.
        assert!(
            t.rows.len() + 2 > listed.len(),
            "{name}: {} of {}",
            t.rows.len(),
            listed.len()
        );
        for v in ["windows/psxview", "windows/netscan"] {
            assert_eq!(view(v).anomalies, [], "{name} {v}");
        }
    }
}

#[test]
fn memory_full_of_tags_is_bounded_and_told() {
    /// Behind the machine's memory nothing but headers of the pool.
    struct Flood<'m>(&'m Made);

    impl PhysRead for Flood<'_> {
        fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
            let header = *b"\0\0\x10\x02TcpE\0\0\0\0\0\0\0\0";
            let end = self.0.runs.image_len();
            if pa.0 < end {
                let own = usize::try_from(end - pa.0).unwrap().min(buf.len());
                self.0.image.read_phys(pa, &mut buf[..own])?;
            }
            for (i, b) in buf.iter_mut().enumerate() {
                let at = pa.0 + i as u64;
                if at >= end {
                    *b = header[usize::try_from(at % 16).unwrap()];
                }
            }
            Ok(())
        }
    }

    let (name, guid) = KERNELS[6];
    let made = make(name, guid, 61, &[]);
    let runs = ramsift_layers::run::RunMap::raw(made.runs.image_len() + (16 << 20));
    let memory = Flood(&made);
    let anchors = anchors();
    let input = ViewInput {
        memory: &memory,
        runs: &runs,
        ..made.input(&anchors)
    };
    let d = discover(&input);
    let machine = open(&input, &d).unwrap();
    let scan = machine.build(ramsift_os::by_name("windows/psscan").unwrap());
    let scan = scan.unwrap();
    let told = scan.doubts.iter().any(|d| d.contains("left out"));
    assert!(told, "{:?}", scan.doubts);
    // What lies before the flood is there.
    assert_eq!(scan.rows.len(), made.processes().count());
}
