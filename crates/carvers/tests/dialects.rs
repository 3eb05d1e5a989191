//! Log lines in the dialects of servers and tools, and times with names of zones. What is expected comes from the
//! programs' documentation (nginx, Apache, squid's `X-Forwarded-For`, glog, auditd, fish, zsh, OpenSSH) and from the
//! time zone database.

#![allow(clippy::unwrap_used, reason = "a failed test says where")]

mod common;

use common::{Rows, all, whole};
use serde_json::{Value, json};

fn scan(text: &str) -> Rows {
    let mut image = vec![0x81, 0];
    image.extend_from_slice(text.as_bytes());
    image.extend_from_slice(&[0, 0, 0x81]);
    image.resize(4096, 0x81);
    whole(&all(), &image)
}

fn event(text: &str) -> Value {
    let rows = scan(text);
    let events: Vec<_> = rows.of("event").collect();
    assert_eq!(events.len(), 1, "{text}: {events:?}");
    events[0].clone()
}

/// True when the row has these values.
fn check(text: &str, want: &Value) {
    let row = event(text);
    for (key, value) in want.as_object().unwrap() {
        match value {
            Value::Object(inner) => {
                for (k, v) in inner {
                    assert_eq!(row[key][k], *v, "{text}: {k}\n{row}");
                }
            }
            v => assert_eq!(row[key], *v, "{text}: {key}\n{row}"),
        }
    }
}

/// Who asked, in all the ways in which servers write it.
#[test]
fn addresses_in_front_of_web_log_lines() {
    let rest = "- - [06/Feb/2024:15:16:31 +0000] \"GET /x HTTP/1.1\" 200 5";
    for (head, client, forwarded) in [
        (
            "203.0.113.5,10.0.0.2 10.0.0.1",
            "10.0.0.1",
            json!("203.0.113.5,10.0.0.2"),
        ),
        (
            "203.0.113.5,10.0.0.2",
            "203.0.113.5",
            json!("203.0.113.5,10.0.0.2"),
        ),
        (
            "unknown, 203.0.113.5",
            "203.0.113.5",
            json!("unknown, 203.0.113.5"),
        ),
        (
            "unknown, 203.0.113.5 10.0.0.1",
            "10.0.0.1",
            json!("unknown, 203.0.113.5"),
        ),
        ("-, 203.0.113.5", "203.0.113.5", json!("-, 203.0.113.5")),
        ("unknown 10.0.0.1", "10.0.0.1", json!("unknown")),
        ("- 10.0.0.1", "10.0.0.1", Value::Null),
        ("(203.0.113.5) 10.0.0.1", "10.0.0.1", json!("(203.0.113.5)")),
        ("203.0.113.5 (10.0.0.1)", "10.0.0.1", json!("203.0.113.5")),
        ("[2001:db8::1]:99", "[2001:db8::1]:99", Value::Null),
        ("203.0.113.5:99", "203.0.113.5:99", Value::Null),
    ] {
        let want = json!({"kind": "access", "host": null, "fields":
            {"client": client, "forwarded_for": forwarded, "status": 200, "path": "/x"}});
        check(&format!("{head} {rest}"), &want);
    }
    let hosted = format!("www.bad-host.net:443 203.0.113.5 {rest}");
    check(
        &hosted,
        &json!({"host": "www.bad-host.net:443", "fields": {"client": "203.0.113.5"}}),
    );
}

#[test]
fn requests_and_times_of_other_web_servers() {
    let utc = 1_707_232_591_000_000i64;
    let plain = "\"GET /x HTTP/1.1\" 200 5";
    for (line, want) in [
        (
            "203.0.113.5 - - [06/Feb/2024:15:16:31 +0000] \"GET /a b c HTTP/1.1\" 200 5".to_owned(),
            json!({"time": utc, "fields": {"path": "/a b c", "protocol": "HTTP/1.1"}}),
        ),
        (
            "203.0.113.5 - - [06/Feb/2024:15:16:31 +0000] \"GET /a?b=\"c\" HTTP/1.1\" 200 5"
                .to_owned(),
            json!({"fields": {"path": "/a?b=\"c\"", "status": 200, "bytes": 5}}),
        ),
        (
            format!("203.0.113.5 - - [06/Feb/2024:15:16:31 +0000] www.bad-host.net {plain}"),
            json!({"fields": {"between": "www.bad-host.net", "client": "203.0.113.5"}}),
        ),
        (
            format!("203.0.113.5 - - [2024-02-06T15:16:31+00:00] {plain}"),
            json!({"kind": "access", "time": utc, "raw_time": "2024-02-06T15:16:31+00:00"}),
        ),
        (
            format!("203.0.113.5 - - [06/Feb/2024 15:16:31] {plain}"),
            json!({"kind": "access", "time": null, "inferred_time": utc}),
        ),
    ] {
        check(&line, &want);
    }
}

#[test]
fn zones_by_name_place_and_in_brackets() {
    let utc = 1_720_278_991i64;
    for (zone, hours) in [
        (" Z", 0),
        (" America/New_York", -4),
        (" Europe/Berlin", 2),
        (" (CEST)", 2),
        (" [CEST]", 2),
        (" MET", 1),
        ("CEST", 2),
        ("JST", 9),
        (" (Asia/Tokyo)", 9),
    ] {
        let want = json!({"time": (utc - hours * 3600) * 1_000_000, "message": "up"});
        check(&format!("2024-07-06 15:16:31{zone} up"), &want);
        check(&format!("2024-07-06T15:16:31.0{zone} up"), &want);
    }
    // Berlin's winter.
    check(
        "2024-01-06 15:16:31 Europe/Berlin up",
        &json!({"time": 1_704_550_591_000_000i64}),
    );
    for zone in [" EST", "EST", " (IST)"] {
        check(
            &format!("2024-07-06 15:16:31{zone} up"),
            &json!({"time": null, "message": "up"}),
        );
    }
    for (text, message) in [
        ("2024-07-06 15:16:31 (main) up", "(main) up"),
        ("2024-07-06 15:16:31 [CETUS] up", "[CETUS] up"),
        ("2024-07-06 15:16:31 Europe/Nowhere up", "Europe/Nowhere up"),
        ("2024-07-06 15:16:31, INFO, up", "INFO, up"),
    ] {
        let want = json!({"time": null, "inferred_from": "zone: assumed UTC", "message": message});
        check(text, &want);
    }
}

#[test]
fn syslog_and_its_relatives() {
    let utc = 1_707_232_591_000_000i64;
    for (line, want) in [
        (
            "<13> Feb  6 15:16:31 web01 app: x",
            json!({"host": "web01", "program": "app", "fields": {"facility": 1, "severity": 5}}),
        ),
        (
            "Tue Feb  6 15:16:31 2024 [pid 2] [ann] OK LOGIN: Client \"203.0.113.5\"",
            json!({"host": null, "inferred_time": utc, "message": "[pid 2] [ann] OK LOGIN: Client \"203.0.113.5\""}),
        ),
        (
            "Tue Feb  6 15:16:31 2024 OpenVPN 2.4.7 x86_64-pc-linux-gnu",
            json!({"host": null, "message": "OpenVPN 2.4.7 x86_64-pc-linux-gnu"}),
        ),
        (
            "Tue Feb  6 15:16:31 2024 203.0.113.5:1194 TLS: x",
            json!({"host": null, "program": null}),
        ),
        (
            "Tue Feb  6 15:16:31 2024 1 203.0.113.5 5 /x b _ o a ann ftp 0 * c",
            json!({"host": null}),
        ),
        (
            "Feb  6 15:16:31 web01 INFO: started",
            json!({"host": "web01", "program": null, "message": "started", "fields": {"level": "INFO"}}),
        ),
        (
            "Feb  6 15:16:31 web01 (info) app[2]: x",
            json!({"program": "app", "pid": 2, "fields": {"level": "info"}}),
        ),
        (
            "Feb  6 15:16:31 web01 sshd[2]: Connection from 203.0.113.5 port 4242 on 10.0.0.1 port 22",
            json!({"fields": {"action": "connected", "src_ip": "203.0.113.5", "src_port": 4242}}),
        ),
        (
            "Feb  6 15:16:31 web01 sshd[2]: Failed password for invalid user x from 1.1.1.1 port 22 ssh2 from 203.0.113.5 port 4242 ssh2",
            json!({"fields": {"src_ip": "203.0.113.5", "src_port": 4242}}),
        ),
        (
            "W20240206 15:16:31.123456   12 a.cc:7] low",
            json!({"kind": "klog", "pid": 12, "message": "low",
                "inferred_time": utc + 123_456, "fields": {"level": "WARNING", "file": "a.cc", "line": 7}}),
        ),
        (
            "Tue 2024-02-06 15:16:31 UTC web01 app[1]: full",
            json!({"kind": "syslog", "time": utc, "host": "web01", "raw_time": "2024-02-06 15:16:31 UTC"}),
        ),
        (
            "Feb  6 15:16:31  web01  app[1]: spaces",
            json!({"host": "web01", "program": "app", "message": "spaces"}),
        ),
        (
            "2024-02-06 15:16:31 UTC [812]: [1-1] user=ann,db=shop,app=psql,client=203.0.113.5 LOG:  x",
            json!({"kind": "postgresql", "pid": 812, "fields": {"user": "ann", "database": "shop", "client": "203.0.113.5"}}),
        ),
        (
            "{\"MESSAGE\":[104,105],\"__REALTIME_TIMESTAMP\":\"1707232591000000\"}",
            json!({"kind": "journal", "time": utc, "message": "hi"}),
        ),
        (
            "{\"items\":[{\"level\":\"Request\",\"auditID\":\"b\",\"stage\":\"ResponseComplete\",\"requestURI\":\"/api\",\"verb\":\"create\",\"stageTimestamp\":\"2024-02-06T15:16:31Z\"}]}",
            json!({"kind": "kubernetes_audit", "time": utc, "message": "create /api"}),
        ),
        (
            "{\"time\":\"2024-02-06T15:16:31Z\",\"msg\":\"x\"};",
            json!({"time": utc, "message": "x"}),
        ),
        (
            "{\"timeStamp\":\"2024-02-06T15:16:31Z\",\"event\":\"x\"}",
            json!({"kind": "json", "time": utc, "message": "x"}),
        ),
        (
            "{\"TIME\":\"2024-02-06T15:16:31Z\",\"MSG\":\"x\"}",
            json!({"time": utc, "message": "x"}),
        ),
        (
            "{\"time\":\"Tue, 06 Feb 2024 15:16:31 GMT\",\"msg\":\"x\"}",
            json!({"time": utc, "message": "x"}),
        ),
    ] {
        check(line, &want);
    }
    let two = scan(
        "{\"time\":\"2024-02-06T15:16:31Z\",\"msg\":\"a\"}{\"time\":\"2024-02-06T15:16:32Z\",\"msg\":\"b\"}",
    );
    assert_eq!(two.of("event").count(), 2);
    assert_eq!(scan("Feb  6 15:16:31 2 messages").of("event").count(), 0);
}

/// Whether a time and a brace share a block of 64 bytes decides nothing: a line is one event.
#[test]
fn a_line_is_one_event_wherever_it_lies() {
    for (line, kind) in [
        (
            "Feb  6 15:16:31 web01 app[1]: {\"time\":\"2024-02-06T15:16:30Z\",\"msg\":\"x\"}",
            "syslog",
        ),
        (
            "2024-02-06T15:16:31Z stdout F {\"time\":\"2024-02-06T15:16:30Z\",\"msg\":\"x\"}",
            "cri",
        ),
        (
            "Feb  6 15:16:31 h k: audit: type=1 audit(1707232591.123:7): x=y",
            "syslog",
        ),
        (
            "{\"log\":\"a b=1 time=2024-02-06T15:16:30Z level=info\",\"time\":\"2024-02-06T15:16:31Z\"}",
            "json",
        ),
    ] {
        for at in 0..130 {
            let row = event(&format!("{}\n{line}", "\0".repeat(at)));
            assert_eq!(row["kind"], kind, "{line} at {at}");
        }
    }
}

#[test]
fn commands_of_several_lines_and_parts() {
    for (line, want) in [
        (
            "type=EXECVE msg=audit(1707232591.123:7): argc=2 a0=\"sh\" a1_len=8 a1[0]=6563 a1[1]=686F",
            "sh echo",
        ),
        (
            "type=EXECVE msg=audit(1707232591.123:7): argc=2 a0=\"sh\" a1_len=8 a1[0]=\"6563\" a1[1]=\"xy\"",
            "sh 6563xy",
        ),
    ] {
        check(line, &json!({"fields": {"command": want}}));
    }
    for (text, command) in [
        (
            ": 1707232591:0;for i in a b; do\\\n  echo $i\\\ndone\n: 1707232600:0;ls",
            "for i in a b; do\n  echo $i\ndone",
        ),
        (
            "- cmd: printf a\\nb \\\\x\n  when: 1707232591\n",
            "printf a\nb \\x",
        ),
    ] {
        let rows = scan(text);
        let first = rows.of("event").next().unwrap();
        assert_eq!(first["message"], command, "{text}");
        assert_eq!(first["kind"], "shell_history");
    }
    let two = scan(": 1707232591:0;echo \\\\\n: 1707232600:0;ls\n");
    assert_eq!(two.of("event").count(), 2);
}
