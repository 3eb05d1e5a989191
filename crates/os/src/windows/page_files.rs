//! Page files of the captured machine: which there are, and whether those at hand are its own.
//!
//! A page file says of itself neither whose it is nor what is in it. So what is known of its pages is compared: a process block
//! (PEB) names the program that the kernel mapped, a thread block (TEB) begins with its own address. Where all differ it is another
//! machine's, and nothing is read from it; where some do, it was copied at another time than memory.
//!
//! Sources: the public types `_MMPAGING_FILE`, `_PEB`, `_NT_TIB`; "Windows Internals", chapter on memory management, for page
//! files and the store of compressed pages behind one that is on no disk.

use super::space::PageError;
use super::{Kernel, WindowsError, lists};
use ramsift_layers::page_file::{self, PageFile};
use std::cell::RefCell;

/// Pages that are compared at most.
const COMPARED: usize = 256;
/// Threads of a process whose blocks are looked at.
const THREADS: usize = 64;
/// Page files of a machine.
const MOST: usize = page_file::MOST as usize;

/// What is thought of a page file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// Nothing of what is known of the machine lies in it.
    Unproved,
    /// As many pages as this were what they should be, and none was not.
    Own(usize),
    /// Some pages were what they should be, and others were not: right and wrong ones.
    Mixed(usize, usize),
    /// No page was what it should be.
    Foreign(usize),
}

/// A page file at hand.
#[derive(Debug)]
pub(super) struct Attached {
    /// Path or URL.
    pub(super) name: String,
    /// Bytes of it.
    pub(super) bytes: u64,
    pages: u64,
    trust: RefCell<Trust>,
}

/// What the kernel knows of a page file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// Its path, as the kernel opened it.
    pub(super) name: Option<String>,
    /// Pages of it.
    pub(super) pages: Option<u64>,
    /// Whether it is on no disk: its pages are compressed, in the store of a process.
    pub(super) compressed: bool,
}

/// The page files of a machine, by number.
#[derive(Debug, Default)]
pub(super) struct PageFiles {
    files: [Option<Attached>; MOST],
    known: RefCell<[Option<Known>; MOST]>,
}

impl PageFiles {
    /// Those at hand.
    pub(super) fn new(files: &[PageFile]) -> Self {
        let mut out = Self::default();
        for f in files {
            if let Some(slot) = out.files.get_mut(usize::from(f.number)) {
                *slot = Some(Attached {
                    name: f.pin.to_string(),
                    bytes: f.pin.size(),
                    pages: f.pages(),
                    trust: RefCell::new(Trust::Unproved),
                });
            }
        }
        out
    }

    /// The one of a number, if it is at hand.
    pub(super) fn attached(&self, number: usize) -> Option<&Attached> {
        self.files.get(number)?.as_ref()
    }

    /// Pages of those at hand.
    pub(super) fn pages(&self) -> u64 {
        self.files.iter().flatten().map(|f| f.pages).sum()
    }

    /// What the kernel knows of the one of a number.
    pub(super) fn known(&self, number: usize) -> Option<Known> {
        self.known.borrow().get(number)?.clone()
    }

    /// The physical address of a page in a page file; the error says why it is not at hand.
    pub(super) fn place(&self, va: u64, file: u8, page: u64) -> Result<u64, PageError> {
        let number = usize::from(file);
        let compressed = self
            .known
            .borrow()
            .get(number)
            .and_then(|k| k.as_ref())
            .is_some_and(|k| k.compressed);
        if compressed {
            return Err(PageError::Compressed { va, file, page });
        }
        let Some(f) = self.attached(number) else {
            return Err(PageError::PageFile { va, file, page });
        };
        if let Trust::Foreign(_) = *f.trust.borrow() {
            return Err(PageError::ForeignPageFile { va, file, page });
        }
        if page >= f.pages {
            return Err(PageError::PastPageFile {
                va,
                file,
                page,
                pages: f.pages,
            });
        }
        Ok(page_file::address(file, page))
    }
}

impl Attached {
    pub(super) fn trust(&self) -> Trust {
        self.trust.borrow().clone()
    }

    /// What is to be said of it, where it is not sure to be the machine's.
    pub(super) fn doubt(&self, number: usize) -> Option<String> {
        let name = &self.name;
        match self.trust() {
            Trust::Own(_) => None,
            Trust::Unproved => Some(format!(
                "page file {number}, {name}: nothing in it tells whether it is this machine's; it is read all the same"
            )),
            Trust::Mixed(right, wrong) => Some(format!(
                "page file {number}, {name}: of {} pages whose content is known {wrong} differ; it was copied at another \
                 time than memory, and what is read from it may be of another time",
                right + wrong
            )),
            Trust::Foreign(n) => Some(format!(
                "page file {number}, {name}: none of {n} pages whose content is known is in it; it is another machine's, or of \
                 another time, and nothing is read from it"
            )),
        }
    }
}

/// Finds out what the kernel knows of its page files, and compares those at hand with what must be in them.
pub(super) fn examine(k: &Kernel<'_>) {
    let files = k.space.page_files();
    // Reading it asks what is known so far.
    let known = of_kernel(k);
    files.known.replace(known);
    if files.files.iter().all(Option::is_none) {
        return;
    }
    let (mut right, mut wrong) = ([0usize; MOST], [0usize; MOST]);
    // What can't be read is compared with nothing.
    let _ = compare(k, &mut |number, fits| {
        let to = if fits { &mut right } else { &mut wrong };
        if let Some(n) = to.get_mut(usize::from(number)) {
            *n += 1;
        }
        right.iter().chain(&wrong).sum::<usize>() < COMPARED
    });
    for (f, (right, wrong)) in files.files.iter().zip(right.into_iter().zip(wrong)) {
        let Some(f) = f else { continue };
        *f.trust.borrow_mut() = match (right, wrong) {
            (0, 0) => Trust::Unproved,
            (n, 0) => Trust::Own(n),
            (0, n) => Trust::Foreign(n),
            (right, wrong) => Trust::Mixed(right, wrong),
        };
    }
    // What was translated on the way may lead into a file that is refused now.
    k.space.forget();
}

/// The kernel's own list, where the layouts have it.
fn of_kernel(k: &Kernel<'_>) -> [Option<Known>; MOST] {
    let mut out: [Option<Known>; MOST] = Default::default();
    let types = k.symbols.types();
    // Until Windows 8.1 a global, then a part of the first partition.
    let array = k.symbols.address("MmPagingFile").map(|a| a.0).or_else(|| {
        let partition = k.symbols.address("MiSystemPartition")?.0;
        let field = types.field("_MI_PARTITION", "Vp.PagingFile").ok()?;
        Some(partition + field.offset)
    });
    let Some(array) = array else { return out };
    for (i, slot) in out.iter_mut().enumerate() {
        let Ok(va) = k.space.u64(array.wrapping_add(i as u64 * 8)) else {
            continue;
        };
        if va >> 47 != 0x1_ffff {
            continue;
        }
        let f = k.object("_MMPAGING_FILE", va);
        let number = f
            .number("PageFileNumber")
            .ok()
            .and_then(|n| usize::try_from(n).ok());
        // A struct that has another number than its place is none.
        if number != Some(i) {
            continue;
        }
        *slot = Some(Known {
            name: f.unicode("PageFileName").ok().filter(|n| !n.is_empty()),
            pages: f.number("Size").ok().filter(|n| *n < 1 << 32),
            compressed: f.number("VirtualStorePagefile").is_ok_and(|v| v != 0),
        });
    }
    out
}

/// Tells of pages that lie in page files whether they are what they must be, until the visitor has enough.
fn compare(k: &Kernel<'_>, tell: &mut dyn FnMut(u8, bool) -> bool) -> Result<(), WindowsError> {
    let types = k.symbols.types();
    let base = types.field("_PEB", "ImageBaseAddress")?;
    let own = types.field("_NT_TIB", "Self")?;
    let number = |va: u64, space: &super::Space<'_>| {
        let pa = space.translate(va).ok()?;
        Some(page_file::place_of(pa.0)?.0)
    };
    for p in k.processes(&mut Vec::new())? {
        if p.has_ended() {
            continue;
        }
        let Ok(Some(user)) = p.user(k) else { continue };
        let at = user.peb.wrapping_add(base.offset);
        if let Some(n) = number(at, &user.space)
            && let (Ok(image), Ok(there)) =
                (p.object.number("SectionBaseAddress"), user.space.u64(at))
            && !tell(n, image == there)
        {
            return Ok(());
        }
        let Ok(head) = p.object.at("ThreadListHead") else {
            continue;
        };
        let Ok(threads) = lists::list(k, head, "_ETHREAD", "ThreadListEntry") else {
            continue;
        };
        for t in threads.items.into_iter().take(THREADS) {
            let Ok(teb) = k.object("_ETHREAD", t).number("Tcb.Teb") else {
                continue;
            };
            let at = teb.wrapping_add(own.offset);
            if teb != 0
                && let Some(n) = number(at, &user.space)
                && let Ok(there) = user.space.u64(at)
                && !tell(n, there == teb)
            {
                return Ok(());
            }
        }
    }
    Ok(())
}
