//! What the fuzz targets do with their bytes, and what they begin with.

use super::{Rows, all, golden_inputs, window};
use ramsift_carvers::api::ScanStats;
use ramsift_carvers::{CarverOptions, CarverSet};
use std::sync::LazyLock;

/// Bytes at the front that say where windows end and how far they read ahead.
pub(crate) const CUTS: usize = 16;

static ALL: LazyLock<CarverSet> = LazyLock::new(all);

/// Every carver over the bytes.
pub(crate) fn carvers(data: &[u8]) {
    scan(&ALL, data);
}

/// A set of some carvers.
fn only(names: &[&str]) -> CarverSet {
    CarverSet::new(CarverOptions {
        only: Some(names.iter().map(|n| (*n).to_owned()).collect()),
        ..CarverOptions::default()
    })
    .unwrap()
}

pub(crate) fn evtx(data: &[u8]) {
    static SET: LazyLock<CarverSet> = LazyLock::new(|| only(&["evtx", "evtx_chunk"]));
    scan(&SET, data);
}

pub(crate) fn sqlite(data: &[u8]) {
    static SET: LazyLock<CarverSet> = LazyLock::new(|| only(&["sqlite"]));
    scan(&SET, data);
}

pub(crate) fn zip(data: &[u8]) {
    static SET: LazyLock<CarverSet> = LazyLock::new(|| only(&["zip"]));
    scan(&SET, data);
}

pub(crate) fn pdf(data: &[u8]) {
    static SET: LazyLock<CarverSet> = LazyLock::new(|| only(&["pdf"]));
    scan(&SET, data);
}

/// Golden files of these formats, cut in windows of many sizes; all of them without a name.
pub(crate) fn seeds(formats: &[&str]) -> Vec<Vec<u8>> {
    let wanted = |path: &std::path::Path| {
        let of = |f: &&str| path.parent().is_some_and(|p| p.ends_with(f));
        formats.is_empty() || formats.iter().any(of)
    };
    let cuts: [u8; CUTS] = std::array::from_fn(|i| (i * 83 + 7) as u8);
    let files = golden_inputs().into_iter().filter(|(p, _)| wanted(p));
    let mut files: Vec<Vec<u8>> = files.map(|(_, bytes)| bytes).collect();
    if formats.is_empty() || formats.contains(&"evtx") {
        files.push(super::real_event_log());
    }
    let seeds = files.into_iter().map(|f| [&cuts[..], &f].concat());
    seeds.collect()
}

/// Work that a limit ended is not the same in windows: it says so, and nothing is compared.
fn limited(stats: &ScanStats) -> bool {
    stats.partial.iter().any(|p| p.2.contains("limit"))
}

/// One scan of the whole and one in windows: no panic, rows that lie where they may and are no
/// more than the bytes, and the same from both.
fn scan(set: &CarverSet, data: &[u8]) {
    let Some((cuts, image)) = data.split_first_chunk::<CUTS>() else {
        return;
    };
    let mut one = Rows::default();
    let stats = window(set, image, 0..image.len(), 0, &mut one);
    let mut cut_short = limited(&stats);
    assert_sane(&one.0, 0..image.len(), image.len());
    let mut many = Rows::default();
    let mut next = cuts.chunks_exact(2).cycle();
    let mut at = 0;
    while at < image.len() {
        let cut = next.next().map_or(0, |c| u16::from_le_bytes([c[0], c[1]]));
        let end = (at + 512 + usize::from(cut)).min(image.len());
        let overlap = [0, 100, 20_000, 1 << 20][usize::from(cut & 3)];
        let before = many.0.len();
        let stats = window(set, image, at..end, overlap, &mut many);
        cut_short |= limited(&stats);
        assert_sane(&many.0[before..], at..end, image.len());
        at = end;
    }
    if !cut_short {
        let (one, many) = (one.sorted(), many.sorted());
        let of = |a: &[String], b: &[String]| -> Vec<String> {
            let missing = a.iter().filter(|r| b.binary_search(r).is_err());
            missing.take(3).cloned().collect()
        };
        assert!(
            one == many,
            "lost {:#?}\nextra {:#?}",
            of(&one, &many),
            of(&many, &one)
        );
    }
}

/// Rows begin in the core and end in the image; there are no more of them than bytes.
fn assert_sane(rows: &[serde_json::Value], core: std::ops::Range<usize>, image: usize) {
    assert!(rows.len() <= core.len(), "{} rows", rows.len());
    for r in rows {
        let at = r["offset"].as_u64().unwrap();
        assert!(core.contains(&(at as usize)), "outside {core:?}: {r}");
        let end = r["len"].as_u64().map_or(Some(at), |n| at.checked_add(n));
        assert!(end.is_some_and(|e| e <= image as u64), "past the end: {r}");
    }
}
