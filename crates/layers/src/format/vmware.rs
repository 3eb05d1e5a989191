//! VMware: the memory of a suspended or snapshotted machine, in a `.vmem` whose state lies beside it (`.vmss`, `.vmsn`), or inside
//! of that state.
//!
//! ```text
//! 0    u32  magic 0xBED2BED0, 0xBAD1BAD1, 0xBED2BED2, 0xBED3BED3; its last digit is the version
//! 8    u32  number of groups
//! 12   ...  groups of 80 bytes: name[64], where its tags begin u64, bytes of them u64
//! tags      flags u8, length of the name u8, name, (flags >> 6) indices u32, then a number of flags & 63 bytes; with 62 and 63
//!           instead: bytes on disk, bytes in memory (u32 each in version 0, else u64), length of padding u16, padding, the bytes
//!           flags and length 0: the end
//! "memory"  regionsCount, regionPPN[i], regionPageNum[i], regionSize[i] in pages: physical memory, place in the memory, length;
//!           Memory[0][0] where the memory is inside
//! "cpu"     CR64[processor][3] or CR[processor][3]
//! ```
//!
//! Without regions memory is one stretch from 0 on. Machines of more than 3 GiB have a hole below 4 GiB, so a `.vmem` alone has
//! the memory above at wrong places.
//!
//! Sources: the file format as published with vmsnparser and in Volatility's and LeechCore's readers.

use super::bytes::{le32, le64, text};
use super::content::readable;
use super::twice::{lay_out, unnamed};
use super::{ContainerGap, FormatError, ImageFormat, Layout, Opened, Told, gap, note};
use crate::run::Run;
use crate::source::{ByteSource, SourceError};
use crate::{FileOffset, PhysAddr};
use async_trait::async_trait;
use std::collections::BTreeMap;

const NAME: &str = "vmware";
const MAGICS: [u32; 4] = [0xbed2_bed0, 0xbad1_bad1, 0xbed2_bed2, 0xbed3_bed3];
const PAGE: u64 = 4096;
const GROUP: usize = 80;
/// Groups, tags of one group, regions: three machines had 60 to 90, some thousands, and 2.
const MAX_GROUPS: u32 = 4096;
const MAX_TAGS: usize = 1 << 20;
const MAX_REGIONS: u64 = 4096;
/// Bytes of tags that are read at a time.
const STEP: usize = 64 << 10;
/// Processors whose registers are looked at.
const MAX_PROCESSORS: u32 = 1024;
/// Where the hole begins in machines that have one.
const HOLE: u64 = 3 << 30;

/// Saved states of VMware.
#[derive(Clone, Copy, Debug)]
pub struct Vmware;

/// What a tag holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    Number(u64),
    /// Where the bytes lie, how many there are, how many they stand for.
    Bytes(u64, u64, u64),
}

type Tags = BTreeMap<(String, Vec<u32>), Value>;

/// What a state says of memory and processors.
#[derive(Debug)]
pub(super) struct State {
    version: u32,
    /// Physical address, place in the memory, bytes.
    regions: Vec<(u64, u64, u64)>,
    /// The memory, where it is inside.
    memory: Option<(u64, u64, u64)>,
    dtb_hints: Vec<u64>,
    wide: bool,
    pub(super) gaps: Vec<ContainerGap>,
}

fn bad(offset: u64, expected: impl Into<String>, found: impl Into<String>) -> FormatError {
    FormatError::Header {
        format: NAME,
        offset,
        expected: expected.into(),
        found: found.into(),
    }
}

fn cut(what: &str, offset: u64) -> FormatError {
    bad(
        offset,
        format!("{what} inside the file"),
        "the end of the file; the state was cut short, copy it again",
    )
}

/// The version of a state, by its magic.
fn version(head: &[u8]) -> Option<u32> {
    let magic = le32(head, 0).filter(|m| MAGICS.contains(m))?;
    Some(magic & 15)
}

/// Reads the tags of a group one after the other.
struct Reader<'a> {
    source: &'a dyn ByteSource,
    start: u64,
    bytes: Vec<u8>,
}

impl Reader<'_> {
    /// At most `n` bytes from a place, fewer at the end.
    async fn get(&mut self, at: u64, n: usize) -> Result<&[u8], SourceError> {
        let end = at.saturating_add(n as u64).min(self.source.len());
        let have = self.start..self.start + self.bytes.len() as u64;
        if at < have.start || end > have.end {
            let len = (STEP as u64).min(self.source.len().saturating_sub(at));
            let len = usize::try_from(len).unwrap_or(0);
            self.bytes = self.source.read_vec(FileOffset(at), len).await?;
            self.start = at;
        }
        let from = usize::try_from(at.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let rest = self.bytes.get(from..).unwrap_or_default();
        Ok(&rest[..rest.len().min(n)])
    }

    /// The tags from a place on; those that are wanted by their names.
    async fn tags(
        &mut self,
        mut at: u64,
        version: u32,
        wanted: &[&str],
    ) -> Result<(Tags, Option<u64>), FormatError> {
        let mut out = Tags::new();
        for _ in 0..MAX_TAGS {
            let head = self.get(at, 2 + 255 + 12 + 18).await?;
            let (Some(flags), Some(name_len)) = (head.first().copied(), head.get(1).copied())
            else {
                return Ok((out, Some(at)));
            };
            if flags == 0 && name_len == 0 {
                return Ok((out, None));
            }
            let name_end = 2 + usize::from(name_len);
            let indices = usize::from(flags >> 6);
            let Some(name) = head.get(2..name_end) else {
                return Ok((out, Some(at)));
            };
            let name = String::from_utf8_lossy(name).into_owned();
            let index = |i: usize| le32(head, name_end + 4 * i);
            let Some(index) = (0..indices).map(index).collect::<Option<Vec<u32>>>() else {
                return Ok((out, Some(at)));
            };
            let data = name_end + 4 * indices;
            let (value, len) = match usize::from(flags & 63) {
                62 | 63 => {
                    let word = if version == 0 { 4 } else { 8 };
                    let number = |i: usize| match word {
                        4 => le32(head, data + 4 * i).map(u64::from),
                        _ => le64(head, data + 8 * i),
                    };
                    let pad = head.get(data + 2 * word..data + 2 * word + 2);
                    let (Some(disk), Some(memory), Some(pad)) = (number(0), number(1), pad) else {
                        return Ok((out, Some(at)));
                    };
                    let pad = usize::from(u16::from_le_bytes([pad[0], pad[1]]));
                    let skip = (data + 2 * word + 2 + pad) as u64;
                    let place = at.saturating_add(skip);
                    (Value::Bytes(place, disk, memory), skip.saturating_add(disk))
                }
                n => {
                    let Some(bytes) = head.get(data..data + n) else {
                        return Ok((out, Some(at)));
                    };
                    let number = bytes
                        .iter()
                        .take(8)
                        .rev()
                        .fold(0u64, |s, b| s << 8 | u64::from(*b));
                    (Value::Number(number), (data + n) as u64)
                }
            };
            if wanted.contains(&name.as_str()) && out.len() < 65_536 {
                out.insert((name, index), value);
            }
            at = at.saturating_add(len);
        }
        Err(bad(
            at,
            format!("at most {MAX_TAGS} tags in a group"),
            "more",
        ))
    }
}

fn number(tags: &Tags, name: &str, index: &[u32]) -> Option<u64> {
    match tags.get(&(name.to_owned(), index.to_vec())) {
        Some(Value::Number(n)) => Some(*n),
        // Registers of 64 bits are inline; nothing else is wanted as a number.
        _ => None,
    }
}

impl State {
    /// Reads a state; `None` where it is none.
    pub(super) async fn read(source: &dyn ByteSource) -> Result<Option<Self>, FormatError> {
        let head = source.head(12).await?;
        let (Some(version), Some(count)) = (version(&head), le32(&head, 8)) else {
            return Ok(None);
        };
        if count > MAX_GROUPS {
            return Err(bad(
                8,
                format!("at most {MAX_GROUPS} groups"),
                count.to_string(),
            ));
        }
        let len = GROUP as u64 * u64::from(count);
        if 12 + len > source.len() {
            return Err(cut("the list of groups", 12));
        }
        let len = usize::try_from(len).unwrap_or(0);
        let groups = source.read_vec(FileOffset(12), len).await?;
        let place = |name: &[u8]| {
            let found = groups.chunks_exact(GROUP).find(|g| text(&g[..64]) == name);
            found.and_then(|g| le64(g, 64))
        };
        let Some(at) = place(b"memory") else {
            return Err(bad(12, "a group called memory", format!("{count} others")));
        };
        let mut r = Reader {
            source,
            start: 0,
            bytes: Vec::new(),
        };
        let names = [
            "regionsCount",
            "regionPPN",
            "regionPageNum",
            "regionSize",
            "Memory",
        ];
        let (tags, short) = r.tags(at, version, &names).await?;
        let mut gaps = Vec::new();
        let end = source.len();
        if let Some(at) = short {
            gap(&mut gaps, at.min(end.saturating_sub(1))..end, || {
                "the tags of the group memory go on behind the end of the state: it was cut short"
                    .to_owned()
            });
        }
        let regions = regions(&tags, at)?;
        let memory = tags.iter().find_map(|((n, _), v)| match v {
            Value::Bytes(place, disk, memory) if n == "Memory" => Some((*place, *disk, *memory)),
            _ => None,
        });
        let (mut dtb_hints, mut wide) = (Vec::new(), false);
        if let Some(at) = place(b"cpu") {
            let (cpu, _) = r.tags(at, version, &["CR64", "CR"]).await?;
            for n in 0..MAX_PROCESSORS {
                let long = number(&cpu, "CR64", &[n, 3]).filter(|c| *c != 0);
                wide |= long.is_some();
                let Some(cr3) = long.or_else(|| number(&cpu, "CR", &[n, 3])) else {
                    break;
                };
                let table = cr3 & 0x000f_ffff_ffff_f000;
                if table != 0 && !dtb_hints.contains(&table) {
                    dtb_hints.push(table);
                }
            }
        }
        Ok(Some(Self {
            version,
            regions,
            memory,
            dtb_hints,
            wide,
            gaps,
        }))
    }

    /// The runs of memory that begins at `base` in a file, of which `there` bytes are stored.
    fn runs(&self, base: u64, there: u64) -> Vec<Run> {
        let run = |(pa, place, len): &(u64, u64, u64)| Run {
            pa: *pa,
            len: *len,
            file: base.saturating_add(*place),
            stored: there.saturating_sub(*place).min(*len),
        };
        self.regions.iter().map(run).collect()
    }

    /// What is in a file whose memory begins at `base` and has `len` bytes.
    pub(super) async fn layout(
        mut self,
        source: &dyn ByteSource,
        base: u64,
        len: u64,
        mut notes: Vec<String>,
    ) -> Result<Opened, FormatError> {
        if self.regions.is_empty() {
            self.regions.push((0, 0, len));
        }
        let there = source.len().saturating_sub(base).min(len);
        let runs = self.runs(base, there);
        for r in runs.iter().filter(|r| r.stored < r.len) {
            note(&mut notes, || {
                format!(
                    "the region at physical {:#x} is cut short: {} of {} bytes are there",
                    r.pa, r.stored, r.len
                )
            });
        }
        let mut gaps = std::mem::take(&mut self.gaps);
        let named = runs
            .iter()
            .map(|r| (r.file, r.file.saturating_add(r.stored)));
        unnamed(base..base + there, named, 0, "region", &mut gaps);
        let runs = lay_out(source, runs, &mut notes, &mut gaps).await?;
        if runs.runs().is_empty() {
            return Err(FormatError::NoMemory { format: NAME });
        }
        let arch = self.wide.then(|| "x86_64".to_owned());
        Ok(Layout {
            format: NAME.into(),
            version: Some(self.version.to_string()),
            runs,
            arch,
            dtb_hints: self.dtb_hints,
            notes,
            gaps,
            extents: None,
            page_files: Vec::new(),
            told: Told::default(),
        }
        .into())
    }
}

/// The regions that tags describe, whose group begins at `at`.
fn regions(tags: &Tags, at: u64) -> Result<Vec<(u64, u64, u64)>, FormatError> {
    let count = number(tags, "regionsCount", &[]).unwrap_or(0);
    if count > MAX_REGIONS {
        return Err(bad(
            at,
            format!("at most {MAX_REGIONS} regions"),
            count.to_string(),
        ));
    }
    let mut out = Vec::new();
    for i in 0..u32::try_from(count).unwrap_or(0) {
        let of = |name: &str| {
            let pages = number(tags, name, &[i])
                .ok_or_else(|| bad(at, format!("{name} of region {i}"), "none"))?;
            pages.checked_mul(PAGE).ok_or_else(|| {
                bad(
                    at,
                    format!("{name} of region {i} below 2^64"),
                    pages.to_string(),
                )
            })
        };
        out.push((of("regionPPN")?, of("regionPageNum")?, of("regionSize")?));
    }
    Ok(out)
}

#[async_trait]
impl ImageFormat for Vmware {
    fn name(&self) -> &'static str {
        NAME
    }

    fn probe(&self, head: &[u8], _len: u64) -> bool {
        version(head).is_some()
    }

    async fn open(&self, source: &dyn ByteSource) -> Result<Opened, FormatError> {
        let state = State::read(source).await?;
        let state = state.ok_or_else(|| bad(0, "the magic of a VMware state", "another"))?;
        let Some((at, disk, memory)) = state.memory else {
            return Err(FormatError::Unsupported {
                what: "the state of a VMware machine whose memory lies in the .vmem beside it",
                hint: "name the .vmem: this is read with it",
            });
        };
        if disk != memory {
            return Err(FormatError::Unsupported {
                what: "the state of a VMware machine with compressed memory",
                hint: "convert it with vmss2core",
            });
        }
        let note = "the memory lies inside the state".to_owned();
        state.layout(source, at, disk, vec![note]).await
    }
}

/// Reads a `.vmem`, by the state that lies beside it. Without one, as raw.
pub(super) async fn open_vmem(
    source: &dyn ByteSource,
    state: Option<&dyn ByteSource>,
) -> Result<Option<Opened>, FormatError> {
    let Some(state) = state else {
        return Ok(None);
    };
    let name = state.pin().to_string();
    let Some(s) = State::read(state).await? else {
        return Ok(None);
    };
    let notes = vec![format!("by the state beside it, {name}")];
    let len = s
        .regions
        .iter()
        .map(|(_, at, n)| at.saturating_add(*n))
        .max();
    // A state of another machine would give every page another address.
    if let Some(len) = len.filter(|l| *l > source.len().next_multiple_of(1 << 20)) {
        return Err(bad(
            0,
            format!("a .vmem of {len} bytes, as {name} says"),
            format!(
                "{} bytes; it was cut short, or the state is another machine's: move that away",
                source.len()
            ),
        ));
    }
    let mut opened = s.layout(source, 0, source.len(), notes).await?;
    let l = &mut opened.layout;
    if !any_is_table(source, l).await? {
        gap(&mut l.gaps, 0..source.len(), || {
            format!(
                "no page table that {name} names is one in this memory: if the state is another machine's, memory may lie at other addresses than it says"
            )
        });
    }
    Ok(Some(opened))
}

/// Processors whose page tables are looked at.
const LOOKED_AT: usize = 8;

/// Whether a page table that the state names is one in this memory, or none of them can be looked at.
async fn any_is_table(source: &dyn ByteSource, layout: &Layout) -> Result<bool, SourceError> {
    let mut all_others = false;
    for dtb in layout.dtb_hints.iter().take(LOOKED_AT) {
        let Some((at, n)) = layout.runs.stored_at(PhysAddr(*dtb)) else {
            continue;
        };
        if n < PAGE {
            continue;
        }
        let page = readable(source.read_vec(at, 4096).await)?;
        let end = layout.runs.runs().last().map_or(0, |r| r.pa + r.len);
        if page.is_empty() || may_be_top(&page, end) {
            return Ok(true);
        }
        all_others = true;
    }
    Ok(!all_others)
}

/// Whether a page may be the top table of any kind, of a machine whose memory ends at `end`: entries of eight bytes, or of four, some
/// of which are present and none of which leads where nothing can be.
fn may_be_top(page: &[u8], end: u64) -> bool {
    let entries = |present: bool, sound: bool, (any, all): (bool, bool)| {
        (any || present, all && (!present || sound))
    };
    let start = (false, true);
    let wide = page.as_chunks::<8>().0.iter().fold(start, |seen, e| {
        let e = u64::from_le_bytes(*e);
        entries(e & 1 != 0, e & 0x000f_c000_0000_0080 == 0, seen)
    });
    // The four entries of PAE stand at the beginning of 32 bytes.
    let pae = page
        .as_chunks::<8>()
        .0
        .iter()
        .take(4)
        .fold(start, |seen, e| {
            let e = u64::from_le_bytes(*e);
            entries(e & 1 != 0, e & 0xffff_fff0_0000_01e6 == 0, seen)
        });
    let narrow = page.as_chunks::<4>().0.iter().fold(start, |seen, e| {
        let e = u32::from_le_bytes(*e);
        // Pages of 4 MiB may be those of devices; tables lie in memory.
        let inside = e & 0x80 != 0 || u64::from(e & !0xfff) < end;
        entries(e & 1 != 0, inside, seen)
    });
    [wide, pae, narrow].contains(&(true, true))
}

/// What a `.vmem` without its state lacks.
pub(super) fn without_state(len: u64, hole_is_known: bool) -> String {
    let lost = match len > HOLE && !hole_is_known {
        true => {
            "; the machine has more than 3 GiB, so memory above lies at higher addresses than this says, and its system may not be found"
        }
        false => "",
    };
    format!(
        "the state of the machine (.vmss or .vmsn of the same name) is not beside it: registers are not known{lost}"
    )
}
