//! Which addresses the code of a function of AArch64 refers to.
//!
//! ```text
//! adrp x0, page; add x0, x0, #low           address of a variable, or of the anchor of several
//! adrp x0, page; ldr x1, [x0, #low]         a variable that is read
//! add  x2, x0, #off; ldr x3, [x0, #off]     a variable at a distance from the anchor
//! bl   function                             x0 goes there
//! ```
//!
//! Code is read from its first to its last instruction, whatever jumps: what comes out are candidates,
//! of which some are no addresses of variables at all. Who asks checks what lies there.
//!
//! Source: Arm Architecture Reference Manual for A-profile (DDI 0487), C4.1 (encoding index).

/// What code refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::linux) struct References {
    /// Addresses that are computed, read or written.
    pub(in crate::linux) addresses: Vec<u64>,
    /// Addresses that are the first argument of a call, with the function that is called.
    pub(in crate::linux) arguments: Vec<(u64, u64)>,
    /// Numbers that are loaded into registers.
    pub(in crate::linux) numbers: Vec<u64>,
}

/// Registers that a call doesn't keep: x0 to x18, and the return address.
const CALLER: u32 = 0x4007_ffff;
/// Both halves of pairs are eight bytes.
const WORD: u64 = 8;

/// Registers as far as they are known.
struct Machine {
    known: [Option<u64>; 32],
    out: References,
}

/// What the code at `pc` refers to.
pub(in crate::linux) fn references(code: &[u8], pc: u64) -> References {
    let mut m = Machine {
        known: [None; 32],
        out: References::default(),
    };
    let end = pc.wrapping_add(code.len() as u64);
    for (i, word) in code.as_chunks::<4>().0.iter().enumerate() {
        let at = pc.wrapping_add(4 * i as u64);
        m.step(u32::from_le_bytes(*word), at, pc..end);
    }
    for all in [&mut m.out.addresses, &mut m.out.numbers] {
        all.sort_unstable();
        all.dedup();
    }
    m.out
}

/// Bits `from..from + len` of an instruction.
fn bits(w: u32, from: u32, len: u32) -> u32 {
    w >> from & ((1 << len) - 1)
}

/// The same with a sign.
fn signed(w: u32, from: u32, len: u32) -> i64 {
    let up = 64 - len;
    i64::from(bits(w, from, len)) << up >> up
}

impl Machine {
    fn get(&self, register: u32) -> Option<u64> {
        // Number 31 is the stack pointer or zero.
        self.known.get(register as usize).copied().flatten()
    }

    fn set(&mut self, register: u32, value: Option<u64>) {
        if register < 31 {
            self.known[register as usize] = value;
        }
    }

    fn refer(&mut self, address: Option<u64>) {
        self.out.addresses.extend(address);
    }

    fn step(&mut self, w: u32, pc: u64, function: std::ops::Range<u64>) {
        let (d, n, m) = (bits(w, 0, 5), bits(w, 5, 5), bits(w, 16, 5));
        if w & 0x1f00_0000 == 0x1000_0000 {
            // adr, adrp
            let low = i64::from(bits(w, 29, 2));
            let distance = signed(w, 5, 19) << 2 | low;
            let page = w >> 31 != 0;
            let value = match page {
                true => (pc & !0xfff).wrapping_add_signed(distance << 12),
                false => pc.wrapping_add_signed(distance),
            };
            self.set(d, Some(value));
            self.refer((!page).then_some(value));
        } else if w & 0xff80_0000 == 0x9100_0000 {
            // add (immediate)
            let add = u64::from(bits(w, 10, 12)) << (12 * bits(w, 22, 1));
            let value = self.get(n).map(|v| v.wrapping_add(add));
            self.set(d, value);
            self.refer(value);
        } else if w & 0xff20_0000 == 0x8b00_0000 || w & 0xffe0_0000 == 0x8b20_0000 {
            // add (register): an index into an array, from the first element on.
            let value = self.get(n).or(self.get(m));
            self.set(d, value);
            self.refer(value);
        } else if w & 0xffe0_ffe0 == 0xaa00_03e0 {
            // mov (register)
            self.set(d, self.get(m));
        } else if w & 0x7f80_0000 == 0x5280_0000 {
            // movz
            self.set(d, None);
            let number = u64::from(bits(w, 5, 16)) << (16 * bits(w, 21, 2));
            self.out.numbers.push(number);
        } else if w & 0x3f00_0000 == 0x3900_0000 {
            // ldr, str (unsigned offset)
            let offset = u64::from(bits(w, 10, 12)) << bits(w, 30, 2);
            self.access(w, self.get(n).map(|v| v.wrapping_add(offset)));
        } else if w & 0x3f20_0000 == 0x3800_0000 {
            // ldur, stur, and those that move their base on before or behind
            let moved = self.get(n).map(|v| v.wrapping_add_signed(signed(w, 12, 9)));
            let how = bits(w, 10, 2);
            self.access(w, if how == 1 { self.get(n) } else { moved });
            if matches!(how, 1 | 3) {
                self.set(n, moved);
            }
        } else if w & 0x3e00_0000 == 0x2800_0000 {
            self.pair(w);
        } else if w & 0x7c00_0000 == 0x1400_0000 {
            self.branch(w, pc, &function);
        } else if w & 0xffff_fc1f == 0xd63f_0000 {
            // blr
            self.call();
        } else if w & 0x1c00_0000 != 0x1400_0000 || w & 0xfff0_0000 == 0xd530_0000 {
            // Anything else, mrs included, but for branches and barriers. Stores lose what they store.
            self.set(d, None);
        }
    }

    /// A load or store of one register.
    fn access(&mut self, w: u32, address: Option<u64>) {
        self.refer(address);
        if bits(w, 22, 2) != 0 {
            self.set(bits(w, 0, 5), None);
        }
    }

    /// ldp, stp
    fn pair(&mut self, w: u32) {
        let (n, how) = (bits(w, 5, 5), bits(w, 23, 2));
        let (wide, load) = (w >> 31 != 0, bits(w, 22, 1) != 0);
        let scale = if wide { 3 } else { 2 };
        let moved = self
            .get(n)
            .map(|v| v.wrapping_add_signed(signed(w, 15, 7) << scale));
        let first = if how == 1 { self.get(n) } else { moved };
        self.refer(first);
        self.refer(first.filter(|_| wide).map(|a| a.wrapping_add(WORD)));
        if load {
            self.set(bits(w, 0, 5), None);
            self.set(bits(w, 10, 5), None);
        }
        if matches!(how, 1 | 3) {
            self.set(n, moved);
        }
    }

    /// b, bl
    fn branch(&mut self, w: u32, pc: u64, function: &std::ops::Range<u64>) {
        let target = pc.wrapping_add_signed(signed(w, 0, 26) << 2);
        // A jump out of the function is a call too.
        if !function.contains(&target)
            && let Some(first) = self.get(0)
        {
            self.out.arguments.push((first, target));
        }
        if w >> 31 != 0 {
            self.call();
        }
    }

    fn call(&mut self) {
        for r in 0..32 {
            if CALLER >> r & 1 != 0 {
                self.set(r, None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PC: u64 = 0xffff_8000_0801_0000;

    fn of(code: &[u32]) -> References {
        let raw: Vec<u8> = code.iter().flat_map(|w| w.to_le_bytes()).collect();
        references(&raw, PC)
    }

    // Encodings as LLVM's assembler makes them; those of adrp by the manual.

    #[test]
    fn addresses_come_from_page_and_offset() {
        // adrp x0, PC + 0x1000; add x0, x0, #0x7c0; ldr x1, [x0, #16]; ldr w2, [x0, #8]!; ldp x3, x4, [x0]
        let got = of(&[
            0xb000_0000,
            0x911f_0000,
            0xf940_0801,
            0xb840_8c02,
            0xa940_1003,
        ]);
        let anchor = PC + 0x17c0;
        assert_eq!(got.addresses, [anchor, anchor + 8, anchor + 16], "{got:x?}");
        // adrp x19, PC - 0x2000; ldrb w0, [x19, #1]; bl elsewhere; str x0, [x19, #0x18]
        let got = of(&[0xd0ff_fff3, 0x3940_0660, 0x9400_4000, 0xf900_0e60]);
        assert_eq!(
            got.addresses,
            [PC - 0x2000 + 1, PC - 0x2000 + 0x18],
            "{got:x?}"
        );
    }

    #[test]
    fn calls_take_their_argument_and_forget_registers() {
        // adrp x0, PC; add x0, x0, #8; mov x19, x0; bl PC + 0x10000; ldr x1, [x0]; ldr x1, [x19, #8]
        let got = of(&[
            0x9000_0000,
            0x9100_2000,
            0xaa00_03f3,
            0x9400_3ffd,
            0xf940_0001,
            0xf940_0661,
        ]);
        assert_eq!(got.addresses, [PC + 8, PC + 16], "{got:x?}");
        assert_eq!(got.arguments, [(PC + 8, PC + 0x10000)]);
        // A jump inside is no call, one out of it is.
        let got = of(&[0x9000_0000, 0x1400_0001, 0x1400_4000]);
        assert_eq!(got.arguments, [(PC, PC + 8 + 0x10000)]);
    }

    #[test]
    fn other_instructions_make_a_register_unknown() {
        // adrp x0, PC; sub x0, x0, x1; ldr x2, [x0]; mov w2, #451
        let got = of(&[0x9000_0000, 0xcb01_0000, 0xf940_0002, 0x5280_3862]);
        assert_eq!(got.addresses, Vec::<u64>::new());
        assert_eq!(got.numbers, [451]);
        assert_eq!(of(&[u32::MAX, 0]), References::default());
    }
}
