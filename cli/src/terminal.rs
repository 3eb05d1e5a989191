//! The only way to standard output and standard error: nothing that was captured commands the terminal, and a closed pipe
//! ends output quietly.
//!
//! [`say!`] prints a line, [`tell!`] one on standard error. Both replace what could act on a terminal wherever it came
//! from; values of the captured machine go through [`Shown`] besides, so that their line ends are told apart from ours.

use ramsift_telemetry::{commands, shown_lines};
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) use ramsift_telemetry::{Shown, shown_bytes, shown_json};

/// Prints a line on standard output.
macro_rules! say {
    () => { $crate::terminal::out("\n") };
    ($($arg:tt)*) => { $crate::terminal::out(&format!("{}\n", format_args!($($arg)*))) };
}

/// Prints a line on standard error.
macro_rules! tell {
    ($($arg:tt)*) => { $crate::terminal::err(&format!("{}\n", format_args!($($arg)*))) };
}

pub(crate) use {say, tell};

/// Whoever read standard output has gone.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether whoever read standard output has gone: what only prints can end.
pub(crate) fn closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

/// Notes that a write failed; anything but a closed pipe is told.
fn failed(e: &io::Error) {
    let first = !CLOSED.swap(true, Ordering::Relaxed);
    if first && e.kind() != io::ErrorKind::BrokenPipe {
        err(&format!("ramsift: standard output can't be written: {e}\n"));
    }
}

/// Prints text of our own making on standard output.
pub(crate) fn out(text: &str) {
    if closed() {
        return;
    }
    let mut to = io::stdout().lock();
    let done = if text.chars().any(|c| c != '\n' && commands(c)) {
        to.write_all(shown_lines(text).as_bytes())
    } else {
        to.write_all(text.as_bytes())
    };
    if let Err(e) = done.and_then(|()| to.flush()) {
        failed(&e);
    }
}

/// Prints text on standard error.
pub(crate) fn err(text: &str) {
    // Nobody is left to be told when this fails.
    let _ = io::stderr().lock().write_all(shown_lines(text).as_bytes());
}

/// Standard output for many rows, buffered. What goes through it is made harmless by who writes; a closed pipe is no
/// error, and [`closed`] says so from then on.
#[derive(Debug)]
pub(crate) struct Out(io::BufWriter<io::Stdout>);

impl Out {
    pub(crate) fn new() -> Self {
        Self(io::BufWriter::with_capacity(64 << 10, io::stdout()))
    }
}

impl Write for Out {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if closed() {
            return Ok(buf.len());
        }
        self.0.write(buf).or_else(|e| {
            failed(&e);
            Ok(buf.len())
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        if !closed()
            && let Err(e) = self.0.flush()
        {
            failed(&e);
        }
        Ok(())
    }
}

/// Standard output for the content of files: bytes as they are into a file or a pipe, made harmless on a terminal.
pub(crate) fn content() -> Box<dyn Write> {
    if io::stdout().is_terminal() {
        Box::new(ramsift_telemetry::Plain(Out::new()))
    } else {
        Box::new(Out::new())
    }
}

/// Columns of the terminal that standard output is; `None` where it is none.
pub(crate) fn width() -> Option<usize> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let size = terminal_size::terminal_size_of(io::stdout());
    Some(size.map_or(80, |(w, _)| usize::from(w.0)).max(20))
}

/// A number with its thousands apart.
pub(crate) fn count(n: u64) -> String {
    indicatif::HumanCount(n).to_string()
}

#[cfg(test)]
mod tests {
    /// The printing macros of the standard library go past this module.
    #[test]
    fn everything_is_printed_through_this_module() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut bad = Vec::new();
        for e in std::fs::read_dir(folder).expect("sources").flatten() {
            let text = std::fs::read_to_string(e.path()).expect("source");
            let name = e.file_name().to_string_lossy().into_owned();
            let forbidden = ["print", "eprint"]
                .map(|m| [format!("{m}!("), format!("{m}ln!(")])
                .concat();
            let uses = |l: &str| {
                forbidden.iter().any(|f| l.contains(f.as_str()))
                    || l.contains("io::stdout()") && name != "terminal.rs"
            };
            bad.extend(
                text.lines()
                    .filter(|l| uses(l))
                    .map(|l| format!("{name}: {l}")),
            );
        }
        assert!(bad.is_empty(), "{bad:#?}");
    }
}
