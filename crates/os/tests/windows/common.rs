//! Machines that the generator in `tests/fixtures/windows` makes, with what it put into them.

use memmap2::Mmap;
use ramsift_layers::PhysAddr;
use ramsift_layers::run::RunMap;
use ramsift_layers::translate::{PhysError, PhysRead};
use ramsift_os::discover::{Anchor, Discovery, discover};
use ramsift_os::input::ViewInput;
use ramsift_os::table::{Table, Value};
use ramsift_os::{Machine, by_name, open};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// Kernels of every family in the table of layouts, by the GUID of their symbol file.
pub(crate) const KERNELS: [(&str, &str); 9] = [
    ("7sp1", "339E74133576439CBCDF7E0229DA3773"),
    ("81", "11D60DB07BA7433B923F49867DF51572"),
    ("10-14393", "0CAACB712FFE4D31BDD72EE6BB55F193"),
    ("10-17763", "2EA98876FE209B61954090E803113013"),
    ("10-18362", "11BC9A513F1140CA359ECDF50F0122C1"),
    ("10-19041-804", "5278AFF86C341677D7D7835C85B7B844"),
    ("10-19041-3570", "606FF669409B00F7FC8C61A9C1670129"),
    ("2022", "66546C893F1136BF8732FF5773F69265"),
    ("11-22000", "0CE4A95C0CD782A7596B034D8648E585"),
];

/// Physical memory from 0 on.
pub(crate) struct Image(Mmap);

impl PhysRead for Image {
    fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
        let at = usize::try_from(pa.0).ok();
        let own = at.and_then(|a| self.0.get(a..a.checked_add(buf.len())?));
        buf.copy_from_slice(own.ok_or(PhysError::NotInImage { pa })?);
        Ok(())
    }
}

/// A machine.
pub(crate) struct Made {
    pub(crate) name: String,
    pub(crate) image: Image,
    pub(crate) truth: serde_json::Value,
    pub(crate) runs: RunMap,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Makes a machine with these options of the generator.
pub(crate) fn make(name: &str, guid: &str, seed: u32, options: &[&str]) -> Made {
    make_with(name, guid, seed, options, &[]).0
}

/// The same, and files with these endings that the generator made of it.
pub(crate) fn make_with(
    name: &str,
    guid: &str,
    seed: u32,
    options: &[&str],
    endings: &[&str],
) -> (Made, Vec<Vec<u8>>) {
    // Examples have no folder of their own.
    let dir = option_env!("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = dir.join("windows");
    std::fs::create_dir_all(&dir).unwrap();
    let stem = dir.join(format!("{name}-{seed}{}", options.concat()));
    let done = Command::new("python3")
        .args(["-B", "-m", "winsynth", "--layouts"])
        .arg(root().join("crates/symbols/data/windows-x64.json.xz"))
        .args(["--guid", guid, "--seed", &seed.to_string(), "--out"])
        .arg(&stem)
        .args(options)
        .current_dir(root().join("tests/fixtures/windows"))
        .output()
        .expect("python3 runs the generator of machines");
    assert!(
        done.status.success(),
        "{name}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    let file = std::fs::File::open(stem.with_extension("raw")).unwrap();
    // SAFETY: nobody else writes to the file, which was made for this test.
    let map = unsafe { Mmap::map(&file) }.unwrap();
    let truth = std::fs::read(stem.with_extension("truth.json")).unwrap();
    let made = Made {
        name: name.to_owned(),
        runs: RunMap::raw(map.len() as u64),
        image: Image(map),
        truth: serde_json::from_slice(&truth).unwrap(),
    };
    let mut files = Vec::new();
    for ext in endings {
        let path = stem.with_extension(ext);
        files.push(std::fs::read(&path).unwrap());
        std::fs::remove_file(path).unwrap();
    }
    let own = ["raw", "truth.json", "pagefile.sys"].into_iter();
    for ext in own.filter(|e| !endings.contains(e)) {
        std::fs::remove_file(stem.with_extension(ext)).unwrap();
    }
    (made, files)
}

static MACHINES: LazyLock<Vec<Made>> = LazyLock::new(|| {
    let all = KERNELS.iter().enumerate();
    all.map(|(i, (name, guid))| make(name, guid, 11 + i as u32, &[]))
        .collect()
});

/// A machine of every kernel.
pub(crate) fn machines() -> &'static [Made] {
    &MACHINES
}

/// The record of a kernel's symbol file, which lies somewhere in every image.
pub(crate) fn anchors() -> Vec<Anchor> {
    vec![Anchor {
        kind: "rsds".into(),
        image_offset: 0,
        data: Vec::new(),
    }]
}

impl Made {
    pub(crate) fn input<'i>(&'i self, anchors: &'i [Anchor]) -> ViewInput<'i> {
        ViewInput {
            memory: &self.image,
            runs: &self.runs,
            arch: None,
            dtb_hints: &[],
            anchors,
            symbols: None,
            page_files: &[],
            pool: None,
        }
    }

    pub(crate) fn discovery(&self) -> Discovery {
        discover(&self.input(&anchors()))
    }

    /// Asks the opened machine something.
    pub(crate) fn ask<T>(&self, question: impl FnOnce(&dyn Machine) -> T) -> T {
        let anchors = anchors();
        let input = self.input(&anchors);
        let d = discover(&input);
        let machine = open(&input, &d).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        question(machine.as_ref())
    }

    /// A view of it.
    pub(crate) fn build(&self, view: &str) -> Table {
        self.ask(|m| {
            let view = by_name(view).unwrap();
            m.build(view)
                .unwrap_or_else(|e| panic!("{} {}: {e}", self.name, view.name))
        })
    }

    /// What the generator says of processes.
    pub(crate) fn processes(&self) -> impl Iterator<Item = &serde_json::Value> {
        self.truth["processes"].as_array().unwrap().iter()
    }

    /// Processes that run and are in the list.
    pub(crate) fn running(&self) -> impl Iterator<Item = &serde_json::Value> {
        self.processes()
            .filter(|p| p["exit_time"].is_null() && p["in_active_list"] == true)
    }
}

/// A cell as text: numbers in decimal, null empty.
pub(crate) fn cell(t: &Table, row: usize, column: &str) -> String {
    match t.cell(row, column) {
        Some(Value::Number(n)) => n.to_string(),
        Some(Value::Text(s)) => s.clone(),
        Some(Value::Flag(b)) => b.to_string(),
        Some(Value::Null) => String::new(),
        None => panic!("there is no column {column}"),
    }
}

/// The rows of a view, these columns of each, sorted.
pub(crate) fn rows(t: &Table, columns: &[&str]) -> Vec<Vec<String>> {
    let of = |row| columns.iter().map(|c| cell(t, row, c)).collect();
    let mut out: Vec<Vec<String>> = (0..t.rows.len()).map(of).collect();
    out.sort();
    out
}

/// A JSON value as a cell of a table has it.
pub(crate) fn text(v: &serde_json::Value) -> String {
    match v {
        serde_json::Value::Null => String::new(),
        serde_json::Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

/// A time of the truth as microseconds.
pub(crate) fn micros(v: &serde_json::Value) -> String {
    let Some(s) = v.as_str() else {
        return String::new();
    };
    // 2024-06-15T05:05:28.774053Z, by the calendar's rule for days since 1970-03-01 of year 0.
    let n = |r: std::ops::Range<usize>| s[r].parse::<i64>().unwrap();
    let (y, m, d) = (n(0..4), n(5..7), n(8..10));
    let (y, m) = if m <= 2 { (y - 1, m + 9) } else { (y, m - 3) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + d - 1 - 719_468;
    let seconds = ((days * 24 + n(11..13)) * 60 + n(14..16)) * 60 + n(17..19);
    (seconds * 1_000_000 + n(20..26)).to_string()
}
