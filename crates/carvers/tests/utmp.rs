//! Login records, laid out as utmp(5) and glibc's `bits/utmp.h` say for x86-64.

#![allow(clippy::unwrap_used, reason = "a failed test says where")]

mod common;

use common::{Rows, all, whole, window};
use serde_json::{Value, json};

const SIZE: usize = 384;

/// Writes `text` to a field of `len` bytes, the rest zeros.
fn put(out: &mut Vec<u8>, text: &[u8], len: usize) {
    let end = out.len() + len;
    out.extend_from_slice(text);
    out.resize(end, 0);
}

/// What a record is made of.
struct Login<'a> {
    kind: u16,
    pid: i32,
    line: &'a str,
    id: &'a str,
    user: &'a str,
    host: &'a str,
    seconds: u32,
    address: [u8; 16],
}

const USER: Login<'static> = Login {
    kind: 7,
    pid: 8734,
    line: "pts/0",
    id: "ts/0",
    user: "ann",
    host: "203.0.113.5",
    seconds: 1_700_000_000,
    address: [203, 0, 113, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
};

impl Login<'_> {
    fn bytes(&self) -> Vec<u8> {
        let mut b = Vec::new();
        b.extend(self.kind.to_le_bytes());
        b.extend([0; 2]);
        b.extend(self.pid.to_le_bytes());
        put(&mut b, self.line.as_bytes(), 32);
        put(&mut b, self.id.as_bytes(), 4);
        put(&mut b, self.user.as_bytes(), 32);
        put(&mut b, self.host.as_bytes(), 256);
        // No exit status, no session.
        b.extend([0; 8]);
        b.extend(self.seconds.to_le_bytes());
        b.extend(250_000u32.to_le_bytes());
        b.extend(self.address);
        b.extend([0; 20]);
        assert_eq!(b.len(), SIZE);
        b
    }
}

/// The records between bytes that are none, at an odd place.
fn image(records: &[Vec<u8>]) -> Vec<u8> {
    let mut out = vec![0x81; 777];
    out.extend(records.concat());
    out.resize(3 * 4096, 0x81);
    out
}

fn records(image: &[u8]) -> Vec<Value> {
    let rows: Rows = whole(&all(), image);
    let found = rows.of("event").filter(|e| e["kind"] == "utmp");
    let mut found: Vec<Value> = found.cloned().collect();
    found.sort_by_key(|e| e["offset"].as_u64());
    found
}

#[test]
fn a_login_is_an_event() {
    let found = records(&image(&[USER.bytes()]));
    assert_eq!(found.len(), 1);
    let e = &found[0];
    assert_eq!((&e["offset"], &e["len"]), (&json!(777), &json!(384)));
    assert_eq!(e["time"], 1_700_000_000_250_000u64);
    assert_eq!(e["raw_time"], "1700000000.250000");
    assert_eq!(e["pid"], 8734);
    assert_eq!(e["message"], "USER_PROCESS ann pts/0 203.0.113.5");
    let fields = json!({
        "type": "USER_PROCESS", "user": "ann", "line": "pts/0", "id": "ts/0",
        "host": "203.0.113.5", "addr": "203.0.113.5",
    });
    assert_eq!(e["fields"], fields);
}

#[test]
fn a_file_of_all_that_a_machine_writes() {
    let none = [0; 16];
    let v6 = "2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap();
    let boot = Login {
        kind: 2,
        pid: 0,
        line: "~",
        id: "~~",
        user: "reboot",
        host: "6.1.0-18-amd64",
        address: none,
        ..USER
    };
    let file = [
        boot.bytes(),
        Login {
            kind: 1,
            pid: 53,
            user: "runlevel",
            ..boot
        }
        .bytes(),
        Login {
            kind: 5,
            line: "tty1",
            user: "",
            host: "",
            address: none,
            ..USER
        }
        .bytes(),
        Login {
            kind: 6,
            line: "ttyS0",
            user: "LOGIN",
            host: "",
            address: none,
            ..USER
        }
        .bytes(),
        Login {
            kind: 7,
            line: ":0",
            host: ":0",
            address: none,
            ..USER
        }
        .bytes(),
        Login {
            kind: 6,
            line: "ssh:notty",
            user: "root' OR 1",
            address: v6.octets(),
            ..USER
        }
        .bytes(),
        Login {
            kind: 8,
            user: "",
            host: "",
            address: none,
            ..USER
        }
        .bytes(),
        Login {
            kind: 1,
            line: "~",
            user: "shutdown",
            ..boot
        }
        .bytes(),
    ];
    let found = records(&image(&file));
    let types: Vec<_> = found
        .iter()
        .map(|e| e["fields"]["type"].as_str().unwrap())
        .collect();
    let want = [
        "BOOT_TIME",
        "RUN_LVL",
        "INIT_PROCESS",
        "LOGIN_PROCESS",
        "USER_PROCESS",
        "LOGIN_PROCESS",
        "DEAD_PROCESS",
        "RUN_LVL",
    ];
    assert_eq!(types, want);
    assert_eq!(found[0]["pid"], Value::Null);
    assert_eq!(found[5]["fields"]["addr"], "2001:db8::7");
    assert_eq!(found[5]["fields"]["line"], "ssh:notty");
    // Once each, wherever in the line the terminal's name stands.
    let starts: Vec<_> = (0..8).map(|i| json!(777 + i * SIZE)).collect();
    let offsets: Vec<_> = found.iter().map(|e| e["offset"].clone()).collect();
    assert_eq!(offsets, starts);
}

#[test]
fn what_is_no_record_is_no_row() {
    // A byte that must be zero or small, changed in a record.
    for (at, byte) in [
        (0, 0),
        (0, 10),
        (1, 1),
        (2, 1),
        (7, 1),
        (14, b'x'),
        (39, 1),
        (44, 7),
        (60, 1),
        (331, b'h'),
        (333, 9),
        (339, 1),
        (343, 0x20),
        (346, 0x20),
        (364, 1),
        (383, 1),
    ] {
        let mut b = USER.bytes();
        b[at] = byte;
        assert_eq!(records(&image(&[b])).len(), 0, "{at}");
    }
    // A logout alone, and users that no such record has.
    for login in [
        Login {
            kind: 8,
            user: "",
            ..USER
        },
        Login {
            kind: 7,
            user: "",
            ..USER
        },
        Login {
            kind: 2,
            line: "~",
            user: "ann",
            ..USER
        },
        Login { pid: -1, ..USER },
        Login { seconds: 0, ..USER },
        Login { line: "", ..USER },
    ] {
        assert_eq!(records(&image(&[login.bytes()])).len(), 0);
    }
    // The record is cut by the image's end.
    let cut = image(&[USER.bytes()]);
    assert_eq!(records(&cut[..777 + SIZE - 1]).len(), 0);
    assert_eq!(records(&cut[..777 + SIZE]).len(), 1);
}

#[test]
fn windows_give_each_record_once() {
    let logout = Login {
        kind: 8,
        user: "",
        ..USER
    };
    let image = image(&[USER.bytes(), logout.bytes()]);
    let want: Vec<_> = records(&image).iter().map(Value::to_string).collect();
    assert_eq!(want.len(), 2);
    for cut in (700..777 + 2 * SIZE).step_by(7) {
        let mut rows = Rows::default();
        for core in [0..cut, cut..image.len()] {
            window(&all(), &image, core, 0, &mut rows);
        }
        let mut got: Vec<_> = rows.of("event").filter(|e| e["kind"] == "utmp").collect();
        got.sort_by_key(|e| e["offset"].as_u64());
        let got: Vec<_> = got.into_iter().map(Value::to_string).collect();
        assert_eq!(got, want, "{cut}");
    }
}
