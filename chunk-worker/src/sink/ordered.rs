//! What was found in pages that were looked at in their own order.

use super::json::fields_json;
use super::{BURST, Rows};
use crate::attacks;
use ramsift_carvers::api::{Event, Finding};
use ramsift_layers::Severity;
use ramsift_store::tables::{EventRow, FindingRow, detector_key, row_id};

/// Where something lies whose pages were looked at in their own order.
#[derive(Debug)]
pub(crate) struct Ordered<'a> {
    /// Whose order: `file:/var/log/auth.log`, `process:sshd[812]`.
    pub(crate) name: &'a str,
    /// Its first byte.
    pub(crate) image_offset: u64,
    pub(crate) physical_address: Option<u64>,
    /// Of its first byte in the order: an offset in the file, or a virtual address.
    pub(crate) address: u64,
    /// The order breaks off at its start or its end.
    pub(crate) cut: bool,
    /// Image offset and length of what it is made of.
    pub(crate) pieces: Vec<(u64, u64)>,
}

impl Ordered<'_> {
    /// Its fields, added to those that a row has.
    fn fields(&self, own: Option<&str>) -> String {
        let mut all: serde_json::Map<String, serde_json::Value> = own
            .and_then(|f| serde_json::from_str(f).ok())
            .unwrap_or_default();
        all.insert("order".into(), self.name.into());
        all.insert("order_address".into(), self.address.into());
        if self.pieces.len() > 1 {
            all.insert("pieces".into(), serde_json::json!(self.pieces));
        }
        if self.cut {
            all.insert("cut".into(), true.into());
        }
        serde_json::Value::Object(all).to_string()
    }

    pub(super) fn scope(&self) -> &'static str {
        if self.name.starts_with("file:") {
            "file"
        } else {
            "process"
        }
    }
}

impl Rows<'_> {
    /// A request of a web log that is an attack is a finding besides.
    pub(super) fn attack(
        &mut self,
        e: &Event<'_>,
        image_offset: u64,
        physical_address: Option<u64>,
        scope: &str,
        path: Option<&str>,
    ) {
        let Some(a) = attacks::of(e) else { return };
        let detector = format!("weblog:{}", a.family);
        let fields = serde_json::json!({"string": a.string, "field": a.field, "client": e.host});
        self.findings.push(&FindingRow {
            id: row_id(
                detector_key(&detector, &[1]),
                scope,
                "",
                image_offset,
                e.len,
            ),
            detector: &detector,
            kind: "attack",
            severity: a.severity,
            severity_reason: "well-known attack string in a web log",
            scope,
            image_offset,
            physical_address,
            length: e.len,
            value: e.message,
            encoding: Some(e.encoding.as_str()),
            context: None,
            fields: Some(&fields.to_string()),
            path,
            artifact: None,
            rule: None,
        });
    }

    /// A feature that touches the end of physically adjacent bytes, as it stands in its own order.
    pub(crate) fn finding_in_order(&mut self, f: &Finding<'_>, o: &Ordered<'_>) {
        let (detector, key) = self.detector(f.carver);
        let mut json = std::mem::take(&mut self.json);
        let fields = o.fields(fields_json(&mut json, f.fields));
        self.json = json;
        self.findings.push(&FindingRow {
            id: row_id(key, "order", "", o.image_offset, f.len),
            detector: &detector,
            kind: f.kind,
            severity: Severity::Info,
            severity_reason: "carved feature",
            scope: o.scope(),
            image_offset: o.image_offset,
            physical_address: o.physical_address,
            length: f.len,
            value: f.value,
            encoding: Some(f.encoding.as_str()),
            context: Some(f.context),
            fields: Some(&fields),
            path: Some(o.name),
            artifact: None,
            rule: None,
        });
        self.relieve(BURST);
    }

    /// A record that does.
    pub(crate) fn event_in_order(&mut self, e: &Event<'_>, o: &Ordered<'_>) {
        let (_, key) = self.detector(e.carver);
        let mut json = std::mem::take(&mut self.json);
        let fields = o.fields(fields_json(&mut json, e.fields));
        self.events.push(&EventRow {
            id: row_id(key, "order", "", o.image_offset, e.len),
            time: e.time,
            inferred_time: e.inferred_time,
            inferred_from: e.inferred_from,
            raw_time: e.raw_time,
            time_kind: e.time_kind,
            source: e.kind,
            host: e.host,
            program: e.program,
            pid: e.pid,
            message: e.message,
            fields: Some(&fields),
            encoding: e.encoding.as_str(),
            image_offset: o.image_offset,
            physical_address: o.physical_address,
            length: e.len,
            row: Some(o.name),
        });
        self.json = json;
        self.attack(
            e,
            o.image_offset,
            o.physical_address,
            o.scope(),
            Some(o.name),
        );
        self.relieve(BURST);
    }
}
