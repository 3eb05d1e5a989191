//! Loaded modules: their memory and their symbols, wherever the kernel still knows of them.
//!
//! ```text
//! until 6.3   core_layout, init_layout { base, size, text_size, ro_size, ro_after_init_size }
//! from 6.4    mem[] { base, size }, by enum mod_mem_type
//! kallsyms -> mod_kallsyms { symtab -> Elf64_Sym[num_symtab], strtab, typetab }
//! mod_tree    latched tree of all modules' memory: a node for the core and one for init
//! ```
//!
//! Sources: Linux `include/linux/module.h`, `kernel/module/tree_lookup.c`, `kernel/module/kallsyms.c`.

use crate::linux::{Kernel, LinuxError, Object};
use std::collections::BTreeSet;

/// A piece of a module's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// `text`, `data`, `rodata`, `ro_after_init`, `init_text`, …; until 6.3 `core` and `init`.
    pub kind: &'static str,
    /// Its first byte.
    pub base: u64,
    /// Its bytes.
    pub size: u64,
    /// How many of them, from the first, are code.
    pub text: u64,
    /// Whether it is thrown away once the module has been loaded.
    pub init: bool,
}

/// Kinds of memory in the order of `enum mod_mem_type`.
const KINDS: [(&str, &str); 7] = [
    ("MOD_TEXT", "text"),
    ("MOD_DATA", "data"),
    ("MOD_RODATA", "rodata"),
    ("MOD_RO_AFTER_INIT", "ro_after_init"),
    ("MOD_INIT_TEXT", "init_text"),
    ("MOD_INIT_DATA", "init_data"),
    ("MOD_INIT_RODATA", "init_rodata"),
];

/// Bytes of a module's memory at most: more than the area of all modules has.
const MAX_SIZE: u64 = 2 << 30;

/// The pieces of a module's memory that there are.
pub(in crate::linux) fn parts(m: &Object<'_>) -> Result<Vec<Part>, LinuxError> {
    let mut out = Vec::new();
    if m.has("core_layout") {
        for (kind, init) in [("core", false), ("init", true)] {
            let field = |f: &str| m.number(&format!("{kind}_layout.{f}"));
            let (size, text) = (field("size")?, field("text_size")?);
            out.push(Part {
                kind,
                base: field("base")?,
                size,
                text: text.min(size),
                init,
            });
        }
    } else {
        let types = m.kernel().symbols.types();
        for (i, (constant, kind)) in KINDS.into_iter().enumerate() {
            let i = types
                .enum_value("mod_mem_type", constant)
                .unwrap_or(i as i64);
            let size = m.number(&format!("mem[{i}].size"))?;
            out.push(Part {
                kind,
                base: m.number(&format!("mem[{i}].base"))?,
                size,
                text: if kind.ends_with("text") { size } else { 0 },
                init: kind.starts_with("init"),
            });
        }
    }
    out.retain(|p| p.base != 0 && (1..MAX_SIZE).contains(&p.size));
    Ok(out)
}

/// Whether a text can be a module's name.
pub(in crate::linux) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

/// A symbol of a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::linux) struct ModuleSymbol {
    pub(in crate::linux) name: String,
    pub(in crate::linux) address: u64,
    pub(in crate::linux) size: u64,
    /// The letter that `nm` gives it.
    pub(in crate::linux) kind: u8,
    /// Whether it is a function.
    pub(in crate::linux) function: bool,
}

/// Symbols of a module at most, and bytes of their names.
const MAX_SYMBOLS: u64 = 1 << 18;
const MAX_NAMES: u64 = 16 << 20;

/// Symbols of a module as /proc/kallsyms lists them: those with a name.
pub(in crate::linux) fn symbols(m: &Object<'_>) -> Result<Vec<ModuleSymbol>, LinuxError> {
    let kernel = m.kernel();
    let Some(k) = m.follow("kallsyms", "mod_kallsyms")? else {
        return Ok(Vec::new());
    };
    let (table, strings) = (k.number("symtab")?, k.number("strtab")?);
    let letters = if k.has("typetab") {
        k.number("typetab")?
    } else {
        0
    };
    let types = kernel.symbols.types();
    let size = types.size_of("elf64_sym")?;
    let count = k.number("num_symtab")? & 0xffff_ffff;
    let count = count.min(MAX_SYMBOLS);
    let field = |name: &str| types.field("elf64_sym", name);
    let (name, info, value, bytes) = (
        field("st_name")?,
        field("st_info")?,
        field("st_value")?,
        field("st_size")?,
    );
    let mut raw = vec![0; usize::try_from(count * size).unwrap_or(0)];
    kernel.space.read(table, &mut raw)?;
    let mut kinds = vec![b'?'; usize::try_from(count).unwrap_or(0)];
    if letters != 0 {
        kernel.space.read(letters, &mut kinds)?;
    }
    let mut out = Vec::new();
    for (i, s) in raw
        .chunks_exact(usize::try_from(size).unwrap_or(24))
        .enumerate()
    {
        let get = |f: ramsift_symbols::Field| {
            let from = usize::try_from(f.offset).unwrap_or(usize::MAX);
            f.value(s.get(from..).unwrap_or_default()).unwrap_or(0)
        };
        let at = get(name);
        if at == 0 || at >= MAX_NAMES {
            continue;
        }
        let text = kernel.text(strings.wrapping_add(at), 512)?;
        if !text.is_empty() {
            out.push(ModuleSymbol {
                name: text,
                address: get(value),
                size: get(bytes),
                kind: kinds.get(i).copied().unwrap_or(b'?'),
                // The low half of st_info: STT_FUNC.
                function: get(info) & 15 == 2,
            });
        }
    }
    Ok(out)
}

impl Kernel<'_> {
    /// The modules of the kernel's list, in its order.
    pub fn modules(&self, doubts: &mut Vec<String>) -> Result<Vec<Object<'_>>, LinuxError> {
        let walk = self.list(self.address("modules")?, "module", "list")?;
        doubts.extend(walk.broken);
        let object = |va: &u64| self.object("module", *va);
        Ok(walk.items.iter().map(object).collect())
    }

    /// The modules whose memory is in the kernel's tree of it, by address. Nothing where the kernel
    /// has no such tree.
    pub fn modules_in_tree(&self, doubts: &mut Vec<String>) -> Result<BTreeSet<u64>, LinuxError> {
        match self.symbols.address("mod_tree") {
            Some(root) => self.modules_below(root.0, doubts),
            None => Ok(BTreeSet::new()),
        }
    }

    /// The modules of the tree whose `latch_tree_root` is at an address.
    pub(in crate::linux) fn modules_below(
        &self,
        root: u64,
        doubts: &mut Vec<String>,
    ) -> Result<BTreeSet<u64>, LinuxError> {
        let types = self.symbols.types();
        let root = root.wrapping_add(types.field("latch_tree_root", "tree")?.offset);
        let walk = self.rb_tree(root)?;
        doubts.extend(walk.broken);
        let node = types.field("mod_tree_node", "node.node")?.offset;
        let owner = types.field("mod_tree_node", "mod")?.offset;
        let mut out = BTreeSet::new();
        for n in walk.items {
            // The first of the two trees: its nodes are the first of each pair.
            match self.space.u64(n.wrapping_sub(node).wrapping_add(owner)) {
                Ok(m) => out.extend((m != 0).then_some(m)),
                Err(e) => doubts.push(format!("mod_tree's node at {n:#x}: {e}")),
            }
        }
        Ok(out)
    }
}
