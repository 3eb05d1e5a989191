//! VMCOREINFO: the block of text that a Linux kernel keeps for crash dumps.
//!
//! ```text
//! OSRELEASE=6.1.0-56-amd64
//! BUILD-ID=...
//! SYMBOL(swapper_pg_dir)=ffffffff9ee10000
//! NUMBER(phys_base)=-33554432
//! KERNELOFFSET=1c000000
//! ```
//!
//! Lines end in `\n`, the block in NUL. `SYMBOL` values and `KERNELOFFSET` are hexadecimal without
//! prefix; `NUMBER` values are decimal and may be negative, or hexadecimal with `0x` (arm64).
//!
//! Source: Linux, `kernel/crash_core.c` and `Documentation/admin-guide/kdump/vmcoreinfo.rst`.

use std::collections::BTreeMap;

/// A parsed block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmCoreInfo {
    values: BTreeMap<String, String>,
}

/// The block is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no VMCOREINFO: expected OSRELEASE= at the start, found {found:?}")]
pub struct VmCoreInfoError {
    found: String,
}

/// Lines of a block at most; real ones have about a hundred.
const MAX_LINES: usize = 1000;

impl VmCoreInfo {
    /// Parses the text up to the first NUL or to the first line that is not of the format.
    pub fn parse(data: &[u8]) -> Result<Self, VmCoreInfoError> {
        let end = data.iter().position(|b| *b == 0).unwrap_or(data.len());
        let text = String::from_utf8_lossy(&data[..end]);
        if !text.starts_with("OSRELEASE=") {
            return Err(VmCoreInfoError {
                found: text.chars().take(40).collect(),
            });
        }
        let mut values = BTreeMap::new();
        for line in text.lines().take(MAX_LINES) {
            let Some((k, v)) = line.split_once('=') else {
                break;
            };
            if k.is_empty() || !k.bytes().all(|b| b.is_ascii_graphic()) {
                break;
            }
            values.insert(k.to_owned(), v.to_owned());
        }
        Ok(Self { values })
    }

    /// The value of a key as it stands.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Kernel release.
    pub fn release(&self) -> Option<&str> {
        self.get("OSRELEASE")
    }

    /// Build id, hex (5.9 and later).
    pub fn build_id(&self) -> Option<&str> {
        self.get("BUILD-ID")
    }

    /// Virtual address of a symbol.
    pub fn symbol(&self, name: &str) -> Option<u64> {
        u64::from_str_radix(self.get(&format!("SYMBOL({name})"))?, 16).ok()
    }

    /// All symbols with their virtual addresses.
    pub fn symbols(&self) -> impl Iterator<Item = (&str, u64)> {
        self.values.iter().filter_map(|(key, value)| {
            let name = key.strip_prefix("SYMBOL(")?.strip_suffix(')')?;
            Some((name, u64::from_str_radix(value, 16).ok()?))
        })
    }

    /// A number; negative ones wrap, as the kernel's own arithmetic does.
    pub fn number(&self, name: &str) -> Option<u64> {
        let v = self.get(&format!("NUMBER({name})"))?;
        match v.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => v
                .parse::<i64>()
                .ok()
                .map(i64::cast_unsigned)
                .or_else(|| v.parse().ok()),
        }
    }

    /// How far the kernel was moved from where it was linked.
    pub fn kernel_offset(&self) -> Option<u64> {
        u64::from_str_radix(self.get("KERNELOFFSET")?, 16).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_both_architectures() {
        let v = VmCoreInfo::parse(
            b"OSRELEASE=6.1.0\nBUILD-ID=ab12\nNUMBER(phys_base)=-33554432\n\
              SYMBOL(_stext)=ffffffff81000000\nNUMBER(kimage_voffset)=0xffffb03986a00000\n\
              KERNELOFFSET=1c000000\n\0NUMBER(late)=1",
        )
        .expect("valid");
        assert_eq!(v.release(), Some("6.1.0"));
        assert_eq!(
            v.number("phys_base"),
            Some((-33_554_432i64).cast_unsigned())
        );
        assert_eq!(v.number("kimage_voffset"), Some(0xffff_b039_86a0_0000));
        assert_eq!(v.symbol("_stext"), Some(0xffff_ffff_8100_0000));
        assert_eq!(v.kernel_offset(), Some(0x1c00_0000));
        assert_eq!(v.number("late"), None);
        let all: Vec<_> = v.symbols().collect();
        assert_eq!(all, [("_stext", 0xffff_ffff_8100_0000)]);
        assert!(VmCoreInfo::parse(b"VERSION=1\n").is_err());
    }
}
