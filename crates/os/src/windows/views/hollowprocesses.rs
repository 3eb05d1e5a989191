//! `windows/hollowprocesses`: what the kernel, the process itself and its memory say of its program.
//!
//! ```text
//! _EPROCESS.SectionBaseAddress, and the path noted for audits       the kernel
//! PEB.ImageBaseAddress, and the path in its parameters              the process itself, which can write there
//! the descriptor of the memory at that address                      an image, and of which file
//! ```
//!
//! Sources: the public types `_EPROCESS`, `_PEB`, `_RTL_USER_PROCESS_PARAMETERS`, `_MMVAD`; Volatility 3
//! `plugins/windows/hollowprocesses.py` for the name.

use super::vads;
use crate::table::{Column, Kind, Table, column};
use crate::windows::devices::Drives;
use crate::windows::objects::ObjectTypes;
use crate::windows::process::Process;
use crate::windows::{Kernel, WindowsError, WindowsView};
use ramsift_layers::Severity;

/// `windows/hollowprocesses`.
pub(in crate::windows) const HOLLOWPROCESSES: WindowsView = WindowsView {
    name: "windows/hollowprocesses",
    meaning: "programs by the kernel, by the process and by its memory",
    columns: COLUMNS,
    build,
    recover: None,
};

const COLUMNS: &[Column] = &[
    column("pid", Kind::Number, "process id"),
    column("comm", Kind::Text, "name of the program"),
    column("base", Kind::Hex, "where the kernel mapped the program"),
    column("peb_base", Kind::Hex, "where the process says that it is"),
    column(
        "path",
        Kind::Text,
        "path of the program, as noted for audits",
    ),
    column(
        "peb_path",
        Kind::Text,
        "path of the program, as the process has it",
    ),
    column(
        "mapped",
        Kind::Text,
        "file of the image that is mapped there",
    ),
    column("reason", Kind::Text, "what does not agree"),
    column("physical", Kind::Hex, "physical address of its _EPROCESS"),
];

/// The last part of a path.
fn leaf(path: &str) -> &str {
    path.rsplit(['\\', '/']).next().unwrap_or(path)
}

/// Whether two paths name one file, as far as they tell: of a path without a drive, or with a short name, only the last part
/// counts.
fn agree(kernel: &str, own: &str, drives: &Drives, wow64: bool) -> bool {
    let (kernel, own) = (
        drives.place(kernel).to_lowercase(),
        drives.place(own).to_lowercase(),
    );
    if own.contains('~') {
        return true;
    }
    let has_drive = |p: &str| p.as_bytes().get(2) == Some(&b':');
    if has_drive(&kernel) && has_drive(&own) {
        // 32-bit programs see one of these folders by the other's name.
        let one = |p: &str| {
            if wow64 {
                p.replace("/syswow64/", "/system32/")
            } else {
                p.to_owned()
            }
        };
        return one(&kernel) == one(&own);
    }
    leaf(&kernel) == leaf(&own)
}

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    let types = ObjectTypes::new(k)?;
    let drives = Drives::new(k, &mut out.doubts);
    for p in k.processes(&mut out.doubts)? {
        if p.has_ended() || p.object.number("Peb").is_ok_and(|peb| peb == 0) {
            continue;
        }
        row(k, &types, &drives, &p, &mut out);
    }
    Ok(out)
}

fn row(k: &Kernel<'_>, types: &ObjectTypes, drives: &Drives, p: &Process<'_>, out: &mut Table) {
    let base = p
        .object
        .number("SectionBaseAddress")
        .ok()
        .filter(|va| *va != 0);
    let user = p.user(k).ok().flatten();
    let own_base = user.as_ref().and_then(|u| {
        let peb = u.object(k, "_PEB", u.peb);
        peb.number("ImageBaseAddress").ok()
    });
    let own_path = user.as_ref().and_then(|u| {
        let parameters = u.parameters(k).ok().flatten()?;
        parameters
            .unicode("ImagePathName")
            .ok()
            .filter(|t| !t.is_empty())
    });
    let path = p.path(k);
    // Torn descriptors tell nothing of what is missing.
    let mut doubts = Vec::new();
    let areas = vads::of(k, types, p, &mut doubts)
        .ok()
        .filter(|_| doubts.is_empty());
    let area = base
        .zip(areas.as_ref())
        .map(|(base, all)| all.iter().find(|a| (a.start..=a.end).contains(&base)));
    let mapped = area
        .flatten()
        .filter(|a| a.image)
        .and_then(|a| a.file.clone());
    let mut found: Vec<(&'static str, Severity, String)> = Vec::new();
    match area {
        Some(None) => found.push((
            "hollowed_process",
            Severity::Critical,
            "nothing is mapped where its program was".into(),
        )),
        Some(Some(a)) if !a.image => {
            let what = if a.private {
                "private memory"
            } else {
                "memory that is no image"
            };
            found.push((
                "hollowed_process",
                Severity::Critical,
                format!("{what} is where its program was"),
            ));
        }
        _ => {}
    }
    if let (Some(mapped), Some(path)) = (&mapped, &path)
        && !leaf(mapped).eq_ignore_ascii_case(leaf(path))
    {
        found.push((
            "hollowed_process",
            Severity::Critical,
            format!("the image of {mapped} is where that of {path} should be"),
        ));
    }
    if let (Some(base), Some(own)) = (base, own_base)
        && base != own
    {
        found.push((
            "peb_disagrees",
            Severity::High,
            format!(
                "it says that its program is at {own:#x}, and the kernel that it is at {base:#x}"
            ),
        ));
    }
    if let (Some(path), Some(own)) = (&path, &own_path)
        && !agree(path, own, drives, p.is_wow64())
    {
        found.push((
            "peb_disagrees",
            Severity::High,
            format!("it says that its program is {own}, and the kernel that it is {path}"),
        ));
    }
    let reasons: Vec<&str> = found.iter().map(|f| f.2.as_str()).collect();
    out.push(vec![
        p.pid.into(),
        p.name().into(),
        base.into(),
        own_base.into(),
        path.into(),
        own_path.into(),
        mapped.into(),
        (!reasons.is_empty()).then(|| reasons.join("; ")).into(),
        p.object.physical().into(),
    ]);
    for (rule, severity, why) in found {
        out.flag(rule, severity, format!("{}: {why}", p.label()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_agree_by_drive_or_by_name() {
        let none = Drives::default();
        let of = |a: &str, b: &str| agree(a, b, &none, false);
        let kernel = "\\Device\\HarddiskVolume3\\Windows\\System32\\smss.exe";
        assert!(of(kernel, "\\SystemRoot\\System32\\SMSS.EXE"));
        assert!(of(kernel, "C:\\Windows\\System32\\smss.exe"));
        assert!(!of(kernel, "C:\\Windows\\System32\\svchost.exe"));
        assert!(of(kernel, "C:\\PROGRA~1\\x.exe"), "a short name");
        assert!(!of("\\??\\C:\\a\\x.exe", "C:\\b\\x.exe"));
        let narrow = |w| {
            agree(
                "\\??\\C:\\Windows\\SysWOW64\\x.exe",
                "C:\\Windows\\System32\\x.exe",
                &none,
                w,
            )
        };
        assert!(narrow(true) && !narrow(false));
    }
}
