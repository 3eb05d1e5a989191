//! Publishing a job's tasks: the next one, those that are out, and those that the broker has lost.

use super::{Job, Out, Stage, lane};
use crate::lanes::QUIET;
use ramsift_proto::TaskId;
use ramsift_proto::v1::task::Work;
use ramsift_proto::v1::{ChunkWork, FilesWork, JobPhase, MemoryWork, Task, VerdictWork, ViewWork};
use ramsift_queue::Lane;
use ramsift_store::lists::{LIST, PROCESSES, files_name, memory_name};
use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// How often it is asked whether anybody is at views; more than workers take to note it anew in a ledger that has forgotten.
const ASK: Duration = Duration::from_secs(15);
/// Tasks that are few.
const TURN: usize = 8;

impl Job {
    /// Puts a task behind those of its lane that are to be published.
    pub(super) fn wait_for_turn(&mut self, task: TaskId) {
        self.pending.entry(lane(&task)).or_default().push_back(task);
    }

    /// Publishes a task no more.
    pub(super) fn withdraw(&mut self, task: &TaskId) {
        if let Some(of_lane) = self.pending.get_mut(&lane(task)) {
            of_lane.retain(|t| t != task);
        }
    }

    /// Bytes that a task works on, for the fairness between jobs.
    pub(super) fn cost(&self, task: &TaskId) -> u64 {
        match task {
            TaskId::Memory(_) | TaskId::Files(_) => LIST,
            _ => self.bytes(task).max(1 << 20),
        }
    }

    /// Bytes that the next task of a lane reads, when one may be published now.
    pub(crate) fn next_cost(&self, of: Lane, window: usize) -> Option<u64> {
        if self.busy_since.is_some()
            || self.cancel.is_some()
            || self.fatal.is_some()
            || self.out.len() >= window
        {
            return None;
        }
        self.pending.get(&of)?.front().map(|t| self.cost(t))
    }

    /// Whether a task of a lane may be published now.
    pub(crate) fn has_next(&self, of: Lane, window: usize) -> bool {
        self.next_cost(of, window).is_some()
    }

    /// Whether tasks are to be published and none is out: others' come first.
    pub(crate) fn waits_for_turn(&self) -> bool {
        self.out.is_empty() && !self.nothing_is_pending()
    }

    /// The phase of what runs for it apart from the loop.
    pub(crate) fn busy_with(&self) -> JobPhase {
        match self.stage {
            Stage::Unplanned => JobPhase::Planning,
            _ => JobPhase::Finalising,
        }
    }

    pub(super) fn nothing_is_pending(&self) -> bool {
        self.pending.values().all(VecDeque::is_empty)
    }

    /// The next task of a lane, and the lane it goes to: parts of what took workers down go to the suspects'.
    pub(crate) fn take(&mut self, of: Lane) -> Option<(Lane, Task)> {
        let id = self.pending.get_mut(&of)?.pop_front()?;
        if self.out.is_empty() {
            // It waited for others' tasks: nothing of it could be settled.
            self.last_progress = Instant::now();
        }
        let out = self.out.entry(id.clone()).or_insert(Out {
            publication: 0,
            since: Instant::now(),
        });
        out.publication += 1;
        let publication = out.publication;
        let (lane, work) = match &id {
            TaskId::Chunk { index, .. } => {
                let r = self.range(&id);
                // A part of what took workers down may do the same: it takes no others along.
                let suspect = id.parent().is_some();
                let work = ChunkWork {
                    index: *index,
                    file_start: r.start,
                    file_end: r.end,
                    suspect,
                };
                let lane = if suspect {
                    Lane::Suspects
                } else {
                    Lane::Chunks
                };
                (lane, Work::Chunk(work))
            }
            TaskId::Verdict(group) => (Lane::Chunks, self.verdict(*group, String::new())),
            TaskId::Process(group) => {
                let processes = format!("{}{PROCESSES}", self.lists[0]);
                (Lane::Chunks, self.verdict(*group, processes))
            }
            TaskId::Memory(n) => {
                let list = format!("{}{}", self.lists[0], memory_name(*n));
                (Lane::Chunks, Work::Memory(MemoryWork { list }))
            }
            TaskId::Files(n) => {
                let list = format!("{}{}", self.lists[1], files_name(*n));
                (Lane::Chunks, Work::Files(FilesWork { list }))
            }
            TaskId::View(view) => (Lane::Views, Work::View(ViewWork { view: view.clone() })),
        };
        let task = Task {
            job: self.spec.job.clone(),
            task: id.to_string(),
            publication,
            work: Some(work),
        };
        Some((lane, task))
    }

    pub(super) fn verdict(&self, group: u32, processes: String) -> Work {
        Work::Verdict(VerdictWork { group, processes })
    }

    /// A task could not be published after all.
    pub(crate) fn put_back(&mut self, task: &str) {
        if let Ok(id) = task.parse::<TaskId>() {
            self.out.remove(&id);
            if self.open.contains(&id) {
                self.pending.entry(lane(&id)).or_default().push_front(id);
            }
        }
    }

    /// Publishes everything again that is out: nothing has come back for too long, or the broker has lost it.
    pub(crate) fn republish(&mut self) {
        self.publish_again(|_| true);
    }

    /// Publishes the chunks' tasks again when none of them lies in the queue and none was settled for long: the broker
    /// lost them, or workers take long over them, which each time is waited for twice as long. A task that is done
    /// twice counts once.
    pub(crate) fn republish_lost(&mut self, longest: Duration) -> bool {
        let lost = self.last_progress.elapsed() >= self.patience.min(longest)
            && self.out.keys().any(|t| lane(t) == Lane::Chunks);
        if lost {
            self.publish_again(|t| lane(t) == Lane::Chunks);
            self.patience *= 2;
        }
        lost
    }

    pub(super) fn publish_again(&mut self, which: impl Fn(&TaskId) -> bool) {
        self.last_progress = Instant::now();
        let all: Vec<TaskId> = self.out.keys().filter(|t| which(t)).cloned().collect();
        for id in all {
            self.out.remove(&id);
            if self.open.contains(&id) {
                self.wait_for_turn(id);
            }
        }
    }

    /// Views that were published long ago, when it is time to ask whether anybody is at them.
    pub(crate) fn views_to_ask_about(&mut self) -> Vec<String> {
        if self.asked.is_some_and(|t| t.elapsed() < ASK) {
            return Vec::new();
        }
        let old = |(t, o): &(&TaskId, &Out)| lane(t) == Lane::Views && o.since.elapsed() >= QUIET;
        let tasks: Vec<String> = self
            .out
            .iter()
            .filter(old)
            .map(|(t, _)| t.to_string())
            .collect();
        if !tasks.is_empty() {
            self.asked = Some(Instant::now());
        }
        tasks
    }

    /// Publishes views again that nobody was at, now and when that was asked before: the broker has lost them.
    /// Whether there were any.
    pub(crate) fn republish_idle(&mut self, tasks: &[String]) -> bool {
        let now: BTreeSet<TaskId> = tasks.iter().filter_map(|t| t.parse().ok()).collect();
        let lost: Vec<TaskId> = now.intersection(&self.idle).cloned().collect();
        self.idle = now;
        self.idle.retain(|t| !lost.contains(t));
        self.publish_again(|t| lost.contains(t));
        !lost.is_empty()
    }

    /// Tasks of a lane that were published or are to be, and are not settled.
    pub(crate) fn open_in(&self, of: Lane) -> usize {
        self.out_in(of) + self.pending.get(&of).map_or(0, VecDeque::len)
    }

    /// Tasks that were published to a lane and are not settled.
    pub(crate) fn out_in(&self, of: Lane) -> usize {
        self.out.keys().filter(|t| lane(t) == of).count()
    }

    /// How long ago the first task was published to a lane that is not settled.
    pub(crate) fn oldest_out(&self, of: Lane) -> Option<Duration> {
        let there = |t: &TaskId| match of {
            Lane::Suspects => t.parent().is_some(),
            _ => lane(t) == of && t.parent().is_none(),
        };
        let all = self.out.iter().filter(|(t, _)| there(t));
        all.map(|(_, o)| o.since.elapsed()).max()
    }

    pub(crate) fn has_out(&self) -> bool {
        !self.out.is_empty()
    }

    /// Whether few tasks are left before others can begin, or the job can end.
    pub(crate) fn is_at_a_turn(&self) -> bool {
        self.nothing_is_pending() && (1..=TURN).contains(&self.out.len())
    }
}
