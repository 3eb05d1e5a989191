//! `ramsift verify`: every hash of a manifest, computed again.

use crate::args::VerifyArgs;
use crate::config::Config;
use crate::evidence::as_scanned;
use crate::overview::rows_of_query;
use crate::setup;
use crate::terminal::say;
use anyhow::{Context, Result, bail};
use ramsift_layers::FileOffset;
use ramsift_layers::source::{Sources, split_s3_url};
use ramsift_store::job::read;
use ramsift_store::query::{QueryLimits, Tables};
use ramsift_store::tables::name;
use ramsift_store::{Keys, LocalObjects, Manifest, Objects};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;

/// Something differs.
const DIFFERS: u8 = 1;

/// Bytes read at a time.
const STEP: usize = 16 << 20;

/// Runs the command. Returns the exit code.
pub(crate) async fn run(config: &Config, args: VerifyArgs) -> Result<u8> {
    let (objects, job) = find(config, &args.job).await?;
    let keys = Keys::new(&job);
    let (m, _): (Manifest, _) = read(objects.as_ref(), &keys.manifest())
        .await
        .with_context(|| format!("job {job} has no manifest: it is not finished"))?;
    let mut bad = Vec::new();
    let mut checked = 0;
    for f in m
        .files
        .iter()
        .chain(m.artifacts.iter().filter(|a| !a.blake3.is_empty()))
    {
        checked += 1;
        match blake3_of(objects.as_ref(), &f.key).await {
            Ok((h, n)) if h != f.blake3 || n != f.bytes => {
                bad.push(format!(
                    "{}: differs from the manifest",
                    objects.url(&f.key)
                ));
            }
            Ok(_) => {}
            Err(e) => bad.push(format!("{}: {e:#}", objects.url(&f.key))),
        }
    }
    // Large artifacts are named by their SHA-256.
    for a in m.artifacts.iter().filter(|a| a.blake3.is_empty()) {
        checked += 1;
        let name = a.key.rsplit('/').next().unwrap_or_default();
        match objects.get(&a.key).await {
            Ok((data, _)) if hex::encode(Sha256::digest(&data)) != name => {
                bad.push(format!(
                    "{}: its SHA-256 is not its name",
                    objects.url(&a.key)
                ));
            }
            Ok(_) => {}
            Err(e) => bad.push(e.to_string()),
        }
    }
    say!("{checked} result files checked");
    let in_capture = referred(&objects, &job).await?;
    if in_capture > 0 && args.evidence.is_none() {
        say!(
            "{in_capture} artifacts lie in the capture, which is not looked at without --evidence"
        );
    }
    if let Some(image) = &args.evidence {
        evidence(config, &m, image, &mut bad).await?;
    }
    for b in &bad {
        say!("differs  {b}");
    }
    say!(
        "{}",
        if bad.is_empty() {
            "verified: nothing differs"
        } else {
            "NOT verified"
        }
    );
    Ok(if bad.is_empty() { 0 } else { DIFFERS })
}

/// Artifacts that are read from the capture.
async fn referred(objects: &Arc<dyn Objects>, job: &str) -> Result<u64> {
    let t = Tables::new(objects.clone(), &QueryLimits::default())?;
    let there = t.register_jobs(&[job.to_owned()]).await?;
    if !there.iter().any(|n| n == name::ARTIFACTS) {
        return Ok(0);
    }
    let sql = "SELECT count(*) FROM artifacts WHERE object IS NULL";
    let rows = rows_of_query(&t, sql).await?;
    let n = rows.first().and_then(|r| r.first()?.parse().ok());
    Ok(n.unwrap_or(0))
}

/// A job of the configured store, or the only job of a folder.
async fn find(config: &Config, name: &str) -> Result<(Arc<dyn Objects>, String)> {
    if Path::new(name).is_dir() {
        let objects: Arc<dyn Objects> = Arc::new(LocalObjects::open_existing(Path::new(name))?);
        let job = setup::pick_job(objects.as_ref(), None).await?;
        return Ok((objects, job));
    }
    if split_s3_url(name).is_some() {
        let sources = Sources::new(config.s3.to_layers()?);
        let objects = setup::store(name, &sources).await?;
        let job = setup::pick_job(objects.as_ref(), None).await?;
        return Ok((objects, job));
    }
    let objects = setup::existing_store(config).await?;
    let job = setup::pick_job(objects.as_ref(), Some(name)).await?;
    Ok((objects, job))
}

async fn blake3_of(objects: &dyn Objects, key: &str) -> Result<(String, u64)> {
    let size = objects.head(key).await?.size;
    let mut h = blake3::Hasher::new();
    let mut at = 0;
    while at < size {
        let end = (at + STEP as u64).min(size);
        h.update(&objects.get_range(key, at..end).await?);
        at = end;
    }
    Ok((h.finalize().to_hex().to_string(), size))
}

/// Hashes the evidence again and compares.
async fn evidence(config: &Config, m: &Manifest, image: &str, bad: &mut Vec<String>) -> Result<()> {
    let Some(want) = &m.evidence_blake3 else {
        bail!("the manifest has no hash of the evidence: not every byte of it could be read");
    };
    let sources = Sources::new(config.s3.to_layers()?);
    // The hash is that of what was scanned.
    let source = as_scanned(config, &sources, image).await?;
    let (mut b3, mut sha) = (blake3::Hasher::new(), Sha256::new());
    let mut at = 0;
    while at < source.len() {
        let n = usize::try_from(source.len() - at)
            .unwrap_or(usize::MAX)
            .min(STEP);
        let data = source.read_vec(FileOffset(at), n).await?;
        b3.update(&data);
        sha.update(&data);
        at += n as u64;
    }
    let found = b3.finalize().to_hex().to_string();
    if found != *want {
        bad.push(format!(
            "{image}: BLAKE3 is {found}, the manifest says {want}"
        ));
    }
    if let Some(want) = &m.evidence_sha256 {
        let found = hex::encode(sha.finalize());
        if found != *want {
            bad.push(format!(
                "{image}: SHA-256 is {found}, the manifest says {want}"
            ));
        }
    }
    say!("evidence hashed: {} bytes", source.len());
    Ok(())
}
