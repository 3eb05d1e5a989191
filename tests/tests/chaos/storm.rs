//! What happens, chosen by a seed.

use crate::fleet::Fleet;
use ramsift_tests::proxy::Fault;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Longest wait for a coordinator to take over before the storm goes on.
const TAKEOVER: Duration = Duration::from_secs(30);

pub(crate) struct Storm {
    state: u64,
    told: BTreeMap<String, u32>,
    takeovers: Vec<f64>,
}

impl Storm {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            state: seed,
            told: BTreeMap::new(),
            takeovers: Vec::new(),
        }
    }

    /// The next number below `n` (splitmix64).
    fn below(&mut self, n: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % n
    }

    fn pick(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).expect("small")
    }

    /// Lets time pass: the faults are what happens in it.
    fn pass(&mut self, from: u64, to: u64) {
        let until = Instant::now() + Duration::from_millis(from + self.below(to - from));
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            std::thread::park_timeout(left);
        }
    }

    fn note(&mut self, what: impl Into<String>) {
        *self.told.entry(what.into()).or_default() += 1;
    }

    /// One fault, and some time after it.
    pub(crate) fn next(&mut self, fleet: &mut Fleet) {
        match self.below(14) {
            0..=3 => self.kill(fleet),
            4 | 5 => self.terminate(fleet),
            6 | 7 => self.stop(fleet),
            8 => {
                self.note("broker killed");
                fleet.cluster.rabbit.down();
                self.pass(200, 3000);
                fleet.cluster.rabbit.up();
            }
            9 => {
                self.note("broker back empty");
                fleet.cluster.rabbit.down();
                fleet.cluster.rabbit.forget();
                fleet.cluster.rabbit.up();
            }
            10 => {
                self.note("ledger restarted");
                fleet.cluster.redis.down();
                self.pass(200, 3000);
                fleet.cluster.redis.up();
            }
            11 => {
                self.note("ledger flushed");
                fleet.cluster.redis.flush();
            }
            12 => {
                let lane = ["chunks", "views", "suspects"][self.pick(3)];
                if fleet
                    .cluster
                    .rabbit
                    .delete_queue(&format!("ramsift.{lane}"))
                {
                    self.note("queue deleted");
                }
            }
            _ => {
                let fault = [Fault::Slow, Fault::Stalled, Fault::Torn][self.pick(3)];
                let (name, link) = &fleet.links[self.pick(4)];
                self.note(format!("link to {name} {fault:?}").to_lowercase());
                link.set(fault);
                self.pass(500, 6000);
                link.set(Fault::None);
            }
        }
        self.pass(300, 2500);
    }

    fn kill(&mut self, fleet: &mut Fleet) {
        let i = self.pick(fleet.members.len());
        let what = fleet.members[i].what;
        self.note(format!("{what} killed"));
        let was_active = what == "coordinator" && fleet.active() == Some(i);
        if let Some(s) = &mut fleet.members[i].service
            && s.process.exited().is_none()
        {
            s.process.kill();
        }
        fleet.members[i].service = None;
        if was_active {
            let gone = Instant::now();
            while gone.elapsed() < TAKEOVER {
                if fleet.active().is_some() {
                    self.takeovers.push(gone.elapsed().as_secs_f64());
                    break;
                }
                std::thread::park_timeout(Duration::from_millis(100));
            }
        }
        fleet.start_one(i);
    }

    fn terminate(&mut self, fleet: &mut Fleet) {
        let i = self.pick(fleet.members.len());
        let what = fleet.members[i].what;
        self.note(format!("{what} terminated"));
        if let Some(s) = &mut fleet.members[i].service
            && s.process.exited().is_none()
        {
            let code = s.process.terminate();
            assert_eq!(
                code,
                Some(0),
                "{what} ends well on SIGTERM\n{}",
                fleet.cluster.log()
            );
        }
        fleet.members[i].service = None;
        fleet.start_one(i);
    }

    fn stop(&mut self, fleet: &mut Fleet) {
        let i = self.pick(fleet.members.len());
        let what = fleet.members[i].what;
        self.note(format!("{what} stopped for a while"));
        if let Some(s) = &fleet.members[i].service {
            s.process.signal(libc::SIGSTOP);
        }
        fleet.members[i].stopped = true;
        self.pass(500, 8000);
        if let Some(s) = &fleet.members[i].service {
            s.process.signal(libc::SIGCONT);
        }
        fleet.members[i].stopped = false;
    }

    /// Everything works again.
    pub(crate) fn calm(&mut self, fleet: &mut Fleet) {
        for (_, link) in &fleet.links {
            link.set(Fault::None);
        }
        fleet.start();
    }

    pub(crate) fn faults(&self) -> u32 {
        self.told.values().sum()
    }

    /// What happened, and how often.
    pub(crate) fn told(&self) -> String {
        let all: Vec<String> = self.told.iter().map(|(k, n)| format!("{n}x {k}")).collect();
        all.join(", ")
    }

    pub(crate) fn takeovers(&self) -> Vec<f64> {
        let round = |s: &f64| (s * 10.0).round() / 10.0;
        self.takeovers.iter().map(round).collect()
    }
}
