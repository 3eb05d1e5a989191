//! Whose code an address is: the kernel's, a module's, generated.
//!
//! | owner | from |
//! | --- | --- |
//! | kernel | `_stext.._etext`; init text until it is given back |
//! | module | text of the modules in the list |
//! | hidden module | text of those that only `mod_tree` still has |
//! | eBPF | `bpf_kallsyms`: programs, trampolines, dispatchers; the packs that they lie in |
//! | trampoline | `ftrace_ops_trampoline_list`, slots of `kprobe_insn_slots` and `kprobe_optinsn_slots` |
//!
//! A hook that leads elsewhere, or into a hidden module, is somebody's who does not want to be seen.
//!
//! Sources: Linux `kernel/extable.c` (`kernel_text_address`), `kernel/bpf/core.c`,
//! `kernel/trace/ftrace.c`, `kernel/kprobes.c`.

use crate::linux::module::{self, ModuleSymbol, Part};
use crate::linux::{Kernel, LinuxError};
use ramsift_layers::VirtAddr;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::rc::Rc;

/// Whose code an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The kernel's own.
    Kernel {
        /// Its function.
        symbol: String,
        /// Bytes into it.
        offset: u64,
    },
    /// A module's.
    Module {
        /// Its name.
        name: String,
        /// Its function and bytes into it; else bytes into its memory.
        symbol: Option<String>,
        /// Bytes into that.
        offset: u64,
        /// Whether the module is missing from the kernel's list.
        hidden: bool,
    },
    /// An eBPF program or what the kernel made for one.
    Bpf(String),
    /// Made by ftrace or kprobes.
    Trampoline {
        /// What it is for.
        of: String,
        /// Whether it calls code that the kernel knows.
        known: bool,
    },
    /// Nobody's that the kernel knows.
    Unknown,
}

impl Owner {
    /// Whether the kernel knows whose it is, and lists it.
    pub fn is_known(&self) -> bool {
        !matches!(
            self,
            Self::Unknown
                | Self::Module { hidden: true, .. }
                | Self::Trampoline { known: false, .. }
        )
    }

    /// The name of the module, if it is one's.
    pub fn module(&self) -> Option<&str> {
        match self {
            Self::Module { name, .. } => Some(name),
            _ => None,
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel { symbol, offset: 0 } => f.write_str(symbol),
            Self::Kernel { symbol, offset } => write!(f, "{symbol}+{offset:#x}"),
            Self::Module {
                name,
                symbol,
                offset,
                hidden,
            } => {
                if let Some(s) = symbol {
                    f.write_str(s)?;
                }
                if *offset != 0 || symbol.is_none() {
                    write!(f, "+{offset:#x}")?;
                }
                let how = if *hidden { "hidden module " } else { "" };
                write!(f, " [{how}{name}]")
            }
            Self::Bpf(name) => write!(f, "eBPF {name}"),
            Self::Trampoline { of, .. } => f.write_str(of),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// Memory of one owner.
#[derive(Clone, Debug)]
struct Region {
    end: u64,
    /// Where its code ends.
    text: u64,
    whose: Whose,
}

#[derive(Clone, Debug)]
enum Whose {
    Kernel,
    Module {
        va: u64,
        name: Rc<str>,
        hidden: bool,
    },
    Bpf(Rc<str>),
    Trampoline {
        of: Rc<str>,
        known: bool,
    },
}

/// A module that is not in the list and still in the tree of modules' memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::linux) struct Hidden {
    pub(in crate::linux) va: u64,
    pub(in crate::linux) name: String,
    pub(in crate::linux) parts: Vec<Part>,
}

/// A piece of generated code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::linux) struct Generated {
    pub(in crate::linux) start: u64,
    pub(in crate::linux) end: u64,
    pub(in crate::linux) name: String,
    /// What /proc/kallsyms has in the module's place.
    pub(in crate::linux) of: &'static str,
}

type Symbols = Rc<Vec<ModuleSymbol>>;

/// The kernel's code, by address.
#[derive(Debug)]
pub struct CodeMap<'k> {
    kernel: &'k Kernel<'k>,
    regions: BTreeMap<u64, Region>,
    hidden: Vec<Hidden>,
    generated: Vec<Generated>,
    symbols: RefCell<HashMap<u64, Symbols>>,
}

/// Bytes of a pack of eBPF programs: one large page. On machines of several nodes they are larger,
/// but every program in them is in `bpf_kallsyms` too.
const PACK: u64 = 2 << 20;

impl<'k> CodeMap<'k> {
    /// Gathers it. What can't be read is a doubt.
    pub fn new(kernel: &'k Kernel<'k>, doubts: &mut Vec<String>) -> Result<Self, LinuxError> {
        let mut map = Self {
            kernel,
            regions: BTreeMap::new(),
            hidden: Vec::new(),
            generated: Vec::new(),
            symbols: RefCell::default(),
        };
        let (start, end) = (kernel.address("_stext")?, kernel.address("_etext")?);
        map.add(start, end, end, Whose::Kernel);
        if booting(kernel)
            && let Some((a, b)) = bounds(kernel, "_sinittext", "_einittext")
        {
            map.add(a, b, b, Whose::Kernel);
        }
        map.modules(doubts)?;
        // Each of these is only there where something has made it.
        let parts: [(&str, Gather<'k>); 4] = [
            ("bpf_kallsyms", Self::bpf),
            ("pack_list", Self::packs),
            ("ftrace_ops_trampoline_list", Self::trampolines),
            ("kprobe slots", Self::slots),
        ];
        for (what, part) in parts {
            if let Err(e) = part(&mut map, doubts)
                && !matches!(e, LinuxError::Symbol(_) | LinuxError::Type(_))
            {
                doubts.push(format!("{what}: {e}"));
            }
        }
        Ok(map)
    }

    /// A map of no code.
    #[cfg(test)]
    pub(in crate::linux) fn empty(kernel: &'k Kernel<'k>) -> Self {
        Self {
            kernel,
            regions: BTreeMap::new(),
            hidden: Vec::new(),
            generated: Vec::new(),
            symbols: RefCell::default(),
        }
    }

    fn add(&mut self, start: u64, end: u64, text: u64, whose: Whose) {
        if start < end && !self.regions.contains_key(&start) {
            self.regions.insert(start, Region { end, text, whose });
        }
    }

    fn note(&mut self, start: u64, end: u64, name: &str, of: &'static str) {
        self.generated.push(Generated {
            start,
            end,
            name: name.into(),
            of,
        });
    }

    fn modules(&mut self, doubts: &mut Vec<String>) -> Result<(), LinuxError> {
        let listed: Vec<u64> = self.kernel.modules(doubts)?.iter().map(|m| m.va).collect();
        let mut rest = self.kernel.modules_in_tree(doubts).unwrap_or_default();
        for va in &listed {
            rest.remove(va);
        }
        let all = listed.iter().map(|va| (*va, false));
        for (va, hidden) in all.chain(rest.iter().map(|va| (*va, true))) {
            let m = self.kernel.object("module", va);
            let (name, parts) = match (m.text("name"), module::parts(&m)) {
                (Ok(n), Ok(p)) => (n, p),
                (Err(e), _) | (_, Err(e)) => {
                    doubts.push(format!("struct module at {va:#x}: {e}"));
                    continue;
                }
            };
            let short: Rc<str> = name.as_str().into();
            for p in &parts {
                let whose = Whose::Module {
                    va,
                    name: Rc::clone(&short),
                    hidden,
                };
                let at = |n: u64| p.base.saturating_add(n);
                self.add(p.base, at(p.size), at(p.text), whose);
            }
            if hidden {
                self.hidden.push(Hidden { va, name, parts });
            }
        }
        Ok(())
    }

    fn bpf(&mut self, doubts: &mut Vec<String>) -> Result<(), LinuxError> {
        let kernel = self.kernel;
        let head = kernel.address("bpf_kallsyms")?;
        let walk = kernel.list(head, "bpf_ksym", "lnode")?;
        doubts.extend(walk.broken);
        let fields = kernel.fields("bpf_ksym", ["start", "end"])?;
        for va in walk.items {
            let [start, end] = fields.read(kernel, va)?;
            let name = kernel.object("bpf_ksym", va).text("name")?;
            let name: Rc<str> = name.as_str().into();
            self.note(start, end, &name, "bpf");
            self.add(start, end, end, Whose::Bpf(name));
        }
        Ok(())
    }

    fn packs(&mut self, doubts: &mut Vec<String>) -> Result<(), LinuxError> {
        let kernel = self.kernel;
        let head = kernel.address("pack_list")?;
        let walk = kernel.list(head, "bpf_prog_pack", "list")?;
        doubts.extend(walk.broken);
        for va in walk.items {
            let start = kernel.object("bpf_prog_pack", va).number("ptr")?;
            let end = start.saturating_add(PACK);
            self.add(start, end, end, Whose::Bpf("program in a pack".into()));
        }
        Ok(())
    }

    fn trampolines(&mut self, doubts: &mut Vec<String>) -> Result<(), LinuxError> {
        let kernel = self.kernel;
        let head = kernel.address("ftrace_ops_trampoline_list")?;
        let walk = kernel.list(head, "ftrace_ops", "list")?;
        doubts.extend(walk.broken);
        let fields = kernel.fields("ftrace_ops", ["trampoline", "trampoline_size", "func"])?;
        for va in walk.items {
            let [start, size, func] = fields.read(kernel, va)?;
            let end = start.saturating_add(size);
            let handler = self.owner(func);
            let whose = Whose::Trampoline {
                of: format!("ftrace trampoline of {handler}").as_str().into(),
                known: handler.is_known(),
            };
            self.note(start, end, "ftrace_trampoline", "__builtin__ftrace");
            self.add(start, end, end, whose);
        }
        Ok(())
    }

    fn slots(&mut self, doubts: &mut Vec<String>) -> Result<(), LinuxError> {
        let kernel = self.kernel;
        let pages = kernel
            .symbols
            .types()
            .field("kprobe_insn_cache", "pages")?
            .offset;
        for (name, page, of) in [
            ("kprobe_insn_slots", "kprobe_insn_page", "slot of a kprobe"),
            (
                "kprobe_optinsn_slots",
                "kprobe_optinsn_page",
                "slot of an optimised kprobe",
            ),
        ] {
            let Ok(cache) = kernel.address(name) else {
                continue;
            };
            let walk = kernel.list(cache.wrapping_add(pages), "kprobe_insn_page", "list")?;
            doubts.extend(walk.broken);
            for va in walk.items {
                let start = kernel.object("kprobe_insn_page", va).number("insns")?;
                let end = start.saturating_add(4096);
                self.note(start, end, page, "__builtin__kprobes");
                let whose = Whose::Trampoline {
                    of: of.into(),
                    known: true,
                };
                self.add(start, end, end, whose);
            }
        }
        Ok(())
    }

    /// Modules that are missing from the list.
    pub(in crate::linux) fn hidden(&self) -> &[Hidden] {
        &self.hidden
    }

    /// Generated code, under the names that /proc/kallsyms has for it.
    pub(in crate::linux) fn generated(&self) -> &[Generated] {
        &self.generated
    }

    /// The region that an address lies in: of regions inside each other (a program in its pack)
    /// the inner one.
    fn region(&self, va: u64) -> Option<(u64, &Region)> {
        let below = self.regions.range(..=va).rev().take(512);
        below
            .map(|(start, r)| (*start, r))
            .find(|(_, r)| va < r.end)
    }

    /// Whose memory an address is, data of modules included.
    pub fn place(&self, va: u64) -> Owner {
        match self.region(va) {
            Some((start, r)) => self.name(va, start, &r.whose),
            None => Owner::Unknown,
        }
    }

    /// Whose code an address is. Data are nobody's code.
    pub fn owner(&self, va: u64) -> Owner {
        match self.region(va) {
            Some((start, r)) if va < r.text => self.name(va, start, &r.whose),
            _ => Owner::Unknown,
        }
    }

    fn name(&self, va: u64, start: u64, whose: &Whose) -> Owner {
        match whose {
            Whose::Kernel => {
                let near = self.kernel.symbols.nearest(VirtAddr(va));
                let (symbol, offset) = near.map_or(("_stext", va - start), |(s, o)| (s.name, o));
                Owner::Kernel {
                    symbol: symbol.to_owned(),
                    offset,
                }
            }
            Whose::Module {
                va: m,
                name,
                hidden,
            } => {
                let symbols = self.module_symbols(*m);
                let end = symbols.partition_point(|s| s.address <= va);
                let last = end.checked_sub(1).and_then(|i| symbols.get(i));
                let near = last.filter(|s| s.address >= start);
                Owner::Module {
                    name: name.to_string(),
                    symbol: near.map(|s| s.name.clone()),
                    offset: va - near.map_or(start, |s| s.address),
                    hidden: *hidden,
                }
            }
            Whose::Bpf(name) => Owner::Bpf(name.to_string()),
            Whose::Trampoline { of, known } => Owner::Trampoline {
                of: of.to_string(),
                known: *known,
            },
        }
    }

    /// Symbols of the module whose struct is at `va`, by address; none where they can't be read.
    pub(in crate::linux) fn module_symbols(&self, va: u64) -> Symbols {
        if let Some(known) = self.symbols.borrow().get(&va) {
            return Rc::clone(known);
        }
        let m = self.kernel.object("module", va);
        let mut all = module::symbols(&m).unwrap_or_default();
        all.retain(|s| s.address != 0);
        all.sort_by_key(|s| s.address);
        let all = Rc::new(all);
        self.symbols.borrow_mut().insert(va, Rc::clone(&all));
        all
    }
}

type Gather<'k> = fn(&mut CodeMap<'k>, &mut Vec<String>) -> Result<(), LinuxError>;

fn bounds(kernel: &Kernel<'_>, from: &str, to: &str) -> Option<(u64, u64)> {
    let address = |n: &str| kernel.symbols.address(n).map(|a| a.0);
    Some((address(from)?, address(to)?))
}

/// Whether the machine was still starting, so that init text is code.
fn booting(kernel: &Kernel<'_>) -> bool {
    let freed = kernel.symbols.types().constant("SYSTEM_FREEING_INITMEM");
    match (kernel.u32_at("system_state"), freed) {
        (Ok(state), Some(freed)) => i64::from(state) < freed,
        _ => false,
    }
}
