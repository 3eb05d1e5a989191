//! Page files: what a system wrote out of memory, in a file beside the capture.
//!
//! Their pages have physical addresses of their own, far above those that a processor can have, and image offsets behind the
//! image's. So whatever reads memory by physical address or by image offset reads a page that was written out as it reads any other.
//!
//! ```text
//! physical    0 ... RAM ...      1 << 60 | number << 48 | place in the page file
//! bytes       [ image's bytes ][ page file ][ page file ]
//! image       [ image         ][ page file ][ page file ]
//! ```

use crate::run::{Run, RunMap};
use crate::source::{ByteSource, JoinedSource, SourceError, SourcePin, Sources};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Page files that a system may have.
pub const MOST: u8 = 16;

/// Bytes of a page.
const PAGE: u64 = 4096;
/// The first address that is none of RAM: page tables hold 48 to 52 bits.
const FIRST: u64 = 1 << 60;
/// Bits of an address that are the place in the file: an entry of a page table holds 32 bits of a page's number.
const PLACE: u32 = 44;
/// Where the number of the file begins.
const NUMBER: u32 = 48;

/// A page file of a capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageFile {
    /// Its number, as page tables have it.
    pub number: u8,
    /// Which version of which file or object.
    pub pin: SourcePin,
    /// Whether it was found beside the capture, and nobody named it.
    pub found: bool,
}

impl PageFile {
    /// Whole pages in it that an entry of a page table can lead to.
    pub fn pages(&self) -> u64 {
        (self.pin.size() / PAGE).min(1 << 32)
    }
}

/// Whether a file is called as page files are: `pagefile.sys`, `pagefile_1.sys`, `host.pagefile.sys`.
pub fn is_name(name: &str) -> bool {
    let name = name.rsplit(['/', '\\']).next().unwrap_or(name);
    let name = name.to_ascii_lowercase();
    let Some(stem) = name.strip_suffix(".sys") else {
        return false;
    };
    let stem = stem.trim_end_matches(|c: char| c.is_ascii_digit());
    let stem = stem.strip_suffix('_').unwrap_or(stem);
    stem == "pagefile" || stem.ends_with(".pagefile")
}

/// Number and path of `PATH` or `NUMBER=PATH`; without a number that of its place in a list.
pub fn named(text: &str, place: usize) -> Result<(u8, &str), String> {
    let (number, path) = match text.split_once('=') {
        Some((n, path)) if !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) => {
            (n.parse().ok(), path)
        }
        _ => (u8::try_from(place).ok(), text),
    };
    match number.filter(|n| *n < MOST) {
        Some(n) if !path.is_empty() => Ok((n, path)),
        _ => Err(format!(
            "{text:?} names no page file: use PATH or NUMBER=PATH with a number from 0 to {}",
            MOST - 1
        )),
    }
}

/// The physical address of a page in a page file.
pub fn address(number: u8, page: u64) -> u64 {
    let place = page.saturating_mul(PAGE) & ((1 << PLACE) - 1);
    FIRST | u64::from(number) << NUMBER | place
}

/// Number of the page file, and place in it, of a physical address; `None` of an address of RAM.
pub fn place_of(pa: u64) -> Option<(u8, u64)> {
    let number = pa.checked_sub(FIRST)? >> NUMBER;
    let number = u8::try_from(number).ok().filter(|n| *n < MOST)?;
    Some((number, pa & ((1 << PLACE) - 1)))
}

/// The bytes of an image, and those of its page files behind them.
pub fn behind(image: Arc<dyn ByteSource>, files: &[Arc<dyn ByteSource>]) -> Arc<dyn ByteSource> {
    if files.is_empty() {
        return image;
    }
    let all = std::iter::once(image).chain(files.iter().cloned());
    Arc::new(JoinedSource::new(all.collect()))
}

/// The runs of an image, and those of its page files behind them, by what [`behind`] gives, of which `bytes` is the length.
pub fn runs_with(runs: &RunMap, files: &[PageFile], bytes: u64) -> RunMap {
    let all = files
        .iter()
        .fold(0u64, |n, f| n.saturating_add(f.pin.size()));
    let Some(mut at) = bytes.checked_sub(all).filter(|_| !files.is_empty()) else {
        return runs.clone();
    };
    let mut out = runs.runs().to_vec();
    for f in files.iter().filter(|f| f.number < MOST) {
        let len = f.pages().saturating_mul(PAGE);
        out.push(Run {
            pa: address(f.number, 0),
            len,
            file: at,
            stored: len,
        });
        at = at.saturating_add(f.pin.size());
    }
    // Two files of one number can't both be laid out.
    RunMap::new(out).unwrap_or_else(|_| runs.clone())
}

impl Sources {
    /// Opens the pinned versions of page files, in their order.
    pub async fn open_page_files(
        &self,
        files: &[PageFile],
    ) -> Result<Vec<Arc<dyn ByteSource>>, SourceError> {
        let mut out = Vec::with_capacity(files.len());
        for f in files {
            out.push(self.open_pinned(&f.pin).await?);
        }
        Ok(out)
    }

    /// Page files that are called as such beside a capture: `pagefile.sys`, that of the capture's own name, and numbered ones as
    /// far as they follow one another. What may not be read is left out.
    pub async fn page_files_beside(
        &self,
        pin: &SourcePin,
    ) -> Result<Vec<(PageFile, Arc<dyn ByteSource>)>, SourceError> {
        let first = match pin {
            SourcePin::Parts { parts } => parts.first().map(ToString::to_string),
            SourcePin::Ram { .. } => None,
            one => Some(one.to_string()),
        };
        let Some(name) = first else {
            return Ok(Vec::new());
        };
        let base = name.rfind('/').map_or(0, |i| i + 1);
        let (folder, file) = name.split_at(base);
        let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
        let mut out: Vec<(PageFile, Arc<dyn ByteSource>)> = Vec::new();
        for before in [format!("{folder}{stem}."), folder.to_owned()] {
            for number in 0..MOST {
                let mut names = vec![format!("{before}pagefile_{number}.sys")];
                if number == 0 {
                    names.insert(0, format!("{before}pagefile.sys"));
                }
                let mut found = None;
                for name in names.iter().filter(|n| **n != pin.to_string()) {
                    match self.open(name).await {
                        Ok(s) => {
                            found = Some(s);
                            break;
                        }
                        Err(e @ SourceError::Unavailable { .. }) => return Err(e),
                        Err(_) => {}
                    }
                }
                let Some(source) = found else {
                    // The first may lack a number of its own.
                    if number > 0 { break } else { continue }
                };
                let file = PageFile {
                    number,
                    pin: source.pin().clone(),
                    found: true,
                };
                out.push((file, source));
            }
            if !out.is_empty() {
                break;
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::RamSource;
    use crate::{FileOffset, ImageOffset, PhysAddr};

    fn file(number: u8, size: u64) -> PageFile {
        PageFile {
            number,
            pin: SourcePin::Ram {
                name: format!("pagefile{number}"),
                size,
            },
            found: false,
        }
    }

    #[test]
    fn addresses_of_pages_lead_back_to_them() {
        for (number, page) in [(0, 0), (3, 7), (15, (1 << 32) - 1)] {
            assert_eq!(place_of(address(number, page)), Some((number, page * PAGE)));
        }
        assert_eq!(place_of(0x000f_ffff_ffff_f000), None);
        assert_eq!(place_of(u64::MAX), None);
    }

    #[test]
    fn page_files_are_told_by_name_and_numbered_in_order() {
        for name in [
            "pagefile.sys",
            "/x/PageFile_1.sys",
            "pc7.pagefile.sys",
            "pagefile2.sys",
        ] {
            assert!(is_name(name), "{name}");
        }
        for name in [
            "pagefile",
            "swapfile.sys",
            "mypagefile.sys",
            "pagefile.sys.mem",
        ] {
            assert!(!is_name(name), "{name}");
        }
        assert_eq!(named("a=b.sys", 1), Ok((1, "a=b.sys")));
        assert_eq!(named("3=/x/p.sys", 0), Ok((3, "/x/p.sys")));
        assert!(named("16=/x", 0).is_err());
        assert!(named("2=", 0).is_err());
    }

    #[tokio::test]
    async fn page_files_lie_behind_the_image() {
        let ram = |name: &str, b: Vec<u8>| Arc::new(RamSource::new(name, b)) as Arc<dyn ByteSource>;
        let image = ram("image", vec![1; 3 * 4096 + 64]);
        // The last bytes of a file that are no whole page are nobody's.
        let files = [file(0, 4096 + 5), file(2, 8192)];
        let parts = [ram("a", vec![2; 4096 + 5]), ram("b", vec![3; 8192])];
        let all = behind(image, &parts);
        let runs = RunMap::new(vec![Run {
            pa: 0,
            len: 3 * 4096,
            file: 64,
            stored: 3 * 4096,
        }])
        .expect("one run");
        let with = runs_with(&runs, &files, all.len());
        assert_eq!(with.image_len(), 6 * 4096);
        for (pa, want) in [(0x2000, 1), (address(0, 0), 2), (address(2, 1), 3)] {
            let (at, _) = with.stored_at(PhysAddr(pa)).expect("stored");
            let got = all.read_vec(FileOffset(at.0), 4096).await.expect("there");
            assert_eq!(got, [want; 4096]);
        }
        assert_eq!(
            with.from_phys(PhysAddr(address(2, 0))),
            Some(ImageOffset(4 * 4096))
        );
        assert_eq!(with.from_phys(PhysAddr(address(0, 1))), None);
        assert_eq!(runs_with(&runs, &[], 3 * 4096), runs);
    }
}
