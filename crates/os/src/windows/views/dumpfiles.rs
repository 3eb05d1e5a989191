//! `windows/dumpfiles`: files of which content is in memory, and their recovery.
//!
//! Sources: as in `cached.rs`; Volatility 3 `plugins/windows/dumpfiles.py` for the name.

use crate::content::Recovered;
use crate::table::{Column, Kind, Table, column};
use crate::windows::cached::{Budget, streams};
use crate::windows::devices::Drives;
use crate::windows::{Kernel, WindowsError, WindowsView};
use std::ops::ControlFlow;

/// `windows/dumpfiles`.
pub(in crate::windows) const DUMPFILES: WindowsView = WindowsView {
    name: "windows/dumpfiles",
    meaning: "files whose content is in memory; can be recovered",
    columns: COLUMNS,
    build,
    recover: Some(recover),
};

const COLUMNS: &[Column] = &[
    column("path", Kind::Text, "device and path"),
    column(
        "place",
        Kind::Text,
        "the same with slashes, below the letter of the drive: what ls and cat take",
    ),
    column(
        "section",
        Kind::Text,
        "data, or image of a file that is mapped as a program",
    ),
    column("size", Kind::Number, "bytes of the file"),
    column("present", Kind::Number, "of these in memory"),
    column(
        "control_area",
        Kind::Hex,
        "virtual address of its _CONTROL_AREA",
    ),
    column(
        "cache_map",
        Kind::Hex,
        "virtual address of its _SHARED_CACHE_MAP",
    ),
    column(
        "freed",
        Kind::Flag,
        "whether the file object was given back",
    ),
    column("physical", Kind::Hex, "physical address of the file object"),
];

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    let drives = Drives::new(k, &mut out.doubts);
    let mut budget = Budget::new(k);
    for s in streams(k, &mut out.doubts)? {
        let own = |va: u64| Some(va).filter(|va| *va != 0);
        let data = s.content(k, &mut budget, &mut out.doubts);
        let image = s.program(k, &mut budget);
        for (section, content, area, map) in [
            ("data", data, s.data, s.cache),
            ("image", image, s.image, 0),
        ] {
            let Some(content) = content else { continue };
            out.push(vec![
                s.file.path.clone().into(),
                s.place(&drives).into(),
                section.into(),
                content.size().into(),
                content.present().into(),
                own(area).into(),
                own(map).into(),
                s.file.freed.into(),
                s.file.physical.into(),
            ]);
        }
    }
    Ok(out)
}

fn recover(
    k: &Kernel<'_>,
    _: Option<i64>,
    doubts: &mut Vec<String>,
    visit: &mut dyn FnMut(Recovered) -> ControlFlow<()>,
) -> Result<(), WindowsError> {
    let drives = Drives::new(k, doubts);
    let mut budget = Budget::new(k);
    for s in streams(k, doubts)? {
        let name = s.place(&drives);
        let found = [
            (
                "cached_file",
                s.data.max(s.cache),
                s.content(k, &mut budget, doubts),
            ),
            ("image_section", s.image, s.program(k, &mut budget)),
        ];
        for (kind, object, content) in found {
            let Some(content) = content.filter(|c| c.present() > 0) else {
                continue;
            };
            let name = name.clone();
            let found = Recovered {
                kind,
                name,
                object,
                content,
            };
            if visit(found).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}
