//! Bytes made to hurt: no panic, and no more time than a multiple of what other bytes take.

#![allow(clippy::unwrap_used, reason = "a failed test says where")]

mod common;

use common::{Random, Rest, Rows, all, window};
use ramsift_carvers::api::{LOOK_BEHIND, Window};
use ramsift_layers::ImageOffset;
use std::time::{Duration, Instant};

const SIZE: usize = 8 << 20;

fn repeat(unit: &[u8]) -> Vec<u8> {
    unit.iter().copied().cycle().take(SIZE).collect()
}

/// One byte over and over is sparse; a page border breaks it.
fn nearly(unit: u8) -> Vec<u8> {
    let mut v = repeat(&[unit]);
    v.iter_mut().step_by(4096).for_each(|b| *b = b'b');
    v
}

/// A record with the right lengths, whose binary XML begins with this token and a name whose hash is
/// right: each tells of another chunk.
fn event_record(token: u8) -> Vec<u8> {
    let mut b = b"**\0\0".to_vec();
    b.extend(72u32.to_le_bytes());
    b.extend(7u64.to_le_bytes());
    b.extend(133_000_000_000_000_000u64.to_le_bytes());
    b.extend([0x0f, 1, 1, 0, token]);
    b.extend([0, 0, 0, 0]);
    b.extend(600u32.to_le_bytes());
    b.extend([0, 0, 0, 0, b'A', 0, 1, 0, b'A', 0, 0, 0]);
    b.resize(68, 0);
    b.extend(72u32.to_le_bytes());
    b
}

fn patterns() -> Vec<(&'static str, Vec<u8>)> {
    let wide = |s: &str| repeat(&s.bytes().flat_map(|b| [b, 0]).collect::<Vec<_>>());
    let elf = {
        let mut h = vec![0u8; 64];
        h[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        h[16..20].copy_from_slice(&[3, 0, 62, 0]);
        h[20] = 1;
        h[32] = 64;
        (h[52], h[54], h[56]) = (64, 56, 1);
        h.extend([1, 0, 0, 0, 5, 0, 0, 0]);
        h.extend(
            [0u64, 0, 0, 60 << 20, 60 << 20, 4096]
                .iter()
                .flat_map(|n| n.to_le_bytes()),
        );
        h
    };
    let local = b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0a";
    let jpeg = b"\xff\xd8\xff\xdb\0\x43\0aaaaaaaaaaaaaaaa\xff\xd8\xff\xe0\xff\xf0";
    vec![
        ("one letter", nearly(b'a')),
        ("dots", repeat(b"a.")),
        ("names", repeat(b"ab.com.")),
        ("at signs", repeat(b"a@")),
        ("addresses", repeat(b"a@b.com@")),
        ("schemes", repeat(b"://")),
        ("urls", repeat(b"http://")),
        ("urls with hosts", repeat(b"http://a.b/,")),
        ("colons", repeat(b"::")),
        ("groups", repeat(b"1::")),
        ("octets", repeat(b"1.2.3.4.")),
        ("times", repeat(b"03:04:05 ")),
        ("dates", repeat(b"[02/Jan/2024:03:04:05 ")),
        ("priorities", repeat(b"<1>Jan  2 03:04:05 ")),
        ("braces", repeat(b"\n{\"a\":")),
        ("brackets", repeat(b"\n{\"a\":[[[[[[[[[[[[")),
        ("objects", repeat(b"\0{\"time\":{\"time\":{")),
        ("letters", repeat("ü.".as_bytes())),
        ("letters and signs", repeat("ü@ü.".as_bytes())),
        ("dots in brackets", repeat(b"a[.]")),
        ("words in brackets", repeat(b"a[dot]")),
        ("quoted slashes", repeat(b"http:\\/\\/a.b\\/")),
        ("backslashes", repeat(b"http:\\\\\\\\")),
        ("entities", repeat(b"http:&#x2F;&#x2F;a&amp;")),
        ("users", repeat(b"ftp://a@")),
        ("columns", repeat(b"http://a.bc/|")),
        ("members", repeat(b",{\"a\":[{\"b\":")),
        (
            "elements",
            repeat(b"[{\"time\":\"2024-01-02T03:04:05Z\",\"msg\":1},"),
        ),
        ("audit", repeat(b"audit(1707232591.123:7)")),
        ("history", repeat(b"#1707232591\n")),
        (
            "journal",
            repeat(b"__REALTIME_TIMESTAMP=1707232591123456\n"),
        ),
        ("keys", repeat(b"A=2024-01-02T03:04:05 ")),
        ("wide letters", wide("\u{4e}a.")),
        ("wide names", wide("ab.com.")),
        ("wide urls", wide("http://")),
        ("wide text", wide("word ")),
        (
            "text",
            repeat("gr\u{fc}\u{df}e \u{4e16}\u{754c}\n".as_bytes()),
        ),
        ("lead bytes", repeat(b"\xe4\xb8a")),
        ("pdf", repeat(b"%PDF-1.4\n")),
        (
            "pdf ends",
            repeat(b"%%EOF\n%PDF-1.4\nstartxref\n9\n%%EOF\n"),
        ),
        ("zip magic", repeat(b"PK\x03\x04")),
        ("zip entries", repeat(local)),
        ("zip ends", repeat(&[&local[..], b"PK\x05\x06"].concat())),
        ("png", repeat(b"\x89PNG\r\n\x1a\n")),
        ("jpeg", repeat(b"\xff\xd8\xff\xe0")),
        ("jpeg segments", repeat(jpeg)),
        ("elf", repeat(&elf)),
        ("pe", repeat(b"PE\0\0\x64\x86")),
        ("mz", repeat(b"MZPE\0\0\x64\x86")),
        ("sqlite", repeat(b"SQLite format 3\0")),
        ("event log chunks", repeat(b"ElfChnk\0")),
        ("event log files", repeat(b"ElfFile\0")),
        ("event records", repeat(&event_record(0x41))),
        ("event records without a place", repeat(&event_record(0x0c))),
        ("signed modules", repeat(b"~Module signature appended~\n")),
        ("jpeg fill bytes", repeat(b"\xff\xd8\xff\xff")),
        (
            "split archives",
            repeat(&[b"PK\x07\x08", &local[..]].concat()),
        ),
        (
            "pdf headers",
            repeat(b"%!PS-Adobe-3.0 PDF-1.4\nstartxref\n9\n%%EOF\n"),
        ),
        (
            "anchors",
            repeat(b"OSRELEASE=6\nLinux version 6swapper/0RSDS"),
        ),
    ]
}

#[test]
fn patterns_end_soon() {
    let set = all();
    let mut slow = Vec::new();
    for (name, image) in patterns() {
        let begin = Instant::now();
        let mut rows = Count(0);
        scan(&set, &image, &mut rows);
        let took = begin.elapsed();
        eprintln!("{name}: {took:?}, {} rows", rows.0);
        // Two seconds for 8 MiB on a quiet machine are far too many already.
        if took > Duration::from_secs(10) {
            slow.push((name, took));
        }
    }
    assert!(slow.is_empty(), "{slow:?}");
}

struct Count(u64);

impl ramsift_carvers::api::Sink for Count {
    fn finding(&mut self, _: &ramsift_carvers::api::Finding<'_>) {
        self.0 += 1;
    }
    fn event(&mut self, _: &ramsift_carvers::api::Event<'_>) {
        self.0 += 1;
    }
    fn artifact(&mut self, _: &ramsift_carvers::api::Artifact<'_>) {
        self.0 += 1;
    }
    fn anchor(&mut self, _: &ramsift_carvers::api::Anchor<'_>) {
        self.0 += 1;
    }
}

fn scan(set: &ramsift_carvers::CarverSet, image: &[u8], sink: &mut Count) {
    let w = Window {
        data: image,
        base: ImageOffset(0),
        core_start: 0,
        core_end: image.len(),
        image_len: image.len() as u64,
    };
    let mut rest = Rest {
        image,
        budget: usize::MAX,
    };
    set.scan(&w, &mut rest, sink, &|| false);
}

#[test]
fn damaged_files_do_not_panic() {
    let set = all();
    let mut r = Random(99);
    for (_, file) in common::golden_inputs() {
        for _ in 0..60 {
            let mut image = file.clone();
            for _ in 0..=r.below(12) {
                let at = r.below(image.len());
                image[at] = match r.below(4) {
                    0 => 0,
                    1 => 0xff,
                    _ => r.next() as u8,
                };
            }
            image.truncate(r.below(image.len()) + 1);
            let mut rows = Count(0);
            scan(&set, &image, &mut rows);
        }
    }
}

#[test]
fn a_budget_that_is_used_up_loses_nothing_else() {
    let set = all();
    let (_, png) = common::golden_inputs()
        .into_iter()
        .find(|g| g.0.ends_with("png/grey.in"))
        .unwrap();
    // A URL, then an image that begins in the window and ends behind it.
    let mut image = b"\0https://first.example.com/x\0".to_vec();
    image.resize(5000, 0x81);
    image.extend_from_slice(&png);
    image.resize(400_000, 0x81);
    let mut rows = Rows::default();
    let end = 5000 + 800;
    let w = Window {
        data: &image[..end],
        base: ImageOffset(0),
        core_start: 0,
        core_end: end,
        image_len: image.len() as u64,
    };
    let mut none = Rest {
        image: &image,
        budget: 0,
    };
    let stats = set.scan(&w, &mut none, &mut rows, &|| false);
    assert!(
        rows.of("finding")
            .any(|f| f["value"] == "https://first.example.com/x")
    );
    assert!(
        stats.partial.iter().any(|p| p.2.contains("budget")),
        "{stats:?}"
    );
    let whole = rows
        .of("artifact")
        .filter(|a| a["kind"] == "png" && a["complete"] == true);
    assert_eq!(whole.count(), 0);
}

#[test]
fn told_to_stop() {
    let set = all();
    let image = repeat(b"Jan  2 03:04:05 host prog[1]: message\n");
    let w = Window {
        data: &image,
        base: ImageOffset(0),
        core_start: 0,
        core_end: SIZE,
        image_len: SIZE as u64,
    };
    let mut rest = Rest {
        image: &image,
        budget: 0,
    };
    let stats = set.scan(&w, &mut rest, &mut Count(0), &|| true);
    assert_eq!(
        stats.partial,
        [("all", 0..SIZE as u64, "out of time".to_owned())]
    );
}

#[test]
fn odd_windows_are_borne() {
    let set = all();
    let image = repeat(b"\0https://x.example.com/\0 2024-01-02 03:04:05 x\n");
    let mut rows = Rows::default();
    // No look-behind, an empty core, a core past the data, an empty window.
    for (from, to, a, b) in [
        (5000, 9000, 0, 10),
        (0, 0, 0, 0),
        (100, 200, 50, 900),
        (9, 9, 3, 2),
    ] {
        let w = Window {
            data: &image[from..to],
            base: ImageOffset(from as u64),
            core_start: a,
            core_end: b,
            image_len: image.len() as u64,
        };
        let mut rest = Rest {
            image: &image,
            budget: usize::MAX,
        };
        set.scan(&w, &mut rest, &mut rows, &|| false);
    }
    window(&set, &image[..LOOK_BEHIND], 0..0, 0, &mut rows);
}
