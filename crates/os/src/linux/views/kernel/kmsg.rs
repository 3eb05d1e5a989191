//! `linux/kmsg`: the kernel's log.
//!
//! ```text
//! prb -> printk_ringbuffer { desc_ring { count_bits, descs[], infos[], head_id, tail_id },
//!                            text_data_ring { size_bits, data } }
//! descriptor n mod 2^count_bits: prb_desc { state_var: state 2, id 62; text_blk_lpos { begin, next } }
//!                                printk_info { seq, ts_nsec, text_len, facility, level, caller_id }
//! block: id of its descriptor, then text. A block that would wrap stands at the ring's start.
//! ```
//!
//! The ring of 5.10 and later. Times are the scheduler's clock, which counts from the boot.
//!
//! Sources: Linux `kernel/printk/printk_ringbuffer.h`, `kernel/printk/printk_ringbuffer.c`.

use crate::linux::{Clock, Kernel, LinuxError, LinuxView};
use crate::table::{Column, Kind, Table, Value, column};
use ramsift_layers::Severity;

/// `linux/kmsg`.
pub(in crate::linux) const KMSG: LinuxView = LinuxView {
    name: "linux/kmsg",
    meaning: "the kernel's log",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/kmsg`.
const COLUMNS: &[Column] = &[
    column("seq", Kind::Number, "number of the record since the boot"),
    column("time_ns", Kind::Number, "nanoseconds after boot"),
    column(
        "time",
        Kind::Time,
        "the same as time of day; null where the clock is not known",
    ),
    column(
        "level",
        Kind::Text,
        "`emerg`, `alert`, `crit`, `err`, `warn`, `notice`, `info`, `debug`",
    ),
    column("facility", Kind::Number, "0 kernel, else as syslog has it"),
    column(
        "caller",
        Kind::Text,
        "`T` and a thread's id, or `C` and a CPU's number",
    ),
    column("text", Kind::Text, "the message"),
    column(
        "device",
        Kind::Text,
        "subsystem and device that it is about; null: none",
    ),
    column("va", Kind::Hex, "virtual address of its struct printk_info"),
    column("physical", Kind::Hex, "physical address of that"),
];

const LEVELS: [&str; 8] = [
    "emerg", "alert", "crit", "err", "warn", "notice", "info", "debug",
];
/// Bits of the rings' sizes at most: what the configuration allows, with room.
const MAX_DESC_BITS: u64 = 24;
const MAX_DATA_BITS: u64 = 32;
/// Bytes of one record's text at most.
const MAX_TEXT: u64 = 64 << 10;
/// Where a descriptor's state begins in its word.
const STATE: u32 = 62;
const ID: u64 = (1 << STATE) - 1;
/// States in which a record is whole: `desc_committed`, `desc_finalized`.
const WHOLE: [u64; 2] = [1, 2];
/// Bytes of a block's id before its text.
const BLOCK: u64 = 8;

struct Ring {
    desc_bits: u64,
    descs: u64,
    infos: u64,
    data: u64,
    data_bits: u64,
}

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let rb = kernel.object("printk_ringbuffer", kernel.u64_at("prb")?);
    let ring = Ring {
        desc_bits: rb.number("desc_ring.count_bits")? & 0xffff_ffff,
        descs: rb.number("desc_ring.descs")?,
        infos: rb.number("desc_ring.infos")?,
        data: rb.number("text_data_ring.data")?,
        data_bits: rb.number("text_data_ring.size_bits")? & 0xffff_ffff,
    };
    let (head, tail) = (
        rb.number("desc_ring.head_id")? & ID,
        rb.number("desc_ring.tail_id")? & ID,
    );
    if ring.desc_bits > MAX_DESC_BITS || ring.data_bits > MAX_DATA_BITS {
        out.doubts.push(format!(
            "printk_ringbuffer at {:#x}: sizes of 2^{} and 2^{} are too large",
            rb.va, ring.desc_bits, ring.data_bits
        ));
        return Ok(out);
    }
    let clock = kernel.clock();
    let count = head.wrapping_sub(tail).wrapping_add(1) & ID;
    for i in 0..count.min(1 << ring.desc_bits) {
        let id = tail.wrapping_add(i) & ID;
        if let Err(e) = record(kernel, &ring, id, clock.as_ref(), &mut out) {
            out.doubts
                .push(format!("record {id:#x} of the kernel's log: {e}"));
        }
    }
    Ok(out)
}

/// One record. Those that are not whole (being written, or given free) are no rows.
fn record(
    kernel: &Kernel<'_>,
    ring: &Ring,
    id: u64,
    clock: Option<&Clock>,
    out: &mut Table,
) -> Result<(), LinuxError> {
    let types = kernel.symbols.types();
    let index = id & ((1 << ring.desc_bits) - 1);
    let place = |first: u64, ty: &str| -> Result<u64, LinuxError> {
        Ok(first.wrapping_add(index * types.size_of(ty)?))
    };
    let desc = kernel.object("prb_desc", place(ring.descs, "prb_desc")?);
    let word = desc.number("state_var")?;
    if word & ID != id || !WHOLE.contains(&(word >> STATE)) {
        return Ok(());
    }
    let info = kernel.object("printk_info", place(ring.infos, "printk_info")?);
    let (begin, next) = (
        desc.number("text_blk_lpos.begin")?,
        desc.number("text_blk_lpos.next")?,
    );
    let length = info.number("text_len")?.min(MAX_TEXT);
    let text = text(kernel, ring, id, (begin, next), length)?;
    let ns = info.number("ts_nsec")?;
    let time = clock.and_then(|c| c.utc(ns));
    let level = usize::try_from(info.number("level")?).unwrap_or(7);
    let caller = info.number("caller_id")? & 0xffff_ffff;
    let device = match (
        info.text("dev_info.subsystem")?,
        info.text("dev_info.device")?,
    ) {
        (s, d) if s.is_empty() && d.is_empty() => Value::Null,
        (s, d) => format!("{s} {d}").into(),
    };
    out.push(vec![
        info.number("seq")?.into(),
        ns.into(),
        time.into(),
        LEVELS.get(level).copied().into(),
        info.number("facility")?.into(),
        match caller >> 31 {
            0 => format!("T{caller}"),
            _ => format!("C{}", caller & 0x7fff_ffff),
        }
        .into(),
        text.as_str().into(),
        device,
        info.va.into(),
        info.physical().into(),
    ]);
    if let Some(t) = time {
        out.event(t, "kernel log", text.as_str());
    }
    if ["tainting kernel", "taints kernel"]
        .iter()
        .any(|w| text.contains(w))
    {
        let reason = format!("the kernel's log says: {text}");
        out.flag("kernel_tainted", Severity::Low, reason);
    }
    Ok(())
}

/// The text of a block whose logical positions are `begin` and `next`.
fn text(
    kernel: &Kernel<'_>,
    ring: &Ring,
    id: u64,
    (begin, next): (u64, u64),
    length: u64,
) -> Result<String, LinuxError> {
    // Odd positions: the record has no text.
    if begin & 1 == 1 || next & 1 == 1 || length == 0 {
        return Ok(String::new());
    }
    let size = 1u64 << ring.data_bits;
    // Not the same turn, and not just up to the end: the block stands at the ring's start.
    let turn = |p: u64| p >> ring.data_bits;
    let wraps = turn(begin) != turn(next) && next & (size - 1) != 0;
    let at = if wraps { 0 } else { begin & (size - 1) };
    let block = ring.data.wrapping_add(at);
    if kernel.space.u64(block)? & ID != id {
        return Ok(String::from("(overwritten)"));
    }
    let length = length.min(size.saturating_sub(at + BLOCK));
    let mut raw = vec![0; usize::try_from(length).unwrap_or(0)];
    kernel.space.read(block.wrapping_add(BLOCK), &mut raw)?;
    Ok(String::from_utf8_lossy(&raw).into_owned())
}
