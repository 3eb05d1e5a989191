//! Verdict tasks: the conditions of a group of rules, over the matches of all chunks.

use crate::Worker;
use crate::context::JobContext;
use crate::scan::{MATCH_CAP, limits};
use crate::sink::{Collected, Rows, rule_json};
use ramsift_engines::yara::{
    BLOCK, Incomplete, Outcome, PatternMatch, RuleInfo, RuleSet, ScanLimits, Unfinished,
    UnfinishedReason, Verdict, VerdictGroup, evaluate, scope_severity,
};
use ramsift_layers::ImageOffset;
use ramsift_proto::v1::RuleGap;
use ramsift_store::VerdictPlan;
use ramsift_store::job;
use ramsift_store::tables::{
    CoverageRow, FindingRow, MatchRow, YaraMatchRow, detector_key, match_rows, row_id,
    segment_batches,
};
use std::collections::{BTreeMap, BTreeSet};
use tokio::runtime::Handle;

/// A verdict plan and one of its groups.
pub(crate) fn group_of(
    worker: &Worker,
    key: &str,
    number: u32,
) -> Result<(VerdictPlan, VerdictGroup), String> {
    let objects = worker.deps.objects.as_ref();
    let (plan, _): (VerdictPlan, _) = Handle::current()
        .block_on(job::read(objects, key))
        .map_err(|e| e.to_string())?;
    let group = plan.groups.get(number as usize);
    let group = group.ok_or("the verdict plan has no such group")?.clone();
    let group = serde_json::from_value(group).map_err(|e| format!("verdict plan: {e}"))?;
    Ok((plan, group))
}

/// Rules whose matches a group takes.
pub(crate) fn needs(group: &VerdictGroup) -> BTreeSet<u32> {
    group.needs.iter().chain(&group.rules).copied().collect()
}

/// What was not searched for to the end of what a group takes; `capped` are rules, or patterns of them, with more matches
/// than are held.
pub(crate) fn incomplete(
    plan: &VerdictPlan,
    needs: &BTreeSet<u32>,
    capped: &BTreeSet<(u32, Option<u32>)>,
) -> Incomplete {
    Incomplete {
        failed_ranges: plan.failed_ranges,
        unfinished: plan
            .gaps
            .iter()
            .filter(|g| needs.contains(&g.rule))
            .map(unfinished)
            .chain(capped.iter().map(|(rule, pattern)| Unfinished {
                rule: *rule,
                pattern: *pattern,
                reason: UnfinishedReason::MatchCap,
            }))
            .collect(),
    }
}

/// Decides one group of the job's verdict plan. Runs on a blocking thread.
pub(crate) fn decide(
    worker: &Worker,
    ctx: &JobContext,
    group: u32,
    attempt: &str,
) -> Result<Collected, String> {
    let rules = ctx.rules.as_ref().ok_or("the job has no rules")?;
    let (plan, group) = group_of(worker, &ctx.keys.verdicts(), group)?;
    let needs = needs(&group);
    let all = limits(worker, ctx);
    let found = if group.needs.is_empty() {
        Found::default()
    } else {
        matches(worker, &plan.segments, &needs, rules, &all)?
    };
    let incomplete = incomplete(&plan, &needs, &found.capped);
    let for_engine: Vec<PatternMatch> = found.rows.values().map(to_engine).collect();
    let verdicts = evaluate(rules, &group, &for_engine, &incomplete);
    let mut rows = Rows::new(ctx, worker.deps.objects.clone(), None, attempt, None);
    for v in &verdicts {
        report(ctx, rules, v, &found, &mut rows);
    }
    rows.finish()
}

fn unfinished(g: &RuleGap) -> Unfinished {
    let reason = if g.reason == MATCH_CAP {
        UnfinishedReason::MatchCap
    } else {
        UnfinishedReason::TimeLimit
    };
    Unfinished {
        rule: g.rule,
        pattern: g.pattern,
        reason,
    }
}

fn to_engine(m: &MatchRow) -> PatternMatch {
    PatternMatch {
        rule: m.rule,
        pattern: m.pattern,
        offset: ImageOffset(m.image_offset),
        len: m.length,
        xor_key: m.xor_key,
        more: m.more,
        last: ImageOffset(m.last),
        window_base: ImageOffset(m.window_base),
        window: 0..0,
    }
}

/// Matches of one group that are held at a time. Beyond, a rule's verdict is `unknown`.
pub(crate) const MATCHES: usize = 2 << 20;

/// The matches of a group's rules in all chunks.
#[derive(Default)]
struct Found {
    /// Without their windows, by rule, pattern and place.
    rows: BTreeMap<(u32, u32, u64), MatchRow>,
    /// What lies around the first match of each rule.
    first: BTreeMap<u32, (u64, Vec<u8>)>,
    /// Rules, or patterns of them, with more matches than are held.
    capped: BTreeSet<(u32, Option<u32>)>,
    /// Rules whose matches are counted up to a cap in some block.
    at_least: BTreeSet<u32>,
}

impl Found {
    /// Each match once, although a chunk may have been tried twice.
    fn push(&mut self, mut m: MatchRow, rules: &RuleSet, limits: &ScanLimits) {
        let window = std::mem::take(&mut m.window);
        match self.first.get_mut(&m.rule) {
            Some((at, w)) if m.image_offset < *at => (*at, *w) = (m.image_offset, window),
            Some(_) => {}
            None => {
                self.first.insert(m.rule, (m.image_offset, window));
            }
        }
        if self.rows.len() >= MATCHES {
            self.settle(rules, limits);
        }
        if self.rows.len() >= MATCHES {
            self.capped.insert((m.rule, None));
            return;
        }
        self.rows.insert((m.rule, m.pattern, m.image_offset), m);
    }

    /// Keeps of each block what one chunk over all of it would have listed and counted: the cut into chunks is not the
    /// image's.
    fn settle(&mut self, rules: &RuleSet, limits: &ScanLimits) {
        let cap = limits.max_matches_per_pattern.max(1) as u64;
        let block_of = |m: &MatchRow| (m.rule, m.pattern, m.image_offset / BLOCK);
        let mut rows = std::mem::take(&mut self.rows).into_values().peekable();
        while let Some(first) = rows.next() {
            let block = block_of(&first);
            let info = rules.rules().get(first.rule as usize);
            let keep = info.map_or(usize::MAX, |i| limits.listed(i));
            let (mut count, mut last) = (1 + first.more, first.last);
            let mut listed = vec![first];
            while let Some(m) = rows.next_if(|m| block_of(m) == block) {
                count += 1 + m.more;
                last = last.max(m.last);
                if listed.len() < keep {
                    listed.push(m);
                }
            }
            let more = count.min(cap + 1) - listed.len() as u64;
            if count > cap {
                self.at_least.insert(block.0);
                if info.is_some_and(|i| i.class.is_positional()) {
                    self.capped.insert((block.0, Some(block.1)));
                }
                // Where the rest lies is not known: as far away as it can be.
                last = (block.2 + 1).saturating_mul(BLOCK) - 1;
            }
            for m in &mut listed {
                (m.more, m.last) = (0, m.image_offset);
            }
            if let Some(m) = listed.last_mut().filter(|_| more > 0) {
                (m.more, m.last) = (more, last);
            }
            let key = |m: &MatchRow| (m.rule, m.pattern, m.image_offset);
            self.rows.extend(listed.into_iter().map(|m| (key(&m), m)));
        }
    }
}

fn matches(
    worker: &Worker,
    segments: &[String],
    wanted: &BTreeSet<u32>,
    rules: &RuleSet,
    limits: &ScanLimits,
) -> Result<Found, String> {
    let runtime = Handle::current();
    let mut out = Found::default();
    for key in segments {
        let (data, _) = runtime
            .block_on(worker.deps.objects.get(key))
            .map_err(|e| e.to_string())?;
        let batches = segment_batches(data).map_err(|e| format!("{key}: {e}"))?;
        for b in batches {
            let b = b.map_err(|e| format!("{key}: {e}"))?;
            for m in match_rows(&b, &|r| wanted.contains(&r)) {
                out.push(m, rules, limits);
            }
        }
    }
    out.settle(rules, limits);
    Ok(out)
}

/// What a job asks for that wants every match in a table.
pub(crate) const ALL: &str = "all";

/// Tells every match of a rule that fired.
fn every_match(
    ctx: &JobContext,
    rules: &RuleSet,
    r: &RuleInfo,
    found: &Found,
    rows: &mut Rows<'_>,
) {
    let key = detector_key(&format!("yara:{}", r.full_name()), &rules.digest());
    for m in found
        .rows
        .range((r.id, 0, 0)..=(r.id, u32::MAX, u64::MAX))
        .map(|(_, m)| m)
    {
        let name = r
            .patterns
            .get(m.pattern as usize)
            .map_or("", String::as_str);
        let physical = ctx.plan.layout.runs.to_phys(ImageOffset(m.image_offset));
        let row = YaraMatchRow {
            id: row_id(key, "match", name, m.image_offset, m.length),
            rule: &r.identifier,
            namespace: &r.namespace,
            pattern: name,
            image_offset: m.image_offset,
            physical_address: physical.map(|p| p.0),
            length: m.length,
        };
        if let Err(e) = rows.yara_matches.push(&row) {
            rows.fail(e);
        }
        rows.checkpoint_rows();
    }
}

/// A fired rule becomes a finding, an undecided one a gap; the rest leaves no trace.
fn report(ctx: &JobContext, rules: &RuleSet, v: &Verdict, found: &Found, rows: &mut Rows<'_>) {
    let Some(r) = rules.rules().get(v.rule as usize) else {
        return;
    };
    let image_len = ctx.plan.layout.runs.image_len();
    let (matches, counts, first, span) = match &v.outcome {
        Outcome::NotFired => return,
        Outcome::Unknown { reason } => {
            rows.coverage.push(&CoverageRow {
                engine: "yara verdicts".into(),
                outcome: "unknown".into(),
                start: 0,
                end: image_len,
                reason: Some(format!("{}: {reason}", r.full_name())),
            });
            return;
        }
        Outcome::Fired {
            matches,
            counts,
            first,
            span,
        } => (matches, counts, first, span),
    };
    if r.private {
        return;
    }
    if ctx.plan.spec.matches == ALL {
        every_match(ctx, rules, r, found, rows);
    }
    let grade = scope_severity(r, v);
    let at = first.unwrap_or(0);
    let context = found
        .first
        .get(&v.rule)
        .filter(|(first, _)| *first == at)
        .map(|(_, window)| window.as_slice());
    let length = matches.iter().find(|m| m.offset == at).map_or(0, |m| m.len);
    let mut fields = serde_json::json!({
        "matches": matches.iter().map(|m| serde_json::json!({
            "pattern": m.name, "offset": m.offset, "length": m.len,
        })).collect::<Vec<_>>(),
        "counts": counts,
        "span": span,
        "dispersed": grade.dispersed,
    });
    if found.at_least.contains(&v.rule) {
        fields["counts_at_least"] = true.into();
    }
    let pa = first
        .and_then(|f| ctx.plan.layout.runs.to_phys(ImageOffset(f)))
        .map(|p| p.0);
    rows.findings.push(&FindingRow {
        id: row_id(
            detector_key(&format!("yara:{}", r.full_name()), &rules.digest()),
            "image",
            "",
            at,
            length,
        ),
        detector: "yara",
        kind: "yara",
        severity: grade.severity,
        severity_reason: &grade.reason,
        scope: "image",
        image_offset: at,
        physical_address: pa,
        length,
        value: &r.identifier,
        encoding: None,
        context,
        fields: Some(&fields.to_string()),
        path: None,
        artifact: None,
        rule: Some(&rule_json(r)),
    });
}
