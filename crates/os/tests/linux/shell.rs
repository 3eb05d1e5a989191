//! Views of shells.

use crate::common::{Capture, build, each_with_tasks, number, text};
use ramsift_os::table::Value;

/// What `history` printed: number, time, command.
fn printed(c: &Capture, user: &str) -> Vec<(i128, i128, String)> {
    let lines = c.truth["history"][user].as_str().unwrap().lines();
    lines
        .map(|l| {
            let (n, rest) = l.trim_start().split_once("  ").unwrap();
            let (time, command) = rest.split_once(' ').unwrap();
            let time: i128 = time.parse().unwrap();
            (n.parse().unwrap(), time * 1_000_000, command.to_owned())
        })
        .collect()
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn commands_are_those_that_history_printed() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/bash");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        for user in ["root", "alice"] {
            let pid = c.truth["notes"][format!("bash_{user}")].as_u64().unwrap();
            let want = printed(c, user);
            assert!(want.len() > 4);
            let got: Vec<(i128, i128, String)> = (0..t.rows.len())
                .filter(|r| number(&t, *r, "pid") == i128::from(pid))
                .filter(|r| t.cell(*r, "index") != Some(&Value::Null))
                .map(|r| {
                    let command = text(&t, r, "command").to_owned();
                    (number(&t, r, "index"), number(&t, r, "time"), command)
                })
                .collect();
            assert_eq!(got, want, "{} {user}", c.name);
        }
        // Nobody else typed anything.
        let pids: Vec<i128> = ["bash_root", "bash_alice"]
            .map(|n| i128::from(c.truth["notes"][n].as_u64().unwrap()))
            .to_vec();
        for r in 0..t.rows.len() {
            assert!(pids.contains(&number(&t, r, "pid")), "{} row {r}", c.name);
        }
        assert_eq!(t.events.len(), t.rows.len());
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn history_is_what_shells_and_their_files_have() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/history");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        let of = |source: &str, user: &str| -> Vec<(i128, i128, String)> {
            (0..t.rows.len())
                .filter(|r| text(&t, *r, "source") == source && text(&t, *r, "user") == user)
                .filter(|r| t.cell(*r, "index") != Some(&Value::Null))
                .map(|r| {
                    assert_eq!(text(&t, r, "program"), "bash");
                    assert_eq!(t.cell(r, "cut"), Some(&Value::Flag(false)));
                    let command = text(&t, r, "command").to_owned();
                    (number(&t, r, "index"), number(&t, r, "time"), command)
                })
                .collect()
        };
        let mut rows = 0;
        for user in ["root", "alice"] {
            let want = printed(c, user);
            assert_eq!(of("memory", user), want, "{} {user}", c.name);
            rows += want.len();
        }
        // The lines from before the shell's start are those that its file has.
        let old = of("/root/.bash_history", "root");
        assert_eq!(old, printed(c, "root")[..3], "{}", c.name);
        let read = |r: &usize| t.cell(*r, "index") != Some(&Value::Null);
        let all = (0..t.rows.len()).filter(read).count();
        assert_eq!(all, rows + old.len(), "{}", c.name);
        // Of what the scenario types only one line gives something away.
        let flagged: Vec<(&str, &str)> = t
            .anomalies
            .iter()
            .map(|a| (a.rule, text(&t, a.row, "command")))
            .collect();
        let mysql = "mysql -u root -pS3cr3t-LAB-db -e 'show tables'";
        assert_eq!(flagged, [("secret_on_command_line", mysql)], "{}", c.name);
        assert!(!t.anomalies[0].reason.contains("S3c"), "{}", c.name);
        // All are on the timeline by linux/bash.
        assert_eq!(t.events, [], "{}", c.name);
    });
}
