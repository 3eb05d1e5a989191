//! Files that hold no plain memory: containers that can't be read yet are refused by name, and what only
//! begins like another kind of file is doubted.
//!
//! A magic number counts where it cannot be the beginning of memory by chance: it has four bytes or more, or
//! what follows it has the structure that the format asks for (zlib, LZMA, tar, disk images).
//!
//! Sources: RFC 1950, 1952, 8878; the xz, LZMA, bzip2, LZ4 and snappy frame descriptions; POSIX.1 pax; APPNOTE.TXT;
//! QEMU `docs/interop/qcow2.txt`, `block/*.c`, `migration/savevm.c`; VMware "Virtual Disk Format"; MS-VHDX;
//! libvirt `src/qemu/qemu_saveimage.c`; VirtualBox `SSM.cpp`; Xen `libxl-migration-stream`, `libxc-migration-stream`;
//! libewf, libaff, AFF4; LiME `src/lime.h`; AVML `src/image.rs`; makedumpfile `IMPLEMENTATION`; LKCD; UEFI (GPT).

use super::magics::{MAGICS, RAW, STREAMS, UNPACK};

/// A container that is recognised and can't be read, and what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// With its article: "a qcow2 disk image".
    pub(super) what: &'static str,
    /// What to do.
    pub(super) hint: &'static str,
}

fn has(head: &[u8], at: usize, magic: &[u8]) -> bool {
    head.get(at..).is_some_and(|b| b.starts_with(magic))
}

/// A container that can't be read, by the first bytes of a file.
pub(super) fn known(head: &[u8]) -> Option<Known> {
    let zip = head.starts_with(b"PK\x03\x04").then(|| archive(head));
    let found = zip.or_else(|| {
        MAGICS
            .iter()
            .find(|(at, magic, ..)| has(head, *at, magic))
            .map(|(_, _, what, hint)| Known { what, hint })
    });
    found.or_else(|| {
        type Test = fn(&[u8]) -> bool;
        let by_structure: [(Test, &str, &str); 8] = [
            (
                is_zlib,
                "zlib-compressed (as LiME writes with compress=1)",
                "unpack it first: pigz -dz, or zlib-flate -uncompress",
            ),
            (is_lzma, "LZMA-compressed", "unpack it first: unlzma"),
            (is_bzip2, "bzip2-compressed", "unpack it first: bzip2 -d"),
            (
                is_compress,
                "compressed by compress",
                "unpack it first: uncompress",
            ),
            (
                is_skippable,
                "a zstd or LZ4 stream that begins with a skippable frame",
                "unpack it first",
            ),
            (is_tar, "a tar archive", "unpack it first: tar -x"),
            (
                is_lime_of_another_version,
                "a LiME capture of another version",
                "take it with format=lime, version 1",
            ),
            (
                is_elf_core_of_another_kind,
                "an ELF core of an unknown class or byte order",
                RAW,
            ),
        ];
        by_structure
            .into_iter()
            .find(|(is, ..)| is(head))
            .map(|(_, what, hint)| Known { what, hint })
    })
}

/// What a file only begins like, by its first bytes and its last 512.
pub(super) fn stream(head: &[u8], tail: &[u8]) -> Option<&'static str> {
    let by_magic = STREAMS
        .iter()
        .find(|(at, magic, _)| has(head, *at, magic))
        .map(|(.., what)| *what);
    by_magic
        .or_else(|| is_program(head).then_some("a Windows program"))
        .or_else(|| is_partitioned(head).then_some("a disk with a partition table"))
        .or_else(|| is_ext(head).then_some("an ext2, ext3 or ext4 volume"))
        .or_else(|| {
            tail.starts_with(b"conectix")
                .then_some("a fixed VHD disk image")
        })
        .or_else(|| tail.starts_with(b"koly").then_some("a macOS disk image"))
}

/// A ZIP archive, or one of the formats that are ZIP archives.
fn archive(head: &[u8]) -> Known {
    let aff4 = memchr::memmem::find(head, b"aff4").is_some()
        || memchr::memmem::find(head, b"container.description").is_some();
    if aff4 {
        return Known {
            what: "an AFF4 image",
            hint: "export it as raw",
        };
    }
    Known {
        what: "a ZIP archive",
        hint: UNPACK,
    }
}

fn u32_le(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(
        b.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

fn u64_le(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(
        b.get(at..at.checked_add(8)?)?.try_into().ok()?,
    ))
}

/// RFC 1950: the method is deflate, the check bits fit, and what follows can be inflated.
pub(crate) fn is_zlib(head: &[u8]) -> bool {
    let (Some(cmf), Some(flg)) = (head.first(), head.get(1)) else {
        return false;
    };
    let fits = cmf & 15 == 8
        && cmf >> 4 <= 7
        && (u32::from(*cmf) * 256 + u32::from(*flg)).is_multiple_of(31);
    if !fits || flg & 0x20 != 0 {
        return false;
    }
    use miniz_oxide::inflate::TINFLStatus;
    use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
    let mut out = vec![0; 64 << 10];
    let flags = inflate_flags::TINFL_FLAG_PARSE_ZLIB_HEADER
        | inflate_flags::TINFL_FLAG_HAS_MORE_INPUT
        | inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (status, _, n) = decompress(&mut DecompressorOxide::new(), head, &mut out, 0, flags);
    // A stream that goes on wants more bytes, or more room; garbage fails after a few symbols.
    match status {
        TINFLStatus::Done => n > 0,
        TINFLStatus::NeedsMoreInput | TINFLStatus::HasMoreOutput => n >= 256 || head.len() < 4096,
        _ => false,
    }
}

/// The header of `.lzma` files: properties of the usual encoders, a dictionary of a size that they use, and the
/// zero byte with which every range coder begins.
fn is_lzma(head: &[u8]) -> bool {
    let (Some(dict), Some(size)) = (u32_le(head, 1), u64_le(head, 5)) else {
        return false;
    };
    let round = dict.is_power_of_two() || (dict / 3).is_power_of_two() && dict.is_multiple_of(3);
    head.first() == Some(&0x5d)
        && round
        && dict >= 1 << 12
        && (size == u64::MAX || (size > 0 && size < 1 << 48))
        && head.get(13) == Some(&0)
}

/// `BZh`, a level, and the digits of pi (a block) or of its square root (an empty stream).
fn is_bzip2(head: &[u8]) -> bool {
    head.starts_with(b"BZh")
        && matches!(head.get(3), Some(b'1'..=b'9'))
        && (has(head, 4, b"1AY&SY") || has(head, 4, b"\x17rE8P\x90"))
}

/// LZW of `compress`: 9 to 16 bits; the first code is a literal of 9 bits.
fn is_compress(head: &[u8]) -> bool {
    let Some([b0, b1, flags, _, second]) = head.get(..5) else {
        return false;
    };
    (*b0, *b1) == (0x1f, 0x9d)
        && (9..=16).contains(&(flags & 0x1f))
        && flags & 0x60 == 0
        && second & 1 == 0
}

/// Skippable frames of zstd and LZ4, with a frame behind.
fn is_skippable(head: &[u8]) -> bool {
    let (Some(magic), Some(len)) = (u32_le(head, 0), u32_le(head, 4)) else {
        return false;
    };
    if magic & 0xffff_fff0 != 0x184d_2a50 {
        return false;
    }
    match usize::try_from(len)
        .ok()
        .and_then(|n| u32_le(head, n.checked_add(8)?))
    {
        Some(next) => {
            next & 0xffff_fff0 == 0x184d_2a50 || next == 0xfd2f_b528 || next == 0x184d_2204
        }
        // The frame behind lies past what was read.
        None => true,
    }
}

/// POSIX and GNU tar by their magic, older ones by the checksum of the header.
pub(crate) fn is_tar(head: &[u8]) -> bool {
    let Some(block) = head.get(..512) else {
        return false;
    };
    let digits: String = block[148..156]
        .iter()
        .filter(|b| b.is_ascii_digit())
        .map(|b| char::from(*b))
        .collect();
    let Ok(said) = u32::from_str_radix(&digits, 8) else {
        return false;
    };
    let rest: u32 = block[..148]
        .iter()
        .chain(&block[156..])
        .map(|b| u32::from(*b))
        .sum();
    block[0] != 0 && said == rest + 8 * u32::from(b' ')
}

fn is_lime_of_another_version(head: &[u8]) -> bool {
    head.starts_with(b"EMiL") && u32_le(head, 4) != Some(1)
}

fn is_elf_core_of_another_kind(head: &[u8]) -> bool {
    let Some([class, data]) = head.get(4..6) else {
        return false;
    };
    let core = has(head, 16, &[4, 0]) || has(head, 16, &[0, 4]);
    head.starts_with(b"\x7fELF") && core && !(matches!(class, 1 | 2) && matches!(data, 1 | 2))
}

/// `MZ` whose `e_lfanew` leads to `PE\0\0`.
fn is_program(head: &[u8]) -> bool {
    let at = u32_le(head, 0x3c).and_then(|n| usize::try_from(n).ok());
    head.starts_with(b"MZ") && at.is_some_and(|at| has(head, at, b"PE\0\0"))
}

/// A master boot record: its signature and four entries of which one is used and each is what one can be.
fn is_partitioned(head: &[u8]) -> bool {
    if !has(head, 510, b"\x55\xaa") {
        return false;
    }
    let entries: Vec<&[u8]> = (0..4)
        .filter_map(|i| head.get(446 + 16 * i..462 + 16 * i))
        .collect();
    let fits = |e: &&[u8]| {
        let (first, sectors) = (u32_le(e, 8).unwrap_or(0), u32_le(e, 12).unwrap_or(0));
        matches!(e[0], 0 | 0x80)
            && ((e[4] == 0 && first == 0 && sectors == 0)
                || (e[4] != 0 && first > 0 && sectors > 0))
    };
    entries.len() == 4 && entries.iter().all(fits) && entries.iter().any(|e| e[4] != 0)
}

/// The superblock at 1024: magic, block size, revision, state.
fn is_ext(head: &[u8]) -> bool {
    has(head, 0x438, b"\x53\xef")
        && u32_le(head, 0x418).is_some_and(|n| n <= 6)
        && u32_le(head, 0x44c).is_some_and(|n| n <= 1)
        && u32_le(head, 0x400).is_some_and(|n| n > 0)
        && u32_le(head, 0x404).is_some_and(|n| n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_magic_hides_another() {
        for (i, (at, magic, what, _)) in MAGICS.iter().enumerate() {
            let shadow = MAGICS[..i]
                .iter()
                .find(|(a, m, ..)| a == at && magic.starts_with(m));
            assert!(shadow.is_none(), "{what} is hidden by {shadow:?}");
            assert!(magic.len() >= 3, "{what}: too short to be no accident");
        }
    }

    #[test]
    fn memory_is_not_taken_for_a_container() {
        // The real-mode vectors with which the memory of a PC begins, zeros, and noise.
        let ivt: Vec<u8> = [0x53, 0xff, 0x00, 0xf0].repeat(1024);
        let noise: Vec<u8> = (0..4096u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        for head in [ivt, vec![0; 4096], vec![0xff; 4096], noise] {
            assert_eq!(known(&head), None);
            assert_eq!(stream(&head, &[0; 512]), None);
        }
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex"))
            .collect()
    }

    /// A LiME capture, packed by the zlib, liblzma and libbz2 of Python 3.11: their first bytes.
    #[test]
    fn streams_without_a_magic_are_known_by_their_structure() {
        for (head, what) in [
            (
                "7801edd73b0ac2401405d0d8a67209b384c44f93cec246740562119380361a8c9065b8643f483630ddc099e24d75e1715e75b787eb7e967ddffc37b2ecfdfaffd3cc77f52d8445289655b1aa8a7518bb73518661b8b4c7f254854dd374fdb36b435f0fc3787fb4f994f413204080000102040810204080000102a908e8ffa95cca9e0408102040800001020408102040205e40ff8fb793244080000102040810204080000102a908e8ffa95cca9e0408102040800001020408102040205e40ff8fb793244080000102040810204080000102a908e8ffa95cca9e0408102040800001020408102040205e40ff8fb793244080000102040810204080000102a908e8ffa95cca9e0408102040800001020408102040205ee003cf0479df",
                "zlib",
            ),
            (
                "789cedd73b0e01410000d0d1aa1c618e30ebd36ca7d0082710c5dadd84868d91ec311c19d13982c97bb7789bfd6537091fb3f0f57a861fd36d738d711ed3a24ecb3aade2d89f5215733e7787ea58c775dbf6c3a3efe2d0e43cdeeedd34000000007fc6ff010000a07cfe0f000000e5f37f000000289fff03000040f9fc1f000000cae7ff000000503eff07000080f2bd01cf0479df",
                "zlib",
            ),
            (
                "78daedd7ab0dc2400000d0c35631c28d70e563ea101802131044e93501030d47d2311819080e8526796f8bb7de9db793f0360d1fcf47f8526dda4b8cb398e64d5a346919c7fe98ea58ca29efeb4313575dd70ff73ec7a12d65bcde7215000000803fe3ff000000e0fffe0f000000fe0f000000f83f000000e0ff00000080ff03000000fe0f000000fcf602cf0479df",
                "zlib",
            ),
            (
                "5d00008000ffffffffffffffff002293498ea0d87b15f0cd1d9d7b99b6dfcea5ec1142",
                "LZMA",
            ),
            (
                "425a6839314159265359a211ecd1000164ffc2f010400040007e102216000a3e61dc",
                "bzip2",
            ),
        ] {
            let found = known(&hex(head));
            assert!(
                found.is_some_and(|k| k.what.starts_with(what)),
                "{what}: {found:?}"
            );
        }
        // What only begins like one of them is not taken for it.
        for head in [
            "789c0000000000000000",
            "5d00008000ffffffffffffffff01",
            "425a68390000000000000000",
        ] {
            let mut head = hex(head);
            head.resize(4096, 0);
            assert_eq!(known(&head), None);
        }
    }

    #[test]
    fn disks_and_documents_are_doubted() {
        let mut mbr = vec![0; 1024];
        mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(stream(&mbr, &[0; 512]), None, "no entry is used");
        mbr[446] = 0x80;
        mbr[450] = 0x83;
        mbr[454..458].copy_from_slice(&2048u32.to_le_bytes());
        mbr[458..462].copy_from_slice(&4096u32.to_le_bytes());
        assert_eq!(
            stream(&mbr, &[0; 512]),
            Some("a disk with a partition table")
        );
        let mut pe = vec![0; 512];
        pe[..2].copy_from_slice(b"MZ");
        pe[0x3c] = 0x80;
        pe[0x80..0x84].copy_from_slice(b"PE\0\0");
        assert_eq!(stream(&pe, &[0; 512]), Some("a Windows program"));
        let mut footer = vec![0; 512];
        footer[..8].copy_from_slice(b"conectix");
        assert_eq!(stream(&[0; 4096], &footer), Some("a fixed VHD disk image"));
        assert_eq!(stream(b"%PDF-1.7", &[]), Some("a PDF document"));
    }

    /// Where each file system's documentation says that its superblock and its magic lie.
    #[test]
    fn volumes_are_doubted() {
        for (at, magic, what) in [
            (0x1_0000 + 64, &b"_BHRfS_M"[..], "btrfs"),
            (0x1_0000 + 52, b"ReIsEr2Fs", "ReiserFS"),
            (0x8000, b"JFS1", "JFS"),
            (1024, &0xf2f5_2010u32.to_le_bytes(), "F2FS"),
            (1024, &0xe0f5_e1e2u32.to_le_bytes(), "EROFS"),
            (1024, b"H+\0\x04", "HFS+"),
            (32, b"NXSB", "APFS"),
            (512, b"LABELONE", "LVM"),
            (4096 - 10, b"SWAPSPACE2", "swap"),
            (0, &0x28cd_3d45u32.to_le_bytes(), "cramfs"),
            (0, &[0x3a, 0xff, 0x26, 0xed, 1, 0, 0, 0], "Android sparse"),
            (0x202, b"HdrS", "bzImage"),
            (0, b"ADSEGMENTEDFILE\0", "AD1"),
        ] {
            let mut head = vec![0; 68 << 10];
            head[at..at + magic.len()].copy_from_slice(magic);
            let found = stream(&head, &[0; 512]).unwrap_or("nothing");
            assert!(found.contains(what), "{what}: {found}");
        }
    }
}
