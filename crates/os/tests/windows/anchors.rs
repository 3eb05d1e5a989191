//! What a pass over memory, which others make, tells: top tables that lead to the kernel where known places don't, and headers of pool
//! memory, with which nothing is scanned twice.

use crate::common::{KERNELS, Made, anchors, machines, make, rows};
use ramsift_layers::PhysAddr;
use ramsift_layers::translate::{PhysError, PhysRead};
use ramsift_os::discover::{Anchor, discover};
use ramsift_os::input::{PoolScan, ViewInput};
use ramsift_os::{by_name, open};
use std::cell::Cell;

/// Pages of the image that have an entry in their upper half that leads to themselves.
fn tables(m: &Made) -> Vec<Anchor> {
    let mut out = Vec::new();
    for pa in (0..m.runs.image_len()).step_by(4096) {
        let mut page = [0; 4096];
        m.image.read_phys(PhysAddr(pa), &mut page).unwrap();
        let entries = page[2048..].chunks(8);
        let mut entries = entries.map(|e| u64::from_le_bytes(e.try_into().unwrap()));
        if entries.any(|e| e & 1 == 1 && e & 0x0000_ffff_ffff_f000 == pa && pa > 0) {
            out.push(Anchor {
                kind: "top_table".into(),
                image_offset: pa,
                data: Vec::new(),
            });
        }
    }
    out
}

#[test]
fn tables_that_the_pass_finds_lead_to_the_kernel_where_known_places_do_not() {
    for i in [0, 6, 8] {
        let (name, guid) = KERNELS[i];
        let options = ["--no-low-stub", "--high-table", "--decoys"];
        let m = make(name, guid, 71 + i as u32, &options);
        assert!(
            discover(&m.input(&anchors())).impossible.is_some(),
            "{name}"
        );
        // The tables of all processes lead to themselves, and decoys do.
        let found = tables(&m);
        assert!(found.len() > 20, "{name}: {}", found.len());
        let mut all = anchors();
        all.extend(found);
        let input = m.input(&all);
        let d = discover(&input);
        assert_eq!(d.impossible, None, "{name}");
        assert_eq!(d.page_tables[0].source, "a top table that maps itself");
        assert_eq!(d.kernel_base, m.truth["kernel_base"].as_u64(), "{name}");
        // Whichever was taken, the kernel's own is used.
        let machine = open(&input, &d).unwrap_or_else(|e| panic!("{name}: {e}"));
        let t = machine.build(by_name("windows/info").unwrap()).unwrap();
        let dtb = rows(&t, &["dtb"]);
        assert_eq!(dtb, [[m.truth["dtb"].to_string()]], "{name}");
        let t = machine.build(by_name("windows/pslist").unwrap()).unwrap();
        assert_eq!(
            t.rows.len(),
            m.running().count() + 1,
            "{name}: one has ended"
        );
    }
}

/// Counts the bytes that are read.
struct Counted<'a>(&'a dyn PhysRead, &'a Cell<u64>);

impl PhysRead for Counted<'_> {
    fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
        self.1.set(self.1.get() + buf.len() as u64);
        self.0.read_phys(pa, buf)
    }
}

/// Headers of pool memory in a range, by the tags that the kernel gives to objects.
fn headers(m: &Made, range: std::ops::Range<u64>) -> Vec<u64> {
    const TAGS: [&[u8]; 18] = [
        b"Proc", b"Pro\xe3", b"Driv", b"Dri\xf6", b"File", b"Fil\xe5", b"TcpE", b"TcpL", b"UdpA",
        b"TTcb", b"Thre", b"Thr\xe5", b"Muta", b"Mut\xe1", b"Symb", b"Sym\xe2", b"MmLd", b"CM10",
    ];
    let mut out = Vec::new();
    for page in range.step_by(4096) {
        let mut raw = [0; 4096];
        m.image.read_phys(PhysAddr(page), &mut raw).unwrap();
        let own = (0..4096)
            .step_by(16)
            .filter(|at| TAGS.contains(&&raw[at + 4..at + 8]));
        out.extend(own.map(|at| page + at as u64));
    }
    out
}

const VIEWS: [&str; 13] = [
    "windows/psscan",
    "windows/psxview",
    "windows/thrdscan",
    "windows/mutantscan",
    "windows/symlinkscan",
    "windows/modscan",
    "windows/driverscan",
    "windows/driverirp",
    "windows/devicetree",
    "windows/netscan",
    "windows/filescan",
    "windows/dumpfiles",
    "windows/hivescan",
];

/// The rows of all views that scan, and how many bytes were read for them.
fn scanned(m: &Made, pool: Option<&PoolScan>) -> (Vec<String>, u64) {
    let (read, anchors) = (Cell::new(0), anchors());
    let memory = Counted(&m.image, &read);
    let input = ViewInput {
        memory: &memory,
        pool,
        ..m.input(&anchors)
    };
    let d = discover(&input);
    let machine = open(&input, &d).unwrap();
    let before = read.get();
    let of = |v: &&str| {
        let t = machine.build(by_name(v).unwrap()).unwrap();
        format!("{v} {:?} {:?}", t.rows, t.doubts)
    };
    (VIEWS.iter().map(of).collect(), read.get() - before)
}

#[test]
fn views_that_scan_make_no_second_pass_where_one_was_made() {
    for m in machines() {
        let len = m.runs.image_len();
        let (own, read) = scanned(m, None);
        assert!(read > len, "{}: {read}", m.name);
        let pass = PoolScan::new([(0..len, headers(m, 0..len))]);
        let (told, read) = scanned(m, Some(&pass));
        assert!(told == own, "{}", m.name);
        assert!(read < len / 8, "{}: {read} of {len}", m.name);
        // What the pass did not look at is looked at here, and only that.
        let (half, rest) = (len / 2 - 4096, len / 2 + (1 << 20));
        let halves = PoolScan::new([
            (0..half, headers(m, 0..half)),
            (rest..len, headers(m, rest..len)),
        ]);
        let (told, read) = scanned(m, Some(&halves));
        assert!(told == own, "{}", m.name);
        assert!(read < len / 4, "{}: {read} of {len}", m.name);
        // Views that scan are those that say so.
        for v in ramsift_os::view::views().filter(|v| v.name.starts_with("windows/")) {
            assert_eq!(v.scans, VIEWS.contains(&v.name), "{}", v.name);
        }
    }
}
