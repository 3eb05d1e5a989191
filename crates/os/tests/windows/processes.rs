//! Views that judge processes, against what the generator put into the machines.

use crate::common::{KERNELS, Made, cell, machines, make, rows, text};
use ramsift_os::table::Table;

/// Rules and reasons of a view's anomalies, sorted.
fn rules(t: &Table) -> Vec<(&'static str, String)> {
    let mut out: Vec<_> = t
        .anomalies
        .iter()
        .map(|a| (a.rule, a.reason.clone()))
        .collect();
    out.sort();
    out
}

/// `svchost.exe[812]` of the process of a part of the story.
fn label(m: &Made, part: &str) -> String {
    let pid = &m.truth["story"][part]["pid"];
    let p = m.processes().find(|p| p["pid"] == *pid).unwrap();
    format!("{}[{pid}]", text(&p["image_file_name"]))
}

#[test]
fn sessions_have_their_processes_and_users() {
    for m in machines() {
        let t = m.build("windows/sessions");
        let mut want = Vec::new();
        for p in m.processes().filter(|p| p["in_active_list"] == true) {
            let session = p["session"].as_i64().unwrap();
            let session = if session < 0 {
                String::new()
            } else {
                session.to_string()
            };
            want.push(vec![
                session,
                text(&p["pid"]),
                text(&p["image_file_name"]),
                text(&p["env"]["USERNAME"]),
            ]);
        }
        want.sort();
        assert_eq!(
            rows(&t, &["session", "pid", "comm", "user"]),
            want,
            "{}",
            m.name
        );
        // One session after the other.
        let order: Vec<String> = (0..t.rows.len()).map(|r| cell(&t, r, "session")).collect();
        assert!(order.is_sorted(), "{} {order:?}", m.name);
    }
}

#[test]
fn threads_that_begin_outside_images_show() {
    for m in machines() {
        let t = m.build("windows/suspicious_threads");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", m.name);
        let odd = m.truth["story"]["odd_threads"].as_array().unwrap();
        let mut want: Vec<Vec<String>> = odd
            .iter()
            .map(|o| {
                let reason = if o["pid"] == 4 {
                    "in no module of the kernel"
                } else {
                    "in private memory"
                };
                vec![
                    text(&o["pid"]),
                    text(&o["tid"]),
                    text(&o["start"]),
                    reason.to_owned(),
                ]
            })
            .collect();
        // The threads of the program that was emptied begin in what is there now.
        let hollowed = &m.truth["story"]["hollowed"];
        let p = m.processes().find(|p| p["pid"] == hollowed["pid"]).unwrap();
        for own in p["threads"].as_array().unwrap() {
            want.push(vec![
                text(&p["pid"]),
                text(&own["tid"]),
                text(&own["start"]),
                "in private memory".to_owned(),
            ]);
        }
        want.sort();
        assert_eq!(
            rows(&t, &["pid", "tid", "address", "reason"]),
            want,
            "{}",
            m.name
        );
        assert!(
            t.anomalies
                .iter()
                .all(|a| a.rule == "thread_outside_images"),
            "{}",
            m.name
        );
        assert_eq!(t.anomalies.len(), want.len(), "{}", m.name);
    }
}

#[test]
fn programs_that_were_emptied_or_lie_about_themselves_show() {
    for m in machines() {
        let t = m.build("windows/hollowprocesses");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", m.name);
        let hollowed = &m.truth["story"]["hollowed"];
        let mut want = Vec::new();
        for p in m.running().filter(|p| !p["path"].is_null()) {
            let mapped = if p["pid"] == hollowed["pid"] {
                String::new()
            } else {
                text(&p["kernel_path"])
            };
            let base = text(&p["modules"][0]["base"]);
            want.push(vec![
                text(&p["pid"]),
                base.clone(),
                base,
                text(&p["image_path"]),
                mapped,
            ]);
        }
        want.sort();
        let columns = ["pid", "base", "peb_base", "peb_path", "mapped"];
        let mut got = rows(&t, &columns);
        // What was started with a path of its own is mapped by that of the disk.
        for r in &mut got {
            let p = m.running().find(|p| text(&p["pid"]) == r[0]).unwrap();
            if !r[4].is_empty() && p["kernel_path"].is_null() {
                r[4] = String::new();
            }
        }
        got.sort();
        assert_eq!(got, want, "{}", m.name);
        let found = rules(&t);
        assert_eq!(found.len(), 2, "{} {found:?}", m.name);
        assert_eq!(
            (found[0].0, found[1].0),
            ("hollowed_process", "peb_disagrees")
        );
        assert!(
            found[0].1.starts_with(&label(m, "hollowed")),
            "{} {found:?}",
            m.name
        );
        assert!(
            found[1].1.starts_with(&label(m, "spoofed_peb")),
            "{} {found:?}",
            m.name
        );
    }
}

#[test]
fn rights_that_do_not_fit_show() {
    for m in machines() {
        let found = rules(&m.build("windows/privileges"));
        let forged = label(m, "forged_rights");
        assert_eq!(found.len(), 2, "{} {found:?}", m.name);
        assert_eq!(found[0].0, "excessive_rights");
        assert!(
            found[0].1.starts_with(&forged) && found[0].1.contains("SeDebug"),
            "{}",
            found[0].1
        );
        assert_eq!(found[1].0, "forged_rights");
        assert!(
            found[1].1.starts_with(&forged) && found[1].1.contains("SeTcb"),
            "{}",
            found[1].1
        );
        let found = rules(&m.build("windows/getsids"));
        assert_eq!(found.len(), 1, "{} {found:?}", m.name);
        assert_eq!(found[0].0, "stolen_token");
        let want = format!("{} has the token of System[4]", label(m, "stolen_token"));
        assert!(found[0].1.starts_with(&want), "{} {}", m.name, found[0].1);
    }
}

#[test]
fn injected_code_is_disassembled() {
    for m in machines() {
        let t = m.build("windows/malfind");
        for r in 0..t.rows.len() {
            let code = cell(&t, r, "disasm");
            if cell(&t, r, "reason") == "code" {
                // fc 48 83 e4 f0 e8 c0 00 00 00, by the processor's manual.
                assert!(
                    code.starts_with("cld; and rsp,0xfffffffffffffff0; call 0x"),
                    "{} {code}",
                    m.name
                );
            } else {
                assert_eq!(code, "", "{}", m.name);
            }
        }
    }
}

#[test]
fn versions_are_those_of_the_images() {
    for m in machines() {
        let t = m.build("windows/verinfo");
        let version: Vec<String> = m.truth["version"]
            .as_array()
            .unwrap()
            .iter()
            .map(text)
            .collect();
        let version = version.join(".");
        let mut want = Vec::new();
        for d in m.truth["drivers"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|d| d["in_list"] == true)
        {
            let own = if d["name"] == m.truth["story"]["suspicious_driver"] {
                "1.0.0.1"
            } else {
                &version
            };
            want.push(vec![String::new(), text(&d["name"]), own.to_owned()]);
        }
        let hollowed = &m.truth["story"]["hollowed"];
        for p in m.running() {
            let lists = [&p["modules"], &p["modules32"]].map(|l| l.as_array().unwrap());
            // The program itself is in both lists of a 32-bit one.
            for (i, l) in lists[0].iter().chain(lists[1].iter().skip(1)).enumerate() {
                if i == 0 && p["pid"] == hollowed["pid"] {
                    continue;
                }
                let name = text(&l["path"]).rsplit('\\').next().unwrap().to_owned();
                want.push(vec![text(&p["pid"]), name, version.clone()]);
            }
        }
        let odd = &m.truth["story"]["unlinked_dll"];
        let name = text(&odd["path"]).rsplit('\\').next().unwrap().to_owned();
        want.push(vec![text(&odd["pid"]), name, version.clone()]);
        want.sort();
        assert_eq!(rows(&t, &["pid", "name", "version"]), want, "{}", m.name);
        let kernel = (0..t.rows.len())
            .find(|r| cell(&t, *r, "name") == "ntoskrnl.exe")
            .unwrap();
        assert_eq!(
            cell(&t, kernel, "company"),
            "Microsoft Corporation",
            "{}",
            m.name
        );
        assert_eq!(
            cell(&t, kernel, "description"),
            "NT Kernel & System",
            "{}",
            m.name
        );
        assert_eq!(
            cell(&t, kernel, "original_name"),
            "ntoskrnl.exe",
            "{}",
            m.name
        );
    }
}

#[test]
fn nothing_is_wrong_with_a_clean_machine() {
    for (i, (name, guid)) in KERNELS.iter().enumerate() {
        let m = make(name, guid, 91 + i as u32, &["--clean"]);
        m.ask(|machine| {
            for view in ramsift_os::views().filter(|v| v.name.starts_with("windows/")) {
                let t = match machine.build(view) {
                    // Of this build nobody published the structs of the network driver's tables.
                    Err(_) if (*name, view.name) == ("10-14393", "windows/netstat") => continue,
                    built => built.unwrap_or_else(|e| panic!("{name} {}: {e}", view.name)),
                };
                assert_eq!(t.anomalies, [], "{name} {}", view.name);
                assert_eq!(t.doubts, Vec::<String>::new(), "{name} {}", view.name);
            }
        });
    }
}
