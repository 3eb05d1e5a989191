//! `windows/callbacks`: functions that the kernel calls when something happens.
//!
//! ```text
//! process, thread, image   arrays of fast references -> block: function at 8
//! registry                 list: cookie at 24, function at 40, altitude at 48
//! bug check                lists: function at 16; name of the component at 40, of those with reasons at 24
//! shutdown                 lists: device object at 16, whose driver's function 16 is called
//! file systems             list: driver object at 16, function at 24
//! ```
//!
//! Sources: the globals of the table; `KBUGCHECK_CALLBACK_RECORD` and `KBUGCHECK_REASON_CALLBACK_RECORD` of the public header
//! `wdm.h`; places in the other structs as published with Volatility 3 (facts alone).

use crate::table::{Column, Kind, Table, column};
use crate::windows::kernel_modules::{Modules, is_kernel};
use crate::windows::{Kernel, WindowsError, WindowsView};
use ramsift_layers::{Severity, VirtAddr};
use std::collections::HashSet;

/// `windows/callbacks`.
pub(in crate::windows) const CALLBACKS: WindowsView = WindowsView {
    name: "windows/callbacks",
    meaning: "functions that the kernel calls when something happens",
    columns: COLUMNS,
    build,
    recover: None,
};

const COLUMNS: &[Column] = &[
    column(
        "kind",
        Kind::Text,
        "process, thread, image, registry, bugcheck, bugcheck_reason, shutdown, last_shutdown, file_system",
    ),
    column("address", Kind::Hex, "the function"),
    column("module", Kind::Text, "module that holds it"),
    column(
        "detail",
        Kind::Text,
        "altitude, component or driver that it was registered for",
    ),
    column("record", Kind::Hex, "virtual address of its record"),
    column("physical", Kind::Hex, "physical address of its record"),
];

/// Entries of an array at most; older builds have 8 of some.
const SLOTS: u64 = 64;
/// Members of a list at most.
const MOST: usize = 4096;
/// Bytes of a component's name at most.
const COMPONENT: usize = 64;
/// The function of a driver that is called at a shutdown.
const IRP_MJ_SHUTDOWN: usize = 16;

/// Arrays of fast references.
const ARRAYS: [(&str, &str); 3] = [
    ("process", "PspCreateProcessNotifyRoutine"),
    ("thread", "PspCreateThreadNotifyRoutine"),
    ("image", "PspLoadImageNotifyRoutine"),
];

/// What a list's records hold.
#[derive(Clone, Copy)]
enum Record {
    Registry,
    /// Place of the component's name.
    BugCheck(u64),
    Shutdown,
    FileSystem,
}

const LISTS: [(&str, &str, Record); 6] = [
    ("registry", "CallbackListHead", Record::Registry),
    (
        "bugcheck",
        "KeBugCheckCallbackListHead",
        Record::BugCheck(40),
    ),
    (
        "bugcheck_reason",
        "KeBugCheckReasonCallbackListHead",
        Record::BugCheck(24),
    ),
    ("shutdown", "IopNotifyShutdownQueueHead", Record::Shutdown),
    (
        "last_shutdown",
        "IopNotifyLastChanceShutdownQueueHead",
        Record::Shutdown,
    ),
    (
        "file_system",
        "IopFsNotifyChangeQueueHead",
        Record::FileSystem,
    ),
];

/// A function that is called.
struct Call {
    address: u64,
    detail: Option<String>,
    record: u64,
}

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    let modules = Modules::new(k, &mut out.doubts)?;
    let mut add = |kind: &str, found: Result<Vec<Call>, WindowsError>| match found {
        Ok(all) => all
            .into_iter()
            .for_each(|c| row(k, &modules, kind, c, &mut out)),
        Err(e) => out
            .doubts
            .push(format!("callbacks of {kind} can't be read: {e}")),
    };
    for (kind, symbol) in ARRAYS {
        add(kind, array(k, symbol));
    }
    for (kind, symbol, record) in LISTS {
        add(kind, list(k, symbol, record));
    }
    Ok(out)
}

fn row(k: &Kernel<'_>, modules: &Modules, kind: &str, c: Call, out: &mut Table) {
    let module = modules.name(c.address);
    let detail = c.detail.as_deref().map(|d| format!(" ({d})"));
    let text = format!(
        "the kernel calls {:#x} for {kind}{}, which is in no module",
        c.address,
        detail.unwrap_or_default()
    );
    out.push(vec![
        kind.into(),
        c.address.into(),
        module.into(),
        c.detail.into(),
        c.record.into(),
        k.physical(c.record).map(|p| p.0).into(),
    ]);
    if modules.lack(c.address) {
        out.flag("callback_outside_modules", Severity::Critical, text);
    }
}

/// The functions of an array. It ends where another global begins.
fn array(k: &Kernel<'_>, symbol: &'static str) -> Result<Vec<Call>, WindowsError> {
    let first = k.address(symbol)?;
    let is_own = |va| {
        let below = k.symbols.nearest(VirtAddr(va));
        below.is_some_and(|(s, _)| s.address.0 == first)
    };
    let mut out = Vec::new();
    for i in (0..SLOTS).take_while(|i| is_own(first + i * 8)) {
        // The low four bits count references.
        let record = k.space.u64(first.wrapping_add(i * 8))? & !0xf;
        if !is_kernel(record) {
            continue;
        }
        let address = k.space.u64(record.wrapping_add(8))?;
        if is_kernel(address) {
            out.push(Call {
                address,
                detail: None,
                record,
            });
        }
    }
    Ok(out)
}

fn list(k: &Kernel<'_>, symbol: &'static str, kind: Record) -> Result<Vec<Call>, WindowsError> {
    let head = k.address(symbol)?;
    let (mut out, mut seen) = (Vec::new(), HashSet::new());
    let mut at = k.space.u64(head)?;
    // A head that was never set up has no list.
    while at != head && at != 0 && seen.insert(at) && seen.len() <= MOST {
        let word = |n: u64| k.space.u64(at.wrapping_add(n));
        let call = match kind {
            Record::Registry => Some((word(40)?, altitude(k, at.wrapping_add(48)))),
            Record::BugCheck(name) => {
                Some((word(16)?, word(name).ok().and_then(|va| bytes(k, va))))
            }
            Record::Shutdown => {
                let device = k.object("_DEVICE_OBJECT", word(16)?);
                match device.follow("DriverObject", "_DRIVER_OBJECT")? {
                    Some(d) => {
                        let functions = d.at("MajorFunction")?;
                        let function = functions.wrapping_add(IRP_MJ_SHUTDOWN as u64 * 8);
                        Some((k.space.u64(function)?, d.unicode("DriverName").ok()))
                    }
                    None => None,
                }
            }
            Record::FileSystem => {
                let d = k.object("_DRIVER_OBJECT", word(16)?);
                Some((word(24)?, d.unicode("DriverName").ok()))
            }
        };
        if let Some((address, detail)) = call.filter(|c| is_kernel(c.0)) {
            out.push(Call {
                address,
                detail: detail.filter(|d| !d.is_empty()),
                record: at,
            });
        }
        at = word(0)?;
    }
    Ok(out)
}

/// A `UNICODE_STRING`.
fn altitude(k: &Kernel<'_>, at: u64) -> Option<String> {
    let len = k.space.u32(at).ok()? & 0xffff;
    let text = k.space.u64(at.wrapping_add(8)).ok()?;
    k.space.utf16(text, usize::try_from(len).ok()?).ok()
}

/// Text of bytes up to its NUL.
fn bytes(k: &Kernel<'_>, at: u64) -> Option<String> {
    let mut out = Vec::new();
    for i in 0..COMPONENT as u64 {
        let mut one = [0];
        k.space.read(at.wrapping_add(i), &mut one).ok()?;
        if one[0] == 0 {
            break;
        }
        out.push(one[0]);
    }
    let text = String::from_utf8(out).ok()?;
    (!text.chars().any(char::is_control)).then_some(text)
}
