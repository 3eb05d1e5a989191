//! Lets the query engine read through [`Objects`]: one client, one set of credentials, one TLS
//! stack for all. Read-only.

use super::{ObjectError, Objects};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use object_store::path::Path;
use object_store::{
    Attributes, CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

const NAME: &str = "ramsift objects";

/// [`Objects`] as the query engine wants them.
#[derive(Debug)]
pub struct ReadShim(pub Arc<dyn Objects>);

impl fmt::Display for ReadShim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.url(""))
    }
}

fn convert(path: &str, e: ObjectError) -> Error {
    match e {
        ObjectError::NotFound { .. } => Error::NotFound {
            path: path.to_owned(),
            source: Box::new(e),
        },
        other => Error::Generic {
            store: NAME,
            source: Box::new(other),
        },
    }
}

fn read_only<T>() -> Result<T> {
    Err(Error::NotSupported {
        source: "queries never write".into(),
    })
}

fn meta_of(m: super::ObjectMeta) -> Result<ObjectMeta> {
    Ok(ObjectMeta {
        location: Path::parse(&m.key)?,
        // Only the size matters to a query over immutable objects.
        last_modified: Default::default(),
        size: m.size,
        e_tag: Some(m.etag),
        version: None,
    })
}

#[async_trait]
impl ObjectStore for ReadShim {
    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        read_only()
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        read_only()
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let key = location.as_ref();
        let meta = meta_of(self.0.head(key).await.map_err(|e| convert(key, e))?)?;
        let range = match &options.range {
            Some(r) => r.as_range(meta.size).map_err(|e| Error::Generic {
                store: NAME,
                source: Box::new(e),
            })?,
            None => 0..meta.size,
        };
        let payload = if options.head {
            GetResultPayload::Stream(stream::empty().boxed())
        } else {
            let data = self
                .0
                .get_range(key, range.clone())
                .await
                .map_err(|e| convert(key, e))?;
            GetResultPayload::Stream(stream::once(async { Ok(data) }).boxed())
        };
        Ok(GetResult {
            payload,
            meta,
            range,
            attributes: Attributes::new(),
        })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let key = location.as_ref();
        let mut out = Vec::with_capacity(ranges.len());
        for r in ranges {
            out.push(
                self.0
                    .get_range(key, r.clone())
                    .await
                    .map_err(|e| convert(key, e))?,
            );
        }
        Ok(out)
    }

    fn delete_stream(
        &self,
        _: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        stream::once(async { read_only() }).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let prefix = prefix.map(|p| format!("{p}/")).unwrap_or_default();
        let objects = self.0.clone();
        stream::once(async move {
            match objects.list(&prefix).await {
                Ok(all) => stream::iter(all.into_iter().map(meta_of)).boxed(),
                Err(e) => stream::once(async move { Err(convert(&prefix, e)) }).boxed(),
            }
        })
        .flatten()
        .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let prefix = prefix.map(|p| format!("{p}/")).unwrap_or_default();
        let all = self
            .0
            .list(&prefix)
            .await
            .map_err(|e| convert(&prefix, e))?;
        let here = all
            .into_iter()
            .filter(|m| !m.key[prefix.len()..].contains('/'));
        let objects = here.map(meta_of).collect::<Result<_>>()?;
        let folders = self
            .0
            .list_folders(&prefix)
            .await
            .map_err(|e| convert(&prefix, e))?;
        let common_prefixes = folders
            .iter()
            .map(|f| Ok(Path::parse(format!("{prefix}{f}"))?))
            .collect::<Result<_>>()?;
        Ok(ListResult {
            common_prefixes,
            objects,
        })
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        read_only()
    }
}
