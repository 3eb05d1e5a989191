//! Time without chrono: days from civil dates, missing zones and missing years.

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
    /// Seconds east of UTC; `None`: the record has no zone.
    pub(crate) zone: Option<i32>,
}

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
            no_year: zoned,
            no_year_zoned: year,
        }
    }

    /// The instant of a civil time in a year; `None` when it lies outside what jiff can name.
    fn instant(&self, civil: &Civil, year: i32) -> Option<i64> {
        let local = civil.local(year);
        if let Some(east) = civil.zone {
            return Some(local - i64::from(east) * SECOND);
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

    /// What a valid stated time comes to.
    pub(crate) fn when(&self, civil: &Civil) -> When<'_> {
        if let Some(year) = civil.year {
            let at = self.instant(civil, year);
            return if civil.zone.is_some() || self.zone.is_some() {
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
                let words = if civil.zone.is_some() {
                    &self.no_year_zoned
                } else {
                    &self.no_year
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
}
