//! Why a question about types has no answer.

/// The types have no such thing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TypeError {
    /// No type of that name.
    #[error("no type is named {name}")]
    NoType {
        /// The name.
        name: String,
    },
    /// The type has no such member.
    #[error("{ty} has no member {part} (asked for {path})")]
    NoField {
        /// The type that was searched.
        ty: String,
        /// The whole path.
        path: String,
        /// The part that is missing.
        part: String,
    },
    /// A path goes on behind something that has no members.
    #[error("{part} of {path} is a {ty}, which has no members")]
    NotComposite {
        /// The whole path.
        path: String,
        /// The part that has no members.
        part: String,
        /// Its type.
        ty: String,
    },
    /// A path indexes something else than an array, or past its end.
    #[error("{path} indexes {part} with {index}, a {ty}")]
    BadIndex {
        /// The whole path.
        path: String,
        /// The part.
        part: String,
        /// The index.
        index: String,
        /// Its type.
        ty: String,
    },
    /// A type is only named, or so tangled that it has no size.
    #[error("{name} has no size")]
    NoSize {
        /// The type.
        name: String,
    },
}
