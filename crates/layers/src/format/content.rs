//! Whether a file that no container claims looks like physical memory.
//!
//! Memory of a machine has pages of one repeated byte and pages that are there twice, and its pages differ in
//! entropy: zeros, text, tables, code. Compressed and encrypted files have neither. A few places, spread evenly, tell;
//! that no page at all is of one byte is known only after the last chunk.

use super::ahead::NETWORK;
use crate::FileOffset;
use crate::source::{ByteSource, SourceError};
use futures::{StreamExt, TryStreamExt, stream};
use std::collections::HashSet;

/// A page.
const PAGE: usize = 4096;
/// Places that are looked at, and pages at each.
const PLACES: u64 = 32;
const PAGES_EACH: u64 = 2;
/// The same of a small capture whose every read is a request.
const FEW_PLACES: u64 = 4;
const MORE_EACH: u64 = 8;
/// Bytes of such a capture.
const SMALL: u64 = 64 << 20;
/// Bits per byte from which a page of 4 KiB is as good as random: random ones have 7.95.
const RANDOM_BITS: f64 = 7.6;

/// Why a raw file is no physical memory, if it is none by its first bytes, its length and a sample of its pages.
pub(super) async fn doubt(source: &dyn ByteSource) -> Result<Option<String>, SourceError> {
    let len = source.len();
    // Volumes of ISO 9660 tell what they are at 32 KiB, of btrfs and ReiserFS at 64 KiB.
    let head = readable(source.head(68 << 10).await)?;
    let tail = match len.checked_sub(512) {
        Some(at) => readable(source.read_vec(FileOffset(at), 512).await)?,
        None => Vec::new(),
    };
    if let Some(what) = super::known::stream(&head, &tail) {
        return Ok(Some(format!("it begins as {what} does")));
    }
    if len < PAGE as u64 {
        return Ok(Some(format!("{len} bytes are less than a page")));
    }
    let pages = sample(source).await?;
    let random = pages.iter().filter(|p| bits(p) >= RANDOM_BITS).count();
    let distinct: HashSet<&[u8]> = pages.iter().map(Vec::as_slice).collect();
    let repeats = distinct.len() < pages.len();
    if !repeats && !pages.is_empty() && random * 10 >= pages.len() * 9 {
        return Ok(Some(format!(
            "{random} of {} pages looked at are of even entropy, as in compressed or encrypted files, and none is there twice",
            pages.len()
        )));
    }
    Ok(None)
}

/// What was read; nothing where the medium failed: its bad places are told when they are scanned, and say nothing here.
pub(super) fn readable(read: Result<Vec<u8>, SourceError>) -> Result<Vec<u8>, SourceError> {
    match read {
        Err(SourceError::Medium { .. }) => Ok(Vec::new()),
        r => r,
    }
}

/// Whole pages at places spread over the file, each once.
async fn sample(source: &dyn ByteSource) -> Result<Vec<Vec<u8>>, SourceError> {
    let pages = source.len() / PAGE as u64;
    let small = source.coalesce_distance() >= NETWORK && source.len() <= SMALL;
    let (places, each) = match small {
        true => (FEW_PLACES, MORE_EACH),
        false => (PLACES, PAGES_EACH),
    };
    let step = (pages / places).max(each);
    let places = (0..places).map(|i| i * step).filter(|first| *first < pages);
    let reads = places.map(|first| async move {
        let n = each.min(pages - first) as usize * PAGE;
        readable(source.read_vec(FileOffset(first * PAGE as u64), n).await)
    });
    let read: Vec<Vec<u8>> = stream::iter(reads).buffered(8).try_collect().await?;
    Ok(read
        .iter()
        .flat_map(|r| r.chunks_exact(PAGE))
        .map(<[u8]>::to_vec)
        .collect())
}

/// Entropy of a page in bits per byte.
fn bits(page: &[u8]) -> f64 {
    let mut counts = [0u32; 256];
    for b in page {
        counts[usize::from(*b)] += 1;
    }
    let n = page.len() as f64;
    counts
        .iter()
        .filter(|c| **c > 0)
        .map(|c| {
            let p = f64::from(*c) / n;
            -p * p.log2()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::RamSource;

    async fn doubt_of(bytes: Vec<u8>) -> Option<String> {
        doubt(&RamSource::new("x", bytes)).await.expect("readable")
    }

    /// Bytes that no one can tell from random ones: BLAKE3's output stream.
    fn noise(len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut out);
        out
    }

    #[tokio::test]
    async fn noise_is_no_memory_and_memory_with_some_noise_is() {
        assert!(
            doubt_of(noise(8 << 20))
                .await
                .expect("doubt")
                .contains("entropy")
        );
        let mut half = noise(8 << 20);
        half[4 << 20..].fill(0);
        assert_eq!(doubt_of(half).await, None);
        let text: Vec<u8> = b"Jan  2 03:04:05 web01 sshd[1]: hello\n".repeat(4000);
        assert_eq!(doubt_of(text).await, None);
        assert!(
            doubt_of(vec![0; 100])
                .await
                .expect("doubt")
                .contains("less than a page")
        );
        let mut disk = vec![0; 1 << 20];
        disk[512..520].copy_from_slice(b"EFI PART");
        assert!(doubt_of(disk).await.expect("doubt").contains("GPT"));
    }
}
