//! The virus scanner, and what it says of memory.

use super::{BURST, Ordered, Rows};
use ramsift_engines::clamav::{AvVerdict, Clamd};
use ramsift_layers::Severity;
use ramsift_store::tables::{FindingRow, detector_key, row_id};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// The virus scanner, and what to do when it goes away.
#[derive(Clone, Debug)]
pub(crate) struct Av {
    pub(crate) clamd: Clamd,
    /// Nobody else can do the task when clamd stays away: go on without it, and say so.
    pub(crate) alone: bool,
    /// Why clamd is given up.
    pub(crate) gone: Arc<OnceLock<String>>,
}

/// How long a scan that has only this clamd waits for it to come back.
const CLAMD_PATIENCE: Duration = Duration::from_secs(10);

impl Av {
    pub(crate) async fn scan(&self, data: &[u8]) -> AvVerdict {
        let given_up = || {
            let reason = self.gone.get()?.clone();
            Some(AvVerdict::NotScanned { reason })
        };
        let until = Instant::now() + CLAMD_PATIENCE;
        let mut wait = Duration::from_millis(250);
        loop {
            if let Some(v) = given_up() {
                return v;
            }
            let reason = match self.clamd.scan(data).await {
                AvVerdict::Error { reason } if self.alone => reason,
                v => return v,
            };
            if Instant::now() >= until {
                self.gone
                    .get_or_init(|| format!("clamd stopped answering: {reason}"));
                continue;
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
    }
}

impl Rows<'_> {
    /// The virus scanner, where it is to look at memory.
    pub(crate) fn memory_av(&self) -> Option<Av> {
        self.memory_av.clone()
    }

    /// A signature that matches in the image.
    pub(crate) fn virus_in_image(
        &mut self,
        signature: &str,
        at: u64,
        len: u64,
        data: &[u8],
        engine: &str,
    ) {
        let physical = self.pa(at);
        self.virus(
            signature,
            "image",
            None,
            (at, physical, len),
            data,
            serde_json::json!({"engine": engine}),
        );
    }

    /// A signature that matches in memory of a process across pages that lie apart in the image.
    pub(crate) fn virus_in_order(
        &mut self,
        signature: &str,
        o: &Ordered<'_>,
        len: u64,
        data: &[u8],
        engine: &str,
    ) {
        let mut fields =
            serde_json::json!({"engine": engine, "virtual_address": format!("{:#x}", o.address)});
        fields["pieces"] = serde_json::json!(o.pieces);
        fields["order"] = o.name.into();
        self.virus(
            signature,
            o.scope(),
            Some(o.name),
            (o.image_offset, o.physical_address, len),
            data,
            fields,
        );
    }

    fn virus(
        &mut self,
        signature: &str,
        scope: &str,
        path: Option<&str>,
        (at, physical, len): (u64, Option<u64>, u64),
        data: &[u8],
        fields: serde_json::Value,
    ) {
        let key = detector_key(&format!("clamav:{signature}"), &[]);
        self.findings.push(&FindingRow {
            id: row_id(key, scope, "", at, len),
            detector: "clamav",
            kind: "av",
            severity: Severity::High,
            severity_reason: "an anti-virus verdict on memory",
            scope,
            image_offset: at,
            physical_address: physical,
            length: len,
            value: signature,
            encoding: None,
            context: Some(&data[..data.len().min(CONTEXT)]),
            fields: Some(&fields.to_string()),
            path,
            artifact: None,
            rule: None,
        });
        self.relieve(BURST);
    }
}

/// Bytes of what a signature matches that go with a finding.
const CONTEXT: usize = 256;
