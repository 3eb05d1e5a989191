//! Which evidence may be read.
//!
//! Whoever can submit a job names its evidence, and a service reads with its own rights. So the services of a cluster read what
//! their configuration lists: objects below a bucket's prefix, and files below a folder only where one is named.

use super::{SourceError, path_of, split_s3_url};
use std::path::{Component, Path, PathBuf};

/// The setting that says what may be read.
const SETTING: &str = "sources.allow";

/// One thing that may be read.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// Objects of all buckets.
    AnyObject,
    /// Objects below a prefix, which is empty or ends in `/`.
    Objects { bucket: String, prefix: String },
    /// Regular files below a folder.
    Folder(PathBuf),
}

/// What may be read; everything by default, which is right for a program that reads with the rights of its user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    places: Option<Vec<Place>>,
}

impl Allowed {
    /// What a setting lists, separated by commas: `s3://` (every object), `s3://bucket`, `s3://bucket/prefix`, `/folder`.
    pub fn parse(setting: &str) -> Result<Self, String> {
        let parts = setting.split(',').map(str::trim).filter(|p| !p.is_empty());
        let places: Vec<Place> = parts.map(place).collect::<Result<_, _>>()?;
        if places.is_empty() {
            return Err(format!(
                "{SETTING} is empty: nothing could be read; s3:// allows every object"
            ));
        }
        Ok(Self {
            places: Some(places),
        })
    }

    /// Fails for what may not be read, by its name alone. A file's real path is looked at when it is opened.
    pub fn check(&self, name: &str) -> Result<(), SourceError> {
        if !self.is_limited() {
            return Ok(());
        }
        if let Some((bucket, key)) = split_s3_url(name) {
            return self.check_object(bucket, key);
        }
        let path = path_of(name);
        let plain = path.is_absolute()
            && path
                .components()
                .all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
        match plain
            && self
                .folders()
                .unwrap_or_default()
                .iter()
                .any(|f| path.starts_with(f))
        {
            true => Ok(()),
            false => Err(refused(
                name,
                "it is a file of this machine and below none of the folders that",
            )),
        }
    }

    /// Fails for an object that may not be read.
    pub(super) fn check_object(&self, bucket: &str, key: &str) -> Result<(), SourceError> {
        match &self.places {
            Some(places) if !places.iter().any(|p| p.has_object(bucket, key)) => Err(refused(
                &format!("s3://{bucket}/{key}"),
                "it is not among the objects that",
            )),
            _ => Ok(()),
        }
    }

    /// Fails for an open file whose real path may not be read.
    pub(super) fn check_real(&self, name: &str, real: &Path) -> Result<(), SourceError> {
        match self.folders() {
            Some(folders) if !folders.iter().any(|f| real.starts_with(f)) => {
                Err(refused(name, "it leads out of the folders that"))
            }
            _ => Ok(()),
        }
    }

    /// Whether names are checked at all.
    pub(super) fn is_limited(&self) -> bool {
        self.places.is_some()
    }

    /// The folders that files may lie in, as they are named and as they are; `None`: everywhere. Asks the disk.
    fn folders(&self) -> Option<Vec<PathBuf>> {
        let places = self.places.as_ref()?;
        let mut out = Vec::new();
        for p in places {
            if let Place::Folder(f) = p {
                out.extend(f.canonicalize());
                out.push(f.clone());
            }
        }
        Some(out)
    }
}

fn refused(what: &str, why: &str) -> SourceError {
    SourceError::Refused {
        what: what.to_owned(),
        detail: format!("{why} the setting {SETTING} lists"),
    }
}

fn place(s: &str) -> Result<Place, String> {
    if s == "s3://" {
        return Ok(Place::AnyObject);
    }
    if let Some((bucket, key)) = split_s3_url(s) {
        if bucket.is_empty() || !is_plain(key) {
            return Err(format!("{SETTING}: {s:?} names no bucket or prefix"));
        }
        let key = key.trim_end_matches('/');
        let prefix = if key.is_empty() {
            String::new()
        } else {
            format!("{key}/")
        };
        return Ok(Place::Objects {
            bucket: bucket.to_owned(),
            prefix,
        });
    }
    if !Path::new(s).is_absolute() {
        return Err(format!(
            "{SETTING}: {s:?} is neither s3://bucket/prefix nor the full path of a folder"
        ));
    }
    Ok(Place::Folder(s.into()))
}

/// Some servers of S3 take a key for a path and resolve what leads up.
fn is_plain(key: &str) -> bool {
    !key.split(['/', '\\']).any(|p| matches!(p, "." | ".."))
}

impl Place {
    fn has_object(&self, of: &str, key: &str) -> bool {
        match self {
            Self::AnyObject => true,
            Self::Objects { bucket, prefix } => {
                bucket == of
                    && key.starts_with(prefix.as_str())
                    && (prefix.is_empty() || is_plain(key))
            }
            Self::Folder(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FileOffset;
    use crate::source::{FileSource, S3Config, SourcePin, Sources};
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    #[test]
    fn objects_by_bucket_and_prefix() {
        let some = Allowed::parse("s3://evidence/cases/ , s3://other").expect("a list");
        for (name, ok) in [
            ("s3://evidence/cases/1.mem", true),
            ("s3://evidence/cases-of-others/1.mem", false),
            ("s3://evidence/1.mem", false),
            ("s3://evidence/cases/../1.mem", false),
            ("s3://evidence2/cases/1.mem", false),
            ("s3://other/a", true),
            ("s3://Other/a", false),
            ("s3:///a", false),
            ("S3://other/a", false),
            ("file:///etc/passwd", false),
            ("/etc/passwd", false),
            ("etc/passwd", false),
            ("", false),
        ] {
            assert_eq!(some.check(name).is_ok(), ok, "{name}");
        }
        let all = Allowed::parse("s3://").expect("a list");
        assert!(all.check("s3://any/a/b").is_ok());
        let e = all.check("/etc/passwd").expect_err("a file").to_string();
        assert!(
            e.contains("sources.allow") && e.contains("/etc/passwd"),
            "{e}"
        );
        assert!(Allowed::default().check("/etc/passwd").is_ok());
        for bad in ["", " , ", "evidence", "s3:///a", "s3://b/../c", "./here"] {
            assert!(Allowed::parse(bad).is_err(), "{bad:?}");
        }
    }

    fn limited(setting: &str) -> Sources {
        Sources::new(S3Config::default()).only(Allowed::parse(setting).expect("a list"))
    }

    #[tokio::test]
    async fn files_only_below_a_folder_that_is_listed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("in/deep")).expect("folder");
        std::fs::write(at("in/deep/a.mem"), b"evidence").expect("written");
        std::fs::write(at("secret"), b"secret").expect("written");
        symlink(at("secret"), at("in/out")).expect("link");
        symlink(dir.path(), at("in/up")).expect("link");
        symlink("deep/a.mem", at("in/within")).expect("link");
        symlink(at("in"), at("alias")).expect("link");
        let name = |n: &str| at(n).display().to_string();
        let s = limited(&format!("s3://,{}", name("in")));
        for ok in ["in/deep/a.mem", "in/within"] {
            s.open(&name(ok))
                .await
                .unwrap_or_else(|e| panic!("{ok}: {e}"));
        }
        for bad in [
            "secret",
            "in/out",
            "in/up/secret",
            "in/../secret",
            "in2",
            "alias/deep/a.mem",
            "in",
            "none",
        ] {
            let e = s.open(&name(bad)).await.expect_err(bad);
            assert!(matches!(e, SourceError::Refused { .. }), "{bad}: {e}");
        }
        // A plan that nobody made here.
        let forged = FileSource::open(&at("secret")).expect("open");
        let pin = crate::ByteSource::pin(&forged).clone();
        let e = s.open_pinned(&pin).await.expect_err("a forged plan");
        assert!(
            matches!(e, SourceError::Refused { .. }) && e.is_fatal(),
            "{e}"
        );
        let e = limited("s3://b")
            .open_pinned(&pin)
            .await
            .expect_err("no files");
        assert!(e.to_string().contains("sources.allow"), "{e}");
        let object = SourcePin::S3 {
            bucket: "c".into(),
            key: "k".into(),
            version_id: None,
            etag: "e".into(),
            size: 1,
            mtime_ns: 0,
            sha256: None,
        };
        let e = limited("s3://b")
            .open_pinned(&object)
            .await
            .expect_err("another bucket");
        assert!(matches!(e, SourceError::Refused { .. }), "{e}");
        // The folder may be a link itself; plans name what it leads to.
        let s = limited(&name("alias"));
        let a = s.open(&name("alias/deep/a.mem")).await.expect("below it");
        let again = s.open_pinned(a.pin()).await.expect("by its real name");
        let mut b = [0; 8];
        again.read_at(FileOffset(0), &mut b).await.expect("read");
        assert_eq!(&b, b"evidence");
    }

    /// One thread runs everything here: an open that blocked it would never let the clock fire.
    #[tokio::test(flavor = "current_thread")]
    async fn what_is_no_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().expect("tempdir");
        let fifo = dir.path().join("fifo");
        let c = std::ffi::CString::new(fifo.display().to_string()).expect("a name");
        // SAFETY: mkfifo reads a C string that outlives the call.
        assert_eq!(unsafe { libc::mkfifo(c.as_ptr(), 0o600) }, 0);
        let socket = dir.path().join("socket");
        let _listening = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
        let s = limited(&format!("{},/dev", dir.path().display()));
        let free = Sources::new(S3Config::default());
        for what in [&fifo, &socket, Path::new("/dev/zero"), dir.path()] {
            for from in [&s, &free] {
                let name = what.display().to_string();
                let opened = tokio::time::timeout(Duration::from_secs(60), from.open(&name)).await;
                let e = opened.expect("an answer").expect_err("no regular file");
                assert!(matches!(e, SourceError::Refused { .. }), "{name}: {e}");
            }
        }
    }
}
