//! Spots that help to find the kernel in the image.
//!
//! ```text
//! linux_banner          "Linux version 6.1.0-..." up to its line end       init/version.c
//! vmcoreinfo            "OSRELEASE=..." and the lines after it, 4 KiB      kernel/vmcore_info.c
//! kallsyms_token_table  "0\0" "1\0" ... "9\0", the digits' tokens          scripts/kallsyms.c
//! btf                   9F EB 01 00, header length 24, lengths that fit    include/uapi/linux/btf.h
//! swapper               "swapper/0", the idle task's name                  init/init_task.c
//! rsds                  "RSDS", GUID, age, the kernel's PDB name           CodeView in PE debug data
//! ```

use crate::carver::{Carver, Hit};
use memchr::memmem;

pub(crate) struct Anchors;

/// Longest data of an anchor.
const LONGEST: usize = 4096;
const BANNER: &[u8] = b"Linux version ";
const VMCOREINFO: &[u8] = b"OSRELEASE=";
/// The digits after 0, whose token is looked for behind: `swapper/0` must not overlap it.
const TOKENS: &[u8] = b"1\x002\x003\x004\x005\x006\x007\x008\x009\0";
const ZERO: &[u8] = b"0\0";
const BTF: &[u8] = b"\x9f\xeb\x01\x00\x18\0\0\0";
const SWAPPER: &[u8] = b"swapper/0";
const RSDS: &[u8] = b"RSDS";

/// Names of the Windows kernel's symbol files.
const PDBS: &[&[u8]] = &[
    b"ntkrnlmp.pdb",
    b"ntoskrnl.pdb",
    b"ntkrpamp.pdb",
    b"ntkrnlpa.pdb",
    b"ntkrnlup.pdb",
];

impl Carver for Anchors {
    fn name(&self) -> &'static str {
        "anchors"
    }

    fn version(&self) -> u32 {
        1
    }

    fn literals(&self) -> &'static [&'static [u8]] {
        &[BANNER, VMCOREINFO, TOKENS, BTF, SWAPPER, RSDS]
    }

    fn reach(&self) -> usize {
        ZERO.len()
    }

    fn visit(&self, at: usize, hit: &mut Hit<'_, '_>) {
        let data = hit.source.data;
        if data[at..].starts_with(TOKENS) {
            if data[..at].ends_with(ZERO) {
                let len = ZERO.len() + TOKENS.len();
                hit.anchor("kallsyms_token_table", at - ZERO.len(), len);
            }
            return;
        }
        if !hit.owns(at) {
            return;
        }
        let rest = &data[at..];
        let rest = &rest[..rest.len().min(LONGEST)];
        if let Some((kind, len)) = recognise(rest) {
            hit.anchor(kind, at, len);
        }
    }
}

/// What begins here, and how long its telling bytes are.
fn recognise(rest: &[u8]) -> Option<(&'static str, usize)> {
    let printable = |b: &u8| (0x20..0x7f).contains(b) || *b == b'\t';
    let line = |b: &[u8]| b.iter().position(|b| !printable(b)).unwrap_or(b.len());
    if let Some(text) = rest.strip_prefix(BANNER) {
        // `%s` is the format string, and `x` an example in a text.
        let version = text.first().is_some_and(u8::is_ascii_digit);
        return version.then(|| ("linux_banner", line(rest)));
    }
    if let Some(text) = rest.strip_prefix(VMCOREINFO) {
        let version = text.first().is_some_and(u8::is_ascii_digit);
        let end = rest
            .iter()
            .position(|b| !printable(b) && *b != b'\n')
            .unwrap_or(rest.len());
        let block = memmem::find(&rest[..end], b"\nPAGESIZE=").is_some()
            || memmem::find(&rest[..end], b"\nSYMBOL(").is_some();
        return (version && block).then_some(("vmcoreinfo", end));
    }
    if rest.starts_with(BTF) {
        let h = rest.get(..24)?;
        let n = |i: usize| u64::from(u32::from_le_bytes([h[i], h[i + 1], h[i + 2], h[i + 3]]));
        let (type_off, type_len, str_off, str_len) = (n(8), n(12), n(16), n(20));
        let fits = type_off % 4 == 0
            && type_len % 4 == 0
            && type_off + type_len <= str_off
            && str_len > 0
            && str_off + str_len < 256 << 20;
        return fits.then_some(("btf", 24));
    }
    if rest.starts_with(SWAPPER) {
        // "swapper/01" would be another processor's.
        let ends = !rest.get(SWAPPER.len()).is_some_and(u8::is_ascii_digit);
        return ends.then_some(("swapper", SWAPPER.len()));
    }
    let name = rest.strip_prefix(RSDS)?.get(20..)?;
    let end = memchr::memchr(0, &name[..name.len().min(260)])?;
    let file = name[..end].rsplit(|&b| b == b'\\').next()?;
    let kernel = PDBS.iter().any(|p| p.eq_ignore_ascii_case(file));
    kernel.then_some(("rsds", 24 + end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_an_anchor_and_what_is_not() {
        let banner = b"Linux version 6.1.0-18-amd64 (debian-kernel) #1 SMP\n\0";
        assert_eq!(recognise(banner), Some(("linux_banner", banner.len() - 2)));
        assert_eq!(recognise(b"Linux version %s (%s)"), None);
        assert_eq!(
            recognise(b"OSRELEASE=6.1\nPAGESIZE=4096\n\0"),
            Some(("vmcoreinfo", 28))
        );
        assert_eq!(recognise(b"OSRELEASE=%s\n"), None);
        assert_eq!(recognise(b"swapper/0\0"), Some(("swapper", 9)));
        assert_eq!(recognise(b"swapper/01"), None);
        let mut rsds = b"RSDS0123456789abcdef\x01\0\0\0ntkrnlmp.pdb\0".to_vec();
        assert_eq!(recognise(&rsds), Some(("rsds", 37)));
        rsds[24] = b'x';
        assert_eq!(recognise(&rsds), None);
        let mut btf = BTF.to_vec();
        for n in [0u32, 400, 400, 100] {
            btf.extend(n.to_le_bytes());
        }
        assert_eq!(recognise(&btf), Some(("btf", 24)));
        btf[12] = 1;
        assert_eq!(recognise(&btf), None);
    }
}
