//! Objects as files below one folder.
//!
//! Every write goes to a temporary file that takes the object's name when it is complete, so a
//! reader sees a whole object or none. Conditional replacement is serialised by a lock file.

use super::{ObjectError, ObjectMeta, Objects, PartKey, beyond};
use async_trait::async_trait;
use bytes::Bytes;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Objects below a folder.
#[derive(Clone, Debug)]
pub struct LocalObjects {
    root: PathBuf,
}

/// Folder of unfinished writes, on the same file system.
const TEMP: &str = ".tmp";

impl LocalObjects {
    /// Makes the folder if need be.
    pub fn open(root: &Path) -> Result<Self, ObjectError> {
        let fail = |e: io::Error| ObjectError::Failed {
            what: root.display().to_string(),
            detail: format!("this folder can't be made or written to: {e}"),
        };
        fs::create_dir_all(root.join(TEMP)).map_err(fail)?;
        Ok(Self {
            root: root.canonicalize().map_err(fail)?,
        })
    }

    /// Opens a folder that must exist, for reading.
    pub fn open_existing(root: &Path) -> Result<Self, ObjectError> {
        let what = root.display().to_string();
        match root.canonicalize() {
            Ok(root) if root.is_dir() => Ok(Self { root }),
            _ => Err(ObjectError::NotFound { what }),
        }
    }

    fn full(&self, key: &str) -> Result<PathBuf, ObjectError> {
        let bad = key.is_empty()
            || key.starts_with('/')
            || key
                .split('/')
                .any(|p| p == ".." || p == "." || p.is_empty());
        if bad {
            let detail = "not a valid object key".into();
            return Err(ObjectError::Failed {
                what: key.to_owned(),
                detail,
            });
        }
        Ok(self.root.join(key))
    }

    fn error(&self, key: &str, e: &io::Error) -> ObjectError {
        let what = self.url(key);
        match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                ObjectError::NotFound { what }
            }
            io::ErrorKind::AlreadyExists => ObjectError::Conflict { what },
            io::ErrorKind::PermissionDenied => ObjectError::Denied {
                what,
                detail: "permission denied".into(),
            },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ObjectError::Failed {
                what,
                detail: format!("the disk is full ({e}); make room and run it again"),
            },
            _ => ObjectError::Failed {
                what,
                detail: e.to_string(),
            },
        }
    }

    fn write_temp(&self, data: &[u8]) -> io::Result<PathBuf> {
        let dir = self.root.join(TEMP);
        fs::create_dir_all(&dir)?;
        let path = dir.join(uuid::Uuid::now_v7().to_string());
        let written = File::create(&path).and_then(|mut f| {
            f.write_all(data)?;
            f.sync_data()
        });
        if let Err(e) = written {
            // On a full disk what was begun takes the room that the next try needs.
            let _ = fs::remove_file(&path);
            return Err(e);
        }
        Ok(path)
    }

    fn place(&self, key: &str, data: &[u8], new: bool) -> Result<String, ObjectError> {
        let to = self.full(key)?;
        let run = || -> io::Result<()> {
            if let Some(dir) = to.parent() {
                fs::create_dir_all(dir)?;
            }
            let temp = self.write_temp(data)?;
            let done = if new {
                fs::hard_link(&temp, &to).and_then(|()| fs::remove_file(&temp))
            } else {
                fs::rename(&temp, &to)
            };
            if done.is_err() {
                // The error that matters is the first one.
                let _ = fs::remove_file(&temp);
            }
            done
        };
        run().map_err(|e| self.error(key, &e))?;
        self.tag(key)
    }

    fn take_file(&self, key: &str, path: &Path, new: bool) -> Result<(), ObjectError> {
        let to = self.full(key)?;
        let run = || -> io::Result<()> {
            if let Some(dir) = to.parent() {
                fs::create_dir_all(dir)?;
            }
            let temp = self.root.join(TEMP).join(uuid::Uuid::now_v7().to_string());
            fs::create_dir_all(self.root.join(TEMP))?;
            let move_in = || -> io::Result<()> {
                // Moves where it can, since the caller's file is a temporary one as a rule.
                if fs::hard_link(path, &temp).is_err() {
                    fs::copy(path, &temp)?;
                }
                File::open(&temp)?.sync_data()?;
                match new {
                    true => fs::hard_link(&temp, &to),
                    false => fs::rename(&temp, &to),
                }
            };
            let done = move_in();
            if new || done.is_err() {
                // The error that matters is the first one.
                let _ = fs::remove_file(&temp);
            }
            done
        };
        run().map_err(|e| self.error(key, &e))
    }

    fn tag(&self, key: &str) -> Result<String, ObjectError> {
        let meta = fs::metadata(self.full(key)?).map_err(|e| self.error(key, &e))?;
        Ok(tag_of(&meta))
    }

    fn walk(&self, dir: &Path, out: &mut Vec<ObjectMeta>) -> io::Result<()> {
        let entries = match fs::read_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        for e in entries {
            let e = e?;
            if e.file_name() == TEMP || e.file_name() == LOCK {
                continue;
            }
            let meta = match e.metadata() {
                // Removed since the listing began.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            if meta.is_dir() {
                self.walk(&e.path(), out)?;
            } else if let Ok(rel) = e.path().strip_prefix(&self.root) {
                out.push(ObjectMeta {
                    key: rel.to_string_lossy().into_owned(),
                    size: meta.len(),
                    etag: tag_of(&meta),
                    modified_ns: meta.mtime() * 1_000_000_000 + meta.mtime_nsec(),
                });
            }
        }
        Ok(())
    }
}

const LOCK: &str = ".lock";

/// A rename gives a new inode, so inode and time name a version.
fn tag_of(m: &fs::Metadata) -> String {
    format!(
        "\"{:x}-{:x}-{:x}\"",
        m.ino(),
        m.mtime() * 1_000_000_000 + m.mtime_nsec(),
        m.len()
    )
}

/// Holds the folder's lock until it is dropped.
struct Locked(File);

impl Locked {
    fn take(root: &Path) -> io::Result<Self> {
        let f = File::options()
            .create(true)
            .append(true)
            .open(root.join(LOCK))?;
        f.lock()?;
        Ok(Self(f))
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Closing the file would release it too.
        let _ = self.0.unlock();
    }
}

#[async_trait]
impl Objects for LocalObjects {
    async fn put(&self, key: &str, data: Bytes) -> Result<String, ObjectError> {
        self.place(key, &data, false)
    }

    async fn put_new(&self, key: &str, data: Bytes) -> Result<String, ObjectError> {
        self.place(key, &data, true)
    }

    async fn put_over(&self, key: &str, data: Bytes, etag: &str) -> Result<String, ObjectError> {
        let _lock = Locked::take(&self.root).map_err(|e| self.error(key, &e))?;
        if self.tag(key)? != etag {
            return Err(ObjectError::Conflict {
                what: self.url(key),
            });
        }
        self.place(key, &data, false)
    }

    async fn put_file(&self, key: &str, path: &Path) -> Result<(), ObjectError> {
        self.take_file(key, path, false)
    }

    async fn put_file_new(&self, key: &str, path: &Path) -> Result<(), ObjectError> {
        self.take_file(key, path, true)
    }

    async fn get(&self, key: &str) -> Result<(Bytes, String), ObjectError> {
        if let Some(part) = PartKey::of(key) {
            let data = self.get_range(part.object, part.range).await?;
            // Such objects are written once: no tag tells versions apart.
            return Ok((data, String::new()));
        }
        let read = || -> io::Result<(Vec<u8>, String)> {
            let path = self.full(key).map_err(io::Error::other)?;
            let mut f = File::open(path)?;
            let meta = f.metadata()?;
            let mut data = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0));
            f.read_to_end(&mut data)?;
            Ok((data, tag_of(&meta)))
        };
        let (data, tag) = read().map_err(|e| self.error(key, &e))?;
        Ok((data.into(), tag))
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, ObjectError> {
        if let Some(part) = PartKey::of(key) {
            let range = part.narrow(&range).ok_or_else(|| beyond(self.url(key)))?;
            return self.get_range(part.object, range).await;
        }
        let path = self.full(key)?;
        let read = || -> io::Result<Vec<u8>> {
            let mut f = File::open(path)?;
            f.seek(SeekFrom::Start(range.start))?;
            let len = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0);
            let mut data = vec![0; len];
            f.read_exact(&mut data)?;
            Ok(data)
        };
        Ok(read().map_err(|e| self.error(key, &e))?.into())
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, ObjectError> {
        if let Some(part) = PartKey::of(key) {
            return Ok(part.meta(key, self.head(part.object).await?));
        }
        let meta = fs::metadata(self.full(key)?).map_err(|e| self.error(key, &e))?;
        if meta.is_dir() {
            return Err(ObjectError::NotFound {
                what: self.url(key),
            });
        }
        Ok(ObjectMeta {
            key: key.to_owned(),
            size: meta.len(),
            etag: tag_of(&meta),
            modified_ns: meta.mtime() * 1_000_000_000 + meta.mtime_nsec(),
        })
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError> {
        let dir = match prefix.rsplit_once('/') {
            Some((d, _)) => self.full(d)?,
            None => self.root.clone(),
        };
        let mut out = Vec::new();
        self.walk(&dir, &mut out)
            .map_err(|e| self.error(prefix, &e))?;
        out.retain(|m| m.key.starts_with(prefix));
        out.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(out)
    }

    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, ObjectError> {
        let dir = match prefix.trim_end_matches('/') {
            "" => self.root.clone(),
            p => self.full(p)?,
        };
        let read = || -> io::Result<Vec<String>> {
            let mut names = Vec::new();
            let entries = match fs::read_dir(dir) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(names),
                other => other?,
            };
            for e in entries {
                let e = e?;
                if e.file_type()?.is_dir() && e.file_name() != TEMP {
                    names.push(e.file_name().to_string_lossy().into_owned());
                }
            }
            names.sort();
            Ok(names)
        };
        read().map_err(|e| self.error(prefix, &e))
    }

    async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        match fs::remove_file(self.full(key)?) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.error(key, &e)),
            _ => Ok(()),
        }
    }

    fn url(&self, key: &str) -> String {
        self.root.join(key).display().to_string()
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        Some(self.root.join(key))
    }
}
