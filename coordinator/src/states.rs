//! States of jobs: those that jobs are to have are gathered in a turn of the loop and written side by side.

use crate::job::{Job, READS};
use crate::leadership::Leadership;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use ramsift_proto::v1::{JobPhase, JobState};
use ramsift_store::job::{read, to_json};
use ramsift_store::{Keys, Objects, StoreError};

/// Tries to write a state that others write to.
const WRITES: usize = 4;

/// A job's state under this term's epoch, and its tag.
type Adopted = (JobState, String);

/// A state that a job is to have.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    phase: JobPhase,
    why: String,
}

/// What became of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    /// The job has it.
    Done,
    /// An earlier term ended the job so before this one had put its epoch there.
    EndedBefore(JobPhase),
    /// A coordinator of this epoch owns the job by now.
    Lost(u64),
}

impl Leadership {
    /// Gives a job a state at the next [`Self::write_states`]. An end stays an end.
    pub(crate) fn want(&mut self, name: &str, phase: JobPhase, why: &str) {
        let sealed = [JobPhase::Complete, JobPhase::CompleteWithGaps];
        let stays = self
            .wanted
            .get(name)
            .is_some_and(|w| sealed.contains(&w.phase) || w.phase.is_final() && !phase.is_final());
        if self.jobs.contains_key(name) && !stays {
            let why = why.to_owned();
            self.wanted.insert(name.to_owned(), Wanted { phase, why });
        }
    }

    /// Writes the states that jobs are to have under this term's epoch, and lets jobs go that have
    /// ended. `false`: another coordinator writes states; stand down. An error: one command can't write
    /// into its store.
    pub(crate) async fn write_states(&mut self) -> Result<bool, StoreError> {
        if self.wanted.is_empty() {
            return Ok(true);
        }
        let mut wanted = std::mem::take(&mut self.wanted);
        let (deps, epoch) = (self.deps(), self.epoch);
        let (objects, all) = (deps.objects.as_ref(), &wanted);
        let writes: Vec<BoxFuture<'_, _>> = self
            .jobs
            .iter_mut()
            .filter_map(|(name, job)| Some((name, job, all.get(name)?)))
            .map(|(name, job, w)| {
                async move { (name.clone(), write(objects, job, w, epoch).await) }.boxed()
            })
            .collect();
        let written: Vec<_> = futures::stream::iter(writes)
            .buffer_unordered(READS)
            .collect()
            .await;
        let (mut mine, mut ended, mut unwritten) = (true, Vec::new(), None);
        let embedded = self.me.inner.config.deployment.is_embedded();
        for (name, written) in written {
            let Some(w) = wanted.remove(&name) else {
                continue;
            };
            match written {
                Ok(Written::Done) if w.phase.is_final() => ended.push((name, w)),
                Ok(Written::Done) => {}
                Ok(Written::EndedBefore(phase)) => {
                    let why = String::new();
                    ended.push((name, Wanted { phase, why }));
                }
                Ok(Written::Lost(epoch)) => {
                    self.me.saw_epoch(epoch);
                    mine = false;
                }
                Err(e) => {
                    self.not_written(&name, &e);
                    if embedded {
                        unwritten.get_or_insert(e);
                    }
                    self.wanted.insert(name, w);
                }
            }
        }
        self.have_ended(ended).await;
        match unwritten {
            Some(e) => Err(e),
            None => Ok(mine),
        }
    }

    /// A state could not be written: it is tried again in the next turn. What runs for the job goes on.
    fn not_written(&mut self, name: &str, e: &StoreError) {
        let why = e.to_string();
        self.warn_once(name, &why, "state not written, trying again");
        // The check of the store heals it.
        self.me.inner.deps.readiness.block("store", why.clone());
        if let Some(job) = self.jobs.get_mut(name) {
            job.trouble = Some(why);
        }
    }

    /// Tells everybody who wants to know that jobs have ended.
    async fn have_ended(&mut self, jobs: Vec<(String, Wanted)>) {
        if jobs.is_empty() {
            return;
        }
        let ledger = self.deps().ledger;
        let closing = jobs.iter().map(|(name, _)| ledger.close(name));
        for closed in futures::future::join_all(closing).await {
            if let Err(e) = closed {
                tracing::debug!(error = %e, "ledger not told");
            }
        }
        self.tell();
        for (name, w) in jobs {
            let phase = w.phase.name();
            self.me.inner.metrics.ended(phase);
            tracing::info!(job = name, phase, reason = w.why, "job ended");
            self.let_go(&name);
        }
    }

    fn let_go(&mut self, name: &str) {
        self.jobs.remove(name);
        self.ended.insert(name.to_owned());
    }

    /// Puts this term's epoch on the state that an earlier one left: what that one still writes is refused from then on.
    /// `None`: the state has changed since it was read.
    pub(crate) async fn adopt(
        &self,
        state: JobState,
        etag: String,
    ) -> Result<Option<Adopted>, StoreError> {
        if state.epoch == 0 || state.epoch == self.epoch {
            return Ok(Some((state, etag)));
        }
        let key = Keys::new(&state.job).state();
        let mine = JobState {
            epoch: self.epoch,
            ..state
        };
        let deps = self.deps();
        match deps.objects.put_over(&key, to_json(&mine)?, &etag).await {
            Ok(etag) => Ok(Some((mine, etag))),
            Err(e) if e.is_conflict() => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

/// Whether a state says what another does, whenever it was written: the answer to a write of this term was lost.
fn is_same(a: &JobState, b: &JobState) -> bool {
    (a.epoch, a.phase, &a.reason) == (b.epoch, b.phase, &b.reason)
}

async fn write(
    objects: &dyn Objects,
    job: &mut Job,
    wanted: &Wanted,
    epoch: u64,
) -> Result<Written, StoreError> {
    if job.state.phase() == wanted.phase && !wanted.phase.is_final() {
        return Ok(Written::Done);
    }
    let next = job.state_as(wanted.phase, &wanted.why, epoch);
    let (data, key) = (to_json(&next)?, job.keys.state());
    let mut last = epoch;
    for _ in 0..WRITES {
        match objects.put_over(&key, data.clone(), &job.etag).await {
            Ok(etag) => {
                (job.state, job.etag) = (next, etag);
                return Ok(Written::Done);
            }
            Err(e) if e.is_conflict() => {}
            Err(e) => return Err(e.into()),
        }
        let (found, etag): (JobState, _) = read(objects, &key).await?;
        last = found.epoch;
        if epoch == 0 || found.epoch > epoch {
            return Ok(Written::Lost(found.epoch));
        }
        let (phase, same) = (found.phase(), is_same(&found, &next));
        if same || phase.is_final() {
            (job.state, job.etag) = (found, etag);
            return Ok(match same {
                true => Written::Done,
                false => Written::EndedBefore(phase),
            });
        }
        // Of an earlier term, or of this one before.
        job.etag = etag;
    }
    Ok(Written::Lost(last))
}
