//! Carvers: one pass over raw image bytes that finds log lines, event records, files, text and
//! indicators.
//!
//! ```text
//! window -> page -> constant? skip -> class bitmaps -> '.', '@', ':', "dd:dd:dd" candidates
//!                                  |                     -> addresses, names, log lines
//!                                  +-> blocks of text ------> text regions less the lines
//!        -> literals (Teddy) -> one carver per file format, event log chunks, kernel anchors
//! ```
//!
//! What is found depends on the bytes of the image alone: every decision looks at a bounded
//! number of bytes before a spot and at as many after it as it likes. So a scan in windows finds
//! exactly what one scan of the whole finds; see [`api`].

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed test says where"))]

pub mod api;
pub mod windows;

mod anchors;
mod authority;
mod carver;
mod chars;
mod crc;
mod domain;
mod driver;
mod elf;
mod email;
mod ends;
mod escape;
mod evtx;
mod feature;
mod idn;
mod ip;
mod jpeg;
mod lines;
mod masks;
mod options;
mod page;
mod pdf;
mod pe;
mod png;
mod reserved;
mod source;
mod sqlite;
mod text;
mod tld;
mod url;
mod utmp;
mod zip;
mod zone;
mod zones;

pub use options::{CarverError, CarverOptions};
pub use page::constant_page;

use aho_corasick::packed;
use api::{ReadMore, ScanStats, Sink, Window};
use carver::Carver;

/// The carvers that anchor on literals.
static REGISTRY: &[&dyn Carver] = &[
    &anchors::Anchors,
    &elf::Elf,
    &evtx::EvtxChunk,
    &evtx::EvtxFile,
    &jpeg::Jpeg,
    &pdf::Pdf,
    &pe::Pe,
    &png::Png,
    &sqlite::Sqlite,
    &utmp::Utmp,
    &zip::Zip,
];

/// The carvers that work on class bitmaps, with their versions. The order is that of [`Scans`].
static SCANNERS: &[(&str, u32)] = &[
    ("log", lines::VERSION),
    ("text", text::VERSION),
    ("url", url::VERSION),
    ("domain", domain::VERSION),
    ("email", email::VERSION),
    ("ip", ip::VERSION),
];

/// Which of the bitmap carvers run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scans {
    pub(crate) log: bool,
    pub(crate) text: bool,
    pub(crate) url: bool,
    pub(crate) domain: bool,
    pub(crate) email: bool,
    pub(crate) ip: bool,
}

/// A set of carvers, ready to scan; share one between all threads.
pub struct CarverSet {
    options: CarverOptions,
    clock: zone::Clock,
    scans: Scans,
    carvers: Vec<&'static dyn Carver>,
    /// Finds the literals of `carvers`.
    searcher: Option<packed::Searcher>,
    /// For each literal: the carver that wants it.
    owners: Vec<usize>,
    digest: [u8; 32],
}

impl std::fmt::Debug for CarverSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CarverSet")
            .field("names", &self.names())
            .finish_non_exhaustive()
    }
}

impl CarverSet {
    /// Prepares the carvers that `options` asks for.
    pub fn new(options: CarverOptions) -> Result<Self, CarverError> {
        let all = || {
            REGISTRY
                .iter()
                .map(|c| c.name())
                .chain(SCANNERS.iter().map(|s| s.0))
        };
        for name in options.only.iter().flatten() {
            if !all().any(|n| n == name) {
                let mut known: Vec<_> = all().collect();
                known.sort_unstable();
                let known = known.join(", ");
                return Err(CarverError::UnknownCarver {
                    name: name.clone(),
                    known,
                });
            }
        }
        let wanted = |n: &str| {
            options
                .only
                .as_ref()
                .is_none_or(|o| o.iter().any(|x| x == n))
        };
        let carvers: Vec<_> = REGISTRY
            .iter()
            .copied()
            .filter(|c| wanted(c.name()))
            .collect();
        let mut owners = Vec::new();
        let mut literals = Vec::new();
        for (i, c) in carvers.iter().enumerate() {
            for l in c.literals() {
                owners.push(i);
                literals.push(*l);
            }
        }
        let searcher = if literals.is_empty() {
            None
        } else {
            let built = packed::Config::new().builder().extend(&literals).build();
            Some(built.ok_or(CarverError::Searcher(literals.len()))?)
        };
        let scans = Scans {
            log: wanted("log"),
            text: wanted("text"),
            url: wanted("url"),
            domain: wanted("domain"),
            email: wanted("email"),
            ip: wanted("ip"),
        };
        let clock = options.clock();
        let mut set = Self {
            options,
            clock,
            scans,
            carvers,
            searcher,
            owners,
            digest: [0; 32],
        };
        set.digest = set.compute_digest();
        Ok(set)
    }

    /// The names of the carvers that run, sorted.
    pub fn names(&self) -> Vec<&'static str> {
        let wanted = |n: &str| match &self.options.only {
            None => true,
            Some(only) => only.iter().any(|x| x == n),
        };
        let scanners = SCANNERS.iter().map(|s| s.0).filter(|n| wanted(n));
        let mut names: Vec<_> = self
            .carvers
            .iter()
            .map(|c| c.name())
            .chain(scanners)
            .collect();
        names.sort_unstable();
        names
    }

    /// Digest over names, versions and options: the same digest finds the same things in the same
    /// bytes.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The version of a carver; 0 for a name that no carver has.
    pub fn carver_version(&self, name: &str) -> u32 {
        let literal = REGISTRY
            .iter()
            .find(|c| c.name() == name)
            .map(|c| c.version());
        let scanner = SCANNERS.iter().find(|s| s.0 == name).map(|s| s.1);
        literal.or(scanner).unwrap_or(0)
    }

    /// One pass over the window's core. `stop` is asked about every MiB and inside long carvers;
    /// once it returns true, the rest of the core is reported as partial, "out of time".
    pub fn scan(
        &self,
        window: &Window<'_>,
        more: &mut dyn ReadMore,
        sink: &mut dyn Sink,
        stop: &dyn Fn() -> bool,
    ) -> ScanStats {
        driver::scan(self, window, more, sink, stop)
    }

    fn compute_digest(&self) -> [u8; 32] {
        let mut h = blake3::Hasher::new();
        let mut put = |s: &str| {
            h.update(&(s.len() as u64).to_le_bytes());
            h.update(s.as_bytes());
        };
        put("ramsift-carvers 1");
        for name in self.names() {
            put(name);
            put(&self.carver_version(name).to_string());
        }
        put(&self.options.max_artifact.to_string());
        put(&format!("{:?}", self.options.timezone));
        put(&format!("{:?}", self.options.reference_time));
        h.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_literal_begins_another() {
        // Of two literals at one place a search reports one.
        let all: Vec<&[u8]> = REGISTRY
            .iter()
            .flat_map(|c| c.literals())
            .copied()
            .collect();
        assert!(all.len() <= 64, "the packed searcher takes 64");
        for (i, a) in all.iter().enumerate() {
            assert!(a.len() >= 3 && a.len() <= driver::LONGEST_LITERAL, "{a:?}");
            for (j, b) in all.iter().enumerate() {
                assert!(i == j || !a.starts_with(b), "{a:?} starts with {b:?}");
            }
        }
    }

    #[test]
    fn unknown_names_are_refused_and_digests_tell_sets_apart() {
        let only = |n: &str| CarverOptions {
            only: Some(vec![n.into()]),
            ..Default::default()
        };
        assert!(matches!(
            CarverSet::new(only("nope")),
            Err(CarverError::UnknownCarver { .. })
        ));
        let (a, b) = (
            CarverSet::new(only("png")).unwrap(),
            CarverSet::new(only("url")).unwrap(),
        );
        assert_eq!((a.names(), b.names()), (vec!["png"], vec!["url"]));
        assert_ne!(a.digest(), b.digest());
        assert_eq!(a.digest(), CarverSet::new(only("png")).unwrap().digest());
        assert_eq!(a.carver_version("nope"), 0);
    }

    #[test]
    fn a_set_is_shared_between_threads() {
        fn check<T: Send + Sync>() {}
        check::<CarverSet>();
    }
}
