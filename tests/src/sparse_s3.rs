//! A stand-in for an S3 server: one bucket whose objects are the files of a folder, holes and all. The real server would
//! store the zeros of a capture of 64 GiB one by one.
//!
//! Answers HEAD, GET with a range, and a list; signatures are not looked at.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes sent at a time.
const STEP: u64 = 1 << 20;

/// A running stand-in; it ends with the test's process.
#[derive(Debug)]
pub struct SparseS3 {
    port: u16,
    sent: Arc<AtomicU64>,
}

impl SparseS3 {
    /// Serves the files of `folder` as objects of any bucket.
    pub fn start(folder: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let sent = Arc::new(AtomicU64::new(0));
        let (folder, count) = (folder.to_owned(), sent.clone());
        std::thread::spawn(move || {
            for c in listener.incoming().flatten() {
                let (folder, count) = (folder.clone(), count.clone());
                // A client that hangs up ends its connection.
                std::thread::spawn(move || serve(&c, &folder, &count));
            }
        });
        Self { port, sent }
    }

    /// Where it listens.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Bytes of objects that it has sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

fn serve(c: &TcpStream, folder: &Path, count: &AtomicU64) -> std::io::Result<()> {
    c.set_nodelay(true)?;
    let mut lines = BufReader::new(c).lines();
    loop {
        let Some(request) = lines.next().transpose()? else {
            return Ok(());
        };
        let mut range = None;
        for header in lines.by_ref() {
            let header = header?.to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(r) = header.strip_prefix("range: bytes=") {
                let (start, end) = r.split_once('-').unwrap_or((r, ""));
                range = Some((start.parse().unwrap_or(0), end.parse::<u64>().ok()));
            }
        }
        answer(c, &request, range, folder, count)?;
    }
}

fn answer(
    mut c: &TcpStream,
    request: &str,
    range: Option<(u64, Option<u64>)>,
    folder: &Path,
    count: &AtomicU64,
) -> std::io::Result<()> {
    let mut words = request.split(' ');
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if query.contains("list-type=2") {
        let xml = "<?xml version=\"1.0\"?><ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";
        return write!(
            c,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{xml}",
            xml.len()
        );
    }
    let object = path.trim_start_matches('/').split_once('/');
    let file = object
        .filter(|(_, key)| !key.contains(".."))
        .map(|(_, key)| PathBuf::from(key))
        .and_then(|key| File::open(folder.join(key)).ok())
        .filter(|f| f.metadata().is_ok_and(|m| m.is_file()));
    let Some(file) = file else {
        return write!(c, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    };
    let size = file.metadata()?.len();
    let head =
        "ETag: \"1\"\r\nLast-Modified: Fri, 01 Aug 2025 00:00:00 GMT\r\nAccept-Ranges: bytes";
    let (mut at, end) = match range {
        Some((start, last)) => (start, last.map_or(size, |l| (l + 1).min(size))),
        None => (0, size),
    };
    if at >= end {
        return write!(
            c,
            "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n\r\n"
        );
    }
    let length = end - at;
    match range {
        Some(_) => write!(
            c,
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {at}-{}/{size}\r\n{head}\r\nContent-Length: {length}\r\n\r\n",
            end - 1
        )?,
        None => write!(
            c,
            "HTTP/1.1 200 OK\r\n{head}\r\nContent-Length: {length}\r\n\r\n"
        )?,
    }
    if method == "HEAD" {
        return Ok(());
    }
    let mut piece = vec![0; usize::try_from(STEP.min(length)).unwrap_or(0)];
    while at < end {
        let n = usize::try_from((end - at).min(STEP)).unwrap_or(0);
        file.read_exact_at(&mut piece[..n], at)?;
        c.write_all(&piece[..n])?;
        at += n as u64;
        count.fetch_add(n as u64, Ordering::Relaxed);
    }
    Ok(())
}
