//! Files in this process's address space, without the fault that kills it.
//!
//! Copying a file's pages into buffers of our own costs a tenth of a whole scan; mapping them costs next to
//! nothing. But a mapped page whose file was cut short, or whose disk fails, raises SIGBUS where it is touched,
//! and the process is gone. Here a handler lays zeros over what is left of the mapping and marks it as torn;
//! whoever read from it throws away what came of that and reads again with `pread`, which tells what is wrong.
//!
//! Source: `mmap(2)`, `sigaction(2)`, `signal-safety(7)`.

use memmap2::{Mmap, MmapOptions};
use std::fs::File;
use std::io;
use std::ops::Range;

/// Bytes of a file, mapped.
#[derive(Debug)]
pub struct Mapping {
    map: Mmap,
    watch: guard::Watch,
}

impl Mapping {
    /// Maps a range of a file and brings its pages in.
    ///
    /// `None` where that can't be done: read it then.
    pub(super) fn of(file: &File, range: Range<u64>) -> Option<Self> {
        let len = usize::try_from(range.end.checked_sub(range.start)?).ok()?;
        if len == 0 {
            return None;
        }
        let mut options = MmapOptions::new();
        options.offset(range.start).len(len).populate();
        // SAFETY: a file that is cut short under the mapping is what `guard` is for. One that is written to
        // gives bytes that change while they are looked at; nothing relies on reading the same byte twice for
        // an unchecked access, and the results are thrown away since the evidence no longer has its pin.
        let map = unsafe { options.map(file) }.ok()?;
        let watch = guard::watch(map.as_ptr() as usize, len)?;
        Some(Self { map, watch })
    }

    /// The bytes. Zeros in part, once [`is_torn`](Self::is_torn).
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Whether pages of it could not be had: what was read of it counts for nothing.
    pub fn is_torn(&self) -> bool {
        self.watch.is_torn()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // Before the addresses are given back, for others to use.
        self.watch.end();
    }
}

/// The handler of SIGBUS, and what it watches.
#[cfg(target_os = "linux")]
mod guard {
    use super::io;
    use std::mem::MaybeUninit;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    /// Mappings at a time; more are read instead.
    const MOST: usize = 256;

    /// A mapping that is watched, for the handler: only atomics may be used there.
    struct Slot {
        taken: AtomicBool,
        /// 0: nothing to watch.
        start: AtomicUsize,
        end: AtomicUsize,
        torn: AtomicBool,
    }

    static SLOTS: [Slot; MOST] = [const {
        Slot {
            taken: AtomicBool::new(false),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            torn: AtomicBool::new(false),
        }
    }; MOST];

    /// Who had the signal before.
    static BEFORE: OnceLock<Option<libc::sigaction>> = OnceLock::new();
    static PAGE: AtomicUsize = AtomicUsize::new(4096);

    /// Watches a mapping until it ends.
    #[derive(Debug)]
    pub(super) struct Watch(usize);

    impl Watch {
        pub(super) fn is_torn(&self) -> bool {
            SLOTS[self.0].torn.load(Ordering::Acquire)
        }

        pub(super) fn end(&self) {
            let s = &SLOTS[self.0];
            s.start.store(0, Ordering::SeqCst);
            s.end.store(0, Ordering::SeqCst);
            s.torn.store(false, Ordering::SeqCst);
            s.taken.store(false, Ordering::SeqCst);
        }
    }

    /// Watches the pages of `start..start + len`.
    pub(super) fn watch(start: usize, len: usize) -> Option<Watch> {
        BEFORE.get_or_init(|| install().ok()).as_ref()?;
        let page = PAGE.load(Ordering::Relaxed);
        let free = |s: &Slot| !s.taken.swap(true, Ordering::SeqCst);
        let i = SLOTS.iter().position(free)?;
        let s = &SLOTS[i];
        s.end
            .store((start + len).next_multiple_of(page), Ordering::SeqCst);
        s.start.store(start - start % page, Ordering::SeqCst);
        Some(Watch(i))
    }

    fn install() -> io::Result<libc::sigaction> {
        // SAFETY: sysconf takes an integer and changes nothing.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        if let Ok(page) = usize::try_from(page) {
            PAGE.store(page, Ordering::Relaxed);
        }
        let mut before = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: all fields of a zeroed sigaction are valid; the handler has the signature that SA_SIGINFO
        // asks for and does only what signal handlers may; both pointers are to values on this stack.
        unsafe {
            let mut ours: libc::sigaction = std::mem::zeroed();
            ours.sa_sigaction = handle as *const () as usize;
            // On the alternate stack: a stack that ran into its guard raises this signal on some systems.
            ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&raw mut ours.sa_mask);
            if libc::sigaction(libc::SIGBUS, &raw const ours, before.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(before.assume_init())
        }
    }

    /// Lays zeros over the rest of a watched mapping. Any other fault is for whoever was asked before.
    extern "C" fn handle(
        signal: libc::c_int,
        info: *mut libc::siginfo_t,
        context: *mut libc::c_void,
    ) {
        // SAFETY: the kernel passes a valid siginfo_t, and SIGBUS has an address.
        let at = unsafe { (*info).si_addr() } as usize;
        for s in &SLOTS {
            let (start, end) = (s.start.load(Ordering::SeqCst), s.end.load(Ordering::SeqCst));
            if start == 0 || at < start || at >= end {
                continue;
            }
            // First, so that nobody takes the zeros for the file's.
            s.torn.store(true, Ordering::SeqCst);
            let from = at - at % PAGE.load(Ordering::Relaxed);
            // SAFETY: the range is the tail of a mapping of ours, which lives as long as somebody touches it; mmap
            // is a plain system call, so it is safe in a handler.
            let got = unsafe {
                libc::mmap(
                    from as *mut libc::c_void,
                    end - from,
                    libc::PROT_READ,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                    -1,
                    0,
                )
            };
            if got != libc::MAP_FAILED {
                return;
            }
        }
        pass_on(signal, info, context);
    }

    fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
        let before = BEFORE.get().and_then(Option::as_ref);
        // SAFETY: the earlier handler is called as its own flags say; with none, the default is restored, and
        // the instruction that faulted faults again and ends the process as it would have without us.
        unsafe {
            match before {
                Some(b) if b.sa_sigaction == libc::SIG_IGN => {}
                Some(b) if b.sa_sigaction != libc::SIG_DFL => {
                    if b.sa_flags & libc::SA_SIGINFO != 0 {
                        let f: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                            std::mem::transmute(b.sa_sigaction);
                        f(signal, info, context);
                    } else {
                        let f: extern "C" fn(libc::c_int) = std::mem::transmute(b.sa_sigaction);
                        f(signal);
                    }
                }
                _ => {
                    libc::signal(signal, libc::SIG_DFL);
                }
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod guard {
    #[derive(Debug)]
    pub(super) struct Watch;

    impl Watch {
        pub(super) fn is_torn(&self) -> bool {
            false
        }

        pub(super) fn end(&self) {}
    }

    /// Nothing is mapped where faults can't be caught.
    pub(super) fn watch(_: usize, _: usize) -> Option<Watch> {
        None
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(len: usize) -> File {
        let mut f = tempfile::tempfile().expect("a file");
        let data: Vec<u8> = (0..len).map(|i| (i % 251) as u8 + 1).collect();
        f.write_all(&data).expect("write");
        f
    }

    #[test]
    fn a_file_that_is_cut_short_is_no_crash() {
        let f = file(1 << 20);
        let m = Mapping::of(&f, 4100..1 << 20).expect("mapped");
        let sum = |m: &Mapping| m.bytes().iter().map(|b| u64::from(*b)).sum::<u64>();
        let whole = sum(&m);
        assert_eq!(m.bytes()[0], (4100 % 251) as u8 + 1);
        assert!(!m.is_torn());
        f.set_len(100_000).expect("truncate");
        // The page that holds the end is filled with zeros; what lies after it is gone.
        assert!(sum(&m) < whole);
        assert!(m.is_torn());
        drop(m);
        // The place is free again, and the next one is whole.
        let m = Mapping::of(&f, 0..100_000).expect("mapped");
        assert!(!m.is_torn());
        assert_eq!(m.bytes()[99_999], (99_999 % 251) as u8 + 1);
    }

    #[test]
    fn many_at_a_time_are_told_apart() {
        let files: Vec<File> = (0..20).map(|_| file(40_000)).collect();
        let maps: Vec<Mapping> = files
            .iter()
            .map(|f| Mapping::of(f, 0..40_000).expect("mapped"))
            .collect();
        for f in files.iter().step_by(3) {
            f.set_len(4096).expect("truncate");
        }
        std::thread::scope(|s| {
            for (i, m) in maps.iter().enumerate() {
                s.spawn(move || {
                    let last = m.bytes()[39_999];
                    assert_eq!(m.is_torn(), i % 3 == 0);
                    assert_eq!(last == 0, i % 3 == 0);
                });
            }
        });
    }

    #[test]
    fn nothing_is_no_mapping() {
        assert!(Mapping::of(&file(10), 5..5).is_none());
    }

    /// Runs this test alone in a process of its own, which a fault of others' must end.
    #[test]
    fn a_fault_that_is_not_ours_still_ends_the_process() {
        const CHILD: &str = "RAMSIFT_TEST_FAULT";
        if std::env::var_os(CHILD).is_some() {
            let f = file(8192);
            let ours = Mapping::of(&f, 0..8192).expect("mapped");
            let other = file(8192);
            // SAFETY: the point is that touching it is a fault.
            let map = unsafe { MmapOptions::new().map(&other) }.expect("mapped");
            other.set_len(0).expect("truncate");
            println!("{} {}", ours.bytes()[0], map[5000]);
            return;
        }
        use std::os::unix::process::ExitStatusExt;
        let name = "source::map::tests::a_fault_that_is_not_ours_still_ends_the_process";
        let out = std::process::Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", name, "--test-threads=1"])
            .env(CHILD, "1")
            .output()
            .expect("started");
        assert_eq!(out.status.signal(), Some(libc::SIGBUS), "{out:?}");
    }
}
