//! What the integration tests, the examples and the fuzz targets share.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

pub(crate) mod blob;
pub(crate) mod capture;
pub(crate) mod fuzz;
pub(crate) mod seeds;
pub(crate) mod synthetic;
