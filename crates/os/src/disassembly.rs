//! Machine code as text.

use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter};

/// Instructions in Intel's notation, up to the first that is none or is cut.
pub(crate) fn disassemble(bytes: &[u8], va: u64, bits: u32) -> String {
    let mut decoder = Decoder::with_ip(bits, bytes, va, DecoderOptions::NONE);
    let mut formatter = IntelFormatter::new();
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_branch_leading_zeros(false);
    let (mut out, mut one) = (String::new(), Instruction::default());
    while decoder.can_decode() {
        decoder.decode_out(&mut one);
        if one.is_invalid() {
            break;
        }
        if !out.is_empty() {
            out.push_str("; ");
        }
        formatter.format(&one, &mut out);
    }
    out
}
