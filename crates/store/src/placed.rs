//! Where content lies in the image: what is there already is not stored again.
//!
//! Written as JSON: `[[image offset, bytes], ...]` in the order of the content; `[null, bytes]` is a hole, of which the
//! image has nothing and the content has zeros.

use serde::{Deserialize, Serialize};

/// Places of content, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Placed {
    pieces: Vec<(Option<u64>, u64)>,
}

/// A piece of content that lies in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where in the content.
    pub at: u64,
    /// Where in the image.
    pub image: u64,
    /// Bytes.
    pub len: u64,
}

impl Placed {
    /// Content that lies in one piece.
    pub fn at(image: u64, len: u64) -> Self {
        let mut p = Self::default();
        p.push(image, len);
        p
    }

    /// Adds what follows in the content; neighbours in both become one.
    pub fn push(&mut self, image: u64, len: u64) {
        match self.pieces.last_mut() {
            _ if len == 0 => {}
            Some((Some(at), n)) if at.checked_add(*n) == Some(image) => *n += len,
            _ => self.pieces.push((Some(image), len)),
        }
    }

    /// Adds bytes of the content that the image lacks.
    pub fn hole(&mut self, len: u64) {
        match self.pieces.last_mut() {
            _ if len == 0 => {}
            Some((None, n)) => *n += len,
            _ => self.pieces.push((None, len)),
        }
    }

    /// Bytes, holes included.
    pub fn size(&self) -> u64 {
        self.pieces.iter().fold(0, |n, p| n.saturating_add(p.1))
    }

    /// What of it lies in the image.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        let mut at = 0_u64;
        self.pieces.iter().filter_map(move |&(image, len)| {
            let from = at;
            at = at.saturating_add(len);
            image.map(|image| Piece {
                at: from,
                image,
                len,
            })
        })
    }

    /// As the column `extents` of the artifacts has it.
    pub fn to_json(&self) -> String {
        // Numbers always have a form in JSON.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads what the column has, of content of this size. `None`: it is damaged.
    pub fn parse(json: &str, size: u64) -> Option<Self> {
        let p: Self = serde_json::from_str(json).ok()?;
        let ends =
            |&(image, len): &(Option<u64>, u64)| image.is_none_or(|i| i.checked_add(len).is_some());
        (p.size() == size && p.pieces.iter().all(ends)).then_some(p)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_and_holes_keep_their_place() {
        let mut p = Placed::at(4096, 4096);
        p.push(8192, 100);
        p.hole(0);
        p.hole(50);
        p.hole(46);
        p.push(4096, 10);
        assert_eq!(p.to_json(), "[[4096,4196],[null,96],[4096,10]]");
        assert_eq!(p.size(), 4302);
        let piece = |at, image, len| Piece { at, image, len };
        let all: Vec<Piece> = p.pieces().collect();
        assert_eq!(all, [piece(0, 4096, 4196), piece(4292, 4096, 10)]);
        assert_eq!(Placed::parse(&p.to_json(), 4302), Some(p.clone()));
    }

    #[test]
    fn damage_is_no_place() {
        for (json, size) in [
            ("[[4096,10]]", 11),
            ("[[18446744073709551615,10]]", 10),
            ("[[1,18446744073709551615],[2,18446744073709551615]]", 5),
            ("[[-1,10]]", 10),
            ("[4096,10]", 10),
            ("", 0),
        ] {
            assert_eq!(Placed::parse(json, size), None, "{json}");
        }
    }
}
