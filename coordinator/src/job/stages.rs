//! From one stage of a job to the next.

use super::{Job, News, Searched, Stage};
use crate::Deps;
use ramsift_proto::TaskId;
use ramsift_store::job::{self, rules_key, to_json};
use ramsift_store::tables::name;
use ramsift_store::{Plan, StoreError, VerdictPlan, commits};

impl Job {
    /// Whether every task of the stage is settled.
    pub(super) fn stage_is_over(&self) -> bool {
        match self.stage {
            Stage::Unplanned | Stage::Settled => false,
            // Chunks are first in order.
            Stage::Chunks => !matches!(self.open.first(), Some(TaskId::Chunk { .. })),
            Stage::Rest | Stage::Processes => self.open.is_empty(),
        }
    }

    /// Reads what is new in the store and moves on as far as that allows; only the plan that is there is taken up for a
    /// job without one.
    pub(crate) async fn move_on(&mut self, deps: &Deps) -> Result<News, StoreError> {
        if self.stage == Stage::Unplanned {
            let plan = job::read_opt::<Plan>(deps.objects.as_ref(), &self.keys.plan()).await?;
            let Some((plan, _)) = plan else {
                return Ok(News::Unplanned);
            };
            self.begin(deps, plan).await?;
            return Ok(News::Planned);
        }
        let failed_before = self.failed_tasks;
        let tasks = self.refresh(deps).await?.len();
        let failed = self.failed_tasks - failed_before;
        // What was read counts, whatever comes of going on.
        let trouble = match self.fatal {
            None => self.advance(deps).await.err(),
            Some(_) => None,
        };
        Ok(News::Settled {
            tasks,
            failed,
            trouble,
        })
    }

    /// Moves on while all tasks of a stage are settled.
    pub(crate) async fn advance(&mut self, deps: &Deps) -> Result<(), StoreError> {
        while self.stage_is_over() {
            self.stage = match self.stage {
                Stage::Chunks => {
                    self.start_rest(deps).await?;
                    Stage::Rest
                }
                Stage::Rest if self.memory_lists > 0 => {
                    let (key, failed) = (self.keys.process_verdicts(), self.memory.failed);
                    let of = (&self.memory, name::MEMORY_MATCHES);
                    let groups = self.plan_verdicts(deps, &key, of, failed).await?;
                    (0..groups).for_each(|g| self.add(TaskId::Process(g)));
                    Stage::Processes
                }
                _ => Stage::Settled,
            };
        }
        Ok(())
    }

    /// Adds what waits for the chunks: verdicts over the image, and some views.
    async fn start_rest(&mut self, deps: &Deps) -> Result<(), StoreError> {
        if self.spec.unstructured {
            let missing = |p: &Plan| !p.layout.runs.missing().is_empty();
            let failed = self.image.failed || self.plan.as_ref().is_some_and(missing);
            let (key, of) = (self.keys.verdicts(), (&self.image, name::MATCHES));
            let groups = self.plan_verdicts(deps, &key, of, failed).await?;
            (0..groups).for_each(|g| self.add(TaskId::Verdict(g)));
        }
        let waiting = std::mem::take(&mut self.waiting);
        for v in waiting {
            self.add(TaskId::View(v));
        }
        Ok(())
    }

    /// Groups the rules, once; the stored plan counts. Returns the number of groups.
    async fn plan_verdicts(
        &self,
        deps: &Deps,
        key: &str,
        (searched, table): (&Searched, &str),
        failed_ranges: bool,
    ) -> Result<u32, StoreError> {
        let digest = &self.spec.rules_digest;
        if digest.is_empty() {
            return Ok(0);
        }
        let objects = deps.objects.as_ref();
        let number = |v: &VerdictPlan| u32::try_from(v.groups.len()).unwrap_or(u32::MAX);
        if let Some((v, _)) = job::read_opt::<VerdictPlan>(objects, key).await? {
            return Ok(number(&v));
        }
        let (rules, _) = objects.get(&rules_key(digest)).await?;
        let matched = searched.counts();
        let planner = deps.verdicts.clone();
        let groups = tokio::task::spawn_blocking(move || planner.groups(&rules, &matched))
            .await
            .map_err(|e| StoreError::Query(e.to_string()))?
            .map_err(StoreError::Query)?;
        let v = VerdictPlan {
            groups,
            gaps: searched.gaps(),
            failed_ranges,
            segments: self.match_segments(deps, table).await?,
        };
        match objects.put_new(key, to_json(&v)?).await {
            Ok(_) => Ok(number(&v)),
            Err(e) if e.is_conflict() => {
                let (v, _) = job::read::<VerdictPlan>(objects, key).await?;
                Ok(number(&v))
            }
            Err(e) => Err(e.into()),
        }
    }

    async fn match_segments(&self, deps: &Deps, table: &str) -> Result<Vec<String>, StoreError> {
        let mut out = Vec::new();
        for c in commits::all(deps.objects.as_ref(), &self.keys).await? {
            let of_reports = c.reports.iter().flat_map(|r| &r.segments);
            out.extend(
                c.segments
                    .iter()
                    .chain(of_reports)
                    .filter(|s| s.table == table)
                    .map(|s| s.key.clone()),
            );
        }
        Ok(out)
    }
}
