//! Views of shells.

use crate::common::{build, each_with_tasks, number, text};
use ramsift_os::table::Value;

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
            // number time command
            let want: Vec<(i128, i128, String)> = c.truth["history"][user]
                .as_str()
                .unwrap()
                .lines()
                .map(|l| {
                    let (n, rest) = l.trim_start().split_once("  ").unwrap();
                    let (time, command) = rest.split_once(' ').unwrap();
                    let time: i128 = time.parse().unwrap();
                    (n.parse().unwrap(), time * 1_000_000, command.to_owned())
                })
                .collect();
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
