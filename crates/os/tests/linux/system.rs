//! Views of the machine as a whole: clocks, names, logs.

use crate::common::{build, each, number};

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn the_clock_is_the_machines() {
    each(|c, k| {
        let t = build(k, "linux/boottime");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        assert_eq!(t.rows.len(), 1, "{}: one time namespace", c.name);
        // The second in which the boot lies, as /proc/stat cuts it.
        let boot = number(&t, 0, "boot");
        let btime = i128::from(c.truth["btime"].as_i64().unwrap());
        assert_eq!(boot.div_euclid(1_000_000), btime, "{}", c.name);
        // The machine went on while it told the truth, a minute at most.
        let when = c.truth["when"].as_f64().unwrap() as i128;
        let captured = number(&t, 0, "captured") / 1_000_000;
        assert!(
            (when - 1..when + 300).contains(&captured),
            "{}: {captured} {when}",
            c.name
        );
        let clock = k.clock().unwrap();
        assert_eq!(
            clock.utc(1_000).unwrap(),
            clock.boot().unwrap() + 1,
            "{}",
            c.name
        );
    });
}
