//! When a worker takes no tasks: while a suspect runs, which must take no other task down with it,
//! and after an outage that outlasted its patience, until a probe succeeds.

use tokio::sync::watch;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    /// A suspect runs, or waits until it can.
    suspect: bool,
    /// Something that tasks need is out of reach.
    outage: bool,
    /// Tasks that are under way, suspects apart.
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

    /// Lets a task in that is no suspect, if any may begin.
    pub(crate) fn enter(&self) -> Option<Pass<'_>> {
        let entered = self.state.send_if_modified(|s| {
            let free = !s.suspect && !s.outage;
            s.running += usize::from(free);
            free
        });
        // Made only when it counts: dropping one takes it off again.
        entered.then(|| Pass(self))
    }

    /// Why no such task may begin, by reason.
    pub(crate) fn closed_for(&self) -> [(&'static str, bool); 2] {
        let s = *self.state.borrow();
        [("suspect", s.suspect), ("outage", s.outage)]
    }

    /// Waits until no such task may begin.
    pub(crate) async fn closed(&self) {
        self.until(|s| s.suspect || s.outage).await;
    }

    /// Waits until such tasks may begin.
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

    /// What tasks need is in reach again.
    pub(crate) fn reopen(&self) {
        self.state.send_modify(|s| s.outage = false);
    }

    /// Notes an outage; `false` when it was known.
    pub(crate) fn shut(&self) -> bool {
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
        gate.reopen();
        gate.open().await;
        assert!(gate.enter().is_some());
    }
}
