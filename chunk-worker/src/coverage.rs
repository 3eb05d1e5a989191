//! Which bytes of a core an engine looked at.

use ramsift_store::tables::{CoverageBuilder, CoverageRow};
use std::ops::Range;

/// Notes on one core: later notes win over earlier ones.
#[derive(Debug)]
pub(crate) struct CoreCoverage {
    /// Disjoint, in order: range, outcome, reason.
    parts: Vec<(Range<u64>, &'static str, Option<String>)>,
}

impl CoreCoverage {
    /// Everything scanned.
    pub(crate) fn new(core: Range<u64>) -> Self {
        Self {
            parts: vec![(core, "scanned", None)],
        }
    }

    /// Notes another outcome for a range.
    pub(crate) fn mark(&mut self, r: &Range<u64>, outcome: &'static str, reason: Option<&str>) {
        let mut out = Vec::with_capacity(self.parts.len() + 2);
        for (p, o, why) in self.parts.drain(..) {
            let a = p.start.max(r.start);
            let b = p.end.min(r.end);
            if a >= b {
                out.push((p, o, why));
                continue;
            }
            if p.start < a {
                out.push((p.start..a, o, why.clone()));
            }
            out.push((a..b, outcome, reason.map(str::to_owned)));
            if b < p.end {
                out.push((b..p.end, o, why));
            }
        }
        self.parts = out;
    }

    /// Notes many sparse ranges, in order, on a core that is still all scanned.
    pub(crate) fn sparse(&mut self, ranges: &[Range<u64>]) {
        let [(core, ..)] = self.parts.as_slice() else {
            return;
        };
        let core = core.clone();
        let mut at = core.start;
        let mut out = Vec::with_capacity(ranges.len() * 2 + 1);
        for r in ranges {
            let (a, b) = (r.start.max(at), r.end.min(core.end));
            if a >= b {
                continue;
            }
            if at < a {
                out.push((at..a, "scanned", None));
            }
            out.push((a..b, "sparse", None));
            at = b;
        }
        if at < core.end {
            out.push((at..core.end, "scanned", None));
        }
        self.parts = out;
    }

    /// Bytes by outcome.
    pub(crate) fn sum(&self, outcome: &str) -> u64 {
        self.parts
            .iter()
            .filter(|p| p.1 == outcome)
            .map(|p| p.0.end - p.0.start)
            .sum()
    }

    /// Writes the rows of an engine.
    pub(crate) fn write(&self, engine: &str, to: &mut CoverageBuilder) {
        for (r, outcome, reason) in &self.parts {
            to.push(&CoverageRow {
                engine: engine.to_owned(),
                outcome: (*outcome).to_owned(),
                start: r.start,
                end: r.end,
                reason: reason.clone(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_always_sum_to_the_core() {
        let mut c = CoreCoverage::new(100..1000);
        c.sparse(&[50..150, 300..400, 990..2000]);
        c.mark(&(380..420), "partial", Some("slow"));
        c.mark(&(0..110), "failed", Some("disk"));
        let all: u64 = ["scanned", "sparse", "partial", "failed"]
            .iter()
            .map(|o| c.sum(o))
            .sum();
        assert_eq!(all, 900);
        assert_eq!((c.sum("partial"), c.sum("failed")), (40, 10));
        assert_eq!(c.sum("sparse"), 40 + 80 + 10);
    }
}
