//! Views of real captures against what the captured machine wrote about itself.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;
mod files;
mod forged;
mod frames;
mod hostile;
mod images;
mod integrity;
mod kernel;
mod kexec;
mod logins;
mod memory;
mod modules;
mod network;
mod places;
mod processes;
mod shell;
mod system;
mod tasks;
mod torn;
