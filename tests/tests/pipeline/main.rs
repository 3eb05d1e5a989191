//! The pipeline against real servers. One binary: everything heavy is linked once.

mod analyst;
mod artifacts;
mod conformance;
mod containers;
mod convert;
mod distributed;
mod embedded;
mod faults;
mod helm;
mod inspect;
mod kernels;
mod machines;
mod measure;
mod memory;
mod packed;
mod security;
mod sparse;
mod structured;
mod telemetry;
mod tls;
mod windows;
mod yara_oracle;
