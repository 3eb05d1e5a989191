//! `windows/driverirp`, `windows/devicetree`: what drivers do with requests, and the devices that they made.
//!
//! Driver objects are those of the scan of all memory.
//!
//! Sources: the public types `_DRIVER_OBJECT`, `_DEVICE_OBJECT`; names of functions (`IRP_MJ_*`) and of kinds of devices
//! (`FILE_DEVICE_*`) of the public header `wdm.h`.

use crate::table::{Column, Kind, Table, column};
use crate::windows::kernel_modules::{Modules, is_kernel};
use crate::windows::object::{number_in, unicode_in};
use crate::windows::objects::{ObjectTypes, name, path};
use crate::windows::scan::scanned;
use crate::windows::{Kernel, WindowsError, WindowsView};
use ramsift_layers::Severity;
use std::collections::HashSet;

/// `windows/driverirp`.
pub(in crate::windows) const DRIVERIRP: WindowsView = WindowsView {
    name: "windows/driverirp",
    meaning: "functions of drivers for requests",
    columns: FUNCTIONS,
    build: functions,
    recover: None,
};

const FUNCTIONS: &[Column] = &[
    column("driver", Kind::Text, "name of the driver object"),
    column("function", Kind::Text, "kind of request"),
    column("address", Kind::Hex, "the function"),
    column("module", Kind::Text, "module that holds it"),
    column(
        "freed",
        Kind::Flag,
        "whether the object's memory was given back",
    ),
    column(
        "physical",
        Kind::Hex,
        "physical address of the driver object",
    ),
];

/// `windows/devicetree`.
pub(in crate::windows) const DEVICETREE: WindowsView = WindowsView {
    name: "windows/devicetree",
    meaning: "drivers, their devices, and what is attached to these",
    columns: DEVICES,
    build: devices,
    recover: None,
};

const DEVICES: &[Column] = &[
    column(
        "depth",
        Kind::Number,
        "0 of a driver, 1 of its devices, then what is attached to one",
    ),
    column("kind", Kind::Text, "driver, device, attached"),
    column("driver", Kind::Text, "name of the driver object"),
    column("device", Kind::Text, "name of the device"),
    column("type", Kind::Text, "kind of the device"),
    column(
        "object",
        Kind::Hex,
        "virtual address of the device object; null of a driver",
    ),
    column("physical", Kind::Hex, "physical address of the object"),
];

/// Kinds of requests, by number.
const NAMES: [&str; 28] = [
    "IRP_MJ_CREATE",
    "IRP_MJ_CREATE_NAMED_PIPE",
    "IRP_MJ_CLOSE",
    "IRP_MJ_READ",
    "IRP_MJ_WRITE",
    "IRP_MJ_QUERY_INFORMATION",
    "IRP_MJ_SET_INFORMATION",
    "IRP_MJ_QUERY_EA",
    "IRP_MJ_SET_EA",
    "IRP_MJ_FLUSH_BUFFERS",
    "IRP_MJ_QUERY_VOLUME_INFORMATION",
    "IRP_MJ_SET_VOLUME_INFORMATION",
    "IRP_MJ_DIRECTORY_CONTROL",
    "IRP_MJ_FILE_SYSTEM_CONTROL",
    "IRP_MJ_DEVICE_CONTROL",
    "IRP_MJ_INTERNAL_DEVICE_CONTROL",
    "IRP_MJ_SHUTDOWN",
    "IRP_MJ_LOCK_CONTROL",
    "IRP_MJ_CLEANUP",
    "IRP_MJ_CREATE_MAILSLOT",
    "IRP_MJ_QUERY_SECURITY",
    "IRP_MJ_SET_SECURITY",
    "IRP_MJ_POWER",
    "IRP_MJ_SYSTEM_CONTROL",
    "IRP_MJ_DEVICE_CHANGE",
    "IRP_MJ_QUERY_QUOTA",
    "IRP_MJ_SET_QUOTA",
    "IRP_MJ_PNP",
];

/// Kinds of devices, from number 1 on.
const TYPES: [&str; 57] = [
    "BEEP",
    "CD_ROM",
    "CD_ROM_FILE_SYSTEM",
    "CONTROLLER",
    "DATALINK",
    "DFS",
    "DISK",
    "DISK_FILE_SYSTEM",
    "FILE_SYSTEM",
    "INPORT_PORT",
    "KEYBOARD",
    "MAILSLOT",
    "MIDI_IN",
    "MIDI_OUT",
    "MOUSE",
    "MULTI_UNC_PROVIDER",
    "NAMED_PIPE",
    "NETWORK",
    "NETWORK_BROWSER",
    "NETWORK_FILE_SYSTEM",
    "NULL",
    "PARALLEL_PORT",
    "PHYSICAL_NETCARD",
    "PRINTER",
    "SCANNER",
    "SERIAL_MOUSE_PORT",
    "SERIAL_PORT",
    "SCREEN",
    "SOUND",
    "STREAMS",
    "TAPE",
    "TAPE_FILE_SYSTEM",
    "TRANSPORT",
    "UNKNOWN",
    "VIDEO",
    "VIRTUAL_DISK",
    "WAVE_IN",
    "WAVE_OUT",
    "8042_PORT",
    "NETWORK_REDIRECTOR",
    "BATTERY",
    "BUS_EXTENDER",
    "MODEM",
    "VDM",
    "MASS_STORAGE",
    "SMB",
    "KS",
    "CHANGER",
    "SMARTCARD",
    "ACPI",
    "DVD",
    "FULLSCREEN_VIDEO",
    "DFS_FILE_SYSTEM",
    "DFS_VOLUME",
    "SERENUM",
    "TERMSRV",
    "KSEC",
];

/// Devices of a driver, and devices on top of each other, at most.
const MOST: usize = 4096;

fn functions(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(FUNCTIONS);
    let modules = Modules::new(k, &mut out.doubts)?;
    let found = scanned(k)?;
    out.doubts.extend(found.doubts.iter().cloned());
    let ty = "_DRIVER_OBJECT";
    let first = k.symbols.types().field(ty, "MajorFunction")?.offset;
    let first = usize::try_from(first).unwrap_or(usize::MAX);
    for d in &found.drivers {
        let number =
            |path: &str| Ok::<_, WindowsError>(number_in(k, ty, path, &d.bytes)?.unwrap_or(0));
        let who = unicode_in(k, ty, "DriverName", &d.bytes)?;
        let start = number("DriverStart")?;
        let own = start..start.saturating_add(number("DriverSize")?);
        let table = d.bytes.get(first..).unwrap_or_default().as_chunks::<8>().0;
        for (function, va) in NAMES.iter().zip(table) {
            let va = u64::from_le_bytes(*va);
            if !is_kernel(va) {
                continue;
            }
            out.push(vec![
                who.clone().into(),
                (*function).into(),
                va.into(),
                modules.name(va).into(),
                d.freed.into(),
                d.physical.into(),
            ]);
            if !d.freed && !own.contains(&va) && modules.lack(va) {
                let who = who.as_deref().unwrap_or("a driver without a name");
                out.flag(
                    "hooked_driver",
                    Severity::Critical,
                    format!("{function} of {who} leads to {va:#x}, which is in no module"),
                );
            }
        }
    }
    Ok(out)
}

fn devices(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(DEVICES);
    let types = ObjectTypes::new(k)?;
    let found = scanned(k)?;
    out.doubts.extend(found.doubts.iter().cloned());
    let ty = "_DRIVER_OBJECT";
    for d in &found.drivers {
        let who = unicode_in(k, ty, "DriverName", &d.bytes)?;
        out.push(vec![
            0u64.into(),
            "driver".into(),
            who.clone().into(),
            None::<u64>.into(),
            None::<u64>.into(),
            None::<u64>.into(),
            d.physical.into(),
        ]);
        if d.freed {
            continue;
        }
        let mut at = number_in(k, ty, "DeviceObject", &d.bytes)?.unwrap_or(0);
        let mut seen = HashSet::new();
        while at != 0 && seen.insert(at) && seen.len() <= MOST {
            let Some(next) = device(k, &types, (1, at), who.clone(), &mut out) else {
                let who = who.unwrap_or_default();
                out.doubts
                    .push(format!("the devices of {who} are torn at {at:#x}"));
                break;
            };
            attached(k, &types, at, &mut out);
            at = next;
        }
    }
    Ok(out)
}

/// Adds a device and gives the driver's next one; `None` where there is no device.
fn device(
    k: &Kernel<'_>,
    types: &ObjectTypes,
    (depth, at): (u64, u64),
    driver: Option<String>,
    out: &mut Table,
) -> Option<u64> {
    let d = k.object("_DEVICE_OBJECT", at);
    // IO_TYPE_DEVICE.
    (d.number("Type").ok()? == 3).then_some(())?;
    let number = d.number("DeviceType").ok()?;
    let kind = usize::try_from(number)
        .ok()
        .and_then(|n| TYPES.get(n.checked_sub(1)?));
    let kind = kind.map_or_else(|| format!("{number:#x}"), |k| (*k).to_owned());
    let own = path(k, types, at).or_else(|| name(k, &types.header(k, at)).ok().flatten());
    out.push(vec![
        depth.into(),
        if depth == 1 { "device" } else { "attached" }.into(),
        driver.into(),
        own.into(),
        kind.into(),
        at.into(),
        d.physical().into(),
    ]);
    d.number("NextDevice").ok()
}

/// Adds what is attached to a device, one on top of the other.
fn attached(k: &Kernel<'_>, types: &ObjectTypes, below: u64, out: &mut Table) {
    let mut seen = HashSet::from([below]);
    let above = |va: u64| k.object("_DEVICE_OBJECT", va).number("AttachedDevice").ok();
    let (mut at, mut depth) = (above(below).unwrap_or(0), 2);
    while at != 0 && seen.insert(at) && seen.len() <= MOST {
        let d = k.object("_DEVICE_OBJECT", at);
        let driver = d.follow("DriverObject", "_DRIVER_OBJECT").ok().flatten();
        let driver = driver.and_then(|d| d.unicode("DriverName").ok());
        if device(k, types, (depth, at), driver, out).is_none() {
            out.doubts.push(format!(
                "what is attached to the device at {below:#x} is torn"
            ));
            return;
        }
        at = above(at).unwrap_or(0);
        depth += 1;
    }
}
