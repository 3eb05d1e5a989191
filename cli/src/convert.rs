//! `ramsift convert`: the physical memory of a capture, in another format.

use crate::args::ConvertArgs;
use crate::config::Config;
use crate::scan::GAPS;
use crate::terminal::{Shown, tell};
use crate::{evidence, setup};
use anyhow::{Context, Result, bail};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use ramsift_layers::ByteSource;
use ramsift_layers::convert::{Converted, Machine, convert, verify};
use ramsift_layers::format::{self, vmcoreinfo};
use ramsift_layers::source::{FileSource, SourceError, Sources, path_of, split_s3_url};
use ramsift_store::{Objects, S3Objects};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::NamedTempFile;

/// Where the converted capture goes.
enum To {
    File(PathBuf),
    Object(S3Objects, String),
}

impl To {
    async fn of(name: &str, sources: &Sources) -> Result<Self> {
        if let Some((bucket, key)) = split_s3_url(name) {
            if key.is_empty() || key.ends_with('/') {
                bail!("{name} names no object; give it a key");
            }
            match sources.open(name).await {
                Err(SourceError::NotFound { .. }) => {}
                Err(e) => return Err(e.into()),
                Ok(_) => bail!("{name} exists already; name another, or delete it first"),
            }
            let objects = S3Objects::new(sources.s3(bucket).await, bucket, "");
            return Ok(Self::Object(objects, key.to_owned()));
        }
        let path = path_of(name);
        if path.exists() {
            bail!("{name} exists already; name another, or delete it first");
        }
        Ok(Self::File(path))
    }

    /// The folder of the file that is written first.
    fn folder(&self, config: &Config) -> PathBuf {
        match self {
            Self::Object(..) => setup::temporary(&config.worker.spill),
            Self::File(p) => match p.parent() {
                Some(d) if !d.as_os_str().is_empty() => d.to_owned(),
                _ => Path::new(".").to_owned(),
            },
        }
    }

    /// Gives the file its name.
    async fn keep(self, file: NamedTempFile, name: &str) -> Result<()> {
        match self {
            Self::File(p) => {
                file.as_file().sync_all()?;
                readable(&file)?;
                file.persist_noclobber(p).map_err(|e| e.error)?;
            }
            Self::Object(objects, key) => objects
                .put_file_new(&key, file.path())
                .await
                .with_context(|| name.to_owned())?,
        }
        Ok(())
    }
}

/// Gives a file the mode that any other new file has.
fn readable(file: &NamedTempFile) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let new = file.path().with_extension("mode");
    let mode = std::fs::File::create_new(&new).and_then(|f| f.metadata());
    let _ = std::fs::remove_file(&new);
    let mode = mode?.permissions().mode();
    let to = std::fs::Permissions::from_mode(mode);
    Ok(std::fs::set_permissions(file.path(), to)?)
}

fn bar(what: &str, len: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(len);
    let style = "{prefix} [{bar:32}] {bytes}/{total_bytes} {bytes_per_sec} eta {eta}";
    if let Ok(s) = ProgressStyle::with_template(style) {
        bar.set_style(s.progress_chars("=> "));
    }
    bar.set_prefix(what.to_owned());
    bar
}

/// Runs the command. The exit code is 3 where memory is missing in what was written.
pub(crate) async fn run(config: &Config, args: ConvertArgs) -> Result<u8> {
    let sources = Sources::new(config.s3.to_layers()?);
    let to = To::of(&args.output, &sources).await?;
    let e = evidence::of_path(config, &args.image).await?;
    let layout = &e.plan.layout;
    let machine = Machine {
        arch: layout.arch.clone(),
        vmcoreinfo: vmcoreinfo(e.image.stored().as_ref()).await,
    };
    let folder = to.folder(config);
    let file = tempfile::Builder::new()
        .prefix(".ramsift-convert-")
        .tempfile_in(&folder)
        .with_context(|| format!("a file in {}", folder.display()))?;
    let shown = bar("converting", layout.runs.image_len());
    let progress = |done: u64, _: u64| shown.set_position(done);
    let done = convert(
        &e.image,
        layout,
        &machine,
        args.to,
        file.as_file(),
        &progress,
    )
    .await?;
    shown.finish_and_clear();
    if done.bytes == 0 {
        bail!("{}: no byte of its memory can be read", args.image);
    }
    if !args.no_verify {
        check(file.path(), &done).await?;
    }
    to.keep(file, &args.output).await?;
    Ok(tell_of(&args, layout, &done))
}

/// Reads what was written, as any other capture.
async fn check(path: &Path, done: &Converted) -> Result<()> {
    let source: Arc<dyn ByteSource> = Arc::new(FileSource::open(path)?);
    let opened = format::open(source.as_ref()).await?;
    let image = opened.reader(source).await?;
    let shown = bar("verifying", done.bytes);
    let progress = |n: u64, _: u64| shown.set_position(n);
    let checked = verify(&image, &opened.layout, done, &progress).await;
    shown.finish_and_clear();
    checked.context("nothing was kept; please report this")
}

/// Says what was written and what not.
fn tell_of(args: &ConvertArgs, layout: &format::Layout, done: &Converted) -> u8 {
    let verified = if args.no_verify {
        ""
    } else {
        ", read back and the same"
    };
    tell!(
        "{}: {} of memory in {} ranges as {}{verified}",
        Shown(&args.output),
        HumanBytes(done.bytes),
        done.ranges.len(),
        args.to
    );
    for n in layout.notes.iter().chain(&done.notes) {
        tell!("note: {}", Shown(n));
    }
    let mut code = 0;
    let mut gap = |text: String| {
        tell!("gap: {}", Shown(text));
        code = GAPS;
    };
    if done.missing > 0 {
        gap(format!(
            "{} bytes that the capture claims to hold and lacks",
            done.missing
        ));
    }
    if let (Some(r), Some(why)) = (done.bad.first(), &done.bad_reason) {
        let n: u64 = done.bad.iter().map(|r| r.end - r.start).sum();
        gap(format!(
            "{n} bytes can't be read, the first at physical {:#x}: {why}",
            r.start
        ));
    }
    for g in &layout.gaps {
        gap(format!(
            "{:#x} to {:#x}: {}",
            g.file.start, g.file.end, g.reason
        ));
    }
    code
}
