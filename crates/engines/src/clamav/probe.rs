//! Finds out how large an object clamd looks at.
//!
//! clamd tells its limits to nobody. It reports a stream above `StreamMaxLength`, but passes a file
//! above `MaxFileSize`, or what lies behind `MaxScanSize`, in silence. So objects of growing size
//! are sent with a test signature's string at their end, and the answer shows whether the end was
//! looked at. The EICAR test file proper counts only when a file starts with it, so it is wrapped in
//! a ZIP archive behind stored filler of the size in question. What is unpacked counts towards
//! `MaxScanSize` a second time, so the size found is on the safe side.
//!
//! A clamd with home-made signatures may not know the test file. Then only `StreamMaxLength` shows,
//! and the size is taken to be no more than the smallest limit that any release had by default.

use super::{AvVerdict, ClamdError, wire::Wire};

/// The harmless file that every anti-virus engine reports by agreement, here in two parts so that
/// the program itself isn't reported.
const EICAR: [&str; 2] = [
    "X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR-STANDARD-",
    "ANTIVIRUS-TEST-FILE!$H+H*",
];
/// Sizes are told apart to this many bytes, or to 1/256 of the largest.
const GRAIN: u64 = 64 << 10;
/// The smallest default of `MaxFileSize` and `StreamMaxLength` that releases came with.
const SAFE_SIZE: u64 = 25 << 20;

/// What was found out.
pub(super) struct Limit {
    pub(super) max_size: u64,
    pub(super) limited_by: String,
    /// The test file was found at this size, so it isn't a guess.
    pub(super) proven: bool,
}

/// The largest size, up to `most`, at which clamd looks at the whole object.
pub(super) async fn size_limit(wire: &Wire, most: u64) -> Result<Limit, ClamdError> {
    let alone = wire.stream(&[EICAR.concat().as_bytes()]).await?;
    let (most, proven) = match wire.verdict(&alone) {
        AvVerdict::Infected(_) => (most, true),
        AvVerdict::Clean => (most.min(SAFE_SIZE), false),
        AvVerdict::NotScanned { .. } | AvVerdict::Error { .. } => {
            return Err(ClamdError::Blind {
                address: wire.address(),
                answer: alone,
            });
        }
    };
    let most = most.max(GRAIN);
    let grain = GRAIN.max(most / 256);
    let mut limited_by = match (reaches(wire, most, proven).await?, proven) {
        (Some(why), _) => why,
        (None, true) => {
            let limited_by = "the largest object this program sends".to_owned();
            return Ok(Limit {
                max_size: most,
                limited_by,
                proven,
            });
        }
        (None, false) => {
            let limited_by = "its limits can't be probed: it doesn't know the EICAR test file";
            return Ok(Limit {
                max_size: most,
                limited_by: limited_by.to_owned(),
                proven,
            });
        }
    };
    // `seen` was looked at, `missed` wasn't.
    let (mut seen, mut missed) = (0, most);
    while missed - seen > grain {
        let size = seen + (missed - seen) / 2;
        match reaches(wire, size, proven).await? {
            None => seen = size,
            Some(why) => (missed, limited_by) = (size, why),
        }
    }
    Ok(Limit {
        max_size: seen,
        limited_by,
        proven,
    })
}

/// `None` when the end of an object of this size is looked at, else why not. `proven`: the test file
/// has to be found.
async fn reaches(wire: &Wire, size: u64, proven: bool) -> Result<Option<String>, ClamdError> {
    let (head, tail) = archive(size);
    let filler = vec![b'.'; 1 << 20];
    let mut parts: Vec<&[u8]> = vec![&head];
    let mut left = size.saturating_sub((head.len() + tail.len()) as u64) as usize;
    while left > 0 {
        let n = left.min(filler.len());
        parts.push(&filler[..n]);
        left -= n;
    }
    parts.push(&tail);
    let answer = wire.stream(&parts).await?;
    Ok(match wire.verdict(&answer) {
        AvVerdict::Infected(_) => None,
        AvVerdict::NotScanned { reason } => Some(reason),
        AvVerdict::Clean if !proven => None,
        AvVerdict::Clean => Some("its MaxFileSize or MaxScanSize".to_owned()),
        AvVerdict::Error { reason } => Some(reason),
    })
}

/// The two ends of a ZIP archive of `size` bytes that stores filler, then the test file.
fn archive(size: u64) -> (Vec<u8>, Vec<u8>) {
    let eicar = EICAR.concat();
    let fixed = archive_with(0, 0, &eicar);
    let filler = size.saturating_sub((fixed.0.len() + fixed.1.len()) as u64);
    let filler = u32::try_from(filler).unwrap_or(u32::MAX);
    let crc = crc32(std::iter::repeat_n(b'.', filler as usize));
    archive_with(filler, crc, &eicar)
}

fn archive_with(filler: u32, filler_crc: u32, eicar: &str) -> (Vec<u8>, Vec<u8>) {
    let file = |name: &str, crc: u32, len: u32| {
        let mut entry = Vec::new();
        // Version 1.0, no flags, stored, 1980-01-01.
        entry.extend([10, 0, 0, 0, 0, 0, 0, 0, 0x21, 0]);
        for n in [crc, len, len] {
            entry.extend(n.to_le_bytes());
        }
        entry.extend((name.len() as u16).to_le_bytes());
        entry.extend([0, 0]);
        entry
    };
    let local = |entry: &[u8], name: &str| [b"PK\x03\x04", entry, name.as_bytes()].concat();
    let first = file("filler", filler_crc, filler);
    let second = file("eicar.com", crc32(eicar.bytes()), eicar.len() as u32);
    let head = local(&first, "filler");
    let mut tail = local(&second, "eicar.com");
    let second_at = head.len() as u32 + filler;
    tail.extend(eicar.as_bytes());
    let directory_at = second_at + tail.len() as u32;
    let start = tail.len();
    for (entry, name, at) in [(&first, "filler", 0), (&second, "eicar.com", second_at)] {
        tail.extend(b"PK\x01\x02\x0a\x00");
        tail.extend(entry.iter());
        // No comment, first disk, no attributes.
        tail.extend([0; 10]);
        tail.extend(at.to_le_bytes());
        tail.extend(name.as_bytes());
    }
    let directory = (tail.len() - start) as u32;
    tail.extend(b"PK\x05\x06\0\0\0\0\x02\0\x02\0");
    tail.extend(directory.to_le_bytes());
    tail.extend(directory_at.to_le_bytes());
    tail.extend([0, 0]);
    (head, tail)
}

/// CRC-32 as in ZIP, bit by bit turned into a table of 256.
fn crc32(bytes: impl Iterator<Item = u8>) -> u32 {
    let mut table = [0_u32; 256];
    for (slot, i) in table.iter_mut().zip(0_u32..) {
        *slot = (0..8).fold(i, |c, _| {
            if c & 1 == 1 {
                0xEDB8_8320 ^ (c >> 1)
            } else {
                c >> 1
            }
        });
    }
    !bytes.fold(!0, |c, b| {
        table[((c ^ u32::from(b)) & 0xFF) as usize] ^ (c >> 8)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_of_the_check_string_is_the_standards() {
        // The check value of CRC-32/ISO-HDLC.
        assert_eq!(crc32(b"123456789".iter().copied()), 0xCBF4_3926);
    }

    #[test]
    fn the_archive_has_the_size_asked_for() {
        for size in [4096, 65_536, 1 << 20] {
            let (head, tail) = archive(size);
            let mut zip = head;
            zip.resize(size as usize - tail.len(), b'.');
            zip.extend(tail);
            assert_eq!(zip.len() as u64, size);
            let end = &zip[zip.len() - 22..];
            assert_eq!(&end[..4], b"PK\x05\x06");
            let directory = u32::from_le_bytes(end[16..20].try_into().unwrap()) as usize;
            assert_eq!(&zip[directory..directory + 4], b"PK\x01\x02");
        }
    }
}
