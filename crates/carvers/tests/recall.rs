//! Plants across the borders of chunks are found, exactly once each, in an image like memory.

#![allow(clippy::unwrap_used, reason = "a failed test says where")]

mod common;

use common::{Random, Rows, all, golden_inputs, window};

const MIB: usize = 1 << 20;
const SIZE: usize = 12 * MIB;

/// Pages of zeros, noise, pointers, words and UTF-16, in runs, as physical memory has them.
fn background(r: &mut Random) -> Vec<u8> {
    let mut image = vec![0u8; SIZE];
    let mut page = 0;
    while page < SIZE / 4096 {
        let run = (1 + r.below(8)).min(SIZE / 4096 - page);
        let kind = r.below(5);
        for b in image[page * 4096..(page + run) * 4096].chunks_exact_mut(8) {
            match kind {
                0 => {}
                1 => b.copy_from_slice(&r.next().to_le_bytes()),
                2 => b[..6]
                    .copy_from_slice(&(0x7f00_0000_0000 + (r.next() >> 24)).to_le_bytes()[..6]),
                3 => b.copy_from_slice(if r.below(8) == 0 {
                    b"memory!\n"
                } else {
                    b"bits of "
                }),
                _ => b.copy_from_slice(b"w\0i\0d\0e\0"),
            }
        }
        page += run;
    }
    image
}

fn tok(r: &mut Random) -> String {
    let n = r.next();
    (0..12)
        .map(|i| char::from(b'a' + (n >> (i * 5) & 15) as u8))
        .collect()
}

/// A plant's bytes, and the column and text that finding it gives.
fn plant(kind: usize, t: &str) -> (Vec<u8>, &'static str, String) {
    let wide = |s: &str| {
        s.encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect::<Vec<_>>()
    };
    let line = format!("Mar  4 05:06:07 host prog[12]: planted {t}\n");
    match kind {
        0 => (format!("\0https://{t}.bad-example.net/gate?x=1\0").into(), "value", format!("https://{t}.bad-example.net/gate?x=1")),
        1 => (format!("\0u.{t}@corp-example.com\0").into(), "value", format!("u.{t}@corp-example.com")),
        2 => (format!("\0{t}.c2-example.org\0").into(), "value", format!("{t}.c2-example.org")),
        3 => (wide(&format!("\0http://{t}.example.net/a.exe\0")), "value", format!("http://{t}.example.net/a.exe")),
        4 => (format!("\0\n{line}\0").into(), "message", format!("planted {t}")),
        5 => (wide(&format!("\0\n{line}\0")), "message", format!("planted {t}")),
        6 => (format!("\0{{\"time\":\"2024-01-02T03:04:05Z\",\"msg\":\"{t}\"}}\n\0").into(), "message", t.to_owned()),
        _ => (format!("\n1.2.3.99 - - [02/Jan/2024:03:04:05 +0000] \"GET /{t} HTTP/1.1\" 200 5 \"-\" \"x\"\n").into(), "message", format!("GET /{t} HTTP/1.1")),
    }
}

#[test]
fn plants_at_borders_are_found_once() {
    let mut r = Random(2024);
    let mut image = background(&mut r);
    let mut wanted = Vec::new();
    // One at every 64 KiB border, which includes those of the windows; files at every second MiB.
    let files: Vec<_> = golden_inputs()
        .into_iter()
        .filter(|(p, _)| {
            [
                "png/grey.in",
                "jpeg/baseline.in",
                "zip/plain.in",
                "pdf/plain.in",
                "sqlite/table.in",
                "elf/library.in",
            ]
            .iter()
            .any(|n| p.ends_with(n))
        })
        .collect();
    let mut whole_files = Vec::new();
    for (n, border) in (64 << 10..SIZE - MIB).step_by(64 << 10).enumerate() {
        if border % (2 * MIB) == 0 {
            let (path, data) = &files[n / 32 % files.len()];
            let at = border - data.len() / 2;
            image[at..at + data.len()].copy_from_slice(data);
            whole_files.push((at + 700, path.clone()));
            continue;
        }
        let t = tok(&mut r);
        let (bytes, column, value) = plant(n % 8, &t);
        let at = border - 1 - r.below(bytes.len() - 2);
        image[at..at + bytes.len()].copy_from_slice(&bytes);
        wanted.push((column, value, at));
    }
    let set = all();
    let mut rows = Rows::default();
    for start in (0..SIZE).step_by(MIB) {
        window(
            &set,
            &image,
            start..start + MIB,
            r.below(3) * 5000,
            &mut rows,
        );
    }
    for (column, value, at) in &wanted {
        let n = rows.0.iter().filter(|x| x[*column] == **value).count();
        assert_eq!(n, 1, "{column} {value} at {at}");
    }
    for (at, path) in &whole_files {
        let n = rows
            .of("artifact")
            .filter(|a| a["offset"] == *at as u64 && a["complete"] == true);
        assert_eq!(n.count(), 1, "{path:?} at {at}");
    }
}
