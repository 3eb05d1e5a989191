//! `windows/pslist`: the processes of the kernel's list.
//!
//! Source: the public type `_EPROCESS`.

use crate::table::{Column, Kind, Table, Value, column};
use crate::windows::objects;
use crate::windows::process::Process;
use crate::windows::{Kernel, WindowsError, WindowsView, time};
use ramsift_layers::Severity;

/// `windows/pslist`.
pub(in crate::windows) const PSLIST: WindowsView = WindowsView {
    name: "windows/pslist",
    meaning: "processes of the kernel's list",
    columns: COLUMNS,
    build,
    recover: None,
};

const COLUMNS: &[Column] = &[
    column("pid", Kind::Number, "process id"),
    column("ppid", Kind::Number, "process id of the creator"),
    column(
        "comm",
        Kind::Text,
        "name of the program, up to 15 characters",
    ),
    column(
        "path",
        Kind::Text,
        "full path of the program, as noted for audits",
    ),
    column("threads", Kind::Number, "threads that run"),
    column("handles", Kind::Number, "handles that are open"),
    column("session", Kind::Number, "number of the session"),
    column("wow64", Kind::Flag, "whether it is a 32-bit program"),
    column("start", Kind::Time, "when it was created"),
    column("exit", Kind::Time, "when it ended"),
    column("dtb", Kind::Hex, "physical address of its top page table"),
    column("eprocess", Kind::Hex, "virtual address of its _EPROCESS"),
    column("physical", Kind::Hex, "physical address of its _EPROCESS"),
];

/// Processes of the system: name, folder below that of the system, and the names of those that create it (none: any).
const OF_SYSTEM: [(&str, &[&str], &[&str]); 9] = [
    ("smss.exe", &["system32"], &["System", "smss.exe"]),
    ("csrss.exe", &["system32"], &["smss.exe"]),
    ("wininit.exe", &["system32"], &["smss.exe"]),
    ("winlogon.exe", &["system32"], &["smss.exe"]),
    ("services.exe", &["system32"], &["wininit.exe"]),
    ("lsass.exe", &["system32"], &["wininit.exe"]),
    ("lsm.exe", &["system32"], &["wininit.exe"]),
    (
        "svchost.exe",
        &["system32", "syswow64"],
        &["services.exe", "svchost.exe", "MsMpEng.exe"],
    ),
    ("spoolsv.exe", &["system32"], &["services.exe"]),
];

/// What does not fit a process of the system by its name: where its program lies, and who created it. A creator that has
/// ended is no reason, nor is a path that is not known.
fn misfit(name: &str, path: Option<&str>, parent: Option<&str>) -> Option<String> {
    let (_, folders, parents) = OF_SYSTEM.iter().find(|s| s.0.eq_ignore_ascii_case(name))?;
    if let Some(path) = path {
        let low = path.to_ascii_lowercase();
        let ends =
            |f: &&str| low.ends_with(&format!("\\windows\\{f}\\{}", name.to_ascii_lowercase()));
        if !folders.iter().any(ends) {
            return Some(format!("runs from {path}"));
        }
    }
    let parent = parent?;
    let fits = parents.iter().any(|p| p.eq_ignore_ascii_case(parent));
    (!fits).then(|| format!("was created by {parent}"))
}

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    let all = k.processes(&mut out.doubts)?;
    let created = |p: &Process<'_>| p.object.number("CreateTime").unwrap_or(0);
    let parent_of = |p: &Process<'_>| {
        let pid = p.object.number("InheritedFromUniqueProcessId").ok()?;
        let parent = all.iter().find(|o| o.pid == pid.cast_signed())?;
        // Numbers are used again.
        (created(parent) <= created(p)).then(|| parent.name())
    };
    for p in &all {
        let row = row(k, p);
        let (start, exit) = (row[8].clone(), row[9].clone());
        out.push(row);
        let (name, path) = (p.name(), p.path(k));
        if let Some(why) = misfit(&name, path.as_deref(), parent_of(p).as_deref()) {
            let reason = format!(
                "{} has the name of a process of the system and {why}",
                p.label()
            );
            out.flag("misplaced_system_process", Severity::High, reason);
        }
        for (at, kind) in [(start, "process started"), (exit, "process ended")] {
            if let Value::Number(at) = at
                && let Ok(at) = i64::try_from(at)
            {
                let what = kind.trim_start_matches("process ");
                out.event(at, kind, format!("{} {what}", p.label()));
            }
        }
    }
    Ok(out)
}

/// What is known of a process; what can't be read is null.
fn row(k: &Kernel<'_>, p: &Process<'_>) -> Vec<Value> {
    let o = &p.object;
    let number = |path: &str| o.number(path).ok();
    let parent = number("InheritedFromUniqueProcessId");
    let table = number("ObjectTable").filter(|va| *va != 0);
    // Newer builds keep no count.
    let handles = table.and_then(|va| {
        let t = k.object("_HANDLE_TABLE", va);
        t.number("HandleCount").ok().or_else(|| {
            let mut n = 0;
            objects::handles(k, va, &mut |_| n += 1).ok()?;
            Some(n)
        })
    });
    vec![
        p.pid.into(),
        parent.map(u64::cast_signed).into(),
        p.name().into(),
        p.path(k).into(),
        number("ActiveThreads").into(),
        handles.into(),
        p.session(k).into(),
        p.is_wow64().into(),
        number("CreateTime").and_then(time).into(),
        number("ExitTime").and_then(time).into(),
        number("Pcb.DirectoryTableBase").into(),
        o.va.into(),
        o.physical().into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_the_system_have_their_places() {
        let root = "\\Device\\HarddiskVolume3\\Windows\\";
        let of = |name: &str, path: &str, parent: Option<&str>| misfit(name, Some(path), parent);
        let own = format!("{root}System32\\svchost.exe");
        assert_eq!(of("svchost.exe", &own, Some("services.exe")), None);
        assert_eq!(of("svchost.exe", &own, None), None);
        let narrow = format!("{root}SysWOW64\\svchost.exe");
        assert_eq!(of("SVCHOST.EXE", &narrow, Some("services.exe")), None);
        let e = of("svchost.exe", &own, Some("explorer.exe")).expect("odd");
        assert!(e.contains("created by explorer.exe"), "{e}");
        let temp = format!("{root}Temp\\lsass.exe");
        let e = of("lsass.exe", &temp, Some("wininit.exe")).expect("odd");
        assert!(e.contains("runs from"), "{e}");
        assert_eq!(of("notepad.exe", &temp, Some("services.exe")), None);
        assert_eq!(misfit("lsass.exe", None, Some("wininit.exe")), None);
    }
}
