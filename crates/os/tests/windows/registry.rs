//! What the registry tells of services, start-up and users, against what the generator put into the machines.

use crate::common::{cell, machines, rows, text};
use ramsift_os::Machine;
use serde_json::Value;
use std::ops::ControlFlow;

/// What the truth says, these fields of each object, sorted.
fn told<'v>(all: impl Iterator<Item = &'v Value>, fields: &[&str]) -> Vec<Vec<String>> {
    let of = |v: &Value| fields.iter().map(|f| text(&v[*f])).collect();
    let mut out: Vec<Vec<String>> = all.map(of).collect();
    out.sort();
    out
}

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

#[test]
fn keys_and_values_are_those_of_the_hives_and_hives_can_be_recovered() {
    for m in machines() {
        let t = m.build("windows/hivelist");
        let hives = m.truth["hives"].as_array().unwrap();
        let want = told(hives.iter(), &["root", "path", "size", "size", "cmhive"]);
        assert_eq!(
            rows(&t, &["root", "file", "bytes", "present", "hive"]),
            want,
            "{}",
            m.name
        );
        let t = m.build("windows/registry");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", m.name);
        let mut want = Vec::new();
        for h in hives {
            for v in h["values"].as_array().unwrap() {
                let key = format!("{}\\{}", text(&h["root"]), text(&v["key"]));
                want.push(vec![
                    key.trim_end_matches('\\').to_owned(),
                    text(&v["name"]),
                    text(&v["type"]),
                    v["data"].clone().to_string(),
                ]);
            }
        }
        want.sort();
        let numbers = [
            "REG_NONE",
            "REG_SZ",
            "REG_EXPAND_SZ",
            "REG_BINARY",
            "REG_DWORD",
            "",
            "",
            "REG_MULTI_SZ",
            "",
            "",
            "",
            "REG_QWORD",
        ];
        let mut got = Vec::new();
        for r in rows(&t, &["key", "name", "type", "data"])
            .into_iter()
            .filter(|r| !r[2].is_empty())
        {
            let kind = numbers.iter().position(|n| *n == r[2]).unwrap();
            // As the generator says it: texts quoted, numbers plain.
            let data = match kind {
                4 | 11 => r[3].clone(),
                7 => serde_json::json!(r[3].split(" | ").collect::<Vec<_>>()).to_string(),
                _ => serde_json::json!(r[3]).to_string(),
            };
            // Long ones are cut, and say so.
            let whole = data.strip_suffix("…\"").and_then(|start| {
                let at = [r[0].clone(), r[1].clone(), kind.to_string()];
                let same = |w: &&Vec<String>| w[..3] == at && w[3].starts_with(start);
                want.iter().find(same).map(|w| w[3].clone())
            });
            let data = whole.unwrap_or(data);
            got.push(vec![r[0].clone(), r[1].clone(), kind.to_string(), data]);
        }
        got.sort();
        let more: Vec<_> = got.iter().filter(|g| !want.contains(g)).collect();
        let less: Vec<_> = want.iter().filter(|w| !got.contains(w)).collect();
        assert_eq!((more, less), (Vec::new(), Vec::new()), "{}", m.name);
        assert_eq!(got.len(), want.len(), "{}", m.name);
        m.ask(|machine: &dyn Machine| {
            let view = ramsift_os::by_name("windows/hivelist").unwrap();
            let mut names = Vec::new();
            machine
                .recover(view, None, &mut Vec::new(), &mut |r| {
                    let mut file = Vec::new();
                    assert_eq!(
                        r.content.write(machine.memory(), &mut file).unwrap(),
                        [],
                        "{} {}",
                        m.name,
                        r.name
                    );
                    // As the format has it: base block, then bins one after the other to the end.
                    assert!(file.starts_with(b"regf"), "{} {}", m.name, r.name);
                    let mut at = 4096;
                    while at < file.len() {
                        assert_eq!(&file[at..at + 4], b"hbin", "{} {} {at:#x}", m.name, r.name);
                        at += usize::try_from(u32::from_le_bytes(
                            *file[at + 8..].first_chunk().unwrap(),
                        ))
                        .unwrap();
                    }
                    assert_eq!(at, file.len(), "{} {}", m.name, r.name);
                    names.push(r.name);
                    ControlFlow::Continue(())
                })
                .unwrap();
            let files = hives.iter().filter(|h| !text(&h["path"]).is_empty());
            assert!(names.len() >= files.count(), "{}: {names:?}", m.name);
        });
    }
}
