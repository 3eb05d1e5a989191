//! A small machine in every format that has a writer here.
#![allow(dead_code)]

use super::dumps::{self, CODECS, Kind, Memory, Packed, page};
use super::hiber::{self, Hiber};
use super::hyperv::{self, State};
use super::machines::{self, Stream, Vm};

/// A capture and what it holds.
#[derive(Clone, Debug)]
pub(crate) struct Form {
    pub(crate) name: String,
    pub(crate) file: Vec<u8>,
    pub(crate) memory: Memory,
    pub(crate) format: &'static str,
}

/// Three ranges with holes between them; a page of zeros in each.
pub(crate) fn memory() -> Memory {
    let range = |first: u64, n: u64| -> (u64, Vec<u8>) {
        let one = |i: u64| match i {
            2 => vec![0; 4096],
            _ => page(first + i),
        };
        (first * 4096, (0..n).flat_map(one).collect())
    };
    vec![range(1, 6), range(0x20, 5), range(0x40, 4)]
}

/// All of it from 0 on, holes zeros.
pub(crate) fn flat(m: &Memory) -> Vec<u8> {
    let end = m.iter().map(|(pa, b)| *pa as usize + b.len()).max();
    let mut out = vec![0; end.unwrap_or(0)];
    for (pa, b) in m {
        out[*pa as usize..*pa as usize + b.len()].copy_from_slice(b);
    }
    out
}

pub(crate) fn lime(m: &Memory) -> Vec<u8> {
    m.iter()
        .flat_map(|(pa, b)| dumps::lime_range(*pa, b))
        .collect()
}

fn put(b: &mut [u8], at: usize, n: u64, bytes: usize) {
    b[at..at + bytes].copy_from_slice(&n.to_le_bytes()[..bytes]);
}

/// An ELF core of 64 or 32 bits with a note in front.
pub(crate) fn elf_core(m: &Memory, wide: bool) -> Vec<u8> {
    let (head, each) = if wide { (64, 56) } else { (52, 32) };
    let mut out = vec![0; head + each * (m.len() + 1)];
    out[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', if wide { 2 } else { 1 }, 1, 1]);
    let machine = if wide { 62 } else { 3 };
    for (at, v) in [(16, 4), (18, machine)] {
        put(&mut out, at, v, 2);
    }
    put(&mut out, 20, 1, 4);
    let (phoff, word, sizes) = if wide { (32, 8, 52) } else { (28, 4, 40) };
    put(&mut out, phoff, head as u64, word);
    for (i, v) in [head, each, m.len() + 1].iter().enumerate() {
        put(&mut out, sizes + 2 * i, *v as u64, 2);
    }
    let note = [
        [5, 0, 0, 0, 16, 0, 0, 0, 1, 0, 0, 0],
        *b"CORE\0\0\0\0\x11\x11\x11\x11",
    ];
    let note: Vec<u8> = [note.concat(), vec![0x11; 12]].concat();
    let mut at = out.len();
    let header = |out: &mut Vec<u8>, i: usize, kind: u64, place: u64, pa: u64, len: u64| {
        let h = head + each * i;
        put(out, h, kind, 4);
        let fields: &[(usize, u64)] = if wide {
            &[(8, place), (24, pa), (32, len), (40, len)]
        } else {
            &[(4, place), (12, pa), (16, len), (20, len)]
        };
        for (f, v) in fields {
            put(out, h + f, *v, word);
        }
    };
    header(&mut out, 0, 4, at as u64, 0, note.len() as u64);
    at += note.len();
    for (i, (pa, b)) in m.iter().enumerate() {
        header(&mut out, i + 1, 1, at as u64, *pa, b.len() as u64);
        at += b.len();
    }
    out.extend(note);
    for (_, b) in m {
        out.extend(b);
    }
    out
}

/// A crash dump of Windows: complete, of 64 or 32 bits.
pub(crate) fn crash_full(m: &Memory, wide: bool) -> Vec<u8> {
    let len = if wide { 0x2000 } else { 0x1000 };
    let mut h = b"PAGE".repeat(len / 4);
    h[..8].copy_from_slice(if wide { b"PAGEDU64" } else { b"PAGEDUMP" });
    let word = if wide { 8 } else { 4 };
    let (machine, cpu, kind, runs) = if wide {
        (0x30, 0x8664, 0xf98, 0x88)
    } else {
        (0x20, 0x14c, 0xf88, 0x64)
    };
    put(&mut h, 0x10, 0x1ad_000, word);
    put(&mut h, machine, cpu, 4);
    put(&mut h, kind, 1, 4);
    put(&mut h, runs, m.len() as u64, 4);
    let pages: usize = m.iter().map(|(_, b)| b.len() / 4096).sum();
    put(&mut h, runs + word, pages as u64, word);
    for (i, (pa, b)) in m.iter().enumerate() {
        let at = runs + 2 * word * (i + 1);
        put(&mut h, at, pa / 4096, word);
        put(&mut h, at + word, b.len() as u64 / 4096, word);
    }
    for (_, b) in m {
        h.extend(b);
    }
    h
}

/// A crash dump of active memory.
pub(crate) fn crash_bitmap(m: &Memory) -> Vec<u8> {
    let mut h = crash_full(&Vec::new(), true);
    put(&mut h, 0xf98, 5, 4);
    let last = m.iter().map(|(pa, b)| pa / 4096 + b.len() as u64 / 4096);
    let bits = last.max().unwrap_or(0);
    let mut map = vec![0u8; bits.div_ceil(8) as usize];
    let mut pages = Vec::new();
    for (pa, b) in m {
        for (i, p) in b.chunks_exact(4096).enumerate() {
            let n = pa / 4096 + i as u64;
            map[n as usize / 8] |= 1 << (n % 8);
            pages.push((n, p));
        }
    }
    pages.sort_by_key(|(n, _)| *n);
    pages.dedup_by_key(|(n, _)| *n);
    let first = (0x2038 + map.len()).next_multiple_of(4096);
    h.extend(b"SDMPDUMP");
    h.resize(0x2038, 0);
    put(&mut h, 0x2020, first as u64, 8);
    put(&mut h, 0x2028, pages.len() as u64, 8);
    put(&mut h, 0x2030, bits, 8);
    h.extend(map);
    h.resize(first, 0);
    for (_, p) in pages {
        h.extend(p);
    }
    h
}

/// What can be written of any memory.
pub(crate) fn of(m: &Memory) -> Vec<Form> {
    let mut all = Vec::new();
    let mut add = |name: String, format: &'static str, file: Vec<u8>| {
        all.push(Form {
            name,
            file,
            memory: m.clone(),
            format,
        });
    };
    add("LiME".into(), "lime", lime(m));
    for wide in [true, false] {
        add(format!("ELF {wide}"), "elf_core", elf_core(m, wide));
        add(
            format!("crash dump {wide}"),
            "crash_dump",
            crash_full(m, wide),
        );
        add(format!("Mach-O {wide}"), "macho", machines::macho(m, wide));
        add(
            format!("Xen {wide}"),
            "xen_core",
            machines::xen_core(m, wide),
        );
    }
    add("active memory".into(), "crash_dump", crash_bitmap(m));
    add("AVML".into(), "avml", dumps::avml(m));
    for magic in [0xbed2_bed0, 0xbed2_bed2] {
        let vm = Vm {
            magic,
            inside: true,
            regions: true,
        };
        add(
            format!("VMware {magic:x}"),
            "vmware",
            machines::vmware(m, vm).0,
        );
    }
    let s = State {
        packed: true,
        objects: 60,
        log: 0,
    };
    add("Hyper-V".into(), "hyperv", hyperv::vmrs(m, s, 0x1aa_a000));
    all
}

/// All forms.
pub(crate) fn all() -> Vec<Form> {
    let m = memory();
    let mut all = of(&m);
    let mut add = |name: String, format: &'static str, file: Vec<u8>, memory: &Memory| {
        all.push(Form {
            name,
            file,
            memory: memory.clone(),
            format,
        });
    };
    for packed in CODECS {
        let dump = dumps::kdump(&m, &Kind::of(packed));
        add(
            format!("{packed:?} flattened"),
            "kdump",
            dumps::flattened(&dump, 4500),
            &m,
        );
        add(format!("{packed:?}"), "kdump", dump, &m);
    }
    for (name, narrow, without_zeros) in [("level 1", false, true), ("i386", true, false)] {
        let kind = Kind {
            narrow,
            without_zeros,
            ..Kind::of(Packed::Zlib)
        };
        add(name.into(), "kdump", dumps::kdump(&m, &kind), &m);
    }
    for length in [0x360, 0x448, 0x4d8, 0x2c8] {
        for mixed in [false, true] {
            let h = Hiber {
                mixed,
                ..Hiber::of(length)
            };
            add(
                format!("hiberfil {length:x} {mixed}"),
                "hiberfil",
                hiber::modern(&m, h),
                &m,
            );
        }
    }
    for length in [0x128, 0xe0] {
        add(
            format!("hiberfil {length:x}"),
            "hiberfil",
            hiber::legacy(&m, Hiber::of(length)),
            &m,
        );
    }
    let s = State {
        packed: false,
        objects: 60,
        log: 0,
    };
    add(
        "Hyper-V, not packed".into(),
        "hyperv",
        hyperv::vmrs(&m, s, 0x1aa_a000),
        &m,
    );
    let ram = flat(&m);
    let one: Memory = vec![(0, ram.clone())];
    add("raw".into(), "raw", ram.clone(), &one);
    for libvirt in [false, true] {
        let how = Stream {
            machine: "pc-q35-7.2",
            libvirt,
        };
        add(
            format!("QEMU {libvirt}"),
            "qemu_savevm",
            machines::savevm(&ram, how),
            &one,
        );
    }
    add(
        "E01".into(),
        "ewf",
        machines::ewf(&ram, 1, 3).remove(0),
        &one,
    );
    all
}
