//! Objects in pool memory, found by their tags in a pass over physical memory.
//!
//! ```text
//! _POOL_HEADER, 16 bytes: previous size, index, size, type, tag at 4 | optional headers | _OBJECT_HEADER | body
//! ```
//!
//! Where in its chunk an object begins depends on its optional headers, and memory that was given back may have lost its
//! header: so a body is looked for at every multiple of 16, and counts only if its fields make sense together. An object that
//! crosses pages that lie apart in RAM is read as if they did not.
//!
//! Sources: the public types `_POOL_HEADER`, `_OBJECT_HEADER`, `_EPROCESS`, `_FILE_OBJECT`, `_DRIVER_OBJECT`; before Windows 8 the top bit of a tag's last
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
/// Bytes of objects that are kept at most: hostile memory can be full of tags.
const KEPT: usize = 64 << 20;
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
        let sane = |p: u64| p.is_multiple_of(4) && p < 1 << 26;
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

/// An object of a type that is told by two numbers at its start, or an endpoint of a connection: its bytes and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Body {
    /// Its first bytes, as many as its type has; fewer at the end of memory.
    pub(super) bytes: Vec<u8>,
    /// Physical address.
    pub(super) physical: u64,
    /// Whether its chunk of the pool is free.
    pub(super) freed: bool,
}

/// What one pass over memory found: several views need it.
#[derive(Clone, Debug, Default)]
pub(super) struct Scanned {
    pub(super) processes: Vec<Found>,
    pub(super) drivers: Vec<Body>,
    pub(super) files: Vec<Body>,
    /// Endpoints, by the letter of their tag: `E` connections, `L` listeners, `A` of UDP.
    pub(super) endpoints: Vec<(u8, Body)>,
    pub(super) doubts: Vec<String>,
}

/// Bytes of an endpoint that are kept: its fields lie within.
const ENDPOINT: usize = 0x340;

/// What a tag leads to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Process,
    /// Kept if the first two numbers are these: `Type` and `Size` of the I/O manager's objects.
    Io(u16),
    Endpoint(u8),
}

/// Tags and what they lead to. Before Windows 8 protected ones have the top bit of the last letter set.
const TAGS: [(&[u8], Kind); 10] = [
    (b"Proc", Kind::Process),
    (b"Pro\xe3", Kind::Process),
    // IO_TYPE_DRIVER and IO_TYPE_FILE of `wdm.h`.
    (b"Driv", Kind::Io(4)),
    (b"Dri\xf6", Kind::Io(4)),
    (b"File", Kind::Io(5)),
    (b"Fil\xe5", Kind::Io(5)),
    (b"TcpE", Kind::Endpoint(b'E')),
    (b"TcpL", Kind::Endpoint(b'L')),
    (b"UdpA", Kind::Endpoint(b'A')),
    (b"TTcb", Kind::Endpoint(b'E')),
];

/// The pass.
struct Pass {
    layout: Layout,
    /// Bytes of a driver object and of a file object.
    driver: usize,
    file: usize,
    highest: u64,
    seen: BTreeSet<u64>,
    out: Scanned,
    /// Bytes of objects that are kept, and how many objects found no room.
    kept: usize,
    left_out: u64,
}

/// Looks for objects in all memory, once for a kernel.
pub(super) fn scanned<'k>(k: &'k Kernel<'_>) -> Result<&'k Scanned, WindowsError> {
    if let Some(s) = k.scanned.get() {
        return Ok(s);
    }
    let types = k.symbols.types();
    let size = |ty| Ok::<_, WindowsError>(usize::try_from(types.size_of(ty)?).unwrap_or(0));
    let runs = k.runs().runs();
    let highest = runs.iter().map(|r| r.pa.saturating_add(r.len)).max();
    let mut pass = Pass {
        layout: Layout::new(k)?,
        driver: size("_DRIVER_OBJECT")?,
        file: size("_FILE_OBJECT")?,
        highest: highest.unwrap_or(0),
        seen: BTreeSet::new(),
        out: Scanned::default(),
        kept: 0,
        left_out: 0,
    };
    let finders = TAGS.map(|(tag, kind)| (memmem::Finder::new(tag), kind));
    let (mut unread, mut buf) = (0u64, Vec::new());
    for run in runs {
        let end = run.pa.saturating_add(run.len);
        let mut at = run.pa;
        while at < end {
            let n = (end - at).min(STEP);
            // An object may begin in one step and end in the next.
            let more = (end - at).min(STEP + (pass.layout.size + HEADERS + 16) as u64);
            unread += fill(k, at, more, &mut buf);
            for (f, kind) in &finders {
                for tag in f.find_iter(&buf) {
                    let header = tag.checked_sub(4).filter(|h| h.is_multiple_of(16));
                    if let Some(header) = header.filter(|h| (*h as u64) < n) {
                        pass.chunk(*kind, &buf, header, at);
                    }
                }
            }
            at += n;
        }
    }
    let (mut out, left_out) = (pass.out, pass.left_out);
    if left_out > 0 {
        out.doubts.push(format!(
            "{left_out} objects are left out: those before them take {KEPT} bytes"
        ));
    }
    if unread > 0 {
        out.doubts.push(format!(
            "{unread} bytes of memory could not be read for the scan"
        ));
    }
    out.processes.sort_by_key(|f| f.physical);
    out.files.sort_by_key(|f| f.physical);
    out.drivers.sort_by_key(|f| f.physical);
    out.endpoints.sort_by_key(|(_, f)| f.physical);
    Ok(k.scanned.get_or_init(|| out))
}

impl Pass {
    /// Whether the object at a place is new and there is room for it.
    fn is_new(&mut self, physical: u64, bytes: usize) -> bool {
        if self.seen.contains(&physical) {
            return false;
        }
        // The place is kept too.
        let bytes = bytes + 64;
        if self.kept + bytes > KEPT {
            self.left_out += 1;
            return false;
        }
        self.kept += bytes;
        self.seen.insert(physical)
    }

    /// The chunk of the pool whose header begins at this index of what was read from `at` on.
    fn chunk(&mut self, kind: Kind, buf: &[u8], header: usize, at: u64) {
        let freed = buf.get(header..header + 16).is_some_and(is_free);
        let body = |from: usize, bytes: usize| Body {
            bytes: buf[from..buf.len().min(from + bytes)].to_vec(),
            physical: at + from as u64,
            freed,
        };
        if let Kind::Endpoint(letter) = kind {
            let from = header + 16;
            if from < buf.len() && self.is_new(at + from as u64, ENDPOINT) {
                self.out.endpoints.push((letter, body(from, ENDPOINT)));
            }
            return;
        }
        for from in (header + 0x20..header + HEADERS).step_by(16) {
            let Some(bytes) = buf.get(from..) else { return };
            let physical = at + from as u64;
            match kind {
                Kind::Process => {
                    let Some(found) = self.layout.read(bytes, self.highest) else {
                        continue;
                    };
                    if self.is_new(physical, size_of::<Found>()) {
                        self.out.processes.push(Found {
                            physical,
                            freed,
                            ..found
                        });
                    }
                }
                Kind::Io(number) => {
                    let size = if number == 4 { self.driver } else { self.file };
                    let half = |i: usize| {
                        let b = bytes.get(i..i + 2).and_then(|b| b.first_chunk());
                        b.map(|b| u16::from_le_bytes(*b))
                    };
                    if half(0) != Some(number) || half(2).map(usize::from) != Some(size) {
                        continue;
                    }
                    if self.is_new(physical, size) {
                        let found = body(from, size);
                        if number == 4 {
                            self.out.drivers.push(found);
                        } else {
                            self.out.files.push(found);
                        }
                    }
                }
                Kind::Endpoint(_) => {}
            }
            return;
        }
    }
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
