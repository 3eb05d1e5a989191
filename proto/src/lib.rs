//! Messages and services of ramsift, and the one place that maps errors to gRPC.
//!
//! The messages are the domain types of the services too: what travels through the queue or over
//! gRPC is stored as JSON in the same shape.

/// Version 1 of the messages.
#[allow(
    missing_docs,
    clippy::all,
    missing_debug_implementations,
    unreachable_pub
)]
pub mod v1 {
    tonic::include_proto!("ramsift.v1");
}

mod deployment;
pub mod task_id;

pub use deployment::Deployment;
pub use task_id::{TaskId, TaskIdError, view};

use v1::JobPhase;

impl JobPhase {
    /// The name that users see.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "unknown",
            Self::Queued => "queued",
            Self::Planning => "planning",
            Self::Running => "running",
            Self::Finalising => "finalising",
            Self::Complete => "complete",
            Self::CompleteWithGaps => "complete with gaps",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing more will happen to the job.
    pub fn is_final(self) -> bool {
        matches!(
            self,
            Self::Complete | Self::CompleteWithGaps | Self::Failed | Self::Cancelled
        )
    }
}

/// Messages larger than this are refused by client and server alike.
pub const MAX_MESSAGE: usize = 64 << 20;

/// Lists of one kind that a view may ask tasks for. At 48 MiB each this is more than any machine has.
pub const MAX_LISTS: u32 = 1 << 20;
