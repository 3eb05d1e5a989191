//! `windows/pagefiles`: the page files of the machine, those at hand, and how much of processes' memory lies in them.
//!
//! Sources: as in `page_files.rs` and `space.rs`.

use crate::table::{Column, Kind, Table, column};
use crate::windows::memory::{Place, places_and_lacks};
use crate::windows::page_files::Trust;
use crate::windows::{Kernel, WindowsError, WindowsView};
use ramsift_layers::page_file;
use std::collections::HashSet;

/// `windows/pagefiles`.
pub(in crate::windows) const PAGEFILES: WindowsView = WindowsView {
    name: "windows/pagefiles",
    meaning: "page files of the machine, and what of processes lies in them",
    columns: COLUMNS,
    build,
    recover: None,
};

const COLUMNS: &[Column] = &[
    column("number", Kind::Number, "number of the page file"),
    column("path", Kind::Text, "its path, as the kernel has it"),
    column(
        "kernel_bytes",
        Kind::Number,
        "bytes of it, as the kernel has it",
    ),
    column(
        "kind",
        Kind::Text,
        "file, or compressed of one whose pages are in the store of compressed memory",
    ),
    column("file", Kind::Text, "the file at hand"),
    column("bytes", Kind::Number, "bytes of that"),
    column(
        "trust",
        Kind::Text,
        "own, mixed (of another time), unproved, or foreign: nothing is read from that; null where none is at hand",
    ),
    column(
        "compared",
        Kind::Number,
        "pages whose content is known and that were compared",
    ),
    column("pages", Kind::Number, "pages of processes that lie in it"),
    column(
        "there",
        Kind::Number,
        "pages of these that are read from it",
    ),
    column(
        "missing",
        Kind::Number,
        "pages of these that are not at hand",
    ),
];

const PAGE: u64 = 4096;
/// Pages of tables of one process that are read at most.
const TABLES: usize = 1 << 20;
/// Pages of page files that are counted at most.
const COUNTED: usize = 16 << 20;
/// Page files of a machine.
const MOST: usize = page_file::MOST as usize;

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    let files = k.space.page_files();
    let mut there: HashSet<u64> = HashSet::new();
    let mut lacking: HashSet<u64> = HashSet::new();
    let mut full = false;
    for p in k.processes(&mut out.doubts)? {
        let Ok(space) = p.space(k) else { continue };
        let mut budget = TABLES;
        places_and_lacks(&space, &(0..1 << 47), &mut budget, &mut |m| {
            match m {
                Ok(Place::Page { pa, len, .. }) => {
                    let pages = (0..len / PAGE).map(|i| pa + i * PAGE);
                    there.extend(pages.filter(|pa| page_file::place_of(*pa).is_some()));
                }
                Ok(Place::Table { pa }) if page_file::place_of(pa).is_some() => {
                    there.insert(pa);
                }
                Ok(Place::Table { .. }) => {}
                // A page that was never written, or is in a mapped file, is in no page file.
                Err(e) => {
                    lacking.extend(
                        e.in_page_file()
                            .map(|(file, page)| page_file::address(file, page)),
                    );
                }
            }
            full |= there.len() + lacking.len() > COUNTED;
            !full
        });
        if full {
            out.doubts.push(format!(
                "more than {COUNTED} pages lie in page files; the rest is not counted"
            ));
            break;
        }
    }
    let of = |set: &HashSet<u64>, number: usize| {
        let own =
            |pa: &&u64| page_file::place_of(**pa).is_some_and(|(n, _)| usize::from(n) == number);
        set.iter().filter(own).count()
    };
    for number in 0..MOST {
        let (attached, known) = (files.attached(number), files.known(number));
        let (read, missing) = (of(&there, number), of(&lacking, number));
        if attached.is_none() && known.is_none() && missing == 0 {
            continue;
        }
        let known = known.unwrap_or_default();
        let trust = attached.map(|a| match a.trust() {
            Trust::Own(n) => ("own", n),
            Trust::Mixed(right, wrong) => ("mixed", right + wrong),
            Trust::Unproved => ("unproved", 0),
            Trust::Foreign(n) => ("foreign", n),
        });
        out.push(vec![
            number.into(),
            known.name.clone().into(),
            known.pages.map(|n| n.saturating_mul(PAGE)).into(),
            if known.compressed {
                "compressed"
            } else {
                "file"
            }
            .into(),
            attached.map(|a| a.name.clone()).into(),
            attached.map(|a| a.bytes).into(),
            trust.map(|t| t.0).into(),
            trust.map(|t| t.1).into(),
            (read + missing).into(),
            read.into(),
            missing.into(),
        ]);
        let Some(a) = attached else { continue };
        out.doubts.extend(a.doubt(number));
        if let Some(pages) = known.pages.filter(|n| n.saturating_mul(PAGE) != a.bytes) {
            out.doubts.push(format!(
                "page file {number}, {}: it has {} bytes, and the kernel's had {}",
                a.name,
                a.bytes,
                pages.saturating_mul(PAGE)
            ));
        }
        if missing > 0 {
            out.doubts.push(format!(
                "page file {number}, {}: {missing} pages of processes lie in it and are not there",
                a.name
            ));
        }
    }
    Ok(out)
}
