//! The kernel's clocks: times since boot as times of day.
//!
//! ```text
//! real time = monotonic + offs_real    boot time = monotonic + offs_boot
//! offs_real = -wall_to_monotonic, the one in nanoseconds, the other in seconds and nanoseconds
//! ```
//!
//! BTF has `struct timekeeper` but not the type of `tk_core`, which holds one behind a lock whose
//! size is the configuration's. So it is looked for behind the symbol, and taken where its two
//! accounts of the same distance agree.
//!
//! Sources: Linux `include/linux/timekeeper_internal.h`, `kernel/time/timekeeping.c`.

use crate::linux::{Kernel, Object};

/// Symbols at or behind which the timekeeper of the machine lies: since 6.18 one of several.
const SYMBOLS: [&str; 2] = ["tk_core", "timekeeper_data"];
/// Bytes behind the symbol in which it is looked for.
const REACH: u64 = 512;
const SECOND: i64 = 1_000_000_000;

/// How the machine's clocks lie to each other, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// From monotonic to real time.
    pub offs_real: i64,
    /// From monotonic to boot time: how long it slept.
    pub offs_boot: i64,
    /// Seconds since 1970 of real time at the last tick.
    pub seconds: u64,
}

impl Clock {
    /// Microseconds since 1970 UTC of a time since boot in nanoseconds (`CLOCK_BOOTTIME`).
    pub fn utc(&self, boot_ns: u64) -> Option<i64> {
        let monotonic = i64::try_from(boot_ns).ok()?.checked_sub(self.offs_boot)?;
        self.monotonic_utc(monotonic)
    }

    /// The same of a time of `CLOCK_MONOTONIC`.
    pub fn monotonic_utc(&self, ns: i64) -> Option<i64> {
        Some(ns.checked_add(self.offs_real)?.div_euclid(1000))
    }

    /// Microseconds since 1970 UTC of the boot.
    pub fn boot(&self) -> Option<i64> {
        self.utc(0)
    }
}

impl Kernel<'_> {
    /// The machine's clocks, where they can be found.
    pub fn clock(&self) -> Option<Clock> {
        SYMBOLS
            .iter()
            .find_map(|name| self.clock_at(self.symbols.address(name)?.0, REACH))
    }

    /// The clocks of the timekeeper that begins at an address or within some bytes behind it.
    pub(in crate::linux) fn clock_at(&self, start: u64, reach: u64) -> Option<Clock> {
        (0..reach).step_by(8).find_map(|at| {
            let keeper = self.object("timekeeper", start.wrapping_add(at));
            clock(&keeper)
        })
    }

    /// Microseconds since 1970 UTC of a time since boot in nanoseconds (`CLOCK_BOOTTIME`). Who asks
    /// for many keeps [`Kernel::clock`] instead.
    pub fn to_utc(&self, boot_ns: u64) -> Option<i64> {
        self.clock()?.utc(boot_ns)
    }
}

/// The clocks of what may be a timekeeper, if it is one.
fn clock(keeper: &Object<'_>) -> Option<Clock> {
    let signed = |path: &str| Some(keeper.number(path).ok()? as i64);
    let out = Clock {
        offs_real: signed("offs_real")?,
        offs_boot: signed("offs_boot")?,
        seconds: keeper.number("xtime_sec").ok()?,
    };
    let nanoseconds = signed("wall_to_monotonic.tv_nsec")?;
    let distance = signed("wall_to_monotonic.tv_sec")?
        .checked_mul(SECOND)?
        .checked_add(nanoseconds)?;
    let agree = distance.checked_neg() == Some(out.offs_real) && out.offs_real != 0;
    let normal = (0..SECOND).contains(&nanoseconds) && out.offs_boot >= 0;
    // Running, hence with a factor from the clock's ticks to nanoseconds and later than its boot.
    let running = keeper.number("tkr_mono.mult").ok()? != 0
        && i64::try_from(out.seconds).ok()? >= out.offs_real / SECOND;
    (agree && normal && running).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_is_part_of_boot_time_only() {
        let c = Clock {
            offs_real: 1_700_000_000 * SECOND,
            offs_boot: 5 * SECOND,
            seconds: 1_700_000_100,
        };
        assert_eq!(c.boot(), Some(1_699_999_995_000_000));
        assert_eq!(c.utc(7_000_001_000), Some(1_700_000_002_000_001));
        assert_eq!(c.utc(u64::MAX), None);
    }
}
