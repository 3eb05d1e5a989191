//! What is known of a rule apart from its compiled form.

use std::{fmt, path::PathBuf};

use ramsift_layers::Severity;
use serde::{Deserialize, Serialize};

/// A value in a rule's `meta` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum MetaValue {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A number with a fraction.
    Float(f64),
    /// Text; bytes that aren't UTF-8 are replaced.
    Text(String),
}

impl fmt::Display for MetaValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(v) => write!(f, "{v}"),
            Self::Integer(v) => write!(f, "{v}"),
            Self::Float(v) => write!(f, "{v}"),
            Self::Text(v) => f.write_str(v),
        }
    }
}

/// What a memory-safe condition asks of its patterns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ConditionKind {
    /// Only whether they occur: one match per pattern and chunk decides it.
    Presence,
    /// How often, where or how long (`#`, `@`, `!`, `at`, `in`): every match counts.
    Positional,
}

/// Where a rule can be decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RuleClass {
    /// Over any address space that is scanned in pieces, and on files.
    MemorySafe {
        /// What has to be collected for its condition.
        condition: ConditionKind,
    },
    /// On whole files only.
    FileOriented,
}

impl RuleClass {
    /// Whether chunks are searched for the rule's patterns.
    pub fn is_memory_safe(self) -> bool {
        matches!(self, Self::MemorySafe { .. })
    }

    /// Whether every match has to be collected.
    pub fn is_positional(self) -> bool {
        matches!(
            self,
            Self::MemorySafe {
                condition: ConditionKind::Positional
            }
        )
    }

    /// The name used in listings and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MemorySafe {
                condition: ConditionKind::Presence,
            } => "memory-safe (presence)",
            Self::MemorySafe {
                condition: ConditionKind::Positional,
            } => "memory-safe (positional)",
            Self::FileOriented => "file-oriented",
        }
    }
}

impl fmt::Display for RuleClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One rule of a set. Its position in [`RuleSet::rules`](super::RuleSet::rules) is its id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuleInfo {
    /// Position in the set.
    pub id: u32,
    /// The file the rule was loaded for; rules see only rules of their own namespace.
    pub namespace: String,
    /// The rule's name.
    pub identifier: String,
    /// Its tags, as written.
    pub tags: Vec<String>,
    /// Its metadata, in order.
    pub meta: Vec<(String, MetaValue)>,
    /// The file that holds its text, as the user named it.
    pub file: String,
    /// Line of its name, from 1; 0 where the source isn't known.
    pub line: u32,
    /// Never reported by itself.
    pub private: bool,
    /// A condition on every rule of its namespace.
    pub global: bool,
    /// Where it can be decided.
    pub class: RuleClass,
    /// Why it has this class, and which of its patterns have no bound on their length.
    pub reasons: Vec<String>,
    /// How loud a finding of this rule is before its scope is looked at.
    #[serde(with = "severity_name")]
    pub severity: Severity,
    /// What the severity was taken from.
    pub severity_reason: String,
    /// Names of its patterns, `$` included; a position here is a pattern number elsewhere.
    pub patterns: Vec<String>,
    /// Rules that its condition names.
    pub references: Vec<u32>,
    /// It asks for the name of a file, or the like: on files it means more than in memory.
    #[serde(default)]
    pub asks_of_files: bool,
}

impl RuleInfo {
    /// Whether it is worth running on a file whose bytes were searched in the image already.
    pub fn is_for_files(&self) -> bool {
        !self.class.is_memory_safe() || self.asks_of_files
    }

    /// `namespace:identifier`, for messages.
    pub fn full_name(&self) -> String {
        format!("{}:{}", self.namespace, self.identifier)
    }
}

mod severity_name {
    use ramsift_layers::Severity;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(v: &Severity, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(v.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Severity, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

/// A rule, or a file of rules, that can't be used. The rest of the set runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleError {
    /// The file, as the user named it.
    pub file: String,
    /// Line, from 1; 0 when the file as a whole is at fault.
    pub line: u32,
    /// Column, from 1; 0 when unknown.
    pub column: u32,
    /// The rule's name, when known.
    pub rule: Option<String>,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
            if self.column > 0 {
                write!(f, ":{}", self.column)?;
            }
        }
        if let Some(rule) = &self.rule {
            write!(f, ": rule {rule}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// A set of rules can't be loaded at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RulesError {
    /// A path that the user named can't be read.
    #[error("can't read rules from {path}: {source}")]
    Read {
        /// The path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The bytes aren't a serialised rule set of this version.
    #[error("not a rule set of this version ({reason}): load the rules from their sources again")]
    Format {
        /// What was found instead.
        reason: String,
    },
    /// yara-x refuses what it compiled before.
    #[error("yara-x can't compile or load its own rules: {reason}")]
    Compile {
        /// yara-x's words.
        reason: String,
    },
}
