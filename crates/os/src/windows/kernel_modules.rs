//! Which module of the kernel holds an address.
//!
//! Source: the public type `_KLDR_DATA_TABLE_ENTRY`.

use super::{Kernel, WindowsError, lists};

/// A module of the kernel's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) base: u64,
    pub(super) end: u64,
}

/// The modules of the kernel's list.
#[derive(Clone, Debug)]
pub(super) struct Modules {
    /// By their place.
    all: Vec<Module>,
    /// Whether the list is broken: then nobody can say that an address is in no module.
    torn: bool,
}

/// The lower half of addresses is processes'.
pub(super) fn is_kernel(va: u64) -> bool {
    va >> 47 == 0x1_ffff
}

impl Modules {
    /// Those of the list. What breaks it off is a doubt.
    pub(super) fn new(k: &Kernel<'_>, doubts: &mut Vec<String>) -> Result<Self, WindowsError> {
        let ty = k.module_type();
        let walk = lists::list(k, k.address("PsLoadedModuleList")?, ty, "InLoadOrderLinks")?;
        let mut torn = walk.broken.is_some();
        doubts.extend(walk.broken);
        let mut all = Vec::with_capacity(walk.items.len());
        for va in walk.items {
            let m = k.object(ty, va);
            match (m.number("DllBase"), m.number("SizeOfImage")) {
                (Ok(base), Ok(size)) => all.push(Module {
                    name: m.unicode("BaseDllName").unwrap_or_default(),
                    base,
                    end: base.saturating_add(size),
                }),
                _ => torn = true,
            }
        }
        all.sort_by_key(|m| m.base);
        Ok(Self { all, torn })
    }

    /// The module that holds an address.
    pub(super) fn of(&self, va: u64) -> Option<&Module> {
        let at = self.all.partition_point(|m| m.base <= va);
        let m = self.all.get(at.checked_sub(1)?)?;
        (va < m.end).then_some(m)
    }

    /// The module of a name, whatever its case.
    pub(super) fn named(&self, name: &str) -> Option<&Module> {
        self.all.iter().find(|m| m.name.eq_ignore_ascii_case(name))
    }

    /// Its name.
    pub(super) fn name(&self, va: u64) -> Option<&str> {
        self.of(va).map(|m| m.name.as_str())
    }

    /// Whether an address of the kernel's is in none of them, as far as the list tells.
    pub(super) fn lack(&self, va: u64) -> bool {
        !self.torn && is_kernel(va) && self.of(va).is_none()
    }
}
