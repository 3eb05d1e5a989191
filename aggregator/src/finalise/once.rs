//! What sealing writes, it creates: nothing is written over.
//!
//! All that is written depends on the frozen records alone, so who comes second finds what it was about to write. Should two
//! versions of this program differ in a byte, the manifest of either names what lies in the store.

use super::FinaliseError;
use ramsift_store::job::ManifestFile;
use ramsift_store::merge::{Segment, segment_facts};
use ramsift_store::{Keys, Objects, StoreError};
use std::path::Path;
use std::sync::Arc;

/// Bytes hashed at a time.
const STEP: u64 = 16 << 20;

/// Creates a segment. Gives the size of what is there then.
pub(super) async fn segment(
    objects: &dyn Objects,
    key: &str,
    data: Vec<u8>,
) -> Result<u64, StoreError> {
    let bytes = data.len() as u64;
    match objects.put_new(key, data.into()).await {
        Ok(_) => Ok(bytes),
        Err(e) if e.is_conflict() => Ok(objects.head(key).await?.size),
        Err(e) => Err(e.into()),
    }
}

/// Creates a finished table from a local file.
pub(super) async fn file(
    objects: &Arc<dyn Objects>,
    keys: &Keys,
    made: ManifestFile,
    path: &Path,
) -> Result<ManifestFile, FinaliseError> {
    match objects.put_file_new(&made.key, path).await {
        Ok(()) => Ok(made),
        Err(e) if e.is_conflict() => there(objects, keys, made).await,
        Err(e) => Err(StoreError::from(e).into()),
    }
}

/// Creates a finished table from its bytes.
pub(super) async fn bytes(
    objects: &Arc<dyn Objects>,
    keys: &Keys,
    made: ManifestFile,
    data: Vec<u8>,
) -> Result<ManifestFile, FinaliseError> {
    match objects.put_new(&made.key, data.into()).await {
        Ok(_) => Ok(made),
        Err(e) if e.is_conflict() => there(objects, keys, made).await,
        Err(e) => Err(StoreError::from(e).into()),
    }
}

/// What another attempt at sealing has written in the place of this table.
async fn there(
    objects: &Arc<dyn Objects>,
    keys: &Keys,
    made: ManifestFile,
) -> Result<ManifestFile, FinaliseError> {
    let fail = StoreError::from;
    match objects.head(&keys.manifest()).await {
        Ok(_) => return Err(FinaliseError::Sealed),
        Err(e) if e.is_not_found() => {}
        Err(e) => return Err(fail(e).into()),
    }
    let size = objects.head(&made.key).await.map_err(fail)?.size;
    let mut hash = blake3::Hasher::new();
    let mut at = 0;
    while at < size {
        let end = (at + STEP).min(size);
        let piece = objects.get_range(&made.key, at..end).await.map_err(fail)?;
        hash.update(&piece);
        at = end;
    }
    let blake3 = hash.finalize().to_hex().to_string();
    if blake3 == made.blake3 {
        return Ok(made);
    }
    tracing::warn!(key = %made.key, "another attempt at sealing wrote this table differently; its own counts");
    let key = made.key.clone();
    let of = Segment { key, bytes: size };
    let (rows, _) = segment_facts(objects, &of).await?;
    if made.rows.is_some_and(|n| n != rows) {
        return Err(FinaliseError::Evidence(format!(
            "{} was there already, with {rows} rows where the reports give {}",
            made.key,
            made.rows.unwrap_or_default()
        )));
    }
    Ok(ManifestFile {
        bytes: size,
        blake3,
        rows: Some(rows),
        ..made
    })
}
