//! What can be wrong with BTF.

use ramsift_layers::translate::PhysError;

/// Why bytes are not BTF. Offsets count from the start of the blob.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BtfError {
    /// The first bytes are no header.
    #[error("BTF header at {at:#x}: expected {expected}, found {found}")]
    Header {
        /// Offset in the blob.
        at: usize,
        /// What the format has there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// The blob was made for a big-endian machine.
    #[error("BTF header at 0x0: the blob is big-endian, which is not supported")]
    BigEndian,
    /// The blob ends early.
    #[error("BTF: {what} at {at:#x} needs {needed:#x} bytes, the blob has {len:#x}")]
    Truncated {
        /// What is cut.
        what: &'static str,
        /// Its offset.
        at: usize,
        /// Its bytes.
        needed: usize,
        /// Bytes of the blob.
        len: usize,
    },
    /// A type is not as the format has it.
    #[error("BTF type {id} at {at:#x}: expected {expected}, found {found}")]
    Type {
        /// Its number.
        id: u32,
        /// Offset in the blob.
        at: usize,
        /// What the format has there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// The blob is sound, and not that of a kernel.
    #[error("BTF: {types} types, but no struct {missing}")]
    NotAKernel {
        /// How many types there are.
        types: usize,
        /// A struct that every kernel has.
        missing: &'static str,
    },
    /// The blob is not in the image.
    #[error("BTF can't be read: {0}")]
    Read(#[from] PhysError),
}
