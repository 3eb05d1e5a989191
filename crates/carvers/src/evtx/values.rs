//! Values of binary XML as text (MS-EVEN6 2.2.12, libevtx's description).

use jiff::Timestamp;
use std::fmt::Write as _;

/// A value that is binary XML itself.
pub(super) const BINARY_XML: u8 = 0x21;
const ARRAY: u8 = 0x80;
/// Bytes of a value that is written in hexadecimal.
const LONGEST: usize = 1024;

/// A FILETIME: 100 nanoseconds since 1601-01-01 UTC.
pub(super) fn timestamp(filetime: u64) -> Option<Timestamp> {
    let since = i128::from(filetime) - 116_444_736_000_000_000;
    Timestamp::from_nanosecond(since * 100).ok()
}

/// A value of a type as text; what has no form of its own is written in hexadecimal.
pub(super) fn text(kind: u8, b: &[u8]) -> String {
    match kind {
        0 => String::new(),
        1 => wide(b),
        2 => b
            .iter()
            .take_while(|&&b| b != 0)
            .map(|&b| char::from(b))
            .collect(),
        k if k == ARRAY | 1 => {
            let all = wide_parts(b);
            all.join(",")
        }
        k if k & ARRAY != 0 => array(k & !ARRAY, b),
        k => single(k, b).unwrap_or_else(|| hex(b)),
    }
}

fn units(b: &[u8]) -> impl Iterator<Item = u16> {
    b.as_chunks::<2>().0.iter().map(|u| u16::from_le_bytes(*u))
}

fn wide(b: &[u8]) -> String {
    let own: Vec<u16> = units(b).take_while(|&u| u != 0).collect();
    String::from_utf16_lossy(&own)
}

fn wide_parts(b: &[u8]) -> Vec<String> {
    let all: Vec<u16> = units(b).collect();
    let mut parts: Vec<_> = all
        .split(|&u| u == 0)
        .map(String::from_utf16_lossy)
        .collect();
    if parts.last().is_some_and(String::is_empty) {
        parts.pop();
    }
    parts
}

/// Bytes of one value in an array.
fn width(kind: u8) -> Option<usize> {
    Some(match kind {
        0x03 | 0x04 => 1,
        0x05 | 0x06 => 2,
        0x07 | 0x08 | 0x0b | 0x0d | 0x14 => 4,
        0x09 | 0x0a | 0x0c | 0x11 | 0x15 => 8,
        0x0f | 0x12 => 16,
        _ => return None,
    })
}

fn array(kind: u8, b: &[u8]) -> String {
    let Some(width) = width(kind) else {
        return hex(b);
    };
    let all: Vec<_> = b
        .chunks_exact(width)
        .filter_map(|v| single(kind, v))
        .collect();
    all.join(",")
}

fn single(kind: u8, b: &[u8]) -> Option<String> {
    Some(match (kind, b.len()) {
        (0x03, 1) => (b[0] as i8).to_string(),
        (0x04, 1) => b[0].to_string(),
        (0x05, 2) => i16::from_le_bytes(b.try_into().ok()?).to_string(),
        (0x06, 2) => u16::from_le_bytes(b.try_into().ok()?).to_string(),
        (0x07, 4) => i32::from_le_bytes(b.try_into().ok()?).to_string(),
        (0x08, 4) => u32::from_le_bytes(b.try_into().ok()?).to_string(),
        (0x09, 8) => i64::from_le_bytes(b.try_into().ok()?).to_string(),
        (0x0a, 8) => u64::from_le_bytes(b.try_into().ok()?).to_string(),
        (0x0b, 4) => f32::from_le_bytes(b.try_into().ok()?).to_string(),
        (0x0c, 8) => f64::from_le_bytes(b.try_into().ok()?).to_string(),
        (0x0d, 4) => (u32::from_le_bytes(b.try_into().ok()?) != 0).to_string(),
        (0x0f, 16) => guid(b.try_into().ok()?),
        (0x10 | 0x14, 4) => format!("{:#x}", u32::from_le_bytes(b.try_into().ok()?)),
        (0x10 | 0x15, 8) => format!("{:#x}", u64::from_le_bytes(b.try_into().ok()?)),
        (0x11, 8) => timestamp(u64::from_le_bytes(b.try_into().ok()?))?.to_string(),
        (0x12, 16) => {
            let n: Vec<_> = units(b).collect();
            let [year, month, _, day, hour, minute, second, milli] = n[..] else {
                return None;
            };
            format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
        }
        (0x13, 8..) => sid(b)?,
        _ => return None,
    })
}

/// A GUID as it is written.
pub(super) fn guid(b: &[u8; 16]) -> String {
    let [a, b1, c, d, e, f, g, h, rest @ ..] = *b;
    let (first, second, third) = (
        u32::from_le_bytes([a, b1, c, d]),
        u16::from_le_bytes([e, f]),
        u16::from_le_bytes([g, h]),
    );
    let tail = hex(&rest);
    format!(
        "{first:08x}-{second:04x}-{third:04x}-{}-{}",
        &tail[..4],
        &tail[4..]
    )
}

/// A security identifier: revision, number of parts, authority big-endian, parts.
fn sid(b: &[u8]) -> Option<String> {
    let parts = b.get(8..8 + 4 * usize::from(b[1]))?;
    let authority = b[2..8].iter().fold(0u64, |a, &b| a << 8 | u64::from(b));
    let mut out = format!("S-{}-{authority}", b[0]);
    for p in parts.as_chunks::<4>().0 {
        let _ = write!(out, "-{}", u32::from_le_bytes(*p));
    }
    Some(out)
}

fn hex(b: &[u8]) -> String {
    let mut out = String::new();
    for b in &b[..b.len().min(LONGEST)] {
        let _ = write!(out, "{b:02x}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_as_windows_writes_them() {
        assert_eq!(text(1, b"a\0\xe4\0\0\0x\0"), "aä");
        assert_eq!(text(0x81, b"a\0\0\0b\0\0\0"), "a,b");
        assert_eq!(text(0x06, &[0xff, 1]), "511");
        assert_eq!(text(0x86, &[1, 0, 2, 0]), "1,2");
        assert_eq!(text(0x14, &[0x10, 0, 0, 0]), "0x10");
        assert_eq!(text(0x0e, &[0xab, 0xcd]), "abcd");
        // Local System, and the example of MS-DTYP 2.4.2.1 in the form of its packet.
        assert_eq!(
            text(0x13, &[1, 1, 0, 0, 0, 0, 0, 5, 18, 0, 0, 0]),
            "S-1-5-18"
        );
        // The epoch of POSIX is 11644473600 seconds behind that of FILETIME.
        assert_eq!(
            text(0x11, &116_444_736_000_000_000u64.to_le_bytes()),
            "1970-01-01T00:00:00Z"
        );
        let g = *b"\x78\x56\x34\x12\xcd\xab\x01\xef\x01\x02\x03\x04\x05\x06\x07\x08";
        assert_eq!(guid(&g), "12345678-abcd-ef01-0102-030405060708");
        assert_eq!(text(0x05, &[1]), "01");
    }
}
