//! The object manager's names: directories, symbolic links, and the letters of drives.
//!
//! ```text
//! _OBJECT_DIRECTORY: 37 chains of _OBJECT_DIRECTORY_ENTRY -> object
//! \GLOBAL??\C: is a link to \Device\HarddiskVolume3
//! ```
//!
//! Sources: the public types `_OBJECT_DIRECTORY`, `_OBJECT_DIRECTORY_ENTRY`, `_OBJECT_SYMBOLIC_LINK`.

use super::objects::{ObjectTypes, name};
use super::{Kernel, WindowsError};
use std::collections::HashSet;

/// Chains of a directory.
const BUCKETS: u64 = 37;
/// Objects of a directory at most.
const MOST: usize = 1 << 16;

/// The objects in a directory, with their names.
pub(super) fn directory(
    k: &Kernel<'_>,
    types: &ObjectTypes,
    va: u64,
) -> Result<Vec<(String, u64)>, WindowsError> {
    let (mut out, mut seen) = (Vec::new(), HashSet::new());
    let buckets = k.object("_OBJECT_DIRECTORY", va).at("HashBuckets")?;
    for i in 0..BUCKETS {
        let mut at = k.space.u64(buckets.wrapping_add(i * 8))?;
        while at != 0 && seen.insert(at) && out.len() < MOST {
            let e = k.object("_OBJECT_DIRECTORY_ENTRY", at);
            let body = e.number("Object")?;
            if let Ok(Some(own)) = name(k, &types.header(k, body)) {
                out.push((own, body));
            }
            at = e.number("ChainLink")?;
        }
    }
    Ok(out)
}

/// Letters of drives and the devices that they stand for.
#[derive(Clone, Debug, Default)]
pub(super) struct Drives(Vec<(String, String)>);

impl Drives {
    /// Those that all users of the machine see. Why they are not known is a doubt.
    pub(super) fn new(k: &Kernel<'_>, doubts: &mut Vec<String>) -> Self {
        match letters(k) {
            Ok(all) => Self(all),
            Err(e) => {
                doubts.push(format!("the letters of drives are not known: {e}"));
                Self::default()
            }
        }
    }

    /// `\Device\HarddiskVolume3\Windows` as `/C:/Windows`; other paths with slashes.
    pub(super) fn place(&self, path: &str) -> String {
        let own = self.0.iter().find_map(|(letter, device)| {
            let rest = path.get(device.len()..)?;
            let fits = path.get(..device.len())?.eq_ignore_ascii_case(device)
                && (rest.is_empty() || rest.starts_with('\\'));
            fits.then(|| format!("/{letter}{rest}"))
        });
        let out = own.unwrap_or_else(|| {
            let path = path.strip_prefix("\\??\\").unwrap_or(path);
            format!("/{}", path.trim_start_matches('\\'))
        });
        out.replace('\\', "/")
    }
}

fn letters(k: &Kernel<'_>) -> Result<Vec<(String, String)>, WindowsError> {
    let types = ObjectTypes::new(k)?;
    let root = k.global("ObpRootDirectoryObject")?;
    let mut out = Vec::new();
    for (own, va) in directory(k, &types, root)? {
        if own != "GLOBAL??" {
            continue;
        }
        for (letter, link) in directory(k, &types, va)? {
            let is_letter = letter.len() == 2 && letter.ends_with(':');
            let target = k.object("_OBJECT_SYMBOLIC_LINK", link);
            // A link may be of a kind that a function answers; then there is no text.
            if let Ok(target) = target.unicode("LinkTarget")
                && is_letter
                && target.starts_with("\\Device\\")
            {
                out.push((letter, target));
            }
        }
    }
    // Of two letters of one device the first counts.
    out.sort();
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_begin_with_the_letter_of_their_drive() {
        let d = Drives(vec![
            ("C:".into(), "\\Device\\HarddiskVolume3".into()),
            ("D:".into(), "\\Device\\HarddiskVolume31".into()),
        ]);
        let of = |p: &str| d.place(p);
        assert_eq!(of("\\Device\\HarddiskVolume3\\Windows\\a"), "/C:/Windows/a");
        assert_eq!(of("\\Device\\HarddiskVolume31\\b"), "/D:/b");
        assert_eq!(
            of("\\Device\\HarddiskVolume4\\b"),
            "/Device/HarddiskVolume4/b"
        );
        assert_eq!(of("\\??\\C:\\Users\\x"), "/C:/Users/x");
        assert_eq!(of("\\Device\\HarddiskVolume3"), "/C:");
    }
}
