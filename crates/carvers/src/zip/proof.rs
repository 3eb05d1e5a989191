//! Whether an archive's entries are what its directory says.

use super::{ELSEWHERE, LOCAL, u16_at, u32_at};
use crate::crc;
use crate::page::lost_page;
use crate::source::Item;
use flate2::{Decompress, FlushDecompress, Status};

/// Largest entry that is inflated.
const LARGEST: usize = 64 << 20;
const STORED: usize = 0;
const DEFLATED: usize = 8;

/// What the directory says of an entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// Where its local header is.
    pub(super) place: usize,
    encrypted: bool,
    method: usize,
    crc: u32,
    packed: u32,
    size: u32,
}

impl Entry {
    /// From its 46 bytes in the directory.
    pub(super) fn of(h: &[u8]) -> Option<Self> {
        Some(Self {
            place: u32_at(h, 42)? as usize,
            encrypted: u16_at(h, 8)? & 1 != 0,
            method: u16_at(h, 10)?,
            crc: u32_at(h, 16)?,
            packed: u32_at(h, 20)?,
            size: u32_at(h, 24)?,
        })
    }
}

/// What is wrong with the entry whose local header is at `at`. `left` bytes may be inflated.
pub(super) fn check(
    item: &mut Item<'_, '_>,
    at: usize,
    e: &Entry,
    left: &mut usize,
) -> Option<&'static str> {
    let head: Option<[u8; 30]> = item.charge(16).then(|| item.array(at)).flatten();
    let Some(head) = head.filter(|h| h.starts_with(LOCAL)) else {
        return Some(ELSEWHERE);
    };
    // ZIP64's sizes are in the extra field: such entries are large, or streamed.
    if e.packed == u32::MAX || e.size == u32::MAX {
        return None;
    }
    let (packed, size) = (e.packed as usize, e.size as usize);
    let begin = at + 30 + u16_at(&head, 26)? + u16_at(&head, 28)?;
    let deflated = e.method == DEFLATED && size <= LARGEST.min(*left);
    let work = if deflated {
        packed / 4 + size / 8
    } else {
        packed / 8
    };
    if !item.charge(work) {
        return None;
    }
    let offset = item.offset() + begin as u64;
    let Some(data) = item.get(begin, packed) else {
        return Some("an entry reaches past what could be followed");
    };
    let right = match e.method {
        _ if e.encrypted => !lost_page(data, 0..packed, offset),
        STORED => crc::crc32(&[data]) == e.crc,
        DEFLATED if deflated => {
            *left -= size;
            inflates(data, size, e.crc)
        }
        _ => !lost_page(data, 0..packed, offset),
    };
    (!right).then_some("an entry does not have the checksum that its directory says")
}

/// True when `data` inflates to `size` bytes with this checksum.
fn inflates(data: &[u8], size: usize, crc: u32) -> bool {
    let mut stream = Decompress::new(false);
    let mut out = [0u8; 32 << 10];
    let mut sum = !0;
    loop {
        let (read, written) = (stream.total_in(), stream.total_out());
        let Some(rest) = usize::try_from(read).ok().and_then(|n| data.get(n..)) else {
            return false;
        };
        let Ok(status) = stream.decompress(rest, &mut out, FlushDecompress::None) else {
            return false;
        };
        let fresh = (stream.total_out() - written) as usize;
        sum = crc::update(sum, &out[..fresh]);
        if stream.total_out() > size as u64 {
            return false;
        }
        match status {
            Status::StreamEnd => return stream.total_out() == size as u64 && !sum == crc,
            // Nothing goes in or out any more.
            _ if fresh == 0 && stream.total_in() == read => return false,
            _ => {}
        }
    }
}
