//! A loaded set of rules.
use std::path::PathBuf;
use super::info::{RuleError, RuleInfo, RulesError};

/// Loads.
pub fn load_rules(_paths: &[PathBuf]) -> Result<RuleSet, RulesError> { unimplemented!() }

/// Rules. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RuleSet {}

impl RuleSet {
    /// Every rule; index = rule id.
    pub fn rules(&self) -> &[RuleInfo] { unimplemented!() }
    /// What couldn't be loaded.
    pub fn errors(&self) -> &[RuleError] { unimplemented!() }
    /// Digest of sources, yara-x version, classification version.
    pub fn digest(&self) -> [u8; 32] { unimplemented!() }
    /// Longest possible match of a bounded pattern, in bytes: the least overlap for the chunk pass.
    pub fn longest_match(&self) -> u64 { unimplemented!() }
    /// For workers.
    pub fn to_bytes(&self) -> Vec<u8> { unimplemented!() }
    /// From `to_bytes`.
    pub fn from_bytes(_bytes: &[u8]) -> Result<Self, RulesError> { unimplemented!() }
}
