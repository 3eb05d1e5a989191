//! Object stores with a private authority, with keys for each bucket, with none; encrypted by their owner; paid for by who reads.

use ramsift_layers::FileOffset;
use ramsift_layers::source::{CustomerKey, S3Client, S3Config, SourceError, Sources};
use ramsift_store::{Objects, S3Objects};
use ramsift_tests::block_on;
use ramsift_tests::program::{Run, command, run};
use ramsift_tests::servers::{KEYS, OTHER_KEYS, S3};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// A raw capture of 1 MiB.
fn capture(fill: u8) -> Vec<u8> {
    let mut out = vec![fill; 1 << 20];
    out[..4096].fill(0);
    out
}

fn inspect(settings: &[String], names: &[&str]) -> Run {
    let mut c = command();
    c.arg("inspect").args(names).args(["--format", "jsonl"]);
    for s in settings {
        c.args(["--set", s]);
    }
    run(&mut c)
}

/// The settings that lead to a server, with these keys.
fn reaching(s3: &S3, keys: (&str, &str)) -> Vec<String> {
    let ca = s3.ca_file().expect("TLS");
    vec![
        format!("s3.endpoint={}", s3.endpoint()),
        format!("s3.ca_file={}", ca.display()),
        format!("s3.access_key={}", keys.0),
        format!("s3.secret_key={}", keys.1),
        "s3.path_style=true".into(),
    ]
}

fn put(o: &S3Objects, key: &str, data: Vec<u8>) {
    block_on(o.put_new(key, data.into())).unwrap_or_else(|e| panic!("{key}: {e}"));
}

#[test]
fn authorities_keys_and_customers() {
    let s3 = S3::start_tls();
    for (i, name) in ["evidence", "case", "public"].iter().enumerate() {
        put(&s3.bucket(name), "a.mem", capture(i as u8 + 1));
    }
    // Trusted by its authority alone.
    let mut settings = reaching(&s3, KEYS);
    let r = inspect(&settings, &["s3://evidence/a.mem"]);
    assert_eq!(r.code, 0, "{}{}", r.out, r.err);
    settings.retain(|s| !s.starts_with("s3.ca_file"));
    let r = inspect(&settings, &["s3://evidence/a.mem"]);
    assert!(
        r.code != 0 && format!("{}{}", r.out, r.err).contains("UnknownIssuer"),
        "{}{}",
        r.out,
        r.err
    );
    // Without keys the public bucket can be read, and no other.
    let mut settings = reaching(&s3, ("", ""));
    settings.push("s3.anonymous=true".into());
    let r = inspect(&settings, &["s3://public/"]);
    assert!(
        r.code == 0 && r.out.contains("s3://public/a.mem"),
        "{}{}",
        r.out,
        r.err
    );
    let r = inspect(&settings, &["s3://evidence/a.mem"]);
    assert!(
        r.code != 0 && format!("{}{}", r.out, r.err).contains("refused"),
        "{}{}",
        r.out,
        r.err
    );
    // A table for each bucket; the section's own keys open nothing.
    let dir = tempfile::tempdir().expect("tempdir");
    let tables = dir.path().join("buckets.toml");
    let text = format!(
        "[case]\naccess_key = \"{}\"\nsecret_key = \"{}\"\n[public]\nanonymous = true\n",
        OTHER_KEYS.0, OTHER_KEYS.1
    );
    std::fs::write(&tables, text).expect("write");
    let mut settings = reaching(&s3, ("nobody", "nothing"));
    settings.push(format!("s3.buckets_file={}", tables.display()));
    let r = inspect(&settings, &["s3://case/", "s3://public/a.mem"]);
    assert_eq!(r.code, 0, "{}{}", r.out, r.err);
    assert_eq!(r.out.lines().count(), 2, "{}", r.out);
    let r = inspect(&settings, &["s3://evidence/a.mem"]);
    assert!(r.code != 0, "{}{}", r.out, r.err);
    encrypted_by_their_owner(&s3, dir.path());
}

/// Objects with a key of their owner's: read with it, refused with another or none.
fn encrypted_by_their_owner(s3: &S3, dir: &Path) {
    drop(s3.bucket("sealed"));
    let key = b"0123456789abcdef0123456789ABCDEF";
    let with = |key: Option<&[u8]>| S3Config {
        customer_key: key.map(|k| CustomerKey::parse(k).expect("32 bytes")),
        ..s3.config()
    };
    let data = capture(7);
    block_on(async {
        let client = S3Client::connect(&with(Some(key))).await;
        let o = S3Objects::new(client, "sealed", "");
        o.put_new("a.mem", data.clone().into())
            .await
            .expect("stored");
        let sources = Sources::new(with(Some(key)));
        let s = sources.open("s3://sealed/a.mem").await.expect("opens");
        let all = s.read_vec(FileOffset(0), data.len()).await.expect("read");
        assert!(all == data);
        for other in [None, Some(&b"another key, of thirty-two bytes"[..])] {
            let opened = Sources::new(with(other)).open("s3://sealed/a.mem").await;
            let read = match opened {
                Ok(s) => s.read_vec(FileOffset(0), 4096).await.map(drop),
                Err(e) => Err(e),
            };
            let e = read.expect_err("not without the key");
            assert!(!matches!(e, SourceError::Changed { .. }), "{e}");
            assert!(e.to_string().contains("s3."), "{e}");
        }
    });
    let file = dir.join("key");
    std::fs::write(&file, key).expect("write");
    let mut settings = reaching(s3, KEYS);
    settings.push(format!("s3.sse_c_key_file={}", file.display()));
    let r = inspect(&settings, &["s3://sealed/a.mem"]);
    assert_eq!(r.code, 0, "{}{}", r.out, r.err);
}

/// Keys as people make them, and worse.
const KEYS_OF_OBJECTS: &[&str] = &[
    "odd/a b.mem",
    "odd/plus+sign.mem",
    "odd/percent%41%2Fb.mem",
    "odd/\u{fc}ml\u{e4}ut-\u{65e5}\u{672c}.mem",
    "odd/question?x=1&y=2.mem",
    "odd/hash#tag.mem",
    "odd/quote'\"`.mem",
    "odd/;:@=,$.mem",
    "odd/*(paren)!~.mem",
    "odd/[brackets]{}|^<>.mem",
    "odd/..dots../.x.mem",
];

#[test]
fn keys_of_objects_are_taken_as_they_are() {
    let s3 = S3::start();
    let o = s3.bucket("evidence");
    for (i, key) in KEYS_OF_OBJECTS.iter().enumerate() {
        put(&o, key, capture(i as u8 + 1));
    }
    let sources = Sources::new(s3.config());
    for (i, key) in KEYS_OF_OBJECTS.iter().enumerate() {
        block_on(async {
            let s = sources.open(&format!("s3://evidence/{key}")).await;
            let s = s.unwrap_or_else(|e| panic!("{key}: {e}"));
            let b = s.read_vec(FileOffset(8192), 1).await.expect("read");
            assert_eq!(b, [i as u8 + 1], "{key}");
            let again = sources.open_pinned(s.pin()).await.expect("by its pin");
            again
                .check_pin()
                .await
                .unwrap_or_else(|e| panic!("{key}: {e}"));
        });
    }
    let settings = [
        format!("s3.endpoint={}", s3.endpoint()),
        format!("s3.access_key={}", KEYS.0),
        format!("s3.secret_key={}", KEYS.1),
        "s3.path_style=true".into(),
    ];
    let r = inspect(&settings, &["s3://evidence/odd/"]);
    assert_eq!(r.code, 0, "{}{}", r.out, r.err);
    for key in KEYS_OF_OBJECTS {
        let name = serde_json::to_string(&format!("s3://evidence/{key}")).expect("JSON");
        assert!(r.out.contains(&name), "{name}\n{}", r.out);
    }
}

/// A service that finds nothing, and notes what it is asked.
fn recorder() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = seen.clone();
    std::thread::spawn(move || {
        for mut s in listener.incoming().flatten() {
            let mut lines = BufReader::new(s.try_clone().expect("a socket")).lines();
            let head = lines
                .by_ref()
                .map_while(Result::ok)
                .take_while(|l| !l.is_empty());
            let head: Vec<String> = head.collect();
            noted.lock().expect("noted").push(head.join("\n"));
            let _ = s.write_all(
                b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            );
        }
    });
    (url, seen)
}

#[test]
fn requests_say_who_pays_and_which_key() {
    let (url, seen) = recorder();
    let base = S3Config {
        endpoint: url.as_str().into(),
        access_key: "a".into(),
        secret_key: "b".into(),
        path_style: true,
        ..S3Config::default()
    };
    let paid = S3Config {
        requester_pays: true,
        customer_key: Some(CustomerKey::parse(&[0x61; 32]).expect("32 bytes")),
        ..base.clone()
    };
    let config = S3Config {
        buckets: [("paid".to_owned(), paid)].into(),
        ..base
    };
    let sources = Sources::new(config);
    block_on(async {
        for name in ["s3://free/a.mem", "s3://paid/a//b/../c.mem"] {
            let e = sources.open(name).await.expect_err("nothing there");
            assert!(matches!(e, SourceError::NotFound { .. }), "{e}");
        }
        let o = S3Objects::new(sources.s3("paid").await, "paid", "");
        let _ = o.list("x/").await;
    });
    let seen = seen.lock().expect("noted");
    let [free, paid, list, ..] = seen.as_slice() else {
        panic!("{seen:?}");
    };
    let has = |head: &str, header: &str| head.to_ascii_lowercase().contains(header);
    assert!(
        !has(free, "x-amz-request-payer") && !has(free, "customer"),
        "{free}"
    );
    // The path as it is; what is added is signed.
    assert!(paid.starts_with("HEAD /paid/a//b/../c.mem"), "{paid}");
    assert!(has(paid, "x-amz-request-payer: requester"), "{paid}");
    // By `printf 'a%.0s' $(seq 32) | openssl md5 -binary | base64`.
    let md5 = "customer-key-md5: Xsqb0+sHwAbNQ65I395/0w==";
    assert!(paid.contains(md5), "{paid}");
    let signed = paid
        .lines()
        .find(|l| has(l, "signedheaders="))
        .expect("signed");
    assert!(
        has(signed, "x-amz-request-payer") && has(signed, "customer-algorithm"),
        "{signed}"
    );
    assert!(
        has(list, "x-amz-request-payer: requester") && !has(list, "customer"),
        "{list}"
    );
}

/// Requests that are under way, and the most that were.
type Crowd = (Mutex<(usize, usize)>, Condvar);

/// A service with one bucket of `n` captures of 1 MiB of zeros. It answers a request for an object when `together` are under way, or when
/// that has been so before; gives the most that were.
fn crowd(n: usize, together: usize) -> (String, Arc<Crowd>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let state = Arc::new((Mutex::new((0, 0)), Condvar::new()));
    let shared = state.clone();
    let contents: String = (0..n)
        .map(|i| format!("<Contents><Key>{i:03}.mem</Key><Size>1048576</Size></Contents>"))
        .collect();
    let list =
        format!("<ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>");
    std::thread::spawn(move || {
        for s in listener.incoming().flatten() {
            let (state, list) = (shared.clone(), list.clone());
            std::thread::spawn(move || answer(s, &state, together, &list));
        }
    });
    (url, state)
}

fn answer(mut s: TcpStream, state: &Crowd, together: usize, list: &str) {
    let mut lines = BufReader::new(s.try_clone().expect("a socket")).lines();
    let head: Vec<String> = lines
        .by_ref()
        .map_while(Result::ok)
        .take_while(|l| !l.is_empty())
        .collect();
    let first = head.first().map_or("", String::as_str);
    let body = if first.contains("list-type=2") {
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{list}",
            list.len()
        )
        .into_bytes()
    } else {
        let (lock, more) = state;
        let mut now = lock.lock().expect("counted");
        now.0 += 1;
        now.1 = now.1.max(now.0);
        more.notify_all();
        // One that comes alone is answered in the end.
        let patience = Duration::from_secs(5);
        now = more
            .wait_timeout_while(now, patience, |n| n.1 < together)
            .expect("counted")
            .0;
        now.0 -= 1;
        drop(now);
        let range = head.iter().find_map(|l| {
            l.to_ascii_lowercase()
                .strip_prefix("range: bytes=")
                .map(str::to_owned)
        });
        let of = "etag: \"e\"\r\nlast-modified: Wed, 21 Oct 2015 07:28:00 GMT\r\nconnection: close";
        match range.as_deref().and_then(|r| r.split_once('-')) {
            Some((a, b)) => {
                let (a, b): (u64, u64) =
                    (a.parse().expect("a number"), b.parse().expect("a number"));
                let len = b - a + 1;
                let mut out = format!(
                    "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {a}-{b}/1048576\r\ncontent-length: {len}\r\n{of}\r\n\r\n"
                )
                .into_bytes();
                out.resize(out.len() + usize::try_from(len).expect("small"), 0);
                out
            }
            None => {
                format!("HTTP/1.1 200 OK\r\ncontent-length: 1048576\r\n{of}\r\n\r\n").into_bytes()
            }
        }
    };
    let _ = s.write_all(&body);
}

#[test]
fn objects_of_a_prefix_are_looked_at_side_by_side() {
    let (url, state) = crowd(60, 12);
    let settings = [
        format!("s3.endpoint={url}"),
        "s3.access_key=a".into(),
        "s3.secret_key=b".into(),
        "s3.path_style=true".into(),
    ];
    let r = inspect(&settings, &["s3://many/"]);
    assert_eq!(r.code, 0, "{}{}", r.out, r.err);
    assert_eq!(r.out.lines().count(), 60, "{}", r.out);
    let most = state.0.lock().expect("counted").1;
    assert!(most >= 12, "{most} at a time");
}
