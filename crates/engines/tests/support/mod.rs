//! Realistic rules and data in any number, the same for the same seed.

#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;

/// A small generator of random numbers (SplitMix64): no dependency, the same everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn random(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.random() % n as u64) as usize
    }

    pub(crate) fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }
}

const WORDS: [&str; 24] = [
    "svchost",
    "cmd.exe",
    "powershell",
    "inject",
    "Mozilla",
    "beacon",
    "Global",
    "mutex",
    "RunOnce",
    "loader",
    "shellcode",
    "socket",
    "Virtual",
    "Alloc",
    "decrypt",
    "payload",
    "config",
    "update",
    "service",
    "kernel32",
    "token",
    "password",
    "keylog",
    "screen",
];

/// `count` rules: text, hex and regular expressions, in the proportions of public sets.
pub(crate) fn rules(count: usize, seed: u64) -> String {
    let mut r = Random(seed);
    let mut out = String::new();
    for i in 0..count {
        writeln!(
            out,
            "rule generated_{i} {{\n meta:\n  score = {}",
            r.below(100)
        )
        .unwrap();
        out.push_str(" strings:\n");
        let patterns = 2 + r.below(5);
        for p in 0..patterns {
            let unique = r.random();
            let (a, b) = (r.pick(&WORDS), r.pick(&WORDS));
            match r.below(10) {
                0..5 => {
                    let modifiers = r.pick(&["", " wide", " ascii wide", " nocase", " fullword"]);
                    writeln!(out, "  $s{p} = \"{a}_{b}{:04x}\"{modifiers}", unique as u16)
                }
                5..8 => {
                    let x = unique.to_be_bytes().map(|b| format!("{b:02X}"));
                    writeln!(
                        out,
                        "  $s{p} = {{ {} {} {} {} ?? {} [2-6] {} {} }}",
                        x[0], x[1], x[2], x[3], x[4], x[5], x[6]
                    )
                }
                _ => writeln!(
                    out,
                    "  $s{p} = /{a}[a-z0-9]{{4,12}}{:03x}{b}/",
                    unique & 0xFFF
                ),
            }
            .unwrap();
        }
        let condition = match r.below(10) {
            0..4 => "all of them",
            4..7 => "2 of them",
            7..9 => "any of them",
            _ => "#s0 > 1 and any of them",
        };
        writeln!(out, " condition:\n  {condition}\n}}").unwrap();
    }
    out
}

/// Text, random bytes, code-like bytes and zeros, as memory has them, in pages.
pub(crate) fn memory(len: usize, seed: u64) -> Vec<u8> {
    let mut r = Random(seed);
    let mut data = Vec::with_capacity(len + 4096);
    while data.len() < len {
        let page = data.len() + 4096;
        match r.below(8) {
            0..2 => data.resize(page, 0),
            2..4 => {
                while data.len() < page {
                    let word = r.pick(&WORDS);
                    data.extend(word.as_bytes());
                    data.push(b"_ .\\/-\n0"[r.below(8)]);
                }
            }
            4 => {
                while data.len() < page {
                    data.extend(r.pick(&WORDS).bytes().flat_map(|b| [b, 0]));
                    data.extend([0, 0]);
                }
            }
            5 => {
                while data.len() < page {
                    data.extend((0xFFFF_8000_0000_0000 | r.random() >> 20).to_le_bytes());
                }
            }
            _ => {
                while data.len() < page {
                    data.extend(r.random().to_le_bytes());
                }
            }
        }
        data.truncate(page);
    }
    data.truncate(len);
    data
}
