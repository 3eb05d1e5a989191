//! What the evidence is: its hashes and its name.

use super::FinaliseError;
use super::choose::Chosen;
use ramsift_layers::hash;
use ramsift_proto::TaskId;
use ramsift_store::Plan;

/// BLAKE3 of the evidence from its chunks, when all were read whole.
pub(super) fn blake3(plan: &Plan, chosen: &Chosen) -> Option<String> {
    if !plan.spec.unstructured {
        return None;
    }
    if plan.chunk_count == 1 {
        let h = &chosen.reports.get("chunk-0")?.hash;
        return (!h.is_empty()).then(|| h.clone());
    }
    let pieces = (0..plan.chunk_count)
        .map(|i| {
            let h = &chosen.reports.get(&TaskId::chunk(i).to_string())?.hash;
            let mut cv = [0u8; 32];
            hex::decode_to_slice(h, &mut cv).ok()?;
            Some(cv)
        })
        .collect::<Option<Vec<_>>>()?;
    Some(hash::whole(&pieces)?.to_hex().to_string())
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
        .get("view-sha256")
        .filter(|r| !r.hash.is_empty())?;
    Some((report.hash.clone(), "a sequential pass over every byte"))
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
