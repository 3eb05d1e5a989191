//! A rule's own grade, from its metadata.
//!
//! Rule authors use several keys; the first of these that makes sense decides:
//! `severity`, `threat_level`, `level`, `priority`, `score`, `threat_score`, `confidence` is not one.

use ramsift_layers::Severity;

use super::info::MetaValue;

/// Keys whose value is a word or a number on some scale.
const KEYS: [&str; 6] = [
    "severity",
    "threat_level",
    "level",
    "priority",
    "score",
    "threat_score",
];

/// The grade, and what it was taken from.
pub(super) fn from_meta(meta: &[(String, MetaValue)], tags: &[String]) -> (Severity, String) {
    for key in KEYS {
        let values = meta.iter().filter(|(k, _)| k.eq_ignore_ascii_case(key));
        for (k, value) in values {
            let grade = match value {
                MetaValue::Text(t) => word(t).or_else(|| number(key, t.trim().parse().ok()?)),
                MetaValue::Integer(n) => number(key, *n),
                MetaValue::Float(n) => number(key, *n as i64),
                MetaValue::Bool(_) => None,
            };
            if let Some(grade) = grade {
                return (grade, format!("rule metadata {k} = {value}"));
            }
        }
    }
    for tag in tags {
        if let Some(grade) = word(tag) {
            return (grade, format!("rule tag {tag}"));
        }
    }
    (
        Severity::Medium,
        "a YARA rule that names no severity".to_owned(),
    )
}

fn word(text: &str) -> Option<Severity> {
    match text.trim().to_ascii_lowercase().as_str() {
        "info" | "informational" | "information" | "none" => Some(Severity::Info),
        "low" => Some(Severity::Low),
        "medium" | "moderate" | "med" | "suspicious" => Some(Severity::Medium),
        "high" | "malicious" => Some(Severity::High),
        "critical" | "crit" | "severe" => Some(Severity::Critical),
        _ => None,
    }
}

/// Numbers up to 10 are taken as out of ten, except that threat levels count to four or so;
/// anything above as out of a hundred, as Elastic and the THOR rules have it.
fn number(key: &str, n: i64) -> Option<Severity> {
    let percent = match n {
        0 => 0,
        1..=4 if key == "threat_level" || key == "level" => n * 25 - 10,
        1..=10 => n * 10,
        11..=100 => n,
        _ => return None,
    };
    Some(match percent {
        ..20 => Severity::Info,
        20..40 => Severity::Low,
        40..70 => Severity::Medium,
        70..90 => Severity::High,
        _ => Severity::Critical,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grade(key: &str, value: MetaValue) -> Severity {
        from_meta(&[(key.to_owned(), value)], &[]).0
    }

    #[test]
    fn words_and_numbers_are_understood() {
        assert_eq!(
            grade("severity", MetaValue::Text("Critical".into())),
            Severity::Critical
        );
        assert_eq!(
            grade("severity", MetaValue::Integer(100)),
            Severity::Critical
        );
        assert_eq!(grade("score", MetaValue::Integer(75)), Severity::High);
        assert_eq!(
            grade("score", MetaValue::Text("60".into())),
            Severity::Medium
        );
        assert_eq!(
            grade("threat_level", MetaValue::Integer(3)),
            Severity::Medium
        );
    }

    #[test]
    fn nonsense_and_silence_mean_medium() {
        assert_eq!(
            grade("severity", MetaValue::Text("blue".into())),
            Severity::Medium
        );
        assert_eq!(grade("score", MetaValue::Integer(-7)), Severity::Medium);
        assert_eq!(from_meta(&[], &[]).0, Severity::Medium);
    }

    #[test]
    fn a_severity_beats_a_score() {
        let meta = [
            ("score".to_owned(), MetaValue::Integer(90)),
            ("severity".to_owned(), MetaValue::Text("low".to_owned())),
        ];
        assert_eq!(from_meta(&meta, &[]).0, Severity::Low);
    }
}
