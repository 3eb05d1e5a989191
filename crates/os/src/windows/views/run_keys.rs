//! `windows/run_keys`: what the registry has run by itself: at the start, at a logon, or in place of other programs.
//!
//! Source: the keys as documented by Microsoft ("Run and RunOnce registry keys", Winlogon, "Image File Execution Options",
//! Session Manager, Active Setup).

use crate::table::{Column, Kind, Table, column};
use crate::windows::registry::{Hive, Key, hives, registry_space};
use crate::windows::{Kernel, WindowsError, WindowsView, time};

/// `windows/run_keys`.
pub(in crate::windows) const RUN_KEYS: WindowsView = WindowsView {
    name: "windows/run_keys",
    meaning: "programs that the registry has run by itself",
    columns: COLUMNS,
    build,
    recover: None,
};

const COLUMNS: &[Column] = &[
    column("key", Kind::Text, "the key, from the root of the registry"),
    column("name", Kind::Text, "name of the value"),
    column("command", Kind::Text, "what is run or loaded"),
    column("changed", Kind::Time, "when the key was changed last"),
    column("physical", Kind::Hex, "physical address of the key"),
];

/// Which values of a key count.
#[derive(Clone, Copy)]
enum Wanted {
    /// All that are text.
    All,
    /// These.
    Named(&'static [&'static str]),
    /// These, of each key below.
    Below(&'static [&'static str]),
}

use Wanted::{All, Below, Named};

/// Keys of the hive SOFTWARE.
const SOFTWARE: &[(&str, Wanted)] = &[
    ("Microsoft\\Windows\\CurrentVersion\\Run", All),
    ("Microsoft\\Windows\\CurrentVersion\\RunOnce", All),
    ("Microsoft\\Windows\\CurrentVersion\\RunOnceEx", All),
    ("Microsoft\\Windows\\CurrentVersion\\RunServices", All),
    ("Microsoft\\Windows\\CurrentVersion\\RunServicesOnce", All),
    (
        "Microsoft\\Windows\\CurrentVersion\\Policies\\Explorer\\Run",
        All,
    ),
    ("Wow6432Node\\Microsoft\\Windows\\CurrentVersion\\Run", All),
    (
        "Wow6432Node\\Microsoft\\Windows\\CurrentVersion\\RunOnce",
        All,
    ),
    (
        "Microsoft\\Windows NT\\CurrentVersion\\Winlogon",
        Named(&["Shell", "Userinit", "Taskman", "VmApplet", "AppSetup"]),
    ),
    (
        "Microsoft\\Windows NT\\CurrentVersion\\Windows",
        Named(&["AppInit_DLLs", "Load", "Run"]),
    ),
    (
        "Microsoft\\Windows NT\\CurrentVersion\\Image File Execution Options",
        Below(&["Debugger"]),
    ),
    (
        "Microsoft\\Windows NT\\CurrentVersion\\SilentProcessExit",
        Below(&["MonitorProcess"]),
    ),
    (
        "Microsoft\\Active Setup\\Installed Components",
        Below(&["StubPath"]),
    ),
    ("Microsoft\\Command Processor", Named(&["AutoRun"])),
];

/// Keys of the set of the hive SYSTEM that is in use.
const SYSTEM: &[(&str, Wanted)] = &[
    (
        "Control\\Session Manager",
        Named(&["BootExecute", "SetupExecute", "Execute"]),
    ),
    ("Control\\Session Manager\\AppCertDlls", All),
    (
        "Control\\Lsa",
        Named(&[
            "Authentication Packages",
            "Security Packages",
            "Notification Packages",
        ]),
    ),
    ("Control\\SecurityProviders", Named(&["SecurityProviders"])),
    ("Control\\Print\\Monitors", Below(&["Driver"])),
    ("Control\\NetworkProvider\\Order", Named(&["ProviderOrder"])),
];

/// Keys of the hives of users.
const USER: &[(&str, Wanted)] = &[
    ("Software\\Microsoft\\Windows\\CurrentVersion\\Run", All),
    ("Software\\Microsoft\\Windows\\CurrentVersion\\RunOnce", All),
    (
        "Software\\Microsoft\\Windows\\CurrentVersion\\Policies\\Explorer\\Run",
        All,
    ),
    (
        "Software\\Microsoft\\Windows NT\\CurrentVersion\\Windows",
        Named(&["Load", "Run"]),
    ),
    (
        "Software\\Microsoft\\Windows NT\\CurrentVersion\\Winlogon",
        Named(&["Shell"]),
    ),
    (
        "Software\\Microsoft\\Command Processor",
        Named(&["AutoRun"]),
    ),
    ("Environment", Named(&["UserInitMprLogonScript"])),
];

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    let registry = registry_space(k, &mut out.doubts)?;
    let mut missing = vec!["SOFTWARE", "SYSTEM"];
    for h in hives(k, registry.as_ref(), &mut out.doubts)? {
        missing.retain(|m| !h.is(m));
        let (prefix, places) = if h.is("SOFTWARE") {
            (String::new(), SOFTWARE)
        } else if h.is("SYSTEM") {
            let current = h.open("Select").and_then(|key| key.number("Current"));
            (format!("ControlSet{:03}\\", current.unwrap_or(1)), SYSTEM)
        } else if h.is_of_user() {
            (String::new(), USER)
        } else {
            continue;
        };
        for (path, wanted) in places {
            let path = format!("{prefix}{path}");
            match wanted {
                All => rows(&h, h.open(&path), None, &mut out),
                Named(names) => rows(&h, h.open(&path), Some(names), &mut out),
                Below(names) => {
                    for key in h.below(&path) {
                        rows(&h, Some(key), Some(names), &mut out);
                    }
                }
            }
        }
    }
    let doubts = missing
        .iter()
        .map(|m| format!("the hive {m} is not in memory"));
    out.doubts.extend(doubts);
    Ok(out)
}

/// Adds the values of a key, of these names or all.
fn rows(h: &Hive<'_>, key: Option<Key>, names: Option<&[&str]>, out: &mut Table) {
    let Some(key) = key else { return };
    let place = format!("{}\\{}", h.root(), key.path);
    for v in &key.values {
        let counts = names.is_none_or(|all| all.iter().any(|n| n.eq_ignore_ascii_case(&v.name)));
        let Some(command) = v.as_text().filter(|c| counts && !c.is_empty()) else {
            continue;
        };
        out.push(vec![
            place.as_str().into(),
            v.name.as_str().into(),
            command.into(),
            time(key.changed).into(),
            h.space(key.va).translate(key.va).ok().map(|p| p.0).into(),
        ]);
    }
}
