//! QEMU's stream of a machine: `migrate "exec:cat > FILE"`, `savevm` and what libvirt saves (`virsh save`, unpacked).
//!
//! ```text
//! 0    "QEVM", version 3                                    (big-endian, as everything)
//!      07 length, name of the machine                       configuration
//!      01 number, name, instance, version, content          section, first part: of "ram" the list of its blocks
//!      02 number, content; 03 number, content               more of it; the last
//!      7e number                                            behind each content
//!      04 ...                                               a device, whole; 00 the end
//! content of "ram": u64 offset | flags, again and again:
//!      04  list of blocks: name, bytes (u64), until they sum up to the offset
//!      08  a page of 4096 bytes; 02 one byte that fills it; without 20 the name of its block goes before
//!      10  the end of the content
//! ```
//!
//! Devices follow memory and are not read. A page that comes again counts as it was last: the machine ran on while it was written.
//! The largest block is the machine's memory. On a PC it is split below 4 GiB: of i440fx machines at 3 GiB from 3.5 GiB on, of q35
//! at 2 GiB from 2.75 GiB on. On `virt` machines of arm64 it begins at 1 GiB.
//!
//! Sources: QEMU `migration/savevm.c`, `ram.c`, `hw/i386/pc_piix.c`, `pc_q35.c`, `hw/arm/virt.c`; libvirt `src/qemu/qemu_saveimage.h`.

use super::ahead::Ahead;
use super::bytes::{be32, be64, le32};
use super::{ContainerGap, FormatError, ImageFormat, Layout, Opened, Told, gap, note};
use crate::extent::{Codec, ImageBuilder, Stored};
use crate::source::ByteSource;
use async_trait::async_trait;
use std::collections::BTreeMap;

const NAME: &str = "qemu_savevm";
const MAGIC: &[u8] = b"QEVM\0\0\0\x03";
const LIBVIRT: &[u8] = b"LibvirtQemudSave";
/// Bytes of libvirt's own header.
const LIBVIRT_HEADER: u64 = 92;
const PAGE: u64 = 4096;
/// Blocks of memory at most; a machine has 5 to 30.
const MAX_BLOCKS: usize = 4096;
/// Pages of the largest block at most: 1 TiB.
const MAX_PAGES: u64 = 1 << 28;
/// Bytes of a place in the file: files of up to 2^40 bytes.
const PLACE: usize = 5;

const ZERO: u64 = 0x02;
const SIZES: u64 = 0x04;
const DATA: u64 = 0x08;
const END: u64 = 0x10;
const CONTINUE: u64 = 0x20;
/// Flags of pages that depend on what was sent before, or are packed: a migration must ask for them.
const UNKNOWN: u64 = 0x40 | 0x80 | 0x100;

/// QEMU's stream of a machine.
#[derive(Clone, Copy, Debug)]
pub struct Savevm;

fn bad(offset: u64, expected: impl Into<String>, found: impl Into<String>) -> FormatError {
    FormatError::Header {
        format: NAME,
        offset,
        expected: expected.into(),
        found: found.into(),
    }
}

/// What a page of memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Missing,
    Zero,
    At(u64),
}

/// Pages of one part of a list of places.
const PART: u64 = 4096;

/// Where each page of the memory lies: five bytes a page, in parts as they are needed.
#[derive(Debug, Default)]
struct Places(BTreeMap<u64, Vec<u8>>);

/// Where a page is in its part.
fn place(page: u64) -> std::ops::Range<usize> {
    let at = usize::try_from(page % PART).unwrap_or(0) * PLACE;
    at..at + PLACE
}

impl Places {
    fn set(&mut self, page: u64, p: Page) {
        let n = match p {
            Page::Missing => 0,
            Page::Zero => 1,
            Page::At(n) => n,
        };
        let size = usize::try_from(PART).unwrap_or(0) * PLACE;
        let part = self.0.entry(page / PART).or_insert_with(|| vec![0; size]);
        if let Some(to) = part.get_mut(place(page)) {
            to.copy_from_slice(&n.to_le_bytes()[..PLACE]);
        }
    }

    /// What a page is, and how many pages from it on are the same at least.
    fn get(&self, page: u64) -> (Page, u64) {
        let Some(part) = self.0.get(&(page / PART)) else {
            return (Page::Missing, PART - page % PART);
        };
        let mut b = [0; 8];
        if let Some(from) = part.get(place(page)) {
            b[..PLACE].copy_from_slice(from);
        }
        let p = match u64::from_le_bytes(b) {
            0 => Page::Missing,
            1 => Page::Zero,
            n => Page::At(n),
        };
        (p, 1)
    }
}

/// A block of memory: name and bytes.
type Block = (Vec<u8>, u64);

struct Walk<'a> {
    ahead: Ahead<'a>,
    at: u64,
    end: u64,
    machine: String,
    blocks: Vec<Block>,
    /// The machine's memory, among the blocks.
    main: usize,
    /// The block that pages belong to.
    now: usize,
    places: Places,
    gaps: Vec<ContainerGap>,
    /// Pages of other blocks.
    others: u64,
    complete: bool,
}

/// Why a walk ends before its end: what should be at the place, and what is.
type Broken = (String, String);

impl<'a> Walk<'a> {
    fn new(source: &'a dyn ByteSource, at: u64) -> Self {
        Self {
            ahead: Ahead::in_sequence(source),
            at,
            end: source.len(),
            machine: String::new(),
            blocks: Vec::new(),
            main: 0,
            now: usize::MAX,
            places: Places::default(),
            gaps: Vec::new(),
            others: 0,
            complete: false,
        }
    }

    async fn get(&mut self, n: usize) -> Result<&[u8], FormatError> {
        Ok(self.ahead.get(self.at, n).await?)
    }

    /// A number of 32 bits, which is passed over.
    async fn number(&mut self) -> Result<Option<u32>, FormatError> {
        let n = be32(self.get(4).await?, 0);
        self.at += 4;
        Ok(n)
    }

    /// A name with its length before it.
    async fn name(&mut self) -> Result<Option<Vec<u8>>, FormatError> {
        let b = self.get(256).await?;
        let found = b
            .split_first()
            .and_then(|(n, rest)| rest.get(..usize::from(*n)));
        let name = found.map(<[u8]>::to_vec);
        self.at += 1 + name.as_ref().map_or(0, Vec::len) as u64;
        Ok(name)
    }

    /// Goes over the sections up to the end of memory.
    async fn sections(&mut self) -> Result<Result<(), Broken>, FormatError> {
        let short = || {
            Ok(Err((
                "a section".to_owned(),
                "the end of the file".to_owned(),
            )))
        };
        let mut ram = None;
        loop {
            let Some(kind) = self.get(1).await?.first().copied() else {
                return short();
            };
            self.at += 1;
            match kind {
                0x07 => {
                    let Some(len) = self.number().await? else {
                        return short();
                    };
                    let n = usize::try_from(len.min(255)).unwrap_or(0);
                    self.machine = String::from_utf8_lossy(self.get(n).await?).into_owned();
                    self.at = self.at.saturating_add(u64::from(len));
                    // Subsections of the configuration.
                    while self.get(1).await?.first() == Some(&0x05) {
                        if let Some(wrong) = self.subsection().await? {
                            return Ok(Err(wrong));
                        }
                    }
                }
                0x01 | 0x04 => {
                    let (number, name) = (self.number().await?, self.name().await?);
                    let (_, version) = (self.number().await?, self.number().await?);
                    let (Some(number), Some(name), Some(version)) = (number, name, version) else {
                        return short();
                    };
                    if kind == 0x04 || name != b"ram" {
                        let name = String::from_utf8_lossy(&name).into_owned();
                        return Ok(Err(("memory".into(), format!("the device {name}"))));
                    }
                    if version != 4 {
                        return Ok(Err(("memory of version 4".into(), version.to_string())));
                    }
                    ram = Some(number);
                    if let Err(wrong) = self.content().await? {
                        return Ok(Err(wrong));
                    }
                }
                0x02 | 0x03 => {
                    let Some(number) = self.number().await? else {
                        return short();
                    };
                    if Some(number) != ram {
                        return Ok(Err((
                            "a part of memory".into(),
                            format!("one of section {number}"),
                        )));
                    }
                    if let Err(wrong) = self.content().await? {
                        return Ok(Err(wrong));
                    }
                    if kind == 0x03 {
                        self.complete = true;
                        return Ok(Ok(()));
                    }
                }
                0x7e => {
                    if self.number().await?.is_none() {
                        return short();
                    }
                }
                other => return Ok(Err(("a section".into(), format!("{other:#04x}")))),
            }
        }
    }

    /// Passes over a subsection of the configuration, of which the content is known by its name.
    async fn subsection(&mut self) -> Result<Option<Broken>, FormatError> {
        self.at += 1;
        let (name, version) = (self.name().await?, self.number().await?);
        let (Some(name), Some(_)) = (name, version) else {
            return Ok(Some(("a subsection".into(), "the end of the file".into())));
        };
        let skip = match &name[..] {
            b"configuration/target-page-bits" => 4,
            b"configuration/uuid" => 16,
            // A number of names, each with its length.
            b"configuration/capabilities" => {
                let count = self.number().await?.unwrap_or(0);
                for _ in 0..count.min(256) {
                    if self.name().await?.is_none() {
                        break;
                    }
                }
                0
            }
            other => {
                let found = String::from_utf8_lossy(other).into_owned();
                return Ok(Some(("a subsection that is known".into(), found)));
            }
        };
        self.at += skip;
        Ok(None)
    }

    /// Goes over pages up to the end of a content.
    async fn content(&mut self) -> Result<Result<(), Broken>, FormatError> {
        loop {
            let Some(word) = be64(self.get(8).await?, 0) else {
                return Ok(Err((
                    "a page of memory".into(),
                    "the end of the file".into(),
                )));
            };
            let (offset, flags) = (word & !(PAGE - 1), word & (PAGE - 1));
            if flags & UNKNOWN != 0 {
                return Ok(Err((
                    "a page as it is".into(),
                    format!(
                        "one of flags {flags:#x}, which must be asked for when a machine is migrated"
                    ),
                )));
            }
            self.at += 8;
            if flags & SIZES != 0 {
                if let Err(wrong) = self.list(offset).await? {
                    return Ok(Err(wrong));
                }
            } else if flags & (ZERO | DATA) != 0 {
                if flags & CONTINUE == 0 {
                    let name = self.name().await?.unwrap_or_default();
                    let found = self.blocks.iter().position(|(n, _)| *n == name);
                    let Some(found) = found else {
                        let name = String::from_utf8_lossy(&name).into_owned();
                        return Ok(Err(("a block of the list".into(), format!("{name:?}"))));
                    };
                    self.now = found;
                }
                if let Err(wrong) = self.page(offset, flags & DATA != 0).await? {
                    return Ok(Err(wrong));
                }
            }
            if flags & END != 0 {
                return Ok(Ok(()));
            }
        }
    }

    /// The list of blocks, of `total` bytes together.
    async fn list(&mut self, total: u64) -> Result<Result<(), Broken>, FormatError> {
        let mut left = total;
        while left > 0 {
            let name = self.name().await?;
            let len = be64(self.get(8).await?, 0);
            self.at += 8;
            let (Some(name), Some(len)) = (name, len) else {
                return Ok(Err((
                    "a block of memory".into(),
                    "the end of the file".into(),
                )));
            };
            if len == 0 || len > left || self.blocks.len() >= MAX_BLOCKS {
                return Ok(Err((
                    format!("a block of at most {left} bytes"),
                    format!("one of {len}"),
                )));
            }
            left -= len;
            self.blocks.push((name, len));
        }
        let largest = self.blocks.iter().enumerate();
        let largest = largest.max_by_key(|(i, (_, n))| (*n, std::cmp::Reverse(*i)));
        let Some((main, (_, len))) = largest else {
            return Ok(Err(("a block of memory".into(), "none".into())));
        };
        let pages = len.div_ceil(PAGE);
        // Nine bytes of the file at least for each page that it has.
        if pages > MAX_PAGES {
            return Ok(Err((
                format!("at most {MAX_PAGES} pages"),
                pages.to_string(),
            )));
        }
        self.main = main;
        Ok(Ok(()))
    }

    /// Takes one page.
    async fn page(&mut self, offset: u64, data: bool) -> Result<Result<(), Broken>, FormatError> {
        let len = if data { PAGE } else { 1 };
        let end = self.at.saturating_add(len);
        if end > self.end {
            return Ok(Err((
                "a page of memory".into(),
                "the end of the file".into(),
            )));
        }
        let at = self.at;
        let filled = match data {
            true => None,
            false => self.get(1).await?.first().copied(),
        };
        self.at = end;
        let size = self.blocks.get(self.now).map_or(0, |(_, n)| *n);
        if offset >= size {
            return Ok(Err((
                format!("a page below {size:#x}"),
                format!("one at {offset:#x}"),
            )));
        }
        if self.now != self.main {
            self.others += 1;
            return Ok(Ok(()));
        }
        let page = match filled {
            None if at >> (8 * PLACE) == 0 => Page::At(at),
            Some(0) => Page::Zero,
            // Never written since 2013, when a page of ones was sent so.
            _ => {
                gap(&mut self.gaps, at..end, || {
                    format!(
                        "the page at {offset:#x} of memory is filled with a byte that is not 0, or lies too far in the file"
                    )
                });
                Page::Missing
            }
        };
        self.places.set(offset / PAGE, page);
        Ok(Ok(()))
    }
}

/// Where parts of a machine's memory lie: offset in it, physical address, bytes.
fn parts(machine: &str, len: u64) -> (Vec<(u64, u64, u64)>, Option<&'static str>) {
    const FOUR: u64 = 4 << 30;
    let split = |low: u64| vec![(0, 0, low), (low, FOUR, len - low)];
    let kind = machine.trim_end_matches('\0');
    if kind.starts_with("virt") || kind.starts_with("mach-virt") {
        return (vec![(0, 1 << 30, len)], Some("aarch64"));
    }
    let q35 = kind.contains("q35");
    let low = match q35 {
        true if len >= 0xb000_0000 => 0x8000_0000,
        false if len >= 0xe000_0000 => 0xc000_0000,
        _ => len,
    };
    let pc = q35 || kind.starts_with("pc");
    let arch = pc.then_some("x86_64");
    match low < len && pc {
        true => (split(low), arch),
        false => (vec![(0, 0, len)], arch),
    }
}

/// Where the stream begins: behind libvirt's header and its description of the machine.
async fn begin(source: &dyn ByteSource, notes: &mut Vec<String>) -> Result<u64, FormatError> {
    let head = source
        .head(usize::try_from(LIBVIRT_HEADER).unwrap_or(92))
        .await?;
    if !head.starts_with(LIBVIRT) {
        return Ok(0);
    }
    let field = |at: usize| {
        le32(&head, at).ok_or_else(|| bad(0, "libvirt's header", "the end of the file"))
    };
    let (version, len, packed) = (field(16)?, field(20)?, field(28)?);
    if packed != 0 {
        return Err(FormatError::Unsupported {
            what: "a compressed saved state of libvirt",
            hint: "save it with save_image_format = \"raw\", or dump the guest's memory with virsh dump --memory-only",
        });
    }
    let at = LIBVIRT_HEADER + u64::from(len);
    note(notes, || {
        format!("saved by libvirt (version {version} of its header)")
    });
    let mut magic = [0; 8];
    if at + 8 > source.len() {
        return Err(bad(
            at,
            "QEMU's stream",
            "the end of the file; the state was cut short",
        ));
    }
    source.read_at(crate::FileOffset(at), &mut magic).await?;
    match magic.starts_with(MAGIC) {
        true => Ok(at),
        false => Err(bad(at, "QEMU's stream, version 3", format!("{magic:02x?}"))),
    }
}

#[async_trait]
impl ImageFormat for Savevm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn probe(&self, head: &[u8], _len: u64) -> bool {
        head.starts_with(MAGIC) || head.starts_with(LIBVIRT)
    }

    async fn open(&self, source: &dyn ByteSource) -> Result<Opened, FormatError> {
        let mut notes = Vec::new();
        let at = begin(source, &mut notes).await?;
        let mut w = Walk::new(source, at + MAGIC.len() as u64);
        let end = source.len();
        if let Err((expected, found)) = w.sections().await? {
            if w.blocks.is_empty() {
                return Err(bad(w.at, expected, found));
            }
            let from = w.at.min(end.saturating_sub(1));
            gap(&mut w.gaps, from..end, || {
                format!(
                    "expected {expected}, found {found}: {} bytes are not read",
                    end - from
                )
            });
        }
        let (name, len) = w.blocks.get(w.main).cloned().unwrap_or_default();
        let machine = w.machine.trim_end_matches('\0').to_owned();
        note(&mut notes, || {
            format!(
                "machine {machine}, memory {:?}",
                String::from_utf8_lossy(&name)
            )
        });
        let (parts, arch) = parts(&machine, len);
        if arch.is_none() {
            note(&mut notes, || {
                "where the memory of this kind of machine begins is not known; taken from 0 on"
                    .to_owned()
            });
        }
        let (image, missing) = lay_out(&w, &parts)?;
        if missing > 0 {
            let why = if w.complete {
                "never sent: they are taken for missing"
            } else {
                "missing: the stream ends before its end"
            };
            note(&mut notes, || format!("{missing} pages are {why}"));
        }
        let (runs, table) = image.finish().map_err(|e| FormatError::built(NAME, e))?;
        if runs.runs().is_empty() {
            return Err(FormatError::NoMemory { format: NAME });
        }
        Ok(Opened {
            layout: Layout {
                format: NAME.into(),
                version: Some("3".into()),
                runs,
                arch: arch.map(str::to_owned),
                dtb_hints: Vec::new(),
                notes,
                gaps: w.gaps,
                extents: Some(table.info.clone()),
                page_files: Vec::new(),
                told: Told::default(),
            },
            table: Some(table),
        })
    }
}

/// The pages in physical order, and how many are missing.
fn lay_out(w: &Walk<'_>, parts: &[(u64, u64, u64)]) -> Result<(ImageBuilder, u64), FormatError> {
    let (mut image, mut missing) = (ImageBuilder::default(), 0);
    for (offset, pa, len) in parts {
        let mut at = 0;
        while at < *len {
            let (page, same) = w.places.get((offset + at) / PAGE);
            let n = (same * PAGE).min(len - at);
            let built = match page {
                Page::Missing => {
                    missing += n.div_ceil(PAGE);
                    image.missing(pa + at, n)
                }
                Page::Zero => image.zeros(pa + at, n),
                Page::At(source) => image.stored(
                    pa + at,
                    n,
                    Stored {
                        source,
                        len: n,
                        rest: None,
                        codec: Codec::Raw,
                    },
                ),
            };
            built.map_err(|e| FormatError::built(NAME, e))?;
            at += n;
        }
    }
    Ok((image, missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_lies_where_machines_have_it() {
        let gib = |n: u64| n << 30;
        for (machine, len, want) in [
            ("pc-i440fx-7.2", gib(2), vec![(0, 0, gib(2))]),
            (
                "pc-i440fx-7.2",
                gib(8),
                vec![(0, 0, gib(3)), (gib(3), gib(4), gib(5))],
            ),
            (
                "pc-q35-7.2",
                gib(3),
                vec![(0, 0, gib(2)), (gib(2), gib(4), gib(1))],
            ),
            ("virt-7.2", gib(3), vec![(0, gib(1), gib(3))]),
        ] {
            assert_eq!(parts(machine, len).0, want, "{machine} {len:#x}");
        }
        assert_eq!(parts("isapc", 4096), (vec![(0, 0, 4096)], None));
    }
}
