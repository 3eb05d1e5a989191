//! The addresses: every way that they have been written, and which one fits.
//!
//! ```text
//! < 4.6                        u64: the address
//! 4.6 to 6.14, x86-64 SMP      s32: >= 0 is the address (per-CPU), else relative_base - 1 - s32
//! 4.6 on others, 6.15 x86-64   u32: relative_base + u32
//! 7.0                          s32: address of the entry + s32
//! ```
//!
//! Which way it is, is read off the contents: the table is sorted by address, the addresses are a
//! kernel's, and what is known from elsewhere must come out.
//!
//! Source: Linux, `scripts/kallsyms.c`, `kernel/kallsyms.c` (`kallsyms_sym_address`).

use super::Hints;
use super::names::Names;
use crate::phys::{exact, u32_at, u64_at};
use ramsift_layers::translate::PhysRead;
use ramsift_layers::{PhysAddr, VirtAddr};
use std::collections::BTreeMap;

/// How addresses are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// `u64`, the address itself.
    Absolute,
    /// `s32`, absolute if not negative, else down from the base.
    AbsolutePerCpu,
    /// `u32`, up from the base.
    Relative,
    /// `s32` from where the entry itself lies; there is no base.
    PcRelative,
}

impl Encoding {
    /// The address that an entry of four bytes, of this number, stands for.
    pub(super) fn address(self, entry: u32, i: usize, base: u64) -> u64 {
        let signed = i64::from(entry.cast_signed());
        match self {
            Self::Absolute => u64::from(entry),
            Self::AbsolutePerCpu => match u64::try_from(signed) {
                Ok(absolute) => absolute,
                Err(_) => base.wrapping_sub(1).wrapping_sub(signed.cast_unsigned()),
            },
            Self::Relative => base.wrapping_add(u64::from(entry)),
            Self::PcRelative => base
                .wrapping_add(4 * i as u64)
                .wrapping_add(signed.cast_unsigned()),
        }
    }

    /// The base with which an entry stands for this address.
    pub(super) fn base_of(self, entry: u32, i: usize, va: u64) -> u64 {
        va.wrapping_sub(self.address(entry, i, 0))
    }

    fn width(self) -> usize {
        if self == Self::Absolute { 8 } else { 4 }
    }
}

/// One way to read the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub(super) encoding: Encoding,
    /// The table.
    pub(super) table: PhysAddr,
    /// Where the base is stored.
    pub(super) base: Option<PhysAddr>,
    /// Virtual address of the table, if known.
    pub(super) table_va: Option<VirtAddr>,
}

/// A table read the way that fits.
#[derive(Clone, Debug)]
pub(super) struct Decoded {
    pub(super) way: Way,
    pub(super) base: u64,
    pub(super) addresses: Vec<u64>,
}

/// Kernel addresses begin here on every 64-bit architecture that is read (57-bit x86-64 included).
pub(super) const KERNEL: u64 = 0xff00_0000_0000_0000;
/// Per-CPU symbols of the absolute kind are offsets; they stay below this.
const PER_CPU_END: u64 = 1 << 31;

impl Way {
    /// Decodes and judges. `Err` is the reason why it does not fit.
    pub(super) fn decode(
        &self,
        mem: &dyn PhysRead,
        names: &Names,
        hints: &Hints<'_>,
    ) -> Result<Decoded, String> {
        let n = names.entries.len();
        let raw = exact(mem, self.table, n * self.encoding.width())
            .map_err(|source| source.to_string())?;
        let offsets = || raw.chunks_exact(4).map(|c| u32_at(c, 0).unwrap_or(0));
        let base = match self.base {
            None => 0,
            Some(pa) => {
                let b = exact(mem, pa, 8).map_err(|source| source.to_string())?;
                let base = u64_at(&b, 0).unwrap_or(0);
                if base < KERNEL {
                    return Err(format!("{base:#x} at {pa} is no kernel address"));
                }
                base
            }
        };
        let (base, addresses): (u64, Vec<u64>) = match self.encoding {
            Encoding::Absolute => {
                let all = raw.chunks_exact(8).map(|c| u64_at(c, 0).unwrap_or(0));
                (0, all.collect())
            }
            Encoding::AbsolutePerCpu => {
                if !offsets().any(|o| o.cast_signed() < 0) {
                    return Err("no entry is negative".into());
                }
                (base, self.all(offsets(), base))
            }
            Encoding::Relative => (base, self.all(offsets(), base)),
            Encoding::PcRelative => {
                let relative: Vec<u64> = offsets()
                    .enumerate()
                    .map(|(i, o)| {
                        let step = i64::from(o.cast_signed()).cast_unsigned();
                        (4 * i as u64).wrapping_add(step)
                    })
                    .collect();
                if relative.first().is_none_or(|r| r.cast_signed() >= 0) {
                    return Err("the first entry is not negative".into());
                }
                let va = self.table_address(mem, names, &relative, hints)?;
                let up = |r: &u64| va.wrapping_add(*r);
                (va, relative.iter().map(up).collect())
            }
        };
        judge(&addresses, names, hints)?;
        Ok(Decoded {
            way: *self,
            base,
            addresses,
        })
    }

    fn all(&self, entries: impl Iterator<Item = u32>, base: u64) -> Vec<u64> {
        let address = |(i, o)| self.encoding.address(o, i, base);
        entries.enumerate().map(address).collect()
    }

    /// Virtual address of a table whose entries count from themselves.
    fn table_address(
        &self,
        mem: &dyn PhysRead,
        names: &Names,
        relative: &[u64],
        hints: &Hints<'_>,
    ) -> Result<u64, String> {
        if let Some(va) = self.table_va {
            return Ok(va.0);
        }
        if let Some(delta) = hints.delta {
            return Ok(self.table.0.wrapping_add(delta));
        }
        for (name, va) in hints.known {
            if let Some(i) = find(names, name)
                && let Some(r) = relative.get(i)
            {
                return Ok(va.0.wrapping_sub(*r));
            }
        }
        by_empty_lists(mem, self.table, names, relative)
            .ok_or_else(|| "nothing tells the virtual address of the table".into())
    }
}

fn find(names: &Names, name: &str) -> Option<usize> {
    names.entries.iter().position(|e| {
        usize::from(e.len) == name.len()
            && names.text.get(e.at as usize..e.at as usize + name.len()) == Some(name)
    })
}

/// Whether the addresses are those of a kernel, sorted, with the known ones among them.
fn judge(addresses: &[u64], names: &Names, hints: &Hints<'_>) -> Result<(), String> {
    let n = addresses.len();
    let odd = |a: &&u64| **a < KERNEL && **a >= PER_CPU_END;
    let strange = addresses.iter().filter(odd).count();
    let kernel = addresses.iter().filter(|a| **a >= KERNEL).count();
    if strange * 100 > n || kernel * 2 < n {
        return Err(format!("{strange} of {n} are no kernel addresses"));
    }
    let falls = addresses.windows(2).filter(|w| w[0] > w[1]).count();
    if falls * 100 > n {
        return Err(format!("{falls} of {n} are below the one before"));
    }
    for (name, va) in hints.known {
        let mut all = names
            .entries
            .iter()
            .zip(addresses)
            .filter(|(e, _)| {
                usize::from(e.len) == name.len()
                    && names.text.get(e.at as usize..e.at as usize + name.len()) == Some(*name)
            })
            .map(|(_, a)| *a)
            .peekable();
        if let Some(first) = all.peek().copied()
            && !all.any(|a| a == va.0)
        {
            return Err(format!("{name} would be at {first:#x}, and is at {va}"));
        }
    }
    Ok(())
}

/// List heads to look at; an ordinary kernel has about 1,500 with such names.
const MAX_HEADS: usize = 8192;
/// Empty lists that must agree.
const MIN_VOTES: usize = 8;

/// An empty list head points to itself, and the kernel has hundreds of them: each says where the
/// table lies, for the table knows how far away the head is, and the image is one piece physically
/// and virtually.
fn by_empty_lists(
    mem: &dyn PhysRead,
    table: PhysAddr,
    names: &Names,
    relative: &[u64],
) -> Option<u64> {
    let mut votes: BTreeMap<u64, usize> = BTreeMap::new();
    let heads = names.entries.iter().zip(relative).filter(|(e, _)| {
        let name = names
            .text
            .get(e.at as usize..e.at as usize + usize::from(e.len));
        matches!(e.kind, b'd' | b'D' | b'b' | b'B')
            && name.is_some_and(|n| n.contains("list") || n.contains("head"))
    });
    for (_, r) in heads.take(MAX_HEADS) {
        let mut raw = [0; 8];
        if mem
            .read_phys(PhysAddr(table.0.wrapping_add(*r)), &mut raw)
            .is_err()
        {
            continue;
        }
        let own = u64::from_le_bytes(raw);
        let va = own.wrapping_sub(*r);
        // Images are moved by whole pages.
        if own >= KERNEL && va % 4096 == table.0 % 4096 {
            *votes.entry(va).or_default() += 1;
        }
    }
    let mut ranked: Vec<(usize, u64)> = votes.into_iter().map(|(va, n)| (n, va)).collect();
    ranked.sort_unstable_by(|a, b| b.cmp(a));
    let (best, va) = *ranked.first()?;
    let second = ranked.get(1).map_or(0, |r| r.0);
    (best >= MIN_VOTES && best >= 2 * second).then_some(va)
}
