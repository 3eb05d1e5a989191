//! `ramsift rules check`: where each rule can run, and why.

use crate::args::RulesCommand;
use crate::terminal::{Shown, say};
use anyhow::Result;
use ramsift_engines::yara::{RuleClass, load_rules};

/// Some of the rules can't be used.
const BAD_RULES: u8 = 1;

/// Runs the command. Returns the exit code.
pub(crate) fn run(command: RulesCommand) -> Result<u8> {
    let RulesCommand::Check { paths, define, all } = command;
    let set = load_rules(&paths, crate::glue::defines(&define)?)?;
    for w in set.warnings() {
        say!("warning  {}", Shown(w.to_string()));
    }
    for e in set.errors() {
        say!("error  {}", Shown(e.to_string()));
    }
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
    Ok(if set.errors().is_empty() {
        0
    } else {
        BAD_RULES
    })
}
