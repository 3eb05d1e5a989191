//! What a container says of the machine that it was taken of, beyond its memory.

use super::notes;
use serde::{Deserialize, Serialize};

/// Bytes of a VMCOREINFO that are kept; the kernel's has one page.
const MAX_INFO: usize = 64 << 10;
/// Seconds from 1601, when clocks of Windows begin, to 1970.
const FROM_1601: i64 = 11_644_473_600;
/// Times before 1995 and from 2200 on are of clocks that were never set.
const SOUND: std::ops::Range<i64> = 788_918_400..7_258_118_400;

/// What a container says of its machine. What it does not say is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Told {
    /// The system: `linux`, `windows`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// The kernel: a release of Linux, a build of Windows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// The machine's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// When the memory was taken, in microseconds since 1970 (UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acquired: Option<i64>,
    /// The text of the kernel's VMCOREINFO.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmcoreinfo: Option<String>,
}

impl Told {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes what VMCOREINFO says: only Linux has one. `CRASHTIME` is there after a crash.
    pub(super) fn take_vmcoreinfo(&mut self, text: &[u8]) {
        let text = text.get(..MAX_INFO).unwrap_or(text);
        let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
        let text = String::from_utf8_lossy(&text[..end]);
        let value = |key: &str| notes::value(&text, key).map(str::to_owned);
        let Some(release) = value("OSRELEASE") else {
            return;
        };
        self.system = Some("linux".into());
        self.kernel = Some(release);
        let crashed = value("CRASHTIME").and_then(|v| v.trim().parse().ok());
        self.acquired = crashed.and_then(seconds).or(self.acquired);
        self.vmcoreinfo = Some(text.into_owned());
    }

    /// Takes a time of Windows: 100 ns since 1601.
    pub(super) fn take_windows_time(&mut self, ticks: u64) {
        let micros = i64::try_from(ticks / 10).ok();
        let micros = micros.map(|m| m - FROM_1601 * 1_000_000);
        self.acquired = micros.filter(|m| SOUND.contains(&(m / 1_000_000)));
    }
}

/// Microseconds of a time in seconds, if a clock that was set can have shown it.
pub(super) fn seconds(n: i64) -> Option<i64> {
    SOUND.contains(&n).then_some(n * 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_crashed_kernel_says() {
        let mut t = Told::default();
        t.take_vmcoreinfo(
            b"OSRELEASE=6.1.0-50-cloud-amd64\nPAGESIZE=4096\nCRASHTIME=1709210096\n\0\0",
        );
        assert_eq!(t.system.as_deref(), Some("linux"));
        assert_eq!(t.kernel.as_deref(), Some("6.1.0-50-cloud-amd64"));
        assert_eq!(t.acquired, Some(1_709_210_096_000_000));
        assert!(t.vmcoreinfo.is_some_and(|v| v.ends_with("96\n")));
        let mut t = Told::default();
        t.take_vmcoreinfo(b"nothing of the kind");
        assert!(t.is_empty());
    }

    /// By `date -u -d @1709210096`: 2024-02-29 12:34:56.
    #[test]
    fn times_of_windows_count_from_1601() {
        let mut t = Told::default();
        t.take_windows_time((1_709_210_096 + 11_644_473_600) * 10_000_000 + 70);
        assert_eq!(t.acquired, Some(1_709_210_096_000_007));
        for never in [0, u64::MAX, 0x4547_4150_4547_4150] {
            t.take_windows_time(never);
            assert_eq!(t.acquired, None, "{never:#x}");
        }
    }
}
