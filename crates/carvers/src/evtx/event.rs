//! Rows of event records.

use super::record::{Content, Head};
use super::{render::Rendered, values};
use crate::api::{Encoding, Event, Field};
use crate::carver::Hit;
use jiff::Timestamp;
use ramsift_layers::ImageOffset;
use serde_json::Value;

/// Longest message, in bytes: a record can't be longer than its chunk, but its text is wider.
const MESSAGE: usize = 32 << 10;

/// What is known of a record besides its content.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Extra {
    /// It lies behind what its chunk's header calls the end.
    pub(super) stale: bool,
    /// Where in the image the template lies that was taken from another chunk.
    pub(super) template_from: Option<u64>,
}

impl Extra {
    fn add(&self, fields: &mut Vec<(&'static str, Field<'_>)>) {
        if self.stale {
            fields.push(("stale", Field::Bool(true)));
        }
        if let Some(at) = self.template_from.and_then(|at| i64::try_from(at).ok()) {
            fields.push(("template_from", Field::Int(at)));
        }
    }
}

/// A record that can't be rendered: its values, in their order, and what would help to.
pub(super) fn raw(
    head: &Head,
    content: &Content,
    start: usize,
    why: &str,
    extra: &Extra,
    hit: &mut Hit<'_, '_>,
) {
    let written = values::timestamp(head.written);
    let raw = written.map_or(String::new(), |t| t.to_string());
    let template = content.instances.first().map(|i| format!("{:#010x}", i.id));
    let guid = content.guid.as_ref().map(values::guid);
    let mut message = String::new();
    for v in content.values.iter().filter(|v| !v.is_empty()) {
        let clean = v.split_whitespace().collect::<Vec<_>>().join(" ");
        push(&mut message, "", &clean);
    }
    let mut fields = vec![
        ("record_id", Field::Int(head.id as i64)),
        ("gap", Field::Str(why)),
        ("values", Field::List(&content.values)),
    ];
    if let Some(t) = &template {
        fields.push(("template", Field::Str(t)));
    }
    if let Some(g) = &guid {
        fields.push(("template_guid", Field::Str(g)));
    }
    extra.add(&mut fields);
    hit.event(&Event {
        carver: "evtx_chunk",
        kind: "evtx",
        offset: ImageOffset(hit.source.base + start as u64),
        len: head.size as u64,
        time: written.map(Timestamp::as_microsecond),
        inferred_time: None,
        inferred_from: None,
        raw_time: &raw,
        // Its own time is one of the values, but which isn't known.
        time_kind: "written",
        host: None,
        program: None,
        pid: None,
        message: message.trim_end(),
        encoding: Encoding::Utf16Le,
        fields: &fields,
    });
}

/// A member's own text, which lies beside its attributes when it has any.
fn text(v: &Value) -> Option<String> {
    match v {
        Value::String(s) => Some(s.clone()),
        Value::Number(n) => Some(n.to_string()),
        Value::Bool(b) => Some(b.to_string()),
        Value::Object(o) => text(o.get("#text")?),
        _ => None,
    }
}

/// A record that was rendered.
pub(super) fn rendered(
    record: &Rendered,
    start: usize,
    len: usize,
    extra: &Extra,
    hit: &mut Hit<'_, '_>,
) {
    let root = &record.data["Event"];
    let system = &root["System"];
    let member = |name: &str| text(&system[name]);
    let number = |name: &str| member(name).and_then(|t| t.parse::<i64>().ok());
    let provider = text(&system["Provider"]["#attributes"]["Name"]);
    let pid = text(&system["Execution"]["#attributes"]["ProcessID"]);
    let stamp = text(&system["TimeCreated"]["#attributes"]["SystemTime"]);
    let (channel, computer) = (member("Channel"), member("Computer"));
    // When it happened; the record's header only says when it was written, which may be long after.
    let happened = stamp.as_deref().and_then(|s| s.parse::<Timestamp>().ok());
    let time = happened.unwrap_or(record.timestamp).as_microsecond();
    let raw = stamp.unwrap_or_else(|| record.timestamp.to_string());
    let mut message = String::new();
    for part in ["EventData", "UserData", "ProcessingErrorData"] {
        flatten(&root[part], "", &mut message, 0);
    }
    let mut fields = vec![("record_id", Field::Int(record.event_record_id as i64))];
    // A log that was exported counts its records anew, and its events keep their numbers.
    if let Some(id) = number("EventRecordID").filter(|id| *id != record.event_record_id as i64) {
        fields.push(("event_record_id", Field::Int(id)));
    }
    if let Some(id) = number("EventID") {
        fields.push(("event_id", Field::Int(id)));
    }
    if let Some(level) = number("Level") {
        fields.push(("level", Field::Int(level)));
    }
    if let Some(c) = &channel {
        fields.push(("channel", Field::Str(c)));
    }
    extra.add(&mut fields);
    hit.event(&Event {
        carver: "evtx_chunk",
        kind: "evtx",
        offset: ImageOffset(hit.source.base + start as u64),
        len: len as u64,
        time: Some(time),
        inferred_time: None,
        inferred_from: None,
        raw_time: &raw,
        time_kind: "logged",
        host: computer.as_deref(),
        program: provider.as_deref(),
        pid: pid.and_then(|p| p.parse().ok()),
        message: message.trim_end(),
        encoding: Encoding::Utf16Le,
        fields: &fields,
    });
}

/// Adds `name=value` for each value below `v`.
fn flatten(v: &Value, name: &str, out: &mut String, depth: usize) {
    if out.len() >= MESSAGE || depth > 8 {
        return;
    }
    match v {
        Value::Object(o) => {
            for (k, v) in o.iter().filter(|(k, _)| !k.starts_with("xmlns")) {
                // Attributes tell as much as text does in what programs log as user data.
                let own = k == "#text" || k == "#attributes";
                flatten(v, if own { name } else { k }, out, depth + 1);
            }
        }
        Value::Array(a) => a.iter().for_each(|v| flatten(v, name, out, depth + 1)),
        Value::Null => {}
        other => {
            let value = text(other).unwrap_or_default();
            let clean = value.split_whitespace().collect::<Vec<_>>().join(" ");
            push(out, name, &clean);
        }
    }
}

/// Adds a value, after its name and `=` where it has one, as far as there is room.
fn push(out: &mut String, name: &str, value: &str) {
    if out.len() >= MESSAGE {
        return;
    }
    let mut room = MESSAGE
        .saturating_sub(out.len() + name.len())
        .min(value.len());
    while !value.is_char_boundary(room) {
        room -= 1;
    }
    if !name.is_empty() {
        out.push_str(name);
        out.push('=');
    }
    out.push_str(&value[..room]);
    out.push(' ');
}
