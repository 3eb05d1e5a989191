//! JPEG images (ITU-T T.81, JFIF, Exif).
//!
//! ```text
//! FF D8 | { FF.. marker, length u16be, data } ... | FF DA header, entropy-coded data | ... | FF D9
//!         APPn (holds Exif and its thumbnail), DQT, SOFn, DHT, ...    FF 00 and FF D0-D7 inside
//! ```
//!
//! Any marker may come first that T.81 allows before a frame, after any number of fill bytes FF.
//! A thumbnail lies inside a segment and is passed over with it, though it is also an image of its
//! own and reported as one. Worth reporting from the first scan on, whose frame header and tables
//! were in order; in broken data the image is partial up to there. Of a file with several pictures
//! each is an image of its own.

use crate::carver::{Carver, Extent, Hit};
use crate::page::{PAGE, lost_page};
use crate::source::Item;

pub(crate) struct Jpeg;

/// Segments before the end; a profile in small pieces has hundreds.
const SEGMENTS: usize = 64 << 10;
/// Entropy-coded data is looked at in steps of this size.
const STEP: usize = 16 << 10;

impl Carver for Jpeg {
    fn name(&self) -> &'static str {
        "jpeg"
    }

    fn version(&self) -> u32 {
        2
    }

    fn literals(&self) -> &'static [&'static [u8]] {
        // One short literal: a searcher for each marker behind it takes a tenth longer.
        &[b"\xff\xd8\xff"]
    }

    fn visit(&self, at: usize, hit: &mut Hit<'_, '_>) {
        // What may come first: application data, a frame (C8 is reserved), tables, the restart
        // interval, a hierarchy's header, a comment, a fill byte.
        let first = hit.source.data.get(at + 3);
        if first.is_some_and(|m| {
            matches!(m, 0xc0..=0xc7 | 0xc9..=0xcf | 0xdb | 0xdd | 0xde | 0xe0..=0xef | 0xfe | 0xff)
        }) {
            hit.follow(at, walk);
        }
    }
}

/// What was seen of an image so far.
#[derive(Default)]
struct Parts {
    frame: bool,
    /// Lossless frames need no quantisation tables.
    lossless: bool,
    tables: bool,
}

fn walk(item: &mut Item<'_, '_>) -> Option<Extent> {
    let mut extent = Extent {
        kind: "jpeg",
        ..Extent::default()
    };
    let (mut at, mut scans, mut ended) = (2, 0, false);
    let mut parts = Parts::default();
    for _ in 0..SEGMENTS {
        let head = item.array::<2>(at);
        let Some([0xff, marker]) = head else {
            extent.len = at;
            extent.lacks("a marker is missing");
            break;
        };
        if !item.charge(16) {
            extent.len = at;
            extent.lacks("too much work");
            break;
        }
        match marker {
            // Fill bytes, and a marker for private use that has no length.
            0xff => at += 1,
            0x01 => at += 2,
            0xd9 => {
                (extent.len, ended) = (at + 2, true);
                break;
            }
            _ => {
                let len = item.array(at + 2).map_or(0, u16::from_be_bytes) as usize;
                if !segment(item, at, marker, len, &mut parts, &mut extent) {
                    extent.len = at;
                    extent.lacks("a segment's header is broken");
                    break;
                }
                at += 2 + len;
            }
        }
        if marker == 0xda {
            scans += 1;
            let (end, why) = scan(item, at, &mut extent);
            at = end;
            if let Some(why) = why {
                extent.len = at;
                extent.lacks(why);
                break;
            }
        }
        extent.len = at;
    }
    if !ended {
        extent.lacks("the end was not found");
    }
    // Without a scan there is nothing to see.
    (scans > 0).then_some(extent)
}

/// Checks what can be told of a segment by its header.
fn segment(
    item: &mut Item<'_, '_>,
    at: usize,
    marker: u8,
    len: usize,
    parts: &mut Parts,
    extent: &mut Extent,
) -> bool {
    match marker {
        0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => {
            parts.frame = true;
            parts.lossless |= marker & 3 == 3;
            frame(item, at, len, extent)
        }
        // Of a hierarchy the header has a frame's form.
        0xde => frame(item, at, len, extent),
        0xdb => {
            parts.tables = true;
            len >= 67
        }
        0xda => {
            let there = parts.frame && (parts.tables || parts.lossless);
            let n = item.array::<1>(at + 4).map_or(0, |[n]| usize::from(n));
            there && (1..=4).contains(&n) && len == 6 + 2 * n
        }
        0xdc | 0xdd => len == 4,
        0xdf => len == 3,
        0xc4 | 0xcc | 0xe0..=0xef | 0xfe => len >= 2,
        _ => false,
    }
}

/// Checks a frame header and takes the size from it.
fn frame(item: &mut Item<'_, '_>, at: usize, len: usize, extent: &mut Extent) -> bool {
    let Some([precision, h1, h0, w1, w0, parts]) = item.array::<6>(at + 4) else {
        return false;
    };
    let (h, w) = (u16::from_be_bytes([h1, h0]), u16::from_be_bytes([w1, w0]));
    if extent.fields.is_empty() {
        extent.fields = vec![
            ("width", i64::from(w).into()),
            ("height", i64::from(h).into()),
        ];
    }
    (2..=16).contains(&precision)
        && (1..=4).contains(&parts)
        && len == 8 + 3 * usize::from(parts)
        && w > 0
}

/// Where the entropy-coded data ends: at a marker; and what is wrong with it.
fn scan(
    item: &mut Item<'_, '_>,
    mut at: usize,
    extent: &mut Extent,
) -> (usize, Option<&'static str>) {
    loop {
        if !item.charge(STEP / 8) {
            return (at, Some("too much work"));
        }
        let first = item.offset() + at as u64;
        let part = item.some(at, STEP);
        if part.len() < 2 {
            return (at + part.len(), Some("the end was not found"));
        }
        let (mut i, last) = (0, part.len() - 1);
        let mut quiet = false;
        while let Some(n) = memchr::memchr(0xff, &part[i..last]) {
            quiet |= n >= PAGE && lost_page(part, i..i + n, first);
            i += n;
            match part[i + 1] {
                0x00 | 0xd0..=0xd7 => i += 2,
                0xff => i += 1,
                0x01 | 0xc0..=0xc7 | 0xc9..=0xcf | 0xd9..=0xdf | 0xe0..=0xef | 0xfe => {
                    doubt(extent, quiet);
                    return (at + i, None);
                }
                _ => return (at + i, Some("the image data is broken")),
            }
            if i >= last {
                break;
            }
        }
        let next = last.max(i);
        let i = i.min(last);
        quiet |= last - i >= PAGE && lost_page(part, i..last, first);
        doubt(extent, quiet);
        at += next;
    }
}

fn doubt(extent: &mut Extent, quiet: bool) {
    if quiet {
        extent.doubt("a page of its image data is one byte repeated, and may be lost");
    }
}
