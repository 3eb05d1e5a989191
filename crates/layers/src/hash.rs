//! BLAKE3 of a whole file from the hashes of its aligned pieces, so that no byte is read twice.
//!
//! BLAKE3 is a binary tree over 1 KiB chunks in which the left subtree is always a full power of
//! two. A piece that starts at a multiple of its power-of-two size is therefore a subtree; merging
//! the pieces' chaining values in order gives what `b3sum` prints. Source: the BLAKE3 paper,
//! section 2.1, and crate `blake3`, module `hazmat`.

use blake3::hazmat::{self, HasherExt, Mode};

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

/// Hash of the whole file from the chaining values of all its pieces, in file order. `None`
/// without pieces. A file of one piece has no subtree: hash it with [`blake3::hash`].
pub fn whole(pieces: &[ChainingValue]) -> Option<blake3::Hash> {
    if pieces.len() < 2 {
        return None;
    }
    let (l, r) = pieces.split_at(left_len(pieces.len()));
    Some(hazmat::merge_subtrees_root(
        &subtree(l),
        &subtree(r),
        Mode::Hash,
    ))
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
    hazmat::merge_subtrees_non_root(&subtree(l), &subtree(r), Mode::Hash)
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
}
