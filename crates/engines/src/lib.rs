//! Engines: YARA-X over chunks, whole images and recovered files, and ClamAV through clamd.
//!
//! An engine sees bytes and addresses only. Where the bytes come from and where findings go is the
//! business of the services.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod clamav;
pub mod yara;
