//! `linux/inline_hooks`: functions whose first instructions lead elsewhere (x86-64).
//!
//! | code | meaning |
//! | --- | --- |
//! | `e8`, `e9` rel32 | call, jump |
//! | `ff 25` rel32 | jump through a pointer |
//! | `48 b8` imm64 `ff e0`, or `50 c3` | address into rax, jump or push and return |
//! | `49 bb` imm64 `41 ff e3` | the same by r11 |
//! | `68` imm32 `c3` | push and return |
//! | `cc` | breakpoint |
//!
//! Legitimate: ftrace's call at the start of a function goes to the kernel's own code or to a
//! trampoline; a kprobe leaves a breakpoint or, optimised, a jump to its slot. Rows are functions
//! that are patched in one of these ways, and those that lead out of all known code, which are
//! flagged. Jumps inside known code are how compilers end functions; a few functions begin with a
//! call or jump into the text for starting, which is gone when they are in memory.
//!
//! Sources: Linux `arch/x86/kernel/ftrace.c`, `arch/x86/kernel/kprobes/core.c`,
//! `arch/x86/include/asm/nops.h`.

use crate::linux::hooks::whose;
use crate::linux::{CodeMap, Kernel, LinuxError, LinuxView, Owner};
use crate::table::{Column, Kind, Table, column};
use ramsift_layers::Severity;
use std::collections::BTreeSet;
use std::ops::Range;

/// `linux/inline_hooks`.
pub(in crate::linux) const INLINE_HOOKS: LinuxView = LinuxView {
    name: "linux/inline_hooks",
    meaning: "functions whose first instructions were patched, and where they lead (x86-64)",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/inline_hooks`.
const COLUMNS: &[Column] = &[
    column("function", Kind::Text, "the function, with its module"),
    column(
        "kind",
        Kind::Text,
        "`call`, `jump`, `pointer`, `register`, `return` or `breakpoint`",
    ),
    column("code", Kind::Text, "the first 16 bytes in hexadecimal"),
    column("target", Kind::Hex, "where they lead; null of a breakpoint"),
    column(
        "symbol",
        Kind::Text,
        "whose code that is; of a breakpoint, what set it",
    ),
    column("va", Kind::Hex, "virtual address of the function"),
    column("physical", Kind::Hex, "physical address of the function"),
];

/// Bytes that are looked at.
const HEAD: usize = 32;
/// Bytes of text that are read at a time.
const STEP: u64 = 1 << 20;
const ENDBR: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
const NOPS: [[u8; 5]; 2] = [[0x0f, 0x1f, 0x44, 0, 0], [0x66, 0x66, 0x66, 0x66, 0x90]];

/// What code does in place of what it was compiled to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patch {
    To(&'static str, u64),
    /// Through the pointer at an address.
    Pointer(u64),
    Breakpoint,
}

/// What the instruction at the start of `b`, which stands at `va`, is, if it is one of those that
/// hooks are made of.
fn decode(b: &[u8], va: u64) -> Option<Patch> {
    let rel = |at: usize| -> Option<u64> {
        let n = i32::from_le_bytes(*b.get(at..)?.first_chunk()?);
        Some(va.wrapping_add(at as u64 + 4).wrapping_add_signed(n.into()))
    };
    let imm = |at: usize| -> Option<u64> { Some(u64::from_le_bytes(*b.get(at..)?.first_chunk()?)) };
    match b {
        [0xe8, ..] => Some(Patch::To("call", rel(1)?)),
        [0xe9, ..] => Some(Patch::To("jump", rel(1)?)),
        [0xff, 0x25, ..] => Some(Patch::Pointer(rel(2)?)),
        [0x48, 0xb8, _, _, _, _, _, _, _, _, 0xff, 0xe0, ..]
        | [0x48, 0xb8, _, _, _, _, _, _, _, _, 0x50, 0xc3, ..]
        | [0x49, 0xbb, _, _, _, _, _, _, _, _, 0x41, 0xff, 0xe3, ..] => {
            Some(Patch::To("register", imm(2)?))
        }
        [0x68, _, _, _, _, 0xc3, ..] => {
            let n = i32::from_le_bytes(*b.get(1..)?.first_chunk()?);
            Some(Patch::To("return", i64::from(n) as u64))
        }
        [0xcc, ..] => Some(Patch::Breakpoint),
        _ => None,
    }
}

/// The patches at the start of a function: at its first byte, and behind what may stand before the
/// compiled code.
fn patches(b: &[u8], va: u64) -> Vec<Patch> {
    let mut at = if b.starts_with(&ENDBR) {
        ENDBR.len()
    } else {
        0
    };
    let mut out = Vec::new();
    for _ in 0..2 {
        let rest = b.get(at..).unwrap_or_default();
        let patch = decode(rest, va.wrapping_add(at as u64));
        out.extend(patch);
        let entry = NOPS.iter().any(|n| rest.starts_with(n));
        if !entry && !matches!(patch, Some(Patch::To("call", _))) {
            break;
        }
        at += 5;
    }
    out
}

struct Scan<'k, 'o> {
    kernel: &'k Kernel<'k>,
    code: &'o CodeMap<'k>,
    probes: BTreeSet<u64>,
    /// The kernel's text for starting, whether it is still there or not.
    init: Range<u64>,
    out: &'o mut Table,
}

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    // Only the structs of x86 have this register.
    kernel.symbols.types().field("pt_regs", "ip")?;
    let mut doubts = Vec::new();
    let code = CodeMap::new(kernel, &mut doubts)?;
    let probes = crate::linux::kprobes::addresses(kernel, &mut doubts).unwrap_or_default();
    let address = |name: &str| kernel.symbols.address(name).map_or(0, |a| a.0);
    let mut scan = Scan {
        kernel,
        code: &code,
        probes,
        init: address("_sinittext")..address("_einittext"),
        out: &mut out,
    };
    scan.kernel_text(&mut doubts)?;
    scan.modules(&mut doubts)?;
    out.doubts.append(&mut doubts);
    Ok(out)
}

impl Scan<'_, '_> {
    fn kernel_text(&mut self, doubts: &mut Vec<String>) -> Result<(), LinuxError> {
        let kernel = self.kernel;
        let (start, end) = (kernel.address("_stext")?, kernel.address("_etext")?);
        let functions: BTreeSet<u64> = kernel
            .symbols
            .iter()
            .filter(|s| matches!(s.kind, b't' | b'T' | b'w' | b'W'))
            .map(|s| s.address.0)
            .filter(|a| (start..end).contains(a))
            .collect();
        let mut at = start;
        while at < end {
            let n = STEP.min(end - at);
            // The heads of the last functions reach over the end of a piece.
            let size = (n + HEAD as u64).min(end - at);
            let mut raw = vec![0; usize::try_from(size).unwrap_or(0)];
            match kernel.space.read(at, &mut raw) {
                Ok(()) => {
                    for f in functions.range(at..at + n) {
                        let from = usize::try_from(f - at).unwrap_or(0);
                        let head = raw.get(from..).unwrap_or_default();
                        self.function(*f, &head[..head.len().min(HEAD)]);
                    }
                }
                Err(e) => doubts.push(format!("kernel text from {at:#x} on, {n} bytes: {e}")),
            }
            at += n;
        }
        Ok(())
    }

    fn modules(&mut self, doubts: &mut Vec<String>) -> Result<(), LinuxError> {
        let kernel = self.kernel;
        let listed = kernel.modules(doubts)?;
        let hidden = self.code.hidden().iter().map(|h| h.va);
        let all: Vec<u64> = listed.iter().map(|m| m.va).chain(hidden).collect();
        for va in all {
            for s in self.code.module_symbols(va).iter().filter(|s| s.function) {
                // Init functions keep their symbols when their memory is gone.
                if self.code.owner(s.address) == Owner::Unknown {
                    continue;
                }
                let mut head = [0; HEAD];
                match kernel.space.read(s.address, &mut head) {
                    Ok(()) => self.function(s.address, &head),
                    Err(e) => doubts.push(format!("{} of a module: {e}", s.name)),
                }
            }
        }
        Ok(())
    }

    fn function(&mut self, va: u64, head: &[u8]) {
        for patch in patches(head, va) {
            let (kind, target) = match patch {
                Patch::To(kind, target) => (kind, Some(target)),
                Patch::Pointer(at) => ("pointer", self.kernel.space.u64(at).ok()),
                Patch::Breakpoint => ("breakpoint", None),
            };
            match target {
                None if kind == "breakpoint" => self.breakpoint(va, head),
                Some(t) => {
                    let owner = self.code.owner(t);
                    let inside = matches!(owner, Owner::Kernel { .. })
                        || matches!(&owner, Owner::Module { hidden: false, .. })
                        || self.init.contains(&t);
                    if !inside && !self.own(va, t, &owner) {
                        self.row(va, kind, head, Some(t), &owner.to_string());
                        self.judge(va, kind, t, &owner);
                    }
                }
                None => {}
            }
        }
    }

    /// Whether a hidden module jumps about in itself.
    fn own(&self, va: u64, target: u64, owner: &Owner) -> bool {
        owner.module().is_some() && self.code.owner(va).module() == owner.module() && va != target
    }

    fn judge(&mut self, va: u64, kind: &str, target: u64, owner: &Owner) {
        if !owner.is_known() {
            let reason = format!(
                "the code of {} at {va:#x} was changed: its {kind} leads to {}",
                self.code.owner(va),
                whose(target, owner)
            );
            self.out.flag("inline_hook", Severity::Critical, reason);
        }
    }

    /// A breakpoint is a kprobe's. One that stands in the NOP of ftrace is nobody's: kprobes go
    /// through ftrace there. Elsewhere it may be compiled, behind what never returns.
    fn breakpoint(&mut self, va: u64, head: &[u8]) {
        let at = if head.starts_with(&ENDBR) {
            ENDBR.len()
        } else {
            0
        };
        if self.probes.contains(&va) || self.probes.contains(&(va + at as u64)) {
            self.row(va, "breakpoint", head, None, "kprobe");
        } else if NOPS.iter().any(|n| head.get(at + 1..at + 5) == n.get(1..)) {
            self.row(va, "breakpoint", head, None, "unknown");
            let reason = format!(
                "{} at {va:#x} begins with a breakpoint, and no kprobe is there",
                self.code.owner(va)
            );
            self.out.flag("inline_hook", Severity::High, reason);
        }
    }

    fn row(&mut self, va: u64, kind: &'static str, head: &[u8], target: Option<u64>, symbol: &str) {
        let hex: Vec<String> = head.iter().take(16).map(|b| format!("{b:02x}")).collect();
        self.out.push(vec![
            self.code.owner(va).to_string().into(),
            kind.into(),
            hex.concat().into(),
            target.into(),
            symbol.into(),
            va.into(),
            self.kernel.space.translate(va).ok().map(|p| p.0).into(),
        ]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_are_seen_at_the_start_and_behind_the_call_of_ftrace() {
        let to = |kind, va| vec![Patch::To(kind, va)];
        let mut code = vec![0xe9, 0xfb, 0xff, 0xff, 0xff];
        assert_eq!(patches(&code, 0x1000), to("jump", 0x1000));
        code.splice(0..0, NOPS[0]);
        assert_eq!(patches(&code, 0x1000), to("jump", 0x1005));
        code.splice(0..0, ENDBR);
        assert_eq!(patches(&code, 0x1000), to("jump", 0x1009));
        let mut far = vec![0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 0x80, 0xff, 0xe0];
        assert_eq!(patches(&far, 0), to("register", 0x8007_0605_0403_0201));
        far[11] = 0xe1;
        assert_eq!(patches(&far, 0), []);
        let back = [0x68, 0, 0, 0, 0x80, 0xc3];
        assert_eq!(patches(&back, 0), to("return", 0xffff_ffff_8000_0000));
        let through = [0xff, 0x25, 2, 0, 0, 0];
        assert_eq!(patches(&through, 0x10), [Patch::Pointer(0x18)]);
        assert_eq!(patches(&[0xcc], 0), [Patch::Breakpoint]);
        assert_eq!(patches(&[0xe8, 0], 0), [], "cut off");
    }
}
