//! Real captures, with what the captured machine recorded about itself.

use ramsift_layers::PhysAddr;
use ramsift_layers::translate::{PhysError, PhysRead};
use ramsift_symbols::{VmCoreInfo, kallsyms};
use std::path::{Path, PathBuf};

/// A raw image in memory.
pub(crate) struct Image {
    pub(crate) bytes: Vec<u8>,
    pub(crate) base: u64,
}

impl PhysRead for Image {
    fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
        let missing = PhysError::NotInImage { pa };
        let Some(at) = pa.0.checked_sub(self.base) else {
            return Err(missing);
        };
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        match at
            .checked_add(buf.len())
            .and_then(|end| self.bytes.get(at..end))
        {
            Some(b) => buf.copy_from_slice(b),
            None => return Err(missing),
        }
        Ok(())
    }
}

/// One capture: its image, its truth, and what it says of itself.
pub(crate) struct Capture {
    pub(crate) name: String,
    pub(crate) image: Image,
    pub(crate) truth: serde_json::Value,
    pub(crate) info: VmCoreInfo,
}

/// Where captures lie: `RAMSIFT_CAPTURES`, or `.test-tools/captures` at the root of the tree.
pub(crate) fn folder() -> PathBuf {
    std::env::var_os("RAMSIFT_CAPTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.test-tools/captures"),
        PathBuf::from,
    )
}

fn missing(what: &Path) -> ! {
    panic!(
        "{} is missing: `tests/run --install` builds the captures, RAMSIFT_CAPTURES says where \
         they are",
        what.display()
    )
}

/// Reads a file of the captures.
pub(crate) fn read(rel: &str) -> Vec<u8> {
    let path = folder().join(rel);
    std::fs::read(&path).unwrap_or_else(|_| missing(&path))
}

/// The captures whose name contains `part`. None is a failure, not a pass.
pub(crate) fn names(part: &str) -> Vec<String> {
    let dir = folder();
    let mut all: Vec<String> = std::fs::read_dir(&dir)
        .unwrap_or_else(|_| missing(&dir))
        .filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|n| n.contains(part) && dir.join(n).join("truth.json").exists())
        .collect();
    all.sort();
    if all.is_empty() {
        missing(&dir.join(part));
    }
    all
}

pub(crate) fn open(name: &str) -> Capture {
    let json = |file: &str| -> serde_json::Value {
        serde_json::from_slice(&read(&format!("{name}/{file}"))).expect("json")
    };
    let truth = json("truth.json");
    let base = json("info.json")["raw_base"].as_u64().unwrap_or(0);
    let raw = folder().join(name).join("memory.raw");
    let bytes = match std::fs::read(&raw) {
        Ok(b) => b,
        Err(_) => zstd::decode_all(&read(&format!("{name}/memory.raw.zst"))[..]).expect("zstd"),
    };
    let info = vmcoreinfo(&bytes).expect("a VMCOREINFO in the image");
    let image = Image { bytes, base };
    Capture {
        name: name.into(),
        image,
        truth,
        info,
    }
}

fn vmcoreinfo(bytes: &[u8]) -> Option<VmCoreInfo> {
    memchr::memmem::find_iter(bytes, b"OSRELEASE=")
        .filter_map(|at| VmCoreInfo::parse(&bytes[at..(at + 8192).min(bytes.len())]).ok())
        .max_by_key(VmCoreInfo::len)
        .filter(|v| v.len() > 20)
}

impl Capture {
    /// Physical addresses of a byte string.
    pub(crate) fn hits(&self, needle: &[u8]) -> Vec<PhysAddr> {
        memchr::memmem::find_iter(&self.image.bytes, needle)
            .map(|at| PhysAddr(at as u64 + self.image.base))
            .collect()
    }

    /// What to add to a physical address of the kernel image.
    pub(crate) fn delta(&self) -> u64 {
        kallsyms::image_delta(&self.info).expect("phys_base or kimage_voffset")
    }

    /// The guest's own kallsyms: address, kind, name.
    pub(crate) fn truth_symbols(&self) -> Vec<(u64, u8, String)> {
        let lines = self.truth["kallsyms"].as_array().expect("samples");
        let parse = |l: &serde_json::Value| {
            let mut w = l.as_str()?.split_whitespace();
            let address = u64::from_str_radix(w.next()?, 16).ok()?;
            Some((
                address,
                *w.next()?.as_bytes().first()?,
                w.next()?.to_owned(),
            ))
        };
        lines.iter().filter_map(parse).collect()
    }
}
