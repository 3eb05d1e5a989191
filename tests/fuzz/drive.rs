//! A driver for fuzz targets that needs nothing but the standard tool chain: the examples `fuzz*`
//! of the crates include it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// A small generator of numbers (xorshift64*): the same on every machine.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Changes some bytes, words and lengths of a seed, and lays pieces of others over it.
fn mutate(seeds: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut b = seeds[rng.below(seeds.len())].clone();
    for _ in 0..1 + rng.below(6) {
        let n = b.len();
        let at = rng.below(n);
        match rng.below(7) {
            0 => b[at] ^= 1 << rng.below(8),
            1 => b[at] = (rng.next() >> 56) as u8,
            2 => {
                let v = [0, 1, 0x7f, 0x80, 0xff][rng.below(5)];
                let end = (at + 1 + rng.below(4)).min(n);
                b[at..end].fill(v);
            }
            3 => b.truncate((at + n).div_ceil(2).max(64)),
            4 => {
                let (from, len) = (rng.below(n), 1 + rng.below(16));
                let len = len.min(n - from).min(n - at);
                b.copy_within(from..from + len, at);
            }
            5 => {
                let other = &seeds[rng.below(seeds.len())];
                let from = rng.below(other.len());
                let len = (1 + rng.below(2048)).min(other.len() - from).min(n - at);
                b[at..at + len].copy_from_slice(&other[from..from + len]);
            }
            _ => {
                let v = (rng.next() >> (32 + rng.below(32))) as u32;
                let end = (at + 4).min(n);
                let keep = end - at;
                b[at..end].copy_from_slice(&v.to_le_bytes()[..keep]);
            }
        }
    }
    b
}

/// Runs a target on bytes; those that it panics on are kept in a file.
fn run(name: &str, data: &[u8], target: &impl Fn(&[u8])) {
    if catch_unwind(AssertUnwindSafe(|| target(data))).is_err() {
        let path = std::env::temp_dir().join(format!("fuzz-{name}.bin"));
        let kept = std::fs::write(&path, data);
        panic!("{name}: failed on {} ({kept:?})", path.display());
    }
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
        run(name, s, &target);
    }
    while start.elapsed().as_secs() < seconds {
        let data = mutate(seeds, &mut rng);
        let one = Instant::now();
        run(name, &data, &target);
        slowest = slowest.max(one.elapsed());
        n += 1;
    }
    let rate = n as f64 / start.elapsed().as_secs_f64();
    println!("{name}: {n} executions, {rate:.0}/s, slowest {slowest:?}");
}
