//! Function pointers: which a struct has, and what is to be said of one that leads astray.

use crate::linux::{CodeMap, Kernel, Owner};
use crate::table::Table;
use ramsift_layers::Severity;
use ramsift_symbols::Field;
use ramsift_symbols::Shape;

/// The members of a struct that are pointers to functions, with their places.
pub(in crate::linux) fn functions<'k>(kernel: &'k Kernel<'_>, ty: &str) -> Vec<(&'k str, Field)> {
    let types = kernel.symbols.types();
    let Some(id) = types.find(ty) else {
        return Vec::new();
    };
    let mut all = types.fields(id);
    all.retain(|(_, f)| {
        let target = types.target(f.ty).map(|t| types.resolve(t));
        target.is_some_and(|t| types.shape(t) == Shape::Function)
    });
    all
}

/// The functions that the struct of pointers at `va` leads to: name, address; null ones left out.
/// Read in one go.
pub(in crate::linux) fn pointers<'k>(
    kernel: &Kernel<'_>,
    functions: &[(&'k str, Field)],
    va: u64,
) -> Result<Vec<(&'k str, u64)>, crate::linux::ReadError> {
    let end = functions
        .iter()
        .map(|(_, f)| f.offset.saturating_add(8))
        .max();
    let size = end.unwrap_or(0).min(4096);
    let mut raw = vec![0; usize::try_from(size).unwrap_or(0)];
    kernel.space.read(va, &mut raw)?;
    let value = |f: &Field| f.value(raw.get(usize::try_from(f.offset).ok()?..)?);
    let all = functions.iter().filter_map(|(n, f)| Some((*n, value(f)?)));
    Ok(all.filter(|(_, v)| *v != 0).collect())
}

/// How an owner is told in a sentence.
pub(in crate::linux) fn whose(va: u64, owner: &Owner) -> String {
    match owner {
        Owner::Unknown => format!("{va:#x}, which is no code that the kernel knows of"),
        Owner::Module {
            name, hidden: true, ..
        } => format!("{va:#x}: {owner}, and {name} is missing from the list of modules"),
        _ => format!("{va:#x}: {owner}"),
    }
}

/// Flags the last row if `target` is not known code. `what` leads there, in words. Gives the owner.
pub(in crate::linux) fn judge(
    out: &mut Table,
    code: &CodeMap<'_>,
    rule: &'static str,
    what: &str,
    target: u64,
) -> Owner {
    let owner = code.owner(target);
    if !owner.is_known() {
        let reason = format!("{what} leads to {}", whose(target, &owner));
        out.flag(rule, Severity::Critical, reason);
    }
    owner
}
