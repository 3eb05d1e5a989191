//! The symbol table of one kernel: names, addresses and types, and where each part came from.

use crate::globals::global;
use crate::kallsyms::Kallsyms;
use crate::types::{Shape, TypeId, Types};
use hashbrown::{DefaultHashBuilder, HashTable};
use ramsift_layers::VirtAddr;
use std::fmt;
use std::hash::BuildHasher;

/// Where a part of a table came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// Nowhere: the part is missing.
    #[default]
    None,
    /// The kernel's own table, by the addresses in VMCOREINFO.
    KallsymsVmcoreinfo,
    /// The kernel's own table, found by its token table.
    KallsymsCarved,
    /// The kernel's own types, by the symbol `__start_BTF`.
    BtfSymbol,
    /// The kernel's own types, found by their header.
    BtfCarved,
    /// An ISF of this name.
    Isf(String),
    /// The debug information of this file.
    Dwarf(String),
    /// The table of layouts that the program carries, by GUID and age of the symbol file.
    Layouts(String),
    /// Layouts of the nearest kernel that the program knows.
    Nearest {
        /// GUID of that kernel's symbol file.
        of: String,
        /// The symbol file that would be exact: name, GUID and age.
        exact: String,
    },
    /// One of the above, parts of which lie in pages that are missing or overwritten.
    Damaged {
        /// Where it is.
        of: Box<Source>,
        /// What of it can't be read.
        lost: usize,
        /// How many there are.
        all: usize,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::KallsymsVmcoreinfo => f.write_str("kallsyms via VMCOREINFO"),
            Self::KallsymsCarved => f.write_str("kallsyms carved"),
            Self::BtfSymbol => f.write_str("BTF at __start_BTF"),
            Self::BtfCarved => f.write_str("BTF carved"),
            Self::Isf(name) => write!(f, "ISF {name}"),
            Self::Dwarf(name) => write!(f, "DWARF of {name}"),
            Self::Layouts(key) => write!(f, "layouts built in for {key}"),
            Self::Nearest { of, exact } => write!(
                f,
                "layouts built in for {of}, the nearest that fits; {exact} would be exact"
            ),
            Self::Damaged { of, lost, all } => {
                write!(f, "{of}, {lost} of {all} in damaged pages")
            }
        }
    }
}

/// Where the parts of a table came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provenance {
    /// Names and addresses.
    pub symbols: Source,
    /// Types.
    pub types: Source,
}

/// A symbol to enter into a table.
#[derive(Clone, Copy, Debug)]
pub struct NewSymbol<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its address, before any shift.
    pub address: u64,
    /// The letter that `nm` gives it; `?` if unknown.
    pub kind: u8,
    /// Its type, if the provider has it.
    pub ty: Option<TypeId>,
}

/// A symbol of a [`SymbolTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its address; of absolute per-CPU symbols, the offset in each CPU's area.
    pub address: VirtAddr,
    /// The letter that `nm` gives it: `T` text, `D` data, `B` zeroed, `R` constant, lower case
    /// for local ones, `A` absolute; `?` where the provider does not say.
    pub kind: u8,
    /// The module that it belongs to; `None` for the kernel itself.
    pub module: Option<&'a str>,
}

/// The type of a symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SymbolType {
    /// The type behind arrays and pointers.
    pub base: TypeId,
    /// How many pointers lead to it.
    pub pointers: u8,
    /// Whether the symbol is an array of that, and of how many; 0 where it isn't known.
    pub array: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    address: u64,
    at: u32,
    len: u16,
    module: u16,
    ty: TypeId,
    kind: u8,
}

/// Kernel addresses begin here; what is below is an offset in per-CPU areas or a constant.
const KERNEL: u64 = 0xff00_0000_0000_0000;

/// Symbols, types and their origin.
#[derive(Clone)]
pub struct SymbolTable {
    text: String,
    /// By address; equal addresses stay in the order in which they were entered.
    entries: Vec<Entry>,
    names: HashTable<u32>,
    hasher: DefaultHashBuilder,
    modules: Vec<String>,
    types: Types,
    provenance: Provenance,
    banner: Option<String>,
    shift: u64,
}

impl fmt::Debug for SymbolTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SymbolTable")
            .field("symbols", &self.entries.len())
            .field("types", &self.types)
            .field("provenance", &self.provenance)
            .field("banner", &self.banner)
            .finish_non_exhaustive()
    }
}

impl SymbolTable {
    /// A table of these symbols and types.
    pub fn new<'a>(
        symbols: impl IntoIterator<Item = NewSymbol<'a>>,
        types: Types,
        provenance: Provenance,
    ) -> Self {
        let mut table = Self {
            text: String::new(),
            entries: Vec::new(),
            names: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            modules: Vec::new(),
            types,
            provenance,
            banner: None,
            shift: 0,
        };
        table.enter(symbols, 0);
        table
    }

    /// A table of what a kernel carries itself.
    pub fn from_kernel(symbols: &Kallsyms, types: Types, provenance: Provenance) -> Self {
        let new = symbols.iter().map(|s| NewSymbol {
            name: s.name,
            address: s.address.0,
            kind: s.kind,
            ty: None,
        });
        Self::new(new, types, provenance)
    }

    /// Adds symbols of the kernel itself that its table leaves out and that were found otherwise.
    pub fn add<'a>(&mut self, symbols: impl IntoIterator<Item = NewSymbol<'a>>) {
        self.enter(symbols, 0);
    }

    /// Adds the symbols of a module.
    pub fn add_module<'a>(
        &mut self,
        module: &str,
        symbols: impl IntoIterator<Item = NewSymbol<'a>>,
    ) {
        self.modules.push(module.to_owned());
        // Number 0 is the kernel. Nobody loads 65,535 modules; beyond, they share the last.
        let number = u16::try_from(self.modules.len()).unwrap_or(u16::MAX);
        self.enter(symbols, number);
    }

    fn enter<'a>(&mut self, symbols: impl IntoIterator<Item = NewSymbol<'a>>, module: u16) {
        let symbols = symbols.into_iter();
        self.entries.reserve(symbols.size_hint().0);
        for s in symbols {
            let (Ok(at), Ok(len)) = (u32::try_from(self.text.len()), u16::try_from(s.name.len()))
            else {
                continue;
            };
            self.text.push_str(s.name);
            self.entries.push(Entry {
                address: s.address,
                at,
                len,
                module,
                ty: s.ty.unwrap_or_default(),
                kind: s.kind,
            });
        }
        self.entries.sort_by_key(|e| e.address);
        let Self {
            text,
            entries,
            names,
            hasher,
            ..
        } = self;
        let hash =
            |i: &u32| hasher.hash_one(entries.get(*i as usize).map_or("", |e| name_of(text, e)));
        names.clear();
        names.reserve(entries.len(), hash);
        for i in 0..u32::try_from(entries.len()).unwrap_or(u32::MAX) {
            names.insert_unique(hash(&i), i, hash);
        }
    }

    /// Moves all addresses of the kernel image up: what address randomisation did to a kernel that
    /// the provider knows as linked. Per-CPU offsets stay. Wraps.
    #[must_use]
    pub fn shifted(mut self, by: u64) -> Self {
        for e in &mut self.entries {
            if e.address >= KERNEL {
                e.address = e.address.wrapping_add(by);
            }
        }
        // A sane shift keeps the order.
        if self.entries.windows(2).any(|w| w[0].address > w[1].address) {
            self.enter([], 0);
        }
        self.shift = self.shift.wrapping_add(by);
        self
    }

    /// The same types with other symbols, from another source.
    #[must_use]
    pub fn with_symbols<'s>(
        self,
        symbols: impl IntoIterator<Item = NewSymbol<'s>>,
        from: Source,
    ) -> Self {
        let provenance = Provenance {
            symbols: from.clone(),
            types: from,
        };
        Self::new(symbols, self.types, provenance)
    }

    /// Takes all addresses as offsets in an image that lies at `base`: symbol files of Windows have such. Wraps.
    #[must_use]
    pub fn based(mut self, base: u64) -> Self {
        for e in &mut self.entries {
            e.address = e.address.wrapping_add(base);
        }
        self.enter([], 0);
        self.shift = self.shift.wrapping_add(base);
        self
    }

    /// By how much addresses were moved.
    pub fn shift(&self) -> u64 {
        self.shift
    }

    /// An address as the provider has it, without the shift.
    pub(crate) fn linked(&self, address: u64) -> u64 {
        if address >= KERNEL {
            address.wrapping_sub(self.shift)
        } else {
            address
        }
    }

    /// The type that the provider gives a symbol.
    pub(crate) fn own_type(&self, name: &str) -> Option<TypeId> {
        self.numbers(name)
            .iter()
            .filter_map(|i| self.entries.get(*i as usize))
            .map(|e| e.ty)
            .find(|ty| *ty != TypeId::VOID)
            .or_else(|| self.types.variable(name))
    }

    /// Notes the kernel's banner.
    #[must_use]
    pub fn with_banner(mut self, banner: Option<String>) -> Self {
        self.banner = banner;
        self
    }

    /// The banner of the kernel that this is for, as far as the provider says.
    pub fn banner(&self) -> Option<&str> {
        self.banner.as_deref()
    }

    /// Where the parts came from.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// The types.
    pub fn types(&self) -> &Types {
        &self.types
    }

    /// The types, to add those of modules.
    pub fn types_mut(&mut self) -> &mut Types {
        &mut self.types
    }

    /// How many symbols there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes that this takes in memory, types included.
    pub fn memory_bytes(&self) -> usize {
        self.text.capacity()
            + self.entries.capacity() * size_of::<Entry>()
            + self.names.allocation_size()
            + self.types.memory_bytes()
    }

    fn symbol(&self, e: &Entry) -> Symbol<'_> {
        let module = usize::from(e.module).checked_sub(1);
        Symbol {
            name: name_of(&self.text, e),
            address: VirtAddr(e.address),
            kind: e.kind,
            module: module.and_then(|m| self.modules.get(m)).map(String::as_str),
        }
    }

    /// All symbols, by address.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Symbol<'_>> {
        self.entries.iter().map(|e| self.symbol(e))
    }

    fn numbers(&self, name: &str) -> Vec<u32> {
        let hash = self.hasher.hash_one(name);
        let is = |i: &u32| {
            let e = self.entries.get(*i as usize);
            e.is_some_and(|e| name_of(&self.text, e) == name)
        };
        let mut all: Vec<u32> = self.names.iter_hash(hash).copied().filter(is).collect();
        all.sort_unstable();
        all
    }

    /// All symbols of a name, by address. Local names are often used by several source files.
    pub fn symbols(&self, name: &str) -> Vec<Symbol<'_>> {
        let numbers = self.numbers(name);
        let entries = numbers.iter().filter_map(|i| self.entries.get(*i as usize));
        entries.map(|e| self.symbol(e)).collect()
    }

    /// The symbol of a name: the kernel's before a module's, a global one before local ones, then
    /// the lowest address.
    pub fn find(&self, name: &str) -> Option<Symbol<'_>> {
        let best = |e: &&Entry| (e.module != 0, !e.kind.is_ascii_uppercase(), e.address);
        let numbers = self.numbers(name);
        let e = numbers
            .iter()
            .filter_map(|i| self.entries.get(*i as usize))
            .min_by_key(best)?;
        Some(self.symbol(e))
    }

    /// The address of [`find`](Self::find).
    pub fn address(&self, name: &str) -> Option<VirtAddr> {
        self.find(name).map(|s| s.address)
    }

    /// The last symbol at or below an address, and how far above it the address is. Where several
    /// share the place, a global one. `None` below all, and for kernel addresses below the image.
    pub fn nearest(&self, va: VirtAddr) -> Option<(Symbol<'_>, u64)> {
        let end = self.entries.partition_point(|e| e.address <= va.0);
        let last = self.entries.get(end.checked_sub(1)?)?;
        if va.0 >= KERNEL && last.address < KERNEL {
            return None;
        }
        let same = self.entries.partition_point(|e| e.address < last.address);
        let equal = self.entries.get(same..end).unwrap_or_default();
        let e = equal
            .iter()
            .find(|e| e.kind.is_ascii_uppercase())
            .or(equal.first())?;
        Some((self.symbol(e), va.0 - e.address))
    }

    /// The next address above this one that has a symbol: the end of a function or a variable, as
    /// far as symbols tell.
    pub fn next_address(&self, va: VirtAddr) -> Option<VirtAddr> {
        let i = self.entries.partition_point(|e| e.address <= va.0);
        self.entries.get(i).map(|e| VirtAddr(e.address))
    }

    /// The type of a symbol: the provider's own if it has one (an ISF has all, BTF those of
    /// per-CPU variables), else by the table of well-known globals.
    pub fn type_of(&self, name: &str) -> Option<SymbolType> {
        if let Some(ty) = self.own_type(name) {
            return Some(self.peel(ty));
        }
        let (ty, pointers, array) = global(name)?;
        Some(SymbolType {
            base: self.types.find(ty)?,
            pointers,
            array: array.then_some(0),
        })
    }

    /// Takes a type apart into array, pointers and what is behind them.
    fn peel(&self, ty: TypeId) -> SymbolType {
        let types = &self.types;
        let (mut base, mut array) = (self.plain(ty), None);
        for _ in 0..8 {
            let Some((element, count)) = types.array(base) else {
                break;
            };
            array = Some(array.map_or(count, |n: u32| n.saturating_mul(count)));
            base = self.plain(element);
        }
        let mut pointers = 0;
        while let Some(target) = types.target(base)
            && pointers < 8
        {
            pointers += 1;
            base = self.plain(target);
        }
        SymbolType {
            base,
            pointers,
            array,
        }
    }

    /// Without qualifiers, and without typedefs of pointers and arrays; typedefs of structs stay
    /// what they are, under both names.
    fn plain(&self, ty: TypeId) -> TypeId {
        match self.types.shape(ty) {
            Shape::Qualified { .. } | Shape::Typedef { .. } => self.types.resolve(ty),
            _ => ty,
        }
    }
}

fn name_of<'a>(text: &'a str, e: &Entry) -> &'a str {
    text.get(e.at as usize..e.at as usize + usize::from(e.len))
        .unwrap_or_default()
}
