//! The captured machine's files, as somebody on it saw them.

use crate::content::Content;
use crate::machine::ViewError;

/// Whose view of the files is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Viewer {
    /// The machine's own: that of its first process.
    #[default]
    Machine,
    /// That of a process, by its number.
    Process(u32),
    /// That of a mount namespace, by its inode number.
    Namespace(u64),
    /// That of a container: its name, or how its id begins.
    Container(String),
}

/// Why a viewer is not there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilesError {
    /// No such process.
    #[error("there is no process {0} in the list; see ramsift view pslist")]
    NoProcess(u32),
    /// No such namespace.
    #[error("no process is in mount namespace {0}; see ramsift view namespaces")]
    NoNamespace(u64),
    /// No such container; these there are.
    #[error("there is no container {wanted}")]
    NoContainer {
        /// What was asked for.
        wanted: String,
        /// Names of those that there are.
        there: Vec<String>,
    },
    /// The kernel's structures can't be read.
    #[error(transparent)]
    View(#[from] ViewError),
}

/// A time that is not known; no calendar has it.
pub const UNKNOWN_TIME: i64 = i64::MIN;

/// Metadata of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Kind and permissions, as POSIX has them (`S_IFMT` and below).
    pub mode: u64,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Bytes.
    pub size: u64,
    /// Pages of its content that are in memory.
    pub pages: u64,
    /// Pages that its whole content takes.
    pub pages_needed: u64,
    /// Last change of its content, microseconds since 1970-01-01 UTC; [`UNKNOWN_TIME`] where memory does not tell.
    pub modified: i64,
    /// Where a symbolic link leads to.
    pub target: Option<String>,
}

impl Metadata {
    /// Whether it is a regular file.
    pub fn is_regular(&self) -> bool {
        self.mode & 0o170_000 == 0o100_000
    }
}

/// The names that are in memory, as a tree, and what they lead to.
pub trait Files {
    /// What could not be read.
    fn doubts(&self) -> &[String];

    /// The node that a path names, links not followed; 0 is the root.
    fn find(&self, path: &str) -> Option<u32>;

    /// The path of a node.
    fn path(&self, node: u32) -> String;

    /// Its name: empty at the root; and whether the name was removed while something holds the file open.
    fn name(&self, node: u32) -> (String, bool);

    /// The nodes in a directory.
    fn children(&self, node: u32) -> Vec<u32>;

    /// Its metadata; `None` where the name is in memory and what it leads to is not.
    fn metadata(&self, node: u32) -> Option<Metadata>;

    /// Its content, holes included. What is doubtful is added to `doubts`.
    fn content(&self, node: u32, doubts: &mut Vec<String>) -> Result<Content, ViewError>;
}
