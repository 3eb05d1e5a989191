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
use crate::sink::{Ordered, Rows};
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

/// Takes what touches the end of a place; positions are those of a stretch.
struct Touching<'a, 'r> {
    rows: &'a mut Rows<'r>,
    plan: &'a Plan,
    ctx: &'a JobContext,
    stretch: Range<usize>,
    name: &'a str,
}

impl Touching<'_, '_> {
    /// Where a range of the stretch lies, if it touches an end of a place.
    fn place(&self, at: u64, len: u64) -> Option<Ordered<'_>> {
        let start = self.stretch.start + usize::try_from(at).ok()?;
        let end = start + usize::try_from(len).ok()?;
        let first = self.plan.place(start)?;
        let touches = start == first.at || end >= first.at + first.len;
        if !touches {
            return None;
        }
        let inside = |p: &Place| {
            let (from, to) = (start.max(p.at), end.min(p.at + p.len));
            (p.image + (from - p.at) as u64, (to - from) as u64)
        };
        let pieces: Vec<(u64, u64)> = self
            .plan
            .places_from(start)
            .take_while(|p| p.at < end)
            .take(PIECES)
            .map(inside)
            .collect();
        let image_offset = pieces.first()?.0;
        let physical = self.ctx.plan.layout.runs.to_phys(ImageOffset(image_offset));
        Some(Ordered {
            name: self.name,
            image_offset,
            physical_address: physical.map(|p| p.0),
            address: first.address + (start - first.at) as u64,
            // What the stretch lacks may have belonged to it.
            cut: end == self.stretch.end || (start == self.stretch.start && first.address > 0),
            pieces,
        })
    }
}

impl Sink for Touching<'_, '_> {
    fn finding(&mut self, f: &Finding<'_>) {
        if let Some(place) = self.place(f.offset.0, f.len) {
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
            rows,
            plan,
            ctx,
            stretch: stretch.clone(),
            name,
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
