//! Types of modules: structs that the kernel's own BTF lacks, because no part of the kernel itself uses
//! them.
//!
//! ```text
//! btf_modules -> btf_module { list, module, btf -> btf { data, data_size } }
//! ```
//!
//! `data` is a copy that the kernel made of the module's section, which is gone by then
//! (`module.btf_data` is null). It goes on where the kernel's blob ends.
//!
//! Source: Linux `kernel/bpf/btf.c` (`btf_module_notify`, `btf_parse_module`), 5.11 and later.

use crate::linux::{Kernel, LinuxError};
use ramsift_symbols::{Btf, btf};
use std::sync::Arc;

/// Modules that are looked at, and bytes of types of all of them, at most. Large machines have some 200
/// modules with 10 MB.
const MAX_MODULES: usize = 4096;
const MAX_BYTES: u64 = 64 << 20;

/// Adds the types of all modules that have some. What can't be read is noted in the kernel.
pub(in crate::linux) fn add(kernel: &mut Kernel<'_>, base: &Arc<Btf>) {
    let mut doubts = Vec::new();
    let blobs = kernel.module_btf(&mut doubts).unwrap_or_else(|e| {
        doubts.push(format!("types of modules: {e}"));
        Vec::new()
    });
    for (name, blob) in blobs {
        match Btf::parse_split(&blob, base) {
            Ok(split) => btf::add_split(kernel.symbols.types_mut(), &split),
            Err(e) => doubts.push(format!("types of module {name}: {e}")),
        }
    }
    kernel.untyped = doubts;
}

impl Kernel<'_> {
    /// The split BTF of modules with their names, in the order of the kernel's list; nothing where the kernel
    /// has no such list.
    pub fn module_btf(
        &self,
        doubts: &mut Vec<String>,
    ) -> Result<Vec<(String, Vec<u8>)>, LinuxError> {
        let mut out = Vec::new();
        let Some(head) = self.symbols.address("btf_modules") else {
            return Ok(out);
        };
        // Kernels that were built without types of modules have the list's symbol at most.
        if !self.symbols.types().has_field("btf_module", "btf") {
            return Ok(out);
        }
        let walk = self.list(head.0, "btf_module", "list")?;
        doubts.extend(walk.broken);
        if walk.items.len() > MAX_MODULES {
            doubts.push(format!(
                "{} modules have types, those of {MAX_MODULES} are read",
                walk.items.len()
            ));
        }
        let mut left = MAX_BYTES;
        for va in walk.items.into_iter().take(MAX_MODULES) {
            match blob(self, va, &mut left) {
                Ok(Some(found)) => out.push(found),
                Ok(None) => doubts.push(format!(
                    "btf_module at {va:#x}: modules have more than {MAX_BYTES} bytes of types"
                )),
                Err(e) => doubts.push(format!("btf_module at {va:#x}: {e}")),
            }
        }
        Ok(out)
    }
}

/// The blob of one module; `None` where it is more than is left.
fn blob(
    kernel: &Kernel<'_>,
    va: u64,
    left: &mut u64,
) -> Result<Option<(String, Vec<u8>)>, LinuxError> {
    let entry = kernel.object("btf_module", va);
    let name = kernel
        .object("module", entry.number("module")?)
        .text("name")?;
    let btf = kernel.object("btf", entry.number("btf")?);
    let (data, size) = (btf.number("data")?, btf.number("data_size")? & 0xffff_ffff);
    let Some(rest) = left.checked_sub(size) else {
        return Ok(None);
    };
    *left = rest;
    let mut raw = vec![0; usize::try_from(size).unwrap_or(0)];
    kernel.space.read(data, &mut raw)?;
    Ok(Some((name, raw)))
}
