//! `windows/inline_hooks`: functions of the kernel whose first instructions lead out of its image.
//!
//! ```text
//! jmp to an address            E9, EB
//! jmp through a pointer        FF 25
//! mov register, address; then jmp register, or push register and ret
//! push address; with or without a mov of its upper half; ret
//! ```
//!
//! Looked at are the functions that the image exports and those that its table of system calls has. A jump within the image is followed,
//! since a hook may lead through a gap in it. What lies in no module is a hook; what lies in another module is shown.
//!
//! Sources: Intel SDM volume 2; "PE Format" (Microsoft), export directory.

use super::ssdt;
use crate::disassembly::disassemble;
use crate::table::{Column, Kind, Table, column};
use crate::windows::kernel_modules::Modules;
use crate::windows::{Kernel, Space, WindowsError, WindowsView, nearest, pe};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use ramsift_layers::{Severity, VirtAddr};
use std::collections::BTreeMap;

/// `windows/inline_hooks`.
pub(in crate::windows) const INLINE_HOOKS: WindowsView = WindowsView {
    name: "windows/inline_hooks",
    meaning: "functions of the kernel that begin with a jump out of it",
    columns: COLUMNS,
    build,
    recover: None,
};

const COLUMNS: &[Column] = &[
    column("function", Kind::Text, "its name, where it is known"),
    column("kind", Kind::Text, "export, or system call"),
    column("address", Kind::Hex, "where it begins"),
    column("target", Kind::Hex, "where its first instructions lead"),
    column("module", Kind::Text, "module that holds that"),
    column("code", Kind::Text, "its first instructions"),
    column("physical", Kind::Hex, "physical address of its first byte"),
];

/// Bytes of a function that are looked at.
const CODE: usize = 32;
/// Jumps within the image that are followed.
const HOPS: usize = 4;

/// Where the first instructions at an address lead, if they are a jump. `pointer` reads what lies at an address.
fn target(code: &[u8], va: u64, pointer: &dyn Fn(u64) -> Option<u64>) -> Option<u64> {
    let mut decoder = Decoder::with_ip(64, code, va, DecoderOptions::NONE);
    // What was put into a register or on the stack before.
    let mut known: Option<(Register, u64)> = None;
    let mut pushed: Option<u64> = None;
    let mut one = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut one);
        match one.code() {
            Code::Jmp_rel8_64 | Code::Jmp_rel32_64 => return Some(one.near_branch64()),
            Code::Jmp_rm64 if one.is_ip_rel_memory_operand() => {
                return pointer(one.ip_rel_memory_address());
            }
            Code::Jmp_rm64 if one.op0_kind() == OpKind::Register => {
                return known.filter(|(r, _)| *r == one.op0_register()).map(|k| k.1);
            }
            Code::Mov_r64_imm64 if known.is_none() => {
                known = Some((one.op0_register(), one.immediate64()));
            }
            Code::Push_r64 => {
                let (register, value) = known?;
                (register == one.op0_register()).then_some(())?;
                pushed = Some(value);
            }
            Code::Pushq_imm32 => pushed = Some(one.immediate32to64().cast_unsigned()),
            // The upper half of what was pushed.
            Code::Mov_rm32_imm32
                if one.op0_kind() == OpKind::Memory
                    && one.memory_base() == Register::RSP
                    && one.memory_displacement64() == 4 =>
            {
                let low = pushed? & 0xffff_ffff;
                pushed = Some(low | u64::from(one.immediate32()) << 32);
            }
            Code::Retnq => return pushed,
            // What does nothing may stand before it.
            _ if matches!(one.mnemonic(), Mnemonic::Nop | Mnemonic::Endbr64) => {}
            _ => return None,
        }
    }
    None
}

/// The same, followed as long as it stays in the image.
fn leads(space: &Space<'_>, own: std::ops::Range<u64>, va: u64) -> Option<u64> {
    let pointer = |at: u64| space.u64(at).ok();
    let mut at = va;
    for _ in 0..HOPS {
        let mut code = [0; CODE];
        // The end of the image's last page may be missing.
        if space.read(at, &mut code).is_err() {
            space.read(at, &mut code[..16]).ok()?;
        }
        at = target(&code, at, &pointer)?;
        if !own.contains(&at) {
            return Some(at);
        }
    }
    None
}

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    let modules = Modules::new(k, &mut out.doubts)?;
    let own = k.base..k.base.saturating_add(k.size);
    let mut functions: BTreeMap<u64, (&str, Option<String>)> = BTreeMap::new();
    let image = pe::read(&k.space, k.base);
    let is_code = |va: u64| {
        let rva = va.wrapping_sub(k.base);
        let sections = image.iter().flat_map(|i| &i.sections);
        sections
            .filter(|s| s.is_code())
            .any(|s| (s.rva..s.rva.saturating_add(s.size)).contains(&rva))
    };
    nearest::each_export(&k.space, k.base, &mut |name, va| {
        // Data is exported too.
        if is_code(va) {
            let name = String::from_utf8_lossy(name).into_owned();
            functions.insert(va, ("export", Some(name)));
        }
        true
    });
    if functions.is_empty() {
        out.doubts
            .push("the functions that the kernel exports can't be read".into());
    }
    match ssdt::functions(k) {
        Ok(all) => {
            for va in all.into_iter().filter(|va| own.contains(va)) {
                functions.entry(va).or_insert_with(|| {
                    let known = k
                        .symbols
                        .nearest(VirtAddr(va))
                        .filter(|(_, above)| *above == 0);
                    ("system call", known.map(|(s, _)| s.name.to_owned()))
                });
            }
        }
        Err(e) => out
            .doubts
            .push(format!("system calls are not looked at: {e}")),
    }
    for (va, (kind, name)) in functions {
        let Some(to) = leads(&k.space, own.clone(), va) else {
            continue;
        };
        let mut code = [0; 16];
        let read = k.space.read(va, &mut code);
        let text = read.map_or_else(|_| String::new(), |()| disassemble(&code, va, 64));
        let module = modules.name(to);
        let physical = k.physical(va).map(|p| p.0);
        out.push(vec![
            name.clone().into(),
            kind.into(),
            va.into(),
            to.into(),
            module.into(),
            text.into(),
            physical.into(),
        ]);
        if modules.lack(to) {
            let what = name.unwrap_or_else(|| format!("the function at {va:#x}"));
            out.flag(
                "inline_hook",
                Severity::Critical,
                format!("{what} ({kind}) begins with a jump to {to:#x}, which is in no module"),
            );
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_are_told_in_every_form_and_other_code_is_none() {
        let at = 0x1_4000_1000;
        let none = |_: u64| None;
        let of = |code: &[u8]| target(code, at, &none);
        assert_eq!(of(b"\xe9\x00\x01\x00\x00"), Some(at + 0x105));
        assert_eq!(of(b"\x90\x66\x90\xeb\xfe"), Some(at + 3));
        let mov = b"\x48\xb8\x88\x77\x66\x55\x44\x33\x22\x11";
        let with = |rest: &[u8]| of(&[&mov[..], rest].concat());
        assert_eq!(with(b"\xff\xe0"), Some(0x1122_3344_5566_7788));
        assert_eq!(with(b"\x50\xc3"), Some(0x1122_3344_5566_7788));
        // Another register than was loaded.
        assert_eq!(with(b"\xff\xe1"), None);
        let push = b"\x68\x78\x56\x34\x12\xc7\x44\x24\x04\x01\xf8\xff\xff\xc3";
        assert_eq!(of(push), Some(0xffff_f801_1234_5678));
        assert_eq!(of(b"\x68\x78\x56\x34\x12\xc3"), Some(0x1234_5678));
        let through = |va: u64| (va == at + 6 + 0x20).then_some(7);
        assert_eq!(target(b"\xff\x25\x20\x00\x00\x00", at, &through), Some(7));
        // mov [rsp+8], rbx; push rdi: how functions begin.
        assert_eq!(of(b"\x48\x89\x5c\x24\x08\x57\x48\x83\xec\x20"), None);
        assert_eq!(of(&[0; 16]), None);
        assert_eq!(of(b"\xc3"), None);
        assert_eq!(of(b"\xe9\x00"), None);
    }
}
