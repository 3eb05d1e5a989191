//! A loaded set of rules: what is known of each, and what scanners need.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::Read,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use serde::{Deserialize, Serialize};
use yara_x::Rules;

use super::{
    compile::{Body, Compiled, compile},
    cond::Cond,
    externals::{External, Externals},
    info::{RuleError, RuleInfo, RulesError},
    load::{Content, Sources, read_sources},
    probe::Probe,
};

/// Counted up with every change to classification, lowering or evaluation: part of the digest.
const CLASSIFICATION_VERSION: u32 = 2;
/// The exact yara-x that a serialised set is bound to. A test holds it to `Cargo.lock`.
const YARA_X_VERSION: &str = "1.22.1";
/// First bytes of a serialised set.
const MAGIC: &[u8; 8] = b"RSRULES1";
/// More rules than this that need every byte, and zero pages aren't skipped for any.
const MAX_WHOLE: usize = 64;

/// Rules, compiled and classified. Cheap to clone.
#[derive(Clone)]
pub struct RuleSet {
    inner: Arc<Inner>,
}

struct Inner {
    infos: Vec<RuleInfo>,
    bodies: Vec<Body>,
    errors: Vec<RuleError>,
    warnings: Vec<RuleError>,
    externals: Externals,
    digest: [u8; 32],
    /// Modules that the sources import.
    imports: Vec<String>,
    longest: u64,
    /// Global rules of each namespace that has any.
    globals: BTreeMap<String, Vec<u32>>,
    /// Patterns that can lie neither in zeros nor across a long stretch of them.
    skipping: Option<Probe>,
    /// All other patterns.
    whole: Option<Probe>,
    full: Vec<Full>,
}

/// A set with its conditions, made ready when the first file is scanned: generating its code is what
/// takes long when a set is loaded.
struct Full {
    first: u32,
    bytes: Vec<u8>,
    ready: OnceLock<Result<Rules, String>>,
}

impl fmt::Debug for RuleSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuleSet")
            .field("rules", &self.inner.infos.len())
            .field("errors", &self.inner.errors.len())
            .finish_non_exhaustive()
    }
}

/// Loads rules from files and folders (`*.yar`, `*.yara`, and `*.yarc` compiled by yara-x, in order
/// of their names), with what they include.
///
/// Each file has a namespace of its own, so two files may define rules of the same name; files that
/// share rules include them. A file that another one includes isn't loaded a second time. What
/// can't be compiled is told by [`RuleSet::errors`], and the rest runs.
///
/// `defined`: external variables besides those that are always defined.
pub fn load_rules(
    paths: &[PathBuf],
    defined: Vec<(String, External)>,
) -> Result<RuleSet, RulesError> {
    if let Some(set) = compiled(paths, &defined)? {
        return Ok(set);
    }
    RuleSet::build(read_sources(paths)?, Externals { defined })
}

/// The set that `ramsift rules compile` or a job left in a file, if that is what is named.
pub(super) fn compiled(
    paths: &[PathBuf],
    defined: &[(String, External)],
) -> Result<Option<RuleSet>, RulesError> {
    let is_set = |path: &&PathBuf| {
        let mut first = [0; MAGIC.len()];
        let read = std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut first));
        path.is_file() && read.is_ok() && first == *MAGIC
    };
    let Some(path) = paths.iter().find(is_set) else {
        return Ok(None);
    };
    if paths.len() > 1 || !defined.is_empty() {
        return Err(RulesError::Format {
            reason: format!(
                "{} is a compiled set and stands alone, with the variables that it was compiled with",
                path.display()
            ),
        });
    }
    let bytes = std::fs::read(path).map_err(|source| RulesError::Read {
        path: path.clone(),
        source,
    })?;
    RuleSet::from_bytes(&bytes).map(Some)
}

impl RuleSet {
    /// Rules from one text, for tests and built-in rules. `name` stands for the file's.
    pub fn from_source(name: &str, text: &str) -> Result<Self, RulesError> {
        Self::from_source_with(name, text, Vec::new())
    }

    /// The same with external variables.
    pub fn from_source_with(
        name: &str,
        text: &str,
        defined: Vec<(String, External)>,
    ) -> Result<Self, RulesError> {
        let source = super::load::RuleSource {
            namespace: name.to_owned(),
            file: name.to_owned(),
            content: Content::Text(text.to_owned()),
        };
        let sources = Sources {
            sources: vec![source],
            errors: Vec::new(),
        };
        Self::build(sources, Externals { defined })
    }

    pub(super) fn build(sources: Sources, externals: Externals) -> Result<Self, RulesError> {
        let digest = digest(&sources, &externals);
        let Compiled {
            infos,
            bodies,
            errors,
            warnings,
            full,
            imports,
            foreign,
        } = compile(sources, &externals)?;
        let (skipping, whole) = split(&infos, &bodies)?;
        let bytes = full.serialize().map_err(|e| RulesError::Compile {
            reason: e.to_string(),
        })?;
        let mut sets = vec![Full {
            first: 0,
            bytes,
            ready: OnceLock::from(Ok(full)),
        }];
        for (first, bytes) in foreign {
            sets.push(Full {
                first,
                bytes,
                ready: OnceLock::new(),
            });
        }
        let header = Header {
            infos,
            bodies,
            errors,
            warnings,
            externals,
            digest,
            imports,
            ..Header::default()
        };
        Ok(Self::assemble(header, [skipping, whole], sets))
    }

    fn assemble(header: Header, [skipping, whole]: [Option<Probe>; 2], full: Vec<Full>) -> Self {
        let Header {
            infos,
            bodies,
            errors,
            warnings,
            externals,
            digest,
            imports,
            ..
        } = header;
        let mut globals = BTreeMap::<String, Vec<u32>>::new();
        for info in infos.iter().filter(|i| i.global) {
            globals
                .entry(info.namespace.clone())
                .or_default()
                .push(info.id);
        }
        let safe = infos
            .iter()
            .zip(&bodies)
            .filter(|(i, _)| i.class.is_memory_safe());
        let longest = safe.filter_map(|(_, b)| b.longest).max().unwrap_or(0);
        let inner = Inner {
            infos,
            bodies,
            errors,
            warnings,
            externals,
            digest,
            imports,
            longest,
            globals,
            skipping,
            whole,
            full,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Every rule; a position here is a rule id elsewhere.
    pub fn rules(&self) -> &[RuleInfo] {
        &self.inner.infos
    }

    /// Rules and files that couldn't be used.
    pub fn errors(&self) -> &[RuleError] {
        &self.inner.errors
    }

    /// Rules that were taken as YARA 4 did, although they are not as yara-x wants them.
    pub fn warnings(&self) -> &[RuleError] {
        &self.inner.warnings
    }

    /// Whether a rule asks for the MD5 of a file as an external variable.
    pub(super) fn wants_md5(&self) -> bool {
        let word = |t: &str| {
            t.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '.')
                .any(|w| w == "md5")
        };
        self.inner.bodies.iter().any(|b| word(&b.text))
    }

    /// The names of variables that are set for each file.
    pub(super) fn externals(&self) -> &Externals {
        &self.inner.externals
    }

    /// Names the set: BLAKE3 over the sources in order, the version of yara-x, and that of the
    /// classification. Sets with the same digest give the same findings.
    pub fn digest(&self) -> [u8; 32] {
        self.inner.digest
    }

    /// The longest possible match of any memory-safe pattern that has a bound, in bytes. Chunks need
    /// at least this overlap, and at least [`LOOK_BEHIND`](super::LOOK_BEHIND) before their core.
    pub fn longest_match(&self) -> u64 {
        self.inner.longest
    }

    /// The set for a worker: [`RuleSet::from_bytes`] is quick, unlike loading sources.
    pub fn to_bytes(&self) -> Vec<u8> {
        let inner = &*self.inner;
        let probe = |p: &Option<Probe>| {
            p.as_ref()
                .map(|p| (p.rules.clone(), p.compiled.serialize().unwrap_or_default()))
        };
        let probes = [probe(&inner.skipping), probe(&inner.whole)];
        let mut blobs = Vec::new();
        let mut header = Header {
            yara_x: YARA_X_VERSION.to_owned(),
            classification: CLASSIFICATION_VERSION,
            digest: inner.digest,
            infos: inner.infos.clone(),
            bodies: inner.bodies.clone(),
            errors: inner.errors.clone(),
            warnings: inner.warnings.clone(),
            externals: inner.externals.clone(),
            imports: inner.imports.clone(),
            probes: [None, None],
            full: Vec::new(),
        };
        for (slot, probe) in header.probes.iter_mut().zip(probes) {
            *slot = probe.map(|(rules, bytes)| {
                blobs.push(bytes);
                rules
            });
        }
        for full in &inner.full {
            header.full.push(full.first);
            blobs.push(full.bytes.clone());
        }
        let mut out = MAGIC.to_vec();
        let header = serde_json::to_vec(&header).unwrap_or_default();
        for part in std::iter::once(&header).chain(&blobs) {
            out.extend((part.len() as u64).to_le_bytes());
            out.extend(part);
        }
        out
    }

    /// Reads what [`RuleSet::to_bytes`] wrote. The bytes must come from the same version of this
    /// program and from a trusted place: yara-x's compiled form isn't made for hostile input.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RulesError> {
        let format = |reason: &str| RulesError::Format {
            reason: reason.to_owned(),
        };
        let mut rest = bytes
            .strip_prefix(MAGIC)
            .ok_or_else(|| format("wrong first bytes"))?;
        let mut part = || {
            let (len, tail) = rest.split_first_chunk::<8>()?;
            let (part, tail) = tail.split_at_checked(u64::from_le_bytes(*len).try_into().ok()?)?;
            rest = tail;
            Some(part)
        };
        let cut = || format("cut off");
        let mut header: Header =
            serde_json::from_slice(part().ok_or_else(cut)?).map_err(|e| RulesError::Format {
                reason: e.to_string(),
            })?;
        if header.yara_x != YARA_X_VERSION || header.classification != CLASSIFICATION_VERSION {
            return Err(format("made by another version"));
        }
        let count = header.infos.len();
        let known = |ids: &[u32]| ids.iter().all(|id| (*id as usize) < count);
        if header.bodies.len() != count || !header.probes.iter().flatten().all(|p| known(p)) {
            return Err(format("numbers of rules differ"));
        }
        let mut probes = [None, None];
        for (slot, rules) in probes.iter_mut().zip(std::mem::take(&mut header.probes)) {
            if let Some(rules) = rules {
                *slot = Some(Probe::load(rules, part().ok_or_else(cut)?)?);
            }
        }
        let mut full = Vec::new();
        for first in std::mem::take(&mut header.full) {
            let bytes = part().ok_or_else(cut)?.to_vec();
            full.push(Full {
                first,
                bytes,
                ready: OnceLock::new(),
            });
        }
        Ok(Self::assemble(header, probes, full))
    }

    /// The condition of a memory-safe rule.
    pub(super) fn condition(&self, rule: u32) -> Option<&Cond> {
        self.inner.bodies.get(rule as usize)?.cond.as_ref()
    }

    /// The patterns of a rule, as written after their names.
    pub(super) fn patterns(&self, rule: u32) -> &[String] {
        self.inner
            .bodies
            .get(rule as usize)
            .map_or(&[], |b| &b.patterns)
    }

    /// Global rules that hold `rule` back.
    pub(super) fn globals_of(&self, rule: u32) -> &[u32] {
        let namespace = self
            .inner
            .infos
            .get(rule as usize)
            .map(|i| i.namespace.as_str());
        namespace
            .and_then(|n| self.inner.globals.get(n))
            .map_or(&[], Vec::as_slice)
    }

    /// A rule with all rules that its outcome follows from.
    pub(super) fn dependencies(&self, rule: u32) -> BTreeSet<u32> {
        let mut open = vec![rule];
        open.extend(self.globals_of(rule));
        let mut all = BTreeSet::new();
        while let Some(r) = open.pop() {
            if all.insert(r)
                && let Some(info) = self.inner.infos.get(r as usize)
            {
                open.extend(&info.references);
            }
        }
        all
    }

    /// The probe whose patterns allow zero pages to be skipped, and the one of all others.
    pub(super) fn probes(&self) -> [Option<&Probe>; 2] {
        [self.inner.skipping.as_ref(), self.inner.whole.as_ref()]
    }

    /// Compiles some rules anew, with all that they depend on; `None` where the source isn't known.
    pub(super) fn subset(&self, rules: &[u32]) -> Option<Rules> {
        let wanted: BTreeSet<u32> = rules.iter().flat_map(|r| self.dependencies(*r)).collect();
        let imports: String = self
            .inner
            .imports
            .iter()
            .map(|m| format!("import \"{m}\"\n"))
            .collect();
        let mut compiler = self.inner.externals.compiler(true).ok()?;
        let mut namespace = "";
        for id in wanted {
            let info = self.inner.infos.get(id as usize)?;
            let text = &self.inner.bodies.get(id as usize)?.text;
            if namespace != info.namespace {
                namespace = &info.namespace;
                compiler.new_namespace(namespace);
                compiler.add_source(imports.as_str()).ok()?;
            }
            compiler
                .add_source(text.as_str())
                .ok()
                .filter(|_| !text.is_empty())?;
        }
        Some(compiler.build())
    }

    /// The sets with conditions, each with the id of its first rule.
    pub(super) fn full(&self) -> Result<Vec<(u32, &Rules)>, RulesError> {
        let ready = |f: &'_ Full| {
            f.ready
                .get_or_init(|| Rules::deserialize(&f.bytes).map_err(|e| e.to_string()))
                .as_ref()
                .map(|_| ())
                .map_err(|e| RulesError::Compile { reason: e.clone() })
        };
        let mut out = Vec::new();
        for f in &self.inner.full {
            ready(f)?;
            if let Some(Ok(rules)) = f.ready.get() {
                out.push((f.first, rules));
            }
        }
        Ok(out)
    }
}

#[derive(Default, Serialize, Deserialize)]
struct Header {
    yara_x: String,
    classification: u32,
    digest: [u8; 32],
    infos: Vec<RuleInfo>,
    bodies: Vec<Body>,
    errors: Vec<RuleError>,
    warnings: Vec<RuleError>,
    externals: Externals,
    imports: Vec<String>,
    /// Rule ids of the two probes; their bytes follow the header.
    probes: [Option<Vec<u32>>; 2],
    /// First ids of the full sets; their bytes follow those of the probes.
    full: Vec<u32>,
}

pub(super) fn digest(sources: &Sources, externals: &Externals) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(YARA_X_VERSION.as_bytes());
    part(&CLASSIFICATION_VERSION.to_le_bytes());
    for (name, value) in &externals.defined {
        part(name.as_bytes());
        part(value.to_string().as_bytes());
    }
    for source in &sources.sources {
        part(source.namespace.as_bytes());
        match &source.content {
            Content::Text(text) => part(text.as_bytes()),
            Content::Compiled(bytes) => part(bytes),
        }
    }
    *hasher.finalize().as_bytes()
}

/// Sorts memory-safe rules into those for which zero pages can be skipped and those for which not.
///
/// A pattern with a bound that doesn't match within zeros can't match where there are only zeros for
/// its whole length; so it is enough to keep that many of them next to other bytes. Whether it
/// matches within zeros is asked of yara-x, which alone knows all of `xor`, classes and wildcards.
fn split(
    infos: &[RuleInfo],
    bodies: &[Body],
) -> Result<(Option<Probe>, Option<Probe>), RulesError> {
    let safe = infos
        .iter()
        .filter(|i| i.class.is_memory_safe() && !i.patterns.is_empty());
    let safe: Vec<u32> = safe.map(|i| i.id).collect();
    if safe.is_empty() {
        return Ok((None, None));
    }
    let body = |id: u32| bodies.get(id as usize);
    let patterns = |id: u32| body(id).map_or(&[][..], |b| b.patterns.as_slice());
    let all = Probe::compile(safe.clone(), patterns)?;
    let longest = safe
        .iter()
        .filter_map(|id| body(*id)?.longest)
        .max()
        .unwrap_or(0);
    let zeros = vec![0_u8; (2 * longest as usize).clamp(1 << 16, 1 << 22)];
    let mut whole: BTreeSet<u32> = BTreeSet::new();
    whole.extend(
        safe.iter()
            .filter(|id| body(**id).is_none_or(|b| b.longest.is_none())),
    );
    let mut scanner = yara_x::Scanner::new(&all.compiled);
    scanner.max_matches_per_pattern(1);
    let results = scanner.scan(&zeros).map_err(|e| RulesError::Compile {
        reason: e.to_string(),
    })?;
    Probe::each_match(&results, |rule, _, _| {
        whole.insert(rule);
    });
    drop(scanner);
    let too_long = longest as usize > zeros.len();
    if whole.len() > MAX_WHOLE || too_long {
        return Ok((None, Some(all)));
    }
    if whole.is_empty() {
        return Ok((Some(all), None));
    }
    let rest: Vec<u32> = safe.into_iter().filter(|id| !whole.contains(id)).collect();
    let skipping = match rest.is_empty() {
        true => None,
        false => Some(Probe::compile(rest, patterns)?),
    };
    Ok((
        skipping,
        Some(Probe::compile(whole.into_iter().collect(), patterns)?),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_one_that_is_built() {
        let lock = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock");
        let lock = std::fs::read_to_string(lock).unwrap_or_else(|e| panic!("{lock}: {e}"));
        let entry = format!("name = \"yara-x\"\nversion = \"{YARA_X_VERSION}\"\n");
        assert!(
            lock.contains(&entry),
            "YARA_X_VERSION isn't what Cargo.lock has"
        );
        assert_eq!(lock.matches("name = \"yara-x\"\n").count(), 1);
    }
}
