//! The manifest of a sealed job.

use super::choose::Chosen;
use ramsift_store::job::ManifestFile;
use ramsift_store::{Coverage, Manifest, Plan, SealedBy, tables};
use std::collections::BTreeMap;

/// What was found out while sealing.
pub(super) struct Facts {
    pub(super) evidence: Option<String>,
    pub(super) sha256: Option<(String, &'static str)>,
    pub(super) coverage: BTreeMap<String, Coverage>,
    pub(super) gaps: Vec<String>,
    pub(super) system: Option<tables::SystemRow>,
    pub(super) files: Vec<ManifestFile>,
    /// When the list of commits was fixed: the same for everybody who seals the job.
    pub(super) micros: i64,
}

/// Puts the manifest together.
pub(super) fn manifest_of(plan: &Plan, chosen: &Chosen, by: SealedBy, f: Facts) -> Manifest {
    let complete = f.gaps.is_empty() && !f.coverage.values().any(Coverage::has_gaps);
    let (evidence_sha256, from) = f.sha256.map(|(h, from)| (h, from.to_owned())).unzip();
    let structured = match &f.system {
        _ if !plan.spec.structured => Err("not asked for".to_owned()),
        Some(s) if s.status == "recognised" => Ok(()),
        Some(s) => Err(s.reason.clone().unwrap_or_else(|| "no reason given".into())),
        None => Err("the system view gave no row".into()),
    };
    let analyses = match (plan.spec.unstructured, structured) {
        (true, Ok(())) => "structured + unstructured".to_owned(),
        (true, Err(why)) => format!("unstructured only: {why}"),
        (false, Ok(())) => "structured only".to_owned(),
        (false, Err(why)) => format!("neither: {why}"),
    };
    let artifacts: BTreeMap<&str, u64> = chosen
        .reports
        .values()
        .flat_map(|r| &r.objects)
        .map(|o| (o.key.as_str(), o.bytes))
        .collect();
    Manifest {
        job: plan.spec.job.clone(),
        spec: plan.spec.clone(),
        evidence: plan.pin.clone(),
        evidence_bytes: plan.pin.size(),
        evidence_blake3: f.evidence,
        evidence_sha256,
        evidence_sha256_from: from,
        format: plan.layout.format.clone(),
        image_bytes: plan.layout.runs.image_len(),
        verdict: if complete {
            "complete"
        } else {
            "complete with gaps"
        }
        .to_owned(),
        coverage: f.coverage,
        gaps: f.gaps,
        analyses,
        carvers: by.carvers,
        carvers_digest: by.carvers_digest,
        rules_digest: Some(plan.spec.rules_digest.clone()).filter(|d| !d.is_empty()),
        clamav: by.clamav.filter(|_| plan.spec.clamav),
        version: by.version,
        files: f.files,
        // The name of such an object is the hash of its content.
        artifacts: artifacts
            .into_iter()
            .map(|(key, bytes)| ManifestFile {
                key: key.to_owned(),
                bytes,
                blake3: key
                    .rsplit('/')
                    .next()
                    .and_then(|n| n.strip_suffix(".pack"))
                    .unwrap_or_default()
                    .to_owned(),
                rows: None,
                kinds: BTreeMap::new(),
            })
            .collect(),
        started_micros: plan.spec.submitted_micros,
        finished_micros: f.micros,
    }
}
