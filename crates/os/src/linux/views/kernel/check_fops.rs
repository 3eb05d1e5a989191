//! `linux/check_fops`: structs of functions that open files, inodes and superblocks lead to.
//!
//! ```text
//! task.files -> file { f_op, f_inode }          super_blocks -> super_block { s_op, s_inodes }
//! inode { i_fop, i_op, i_mapping -> address_space { a_ops } }
//! ```
//!
//! A row is a struct of functions, however many files use it; each of its functions must be known
//! code. The root directories of /proc and others are among the inodes of their superblocks.
//!
//! Source: Linux `include/linux/fs.h`.

use crate::linux::hooks::{functions, pointers, whose};
use crate::linux::{CodeMap, Kernel, LinuxError, LinuxView};
use crate::table::{Column, Kind, Table, column};
use ramsift_layers::Severity;
use std::collections::BTreeMap;

/// `linux/check_fops`.
pub(in crate::linux) const CHECK_FOPS: LinuxView = LinuxView {
    name: "linux/check_fops",
    meaning: "structs of functions behind open files, inodes and superblocks",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/check_fops`.
const COLUMNS: &[Column] = &[
    column(
        "kind",
        Kind::Text,
        "`file_operations`, `inode_operations`, `address_space_operations`, `super_operations`",
    ),
    column(
        "symbol",
        Kind::Text,
        "whose data the struct is; null: it is in memory that was allocated",
    ),
    column(
        "users",
        Kind::Number,
        "how many objects that were looked at lead to it",
    ),
    column("example", Kind::Text, "the first of them"),
    column("functions", Kind::Number, "how many functions it has"),
    column(
        "unknown",
        Kind::Number,
        "how many of them are no known code",
    ),
    column(
        "va",
        Kind::Hex,
        "virtual address of the struct of functions",
    ),
    column("physical", Kind::Hex, "physical address of that"),
];

/// Kinds of structs, in the order of the key.
const KINDS: [&str; 4] = [
    "file_operations",
    "inode_operations",
    "address_space_operations",
    "super_operations",
];

#[derive(Default)]
struct Users {
    count: usize,
    example: String,
}

/// Structs of functions by kind and address.
type Found = BTreeMap<(usize, u64), Users>;

fn add(found: &mut Found, kind: usize, va: u64, example: impl FnOnce() -> String) {
    if va != 0 {
        let users = found.entry((kind, va)).or_default();
        if users.count == 0 {
            users.example = example();
        }
        users.count += 1;
    }
}

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let code = CodeMap::new(kernel, &mut out.doubts)?;
    let mut found = Found::new();
    files(kernel, &mut found, &mut out.doubts)?;
    superblocks(kernel, &mut found, &mut out.doubts)?;
    let members = KINDS.map(|k| functions(kernel, k));
    for ((kind, va), users) in found {
        let name = KINDS.get(kind).copied().unwrap_or_default();
        let all = match members.get(kind).map(|m| pointers(kernel, m, va)) {
            Some(Ok(all)) => all,
            Some(Err(e)) => {
                out.doubts.push(format!("{name} at {va:#x}: {e}"));
                continue;
            }
            None => continue,
        };
        let astray: Vec<String> = all
            .iter()
            .map(|(member, f)| (member, f, code.owner(*f)))
            .filter(|(.., owner)| !owner.is_known())
            .map(|(member, f, owner)| format!("{member} to {}", whose(*f, &owner)))
            .collect();
        out.push(vec![
            name.into(),
            data(kernel, &code, va).into(),
            users.count.into(),
            users.example.as_str().into(),
            all.len().into(),
            astray.len().into(),
            va.into(),
            kernel.space.translate(va).ok().map(|p| p.0).into(),
        ]);
        if !astray.is_empty() {
            let reason = format!(
                "{name} at {va:#x} (of {}) lead astray: {}",
                users.example,
                astray.join("; ")
            );
            out.flag("file_operations_hook", Severity::Critical, reason);
        }
    }
    Ok(out)
}

/// Whose data a struct is.
fn data(kernel: &Kernel<'_>, code: &CodeMap<'_>, va: u64) -> Option<String> {
    if code.place(va).module().is_some() {
        return Some(code.place(va).to_string());
    }
    let address = |name: &str| kernel.symbols.address(name).map(|a| a.0);
    let image = address("_stext")?..address("_end")?;
    let near = kernel.symbols.nearest(ramsift_layers::VirtAddr(va));
    let (symbol, offset) = near.filter(|_| image.contains(&va))?;
    Some(match offset {
        0 => symbol.name.to_owned(),
        n => format!("{}+{n:#x}", symbol.name),
    })
}

fn files(
    kernel: &Kernel<'_>,
    found: &mut Found,
    doubts: &mut Vec<String>,
) -> Result<(), LinuxError> {
    let op = kernel.fields("file", ["f_op"])?;
    for task in kernel.processes(doubts)? {
        let (pid, comm) = (task.int("tgid")?, task.text("comm")?);
        for f in kernel.open_files(&task, doubts)? {
            match op.read(kernel, f.file) {
                Ok([ops]) => add(found, 0, ops, || {
                    format!("file {} of process {pid} ({comm})", f.fd)
                }),
                Err(e) => doubts.push(format!("file at {:#x}: {e}", f.file)),
            }
        }
    }
    Ok(())
}

fn superblocks(
    kernel: &Kernel<'_>,
    found: &mut Found,
    doubts: &mut Vec<String>,
) -> Result<(), LinuxError> {
    let walk = kernel.list(kernel.address("super_blocks")?, "super_block", "s_list")?;
    doubts.extend(walk.broken);
    let inode = kernel.fields("inode", ["i_fop", "i_op", "i_mapping", "i_ino"])?;
    let mapping = kernel.fields("address_space", ["a_ops"])?;
    for va in walk.items {
        let sb = kernel.object("super_block", va);
        let name = sb.text("s_id")?;
        add(found, 3, sb.number("s_op")?, || {
            format!("superblock {name}")
        });
        let walk = kernel.list(sb.at("s_inodes")?, "inode", "i_sb_list")?;
        doubts.extend(walk.broken);
        for va in walk.items {
            let [fop, iop, map, number] = match inode.read(kernel, va) {
                Ok(all) => all,
                Err(e) => {
                    doubts.push(format!("inode at {va:#x}: {e}"));
                    continue;
                }
            };
            let example = || format!("inode {number} of {name}");
            add(found, 0, fop, example);
            add(found, 1, iop, example);
            if map != 0 {
                match mapping.read(kernel, map) {
                    Ok([ops]) => add(found, 2, ops, example),
                    Err(e) => doubts.push(format!("address_space at {map:#x}: {e}")),
                }
            }
        }
    }
    Ok(())
}
