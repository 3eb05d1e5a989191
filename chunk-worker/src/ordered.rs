//! Carvers in the order of a file or of a process's addresses.
//!
//! Pages that lie side by side in RAM mostly belong to different owners: a line that goes on beyond its page's end is torn
//! there, and joined with what a stranger's page begins with. So what touches an end of physically adjacent bytes is told
//! from here, where the pages stand in their own order, and not from the chunk. Everything else lies within such bytes,
//! and the chunk has told it.
//!
//! ```text
//! file order    [page 0: ... Failed pass][page 1: word for root ...]
//! places            image 0x5000              image 0x2000            -> one line, of two pieces
//! ```

use crate::context::JobContext;
use crate::memory::{Place, Plan};
use crate::sink::{Av, Ordered, Rows};
use crate::virus;
use ramsift_carvers::api::{Anchor, Artifact, Event, Finding, MoreError, ReadMore, Sink, Window};
use ramsift_layers::ImageOffset;
use ramsift_store::lists::Buffer;
use ramsift_store::tables::OrderedRow;
use std::ops::Range;

/// Nothing lies behind a stretch.
struct Nothing;

impl ReadMore for Nothing {
    fn read_more(&mut self, _: ImageOffset, _: usize, _: &mut Vec<u8>) -> Result<(), MoreError> {
        Ok(())
    }
}

/// Pieces of a row that are told one by one.
const PIECES: usize = 64;

/// A stretch of a buffer, and whose it is.
#[derive(Clone)]
struct Spots<'a> {
    plan: &'a Plan,
    ctx: &'a JobContext,
    stretch: Range<usize>,
    name: &'a str,
}

impl<'a> Spots<'a> {
    /// Whether a range of the buffer touches an end of physically adjacent bytes, or lies in a page file, which no chunk has.
    fn touches(&self, r: &Range<usize>) -> bool {
        let image = self.ctx.plan.layout.runs.image_len();
        let first = self.plan.place(r.start);
        first.is_some_and(|p| p.image >= image || r.start == p.at || r.end >= p.at + p.len)
    }

    /// Where a range of the buffer lies.
    fn of(&self, r: &Range<usize>) -> Option<Ordered<'a>> {
        let first = self.plan.place(r.start)?;
        let inside = |p: &Place| {
            let (from, to) = (r.start.max(p.at), r.end.min(p.at + p.len));
            (p.image + (from - p.at) as u64, (to - from) as u64)
        };
        let pieces: Vec<(u64, u64)> = self
            .plan
            .places_from(r.start)
            .take_while(|p| p.at < r.end)
            .take(PIECES)
            .map(inside)
            .collect();
        let image_offset = pieces.first()?.0;
        let physical = self.ctx.paged_runs.to_phys(ImageOffset(image_offset));
        Some(Ordered {
            name: self.name,
            image_offset,
            physical_address: physical.map(|p| p.0),
            address: first.address + (r.start - first.at) as u64,
            // What the stretch lacks may have belonged to it.
            cut: r.end == self.stretch.end || (r.start == self.stretch.start && first.address > 0),
            pieces,
        })
    }
}

/// Takes what touches the end of a place; positions are those of a stretch.
struct Touching<'a, 'r> {
    rows: &'a mut Rows<'r>,
    spots: Spots<'a>,
}

impl<'a> Touching<'a, '_> {
    fn place(&self, at: u64, len: u64) -> Option<Ordered<'a>> {
        let start = self.spots.stretch.start + usize::try_from(at).ok()?;
        let r = start..start + usize::try_from(len).ok()?;
        self.spots.touches(&r).then(|| self.spots.of(&r)).flatten()
    }
}

impl Sink for Touching<'_, '_> {
    fn finding(&mut self, f: &Finding<'_>) {
        // Half a name reads like another name: one that may go on in a page that is not in the image is not told.
        if let Some(place) = self.place(f.offset.0, f.len).filter(|p| !p.cut) {
            self.rows.finding_in_order(f, &place);
        }
    }

    fn event(&mut self, e: &Event<'_>) {
        if let Some(place) = self.place(e.offset.0, e.len) {
            self.rows.event_in_order(e, &place);
        }
    }

    // Carvers of lines and addresses alone run here.
    fn artifact(&mut self, _: &Artifact<'_>) {}
    fn anchor(&mut self, _: &Anchor<'_>) {}
}

/// The virus scanner over a buffer: only what lies across pages that are apart in the image is told, since the chunks tell
/// the rest. The error is an outage.
pub(crate) fn viruses(
    ctx: &JobContext,
    av: &Av,
    name: &str,
    plan: &Plan,
    bytes: &[u8],
    rows: &mut Rows<'_>,
) -> Result<(), String> {
    for stretch in &plan.stretches {
        let core = plan.core.start.max(stretch.start)..plan.core.end.min(stretch.end);
        // One place is one piece of the image: nothing in it crosses anything. What lies in a page file no chunk has.
        let image = ctx.plan.layout.runs.image_len();
        let apart = plan
            .place(stretch.start)
            .is_some_and(|p| p.image >= image || p.at + p.len < stretch.end);
        if core.is_empty() || !apart {
            continue;
        }
        let local = core.start - stretch.start..core.end - stretch.start;
        let (hits, missed) = virus::search(av, &bytes[stretch.clone()], local, &[]);
        let spots = Spots {
            plan,
            ctx,
            stretch: stretch.clone(),
            name,
        };
        for h in hits {
            let r = stretch.start + h.range.start..stretch.start + h.range.end;
            let image = ctx.plan.layout.runs.image_len();
            let whole = plan
                .place(r.start)
                .is_some_and(|p| p.image < image && r.end <= p.at + p.len);
            if let Some(place) = (!whole).then(|| spots.of(&r)).flatten() {
                let engine = &av.clamd.version().engine;
                rows.virus_in_order(
                    &h.signature,
                    &place,
                    r.len() as u64,
                    &bytes[r.clone()],
                    engine,
                );
            }
        }
        for (r, why) in missed {
            // A scanner that others have may still answer.
            if !av.alone && why.starts_with("clamd at ") {
                return Err(why);
            }
            let r = stretch.start + r.start..stretch.start + r.end;
            crate::memory::not_searched("clamav processes", plan, &r, "partial", &why, rows);
        }
    }
    Ok(())
}

/// Carves a buffer, and notes which bytes of the image were looked at in their order.
pub(crate) fn carve(
    ctx: &JobContext,
    buffer: &Buffer,
    name: &str,
    plan: &Plan,
    bytes: &[u8],
    stop: &dyn Fn() -> bool,
    rows: &mut Rows<'_>,
) {
    let Some(carvers) = &ctx.line_carvers else {
        return;
    };
    let last = plan.stretches.len().saturating_sub(1);
    for (n, stretch) in plan.stretches.iter().enumerate() {
        // Where a list cut the stretch, the order goes on in another buffer.
        let begins = n > 0 || buffer.before == 0;
        let ends = n < last || buffer.after == 0;
        note(plan, stretch, (begins, ends), rows);
        let core = plan.core.start.max(stretch.start)..plan.core.end.min(stretch.end);
        if core.is_empty() {
            continue;
        }
        let window = Window {
            data: &bytes[stretch.clone()],
            base: ImageOffset(0),
            core_start: core.start - stretch.start,
            core_end: core.end - stretch.start,
            image_len: stretch.len() as u64,
        };
        let mut sink = Touching {
            rows: &mut *rows,
            spots: Spots {
                plan,
                ctx,
                stretch: stretch.clone(),
                name,
            },
        };
        let stats = carvers.scan(&window, &mut Nothing, &mut sink, stop);
        for (_, r, why) in stats.partial {
            let range = |at: u64| stretch.start + usize::try_from(at).unwrap_or(usize::MAX);
            let lost = range(r.start)..range(r.end).min(stretch.end);
            crate::memory::not_searched("carvers in order", plan, &lost, "partial", &why, rows);
        }
    }
}

/// Notes the places of a stretch that begin in the buffer's core.
fn note(plan: &Plan, stretch: &Range<usize>, (begins, ends): (bool, bool), rows: &mut Rows<'_>) {
    for p in plan
        .places_from(stretch.start)
        .take_while(|p| p.at < stretch.end)
    {
        rows.ordered.push(&OrderedRow {
            image_offset: p.image,
            length: p.len as u64,
            starts: p.at > stretch.start || begins,
            ends: p.at + p.len < stretch.end || ends,
        });
    }
}
