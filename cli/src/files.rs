//! `ramsift ls`, `cat` and `recover`: the captured machine's files, as far as they are in memory.

use crate::args::{AsArgs, CatArgs, EvidenceArgs, Format, LsArgs, ProcdumpArgs, RecoverArgs, Rows};
use crate::config::Config;
use crate::evidence::{self, Evidence, Named};
use crate::results::quote;
use crate::symbols;
use crate::terminal::{self, Shown, say, tell};
use crate::view::DOUBTFUL;
use anyhow::{Context, Result, anyhow, bail};
use ramsift_layers::run::RunMap;
use ramsift_os::linux::{
    FileTree, Inode, InodePages, Inodes, Kernel, LinuxView, Object, Recovered, VIEWS, by_name,
};
use ramsift_os::table::Value;
use ramsift_store::query::{QueryLimits, Tables};
use ramsift_store::{Keys, Objects};
use ramsift_structured_worker::{table_name, with_kernel};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    place: &EvidenceArgs,
    question: impl FnOnce(&Kernel<'_>, &str) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (image, path) = split(target);
    let e = evidence::open(config, image, place.evidence.as_deref()).await?;
    of_kernel(config, e, path, question).await
}

/// Asks the kernel of an opened capture something about a path.
async fn of_kernel<T: Send + 'static>(
    config: &Config,
    e: Evidence,
    path: &str,
    question: impl FnOnce(&Kernel<'_>, &str) -> Result<T> + Send + 'static,
) -> Result<T> {
    let path = path.to_owned();
    let record = e.record(config).await;
    // An answer may be that something isn't there, which is no fault of the kernel's.
    let question = move |kernel: &Kernel<'_>, _: &RunMap| Ok(question(kernel, &path));
    let means = symbols::means(config).await?;
    let got = with_kernel(&e.image, &e.plan, record.as_ref(), means, question).await?;
    e.keep(config, got.found.as_ref()).await;
    got.answer
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
        return format!("?????????? {:>42}  {}\n", "", Shown(name));
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
        Shown(name)
    );
    if let Some(target) = inodes.target(&i) {
        let _ = write!(out, " -> {}", Shown(&target));
    }
    out.push('\n');
    out
}

/// `ramsift ls`: mode, owner, group, size, share of it in memory, last change, name.
pub(crate) async fn ls(config: &Config, args: LsArgs) -> Result<u8> {
    let (image, path) = split(&args.target);
    let named = evidence::named(config, image).await?;
    let moved = args.place.evidence.as_deref();
    let e = match named {
        Named::Capture(image) => evidence::open(config, &image, moved).await?,
        Named::Job(j) => {
            let (objects, job) = (j.objects.clone(), j.job.clone());
            match j.open(config, moved).await {
                Ok(e) => e,
                Err(e) if moved.is_none() => {
                    return sealed_ls(objects, &job, path, args.recursive, &e).await;
                }
                Err(e) => return Err(e),
            }
        }
    };
    let (recursive, whom) = (args.recursive, args.as_whom);
    let (out, doubts) = of_kernel(config, e, path, move |kernel, path| {
        let tree = whose(kernel, &whom)?;
        let inodes = Inodes::new(kernel)?;
        let start = tree.find(path).ok_or_else(|| nowhere(kernel, path))?;
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
                let _ = writeln!(out, "{}:", Shown(tree.path(at)));
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
    terminal::out(&out);
    Ok(told(&doubts))
}

/// A listing from the table of a sealed job, whose capture can't be read.
async fn sealed_ls(
    objects: Arc<dyn Objects>,
    job: &str,
    path: &str,
    recursive: bool,
    why: &anyhow::Error,
) -> Result<u8> {
    let key = Keys::new(job).table(&table_name("linux/pagecache_files"));
    if objects.head(&key).await.is_err() {
        bail!("{why:#}; and job {job} has no table of cached files");
    }
    tell!(
        "{}; these are the files of the job's table",
        Shown(format!("{why:#}"))
    );
    let t = Tables::new(objects, &QueryLimits::default())?;
    t.register("v", &[key], None).await?;
    let below = if path == "/" {
        "/".to_owned()
    } else {
        format!("{}/", path.trim_end_matches('/'))
    };
    let (q, b) = (quote(path), quote(&below));
    let deeper = if recursive {
        String::new()
    } else {
        format!(
            " AND strpos(substr(path, {}), '/') = 0",
            below.chars().count() + 1
        )
    };
    let sql = format!(
        "SELECT mode, uid, gid, size, CASE WHEN pages_needed > 0 THEN least(pages, pages_needed) * 100 / pages_needed END AS cached, \
         modified, path FROM v WHERE path = {q} OR (starts_with(path, {b}){deeper}) ORDER BY path"
    );
    let how = Format {
        format: Rows::Table,
        wide: false,
        columns: Vec::new(),
        raw_csv: false,
    };
    let n = crate::rows::print(t.stream(&sql).await?, &how, false).await?;
    if n == 0 {
        bail!("{path} is not in the job's table of cached files");
    }
    Ok(0)
}

/// The process whose view of the files is asked for, and the tree that it sees.
fn whose(kernel: &Kernel<'_>, whom: &AsArgs) -> Result<FileTree> {
    let mut doubts = Vec::new();
    let tasks = kernel.processes(&mut doubts)?;
    let found = if let Some(pid) = whom.pid {
        let task = tasks
            .iter()
            .find(|t| t.int("tgid").is_ok_and(|p| p == i64::from(pid)));
        Some(task.ok_or_else(|| {
            anyhow!("there is no process {pid} in the list; see ramsift view pslist")
        })?)
    } else if let Some(ns) = whom.namespace {
        let task = tasks
            .iter()
            .find(|t| mount_namespace(t).is_ok_and(|n| n == Some(ns)));
        Some(task.ok_or_else(|| {
            anyhow!("no process is in mount namespace {ns}; see ramsift view namespaces")
        })?)
    } else if let Some(name) = &whom.container {
        let pid = container(kernel, name)?;
        tasks.iter().find(|t| t.int("tgid").is_ok_and(|p| p == pid))
    } else {
        None
    };
    let mut tree = match found {
        Some(task) => FileTree::of(kernel, task)?,
        None => FileTree::new(kernel)?,
    };
    tree.doubts.splice(0..0, doubts);
    Ok(tree)
}

/// The inode number of a task's mount namespace.
fn mount_namespace(task: &Object<'_>) -> Result<Option<u64>> {
    let proxy = task.follow("nsproxy", "nsproxy")?;
    let ns = proxy
        .map(|p| p.follow("mnt_ns", "mnt_namespace"))
        .transpose()?
        .flatten();
    Ok(ns
        .map(|n| n.number("ns.inum"))
        .transpose()?
        .map(|n| n & 0xffff_ffff))
}

/// A process of the container with this name, or an id that begins so.
fn container(kernel: &Kernel<'_>, name: &str) -> Result<i64> {
    let view = by_name("linux/namespaces").context("this build has no view of namespaces")?;
    let t = (view.build)(kernel)?;
    let mut names = std::collections::BTreeSet::new();
    for row in 0..t.rows.len() {
        let text = |c: &str| match t.cell(row, c) {
            Some(Value::Text(s)) => Some(s.as_str()),
            _ => None,
        };
        let Some(id) = text("container") else {
            continue;
        };
        let hit = id.starts_with(name)
            || text("hostname") == Some(name)
            || text("pod").is_some_and(|p| p.starts_with(name));
        if hit && let Some(Value::Number(pid)) = t.cell(row, "pid") {
            return Ok(i64::try_from(*pid)?);
        }
        names.insert(id.to_owned());
        names.extend(text("hostname").map(str::to_owned));
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Err(crate::suggest::unknown("container", name, &names))
}

/// Mount namespaces that are searched for a path that the first process does not see.
const NAMESPACES: usize = 64;

/// Why a path is not there: it may be so in another mount namespace.
fn nowhere(kernel: &Kernel<'_>, path: &str) -> anyhow::Error {
    let mut seen = std::collections::BTreeMap::new();
    for task in kernel.processes(&mut Vec::new()).unwrap_or_default() {
        if let Ok(Some(ns)) = mount_namespace(&task)
            && seen.len() < NAMESPACES
        {
            seen.entry(ns).or_insert(task);
        }
    }
    let mut elsewhere = Vec::new();
    for (ns, task) in seen {
        let there = FileTree::of(kernel, &task).is_ok_and(|t| t.find(path).is_some());
        if there && let (Ok(pid), Ok(comm)) = (task.int("tgid"), task.text("comm")) {
            elsewhere.push(format!("{ns} of {}[{pid}] (--pid {pid})", Shown(comm)));
        }
    }
    if elsewhere.is_empty() {
        anyhow!("{path} is not in the capture's memory")
    } else {
        anyhow!(
            "{path} is not in the first mount namespace; in another mount namespace: {}",
            elsewhere.join(", ")
        )
    }
}

fn told(doubts: &[String]) -> u8 {
    for d in doubts {
        tell!("doubtful: {}", Shown(d));
    }
    if doubts.is_empty() { 0 } else { DOUBTFUL }
}

/// Symbolic links that are followed on the way to one file, as the kernel's own limit.
const LINKS: usize = 40;

/// The inode that a path leads to, links followed.
fn resolve(kernel: &Kernel<'_>, path: &str, whom: &AsArgs) -> Result<Inode> {
    let tree = whose(kernel, whom)?;
    let inodes = Inodes::new(kernel)?;
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        let id = tree.find(&path).ok_or_else(|| nowhere(kernel, &path))?;
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
    let whom = args.as_whom;
    let (lost, doubts) = ask(config, &args.target, &args.place, move |kernel, path| {
        let inode = resolve(kernel, path, &whom)?;
        if !inode.is_regular() {
            bail!("{path} is no regular file");
        }
        let mut doubts = Vec::new();
        let content = InodePages::new(kernel)?.content(&inode, &mut doubts)?;
        let mut out = terminal::content();
        let lost = content.write(kernel.space.memory(), &mut out)?;
        out.flush()?;
        Ok((lost, doubts))
    })
    .await?;
    for r in &lost {
        tell!("not in memory, zeros: bytes {:#x} to {:#x}", r.start, r.end);
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
            .map(|c| {
                if ramsift_telemetry::commands(c) {
                    '_'
                } else {
                    c
                }
            })
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

/// Which content of a view is wanted.
struct Wanted {
    view: &'static LinuxView,
    pid: Vec<u32>,
    /// A path below which files are wanted.
    path: String,
}

impl Wanted {
    fn has(&self, name: &str) -> bool {
        if !self.pid.is_empty() {
            // Content of processes is named `<pid>.<comm>...`.
            let pid = name.split('.').next().and_then(|p| p.parse().ok());
            return pid.is_some_and(|p| self.pid.contains(&p));
        }
        let below = format!("{}/", self.path.trim_end_matches('/'));
        below == "/" || name.starts_with(&below) || name == self.path
    }
}

/// `ramsift recover`: what a view can give, and a list of it with its holes.
pub(crate) async fn recover(config: &Config, args: RecoverArgs) -> Result<u8> {
    let view = crate::view::by_name(&args.view)?;
    let (image, path) = split(&args.target);
    let e = evidence::open(config, image, args.place.evidence.as_deref()).await?;
    let wanted = Wanted {
        view,
        pid: args.pid,
        path: path.to_owned(),
    };
    write_all(config, e, wanted, &args.dir).await
}

/// `ramsift procdump`: the memory of processes as ELF cores.
pub(crate) async fn procdump(config: &Config, args: ProcdumpArgs) -> Result<u8> {
    let view = crate::view::by_name("linux/procdump")?;
    let e = evidence::open(config, &args.image, args.place.evidence.as_deref()).await?;
    let wanted = Wanted {
        view,
        pid: args.pid,
        path: "/".to_owned(),
    };
    write_all(config, e, wanted, &args.to).await
}

async fn write_all(config: &Config, e: Evidence, wanted: Wanted, to: &Path) -> Result<u8> {
    let view = wanted.view;
    let Some(recover) = view.recover else {
        let able: Vec<&str> = VIEWS
            .iter()
            .filter(|v| v.recover.is_some())
            .map(|v| v.name)
            .collect();
        bail!(
            "{} gives no content; these do: {}",
            view.name,
            able.join(", ")
        );
    };
    let pids = wanted.pid.clone();
    let dir = to.to_owned();
    fs::create_dir_all(&dir).with_context(|| format!("folder {}", dir.display()))?;
    let (files, whole, doubts) = of_kernel(config, e, "/", move |kernel, _| {
        let mut list = io::BufWriter::new(File::create(dir.join("files.jsonl"))?);
        let (mut files, mut whole, mut failed) = (0u64, 0u64, None);
        let mut doubts = Vec::new();
        let root = dir.join("files");
        let mut visit = |r: Recovered| {
            if !wanted.has(&r.name) {
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
                    failed = Some(format!("{}: {e}", Shown(&r.name)));
                    ControlFlow::Break(())
                }
            }
        };
        // Views that have content by process need not walk the others' pages.
        let mut all = wanted.pid.is_empty();
        for &pid in &wanted.pid {
            match view.recover_process(kernel, i64::from(pid), &mut doubts, &mut visit) {
                Some(done) => done?,
                None => {
                    all = true;
                    break;
                }
            }
        }
        if all {
            recover(kernel, &mut doubts, &mut visit)?;
        }
        list.flush()?;
        match failed {
            Some(why) => Err(anyhow!(why)),
            None => Ok((files, whole, doubts)),
        }
    })
    .await?;
    if files == 0 && !pids.is_empty() {
        let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
        bail!(
            "no process {} with memory is in the list; see ramsift view pslist",
            pids.join(", ")
        );
    }
    say!(
        "{files} files, {whole} of them whole, in {}; their holes are in {}",
        to.join("files").display(),
        to.join("files.jsonl").display()
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
