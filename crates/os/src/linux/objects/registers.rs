//! Registers of threads, as they entered the kernel last, for core files.
//!
//! ```text
//! task.stack + size of the stack - padding - pt_regs
//!   x86-64    r15 r14 r13 r12 bp bx r11 r10 r9 r8 ax cx dx si di orig_ax ip cs flags sp ss
//!   arm64     x0 .. x30 sp pc pstate
//! ```
//!
//! The size of the stack and the padding are choices of the build: that place counts where the segments
//! (x86-64) or the state (arm64) are a program's. A thread that was running when memory was captured has
//! its registers in the processor; those of its last system call or interrupt stand here.
//!
//! Sources: Linux `arch/x86/include/asm/{ptrace,processor,thread_info}.h`,
//! `arch/arm64/include/asm/{ptrace,processor}.h`, `include/linux/elfcore.h` (`elf_prstatus`).

use crate::linux::memory::{ProcessMemory, is_x86};
use crate::linux::{Kernel, Object};

/// Sizes of stacks: 16 KiB, 32 KiB with KASAN, 64 KiB with both on arm64.
const SIZES: [u64; 3] = [16 << 10, 32 << 10, 64 << 10];
/// What lies above the registers: nothing, or what FRED needs.
const PADDING: [u64; 2] = [0, 16];
/// Threads whose registers go into a core at most.
const MAX: usize = 4096;

/// `elf_prstatus` of the threads of a process, the main one first. What has no sane registers is left out.
pub(in crate::linux) fn statuses(kernel: &Kernel<'_>, p: &ProcessMemory<'_>) -> Vec<Vec<u8>> {
    let list = || {
        let signal = p.task.follow("signal", "signal_struct").ok()??;
        let head = signal.at("thread_head").ok()?;
        kernel.list(head, "task_struct", "thread_node").ok()
    };
    let mut threads: Vec<u64> = list().map(|w| w.items).unwrap_or_default();
    threads.retain(|t| *t != p.task.va);
    threads.insert(0, p.task.va);
    let tasks = threads.iter().take(MAX);
    tasks
        .filter_map(|va| status(kernel, &kernel.object("task_struct", *va)))
        .collect()
}

/// `elf_prstatus`: the thread's id and its registers.
fn status(kernel: &Kernel<'_>, task: &Object<'_>) -> Option<Vec<u8>> {
    let mut registers = user_registers(kernel, task)?;
    if is_x86(kernel) {
        let base = |path: &str| task.number(path).unwrap_or(0);
        registers.extend([base("thread.fsbase"), base("thread.gsbase")]);
        registers.extend([0; 4]);
    }
    let pid = task.int("pid").ok()? as i32;
    let mut out = vec![0; 112];
    out[32..36].copy_from_slice(&pid.to_le_bytes());
    out.extend(registers.iter().flat_map(|r| r.to_le_bytes()));
    // Whether there are floating point registers, and padding.
    out.extend([0; 8]);
    Some(out)
}

/// The registers of a program, in the kernel's order.
fn user_registers(kernel: &Kernel<'_>, task: &Object<'_>) -> Option<Vec<u64>> {
    let stack = task.number("stack").ok()?;
    let size = kernel.symbols.types().size_of("pt_regs").ok()?;
    let x86 = is_x86(kernel);
    let mut raw = [0; 34 * 8];
    let count = if x86 { 21 } else { 34 };
    for padding in PADDING {
        for len in SIZES {
            let at = stack.wrapping_add(len).wrapping_sub(padding + size);
            let bytes = raw.get_mut(..count * 8)?;
            if kernel.space.read(at, bytes).is_err() {
                continue;
            }
            let words = bytes.as_chunks::<8>().0.iter();
            let all: Vec<u64> = words.map(|w| u64::from_le_bytes(*w)).collect();
            if is_program(&all, x86) {
                return Some(all);
            }
        }
    }
    None
}

/// Whether registers are those of a program.
fn is_program(all: &[u64], x86: bool) -> bool {
    let at = |i: usize| all.get(i).copied().unwrap_or(0);
    if x86 {
        // Code segments of 64 and 32 bits, the stack's, and addresses of the lower half.
        let low = at(16) >> 56 == 0 && at(19) >> 56 == 0 && at(16) != 0;
        matches!(at(17), 0x33 | 0x23) && at(20) == 0x2b && low
    } else {
        // Exception level 0, 64 bits.
        at(33) & 0x1f == 0 && at(32) >> 52 == 0 && at(32) != 0
    }
}
