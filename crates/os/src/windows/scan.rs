//! Objects in pool memory, found by their tags in a pass over physical memory.
//!
//! ```text
//! _POOL_HEADER, 16 bytes: previous size, index, size, type, tag at 4 | optional headers | _OBJECT_HEADER | body
//! ```
//!
//! Where in its chunk an object begins depends on its optional headers, and memory that was given back may have lost its
//! header: so a body is looked for at every multiple of 16, and counts only if its fields make sense together.
//!
//! Sources: the public types `_POOL_HEADER`, `_OBJECT_HEADER`, `_EPROCESS`; before Windows 8 the top bit of a tag's last
//! letter marks protected objects.

use super::{Kernel, WindowsError, time};
use memchr::memmem;
use ramsift_layers::PhysAddr;
use ramsift_symbols::Field;
use std::collections::BTreeSet;

/// Bytes that are looked at together.
const STEP: u64 = 1 << 20;
/// Optional headers and the object's own lie in front of a body, at most so many bytes.
const HEADERS: usize = 0x100;
/// Objects at most.
const MOST: usize = 1 << 16;
/// Tags of a process.
const TAGS: [&[u8]; 2] = [b"Proc", b"Pro\xe3"];

/// A process object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) pid: i64,
    pub(super) ppid: i64,
    pub(super) name: String,
    /// FILETIMEs.
    pub(super) created: u64,
    pub(super) exited: u64,
    pub(super) dtb: u64,
    /// Physical address of the `_EPROCESS`.
    pub(super) physical: u64,
    /// Whether its chunk of the pool is free.
    pub(super) freed: bool,
}

/// Where in a process object things are.
struct Layout {
    size: usize,
    pid: Field,
    ppid: Field,
    name: Field,
    created: Field,
    exited: Field,
    dtb: Field,
    kind: Field,
}

impl Layout {
    fn new(k: &Kernel<'_>) -> Result<Self, WindowsError> {
        let types = k.symbols.types();
        let field = |path| types.field("_EPROCESS", path);
        Ok(Self {
            size: usize::try_from(types.size_of("_EPROCESS")?).unwrap_or(usize::MAX),
            pid: field("UniqueProcessId")?,
            ppid: field("InheritedFromUniqueProcessId")?,
            name: field("ImageFileName")?,
            created: field("CreateTime")?,
            exited: field("ExitTime")?,
            dtb: field("Pcb.DirectoryTableBase")?,
            kind: field("Pcb.Header.Type")?,
        })
    }

    /// The process whose object begins at the first of these bytes, if one does.
    fn read(&self, body: &[u8], highest: u64) -> Option<Found> {
        let number = |f: &Field| {
            let from = usize::try_from(f.offset).ok()?;
            let raw = body.get(from..from + usize::try_from(f.size).ok()?.min(8))?;
            let mut all = [0; 8];
            all[..raw.len()].copy_from_slice(raw);
            Some(
                f.value(&all[..raw.len()])
                    .unwrap_or(u64::from_le_bytes(all)),
            )
        };
        // 3 is what the kernel's dispatcher calls a process (`ProcessObject` of `_KOBJECTS`).
        (number(&self.kind)? & 0x7f == 3).then_some(())?;
        let (pid, ppid) = (number(&self.pid)?, number(&self.ppid)?);
        let dtb = number(&self.dtb)?;
        let sane = |p: u64| p % 4 == 0 && p < 1 << 26;
        (sane(pid) && sane(ppid) && pid > 0).then_some(())?;
        let table = dtb & !0xfff;
        (table != 0 && table < highest).then_some(())?;
        let (created, exited) = (number(&self.created)?, number(&self.exited)?);
        let is_time = |t: u64| t == 0 || time(t).is_some();
        (is_time(created) && is_time(exited)).then_some(())?;
        let from = usize::try_from(self.name.offset).ok()?;
        let raw = body.get(from..from + usize::try_from(self.name.size).ok()?)?;
        let end = raw.iter().position(|b| *b == 0)?;
        let name = std::str::from_utf8(&raw[..end]).ok()?;
        let prints = !name.is_empty() && name.chars().all(|c| !c.is_control());
        prints.then(|| Found {
            pid: pid.cast_signed(),
            ppid: ppid.cast_signed(),
            name: name.to_owned(),
            created,
            exited,
            dtb,
            physical: 0,
            freed: false,
        })
    }
}

/// All process objects in memory, by their places.
pub(super) fn processes(
    k: &Kernel<'_>,
    doubts: &mut Vec<String>,
) -> Result<Vec<Found>, WindowsError> {
    let layout = Layout::new(k)?;
    let runs = k.runs().runs();
    let highest = runs.iter().map(|r| r.pa.saturating_add(r.len)).max();
    let highest = highest.unwrap_or(0);
    let mut seen = BTreeSet::new();
    let mut out: Vec<Found> = Vec::new();
    let mut unread = 0u64;
    let finders = TAGS.map(memmem::Finder::new);
    let mut buf = Vec::new();
    for run in runs {
        let end = run.pa.saturating_add(run.len);
        let mut at = run.pa;
        while at < end {
            let n = (end - at).min(STEP);
            // An object may begin in one step and end in the next.
            let more = (end - at).min(STEP + (layout.size + HEADERS + 16) as u64);
            unread += fill(k, at, more, &mut buf);
            for f in &finders {
                for tag in f.find_iter(&buf) {
                    let Some(header) = tag.checked_sub(4).filter(|h| h % 16 == 0) else {
                        continue;
                    };
                    if header as u64 >= n {
                        break;
                    }
                    for body in (header + 0x20..header + HEADERS).step_by(16) {
                        let Some(bytes) = buf.get(body..) else { break };
                        let Some(found) = layout.read(bytes, highest) else {
                            continue;
                        };
                        let physical = at + body as u64;
                        if out.len() < MOST && seen.insert(physical) {
                            out.push(Found {
                                physical,
                                freed: is_free(&buf[header..header + 16]),
                                ..found
                            });
                        }
                        break;
                    }
                }
            }
            at += n;
        }
    }
    if unread > 0 {
        doubts.push(format!(
            "{unread} bytes of memory could not be read for the scan"
        ));
    }
    out.sort_by_key(|f| f.physical);
    Ok(out)
}

/// Whether a chunk of the pool is free: its type is 0.
fn is_free(header: &[u8]) -> bool {
    header.get(3).is_some_and(|t| *t == 0)
}

/// Physical memory from `at` on, zeros where it can't be read; how many bytes those are.
fn fill(k: &Kernel<'_>, at: u64, len: u64, buf: &mut Vec<u8>) -> u64 {
    let len = usize::try_from(len).unwrap_or(0);
    buf.clear();
    buf.resize(len, 0);
    let memory = k.memory();
    if memory.read_phys(PhysAddr(at), buf).is_ok() {
        return 0;
    }
    let mut lost = 0;
    for (i, page) in buf.chunks_mut(4096).enumerate() {
        if memory
            .read_phys(PhysAddr(at + (i * 4096) as u64), page)
            .is_err()
        {
            page.fill(0);
            lost += page.len() as u64;
        }
    }
    lost
}
