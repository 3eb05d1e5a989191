//! Objects below a prefix of a bucket.
//!
//! Source: Amazon S3 API reference, `PutObject` (`If-None-Match`, `If-Match`), `ListObjectsV2`,
//! `UploadPart`.

use super::{ObjectError, ObjectMeta, Objects, PartKey, beyond};
use async_trait::async_trait;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use ramsift_layers::source::S3Client;
use ramsift_layers::source::s3::{root_cause, status_of};
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Bytes of one part of a large upload.
const PART: usize = 16 << 20;

/// Objects below a prefix of a bucket.
#[derive(Clone, Debug)]
pub struct S3Objects {
    client: S3Client,
    bucket: String,
    /// Empty, or ends in `/`.
    prefix: String,
}

type Sdk<E> = SdkError<E, aws_sdk_s3::config::http::HttpResponse>;

impl S3Objects {
    /// Objects below `prefix` of `bucket`.
    pub fn new(client: S3Client, bucket: &str, prefix: &str) -> Self {
        let prefix = prefix.trim_matches('/');
        let prefix = if prefix.is_empty() {
            String::new()
        } else {
            format!("{prefix}/")
        };
        Self {
            client,
            bucket: bucket.to_owned(),
            prefix,
        }
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn error<E>(&self, key: &str, e: &Sdk<E>) -> ObjectError
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let what = self.url(key);
        let (status, code) = status_of(e);
        let code = code.unwrap_or_else(|| "no error code".into());
        match status {
            Some(404) if code == "NoSuchBucket" => ObjectError::Unusable {
                what,
                detail: format!("bucket {} does not exist; create it first", self.bucket),
            },
            Some(404) => ObjectError::NotFound { what },
            Some(412) => ObjectError::Conflict { what },
            Some(401 | 403) => ObjectError::Denied {
                what,
                detail: format!(
                    "{} refused ({code}); check the access key and its policy",
                    self.client.endpoint()
                ),
            },
            Some(s) => ObjectError::Failed {
                what,
                detail: format!("{} answered HTTP {s} ({code})", self.client.endpoint()),
            },
            None => ObjectError::Failed {
                what,
                detail: format!(
                    "{} can't be reached: {}",
                    self.client.endpoint(),
                    root_cause(e)
                ),
            },
        }
    }

    async fn put_if(
        &self,
        key: &str,
        data: Bytes,
        none_match: bool,
        etag: Option<&str>,
    ) -> Result<String, ObjectError> {
        let mut tries = 0;
        loop {
            let mut put = self
                .client
                .sdk
                .put_object()
                .bucket(&self.bucket)
                .key(self.full(key))
                .set_if_none_match(none_match.then(|| "*".to_owned()))
                .set_if_match(etag.map(str::to_owned))
                .body(ByteStream::from(data.clone()))
                .customize();
            if !self.client.signs_payloads() {
                put = put.disable_payload_signing();
            }
            match put.send().await {
                Ok(d) => return Ok(d.e_tag().unwrap_or_default().to_owned()),
                // Another write of this key was under way; perhaps neither was stored.
                Err(e) if status_of(&e).0 == Some(409) && tries < 5 => {
                    tries += 1;
                    tokio::time::sleep(std::time::Duration::from_millis(50 << tries)).await;
                }
                Err(e) => return Err(self.error(key, &e)),
            }
        }
    }

    async fn take_file(&self, key: &str, path: &Path, new: bool) -> Result<(), ObjectError> {
        let io = |e: std::io::Error| ObjectError::Failed {
            what: path.display().to_string(),
            detail: e.to_string(),
        };
        let len = std::fs::metadata(path).map_err(io)?.len();
        if len <= PART as u64 {
            let data = std::fs::read(path).map_err(io)?;
            let stored = match new {
                true => self.put_new(key, data.into()).await,
                false => self.put(key, data.into()).await,
            };
            return stored.map(|_| ());
        }
        let begun = self
            .client
            .sdk
            .create_multipart_upload()
            .bucket(&self.bucket)
            .key(self.full(key))
            .send()
            .await
            .map_err(|e| self.error(key, &e))?;
        let id = begun.upload_id().unwrap_or_default();
        let done = self.upload(key, path, id, new).await;
        if done.is_err() {
            let abort = self
                .client
                .sdk
                .abort_multipart_upload()
                .bucket(&self.bucket);
            if let Err(e) = abort.key(self.full(key)).upload_id(id).send().await {
                tracing::warn!(key, error = %root_cause(&e), "unfinished upload left behind");
            }
        }
        done
    }

    /// Whether what is stored is what a create that lost wanted to store: a request that was
    /// retried after its answer got lost meets its own object.
    async fn is_ours(&self, key: &str, data: &Bytes) -> bool {
        matches!(self.get(key).await, Ok((there, _)) if there == *data)
    }

    async fn upload(&self, key: &str, path: &Path, id: &str, new: bool) -> Result<(), ObjectError> {
        let io = |e: std::io::Error| ObjectError::Failed {
            what: path.display().to_string(),
            detail: e.to_string(),
        };
        let mut file = std::fs::File::open(path).map_err(io)?;
        let mut parts = Vec::new();
        let mut number = 0;
        loop {
            let mut buf = Vec::with_capacity(PART);
            file.by_ref()
                .take(PART as u64)
                .read_to_end(&mut buf)
                .map_err(io)?;
            if buf.is_empty() {
                break;
            }
            number += 1;
            let mut put = self
                .client
                .sdk
                .upload_part()
                .bucket(&self.bucket)
                .key(self.full(key))
                .upload_id(id)
                .part_number(number)
                .body(ByteStream::from(buf))
                .customize();
            if !self.client.signs_payloads() {
                put = put.disable_payload_signing();
            }
            let done = put.send().await.map_err(|e| self.error(key, &e))?;
            parts.push(
                CompletedPart::builder()
                    .part_number(number)
                    .set_e_tag(done.e_tag().map(str::to_owned))
                    .build(),
            );
        }
        let whole = CompletedMultipartUpload::builder()
            .set_parts(Some(parts))
            .build();
        self.client
            .sdk
            .complete_multipart_upload()
            .bucket(&self.bucket)
            .key(self.full(key))
            .upload_id(id)
            .set_if_none_match(new.then(|| "*".to_owned()))
            .multipart_upload(whole)
            .send()
            .await
            .map_err(|e| self.error(key, &e))?;
        Ok(())
    }
}

#[async_trait]
impl Objects for S3Objects {
    async fn put(&self, key: &str, data: Bytes) -> Result<String, ObjectError> {
        self.put_if(key, data, false, None).await
    }

    async fn put_new(&self, key: &str, data: Bytes) -> Result<String, ObjectError> {
        match self.put_if(key, data.clone(), true, None).await {
            Err(e) if e.is_conflict() && self.is_ours(key, &data).await => {
                Ok(self.head(key).await?.etag)
            }
            other => other,
        }
    }

    async fn put_over(&self, key: &str, data: Bytes, etag: &str) -> Result<String, ObjectError> {
        match self.put_if(key, data.clone(), false, Some(etag)).await {
            Err(e) if e.is_conflict() && self.is_ours(key, &data).await => {
                Ok(self.head(key).await?.etag)
            }
            other => other,
        }
    }

    async fn put_file(&self, key: &str, path: &Path) -> Result<(), ObjectError> {
        self.take_file(key, path, false).await
    }

    async fn put_file_new(&self, key: &str, path: &Path) -> Result<(), ObjectError> {
        // Not every store minds the condition where a large upload is completed.
        match self.head(key).await {
            Ok(_) => Err(ObjectError::Conflict {
                what: self.url(key),
            }),
            Err(e) if e.is_not_found() => self.take_file(key, path, true).await,
            Err(e) => Err(e),
        }
    }

    async fn get(&self, key: &str) -> Result<(Bytes, String), ObjectError> {
        if let Some(part) = PartKey::of(key) {
            let data = self.get_range(part.object, part.range).await?;
            // Such objects are written once: no tag tells versions apart.
            return Ok((data, String::new()));
        }
        let got = self
            .client
            .sdk
            .get_object()
            .bucket(&self.bucket)
            .key(self.full(key))
            .send()
            .await
            .map_err(|e| self.error(key, &e))?;
        let etag = got.e_tag().unwrap_or_default().to_owned();
        let data = got.body.collect().await.map_err(|e| ObjectError::Failed {
            what: self.url(key),
            detail: root_cause(&e),
        })?;
        Ok((data.into_bytes(), etag))
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, ObjectError> {
        if let Some(part) = PartKey::of(key) {
            let range = part.narrow(&range).ok_or_else(|| beyond(self.url(key)))?;
            return self.get_range(part.object, range).await;
        }
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let got = self
            .client
            .sdk
            .get_object()
            .bucket(&self.bucket)
            .key(self.full(key))
            .range(format!("bytes={}-{}", range.start, range.end - 1))
            .send()
            .await
            .map_err(|e| self.error(key, &e))?;
        let data = got.body.collect().await.map_err(|e| ObjectError::Failed {
            what: self.url(key),
            detail: root_cause(&e),
        })?;
        let data = data.into_bytes();
        // An object that ends before the range does gives what it has.
        if data.len() as u64 != range.end - range.start {
            return Err(beyond(self.url(key)));
        }
        Ok(data)
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, ObjectError> {
        if let Some(part) = PartKey::of(key) {
            return Ok(part.meta(key, self.head(part.object).await?));
        }
        let got = self
            .client
            .sdk
            .head_object()
            .bucket(&self.bucket)
            .key(self.full(key))
            .send()
            .await
            .map_err(|e| self.error(key, &e))?;
        Ok(ObjectMeta {
            key: key.to_owned(),
            size: u64::try_from(got.content_length().unwrap_or(0)).unwrap_or(0),
            etag: got.e_tag().unwrap_or_default().to_owned(),
            modified_ns: nanos(got.last_modified()),
        })
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError> {
        let mut out = Vec::new();
        let mut pages = self
            .client
            .sdk
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(self.full(prefix))
            .into_paginator()
            .send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| self.error(prefix, &e))?;
            for o in page.contents() {
                let Some(key) = o.key().and_then(|k| k.strip_prefix(&self.prefix)) else {
                    continue;
                };
                out.push(ObjectMeta {
                    key: key.to_owned(),
                    size: u64::try_from(o.size().unwrap_or(0)).unwrap_or(0),
                    etag: o.e_tag().unwrap_or_default().to_owned(),
                    modified_ns: nanos(o.last_modified()),
                });
            }
        }
        Ok(out)
    }

    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, ObjectError> {
        let whole = self.full(prefix);
        let mut out = Vec::new();
        let mut pages = self
            .client
            .sdk
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(&whole)
            .delimiter("/")
            .into_paginator()
            .send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| self.error(prefix, &e))?;
            for p in page.common_prefixes() {
                let name = p
                    .prefix()
                    .and_then(|p| p.strip_prefix(&whole))
                    .unwrap_or_default();
                out.push(name.trim_end_matches('/').to_owned());
            }
        }
        Ok(out)
    }

    async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        let done = self
            .client
            .sdk
            .delete_object()
            .bucket(&self.bucket)
            .key(self.full(key));
        match done.send().await.map_err(|e| self.error(key, &e)) {
            Err(e) if !e.is_not_found() => Err(e),
            _ => Ok(()),
        }
    }

    fn url(&self, key: &str) -> String {
        format!("s3://{}/{}", self.bucket, self.full(key))
    }

    fn path(&self, _key: &str) -> Option<PathBuf> {
        None
    }
}

fn nanos(t: Option<&aws_sdk_s3::primitives::DateTime>) -> i64 {
    t.and_then(|t| i64::try_from(t.as_nanos()).ok())
        .unwrap_or_default()
}
