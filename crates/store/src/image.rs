//! The image of a job's capture: its bytes through the table of extents that lies beside the plan, where there is one.

use crate::objects::{ObjectError, Objects};
use crate::{Keys, Plan, StoreError};
use async_trait::async_trait;
use bytes::Bytes;
use ramsift_layers::extent::{Extents, Table};
use ramsift_layers::{ByteSource, FileOffset, ImageReader, SourceError, SourcePin};
use std::sync::Arc;

/// An object of the store, read in slices.
#[derive(Debug)]
struct ObjectSource {
    objects: Arc<dyn Objects>,
    key: String,
    pin: SourcePin,
}

#[async_trait]
impl ByteSource for ObjectSource {
    fn pin(&self) -> &SourcePin {
        &self.pin
    }

    async fn read_at(&self, offset: FileOffset, buf: &mut [u8]) -> Result<(), SourceError> {
        let end = offset.0.saturating_add(buf.len() as u64);
        let got = self.objects.get_range(&self.key, offset.0..end).await;
        let what = self.objects.url(&self.key);
        let data = got.map_err(|e| match e {
            ObjectError::NotFound { .. } => SourceError::NotFound {
                what: what.clone(),
                detail: "the table of extents is gone; plan the job again".into(),
            },
            e => SourceError::Unavailable {
                what: what.clone(),
                detail: e.to_string(),
            },
        })?;
        if data.len() != buf.len() {
            return Err(SourceError::Medium {
                what,
                offset: offset.0,
                len: buf.len() as u64,
                detail: format!("{} bytes are there; plan the job again", data.len()),
            });
        }
        buf.copy_from_slice(&data);
        Ok(())
    }

    async fn check_pin(&self) -> Result<(), SourceError> {
        Ok(())
    }
}

/// Stores the table of a job that is being planned. Its name is its content's, so whoever plans the job writes the same.
pub async fn put_table(objects: &dyn Objects, keys: &Keys, table: Table) -> Result<(), StoreError> {
    let key = keys.extents(&table.info.blake3);
    let data = Bytes::from(Arc::unwrap_or_clone(table.data));
    match objects.put_new(&key, data).await {
        Err(e) if !e.is_conflict() => Err(e.into()),
        _ => Ok(()),
    }
}

/// The extents of a job's capture; `None` where it holds memory as it is.
pub async fn extents(
    objects: &Arc<dyn Objects>,
    keys: &Keys,
    plan: &Plan,
) -> Result<Option<Arc<Extents>>, StoreError> {
    let Some(info) = &plan.layout.extents else {
        return Ok(None);
    };
    let key = keys.extents(&info.blake3);
    let size = objects.head(&key).await?.size;
    let name = objects.url(&key);
    let table = ObjectSource {
        objects: objects.clone(),
        key,
        pin: SourcePin::Ram { name, size },
    };
    let opened = Extents::open(Arc::new(table), info, plan.pin.size()).await;
    opened.map(|x| Some(Arc::new(x))).map_err(of_source)
}

/// A reader of a job's capture, whose bytes are `source`.
pub async fn reader(
    objects: &Arc<dyn Objects>,
    keys: &Keys,
    plan: &Plan,
    source: Arc<dyn ByteSource>,
) -> Result<ImageReader, StoreError> {
    Ok(match extents(objects, keys, plan).await? {
        Some(x) => ImageReader::coded(source, x),
        None => ImageReader::plain(source),
    })
}

/// What reading a table met, as an error of the store.
pub fn of_source(e: SourceError) -> StoreError {
    let content = e.is_content() || e.is_fatal();
    match e {
        SourceError::NotFound { what, .. } => ObjectError::NotFound { what }.into(),
        e if content => StoreError::Format {
            what: "the table of extents".into(),
            detail: e.to_string(),
        },
        e => ObjectError::Failed {
            what: "the table of extents".into(),
            detail: e.to_string(),
        }
        .into(),
    }
}
