//! What a person may have meant by a name that is none.

use anyhow::{Error, anyhow};

/// Names that are told when there is nothing like the wrong one.
const TOLD: usize = 10;

/// The names most like a wrong one, best first: those that it is a part of, then those a few letters away.
pub(crate) fn near<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let low = wrong.to_lowercase();
    let mut found: Vec<(f64, &str)> = names
        .into_iter()
        .filter_map(|n| {
            let name = n.to_lowercase();
            let tail = name.rsplit(['/', '.', '_']).next().unwrap_or(&name);
            let like = strsim::jaro_winkler(&low, &name).max(strsim::jaro_winkler(&low, tail));
            let inside = !low.is_empty() && name.contains(&low);
            (inside || like >= 0.84).then_some((if inside { 2.0 } else { like }, n))
        })
        .collect();
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    found.dedup_by_key(|f| f.1);
    found.into_iter().take(3).map(|f| f.1).collect()
}

/// The error about a name that is none: "there is no view pslits; did you mean linux/pslist?"
pub(crate) fn unknown(what: &str, wrong: &str, names: &[&str]) -> Error {
    let meant = near(wrong, names.iter().copied());
    let hint = if !meant.is_empty() {
        format!("did you mean {}?", meant.join(" or "))
    } else if names.is_empty() {
        "there are none".to_owned()
    } else if names.len() <= TOLD {
        format!("there are: {}", names.join(", "))
    } else {
        format!(
            "there are {}, among them {}",
            names.len(),
            names[..TOLD].join(", ")
        )
    };
    anyhow!("there is no {what} {wrong:?}; {hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_fingers_are_understood() {
        let names = [
            "linux/pslist",
            "linux/psscan",
            "linux/sockstat",
            "linux/lsof",
        ];
        assert_eq!(near("pslits", names)[0], "linux/pslist");
        assert_eq!(near("linux/pslst", names)[0], "linux/pslist");
        assert_eq!(near("sock", names), ["linux/sockstat"]);
        assert!(near("netscan_windows", names).is_empty());
        let e = unknown("view", "xyz", &names).to_string();
        assert!(e.contains("linux/lsof"), "{e}");
    }
}
