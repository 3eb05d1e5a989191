//! A real clamd with home-made signatures, and a fake one that misbehaves.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    net::TcpListener as StdListener,
    os::fd::OwnedFd,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use ramsift_engines::clamav::{AvVerdict, Clamd, ClamdError, ClamdOptions};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// In two parts, so that no anti-virus takes this file away.
const EICAR: [&str; 2] = [
    "X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR-STANDARD-",
    "ANTIVIRUS-TEST-FILE!$H+H*",
];
const NEEDLE: &[u8] = b"ramsift test needle";

/// A clamd of our own: port, files and end.
struct OwnClamd {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Drop for OwnClamd {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl OwnClamd {
    fn address(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.port)
    }
}

fn clamd_binary() -> &'static str {
    ["/usr/sbin/clamd", "/usr/bin/clamd", "/usr/local/sbin/clamd"]
        .into_iter()
        .find(|p| Path::new(p).exists())
        .expect("clamd is not installed: run tests/run --install")
}

/// Starts clamd with `settings` added to its configuration, and waits until it answers.
async fn start(settings: &str, with_eicar: bool) -> OwnClamd {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("db")).unwrap();
    fs::create_dir(at("tmp")).unwrap();
    let mut signatures = format!("Ramsift.Test.Needle:0:*:{}\n", hex::encode(NEEDLE));
    if with_eicar {
        signatures += &format!("Ramsift.Test.Eicar:0:0:{}\n", hex::encode(EICAR.concat()));
    }
    fs::write(at("db/own.ndb"), signatures).unwrap();
    // It is given a socket that listens already, as systemd does it: no port can be lost to others,
    // and a connection made now is answered as soon as clamd is ready.
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let conf = format!(
        "DatabaseDirectory {db}\nTCPSocket {port}\nTCPAddr 127.0.0.1\nTemporaryDirectory {tmp}\n\
         LogFile {log}\nForeground yes\nUser root\nMaxThreads 4\n{settings}",
        db = at("db").display(),
        tmp = at("tmp").display(),
        log = at("log").display(),
    );
    fs::write(at("clamd.conf"), conf).unwrap();
    let child = Command::new("/bin/sh")
        .args([
            "-c",
            "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\" 3<&0 0</dev/null",
            "sh",
        ])
        .args([clamd_binary(), "-c"])
        .arg(at("clamd.conf"))
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("can't start clamd");
    let clamd = OwnClamd {
        child,
        port,
        _dir: dir,
    };
    let ping = async {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).await?;
        let mut answer = Vec::new();
        socket.write_all(b"zPING\0").await?;
        socket.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    // Its end closes the socket, so a clamd that does not start is noticed at once.
    let answer = tokio::time::timeout(Duration::from_secs(120), ping).await;
    let log = || fs::read_to_string(clamd._dir.path().join("log")).unwrap_or_default();
    match answer {
        Ok(Ok(a)) if a == b"PONG\0" => clamd,
        other => panic!("clamd doesn't answer: {other:?}\n{}", log()),
    }
}

fn options(max_object: u64) -> ClamdOptions {
    ClamdOptions {
        max_object,
        ..ClamdOptions::default()
    }
}

fn with_needle(len: usize) -> Vec<u8> {
    let mut data = vec![b'x'; len];
    let at = len - NEEDLE.len();
    data[at..].copy_from_slice(NEEDLE);
    data
}

#[tokio::test]
async fn known_and_unknown_objects_are_told_apart() {
    let own = start(
        "StreamMaxLength 64M\nMaxFileSize 64M\nMaxScanSize 256M\n",
        true,
    )
    .await;
    let clamd = Clamd::connect(&own.address(), options(4 << 20))
        .await
        .unwrap();
    assert!(
        clamd.version().engine.starts_with("ClamAV "),
        "{:?}",
        clamd.version()
    );
    assert_eq!(clamd.max_size(), 4 << 20);
    assert!(clamd.limit_proven());
    clamd.ping().await.unwrap();
    assert_eq!(clamd.scan(b"nothing to see").await, AvVerdict::Clean);
    assert_eq!(clamd.scan(b"").await, AvVerdict::Clean);
    let found = AvVerdict::Infected("Ramsift.Test.Needle.UNOFFICIAL".to_owned());
    assert_eq!(clamd.scan(&with_needle(3 << 20)).await, found);
    // Several at once, as a worker does.
    let data = with_needle(100_000);
    let all = tokio::join!(clamd.scan(&data), clamd.scan(b"clean"), clamd.scan(&data));
    assert_eq!(all, (found.clone(), AvVerdict::Clean, found));
    let large = clamd.scan(&with_needle((4 << 20) + 1)).await;
    assert!(matches!(large, AvVerdict::NotScanned { .. }), "{large:?}");
}

#[tokio::test]
async fn a_silent_file_size_limit_is_found() {
    let own = start(
        "StreamMaxLength 64M\nMaxFileSize 1M\nMaxScanSize 256M\n",
        true,
    )
    .await;
    let clamd = Clamd::connect(&own.address(), options(8 << 20))
        .await
        .unwrap();
    assert!(
        (512 << 10..=1 << 20).contains(&clamd.max_size()),
        "{}",
        clamd.max_size()
    );
    // What this is about: clamd itself says OK to a file with a known needle above its limit.
    let data = with_needle(2 << 20);
    let verdict = clamd.scan(&data).await;
    assert!(
        matches!(verdict, AvVerdict::NotScanned { .. }),
        "{verdict:?}"
    );
    let data = with_needle(clamd.max_size() as usize);
    assert!(matches!(clamd.scan(&data).await, AvVerdict::Infected(_)));
}

#[tokio::test]
async fn a_stream_limit_is_found_without_a_known_test_file() {
    let own = start(
        "StreamMaxLength 2M\nMaxFileSize 64M\nMaxScanSize 256M\n",
        false,
    )
    .await;
    let clamd = Clamd::connect(&own.address(), options(64 << 20))
        .await
        .unwrap();
    assert!(!clamd.limit_proven());
    assert!(
        (1 << 20..=2 << 20).contains(&clamd.max_size()),
        "{}",
        clamd.max_size()
    );
    assert!(
        clamd.limited_by().contains("StreamMaxLength"),
        "{}",
        clamd.limited_by()
    );
    let data = with_needle(clamd.max_size() as usize);
    assert!(matches!(clamd.scan(&data).await, AvVerdict::Infected(_)));
}

#[tokio::test]
async fn a_scan_after_a_restart_finds_its_way() {
    let own = start("", true).await;
    let clamd = Clamd::connect(&own.address(), options(1 << 20))
        .await
        .unwrap();
    drop(own);
    let verdict = clamd.scan(b"anything").await;
    assert!(matches!(verdict, AvVerdict::Error { .. }), "{verdict:?}");
    assert!(matches!(clamd.ping().await, Err(ClamdError::Io { .. })));
}

/// What the fake does with a stream, once it answered the probes as a clamd would.
#[derive(Clone, Copy)]
enum Fault {
    Reset,
    Garbage,
    Silence,
    HangUp,
}

/// Answers like a clamd, but misbehaves on streams that hold `fault here`.
async fn fake(fault: Fault) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket, fault));
        }
    });
    address
}

async fn serve(mut socket: TcpStream, fault: Fault) -> std::io::Result<()> {
    let mut command = Vec::new();
    while command.last() != Some(&0) {
        command.push(socket.read_u8().await?);
    }
    match command.as_slice() {
        b"zPING\0" => return socket.write_all(b"PONG\0").await,
        b"zVERSION\0" => return socket.write_all(b"ClamAV 9.9/123/today\0").await,
        _ => {}
    }
    let mut last = Vec::new();
    loop {
        let len = socket.read_u32().await? as usize;
        if len == 0 {
            break;
        }
        last.resize(len, 0);
        if len == 1 << 20 && matches!(fault, Fault::Reset) && last.first() == Some(&0) {
            // Unread bytes make the system send a reset instead of an orderly end.
            return Ok(());
        }
        socket.read_exact(&mut last).await?;
    }
    let contains = |needle: &[u8]| last.windows(needle.len()).any(|w| w == needle);
    if contains(EICAR.concat().as_bytes()) {
        return socket.write_all(b"stream: Eicar FOUND\0").await;
    }
    if !contains(b"fault here") {
        return socket.write_all(b"stream: OK\0").await;
    }
    match fault {
        Fault::Garbage => socket.write_all(b"\xff\xfe<html>what?</html>\0").await,
        Fault::Silence => std::future::pending().await,
        Fault::Reset | Fault::HangUp => Ok(()),
    }
}

async fn reason_of(fault: Fault, data: &[u8]) -> String {
    let address = fake(fault).await;
    // A larger object than the probe's pieces, so the fake can tell it from a probe.
    let clamd = Clamd::connect(&address, options(128 << 20)).await.unwrap();
    // Time flies when nothing else happens.
    let silent = matches!(fault, Fault::Silence);
    if silent {
        tokio::time::pause();
    }
    let AvVerdict::Error { reason } = clamd.scan(data).await else {
        panic!("a fault is taken for a verdict")
    };
    if silent {
        tokio::time::resume();
    }
    assert!(reason.contains(&address), "{reason}");
    // The fault is that stream's alone.
    assert_eq!(clamd.scan(b"another").await, AvVerdict::Clean);
    reason
}

#[tokio::test]
async fn garbage_is_an_error() {
    let reason = reason_of(Fault::Garbage, b"fault here").await;
    assert!(reason.contains("html"), "{reason}");
}

#[tokio::test]
async fn silence_is_an_error_after_the_time_limit() {
    let reason = reason_of(Fault::Silence, b"fault here").await;
    assert!(reason.contains("no progress"), "{reason}");
}

#[tokio::test]
async fn hanging_up_is_an_error() {
    let reason = reason_of(Fault::HangUp, b"fault here").await;
    assert!(reason.contains("hung up"), "{reason}");
}

#[tokio::test]
async fn a_reset_in_the_middle_is_an_error() {
    reason_of(Fault::Reset, &vec![0; 8 << 20]).await;
}

#[tokio::test]
async fn what_is_no_clamd_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            socket.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.ok();
        }
    });
    let error = Clamd::connect(&address, ClamdOptions::default())
        .await
        .unwrap_err();
    assert!(
        matches!(error, ClamdError::Protocol { .. } | ClamdError::Io { .. }),
        "{error}"
    );
    assert!(matches!(
        Clamd::connect("nowhere", ClamdOptions::default()).await,
        Err(ClamdError::Address(_))
    ));
}
