//! Progress: bars on a terminal, plain lines otherwise.

use crate::terminal::{Shown, tell};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use ramsift_proto::v1::JobProgress;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Shows one job's progress.
pub(crate) struct Display {
    bar: Option<ProgressBar>,
    name: String,
    said: Option<Instant>,
    last: String,
    quiet: bool,
}

/// How fast a job goes, and how long it still takes where that is known.
pub(crate) fn pace(p: &JobProgress) -> String {
    let speed = p.bytes_done as f64 / p.running_seconds.max(0.001);
    let eta = if p.eta_seconds >= 0.0 && p.bytes_done < p.bytes_total {
        format!(", eta {:.0} s", p.eta_seconds)
    } else {
        String::new()
    };
    format!("{}/s{eta}", HumanBytes(speed as u64))
}

/// What keeps a job from going on.
fn waits(p: &JobProgress) -> String {
    if p.waits_for.is_empty() {
        return String::new();
    }
    format!("; {}", Shown(p.waits_for.join("; ")))
}

/// Plain lines come this often at most.
const EVERY: Duration = Duration::from_secs(5);

impl Display {
    /// `quiet`: one of several that run side by side; only how each ends is said, elsewhere.
    pub(crate) fn new(name: &str, quiet: bool) -> Self {
        let name = &Shown(name).to_string();
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template(
                "{prefix} [{bar:32}] {bytes}/{total_bytes} {bytes_per_sec} eta {eta} {msg}",
            );
            if let Ok(s) = style {
                bar.set_style(s.progress_chars("=> "));
            }
            bar.set_prefix(name.to_owned());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self {
            bar,
            name: name.to_owned(),
            said: None,
            last: String::new(),
            quiet,
        }
    }

    /// Shows where the job stands.
    pub(crate) fn show(&mut self, p: &JobProgress) {
        let phase = p.state.as_ref().map_or("", |s| s.phase().name());
        if let Some(bar) = &self.bar {
            bar.set_length(p.bytes_total);
            bar.set_position(p.bytes_done);
            bar.set_message(format!("{phase}{}", waits(p)));
            return;
        }
        if self.quiet {
            return;
        }
        let line = self.line(p, phase);
        let due = self.said.is_none_or(|t| t.elapsed() >= EVERY) || phase != self.last;
        if due {
            tell!("{line}");
            self.said = Some(Instant::now());
            phase.clone_into(&mut self.last);
        }
    }

    fn line(&self, p: &JobProgress, phase: &str) -> String {
        format!(
            "{}: {phase}{}, {} of {} ({}), {} of {} tasks{}{}",
            self.name,
            if p.stage.is_empty() || p.stage == phase {
                String::new()
            } else {
                format!(" ({})", Shown(&p.stage))
            },
            HumanBytes(p.bytes_done),
            HumanBytes(p.bytes_total),
            pace(p),
            p.tasks_done,
            p.tasks_total,
            match p.tasks_failed {
                0 => String::new(),
                n => format!(", {n} failed"),
            },
            waits(p)
        )
    }

    /// Says something that stays, beside the bar.
    pub(crate) fn note(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| tell!("{}: {line}", self.name)),
            None => tell!("{}: {line}", self.name),
        }
    }

    /// Takes the bar away.
    pub(crate) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
