//! Symbols: what a captured kernel says of its own addresses and types.
//!
//! ```text
//! vmcoreinfo   where things are, in the kernel's own words
//! kallsyms     names and addresses of the kernel's symbols     \
//! btf          the kernel's types                               > a SymbolTable
//! isf, dwarf   both, from files that others made               /
//! pdb          both, of Windows kernels, from their own symbol files
//! layouts      both, of Windows kernels, from a table built in /
//! store        the files, found by the kernel's banner
//! types        questions about types, the same whoever told
//! ```
//!
//! All input is hostile: lengths are capped, arithmetic is checked, memory is bounded, and errors
//! say what was wrong where. See `docs/symbols.md`.

pub mod btf;
pub mod dwarf;
mod globals;
pub mod isf;
pub mod kallsyms;
pub mod layouts;
pub mod pdb;
mod phys;
pub mod store;
pub mod table;
pub mod types;
pub mod vmcoreinfo;

pub use btf::Btf;
pub use kallsyms::Kallsyms;
pub use store::SymbolStore;
pub use table::{NewSymbol, Provenance, Source, Symbol, SymbolTable, SymbolType};
pub use types::{BitRange, Field, Shape, TypeError, TypeId, Types};
pub use vmcoreinfo::VmCoreInfo;
