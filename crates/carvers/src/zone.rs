//! Time without chrono: days from civil dates, missing zones and missing years.

use crate::zones;
use jiff::tz::TimeZone;

/// Microseconds in a second.
pub(crate) const SECOND: i64 = 1_000_000;

/// A time as a record states it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Civil {
    /// `None`: the record has no year.
    pub(crate) year: Option<i32>,
    pub(crate) month: u8,
    pub(crate) day: u8,
    pub(crate) hour: u8,
    pub(crate) minute: u8,
    pub(crate) second: u8,
    pub(crate) micros: u32,
    pub(crate) zone: Zone,
}

/// A zone as a record states it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Zone {
    /// The record has none.
    #[default]
    None,
    /// Seconds east of UTC.
    East(i32),
    /// A name, by its place in [`zones::NAMES`].
    Named(u8),
}

/// Moscow kept summer time all year in these days, and called it MSK.
const MOSCOW_SUMMER: std::ops::Range<(i32, u8, u8)> = (2011, 3, 27)..(2014, 10, 26);

/// What a stated time comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct When<'a> {
    pub(crate) time: Option<i64>,
    pub(crate) inferred: Option<i64>,
    pub(crate) from: Option<&'a str>,
}

/// Days since 1970-01-01 (Howard Hinnant, "chrono-compatible low-level date algorithms").
pub(crate) fn days(year: i32, month: u8, day: u8) -> i64 {
    let y = i64::from(year) - i64::from(month <= 2);
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let mp = (i64::from(month) + 9) % 12;
    let doy = (153 * mp + 2) / 5 + i64::from(day) - 1;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}

fn leap(year: i32) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

impl Civil {
    /// False for dates and times that no clock shows. A leap second counts as a time.
    pub(crate) fn is_valid(&self) -> bool {
        let longest = match self.month {
            2 if self.year.is_none_or(leap) => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            1..=12 => 31,
            _ => return false,
        };
        let second = if self.minute == 59 { 60 } else { 59 };
        (1..=longest).contains(&self.day)
            && self.hour < 24
            && self.minute < 60
            && self.second <= second
            && self.year.is_none_or(|y| (1970..=2200).contains(&y))
    }

    /// Microseconds since 1970 on the record's own clock.
    fn local(&self, year: i32) -> i64 {
        let minutes = (days(year, self.month, self.day) * 24 + i64::from(self.hour)) * 60
            + i64::from(self.minute);
        (minutes * 60 + i64::from(self.second)) * SECOND + i64::from(self.micros)
    }
}

/// Turns stated times into instants; knows the assumptions and has words for them.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    zone: Option<TimeZone>,
    reference: Option<i64>,
    /// The words for a missing zone, and for a missing year.
    no_zone: String,
    no_year: String,
    no_year_zoned: String,
    /// The words for each name of a zone that could be several, with the year stated and without.
    doubts: Vec<[String; 2]>,
}

impl Clock {
    pub(crate) fn new(zone: Option<TimeZone>, reference: Option<(i64, String)>) -> Self {
        let basis = reference.as_ref().map_or("", |r| r.1.as_str());
        let year = format!("year: latest before {basis}");
        let zoned = match zone
            .as_ref()
            .map(|z| z.iana_name().unwrap_or("fixed offset"))
        {
            Some(name) => format!("{year}; zone: {name} as configured"),
            None => format!("{year}; zone: assumed UTC"),
        };
        Self {
            zone,
            reference: reference.map(|r| r.0),
            no_zone: "zone: assumed UTC".to_owned(),
            doubts: zones::NAMES
                .iter()
                .map(|n| [zones::words(n), format!("{year}; {}", zones::words(n))])
                .collect(),
            no_year: zoned,
            no_year_zoned: year,
        }
    }

    /// Seconds east of UTC where the zone is named, and whether that is beyond doubt.
    fn named(&self, civil: &Civil, year: i32, name: &zones::Name) -> (i64, bool) {
        let first = name.offsets.first().map_or(0, |o| o.0);
        let sure = |minutes: i32| (i64::from(minutes) * 60, true);
        if name.offsets.len() == 1 {
            return sure(first);
        }
        match name.name {
            "MSK" if MOSCOW_SUMMER.contains(&(year, civil.month, civil.day)) => return sure(240),
            "MSK" => return sure(180),
            // The Philippines had summer time for the last time in 1990.
            "PDT" if year > 1990 => return sure(first),
            _ => {}
        }
        // The configured zone knows what it calls its hours.
        let own = self.zone.as_ref().and_then(|zone| {
            name.offsets.iter().find(|(minutes, _)| {
                let t = civil.local(year) / SECOND - i64::from(*minutes) * 60;
                jiff::Timestamp::from_second(t).is_ok_and(|t| {
                    let info = zone.to_offset_info(t);
                    info.offset().seconds() == minutes * 60 && info.abbreviation() == name.name
                })
            })
        });
        own.map_or((i64::from(first) * 60, false), |o| sure(o.0))
    }

    /// The instant of a civil time in a year; `None` when it lies outside what jiff can name.
    fn instant(&self, civil: &Civil, year: i32) -> Option<i64> {
        let local = civil.local(year);
        match civil.zone {
            Zone::East(east) => return Some(local - i64::from(east) * SECOND),
            Zone::Named(n) => {
                let name = zones::NAMES.get(usize::from(n))?;
                return Some(local - self.named(civil, year, name).0 * SECOND);
            }
            Zone::None => {}
        }
        let Some(zone) = &self.zone else {
            return Some(local);
        };
        // Second 60 is not in jiff's calendar: it is looked up as 59 and put back.
        let extra = u8::from(civil.second == 60);
        let date = jiff::civil::Date::new(
            i16::try_from(year).ok()?,
            i8::try_from(civil.month).ok()?,
            i8::try_from(civil.day).ok()?,
        );
        let at = date.ok()?.at(
            i8::try_from(civil.hour).ok()?,
            i8::try_from(civil.minute).ok()?,
            i8::try_from(civil.second - extra).ok()?,
            0,
        );
        let t = zone.to_ambiguous_timestamp(at).compatible().ok()?;
        Some((t.as_second() + i64::from(extra)) * SECOND + i64::from(civil.micros))
    }

    /// The words for a zone whose name could be several.
    fn doubt(&self, civil: &Civil, year: i32) -> Option<&[String; 2]> {
        let Zone::Named(n) = civil.zone else {
            return None;
        };
        let name = zones::NAMES.get(usize::from(n))?;
        let words = self.doubts.get(usize::from(n));
        words.filter(|_| !self.named(civil, year, name).1)
    }

    /// What a valid stated time comes to.
    pub(crate) fn when(&self, civil: &Civil) -> When<'_> {
        if let Some(year) = civil.year {
            let at = self.instant(civil, year);
            if let Some(words) = self.doubt(civil, year) {
                return When {
                    inferred: at,
                    from: at.map(|_| words[0].as_str()),
                    time: None,
                };
            }
            return if civil.zone != Zone::None || self.zone.is_some() {
                When {
                    time: at,
                    ..When::default()
                }
            } else {
                When {
                    inferred: at,
                    from: at.map(|_| self.no_zone.as_str()),
                    time: None,
                }
            };
        }
        let Some(reference) = self.reference else {
            return When::default();
        };
        let last = 1970 + (reference.div_euclid(SECOND * 86_400 * 365) as i32).clamp(0, 230);
        // Nine years reach back over the eight between leap years around a century.
        for year in (last - 9..=last + 1).rev() {
            if !(Civil {
                year: Some(year),
                ..*civil
            })
            .is_valid()
            {
                continue;
            }
            let at = self.instant(civil, year);
            if at.is_some_and(|t| t <= reference) {
                let words = match (self.doubt(civil, year), civil.zone) {
                    (Some(words), _) => &words[1],
                    (None, Zone::None) => &self.no_year,
                    _ => &self.no_year_zoned,
                };
                return When {
                    time: None,
                    inferred: at,
                    from: Some(words),
                };
            }
        }
        When::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn civil(year: Option<i32>, month: u8, day: u8, zone: Option<i32>) -> Civil {
        let zone = zone.map_or(Zone::None, Zone::East);
        Civil {
            year,
            month,
            day,
            hour: 3,
            minute: 4,
            second: 5,
            micros: 6,
            zone,
        }
    }

    #[test]
    fn days_agree_with_jiff() {
        for (y, m, d) in [
            (1970, 1, 1),
            (2000, 2, 29),
            (2024, 2, 29),
            (2026, 12, 31),
            (2100, 3, 1),
        ] {
            let epoch = jiff::civil::date(1970, 1, 1);
            let want = jiff::civil::date(y, m, d)
                .since((jiff::Unit::Day, epoch))
                .unwrap();
            assert_eq!(days(y.into(), m as u8, d as u8), i64::from(want.get_days()));
        }
    }

    #[test]
    fn impossible_times_are_not_valid() {
        assert!(civil(Some(2024), 2, 29, None).is_valid());
        assert!(civil(None, 2, 29, None).is_valid());
        assert!(!civil(Some(2023), 2, 29, None).is_valid());
        assert!(!civil(None, 2, 30, None).is_valid());
        assert!(!civil(None, 13, 1, None).is_valid());
        assert!(!civil(None, 0, 1, None).is_valid());
        assert!(
            !Civil {
                hour: 25,
                ..civil(None, 1, 1, None)
            }
            .is_valid()
        );
    }

    #[test]
    fn nothing_is_invented() {
        let c = Clock::new(None, None);
        assert_eq!(c.when(&civil(None, 1, 2, None)), When::default());
        let w = c.when(&civil(Some(1970), 1, 1, None));
        assert_eq!((w.time, w.inferred), (None, Some(11_045_000_006)));
        assert_eq!(w.from, Some("zone: assumed UTC"));
        let w = c.when(&civil(Some(1970), 1, 1, Some(3600)));
        assert_eq!(
            (w.time, w.inferred, w.from),
            (Some(7_445_000_006), None, None)
        );
    }

    #[test]
    fn a_missing_year_is_the_latest_before_the_reference() {
        let reference = (days(2024, 6, 1) * 86_400 * SECOND, "the capture".to_owned());
        let c = Clock::new(None, Some(reference));
        let got = |m, d| {
            c.when(&civil(None, m, d, None))
                .inferred
                .map(|t| t / SECOND / 86_400)
        };
        assert_eq!(got(5, 31), Some(days(2024, 5, 31)));
        assert_eq!(got(6, 2), Some(days(2023, 6, 2)));
        assert_eq!(got(2, 29), Some(days(2024, 2, 29)));
        let w = c.when(&civil(None, 5, 31, None));
        assert_eq!(
            w.from,
            Some("year: latest before the capture; zone: assumed UTC")
        );
        assert_eq!(w.time, None);
    }

    #[test]
    fn a_configured_zone_is_used() {
        let zone =
            TimeZone::get("Europe/Berlin").unwrap_or_else(|_| TimeZone::fixed(jiff::tz::offset(2)));
        let c = Clock::new(Some(zone), None);
        let w = c.when(&civil(Some(2024), 7, 1, None));
        let want = (days(2024, 7, 1) * 86_400 + 3600 + 4 * 60 + 5) * SECOND + 6;
        assert_eq!((w.time, w.inferred), (Some(want), None));
    }

    #[test]
    fn names_of_zones_are_read_where_they_are_unambiguous() {
        let at = |c: &Clock, year, month, name: &str| {
            let zone = Zone::Named(zones::find(name.as_bytes()).unwrap());
            let w = c.when(&Civil {
                zone,
                micros: 0,
                ..civil(Some(year), month, 15, None)
            });
            let hour = |t: i64| (days(year, month, 15) * 86_400 + 11_045 - t / SECOND) / 3600;
            (
                w.time.map(hour),
                w.inferred.map(hour),
                w.from.map(str::to_owned),
            )
        };
        let plain = Clock::new(None, None);
        assert_eq!(at(&plain, 2024, 7, "CEST"), (Some(2), None, None));
        assert_eq!(at(&plain, 2012, 7, "MSK"), (Some(4), None, None));
        assert_eq!(at(&plain, 2024, 7, "MSK"), (Some(3), None, None));
        let (time, inferred, from) = at(&plain, 2024, 1, "EST");
        assert_eq!((time, inferred), (None, Some(-5)));
        let words =
            "zone: EST is -05:00 (North America) or +10:00 (Australia); the first is assumed";
        assert_eq!(from.as_deref(), Some(words));
        if let Ok(kolkata) = TimeZone::get("Asia/Kolkata") {
            let india = Clock::new(Some(kolkata), None);
            let zone = Zone::Named(zones::find(b"IST").unwrap());
            let w = india.when(&Civil {
                zone,
                ..civil(Some(2024), 1, 1, None)
            });
            let want = (days(2024, 1, 1) * 86_400 + 11_045 - 19_800) * SECOND + 6;
            assert_eq!((w.time, w.inferred), (Some(want), None));
        }
    }
}
