//! JPEG images (ITU-T T.81, JFIF, Exif).
//!
//! ```text
//! FF D8 | { FF marker, length u16be, data } ... | FF DA header, entropy-coded data | ... | FF D9
//!         APPn (holds Exif and its thumbnail), DQT, SOFn, DHT, ...    FF 00 and FF D0-D7 inside
//! ```
//!
//! A thumbnail lies inside a segment and is passed over with it, though it is also an image of its
//! own and reported as one. Worth reporting from the first scan on, whose frame header and tables
//! were in order; in broken data the image is partial up to there.

use crate::carver::{Carver, Extent, Hit};
use crate::source::Item;

pub(crate) struct Jpeg;

/// Segments before the scan; cameras write a few dozen.
const SEGMENTS: usize = 512;
/// Entropy-coded data is looked at in steps of this size.
const STEP: usize = 16 << 10;

impl Carver for Jpeg {
    fn name(&self) -> &'static str {
        "jpeg"
    }

    fn version(&self) -> u32 {
        1
    }

    fn literals(&self) -> &'static [&'static [u8]] {
        &[
            b"\xff\xd8\xff\xe0",
            b"\xff\xd8\xff\xe1",
            b"\xff\xd8\xff\xe2",
            b"\xff\xd8\xff\xe8",
            b"\xff\xd8\xff\xed",
            b"\xff\xd8\xff\xee",
            b"\xff\xd8\xff\xdb",
            b"\xff\xd8\xff\xc0",
            b"\xff\xd8\xff\xc4",
            b"\xff\xd8\xff\xfe",
        ]
    }

    fn visit(&self, at: usize, hit: &mut Hit<'_, '_>) {
        hit.follow(at, walk);
    }
}

fn walk(item: &mut Item<'_, '_>) -> Option<Extent> {
    let mut extent = Extent {
        kind: "jpeg",
        ..Extent::default()
    };
    let (mut at, mut tables, mut scans) = (2, 0, 0);
    for _ in 0..SEGMENTS {
        let broken = |e: &mut Extent, at: usize, why: &str| {
            e.len = at;
            e.partial = Some(why.to_owned());
        };
        let Some([0xff, marker]) = item.array::<2>(at) else {
            broken(&mut extent, at, "a marker is missing");
            break;
        };
        if marker == 0xff {
            at += 1;
            continue;
        }
        if marker == 0xd9 {
            extent.len = at + 2;
            break;
        }
        let len = item.array(at + 2).map_or(0, u16::from_be_bytes) as usize;
        let size_fits = match marker {
            0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => {
                tables |= 1;
                frame(item, at, len, &mut extent)
            }
            0xdb => {
                tables |= 2;
                len >= 67
            }
            0xda => (6..=14).contains(&len) && tables == 3,
            0xc4 | 0xcc | 0xdc..=0xdf | 0xe0..=0xef | 0xfe => len >= 2,
            _ => false,
        };
        if !size_fits || !item.charge(16) {
            broken(&mut extent, at, "a segment's header is broken");
            break;
        }
        at += 2 + len;
        if marker == 0xda {
            scans += 1;
            let (end, why) = scan(item, at);
            at = end;
            if let Some(why) = why {
                broken(&mut extent, at, why);
                break;
            }
        }
        extent.len = at;
    }
    // Without a scan there is nothing to see.
    (scans > 0).then_some(extent)
}

/// Checks a frame header and takes the size from it.
fn frame(item: &mut Item<'_, '_>, at: usize, len: usize, extent: &mut Extent) -> bool {
    let Some([precision, h1, h0, w1, w0, parts]) = item.array::<6>(at + 4) else {
        return false;
    };
    let (h, w) = (u16::from_be_bytes([h1, h0]), u16::from_be_bytes([w1, w0]));
    extent.fields = vec![("width", w.into()), ("height", h.into())];
    matches!(precision, 8 | 12 | 16)
        && (1..=4).contains(&parts)
        && len == 8 + 3 * usize::from(parts)
        && w > 0
}

/// Where the entropy-coded data ends: at a marker; and what is wrong with it.
fn scan(item: &mut Item<'_, '_>, mut at: usize) -> (usize, Option<&'static str>) {
    loop {
        if !item.charge(STEP / 8) {
            return (at, Some("too much work"));
        }
        let part = item.some(at, STEP);
        if part.len() < 2 {
            return (at + part.len(), Some("the end was not found"));
        }
        let (mut i, last) = (0, part.len() - 1);
        while let Some(n) = memchr::memchr(0xff, &part[i..last]) {
            i += n;
            match part[i + 1] {
                0x00 | 0xd0..=0xd7 => i += 2,
                0xff => i += 1,
                0xd9 | 0xda | 0xc4 | 0xdb | 0xdd | 0xdc | 0xe0..=0xef | 0xfe => {
                    return (at + i, None);
                }
                _ => return (at + i, Some("the image data is broken")),
            }
            if i >= last {
                break;
            }
        }
        at += last.max(i);
    }
}
