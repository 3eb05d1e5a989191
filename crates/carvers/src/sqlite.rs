//! SQLite databases ("Database File Format", sqlite.org).
//!
//! ```text
//! "SQLite format 3\0" | page size u16be at 16 | ... | pages u32be at 28 | ... | header is 100 bytes
//! page 1 | page 2 | ...      each b-tree page begins with 2, 5, 10 or 13
//! ```
//!
//! The size is that of the header, as long as the header's two counters agree that it is up to
//! date. Fixed fields and the first page's type make the header sure. Each page must begin with a
//! byte that one can begin with: the first that doesn't makes the database partial.

use crate::carver::{Carver, Extent, Hit};
use crate::source::Item;

pub(crate) struct Sqlite;

impl Carver for Sqlite {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn version(&self) -> u32 {
        1
    }

    fn literals(&self) -> &'static [&'static [u8]] {
        // Without the S, which another literal ends with.
        &[b"QLite format 3\0"]
    }

    fn reach(&self) -> usize {
        1
    }

    fn visit(&self, at: usize, hit: &mut Hit<'_, '_>) {
        if hit.source.data[..at].ends_with(b"S") {
            hit.follow(at - 1, walk);
        }
    }
}

fn walk(item: &mut Item<'_, '_>) -> Option<Extent> {
    let h: [u8; 112] = item.array(0)?;
    let be32 = |i: usize| u32::from_be_bytes([h[i], h[i + 1], h[i + 2], h[i + 3]]);
    let page = match u16::from_be_bytes([h[16], h[17]]) {
        1 => 65536,
        n if n >= 512 && n.is_power_of_two() => usize::from(n),
        _ => return None,
    };
    let sound = matches!(h[18], 1 | 2)
        && matches!(h[19], 1 | 2)
        && h[21..24] == [64, 32, 32]
        && be32(44) <= 4
        && be32(56) <= 3
        && h[72..92].iter().all(|&b| b == 0)
        && matches!(h[100], 2 | 5 | 10 | 13);
    if !sound {
        return None;
    }
    let mut extent = Extent {
        kind: "sqlite",
        ..Extent::default()
    };
    extent.fields = vec![
        ("page_size", (page as i64).into()),
        ("pages", i64::from(be32(28)).into()),
    ];
    let pages = be32(28) as usize;
    if pages == 0 || be32(24) != be32(92) {
        extent.len = page.min(item.room());
        extent.lacks("the header's size is out of date");
        return Some(extent);
    }
    for n in 1..pages {
        // Overflow pages, free pages and pointer maps begin with other small numbers.
        let first = item
            .charge(64)
            .then(|| item.get(n.checked_mul(page)?, page).map(|p| p[0]));
        let why = match first.flatten() {
            Some(0..=5 | 10 | 13) => continue,
            Some(_) => format!("page {} is no page of a database", n + 1),
            None => "it reaches past what could be followed".to_owned(),
        };
        extent.len = n * page;
        extent.lacks(&why);
        return Some(extent);
    }
    extent.len = pages * page;
    if item.get(0, extent.len).is_none() {
        extent.len = page.min(item.room());
        extent.lacks("it reaches past what could be followed");
    }
    Some(extent)
}
