//! What requests to object stores say besides what the SDK has them say: that whoever reads pays, and keys of customers.
//!
//! Source: Amazon S3 API reference, `RequestPayer`; user guide, "server-side encryption with customer-provided keys".

use aws_sdk_s3::config::interceptors::{
    BeforeDeserializationInterceptorContextMut, BeforeTransmitInterceptorContextMut,
};
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::orchestrator::Metadata;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use md5::{Digest, Md5};
use std::fmt;

/// Operations that read or write the content of an object.
const OF_CONTENT: &[&str] = &[
    "GetObject",
    "HeadObject",
    "PutObject",
    "CreateMultipartUpload",
    "UploadPart",
];

/// A key of 256 bits with which a service encrypts objects and which it does not keep.
#[derive(Clone, PartialEq, Eq)]
pub struct CustomerKey([u8; 32]);

impl CustomerKey {
    /// The key in a file: 32 bytes, or these in base64, with a line end or without.
    pub fn parse(file: &[u8]) -> Result<Self, String> {
        if let Ok(key) = file.try_into() {
            return Ok(Self(key));
        }
        let text = std::str::from_utf8(file).ok().map(str::trim);
        let decoded = text.and_then(|t| BASE64.decode(t).ok());
        let key = decoded.and_then(|d| <[u8; 32]>::try_from(d).ok());
        key.map(Self)
            .ok_or_else(|| "it must hold 32 bytes, as they are or in base64".to_owned())
    }
}

impl fmt::Debug for CustomerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CustomerKey(***)")
    }
}

/// Adds headers before requests are signed.
#[derive(Debug)]
pub(super) struct Headers {
    requester_pays: bool,
    key: Option<CustomerKey>,
}

impl Headers {
    pub(super) fn new(requester_pays: bool, key: Option<&CustomerKey>) -> Self {
        Self {
            requester_pays,
            key: key.cloned(),
        }
    }
}

impl Intercept for Headers {
    fn name(&self) -> &'static str {
        "Headers"
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let operation = cfg.load::<Metadata>().map(|m| m.name().to_owned());
        let headers = context.request_mut().headers_mut();
        if self.requester_pays {
            headers.insert("x-amz-request-payer", "requester");
        }
        let of_content = operation.is_some_and(|o| OF_CONTENT.contains(&o.as_str()));
        if let Some(CustomerKey(key)) = self.key.as_ref().filter(|_| of_content) {
            let name = |what: &str| format!("x-amz-server-side-encryption-customer-{what}");
            headers.insert(name("algorithm"), "AES256");
            headers.insert(name("key"), BASE64.encode(key));
            headers.insert(name("key-md5"), BASE64.encode(Md5::digest(key)));
        }
        Ok(())
    }

    /// What answers say of the key is of no use, and some services say it twice, which the SDK takes for no answer.
    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if self.key.is_some() {
            let headers = context.response_mut().headers_mut();
            for what in ["algorithm", "key-md5"] {
                headers.remove(format!("x-amz-server-side-encryption-customer-{what}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_bytes_or_base64() {
        let key = CustomerKey([0x61; 32]);
        assert_eq!(CustomerKey::parse(&[0x61; 32]), Ok(key.clone()));
        // By `head -c 32 /dev/zero | tr '\\0' a | base64`.
        let text = b"YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE=\n";
        assert_eq!(CustomerKey::parse(text), Ok(key.clone()));
        for wrong in [&b""[..], b"YWFh", &[0x61; 33], &[0xff; 44]] {
            assert!(CustomerKey::parse(wrong).is_err(), "{wrong:?}");
        }
        assert!(!format!("{key:?}").contains("97"), "{key:?}");
    }
}
