//! Recovered content as artifacts: where it lies in the image, or a copy of what has no place there.

use crate::parts::Opened;
use crate::rows;
use ramsift_layers::page_file::place_of;
use ramsift_layers::run::RunMap;
use ramsift_os::content::{Content, Recovered};
use ramsift_store::packs::{Hashed, Meta, PackWriter, Spool};
use ramsift_store::placed::Placed;
use ramsift_store::tables::{detector_key, row_id};
use std::ops::Range;
use std::path::Path;

/// Holes that are named one by one.
const HOLES: usize = 64;

/// Why content was not stored.
pub(crate) enum Lost {
    /// This machine's disk.
    Here(String),
    /// The object store.
    Store(String),
}

/// Stores one recovered content and its row.
pub(crate) fn store(
    of: Opened<'_>,
    view: &'static str,
    r: &Recovered,
    packs: &mut PackWriter,
    spill: &Path,
) -> Result<(), Lost> {
    let memory = of.machine.memory();
    let local = |e: std::io::Error| Lost::Here(format!("temporary file: {e}"));
    // What lies in the image is hashed there, and not copied.
    let mut placed = None;
    let mut lost = Vec::new();
    if !packs.copies(r.kind) && r.content.head().is_empty() {
        let mut hashed = Hashed::default();
        lost = r.content.write(memory, &mut hashed).map_err(local)?;
        placed = places(&r.content, &lost, of.runs).map(|p| (p, hashed));
    }
    let mut spool = Spool::new(spill);
    if placed.is_none() {
        lost = r.content.write(memory, &mut spool).map_err(local)?;
    }
    let missing: u64 = lost.iter().map(|l| l.end - l.start).sum();
    let size = r.content.size();
    let gap = (missing > 0).then(|| format!("{missing} of {size} bytes are not in memory"));
    let first = r.content.extents().first();
    let image = first.and_then(|e| of.runs.from_phys(e.pa));
    let holes: Vec<[u64; 2]> = lost.iter().take(HOLES).map(|l| [l.start, l.end]).collect();
    let fields = serde_json::json!({
        "object": format!("{:#x}", r.object),
        "holes": holes,
        "more_holes": lost.len().saturating_sub(HOLES),
    });
    let at = image.map_or(0, |i| i.0);
    let path = format!("{}:{:#x}", r.name, r.object);
    let meta = Meta {
        id: row_id(detector_key(view, rows::VERSION), "view", &path, at, size),
        detector: view,
        kind: r.kind,
        name: Some(r.name.clone()),
        image_offset: at,
        physical_address: first
            .filter(|e| image.is_some() || place_of(e.pa.0).is_some())
            .map(|e| e.pa.0),
        complete: Some(gap.is_none()),
        gap,
        fields: Some(fields.to_string()),
    };
    if let Some((placed, hashed)) = placed {
        packs.refer(&meta, hashed, &placed);
        return Ok(());
    }
    let stored = packs.add_spooled(meta, spool);
    stored.map(|_| ()).map_err(|e| Lost::Store(e.to_string()))
}

/// Where content lies in the image, with `lost` as holes. `None`: some of it does not.
fn places(content: &Content, lost: &[Range<u64>], runs: &RunMap) -> Option<Placed> {
    let mut out = Placed::default();
    let mut lost = lost.iter().peekable();
    let (mut at, size) = (0, content.size());
    while at < size {
        while lost.next_if(|l| l.end <= at).is_some() {}
        let hole = lost
            .peek()
            .filter(|l| l.start <= at)
            .map(|l| l.end.min(size));
        if let Some(end) = hole {
            out.hole(end - at);
            at = end;
            continue;
        }
        let pa = content.at(at)?;
        let (_, stored) = runs.stored_at(pa)?;
        let image = runs.from_phys(pa)?;
        let next = lost.peek().map_or(size, |l| l.start.min(size));
        let len = content.run_at(at)?.min(stored).min(next - at);
        out.push(image.0, len);
        at += len;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramsift_layers::PhysAddr;
    use ramsift_layers::run::Run;
    use ramsift_os::content::Extent;

    const PAGE: u64 = 4096;

    /// Physical memory from 16 pages on, which the image begins with; the last page is not stored.
    fn runs() -> RunMap {
        RunMap::new(vec![
            Run {
                pa: 16 * PAGE,
                len: 4 * PAGE,
                file: 0,
                stored: 4 * PAGE,
            },
            Run {
                pa: 64 * PAGE,
                len: 3 * PAGE,
                file: 4 * PAGE,
                stored: 2 * PAGE,
            },
        ])
        .expect("runs")
    }

    fn content(pages: &[(u64, u64, u64)], size: u64) -> Content {
        let mut c = Content::new(size);
        for &(offset, page, n) in pages {
            c.push(Extent {
                offset: offset * PAGE,
                pa: PhysAddr(page * PAGE),
                len: n * PAGE,
            });
        }
        c
    }

    #[test]
    fn places_are_those_of_the_image_with_what_was_lost_as_holes() {
        let c = content(&[(1, 17, 2), (3, 64, 2)], 5 * PAGE + 10);
        let lost = [0..PAGE, 3 * PAGE..4 * PAGE, 5 * PAGE..5 * PAGE + 10];
        let p = places(&c, &lost, &runs()).expect("all of it lies there");
        assert_eq!(
            p.to_json(),
            "[[null,4096],[4096,8192],[null,4096],[20480,4096],[null,10]]"
        );
        assert_eq!(p.size(), c.size());
    }

    #[test]
    fn what_the_image_lacks_has_no_place() {
        // Nobody said that it was lost.
        assert_eq!(places(&content(&[(0, 66, 1)], PAGE), &[], &runs()), None);
        assert_eq!(places(&content(&[(0, 99, 1)], PAGE), &[], &runs()), None);
        assert_eq!(places(&content(&[], PAGE), &[], &runs()), None);
        let lost = std::slice::from_ref(&(0..PAGE));
        let hole = places(&content(&[(0, 66, 1)], PAGE), lost, &runs());
        assert_eq!(hole.map(|p| p.to_json()).as_deref(), Some("[[null,4096]]"));
    }
}
