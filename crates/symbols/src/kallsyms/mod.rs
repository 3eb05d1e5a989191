//! kallsyms: the names and addresses of a kernel's own symbols, as it carries them in its memory.
//!
//! ```text
//! < 4.6    addresses, num_syms, names, markers, token_table, token_index
//! 4.6      offsets, relative_base, num_syms, names, markers, token_table, token_index
//! 6.2      ... markers, seqs_of_names, token_table ... (also in stable kernels of 6.1)
//! 6.4      num_syms, names, markers, token_table, token_index, offsets, relative_base, seqs_of_names
//! 7.0      the same without relative_base
//! ```
//!
//! Two ways in: [`decode`] with the addresses that VMCOREINFO gives since 6.0, and [`carve`] from
//! nothing but a hit of [`DIGITS`] somewhere in physical memory. Both decide the layout by what the
//! bytes are, because distributions carry changes back: what kernel it is, is never asked. The
//! kernel image is contiguous in physical memory, so no page table is needed.
//!
//! Source: Linux, `scripts/kallsyms.c`, `kernel/kallsyms.c`, `kernel/crash_core.c`.

mod address;
mod damaged;
mod error;
mod markers;
mod names;
mod tokens;

pub use address::Encoding;
pub use damaged::decode_damaged;
pub use error::KallsymsError;
pub use names::NameLength;
pub use tokens::DIGITS;

use crate::VmCoreInfo;
use crate::phys::{before, exact, u32_at};
use address::Way;
use error::{malformed, read};
use markers::{NamesAt, find_names, lengths_by_markers};
use names::{MAX_SYMBOLS, Name, Names};
use ramsift_layers::translate::PhysRead;
use ramsift_layers::{PhysAddr, VirtAddr};
use tokens::{INDEX_BYTES, Tokens};

/// Bytes of compressed names at most; real ones have 1 to 3 million.
const MAX_NAMES: u64 = 64 << 20;

/// What is known from elsewhere, to choose between readings of the same bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hints<'a> {
    /// Names whose addresses are known, such as `_stext` from VMCOREINFO. A name that the table
    /// lacks says nothing; one that it has must have this address.
    pub known: &'a [(&'a str, VirtAddr)],
    /// What to add to a physical address of the kernel image for the virtual one.
    pub delta: Option<u64>,
}

/// Where the parts of the tables lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// The count of symbols.
    pub num_syms: PhysAddr,
    /// The compressed names.
    pub names: PhysAddr,
    /// The 256 tokens.
    pub token_table: PhysAddr,
    /// The offsets of the tokens.
    pub token_index: PhysAddr,
    /// The offsets, or before 4.6 the addresses.
    pub addresses: PhysAddr,
    /// Virtual address of `addresses`, if known.
    pub addresses_va: Option<VirtAddr>,
    /// The base of the offsets, where there is one.
    pub relative_base: Option<PhysAddr>,
}

impl Places {
    /// The places that VMCOREINFO gives (6.0 and later). `delta` is what to add to a physical
    /// address of the kernel image for the virtual one: [`image_delta`].
    pub fn from_vmcoreinfo(info: &VmCoreInfo, delta: u64) -> Result<Self, KallsymsError> {
        let pa = |key: &'static str, name: &str| {
            info.symbol(name)
                .map(|va| PhysAddr(va.wrapping_sub(delta)))
                .ok_or(KallsymsError::MissingKey { key })
        };
        Ok(Self {
            num_syms: pa("SYMBOL(kallsyms_num_syms)", "kallsyms_num_syms")?,
            names: pa("SYMBOL(kallsyms_names)", "kallsyms_names")?,
            token_table: pa("SYMBOL(kallsyms_token_table)", "kallsyms_token_table")?,
            token_index: pa("SYMBOL(kallsyms_token_index)", "kallsyms_token_index")?,
            addresses: pa("SYMBOL(kallsyms_offsets)", "kallsyms_offsets")
                .or_else(|e| pa("", "kallsyms_addresses").map_err(|_| e))?,
            addresses_va: info
                .symbol("kallsyms_offsets")
                .or_else(|| info.symbol("kallsyms_addresses"))
                .map(VirtAddr),
            relative_base: pa("", "kallsyms_relative_base").ok(),
        })
    }
}

/// What to add to a physical address of the kernel image for its virtual one, by VMCOREINFO:
/// `kimage_voffset` on arm64; on x86-64 the image is mapped at 0xffffffff80000000 + physical
/// address - `phys_base`. Wraps, as the kernel's own arithmetic does.
pub fn image_delta(info: &VmCoreInfo) -> Option<u64> {
    const X86_64_IMAGE: u64 = 0xffff_ffff_8000_0000;
    info.number("kimage_voffset").or_else(|| {
        info.number("phys_base")
            .map(|base| X86_64_IMAGE.wrapping_sub(base))
    })
}

/// How the tables were laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// How addresses are written.
    pub encoding: Encoding,
    /// How the lengths of names are written.
    pub lengths: NameLength,
    /// Whether the addresses stand behind the token index (6.4 and later), not before the names.
    pub addresses_last: bool,
    /// Bytes of a marker, when the markers were looked at: 8 before 4.20, 4 since.
    pub marker_width: Option<u8>,
}

/// A decoded table.
#[derive(Clone, Debug)]
pub struct Kallsyms {
    text: String,
    entries: Vec<Name>,
    addresses: Vec<u64>,
    base: u64,
    layout: Layout,
    places: Places,
    /// Symbols of which the name or the address can't be read.
    lost: usize,
}

/// One symbol of a [`Kallsyms`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelSymbol<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its address; for per-CPU symbols of kernels that have them so, the offset in each area.
    pub address: VirtAddr,
    /// The letter that `nm` gives it: `T` text, `D` data, lower case local, `A` absolute.
    pub kind: u8,
}

impl Kallsyms {
    /// How many symbols there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many symbols of the table could not be read: [`decode_damaged`] goes on behind damage.
    pub fn lost(&self) -> usize {
        self.lost
    }

    /// How the tables were laid out.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Where the tables were.
    pub fn places(&self) -> Places {
        self.places
    }

    /// The base of relative addresses: `relative_base`, or the virtual address of the table when
    /// entries count from themselves; 0 when addresses are absolute.
    pub fn base(&self) -> VirtAddr {
        VirtAddr(self.base)
    }

    /// All symbols in the table's order, which is by address.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = KernelSymbol<'_>> {
        self.entries
            .iter()
            .zip(&self.addresses)
            .map(|(e, a)| KernelSymbol {
                name: self
                    .text
                    .get(e.at as usize..e.at as usize + usize::from(e.len))
                    .unwrap_or_default(),
                address: VirtAddr(*a),
                kind: e.kind,
            })
    }

    /// The first symbol of a name. Looks at them all: build a
    /// [`SymbolTable`](crate::SymbolTable) to ask often.
    pub fn find(&self, name: &str) -> Option<KernelSymbol<'_>> {
        self.iter().find(|s| s.name == name)
    }
}

/// Decodes tables whose places are known.
///
/// Fails with [`KallsymsError`], which says what was wrong at which physical address.
pub fn decode(
    mem: &dyn PhysRead,
    places: &Places,
    hints: &Hints<'_>,
) -> Result<Kallsyms, KallsymsError> {
    let tokens = Tokens::at(mem, places.token_table, places.token_index)?;
    let count = exact(mem, places.num_syms, 4).map_err(read("num_syms"))?;
    let count = u32_at(&count, 0).unwrap_or(0) as usize;
    if count == 0 || count > MAX_SYMBOLS {
        let most = format!("1 to {MAX_SYMBOLS} symbols");
        return Err(malformed("num_syms", places.num_syms, most, count));
    }
    let len = places.token_table.since(places.names);
    if len == 0 || len > MAX_NAMES {
        let expected = format!("names at most {MAX_NAMES} bytes before the tokens");
        let found = places.token_table;
        return Err(malformed("names", places.names, expected, found));
    }
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let raw = exact(mem, places.names, len).map_err(read("names"))?;
    // Without a match the markers may be torn; the newer way is that of every kernel that says
    // where its tables are.
    let lengths = lengths_by_markers(&raw, places.names.0, count).unwrap_or(NameLength::Uleb128);
    let names = Names::decode(&raw, places.names, count, &tokens, lengths)?;
    let mut ways = Vec::new();
    let way = |encoding, base| Way {
        encoding,
        table: places.addresses,
        base,
        table_va: places.addresses_va,
    };
    match places.relative_base {
        Some(_) => ways.extend([
            way(Encoding::AbsolutePerCpu, places.relative_base),
            way(Encoding::Relative, places.relative_base),
        ]),
        None => ways.extend([
            way(Encoding::Absolute, None),
            way(Encoding::PcRelative, None),
        ]),
    }
    finish(mem, names, &ways, hints, places, None, lengths)
}

/// Windows before the token table to look for names in, smallest first.
const BACK: [usize; 3] = [4 << 20, 12 << 20, 48 << 20];

/// Finds and decodes the tables from a hit of [`DIGITS`].
///
/// The image holds the token table twice at most (a second kernel, a copy of the image on its way
/// to be unpacked), so a hit that fails says nothing about the others. Tables of 256 symbols and
/// fewer have no markers to go by and are not found.
///
/// Fails with [`KallsymsError`], which says what was wrong at which physical address.
pub fn carve(
    mem: &dyn PhysRead,
    digits: PhysAddr,
    hints: &Hints<'_>,
) -> Result<Kallsyms, KallsymsError> {
    let tokens = Tokens::around(mem, digits)?;
    let mut tried = 0;
    let mut from = tokens.table;
    for back in BACK {
        // Names, markers and tokens are one piece: a page that the image lacks ends the search.
        let mut bytes = before(mem, tokens.table, back);
        // The alignment of the tables is that of the window.
        let start = tokens.table.saturating_sub(bytes.len() as u64).0;
        let skew = usize::try_from(start.next_multiple_of(8) - start).unwrap_or(0);
        bytes.drain(..skew.min(bytes.len()));
        let reached = tokens.table.saturating_sub(bytes.len() as u64);
        if reached >= from {
            break;
        }
        from = reached;
        let (found, runs) = find_names(&bytes);
        tried += runs;
        if let Some(at) = found {
            return carved(mem, &tokens, &bytes, from, at, hints);
        }
    }
    Err(KallsymsError::NoNames {
        token_table: tokens.table,
        from,
        markers: tried,
    })
}

fn carved(
    mem: &dyn PhysRead,
    tokens: &Tokens,
    bytes: &[u8],
    from: PhysAddr,
    at: NamesAt,
    hints: &Hints<'_>,
) -> Result<Kallsyms, KallsymsError> {
    let here = |o: usize| from.saturating_add(o as u64);
    let raw = bytes.get(at.names..at.markers).unwrap_or_default();
    let names = Names::decode(raw, here(at.names), at.count, tokens, at.lengths)?;
    let num_syms = here(at.num_syms);
    let ways = ways_around(num_syms, tokens.index, at.count as u64);
    let places = Places {
        num_syms,
        names: here(at.names),
        token_table: tokens.table,
        token_index: tokens.index,
        addresses: num_syms,
        addresses_va: None,
        relative_base: None,
    };
    let width = u8::try_from(at.width).ok();
    finish(mem, names, &ways, hints, &places, width, at.lengths)
}

/// Every way that the addresses of `n` symbols can lie before the count or behind the index.
fn ways_around(num_syms: PhysAddr, index: PhysAddr, n: u64) -> Vec<Way> {
    let mut ways = Vec::new();
    let mut based = |table: u64, base: u64| {
        for encoding in [Encoding::AbsolutePerCpu, Encoding::Relative] {
            ways.push(Way {
                encoding,
                table: PhysAddr(table),
                base: Some(PhysAddr(base)),
                table_va: None,
            });
        }
    };
    let offsets = n.saturating_mul(4);
    let before = num_syms.0.saturating_sub(8);
    let behind = index.0.saturating_add(INDEX_BYTES as u64);
    for align in [8u64, 4] {
        let up = |v: u64| v.checked_next_multiple_of(align).unwrap_or(v);
        based(before.saturating_sub(up(offsets)), before);
        based(up(behind), up(up(behind).saturating_add(offsets)));
    }
    let table = num_syms.0.saturating_sub(n.saturating_mul(8));
    let plain = |encoding, table| Way {
        encoding,
        table: PhysAddr(table),
        base: None,
        table_va: None,
    };
    ways.push(plain(Encoding::Absolute, table));
    // The nearer place first: read one entry late, such a table still fits, with every symbol at its
    // successor's address. Read early, its first entry is padding that points at itself.
    for align in [4u64, 8] {
        let table = behind.checked_next_multiple_of(align).unwrap_or(behind);
        ways.push(plain(Encoding::PcRelative, table));
    }
    ways
}

/// Takes the first way that fits. The ways are so different that no table fits two of them: see
/// `judge` in `address.rs`.
fn finish(
    mem: &dyn PhysRead,
    names: Names,
    ways: &[Way],
    hints: &Hints<'_>,
    places: &Places,
    marker_width: Option<u8>,
    lengths: NameLength,
) -> Result<Kallsyms, KallsymsError> {
    let mut tried = Vec::new();
    for way in ways {
        let decoded = match way.decode(mem, &names, hints) {
            Ok(d) => d,
            Err(why) => {
                tried.push(format!("{:?} at {}: {why}", way.encoding, way.table));
                continue;
            }
        };
        let way = decoded.way;
        return Ok(Kallsyms {
            layout: Layout {
                encoding: way.encoding,
                lengths,
                addresses_last: way.table > places.token_index,
                marker_width,
            },
            places: Places {
                addresses: way.table,
                addresses_va: match way.encoding {
                    Encoding::PcRelative => Some(VirtAddr(decoded.base)),
                    _ => places.addresses_va,
                },
                relative_base: way.base,
                ..*places
            },
            text: names.text,
            entries: names.entries,
            addresses: decoded.addresses,
            base: decoded.base,
            lost: 0,
        });
    }
    Err(KallsymsError::NoAddresses {
        names: places.names,
        symbols: names.entries.len(),
        tried: tried.join("; "),
    })
}
