//! Bounded reads of physical memory.

use ramsift_layers::PhysAddr;
use ramsift_layers::translate::{PhysError, PhysRead};

/// Read in pieces of this size, so that one page that is missing costs one page.
const PIECE: usize = 64 << 10;
const PAGE: usize = 4 << 10;

/// `len` bytes from `pa`, or the error of the first piece that the image lacks.
pub(crate) fn exact(mem: &dyn PhysRead, pa: PhysAddr, len: usize) -> Result<Vec<u8>, PhysError> {
    if pa.checked_add(len as u64).is_none() {
        return Err(PhysError::NotInImage { pa });
    }
    // Grows as it is read: a hostile length ends at the image's end, not in a huge allocation.
    let mut out = Vec::with_capacity(len.min(PIECE));
    while out.len() < len {
        let at = out.len();
        let n = PIECE.min(len - at);
        out.resize(at + n, 0);
        mem.read_phys(pa.saturating_add(at as u64), &mut out[at..])?;
    }
    Ok(out)
}

/// `len` bytes from `pa`; pages that the image lacks read as zeros.
pub(crate) fn window(mem: &dyn PhysRead, pa: PhysAddr, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    fill(mem, pa, &mut out, PIECE);
    out
}

/// Up to `most` bytes that end at `end`: as many as the image has in one piece.
pub(crate) fn before(mem: &dyn PhysRead, end: PhysAddr, most: usize) -> Vec<u8> {
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    let (mut at, mut left, mut step) = (end.0, most as u64, PIECE as u64);
    while at > 0 && left > 0 {
        // Down to the next multiple of the step.
        let len = ((at - 1) % step + 1).min(left);
        let mut piece = vec![0; usize::try_from(len).unwrap_or(0)];
        if mem.read_phys(PhysAddr(at - len), &mut piece).is_ok() {
            (at, left) = (at - len, left - len);
            pieces.push(piece);
        } else if step > PAGE as u64 {
            step = PAGE as u64;
        } else {
            break;
        }
    }
    pieces.reverse();
    pieces.concat()
}

/// Reads in pieces that end at multiples of `step`, and in pages where one fails.
fn fill(mem: &dyn PhysRead, mut pa: PhysAddr, mut out: &mut [u8], step: usize) {
    while !out.is_empty() {
        let in_step = usize::try_from(pa.0 % step as u64).unwrap_or(0);
        let (piece, rest) = out.split_at_mut((step - in_step).min(out.len()));
        if mem.read_phys(pa, piece).is_err() {
            if step > PAGE {
                fill(mem, pa, piece, PAGE);
            } else {
                piece.fill(0);
            }
        }
        pa = pa.saturating_add(piece.len() as u64);
        out = rest;
    }
}

/// The little-endian `u16` at `at`, if the slice holds it.
pub(crate) fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    b.get(at..)?.first_chunk().map(|c| u16::from_le_bytes(*c))
}

/// The little-endian `u32` at `at`, if the slice holds it.
pub(crate) fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    b.get(at..)?.first_chunk().map(|c| u32::from_le_bytes(*c))
}

/// The little-endian `u64` at `at`, if the slice holds it.
pub(crate) fn u64_at(b: &[u8], at: usize) -> Option<u64> {
    b.get(at..)?.first_chunk().map(|c| u64::from_le_bytes(*c))
}
