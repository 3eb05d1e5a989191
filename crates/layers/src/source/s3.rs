//! An object in S3 or anything that speaks it, pinned by version id and ETag.
//!
//! Large reads are cut into ranged GETs aligned to multiples of the part size, several in flight,
//! each with `If-Match`: an object that is replaced under the job answers 412 and the read fails
//! with [`SourceError::Changed`]. The SDK retries requests; a body that stalls or breaks off is
//! retried here, with back-off.
//!
//! Source: Amazon S3 API reference, `HeadObject`, `GetObject`.

pub use super::headers::CustomerKey;
use super::headers::Headers;
use super::measured::Measured;
use super::{ByteSource, SourceError, SourcePin, in_bounds};
use crate::FileOffset;
use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectError;
use aws_smithy_http_client::{Builder as HttpBuilder, tls};
use futures::{FutureExt, StreamExt, TryStreamExt};
use ramsift_mask::MaskedUrl;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::OnceCell;

/// How to reach an S3 service.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct S3Config {
    /// URL of the service; empty: Amazon's.
    pub endpoint: MaskedUrl,
    /// Region; empty: from the environment or profile, else `us-east-1`.
    pub region: String,
    /// Access key; empty: the standard chain (environment, profile, web identity, instance).
    pub access_key: String,
    /// Secret key.
    pub secret_key: String,
    /// Profile of the shared configuration and credentials files; empty: `AWS_PROFILE`, else `default`.
    pub profile: String,
    /// Requests are not signed: for buckets that everybody may read.
    pub anonymous: bool,
    /// Whoever reads pays for it, and every request says that he knows.
    pub requester_pays: bool,
    /// Certificates of authorities in PEM, whose servers are trusted besides those of the system's authorities. Must be checked: the
    /// SDK panics on what are none.
    #[serde(skip)]
    pub authorities: Vec<u8>,
    /// The key of the customer with which objects are encrypted at the service (SSE-C).
    #[serde(skip)]
    pub customer_key: Option<CustomerKey>,
    /// Buckets that are reached otherwise, by their names.
    #[serde(skip)]
    pub buckets: BTreeMap<String, S3Config>,
    /// `https://service/bucket/key` rather than `https://bucket.service/key`.
    pub path_style: bool,
    /// Whether the content of what is uploaded goes into the signature of its request.
    pub sign_payloads: SignPayloads,
}

/// Whether the SHA-256 of an upload is part of its signature. It takes a twentieth of a chunk worker's CPU time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SignPayloads {
    /// Over plain HTTP only: TLS sees to it that content arrives as it was sent.
    #[default]
    Auto,
    /// For buckets whose policy refuses unsigned content.
    Always,
    /// For networks that are trusted.
    Never,
}

impl std::fmt::Debug for S3Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Config")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("path_style", &self.path_style)
            .field("sign_payloads", &self.sign_payloads)
            .finish_non_exhaustive()
    }
}

/// A client and what it was made from.
#[derive(Clone, Debug)]
pub struct S3Client {
    /// The SDK's client.
    pub sdk: Client,
    /// For messages.
    endpoint: String,
    signs_payloads: bool,
}

impl S3Client {
    /// A client for this configuration. Does not talk to the service yet.
    pub async fn connect(config: &S3Config) -> Self {
        let http = HttpBuilder::new().tls_provider(tls::Provider::Rustls(
            tls::rustls_provider::CryptoMode::Ring,
        ));
        let mut trusted = tls::TrustStore::default();
        if !config.authorities.is_empty() {
            trusted.add_pem_certificate(config.authorities.clone());
        }
        let context = tls::TlsContext::builder().with_trust_store(trusted).build();
        let http = match context {
            Ok(c) => http.tls_context(c).build_https(),
            // Fails with other providers of TLS alone.
            Err(e) => {
                tracing::error!(error = %e, "the authorities of s3.ca_file are not used");
                http.build_https()
            }
        };
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            .retry_config(
                RetryConfig::standard()
                    .with_max_attempts(5)
                    .with_initial_backoff(Duration::from_millis(200))
                    .with_max_backoff(Duration::from_secs(5)),
            )
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(Duration::from_secs(5))
                    .read_timeout(Duration::from_secs(20))
                    .build(),
            );
        if !config.profile.is_empty() {
            loader = loader.profile_name(&config.profile);
        }
        if config.anonymous {
            loader = loader.no_credentials();
        } else if !config.access_key.is_empty() {
            let c = Credentials::new(
                &config.access_key,
                &config.secret_key,
                None,
                None,
                "ramsift configuration",
            );
            loader = loader.credentials_provider(c);
        }
        let region = if config.region.is_empty() {
            std::env::var("AWS_REGION").unwrap_or_else(|_| "us-east-1".into())
        } else {
            config.region.clone()
        };
        loader = loader.region(Region::new(region));
        if !config.endpoint.is_empty() {
            loader = loader.endpoint_url(config.endpoint.bare());
        }
        let shared = loader.load().await;
        // Checksums on ranged reads can't be validated against the full object's, and BLAKE3 over
        // the pieces covers every byte anyway.
        let s3 = aws_sdk_s3::config::Builder::from(&shared)
            .force_path_style(config.path_style)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .interceptor(Measured::new())
            .interceptor(Headers::new(
                config.requester_pays,
                config.customer_key.as_ref(),
            ))
            .build();
        let endpoint = if config.endpoint.is_empty() {
            "Amazon S3".into()
        } else {
            config.endpoint.to_string()
        };
        let signs_payloads = match config.sign_payloads {
            SignPayloads::Auto => endpoint.starts_with("http:"),
            SignPayloads::Always => true,
            SignPayloads::Never => false,
        };
        Self {
            sdk: Client::from_conf(s3),
            endpoint,
            signs_payloads,
        }
    }

    /// Whether the content of uploads goes into the signatures of their requests.
    pub fn signs_payloads(&self) -> bool {
        self.signs_payloads
    }

    /// Where this client goes, for messages.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

/// HTTP status and error code of a failed call, where the service answered at all.
pub fn status_of<E: ProvideErrorMetadata>(
    e: &SdkError<E, aws_sdk_s3::config::http::HttpResponse>,
) -> (Option<u16>, Option<String>) {
    let status = e.raw_response().map(|r| r.status().as_u16());
    (status, e.code().map(str::to_owned))
}

/// The innermost reason of an error chain, which is the one a person can act on.
pub fn root_cause(e: &dyn std::error::Error) -> String {
    let mut at = e;
    while let Some(next) = at.source() {
        at = next;
    }
    at.to_string()
}

/// Refusals that pass.
const TRANSIENT: &[&str] = &[
    "ExpiredToken",
    "RequestTimeTooSkewed",
    "TokenRefreshRequired",
    "RequestTimeout",
];

/// Turns a failed call into an error with the object's name.
pub fn map_error<E>(
    what: &str,
    endpoint: &str,
    e: &SdkError<E, aws_sdk_s3::config::http::HttpResponse>,
) -> SourceError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let what = what.to_owned();
    let (status, code) = status_of(e);
    let code = code.unwrap_or_else(|| "no error code".into());
    match status {
        Some(404) => SourceError::NotFound {
            what,
            detail: match code.as_str() {
                "NoSuchBucket" => "no such bucket".into(),
                "NoSuchVersion" => "no such version of it".into(),
                _ => "no such bucket, key or version".into(),
            },
        },
        // Clocks and fresh keys come right by themselves.
        Some(400 | 401 | 403) if TRANSIENT.contains(&code.as_str()) => SourceError::Unavailable {
            what,
            detail: format!("{endpoint} refused for now ({code})"),
        },
        Some(401 | 403) => SourceError::Denied {
            what,
            detail: format!(
                "{endpoint} refused ({code}); check the access key and its policy, and whether whoever reads pays \
                 (s3.requester_pays)"
            ),
        },
        Some(412) => SourceError::Changed {
            what,
            detail: "the object was replaced (HTTP 412)".into(),
        },
        Some(400) => SourceError::Unavailable {
            what,
            detail: format!(
                "{endpoint} answered HTTP 400 ({code}): the credentials have expired, or the object is encrypted with a key of its owner \
                 (s3.sse_c_key_file)"
            ),
        },
        // An answer that is none, or that broke off.
        Some(200..300) => SourceError::Unavailable {
            what,
            detail: format!("{endpoint}: {}", root_cause(e)),
        },
        Some(s) => SourceError::Unavailable {
            what,
            detail: format!("{endpoint} answered HTTP {s} ({code})"),
        },
        None if matches!(e, SdkError::ConstructionFailure(_)) => SourceError::Denied {
            what,
            detail: format!(
                "no usable credentials for {endpoint} ({}); set AWS_ACCESS_KEY_ID and \
                 AWS_SECRET_ACCESS_KEY or a profile, or s3.anonymous for a public bucket",
                root_cause(e)
            ),
        },
        None => SourceError::Unavailable {
            what,
            detail: format!("{endpoint}: {}", root_cause(e)),
        },
    }
}

/// Bytes of a ranged GET.
const PART: u64 = 8 << 20;
/// Ranged GETs in flight for one read.
const IN_FLIGHT: usize = 6;
/// Tries of one part whose body breaks off.
const BODY_TRIES: u32 = 5;
/// Bytes at the beginning of an object that are kept: each format asks for them.
const FIRST: usize = 4096;

/// A pinned object.
#[derive(Debug)]
pub struct S3Source {
    client: S3Client,
    bucket: String,
    key: String,
    version: Option<String>,
    etag: String,
    pin: SourcePin,
    /// The first bytes, which every format looks at.
    first: OnceCell<Vec<u8>>,
}

impl S3Source {
    /// Asks for the object's current version and pins it.
    pub async fn open(client: &S3Client, bucket: &str, key: &str) -> Result<Self, SourceError> {
        let what = format!("s3://{bucket}/{key}");
        let head = client
            .sdk
            .head_object()
            .bucket(bucket)
            .key(key)
            .checksum_mode(aws_sdk_s3::types::ChecksumMode::Enabled)
            .send()
            .await
            .map_err(|e| map_error(&what, client.endpoint(), &e))?;
        let size = u64::try_from(head.content_length().unwrap_or(0)).unwrap_or(0);
        if size == 0 {
            return Err(SourceError::Empty { what });
        }
        let Some(etag) = head.e_tag().map(str::to_owned) else {
            let detail = "the service gives no ETag, so the evidence can't be pinned".into();
            return Err(SourceError::Denied { what, detail });
        };
        let version_id = head
            .version_id()
            .filter(|v| *v != "null")
            .map(str::to_owned);
        let mtime_ns = head
            .last_modified()
            .and_then(|t| i64::try_from(t.as_nanos()).ok())
            .unwrap_or_default();
        let pin = SourcePin::S3 {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            version_id,
            etag,
            size,
            mtime_ns,
            sha256: full_sha256(&head),
        };
        Self::pinned(client, &pin)
    }

    /// A source for a version that was pinned before. Does not talk to the service.
    pub fn pinned(client: &S3Client, pin: &SourcePin) -> Result<Self, SourceError> {
        let SourcePin::S3 {
            bucket,
            key,
            version_id,
            etag,
            ..
        } = pin
        else {
            let detail = "the evidence is not in S3".into();
            return Err(SourceError::NotFound {
                what: pin.to_string(),
                detail,
            });
        };
        Ok(Self {
            client: client.clone(),
            bucket: bucket.clone(),
            key: key.clone(),
            version: version_id.clone(),
            etag: etag.clone(),
            pin: pin.clone(),
            first: OnceCell::new(),
        })
    }

    async fn read_part(&self, offset: u64, buf: &mut [u8]) -> Result<(), SourceError> {
        let mut tries = 0;
        let mut filled = 0;
        loop {
            let from = offset + filled as u64;
            let last = offset + buf.len() as u64 - 1;
            let got = self
                .client
                .sdk
                .get_object()
                .bucket(&self.bucket)
                .key(&self.key)
                .set_version_id(self.version.clone())
                .if_match(&self.etag)
                .range(format!("bytes={from}-{last}"))
                .send()
                .await
                .map_err(|e| self.get_error(&e))?;
            let mut body = got.body;
            let broke = loop {
                match body.try_next().await {
                    Ok(Some(part)) => {
                        let n = part.len().min(buf.len() - filled);
                        buf[filled..filled + n].copy_from_slice(&part[..n]);
                        filled += n;
                    }
                    Ok(None) => break "the body ended early".to_owned(),
                    Err(e) => break root_cause(&e),
                }
                if filled == buf.len() {
                    return Ok(());
                }
            };
            tries += 1;
            if tries >= BODY_TRIES {
                return Err(SourceError::Unavailable {
                    what: self.pin.to_string(),
                    detail: format!("reading at {from:#x} broke off {tries} times: {broke}"),
                });
            }
            tracing::warn!(offset = from, tries, reason = %broke, "object read broke off");
            tokio::time::sleep(Duration::from_millis(100 << tries)).await;
        }
    }

    fn get_error(
        &self,
        e: &SdkError<GetObjectError, aws_sdk_s3::config::http::HttpResponse>,
    ) -> SourceError {
        match map_error(&self.pin.to_string(), self.client.endpoint(), e) {
            // It was there when it was pinned.
            SourceError::NotFound { what, .. } => SourceError::Changed {
                what,
                detail: "the object or its version was deleted".into(),
            },
            other => other,
        }
    }
}

/// The provider's SHA-256 of the full object as hex, when it has one (composite ones end in `-N`).
fn full_sha256(head: &aws_sdk_s3::operation::head_object::HeadObjectOutput) -> Option<String> {
    use aws_sdk_s3::types::ChecksumType;
    if head.checksum_type() == Some(&ChecksumType::Composite) {
        return None;
    }
    let b64 = head.checksum_sha256()?;
    let raw = aws_sdk_s3::primitives::Blob::new(decode_base64(b64)?);
    (raw.as_ref().len() == 32).then(|| {
        raw.as_ref()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<String>()
    })
}

fn decode_base64(s: &str) -> Option<Vec<u8>> {
    const ABC: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut out, mut acc, mut bits) = (Vec::new(), 0u32, 0);
    for c in s.bytes().filter(|c| *c != b'=') {
        let v = ABC.iter().position(|a| *a == c)?;
        acc = acc << 6 | u32::try_from(v).ok()?;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((acc >> bits & 0xff) as u8);
        }
    }
    Some(out)
}

/// Cuts a read at multiples of [`PART`] of the object.
fn parts(offset: u64, buf: &mut [u8]) -> Vec<(u64, &mut [u8])> {
    let mut out = Vec::new();
    let (mut at, mut rest) = (offset, buf);
    while !rest.is_empty() {
        let n = usize::try_from(PART - at % PART)
            .unwrap_or(usize::MAX)
            .min(rest.len());
        let (head, tail) = rest.split_at_mut(n);
        out.push((at, head));
        at += n as u64;
        rest = tail;
    }
    // A short rest at either end isn't worth a request of its own.
    out
}

#[async_trait]
impl ByteSource for S3Source {
    fn pin(&self) -> &SourcePin {
        &self.pin
    }

    async fn read_at(&self, offset: FileOffset, buf: &mut [u8]) -> Result<(), SourceError> {
        in_bounds(&self.pin, offset.0, buf.len())?;
        if buf.is_empty() {
            return Ok(());
        }
        let reads: Vec<_> = parts(offset.0, buf)
            .into_iter()
            .map(|(at, p)| self.read_part(at, p).boxed())
            .collect();
        futures::stream::iter(reads)
            .buffer_unordered(IN_FLIGHT)
            .try_collect::<()>()
            .await
    }

    async fn head(&self, len: usize) -> Result<Vec<u8>, SourceError> {
        let whole = usize::try_from(self.len()).unwrap_or(usize::MAX);
        let n = len.min(whole);
        if n > FIRST {
            return self.read_vec(FileOffset(0), n).await;
        }
        let read = self.read_vec(FileOffset(0), FIRST.min(whole));
        let first = self.first.get_or_try_init(|| read).await?;
        Ok(first.get(..n).unwrap_or_default().to_vec())
    }

    fn coalesce_distance(&self) -> u64 {
        512 << 10
    }

    async fn check_pin(&self) -> Result<(), SourceError> {
        let what = self.pin.to_string();
        let got = self
            .client
            .sdk
            .head_object()
            .bucket(&self.bucket)
            .key(&self.key)
            .set_version_id(self.version.clone())
            .if_match(&self.etag)
            .send()
            .await;
        match got {
            Ok(_) => Ok(()),
            Err(e) => match map_error(&what, self.client.endpoint(), &e) {
                SourceError::NotFound { what, .. } => Err(SourceError::Changed {
                    what,
                    detail: "the object or its version was deleted".into(),
                }),
                other => Err(other),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_aligned_and_cover_the_read() {
        let mut buf = vec![0; 20 << 20];
        let p = parts(5 << 20, &mut buf);
        let got: Vec<_> = p.iter().map(|(at, b)| (*at >> 20, b.len() >> 20)).collect();
        assert_eq!(got, [(5, 3), (8, 8), (16, 8), (24, 1)]);
    }

    #[tokio::test]
    async fn content_is_signed_where_nothing_else_protects_it() {
        for (endpoint, sign_payloads, signs) in [
            ("", SignPayloads::Auto, false),
            ("https://s3.example.org", SignPayloads::Auto, false),
            ("http://127.0.0.1:8333", SignPayloads::Auto, true),
            ("https://s3.example.org", SignPayloads::Always, true),
            ("http://127.0.0.1:8333", SignPayloads::Never, false),
        ] {
            let config = S3Config {
                endpoint: endpoint.into(),
                access_key: "a".into(),
                secret_key: "b".into(),
                sign_payloads,
                ..S3Config::default()
            };
            let client = S3Client::connect(&config).await;
            assert_eq!(
                client.signs_payloads(),
                signs,
                "{endpoint} {sign_payloads:?}"
            );
        }
    }

    #[test]
    fn base64_of_rfc_4648() {
        assert_eq!(decode_base64("Zm9vYmE=").as_deref(), Some(&b"fooba"[..]));
        assert_eq!(decode_base64("*"), None);
    }
}
