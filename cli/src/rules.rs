//! `ramsift rules`: where each rule can run and why, and sets compiled into one file.

use crate::args::RulesCommand;
use crate::terminal::{Shown, say};
use anyhow::{Context, Result, bail};
use ramsift_engines::yara::{RuleClass, RuleSet, load_rules};
use std::path::{Path, PathBuf};

/// Some of the rules can't be used.
const BAD_RULES: u8 = 1;

/// Runs the command. Returns the exit code.
pub(crate) fn run(command: RulesCommand) -> Result<u8> {
    match command {
        RulesCommand::Check { paths, define, all } => check(&paths, &define, all),
        RulesCommand::Compile {
            paths,
            output,
            define,
        } => compile(&paths, &output, &define),
    }
}

/// Loads rules and says what is wrong with them.
fn load(paths: &[PathBuf], define: &[String]) -> Result<RuleSet> {
    let set = load_rules(paths, crate::setup::defines(define)?)?;
    for w in set.warnings() {
        say!("warning  {}", Shown(w.to_string()));
    }
    for e in set.errors() {
        say!("error  {}", Shown(e.to_string()));
    }
    Ok(set)
}

fn outcome(set: &RuleSet) -> u8 {
    if set.errors().is_empty() {
        0
    } else {
        BAD_RULES
    }
}

fn compile(paths: &[PathBuf], output: &Path, define: &[String]) -> Result<u8> {
    let set = load(paths, define)?;
    if set.rules().is_empty() {
        bail!("none of the rules can be used");
    }
    let bytes = set.to_bytes();
    // Whole or not at all: a scan may read it at any time.
    let mut fresh = output.as_os_str().to_owned();
    fresh.push(".new");
    std::fs::write(&fresh, &bytes)
        .and_then(|()| std::fs::rename(&fresh, output))
        .with_context(|| format!("can't write {}", output.display()))?;
    say!(
        "{} rules, {} errors, {} bytes in {}",
        set.rules().len(),
        set.errors().len(),
        bytes.len(),
        Shown(output.display().to_string())
    );
    say!("digest {}", hex::encode(set.digest()));
    Ok(outcome(&set))
}

fn check(paths: &[PathBuf], define: &[String], all: bool) -> Result<u8> {
    let set = load(paths, define)?;
    let mut sums = std::collections::BTreeMap::<&str, usize>::new();
    for r in set.rules() {
        *sums.entry(r.class.as_str()).or_default() += 1;
        let noted = matches!(r.class, RuleClass::FileOriented) || !r.reasons.is_empty();
        if all || noted {
            say!(
                "{}  {}  severity {} ({}){}",
                r.class,
                Shown(r.full_name()),
                r.severity,
                Shown(&r.severity_reason),
                r.reasons
                    .iter()
                    .map(|w| format!("; {}", Shown(w)))
                    .collect::<String>()
            );
        }
    }
    say!("{} rules, {} errors", set.rules().len(), set.errors().len());
    for (class, n) in sums {
        say!("  {n} {class}");
    }
    say!("digest {}", hex::encode(set.digest()));
    Ok(outcome(&set))
}
