//! Windows programs and libraries ("PE Format", Microsoft).
//!
//! ```text
//! 'M' 'Z' ... e_lfanew at 3C | 'P' 'E' 0 0 | COFF header | optional header | section headers
//!     sections at PointerToRawData | certificates (directory 4 holds a file offset)
//! ```
//!
//! The anchor is `PE\0\0`; the `MZ` header lies at most 4 KiB before it. The extent is that of the
//! file: the furthest end of a section's raw data and of the certificates. An image that the
//! loader laid out by virtual addresses has the same headers, so its extent is a guess.

use crate::carver::{Carver, Extent, Hit};
use crate::source::Item;

pub(crate) struct Pe;

/// Furthest that the PE header may lie behind the MZ header.
const STUB: usize = 4096;
/// Machines of COFF headers: x86, x86-64, ARM, ARM Thumb-2, ARM64, IA-64, EFI byte code, RISC-V.
const MACHINES: &[u16] = &[
    0x14c, 0x8664, 0x1c0, 0x1c4, 0xaa64, 0x200, 0xebc, 0x5032, 0x5064,
];

impl Carver for Pe {
    fn name(&self) -> &'static str {
        "pe"
    }

    fn version(&self) -> u32 {
        1
    }

    fn literals(&self) -> &'static [&'static [u8]] {
        &[b"PE\0\0"]
    }

    fn reach(&self) -> usize {
        STUB
    }

    fn visit(&self, at: usize, hit: &mut Hit<'_, '_>) {
        let data = hit.source.data;
        let Some(machine) = data.get(at + 4..at + 6) else {
            return;
        };
        if !MACHINES.contains(&u16::from_le_bytes([machine[0], machine[1]])) {
            return;
        }
        let before = hit.source.behind(at, STUB);
        // No MZ header has another PE header before its own; and many in a row cost little so.
        let nearer = memchr::memmem::rfind(before, b"PE\0\0").unwrap_or(0);
        let before = &before[nearer..];
        let first = at - before.len();
        for n in memchr::memmem::rfind_iter(before, b"MZ") {
            let mz = first + n;
            let Some(lfanew) = data.get(mz + 0x3c..mz + 0x40) else {
                continue;
            };
            let lfanew = u32::from_le_bytes([lfanew[0], lfanew[1], lfanew[2], lfanew[3]]);
            if mz + lfanew as usize == at {
                hit.follow(mz, |item| walk(item, at - mz));
                return;
            }
        }
    }
}

fn walk(item: &mut Item<'_, '_>, pe: usize) -> Option<Extent> {
    let machine = item.u16le(pe + 4)?;
    let count = usize::from(item.u16le(pe + 6)?);
    let stamp = item.u32le(pe + 8)?;
    let optional = usize::from(item.u16le(pe + 20)?);
    let characteristics = item.u16le(pe + 22)?;
    if !(1..=96).contains(&count) || !(0x60..=0x400).contains(&optional) {
        return None;
    }
    // PE32 or PE32+, whose data directories begin in different places.
    let directories = match item.u16le(pe + 24)? {
        0x10b => 96,
        0x20b => 112,
        _ => return None,
    };
    let headers = item.u32le(pe + 24 + 60)? as usize;
    let table = pe + 24 + optional;
    if headers < table + 40 * count || headers > (1 << 20) {
        return None;
    }
    let mut end = headers;
    for s in item.get(table, 40 * count)?.chunks_exact(40) {
        let n = |i: usize| u32::from_le_bytes([s[i], s[i + 1], s[i + 2], s[i + 3]]) as usize;
        let (raw_size, raw_at) = (n(16), n(20));
        if raw_size > 0 && raw_at > 0 {
            end = end.max(raw_at + raw_size);
        }
    }
    let mut extent = Extent {
        kind: "pe",
        ..Extent::default()
    };
    extent.fields = vec![
        ("machine", machine.into()),
        ("timestamp", stamp.into()),
        ("dll", i64::from(characteristics >> 13 & 1)),
    ];
    let n = item.u32le(pe + 24 + directories - 4)?;
    if n > 4 && optional >= directories + 40 {
        let at = item.u32le(pe + 24 + directories + 32)? as usize;
        let len = item.u32le(pe + 24 + directories + 36)? as usize;
        if at >= end && len >= 8 && at - end < 4096 {
            // A certificate begins with its length, revision 1 or 2 and a type.
            let revision = item.u16le(at + 4);
            let size = item.u32le(at).map(|n| n as usize);
            if matches!(revision, Some(0x100 | 0x200)) && size.is_some_and(|n| n <= len) {
                end = at + len;
            } else {
                extent.partial = Some("its certificates are not where they should be".to_owned());
            }
        }
    }
    extent.len = end;
    if end > item.room() {
        extent.len = item.room();
        extent.partial = Some("it reaches past what could be followed".to_owned());
    }
    Some(extent)
}
