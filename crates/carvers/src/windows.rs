//! Marks of Windows in physical memory, for whoever reads its bytes in one pass: what may be the top table of a kernel's page
//! tables, and headers of pool memory whose tags objects have.
//!
//! ```text
//! top table    a page of 512 entries; the one that leads to KUSER_SHARED_DATA (0xFFFFF78000000000, the 495th) is present, and of
//!              the upper half exactly one leads to the page itself
//! pool header  16 bytes at a multiple of 16: previous size, index, size, type, tag at 4
//! ```
//!
//! Both are only candidates: who reads the tables and objects behind them refuses what is none. They need the physical address of
//! the bytes, which carvers don't know.
//!
//! Sources: Intel SDM volume 3, 4.5; the public type `_POOL_HEADER`; before Windows 8 the top bit of a tag's last letter
//! marks protected objects.

use std::ops::Range;

const PAGE: u64 = 4096;
/// Bits 47:12.
const NUMBER: u64 = 0x0000_ffff_ffff_f000;
/// Which entry of a top table leads to KUSER_SHARED_DATA.
const SHARED_DATA: usize = 495;
/// Bytes of a pool header.
const HEADER: usize = 16;

/// Tags of pool memory that objects lie in: processes, drivers, files, endpoints, threads, mutexes, symbolic links, records of modules
/// and hives.
pub const POOL_TAGS: [[u8; 4]; 18] = [
    *b"Proc",
    *b"Pro\xe3",
    *b"Driv",
    *b"Dri\xf6",
    *b"File",
    *b"Fil\xe5",
    *b"TcpE",
    *b"TcpL",
    *b"UdpA",
    *b"TTcb",
    *b"Thre",
    *b"Thr\xe5",
    *b"Muta",
    *b"Mut\xe1",
    *b"Symb",
    *b"Sym\xe2",
    *b"MmLd",
    *b"CM10",
];

/// Positions in `data` of pages in `core` that may be top tables. `physical` is the physical address of the first byte.
pub fn top_tables(data: &[u8], physical: u64, core: &Range<usize>) -> Vec<usize> {
    let mut out = Vec::new();
    let skip = usize::try_from(physical.wrapping_neg() % PAGE).unwrap_or(0);
    let first = skip
        + core
            .start
            .saturating_sub(skip)
            .next_multiple_of(PAGE as usize);
    for at in (first..core.end.min(data.len())).step_by(PAGE as usize) {
        let Some(page) = data.get(at..at + PAGE as usize) else {
            break;
        };
        let entries = page.as_chunks::<8>().0;
        let entry = |i: usize| entries.get(i).map_or(0, |e| u64::from_le_bytes(*e));
        // Present, and no large page.
        let leads = |e: u64| e & 0x81 == 1;
        if !leads(entry(SHARED_DATA)) {
            continue;
        }
        let own = physical.wrapping_add(at as u64);
        let to_itself = (256..512).filter(|i| leads(entry(*i)) && entry(*i) & NUMBER == own);
        if to_itself.count() == 1 {
            out.push(at);
        }
    }
    out
}

/// Positions in `data` of headers that begin in `core` and have one of the [`POOL_TAGS`]; at most `most`, and whether there are no
/// more. `physical` is the physical address of the first byte.
pub fn pool_headers(
    data: &[u8],
    physical: u64,
    core: &Range<usize>,
    most: usize,
) -> (Vec<usize>, bool) {
    // Most chunks begin with a letter that no tag has.
    let mut letters = [false; 256];
    POOL_TAGS
        .iter()
        .for_each(|t| letters[usize::from(t[0])] = true);
    let mut out = Vec::new();
    let skip = usize::try_from(physical.wrapping_neg() % HEADER as u64).unwrap_or(0);
    let first = skip + core.start.saturating_sub(skip).next_multiple_of(HEADER);
    let end = core.end.min(data.len());
    let Some(all) = data.get(first.min(end)..end) else {
        return (out, true);
    };
    for (i, header) in all.chunks(HEADER).enumerate() {
        let Some(tag) = header.get(4..8) else { break };
        if letters[usize::from(tag[0])] && POOL_TAGS.iter().any(|t| t[..] == *tag) {
            if out.len() == most {
                return (out, false);
            }
            out.push(first + i * HEADER);
        }
    }
    (out, true)
}

/// What one window of a pass found of pool headers, as the anchor [`POOL`] tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolHeaders {
    /// Bytes that were looked at, from the anchor's place on.
    pub len: u64,
    /// Places of headers, from the anchor's place on.
    pub at: Vec<u32>,
}

/// The kind of the anchors that tell of [`PoolHeaders`].
pub const POOL: &str = "pool_headers";
/// The kind of the anchors that are [`top_tables`].
pub const TOP_TABLE: &str = "top_table";
/// Headers that one anchor tells of at most: memory can be full of tags.
pub const MOST_HEADERS: usize = 1 << 18;

impl PoolHeaders {
    /// The headers in the core of a window; where there are too many, those of its first part.
    pub fn find(data: &[u8], physical: u64, core: &Range<usize>) -> Self {
        let (found, all) = pool_headers(data, physical, core, MOST_HEADERS);
        let end = match found.last() {
            Some(last) if !all => *last,
            _ => core.end,
        };
        let at = found
            .iter()
            .map_while(|at| u32::try_from(at - core.start).ok());
        Self {
            len: end.saturating_sub(core.start) as u64,
            at: at.collect(),
        }
    }

    /// As bytes: the length, then the places, little-endian.
    pub fn encode(&self) -> Vec<u8> {
        let places = self.at.iter().flat_map(|a| a.to_le_bytes());
        self.len.to_le_bytes().into_iter().chain(places).collect()
    }

    /// From bytes; `None` if they are none of it.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (len, rest) = bytes.split_first_chunk::<8>()?;
        let (places, more) = rest.as_chunks::<4>();
        let len = u64::from_le_bytes(*len);
        let at: Vec<u32> = places.iter().map(|p| u32::from_le_bytes(*p)).collect();
        let inside = at.iter().all(|a| u64::from(*a) < len);
        (more.is_empty() && inside).then_some(Self { len, at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(own: u64) -> Vec<u8> {
        let mut page = vec![0; 4096];
        let mut put = |i: usize, e: u64| page[i * 8..i * 8 + 8].copy_from_slice(&e.to_le_bytes());
        put(0, 0x8867);
        put(SHARED_DATA, 0x9063);
        put(300, 0x8000_0000_0000_0063 | own);
        page
    }

    #[test]
    fn a_table_leads_to_itself_and_to_the_shared_page() {
        let mut data = vec![0; 4 * 4096];
        data[8192..12288].copy_from_slice(&table(0x7000_2000));
        // At a place that its entry does not name it is another page's copy.
        data[4096..8192].copy_from_slice(&table(0x7000_2000));
        assert_eq!(top_tables(&data, 0x7000_0000, &(0..data.len())), [8192]);
        assert!(top_tables(&data, 0x7000_0000, &(0..8192)).is_empty());
        assert!(top_tables(&data, 0x7100_0000, &(0..data.len())).is_empty());
        // Bytes that begin within a page.
        assert_eq!(
            top_tables(&data[100..], 0x7000_0064, &(0..data.len())),
            [8092]
        );
        let mut lacks = data.clone();
        lacks[8192 + SHARED_DATA * 8] = 0x62;
        assert!(top_tables(&lacks, 0x7000_0000, &(0..data.len())).is_empty());
        // Two entries that lead to it are a page full of the same number.
        data[8192 + 8 * 301..8192 + 8 * 302]
            .copy_from_slice(&(0x63 | 0x7000_2000u64).to_le_bytes());
        assert!(top_tables(&data, 0x7000_0000, &(0..data.len())).is_empty());
    }

    #[test]
    fn headers_are_found_at_multiples_of_their_size_and_bounded() {
        let mut data = vec![b'x'; 4096];
        for at in [0, 64, 81, 4080] {
            data[at + 4..at + 8].copy_from_slice(b"Thre");
        }
        data[128 + 4..128 + 8].copy_from_slice(b"Pro\xe3");
        assert_eq!(
            pool_headers(&data, 0, &(0..4096), 9),
            (vec![0, 64, 128, 4080], true)
        );
        assert_eq!(
            pool_headers(&data, 0, &(16..4080), 9),
            (vec![64, 128], true)
        );
        assert_eq!(
            pool_headers(&data, 0, &(0..4096), 3),
            (vec![0, 64, 128], false)
        );
        // By physical address, whatever the buffer begins with.
        assert_eq!(pool_headers(&data, 15, &(0..4096), 9), (vec![81], true));
        assert_eq!(pool_headers(&[], 0, &(0..10), 9), (vec![], true));
    }

    #[test]
    fn headers_are_told_as_bytes_and_read_back() {
        let mut data = vec![0; 4096];
        data[68..72].copy_from_slice(b"File");
        let found = PoolHeaders::find(&data, 0x1000, &(32..4096));
        assert_eq!(
            found,
            PoolHeaders {
                len: 4064,
                at: vec![32]
            }
        );
        assert_eq!(PoolHeaders::decode(&found.encode()), Some(found.clone()));
        assert_eq!(PoolHeaders::decode(&found.encode()[1..]), None);
        assert_eq!(
            PoolHeaders::decode(&[1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0]),
            None
        );
    }
}
