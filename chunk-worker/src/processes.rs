//! Verdict tasks over processes: the conditions of a group of rules, decided for each process from the
//! matches in the units that it has.
//!
//! Processes share memory: files, pages since a fork. Where a rule fires in several for the very same
//! bytes of RAM, that is one finding that names them all.

use crate::Worker;
use crate::context::JobContext;
use crate::sink::{Collected, Rows, rule_json};
use crate::verdict::{MATCHES, group_of, incomplete, needs};
use ramsift_engines::yara::{Outcome, PatternMatch, RuleSet, VerdictMatch, evaluate};
use ramsift_layers::ImageOffset;
use ramsift_proto::v1::VerdictWork;
use ramsift_store::job;
use ramsift_store::lists::{Process, ProcessList};
use ramsift_store::tables::{
    CoverageRow, FindingRow, MemoryMatchRow, detector_key, memory_match_rows, row_id,
    segment_batches,
};
use std::collections::{BTreeMap, BTreeSet};
use tokio::runtime::Handle;

/// Processes that a finding names one by one.
const NAMED: usize = 64;

/// Matches by unit, rule, pattern and address.
#[derive(Default)]
struct Found {
    rows: BTreeMap<(u32, u32, u32, u64), MemoryMatchRow>,
    /// Rules with more matches than are held.
    capped: BTreeSet<(u32, Option<u32>)>,
    /// Bytes around the first match of a rule in a unit.
    windows: BTreeMap<(u32, u32), (u64, Vec<u8>)>,
}

impl Found {
    /// Each match once, although a list may have been searched twice.
    fn push(&mut self, mut m: MemoryMatchRow) {
        let window = std::mem::take(&mut m.window);
        let first = self.windows.entry((m.unit, m.rule));
        let first = first.or_insert_with(|| (u64::MAX, Vec::new()));
        if m.address < first.0 {
            *first = (m.address, window);
        }
        if self.rows.len() >= MATCHES {
            self.capped.insert((m.rule, None));
            return;
        }
        self.rows.insert((m.unit, m.rule, m.pattern, m.address), m);
    }

    /// The matches in what a process has, by its own addresses.
    fn of<'f>(&'f self, p: &Process) -> BTreeMap<u64, Vec<&'f MemoryMatchRow>> {
        let mut out: BTreeMap<u64, Vec<&MemoryMatchRow>> = BTreeMap::new();
        for &(unit, shift) in &p.units {
            for (_, m) in self
                .rows
                .range((unit, 0, 0, 0)..=(unit, u32::MAX, u32::MAX, u64::MAX))
            {
                out.entry(m.address.wrapping_add(shift))
                    .or_default()
                    .push(m);
            }
        }
        out
    }
}

fn to_engine(va: u64, m: &MemoryMatchRow) -> PatternMatch {
    let shift = va.wrapping_sub(m.address);
    PatternMatch {
        rule: m.rule,
        pattern: m.pattern,
        offset: ImageOffset(va),
        len: m.length,
        xor_key: m.xor_key,
        more: m.more,
        last: ImageOffset(m.last.wrapping_add(shift)),
        window_base: ImageOffset(va),
        window: 0..0,
    }
}

/// A rule that fired in processes, for the same bytes.
struct Fired {
    /// By number in the list.
    processes: Vec<usize>,
    first: Option<u64>,
    span: u64,
    counts: Vec<u64>,
    /// With what the first process has there.
    matches: Vec<(VerdictMatch, MemoryMatchRow)>,
}

/// What is the same in processes that share memory: rule, and pattern and image offset of its matches.
type Bytes = (u32, Vec<(u32, u64)>);

/// Decides a group for every process. Runs on a blocking thread.
pub(crate) fn decide(
    worker: &Worker,
    ctx: &JobContext,
    work: &VerdictWork,
    attempt: &str,
) -> Result<Collected, String> {
    let rules = ctx.rules.as_ref().ok_or("the job has no rules")?;
    let (plan, group) = group_of(worker, &ctx.keys.process_verdicts(), work.group)?;
    let objects = worker.deps.objects.as_ref();
    let runtime = Handle::current();
    let (list, _): (ProcessList, _) = runtime
        .block_on(job::read(objects, &work.processes))
        .map_err(|e| e.to_string())?;
    let needs = needs(&group);
    let mut found = Found::default();
    let segments: &[String] = if group.needs.is_empty() {
        &[]
    } else {
        &plan.segments
    };
    for key in segments {
        let (data, _) = runtime
            .block_on(objects.get(key))
            .map_err(|e| e.to_string())?;
        for b in segment_batches(data).map_err(|e| format!("{key}: {e}"))? {
            let b = b.map_err(|e| format!("{key}: {e}"))?;
            for m in memory_match_rows(&b, &|r| needs.contains(&r)) {
                found.push(m);
            }
        }
    }
    let incomplete = incomplete(&plan, &needs, &found.capped);
    let mut fired: BTreeMap<Bytes, Fired> = BTreeMap::new();
    let mut unknown: BTreeMap<(u32, String), u64> = BTreeMap::new();
    let without = evaluate(rules, &group, &[], &incomplete);
    for (i, p) in list.processes.iter().enumerate() {
        let matches = found.of(p);
        let all = matches
            .iter()
            .flat_map(|(va, ms)| ms.iter().map(|m| to_engine(*va, m)));
        let for_engine: Vec<PatternMatch> = all.collect();
        let verdicts = if for_engine.is_empty() {
            without.clone()
        } else {
            evaluate(rules, &group, &for_engine, &incomplete)
        };
        for v in verdicts {
            match v.outcome {
                Outcome::NotFired => {}
                Outcome::Unknown { reason } => {
                    *unknown.entry((v.rule, reason)).or_default() += 1;
                }
                Outcome::Fired {
                    matches: listed,
                    counts,
                    first,
                    span,
                } => {
                    let at = |m: VerdictMatch| {
                        let same = |r: &&&MemoryMatchRow| {
                            r.rule == v.rule && r.pattern == m.pattern && r.length == m.len
                        };
                        let row = matches.get(&m.offset)?.iter().find(same)?;
                        Some((m, (*row).clone()))
                    };
                    let listed: Vec<_> = listed.into_iter().filter_map(at).collect();
                    let bytes = listed.iter().map(|(m, r)| (m.pattern, r.image_offset));
                    let same = fired.entry((v.rule, bytes.collect()));
                    let same = same.or_insert_with(|| Fired {
                        processes: Vec::new(),
                        first,
                        span,
                        counts,
                        matches: listed,
                    });
                    same.processes.push(i);
                }
            }
        }
    }
    let mut rows = Rows::new(ctx, worker.deps.objects.clone(), None, attempt, None);
    for ((rule, _), f) in &fired {
        report(ctx, rules, *rule, f, &list, &found, &mut rows);
    }
    let image_len = ctx.plan.layout.runs.image_len();
    for ((rule, reason), n) in unknown {
        let name = rules.rules().get(rule as usize).map(|r| r.full_name());
        rows.coverage.push(&CoverageRow {
            engine: "yara processes".into(),
            outcome: "unknown".into(),
            start: 0,
            end: image_len,
            reason: Some(format!(
                "{}: {reason}; in {n} processes",
                name.unwrap_or_default()
            )),
        });
    }
    rows.finish()
}

fn report(
    ctx: &JobContext,
    rules: &RuleSet,
    rule: u32,
    f: &Fired,
    list: &ProcessList,
    found: &Found,
    rows: &mut Rows<'_>,
) {
    let Some(r) = rules.rules().get(rule as usize).filter(|r| !r.private) else {
        return;
    };
    let processes: Vec<&Process> = f.processes.iter().map(|i| &list.processes[*i]).collect();
    let Some(p) = processes.first() else {
        return;
    };
    let first = f.matches.iter().find(|(m, _)| Some(m.offset) == f.first);
    let at = first.map_or(0, |(_, row)| row.image_offset);
    let length = first.map_or(0, |(m, _)| m.len);
    let physical = first.and_then(|_| ctx.paged_runs.to_phys(ImageOffset(at)));
    let window = first.and_then(|(_, row)| {
        let (address, window) = found.windows.get(&(row.unit, rule))?;
        (*address == row.address).then_some(window.as_slice())
    });
    let matches = f.matches.iter().map(|(m, row)| {
        serde_json::json!({
            "pattern": m.name,
            "virtual_address": m.offset,
            "length": m.len,
            "image_offset": row.image_offset,
            "pieces": row.pieces,
            "file": list.files.get(&row.unit),
        })
    });
    let named = processes.iter().take(NAMED).map(|p| {
        serde_json::json!({
            "pid": p.pid, "comm": p.comm, "object": format!("{:#x}", p.object), "process_key": p.key(),
        })
    });
    let fields = serde_json::json!({
        "processes": named.collect::<Vec<_>>(),
        "process_count": processes.len(),
        "matches": matches.collect::<Vec<_>>(),
        "counts": f.counts,
        "span": f.span,
    });
    let path = match processes.len() - 1 {
        0 => p.name(),
        more => format!("{} and {more} more", p.name()),
    };
    let detector = detector_key(&format!("yara:{}", r.full_name()), &rules.digest());
    rows.findings.push(&FindingRow {
        id: row_id(detector, "process", &p.key(), f.first.unwrap_or(0), length),
        detector: "yara",
        kind: "yara",
        severity: r.severity,
        severity_reason: &r.severity_reason,
        scope: "process",
        image_offset: at,
        physical_address: physical.map(|p| p.0),
        length,
        value: &r.identifier,
        encoding: None,
        context: window,
        fields: Some(&fields.to_string()),
        path: Some(&path),
        artifact: None,
        rule: Some(&rule_json(r)),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_the_matches_of_its_units_where_it_has_them() {
        let row = |unit, address| MemoryMatchRow {
            rule: 3,
            unit,
            address,
            last: address + 8,
            window: vec![1],
            ..MemoryMatchRow::default()
        };
        let mut found = Found::default();
        for m in [
            row(1, 0x7000),
            row(2, 0x10),
            row(2, 0x10),
            row(2, 0x5),
            row(4, 0),
        ] {
            found.push(m);
        }
        let p = Process {
            units: vec![(1, 0), (2, 0x40_0000), (3, 0)],
            ..Process::default()
        };
        let of = found.of(&p);
        let addresses: Vec<u64> = of.keys().copied().collect();
        assert_eq!(addresses, [0x7000, 0x40_0005, 0x40_0010]);
        let m = to_engine(0x40_0010, of[&0x40_0010][0]);
        assert_eq!((m.offset.0, m.last.0), (0x40_0010, 0x40_0018));
        // The window of the first match in the unit is kept.
        assert_eq!(found.windows[&(2, 3)].0, 0x5);
        assert!(found.rows.values().all(|m| m.window.is_empty()));
    }
}
