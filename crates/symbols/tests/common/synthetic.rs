//! Encoders of kallsyms tables, one for every layout, written from the kernel's description of the
//! format and sharing nothing with the decoder.

use ramsift_layers::PhysAddr;
use ramsift_layers::translate::{PhysError, PhysRead};

/// How the tables are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Era {
    /// Before 4.6.
    Absolute,
    /// 4.6, wide markers; absolute per-CPU symbols.
    PerCpuWide,
    /// 4.6 on others, wide markers.
    RelativeWide,
    /// 4.20: narrow markers.
    PerCpu,
    /// 6.1: long names.
    PerCpuLong,
    /// 6.2: the order of names behind the markers.
    PerCpuSeqs,
    /// 6.4: offsets behind the index.
    PerCpuLast,
    /// 6.15.
    RelativeLast,
    /// 7.0.
    PcRelative,
}

pub(crate) const ERAS: [Era; 9] = [
    Era::Absolute,
    Era::PerCpuWide,
    Era::RelativeWide,
    Era::PerCpu,
    Era::PerCpuLong,
    Era::PerCpuSeqs,
    Era::PerCpuLast,
    Era::RelativeLast,
    Era::PcRelative,
];

impl Era {
    fn per_cpu(self) -> bool {
        use Era::{PerCpu, PerCpuLast, PerCpuLong, PerCpuSeqs, PerCpuWide};
        matches!(
            self,
            PerCpuWide | PerCpu | PerCpuLong | PerCpuSeqs | PerCpuLast
        )
    }

    fn wide(self) -> bool {
        matches!(self, Self::Absolute | Self::PerCpuWide | Self::RelativeWide)
    }

    fn last(self) -> bool {
        matches!(
            self,
            Self::PerCpuLast | Self::RelativeLast | Self::PcRelative
        )
    }

    pub(crate) fn long_names(self) -> bool {
        self.last() || matches!(self, Self::PerCpuLong | Self::PerCpuSeqs)
    }
}

/// A piece of physical memory.
#[derive(Clone)]
pub(crate) struct Memory {
    pub(crate) base: u64,
    pub(crate) bytes: Vec<u8>,
}

impl PhysRead for Memory {
    fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
        let at = usize::try_from(pa.0.wrapping_sub(self.base)).unwrap_or(usize::MAX);
        match at
            .checked_add(buf.len())
            .and_then(|end| self.bytes.get(at..end))
        {
            Some(b) => buf.copy_from_slice(b),
            None => return Err(PhysError::NotInImage { pa }),
        }
        Ok(())
    }
}

/// What was encoded.
pub(crate) struct Encoded {
    pub(crate) memory: Memory,
    pub(crate) symbols: Vec<(u64, u8, String)>,
    /// Where the ten digits are.
    pub(crate) digits: PhysAddr,
    /// Virtual less physical address of the image.
    pub(crate) delta: u64,
}

pub(crate) const BASE_VA: u64 = 0xffff_ffff_9a00_0000;
pub(crate) const BASE_PA: u64 = 0x0780_0000;

/// A small deterministic generator (xorshift64*).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % (n.max(1) as u64)).unwrap()
    }
}

/// `n` symbols, sorted by address, `_stext` among them.
pub(crate) fn symbols(era: Era, n: usize, seed: u64) -> Vec<(u64, u8, String)> {
    let mut rng = Rng(seed | 1);
    let mut out = Vec::with_capacity(n);
    let per_cpu = if era.per_cpu() { n / 10 + 1 } else { 0 };
    for i in 0..per_cpu {
        out.push((i as u64 * 24, b'A', format!("cpu_thing_{i}")));
    }
    let mut address = BASE_VA;
    for name in ["_text", "_stext"] {
        out.push((address, b'T', name.to_owned()));
    }
    while out.len() < n {
        let kind = *b"tTdDrRbBVW".get(rng.below(10)).unwrap();
        let i = out.len();
        let mut name = match rng.below(5) {
            0 => format!("vfs_write_{i:x}"),
            1 => format!("__x64_sys_thing{i}"),
            2 => format!("some_list.{i}"),
            3 => format!("do_read_{}", rng.next() % 10_000),
            _ => format!("s{i}"),
        };
        if era.long_names() && rng.below(40) == 0 {
            name = format!("{name}_{}", "z".repeat(150));
        }
        address += 8 + rng.next() % 512;
        out.push((address, kind, name));
    }
    out
}

/// Tokens: every printable character stands for itself; some high bytes for common strings.
fn tokens() -> Vec<String> {
    let common = ["vfs_", "write_", "__x64_", "sys_", "list", "do_", "thing"];
    (0..256usize)
        .map(|i| match u8::try_from(i).unwrap() {
            b @ 0x21..=0x7e => char::from(b).to_string(),
            _ => format!("{}{}", common[i % common.len()], i % 7),
        })
        .enumerate()
        .map(|(i, t)| match common.get(i.wrapping_sub(0xf0)) {
            Some(c) => (*c).to_owned(),
            None => t,
        })
        .collect()
}

fn compress(text: &str, tokens: &[String]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let best = (0xf0..0xf7)
            .filter(|i| rest.starts_with(tokens[*i].as_str()))
            .max_by_key(|i| tokens[*i].len());
        if let Some(i) = best {
            out.push(u8::try_from(i).unwrap());
            rest = &rest[tokens[i].len()..];
        } else {
            out.push(rest.as_bytes()[0]);
            rest = &rest[1..];
        }
    }
    out
}

/// Encodes the symbols as a kernel of that era has them, with data before and behind.
pub(crate) fn encode(era: Era, symbols: Vec<(u64, u8, String)>, noise: u64) -> Encoded {
    let mut rng = Rng(noise | 1);
    let tokens = tokens();
    let n = symbols.len();
    let delta = BASE_VA - BASE_PA;
    let relative_base = symbols.iter().map(|s| s.0).find(|a| *a > 1 << 40).unwrap();
    // The image: what the symbols point at, then the tables.
    let span = usize::try_from(symbols.last().unwrap().0 - BASE_VA).unwrap();
    let mut m: Vec<u8> = Vec::with_capacity(span + (8 << 20));
    m.resize(span.next_multiple_of(4096) + 64, 0);
    for (i, (a, kind, name)) in symbols.iter().enumerate() {
        // Most lists are empty.
        if *a > 1 << 40 && b"dDbB".contains(kind) && name.contains("list") && i % 3 != 0 {
            let at = usize::try_from(a - BASE_VA).unwrap();
            m[at..at + 8].copy_from_slice(&a.to_le_bytes());
        }
    }
    for _ in 0..64 {
        m.extend(rng.next().to_le_bytes());
    }
    let align = |m: &mut Vec<u8>| m.resize(m.len().next_multiple_of(8), 0);
    let put_offsets = |m: &mut Vec<u8>| {
        let table = m.len() as u64;
        for (i, (a, ..)) in symbols.iter().enumerate() {
            let bytes = match era {
                Era::Absolute => {
                    m.extend(a.to_le_bytes());
                    continue;
                }
                Era::PcRelative => a.wrapping_sub(BASE_VA + table + 4 * i as u64),
                _ if era.per_cpu() && *a < 1 << 40 => *a,
                _ if era.per_cpu() => relative_base.wrapping_sub(*a).wrapping_sub(1),
                _ => a - relative_base,
            };
            m.extend(&bytes.to_le_bytes()[..4]);
        }
        if !matches!(era, Era::Absolute | Era::PcRelative) {
            align(m);
            m.extend(relative_base.to_le_bytes());
        }
    };
    if !era.last() {
        put_offsets(&mut m);
        align(&mut m);
    }
    m.extend((n as u64).to_le_bytes());
    let mut marks = Vec::new();
    let names_at = m.len();
    for (i, (_, kind, name)) in symbols.iter().enumerate() {
        if i % 256 == 0 {
            marks.push((m.len() - names_at) as u64);
        }
        let body = compress(&format!("{}{name}", char::from(*kind)), &tokens);
        match body.len() {
            l @ 0..0x80 => m.push(u8::try_from(l).unwrap()),
            l => m.extend([
                u8::try_from(l & 0x7f).unwrap() | 0x80,
                u8::try_from(l >> 7).unwrap(),
            ]),
        }
        m.extend(body);
    }
    align(&mut m);
    for v in marks {
        m.extend(&v.to_le_bytes()[..if era.wide() { 8 } else { 4 }]);
    }
    align(&mut m);
    let seqs = |m: &mut Vec<u8>, rng: &mut Rng| {
        for _ in 0..n {
            let v = u32::try_from(rng.below(n)).unwrap();
            m.extend(&v.to_be_bytes()[1..]);
        }
        align(m);
    };
    if era == Era::PerCpuSeqs {
        seqs(&mut m, &mut rng);
    }
    let table = m.len();
    let mut index = Vec::new();
    let mut digits = 0;
    for (i, t) in tokens.iter().enumerate() {
        if i == 0x30 {
            digits = m.len();
        }
        index.extend(u16::try_from(m.len() - table).unwrap().to_le_bytes());
        m.extend(t.as_bytes());
        m.push(0);
    }
    align(&mut m);
    m.extend(index);
    align(&mut m);
    if era.last() {
        put_offsets(&mut m);
        align(&mut m);
        seqs(&mut m, &mut rng);
    }
    m.extend([0x55; 256]);
    m.resize(m.len().next_multiple_of(4096), 0);
    Encoded {
        memory: Memory {
            base: BASE_PA,
            bytes: m,
        },
        symbols,
        digits: PhysAddr(BASE_PA + digits as u64),
        delta,
    }
}
