//! When a worker takes no tasks: while a suspect runs, which must take no other task down with it,
//! and after an outage that outlasted its patience, until a probe succeeds.

use crate::Worker;
use ramsift_layers::FileOffset;
use ramsift_store::job;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    /// A suspect runs, or waits until it can.
    suspect: bool,
    /// Something that tasks need is out of reach.
    outage: bool,
    /// Tasks of the chunk lane that are under way.
    running: usize,
}

/// Lets tasks in, or not.
#[derive(Debug)]
pub(crate) struct Gate {
    state: watch::Sender<State>,
}

/// A task that is under way, until dropped.
#[derive(Debug)]
pub(crate) struct Pass<'a>(&'a Gate);

/// Nothing else runs, until dropped.
#[derive(Debug)]
pub(crate) struct Alone<'a>(&'a Gate);

impl Gate {
    pub(crate) fn new() -> Self {
        Self {
            state: watch::Sender::default(),
        }
    }

    /// Lets a task of the chunk lane in, if any may begin.
    pub(crate) fn enter(&self) -> Option<Pass<'_>> {
        let entered = self.state.send_if_modified(|s| {
            let free = !s.suspect && !s.outage;
            s.running += usize::from(free);
            free
        });
        // Made only when it counts: dropping one takes it off again.
        entered.then(|| Pass(self))
    }

    /// Why no task of the chunk lane may begin, by reason.
    pub(crate) fn closed_for(&self) -> [(&'static str, bool); 2] {
        let s = *self.state.borrow();
        [("suspect", s.suspect), ("outage", s.outage)]
    }

    /// Waits until no task of the chunk lane may begin.
    pub(crate) async fn closed(&self) {
        self.until(|s| s.suspect || s.outage).await;
    }

    /// Waits until tasks of the chunk lane may begin.
    pub(crate) async fn open(&self) {
        self.until(|s| !s.suspect && !s.outage).await;
    }

    /// Waits until what tasks need is in reach, as far as is known.
    pub(crate) async fn in_reach(&self) {
        self.until(|s| !s.outage).await;
    }

    /// Keeps new tasks out and waits until those under way are done.
    pub(crate) async fn alone(&self) -> Alone<'_> {
        self.state.send_modify(|s| s.suspect = true);
        let alone = Alone(self);
        self.until(|s| s.running == 0).await;
        alone
    }

    /// Notes an outage; `false` when it was known.
    fn shut(&self) -> bool {
        self.state.send_if_modified(|s| {
            let new = !s.outage;
            s.outage = true;
            new
        })
    }

    async fn until(&self, right: impl FnMut(&State) -> bool) {
        // An error means that the sender is gone, which is a field of this.
        let _ = self.state.subscribe().wait_for(right).await;
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.state.send_modify(|s| s.running -= 1);
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.0.state.send_modify(|s| s.suspect = false);
    }
}

/// Takes no more tasks until what the given one needs is in reach again.
pub(crate) fn await_reach(worker: &Arc<Worker>, job: &str, at: u64) {
    if !worker.gate.shut() {
        return;
    }
    let (worker, of) = (worker.clone(), job.to_owned());
    tokio::spawn(async move {
        let mut wait = Duration::from_secs(1);
        while !worker.stop.is_cancelled() {
            match probe(&worker, &of, at).await {
                Ok(()) => break,
                Err(why) => worker.deps.readiness.block("work", why),
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = worker.stop.cancelled() => {}
            }
            wait = (wait * 2).min(Duration::from_secs(30));
        }
        worker.deps.readiness.ready("work");
        worker.gate.state.send_modify(|s| s.outage = false);
    });
}

/// Tries everything that a task needs, as long as its job lives: what is wrong with one job alone is no outage.
pub(crate) async fn probe(worker: &Worker, job: &str, at: u64) -> Result<(), String> {
    let over = job::is_over(worker.deps.objects.as_ref(), job).await;
    let over = match over {
        Err(e) if !e.is_content() => return Err(e.to_string()),
        other => other.unwrap_or(true),
    };
    worker
        .deps
        .reporter
        .check()
        .await
        .map_err(|e| e.to_string())?;
    if over {
        return Ok(());
    }
    let ctx = match worker.jobs.get(job).await {
        Ok(ctx) => ctx,
        Err(e) if e.is_outage() => return Err(e.to_string()),
        Err(_) => return Ok(()),
    };
    let mut byte = [0];
    match ctx.source.read_at(FileOffset(at), &mut byte).await {
        // What no other try would change is for the task to say.
        Err(e) if !e.is_content() && !e.is_fatal() => return Err(e.to_string()),
        _ => {}
    }
    if let Some(clamd) = worker.deps.clamd.as_ref().filter(|_| ctx.plan.spec.clamav)
        && let ramsift_engines::clamav::AvVerdict::Error { reason } = clamd.scan(b"probe").await
    {
        return Err(format!("clamd failed: {reason}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_suspect_runs_when_nothing_else_does() {
        let gate = Gate::new();
        let pass = gate.enter().expect("open");
        let alone = gate.alone();
        tokio::pin!(alone);
        assert!(futures::poll!(&mut alone).is_pending());
        assert!(gate.enter().is_none(), "others stay out while it waits");
        drop(pass);
        drop(alone.await);
        assert!(gate.enter().is_some());
    }

    #[tokio::test]
    async fn an_outage_keeps_tasks_out() {
        let gate = Gate::new();
        assert!(gate.shut() && !gate.shut());
        gate.closed().await;
        assert!(gate.enter().is_none());
        gate.state.send_modify(|s| s.outage = false);
        gate.open().await;
        assert!(gate.enter().is_some());
    }
}
