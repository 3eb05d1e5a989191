//! What the kernel calls and keeps, against what the generator put into the machines.

use crate::common::{Made, cell, machines, micros, rows, text};
use ramsift_layers::Severity;
use ramsift_os::by_name;
use ramsift_os::table::Table;
use serde_json::Value;

/// The rows of the truth in a list, these fields of each, sorted.
fn told(m: &Made, list: &str, fields: &[&str]) -> Vec<Vec<String>> {
    let all = m.truth[list].as_array().unwrap().iter();
    let mut out: Vec<Vec<String>> = all
        .map(|v| fields.iter().map(|f| field(v, f)).collect())
        .collect();
    out.sort();
    out
}

/// A field; `@` before it marks a time.
fn field(v: &Value, f: &str) -> String {
    match f.strip_prefix('@') {
        Some(f) => micros(&v[f]),
        None => text(&v[f]),
    }
}

/// The only anomaly of a view: rule and reason.
fn only(m: &Made, t: &Table) -> (&'static str, String) {
    assert_eq!(t.anomalies.len(), 1, "{} {:?}", m.name, t.anomalies);
    assert_eq!(t.anomalies[0].severity, Severity::Critical);
    (t.anomalies[0].rule, t.anomalies[0].reason.clone())
}

#[test]
fn system_calls_lead_where_they_were_made_to_and_the_hooked_one_shows() {
    for m in machines() {
        let t = m.build("windows/ssdt");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", m.name);
        let want = told(
            m,
            "ssdt",
            &["table", "index", "address", "module", "name", "arguments"],
        );
        let columns = ["table", "index", "address", "module", "symbol", "arguments"];
        assert_eq!(rows(&t, &columns), want, "{}", m.name);
        let (rule, why) = only(m, &t);
        let hook = &m.truth["story"]["ssdt_hook"];
        assert_eq!(rule, "hooked_system_call");
        assert!(
            why.contains(&format!("entry {} ", hook["index"])),
            "{} {why}",
            m.name
        );
        assert!(why.contains("no module"), "{} {why}", m.name);
    }
}

#[test]
fn functions_that_jump_out_of_the_kernel_show_and_the_intruders_is_an_anomaly() {
    for m in machines() {
        let t = m.build("windows/inline_hooks");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", m.name);
        let want = told(
            m,
            "inline_hooks",
            &["name", "kind", "address", "target", "module"],
        );
        let columns = ["function", "kind", "address", "target", "module"];
        assert_eq!(rows(&t, &columns), want, "{}", m.name);
        let (rule, why) = only(m, &t);
        let hook = &m.truth["story"]["inline_hook"];
        assert_eq!(rule, "inline_hook");
        let target = hook["target"].as_u64().unwrap();
        assert!(why.starts_with(hook["name"].as_str().unwrap()), "{why}");
        assert!(why.contains(&format!("{target:#x}")), "{why}");
    }
}

#[test]
fn callbacks_are_those_that_were_registered_and_the_intruders_shows() {
    for m in machines() {
        let t = m.build("windows/callbacks");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", m.name);
        let want = told(m, "callbacks", &["kind", "address", "module", "detail"]);
        assert_eq!(
            rows(&t, &["kind", "address", "module", "detail"]),
            want,
            "{}",
            m.name
        );
        let (rule, why) = only(m, &t);
        assert_eq!(rule, "callback_outside_modules");
        assert!(why.contains("for thread,"), "{} {why}", m.name);
    }
}

#[test]
fn functions_of_drivers_are_those_that_they_set_and_the_hooked_one_shows() {
    for m in machines() {
        let t = m.build("windows/driverirp");
        let want = told(m, "irp", &["driver", "function", "address", "module"]);
        assert_eq!(
            rows(&t, &["driver", "function", "address", "module"]),
            want,
            "{}",
            m.name
        );
        let (rule, why) = only(m, &t);
        let hook = &m.truth["story"]["irp_hook"];
        assert_eq!(rule, "hooked_driver");
        let start = format!("{} of {} ", text(&hook["function"]), text(&hook["driver"]));
        assert!(why.starts_with(&start), "{} {why}", m.name);
    }
}

#[test]
fn devices_hang_below_their_drivers() {
    for m in machines() {
        let t = m.build("windows/devicetree");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", m.name);
        let want = told(m, "devices", &["depth", "kind", "driver", "device", "pa"]);
        assert_eq!(
            rows(&t, &["depth", "kind", "driver", "device", "physical"]),
            want,
            "{}",
            m.name
        );
        let volume =
            (0..t.rows.len()).find(|r| cell(&t, *r, "device").ends_with("HarddiskVolume3"));
        assert_eq!(cell(&t, volume.unwrap(), "type"), "DISK", "{}", m.name);
        assert_eq!(t.anomalies, [], "{}", m.name);
    }
}

#[test]
fn records_of_modules_are_found_and_the_unlinked_one_shows() {
    for m in machines() {
        let t = m.build("windows/modscan");
        let want = told(
            m,
            "drivers",
            &["name", "path", "base", "size", "in_list", "entry_pa"],
        );
        let columns = ["name", "path", "base", "size", "listed", "physical"];
        assert_eq!(rows(&t, &columns), want, "{}", m.name);
        let (rule, why) = only(m, &t);
        assert_eq!(rule, "hidden_module");
        let hidden = text(&m.truth["story"]["hidden_driver"]);
        assert!(why.contains(&hidden), "{} {why}", m.name);
        let t = m.build("windows/unloadedmodules");
        let want = told(m, "unloaded", &["name", "start", "end", "@time"]);
        assert_eq!(
            rows(&t, &["name", "start", "end", "unloaded"]),
            want,
            "{}",
            m.name
        );
        assert_eq!(t.events.len(), want.len(), "{}", m.name);
        assert_eq!(t.anomalies, [], "{}", m.name);
    }
}

#[test]
fn mutexes_links_and_threads_are_found_wherever_they_lie() {
    for m in machines() {
        let t = m.build("windows/mutantscan");
        let want = told(m, "mutants", &["name", "pid", "tid", "pa"]);
        assert_eq!(
            rows(&t, &["name", "pid", "tid", "physical"]),
            want,
            "{}",
            m.name
        );
        let t = m.build("windows/symlinkscan");
        let want = told(m, "symlinks", &["@created", "name", "target", "pa"]);
        assert_eq!(
            rows(&t, &["created", "name", "target", "physical"]),
            want,
            "{}",
            m.name
        );
        let t = m.build("windows/thrdscan");
        let mut want = Vec::new();
        for p in m.processes() {
            let listed = p["in_active_list"] == true && p["exit_time"].is_null();
            for own in p["threads"].as_array().unwrap() {
                want.push(vec![
                    text(&p["pid"]),
                    text(&own["tid"]),
                    text(&own["start"]),
                    micros(&p["exit_time"]),
                    listed.to_string(),
                    text(&own["pa"]),
                ]);
            }
        }
        want.sort();
        let columns = ["pid", "tid", "start_address", "exit", "listed", "physical"];
        assert_eq!(rows(&t, &columns), want, "{}", m.name);
    }
}

#[test]
fn endpoints_hang_in_the_network_drivers_tables() {
    let mut with = 0;
    for m in machines() {
        if m.truth["network_tables"] != true {
            // Of this build nobody published the structs.
            let view = by_name("windows/netstat").unwrap();
            let e = m
                .ask(|machine| machine.build(view).unwrap_err())
                .to_string();
            assert!(e.contains("build 14393"), "{} {e}", m.name);
            continue;
        }
        with += 1;
        let t = m.build("windows/netstat");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", m.name);
        let fields = [
            "proto", "local", "lport", "remote", "rport", "state", "pid", "@created", "va",
        ];
        let mut want = told(m, "network", &fields);
        for r in &mut want {
            if r[5] == "LISTENING" || r[3] == "*" {
                r[3] = String::new();
                r[4] = String::new();
            }
        }
        want.sort();
        let columns = [
            "protocol",
            "local",
            "local_port",
            "remote",
            "remote_port",
            "state",
            "pid",
            "created",
            "object",
        ];
        assert_eq!(rows(&t, &columns), want, "{}", m.name);
    }
    assert_eq!(with, 8);
}
