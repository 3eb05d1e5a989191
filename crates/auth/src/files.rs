//! Files that are read again when they change.
//!
//! Their content is compared, not their times: a secret of Kubernetes is a link that is turned to another folder, where a
//! file may well be older than the one before.

use crate::SecurityError;
use blake3::Hash;
use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of one file at most: certificates, keys and tokens are far smaller.
const MAX_FILE: u64 = 4 << 20;
/// How often files are looked at, at most.
const LOOK: Duration = Duration::from_secs(1);

/// A file, and the setting that names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) setting: &'static str,
    pub(crate) path: PathBuf,
}

impl Named {
    /// The file of a setting, where there is one.
    pub(crate) fn new(setting: &'static str, path: &Option<PathBuf>) -> Option<Self> {
        let path = path.clone()?;
        Some(Self { setting, path })
    }

    fn read(&self) -> Result<Vec<u8>, SecurityError> {
        let mut out = Vec::new();
        let read = std::fs::File::open(&self.path)
            .and_then(|f| f.take(MAX_FILE + 1).read_to_end(&mut out));
        match read {
            Err(e) => Err(self.wrong(e)),
            Ok(n) if n as u64 > MAX_FILE => Err(self.wrong("larger than 4 MiB")),
            Ok(_) => Ok(out),
        }
    }

    /// Something is wrong with it.
    pub(crate) fn wrong(&self, why: impl fmt::Display) -> SecurityError {
        SecurityError(format!("{} {}: {why}", self.setting, self.path.display()))
    }
}

type Make<T> = dyn Fn(&[Vec<u8>]) -> Result<T, SecurityError> + Send + Sync;

/// What is made of the content of files, and made again when that changes.
pub(crate) struct Reloaded<T> {
    files: Vec<Named>,
    make: Box<Make<T>>,
    state: Mutex<State<T>>,
}

struct State<T> {
    current: Arc<T>,
    /// Of the content that was looked at last, good or bad.
    digest: Hash,
    looked: Instant,
}

impl<T> fmt::Debug for Reloaded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloaded")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

fn digest(read: &Result<Vec<Vec<u8>>, SecurityError>) -> Hash {
    let mut h = blake3::Hasher::new();
    match read {
        Ok(contents) => {
            for c in contents {
                h.update(&(c.len() as u64).to_le_bytes()).update(c);
            }
        }
        // A file that can't be read is told of once too.
        Err(e) => {
            h.update(e.0.as_bytes());
        }
    }
    h.finalize()
}

impl<T> Reloaded<T> {
    /// Reads the files and makes something of them. What is wrong now is an error.
    pub(crate) fn new(
        files: Vec<Named>,
        make: impl Fn(&[Vec<u8>]) -> Result<T, SecurityError> + Send + Sync + 'static,
    ) -> Result<Self, SecurityError> {
        let read = files.iter().map(Named::read).collect();
        let digest = digest(&read);
        let current = Arc::new(make(&read?)?);
        let state = State {
            current,
            digest,
            looked: Instant::now(),
        };
        Ok(Self {
            files,
            make: Box::new(make),
            state: Mutex::new(state),
        })
    }

    /// What the files make by now. They are small and looked at once a second at most, so this reads them where it is.
    pub(crate) fn get(&self) -> Arc<T> {
        let mut s = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if self.files.is_empty() || s.looked.elapsed() < LOOK {
            return s.current.clone();
        }
        self.look(&mut s);
        s.current.clone()
    }

    fn look(&self, s: &mut State<T>) {
        s.looked = Instant::now();
        let read = self.files.iter().map(Named::read).collect();
        let digest = digest(&read);
        if digest == s.digest {
            return;
        }
        s.digest = digest;
        let paths = self.files.iter().map(|f| f.path.display().to_string());
        let files = paths.collect::<Vec<_>>().join(", ");
        match read.and_then(|contents| (self.make)(&contents)) {
            Ok(new) => {
                tracing::info!(files, "changed files are in use");
                s.current = Arc::new(new);
            }
            Err(e) => {
                tracing::warn!(error = %e, "changed files can't be used; going on with those of before");
            }
        }
    }

    /// Looks at once.
    #[cfg(test)]
    pub(crate) fn look_now(&self) -> Arc<T> {
        let mut s = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.look(&mut s);
        s.current.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn number(contents: &[Vec<u8>]) -> Result<u32, SecurityError> {
        let text = String::from_utf8_lossy(&contents[0]);
        text.trim()
            .parse()
            .map_err(|e| SecurityError(format!("{e}")))
    }

    #[test]
    fn a_link_that_turns_is_seen_and_bad_content_is_not_taken() {
        // As Kubernetes does it: tls.crt -> ..data/tls.crt, ..data -> ..2026_1, which is replaced by rename.
        let dir = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| dir.path().join(name);
        let turn = |to: &str, content: &str| {
            std::fs::create_dir(at(to)).expect("folder");
            std::fs::write(at(to).join("n"), content).expect("write");
            symlink(to, at("..tmp")).expect("link");
            std::fs::rename(at("..tmp"), at("..data")).expect("rename");
        };
        turn("..1", "1");
        symlink("..data/n", at("n")).expect("link");
        let file = Named {
            setting: "server.cert_file",
            path: at("n"),
        };
        let r = Reloaded::new(vec![file], number).expect("good");
        assert_eq!(*r.get(), 1);
        turn("..2", "2");
        // The same size, and an older time.
        let old = std::time::SystemTime::UNIX_EPOCH;
        let f = std::fs::File::options()
            .write(true)
            .open(at("n"))
            .expect("open");
        f.set_modified(old).expect("time");
        assert_eq!(*r.look_now(), 2);
        turn("..3", "bad");
        assert_eq!(*r.look_now(), 2);
        std::fs::remove_file(at("n")).expect("remove");
        assert_eq!(*r.look_now(), 2);
        symlink("..data/n", at("n")).expect("link");
        turn("..4", "4");
        assert_eq!(*r.look_now(), 4);
    }

    #[test]
    fn what_is_wrong_at_first_names_file_and_setting() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("none");
        let file = Named {
            setting: "client.token_file",
            path: path.clone(),
        };
        let e = Reloaded::new(vec![file], number)
            .expect_err("missing")
            .to_string();
        assert!(e.contains("client.token_file"), "{e}");
        assert!(e.contains(&path.display().to_string()), "{e}");
    }
}
