//! Goes into a container, down to the one capture in it, and writes that.

use super::lz4::Lz4Reader;
use super::sink::{Ended, Sink, fill};
use super::stream::{SourceStream, hashes};
use super::zdmp::ZdmpReader;
use super::{ContainerError, Kind, Limits, MAX_DEPTH};
use crate::format::{HEAD_LEN, looks_like_capture, refused};
use crate::source::ByteSource;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::sync::Arc;
use tokio::runtime::Handle;

/// Memory that a zstd frame may ask for, as a power of two: 128 MiB, as much as zstd itself gives unless it is told to.
const ZSTD_WINDOW_LOG: u32 = 27;
/// KiB of memory that an xz stream may ask for: `xz -9` takes 65 MiB.
const XZ_MEMORY: u32 = 128 << 10;
/// Members of an archive that are looked at, and names that a message has.
const MAX_MEMBERS: usize = 100_000;
const NAMES: usize = 8;

/// What was unpacked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// The kinds, the innermost first: `tar in gzip`.
    pub what: String,
    /// What the capture is called: the member's name, or the container's without its ending.
    pub name: String,
    /// Bytes of the capture that are there.
    pub len: u64,
    /// Bytes of the container.
    pub container_len: u64,
    /// BLAKE3 of the container, in hex.
    pub blake3: String,
    /// SHA-256 of the container, in hex, where it was asked for.
    pub sha256: Option<String>,
    /// Why the capture is not all there.
    pub cut: Option<String>,
    /// What else is in the container.
    pub others: Vec<String>,
}

/// A container's name without the ending that says how it was packed.
pub(super) fn stripped(name: &str) -> String {
    let base = name.rsplit('/').next().unwrap_or(name);
    let Some((stem, ending)) = base.rsplit_once('.') else {
        return base.to_owned();
    };
    match ending.to_ascii_lowercase().as_str() {
        "gz" | "gzip" | "z" | "zz" | "zlib" | "zst" | "zstd" | "xz" | "lz4" | "tar" | "zip" => {
            stem.to_owned()
        }
        "zdmp" => format!("{stem}.dmp"),
        "tgz" | "txz" | "tzst" | "tlz4" => format!("{stem}.tar"),
        _ => base.to_owned(),
    }
}

/// What a stream is unpacked by. `None`: it is no stream.
pub(super) fn decoder<'r>(
    kind: Kind,
    from: Box<dyn Read + 'r>,
) -> io::Result<Option<Box<dyn Read + 'r>>> {
    let buffered = BufReader::with_capacity(256 << 10, from);
    Ok(Some(match kind {
        Kind::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(buffered)),
        Kind::Zlib => Box::new(flate2::bufread::ZlibDecoder::new(buffered)),
        Kind::Zstd => {
            let mut d = zstd::stream::read::Decoder::with_buffer(buffered)?;
            d.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(d)
        }
        Kind::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(
            buffered, true, XZ_MEMORY,
        )),
        Kind::Lz4 => Box::new(Lz4Reader::new(buffered)),
        Kind::Zdmp => Box::new(ZdmpReader::new(buffered)),
        Kind::Tar | Kind::Zip => return Ok(None),
    }))
}

/// What became of a stream.
enum Found {
    /// A capture, which is the one that was written.
    Written,
    /// A capture, and another was written.
    Another,
    /// No capture: why not.
    Not(String),
}

struct Job<'a> {
    sink: Sink<'a>,
    chain: Vec<&'static str>,
    done: Unpacked,
    written: bool,
    /// Names of captures.
    captures: Vec<String>,
    count: usize,
}

/// Unpacks the one capture in `source` into `file`, which lies in `place`. `sha256`: the container's is wanted besides
/// its BLAKE3. `progress` is told bytes of the container and of the capture. Blocks; must be called in a runtime, where
/// blocking is allowed.
pub fn unpack(
    source: &Arc<dyn ByteSource>,
    file: &File,
    place: &str,
    limits: Limits,
    sha256: bool,
    progress: &dyn Fn(u64, u64),
) -> Result<Unpacked, ContainerError> {
    let runtime = Handle::current();
    let head = runtime.block_on(source.head(HEAD_LEN)).map_err(Arc::new)?;
    let name = source.pin().name().to_owned();
    let stream = SourceStream::new(source.clone(), runtime.clone(), sha256);
    let state = stream.state();
    let mut job = Job {
        sink: Sink::new(file, place, limits, state.clone(), progress),
        chain: Vec::new(),
        done: Unpacked::default(),
        written: false,
        captures: Vec::new(),
        count: 0,
    };
    let found = if Kind::of(&head) == Some(Kind::Zip) {
        job.chain.push(Kind::Zip.name());
        job.zip(stream)?
    } else {
        job.go(Box::new(stream), &name, None, 0)?
    };
    let what = job.what();
    if job.count > 1 {
        return Err(ContainerError::Several {
            what,
            count: job.count,
            members: job.captures.join(", "),
        });
    }
    if let Found::Not(members) = found {
        return Err(ContainerError::NoCapture { what, members });
    }
    if job.sink.len() == 0 {
        return Err(ContainerError::Damaged {
            what,
            offset: job.sink.read(),
            detail: job.done.cut.unwrap_or_else(|| "it is empty".to_owned()),
        });
    }
    let mut done = job.done;
    (done.blake3, done.sha256) = hashes(source.as_ref(), &runtime, &state)?;
    done.what = what;
    done.len = job.sink.len();
    done.container_len = source.len();
    Ok(done)
}

impl Job<'_> {
    fn what(&self) -> String {
        let mut chain = self.chain.clone();
        chain.dedup();
        chain.reverse();
        chain.join(" in ")
    }

    /// Goes into a stream. `size` is that of a member of an archive: what is in one must look like a capture.
    fn go(
        &mut self,
        mut from: Box<dyn Read + '_>,
        name: &str,
        size: Option<u64>,
        depth: usize,
    ) -> Result<Found, ContainerError> {
        let mut head = vec![0; HEAD_LEN];
        let (n, ended) = fill(from.as_mut(), &mut head);
        head.truncate(n);
        if let Some(Err(e)) = ended {
            let why = self.sink.trouble(&e)?;
            if n == 0 {
                return match size {
                    Some(_) => Ok(Found::Not(format!("it can't be unpacked: {why}"))),
                    None => Err(ContainerError::Damaged {
                        what: self.what(),
                        offset: self.sink.read(),
                        detail: why,
                    }),
                };
            }
            // The error comes again, or the end does.
            self.done.cut = Some(why);
        }
        let Some(kind) = Kind::of(&head) else {
            return self.leaf(&head, from.as_mut(), name, size);
        };
        if depth >= MAX_DEPTH {
            return Err(ContainerError::TooDeep { what: self.what() });
        }
        let whole: Box<dyn Read + '_> = Box::new(Cursor::new(head).chain(from));
        match kind {
            Kind::Zip => Ok(Found::Not(
                "a ZIP archive in it is to be unpacked first".to_owned(),
            )),
            Kind::Tar => {
                self.enter(kind);
                self.tar(whole, depth + 1)
            }
            _ => {
                self.enter(kind);
                let unpacked = decoder(kind, whole);
                let unpacked = unpacked.map_err(|e| ContainerError::Damaged {
                    what: self.what(),
                    offset: self.sink.read(),
                    detail: e.to_string(),
                })?;
                match unpacked {
                    Some(r) => self.go(r, &stripped(name), size.map(|_| 1), depth + 1),
                    None => Ok(Found::Not("it is no stream".to_owned())),
                }
            }
        }
    }

    /// Notes a kind of container on the way to the capture that is written.
    fn enter(&mut self, kind: Kind) {
        if !self.written {
            self.chain.push(kind.name());
        }
    }

    /// What is no container: a capture, or not.
    fn leaf(
        &mut self,
        head: &[u8],
        from: &mut dyn Read,
        name: &str,
        size: Option<u64>,
    ) -> Result<Found, ContainerError> {
        if let Some(size) = size {
            if let Err(why) = looks_like_capture(name, head, size) {
                return Ok(Found::Not(why));
            }
        } else if let Some(inside) = refused(head) {
            return Err(ContainerError::Unsupported {
                what: self.what(),
                inside,
            });
        }
        self.count += 1;
        if self.captures.len() < NAMES {
            self.captures.push(name.to_owned());
        }
        if self.written {
            return Ok(Found::Another);
        }
        self.written = true;
        name.clone_into(&mut self.done.name);
        let what = self.what();
        let mut whole = Cursor::new(head.to_vec()).chain(from);
        match self.sink.take(&mut whole, &what)? {
            Ended::Short(why) => {
                let at = self.sink.read();
                self.done.cut = Some(format!("{what}, after {at} bytes of it: {why}"));
            }
            Ended::Whole => {
                if let Some(why) = self.done.cut.take() {
                    self.done.cut = Some(format!("{what}: {why}"));
                }
            }
        }
        Ok(Found::Written)
    }

    /// Keeps what else there is, with the reason why it is not the capture.
    fn other(&mut self, name: &str, why: &str) {
        match self.done.others.len() {
            n if n < NAMES => self.done.others.push(format!("{name} ({why})")),
            NAMES => self.done.others.push("and more".to_owned()),
            _ => {}
        }
    }

    /// What an archive was found to hold.
    fn held(&self) -> Found {
        if self.written {
            return Found::Written;
        }
        Found::Not(match self.done.others.is_empty() {
            true => "it is empty".to_owned(),
            false => self.done.others.join(", "),
        })
    }

    fn tar(&mut self, from: Box<dyn Read + '_>, depth: usize) -> Result<Found, ContainerError> {
        let mut archive = tar::Archive::new(from);
        self.members(&mut archive, depth)?;
        // What is around the archive has its checksum at its end.
        let mut rest = archive.into_inner();
        let mut buf = vec![0; 64 << 10];
        loop {
            match fill(rest.as_mut(), &mut buf) {
                (_, None) => {}
                (_, Some(Ok(()))) => break,
                (_, Some(Err(e))) => {
                    self.broken(&e)?;
                    break;
                }
            }
        }
        Ok(self.held())
    }

    /// Notes what is wrong with an archive.
    fn broken(&mut self, e: &io::Error) -> Result<(), ContainerError> {
        let why = self.sink.trouble(e)?;
        let told = format!(
            "{}, after {} bytes of it: {why}",
            self.what(),
            self.sink.read()
        );
        self.done.cut.get_or_insert(told);
        Ok(())
    }

    /// Looks at the members of an archive.
    fn members<R: Read>(
        &mut self,
        archive: &mut tar::Archive<R>,
        depth: usize,
    ) -> Result<(), ContainerError> {
        let entries = archive.entries().map_err(|e| ContainerError::Damaged {
            what: self.what(),
            offset: self.sink.read(),
            detail: e.to_string(),
        })?;
        for (i, entry) in entries.enumerate() {
            let mut entry = match entry {
                Ok(e) => e,
                Err(e) => {
                    self.broken(&e)?;
                    break;
                }
            };
            if i >= MAX_MEMBERS {
                self.other("more members", "only the first are looked at");
                break;
            }
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let kind = entry.header().entry_type();
            if !(kind.is_file() || kind.is_gnu_sparse() || kind.is_contiguous()) {
                continue;
            }
            let sparse = entry.pax_extensions().ok().flatten().is_some_and(|all| {
                all.flatten()
                    .any(|x| x.key_bytes().starts_with(b"GNU.sparse"))
            });
            if sparse {
                self.other(
                    &name,
                    "a sparse member in pax form: pack it without --sparse",
                );
                continue;
            }
            let (size, before) = (entry.size(), self.sink.len());
            let had = self.written;
            let mut left = Counting {
                from: &mut entry,
                n: 0,
            };
            match self.go(Box::new(&mut left), &name, Some(size), depth)? {
                Found::Not(why) => self.other(&name, &why),
                Found::Written if !had => {
                    // A member whose end the archive lacks reads as if it ended.
                    let mut rest = [0; 4096];
                    while let (n, None) = fill(&mut left, &mut rest) {
                        if n == 0 {
                            break;
                        }
                    }
                    let n = left.n;
                    if n < size && self.done.cut.is_none() {
                        let what = self.what();
                        self.done.cut =
                            Some(format!("{what}: of {name} {n} of {size} bytes are there"));
                    }
                    debug_assert!(self.sink.len() >= before);
                }
                Found::Written | Found::Another => {}
            }
        }
        Ok(())
    }

    fn zip(&mut self, stream: SourceStream) -> Result<Found, ContainerError> {
        let mut archive = match zip::ZipArchive::new(BufReader::with_capacity(64 << 10, stream)) {
            Ok(a) => a,
            Err(e) => {
                let e = io::Error::other(e.to_string());
                return Err(ContainerError::Damaged {
                    what: self.what(),
                    offset: self.sink.read(),
                    detail: format!(
                        "{}; the list of its members is at its end: was it cut short?",
                        self.sink.trouble(&e)?
                    ),
                });
            }
        };
        let mut candidates = Vec::new();
        for i in 0..archive.len().min(MAX_MEMBERS) {
            let (name, size) = match archive.by_index_raw(i) {
                Ok(f) if f.is_dir() => continue,
                Ok(f) => {
                    let name = String::from_utf8_lossy(f.name_raw()).into_owned();
                    (name, f.size())
                }
                Err(e) => {
                    self.other(&format!("member {i}"), &e.to_string());
                    continue;
                }
            };
            let mut head = vec![0; HEAD_LEN];
            let why = match archive.by_index(i) {
                Ok(mut f) => {
                    let (n, _) = fill(&mut f, &mut head);
                    head.truncate(n);
                    let packed = Kind::of(&head).is_some_and(|k| k != Kind::Zip);
                    let taken = if packed {
                        super::peek(&head, &name)
                            .map(|_| ())
                            .ok_or_else(|| "no capture".to_owned())
                    } else {
                        looks_like_capture(&name, &head, size)
                    };
                    taken.err()
                }
                Err(e) => Some(e.to_string()),
            };
            match why {
                None => candidates.push((i, name, size)),
                Some(why) => self.other(&name, &why),
            }
        }
        if let [(i, name, size)] = candidates.as_slice() {
            let member = archive.by_index(*i).map_err(|e| ContainerError::Damaged {
                what: self.what(),
                offset: self.sink.read(),
                detail: e.to_string(),
            })?;
            let mut counting = Counting { from: member, n: 0 };
            let found = self.go(Box::new(&mut counting), name, Some(*size), 1)?;
            if let Found::Not(why) = found {
                self.other(name, &why);
            }
            if self.written && counting.n < *size && self.done.cut.is_none() {
                let n = counting.n;
                self.done.cut = Some(format!("ZIP: of {name} {n} of {size} bytes are there"));
            }
            return Ok(self.held());
        }
        self.count = candidates.len();
        self.captures = candidates
            .into_iter()
            .map(|(_, n, _)| n)
            .take(NAMES)
            .collect();
        Ok(self.held())
    }
}

/// Counts what goes by.
struct Counting<R> {
    from: R,
    n: u64,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buf)?;
        self.n += n as u64;
        Ok(n)
    }
}
