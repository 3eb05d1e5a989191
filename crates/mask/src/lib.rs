//! URLs whose passwords and tokens show nowhere: not in the configuration that is printed, not in logs, not in errors.
//!
//! ```text
//! scheme://user:password@host:port/path?key=value&heartbeat=10#fragment
//! scheme://user:***@host:port/path?key=***&heartbeat=10#***
//! ```
//!
//! What is shown may be wrong as a URL: people forget the scheme, or write a password as it is, with `/`, `?` and `@` in
//! it. Where it can't be told what is secret, more is masked, never less.
//!
//! Source: RFC 3986, section 3.2.1 (userinfo), which says that applications should not render it.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// What stands for a secret.
const MASK: &str = "***";

/// Parameters whose values are no secrets: those of brokers and of Redis.
const HARMLESS: &[&str] = &[
    "auth_mechanism",
    "channel_max",
    "connection_timeout",
    "frame_max",
    "heartbeat",
    "protocol",
];

/// Shorter values are not looked for in other text: they stand in every second word.
const SHORTEST: usize = 3;

/// A URL that may hold a password or a token. Displayed, debugged and serialised it is masked; only [`MaskedUrl::reveal`]
/// gives it as it is.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct MaskedUrl(String);

impl MaskedUrl {
    /// As it is, for who connects there.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Host, port and path, which hold no secret.
    pub fn place(&self) -> &str {
        self.parts().place
    }

    /// Scheme, host, port and path, for libraries that have no use for the rest and may log it.
    pub fn bare(&self) -> String {
        let p = self.parts();
        format!("{}{}", p.scheme, p.place)
    }

    /// Other people's words about this URL, such as a library's error, without its secrets: the URL itself, its password
    /// (as it is written and as it is meant) and the values of its parameters are masked wherever they stand.
    pub fn scrub(&self, text: &str) -> String {
        let mut out = text.to_owned();
        if self.0.is_empty() {
            return out;
        }
        out = out.replace(&self.0, &self.to_string());
        for secret in self.parts().secrets() {
            for s in [secret.to_owned(), decoded(secret)] {
                if s.len() >= SHORTEST {
                    out = out.replace(&s, MASK);
                }
            }
        }
        out
    }

    fn parts(&self) -> Parts<'_> {
        Parts::of(&self.0)
    }
}

/// A URL in parts. All but the scheme may be missing.
#[derive(Debug)]
struct Parts<'a> {
    /// With `://`.
    scheme: &'a str,
    /// Before the last `@`.
    user: Option<&'a str>,
    /// Host, port and path.
    place: &'a str,
    query: Option<&'a str>,
    fragment: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn of(url: &'a str) -> Self {
        let at = url.find("://").map_or(0, |at| at + "://".len());
        let (scheme, rest) = url.split_at(at);
        let (user, rest) = match rest.rsplit_once('@') {
            Some((user, rest)) => (Some(user), rest),
            None => (None, rest),
        };
        let (rest, fragment) = match rest.split_once('#') {
            Some((rest, f)) => (rest, Some(f)),
            None => (rest, None),
        };
        let (place, query) = match rest.split_once('?') {
            Some((place, q)) => (place, Some(q)),
            None => (rest, None),
        };
        Self {
            scheme,
            user,
            place,
            query,
            fragment,
        }
    }

    /// The user's name, where it is told from the password.
    fn name(&self) -> Option<&'a str> {
        let (name, _) = self.user?.split_once(':')?;
        (!name.contains(['/', '?', '#'])).then_some(name)
    }

    /// All that is masked.
    fn secrets(&self) -> Vec<&'a str> {
        let mut out = Vec::new();
        if let Some(user) = self.user {
            out.push(match self.name() {
                Some(name) => &user[name.len() + 1..],
                None => user,
            });
        }
        for pair in self.query.into_iter().flat_map(|q| q.split('&')) {
            match pair.split_once('=') {
                Some((k, _)) if HARMLESS.contains(&k) => {}
                Some((_, v)) => out.push(v),
                None => out.push(pair),
            }
        }
        out.extend(self.fragment);
        out
    }
}

/// With `%41` as `A`; what is no such escape stays.
fn decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&b, tail)) = rest.split_first() {
        let escape = tail.get(..2).filter(|_| b == b'%');
        let value = escape
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(value.unwrap_or(b));
        rest = if value.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl fmt::Display for MaskedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let p = self.parts();
        f.write_str(p.scheme)?;
        match (p.user, p.name()) {
            (None, _) => {}
            (Some(_), Some(name)) => write!(f, "{name}:{MASK}@")?,
            // A token alone, or one can't tell.
            (Some(_), None) => write!(f, "{MASK}@")?,
        }
        f.write_str(p.place)?;
        for (i, pair) in p.query.into_iter().flat_map(|q| q.split('&')).enumerate() {
            f.write_str(if i == 0 { "?" } else { "&" })?;
            match pair.split_once('=') {
                Some((k, v)) if HARMLESS.contains(&k) => write!(f, "{k}={v}")?,
                Some((k, _)) => write!(f, "{k}={MASK}")?,
                None => f.write_str(MASK)?,
            }
        }
        match p.fragment {
            Some(_) => write!(f, "#{MASK}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for MaskedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl From<String> for MaskedUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl From<&str> for MaskedUrl {
    fn from(url: &str) -> Self {
        Self(url.to_owned())
    }
}

impl From<&String> for MaskedUrl {
    fn from(url: &String) -> Self {
        Self(url.clone())
    }
}

impl Serialize for MaskedUrl {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MaskedUrl {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(url: &str) -> String {
        MaskedUrl::from(url).to_string()
    }

    #[test]
    fn what_is_no_secret_is_shown() {
        for url in [
            "",
            "http://127.0.0.1:7400",
            "https://[::1]:7400/path",
            "s3://bucket/prefix",
            "amqp://broker:5672/%2f?heartbeat=10&frame_max=8192",
            "ramsift-results",
            "127.0.0.1:7400",
        ] {
            assert_eq!(shown(url), url);
        }
    }

    #[test]
    fn secrets_are_masked_however_they_are_written() {
        for (url, masked) in [
            (
                "amqp://me:hunter2@broker:5672/%2f",
                "amqp://me:***@broker:5672/%2f",
            ),
            ("redis://:hunter2@redis:6379/0", "redis://:***@redis:6379/0"),
            ("https://hunter2@host/", "https://***@host/"),
            ("https://me:@host", "https://me:***@host"),
            // Not escaped, as people write them.
            ("amqp://me:hunter2@hunter2@broker", "amqp://me:***@broker"),
            (
                "amqp://me:hunter2/hunter2?hunter2#hunter2@broker",
                "amqp://me:***@broker",
            ),
            // Without a scheme.
            ("me:hunter2@broker:5672", "me:***@broker:5672"),
            (
                "https://host/?token=hunter2&heartbeat=10",
                "https://host/?token=***&heartbeat=10",
            ),
            ("https://host?hunter2", "https://host?***"),
            (
                "https://host/?X-Amz-Signature=hunter2#hunter2",
                "https://host/?X-Amz-Signature=***#***",
            ),
            // An @ behind the query: the whole front may be a password.
            ("https://host/?token=hunter2&mail=a:b@c", "https://***@c"),
        ] {
            assert_eq!(shown(url), masked);
            let url = MaskedUrl::from(url);
            assert!(!format!("{url:?}").contains("hunter2"));
            let json = serde_json::to_string(&url).expect("JSON");
            assert!(!json.contains("hunter2"), "{json}");
        }
    }

    #[test]
    fn it_is_read_and_revealed_as_it_is() {
        let url = "amqp://me:hunter2@broker/?token=x";
        let read: MaskedUrl = serde_json::from_value(url.into()).expect("a string");
        assert_eq!(read.reveal(), url);
        assert_eq!(
            (read.place(), read.bare().as_str()),
            ("broker/", "amqp://broker/")
        );
        assert!(!read.is_empty() && MaskedUrl::default().is_empty());
    }

    #[test]
    fn errors_of_others_are_scrubbed() {
        let url = MaskedUrl::from("redis://me:hun%40ter2@redis:6379/?token=s3cr3t");
        let said = url.scrub(
            "can't parse redis://me:hun%40ter2@redis:6379/?token=s3cr3t: hun@ter2 was refused, s3cr3t too, at redis",
        );
        assert_eq!(
            said,
            "can't parse redis://me:***@redis:6379/?token=***: *** was refused, *** too, at redis"
        );
        // One letter is no secret that could be told from text.
        assert_eq!(MaskedUrl::from("redis://:a@h").scrub("a an a"), "a an a");
        assert_eq!(MaskedUrl::default().scrub("text"), "text");
    }
}
