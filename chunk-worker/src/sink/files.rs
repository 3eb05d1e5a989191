//! Rules and the virus scanner on content that is a file.

use super::{Rows, rule_json};
use md5::{Digest, Md5};
use ramsift_engines::clamav::AvVerdict;
use ramsift_engines::yara::{FileFacts, UnfinishedReason};
use ramsift_layers::Severity;
use ramsift_store::tables::{CoverageRow, FindingRow, detector_key, row_id};
use std::collections::BTreeSet;

impl Rows<'_> {
    /// Rules and the virus scanner on content that is a file.
    pub(crate) fn inspect(&mut self, f: &Inspected<'_>) {
        self.rules(f);
        if let Some(av) = self.av.clone() {
            let verdict = self.runtime.block_on(av.scan(f.data));
            self.av(f, verdict, &av.clamd.version().engine);
        }
    }

    fn rules(&mut self, f: &Inspected<'_>) {
        let (Some(scanner), Some(rules)) = (&mut self.files, &self.ctx.rules) else {
            return;
        };
        let mut facts = FileFacts::of(if f.named { f.path } else { "" }, f.kind);
        f.sha256.clone_into(&mut facts.sha256);
        if !f.named {
            facts.extension = format!(".{}", f.kind);
        }
        if scanner.wants_md5() {
            facts.md5 = hex::encode(Md5::digest(f.data));
        }
        let scan = scanner.scan_file(f.data, &facts);
        for hit in scan.hits {
            let Some(r) = rules.rules().get(hit.rule as usize) else {
                continue;
            };
            if f.file_oriented_only && !r.is_for_files() {
                continue;
            }
            let matches: Vec<_> = hit
                .matches
                .iter()
                .map(|m| {
                    let name = r.patterns.get(m.pattern as usize);
                    serde_json::json!({"pattern": name, "offset": m.offset, "length": m.len})
                })
                .collect();
            let mut fields = serde_json::json!({"matches": matches, "counts": hit.counts});
            if let Some(gap) = f.gap {
                fields["gap"] = gap.into();
            }
            let key = detector_key(&format!("yara:{}", r.full_name()), &rules.digest());
            self.findings.push(&FindingRow {
                detector: "yara",
                kind: "yara",
                severity: r.severity,
                severity_reason: &r.severity_reason,
                value: &r.identifier,
                fields: Some(&fields.to_string()),
                rule: Some(&rule_json(r)),
                ..f.row(key)
            });
        }
        let slow = scan.unfinished.iter();
        let slow = slow.filter(|u| u.reason == UnfinishedReason::TimeLimit);
        let slow = slow.map(|u| u.rule).collect::<BTreeSet<u32>>().len();
        if slow > 0 {
            let why = format!("{}: {slow} rules were not run to their end", f.path);
            self.not_scanned(f, "yara files", "partial", why);
        }
    }

    fn not_scanned(&mut self, f: &Inspected<'_>, engine: &str, outcome: &str, reason: String) {
        self.coverage.push(&CoverageRow {
            engine: engine.into(),
            outcome: outcome.into(),
            start: f.offset,
            end: f.offset + f.data.len() as u64,
            reason: Some(reason),
        });
    }

    pub(super) fn av(&mut self, f: &Inspected<'_>, verdict: AvVerdict, engine: &str) {
        match verdict {
            AvVerdict::Clean => {}
            AvVerdict::Infected(signature) => {
                let fields = serde_json::json!({"engine": engine}).to_string();
                self.findings.push(&FindingRow {
                    detector: "clamav",
                    kind: "av",
                    severity: Severity::High,
                    severity_reason: "anti-virus verdict",
                    value: &signature,
                    fields: Some(&fields),
                    ..f.row(detector_key(&format!("clamav:{signature}"), &[]))
                });
            }
            AvVerdict::NotScanned { reason } => {
                self.not_scanned(f, "clamav", "not scanned", reason);
            }
            // Not a word on the object: the task is tried again when clamd works.
            AvVerdict::Error { reason } => self.fail(format!("clamd failed: {reason}")),
        }
    }
}

/// Content for file-oriented rules and the virus scanner.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inspected<'a> {
    /// Where its first byte lies in the image.
    pub(crate) offset: u64,
    pub(crate) physical: Option<u64>,
    /// What findings call it: a path inside the image, or the file's own.
    pub(crate) path: &'a str,
    /// The path is the file's own.
    pub(crate) named: bool,
    /// What it is: `pe`, `cached_file`, …
    pub(crate) kind: &'a str,
    pub(crate) sha256: &'a str,
    pub(crate) data: &'a [u8],
    /// Why it is not whole.
    pub(crate) gap: Option<&'a str>,
    /// Rules that are not file-oriented are decided elsewhere: over the image, or over the process.
    pub(crate) file_oriented_only: bool,
}

impl Inspected<'_> {
    /// A finding on it, less what the detector says.
    fn row(&self, detector: u64) -> FindingRow<'_> {
        let len = self.data.len() as u64;
        FindingRow {
            id: row_id(detector, "file", self.path, self.offset, len),
            detector: "",
            kind: "",
            severity: Severity::Info,
            severity_reason: "",
            scope: "file",
            image_offset: self.offset,
            physical_address: self.physical,
            length: len,
            value: "",
            encoding: None,
            context: None,
            fields: None,
            path: Some(self.path),
            artifact: Some(self.sha256),
            rule: None,
        }
    }
}
