//! Files of the page cache by their names, for views that read what is in them.
//!
//! Pages that aren't in memory are gaps: what is read comes in pieces, and nothing is joined across a gap.

use crate::linux::inode::{Inode, Pages};
use crate::linux::pagecache::Namer;
use crate::linux::path::DELETED;
use crate::linux::{Content, Kernel, LinuxError};
use std::collections::HashMap;
use std::ops::ControlFlow;

/// Bytes of a file that are read at most.
const MAX: u64 = 64 << 20;

/// A cached file.
#[derive(Clone, Debug)]
pub(in crate::linux) struct CachedFile {
    /// Its path, ` (deleted)` behind it if its name is gone.
    pub(in crate::linux) path: String,
    pub(in crate::linux) inode: Inode,
    /// What of it is in memory, in order and with gaps between.
    pub(in crate::linux) pieces: Vec<Piece>,
    content: Content,
}

/// Bytes that follow each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::linux) struct Piece {
    /// Place of the first one in the file.
    pub(in crate::linux) offset: u64,
    pub(in crate::linux) bytes: Vec<u8>,
    /// Whether the file goes on behind it.
    pub(in crate::linux) goes_on: bool,
}

impl CachedFile {
    /// Its path without the mark of a deleted file.
    pub(in crate::linux) fn name(&self) -> &str {
        self.path.strip_suffix(DELETED).unwrap_or(&self.path)
    }

    /// The physical address of one of its bytes.
    pub(in crate::linux) fn physical(&self, offset: u64) -> Option<u64> {
        self.content.at(offset).map(|p| p.0)
    }
}

/// The regular files with a path that is wanted and with pages in memory, by path. Doubts are about these
/// alone: linux/pagecache_files tells the others.
pub(in crate::linux) fn cached_files(
    kernel: &Kernel<'_>,
    doubts: &mut Vec<String>,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<Vec<CachedFile>, LinuxError> {
    let pages = Pages::new(kernel)?;
    let namer = Namer::new(kernel, &mut Vec::new())?;
    let mut out = Vec::new();
    namer.each(&mut Vec::new(), &mut |i, _, others| {
        if !i.is_regular() || i.pages == 0 || i.size <= 0 {
            return ControlFlow::Continue(());
        }
        let names = namer.paths(i, others).into_iter();
        let path = names
            .map(|n| n.0)
            .find(|n| wanted(n.strip_suffix(DELETED).unwrap_or(n)));
        if let Some(path) = path {
            match pages.content(i, doubts) {
                Ok(content) => out.push(read(kernel, path, *i, content, doubts)),
                Err(e) => doubts.push(format!("{path} (inode at {:#x}): {e}", i.va)),
            }
        }
        ControlFlow::Continue(())
    });
    out.sort_by(|a, b| (&a.path, a.inode.va).cmp(&(&b.path, b.inode.va)));
    Ok(out)
}

fn read(
    kernel: &Kernel<'_>,
    path: String,
    inode: Inode,
    content: Content,
    doubts: &mut Vec<String>,
) -> CachedFile {
    let mut pieces: Vec<Piece> = Vec::new();
    let (mut size, mut cut) = (0, false);
    // Writing to a Vec can't fail, and what ends it is the limit.
    let _ = content.pieces(kernel.space.memory(), &mut |at, bytes| {
        if size + bytes.len() as u64 > MAX {
            cut = true;
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        size += bytes.len() as u64;
        match pieces.last_mut() {
            Some(p) if p.offset + p.bytes.len() as u64 == at => p.bytes.extend_from_slice(bytes),
            _ => pieces.push(Piece {
                offset: at,
                bytes: bytes.to_vec(),
                goes_on: false,
            }),
        }
        Ok(())
    });
    for p in &mut pieces {
        p.goes_on = p.offset + (p.bytes.len() as u64) < content.size();
    }
    if cut {
        doubts.push(format!("{path}: only {size} bytes of it are read"));
    }
    CachedFile {
        path,
        inode,
        pieces,
        content,
    }
}

/// Users of the machine, as its `/etc/passwd` has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::linux) struct Users {
    names: HashMap<u64, String>,
    homes: HashMap<String, String>,
}

/// Where they are.
pub(in crate::linux) const PASSWD: &str = "/etc/passwd";

impl Users {
    /// Those of whichever of the files is the machine's list.
    pub(in crate::linux) fn of(files: &[CachedFile]) -> Self {
        let mut out = Self::default();
        for p in files
            .iter()
            .filter(|f| f.path == PASSWD)
            .flat_map(|f| &f.pieces)
        {
            out.read(&p.bytes, p.offset > 0);
        }
        out
    }

    /// `name:password:uid:gid:comment:home:shell`, a user a line; the first line of a piece from the middle
    /// is none.
    fn read(&mut self, bytes: &[u8], middle: bool) {
        for line in bytes.split(|b| *b == b'\n').skip(usize::from(middle)) {
            let line = String::from_utf8_lossy(line);
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, uid, _, _, home, _] = fields[..] else {
                continue;
            };
            let Ok(uid) = uid.parse() else { continue };
            self.names.entry(uid).or_insert_with(|| name.to_owned());
            if home != "/" {
                let home = home.trim_end_matches('/').to_owned();
                self.homes.entry(home).or_insert_with(|| name.to_owned());
            }
        }
    }

    /// The name of a user.
    pub(in crate::linux) fn name(&self, uid: u64) -> Option<&str> {
        match self.names.get(&uid) {
            Some(name) => Some(name),
            None if uid == 0 => Some("root"),
            None => None,
        }
    }

    /// Whose home a path leads into: by the list of users, or as homes are called.
    pub(in crate::linux) fn owner<'p>(&'p self, path: &'p str) -> Option<&'p str> {
        path.match_indices('/').find_map(|(at, _)| {
            let home = path.get(..at)?;
            if let Some(name) = self.homes.get(home) {
                return Some(name.as_str());
            }
            let (above, name) = home.rsplit_once('/')?;
            match name {
                "root" => Some(name),
                _ if above == "/home" || above.ends_with("/home") => Some(name),
                _ => None,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_tell_users() {
        let mut u = Users::default();
        u.read(
            b"root:x:0:0:root:/root:/bin/bash\nweb:x:33:33:web,,,:/var/www/:/bin/sh\nbroken:x:9\n",
            false,
        );
        assert_eq!(
            (u.name(33), u.name(7), u.name(0)),
            (Some("web"), None, Some("root"))
        );
        for (path, user) in [
            ("/root/.bash_history", Some("root")),
            ("/var/www/.bash_history", Some("web")),
            ("/home/eve/.local/share/fish/fish_history", Some("eve")),
            (
                "/var/lib/docker/overlay2/1f/diff/root/.ash_history",
                Some("root"),
            ),
            ("/tmp/.bash_history", None),
            ("/.bash_history", None),
        ] {
            assert_eq!(u.owner(path), user, "{path}");
        }
    }
}
