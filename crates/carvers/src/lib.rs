//! Carvers.

pub mod api;
