//! Files of the captured machine as a tree: names of file objects that are in memory, below the letters of drives.
//!
//! Names are compared without regard to case, as Windows does. What nobody has open is not in it; a file that was opened and
//! has nothing in memory has a name and no content.

use super::cached::{Budget, OpenFile, Stream, open_files, stream};
use super::devices::Drives;
use super::{Kernel, WindowsError};
use crate::content::Content;
use crate::files::{Files, Metadata, UNKNOWN_TIME};
use crate::machine::ViewError;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Names at most.
const MOST: usize = 1 << 20;
/// Directories above a file at most.
const MAX_DEPTH: usize = 256;
/// A regular file and a directory, as POSIX numbers them.
const REGULAR: u64 = 0o100_000;
const DIRECTORY: u64 = 0o040_000;

#[derive(Debug, Default)]
struct Node {
    name: String,
    parent: u32,
    /// By the name in lower case.
    children: BTreeMap<String, u32>,
    file: Option<OpenFile>,
}

/// The tree.
#[derive(Debug)]
pub(super) struct Names<'k> {
    k: &'k Kernel<'k>,
    nodes: Vec<Node>,
    doubts: Vec<String>,
    budget: RefCell<Budget>,
}

impl<'k> Names<'k> {
    pub(super) fn new(k: &'k Kernel<'k>) -> Result<Self, WindowsError> {
        let mut doubts = Vec::new();
        let drives = Drives::new(k, &mut doubts);
        let mut out = Self {
            k,
            nodes: vec![Node::default()],
            doubts: Vec::new(),
            budget: RefCell::new(Budget::new(k)),
        };
        let mut left_out = 0usize;
        for f in open_files(k, &mut doubts)? {
            if let Some(path) = &f.path {
                let path = drives.place(path);
                left_out += usize::from(!out.insert(&path, f));
            }
        }
        if left_out > 0 {
            doubts.push(format!(
                "{left_out} names are left out: there are more than {MOST}, or they are deeper than {MAX_DEPTH}"
            ));
        }
        out.doubts = doubts;
        Ok(out)
    }

    /// Adds the file at a path; false where there is no room.
    fn insert(&mut self, path: &str, file: OpenFile) -> bool {
        let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
        if parts.len() > MAX_DEPTH || self.nodes.len() + parts.len() > MOST {
            return false;
        }
        let mut at = 0u32;
        for part in parts {
            let new = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
            let Some(above) = self.nodes.get_mut(at as usize) else {
                return false;
            };
            let next = *above.children.entry(part.to_lowercase()).or_insert(new);
            if next == new {
                self.nodes.push(Node {
                    name: part.to_owned(),
                    parent: at,
                    ..Node::default()
                });
            }
            at = next;
        }
        if let Some(node) = self.nodes.get_mut(at as usize) {
            // Of several objects of a file one that is in use and has content counts.
            let rank = |f: &OpenFile| (!f.freed, f.stream != 0);
            if node.file.as_ref().is_none_or(|f| rank(&file) > rank(f)) {
                node.file = Some(file);
            }
        }
        true
    }

    fn node(&self, id: u32) -> Option<&Node> {
        self.nodes.get(id as usize)
    }

    fn stream(&self, id: u32) -> Option<Stream> {
        stream(self.k, self.node(id)?.file.as_ref()?)
    }

    /// The content of a file: as data, else as a program.
    fn content_of(&self, s: &Stream, doubts: &mut Vec<String>) -> Option<Content> {
        let mut budget = self.budget.borrow_mut();
        s.content(self.k, &mut budget, doubts)
            .or_else(|| s.program(self.k, &mut budget))
    }
}

impl Files for Names<'_> {
    fn doubts(&self) -> &[String] {
        &self.doubts
    }

    fn find(&self, path: &str) -> Option<u32> {
        let parts = path.split(['/', '\\']).filter(|p| !p.is_empty());
        parts.into_iter().try_fold(0u32, |at, part| {
            self.node(at)?.children.get(&part.to_lowercase()).copied()
        })
    }

    fn path(&self, id: u32) -> String {
        let mut names = Vec::new();
        let mut at = id;
        // A directory is older than what is in it, so this ends.
        while let Some(n) = self.node(at).filter(|n| n.parent < at) {
            names.push(n.name.as_str());
            at = n.parent;
        }
        names.reverse();
        format!("/{}", names.join("/"))
    }

    fn name(&self, id: u32) -> (String, bool) {
        let Some(n) = self.node(id) else {
            return (String::new(), false);
        };
        let gone = n.file.as_ref().is_some_and(|f| f.delete_pending);
        (n.name.clone(), gone)
    }

    fn children(&self, id: u32) -> Vec<u32> {
        let own = self.node(id).map(|n| n.children.values().copied());
        own.into_iter().flatten().collect()
    }

    fn metadata(&self, id: u32) -> Option<Metadata> {
        let node = self.node(id)?;
        if !node.children.is_empty() || id == 0 {
            return Some(Metadata {
                mode: DIRECTORY,
                modified: UNKNOWN_TIME,
                ..Metadata::default()
            });
        }
        let content = self.content_of(&self.stream(id)?, &mut Vec::new())?;
        Some(Metadata {
            mode: REGULAR,
            size: content.size(),
            pages: content.present().div_ceil(4096),
            pages_needed: content.size().div_ceil(4096),
            modified: UNKNOWN_TIME,
            ..Metadata::default()
        })
    }

    fn content(&self, id: u32, doubts: &mut Vec<String>) -> Result<Content, ViewError> {
        let s = self.stream(id);
        let found = s.and_then(|s| self.content_of(&s, doubts));
        found.ok_or_else(|| {
            ViewError::new(format!(
                "nothing of the content of {} is in memory",
                self.path(id)
            ))
        })
    }
}
