//! `linux/bash`: commands typed into bash, with their times, from the memory of its processes.
//!
//! ```text
//! heap: "#1767341035\0"  <- timestamp      history_list: HIST_ENTRY *, HIST_ENTRY *, ...
//!       "whoami\0"       <- line
//!       HIST_ENTRY { line, timestamp, data }
//! ```
//!
//! bash's types aren't the kernel's, so the shape is looked for: pairs of pointers into the heap
//! where the second leads to `#` and digits. What no list leads to was removed from the history
//! (`history -c`, `history -d`) or is an older copy.
//!
//! Sources: GNU readline `history.h` (`HIST_ENTRY`), `history.c` (`hist_inittime`); Volatility 3
//! `plugins/linux/bash.py` for the idea.

use crate::linux::path::Paths;
use crate::linux::{AddressSpace, Kernel, LinuxError, LinuxView, Object, ReadError};
use crate::table::{Column, Kind, Table, column};
use ramsift_layers::Dtb;
use ramsift_layers::translate::TranslateError;
use std::collections::{BTreeMap, HashMap};

/// `linux/bash`.
pub(in crate::linux) const BASH: LinuxView = LinuxView {
    name: "linux/bash",
    meaning: "commands in the memory of bash processes",
    columns: COMMANDS,
    build: bash,
    recover: None,
    on_request: false,
};

/// Columns of `linux/bash`.
const COMMANDS: &[Column] = &[
    column("pid", Kind::Number, "process id (thread group)"),
    column("comm", Kind::Text, "name of the process"),
    column("uid", Kind::Number, "real user id"),
    column(
        "index",
        Kind::Number,
        "place in the history, from 1; null: no list leads to it any more",
    ),
    column(
        "time",
        Kind::Time,
        "when it was entered, or what the history file said",
    ),
    column("command", Kind::Text, "the line"),
    column(
        "va",
        Kind::Hex,
        "virtual address of its HIST_ENTRY, in the process",
    ),
    column("physical", Kind::Hex, "physical address of its HIST_ENTRY"),
    column("task", Kind::Hex, "virtual address of the task_struct"),
];

/// Bytes of a heap at most.
const MAX_HEAP: u64 = 256 << 20;
/// Bytes of a line at most.
const MAX_LINE: usize = 64 << 10;
const PAGE: u64 = 4096;

/// The pages of a heap that are in memory, by address; neighbours are one.
#[derive(Debug, Default)]
struct Heap {
    pieces: BTreeMap<u64, Vec<u8>>,
}

impl Heap {
    fn read(space: &AddressSpace<'_>, from: u64, to: u64, doubts: &mut Vec<String>) -> Self {
        let mut out = Self::default();
        let (mut piece, mut start) = (Vec::new(), from);
        let mut absent = 0u64;
        let mut at = from & !(PAGE - 1);
        while at < to {
            let mut page = vec![0; usize::try_from(PAGE).unwrap_or(0)];
            match space.read(at, &mut page) {
                Ok(()) => {
                    if piece.is_empty() {
                        start = at;
                    }
                    piece.append(&mut page);
                }
                Err(e) => {
                    // A page that was never touched has no entry at all.
                    let untouched = matches!(
                        e,
                        ReadError::Translate(TranslateError::NotPresent { entry: 0, .. })
                    );
                    absent += u64::from(!untouched);
                    if !piece.is_empty() {
                        out.pieces.insert(start, std::mem::take(&mut piece));
                    }
                }
            }
            at += PAGE;
        }
        if !piece.is_empty() {
            out.pieces.insert(start, piece);
        }
        if absent > 0 {
            doubts.push(format!(
                "{absent} pages of the heap at {from:#x} are swapped out or not in the image"
            ));
        }
        out
    }

    /// The bytes from an address to the end of its piece.
    fn at(&self, va: u64) -> Option<&[u8]> {
        let (start, bytes) = self.pieces.range(..=va).next_back()?;
        bytes.get(usize::try_from(va - start).ok()?..)
    }

    /// The text at an address, up to its NUL.
    fn text(&self, va: u64) -> Option<&[u8]> {
        let bytes = self.at(va)?;
        let end = bytes.iter().take(MAX_LINE).position(|b| *b == 0)?;
        bytes.get(..end)
    }

    /// All aligned words with their addresses.
    fn words(&self) -> impl Iterator<Item = (u64, u64)> {
        self.pieces.iter().flat_map(|(start, bytes)| {
            let words = bytes.as_chunks::<8>().0.iter().enumerate();
            words.map(move |(i, w)| (start + i as u64 * 8, u64::from_le_bytes(*w)))
        })
    }
}

/// Seconds of a timestamp: `#` and digits.
fn seconds(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"#")?;
    if !(1..=12).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// A command that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    va: u64,
    seconds: i64,
    line: String,
    /// Its place in the history.
    index: Option<usize>,
}

/// Finds the entries of a heap, those of the history first and in its order.
fn entries(heap: &Heap) -> Vec<Entry> {
    let mut found: BTreeMap<u64, Entry> = BTreeMap::new();
    let mut last = (0, 0);
    for (at, word) in heap.words() {
        let (before, line) = std::mem::replace(&mut last, (at, word));
        if before.wrapping_add(8) != at || line == 0 || word == 0 {
            continue;
        }
        let Some(seconds) = heap.text(word).and_then(seconds) else {
            continue;
        };
        // A line of no bytes is none, and one of control bytes is something else.
        let Some(text) = heap.text(line).filter(|t| {
            !t.is_empty() && t.iter().all(|b| *b >= b' ' || matches!(b, b'\t' | b'\n'))
        }) else {
            continue;
        };
        let line = String::from_utf8_lossy(text).into_owned();
        let va = before;
        let index = None;
        found.insert(
            va,
            Entry {
                va,
                seconds,
                line,
                index,
            },
        );
    }
    let listed = longest_run(heap, &found);
    for (i, va) in listed.iter().enumerate() {
        if let Some(e) = found.get_mut(va) {
            e.index = Some(i + 1);
        }
    }
    let mut out: Vec<Entry> = found.into_values().collect();
    out.sort_by_key(|e| (e.index.is_none(), e.index, e.seconds, e.va));
    out
}

/// The longest row of pointers to entries: the history's list.
fn longest_run(heap: &Heap, found: &BTreeMap<u64, Entry>) -> Vec<u64> {
    let (mut best, mut run) = (Vec::new(), Vec::new());
    let mut before = 0u64;
    for (at, word) in heap.words() {
        let goes_on = found.contains_key(&word) && (run.is_empty() || before.wrapping_add(8) == at);
        if !goes_on {
            run.clear();
        }
        if found.contains_key(&word) {
            run.push(word);
            if run.len() > best.len() {
                best.clone_from(&run);
            }
        }
        before = at;
    }
    best
}

/// Whether a process is bash: by its name or by its executable.
fn is_bash(paths: &Paths<'_>, comm: &str, mm: &Object<'_>) -> bool {
    let shell = |name: &str| matches!(name, "bash" | "-bash" | "rbash");
    let exe = || -> Result<bool, LinuxError> {
        let Some(file) = mm.follow("exe_file", "file")? else {
            return Ok(false);
        };
        let dentry = file.number("f_path.dentry")?;
        Ok(shell(&paths.dentry(dentry)?.name))
    };
    shell(comm) || exe().unwrap_or(false)
}

pub(in crate::linux) fn bash(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COMMANDS);
    let paths = Paths::new(kernel)?;
    for task in kernel.processes(&mut out.doubts)? {
        if let Err(e) = process(kernel, &paths, &task, &mut out) {
            out.doubts
                .push(format!("task_struct at {:#x}: {e}", task.va));
        }
    }
    Ok(out)
}

fn process(
    kernel: &Kernel<'_>,
    paths: &Paths<'_>,
    task: &Object<'_>,
    out: &mut Table,
) -> Result<(), LinuxError> {
    let Some(mm) = task.follow("mm", "mm_struct")? else {
        return Ok(());
    };
    let comm = task.text("comm")?;
    if !is_bash(paths, &comm, &mm) {
        return Ok(());
    }
    let pid = task.int("tgid")?;
    let uid = match task.follow("cred", "cred")? {
        Some(c) => Some(c.number("uid.val")?),
        None => None,
    };
    let dtb = kernel.space.translate(mm.number("pgd")?)?;
    let space = kernel.space.with_table(Dtb(dtb.0));
    let (from, to) = (mm.number("start_brk")?, mm.number("brk")?);
    if to.saturating_sub(from) > MAX_HEAP {
        out.doubts.push(format!(
            "pid {pid}: its heap of {} bytes is read only in part",
            to - from
        ));
    }
    let mut doubts = Vec::new();
    let heap = Heap::read(
        &space,
        from,
        to.min(from.saturating_add(MAX_HEAP)),
        &mut doubts,
    );
    out.doubts
        .extend(doubts.iter().map(|d| format!("pid {pid}: {d}")));
    // The same line at the same time, outside of the list, is an older copy.
    let mut known: HashMap<(i64, String), ()> = HashMap::new();
    for e in entries(&heap) {
        let again = known.insert((e.seconds, e.line.clone()), ()).is_some();
        if again && e.index.is_none() {
            continue;
        }
        let time = e.seconds.saturating_mul(1_000_000);
        let message = format!("{comm} (pid {pid}, uid {}): {}", uid.unwrap_or(0), e.line);
        out.push(vec![
            pid.into(),
            comm.as_str().into(),
            uid.into(),
            e.index.into(),
            time.into(),
            e.line.into(),
            e.va.into(),
            space.translate(e.va).ok().map(|p| p.0).into(),
            task.va.into(),
        ]);
        out.event(time, "shell command", message);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A heap at 0x10000 with two entries, a list of them, and an entry that no list has.
    fn heap() -> Heap {
        let mut bytes = vec![0; 4096];
        let mut put = |at: usize, b: &[u8]| bytes[at..at + b.len()].copy_from_slice(b);
        let base = 0x10000u64;
        for (i, (time, line)) in [
            ("#1700000060", "id"),
            ("#1700000000", "ls -la"),
            ("#17", "rm x"),
        ]
        .into_iter()
        .enumerate()
        {
            let (text, entry) = (0x100 + i * 0x40, 0x400 + i * 0x18);
            put(text, line.as_bytes());
            put(text + 0x20, time.as_bytes());
            put(entry, &(base + text as u64).to_le_bytes());
            put(entry + 8, &(base + text as u64 + 0x20).to_le_bytes());
        }
        put(0x800, &(base + 0x418).to_le_bytes());
        put(0x808, &(base + 0x400).to_le_bytes());
        Heap {
            pieces: [(base, bytes)].into(),
        }
    }

    #[test]
    fn the_list_gives_the_order_and_what_it_lacks_comes_last() {
        let got: Vec<_> = entries(&heap())
            .into_iter()
            .map(|e| (e.index, e.seconds, e.line))
            .collect();
        let want = [
            (Some(1), 1_700_000_000, "ls -la".to_owned()),
            (Some(2), 1_700_000_060, "id".to_owned()),
            (None, 17, "rm x".to_owned()),
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn timestamps_are_digits() {
        assert_eq!(seconds(b"#1700000000"), Some(1_700_000_000));
        for bad in [&b"#"[..], b"1700000000", b"#17x", b"#1234567890123", b"#-5"] {
            assert_eq!(seconds(bad), None);
        }
    }
}
