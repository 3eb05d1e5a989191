//! Engines: YARA-X over chunks, whole images and recovered files, and ClamAV through clamd.
//!
//! An engine sees bytes and addresses only. Where the bytes come from and where findings go is the
//! business of the services.

pub mod clamav;
pub mod yara;
