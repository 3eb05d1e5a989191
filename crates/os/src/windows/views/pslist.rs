//! `windows/pslist`: the processes of the kernel's list.
//!
//! Source: the public type `_EPROCESS`.

use super::tokens;
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

/// The session that a process of the system is in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Session {
    /// That of services.
    Services,
    /// One of users.
    Users,
    Any,
}

/// A process of the system.
struct OfSystem {
    name: &'static str,
    /// Folders below that of the system.
    folders: &'static [&'static str],
    /// Names of those that create it.
    parents: &'static [&'static str],
    /// Accounts of those in the session of services.
    users: &'static [&'static str],
    session: Session,
}

const fn of_system(
    name: &'static str,
    parents: &'static [&'static str],
    session: Session,
) -> OfSystem {
    OfSystem {
        name,
        folders: &["system32"],
        parents,
        users: &["S-1-5-18"],
        session,
    }
}

/// Services run as the system, or as one of two accounts of less rights. In sessions of users they may run as these.
const SERVICES: [&str; 3] = ["S-1-5-18", "S-1-5-19", "S-1-5-20"];

const OF_SYSTEM: [OfSystem; 9] = [
    of_system("smss.exe", &["System", "smss.exe"], Session::Any),
    of_system("csrss.exe", &["smss.exe"], Session::Any),
    of_system("wininit.exe", &["smss.exe"], Session::Services),
    of_system("winlogon.exe", &["smss.exe"], Session::Users),
    of_system("services.exe", &["wininit.exe"], Session::Services),
    of_system("lsass.exe", &["wininit.exe"], Session::Services),
    of_system("lsm.exe", &["wininit.exe"], Session::Services),
    OfSystem {
        folders: &["system32", "syswow64"],
        users: &SERVICES,
        ..of_system(
            "svchost.exe",
            &["services.exe", "svchost.exe", "MsMpEng.exe"],
            Session::Any,
        )
    },
    of_system("spoolsv.exe", &["services.exe"], Session::Services),
];

/// What is known of a process by which it is judged.
#[derive(Clone, Copy, Default)]
struct Seen<'s> {
    name: &'s str,
    pid: i64,
    path: Option<&'s str>,
    parent: Option<&'s str>,
    user: Option<&'s str>,
    session: Option<u64>,
}

/// What does not fit a process of the system by its name: where its program lies, who created it, on whose behalf it acts, its
/// session and its number. A creator that has ended is no reason, nor is what is not known.
fn misfit(p: &Seen<'_>) -> Option<String> {
    if p.name == "System" && p.pid != 4 {
        return Some("has not the number 4".into());
    }
    let own = OF_SYSTEM
        .iter()
        .find(|s| s.name.eq_ignore_ascii_case(p.name))?;
    if let Some(path) = p.path {
        let low = path.to_ascii_lowercase();
        let ends =
            |f: &&str| low.ends_with(&format!("\\windows\\{f}\\{}", p.name.to_ascii_lowercase()));
        if !own.folders.iter().any(ends) {
            return Some(format!("runs from {path}"));
        }
    }
    let parents = own.parents;
    if let Some(parent) = p
        .parent
        .filter(|p| !parents.iter().any(|o| o.eq_ignore_ascii_case(p)))
    {
        return Some(format!("was created by {parent}"));
    }
    let of_services = p.session.is_none_or(|s| s == 0);
    if let Some(user) = p.user.filter(|u| !own.users.contains(u))
        && (of_services || own.users.len() == 1)
    {
        return Some(format!("runs as {user}"));
    }
    let fits = match own.session {
        Session::Services => of_services,
        Session::Users => p.session != Some(0),
        Session::Any => true,
    };
    let session = p.session.unwrap_or(0);
    (!fits).then(|| format!("is in session {session}"))
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
        let parent = parent_of(p);
        // The token of one that has ended is gone.
        let user = tokens::user(k, p).filter(|_| !p.has_ended());
        let seen = Seen {
            name: &name,
            pid: p.pid,
            path: path.as_deref(),
            parent: parent.as_deref(),
            user: user.as_deref(),
            session: p.session(k),
        };
        if let Some(why) = misfit(&seen) {
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
        let own = format!("{root}System32\\svchost.exe");
        let host = Seen {
            name: "svchost.exe",
            pid: 812,
            path: Some(&own),
            parent: Some("services.exe"),
            user: Some("S-1-5-20"),
            session: Some(0),
        };
        assert_eq!(misfit(&host), None);
        assert_eq!(
            misfit(&Seen {
                parent: None,
                ..host
            }),
            None
        );
        let narrow = format!("{root}SysWOW64\\svchost.exe");
        let of = |p: Seen<'_>| misfit(&p).unwrap_or_default();
        let upper = Seen {
            name: "SVCHOST.EXE",
            path: Some(&narrow),
            ..host
        };
        assert_eq!(misfit(&upper), None);
        let e = of(Seen {
            parent: Some("explorer.exe"),
            ..host
        });
        assert!(e.contains("created by explorer.exe"), "{e}");
        // Users have services of their own, in their sessions.
        let user = Some("S-1-5-21-1-2-3-1001");
        let e = of(Seen { user, ..host });
        assert!(e.contains("runs as S-1-5-21"), "{e}");
        let session = Some(2);
        assert_eq!(
            misfit(&Seen {
                user,
                session,
                ..host
            }),
            None
        );
        let temp = format!("{root}Temp\\lsass.exe");
        let lsass = Seen {
            name: "lsass.exe",
            path: None,
            parent: Some("wininit.exe"),
            user: Some("S-1-5-18"),
            ..host
        };
        assert_eq!(misfit(&lsass), None);
        let e = of(Seen {
            path: Some(&temp),
            ..lsass
        });
        assert!(e.contains("runs from"), "{e}");
        let e = of(Seen { session, ..lsass });
        assert!(e.contains("session 2"), "{e}");
        let e = of(Seen {
            user: Some("S-1-5-19"),
            ..lsass
        });
        assert!(e.contains("runs as S-1-5-19"), "{e}");
        let logon = Seen {
            name: "winlogon.exe",
            path: None,
            parent: None,
            ..lsass
        };
        assert!(of(logon).contains("session 0"));
        let other = Seen {
            name: "notepad.exe",
            path: Some(&temp),
            ..host
        };
        assert_eq!(misfit(&other), None);
        let system = Seen {
            name: "System",
            pid: 4,
            ..Seen::default()
        };
        assert_eq!(misfit(&system), None);
        assert!(misfit(&Seen { pid: 940, ..system }).is_some());
    }
}
