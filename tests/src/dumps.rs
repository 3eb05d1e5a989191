//! The everyday capture in the formats of other tools.

use crate::fixtures::{capture, folder};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Bytes of memory in a range that AVML packs.
const BLOCK: usize = 16 << 20;

/// The folder with what `dumps.py` has makedumpfile and QEMU write: `vmcore.elf`, `makedumpfile-*.kdump`, `qemu.elf`,
/// `qemu-zlib.kdump`.
pub fn dumps() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let dir = folder().join(format!("dumps-{}", version()));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/dumps.py");
        let image = &capture().image;
        let done = Command::new("python3")
            .arg(script)
            .arg(image.parent().expect("a folder"))
            .arg("--out")
            .arg(&dir)
            .status()
            .expect("python3");
        assert!(
            done.success(),
            "dumps.py failed: apt-get install makedumpfile qemu-system-x86"
        );
        dir
    })
}

/// Which build of the capture it is: what was made of another is made again.
fn version() -> &'static str {
    let sha256 = &capture().info["files"]["memory.raw"]["sha256"];
    &sha256.as_str().expect("a hash in info.json")[..12]
}

/// The ranges of a LiME file: first physical address and bytes.
fn ranges(lime: &[u8]) -> Vec<(u64, &[u8])> {
    let number = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("eight bytes"));
    let (mut out, mut rest) = (Vec::new(), lime);
    while !rest.is_empty() {
        let (head, data) = rest.split_at(32);
        let (first, last) = (number(&head[8..16]), number(&head[16..24]));
        let (bytes, behind) = data.split_at(usize::try_from(last - first + 1).expect("small"));
        out.push((first, bytes));
        rest = behind;
    }
    out
}

/// A LiME file as AVML packs it: blocks of 16 MiB, those of zeros left out, each a frame of the snap crate, which AVML uses.
pub fn avml(lime: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (first, bytes) in ranges(lime) {
        for (i, block) in bytes.chunks(BLOCK).enumerate() {
            if block.iter().all(|b| *b == 0) {
                continue;
            }
            let pa = first + (i * BLOCK) as u64;
            out.extend(b"AVML\x02\0\0\0");
            for v in [pa, pa + block.len() as u64 - 1, 0] {
                out.extend(v.to_le_bytes());
            }
            let mut w = snap::write::FrameEncoder::new(Vec::new());
            w.write_all(block).expect("into memory");
            let frame = w.into_inner().expect("into memory");
            out.extend(&frame);
            out.extend((frame.len() as u64).to_le_bytes());
        }
    }
    out
}

/// The everyday capture as an AVML file.
pub fn avml_capture() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let lime = capture().image.with_file_name("memory.lime");
        let path = folder().join(format!("memory-{}.avml", version()));
        if !path.exists() {
            let packed = avml(&std::fs::read(lime).expect("the LiME form of the capture"));
            let part = folder().join(format!("memory-{}.part", std::process::id()));
            std::fs::write(&part, packed).expect("write");
            std::fs::rename(part, &path).expect("rename");
        }
        path
    })
}
