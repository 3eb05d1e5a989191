//! How object stores are reached: the section `s3`, and buckets that have a configuration of their own.
//!
//! ```toml
//! # s3.buckets_file: what a table leaves out is as in the section; keys are taken from there for the same service alone.
//! [case-7]
//! access_key = "..."
//! secret_key = "..."
//!
//! [captures-of-others]
//! requester_pays = true
//! region = "eu-west-1"
//! ```

use crate::config::S3;
use anyhow::{Context, Result, anyhow, bail};
use ramsift_layers::source::{CustomerKey, S3Config};
use ramsift_mask::MaskedUrl;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Bytes of a file that a setting names, at most.
const MAX_FILE: u64 = 4 << 20;

/// What the table of a bucket may say.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Bucket {
    endpoint: Option<MaskedUrl>,
    region: Option<String>,
    access_key: Option<String>,
    secret_key: Option<String>,
    profile: Option<String>,
    path_style: Option<bool>,
    anonymous: Option<bool>,
    requester_pays: Option<bool>,
    ca_file: Option<String>,
    sse_c_key_file: Option<String>,
}

impl Bucket {
    /// The section with what this table says instead.
    fn over(self, s3: &S3) -> S3 {
        let own_keys =
            self.access_key.is_some() || self.profile.is_some() || self.anonymous == Some(true);
        // Keys are for the service that they were made for.
        let elsewhere = self.endpoint.as_ref().is_some_and(|e| *e != s3.endpoint);
        let keys = |of_section: &str| match own_keys || elsewhere {
            true => String::new(),
            false => of_section.to_owned(),
        };
        S3 {
            access_key: self.access_key.unwrap_or_else(|| keys(&s3.access_key)),
            secret_key: self.secret_key.unwrap_or_else(|| keys(&s3.secret_key)),
            profile: self.profile.unwrap_or_else(|| keys(&s3.profile)),
            anonymous: self
                .anonymous
                .unwrap_or(s3.anonymous && !own_keys && !elsewhere),
            endpoint: self.endpoint.unwrap_or_else(|| s3.endpoint.clone()),
            region: self.region.unwrap_or_else(|| s3.region.clone()),
            path_style: self.path_style.unwrap_or(s3.path_style),
            requester_pays: self.requester_pays.unwrap_or(s3.requester_pays),
            ca_file: self.ca_file.unwrap_or_else(|| s3.ca_file.clone()),
            sse_c_key_file: self
                .sse_c_key_file
                .unwrap_or_else(|| s3.sse_c_key_file.clone()),
            buckets_file: String::new(),
            sign_payloads: s3.sign_payloads,
        }
    }
}

/// The content of a file that a setting names.
fn read(setting: &str, path: &str) -> Result<Vec<u8>> {
    use std::io::Read;
    let wrong = || format!("{setting} {path}");
    let file = std::fs::File::open(Path::new(path)).with_context(wrong)?;
    let mut out = Vec::new();
    let n = file.take(MAX_FILE + 1).read_to_end(&mut out);
    if n.with_context(wrong)? as u64 > MAX_FILE {
        bail!("{setting} {path}: larger than 4 MiB");
    }
    Ok(out)
}

impl S3 {
    /// What the section says, with the files that it names.
    pub(crate) fn to_layers(&self) -> Result<S3Config> {
        let mut out = self.alone("s3")?;
        if self.buckets_file.is_empty() {
            return Ok(out);
        }
        let setting = "s3.buckets_file";
        let text = String::from_utf8(read(setting, &self.buckets_file)?)
            .map_err(|_| anyhow!("{setting} {}: it is no text", self.buckets_file))?;
        // The message alone: the line may hold a key.
        let tables: BTreeMap<String, Bucket> = toml::from_str(&text).map_err(|e| {
            let before = e.span().and_then(|s| text.get(..s.start));
            let line = before.map_or(0, |b| b.matches('\n').count()) + 1;
            anyhow!(
                "{setting} {} at line {line}: {}",
                self.buckets_file,
                e.message()
            )
        })?;
        for (name, bucket) in tables {
            let at = format!("{setting} {}, [{name}]", self.buckets_file);
            let config = bucket.over(self).alone(&at)?;
            out.buckets.insert(name, config);
        }
        Ok(out)
    }

    /// The same without other buckets. `at` is where it is said, for messages.
    fn alone(&self, at: &str) -> Result<S3Config> {
        if self.access_key.is_empty() != self.secret_key.is_empty() {
            bail!("{at}: access_key and secret_key belong together");
        }
        if self.anonymous && !(self.access_key.is_empty() && self.profile.is_empty()) {
            bail!("{at}: anonymous, and an access key or a profile; leave one of them out");
        }
        let authorities = match self.ca_file.as_str() {
            "" => Vec::new(),
            path => {
                let pem = read(&format!("{at}: ca_file"), path)?;
                ramsift_auth::check_authorities("s3.ca_file", Path::new(path), &pem)?;
                pem
            }
        };
        let customer_key = match self.sse_c_key_file.as_str() {
            "" => None,
            path => {
                if self.endpoint.bare().starts_with("http:") {
                    bail!(
                        "{at}: sse_c_key_file with {}: the key would go over the network as it is; use https",
                        self.endpoint
                    );
                }
                let key = CustomerKey::parse(&read(&format!("{at}: sse_c_key_file"), path)?);
                Some(key.map_err(|e| anyhow!("{at}: sse_c_key_file {path}: {e}"))?)
            }
        };
        Ok(S3Config {
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            access_key: self.access_key.clone(),
            secret_key: self.secret_key.clone(),
            profile: self.profile.clone(),
            anonymous: self.anonymous,
            requester_pays: self.requester_pays,
            authorities,
            customer_key,
            buckets: BTreeMap::new(),
            path_style: self.path_style,
            sign_payloads: self.sign_payloads,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section() -> S3 {
        S3 {
            endpoint: "https://s3.example.org".into(),
            region: "here".into(),
            access_key: "own".into(),
            secret_key: "hunter2".into(),
            ..S3::default()
        }
    }

    fn with(tables: &str) -> Result<S3Config> {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("buckets.toml");
        std::fs::write(&path, tables).expect("write");
        let s3 = S3 {
            buckets_file: path.display().to_string(),
            ..section()
        };
        s3.to_layers()
    }

    #[test]
    fn a_table_says_what_is_otherwise() {
        let c = with(
            "[plain]\nrequester_pays = true\n[keys]\naccess_key = \"a\"\nsecret_key = \"b\"\n[public]\nanonymous = true\n\
             [elsewhere]\nendpoint = \"https://other.example.org\"\npath_style = true\n[profile]\nprofile = \"p\"\n",
        )
        .expect("valid");
        let keys = |b: &str| (c.buckets[b].access_key.as_str(), c.buckets[b].anonymous);
        assert_eq!(keys("plain"), ("own", false));
        assert!(c.buckets["plain"].requester_pays && !c.requester_pays);
        assert_eq!(keys("keys"), ("a", false));
        assert_eq!(keys("public"), ("", true));
        // Keys of one service are not shown to another.
        assert_eq!(keys("elsewhere"), ("", false));
        assert!(c.buckets["elsewhere"].secret_key.is_empty());
        assert_eq!(keys("profile"), ("", false));
        assert_eq!(c.buckets["elsewhere"].region, "here");
        assert_eq!(c.buckets.len(), 5);
    }

    #[test]
    fn what_is_wrong_is_said_without_keys() {
        for (tables, want) in [
            ("[a]\nsecret = \"hunter2\"\n", "line 2"),
            ("[a]\naccess_key = \"hunter2\"\n", "belong together"),
            ("[a]\nanonymous = true\nprofile = \"p\"\n", "leave one"),
            ("[a]\nca_file = \"/nowhere/ca.pem\"\n", "/nowhere/ca.pem"),
            ("[a]\nsse_c_key_file = \"/etc/hostname\"\n", "32 bytes"),
            (
                "[a]\nendpoint = \"http://s3\"\nsse_c_key_file = \"/etc/hostname\"\n",
                "https",
            ),
            ("a = 1\n", "line 1"),
        ] {
            let e = format!("{:#}", with(tables).expect_err(tables));
            assert!(e.contains(want) && !e.contains("hunter2"), "{tables}: {e}");
        }
        // A file without certificates would have the SDK panic.
        let s3 = S3 {
            ca_file: "/etc/hostname".into(),
            ..section()
        };
        let e = format!("{:#}", s3.to_layers().expect_err("no certificate"));
        assert!(e.contains("no certificate"), "{e}");
    }
}
