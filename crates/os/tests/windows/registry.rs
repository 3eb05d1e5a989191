//! What the registry tells of services, start-up and users, against what the generator put into the machines.

use crate::common::{cell, machines, rows, text};

#[test]
fn services_are_those_of_the_set_in_use() {
    for m in machines() {
        let t = m.build("windows/services");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", m.name);
        let fields = [
            "name", "display", "kind", "start", "image", "dll", "account",
        ];
        let all = m.truth["services"].as_array().unwrap().iter();
        let mut want: Vec<Vec<String>> = all
            .map(|s| fields.iter().map(|f| text(&s[*f])).collect())
            .collect();
        want.sort();
        let columns = [
            "name",
            "display_name",
            "kind",
            "start",
            "image",
            "library",
            "account",
        ];
        assert_eq!(rows(&t, &columns), want, "{}", m.name);
        // The driver that was brought along lies where users write.
        assert_eq!(t.anomalies.len(), 1, "{} {:?}", m.name, t.anomalies);
        let bad = text(&m.truth["story"]["suspicious_driver"]);
        assert_eq!(t.anomalies[0].rule, "service_of_user_folder");
        assert!(
            t.anomalies[0].reason.contains(&bad),
            "{}",
            t.anomalies[0].reason
        );
    }
}

#[test]
fn what_runs_by_itself_is_listed() {
    for m in machines() {
        let t = m.build("windows/run_keys");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", m.name);
        let all = m.truth["start_up"].as_array().unwrap().iter();
        let mut want: Vec<Vec<String>> = all
            .map(|s| ["key", "name", "command"].map(|f| text(&s[f])).to_vec())
            .collect();
        want.sort();
        assert_eq!(rows(&t, &["key", "name", "command"]), want, "{}", m.name);
    }
}

#[test]
fn users_have_the_names_of_their_profiles() {
    for m in machines() {
        let t = m.build("windows/getsids");
        let mut seen = 0;
        for r in 0..t.rows.len() {
            if cell(&t, r, "sid") == text(&m.truth["user_sid"]) {
                assert_eq!(cell(&t, r, "name"), text(&m.truth["user"]), "{}", m.name);
                seen += 1;
            }
        }
        assert!(seen > 3, "{}", m.name);
    }
}

#[test]
fn hives_are_found_wherever_they_lie() {
    for m in machines() {
        let t = m.build("windows/hivescan");
        let all = m.truth["hives"].as_array().unwrap().iter();
        let mut want: Vec<Vec<String>> = all
            .map(|h| {
                let mut row = ["cmhive", "root", "path", "cmhive_pa"]
                    .map(|f| text(&h[f]))
                    .to_vec();
                row.push("true".to_owned());
                row
            })
            .collect();
        want.sort();
        assert_eq!(
            rows(&t, &["hive", "root", "file", "physical", "listed"]),
            want,
            "{}",
            m.name
        );
    }
}

#[test]
fn large_pool_memory_is_that_of_the_kernels_table() {
    for m in machines() {
        let t = m.build("windows/bigpools");
        let all = m.truth["big_pools"].as_array().unwrap().iter();
        let mut want: Vec<Vec<String>> = all
            .map(|p| ["address", "tag", "bytes"].map(|f| text(&p[f])).to_vec())
            .collect();
        want.sort();
        assert_eq!(rows(&t, &["address", "tag", "bytes"]), want, "{}", m.name);
    }
}

#[test]
fn services_of_the_manager_are_found_and_the_one_without_a_key_shows() {
    for m in machines() {
        let t = m.build("windows/svcscan");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", m.name);
        let fields = [
            "order",
            "name",
            "display",
            "kind",
            "start",
            "state",
            "pid",
            "binary",
            "registered",
            "record",
        ];
        let all = m.truth["service_records"].as_array().unwrap().iter();
        let mut want: Vec<Vec<String>> =
            all.map(|s| fields.map(|f| text(&s[f])).to_vec()).collect();
        want.sort();
        let columns = [
            "order",
            "name",
            "display_name",
            "kind",
            "start",
            "state",
            "pid",
            "binary",
            "registered",
            "record",
        ];
        assert_eq!(rows(&t, &columns), want, "{}", m.name);
        assert_eq!(t.anomalies.len(), 1, "{} {:?}", m.name, t.anomalies);
        assert_eq!(t.anomalies[0].rule, "hidden_service");
        let hidden = text(&m.truth["story"]["hidden_service"]);
        assert!(
            t.anomalies[0].reason.contains(&hidden),
            "{}",
            t.anomalies[0].reason
        );
    }
}
