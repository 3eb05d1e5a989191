//! Content of a job's artifacts: read from the capture where it lies there, else from the copy in the store.

use crate::config::Config;
use crate::evidence::{Evidence, Named, named};
use crate::suggest;
use anyhow::{Context, Result, anyhow, bail};
use ramsift_layers::{ByteSource, FileOffset};
use ramsift_store::Objects;
use ramsift_store::placed::Placed;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Columns of an artifact that say where it is, in the order of [`Stored::of`].
pub(crate) const COLUMNS: &str = "sha256, size, object, object_offset, extents";

/// Bytes of an artifact at most: more than jobs recover, and little enough to hold.
const LARGEST: u64 = 4 << 30;

/// An artifact, and where its content is.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    sha256: String,
    size: u64,
    at: Place,
}

#[derive(Clone, Debug)]
enum Place {
    /// A copy in the store: its key, and where in that object.
    Object(String, u64),
    /// The image.
    Image(Placed),
}

impl Stored {
    /// From the columns of [`COLUMNS`] as texts; what is null is empty.
    pub(crate) fn of(row: &[String]) -> Result<Self> {
        let [sha256, size, object, offset, extents] = row else {
            bail!("the table of artifacts lacks a column");
        };
        let damaged = || anyhow!("the row of artifact {sha256} is damaged");
        let size = size.parse().ok().filter(|n| *n <= LARGEST);
        let size = size.ok_or_else(damaged)?;
        let at = if object.is_empty() {
            Place::Image(Placed::parse(extents, size).ok_or_else(damaged)?)
        } else {
            Place::Object(object.clone(), offset.parse().map_err(|_| damaged())?)
        };
        Ok(Self {
            sha256: sha256.clone(),
            size,
            at,
        })
    }

    /// Whether it is read from the capture.
    pub(crate) fn is_in_image(&self) -> bool {
        matches!(self.at, Place::Image(_))
    }

    /// Its content, by its hash; `capture` is needed for one that lies there.
    pub(crate) async fn content(
        &self,
        objects: &dyn Objects,
        capture: Option<&Evidence>,
    ) -> Result<Vec<u8>> {
        let (data, from) = match (&self.at, capture) {
            (Place::Object(key, at), _) => {
                let data = objects
                    .get_range(key, *at..at.saturating_add(self.size))
                    .await?;
                (data.to_vec(), objects.url(key))
            }
            (Place::Image(p), Some(e)) => {
                let bytes = e.image.bytes();
                let from = e.plan.pin.to_string();
                (from_image(p, e, bytes.as_ref()).await?, from)
            }
            (Place::Image(_), None) => bail!("artifact {} lies in the capture", self.sha256),
        };
        let found = hex::encode(Sha256::digest(&data));
        if found != self.sha256 {
            bail!(
                "{from} is damaged or not what was scanned: the artifact's SHA-256 is {found} there, not {}",
                self.sha256
            );
        }
        Ok(data)
    }
}

/// Content from where it lies in the image, holes as zeros.
async fn from_image(p: &Placed, e: &Evidence, bytes: &dyn ByteSource) -> Result<Vec<u8>> {
    let runs = &e.plan.layout.runs;
    let mut data = vec![0; usize::try_from(p.size())?];
    for piece in p.pieces() {
        for stored in runs.pieces(piece.image..piece.image.saturating_add(piece.len)) {
            let at = usize::try_from(piece.at + (stored.image - piece.image))?;
            let len = usize::try_from(stored.len)?;
            let to = data
                .get_mut(at..at.saturating_add(len))
                .ok_or_else(|| anyhow!("an artifact reaches over its own end"))?;
            bytes
                .read_at(FileOffset(stored.file), to)
                .await
                .with_context(|| format!("the capture at image offset {:#x}", stored.image))?;
        }
    }
    Ok(data)
}

/// Opens the capture of a job, for content that lies there.
pub(crate) async fn capture(config: &Config, job: &str, moved: Option<&str>) -> Result<Evidence> {
    match named(config, job).await? {
        Named::Job(j) => j.open(config, moved).await,
        Named::Capture(_) => bail!("{job} is no job"),
    }
}

/// Kinds of artifacts that there are, for those that a job is to copy.
const KINDS: &[&str] = &[
    "cached_file",
    "docx",
    "elf",
    "evtx_chunk",
    "image_section",
    "jar",
    "jpeg",
    "module",
    "pdf",
    "pe",
    "pe_image",
    "png",
    "pptx",
    "process_elf",
    "registry_hive",
    "sqlite",
    "text",
    "text_utf16le",
    "xlsx",
    "zip",
];

/// Checks what a user wants copied: `none`, `all`, or kinds with commas between them. Gives what the job says.
pub(crate) fn copies(text: &str) -> Result<String> {
    let text = text.trim();
    if text.is_empty() || text == "none" {
        return Ok(String::new());
    }
    for kind in text.split(',').map(str::trim) {
        if kind != "all" && !KINDS.contains(&kind) {
            return Err(suggest::unknown("kind of artifact", kind, KINDS));
        }
    }
    Ok(text.to_owned())
}

/// A capture that is opened when the first artifact needs it.
pub(crate) struct Opened<'a> {
    config: &'a Config,
    job: String,
    moved: Option<&'a str>,
    objects: Arc<dyn Objects>,
    evidence: Option<Evidence>,
}

impl<'a> Opened<'a> {
    pub(crate) fn new(
        config: &'a Config,
        objects: Arc<dyn Objects>,
        job: &str,
        moved: Option<&'a str>,
    ) -> Self {
        Self {
            config,
            job: job.to_owned(),
            moved,
            objects,
            evidence: None,
        }
    }

    /// Content of an artifact of the job.
    pub(crate) async fn content(&mut self, of: &Stored) -> Result<Vec<u8>> {
        if of.is_in_image() && self.evidence.is_none() {
            self.evidence = Some(capture(self.config, &self.job, self.moved).await?);
        }
        of.content(self.objects.as_ref(), self.evidence.as_ref())
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_to_copy_are_known_ones() {
        assert_eq!(copies(" none ").expect("known"), "");
        assert_eq!(copies("all").expect("known"), "all");
        assert_eq!(copies("pe,elf").expect("known"), "pe,elf");
        let e = copies("pe,exe").expect_err("no such kind").to_string();
        assert!(e.contains("exe"), "{e}");
    }

    #[test]
    fn a_damaged_row_is_told() {
        let row = |v: [&str; 5]| Stored::of(&v.map(str::to_owned));
        assert!(
            row(["ab", "10", "", "", "[[0,10]]"])
                .expect("a place")
                .is_in_image()
        );
        assert!(
            !row(["ab", "10", "packs/x", "5", ""])
                .expect("a place")
                .is_in_image()
        );
        for bad in [
            ["ab", "x", "packs/x", "5", ""],
            ["ab", "4294967297", "", "", "[[null,4294967297]]"],
            ["ab", "10", "packs/x", "", ""],
            ["ab", "10", "", "", "[[0,11]]"],
            ["ab", "10", "", "", ""],
        ] {
            let e = row(bad).expect_err("damaged").to_string();
            assert!(e.contains("artifact ab"), "{e}");
        }
    }
}
