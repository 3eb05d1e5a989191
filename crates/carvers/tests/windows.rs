//! A scan in windows finds what one scan of the whole finds, exactly, wherever the windows begin
//! and end.

#![allow(clippy::unwrap_used, reason = "a failed test says where")]

mod common;

use common::{Random, Rest, Rows, all, golden_inputs, whole, window};
use proptest::prelude::*;
use ramsift_carvers::api::{MoreError, ReadMore, Window};
use ramsift_layers::ImageOffset;
use std::sync::LazyLock;

/// Whole files and lines, and pieces that are nearly something.
static FRAGMENTS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let mut all: Vec<Vec<u8>> = golden_inputs().into_iter().map(|(_, b)| b).collect();
    let pieces: &[&[u8]] = &[
        b"%PDF-1.7\n",
        b"%%EOF",
        b"startxref\n9\n%%EOF\n",
        b"PK\x03\x04",
        b"PK\x05\x06",
        b"PK\x01\x02",
        b"#!/bin/sh\n",
        b"\x07\0\0\0\x09\0\0\0pts/0",
        b"ssh:notty",
        b"~\0\0\0\0\0\0\0",
        b"\x7fELF\x02\x01\x01",
        b"MZ",
        b"PE\0\0\x64\x86",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"SQLite format 3\0",
        b"ElfFile\0",
        b"ElfChnk\0",
        b"**\0\0",
        b"http://",
        b"://",
        b"https://a.example.com/x?u=http://b.example.org",
        b"@",
        b"a@b.com",
        b"user@example.com",
        b".",
        b"..",
        b"a.a.a.a.a.",
        b"1.2.3.4",
        b"10.0.0.1",
        b"::",
        b"fe80::1",
        b"2001:db8::1:2",
        b"Jan  2 03:04:05 host prog[1]: message\n",
        b"2024-01-02 03:04:05 line\n",
        b"<34>",
        b"03:04:05",
        b"[02/Jan/2024:03:04:05 +0000]",
        b"1.2.3.4 - - [02/Jan/2024:03:04:05 +0000] \"GET / HTTP/1.1\" 200 1\n",
        b"{\"time\":\"2024-01-02T03:04:05Z\",\"msg\":\"x\"}",
        b"{\"",
        b"\n",
        b"\r\n",
        b"\0",
        b"\0\0",
        b"\xc3\xa9",
        b"\xc3",
        b"\xa9",
        b"\xe4\xb8\x96",
        b"\xff",
        b"Linux version 6.1.0 x\n",
        b"swapper/0\0",
        b"OSRELEASE=6.1\nPAGESIZE=4096\n",
        b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\0",
        b"\x9f\xeb\x01\0\x18\0\0\0\0\0\0\0\x04\0\0\0\x04\0\0\0\x01\0\0\0",
        b"plain words ",
        "bücher.example.com".as_bytes(),
        "例子.中国".as_bytes(),
        b"[.]",
        b"bad[.]host[.]net",
        b"bad[dot]host[dot]net",
        b"user[@]bad.net",
        b"[at]",
        b"hxxp[:]//",
        b"https:\\/\\/a.bad.net\\/x",
        b"\\u002f",
        b"&amp;",
        b"&quot;",
        b"'",
        b"|",
        b"{",
        b"}",
        b"10.0.0.0/8",
        b"audit(1707232591.123:7): ",
        b"type=A msg=audit(1707232591.123:7): a=1\n",
        b"\n#1707232591\nls -l\n",
        b"\n: 1707232591:0;ls\n",
        b"\n- cmd: ls\n  when: 1707232591\n",
        b"\n__CURSOR=a\n__REALTIME_TIMESTAMP=1707232591123456\nMESSAGE=m\n\n",
        b"_A=b\n",
        b"I0206 15:16:31.123456 1 a.go:1] m\n",
        b"level=info ts=2024-02-06T15:16:31Z msg=m\n",
        b"[{\"time\":\"2024-01-02T03:04:05Z\",\"msg\":\"x\"},",
        b"{\"a\":",
        b"1.2.3.4, 5.6.7.8 - - [02/Jan/2024:03:04:05 +0000] \"GET / HTTP/1.1\" - 1\n",
        b"www.",
        b"example.com",
        b"foo.py",
        b"-",
        b"_",
        b"/",
        b"(",
        b",",
    ];
    // A login as utmp(5) lays it out, and a logout.
    for kind in [7u8, 8] {
        let mut login = vec![0u8; 384];
        login[0] = kind;
        login[4] = 9;
        login[8..13].copy_from_slice(b"pts/0");
        if kind == 7 {
            login[44..47].copy_from_slice(b"ann");
        }
        login[340..344].copy_from_slice(&1_700_000_000u32.to_le_bytes());
        all.push(login);
    }
    all.extend(pieces.iter().map(|p| p.to_vec()));
    let wide: Vec<Vec<u8>> = pieces
        .iter()
        .map(|p| p.iter().flat_map(|b| [*b, 0]).collect())
        .collect();
    all.extend(wide);
    all
});

/// An image of fragments, runs of one byte, noise and long text.
fn image(seed: u64, size: usize) -> Vec<u8> {
    let mut r = Random(seed | 1);
    let mut out = Vec::with_capacity(size);
    while out.len() < size {
        match r.below(24) {
            0 => {
                let (b, n) = (b"\0\0\0Aa.@:/ \n\xff"[r.below(12)], r.below(20_000));
                out.extend(std::iter::repeat_n(b, n));
            }
            1 => out.extend(
                (0..r.below(3000))
                    .map(|_| r.next() as u8)
                    .collect::<Vec<_>>(),
            ),
            2 => {
                // Long text, so that regions meet cuts, claims and the longest line.
                let n = r.below(9000);
                let line = r.below(300) + 1;
                out.extend((0..n).map(|i| {
                    if i % line == 0 {
                        b'\n'
                    } else {
                        b'a' + (i % 23) as u8
                    }
                }));
            }
            3 => {
                let n = r.below(6000);
                out.extend((0..n).flat_map(|i| [b'A' + (i % 23) as u8, 0]));
            }
            4 => {
                let to = (out.len() + 4095) & !4095;
                out.resize(to, 0);
            }
            5 if !out.is_empty() => {
                // A piece of what there is already.
                let from = r.below(out.len());
                let piece = out[from..(from + r.below(2000)).min(out.len())].to_vec();
                out.extend(piece);
            }
            6 => {
                // A file cut short.
                let f = &FRAGMENTS[r.below(FRAGMENTS.len())];
                let n = r.below(f.len() + 1);
                out.extend_from_slice(&f[..n]);
            }
            _ => {
                let f = &FRAGMENTS[r.below(FRAGMENTS.len())];
                let take = f.len().min(size);
                out.extend_from_slice(&f[..take]);
            }
        }
    }
    out.truncate(size);
    out
}

fn compare(image: &[u8], mut next: impl FnMut(usize) -> (usize, usize)) {
    let set = all();
    let one = whole(&set, image);
    let mut many = Rows::default();
    let mut at = 0;
    let mut cuts = Vec::new();
    while at < image.len() {
        let (len, overlap) = next(at);
        let end = (at + len).min(image.len());
        cuts.push((at, overlap));
        let stats = window(&set, image, at..end, overlap, &mut many);
        let limits = stats.partial.iter().filter(|p| p.2.contains("limit"));
        assert_eq!(limits.count(), 0, "no work limit in small images");
        at = end;
    }
    let (one, many) = (one.sorted(), many.sorted());
    if one != many {
        let lost: Vec<_> = one
            .iter()
            .filter(|r| many.binary_search(r).is_err())
            .take(3)
            .collect();
        let extra: Vec<_> = many
            .iter()
            .filter(|r| one.binary_search(r).is_err())
            .take(3)
            .collect();
        panic!(
            "windows {:?}\nlost {lost:#?}\nextra {extra:#?}",
            &cuts[..cuts.len().min(12)]
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, max_shrink_iters: 40, ..Default::default() })]

    #[test]
    fn windows_of_any_size(
        seed in any::<u64>(),
        size in 20_000usize..400_000,
        cuts in any::<u64>(),
        small in any::<bool>(),
    ) {
        let image = image(seed, size);
        let mut r = Random(cuts | 1);
        compare(&image, |_| {
            let len = 4096 + if small { r.below(9000) } else { r.below(150_000) };
            let overlap = match r.below(4) {
                0 => 0,
                1 => r.below(100),
                2 => r.below(20_000),
                _ => r.below(400_000),
            };
            (len, overlap)
        });
    }

    #[test]
    fn aligned_pages_without_overlap(seed in any::<u64>()) {
        let image = image(seed, 150_000);
        compare(&image, |_| (4096, 0));
    }
}

/// An ELF file of 64 bits whose tables begin at `table`, in an image of that and what follows.
fn far_table(table: usize) -> Vec<u8> {
    let mut image = vec![0u8; table + 3 * 64 + (1 << 20)];
    let mut put = |at: usize, n: &[u8]| image[at..at + n.len()].copy_from_slice(n);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[3, 0, 62, 0, 1]);
    // One segment, which ends where the names of the sections begin.
    put(32, &64u64.to_le_bytes());
    put(40, &(table as u64).to_le_bytes());
    put(52, &[64, 0, 56, 0, 1, 0, 64, 0, 3, 0, 2, 0]);
    put(64, &[1, 0, 0, 0, 5]);
    let size = (table as u64 - 16).to_le_bytes();
    put(64 + 32, &size);
    put(64 + 40, &size);
    // No section, one without bytes, and the one of names.
    put(table + 64 + 4, &8u32.to_le_bytes());
    put(table + 128 + 4, &3u32.to_le_bytes());
    put(table + 128 + 24, &size);
    put(table + 128 + 32, &16u64.to_le_bytes());
    put(table - 15, b".text");
    image
}

/// The first MiB of an image, with a core of half of that.
fn front(image: &[u8]) -> Window<'_> {
    Window {
        data: &image[..1 << 20],
        base: ImageOffset(0),
        core_start: 0,
        core_end: 512 << 10,
        image_len: image.len() as u64,
    }
}

#[test]
fn what_a_far_table_refutes_is_not_read() {
    const TABLE: usize = 8 << 20;
    let whole_file = far_table(TABLE);
    let mut torn = whole_file.clone();
    torn[TABLE..TABLE + 192].fill(0x33);
    let set = all();
    for (image, budget, size) in [
        // 32 KiB on either side of the table.
        (&torn, 2 * (32 << 10) + 192, 64 << 10),
        // The same, and the file from where the window ends.
        (&whole_file, 2 * (32 << 10) + TABLE, TABLE + 192),
    ] {
        let window = front(image);
        let mut rest = Rest { image, budget };
        let mut rows = Rows::default();
        let stats = set.scan(&window, &mut rest, &mut rows, &|| false);
        assert_eq!(stats.partial, []);
        let own = |r: &Rows| -> Vec<String> {
            let elfs = r.of("artifact").filter(|a| a["kind"] == "elf");
            elfs.map(|a| a.to_string()).collect()
        };
        assert_eq!(own(&rows), own(&whole(&set, image)));
        let sizes: Vec<_> = rows.of("artifact").map(|a| a["len"].clone()).collect();
        assert_eq!(sizes, [size], "{:?}", own(&rows));
    }
}

/// The rest of an image, and how much of it was held in one place.
struct Watched<'a> {
    rest: Rest<'a>,
    most: usize,
}

impl ReadMore for Watched<'_> {
    fn read_more(
        &mut self,
        at: ImageOffset,
        len: usize,
        buf: &mut Vec<u8>,
    ) -> Result<(), MoreError> {
        self.rest.read_more(at, len, buf)?;
        self.most = self.most.max(buf.len());
        Ok(())
    }
}

#[test]
fn a_search_for_an_end_keeps_little_of_what_it_reads() {
    const FAR: usize = 12 << 20;
    let set = all();
    let torn = {
        let mut image = vec![b'x'; FAR + (1 << 20)];
        image[4096..4105].copy_from_slice(b"%PDF-1.7\n");
        image
    };
    let mut whole_file = torn.clone();
    whole_file[8192..8196].copy_from_slice(b"xref");
    let end = b"\nstartxref\n4096\n%%EOF\n";
    whole_file[FAR..FAR + end.len()].copy_from_slice(end);
    for (image, found, most) in [
        (&torn, None, 4 << 20),
        (&whole_file, Some(FAR + end.len() - 4096), FAR),
    ] {
        let window = front(image);
        let budget = 3 * FAR;
        let rest = Rest { image, budget };
        let mut more = Watched { rest, most: 0 };
        let mut rows = Rows::default();
        set.scan(&window, &mut more, &mut rows, &|| false);
        let one = whole(&set, image);
        let pdf = |r: &Rows| -> Vec<String> {
            let all = r.of("artifact").filter(|a| a["carver"] == "pdf");
            all.map(|a| a.to_string()).collect()
        };
        assert_eq!(pdf(&rows), pdf(&one));
        let len = rows.of("artifact").find(|a| a["carver"] == "pdf");
        assert_eq!(len.map(|a| a["len"].as_u64().unwrap() as usize), found);
        assert!(more.most <= most, "{} bytes at once", more.most);
    }
}

/// What begins with the first byte of memory, or just behind it, is there once.
#[test]
fn nothing_is_told_twice_at_the_start_of_the_image() {
    let set = all();
    for f in FRAGMENTS.iter() {
        for before in [0, 1, 15, 16, 17, 4095, 4096] {
            let mut image = vec![0; before];
            image.extend_from_slice(f);
            image.resize(image.len() + 8192, 0);
            let rows = whole(&set, &image).sorted();
            let mut once = rows.clone();
            once.dedup();
            assert_eq!(rows, once, "{before}");
        }
    }
}

/// Every fragment across the border of two windows, one byte further each time.
#[test]
fn a_border_at_every_byte_of_every_fragment() {
    let set = all();
    let mut r = Random(7);
    for f in FRAGMENTS.iter() {
        let mut image = vec![0x81u8; 9000];
        image.extend_from_slice(f);
        image.extend(std::iter::repeat_n(0x82u8, 5000));
        let one = whole(&set, &image).sorted();
        for _ in 0..12 {
            let cut = (8990 + r.below(f.len() + 20)).min(image.len() - 1);
            let mut many = Rows::default();
            let overlap = r.below(60);
            window(&set, &image, 0..cut, overlap, &mut many);
            window(&set, &image, cut..image.len(), 0, &mut many);
            assert_eq!(one, many.sorted(), "cut {cut}, overlap {overlap}");
        }
    }
}
