//! Where a capture's kernel is: the spots that lead to it, kept so that no view looks for them again.
//!
//! A job has it beside its plan. Views without a job keep it in a folder of the user's, under a
//! digest of the evidence's pin: another version of the evidence is another record.

use ramsift_layers::SourcePin;
use serde::{Deserialize, Serialize};

/// One spot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spot {
    /// `linux_banner`, `vmcoreinfo`, ...
    pub kind: String,
    /// First byte.
    pub image_offset: u64,
    /// The bytes that tell, hexadecimal.
    pub data: String,
}

/// The spots of one capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelRecord {
    /// Version of the program that looked.
    pub version: String,
    /// What it found.
    pub spots: Vec<Spot>,
}

/// Name of the record of a capture outside of jobs.
pub fn record_name(pin: &SourcePin) -> String {
    let pin = serde_json::to_vec(pin).unwrap_or_default();
    format!("{}.json", &blake3::hash(&pin).to_hex()[..32])
}
