//! Seeds for the fuzz targets, and a driver that needs nothing but the standard tool chain.

use super::fuzz::PLACES;
use super::synthetic::{ERAS, Rng, encode, symbols};
use std::time::{Duration, Instant};

pub(crate) fn kallsyms_seeds() -> Vec<Vec<u8>> {
    let all = ERAS.iter().map(|era| {
        let e = encode(*era, symbols(*era, 520, 1), 1);
        // The tables alone: the image before them is only data.
        let at = usize::try_from(e.digits.0 - e.memory.base).unwrap();
        let from = at.saturating_sub(24 << 10) & !7;
        let mut bytes = vec![0; PLACES];
        bytes.extend(&e.memory.bytes[from..]);
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        bytes
    });
    all.collect()
}

pub(crate) fn btf_seeds() -> Vec<Vec<u8>> {
    let base = super::blob::every_kind();
    let mut both = base.finish();
    let own = both.clone();
    let parsed = ramsift_symbols::Btf::parse(&own).unwrap();
    let next = u32::try_from(parsed.len()).unwrap() + 1;
    let strings = u32::try_from(parsed.strings().0.len()).unwrap();
    let mut split = super::blob::Blob::split(next, strings);
    let p = split.add("", 2, 0, 1, &[]);
    split.composite(4, "nf_one", 24, &[("owner", p, 64, 0)]);
    both.extend(split.finish());
    vec![own, both]
}

pub(crate) fn isf_seeds() -> Vec<Vec<u8>> {
    let blob = super::blob::every_kind().finish();
    let types = ramsift_symbols::btf::to_types(&ramsift_symbols::Btf::parse(&blob).unwrap());
    let table = ramsift_symbols::SymbolTable::new([], types, Default::default());
    let (mut json, mut xz) = (Vec::new(), Vec::new());
    ramsift_symbols::isf::write(&table, &mut json).unwrap();
    ramsift_symbols::isf::write_xz(&table, &mut xz).unwrap();
    vec![json, xz]
}

/// Tables of which each entry leads to another, to itself, to a large page or nowhere.
pub(crate) fn walker_seeds() -> Vec<Vec<u8>> {
    let mut rng = Rng(7);
    let table = |rng: &mut Rng, pages: usize| {
        let mut bytes = Vec::new();
        for _ in 0..pages * 512 {
            let to = (1u64 << 20) + rng.below(pages + 1) as u64 * 4096;
            let flags = [0, 3, 7, 0x83, 0x703][rng.below(5)];
            bytes.extend((to | flags).to_le_bytes());
        }
        bytes
    };
    vec![table(&mut rng, 1), table(&mut rng, 8), table(&mut rng, 32)]
}

/// Changes some bytes, words and lengths of a seed.
fn mutate(seed: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut b = seed.to_vec();
    for _ in 0..1 + rng.below(6) {
        let n = b.len();
        let at = rng.below(n);
        match rng.below(6) {
            0 => b[at] ^= 1 << rng.below(8),
            1 => b[at] = u8::try_from(rng.next() >> 56).unwrap(),
            2 => {
                let v = [0, 1, 0x7f, 0x80, 0xff][rng.below(5)];
                let end = (at + 1 + rng.below(4)).min(n);
                b[at..end].fill(v);
            }
            3 => b.truncate((at + n).div_ceil(2).max(64)),
            4 => {
                let (from, len) = (rng.below(n), 1 + rng.below(16));
                let piece = b[from..(from + len).min(n)].to_vec();
                let end = (at + piece.len()).min(n);
                let keep = end - at;
                b[at..end].copy_from_slice(&piece[..keep]);
            }
            _ => {
                let v = u32::try_from(rng.next() >> (32 + rng.below(32))).unwrap_or(0);
                let end = (at + 4).min(n);
                let keep = end - at;
                b[at..end].copy_from_slice(&v.to_le_bytes()[..keep]);
            }
        }
    }
    b
}

/// Runs a target on mutated seeds for the seconds that the first argument says; the second is the
/// generator's seed, the third a folder to put the seeds into, for cargo-fuzz.
pub(crate) fn drive(name: &str, seeds: &[Vec<u8>], target: impl Fn(&[u8])) {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<u64>());
    let seconds = args.next().and_then(Result::ok).unwrap_or(10);
    let seed = args.next().and_then(Result::ok).unwrap_or(1);
    if let Some(dir) = std::env::args().nth(3) {
        std::fs::create_dir_all(&dir).expect("the folder");
        for (i, s) in seeds.iter().enumerate() {
            std::fs::write(format!("{dir}/seed-{i}"), s).expect("a seed");
        }
    }
    let mut rng = Rng(seed.max(1));
    let (start, mut n, mut slowest) = (Instant::now(), 0u64, Duration::ZERO);
    for s in seeds {
        target(s);
    }
    while start.elapsed().as_secs() < seconds {
        let data = mutate(&seeds[rng.below(seeds.len())], &mut rng);
        let one = Instant::now();
        target(&data);
        slowest = slowest.max(one.elapsed());
        n += 1;
    }
    let rate = n as f64 / start.elapsed().as_secs_f64();
    println!("{name}: {n} executions, {rate:.0}/s, slowest {slowest:?}");
}
