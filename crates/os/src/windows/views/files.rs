//! `windows/filescan`: file objects wherever they lie in physical memory.
//!
//! Source: the public type `_FILE_OBJECT`.

use crate::table::{Column, Kind, Table, column};
use crate::windows::cached::path_of;
use crate::windows::object::number_in;
use crate::windows::objects::ObjectTypes;
use crate::windows::scan::scanned;
use crate::windows::{Kernel, WindowsError, WindowsView};
use std::collections::HashMap;

/// `windows/filescan`.
pub(in crate::windows) const FILESCAN: WindowsView = WindowsView {
    name: "windows/filescan",
    meaning: "file objects found by a scan of all memory",
    columns: COLUMNS,
    build,
    recover: None,
};

const COLUMNS: &[Column] = &[
    column("path", Kind::Text, "device and path"),
    column(
        "access",
        Kind::Text,
        "r, w, d as it was opened for reading, writing, deleting; - where not",
    ),
    column(
        "shared",
        Kind::Text,
        "the same of what others may do meanwhile",
    ),
    column(
        "delete_pending",
        Kind::Flag,
        "whether it goes when it is closed",
    ),
    column(
        "freed",
        Kind::Flag,
        "whether the object's memory was given back",
    ),
    column("physical", Kind::Hex, "physical address of the object"),
];

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    let types = ObjectTypes::new(k)?;
    let found = scanned(k)?;
    out.doubts.extend(found.doubts.iter().cloned());
    let mut devices = HashMap::new();
    for f in &found.files {
        let ty = "_FILE_OBJECT";
        let flag = |path: &str| Ok::<_, WindowsError>(number_in(k, ty, path, &f.bytes)? == Some(1));
        let letters = |paths: [&str; 3]| {
            let mut text = String::new();
            for (path, letter) in paths.iter().zip(['r', 'w', 'd']) {
                text.push(if flag(path)? { letter } else { '-' });
            }
            Ok::<_, WindowsError>(text)
        };
        out.push(vec![
            path_of(k, &types, &f.bytes, &mut devices)?.into(),
            letters(["ReadAccess", "WriteAccess", "DeleteAccess"])?.into(),
            letters(["SharedRead", "SharedWrite", "SharedDelete"])?.into(),
            flag("DeletePending")?.into(),
            f.freed.into(),
            f.physical.into(),
        ]);
    }
    Ok(out)
}
