//! Many objects of one type: their fields are looked up once and read together.

use crate::linux::{Kernel, LinuxError, ReadError};
use ramsift_symbols::Field;

/// Some fields of a struct, those that this kernel lacks included.
#[derive(Clone, Copy, Debug)]
pub struct Fields<const N: usize> {
    at: [Option<Field>; N],
    first: u64,
    bytes: usize,
}

/// Bytes of a struct that are read at a time at most; no field of the kernel lies farther off.
const MAX: u64 = 64 << 10;

impl Kernel<'_> {
    /// Looks fields of a type up. A path that begins with `?` may be missing, and then reads as 0.
    pub fn fields<const N: usize>(
        &self,
        ty: &str,
        paths: [&str; N],
    ) -> Result<Fields<N>, LinuxError> {
        let types = self.symbols.types();
        let mut at = [None; N];
        for (slot, path) in at.iter_mut().zip(paths) {
            *slot = match path.strip_prefix('?') {
                Some(optional) => types.field(ty, optional).ok(),
                None => Some(types.field(ty, path)?),
            };
        }
        let found = || at.iter().flatten().filter(|f| f.offset < MAX);
        let first = found().map(|f| f.offset).min().unwrap_or(0);
        let end = found().map(|f| f.offset + f.size.min(8)).max().unwrap_or(0);
        Ok(Fields {
            at,
            first,
            bytes: usize::try_from(end.saturating_sub(first)).unwrap_or(0),
        })
    }
}

impl<const N: usize> Fields<N> {
    /// Whether this kernel's struct has a field, by its place in the list.
    pub fn has(&self, i: usize) -> bool {
        self.at.get(i).is_some_and(Option::is_some)
    }

    /// Address of a field of the struct at `va`; that of the struct where the field is missing.
    pub fn address(&self, va: u64, i: usize) -> u64 {
        let f = self.at.get(i).copied().flatten();
        va.wrapping_add(f.map_or(0, |f| f.offset))
    }

    /// The values of all fields of the struct at `va`: of longer ones the first 8 bytes.
    pub fn read(&self, kernel: &Kernel<'_>, va: u64) -> Result<[u64; N], ReadError> {
        let mut raw = vec![0; self.bytes];
        kernel.space.read(va.wrapping_add(self.first), &mut raw)?;
        let mut out = [0; N];
        for (value, field) in out.iter_mut().zip(&self.at) {
            let Some(f) = field else { continue };
            let from = usize::try_from(f.offset.wrapping_sub(self.first)).unwrap_or(usize::MAX);
            let n = usize::try_from(f.size).unwrap_or(usize::MAX).min(8);
            let Some(bytes) = raw.get(from..from.saturating_add(n)) else {
                continue;
            };
            let mut word = [0; 8];
            word[..n].copy_from_slice(bytes);
            *value = f.value(bytes).unwrap_or(u64::from_le_bytes(word));
        }
        Ok(out)
    }
}
