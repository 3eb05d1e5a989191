//! Typed fields as JSON.

use ramsift_carvers::api::Field;
use std::fmt::Write as _;

/// Fields as a JSON object in `out`; nothing without fields.
pub(super) fn fields_json<'s>(
    out: &'s mut String,
    fields: &[(&'static str, Field<'_>)],
) -> Option<&'s str> {
    if fields.is_empty() {
        return None;
    }
    out.clear();
    out.push('{');
    for (i, (k, v)) in fields.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        out.push('"');
        out.push_str(k);
        out.push_str("\":");
        match v {
            Field::Int(n) => {
                let _ = write!(out, "{n}");
            }
            Field::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Field::Str(s) => json_string(out, s),
            Field::List(items) => {
                out.push('[');
                for (i, s) in items.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    json_string(out, s);
                }
                out.push(']');
            }
        }
    }
    out.push('}');
    Some(out)
}

/// A JSON string; the common case has nothing to escape.
fn json_string(out: &mut String, s: &str) {
    out.push('"');
    // Without a way out, so that the compiler looks at many bytes at a time.
    let special = |b: u8| (b < 0x20) | (b == b'"') | (b == b'\\');
    if !s.bytes().fold(false, |any, b| any | special(b)) {
        out.push_str(s);
    } else {
        for c in s.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                c if u32::from(c) < 0x20 => {
                    let _ = write!(out, "\\u{:04x}", u32::from(c));
                }
                c => out.push(c),
            }
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_valid_json_whatever_they_hold() {
        let mut s = String::new();
        let nasty = "a\"b\\c\n\u{1}é";
        let list = [nasty.to_owned(), String::new()];
        let all = [
            ("x", Field::Str(nasty)),
            ("n", Field::Int(-3)),
            ("b", Field::Bool(true)),
            ("l", Field::List(&list)),
        ];
        let json = fields_json(&mut s, &all);
        let v: serde_json::Value = serde_json::from_str(json.expect("fields")).expect("json");
        assert_eq!(v["x"], nasty);
        assert_eq!(v["n"], -3);
        assert_eq!(v["b"], true);
        assert_eq!(v["l"], serde_json::json!([nasty, ""]));
        assert_eq!(fields_json(&mut s, &[]), None);
    }
}
