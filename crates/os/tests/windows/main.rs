//! Views of Windows against machines that the generator made: what it put into them is the truth.
#![allow(clippy::unwrap_used, missing_docs)]

mod anchors;
mod common;
mod dumps;
mod files;
mod frames;
mod hostile;
mod kernel;
mod nearest;
mod paging;
mod processes;
mod registry;
mod views;
