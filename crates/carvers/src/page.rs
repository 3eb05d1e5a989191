//! The sparse test: pages of one repeated byte hold no evidence.

/// Pages of the image, and of the sparse ranges that a scan reports.
pub(crate) const PAGE: usize = 4096;

/// The byte that fills the whole page, if it is one byte repeated.
pub fn constant_page(page: &[u8]) -> Option<u8> {
    let (&first, rest) = page.split_first()?;
    // The first few bytes tell most pages apart without a pass over them.
    if rest.iter().take(16).any(|&b| b != first) {
        return None;
    }
    let same = page
        .chunks(512)
        .all(|c| c.iter().fold(0u8, |a, &b| a | (b ^ first)) == 0);
    same.then_some(first)
}

/// True when a page of the image in this range of `bytes`, which begin at `offset`, looks lost: it is
/// one repeated byte, and the run of that byte begins or ends with the page. A run that the content
/// has by itself hardly ever does.
pub(crate) fn lost_page(bytes: &[u8], range: std::ops::Range<usize>, offset: u64) -> bool {
    let cut = ((offset + range.start as u64) % PAGE as u64) as usize;
    let mut p = range.start + (PAGE - cut) % PAGE;
    while p + PAGE <= range.end {
        if let Some(b) = constant_page(&bytes[p..p + PAGE]) {
            let before = p.checked_sub(1).map(|i| bytes[i]);
            let edges = [before, bytes.get(p + PAGE).copied()];
            if edges.into_iter().flatten().any(|e| e != b) {
                return true;
            }
        }
        p += PAGE;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_keeps_to_pages_is_a_lost_page() {
        let mut b = vec![7u8; 5 * PAGE];
        b[PAGE..2 * PAGE].fill(0);
        assert!(lost_page(&b, 0..b.len(), 0));
        // The same run elsewhere, and one over several pages.
        assert!(!lost_page(&b, 0..b.len(), 100));
        b[PAGE - 5..3 * PAGE + 9].fill(0);
        assert!(!lost_page(&b, 0..b.len(), 0));
        assert!(!lost_page(&b[..100], 0..100, 0));
    }

    #[test]
    fn one_repeated_byte() {
        assert_eq!(constant_page(&[0; 4096]), Some(0));
        assert_eq!(constant_page(&[0xff; 100]), Some(0xff));
        assert_eq!(constant_page(&[]), None);
        for at in [0, 1, 17, 511, 512, 4095] {
            let mut p = [7u8; 4096];
            p[at] = 8;
            assert_eq!(constant_page(&p), None, "{at}");
        }
    }
}
