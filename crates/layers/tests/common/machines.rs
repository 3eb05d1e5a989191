//! Writers of saved states of machines, after the formats' descriptions. They share nothing with the readers.
#![allow(dead_code)]

use super::dumps::Memory;

fn le(out: &mut Vec<u8>, n: u64, bytes: usize) {
    out.extend(&n.to_le_bytes()[..bytes]);
}

/// A tag of a VMware state with a number of four or eight bytes.
fn tag(out: &mut Vec<u8>, name: &str, index: &[u32], n: u64, bytes: usize) {
    out.push((index.len() as u8) << 6 | bytes as u8);
    out.push(name.len() as u8);
    out.extend(name.as_bytes());
    for i in index {
        out.extend(i.to_le_bytes());
    }
    le(out, n, bytes);
}

/// A tag with bytes, which begin at a whole page of the file; `base` is where `out` lies in it.
fn block(out: &mut Vec<u8>, base: usize, name: &str, index: &[u32], data: &[u8], old: bool) {
    out.push((index.len() as u8) << 6 | 63);
    out.push(name.len() as u8);
    out.extend(name.as_bytes());
    for i in index {
        out.extend(i.to_le_bytes());
    }
    let word = if old { 4 } else { 8 };
    le(out, data.len() as u64, word);
    le(out, data.len() as u64, word);
    let at = base + out.len() + 2;
    let pad = at.next_multiple_of(4096) - at;
    le(out, pad as u64, 2);
    out.resize(out.len() + pad, 0xcc);
    out.extend(data);
}

/// What a VMware state is to be like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vm {
    pub(crate) magic: u32,
    /// The memory inside; else it lies beside.
    pub(crate) inside: bool,
    pub(crate) regions: bool,
}

/// A state of VMware and the memory beside it, regions laid end to end.
pub(crate) fn vmware(m: &Memory, vm: Vm) -> (Vec<u8>, Vec<u8>) {
    let old = vm.magic == 0xbed2_bed0;
    let beside: Vec<u8> = m.iter().flat_map(|(_, b)| b.clone()).collect();
    let groups = 3;
    let first = 12 + 80 * groups;
    let mut checkpoint = Vec::new();
    tag(&mut checkpoint, "version", &[], 7, 4);
    checkpoint.extend([0, 0]);
    let mut cpu = Vec::new();
    tag(&mut cpu, "cpu:numVCPUs", &[], 2, 4);
    for n in 0..2u32 {
        for (r, v) in [
            (0, 0x8005_0033),
            (3, 0x1aa_a000 + u64::from(n) * 0x1000),
            (4, 0x6f0),
        ] {
            if old {
                tag(&mut cpu, "CR", &[n, r], v, 4);
            } else {
                tag(&mut cpu, "CR64", &[n, r], v, 8);
            }
        }
    }
    cpu.extend([0, 0]);
    let at = first + checkpoint.len() + cpu.len();
    let mut memory = Vec::new();
    tag(
        &mut memory,
        "regionsCount",
        &[],
        if vm.regions { m.len() as u64 } else { 0 },
        4,
    );
    let mut place = 0;
    for (i, (pa, b)) in m.iter().enumerate().filter(|_| vm.regions) {
        let i = i as u32;
        tag(&mut memory, "regionPPN", &[i], pa / 4096, 4);
        tag(&mut memory, "regionPageNum", &[i], place / 4096, 4);
        tag(&mut memory, "regionSize", &[i], b.len() as u64 / 4096, 4);
        place += b.len() as u64;
    }
    tag(&mut memory, "align_mask", &[0], 0xffff, 4);
    if vm.inside {
        block(&mut memory, at, "Memory", &[0, 0], &beside, old);
    }
    memory.extend([0, 0]);
    let mut out = vm.magic.to_le_bytes().to_vec();
    out.extend(8u32.to_le_bytes());
    out.extend((groups as u32).to_le_bytes());
    let mut place = first as u64;
    for (name, tags) in [
        ("Checkpoint", &checkpoint),
        ("cpu", &cpu),
        ("memory", &memory),
    ] {
        let mut g = name.as_bytes().to_vec();
        g.resize(64, 0);
        le(&mut g, place, 8);
        le(&mut g, tags.len() as u64, 8);
        place += tags.len() as u64;
        out.extend(g);
    }
    for tags in [checkpoint, cpu, memory] {
        out.extend(tags);
    }
    (out, beside)
}

/// A Mach-O core.
pub(crate) fn macho(m: &Memory, wide: bool) -> Vec<u8> {
    let command = if wide { 72 } else { 56 };
    let mut out = Vec::new();
    le(&mut out, if wide { 0xfeed_facf } else { 0xfeed_face }, 4);
    le(&mut out, if wide { 0x0100_0007 } else { 7 }, 4);
    for v in [3, 4, m.len() as u64, (command * m.len()) as u64, 0] {
        le(&mut out, v, 4);
    }
    if wide {
        le(&mut out, 0, 4);
    }
    let mut at = (out.len() + command * m.len()).next_multiple_of(4096) as u64;
    let word = if wide { 8 } else { 4 };
    for (pa, b) in m {
        le(&mut out, if wide { 0x19 } else { 1 }, 4);
        le(&mut out, command as u64, 4);
        out.extend([0; 16]);
        for v in [*pa, b.len() as u64, at, b.len() as u64] {
            le(&mut out, v, word);
        }
        for v in [7, 7, 0, 0] {
            le(&mut out, v, 4);
        }
        at += b.len() as u64;
    }
    out.resize(out.len().next_multiple_of(4096), 0);
    for (_, b) in m {
        out.extend(b);
    }
    out
}

/// A dump of a Xen guest. Pages lie in the file in another order than in memory.
pub(crate) fn xen_core(m: &Memory, hvm: bool) -> Vec<u8> {
    let mut pages: Vec<(u64, &[u8])> = Vec::new();
    for (pa, b) in m {
        pages.extend(
            b.chunks(4096)
                .enumerate()
                .map(|(i, p)| (pa / 4096 + i as u64, p)),
        );
    }
    let n = pages.len();
    pages.rotate_left(n / 3);
    let names = b"\0.shstrtab\0.note.Xen\0.xen_prstatus\0.xen_pages\0.xen_pfn\0.xen_p2m\0";
    let place = |name: &[u8]| {
        names
            .windows(name.len())
            .position(|w| w == name)
            .expect("a name") as u64
    };
    let mut note = Vec::new();
    for v in [4, 0, 0x200_0000, 4, 32, 0x200_0001] {
        le(&mut note, v, 4);
        if v == 0x200_0000 || v == 0x200_0001 {
            note.extend(b"Xen\0");
        }
    }
    let magic = if hvm { 0xf00f_ebee } else { 0xf00f_ebed };
    // The last entry is that of no page.
    for v in [magic, 2, n as u64 + 1, 4096] {
        le(&mut note, v, 8);
    }
    let mut status = vec![0; 2 * 5168];
    for c in 0..2 {
        // xen_cr3 of vcpu_guest_context: ctrlreg[3], behind 4984 bytes and three of them.
        let at = c * 5168 + 4984 + 24;
        status[at..at + 8].copy_from_slice(&(0x1aa_a000u64 + c as u64 * 0x1000).to_le_bytes());
    }
    let mut data: Vec<u8> = pages.iter().flat_map(|(_, p)| p.to_vec()).collect();
    data.extend([0; 4096]);
    let mut numbers = Vec::new();
    for (pfn, _) in pages.iter().chain([&(u64::MAX, &[][..])]) {
        le(&mut numbers, *pfn, 8);
        if !hvm {
            le(&mut numbers, pfn.wrapping_add(0x5_0000), 8);
        }
    }
    let table: &[u8] = if hvm { b".xen_pfn" } else { b".xen_p2m" };
    let sections: Vec<(u64, Vec<u8>)> = vec![
        (place(b".shstrtab"), names.to_vec()),
        (place(b".note.Xen"), note),
        (place(b".xen_prstatus"), status),
        (place(b".xen_pages"), data),
        (place(table), numbers),
    ];
    let count = sections.len() + 1;
    let mut out = b"\x7fELF\x02\x01\x01".to_vec();
    out.resize(16, 0);
    for (v, bytes) in [
        (4, 2),
        (62, 2),
        (1, 4),
        (0, 8),
        (0, 8),
        (64, 8),
        (0, 4),
        (64, 2),
        (0, 2),
        (0, 2),
        (64, 2),
        (count as u64, 2),
        (1, 2),
    ] {
        le(&mut out, v, bytes);
    }
    out.extend([0; 64]);
    let mut at = (64 + 64 * count) as u64;
    let mut body = Vec::new();
    for (name, content) in &sections {
        let aligned = at.next_multiple_of(4096);
        body.resize(body.len() + (aligned - at) as usize, 0);
        at = aligned;
        for (v, bytes) in [
            (*name, 4),
            (1, 4),
            (0, 8),
            (0, 8),
            (at, 8),
            (content.len() as u64, 8),
            (0, 4),
            (0, 4),
            (1, 8),
            (0, 8),
        ] {
            le(&mut out, v, bytes);
        }
        body.extend(content);
        at += content.len() as u64;
    }
    out.extend(body);
    out
}

/// What a stream of QEMU is to be like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    pub(crate) machine: &'static str,
    /// Behind libvirt's header.
    pub(crate) libvirt: bool,
}

/// A stream of QEMU: all of memory in one block from 0 on; pages of zeros as such, some pages twice.
pub(crate) fn savevm(ram: &[u8], how: Stream) -> Vec<u8> {
    let be = |out: &mut Vec<u8>, n: u64, bytes: usize| out.extend(&n.to_be_bytes()[8 - bytes..]);
    let named = |out: &mut Vec<u8>, name: &str| {
        out.push(name.len() as u8);
        out.extend(name.as_bytes());
    };
    let mut out = Vec::new();
    if how.libvirt {
        let xml = b"<domain/>\n\0";
        out.extend(b"LibvirtQemudSave");
        for v in [2, xml.len() as u64, 1, 0, 0] {
            le(&mut out, v, 4);
        }
        out.resize(92, 0);
        out.extend(xml);
    }
    out.extend(b"QEVM\0\0\0\x03\x07");
    be(&mut out, how.machine.len() as u64, 4);
    out.extend(how.machine.as_bytes());
    out.push(5);
    named(&mut out, "configuration/target-page-bits");
    be(&mut out, 1, 4);
    be(&mut out, 12, 4);
    out.push(1);
    be(&mut out, 2, 4);
    named(&mut out, "ram");
    be(&mut out, 0, 4);
    be(&mut out, 4, 4);
    let rom = vec![0xee; 8192];
    be(&mut out, (ram.len() + rom.len()) as u64 | 4, 8);
    for (name, b) in [("pc.rom", &rom[..]), ("pc.ram", ram)] {
        named(&mut out, name);
        be(&mut out, b.len() as u64, 8);
    }
    be(&mut out, 0x10, 8);
    out.push(0x7e);
    be(&mut out, 2, 4);
    let page = |out: &mut Vec<u8>, block: Option<&str>, at: usize, p: &[u8]| {
        let zero = p.iter().all(|b| *b == 0);
        let flags = if zero { 2 } else { 8 } | if block.is_none() { 0x20 } else { 0 };
        be(out, at as u64 | flags, 8);
        if let Some(name) = block {
            named(out, name);
        }
        out.extend(if zero { &[0][..] } else { p });
    };
    // A part with a page as it was before, then all of them.
    out.push(2);
    be(&mut out, 2, 4);
    page(&mut out, Some("pc.rom"), 0, &rom[..4096]);
    page(&mut out, Some("pc.ram"), 4096, &[0x77; 4096]);
    be(&mut out, 0x10, 8);
    out.push(0x7e);
    be(&mut out, 2, 4);
    out.push(3);
    be(&mut out, 2, 4);
    for (i, p) in ram.chunks(4096).enumerate() {
        page(&mut out, (i % 5 == 0).then_some("pc.ram"), i * 4096, p);
    }
    page(&mut out, Some("pc.rom"), 4096, &rom[4096..]);
    be(&mut out, 0x10, 8);
    out.push(0x7e);
    be(&mut out, 2, 4);
    // A device, then the end and a description.
    out.push(4);
    be(&mut out, 3, 4);
    named(&mut out, "timer");
    be(&mut out, 0, 4);
    be(&mut out, 2, 4);
    out.extend([9; 100]);
    out.push(0);
    out
}

/// An EnCase image of raw memory in segments: chunks of 32 KiB, tables of `per_table` of them, every third chunk as it is.
pub(crate) fn ewf(ram: &[u8], segments: usize, per_table: usize) -> Vec<Vec<u8>> {
    let adler = |b: &[u8]| -> [u8; 4] {
        let (mut a, mut s) = (1u64, 0u64);
        for x in b {
            a = (a + u64::from(*x)) % 65_521;
            s = (s + a) % 65_521;
        }
        ((s << 16 | a) as u32).to_le_bytes()
    };
    let chunks: Vec<&[u8]> = ram.chunks(32_768).collect();
    let section = |out: &mut Vec<u8>, kind: &[u8], content: &[u8], last: bool| {
        let at = out.len() as u64;
        let size = 76 + content.len() as u64;
        let mut h = kind.to_vec();
        h.resize(16, 0);
        le(&mut h, if last { at } else { at + size }, 8);
        le(&mut h, size, 8);
        h.resize(72, 0);
        h.extend(adler(&h));
        out.extend(h);
        out.extend(content);
    };
    let each = chunks.len().div_ceil(segments);
    let mut out = Vec::new();
    for (n, own) in chunks.chunks(each).enumerate() {
        let mut f = b"EVF\x09\x0d\x0a\xff\x00\x01".to_vec();
        le(&mut f, n as u64 + 1, 2);
        le(&mut f, 0, 2);
        let mut v = vec![1, 0, 0, 0];
        le(&mut v, chunks.len() as u64, 4);
        le(&mut v, 64, 4);
        le(&mut v, 512, 4);
        le(&mut v, ram.len() as u64 / 512, 8);
        v.resize(64, 0);
        // The identifier of the set: as unique as its content.
        v.extend(adler(ram).repeat(4));
        v.resize(1048, 0);
        v.extend(adler(&v));
        if n == 0 {
            section(
                &mut f,
                b"header2",
                b"whatever programs say of themselves",
                false,
            );
            section(&mut f, b"volume", &v, false);
        } else {
            section(&mut f, b"data", &v, false);
        }
        for group in own.chunks(per_table) {
            let first = f.len() + 76;
            let (mut data, mut entries) = (Vec::new(), Vec::new());
            for (i, c) in group.iter().enumerate() {
                let place = (first + data.len()) as u64;
                if i % 3 == 1 {
                    le(&mut entries, place, 4);
                    data.extend(*c);
                    data.extend(adler(c));
                } else {
                    le(&mut entries, place | 1 << 31, 4);
                    data.extend(miniz_oxide::deflate::compress_to_vec_zlib(c, 1));
                }
            }
            section(&mut f, b"sectors", &data, false);
            let mut t = Vec::new();
            le(&mut t, group.len() as u64, 4);
            t.resize(20, 0);
            t.extend(adler(&t));
            t.extend(&entries);
            t.extend(adler(&entries));
            section(&mut f, b"table", &t, false);
            section(&mut f, b"table2", &t, false);
        }
        let last = (n + 1) * each >= chunks.len();
        section(&mut f, if last { b"done" } else { b"next" }, &[], true);
        out.push(f);
    }
    out
}
