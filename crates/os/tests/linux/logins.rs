//! Logins: files that the C library wrote, put in the place of cached ones. The captured machines have none.

use crate::common::{Image, build, captures, each_with_tasks, has_data_symbols, number, text};
use ramsift_layers::PhysAddr;
use ramsift_layers::translate::{PhysError, PhysRead, X86_64};
use ramsift_os::content::Recovered;
use ramsift_os::discover::discover;
use ramsift_os::linux::{AddressSpace, Kernel};
use ramsift_os::table::{Table, Value};
use ramsift_os::{Machine as _, by_name};
use std::ops::ControlFlow;

/// An image with other bytes at some places.
struct Forged<'i> {
    image: &'i Image,
    places: Vec<(u64, Vec<u8>)>,
}

impl PhysRead for Forged<'_> {
    fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
        self.image.read_phys(pa, buf)?;
        for (place, bytes) in &self.places {
            for (i, b) in bytes.iter().enumerate() {
                let at = (place + i as u64).checked_sub(pa.0);
                if let Some(to) = at.and_then(|a| buf.get_mut(a as usize)) {
                    *to = *b;
                }
            }
        }
        Ok(())
    }
}

/// A cached file.
fn cached(k: &Kernel<'_>, path: &str) -> Recovered {
    let mut found = None;
    let view = by_name("linux/pagecache_files").unwrap();
    k.recover(view, None, &mut Vec::new(), &mut |r| {
        if r.name == path {
            found = Some(r);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    found.unwrap_or_else(|| panic!("{path} is not cached"))
}

/// What makes a cached file of at most a page one of another name with other content.
fn replace(k: &Kernel<'_>, path: &str, name: &str, bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let file = cached(k, path);
    let inode = k.object("inode", file.object);
    let alias = ["d_u.d_alias", "d_alias"];
    let types = k.symbols.types();
    let alias = types
        .field("dentry", alias[0])
        .or_else(|_| types.field("dentry", alias[1]));
    let dentry = inode.number("i_dentry.first").unwrap() - alias.unwrap().offset;
    let dentry = k.object("dentry", dentry);
    let at = |va: u64| k.space.translate(va).unwrap().0;
    vec![
        (
            at(inode.at("i_size").unwrap()),
            (bytes.len() as u64).to_le_bytes().to_vec(),
        ),
        (
            at(dentry.at("d_name.len").unwrap()),
            (name.len() as u32).to_le_bytes().to_vec(),
        ),
        (
            at(dentry.number("d_name.name").unwrap()),
            name.as_bytes().to_vec(),
        ),
        (file.content.at(0).unwrap().0, bytes.to_vec()),
    ]
}

/// Runs a test on x86-64 captures with some files replaced.
fn with_files(files: &[(&str, &str, &[u8])], test: impl Fn(&str, &Kernel<'_>)) {
    let mut checked = 0;
    for c in captures() {
        let d = discover(&c.input());
        let table = d.page_tables.iter().find(|p| p.confirmed).unwrap();
        let mut k = c.kernel(&d);
        if !has_data_symbols(&k) || table.shape != X86_64.name {
            continue;
        }
        let places = files
            .iter()
            .flat_map(|(path, name, bytes)| replace(&k, path, name, bytes));
        let forged = Forged {
            places: places.collect(),
            image: &c.image,
        };
        k.space = AddressSpace::new(&forged, X86_64, table.dtb);
        test(&c.name, &k);
        checked += 1;
    }
    assert!(checked > 0);
}

const WTMP: &[u8] = include_bytes!("../../testdata/wtmp");
const BTMP: &[u8] = include_bytes!("../../testdata/btmp");

fn cell(t: &Table, row: usize, column: &str) -> String {
    match t.cell(row, column) {
        Some(Value::Text(s)) => s.clone(),
        Some(Value::Number(n)) => n.to_string(),
        _ => "-".to_owned(),
    }
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn logins_are_those_that_utmpdump_shows() {
    let files = [
        ("/srv/docs/blob-4096.bin", "wtmp", WTMP),
        ("/srv/docs/blob-4095.bin", "btmp", BTMP),
    ];
    with_files(&files, |name, k| {
        let t = build(k, "linux/logins");
        assert_eq!(t.doubts, Vec::<String>::new(), "{name}");
        let columns = [
            "time", "kind", "pid", "id", "user", "line", "host", "address",
        ];
        let got: Vec<String> = (0..t.rows.len())
            .map(|r| columns.map(|c| cell(&t, r, c)).join(" "))
            .collect();
        // utmpdump of util-linux 2.38 on the same files.
        let want = [
            "1767341000000001 boot - ~~ reboot ~ 6.1.0-42-amd64 -",
            "1767341009000002 run_level 53 ~~ runlevel ~ 6.1.0-42-amd64 -",
            "1767341010000003 waiting 500 tty1 LOGIN tty1 - -",
            "1767341700000004 login 812 ts/0 alice pts/0 203.0.113.66 203.0.113.66",
            "1767341800000005 login 900 ts/1 bob pts/1 2001:db8::66 2001:db8::66",
            "1767341900000006 logout 812 ts/0 - pts/0 - -",
            "1767342000000007 shutdown - ~~ shutdown ~ 6.1.0-42-amd64 -",
            "1767341100000000 failed 700 - alice ssh:notty 203.0.113.66 203.0.113.66",
            "1767341160000001 failed 701 - alice ssh:notty 203.0.113.66 203.0.113.66",
            "1767341220000002 failed 702 - alice ssh:notty 203.0.113.66 203.0.113.66",
            "1767341280000003 failed 703 - alice ssh:notty 203.0.113.66 203.0.113.66",
            "1767341340000004 failed 704 - alice ssh:notty 203.0.113.66 203.0.113.66",
            "1767341650000009 failed 790 - root ssh:notty 198.51.100.9 198.51.100.9",
            "1767341660000009 failed 791 - bob ssh:notty 2001:db8::66 2001:db8::66",
        ];
        assert_eq!(got, want, "{name}");
        // alice's login follows five that failed from the same place; bob's follows a slip.
        let flagged: Vec<(&str, usize)> = t.anomalies.iter().map(|a| (a.rule, a.row)).collect();
        assert_eq!(flagged, [("login_after_failures", 3)], "{name}");
        let told = |kind: &str| t.events.iter().filter(|e| e.kind == kind).count();
        let kinds = ["login", "logout", "failed login", "boot", "shutdown"].map(told);
        assert_eq!(kinds, [2, 1, 7, 1, 1], "{name}");
        // The record's own bytes are where the row says.
        for r in 0..t.rows.len() {
            let mut raw = [0; 2];
            let pa = PhysAddr(number(&t, r, "physical") as u64);
            k.space.memory().read_phys(pa, &mut raw).unwrap();
            let file = if text(&t, r, "source").ends_with("wtmp") {
                WTMP
            } else {
                BTMP
            };
            let at = number(&t, r, "offset") as usize;
            assert_eq!(raw, file[at..at + 2], "{name} row {r}");
        }
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn machines_without_logins_have_none() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/logins");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        assert_eq!(t.anomalies, [], "{}", c.name);
        // Nobody logs in to these machines: their files are empty.
        assert_eq!(t.rows, Vec::<Vec<Value>>::new(), "{}", c.name);
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn history_files_are_known_by_their_names() {
    let fish = b"- cmd: echo a\\nb\n  when: 1700000000\n- cmd: ls\n  when: 1700000009\n";
    let files: [(&str, &str, &[u8]); 1] = [("/srv/docs/blob-4096.bin", "fish_history", fish)];
    with_files(&files, |name, k| {
        let t = build(k, "linux/history");
        let rows: Vec<String> = (0..t.rows.len())
            .filter(|r| text(&t, *r, "source") == "/srv/docs/fish_history")
            .map(|r| {
                ["time", "user", "program", "index", "command"]
                    .map(|c| cell(&t, r, c))
                    .join(" ")
            })
            .collect();
        let want = [
            "1700000000000000 root fish 1 echo a\nb",
            "1700000009000000 root fish 2 ls",
        ];
        assert_eq!(rows, want, "{name}");
    });
}
