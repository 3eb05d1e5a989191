//! Dumps of Xen guests (`xl dump-core`): an ELF core without program headers, whose sections hold the pages and their numbers.
//!
//! ```text
//! .note.Xen        "Xen" notes; type 0x2000001: magic 0xF00FEBED (paravirtual) or 0xF00FEBEE (HVM), processors, pages, bytes of a page
//! .xen_prstatus    vcpu_guest_context of each processor
//! .xen_pages       the pages
//! .xen_pfn         HVM: u64 number of each page
//! .xen_p2m         paravirtual: u64 number of each page as the guest counts, u64 number in the machine
//! ```
//!
//! A number of all ones is no page. Page tables of paravirtual guests name pages of the machine.
//!
//! Sources: Xen `docs/misc/dump-core-format.txt`, `xen/include/public/arch-x86/xen.h`.

use super::bytes::{le32, le64, text};
use super::twice::lay_out;
use super::{FormatError, ImageFormat, Layout, MAX_RUNS, Opened, Told, note};
use crate::FileOffset;
use crate::run::Run;
use crate::source::ByteSource;
use async_trait::async_trait;

const NAME: &str = "xen_core";
const HEADER: u64 = 64;
const SECTION: u64 = 64;
const MAX_SECTIONS: u64 = 1024;
/// Bytes of names of sections that are read.
const MAX_NAMES: u64 = 64 << 10;
const MAX_NOTES: u64 = 1 << 20;
const DUMPCORE_HEADER: u32 = 0x200_0001;
const HVM: u64 = 0xf00f_ebee;
/// Bytes of page numbers that are read at a time: whole entries of both kinds.
const STEP: u64 = 4 << 20;
/// `vcpu_guest_context` of x86-64, and CR3 in it: FPU 512, flags 8, registers 200, traps 4096, LDT 16, GDT 136, stack 16, CR0 to CR2.
const CONTEXT: u64 = 5168;
const CR3: usize = 512 + 8 + 200 + 4096 + 16 + 136 + 16 + 3 * 8;

/// Dumps of Xen guests.
#[derive(Clone, Copy, Debug)]
pub struct XenCore;

fn bad(offset: u64, expected: impl Into<String>, found: impl Into<String>) -> FormatError {
    FormatError::Header {
        format: NAME,
        offset,
        expected: expected.into(),
        found: found.into(),
    }
}

fn half(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(b.get(at..at + 2)?.try_into().ok()?))
}

/// A section: where it lies and its bytes.
#[derive(Clone, Copy, Debug)]
struct Section {
    at: u64,
    len: u64,
}

impl Section {
    /// Bytes of it that a file of `len` bytes has.
    fn there(self, len: u64) -> u64 {
        len.saturating_sub(self.at).min(self.len)
    }

    async fn read(self, source: &dyn ByteSource, most: u64) -> Result<Vec<u8>, FormatError> {
        let n = self.there(source.len()).min(most);
        let n = usize::try_from(n).unwrap_or(0);
        Ok(source
            .read_vec(FileOffset(self.at.min(source.len())), n)
            .await?)
    }
}

/// The sections of the file, by name.
struct Sections {
    headers: Vec<u8>,
    names: Vec<u8>,
    at: u64,
}

impl Sections {
    async fn read(source: &dyn ByteSource, head: &[u8]) -> Result<Self, FormatError> {
        let field =
            |v: Option<u64>| v.ok_or_else(|| bad(0, "an ELF header", "the end of the file"));
        let at = field(le64(head, 40))?;
        let size = field(half(head, 58).map(u64::from))?;
        let count = field(half(head, 60).map(u64::from))?;
        let names = field(half(head, 62).map(u64::from))?;
        if size != SECTION || count > MAX_SECTIONS || names >= count {
            return Err(bad(
                58,
                format!(
                    "at most {MAX_SECTIONS} section headers of {SECTION} bytes, and their names"
                ),
                format!("{count} of {size}, names in {names}"),
            ));
        }
        let len = count * SECTION;
        if at.checked_add(len).is_none_or(|end| end > source.len()) {
            return Err(bad(
                at,
                "the section headers inside the file",
                "the end of the file; the dump was cut short, take it again",
            ));
        }
        let n = usize::try_from(len).unwrap_or(0);
        let headers = source.read_vec(FileOffset(at), n).await?;
        let mut out = Self {
            headers,
            names: Vec::new(),
            at,
        };
        let names = usize::try_from(names).unwrap_or(0);
        if let Some(s) = out.number(names) {
            out.names = s.read(source, MAX_NAMES).await?;
        }
        Ok(out)
    }

    fn header(&self, i: usize) -> Option<&[u8]> {
        let len = usize::try_from(SECTION).unwrap_or(64);
        self.headers.get(i * len..(i + 1) * len)
    }

    fn number(&self, i: usize) -> Option<Section> {
        let h = self.header(i)?;
        Some(Section {
            at: le64(h, 24)?,
            len: le64(h, 32)?,
        })
    }

    fn named(&self, name: &str) -> Option<Section> {
        let count = self.headers.len() / usize::try_from(SECTION).unwrap_or(64);
        let found = (0..count).find(|i| {
            let at = self.header(*i).and_then(|h| le32(h, 0));
            let at = at.and_then(|a| usize::try_from(a).ok());
            let of = at.and_then(|a| self.names.get(a..));
            of.is_some_and(|n| text(n) == name.as_bytes())
        });
        self.number(found?)
    }
}

/// What the note says: whether the guest is HVM, and the bytes of a page.
fn about(notes: &[u8]) -> (Option<bool>, u64) {
    let mut at = 0usize;
    while let (Some(name), Some(desc), Some(kind)) = (
        le32(notes, at).map(|n| n as usize),
        le32(notes, at + 4).map(|n| n as usize),
        le32(notes, at + 8),
    ) {
        let Some(data) = (at + 12).checked_add(name.next_multiple_of(4)) else {
            break;
        };
        if kind == DUMPCORE_HEADER {
            let magic = le64(notes, data);
            let page = le64(notes, data.saturating_add(24)).unwrap_or(4096);
            return (magic.map(|m| m == HVM), page);
        }
        let Some(next) = data.checked_add(desc.next_multiple_of(4)) else {
            break;
        };
        at = next;
    }
    (None, 4096)
}

#[async_trait]
impl ImageFormat for XenCore {
    fn name(&self) -> &'static str {
        NAME
    }

    fn probe(&self, head: &[u8], _len: u64) -> bool {
        // A 64-bit little-endian core without program headers, with sections.
        head.starts_with(b"\x7fELF\x02\x01")
            && half(head, 16) == Some(4)
            && half(head, 56) == Some(0)
            && half(head, 60).is_some_and(|n| n > 0)
    }

    async fn open(&self, source: &dyn ByteSource) -> Result<Opened, FormatError> {
        let head = source.head(usize::try_from(HEADER).unwrap_or(64)).await?;
        let sections = Sections::read(source, &head).await?;
        let need = |name: &str| {
            sections.named(name).ok_or_else(|| {
                bad(
                    sections.at,
                    format!("a section {name}"),
                    "none of that name",
                )
            })
        };
        let pages = need(".xen_pages")?;
        let (numbers, pv) = match sections.named(".xen_pfn") {
            Some(s) => (s, false),
            None => (need(".xen_p2m")?, true),
        };
        let notes_of = match sections.named(".note.Xen") {
            Some(s) => s.read(source, MAX_NOTES).await?,
            None => Vec::new(),
        };
        let (hvm, page) = about(&notes_of);
        if !page.is_power_of_two() || !(4096..=65_536).contains(&page) {
            return Err(bad(0, "pages of 4096 to 65536 bytes", page.to_string()));
        }
        let (mut notes, mut gaps) = (Vec::new(), Vec::new());
        let runs = runs(source, pages, numbers, page, if pv { 16 } else { 8 }).await?;
        let short = pages.len - pages.there(source.len());
        if short > 0 {
            note(&mut notes, || {
                format!("the dump is cut short: {short} bytes of pages are missing")
            });
        }
        let named: u64 = runs.iter().map(|r| r.len).sum();
        if named < pages.len / page * page {
            note(&mut notes, || {
                format!(
                    "{} bytes of pages have no number: the guest had none there",
                    pages.len - named
                )
            });
        }
        let mut dtb_hints = Vec::new();
        if pv {
            note(&mut notes, || {
                "a paravirtual guest: its page tables name pages of the machine, so its kernel can't be read".to_owned()
            });
        } else if let Some(s) = sections.named(".xen_prstatus")
            && s.len.is_multiple_of(CONTEXT)
        {
            let all = s.read(source, 256 * CONTEXT).await?;
            for c in all.chunks_exact(usize::try_from(CONTEXT).unwrap_or(1)) {
                let cr3 = le64(c, CR3).unwrap_or(0) & 0x000f_ffff_ffff_f000;
                if cr3 != 0 && !dtb_hints.contains(&cr3) {
                    dtb_hints.push(cr3);
                }
            }
        }
        let runs = lay_out(source, runs, &mut notes, &mut gaps).await?;
        if runs.runs().is_empty() {
            return Err(FormatError::NoMemory { format: NAME });
        }
        let arch = match half(&head, 18) {
            Some(62) => Some("x86_64"),
            Some(183) => Some("aarch64"),
            _ => None,
        };
        let kind = if hvm == Some(true) || !pv {
            "HVM"
        } else {
            "paravirtual"
        };
        Ok(Layout {
            format: NAME.into(),
            version: Some(kind.into()),
            runs,
            arch: arch.map(str::to_owned),
            dtb_hints,
            notes,
            gaps,
            extents: None,
            page_files: Vec::new(),
            told: Told::default(),
        }
        .into())
    }
}

/// The runs of pages that follow one another in memory and in the file.
async fn runs(
    source: &dyn ByteSource,
    pages: Section,
    numbers: Section,
    page: u64,
    entry: u64,
) -> Result<Vec<Run>, FormatError> {
    let count = (numbers.len / entry).min(pages.len / page);
    let there = pages.there(source.len());
    if numbers.there(source.len()) < count * entry {
        return Err(bad(
            numbers.at,
            format!("the numbers of {count} pages inside the file"),
            "the end of the file; the dump was cut short, take it again",
        ));
    }
    let mut out: Vec<Run> = Vec::new();
    let (mut i, step) = (0, STEP / entry);
    while i < count {
        let n = step.min(count - i);
        let len = usize::try_from(n * entry).unwrap_or(0);
        let at = FileOffset(numbers.at + i * entry);
        let bytes = source.read_vec(at, len).await?;
        for (k, e) in bytes
            .chunks_exact(usize::try_from(entry).unwrap_or(8))
            .enumerate()
        {
            let number = le64(e, 0).unwrap_or(u64::MAX);
            let place = (i + k as u64) * page;
            let Some(pa) = number.checked_mul(page).filter(|_| number != u64::MAX) else {
                continue;
            };
            let stored = there.saturating_sub(place).min(page);
            match out.last_mut() {
                Some(l)
                    if l.pa.checked_add(l.len) == Some(pa)
                        && l.file + l.len == pages.at + place
                        && l.stored == l.len =>
                {
                    l.len += page;
                    l.stored += stored;
                }
                _ => out.push(Run {
                    pa,
                    len: page,
                    file: pages.at.saturating_add(place),
                    stored,
                }),
            }
            if out.len() > MAX_RUNS {
                return Err(bad(
                    numbers.at,
                    format!("at most {MAX_RUNS} ranges of pages"),
                    "more; convert it to raw",
                ));
            }
        }
        i += n;
    }
    Ok(out)
}
