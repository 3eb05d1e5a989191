//! A struct of the kernel at an address: fields by name, as the kernel's own types say.

use crate::linux::{Kernel, LinuxError};
use ramsift_symbols::{Field, TypeError};

/// A struct in the captured machine's memory.
#[derive(Clone, Copy, Debug)]
pub struct Object<'k> {
    kernel: &'k Kernel<'k>,
    ty: &'static str,
    /// Its virtual address.
    pub va: u64,
}

/// Bytes of text in a field or behind a pointer at most.
const MAX_TEXT: usize = 4096;

impl<'k> Object<'k> {
    pub(crate) fn new(kernel: &'k Kernel<'_>, ty: &'static str, va: u64) -> Self {
        Self { kernel, ty, va }
    }

    /// The kernel that it belongs to.
    pub fn kernel(&self) -> &'k Kernel<'k> {
        self.kernel
    }

    fn field(&self, path: &str) -> Result<Field, TypeError> {
        self.kernel.symbols.types().field(self.ty, path)
    }

    /// Whether this kernel's struct has a field.
    pub fn has(&self, path: &str) -> bool {
        self.kernel.symbols.types().has_field(self.ty, path)
    }

    /// Address of a field.
    pub fn at(&self, path: &str) -> Result<u64, LinuxError> {
        Ok(self.va.wrapping_add(self.field(path)?.offset))
    }

    /// A number or pointer of up to 8 bytes, or a bit-field.
    pub fn number(&self, path: &str) -> Result<u64, LinuxError> {
        let f = self.field(path)?;
        let mut raw = [0; 8];
        let n = usize::try_from(f.size).unwrap_or(usize::MAX).min(8);
        self.kernel
            .space
            .read(self.va.wrapping_add(f.offset), &mut raw[..n])?;
        // Longer than 8 bytes: the first 8 count, as for arrays of one word.
        Ok(f.value(&raw).unwrap_or(u64::from_le_bytes(raw)))
    }

    /// A signed number of 4 bytes.
    pub fn int(&self, path: &str) -> Result<i64, LinuxError> {
        let n = self.number(path)?;
        Ok(i64::from((n & 0xffff_ffff) as u32 as i32))
    }

    /// The struct that a pointer field leads to; `None` where it is null.
    pub fn follow(&self, path: &str, ty: &'static str) -> Result<Option<Self>, LinuxError> {
        let va = self.number(path)?;
        Ok((va != 0).then(|| Self::new(self.kernel, ty, va)))
    }

    /// A struct inside this one.
    pub fn inside(&self, path: &str, ty: &'static str) -> Result<Self, LinuxError> {
        Ok(Self::new(self.kernel, ty, self.at(path)?))
    }

    /// The text of an array of characters, up to its NUL.
    pub fn text(&self, path: &str) -> Result<String, LinuxError> {
        let f = self.field(path)?;
        let n = usize::try_from(f.size).unwrap_or(usize::MAX).min(MAX_TEXT);
        let mut raw = vec![0; n];
        self.kernel
            .space
            .read(self.va.wrapping_add(f.offset), &mut raw)?;
        let end = raw.iter().position(|b| *b == 0).unwrap_or(n);
        Ok(String::from_utf8_lossy(&raw[..end]).into_owned())
    }

    /// Its physical address, where it has one.
    pub fn physical(&self) -> Option<u64> {
        self.kernel.space.translate(self.va).ok().map(|p| p.0)
    }
}
