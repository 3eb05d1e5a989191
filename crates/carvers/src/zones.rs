//! Names of time zones, and which offsets each of them stands for.
//!
//! Names are no standard. These are the ones that the time zone database has used since 1970 and
//! what Java writes, with all places that use them. A name of one offset is a zone; one of several
//! is a question.

/// A name, and the minutes east of UTC that it stands for, each with the place.
#[derive(Debug)]
pub(crate) struct Name {
    pub(crate) name: &'static str,
    pub(crate) offsets: &'static [(i32, &'static str)],
}

macro_rules! names {
    ($($name:literal: $($minutes:literal $place:literal),+;)+) => {
        &[$(Name { name: $name, offsets: &[$(($minutes, $place)),+] }),+]
    };
}

/// All of them, sorted.
pub(crate) static NAMES: &[Name] = names! {
    "ACDT": 630 "Australia"; "ACST": 570 "Australia";
    "ADT": -180 "Atlantic", 240 "Arabia";
    "AEDT": 660 "Australia"; "AEST": 600 "Australia"; "AFT": 270 "Afghanistan";
    "AKDT": -480 "Alaska"; "AKST": -540 "Alaska";
    "AST": -240 "Atlantic", 180 "Arabia";
    "AWST": 480 "Australia";
    "BRST": -120 "Brazil"; "BRT": -180 "Brazil";
    "BST": 60 "British Summer Time", 360 "Bangladesh", 660 "Bougainville";
    "CAT": 120 "Central Africa";
    "CDT": -300 "North America", -240 "Cuba", 540 "China", 630 "Australia";
    "CEST": 120 "Central Europe"; "CET": 60 "Central Europe"; "CHST": 600 "Guam";
    "CLST": -180 "Chile"; "CLT": -240 "Chile", -180 "Chile in 2015";
    "CST": -360 "North America", -300 "Cuba", 480 "China", 570 "Australia";
    "EAT": 180 "East Africa";
    "EDT": -240 "North America", 660 "Australia";
    "EEST": 180 "Eastern Europe"; "EET": 120 "Eastern Europe";
    "EST": -300 "North America", 600 "Australia";
    "GMT": 0 "Greenwich";
    "GST": 240 "Gulf", -120 "South Georgia", 600 "Guam";
    "HDT": -540 "Hawaii-Aleutian"; "HKT": 480 "Hong Kong"; "HST": -600 "Hawaii";
    "ICT": 420 "Indochina";
    "IDT": 180 "Israel";
    "IRDT": 270 "Iran"; "IRST": 210 "Iran";
    "IST": 330 "India", 120 "Israel", 60 "Ireland";
    "JST": 540 "Japan"; "KST": 540 "Korea";
    "MDT": -360 "North America";
    "MEST": 120 "Central Europe"; "MESZ": 120 "Central Europe"; "MET": 60 "Central Europe";
    "MEZ": 60 "Central Europe"; "MMT": 390 "Myanmar";
    "MSD": 240 "Moscow"; "MSK": 180 "Moscow", 240 "Moscow from March 2011 to October 2014";
    "MST": -420 "North America", 480 "Malaysia", 390 "Myanmar";
    "MYT": 480 "Malaysia";
    "NDT": -150 "Newfoundland"; "NPT": 345 "Nepal"; "NST": -210 "Newfoundland";
    "NZDT": 780 "New Zealand"; "NZST": 720 "New Zealand";
    "PDT": -420 "North America", 540 "Philippines"; "PHT": 480 "Philippines"; "PKT": 300 "Pakistan";
    "PST": -480 "North America", 480 "Philippines";
    "SAST": 120 "South Africa"; "SGT": 480 "Singapore";
    "SST": -660 "Samoa", 480 "Singapore";
    "TRT": 180 "Turkey";
    "UT": 0 "UTC"; "UTC": 0 "UTC"; "UYT": -180 "Uruguay"; "UZT": 300 "Uzbekistan";
    "WAST": 120 "Namibia"; "WAT": 60 "West Africa"; "WEST": 60 "Western Europe"; "WET": 0 "Western Europe";
    "WIB": 420 "Indonesia"; "WIT": 540 "Indonesia"; "WITA": 480 "Indonesia";
    "WST": 480 "Australia", 780 "Samoa";
};

/// The index of a name.
pub(crate) fn find(word: &[u8]) -> Option<u8> {
    let i = NAMES
        .binary_search_by(|n| n.name.as_bytes().cmp(word))
        .ok()?;
    u8::try_from(i).ok()
}

/// What a name of several offsets could have meant, in words: the first is assumed.
pub(crate) fn words(n: &Name) -> String {
    let each: Vec<String> = n
        .offsets
        .iter()
        .map(|(m, place)| {
            let sign = if *m < 0 { '-' } else { '+' };
            format!("{sign}{:02}:{:02} ({place})", m.abs() / 60, m.abs() % 60)
        })
        .collect();
    format!(
        "zone: {} is {}; the first is assumed",
        n.name,
        each.join(" or ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorted_and_within_a_day() {
        assert!(NAMES.is_sorted_by(|a, b| a.name < b.name));
        for n in NAMES {
            assert!(
                n.offsets.iter().all(|o| (-720..=840).contains(&o.0)),
                "{n:?}"
            );
            assert_eq!(
                NAMES[usize::from(find(n.name.as_bytes()).unwrap())].name,
                n.name
            );
        }
        assert_eq!(find(b"INFO"), None);
    }

    #[test]
    fn one_offset_agrees_with_the_time_zone_database() {
        let place = [
            ("CEST", "Europe/Berlin", 2024, 7),
            ("CET", "Europe/Berlin", 2024, 1),
            ("EEST", "Europe/Helsinki", 2024, 7),
            ("WEST", "Europe/Lisbon", 2024, 7),
            ("JST", "Asia/Tokyo", 2024, 7),
            ("KST", "Asia/Seoul", 2024, 7),
            ("HKT", "Asia/Hong_Kong", 2024, 7),
            ("PKT", "Asia/Karachi", 2024, 7),
            ("AEST", "Australia/Sydney", 2024, 7),
            ("AEDT", "Australia/Sydney", 2024, 1),
            ("ACST", "Australia/Adelaide", 2024, 7),
            ("NZDT", "Pacific/Auckland", 2024, 1),
            ("SAST", "Africa/Johannesburg", 2024, 7),
            ("EAT", "Africa/Nairobi", 2024, 7),
            ("WAT", "Africa/Lagos", 2024, 7),
            ("IDT", "Asia/Jerusalem", 2024, 7),
            ("MDT", "America/Denver", 2024, 7),
            ("AKST", "America/Anchorage", 2024, 1),
            ("HST", "Pacific/Honolulu", 2024, 1),
            ("NDT", "America/St_Johns", 2024, 7),
        ];
        for (name, zone, year, month) in place {
            let Ok(zone) = jiff::tz::TimeZone::get(zone) else {
                continue;
            };
            let at = jiff::civil::date(year, month, 15).at(12, 0, 0, 0);
            let t = zone.to_timestamp(at).unwrap();
            let info = zone.to_offset_info(t);
            assert_eq!(info.abbreviation(), name);
            let n = &NAMES[usize::from(find(name.as_bytes()).unwrap())];
            assert_eq!(
                (n.offsets.len(), n.offsets[0].0 * 60),
                (1, info.offset().seconds())
            );
        }
    }
}
