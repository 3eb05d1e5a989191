//! Captures that come compressed or in an archive: unpacked once, into the job's folder of the store, before the job is planned.

use crate::plan::{PlanError, Planned, parameters, plan_of};
use ramsift_layers::container::{self, Kind, Limits, Unpacked};
use ramsift_layers::format::HEAD_LEN;
use ramsift_layers::source::{SourceError, Sources};
use ramsift_layers::{ByteSource, SourcePin};
use ramsift_proto::v1::JobSpec;
use ramsift_store::{Keys, Objects};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tempfile::NamedTempFile;

/// What was unpacked for a plan.
#[derive(Clone, Debug)]
pub struct FromContainer {
    /// The container.
    pub container: SourcePin,
    /// What came out of it.
    pub unpacked: Unpacked,
}

impl FromContainer {
    /// What people are to know of it.
    pub(crate) fn notes(&self) -> Vec<String> {
        let u = &self.unpacked;
        let mut out = vec![format!(
            "unpacked from {}: {} of {} bytes, BLAKE3 {}",
            self.container, u.what, u.container_len, u.blake3
        )];
        if !u.others.is_empty() {
            out.push(format!("also in it: {}", u.others.join(", ")));
        }
        out
    }
}

/// Whether a source is a container that is to be unpacked.
pub async fn is_container(source: &dyn ByteSource) -> Result<bool, SourceError> {
    Ok(Kind::of(&source.head(HEAD_LEN).await?).is_some())
}

/// How and where containers are unpacked.
#[derive(Clone, Debug)]
pub(crate) struct Unpacking {
    pub(crate) limits: Limits,
    /// A folder for what is on its way to a store that is not on this machine.
    pub(crate) folder: PathBuf,
    /// How far it is, in words; empty when nothing is unpacked.
    pub(crate) says: Arc<Mutex<String>>,
}

/// Plans a job whose capture may be in a container.
pub(crate) async fn plan(
    sources: &Sources,
    objects: &Arc<dyn Objects>,
    keys: &Keys,
    spec: JobSpec,
    how: &Unpacking,
) -> Result<Planned, PlanError> {
    // Before anything is unpacked in vain.
    parameters(&spec).map_err(PlanError::Parameters)?;
    let source = sources.open(&spec.source).await?;
    if !is_container(source.as_ref()).await? {
        return plan_of(sources, source, spec, None).await;
    }
    let packed = |error| PlanError::Container {
        source_name: spec.source.clone(),
        error,
    };
    let (file, unpacked) = unpack(&source, objects, keys, &spec, how)
        .await
        .map_err(packed)?;
    let key = keys.unpacked(&safe(&unpacked.name));
    match objects.put_file_new(&key, file.path()).await {
        // An earlier try came as far as this: the same bytes.
        Err(e) if !e.is_conflict() => {
            return Err(PlanError::Store(format!("{}: {e}", objects.url(&key))));
        }
        _ => drop(file),
    }
    let scratch = sources.open_own(&objects.url(&key)).await?;
    let mut spec = spec;
    let expected = spec.expect_hash.to_ascii_lowercase();
    let of_container = [Some(&unpacked.blake3), unpacked.sha256.as_ref()];
    if of_container.contains(&Some(&expected)) {
        // It was that of the container, and it was checked.
        spec.expect_hash.clear();
    }
    source.check_pin().await?;
    let from = FromContainer {
        container: source.pin().clone(),
        unpacked,
    };
    plan_of(sources, scratch, spec, Some(&from)).await
}

async fn unpack(
    source: &Arc<dyn ByteSource>,
    objects: &Arc<dyn Objects>,
    keys: &Keys,
    spec: &JobSpec,
    how: &Unpacking,
) -> Result<(NamedTempFile, Unpacked), container::ContainerError> {
    // Beside where it is to lie, so that it need not be copied.
    let beside = objects.path(&keys.unpacked(""));
    let (source, limits, says) = (source.clone(), how.limits, how.says.clone());
    let folder = beside.unwrap_or_else(|| how.folder.clone());
    let sha256 = !spec.expect_hash.is_empty();
    let of = source.len();
    let task = tokio::task::spawn_blocking(move || {
        let place = folder.display().to_string();
        let failed = |e: std::io::Error| container::ContainerError::Write {
            place: place.clone(),
            detail: e.to_string(),
            setting: "worker.spill",
        };
        std::fs::create_dir_all(&folder).map_err(failed)?;
        let file = tempfile::Builder::new()
            .prefix(".part-")
            .tempfile_in(&folder)
            .map_err(failed)?;
        let progress = |read: u64, written: u64| {
            let share = 100.0 * read as f64 / of.max(1) as f64;
            let mib = written >> 20;
            let mut s = says.lock().unwrap_or_else(PoisonError::into_inner);
            *s = format!("unpacking: {share:.0} % of the container, {mib} MiB of the capture");
        };
        progress(0, 0);
        let done = container::unpack(&source, file.as_file(), &place, limits, sha256, &progress);
        says.lock().unwrap_or_else(PoisonError::into_inner).clear();
        done.map(|u| (file, u))
    });
    task.await.unwrap_or_else(|e| {
        // A panic, which would come again.
        Err(container::ContainerError::Damaged {
            what: "the container".into(),
            offset: 0,
            detail: e.to_string(),
        })
    })
}

/// A name for an object: of a member, which may be called anything.
fn safe(name: &str) -> String {
    let base = name.rsplit(['/', '\\']).next().unwrap_or(name);
    let plain = |c: char| match c {
        c if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') => c,
        _ => '_',
    };
    let out: String = base.chars().map(plain).take(100).collect();
    match out.trim_matches('.') {
        "" => "capture".to_owned(),
        _ => out.trim_start_matches('.').to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_get_names_that_objects_may_have() {
        for (name, want) in [
            ("a/b/memory.lime", "memory.lime"),
            ("../../etc/passwd", "passwd"),
            ("..", "capture"),
            ("c:\\dumps\\m em\u{1b}.raw", "m_em_.raw"),
            ("", "capture"),
        ] {
            assert_eq!(safe(name), want);
        }
    }
}
