//! Times of records without a year, once it is known when the capture was taken.
//!
//! A carver has only the container's time or the file's to go by, and that of a copy is later than the capture. When a job
//! is sealed there is a better one: the captured machine's own clock, or the newest time that a record states in full. The
//! year is then the latest with which a record is not later than that.
//!
//! A record whose zone is assumed may really be up to 14 hours earlier than it reads; that it seems later than the capture
//! by less does not put it a year back. It is then given the time of the capture.

use arrow::array::{Array, ArrayRef, AsArray, StringBuilder, TimestampMicrosecondBuilder};
use arrow::datatypes::TimestampMicrosecondType;
use std::sync::Arc;

/// When the capture was taken at the latest, and what says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Microseconds since 1970.
    pub micros: i64,
    /// "the captured machine's clock".
    pub label: String,
}

/// How a reason begins that says on what a missing year rests.
const LATEST: &str = "year: latest before ";
/// A zone that nothing says.
const ASSUMED: &str = "zone: assumed";
/// How far zones are east of UTC at most.
const EAST: i64 = 14 * 3600 * 1_000_000;

/// The same day and time in the latest year in which it is not later than `latest`.
fn moved(micros: i64, latest: i64) -> Option<i64> {
    let utc = jiff::tz::TimeZone::UTC;
    let at = jiff::Timestamp::from_microsecond(micros)
        .ok()?
        .to_zoned(utc.clone())
        .datetime();
    let last = jiff::Timestamp::from_microsecond(latest)
        .ok()?
        .to_zoned(utc.clone())
        .datetime()
        .year();
    // Nine years reach back over the eight between leap years around a century.
    (last - 9..=last).rev().find_map(|year| {
        let there = at.with().year(year).build().ok()?;
        let t = there
            .to_zoned(utc.clone())
            .ok()?
            .timestamp()
            .as_microsecond();
        (t <= latest).then_some(t)
    })
}

/// The columns `inferred_time` and `inferred_from` by a better reference; `None` where nothing changes.
pub(super) fn inferred(
    times: &ArrayRef,
    reasons: &ArrayRef,
    r: &Reference,
) -> Option<(ArrayRef, ArrayRef)> {
    let times = times.as_primitive_opt::<TimestampMicrosecondType>()?;
    let reasons = reasons.as_string_opt::<i32>()?;
    let rests = |i: usize| reasons.is_valid(i) && reasons.value(i).starts_with(LATEST);
    if !(0..reasons.len()).any(rests) {
        return None;
    }
    let mut new_times =
        TimestampMicrosecondBuilder::with_capacity(times.len()).with_timezone("UTC");
    let mut new_reasons = StringBuilder::new();
    for i in 0..times.len() {
        let old = times.is_valid(i).then(|| times.value(i));
        if !rests(i) {
            new_times.append_option(old);
            new_reasons.append_option(reasons.is_valid(i).then(|| reasons.value(i)));
            continue;
        }
        let reason = reasons.value(i);
        let rest = reason.find(';').map_or("", |at| &reason[at..]);
        let slack = if rest.contains(ASSUMED) { EAST } else { 0 };
        let moved = old.and_then(|t| moved(t, r.micros.saturating_add(slack)));
        new_times.append_option(moved.map(|t| t.min(r.micros)));
        let late = if moved.is_some_and(|t| t > r.micros) {
            "; not later than the capture"
        } else {
            ""
        };
        new_reasons.append_value(format!("{LATEST}{}{rest}{late}", r.label));
    }
    Some((Arc::new(new_times.finish()), Arc::new(new_reasons.finish())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{StringArray, TimestampMicrosecondArray};

    fn at(text: &str) -> i64 {
        text.parse::<jiff::Timestamp>()
            .expect("a time")
            .as_microsecond()
    }

    fn inferred_of(old: &str, reason: &str, reference: &str) -> (Option<i64>, String) {
        let times: ArrayRef =
            Arc::new(TimestampMicrosecondArray::from(vec![at(old)]).with_timezone("UTC"));
        let reasons: ArrayRef = Arc::new(StringArray::from(vec![reason]));
        let r = Reference {
            micros: at(reference),
            label: "the captured machine's clock".into(),
        };
        let Some((t, f)) = inferred(&times, &reasons, &r) else {
            return (Some(at(old)), reason.to_owned());
        };
        let t = t.as_primitive::<TimestampMicrosecondType>();
        (
            t.is_valid(0).then(|| t.value(0)),
            f.as_string::<i32>().value(0).to_owned(),
        )
    }

    #[test]
    fn a_copy_years_later_does_not_move_what_was_logged() {
        let copied = "year: latest before the capture file's modification time; zone: assumed UTC";
        let (t, why) = inferred_of("2026-02-06T15:16:30Z", copied, "2023-03-01T00:00:00Z");
        assert_eq!(t, Some(at("2023-02-06T15:16:30Z")));
        assert_eq!(
            why,
            "year: latest before the captured machine's clock; zone: assumed UTC"
        );
        let (t, _) = inferred_of("2026-02-06T15:16:30Z", copied, "2023-02-01T00:00:00Z");
        assert_eq!(t, Some(at("2022-02-06T15:16:30Z")));
        // There is no such day in 2023.
        let (t, _) = inferred_of("2024-02-29T01:00:00Z", copied, "2023-03-01T00:00:00Z");
        assert_eq!(t, Some(at("2020-02-29T01:00:00Z")));
    }

    #[test]
    fn the_last_hours_in_an_assumed_zone_are_not_a_year_ago() {
        let assumed = "year: latest before x; zone: assumed UTC";
        let (t, why) = inferred_of("2022-06-01T14:00:00Z", assumed, "2023-06-01T12:01:00Z");
        assert_eq!(t, Some(at("2023-06-01T12:01:00Z")));
        assert!(why.ends_with("; not later than the capture"), "{why}");
        // A zone that was told leaves no doubt.
        let told = "year: latest before x; zone: Europe/Berlin as configured";
        let (t, _) = inferred_of("2022-06-01T14:00:00Z", told, "2023-06-01T12:01:00Z");
        assert_eq!(t, Some(at("2022-06-01T14:00:00Z")));
    }

    #[test]
    fn what_rests_on_something_else_stays() {
        let zone = "zone: assumed UTC";
        assert_eq!(
            inferred_of("2022-06-01T14:00:00Z", zone, "2020-01-01T00:00:00Z"),
            (Some(at("2022-06-01T14:00:00Z")), zone.to_owned())
        );
    }
}
