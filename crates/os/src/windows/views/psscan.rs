//! `windows/psscan`: process objects wherever they lie in physical memory, those of ended and hidden processes included.

use crate::table::{Column, Kind, Table, column};
use crate::windows::scan::{Found, scanned};
use crate::windows::{Kernel, WindowsError, WindowsView, time};

/// `windows/psscan`.
pub(in crate::windows) const PSSCAN: WindowsView = WindowsView {
    name: "windows/psscan",
    meaning: "process objects found by a scan of all memory",
    columns: COLUMNS,
    build,
    recover: None,
};

const COLUMNS: &[Column] = &[
    column("pid", Kind::Number, "process id"),
    column("ppid", Kind::Number, "process id of the creator"),
    column("comm", Kind::Text, "name of the program"),
    column("start", Kind::Time, "when it was created"),
    column("exit", Kind::Time, "when it ended"),
    column("listed", Kind::Flag, "whether it is in the kernel's list"),
    column("freed", Kind::Flag, "whether its memory was given back"),
    column("dtb", Kind::Hex, "physical address of its top page table"),
    column("physical", Kind::Hex, "physical address of its _EPROCESS"),
];

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    let listed: Vec<u64> = k
        .processes(&mut out.doubts)?
        .iter()
        .filter_map(|p| p.object.physical())
        .collect();
    let found = scanned(k)?;
    out.doubts.extend(found.doubts.iter().cloned());
    for f in found.processes.iter().cloned() {
        let Found {
            pid,
            ppid,
            name,
            created,
            exited,
            dtb,
            physical,
            freed,
        } = f;
        out.push(vec![
            pid.into(),
            ppid.into(),
            name.into(),
            time(created).into(),
            time(exited).into(),
            listed.contains(&physical).into(),
            freed.into(),
            dtb.into(),
            physical.into(),
        ]);
    }
    Ok(out)
}
