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

#[cfg(test)]
mod tests {
    use super::*;

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
