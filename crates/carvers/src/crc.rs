//! CRC-32 as PNG, ZIP and event logs use it (ITU-T V.42: polynomial 0x04C11DB7, reflected), eight
//! bytes at a time (Intel's "slicing-by-8").

static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut t = [[0u32; 256]; 8];
    let mut i = 0;
    while i < 256 {
        let mut c = i as u32;
        let mut k = 0;
        while k < 8 {
            c = if c & 1 != 0 {
                c >> 1 ^ 0xedb8_8320
            } else {
                c >> 1
            };
            k += 1;
        }
        t[0][i] = c;
        i += 1;
    }
    let mut j = 1;
    while j < 8 {
        let mut i = 0;
        while i < 256 {
            let c = t[j - 1][i];
            t[j][i] = c >> 8 ^ t[0][(c & 0xff) as usize];
            i += 1;
        }
        j += 1;
    }
    t
}

/// The CRC of the parts, one after the other.
pub(crate) fn crc32(parts: &[&[u8]]) -> u32 {
    !parts.iter().fold(!0, |c, p| update(c, p))
}

/// Goes on with a CRC that begins with all ones and is inverted in the end.
pub(crate) fn update(mut c: u32, bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<8>();
    for w in words {
        let x = u64::from_le_bytes(*w) ^ u64::from(c);
        c = (0..8).fold(0, |a, i| a ^ TABLES[7 - i][(x >> (8 * i) & 0xff) as usize]);
    }
    rest.iter().fold(c, |c, &b| {
        c >> 8 ^ TABLES[0][((c ^ u32::from(b)) & 0xff) as usize]
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn check_value() {
        // The check value of CRC-32 in the catalogue of parametrised CRC algorithms.
        assert_eq!(super::crc32(&[b"123456789"]), 0xcbf4_3926);
        assert_eq!(super::crc32(&[b"12345", b"6789"]), 0xcbf4_3926);
    }
}
