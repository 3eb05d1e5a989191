//! `windows/services`: services and drivers as the registry has them set up.
//!
//! Sources: keys below `SYSTEM\CurrentControlSet\Services` as documented by Microsoft (`CreateService`); numbers of kinds and
//! starts of the public header `winnt.h`.

use crate::table::{Column, Kind, Table, column};
use crate::windows::registry::{hives, registry_space};
use crate::windows::{Kernel, WindowsError, WindowsView, time};
use ramsift_layers::Severity;

/// `windows/services`.
pub(in crate::windows) const SERVICES: WindowsView = WindowsView {
    name: "windows/services",
    meaning: "services and drivers as the registry has them set up",
    columns: COLUMNS,
    build,
    recover: None,
};

const COLUMNS: &[Column] = &[
    column("name", Kind::Text, "name of the service"),
    column("display_name", Kind::Text, "name for people"),
    column(
        "kind",
        Kind::Text,
        "kernel driver, own process, shared process, …",
    ),
    column(
        "start",
        Kind::Text,
        "boot, system, automatic, manual, disabled",
    ),
    column("image", Kind::Text, "its program or driver, with arguments"),
    column(
        "library",
        Kind::Text,
        "its library, in a process that several share",
    ),
    column("account", Kind::Text, "the account that it runs as"),
    column("changed", Kind::Time, "when its key was changed last"),
    column("physical", Kind::Hex, "physical address of its key"),
];

/// When services are started, by number.
pub(super) const STARTS: [&str; 5] = ["boot", "system", "automatic", "manual", "disabled"];

/// Kinds, by the bits of `winnt.h`.
const KINDS: [(u32, &str); 7] = [
    (0x1, "kernel driver"),
    (0x2, "file system driver"),
    (0x4, "adapter"),
    (0x8, "recognizer"),
    (0x10, "own process"),
    (0x20, "shared process"),
    (0x100, "interactive"),
];

/// Folders in which users and programs without rights write.
const OF_USERS: [&str; 4] = ["\\users\\", "\\temp\\", "\\$recycle.bin\\", "\\perflogs\\"];

/// The bits of a kind in words.
pub(super) fn kind(bits: u32) -> String {
    let all = KINDS.iter().filter(|(b, _)| bits & b != 0).map(|(_, n)| *n);
    let words = all.collect::<Vec<_>>().join(", ");
    if words.is_empty() {
        format!("{bits:#x}")
    } else {
        words
    }
}

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    let registry = registry_space(k, &mut out.doubts)?;
    let mut found = false;
    for h in hives(k, registry.as_ref(), &mut out.doubts)? {
        if !h.is("SYSTEM") {
            continue;
        }
        found = true;
        let current = h.open("Select").and_then(|key| key.number("Current"));
        let set = current.unwrap_or_else(|| {
            out.doubts.push(
                "which set of the SYSTEM hive is in use is not known: the first is shown".into(),
            );
            1
        });
        let root = format!("ControlSet{set:03}\\Services");
        for key in h.below(&root) {
            // Keys of other things, as of performance counters, have no start.
            let (Some(start), Some(bits)) = (key.number("Start"), key.number("Type")) else {
                continue;
            };
            let start = usize::try_from(start).ok().and_then(|s| STARTS.get(s));
            let name = key.leaf().to_owned();
            let image = key.text("ImagePath");
            let own = key.text("ServiceDll").or_else(|| {
                let below = h.open(&format!("{root}\\{name}\\Parameters"))?;
                below.text("ServiceDll")
            });
            let changed = time(key.changed);
            let odd = [&image, &own].into_iter().flatten().find(|path| {
                let low = path.to_ascii_lowercase();
                OF_USERS.iter().any(|f| low.contains(f))
            });
            let odd = odd.map(|path| format!("the service {name} runs {path}, where users write"));
            out.push(vec![
                name.into(),
                key.text("DisplayName").into(),
                kind(bits).into(),
                start.copied().into(),
                image.into(),
                own.into(),
                key.text("ObjectName").into(),
                changed.into(),
                h.space(key.va).translate(key.va).ok().map(|p| p.0).into(),
            ]);
            if let Some(text) = odd {
                out.flag("service_of_user_folder", Severity::Medium, text);
            }
        }
    }
    if !found {
        out.doubts.push("the hive SYSTEM is not in memory".into());
    }
    Ok(out)
}
