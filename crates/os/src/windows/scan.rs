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
    /// Its name, of objects that have a header with one.
    pub(super) name: Option<Named>,
}

/// An object's name: where its text lies, and bytes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) length: u16,
    pub(super) buffer: u64,
}

/// What one pass over memory found: several views need it.
#[derive(Clone, Debug, Default)]
pub(super) struct Scanned {
    pub(super) processes: Vec<Found>,
    pub(super) drivers: Vec<Body>,
    pub(super) files: Vec<Body>,
    pub(super) threads: Vec<Body>,
    pub(super) mutants: Vec<Body>,
    /// Symbolic links of the object manager.
    pub(super) links: Vec<Body>,
    /// Records of modules.
    pub(super) modules: Vec<Body>,
    /// Hives; the first bytes of each.
    pub(super) hives: Vec<Body>,
    /// Endpoints, by the letter of their tag: `E` connections, `L` listeners, `A` of UDP.
    pub(super) endpoints: Vec<(u8, Body)>,
    pub(super) doubts: Vec<String>,
}

/// Bytes of an endpoint that are kept: its fields lie within.
pub(super) const ENDPOINT: usize = 0x340;

/// What a tag leads to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Process,
    /// Kept if the first two numbers are these: `Type` and `Size` of the I/O manager's objects.
    Io(u16),
    Endpoint(u8),
    Thread,
    Mutant,
    Link,
    /// Not objects: they begin behind the pool's header.
    Module,
    Hive,
}

/// Tags and what they lead to. Before Windows 8 protected ones have the top bit of the last letter set.
const TAGS: [(&[u8; 4], Kind); 18] = [
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
    (b"Thre", Kind::Thread),
    (b"Thr\xe5", Kind::Thread),
    (b"Muta", Kind::Mutant),
    (b"Mut\xe1", Kind::Mutant),
    (b"Symb", Kind::Link),
    (b"Sym\xe2", Kind::Link),
    (b"MmLd", Kind::Module),
    (b"CM10", Kind::Hive),
];

/// Bytes of a hive's object that are kept: its mark stands at the start.
const HIVE: usize = 0x40;
/// What `_HHIVE.Signature` is.
const HIVE_MARK: u32 = 0xbee0_bee0;

/// Where things are in the other objects, and how long those are.
struct Shapes {
    driver: usize,
    file: usize,
    thread: usize,
    thread_kind: Field,
    thread_pid: Field,
    thread_tid: Field,
    thread_created: Field,
    mutant: usize,
    link: usize,
    link_target: usize,
    module: usize,
    module_base: Field,
    module_size: Field,
    /// Of the headers in front of an object: from the header to the body, the mask of optional ones, the bytes of the first
    /// two of those, and the name in the second.
    body: usize,
    mask: usize,
    creator: usize,
    named: usize,
    name: usize,
}

impl Shapes {
    fn new(k: &Kernel<'_>) -> Result<Self, WindowsError> {
        let types = k.symbols.types();
        let field = |ty, path| types.field(ty, path);
        let size = |ty| Ok::<_, WindowsError>(usize::try_from(types.size_of(ty)?).unwrap_or(0));
        let place = |ty, path| {
            let f = types.field(ty, path)?;
            Ok::<_, WindowsError>(usize::try_from(f.offset).unwrap_or(0))
        };
        let module = k.module_type();
        Ok(Self {
            driver: size("_DRIVER_OBJECT")?,
            file: size("_FILE_OBJECT")?,
            thread: size("_ETHREAD")?,
            thread_kind: field("_ETHREAD", "Tcb.Header.Type")?,
            thread_pid: field("_ETHREAD", "Cid.UniqueProcess")?,
            thread_tid: field("_ETHREAD", "Cid.UniqueThread")?,
            thread_created: field("_ETHREAD", "CreateTime")?,
            mutant: size("_KMUTANT")?,
            link: size("_OBJECT_SYMBOLIC_LINK")?,
            link_target: place("_OBJECT_SYMBOLIC_LINK", "LinkTarget")?,
            module: size(module)?,
            module_base: field(module, "DllBase")?,
            module_size: field(module, "SizeOfImage")?,
            body: place("_OBJECT_HEADER", "Body")?,
            mask: place("_OBJECT_HEADER", "InfoMask")?,
            creator: size("_OBJECT_HEADER_CREATOR_INFO").unwrap_or(0x20),
            named: size("_OBJECT_HEADER_NAME_INFO")?,
            name: place("_OBJECT_HEADER_NAME_INFO", "Name")?,
        })
    }

    /// The name of the object whose body begins at an index.
    fn name_of(&self, buf: &[u8], body: usize) -> Option<Named> {
        let header = body.checked_sub(self.body)?;
        let mask = *buf.get(header + self.mask)?;
        let creator = if mask & 1 != 0 { self.creator } else { 0 };
        let info = header
            .checked_sub(self.named + creator)
            .filter(|_| mask & 2 != 0)?;
        let at = info + self.name;
        Some(Named {
            length: half(buf, at)?,
            buffer: word(buf, at + 8)?,
        })
    }

    /// Bytes that are kept of the object of a kind whose body begins with these, if one does.
    fn fits(&self, kind: Kind, body: &[u8]) -> Option<usize> {
        let number = |f: &Field| {
            let from = usize::try_from(f.offset).ok()?;
            f.value(body.get(from..)?)
        };
        let is = |good: bool, len: usize| good.then_some(len);
        let kernel = |va: u64| va >> 47 == 0x1_ffff;
        match kind {
            Kind::Io(n) => {
                let len = if n == 4 { self.driver } else { self.file };
                is(
                    half(body, 0)? == n && usize::from(half(body, 2)?) == len,
                    len,
                )
            }
            // 6 is what the kernel's dispatcher calls a thread (`ThreadObject` of `_KOBJECTS`).
            Kind::Thread => {
                let sane = |id: u64| id.is_multiple_of(4) && id < 1 << 26;
                let good = number(&self.thread_kind)? & 0x7f == 6
                    && sane(number(&self.thread_pid)?)
                    && sane(number(&self.thread_tid)?)
                    && time(number(&self.thread_created)?).is_some();
                is(good, self.thread)
            }
            // 2 is a mutex (`MutantObject`); the third byte counts its words of four bytes.
            Kind::Mutant => is(
                body.first()? & 0x7f == 2 && usize::from(*body.get(2)?) * 4 == self.mutant,
                self.mutant,
            ),
            Kind::Link => {
                let (len, most) = (
                    half(body, self.link_target)?,
                    half(body, self.link_target + 2)?,
                );
                let good = time(word(body, 0)?).is_some()
                    && len > 0
                    && len % 2 == 0
                    && len <= most
                    && kernel(word(body, self.link_target + 8)?);
                is(good, self.link)
            }
            Kind::Module => {
                let (base, size) = (number(&self.module_base)?, number(&self.module_size)?);
                let good = kernel(base) && base % 4096 == 0 && size > 0 && size < 1 << 30;
                is(good, self.module)
            }
            Kind::Hive => is(word(body, 0)? as u32 == HIVE_MARK, HIVE),
            Kind::Process | Kind::Endpoint(_) => None,
        }
    }
}

fn half(b: &[u8], at: usize) -> Option<u16> {
    let raw = b.get(at..at.checked_add(2)?)?.first_chunk()?;
    Some(u16::from_le_bytes(*raw))
}

fn word(b: &[u8], at: usize) -> Option<u64> {
    let raw = b.get(at..at.checked_add(8)?)?.first_chunk()?;
    Some(u64::from_le_bytes(*raw))
}

/// The pass.
struct Pass {
    layout: Layout,
    shapes: Shapes,
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
    let runs = k.runs().runs();
    let highest = runs.iter().map(|r| r.pa.saturating_add(r.len)).max();
    let mut pass = Pass {
        layout: Layout::new(k)?,
        shapes: Shapes::new(k)?,
        highest: highest.unwrap_or(0),
        seen: BTreeSet::new(),
        out: Scanned::default(),
        kept: 0,
        left_out: 0,
    };
    // Most chunks begin with a letter that no tag has.
    let mut first = [false; 256];
    TAGS.iter()
        .for_each(|(tag, _)| first[usize::from(tag[0])] = true);
    let largest = pass.layout.size.max(pass.shapes.thread).max(ENDPOINT);
    let (mut unread, mut buf) = (0u64, Vec::new());
    // An object may begin in one step and end in the next.
    let behind = (largest + HEADERS + 16) as u64;
    for run in runs {
        let end = run.pa.saturating_add(run.len);
        // What others looked at holds no headers but theirs.
        let whole = || std::iter::once(run.pa..end).collect();
        let rest = k
            .pool
            .as_ref()
            .map_or_else(whole, |p| p.missing(run.pa..end));
        let known = k.pool.as_ref().map_or(&[][..], |p| &p.headers);
        let from = known.partition_point(|h| *h < run.pa);
        let mut known = known[from..]
            .iter()
            .copied()
            .take_while(|h| *h < end)
            .peekable();
        // All in the order of memory.
        for part in rest.into_iter().chain(std::iter::once(end..end)) {
            while let Some(at) = known.next_if(|h| *h < part.start) {
                unread += fill(k, at, (end - at).min(behind), &mut buf);
                if let Some(tag) = buf.get(4..8)
                    && let Some((_, kind)) = TAGS.iter().find(|(t, _)| t[..] == *tag)
                {
                    pass.chunk(*kind, &buf, 0, at);
                }
            }
            let mut at = part.start.next_multiple_of(16);
            while at < part.end {
                let n = (part.end - at).min(STEP);
                unread += fill(k, at, (end - at).min(n + behind), &mut buf);
                let headers = usize::try_from(n).unwrap_or(0).min(buf.len());
                for header in (0..headers).step_by(16) {
                    let Some(tag) = buf.get(header + 4..header + 8) else {
                        break;
                    };
                    if first[usize::from(tag[0])]
                        && let Some((_, kind)) = TAGS.iter().find(|(t, _)| t[..] == *tag)
                    {
                        pass.chunk(*kind, &buf, header, at);
                    }
                }
                at += n;
            }
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
            name: None,
        };
        let places = match kind {
            Kind::Endpoint(letter) => {
                let from = header + 16;
                if from < buf.len() && self.is_new(at + from as u64, ENDPOINT) {
                    self.out.endpoints.push((letter, body(from, ENDPOINT)));
                }
                return;
            }
            Kind::Module | Kind::Hive => header + 16..header + 17,
            _ => header + 0x20..header + HEADERS,
        };
        for from in places.step_by(16) {
            let Some(bytes) = buf.get(from..) else { return };
            let physical = at + from as u64;
            if kind == Kind::Process {
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
                return;
            }
            let Some(len) = self.shapes.fits(kind, bytes) else {
                continue;
            };
            if self.is_new(physical, len) {
                let mut found = body(from, len);
                if !matches!(kind, Kind::Module | Kind::Hive) {
                    found.name = self.shapes.name_of(buf, from);
                }
                let out = &mut self.out;
                match kind {
                    Kind::Io(4) => out.drivers.push(found),
                    Kind::Io(_) => out.files.push(found),
                    Kind::Thread => out.threads.push(found),
                    Kind::Mutant => out.mutants.push(found),
                    Kind::Link => out.links.push(found),
                    Kind::Module => out.modules.push(found),
                    Kind::Hive => out.hives.push(found),
                    Kind::Process | Kind::Endpoint(_) => {}
                }
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
