//! What the evidence is: its hashes and its name.

use super::FinaliseError;
use super::choose::Chosen;
use ramsift_layers::hash::{self, ChainingValue};
use ramsift_proto::v1::TaskReport;
use ramsift_proto::{TaskId, view};
use ramsift_store::Plan;
use std::collections::{BTreeMap, BTreeSet};

/// BLAKE3 of the evidence from its chunks and their parts, when all bytes were read.
pub(super) fn blake3(plan: &Plan, chosen: &Chosen, split: &BTreeSet<String>) -> Option<String> {
    if !plan.spec.unstructured {
        return None;
    }
    let reports = &chosen.reports;
    Tree { reports, split }.root(plan.chunk_count)
}

/// What the reports say of the evidence's hash tree.
struct Tree<'a> {
    reports: &'a BTreeMap<String, TaskReport>,
    split: &'a BTreeSet<String>,
}

impl Tree<'_> {
    fn root(&self, chunks: u64) -> Option<String> {
        if chunks > 1 {
            let values = (0..chunks).map(|i| self.value(&TaskId::chunk(i)));
            let root = hash::whole(&values.collect::<Option<Vec<_>>>()?)?;
            return Some(root.to_hex().to_string());
        }
        // The chunk is the root: what its task says is the hash, unless it was cut.
        if let Some([l, r]) = self.parts(&TaskId::chunk(0)) {
            let root = hash::root(&self.value(&l)?, &self.value(&r)?);
            return Some(root.to_hex().to_string());
        }
        let h = &self.reports.get("chunk-0")?.hash;
        is_hash(h).then(|| h.clone())
    }

    /// The halves of a task that was cut.
    fn parts(&self, task: &TaskId) -> Option<[TaskId; 2]> {
        task.halves()
            .filter(|_| self.split.contains(&task.to_string()))
    }

    /// The subtree over a task's bytes: from its report, or from those of its parts. As deep as
    /// tasks were cut.
    fn value(&self, task: &TaskId) -> Option<ChainingValue> {
        if let Some([l, r]) = self.parts(task) {
            return Some(hash::parent(&self.value(&l)?, &self.value(&r)?));
        }
        let mut value = [0; 32];
        let report = self.reports.get(&task.to_string())?;
        hex::decode_to_slice(&report.hash, &mut value).ok()?;
        Some(value)
    }
}

/// SHA-256 of the evidence and where it comes from: the provider, or a pass of our own.
pub(super) fn sha256(plan: &Plan, chosen: &Chosen) -> Option<(String, &'static str)> {
    if let ramsift_layers::SourcePin::S3 {
        sha256: Some(s), ..
    } = &plan.pin
    {
        return Some((s.clone(), "the provider's checksum of the full object"));
    }
    let report = chosen
        .reports
        .get(&TaskId::View(view::SHA256.to_owned()).to_string())
        .filter(|r| is_hash(&r.hash))?;
    Some((report.hash.clone(), "a sequential pass over every byte"))
}

/// What reports that are otherwise whole don't say of the evidence's hashes.
pub(super) fn untold(
    plan: &Plan,
    chosen: &Chosen,
    blake3: Option<&str>,
    sha256: bool,
) -> Option<String> {
    if plan.spec.unstructured && blake3.is_none() {
        let mut reports = chosen.reports.iter();
        let silent = reports
            .find(|(t, r)| matches!(t.parse(), Ok(TaskId::Chunk { .. })) && !is_hash(&r.hash));
        let task = silent.map_or("chunk-0", |(t, _)| t.as_str());
        return Some(format!("{task}: the hash of its bytes was not reported"));
    }
    let asked = plan.spec.hash == "sha256" && !sha256;
    asked.then(|| "view-sha256: no hash was reported".to_owned())
}

/// Whether this is a hash of 32 bytes in hex.
fn is_hash(s: &str) -> bool {
    hex::decode_to_slice(s, &mut [0; 32]).is_ok()
}

/// Fails where the user said what the hash must be and it isn't.
pub(super) fn check(
    plan: &Plan,
    blake3: Option<&str>,
    sha256: Option<&str>,
) -> Result<(), FinaliseError> {
    let want = plan.spec.expect_hash.to_ascii_lowercase();
    if want.is_empty() || [blake3, sha256].contains(&Some(want.as_str())) {
        return Ok(());
    }
    Err(FinaliseError::Evidence(format!(
        "the evidence does not have the expected hash {want}: its BLAKE3 is {}, its SHA-256 {}",
        blake3.unwrap_or("not known"),
        sha256.unwrap_or("not known (ask for it with --hash sha256)"),
    )))
}

/// The same for the same evidence wherever it lies; without a hash, of its pin.
pub(super) fn capture_id(plan: &Plan, blake3: Option<&str>) -> String {
    match blake3 {
        Some(h) => h[..32].to_owned(),
        None => {
            let pin = serde_json::to_vec(&plan.pin).unwrap_or_default();
            format!("pin-{}", &::blake3::hash(&pin).to_hex()[..28])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramsift_layers::hash::PieceHasher;
    use std::ops::Range;

    const CHUNK: u64 = 64 << 10;

    /// Reports on a file of which some tasks were cut; one of them may not have its hash.
    fn root(data: &[u8], cut: &[&str], without: &str) -> Option<String> {
        let len = data.len() as u64;
        let split: BTreeSet<String> = cut.iter().map(|c| (*c).to_owned()).collect();
        let mut reports = BTreeMap::new();
        let chunks = len.div_ceil(CHUNK);
        let mut todo: Vec<TaskId> = (0..chunks).map(TaskId::chunk).collect();
        while let Some(t) = todo.pop() {
            let name = t.to_string();
            if split.contains(&name) {
                todo.extend(t.halves().expect("chunk"));
                continue;
            }
            let TaskId::Chunk { index, .. } = t else {
                unreachable!("chunks only")
            };
            let chunk = index * CHUNK..((index + 1) * CHUNK).min(len);
            let r: Range<u64> = t.narrow(chunk);
            let mut h = PieceHasher::new(&r, len).expect("a subtree");
            h.update(&data[r.start as usize..r.end as usize]);
            let hash = if name == without {
                String::new()
            } else {
                h.finish()
            };
            let report = TaskReport {
                hash,
                ..TaskReport::default()
            };
            reports.insert(name, report);
        }
        let (reports, split) = (&reports, &split);
        Tree { reports, split }.root(chunks)
    }

    #[test]
    fn parts_give_the_hash_that_the_file_has() {
        let all: Vec<u8> = (0..200_000).map(|i| (i * 7 % 251) as u8).collect();
        for len in [
            3000, 20_000, 65_536, 100_000, 131_072, 131_073, 150_000, 200_000,
        ] {
            let data = &all[..len];
            let want = Some(blake3::hash(data).to_hex().to_string());
            let chunks = len.div_ceil(CHUNK as usize);
            let last = format!("chunk-{}", chunks - 1);
            let deep = [last.clone(), format!("{last}.0"), format!("{last}.01")];
            let deep: Vec<&str> = deep.iter().map(String::as_str).collect();
            let most = if len % CHUNK as usize > 17_000 || len == 65_536 {
                3
            } else {
                0
            };
            for cuts in 0..=most {
                assert_eq!(root(data, &deep[..cuts], ""), want, "{len}, {cuts} cuts");
            }
            assert_eq!(root(data, &[], &last), None, "{len}");
        }
        assert_eq!(root(&all, &["chunk-1", "chunk-1.1"], "chunk-1.10"), None);
    }
}
