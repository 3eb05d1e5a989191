//! Blocks of memory in saved states of Hyper-V: pages one by one, each as short as it goes.
//!
//! ```text
//! u32   0xffffffff: the end. 0xfffffffe: a page of a word of 8 bytes, which follows. 0xfffffffd: the same for several pages: the word,
//!       u32 pages. 0xfffffffc: a piece that is no page: u32 its bytes, u32 bytes packed, and these
//!       else: bytes of a packed page, and these. As many as there are bytes: not packed; fewer: Xpress, plain LZ77
//! ```
//!
//! Sources: what the readers of saved states in vmkatz and in P. Beyer's snapshot tools take these marks for; MS-XCA.

use super::xpress;

const PAGE: usize = 4096;
const CUT: &str = "it ends in the middle of a page";
const LONG: &str = "it holds more than it should";

fn u32_at(data: &[u8], at: usize) -> Result<u32, &'static str> {
    let b = data.get(at..).and_then(<[u8]>::first_chunk);
    b.map(|b| u32::from_le_bytes(*b)).ok_or(CUT)
}

/// Unpacks a block; gives how many bytes it holds.
pub(super) fn unpack(data: &[u8], out: &mut [u8]) -> Result<usize, &'static str> {
    let (mut at, mut done) = (0, 0usize);
    while done < out.len() {
        let mark = u32_at(data, at)?;
        at += 4;
        let (len, packed) = match mark {
            0xffff_ffff => break,
            0xffff_fffd | 0xffff_fffe => {
                let word = data.get(at..at + 8).ok_or(CUT)?;
                let pages = if mark == 0xffff_fffd {
                    u32_at(data, at + 8)? as usize
                } else {
                    1
                };
                let len = pages.saturating_mul(PAGE);
                let end = done.checked_add(len).ok_or(LONG)?;
                let to = out.get_mut(done..end).ok_or(LONG)?;
                for part in to.chunks_mut(8) {
                    part.copy_from_slice(&word[..part.len()]);
                }
                at += if mark == 0xffff_fffd { 12 } else { 8 };
                done = end;
                continue;
            }
            0xffff_fffc => {
                let sizes = (u32_at(data, at)? as usize, u32_at(data, at + 4)? as usize);
                at += 8;
                sizes
            }
            n => (PAGE, n as usize),
        };
        if len == 0 || len > PAGE || packed == 0 || packed > len {
            return Err("a page has an impossible length");
        }
        let bytes = data.get(at..at + packed).ok_or(CUT)?;
        let to = out.get_mut(done..done + len).ok_or(LONG)?;
        if packed == len {
            to.copy_from_slice(bytes);
        } else {
            xpress::plain(bytes, to)?;
        }
        at += packed;
        done += len;
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    #[test]
    fn every_mark_is_understood() {
        let word = [1, 2, 3, 4, 5, 6, 7, 8];
        let page = [0x5a; PAGE];
        let block = marks(&[
            &[0xfe, 0xff, 0xff, 0xff],
            &word,
            &[0xfd, 0xff, 0xff, 0xff],
            &[0; 8],
            &[2, 0, 0, 0],
            &[0, 0x10, 0, 0],
            &page,
            // "abc" and a match of 4093 bytes at a distance of 3: flags, the letters, the match.
            &[13, 0, 0, 0, 0xff, 0xff, 0xff, 0x1f],
            b"abc",
            &[0x17, 0x00, 0x0f, 0xff, 0xfa, 0x0f],
            &[0xfc, 0xff, 0xff, 0xff, 5, 0, 0, 0, 5, 0, 0, 0],
            b"hello",
            &[0xff; 4],
        ]);
        let want = [
            word.repeat(512),
            vec![0; 2 * PAGE],
            page.to_vec(),
            b"abc".repeat(1366)[..PAGE].to_vec(),
            b"hello".to_vec(),
        ]
        .concat();
        let mut out = vec![0xee; want.len()];
        assert_eq!(unpack(&block, &mut out), Ok(want.len()));
        assert!(out == want);
        // With room for more it ends at its mark.
        let mut more = vec![0; want.len() + 1];
        assert_eq!(unpack(&block, &mut more), Ok(want.len()));
        for cut in 0..block.len() - 5 {
            let _ = unpack(&block[..cut], &mut out).expect_err("cut");
        }
        assert_eq!(unpack(&block, &mut [0; 2 * PAGE]), Err(LONG));
    }
}
