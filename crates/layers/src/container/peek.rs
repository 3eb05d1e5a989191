//! What a container holds, by its first bytes alone.

use super::sink::fill;
use super::unpack::{decoder, stripped};
use super::{Kind, MAX_DEPTH};
use crate::format::HEAD_LEN;
use std::io::{Cursor, Read};

/// The first thing in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inside {
    /// The kinds, the innermost first.
    pub what: String,
    /// What it is called.
    pub name: String,
    /// Its first bytes, as far as the container's first bytes have them.
    pub head: Vec<u8>,
    /// Whether there may be more in the container.
    pub archive: bool,
}

/// Looks into a container of which `head` are the first bytes. `None` where it is none.
pub fn peek(head: &[u8], name: &str) -> Option<Inside> {
    let mut kind = Kind::of(head)?;
    let (mut head, mut name) = (head.to_vec(), name.to_owned());
    let (mut chain, mut archive) = (Vec::new(), false);
    for _ in 0..MAX_DEPTH {
        chain.insert(0, kind.name());
        archive |= kind.is_archive();
        match kind {
            Kind::Tar => {
                let mut all = tar::Archive::new(Cursor::new(head));
                let mut entries = all.entries().ok()?;
                let mut first =
                    entries.find_map(|e| e.ok().filter(|e| e.header().entry_type().is_file()));
                match &mut first {
                    Some(e) => {
                        name = String::from_utf8_lossy(&e.path_bytes()).into_owned();
                        head = some(e);
                    }
                    None => {
                        head = Vec::new();
                    }
                }
            }
            Kind::Zip => {
                (name, head) = first_of_zip(&head);
            }
            _ => {
                name = stripped(&name);
                let r = decoder(kind, Box::new(Cursor::new(head)));
                head = match r {
                    Ok(Some(mut r)) => some(r.as_mut()),
                    _ => Vec::new(),
                };
            }
        }
        match Kind::of(&head) {
            Some(k) => kind = k,
            None => break,
        }
    }
    Some(Inside {
        what: chain.join(" in "),
        name,
        head,
        archive,
    })
}

/// As much as there is.
fn some(from: &mut dyn Read) -> Vec<u8> {
    let mut out = vec![0; HEAD_LEN];
    let (n, _) = fill(from, &mut out);
    out.truncate(n);
    out
}

/// Name and first bytes of the first member, by its local header.
fn first_of_zip(head: &[u8]) -> (String, Vec<u8>) {
    let half = |at: usize| {
        let b = head.get(at..at + 2)?.try_into().ok()?;
        Some(usize::from(u16::from_le_bytes(b)))
    };
    let parsed = || {
        let (method, name_len, extra) = (half(8)?, half(26)?, half(28)?);
        let name = head.get(30..30 + name_len)?;
        let data = head.get(30 + name_len + extra..)?;
        let data = match method {
            0 => data.to_vec(),
            8 => some(&mut flate2::bufread::DeflateDecoder::new(data)),
            _ => Vec::new(),
        };
        Some((String::from_utf8_lossy(name).into_owned(), data))
    };
    parsed().unwrap_or_default()
}
