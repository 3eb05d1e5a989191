//! Artifacts on their way to the object store: small ones end to end in packs, large ones alone
//! under their SHA-256. A pack is named by its content, so another attempt at the same chunk
//! writes the same object again.

use crate::job::artifact_key;
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

/// Content that arrives piece by piece: in memory while it is small, then in a temporary file.
#[derive(Debug)]
pub struct Spool {
    small: Vec<u8>,
    large: Option<NamedTempFile>,
    sha256: Sha256,
    md5: Md5,
    len: u64,
    folder: std::path::PathBuf,
}

impl Spool {
    /// Empty content; `folder` takes the temporary file.
    pub fn new(folder: &Path) -> Self {
        Self {
            small: Vec::new(),
            large: None,
            sha256: Sha256::new(),
            md5: Md5::new(),
            len: 0,
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
        self.sha256.update(data);
        self.md5.update(data);
        self.len += data.len() as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.large.as_mut().map_or(Ok(()), NamedTempFile::flush)
    }
}

#[derive(Debug)]
struct Pending {
    meta: Meta,
    sha256: [u8; 32],
    md5: Option<[u8; 16]>,
    offset: usize,
    len: u64,
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
    pub fn new(objects: Arc<dyn Objects>, keys: Keys, runtime: Handle) -> Self {
        Self {
            objects,
            keys,
            runtime,
            pack: Vec::new(),
            pending: Vec::new(),
            known: BTreeMap::new(),
            rows: ArtifactsBuilder::default(),
            refs: Vec::new(),
        }
    }

    /// Stores an artifact; returns the SHA-256 of its content, hex.
    pub fn add(&mut self, meta: Meta, data: &[u8]) -> Result<String, ObjectError> {
        let sha256: [u8; 32] = Sha256::digest(data).into();
        // Lists of known files are what MD5 is still good for; text regions are in none.
        let md5 = is_file(meta.kind).then(|| Md5::digest(data).into());
        let hex_sha = hex::encode(sha256);
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
            let p = Pending {
                meta,
                sha256,
                md5,
                offset: 0,
                len: data.len() as u64,
            };
            push_row(&mut self.rows, &p, &key);
            return Ok(hex_sha);
        }
        if self.pack.len() + data.len() > PACK {
            self.flush()?;
        }
        if self.pack.capacity() == 0 {
            // Pages that are not written to cost nothing; a pack that grows is copied again and again.
            self.pack.reserve_exact(PACK);
        }
        let offset = *self.known.entry(sha256).or_insert_with(|| {
            let at = self.pack.len();
            self.pack.extend_from_slice(data);
            at
        });
        self.pending.push(Pending {
            meta,
            sha256,
            md5,
            offset,
            len: data.len() as u64,
        });
        Ok(hex_sha)
    }

    /// Stores content that was spooled; returns its SHA-256, hex.
    pub fn add_spooled(&mut self, meta: Meta, spool: Spool) -> Result<String, ObjectError> {
        let Some(file) = spool.large else {
            return self.add(meta, &spool.small);
        };
        let sha256: [u8; 32] = spool.sha256.finalize().into();
        let hex_sha = hex::encode(sha256);
        let key = artifact_key(&hex_sha);
        let stored = self.runtime.block_on(self.objects.head(&key));
        // The same content may have been recovered before.
        if !stored.is_ok_and(|m| m.size == spool.len) {
            let put = self.objects.put_file(&key, file.path());
            self.runtime.block_on(put)?;
        }
        self.refs.push(ObjectRef {
            key: key.clone(),
            bytes: spool.len,
        });
        let p = Pending {
            meta,
            sha256,
            md5: Some(spool.md5.finalize().into()),
            offset: 0,
            len: spool.len,
        };
        push_row(&mut self.rows, &p, &key);
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
            push_row(&mut self.rows, &p, &key);
        }
        self.known.clear();
        Ok(())
    }
}

fn push_row(rows: &mut ArtifactsBuilder, p: &Pending, key: &str) {
    rows.push(&ArtifactRow {
        id: p.meta.id,
        sha256: &hex::encode(p.sha256),
        md5: p.md5.map(hex::encode).as_deref(),
        detector: p.meta.detector,
        kind: p.meta.kind,
        name: p.meta.name.as_deref(),
        size: p.len,
        image_offset: p.meta.image_offset,
        physical_address: p.meta.physical_address,
        complete: p.meta.complete,
        gap: p.meta.gap.as_deref(),
        object: key,
        object_offset: p.offset as u64,
        fields: p.meta.fields.as_deref(),
    });
}
