//! `ramsift ls`, `cat` and `recover`: the captured machine's files, as far as they are in memory.

use crate::args::{CatArgs, LsArgs, RecoverArgs};
use crate::config::Config;
use crate::evidence;
use crate::symbols;
use anyhow::{Context, Result, anyhow, bail};
use ramsift_layers::run::RunMap;
use ramsift_os::linux::{FileTree, Inode, InodePages, Inodes, Kernel, Recovered, by_name};
use ramsift_structured_worker::with_kernel;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A capture and a path on the captured machine: `image.mem:/var/log`.
fn split(target: &str) -> (&str, &str) {
    match target.rfind(":/") {
        // The :// of a URL is none.
        Some(i) if !target[i + 1..].starts_with("//") => (&target[..i], &target[i + 1..]),
        _ => (target, "/"),
    }
}

/// Asks the kernel of the capture in `target` something about a path.
async fn ask<T: Send + 'static>(
    config: &Config,
    target: &str,
    question: impl FnOnce(&Kernel<'_>, &str) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (image, path) = split(target);
    let path = path.to_owned();
    let e = evidence::open(config, image).await?;
    let record = e.record(config).await;
    // An answer may be that something isn't there, which is no fault of the kernel's.
    let question = move |kernel: &Kernel<'_>, _: &RunMap| Ok(question(kernel, &path));
    let means = symbols::means(config).await?;
    let got = with_kernel(e.source.clone(), &e.plan, record.as_ref(), means, question).await?;
    e.keep(config, got.found.as_ref()).await;
    got.answer
}

/// Text of a hostile machine, without what could drive a terminal.
fn plain(s: &str) -> String {
    s.chars()
        .flat_map(|c| {
            let code = c.is_control().then(|| c.escape_default());
            let own = (!c.is_control()).then_some(c);
            own.into_iter().chain(code.into_iter().flatten())
        })
        .collect()
}

/// Mode bits as `ls -l` shows them.
fn mode(m: u64) -> String {
    let kind = match m & 0o170_000 {
        0o040_000 => 'd',
        0o120_000 => 'l',
        0o020_000 => 'c',
        0o060_000 => 'b',
        0o010_000 => 'p',
        0o140_000 => 's',
        _ => '-',
    };
    let mut out = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = m >> shift;
        out.push(if bits & 4 != 0 { 'r' } else { '-' });
        out.push(if bits & 2 != 0 { 'w' } else { '-' });
        out.push(match (bits & 1 != 0, m & special != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    out
}

fn line(inodes: &Inodes<'_>, inode: u64, name: &str) -> String {
    let Some(i) = (inode != 0).then(|| inodes.read(inode).ok()).flatten() else {
        return format!("?????????? {:>42}  {}\n", "", plain(name));
    };
    let time = jiff::Timestamp::from_microsecond(i.modified).map_or_else(
        |_| "-".to_owned(),
        |t| t.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
    );
    let cached = match i.pages_needed() {
        0 => "-".to_owned(),
        n => format!("{}%", i.pages.min(n) * 100 / n),
    };
    let cached = if i.is_regular() { cached.as_str() } else { "-" };
    let mut out = format!(
        "{} {:>5} {:>5} {:>12} {cached:>5} {time}  {}",
        mode(i.mode),
        i.uid,
        i.gid,
        i.size,
        plain(name)
    );
    if let Some(target) = inodes.target(&i) {
        let _ = write!(out, " -> {}", plain(&target));
    }
    out.push('\n');
    out
}

/// `ramsift ls`: mode, owner, group, size, share of it in memory, last change, name.
pub(crate) async fn ls(config: &Config, args: LsArgs) -> Result<u8> {
    let recursive = args.recursive;
    let (out, doubts) = ask(config, &args.target, move |kernel, path| {
        let tree = FileTree::new(kernel)?;
        let inodes = Inodes::new(kernel)?;
        let start = tree
            .find(path)
            .ok_or_else(|| anyhow!("{path} is not in the capture's memory"))?;
        let mut out = String::new();
        let mut todo = vec![start];
        while let Some(at) = todo.pop() {
            let mut all: Vec<_> = tree.children(at).collect();
            all.sort_by(|a, b| a.1.name.cmp(&b.1.name));
            if all.is_empty() && at == start {
                let n = tree
                    .node(at)
                    .map_or((0, ""), |n| (n.inode, n.name.as_str()));
                out.push_str(&line(&inodes, n.0, n.1));
            }
            if recursive && !all.is_empty() {
                let _ = writeln!(out, "{}:", plain(&tree.path(at)));
            }
            for (_, n) in &all {
                let mark = if n.deleted { " (deleted)" } else { "" };
                out.push_str(&line(&inodes, n.inode, &format!("{}{mark}", n.name)));
            }
            if recursive {
                let below = all.iter().rev().map(|(id, _)| *id);
                todo.extend(below.filter(|id| tree.children(*id).next().is_some()));
            }
        }
        Ok((out, tree.doubts))
    })
    .await?;
    print!("{out}");
    Ok(told(&doubts))
}

fn told(doubts: &[String]) -> u8 {
    for d in doubts {
        eprintln!("doubtful: {d}");
    }
    if doubts.is_empty() { 0 } else { 3 }
}

/// Symbolic links that are followed on the way to one file, as the kernel's own limit.
const LINKS: usize = 40;

/// The inode that a path leads to, links followed.
fn resolve(kernel: &Kernel<'_>, path: &str) -> Result<Inode> {
    let tree = FileTree::new(kernel)?;
    let inodes = Inodes::new(kernel)?;
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        let id = tree
            .find(&path)
            .ok_or_else(|| anyhow!("{path} is not in the capture's memory"))?;
        let node = tree.node(id).map_or(0, |n| n.inode);
        if node == 0 {
            bail!("{path}: its name is in memory, its inode is not");
        }
        let inode = inodes
            .read(node)
            .with_context(|| format!("inode of {path}"))?;
        let Some(target) = inodes.target(&inode) else {
            return Ok(inode);
        };
        path = if target.starts_with('/') {
            target
        } else {
            let folder = path.rsplit_once('/').map_or("", |(f, _)| f);
            format!("{folder}/{target}")
        };
    }
    bail!("more than {LINKS} symbolic links on the way")
}

/// `ramsift cat`: what is not in memory is zeros, and is told on standard error; exit code 3 then.
pub(crate) async fn cat(config: &Config, args: CatArgs) -> Result<u8> {
    let (lost, doubts) = ask(config, &args.target, |kernel, path| {
        let inode = resolve(kernel, path)?;
        if !inode.is_regular() {
            bail!("{path} is no regular file");
        }
        let mut doubts = Vec::new();
        let content = InodePages::new(kernel)?.content(&inode, &mut doubts)?;
        let mut out = io::BufWriter::new(io::stdout().lock());
        let lost = content.write(kernel.space.memory(), &mut out)?;
        out.flush()?;
        Ok((lost, doubts))
    })
    .await?;
    for r in &lost {
        eprintln!("not in memory, zeros: bytes {:#x} to {:#x}", r.start, r.end);
    }
    let code = told(&doubts);
    Ok(if lost.is_empty() { code } else { 3 })
}

/// The place of a recovered file below a folder: no name of the captured machine leads out of it.
fn place(dir: &Path, name: &str) -> PathBuf {
    let mut out = dir.to_owned();
    let mut any = false;
    for part in name.split('/').filter(|p| !p.is_empty() && *p != ".") {
        let safe: String = part
            .chars()
            .map(|c| if c.is_control() { '_' } else { c })
            .take(200)
            .collect();
        out.push(if safe == ".." { "__".to_owned() } else { safe });
        any = true;
    }
    if !any {
        out.push("unnamed");
    }
    out
}

/// One line of the list of what was recovered.
#[derive(serde::Serialize)]
struct Listed {
    path: String,
    file: String,
    inode: u64,
    size: u64,
    present: u64,
    /// Of whole files only.
    sha256: Option<String>,
    holes: Vec<(u64, u64)>,
}

/// Writes one file, holes as holes.
fn write(kernel: &Kernel<'_>, dir: &Path, r: &Recovered) -> io::Result<Listed> {
    let mut path = place(dir, &r.name);
    // Two inodes can have one name, and a file can have that of a folder.
    let wanted = path.clone();
    let mut n = 1;
    while path.exists() {
        n += 1;
        path = wanted.with_file_name(format!(
            "{}.{n}",
            wanted.file_name().unwrap_or_default().to_string_lossy()
        ));
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let file = File::create_new(&path)?;
    file.set_len(r.content.size())?;
    let mut hash = Sha256::new();
    let lost = r.content.pieces(kernel.space.memory(), &mut |at, piece| {
        hash.update(piece);
        file.write_all_at(piece, at)
    })?;
    let missing: u64 = lost.iter().map(|l| l.end - l.start).sum();
    Ok(Listed {
        path: r.name.clone(),
        file: path.display().to_string(),
        inode: r.object,
        size: r.content.size(),
        present: r.content.size() - missing,
        sha256: lost.is_empty().then(|| hex::encode(hash.finalize())),
        holes: lost.iter().map(|l| (l.start, l.end)).collect(),
    })
}

/// `ramsift recover`: every cached file below a path, and a list of them with their holes.
pub(crate) async fn recover(config: &Config, args: RecoverArgs) -> Result<u8> {
    let dir = args.dir.clone();
    fs::create_dir_all(&dir).with_context(|| format!("folder {}", dir.display()))?;
    let (files, whole, doubts) = ask(config, &args.target, move |kernel, path| {
        let recover = by_name("linux/pagecache_files")
            .and_then(|v| v.recover)
            .context("this build has no view of the page cache")?;
        let below = format!("{}/", path.trim_end_matches('/'));
        let mut list = io::BufWriter::new(File::create(dir.join("files.jsonl"))?);
        let (mut files, mut whole, mut failed) = (0u64, 0u64, None);
        let mut doubts = Vec::new();
        let root = dir.join("files");
        recover(kernel, &mut doubts, &mut |r| {
            if below != "/" && !r.name.starts_with(&below) && r.name != path {
                return ControlFlow::Continue(());
            }
            let done = write(kernel, &root, &r).and_then(|l| {
                whole += u64::from(l.sha256.is_some());
                serde_json::to_writer(&mut list, &l)?;
                list.write_all(b"\n")
            });
            files += 1;
            match done {
                Ok(()) => ControlFlow::Continue(()),
                Err(e) => {
                    failed = Some(format!("{}: {e}", r.name));
                    ControlFlow::Break(())
                }
            }
        })?;
        list.flush()?;
        match failed {
            Some(why) => Err(anyhow!(why)),
            None => Ok((files, whole, doubts)),
        }
    })
    .await?;
    println!(
        "{files} files, {whole} of them whole, in {}; their holes are in {}",
        args.dir.join("files").display(),
        args.dir.join("files.jsonl").display()
    );
    Ok(told(&doubts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_an_image_and_a_path() {
        assert_eq!(split("a.mem:/var/log"), ("a.mem", "/var/log"));
        assert_eq!(split("s3://b/a.mem"), ("s3://b/a.mem", "/"));
        assert_eq!(split("s3://b/a.mem:/etc"), ("s3://b/a.mem", "/etc"));
        assert_eq!(split("/tmp/a.mem"), ("/tmp/a.mem", "/"));
    }

    #[test]
    fn names_do_not_lead_out() {
        let dir = Path::new("/out");
        assert_eq!(place(dir, "/../../etc/x"), Path::new("/out/__/__/etc/x"));
        assert_eq!(place(dir, "//"), Path::new("/out/unnamed"));
        assert_eq!(place(dir, "/a\u{1b}b/./c"), Path::new("/out/a_b/c"));
    }

    #[test]
    fn modes_as_ls_shows_them() {
        assert_eq!(mode(0o100_644), "-rw-r--r--");
        assert_eq!(mode(0o104_755), "-rwsr-xr-x");
        assert_eq!(mode(0o041_777), "drwxrwxrwt");
        assert_eq!(mode(0o120_777), "lrwxrwxrwx");
    }
}
