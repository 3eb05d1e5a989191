//! Artifacts on their way to the object store: small ones end to end in packs, large ones alone
//! under their SHA-256. A pack is named by its content, so another attempt at the same chunk
//! writes the same object again.

use md5::{Digest, Md5};
use ramsift_proto::v1::ObjectRef;
use ramsift_store::job::artifact_key;
use ramsift_store::tables::{ArtifactRow, ArtifactsBuilder};
use ramsift_store::{Keys, ObjectError, Objects};
use sha2::Sha256;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::runtime::Handle;

/// From here on an artifact is an object of its own.
const LARGE: usize = 1 << 20;
/// A pack is closed when it has this size.
const PACK: usize = 16 << 20;

/// What is known of an artifact besides its content.
#[derive(Clone, Debug)]
pub(crate) struct Meta {
    pub(crate) id: [u8; 16],
    pub(crate) detector: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) name: Option<String>,
    pub(crate) image_offset: u64,
    pub(crate) physical_address: Option<u64>,
    pub(crate) gap: Option<String>,
    pub(crate) fields: Option<String>,
}

#[derive(Debug)]
struct Pending {
    meta: Meta,
    sha256: [u8; 32],
    md5: Option<[u8; 16]>,
    offset: usize,
    len: usize,
}

/// Kinds of artifacts that are files: those are what lists of hashes, file-oriented rules and the
/// virus scanner know.
pub(crate) fn is_file(kind: &str) -> bool {
    !matches!(kind, "text" | "text_utf16le" | "evtx_chunk")
}

/// Writes artifacts and their rows.
#[derive(Debug)]
pub(crate) struct PackWriter {
    objects: Arc<dyn Objects>,
    keys: Keys,
    runtime: Handle,
    pack: Vec<u8>,
    pending: Vec<Pending>,
    /// Where content that is in the open pack already begins.
    known: BTreeMap<[u8; 32], usize>,
    pub(crate) rows: ArtifactsBuilder,
    pub(crate) refs: Vec<ObjectRef>,
}

impl PackWriter {
    pub(crate) fn new(objects: Arc<dyn Objects>, keys: Keys, runtime: Handle) -> Self {
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
    pub(crate) fn add(&mut self, meta: Meta, data: &[u8]) -> Result<String, ObjectError> {
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
                len: data.len(),
            };
            push_row(&mut self.rows, &p, &key);
            return Ok(hex_sha);
        }
        if self.pack.len() + data.len() > PACK {
            self.flush()?;
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
            len: data.len(),
        });
        Ok(hex_sha)
    }

    /// Closes the open pack.
    pub(crate) fn flush(&mut self) -> Result<(), ObjectError> {
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
        size: p.len as u64,
        image_offset: p.meta.image_offset,
        physical_address: p.meta.physical_address,
        gap: p.meta.gap.as_deref(),
        object: key,
        object_offset: p.offset as u64,
        fields: p.meta.fields.as_deref(),
    });
}
