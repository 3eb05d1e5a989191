//! Addresses, one type per space, so that a file offset can't be taken for a physical address.
//!
//! | type | counts | from |
//! | --- | --- | --- |
//! | [`FileOffset`] | bytes | the start of the file or object that holds the capture |
//! | [`ImageOffset`] | bytes | the start of the decoded runs, laid end to end in physical order |
//! | [`PhysAddr`] | bytes | physical address 0 of the captured machine |
//! | [`VirtAddr`] | bytes | address 0 of one address space of the captured machine |

use std::fmt;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// This address moved up by `n` bytes, or `None` past the end of the 64-bit space.
            pub fn checked_add(self, n: u64) -> Option<Self> {
                self.0.checked_add(n).map(Self)
            }

            /// This address moved up by `n` bytes; stops at the end of the 64-bit space.
            #[must_use]
            pub fn saturating_add(self, n: u64) -> Self {
                Self(self.0.saturating_add(n))
            }

            /// This address moved down by `n` bytes; stops at 0.
            #[must_use]
            pub fn saturating_sub(self, n: u64) -> Self {
                Self(self.0.saturating_sub(n))
            }

            /// Bytes from `earlier` to here; 0 when `earlier` is in fact later.
            pub fn since(self, earlier: Self) -> u64 {
                self.0.saturating_sub(earlier.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl From<u64> for $name {
            fn from(v: u64) -> Self {
                Self(v)
            }
        }
    };
}

address!(
    /// A position in the file or object that holds the capture, container headers included.
    FileOffset
);
address!(
    /// A position in the decoded runs laid end to end in physical order: the one coordinate of
    /// chunks, ownership, coverage and finding ids. Equals the file offset in a raw image.
    ImageOffset
);
address!(
    /// A physical address of the captured machine.
    PhysAddr
);
address!(
    /// A virtual address in one address space of the captured machine.
    VirtAddr
);
address!(
    /// Physical address of a top-level page table, without flag bits.
    Dtb
);
