//! Views of real captures against what the captured machine wrote about itself.
#![allow(clippy::unwrap_used, missing_docs)]

use ramsift_layers::PhysAddr;
use ramsift_layers::run::{Run, RunMap};
use ramsift_layers::translate::{PhysError, PhysRead};
use ramsift_os::kernel::{Anchor, Discovery, discover};
use ramsift_os::linux::{self, Kernel};
use ramsift_os::table::{Table, Value};
use ramsift_os::view::ViewInput;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

struct Image {
    bytes: Vec<u8>,
    base: u64,
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

struct Capture {
    name: String,
    image: Image,
    truth: serde_json::Value,
    anchors: Vec<Anchor>,
    runs: RunMap,
}

fn folder() -> PathBuf {
    std::env::var_os("RAMSIFT_CAPTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.test-tools/captures"),
        PathBuf::from,
    )
}

/// The captures that are there; at least one must be.
fn captures() -> impl Iterator<Item = Capture> {
    let dir = folder();
    let mut names: Vec<PathBuf> = std::fs::read_dir(&dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.join("truth.json").exists())
        .collect();
    names.sort();
    assert!(
        !names.is_empty(),
        "no capture in {}: tests/captures builds them, RAMSIFT_CAPTURES says where they are",
        dir.display()
    );
    names.into_iter().map(|p| open(&p))
}

fn open(dir: &Path) -> Capture {
    let json = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(dir.join(name)).unwrap()).unwrap()
    };
    let raw = dir.join("memory.raw");
    let bytes = if raw.exists() {
        std::fs::read(raw).unwrap()
    } else {
        zstd::decode_all(std::fs::File::open(dir.join("memory.raw.zst")).unwrap()).unwrap()
    };
    let base = json("info.json")["raw_base"].as_u64().unwrap_or(0);
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
    ] {
        for at in memchr::memmem::find_iter(&bytes, needle) {
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
        anchors,
        runs,
    }
}

impl Capture {
    fn input(&self) -> ViewInput<'_> {
        ViewInput {
            memory: &self.image,
            runs: &self.runs,
            arch: None,
            dtb_hints: &[],
            anchors: &self.anchors,
        }
    }

    fn kernel(&self, d: &Discovery) -> Kernel<'_> {
        linux::open(&self.input(), d).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }
}

/// Whether a kernel has data symbols; the configuration of Debian's arm64 leaves them out.
fn has_data_symbols(k: &Kernel<'_>) -> bool {
    k.symbols.address("init_task").is_some()
}

fn number(t: &Table, row: usize, column: &str) -> i128 {
    match t.cell(row, column) {
        Some(Value::Number(n)) => *n,
        other => panic!("{column} of row {row}: {other:?}"),
    }
}

fn text<'t>(t: &'t Table, row: usize, column: &str) -> &'t str {
    match t.cell(row, column) {
        Some(Value::Text(s)) => s,
        other => panic!("{column} of row {row}: {other:?}"),
    }
}

/// A line of /proc/<pid>/status.
fn status<'s>(status: &'s str, key: &str) -> &'s str {
    status
        .lines()
        .find_map(|l| l.strip_prefix(key)?.strip_prefix(":\t"))
        .unwrap_or_else(|| panic!("no {key} in {status}"))
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn processes_are_those_that_the_machine_listed() {
    let mut checked = 0;
    for c in captures() {
        let d = discover(&c.input());
        let k = c.kernel(&d);
        if !has_data_symbols(&k) {
            continue;
        }
        checked += 1;
        let t = linux::pslist(&k).unwrap();
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        let ps = c.truth["ps"].as_object().unwrap();
        let want: BTreeSet<i128> = ps.keys().map(|p| p.parse().unwrap()).collect();
        let got: BTreeSet<i128> = (0..t.rows.len()).map(|r| number(&t, r, "pid")).collect();
        assert_eq!(got, want, "{}", c.name);
        for row in 0..t.rows.len() {
            let pid = number(&t, row, "pid");
            let truth = ps[&pid.to_string()]["status"].as_str().unwrap();
            let at = format!("{} pid {pid}", c.name);
            let name = status(truth, "Name");
            if t.cell(row, "kernel_thread") == Some(&Value::Flag(true)) {
                // /proc adds to a worker's name what it is busy with.
                assert!(name.starts_with(text(&t, row, "comm")), "{at}: {name}");
            } else {
                assert_eq!(text(&t, row, "comm"), name, "{at}");
            }
            let numbers = |key: &str| -> Vec<i128> {
                let line = status(truth, key).split_whitespace();
                line.map(|n| n.parse().unwrap()).collect()
            };
            assert_eq!(number(&t, row, "ppid"), numbers("PPid")[0], "{at}");
            let ids = |a: &str, b: &str| vec![number(&t, row, a), number(&t, row, b)];
            assert_eq!(ids("uid", "euid"), numbers("Uid")[..2], "{at}");
            assert_eq!(ids("gid", "egid"), numbers("Gid")[..2], "{at}");
            // Field 22 of stat: start after boot in ticks of 10 ms.
            let stat = ps[&pid.to_string()]["stat"].as_str().unwrap();
            let rest = stat.rsplit(") ").next().unwrap();
            let ticks: i128 = rest.split(' ').nth(19).unwrap().parse().unwrap();
            assert_eq!(number(&t, row, "start_ns") / 10_000_000, ticks, "{at}");
        }
    }
    assert!(checked > 0, "no capture with data symbols");
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn modules_are_those_that_the_machine_listed() {
    let mut checked = 0;
    for c in captures() {
        let d = discover(&c.input());
        let k = c.kernel(&d);
        if !has_data_symbols(&k) {
            continue;
        }
        checked += 1;
        let t = linux::lsmod(&k).unwrap();
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        // name size users dependants state address
        let want: BTreeMap<String, (i128, i128)> = c.truth["modules"]
            .as_str()
            .unwrap()
            .lines()
            .map(|l| {
                let f: Vec<&str> = l.split_whitespace().collect();
                let base = f.iter().find_map(|w| w.strip_prefix("0x")).unwrap();
                let base = i128::from_str_radix(base, 16).unwrap();
                (f[0].to_owned(), (f[1].parse().unwrap(), base))
            })
            .collect();
        let got: BTreeMap<String, (i128, i128)> = (0..t.rows.len())
            .map(|r| {
                let name = text(&t, r, "name").to_owned();
                (name, (number(&t, r, "size"), number(&t, r, "base")))
            })
            .collect();
        assert_eq!(got, want, "{}", c.name);
    }
    assert!(checked > 0, "no capture with data symbols");
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn command_lines_and_environments_are_what_proc_said() {
    let mut checked = 0;
    for c in captures() {
        let d = discover(&c.input());
        let k = c.kernel(&d);
        if !has_data_symbols(&k) {
            continue;
        }
        checked += 1;
        let ps = c.truth["ps"].as_object().unwrap();
        let strings = |v: &serde_json::Value| -> Vec<String> {
            let all = v.as_array().into_iter().flatten();
            all.filter_map(|s| s.as_str()).map(str::to_owned).collect()
        };
        let mut whole = 0;
        let t = linux::psaux(&k).unwrap();
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        assert_eq!(t.rows.len(), ps.len(), "{}", c.name);
        for row in 0..t.rows.len() {
            let pid = number(&t, row, "pid").to_string();
            let got = match t.cell(row, "args") {
                Some(Value::Text(s)) => s.as_str(),
                _ => "",
            };
            let want = strings(&ps[&pid]["cmdline"]).join(" ");
            if number(&t, row, "missing") == 0 {
                assert_eq!(got.trim_end(), want.trim_end(), "{} pid {pid}", c.name);
                whole += usize::from(!want.is_empty());
            }
        }
        // Nothing was swapped out on these machines.
        let users = ps.values().filter(|p| !strings(&p["cmdline"]).is_empty());
        assert_eq!(whole, users.count(), "{}", c.name);
        let t = linux::envars(&k).unwrap();
        let mut got: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for row in 0..t.rows.len() {
            let pid = number(&t, row, "pid").to_string();
            let pair = format!("{}={}", text(&t, row, "key"), text(&t, row, "value"));
            got.entry(pid).or_default().insert(pair);
        }
        for (pid, p) in ps {
            let want = strings(&p["environ"]);
            let want: BTreeSet<String> = want.into_iter().filter(|e| e.contains('=')).collect();
            let got = got.remove(pid).unwrap_or_default();
            assert_eq!(got, want, "{} pid {pid}", c.name);
        }
    }
    assert!(checked > 0, "no capture with data symbols");
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn a_carved_symbol_table_is_the_one_that_vmcoreinfo_names() {
    use ramsift_layers::VirtAddr;
    use ramsift_symbols::kallsyms::{Hints, Places, carve, decode, image_delta};
    let mut checked = 0;
    for c in captures() {
        let infos = c.anchors.iter().filter(|a| a.kind == "vmcoreinfo");
        let info = infos
            .filter_map(|a| ramsift_symbols::VmCoreInfo::parse(&a.data).ok())
            .find(|v| v.len() > 10)
            .unwrap();
        let delta = image_delta(&info).unwrap();
        let known = [("_stext", VirtAddr(info.symbol("_stext").unwrap()))];
        let hints = Hints {
            known: &known,
            delta: Some(delta),
        };
        // 5.10 names no tables.
        let Ok(places) = Places::from_vmcoreinfo(&info, delta) else {
            continue;
        };
        checked += 1;
        let told = decode(&c.image, &places, &hints).unwrap();
        let tokens = c
            .anchors
            .iter()
            .filter(|a| a.kind == "kallsyms_token_table");
        let carved = tokens
            .filter_map(|a| c.runs.to_phys(ramsift_layers::ImageOffset(a.image_offset)))
            .find_map(|pa| carve(&c.image, pa, &hints).ok())
            .unwrap_or_else(|| panic!("{}: nothing carved", c.name));
        assert_eq!(told.len(), carved.len(), "{}", c.name);
        let differ = told
            .iter()
            .zip(carved.iter())
            .find(|(a, b)| (a.name, a.address) != (b.name, b.address));
        assert!(differ.is_none(), "{}: {differ:?}", c.name);
    }
    assert!(checked > 0, "no capture with kallsyms in VMCOREINFO");
}
