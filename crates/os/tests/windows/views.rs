//! Every view against what the generator put into the machines, for every kernel family.

use crate::common::{cell, machines, make, micros, rows, text};
use ramsift_layers::Severity;
use ramsift_os::Machine;
use ramsift_os::table::Table;
use serde_json::Value;
use std::ops::ControlFlow;

/// What the truth says, these fields of each object, sorted; `@` before a field marks a time.
fn told<'v>(all: impl Iterator<Item = &'v Value>, fields: &[&str]) -> Vec<Vec<String>> {
    let of = |v: &Value| {
        fields
            .iter()
            .map(|f| match f.strip_prefix('@') {
                Some(f) => micros(&v[f]),
                None => text(&v[*f]),
            })
            .collect()
    };
    let mut out: Vec<Vec<String>> = all.map(of).collect();
    out.sort();
    out
}

/// The anomalies of a view: rule, severity and reason.
fn anomalies(t: &Table) -> Vec<(&'static str, Severity, String)> {
    let all = t.anomalies.iter();
    all.map(|a| (a.rule, a.severity, a.reason.clone()))
        .collect()
}

#[test]
fn discovery_names_the_kernel_and_its_table() {
    for m in machines() {
        let d = m.discovery();
        let t = &m.truth;
        assert_eq!(d.impossible, None, "{}", m.name);
        assert_eq!(d.os, Some("windows"), "{}", m.name);
        assert_eq!(
            Some(d.page_tables[0].dtb.0),
            t["dtb"].as_u64(),
            "{}",
            m.name
        );
        assert_eq!(d.kernel_base, t["kernel_base"].as_u64(), "{}", m.name);
        let id = format!("{}-{}", text(&t["pdb"]["guid"]), t["pdb"]["age"]);
        assert_eq!(d.build_id, Some(id), "{}", m.name);
    }
}

#[test]
fn info_is_what_the_machine_was_set_up_with() {
    for m in machines() {
        let t = m.build("windows/info");
        let of = |c| cell(&t, 0, c);
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", m.name);
        assert_eq!(of("build"), text(&m.truth["build"]), "{}", m.name);
        assert_eq!(of("major"), text(&m.truth["version"][0]), "{}", m.name);
        assert_eq!(of("minor"), text(&m.truth["version"][1]), "{}", m.name);
        assert_eq!(of("processors"), text(&m.truth["cpus"]), "{}", m.name);
        assert_eq!(
            of("captured"),
            micros(&m.truth["system_time"]),
            "{}",
            m.name
        );
        assert_eq!(of("boot"), micros(&m.truth["boot_time"]), "{}", m.name);
        assert_eq!(
            of("kernel_base"),
            text(&m.truth["kernel_base"]),
            "{}",
            m.name
        );
        assert_eq!(of("system_root"), "C:\\Windows", "{}", m.name);
    }
}

#[test]
fn the_list_of_processes_is_the_kernels() {
    for m in machines() {
        let t = m.build("windows/pslist");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", m.name);
        assert_eq!(anomalies(&t), [], "{}", m.name);
        let want = told(
            m.processes().filter(|p| p["in_active_list"] == true),
            &[
                "pid",
                "ppid",
                "image_file_name",
                "@create_time",
                "@exit_time",
                "dtb",
                "eprocess",
                "eprocess_pa",
                "wow64",
            ],
        );
        let columns = [
            "pid", "ppid", "comm", "start", "exit", "dtb", "eprocess", "physical", "wow64",
        ];
        assert_eq!(rows(&t, &columns), want, "{}", m.name);
        for p in m.running() {
            let row = (0..t.rows.len()).find(|r| cell(&t, *r, "pid") == text(&p["pid"]));
            let row = row.unwrap();
            let threads = p["threads"].as_array().unwrap().len();
            let handles = p["handles"].as_array().unwrap().len();
            assert_eq!(
                cell(&t, row, "threads"),
                threads.to_string(),
                "{} {}",
                m.name,
                p["pid"]
            );
            assert_eq!(
                cell(&t, row, "handles"),
                handles.to_string(),
                "{} {}",
                m.name,
                p["pid"]
            );
        }
        let tree = m.build("windows/pstree");
        assert_eq!(
            rows(&tree, &["pid", "ppid", "comm"]),
            rows(&t, &["pid", "ppid", "comm"]),
            "{}",
            m.name
        );
    }
}

#[test]
fn a_scan_finds_what_the_list_lacks() {
    for m in machines() {
        let t = m.build("windows/psscan");
        let fields = [
            "pid",
            "ppid",
            "image_file_name",
            "@create_time",
            "@exit_time",
            "eprocess_pa",
            "in_active_list",
            "freed_pool_chunk",
        ];
        let want = told(m.processes(), &fields);
        let columns = [
            "pid", "ppid", "comm", "start", "exit", "physical", "listed", "freed",
        ];
        assert_eq!(rows(&t, &columns), want, "{}", m.name);
        let cross = m.build("windows/psxview");
        let hidden = m
            .processes()
            .filter(|p| p["in_active_list"] == false && p["exit_time"].is_null());
        let want: Vec<String> = hidden
            .map(|p| {
                format!(
                    "{}[{}] runs and is not in the kernel's list of processes",
                    text(&p["image_file_name"]),
                    p["pid"]
                )
            })
            .collect();
        assert_eq!(want.len(), 1, "{}: the machine hides one", m.name);
        let got = anomalies(&cross);
        assert_eq!(
            got,
            [("hidden_process", Severity::Critical, want[0].clone())],
            "{}",
            m.name
        );
        let row = (0..cross.rows.len())
            .find(|r| cell(&cross, *r, "list") == "false" && cell(&cross, *r, "ended").is_empty());
        assert_eq!(
            cell(&cross, row.unwrap(), "cid_table"),
            "true",
            "{}",
            m.name
        );
    }
}

#[test]
fn command_lines_and_environments_are_those_of_the_processes() {
    for m in machines() {
        let t = m.build("windows/cmdline");
        let with = |p: &&Value| !p["cmdline"].is_null();
        let want = told(m.running().filter(with), &["pid", "cmdline", "image_path"]);
        let mut got = rows(&t, &["pid", "args", "image"]);
        got.retain(|r| !r[1].is_empty());
        assert_eq!(got, want, "{}", m.name);
        let t = m.build("windows/envars");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", m.name);
        let mut want = Vec::new();
        for p in m.running().filter(with) {
            for (key, value) in p["env"].as_object().unwrap() {
                want.push(vec![text(&p["pid"]), key.clone(), text(value)]);
            }
        }
        want.sort();
        assert_eq!(rows(&t, &["pid", "key", "value"]), want, "{}", m.name);
    }
}

#[test]
fn libraries_are_those_that_were_loaded_and_the_unlinked_one_shows() {
    for m in machines() {
        let t = m.build("windows/dlllist");
        let mut want = Vec::new();
        for p in m.running() {
            for (list, bits) in [("modules", "64"), ("modules32", "32")] {
                for l in p[list].as_array().unwrap() {
                    want.push(vec![
                        text(&p["pid"]),
                        text(&l["base"]),
                        text(&l["size"]),
                        text(&l["path"]),
                        bits.to_owned(),
                    ]);
                }
            }
        }
        want.sort();
        assert_eq!(
            rows(&t, &["pid", "base", "size", "path", "bits"]),
            want,
            "{}",
            m.name
        );
        let t = m.build("windows/ldrmodules");
        let unlinked = &m.truth["story"]["unlinked_dll"];
        let got = anomalies(&t);
        assert_eq!(got.len(), 1, "{} {got:?}", m.name);
        assert_eq!(
            (got[0].0, got[0].1),
            ("unlinked_library", Severity::High),
            "{}",
            m.name
        );
        let row = t.anomalies[0].row;
        let place = (cell(&t, row, "pid"), cell(&t, row, "base"));
        assert_eq!(
            place,
            (text(&unlinked["pid"]), text(&unlinked["base"])),
            "{}",
            m.name
        );
    }
}

#[test]
fn handles_and_their_names_are_those_that_were_opened() {
    for m in machines() {
        let t = m.build("windows/handles");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", m.name);
        let mut want = Vec::new();
        for p in m.running() {
            for h in p["handles"].as_array().unwrap() {
                let name = text(&h["name"]);
                // As the kernel keeps them: 15 characters of a process's name.
                let name = match (text(&h["type"]).as_str(), name.split_once(" Pid ")) {
                    ("Process", Some((n, pid))) => format!("{}[{pid}]", &n[..n.len().min(14)]),
                    ("Thread", Some((tid, pid))) => {
                        format!("thread {} of process {pid}", tid.trim_start_matches("Tid "))
                    }
                    _ => name,
                };
                want.push(vec![
                    text(&p["pid"]),
                    text(&h["handle"]),
                    text(&h["type"]),
                    text(&h["access"]),
                    name,
                ]);
            }
        }
        want.sort();
        assert_eq!(
            rows(&t, &["pid", "handle", "type", "access", "name"]),
            want,
            "{}",
            m.name
        );
    }
}

#[test]
fn users_groups_and_privileges_are_those_of_the_tokens() {
    for m in machines() {
        let t = m.build("windows/getsids");
        let levels = [
            ("system", "16384"),
            ("high", "12288"),
            ("medium", "8192"),
            ("low", "4096"),
        ];
        let mut want = Vec::new();
        let mut rights = Vec::new();
        for p in m.running() {
            let pid = text(&p["pid"]);
            want.push(vec![pid.clone(), text(&p["sid"]), "user".to_owned()]);
            for g in p["groups"].as_array().unwrap() {
                want.push(vec![pid.clone(), text(g), "group".to_owned()]);
            }
            let level = levels.iter().find(|l| p["integrity"] == l.0).unwrap().1;
            want.push(vec![
                pid.clone(),
                format!("S-1-16-{level}"),
                "integrity".to_owned(),
            ]);
            for r in p["privileges"].as_array().unwrap() {
                rights.push(vec![pid.clone(), text(r)]);
            }
        }
        let keep = |mut all: Vec<Vec<String>>| {
            let pids: Vec<String> = m.running().map(|p| text(&p["pid"])).collect();
            all.retain(|r| pids.contains(&r[0]));
            all
        };
        want.sort();
        rights.sort();
        assert_eq!(keep(rows(&t, &["pid", "sid", "role"])), want, "{}", m.name);
        let t = m.build("windows/privileges");
        assert_eq!(keep(rows(&t, &["pid", "privilege"])), rights, "{}", m.name);
    }
}

#[test]
fn threads_are_those_that_run() {
    for m in machines() {
        let t = m.build("windows/threads");
        let mut want = Vec::new();
        for p in m.running() {
            for own in p["threads"].as_array().unwrap() {
                want.push(vec![
                    text(&p["pid"]),
                    text(&own["tid"]),
                    text(&own["ethread"]),
                    text(&own["start"]),
                ]);
            }
        }
        want.sort();
        let mut got = rows(&t, &["pid", "tid", "ethread", "start_address"]);
        let pids: Vec<String> = m.running().map(|p| text(&p["pid"])).collect();
        got.retain(|r| pids.contains(&r[0]));
        assert_eq!(got, want, "{}", m.name);
    }
}

#[test]
fn reserved_memory_is_listed_and_what_was_injected_shows() {
    for m in machines() {
        let t = m.build("windows/vadinfo");
        let mut want = Vec::new();
        for p in m.running() {
            for v in p["vads"].as_array().unwrap() {
                want.push(vec![
                    text(&p["pid"]),
                    text(&v["start"]),
                    text(&v["end"]),
                    text(&v["tag"]),
                    text(&v["private"]),
                ]);
            }
        }
        want.sort();
        assert_eq!(
            rows(&t, &["pid", "start", "end", "tag", "private"]),
            want,
            "{}",
            m.name
        );
        let t = m.build("windows/malfind");
        let injected = m.truth["story"]["injected"].as_array().unwrap();
        let mut want: Vec<Vec<String>> = injected
            .iter()
            .map(|i| {
                let kind = if i["kind"] == "pe" {
                    "an image (MZ)"
                } else {
                    "code"
                };
                vec![text(&i["pid"]), text(&i["start"]), kind.to_owned()]
            })
            .collect();
        want.sort();
        assert_eq!(rows(&t, &["pid", "start", "reason"]), want, "{}", m.name);
        let rules: Vec<&str> = anomalies(&t).iter().map(|a| a.0).collect();
        assert!(rules.contains(&"injected_image"), "{} {rules:?}", m.name);
    }
}

#[test]
fn modules_are_those_of_the_loaders_list() {
    for m in machines() {
        let t = m.build("windows/modules");
        let listed = m.truth["drivers"].as_array().unwrap().iter();
        let want = told(
            listed.filter(|d| d["in_list"] == true),
            &["name", "path", "base", "size", "entry"],
        );
        assert_eq!(
            rows(&t, &["name", "path", "base", "size", "record"]),
            want,
            "{}",
            m.name
        );
        let got = anomalies(&t);
        let abused = text(&m.truth["story"]["suspicious_driver"]);
        assert_eq!(got.len(), 1, "{} {got:?}", m.name);
        assert!(got[0].2.contains(&abused), "{} {got:?}", m.name);
    }
}

#[test]
fn memory_of_processes_reaches_what_lies_in_transition_and_is_listed_once() {
    for m in machines() {
        let secret = &m.truth["story"]["secret"];
        let wanted = text(&secret["text"]);
        m.ask(|machine: &dyn Machine| {
            let (mut found, mut seen) = (false, std::collections::HashSet::new());
            let listed = machine
                .resident(&mut Vec::new(), &mut |unit| {
                    for e in &unit.extents {
                        let mut page = vec![0; usize::try_from(e.len).unwrap()];
                        machine.memory().read_phys(e.pa, &mut page).unwrap();
                        found |= page.windows(wanted.len()).any(|w| w == wanted.as_bytes());
                        for p in (0..e.len).step_by(4096) {
                            assert!(seen.insert(e.pa.0 + p), "{}: a page twice", m.name);
                        }
                    }
                    ControlFlow::Continue(())
                })
                .unwrap();
            assert!(found, "{}", m.name);
            let pids: Vec<i64> = listed.iter().map(|r| r.pid).collect();
            for p in m.running().filter(|p| !p["path"].is_null()) {
                assert!(
                    pids.contains(&p["pid"].as_i64().unwrap()),
                    "{} {}",
                    m.name,
                    p["pid"]
                );
            }
        });
    }
}

#[test]
fn a_kernel_without_a_low_stub_and_among_decoys_is_found() {
    for (name, guid) in [
        crate::common::KERNELS[0],
        crate::common::KERNELS[6],
        crate::common::KERNELS[8],
    ] {
        let m = make(name, guid, 77, &["--no-low-stub", "--decoys"]);
        let d = m.discovery();
        assert_eq!(
            Some(d.page_tables[0].dtb.0),
            m.truth["dtb"].as_u64(),
            "{name}"
        );
        let t = m.build("windows/pslist");
        let listed = m.processes().filter(|p| p["in_active_list"] == true);
        assert_eq!(rows(&t, &["pid"]), told(listed, &["pid"]), "{name}");
        // Tags in ordinary data and half a process object are no processes; a stale copy of one is.
        let scan = m.build("windows/psscan");
        let extra = scan.rows.len() - m.processes().count();
        assert!(extra <= 2, "{name}: {extra} more than there are");
    }
}

#[test]
fn endpoints_are_those_that_the_network_driver_holds() {
    for m in machines() {
        let t = m.build("windows/netscan");
        let all = m.truth["network"].as_array().unwrap().iter();
        let fields = [
            "proto", "local", "lport", "remote", "rport", "state", "pid", "@created",
        ];
        let mut want = told(all, &fields);
        for r in &mut want {
            // A listener has no peer, and UDP none that it keeps.
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
        ];
        assert_eq!(rows(&t, &columns), want, "{}", m.name);
        let rules: Vec<&str> = anomalies(&t).iter().map(|a| a.0).collect();
        assert!(
            rules.contains(&"endpoint_of_hidden_process"),
            "{} {rules:?}",
            m.name
        );
    }
}

#[test]
fn driver_objects_are_found_and_the_hidden_driver_shows() {
    for m in machines() {
        let t = m.build("windows/driverscan");
        let drivers = m.truth["drivers"].as_array().unwrap();
        let with = drivers.iter().filter(|d| !d["driver_object"].is_null());
        let mut want: Vec<Vec<String>> = with
            .map(|d| {
                vec![
                    format!("\\Driver\\{}", text(&d["object_name"])),
                    text(&d["base"]),
                    text(&d["size"]),
                    text(&d["in_list"]),
                ]
            })
            .collect();
        want.sort();
        assert_eq!(
            rows(&t, &["name", "start", "size", "listed"]),
            want,
            "{}",
            m.name
        );
        let got = anomalies(&t);
        assert_eq!(got.len(), 1, "{} {got:?}", m.name);
        let hidden = text(&m.truth["story"]["hidden_driver"]);
        let stem = hidden.split('.').next().unwrap();
        assert!(
            got[0].0 == "hidden_driver" && got[0].2.contains(stem),
            "{} {got:?}",
            m.name
        );
    }
}

#[test]
fn file_objects_are_found() {
    for m in machines() {
        let t = m.build("windows/filescan");
        let files = m.truth["files"].as_array().unwrap().iter();
        let want = told(files, &["path", "file_object_pa"]);
        assert_eq!(rows(&t, &["path", "physical"]), want, "{}", m.name);
    }
}

#[test]
fn a_kernel_that_nobody_knows_is_read_by_the_nearest_layouts() {
    for (name, guid) in crate::common::KERNELS {
        let unknown = "0123456789ABCDEF0123456789ABCDEF";
        let m = make(name, guid, 31, &["--record-guid", unknown]);
        let info = m.build("windows/info");
        let symbols = cell(&info, 0, "symbols");
        assert!(
            symbols.contains("nearest") && symbols.contains(unknown),
            "{name}: {symbols}"
        );
        assert_eq!(info.doubts, [symbols], "{name}");
        let t = m.build("windows/pslist");
        let listed = m.processes().filter(|p| p["in_active_list"] == true);
        let want = told(listed, &["pid", "image_file_name", "@create_time"]);
        assert_eq!(rows(&t, &["pid", "comm", "start"]), want, "{name}");
        let t = m.build("windows/handles");
        let open: usize = m
            .running()
            .map(|p| p["handles"].as_array().unwrap().len())
            .sum();
        assert_eq!(t.rows.len(), open, "{name}");
        assert!(
            t.rows
                .iter()
                .all(|r| r[3] != ramsift_os::table::Value::from("")),
            "{name}: types"
        );
        let t = m.build("windows/malfind");
        assert_eq!(
            t.rows.len(),
            m.truth["story"]["injected"].as_array().unwrap().len(),
            "{name}"
        );
        let t = m.build("windows/modules");
        let all = m.truth["drivers"].as_array().unwrap().iter();
        assert_eq!(
            t.rows.len(),
            all.filter(|d| d["in_list"] == true).count(),
            "{name}"
        );
    }
}
