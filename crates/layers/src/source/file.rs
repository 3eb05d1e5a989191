//! A file on this machine, mapped or read with `pread`: a failing disk is an error, never the end of the process.

use super::{Allowed, ByteSource, Mapping, SourceError, SourcePin, in_bounds, name_of, path_of};
use crate::FileOffset;
use async_trait::async_trait;
use rustix::fs::SeekFrom;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// An open file, pinned by device, inode, size and modification time.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    pin: SourcePin,
    /// Whether its name leads to it.
    named: bool,
    /// Mapping it has failed.
    unmapped: AtomicBool,
}

fn pin_of(path: &str, m: &Metadata) -> SourcePin {
    SourcePin::File {
        path: path.to_owned(),
        device: m.dev(),
        inode: m.ino(),
        size: m.len(),
        mtime_ns: m
            .mtime()
            .saturating_mul(1_000_000_000)
            .saturating_add(m.mtime_nsec()),
    }
}

fn open_error(path: &Path, e: &io::Error) -> SourceError {
    let what = name_of(path.as_os_str());
    match e.kind() {
        io::ErrorKind::NotFound => SourceError::NotFound {
            what,
            detail: "no such file".into(),
        },
        io::ErrorKind::PermissionDenied => SourceError::Denied {
            what,
            detail: "permission denied; read it as its owner or change its mode".into(),
        },
        _ => SourceError::Medium {
            what,
            offset: 0,
            len: 0,
            detail: e.to_string(),
        },
    }
}

impl FileSource {
    /// Opens and pins a file. An empty file or a folder is an error.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        Self::open_allowed(path, &Allowed::default())
    }

    /// The same, for a file that is allowed. Waits for nothing but the file system.
    pub(super) fn open_allowed(path: &Path, allowed: &Allowed) -> Result<Self, SourceError> {
        allowed.check(&name_of(path.as_os_str()))?;
        let path = &path.canonicalize().map_err(|e| open_error(path, &e))?;
        let what = name_of(path.as_os_str());
        let open = |flags: i32| {
            OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NOFOLLOW | flags)
                .open(path)
                .map_err(|e| open_error(path, &e))
        };
        // A handle on the name alone: opening a device may do something, and a pipe without a writer waits for one.
        let named = open(libc::O_PATH)?;
        let meta = named.metadata().map_err(|e| open_error(path, &e))?;
        if !meta.is_file() {
            let detail = "it is no regular file; name a file, or a folder of captures".into();
            return Err(SourceError::Refused { what, detail });
        }
        if allowed.is_limited() {
            // Folders of the path may have become links since it was resolved.
            let real = std::fs::read_link(format!("/proc/self/fd/{}", named.as_raw_fd()));
            allowed.check_real(&what, &real.map_err(|e| open_error(path, &e))?)?;
        }
        let file = open(libc::O_NONBLOCK)?;
        let same = meta;
        let meta = file.metadata().map_err(|e| open_error(path, &e))?;
        if (same.dev(), same.ino()) != (meta.dev(), meta.ino()) {
            let detail = "another file has taken its name".into();
            return Err(SourceError::Changed { what, detail });
        }
        if meta.len() == 0 {
            return Err(SourceError::Empty { what });
        }
        let pin = pin_of(&what, &meta);
        Ok(Self {
            file,
            pin,
            named: true,
            unmapped: AtomicBool::new(false),
        })
    }

    /// An open file that has no name, or one that nobody is to open it by. `name` is for messages.
    pub fn unnamed(file: File, name: &str) -> Result<Self, SourceError> {
        let what = name.to_owned();
        let meta = file
            .metadata()
            .map_err(|e| open_error(&path_of(name), &e))?;
        if meta.len() == 0 {
            return Err(SourceError::Empty { what });
        }
        Ok(Self {
            pin: pin_of(name, &meta),
            file,
            named: false,
            unmapped: AtomicBool::new(false),
        })
    }

    /// Opens a file again that was pinned before; fails when it is no longer that version.
    pub fn open_pinned(pin: &SourcePin) -> Result<Self, SourceError> {
        Self::open_pinned_allowed(pin, &Allowed::default())
    }

    /// The same, for a file that is allowed.
    pub(super) fn open_pinned_allowed(
        pin: &SourcePin,
        allowed: &Allowed,
    ) -> Result<Self, SourceError> {
        let SourcePin::File { path, .. } = pin else {
            let detail = "the evidence is not a file".into();
            return Err(SourceError::NotFound {
                what: pin.to_string(),
                detail,
            });
        };
        let s = Self::open_allowed(&path_of(path), allowed)?;
        if let Some(detail) = difference(pin, &s.pin) {
            return Err(SourceError::Changed {
                what: path.clone(),
                detail,
            });
        }
        Ok(s)
    }
}

fn difference(pinned: &SourcePin, now: &SourcePin) -> Option<String> {
    match (pinned, now) {
        (
            SourcePin::File {
                device,
                inode,
                size,
                mtime_ns,
                ..
            },
            SourcePin::File {
                device: d,
                inode: i,
                size: s,
                mtime_ns: m,
                ..
            },
        ) => {
            if (device, inode) != (d, i) {
                Some("another file has taken its name".into())
            } else if size != s {
                Some(format!(
                    "it had {size} bytes when the job began and has {s} now"
                ))
            } else if mtime_ns != m {
                Some("it was written to since the job began".into())
            } else {
                None
            }
        }
        _ => Some("it is not a file".into()),
    }
}

#[async_trait]
impl ByteSource for FileSource {
    fn pin(&self) -> &SourcePin {
        &self.pin
    }

    async fn read_at(&self, offset: FileOffset, buf: &mut [u8]) -> Result<(), SourceError> {
        in_bounds(&self.pin, offset.0, buf.len())?;
        self.file.read_exact_at(buf, offset.0).map_err(|e| {
            let what = self.pin.to_string();
            if e.kind() == io::ErrorKind::UnexpectedEof {
                SourceError::Changed {
                    what,
                    detail: "it was cut short during the scan".into(),
                }
            } else {
                SourceError::Medium {
                    what,
                    offset: offset.0,
                    len: buf.len() as u64,
                    detail: e.to_string(),
                }
            }
        })
    }

    fn map(&self, range: Range<u64>) -> Option<Mapping> {
        if self.unmapped.load(Ordering::Relaxed) || range.end > self.len() {
            return None;
        }
        Mapping::of(&self.file, range)
    }

    fn unmap(&self) {
        self.unmapped.store(true, Ordering::Relaxed);
    }

    fn is_hole(&self, range: Range<u64>) -> bool {
        if range.is_empty() || range.end > self.len() {
            return false;
        }
        // Only the file's own position moves, which nobody reads by. A file system that knows no holes says that all is data.
        match rustix::fs::seek(&self.file, SeekFrom::Data(range.start)) {
            Ok(data) => data >= range.end,
            // No data from here to the end.
            Err(e) => e == rustix::io::Errno::NXIO,
        }
    }

    async fn check_pin(&self) -> Result<(), SourceError> {
        let SourcePin::File { path, .. } = &self.pin else {
            return Ok(());
        };
        let meta = match self.named {
            true => std::fs::metadata(path_of(path)),
            false => self.file.metadata(),
        };
        let meta = meta.map_err(|e| SourceError::Changed {
            what: path.clone(),
            detail: format!("it can no longer be looked at: {e}"),
        })?;
        match difference(&self.pin, &pin_of(path, &meta)) {
            Some(detail) => Err(SourceError::Changed {
                what: path.clone(),
                detail,
            }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[tokio::test]
    async fn notices_growth_and_truncation() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("a.mem");
        std::fs::write(&path, vec![7u8; 10_000]).expect("write");
        let s = FileSource::open(&path).expect("open");
        let mut b = [0; 16];
        s.read_at(FileOffset(9_984), &mut b).await.expect("read");
        assert_eq!(b, [7; 16]);
        assert!(matches!(
            s.read_at(FileOffset(9_985), &mut b).await,
            Err(SourceError::PastEnd { .. })
        ));
        s.check_pin().await.expect("unchanged");
        let mut f = std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .expect("open");
        f.write_all(b"more").expect("append");
        assert!(matches!(
            s.check_pin().await,
            Err(SourceError::Changed { .. })
        ));
        f.set_len(5_000).expect("truncate");
        assert!(matches!(
            s.read_at(FileOffset(9_000), &mut b).await,
            Err(SourceError::Changed { .. })
        ));
    }

    #[test]
    fn holes_are_told_from_zeros_that_are_stored() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("sparse.mem");
        let f = File::create(&path).expect("create");
        f.set_len(64 << 20).expect("length");
        f.write_all_at(&[0; 4096], 16 << 20).expect("zeros");
        f.write_all_at(b"x", 40 << 20).expect("data");
        let s = FileSource::open(&path).expect("open");
        let hole = |mib: Range<u64>| s.is_hole(mib.start << 20..mib.end << 20);
        assert!(hole(0..16) && hole(17..40) && hole(41..64));
        assert!(!hole(0..17) && !hole(16..17) && !hole(39..41));
        assert!(!hole(41..65), "past the end");
        assert!(!hole(3..3), "nothing");
    }

    #[test]
    fn says_what_is_wrong_with_a_name() {
        let dir = tempfile::tempdir().expect("tempdir");
        let e = FileSource::open(&dir.path().join("none")).expect_err("missing");
        assert!(matches!(e, SourceError::NotFound { .. }), "{e}");
        let empty = dir.path().join("empty");
        std::fs::write(&empty, b"").expect("write");
        assert!(matches!(
            FileSource::open(&empty),
            Err(SourceError::Empty { .. })
        ));
        assert!(matches!(
            FileSource::open(dir.path()),
            Err(SourceError::Refused { .. })
        ));
    }
}
