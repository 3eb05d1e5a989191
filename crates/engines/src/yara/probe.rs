//! Probes: the patterns of rules, without their conditions, compiled for searching chunks.
//!
//! ```text
//! rule r7 { strings: $_0 = "abc" wide  $_1 = { 01 02 }  condition: false }
//! ```
//!
//! yara-x searches all patterns of a set in one pass as soon as one condition asks for one, and
//! keeps their matches whether the rule fires or not. One rule that asks is added. With nothing to
//! decide, there is next to no code to generate when a worker loads the set, and nothing is
//! evaluated per chunk. `blocks::Scanner` would do too, but copies each match, and goes through all
//! earlier matches at each call.

use std::fmt::Write as _;

use yara_x::{Compiler, Rules};

use super::{info::RulesError, scan::RawMatch};

/// A set of rules' patterns.
pub(super) struct Probe {
    /// Rule ids, ascending.
    pub(super) rules: Vec<u32>,
    pub(super) compiled: Rules,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe")
            .field("rules", &self.rules.len())
            .finish_non_exhaustive()
    }
}

/// Makes yara-x search at all; its pattern isn't reported.
const ASKING: &str = "rule search { strings: $a = \"\\x01ramsift asks for a search\\x02\" \
                      condition: $a }\n";

impl Probe {
    /// Compiles the patterns of `rules`; `patterns` gives each rule's, as written after their name.
    pub(super) fn compile<'t>(
        rules: Vec<u32>,
        patterns: impl Fn(u32) -> &'t [String],
    ) -> Result<Self, RulesError> {
        let mut source = String::from(ASKING);
        for id in &rules {
            write!(source, "rule r{id} {{ strings:").ok();
            for (i, pattern) in patterns(*id).iter().enumerate() {
                // Names that start with `_` needn't be used in the condition.
                write!(source, "\n$_{i} {pattern}").ok();
            }
            source.push_str("\ncondition: false }\n");
        }
        let mut compiler = Compiler::new();
        // What was strict means the same so.
        compiler.relaxed_re_syntax(true);
        compiler
            .add_source(source.as_str())
            .map_err(|e| RulesError::Compile {
                reason: e.to_string(),
            })?;
        Ok(Self {
            rules,
            compiled: compiler.build(),
        })
    }

    /// Loads what [`Rules::serialize`] wrote.
    pub(super) fn load(rules: Vec<u32>, bytes: &[u8]) -> Result<Self, RulesError> {
        let compiled = Rules::deserialize(bytes).map_err(|e| RulesError::Compile {
            reason: e.to_string(),
        })?;
        Ok(Self { rules, compiled })
    }

    /// Goes through the matches of a scan: rule id, pattern number, matches by offset.
    pub(super) fn each_match(
        results: &yara_x::ScanResults<'_, '_>,
        mut found: impl FnMut(u32, u32, &mut dyn Iterator<Item = RawMatch>),
    ) {
        for rule in results.non_matching_rules() {
            let Some(id) = rule
                .identifier()
                .strip_prefix('r')
                .and_then(|n| n.parse().ok())
            else {
                continue;
            };
            for (number, pattern) in (0_u32..).zip(rule.patterns().include_private(true)) {
                let mut matches = pattern.matches().map(|m| {
                    let range = m.range();
                    RawMatch {
                        start: range.start,
                        end: range.end,
                        xor_key: m.xor_key(),
                    }
                });
                if matches.len() > 0 {
                    found(id, number, &mut matches);
                }
            }
        }
    }
}
