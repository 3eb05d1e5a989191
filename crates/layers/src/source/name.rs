//! Names of files as text, whatever bytes they are made of.
//!
//! Linux allows any bytes but NUL and `/` in names; plans, reports and tables hold text. Bytes that are no UTF-8 are
//! written as characters of the last private-use block (U+10FF00 and the byte), which no name has by accident, and read
//! back from it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Where bytes that are no text begin.
const FIRST: u32 = 0x10_ff00;

/// A file's name as text.
pub fn name_of(path: &OsStr) -> String {
    let mut out = String::new();
    for chunk in path.as_bytes().utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(
            chunk
                .invalid()
                .iter()
                .filter_map(|b| char::from_u32(FIRST + u32::from(*b))),
        );
    }
    out
}

/// The file that a name stands for.
pub fn path_of(name: &str) -> PathBuf {
    let mut out = Vec::with_capacity(name.len());
    for c in name.chars() {
        match u32::from(c)
            .checked_sub(FIRST)
            .and_then(|n| u8::try_from(n).ok())
        {
            Some(b) if b >= 0x80 => out.push(b),
            _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_comes_back() {
        for bytes in [
            &b"/a/b.mem"[..],
            "bücher".as_bytes(),
            b"\xff\x80caf\xe9.mem",
            b"\xf0\x9f\x99\x82\xf0",
        ] {
            let name = name_of(OsStr::from_bytes(bytes));
            assert_eq!(path_of(&name).as_os_str().as_bytes(), bytes);
        }
        assert_eq!(name_of(OsStr::new("plain")), "plain");
    }
}
