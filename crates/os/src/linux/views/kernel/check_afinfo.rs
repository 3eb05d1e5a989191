//! `linux/check_afinfo`: the functions behind the files of /proc/net, which list connections.
//!
//! ```text
//! net.proc_net -> proc_dir_entry { name, mode, subdir (tree of subdir_node),
//!                                  proc_ops | proc_dir_ops, seq_ops | single_show }
//! ```
//!
//! A hooked `show` of tcp or udp hides connections from netstat and ss' like.
//!
//! Sources: Linux `fs/proc/internal.h`, `fs/proc/proc_net.c`, `include/linux/proc_fs.h`.

use crate::linux::hooks::{functions, judge, pointers};
use crate::linux::{CodeMap, Kernel, LinuxError, LinuxView, Object};
use crate::table::{Column, Kind, Table, column};
use ramsift_symbols::Field;

/// `linux/check_afinfo`.
pub(in crate::linux) const CHECK_AFINFO: LinuxView = LinuxView {
    name: "linux/check_afinfo",
    meaning: "functions behind the files of /proc/net in each network namespace",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/check_afinfo`.
const COLUMNS: &[Column] = &[
    column(
        "net_ns",
        Kind::Number,
        "inode number of the network namespace",
    ),
    column("name", Kind::Text, "path below /proc/net"),
    column(
        "member",
        Kind::Text,
        "what the function does: `show`, `start`, `proc_open`, …",
    ),
    column("handler", Kind::Hex, "the function"),
    column("symbol", Kind::Text, "whose code that is"),
    column("module", Kind::Text, "the module, where it is one's"),
    column(
        "ops",
        Kind::Hex,
        "virtual address of the struct of functions",
    ),
    column("va", Kind::Hex, "virtual address of the proc_dir_entry"),
    column("physical", Kind::Hex, "physical address of that"),
];

/// Entries at most, and directories inside each other.
const MAX_ENTRIES: usize = 1 << 16;
const MAX_DEPTH: usize = 16;
const S_IFMT: u64 = 0xf000;
const S_IFDIR: u64 = 0x4000;

struct Check<'k, 'o> {
    kernel: &'k Kernel<'k>,
    code: &'o CodeMap<'k>,
    seq: Vec<(&'k str, Field)>,
    file: Vec<(&'k str, Field)>,
    out: &'o mut Table,
}

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let code = CodeMap::new(kernel, &mut out.doubts)?;
    let spaces = kernel.network_namespaces(&mut out.doubts)?;
    let mut check = Check {
        kernel,
        code: &code,
        seq: functions(kernel, "seq_operations"),
        file: functions(kernel, "proc_ops"),
        out: &mut out,
    };
    for net in spaces {
        if let Err(e) = check.namespace(net) {
            check
                .out
                .doubts
                .push(format!("struct net at {net:#x}: {e}"));
        }
    }
    Ok(out)
}

impl Check<'_, '_> {
    fn namespace(&mut self, net: u64) -> Result<(), LinuxError> {
        let kernel = self.kernel;
        let net = kernel.object("net", net);
        let inode = net.number("ns.inum")?;
        let node = kernel
            .symbols
            .types()
            .field("proc_dir_entry", "subdir_node")?
            .offset;
        let mut left = vec![(net.number("proc_net")?, String::new(), 0)];
        let mut seen = 0;
        while let Some((dir, path, depth)) = left.pop() {
            if dir == 0 || depth > MAX_DEPTH {
                continue;
            }
            let subdir = kernel.object("proc_dir_entry", dir).at("subdir")?;
            let walk = kernel.rb_tree(subdir)?;
            self.out.doubts.extend(walk.broken);
            for n in walk.items {
                seen += 1;
                if seen > MAX_ENTRIES {
                    self.out.doubts.push(format!(
                        "/proc/net of {inode}: more than {MAX_ENTRIES} entries"
                    ));
                    return Ok(());
                }
                let entry = kernel.object("proc_dir_entry", n.wrapping_sub(node));
                let name = kernel.text(entry.number("name")?, 256)?;
                let path = format!("{path}{name}");
                if entry.number("mode")? & S_IFMT == S_IFDIR {
                    left.push((entry.va, format!("{path}/"), depth + 1));
                } else if let Err(e) = self.entry(inode, &path, &entry) {
                    self.out
                        .doubts
                        .push(format!("/proc/net/{path} at {:#x}: {e}", entry.va));
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, net: u64, path: &str, entry: &Object<'_>) -> Result<(), LinuxError> {
        let kernel = self.kernel;
        let ops = entry.number("proc_ops")?;
        let mut all: Vec<(&str, u64, u64)> = Vec::new();
        if ops != 0 {
            let found = pointers(kernel, &self.file, ops)?;
            all.extend(found.into_iter().map(|(n, f)| (n, f, ops)));
        }
        let is = |name: &str| kernel.symbols.address(name).is_some_and(|a| a.0 == ops);
        let second = entry.number("seq_ops")?;
        // Where those have no names, a table is told from a function by where it lies: not in code.
        let single = is("proc_net_single_ops")
            || is("proc_single_ops")
            || kernel.symbols.address("proc_single_ops").is_none()
                && self.code.owner(second).is_known();
        if second != 0 && single {
            all.push(("show", second, ops));
        } else if second != 0 {
            let found = pointers(kernel, &self.seq, second)?;
            all.extend(found.into_iter().map(|(n, f)| (n, f, second)));
        }
        for (member, handler, ops) in all {
            let owner = self.code.owner(handler);
            self.out.push(vec![
                net.into(),
                path.into(),
                member.into(),
                handler.into(),
                owner.to_string().into(),
                owner.module().into(),
                ops.into(),
                entry.va.into(),
                entry.physical().into(),
            ]);
            let what = format!("{member} of /proc/net/{path} (functions at {ops:#x})");
            judge(self.out, self.code, "proc_net_hook", &what, handler);
        }
        Ok(())
    }
}
