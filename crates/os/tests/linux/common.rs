//! The captures, opened once for all tests.

use memmap2::Mmap;
use ramsift_layers::PhysAddr;
use ramsift_layers::run::{Run, RunMap};
use ramsift_layers::translate::{PhysError, PhysRead};
use ramsift_os::discover::{Anchor, Discovery, discover};
use ramsift_os::input::ViewInput;
use ramsift_os::linux::{self, Kernel};
use ramsift_os::table::{Table, Value};
use ramsift_os::{Machine as _, by_name};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(m) => m,
            Self::Owned(v) => v,
        }
    }
}

pub(crate) struct Image {
    bytes: Bytes,
    base: u64,
}

impl Image {
    /// Memory from 0 on.
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        let bytes = Bytes::Owned(bytes);
        Self { bytes, base: 0 }
    }

    /// Physical address of its first byte.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }
}

impl PhysRead for Image {
    fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
        let at = pa.0.checked_sub(self.base);
        let at = at.and_then(|a| usize::try_from(a).ok());
        let from = at.and_then(|a| self.bytes.get(a..a.checked_add(buf.len())?));
        match from {
            Some(b) => buf.copy_from_slice(b),
            None => return Err(PhysError::NotInImage { pa }),
        }
        Ok(())
    }
}

pub(crate) struct Capture {
    pub(crate) name: String,
    pub(crate) image: Image,
    pub(crate) truth: serde_json::Value,
    pub(crate) info: serde_json::Value,
    pub(crate) anchors: Vec<Anchor>,
    pub(crate) runs: RunMap,
}

fn folder() -> PathBuf {
    std::env::var_os("RAMSIFT_CAPTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.test-tools/captures"),
        PathBuf::from,
    )
}

static CAPTURES: LazyLock<Vec<Capture>> = LazyLock::new(|| {
    let dir = folder();
    let mut names: Vec<PathBuf> = std::fs::read_dir(&dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        // One that is an ELF core alone is for benches.
        .filter(|p| p.join("truth.json").exists())
        .filter(|p| p.join("memory.raw").exists() || p.join("memory.raw.zst").exists())
        .collect();
    names.sort();
    assert!(
        !names.is_empty(),
        "no capture in {}: tests/captures builds them, RAMSIFT_CAPTURES says where they are",
        dir.display()
    );
    names.iter().map(|p| open(p)).collect()
});

/// The captures that are there; at least one must be.
pub(crate) fn captures() -> &'static [Capture] {
    &CAPTURES
}

/// Runs a test on the kernel of every capture whose first task is known: those without data symbols
/// too.
pub(crate) fn each_with_tasks(test: impl Fn(&Capture, &Kernel<'_>)) {
    for c in captures() {
        let d = discover(&c.input());
        let k = c.kernel(&d);
        let task = k.symbols.address("init_task");
        assert!(task.is_some(), "{}: no first task", c.name);
        test(c, &k);
    }
}

/// Runs a test on the kernel of every capture that has data symbols; at least one must.
pub(crate) fn each(test: impl Fn(&Capture, &Kernel<'_>)) {
    let mut checked = 0;
    for c in captures() {
        let d = discover(&c.input());
        let k = c.kernel(&d);
        if has_data_symbols(&k) {
            checked += 1;
            test(c, &k);
        }
    }
    assert!(checked > 0, "no capture with data symbols");
}

/// The spots that help to find a kernel.
pub(crate) fn anchors_in(bytes: &[u8]) -> Vec<Anchor> {
    let mut anchors = Vec::new();
    for (kind, needle, len) in [
        ("vmcoreinfo", &b"OSRELEASE="[..], 4096),
        ("linux_banner", b"Linux version ", 256),
        (
            "kallsyms_token_table",
            ramsift_symbols::kallsyms::DIGITS,
            32,
        ),
        ("btf", b"\x9f\xeb\x01", 24),
        ("swapper", b"swapper/0", 16),
    ] {
        for at in memchr::memmem::find_iter(bytes, needle) {
            let data = &bytes[at..(at + len).min(bytes.len())];
            let end = match kind {
                "linux_banner" => data.iter().position(|b| *b == 0).unwrap_or(data.len()),
                _ => data.len(),
            };
            anchors.push(Anchor {
                kind: kind.into(),
                image_offset: at as u64,
                data: data[..end].to_vec(),
            });
        }
    }
    anchors
}

fn open(dir: &Path) -> Capture {
    let json = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(dir.join(name)).unwrap()).unwrap()
    };
    let raw = dir.join("memory.raw");
    let bytes = if raw.exists() {
        // SAFETY: nobody writes to a finished capture.
        Bytes::Mapped(unsafe { Mmap::map(&std::fs::File::open(raw).unwrap()) }.unwrap())
    } else {
        let packed = std::fs::File::open(dir.join("memory.raw.zst")).unwrap();
        Bytes::Owned(zstd::decode_all(packed).unwrap())
    };
    let base = json("info.json")["raw_base"].as_u64().unwrap_or(0);
    let anchors = anchors_in(&bytes);
    let runs = RunMap::new(vec![Run {
        pa: base,
        len: bytes.len() as u64,
        file: 0,
        stored: bytes.len() as u64,
    }])
    .unwrap();
    Capture {
        name: dir.file_name().unwrap().to_string_lossy().into_owned(),
        image: Image { bytes, base },
        truth: json("truth.json"),
        info: json("info.json"),
        anchors,
        runs,
    }
}

impl Capture {
    /// The bytes of the image.
    pub(crate) fn image(&self) -> &[u8] {
        &self.image.bytes
    }

    pub(crate) fn input(&self) -> ViewInput<'_> {
        ViewInput {
            memory: &self.image,
            runs: &self.runs,
            arch: None,
            dtb_hints: &[],
            anchors: &self.anchors,
            symbols: None,
            page_files: &[],
            pool: None,
        }
    }

    pub(crate) fn kernel(&self, d: &Discovery) -> Kernel<'_> {
        linux::open(&self.input(), d).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }
}

/// Whether a kernel's table has data symbols; the configuration of Debian's arm64 leaves them out, and
/// only what views start from is found all the same.
pub(crate) fn has_data_symbols(k: &Kernel<'_>) -> bool {
    k.symbols.address("linux_banner").is_some()
}

pub(crate) fn build(k: &Kernel<'_>, view: &str) -> Table {
    k.build(by_name(view).unwrap()).unwrap()
}

pub(crate) fn number(t: &Table, row: usize, column: &str) -> i128 {
    match t.cell(row, column) {
        Some(Value::Number(n)) => *n,
        other => panic!("{column} of row {row}: {other:?}"),
    }
}

pub(crate) fn text<'t>(t: &'t Table, row: usize, column: &str) -> &'t str {
    match t.cell(row, column) {
        Some(Value::Text(s)) => s,
        other => panic!("{column} of row {row}: {other:?}"),
    }
}

/// A line of /proc/<pid>/status.
pub(crate) fn status<'s>(status: &'s str, key: &str) -> &'s str {
    status
        .lines()
        .find_map(|l| l.strip_prefix(key)?.strip_prefix(":\t"))
        .unwrap_or_else(|| panic!("no {key} in {status}"))
}

/// The processes that the machine listed. Workers of the kernel's pools come and go by themselves
/// between the listing and the dump, so those are left out, as in [`is_pool_worker`].
pub(crate) fn listed(c: &Capture) -> BTreeMap<i128, &serde_json::Value> {
    let ps = c.truth["ps"].as_object().unwrap();
    let all = ps.iter().map(|(pid, p)| (pid.parse().unwrap(), p));
    all.filter(|(_, p)| !is_pool_worker(status(p["status"].as_str().unwrap(), "Name")))
        .collect()
}

/// Whether a process is a worker of a pool of the kernel. (The scenario's impostor is `kworkerd`.)
pub(crate) fn is_pool_worker(name: &str) -> bool {
    name.starts_with("kworker/")
}

/// Whether a process is the one that wrote the truth: its memory grew while it did.
pub(crate) fn is_recorder(process: &serde_json::Value) -> bool {
    let words = process["cmdline"].as_array().into_iter().flatten();
    words
        .filter_map(|w| w.as_str())
        .any(|w| w.ends_with("truth.py"))
}
