//! A machine of a few pages for unit tests: memory that is mapped onto itself, and types as an ISF.

use super::{AddressSpace, Kernel};
use ramsift_layers::translate::{PhysError, PhysRead, X86_64};
use ramsift_layers::{Dtb, PhysAddr};

/// Memory with tables in its first pages; what lies behind is the test's.
pub(super) struct Machine(Vec<u8>);

/// A struct: name, size, fields with offset and type.
pub(super) type Type<'t> = (&'t str, u64, &'t [(&'t str, u64, &'t str)]);

/// The first address that is free.
pub(super) const FREE: u64 = 0x3000;

impl PhysRead for Machine {
    fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
        let at = usize::try_from(pa.0).unwrap_or(usize::MAX);
        let from = self.0.get(at..at.saturating_add(buf.len()));
        buf.copy_from_slice(from.ok_or(PhysError::NotInImage { pa })?);
        Ok(())
    }
}

impl Machine {
    pub(super) fn new(bytes: usize) -> Self {
        let mut m = Self(vec![0; bytes]);
        m.put(0x1000, 0x2003);
        // The first GiB.
        m.put(0x2000, 0x83);
        m
    }

    pub(super) fn put(&mut self, at: u64, word: u64) {
        let at = usize::try_from(at).expect("small");
        self.0[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }

    /// A kernel with these types.
    pub(super) fn kernel(&self, types: &[Type<'_>]) -> Kernel<'_> {
        let of = |ty: &str| match ty {
            "pointer" => r#"{"kind":"pointer","subtype":{"kind":"base","name":"void"}}"#.to_owned(),
            n => format!(r#"{{"kind":"base","name":"{n}"}}"#),
        };
        let user: Vec<String> = types
            .iter()
            .map(|(name, size, fields)| {
                let fields: Vec<String> = fields
                    .iter()
                    .map(|(f, at, ty)| format!(r#""{f}":{{"offset":{at},"type":{}}}"#, of(ty)))
                    .collect();
                let fields = fields.join(",");
                format!(r#""{name}":{{"size":{size},"kind":"struct","fields":{{{fields}}}}}"#)
            })
            .collect();
        let base = |name: &str, size: u32, kind: &str| {
            format!(
                r#""{name}":{{"size":{size},"signed":false,"kind":"{kind}","endian":"little"}}"#
            )
        };
        let base = [
            base("void", 0, "void"),
            base("byte", 1, "int"),
            base("pointer", 8, "int"),
        ];
        let isf = format!(
            r#"{{"metadata":{{"format":"6.2.0"}},"base_types":{{{}}},"user_types":{{{}}},"enums":{{}},"symbols":{{}}}}"#,
            base.join(","),
            user.join(",")
        );
        Kernel {
            info: ramsift_symbols::VmCoreInfo::default(),
            space: AddressSpace::new(self, X86_64, Dtb(0x1000)),
            symbols: ramsift_symbols::isf::parse("test", isf.as_bytes()).expect("an ISF"),
            scanned: std::cell::OnceCell::new(),
            found: std::collections::BTreeSet::new(),
            ends: std::collections::BTreeMap::new(),
            untyped: Vec::new(),
        }
    }
}
