//! `windows/getsids`, `windows/privileges`: on whose behalf processes act, and what they may.
//!
//! Sources: the public types `_TOKEN`, `_SID_AND_ATTRIBUTES`; MS-DTYP 2.4.2 (SID), 2.4.2.4 (well-known SIDs); MS-LSAD
//! 3.1.1.2.1 (numbers of privileges); `winnt.h` for those added later.

use crate::table::{Column, Kind, Table, Value, column};
use crate::windows::process::Process;
use crate::windows::registry::{hives, registry_space};
use crate::windows::{Kernel, Object, WindowsError, WindowsView};
use ramsift_layers::Severity;
use std::collections::HashMap;
use std::fmt::Write as _;

/// `windows/getsids`.
pub(in crate::windows) const GETSIDS: WindowsView = WindowsView {
    name: "windows/getsids",
    meaning: "user and groups of processes",
    columns: SIDS,
    build: sids,
    recover: None,
};

const SIDS: &[Column] = &[
    column("pid", Kind::Number, "process id"),
    column("comm", Kind::Text, "name of the program"),
    column("sid", Kind::Text, "security identifier"),
    column(
        "name",
        Kind::Text,
        "what a well-known one means; of a user the name of the profile's folder",
    ),
    column("role", Kind::Text, "user, group or integrity"),
    column("attributes", Kind::Hex, "flags of the group"),
    column(
        "physical",
        Kind::Hex,
        "physical address of the process's _EPROCESS",
    ),
];

/// `windows/privileges`.
pub(in crate::windows) const PRIVILEGES: WindowsView = WindowsView {
    name: "windows/privileges",
    meaning: "privileges of processes",
    columns: RIGHTS,
    build: privileges,
    recover: None,
};

const RIGHTS: &[Column] = &[
    column("pid", Kind::Number, "process id"),
    column("comm", Kind::Text, "name of the program"),
    column("number", Kind::Number, "number of the privilege"),
    column("privilege", Kind::Text, "its name"),
    column("enabled", Kind::Flag, "whether it is in use"),
    column("by_default", Kind::Flag, "whether it was from the start"),
    column(
        "physical",
        Kind::Hex,
        "physical address of the process's _EPROCESS",
    ),
];

/// Privileges, from number 2 on.
const NAMES: [&str; 35] = [
    "SeCreateTokenPrivilege",
    "SeAssignPrimaryTokenPrivilege",
    "SeLockMemoryPrivilege",
    "SeIncreaseQuotaPrivilege",
    "SeMachineAccountPrivilege",
    "SeTcbPrivilege",
    "SeSecurityPrivilege",
    "SeTakeOwnershipPrivilege",
    "SeLoadDriverPrivilege",
    "SeSystemProfilePrivilege",
    "SeSystemtimePrivilege",
    "SeProfileSingleProcessPrivilege",
    "SeIncreaseBasePriorityPrivilege",
    "SeCreatePagefilePrivilege",
    "SeCreatePermanentPrivilege",
    "SeBackupPrivilege",
    "SeRestorePrivilege",
    "SeShutdownPrivilege",
    "SeDebugPrivilege",
    "SeAuditPrivilege",
    "SeSystemEnvironmentPrivilege",
    "SeChangeNotifyPrivilege",
    "SeRemoteShutdownPrivilege",
    "SeUndockPrivilege",
    "SeSyncAgentPrivilege",
    "SeEnableDelegationPrivilege",
    "SeManageVolumePrivilege",
    "SeImpersonatePrivilege",
    "SeCreateGlobalPrivilege",
    "SeTrustedCredManAccessPrivilege",
    "SeRelabelPrivilege",
    "SeIncreaseWorkingSetPrivilege",
    "SeTimeZonePrivilege",
    "SeCreateSymbolicLinkPrivilege",
    "SeDelegateSessionUserImpersonatePrivilege",
];

/// Well-known identifiers.
const WELL_KNOWN: [(&str, &str); 20] = [
    ("S-1-1-0", "Everyone"),
    ("S-1-2-0", "Local"),
    ("S-1-5-2", "Network"),
    ("S-1-5-4", "Interactive"),
    ("S-1-5-6", "Service"),
    ("S-1-5-7", "Anonymous"),
    ("S-1-5-11", "Authenticated Users"),
    ("S-1-5-14", "Remote Interactive"),
    ("S-1-5-18", "Local System"),
    ("S-1-5-19", "Local Service"),
    ("S-1-5-20", "Network Service"),
    ("S-1-5-32-544", "Administrators"),
    ("S-1-5-32-545", "Users"),
    ("S-1-5-32-551", "Backup Operators"),
    ("S-1-5-32-555", "Remote Desktop Users"),
    ("S-1-16-0", "Untrusted integrity"),
    ("S-1-16-4096", "Low integrity"),
    ("S-1-16-8192", "Medium integrity"),
    ("S-1-16-12288", "High integrity"),
    ("S-1-16-16384", "System integrity"),
];

/// Groups of a token at most.
const MAX_GROUPS: u64 = 4096;

/// The token of a process. The low four bits of the pointer count references.
fn token<'k>(k: &'k Kernel<'_>, p: &Process<'_>) -> Result<Option<Object<'k>>, WindowsError> {
    let at = p.object.number("Token")? & !0xf;
    Ok((at != 0).then(|| k.object("_TOKEN", at)))
}

/// A security identifier as it is written.
fn sid(k: &Kernel<'_>, at: u64) -> Result<String, WindowsError> {
    let mut head = [0; 8];
    k.space.read(at, &mut head)?;
    let [revision, count, authority @ ..] = head;
    let mut raw = vec![0; 4 * usize::from(count.min(15))];
    k.space.read(at.wrapping_add(8), &mut raw)?;
    let authority = authority.iter().fold(0u64, |a, b| a << 8 | u64::from(*b));
    let mut out = format!("S-{revision}-{authority}");
    for part in raw.as_chunks::<4>().0 {
        let _ = write!(out, "-{}", u32::from_le_bytes(*part));
    }
    Ok(out)
}

/// User and groups of a process, with their attributes.
fn groups(k: &Kernel<'_>, p: &Process<'_>) -> Result<Vec<(String, u64)>, WindowsError> {
    let Some(t) = token(k, p)? else {
        return Ok(Vec::new());
    };
    let (at, count) = (t.number("UserAndGroups")?, t.number("UserAndGroupCount")?);
    let size = k.symbols.types().size_of("_SID_AND_ATTRIBUTES")?;
    let mut out = Vec::new();
    for i in 0..count.min(MAX_GROUPS) {
        let entry = k.object("_SID_AND_ATTRIBUTES", at.wrapping_add(i * size));
        let own = sid(k, entry.number("Sid")?)?;
        out.push((own, entry.number("Attributes")?));
    }
    Ok(out)
}

/// Users by their SIDs, as the list of profiles in the registry has them: the last part of the profile's folder.
fn profiles(k: &Kernel<'_>) -> Result<HashMap<String, String>, WindowsError> {
    let mut doubts = Vec::new();
    let registry = registry_space(k, &mut doubts)?;
    let mut out = HashMap::new();
    for h in hives(k, registry.as_ref(), &mut doubts)? {
        if !h.is("SOFTWARE") {
            continue;
        }
        for key in h.below("Microsoft\\Windows NT\\CurrentVersion\\ProfileList") {
            let folder = key.text("ProfileImagePath").unwrap_or_default();
            if let Some(user) = folder.rsplit('\\').next().filter(|u| !u.is_empty()) {
                out.insert(key.leaf().to_owned(), user.to_owned());
            }
        }
    }
    Ok(out)
}

/// The user of a process.
pub(super) fn user(k: &Kernel<'_>, p: &Process<'_>) -> Option<String> {
    groups(k, p).ok()?.into_iter().next().map(|(sid, _)| sid)
}

fn sids(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(SIDS);
    // Each process has a token of its own.
    let mut owners: HashMap<u64, String> = HashMap::new();
    let users = profiles(k).unwrap_or_default();
    for p in k.processes(&mut out.doubts)? {
        let all = match groups(k, &p) {
            Ok(all) => all,
            Err(_) if p.has_ended() => continue,
            Err(e) => {
                let who = p.label();
                out.doubts
                    .push(format!("the token of {who} can't be read: {e}"));
                continue;
            }
        };
        for (i, (sid, attributes)) in all.into_iter().enumerate() {
            let known = WELL_KNOWN.iter().find(|(s, _)| *s == sid).map(|(_, n)| *n);
            let name = known.or_else(|| users.get(&sid).map(String::as_str));
            let role = match i {
                0 => "user",
                _ if sid.starts_with("S-1-16-") => "integrity",
                _ => "group",
            };
            out.push(vec![
                p.pid.into(),
                p.name().into(),
                sid.as_str().into(),
                name.into(),
                role.into(),
                attributes.into(),
                p.object.physical().into(),
            ]);
            if i > 0 || p.has_ended() {
                continue;
            }
            let at = p.object.number("Token").map_or(0, |t| t & !0xf);
            match owners.get(&at) {
                Some(first) => {
                    let text = format!(
                        "{} has the token of {first}, as one that was written over",
                        p.label()
                    );
                    out.flag("stolen_token", Severity::Critical, text);
                }
                None => {
                    owners.insert(at, p.label());
                }
            }
        }
    }
    Ok(out)
}

/// Privileges that give the whole machine, by number: making tokens, being a part of the system, loading drivers, debugging
/// others, and taking, backing up and restoring what is not one's own.
const POWERFUL: [u64; 7] = [2, 7, 9, 10, 17, 18, 20];

/// The number of a SID's integrity level.
fn integrity(groups: &[(String, u64)]) -> Option<u64> {
    let level = groups
        .iter()
        .find_map(|(sid, _)| sid.strip_prefix("S-1-16-"));
    level?.parse().ok()
}

/// What in a token does not fit: rights in use that it does not have, or such of the machine in a process of a user.
fn misfits(
    present: u64,
    enabled: u64,
    groups: &[(String, u64)],
) -> Vec<(&'static str, Severity, String)> {
    let named = |bits: u64| {
        let all = (0..64u64).filter(|b| bits >> b & 1 != 0);
        let name = |b: u64| {
            let at = usize::try_from(b).ok().and_then(|b| b.checked_sub(2));
            at.and_then(|n| NAMES.get(n))
                .map_or_else(|| format!("number {b}"), |n| (*n).to_owned())
        };
        all.map(name).collect::<Vec<_>>().join(", ")
    };
    let mut out = Vec::new();
    let forged = enabled & !present;
    if forged != 0 {
        out.push((
            "forged_rights",
            Severity::Critical,
            format!(
                "uses rights that its token does not have: {}",
                named(forged)
            ),
        ));
    }
    let powerful = POWERFUL.iter().fold(0, |bits, b| bits | 1 << b) & present;
    // Medium is what programs of users have; administrators' run at high.
    if let Some(level) = integrity(groups).filter(|l| *l <= 0x2000 && powerful != 0) {
        out.push((
            "excessive_rights",
            Severity::High,
            format!(
                "has rights of administrators at integrity {level}: {}",
                named(powerful)
            ),
        ));
    }
    out
}

fn privileges(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(RIGHTS);
    for p in k.processes(&mut out.doubts)? {
        let bits = token(k, &p).and_then(|t| {
            let Some(t) = t else { return Ok([0; 3]) };
            Ok([
                t.number("Privileges.Present")?,
                t.number("Privileges.Enabled")?,
                t.number("Privileges.EnabledByDefault")?,
            ])
        });
        let [present, enabled, default] = match bits {
            Ok(b) => b,
            Err(_) if p.has_ended() => continue,
            Err(e) => {
                let who = p.label();
                out.doubts
                    .push(format!("the token of {who} can't be read: {e}"));
                continue;
            }
        };
        for bit in (0..64).filter(|b| present >> b & 1 != 0) {
            let name = usize::try_from(bit).ok().and_then(|b| b.checked_sub(2));
            let name = name.and_then(|n| NAMES.get(n)).copied();
            out.push(vec![
                p.pid.into(),
                p.name().into(),
                Value::from(bit as u64),
                name.into(),
                (enabled >> bit & 1 != 0).into(),
                (default >> bit & 1 != 0).into(),
                p.object.physical().into(),
            ]);
        }
        let own = groups(k, &p).unwrap_or_default();
        // They belong to the last of its rows; without rights there is nothing to use.
        for (rule, severity, why) in misfits(present, enabled, &own) {
            out.flag(rule, severity, format!("{} {why}", p.label()));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_fit_the_level() {
        let level = |n: u64| vec![("S-1-5-21-1".to_owned(), 0), (format!("S-1-16-{n}"), 0x60)];
        let rules = |present, enabled, l| -> Vec<&str> {
            misfits(present, enabled, &level(l))
                .iter()
                .map(|m| m.0)
                .collect()
        };
        // SeChangeNotifyPrivilege is everybody's, SeDebugPrivilege (20) administrators'.
        assert_eq!(rules(1 << 23, 1 << 23, 0x2000), Vec::<&str>::new());
        assert_eq!(rules(1 << 20, 0, 0x3000), Vec::<&str>::new());
        assert_eq!(rules(1 << 20, 0, 0x2000), ["excessive_rights"]);
        assert_eq!(rules(1 << 23, 1 << 7, 0x4000), ["forged_rights"]);
        let why = misfits(0, 1 << 20, &[]).remove(0).2;
        assert!(why.ends_with("SeDebugPrivilege"), "{why}");
    }
}
