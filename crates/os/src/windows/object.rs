//! A struct at an address: fields by name, as the kernel's layouts say.

use super::space::wide;
use super::{Kernel, Space, WindowsError};
use ramsift_symbols::{Field, TypeError};

/// A struct in the captured machine's memory.
#[derive(Clone, Copy, Debug)]
pub struct Object<'k> {
    kernel: &'k Kernel<'k>,
    space: &'k Space<'k>,
    ty: &'static str,
    /// Its virtual address.
    pub va: u64,
}

/// A number or pointer of up to 8 bytes in the bytes of a struct.
pub(super) fn number_in(
    k: &Kernel<'_>,
    ty: &str,
    path: &str,
    bytes: &[u8],
) -> Result<Option<u64>, WindowsError> {
    let f = k.symbols.types().field(ty, path)?;
    let from = usize::try_from(f.offset).unwrap_or(usize::MAX);
    let raw = bytes.get(from..).unwrap_or_default();
    Ok(f.value(raw))
}

/// The text of a `_UNICODE_STRING` in the bytes of a struct, which it leads out of.
pub(super) fn unicode_in(
    k: &Kernel<'_>,
    ty: &str,
    path: &str,
    bytes: &[u8],
) -> Result<Option<String>, WindowsError> {
    let len = number_in(k, ty, &format!("{path}.Length"), bytes)?;
    let at = number_in(k, ty, &format!("{path}.Buffer"), bytes)?;
    let Some((len, at)) = len.zip(at).filter(|(_, at)| *at != 0) else {
        return Ok(None);
    };
    let len = usize::try_from(len).unwrap_or(0);
    Ok(k.space.utf16(at, len).ok())
}

/// Bytes of text in a field at most.
const MAX_TEXT: usize = 4096;

impl<'k> Object<'k> {
    pub(super) fn new(
        kernel: &'k Kernel<'_>,
        space: &'k Space<'_>,
        ty: &'static str,
        va: u64,
    ) -> Self {
        Self {
            kernel,
            space,
            ty,
            va,
        }
    }

    fn field(&self, path: &str) -> Result<Field, TypeError> {
        self.kernel.symbols.types().field(self.ty, path)
    }

    /// Whether this build's struct has a field.
    pub fn has(&self, path: &str) -> bool {
        self.kernel.symbols.types().has_field(self.ty, path)
    }

    /// Address of a field.
    pub fn at(&self, path: &str) -> Result<u64, WindowsError> {
        Ok(self.va.wrapping_add(self.field(path)?.offset))
    }

    /// A number or pointer of up to 8 bytes, or a bit-field.
    pub fn number(&self, path: &str) -> Result<u64, WindowsError> {
        let f = self.field(path)?;
        let mut raw = [0; 8];
        let n = usize::try_from(f.size).unwrap_or(usize::MAX).min(8);
        self.space
            .read(self.va.wrapping_add(f.offset), &mut raw[..n])?;
        // Longer than 8 bytes: the first 8 count.
        Ok(f.value(&raw).unwrap_or(u64::from_le_bytes(raw)))
    }

    /// The first of these fields that the build's struct has.
    pub fn first_of(&self, paths: &[&str]) -> Result<u64, WindowsError> {
        let own = paths.iter().find(|p| self.has(p));
        self.number(own.or(paths.first()).unwrap_or(&""))
    }

    /// The struct that a pointer leads to, in the same space; `None` where it is null.
    pub fn follow(&self, path: &str, ty: &'static str) -> Result<Option<Self>, WindowsError> {
        let va = self.number(path)?;
        Ok((va != 0).then_some(Self { ty, va, ..*self }))
    }

    /// A struct inside this one.
    pub fn inside(&self, path: &str, ty: &'static str) -> Result<Self, WindowsError> {
        let va = self.at(path)?;
        Ok(Self { ty, va, ..*self })
    }

    /// The text of an array of bytes, up to its NUL.
    pub fn text(&self, path: &str) -> Result<String, WindowsError> {
        let f = self.field(path)?;
        let n = usize::try_from(f.size).unwrap_or(usize::MAX).min(MAX_TEXT);
        let mut raw = vec![0; n];
        self.space.read(self.va.wrapping_add(f.offset), &mut raw)?;
        let end = raw.iter().position(|b| *b == 0).unwrap_or(n);
        Ok(String::from_utf8_lossy(&raw[..end]).into_owned())
    }

    /// The text of a `_UNICODE_STRING`.
    pub fn unicode(&self, path: &str) -> Result<String, WindowsError> {
        let s = self.inside(path, "_UNICODE_STRING")?;
        let len = usize::try_from(s.number("Length")?).unwrap_or(0);
        let at = s.number("Buffer")?;
        if len == 0 || at == 0 {
            return Ok(String::new());
        }
        let mut raw = vec![0; len & !1];
        self.space.read(at, &mut raw)?;
        Ok(wide(&raw))
    }

    /// Its physical address, where it has one.
    pub fn physical(&self) -> Option<u64> {
        self.space.translate(self.va).ok().map(|p| p.0)
    }
}
