//! Tokens that services and clients share.
//!
//! ```text
//! # comment
//! worker:6f1c…          the first of a file is the one that a client sends
//! worker:90ab…          one that is on its way in or out
//! client:55d2…
//! ```
//!
//! Only hashes are kept, and those are compared in constant time.

use crate::roles::Role;
use blake3::Hash;

/// Characters of a token at least: 16 of hexadecimal are 64 bits.
const SHORTEST: usize = 16;

/// A line of a file.
fn lines(text: &str) -> impl Iterator<Item = Result<(Role, &str), String>> {
    let numbered = text.lines().map(str::trim).enumerate();
    numbered
        .filter(|(_, l)| !l.is_empty() && !l.starts_with('#'))
        .map(|(n, line)| {
            // The line itself stays out of errors.
            let at = n + 1;
            let roles = "use worker:TOKEN, client:TOKEN or coordinator:TOKEN";
            let (role, token) = line
                .split_once(':')
                .and_then(|(role, token)| Some((Role::named(role.trim())?, token.trim())))
                .ok_or_else(|| format!("line {at} begins with no role: {roles}"))?;
            if token.len() < SHORTEST {
                return Err(format!(
                    "line {at}: the token has fewer than {SHORTEST} characters; make one with openssl rand -hex 32"
                ));
            }
            if !token.chars().all(|c| c.is_ascii_graphic()) {
                return Err(format!("line {at}: the token has spaces or characters that are not ASCII"));
            }
            Ok((role, token))
        })
}

/// The tokens that a listener takes.
#[derive(Debug)]
pub(crate) struct Tokens(Vec<(Role, Hash)>);

impl Tokens {
    /// Those of some files.
    pub(crate) fn parse(texts: &[Vec<u8>]) -> Result<Self, String> {
        let mut all = Vec::new();
        for text in texts {
            let text = std::str::from_utf8(text).map_err(|_| "not text".to_owned())?;
            for line in lines(text) {
                let (role, token) = line?;
                all.push((role, blake3::hash(token.as_bytes())));
            }
        }
        if all.is_empty() {
            return Err("no token in it".into());
        }
        Ok(Self(all))
    }

    /// The roles of a token.
    pub(crate) fn roles(&self, token: &str) -> Vec<Role> {
        let given = blake3::hash(token.as_bytes());
        let mut out = Vec::new();
        for (role, hash) in &self.0 {
            // Hashes compare in constant time, and all are compared.
            if *hash == given {
                out.push(*role);
            }
        }
        out
    }
}

/// The token that a client sends: the first of its file.
pub(crate) fn first(text: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(text).map_err(|_| "not text".to_owned())?;
    let (_, token) = lines(text).next().ok_or("no token in it")??;
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const W: &str = "worker-token-0123456789";
    const C: &str = "client:token:0123456789";

    #[test]
    fn each_token_has_its_roles() {
        let one = format!("# workers\n\n worker: {W}\nworker:another-0123456789\n");
        let two = format!("client:{C}\r\ncoordinator:{W}");
        let t = Tokens::parse(&[one.clone().into(), two.clone().into()]).expect("good");
        assert_eq!(t.roles(W), [Role::Worker, Role::Coordinator]);
        assert_eq!(t.roles("another-0123456789"), [Role::Worker]);
        assert_eq!(t.roles(C), [Role::Client]);
        for wrong in ["", "worker", &W[1..], "worker-token-0123456780"] {
            assert!(t.roles(wrong).is_empty(), "{wrong}");
        }
        assert_eq!(first(one.as_bytes()).expect("good"), W);
        assert_eq!(first(two.as_bytes()).expect("good"), C);
    }

    #[test]
    fn what_is_wrong_is_said_without_the_token() {
        for (text, says) in [
            ("", "no token"),
            ("# nothing\n", "no token"),
            ("0123456789secret6789", "line 1 begins with no role"),
            (
                "\nanyone:0123456789secret6789",
                "line 2 begins with no role",
            ),
            ("worker:secret", "fewer than 16"),
            ("worker:0123456789secrét6789", "not ASCII"),
            ("worker:0123456789 secret6789", "not ASCII"),
        ] {
            let e = Tokens::parse(&[text.into()]).expect_err(text);
            assert!(e.contains(says) && !e.contains("secr"), "{text}: {e}");
            assert!(first(text.as_bytes()).is_err(), "{text}");
        }
        assert!(Tokens::parse(&[vec![0xff]]).is_err());
    }
}
