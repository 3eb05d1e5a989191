//! BLAKE3 of a whole file from the hashes of its aligned pieces, so that no byte is read twice.
//!
//! BLAKE3 is a binary tree over 1 KiB chunks in which the left subtree is always a full power of
//! two. A piece that starts at a multiple of its power-of-two size is therefore a subtree; merging
//! the pieces' chaining values in order gives what `b3sum` prints. Source: the BLAKE3 paper,
//! section 2.1, and crate `blake3`, module `hazmat`.

use blake3::CHUNK_LEN;
use blake3::hazmat::{self, HasherExt, Mode};
use std::ops::Range;

/// A chaining value: the hash of a subtree that is not the root.
pub type ChainingValue = [u8; 32];

/// Chaining value of an aligned piece of a file: `data` begins at `offset` of it.
///
/// `data` must not be empty, and `offset` must be a multiple of the piece size.
pub fn piece(offset: u64, data: &[u8]) -> ChainingValue {
    let mut h = blake3::Hasher::new();
    h.set_input_offset(offset);
    h.update(data);
    h.finalize_non_root()
}

/// Hashes one piece of a file as its bytes come: what the report on the piece says.
#[derive(Clone, Debug)]
pub struct PieceHasher {
    hasher: blake3::Hasher,
    whole: bool,
}

impl PieceHasher {
    /// For the bytes of `piece` of a file of `file_len` bytes. `None` when they are no subtree of
    /// the file's tree, so that their hash would be of no use.
    pub fn new(piece: &Range<u64>, file_len: u64) -> Option<Self> {
        let whole = *piece == (0..file_len);
        if !(whole || is_subtree(piece, file_len)) {
            return None;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(piece.start);
        Some(Self { hasher, whole })
    }

    /// The next bytes of the piece.
    pub fn update(&mut self, data: &[u8]) {
        self.hasher.update(data);
    }

    /// In hex: the file's hash where the piece is all of it, else the piece's chaining value. All
    /// bytes of the piece must have come.
    pub fn finish(self) -> String {
        let hash = if self.whole {
            self.hasher.finalize()
        } else {
            blake3::Hash::from_bytes(self.hasher.finalize_non_root())
        };
        hash.to_hex().to_string()
    }
}

/// Whether a piece is a subtree below the root: aligned to its size, which is a power of two
/// unless the file ends there.
fn is_subtree(piece: &Range<u64>, file_len: u64) -> bool {
    let len = piece.end.saturating_sub(piece.start);
    let full = len.is_power_of_two() && len >= CHUNK_LEN as u64;
    let last = len > 0 && piece.start > 0 && piece.end == file_len;
    (full || last)
        && piece.end <= file_len
        && piece.start.is_multiple_of(CHUNK_LEN as u64)
        && hazmat::max_subtree_len(piece.start).is_none_or(|most| len <= most)
}

/// Chaining value of two neighbouring subtrees, of which the left is the larger or as large.
pub fn parent(left: &ChainingValue, right: &ChainingValue) -> ChainingValue {
    hazmat::merge_subtrees_non_root(left, right, Mode::Hash)
}

/// Hash of a file from the two subtrees below its root.
pub fn root(left: &ChainingValue, right: &ChainingValue) -> blake3::Hash {
    hazmat::merge_subtrees_root(left, right, Mode::Hash)
}

/// Hash of the whole file from the chaining values of all its pieces, in file order. `None`
/// without pieces. A file of one piece has no subtree: hash it with [`blake3::hash`].
pub fn whole(pieces: &[ChainingValue]) -> Option<blake3::Hash> {
    if pieces.len() < 2 {
        return None;
    }
    let (l, r) = pieces.split_at(left_len(pieces.len()));
    Some(root(&subtree(l), &subtree(r)))
}

/// The left subtree takes the largest power of two that leaves something to the right.
fn left_len(n: usize) -> usize {
    n.next_power_of_two() / 2
}

fn subtree(pieces: &[ChainingValue]) -> ChainingValue {
    if pieces.len() == 1 {
        return pieces[0];
    }
    let (l, r) = pieces.split_at(left_len(pieces.len()));
    parent(&subtree(l), &subtree(r))
}

/// Zeros that are hashed at a time: they stay in a processor's cache.
static ZEROS: [u8; 1 << 18] = [0; 1 << 18];

impl PieceHasher {
    /// Adds zeros, as [`update`](Self::update) would; BLAKE3 counts its leaves, so zeros at every place of a file have a hash of
    /// their own.
    pub fn update_zeros(&mut self, mut len: u64) {
        while len > 0 {
            let n = len.min(ZEROS.len() as u64);
            self.update(&ZEROS[..usize::try_from(n).unwrap_or(ZEROS.len())]);
            len -= n;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_pieces_give_the_hash_of_the_whole() {
        for len in [4097usize, 8192, 12_288, 12_289, 65_536, 70_001] {
            let data: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
            let pieces: Vec<_> = data
                .chunks(4096)
                .enumerate()
                .map(|(i, c)| piece(i as u64 * 4096, c))
                .collect();
            assert_eq!(whole(&pieces), Some(blake3::hash(&data)), "{len}");
        }
        assert_eq!(whole(&[]), None);
    }

    fn hash_of(data: &[u8], piece: Range<u64>) -> Option<String> {
        let mut h = PieceHasher::new(&piece, data.len() as u64)?;
        let bytes = &data[piece.start as usize..piece.end as usize];
        bytes.chunks(1000).for_each(|c| h.update(c));
        Some(h.finish())
    }

    #[test]
    fn zeros_hash_as_if_they_had_been_read() {
        for (piece, len) in [
            (0..3 << 20, 3 << 20),
            (1 << 20..2 << 20, 8 << 20),
            (4096..5000, 5000),
        ] {
            let mut zeros = PieceHasher::new(&piece, len).expect("a piece");
            zeros.update_zeros(piece.end - piece.start);
            let all = vec![0; usize::try_from(len).expect("small")];
            assert_eq!(Some(zeros.finish()), hash_of(&all, piece));
        }
    }

    #[test]
    fn a_piece_says_what_its_place_in_the_file_calls_for() {
        let data: Vec<u8> = (0..20_000).map(|i| (i % 251) as u8).collect();
        let whole = blake3::hash(&data).to_hex().to_string();
        assert_eq!(hash_of(&data, 0..20_000), Some(whole));
        let cv = |r: Range<u64>| {
            let h = hash_of(&data, r).expect("a subtree");
            *blake3::Hash::from_hex(h).expect("hex").as_bytes()
        };
        // 20 chunks: 16 and 4, the last of which is short.
        let left = parent(&cv(0..8192), &cv(8192..16_384));
        assert_eq!(left, cv(0..16_384));
        assert_eq!(root(&left, &cv(16_384..20_000)), blake3::hash(&data));
        // Not to the end, across a larger subtree's border, off the grid, past the end, empty.
        for r in [0..20_480, 0..3072, 4096..12_288, 512..1536, 5..5, 0..12_288] {
            assert_eq!(hash_of(&data, r.clone()), None, "{r:?}");
        }
        assert!(PieceHasher::new(&(16_384..20_001), 20_000).is_none());
    }
}
