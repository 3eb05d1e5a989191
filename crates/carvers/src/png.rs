//! PNG images (ISO/IEC 15948).
//!
//! ```text
//! 89 50 4E 47 0D 0A 1A 0A | { length u32be, type, data, CRC-32 of type and data } ...
//!                           IHDR first, IEND last
//! ```
//!
//! IHDR's CRC must be right, which random bytes never are. The walk checks every CRC; at the first
//! wrong one the image is partial up to there.

use crate::carver::{Carver, Extent, Hit};
use crate::crc::crc32;
use crate::source::Item;

pub(crate) struct Png;

impl Carver for Png {
    fn name(&self) -> &'static str {
        "png"
    }

    fn version(&self) -> u32 {
        1
    }

    fn literals(&self) -> &'static [&'static [u8]] {
        &[b"\x89PNG\r\n\x1a\n"]
    }

    fn visit(&self, at: usize, hit: &mut Hit<'_, '_>) {
        hit.follow(at, walk);
    }
}

fn walk(item: &mut Item<'_, '_>) -> Option<Extent> {
    let mut extent = Extent {
        kind: "png",
        ..Extent::default()
    };
    let mut at = 8;
    loop {
        let head: Option<[u8; 8]> = item.array(at);
        let Some([a, b, c, d, kind @ ..]) = head else {
            extent.lacks("the image ends inside");
            break;
        };
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        let first = at == 8;
        if first && (kind != *b"IHDR" || len != 13) {
            return None;
        }
        if len > 0x7fff_ffff || !kind.iter().all(u8::is_ascii_alphabetic) {
            extent.lacks("a chunk's header is broken");
            break;
        }
        if !item.charge(len) {
            extent.lacks("too much work");
            break;
        }
        let Some(body) = item.get(at + 4, len + 8) else {
            extent.lacks("a chunk reaches past what could be followed");
            break;
        };
        let (data, stored) = body.split_at(len + 4);
        if crc32(&[data]).to_be_bytes() != stored {
            if first {
                return None;
            }
            extent.lacks("a chunk's CRC is wrong");
            break;
        }
        if first {
            let n = |i: usize| u32::from_be_bytes([data[i], data[i + 1], data[i + 2], data[i + 3]]);
            extent.fields = vec![
                ("width", i64::from(n(4)).into()),
                ("height", i64::from(n(8)).into()),
            ];
        }
        at += len + 12;
        if &kind == b"IEND" {
            break;
        }
    }
    extent.len = at;
    Some(extent)
}
