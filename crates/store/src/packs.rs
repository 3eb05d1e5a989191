//! Artifacts on their way to the result store. What lies in the image is told by its places and its hashes, and read from
//! the capture when somebody wants it. Copies are made of what has no place there, and of what a job asks for: small ones
//! end to end in packs, large ones alone under their SHA-256. A pack is named by its content, so another attempt at the
//! same chunk writes the same object again.

use crate::job::artifact_key;
use crate::placed::Placed;
use crate::tables::{ArtifactRow, ArtifactsBuilder};
use crate::{Keys, ObjectError, Objects};
use md5::{Digest, Md5};
use ramsift_proto::v1::ObjectRef;
use sha2::Sha256;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use tempfile::NamedTempFile;
use tokio::runtime::Handle;

/// From here on an artifact is an object of its own.
const LARGE: usize = 1 << 20;
/// A pack is closed when it has this size.
const PACK: usize = 16 << 20;

/// What is known of an artifact besides its content.
#[derive(Clone, Debug)]
pub struct Meta {
    /// See [`crate::tables::row_id`].
    pub id: [u8; 16],
    /// What found it.
    pub detector: &'static str,
    /// What it is.
    pub kind: &'static str,
    /// A name or path that it has.
    pub name: Option<String>,
    /// First byte.
    pub image_offset: u64,
    /// The same as a physical address.
    pub physical_address: Option<u64>,
    /// Whether all of it is there; `None`: that can't be told.
    pub complete: Option<bool>,
    /// Why it is not whole, or why that can't be told.
    pub gap: Option<String>,
    /// Typed fields as JSON.
    pub fields: Option<String>,
}

/// Which artifacts are copied into the result store although the image has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Copies {
    /// None.
    #[default]
    None,
    /// Those of these kinds.
    Kinds(Vec<String>),
    /// All: what was found outlives its capture.
    All,
}

impl Copies {
    /// Reads what a job says: nothing, kinds with commas between them, or `all`.
    pub fn parse(text: &str) -> Self {
        let kinds: Vec<String> = text.split(',').map(|k| k.trim().to_owned()).collect();
        match kinds.iter().any(|k| k == "all") {
            true => Self::All,
            false if text.trim().is_empty() => Self::None,
            false => Self::Kinds(kinds),
        }
    }

    /// Whether one of this kind is copied.
    pub fn takes(&self, kind: &str) -> bool {
        match self {
            Self::None => false,
            Self::Kinds(kinds) => kinds.iter().any(|k| k == kind),
            Self::All => true,
        }
    }
}

/// Hashes and length of content that arrives piece by piece.
#[derive(Debug, Default)]
pub struct Hashed {
    sha256: Sha256,
    md5: Md5,
    len: u64,
}

impl Write for Hashed {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.sha256.update(data);
        self.md5.update(data);
        self.len += data.len() as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Content that arrives piece by piece: in memory while it is small, then in a temporary file.
#[derive(Debug)]
pub struct Spool {
    small: Vec<u8>,
    large: Option<NamedTempFile>,
    hashed: Hashed,
    folder: std::path::PathBuf,
}

impl Spool {
    /// Empty content; `folder` takes the temporary file.
    pub fn new(folder: &Path) -> Self {
        Self {
            small: Vec::new(),
            large: None,
            hashed: Hashed::default(),
            folder: folder.to_owned(),
        }
    }
}

impl Write for Spool {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.large.is_none() && self.small.len() + data.len() >= LARGE {
            let mut file = NamedTempFile::new_in(&self.folder)?;
            file.write_all(&std::mem::take(&mut self.small))?;
            self.large = Some(file);
        }
        match &mut self.large {
            Some(file) => file.write_all(data)?,
            None => self.small.extend_from_slice(data),
        }
        self.hashed.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.large.as_mut().map_or(Ok(()), NamedTempFile::flush)
    }
}

#[derive(Debug)]
struct Pending {
    meta: Meta,
    hashes: Hashes,
    offset: u64,
}

/// Of content.
#[derive(Clone, Copy, Debug)]
struct Hashes {
    sha256: [u8; 32],
    md5: Option<[u8; 16]>,
    len: u64,
}

impl Hashes {
    fn of(kind: &str, data: &[u8]) -> Self {
        Self {
            sha256: Sha256::digest(data).into(),
            // Lists of known files are what MD5 is still good for; text regions are in none.
            md5: is_file(kind).then(|| Md5::digest(data).into()),
            len: data.len() as u64,
        }
    }
}

/// Kinds of artifacts that are files: those are what lists of hashes, file-oriented rules and the
/// virus scanner know.
pub fn is_file(kind: &str) -> bool {
    !matches!(kind, "text" | "text_utf16le" | "evtx_chunk")
}

/// Writes artifacts and their rows.
#[derive(Debug)]
pub struct PackWriter {
    objects: Arc<dyn Objects>,
    keys: Keys,
    runtime: Handle,
    copies: Copies,
    pack: Vec<u8>,
    pending: Vec<Pending>,
    /// Where content that is in the open pack already begins.
    known: BTreeMap<[u8; 32], usize>,
    /// Rows of what was added.
    pub rows: ArtifactsBuilder,
    /// The objects that hold it.
    pub refs: Vec<ObjectRef>,
}

impl PackWriter {
    /// A writer for a job. Must not be used from an asynchronous task.
    pub fn new(objects: Arc<dyn Objects>, keys: Keys, runtime: Handle, copies: Copies) -> Self {
        Self {
            objects,
            keys,
            runtime,
            copies,
            pack: Vec::new(),
            pending: Vec::new(),
            known: BTreeMap::new(),
            rows: ArtifactsBuilder::default(),
            refs: Vec::new(),
        }
    }

    /// Whether an artifact of this kind is copied although the image has it.
    pub fn copies(&self, kind: &str) -> bool {
        self.copies.takes(kind)
    }

    /// Tells of an artifact where it lies in the image; returns the SHA-256 of its content, hex.
    pub fn refer(&mut self, meta: &Meta, hashed: Hashed, at: &Placed) -> String {
        let sha256: [u8; 32] = hashed.sha256.finalize().into();
        let md5 = is_file(meta.kind).then(|| hashed.md5.finalize().into());
        let row = Hashes {
            sha256,
            md5,
            len: hashed.len,
        };
        push_row(&mut self.rows, meta, &row, None, Some(&at.to_json()));
        hex::encode(sha256)
    }

    /// The same for content that lies in one piece and is at hand.
    pub fn refer_to(&mut self, meta: &Meta, data: &[u8]) -> String {
        let row = Hashes::of(meta.kind, data);
        let at = Placed::at(meta.image_offset, data.len() as u64);
        push_row(&mut self.rows, meta, &row, None, Some(&at.to_json()));
        hex::encode(row.sha256)
    }

    /// Stores an artifact; returns the SHA-256 of its content, hex.
    pub fn add(&mut self, meta: Meta, data: &[u8]) -> Result<String, ObjectError> {
        let hashes = Hashes::of(meta.kind, data);
        let hex_sha = hex::encode(hashes.sha256);
        if data.len() >= LARGE {
            let key = artifact_key(&hex_sha);
            let put = self.objects.put_new(&key, data.to_vec().into());
            match self.runtime.block_on(put) {
                Ok(_) => {}
                // The same content was recovered before.
                Err(e) if e.is_conflict() => {}
                Err(e) => return Err(e),
            }
            self.refs.push(ObjectRef {
                key: key.clone(),
                bytes: data.len() as u64,
            });
            push_row(&mut self.rows, &meta, &hashes, Some((&key, 0)), None);
            return Ok(hex_sha);
        }
        if self.pack.len() + data.len() > PACK {
            self.flush()?;
        }
        if self.pack.capacity() == 0 {
            // Pages that are not written to cost nothing; a pack that grows is copied again and again.
            self.pack.reserve_exact(PACK);
        }
        let offset = *self.known.entry(hashes.sha256).or_insert_with(|| {
            let at = self.pack.len();
            self.pack.extend_from_slice(data);
            at
        });
        self.pending.push(Pending {
            meta,
            hashes,
            offset: offset as u64,
        });
        Ok(hex_sha)
    }

    /// Stores content that was spooled; returns its SHA-256, hex.
    pub fn add_spooled(&mut self, meta: Meta, spool: Spool) -> Result<String, ObjectError> {
        let Some(file) = spool.large else {
            return self.add(meta, &spool.small);
        };
        let hashes = Hashes {
            sha256: spool.hashed.sha256.finalize().into(),
            md5: Some(spool.hashed.md5.finalize().into()),
            len: spool.hashed.len,
        };
        let hex_sha = hex::encode(hashes.sha256);
        let key = artifact_key(&hex_sha);
        let stored = self.runtime.block_on(self.objects.head(&key));
        // The same content may have been recovered before.
        if !stored.is_ok_and(|m| m.size == hashes.len) {
            let put = self.objects.put_file(&key, file.path());
            self.runtime.block_on(put)?;
        }
        self.refs.push(ObjectRef {
            key: key.clone(),
            bytes: hashes.len,
        });
        push_row(&mut self.rows, &meta, &hashes, Some((&key, 0)), None);
        Ok(hex_sha)
    }

    /// Closes the open pack.
    pub fn flush(&mut self) -> Result<(), ObjectError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let pack = std::mem::take(&mut self.pack);
        let key = self.keys.pack(blake3::hash(&pack).to_hex().as_str());
        self.refs.push(ObjectRef {
            key: key.clone(),
            bytes: pack.len() as u64,
        });
        self.runtime.block_on(self.objects.put(&key, pack.into()))?;
        for p in self.pending.drain(..) {
            let object = Some((key.as_str(), p.offset));
            push_row(&mut self.rows, &p.meta, &p.hashes, object, None);
        }
        self.known.clear();
        Ok(())
    }
}

fn push_row(
    rows: &mut ArtifactsBuilder,
    meta: &Meta,
    hashes: &Hashes,
    object: Option<(&str, u64)>,
    extents: Option<&str>,
) {
    rows.push(&ArtifactRow {
        id: meta.id,
        sha256: &hex::encode(hashes.sha256),
        md5: hashes.md5.map(hex::encode).as_deref(),
        detector: meta.detector,
        kind: meta.kind,
        name: meta.name.as_deref(),
        size: hashes.len,
        image_offset: meta.image_offset,
        physical_address: meta.physical_address,
        complete: meta.complete,
        gap: meta.gap.as_deref(),
        object,
        extents,
        fields: meta.fields.as_deref(),
    });
}
