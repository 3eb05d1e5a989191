//! Which captures the user means: a file, a folder, an object, a prefix.

use crate::terminal::{Shown, tell};
use anyhow::{Context, Result, bail};
use futures::StreamExt;
use ramsift_layers::container::{Kind, PEEK_LEN};
use ramsift_layers::format::{HEAD_LEN, is_later_part, looks_like_capture};
use ramsift_layers::source::{Sources, name_of, path_of, split_s3_url};
use ramsift_store::{Objects, S3Objects};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What a name stands for.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Captures, by path or URL.
    pub(crate) captures: Vec<String>,
    /// What was passed over, with the reason.
    pub(crate) skipped: Vec<(String, String)>,
    /// Files of captures that are in several, but for the first of each.
    later: Vec<String>,
}

/// Objects of a prefix that are looked at at a time.
const SIDE_BY_SIDE: usize = 16;

/// What an object of a prefix is.
enum Seen {
    Capture,
    /// One of several files that are one capture, and not the first.
    Later,
    /// No capture: why not.
    Not(String),
}

/// Whether what begins so can be one of several files that are one capture.
fn may_be_later(head: &[u8]) -> bool {
    head.starts_with(b"KDUMP   ") || head.starts_with(b"EVF")
}

/// A name without its last number: files of one dump differ in that.
fn numberless(name: &str) -> String {
    let end = name
        .rfind(|c: char| c.is_ascii_digit())
        .map_or(0, |i| i + 1);
    let (digits, behind) = name.split_at(end);
    format!(
        "{}#{behind}",
        digits.trim_end_matches(|c: char| c.is_ascii_digit())
    )
}

impl Found {
    /// Takes a capture of a folder, of which `head` are the first bytes.
    async fn take(&mut self, name: String, head: &[u8], sources: &Sources) {
        let later = may_be_later(head)
            && match sources.open(&name).await {
                Ok(s) => is_later_part(s.as_ref()).await.unwrap_or(false),
                Err(_) => false,
            };
        let to = if later {
            &mut self.later
        } else {
            &mut self.captures
        };
        to.push(name);
    }

    /// Passes over files of a split dump that are read with another of its files.
    fn leave_parts(&mut self) {
        let mut read: BTreeSet<String> = self.captures.iter().map(|c| numberless(c)).collect();
        for name in std::mem::take(&mut self.later) {
            if read.insert(numberless(&name)) {
                // The first is not there.
                self.captures.push(name);
            } else {
                let why = "one of several files: it is read with the first of them";
                self.skipped.push((name, why.to_owned()));
            }
        }
    }

    /// Passes over states of VMware that are read with the memory beside them, unless they were named themselves.
    fn leave_states(&mut self, named: &[String]) {
        let memory: BTreeSet<String> = self
            .captures
            .iter()
            .filter_map(|c| stem(c, "vmem"))
            .collect();
        let is_beside = |c: &String| {
            let of = stem(c, "vmss").or_else(|| stem(c, "vmsn"));
            !named.contains(c) && of.is_some_and(|s| memory.contains(&s))
        };
        let (states, captures) = std::mem::take(&mut self.captures)
            .into_iter()
            .partition(is_beside);
        self.captures = captures;
        let why =
            "the state of the machine whose memory is in the .vmem beside it: it is read with that";
        self.skipped
            .extend(states.into_iter().map(|s: String| (s, why.to_owned())));
    }
}

/// A name without this ending, if it has it.
fn stem(name: &str, ending: &str) -> Option<String> {
    let (stem, e) = name.rsplit_once('.')?;
    e.eq_ignore_ascii_case(ending).then(|| stem.to_owned())
}

/// Finds the captures behind the names; there must be one.
pub(crate) async fn find(names: &[String], sources: &Sources) -> Result<Found> {
    let out = look(names, sources).await?;
    if out.captures.is_empty() {
        for (name, why) in &out.skipped {
            tell!("skipped {}: {}", Shown(name), Shown(why));
        }
        bail!("no capture found in {}", names.join(", "));
    }
    Ok(out)
}

/// The same, where none may be there.
pub(crate) async fn look(names: &[String], sources: &Sources) -> Result<Found> {
    let mut out = Found::default();
    for name in names {
        match split_s3_url(name) {
            Some((bucket, key)) => s3(name, bucket, key, sources, &mut out).await?,
            None if path_of(name).is_dir() => folder(&path_of(name), sources, &mut out).await?,
            // What is named alone is scanned whatever it looks like.
            None => out.captures.push(name.clone()),
        }
    }
    out.leave_states(names);
    out.leave_parts();
    Ok(out)
}

async fn folder(dir: &Path, sources: &Sources, out: &mut Found) -> Result<()> {
    let mut files: Vec<PathBuf> = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(d) = todo.pop() {
        let entries = std::fs::read_dir(&d).with_context(|| format!("folder {}", d.display()))?;
        for e in entries {
            let e = e?;
            let kind = e.file_type()?;
            // Links are not followed: a loop would never end.
            if kind.is_dir() {
                // Results of earlier scans are no captures.
                if !e.path().join("jobs").is_dir() {
                    todo.push(e.path());
                }
            } else if kind.is_file() {
                files.push(e.path());
            }
        }
    }
    files.sort();
    for f in files {
        let name = name_of(f.as_os_str());
        match head(&f) {
            Ok((head, len)) => match looks_like_capture(&name, &head, len) {
                Ok(()) => out.take(name, &head, sources).await,
                Err(why) => out.skipped.push((name, why)),
            },
            Err(e) => out.skipped.push((name, format!("can't be read: {e}"))),
        }
    }
    Ok(())
}

fn head(f: &Path) -> std::io::Result<(Vec<u8>, u64)> {
    use std::io::Read;
    let file = std::fs::File::open(f)?;
    let len = file.metadata()?.len();
    let mut head = Vec::new();
    let mut file = file.take(HEAD_LEN as u64);
    file.read_to_end(&mut head)?;
    if Kind::of(&head).is_some() {
        file.set_limit((PEEK_LEN - HEAD_LEN) as u64);
        file.read_to_end(&mut head)?;
    }
    Ok((head, len))
}

/// What an object is, by its name and first bytes.
async fn kind_of_object(url: &str, key: &str, size: u64, sources: &Sources) -> Result<Seen> {
    let source = match sources.open(url).await {
        Ok(s) => s,
        Err(e) => return Ok(Seen::Not(e.to_string())),
    };
    let mut head = source.head(HEAD_LEN).await?;
    if Kind::of(&head).is_some() {
        head = source.head(PEEK_LEN).await?;
    }
    if let Err(why) = looks_like_capture(key, &head, size) {
        return Ok(Seen::Not(why));
    }
    let later = may_be_later(&head) && is_later_part(source.as_ref()).await.unwrap_or(false);
    Ok(if later { Seen::Later } else { Seen::Capture })
}

async fn s3(name: &str, bucket: &str, key: &str, sources: &Sources, out: &mut Found) -> Result<()> {
    if !key.is_empty() && !key.ends_with('/') {
        match sources.open(name).await {
            Ok(_) => {
                out.captures.push(name.to_owned());
                return Ok(());
            }
            // Perhaps a prefix.
            Err(ramsift_layers::SourceError::NotFound { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let objects = S3Objects::new(sources.s3(bucket).await, bucket, "");
    let all = objects.list(key).await?;
    if all.is_empty() {
        bail!("{name} does not exist: no such object, and nothing under that prefix");
    }
    let mut looks = futures::stream::iter(all)
        .map(|m| async move {
            let url = format!("s3://{bucket}/{}", m.key);
            let seen = kind_of_object(&url, &m.key, m.size, sources).await;
            (url, seen)
        })
        .buffered(SIDE_BY_SIDE);
    while let Some((url, seen)) = looks.next().await {
        match seen? {
            Seen::Capture => out.captures.push(url),
            Seen::Later => out.later.push(url),
            Seen::Not(why) => out.skipped.push((url, why)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramsift_layers::source::S3Config;

    #[tokio::test]
    async fn folders_give_captures_and_say_what_they_skip() {
        let dir = tempfile::tempdir().expect("tempdir");
        let write = |n: &str, b: &[u8]| std::fs::write(dir.path().join(n), b).expect("write");
        write("a.mem", &[0; 8192]);
        write("notes.txt", b"hello");
        write("b.raw", b"");
        let sources = Sources::new(S3Config::default());
        let name = dir.path().display().to_string();
        let f = find(std::slice::from_ref(&name), &sources)
            .await
            .expect("one");
        assert_eq!(f.captures, [dir.path().join("a.mem").display().to_string()]);
        assert_eq!(f.skipped.len(), 2);
        std::fs::remove_file(dir.path().join("a.mem")).expect("remove");
        assert!(find(&[name], &sources).await.is_err());
    }
}
