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
use ramsift_os::Machine;
use ramsift_os::content::Recovered;
use ramsift_os::files::{Files, FilesError, Metadata, Viewer};
use ramsift_os::view::{Purpose, View, views};
use ramsift_store::Objects;
use ramsift_structured_worker::{table_name, with_machine};
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
        Some(i) if !target[i + 1..].starts_with("//") => {
            let i = before_drive(target, i);
            (&target[..i], target[i..].trim_start_matches(':'))
        }
        _ => (target, "/"),
    }
}

/// Where the path begins whose colon at `i` may be that of a drive: `IMAGE:/C:/Users`, `IMAGE:C:/Users`.
fn before_drive(target: &str, i: usize) -> usize {
    let head = target[..i].strip_suffix(|c: char| c.is_ascii_alphabetic());
    let head = head.map(|h| h.strip_suffix('/').unwrap_or(h));
    // What is left must be an image: a capture can be called `C`.
    let image = head.and_then(|h| h.strip_suffix(':'));
    image.filter(|h| !h.is_empty()).map_or(i, str::len)
}

/// Asks the machine of the capture in `target` something about a path.
async fn ask<T: Send + 'static>(
    config: &Config,
    target: &str,
    place: &EvidenceArgs,
    question: impl FnOnce(&dyn Machine, &str) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (image, path) = split(target);
    let e = evidence::open(config, image, place.evidence.as_deref()).await?;
    of_machine(config, e, path, question).await
}

/// Asks the machine of an opened capture something about a path.
async fn of_machine<T: Send + 'static>(
    config: &Config,
    e: Evidence,
    path: &str,
    question: impl FnOnce(&dyn Machine, &str) -> Result<T> + Send + 'static,
) -> Result<T> {
    let path = path.to_owned();
    let record = e.record(config).await;
    // An answer may be that something isn't there, which is no fault of the kernel's.
    let question = move |machine: &dyn Machine, _: &RunMap| Ok(question(machine, &path));
    let means = symbols::means(config).await?;
    let got = with_machine(&e.image, &e.plan, record.as_ref(), means, question).await?;
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

fn line(found: Option<&Metadata>, name: &str) -> String {
    let Some(m) = found else {
        return format!("?????????? {:>42}  {}\n", "", Shown(name));
    };
    let time = jiff::Timestamp::from_microsecond(m.modified).map_or_else(
        |_| "-".to_owned(),
        |t| t.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
    );
    let cached = match m.pages_needed {
        0 => "-".to_owned(),
        n => format!("{}%", m.pages.min(n) * 100 / n),
    };
    let cached = if m.is_regular() { cached.as_str() } else { "-" };
    let mut out = format!(
        "{} {:>5} {:>5} {:>12} {cached:>5} {time}  {}",
        mode(m.mode),
        m.uid,
        m.gid,
        m.size,
        Shown(name)
    );
    if let Some(target) = &m.target {
        let _ = write!(out, " -> {}", Shown(target));
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
    let (out, doubts) = of_machine(config, e, path, move |machine, path| {
        let files = seen_by(machine, &whom)?;
        let start = files.find(path).ok_or_else(|| nowhere(machine, path))?;
        let mut out = String::new();
        let mut todo = vec![start];
        while let Some(at) = todo.pop() {
            let below = files.children(at).into_iter();
            let mut all: Vec<_> = below.map(|id| (id, files.name(id))).collect();
            all.sort_by(|a, b| a.1.0.cmp(&b.1.0));
            if all.is_empty() && at == start {
                out.push_str(&line(files.metadata(at).as_ref(), &files.name(at).0));
            }
            if recursive && !all.is_empty() {
                let _ = writeln!(out, "{}:", Shown(files.path(at)));
            }
            for (id, (name, deleted)) in &all {
                let mark = if *deleted { " (deleted)" } else { "" };
                let found = files.metadata(*id);
                out.push_str(&line(found.as_ref(), &format!("{name}{mark}")));
            }
            if recursive {
                let below = all.iter().rev().map(|(id, _)| *id);
                todo.extend(below.filter(|id| !files.children(*id).is_empty()));
            }
        }
        Ok((out, files.doubts().to_vec()))
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
    let view = crate::view::view_for(Purpose::CachedFiles)?;
    let table = table_name(view.name);
    let (t, there) = crate::results::session(objects, &[job.to_owned()]).await?;
    if !there.contains(&table) {
        bail!("{why:#}; and job {job} has no table of cached files");
    }
    tell!(
        "{}; these are the files of the job's table",
        Shown(format!("{why:#}"))
    );
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
         modified, path FROM {table} WHERE path = {q} OR (starts_with(path, {b}){deeper}) ORDER BY path"
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

/// The files that whom the arguments name sees.
fn seen_by<'m>(machine: &'m dyn Machine, whom: &AsArgs) -> Result<Box<dyn Files + 'm>> {
    let viewer = match (whom.pid, whom.namespace, &whom.container) {
        (Some(pid), ..) => Viewer::Process(pid),
        (_, Some(ns), _) => Viewer::Namespace(ns),
        (.., Some(name)) => Viewer::Container(name.clone()),
        _ => Viewer::Machine,
    };
    machine.files(&viewer).map_err(|e| match e {
        FilesError::NoContainer { wanted, there } => {
            let there: Vec<&str> = there.iter().map(String::as_str).collect();
            crate::suggest::unknown("container", &wanted, &there)
        }
        e => e.into(),
    })
}

/// Why a path is not there: others on the machine may see it.
fn nowhere(machine: &dyn Machine, path: &str) -> anyhow::Error {
    let others = machine.seen_by_others(path);
    if others.is_empty() {
        anyhow!("{path} is not in the capture's memory")
    } else {
        anyhow!(
            "{path} is not in the first mount namespace; in another mount namespace: {}",
            Shown(others.join(", "))
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

/// The node that a path leads to, links followed, and its metadata.
fn resolve(machine: &dyn Machine, files: &dyn Files, path: &str) -> Result<(u32, Metadata)> {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        let id = files.find(&path).ok_or_else(|| nowhere(machine, &path))?;
        let Some(m) = files.metadata(id) else {
            bail!("{path}: its name is in memory, what it leads to is not");
        };
        let Some(target) = &m.target else {
            return Ok((id, m));
        };
        path = if target.starts_with('/') {
            target.clone()
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
    let (lost, doubts) = ask(config, &args.target, &args.place, move |machine, path| {
        let files = seen_by(machine, &whom)?;
        let (id, m) = resolve(machine, files.as_ref(), path)?;
        if !m.is_regular() {
            bail!("{path} is no regular file");
        }
        let mut doubts = files.doubts().to_vec();
        let content = files.content(id, &mut doubts)?;
        let mut out = terminal::content();
        let lost = content.write(machine.memory(), &mut out)?;
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
fn write(machine: &dyn Machine, dir: &Path, r: &Recovered) -> io::Result<Listed> {
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
    let lost = r.content.pieces(machine.memory(), &mut |at, piece| {
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
    view: &'static View,
    /// What the view of the capture's own system is for that is meant, where none was named.
    purpose: Option<Purpose>,
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
    let view = match &args.view {
        Some(name) => {
            let meant = crate::view::named(name)?;
            let able = meant.iter().find(|v| v.recovers);
            able.or(meant.first()).copied().context("no such view")?
        }
        None => crate::view::view_for(Purpose::CachedFiles)?,
    };
    let (image, path) = split(&args.target);
    let e = evidence::open(config, image, args.place.evidence.as_deref()).await?;
    let wanted = Wanted {
        view,
        purpose: args.view.is_none().then_some(Purpose::CachedFiles),
        pid: args.pid,
        path: path.to_owned(),
    };
    write_all(config, e, wanted, &args.dir).await
}

/// `ramsift procdump`: the memory of processes as ELF cores.
pub(crate) async fn procdump(config: &Config, args: ProcdumpArgs) -> Result<u8> {
    let view = crate::view::view_for(Purpose::ProcessCores)?;
    let e = evidence::open(config, &args.image, args.place.evidence.as_deref()).await?;
    let wanted = Wanted {
        view,
        purpose: Some(Purpose::ProcessCores),
        pid: args.pid,
        path: "/".to_owned(),
    };
    write_all(config, e, wanted, &args.to).await
}

async fn write_all(config: &Config, e: Evidence, wanted: Wanted, to: &Path) -> Result<u8> {
    let view = wanted.view;
    if !view.recovers {
        let able: Vec<&str> = views().filter(|v| v.recovers).map(|v| v.name).collect();
        bail!(
            "{} gives no content; these do: {}",
            view.name,
            able.join(", ")
        );
    }
    let pids = wanted.pid.clone();
    let dir = to.to_owned();
    fs::create_dir_all(&dir).with_context(|| format!("folder {}", dir.display()))?;
    let (files, whole, doubts) = of_machine(config, e, "/", move |machine, _| {
        let view = match wanted.purpose {
            Some(purpose) => {
                let system = machine.system();
                let none = || format!("captures of {} have no such content yet", system.name());
                system.view_for(purpose).with_context(none)?
            }
            None => view,
        };
        let mut list = io::BufWriter::new(File::create(dir.join("files.jsonl"))?);
        let (mut files, mut whole, mut failed) = (0u64, 0u64, None);
        let mut doubts = Vec::new();
        let root = dir.join("files");
        let mut visit = |r: Recovered| {
            if !wanted.has(&r.name) {
                return ControlFlow::Continue(());
            }
            let done = write(machine, &root, &r).and_then(|l| {
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
        if wanted.pid.is_empty() || !view.by_process {
            machine.recover(view, None, &mut doubts, &mut visit)?;
        } else {
            for &pid in &wanted.pid {
                machine.recover(view, Some(i64::from(pid)), &mut doubts, &mut visit)?;
            }
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
        assert_eq!(split("a.mem:/C:/Users"), ("a.mem", "/C:/Users"));
        assert_eq!(split("a.mem:C:/Users"), ("a.mem", "C:/Users"));
        assert_eq!(split("s3://b/a.mem:/d:/x"), ("s3://b/a.mem", "/d:/x"));
        assert_eq!(split("C:/Users"), ("C", "/Users"));
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
