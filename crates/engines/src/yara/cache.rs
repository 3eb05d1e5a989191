//! Compiled sets kept in a folder: compiling thousands of rules takes seconds, and most scans use the rules of the last.
//!
//! ```text
//! <folder>/<key>.rules    BLAKE3 of the rest, then what RuleSet::to_bytes wrote
//!                         key: BLAKE3 of the set's digest and the names of its files
//! ```
//!
//! A file that is not whole, or of another version, is made anew. The folder is the user's own: nobody else may write to
//! it, since yara-x's compiled form isn't made for hostile input.

use super::externals::{External, Externals};
use super::info::RulesError;
use super::load::{Sources, read_sources};
use super::rules::{RuleSet, compiled, digest};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Sets that are kept; those used longest ago go first.
const KEPT: usize = 32;

/// Loads rules as [`load_rules`](super::load_rules) does, from the set that an earlier call left in the folder where there
/// is one of the same sources. A folder that can't be used costs time alone.
pub fn load_rules_cached(
    paths: &[PathBuf],
    defined: Vec<(String, External)>,
    folder: &Path,
) -> Result<RuleSet, RulesError> {
    if let Some(set) = compiled(paths, &defined)? {
        return Ok(set);
    }
    let sources = read_sources(paths)?;
    let externals = Externals { defined };
    // What could not be read today may be readable tomorrow.
    if !sources.errors.is_empty() {
        return RuleSet::build(sources, externals);
    }
    let own = digest(&sources, &externals);
    let file = folder.join(format!("{}.rules", key(&own, &sources)));
    if let Some(set) = read(&file).filter(|s| s.digest() == own) {
        return Ok(set);
    }
    let set = RuleSet::build(sources, externals)?;
    if let Err(e) = keep(folder, &file, &set.to_bytes()) {
        tracing::debug!(folder = %folder.display(), error = %e, "compiled rules are not kept");
    }
    Ok(set)
}

fn key(digest: &[u8; 32], sources: &Sources) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(digest);
    for s in &sources.sources {
        hasher.update(&(s.file.len() as u64).to_le_bytes());
        hasher.update(s.file.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

fn read(file: &Path) -> Option<RuleSet> {
    // A process's own folder belongs to who runs it (proc(5)).
    let me = fs::metadata("/proc/self").ok()?.uid();
    let owner = fs::metadata(file.parent()?).ok()?;
    if owner.uid() != me || owner.mode() & 0o022 != 0 {
        return None;
    }
    let bytes = fs::read(file).ok()?;
    let (hash, set) = bytes.split_first_chunk::<32>()?;
    if blake3::hash(set).as_bytes() != hash {
        return None;
    }
    let set = RuleSet::from_bytes(set).ok()?;
    // When it was used last.
    let now = fs::FileTimes::new().set_modified(std::time::SystemTime::now());
    let opened = fs::File::options().append(true).open(file);
    let _ = opened.and_then(|f| f.set_times(now));
    Some(set)
}

fn keep(folder: &Path, file: &Path, set: &[u8]) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let fresh = folder.join(format!("{}.new", std::process::id()));
    let written = fs::File::create(&fresh).and_then(|mut f| {
        f.write_all(blake3::hash(set).as_bytes())?;
        f.write_all(set)
    });
    if let Err(e) = written.and_then(|()| fs::rename(&fresh, file)) {
        // Best effort: half a file is in nobody's way but takes room.
        let _ = fs::remove_file(&fresh);
        return Err(e);
    }
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)?.flatten() {
        let is_set = entry.path().extension().is_some_and(|e| e == "rules");
        if let Some(used) = entry.metadata().ok().filter(|_| is_set) {
            all.push((used.modified()?, entry.path()));
        }
    }
    all.sort_unstable();
    for (_, old) in all.iter().take(all.len().saturating_sub(KEPT)) {
        fs::remove_file(old)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: &str = "rule a { strings: $a = \"needle\" condition: $a }";

    #[test]
    fn a_set_is_compiled_once_and_made_anew_where_it_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let (rules, folder) = (dir.path().join("r.yar"), dir.path().join("cache"));
        fs::write(&rules, RULE).unwrap();
        let load = || load_rules_cached(std::slice::from_ref(&rules), Vec::new(), &folder).unwrap();
        let kept = || -> Vec<PathBuf> {
            let all = fs::read_dir(&folder).unwrap();
            all.map(|e| e.unwrap().path()).collect()
        };
        let first = load();
        let [file] = &kept()[..] else {
            panic!("{:?}", kept())
        };
        // What lies there is what is loaded: another set under that name would be, too.
        let bytes = fs::read(file).unwrap();
        assert_eq!(read(file).unwrap().digest(), first.digest());
        assert_eq!(load().rules(), first.rules());
        let mut torn = bytes.clone();
        let middle = torn.len() / 2;
        torn[middle] ^= 1;
        for damaged in [&torn[..], &bytes[..40], &[]] {
            fs::write(file, damaged).unwrap();
            assert!(read(file).is_none());
            assert_eq!(load().rules(), first.rules());
            assert_eq!(fs::read(file).unwrap(), bytes, "it was not made anew");
        }
        // Other sources are another set.
        fs::write(&rules, RULE.replace("needle", "haystack")).unwrap();
        assert_ne!(load().digest(), first.digest());
        assert_eq!(kept().len(), 2);
    }

    #[test]
    fn a_folder_that_others_write_to_is_not_believed() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (rules, folder) = (dir.path().join("r.yar"), dir.path().join("cache"));
        fs::write(&rules, RULE).unwrap();
        load_rules_cached(std::slice::from_ref(&rules), Vec::new(), &folder).unwrap();
        let file = fs::read_dir(&folder)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        assert!(read(&file).is_some());
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(read(&file).is_none());
    }

    #[test]
    fn a_folder_that_can_not_be_made_costs_time_alone() {
        let dir = tempfile::tempdir().unwrap();
        let rules = dir.path().join("r.yar");
        fs::write(&rules, RULE).unwrap();
        let set =
            load_rules_cached(std::slice::from_ref(&rules), Vec::new(), &rules.join("no")).unwrap();
        assert_eq!(set.rules().len(), 1);
    }

    #[test]
    fn a_compiled_set_is_loaded_by_its_first_bytes_and_stands_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (rules, set) = (dir.path().join("r.yar"), dir.path().join("all.rules"));
        fs::write(&rules, RULE).unwrap();
        let first = super::super::load_rules(std::slice::from_ref(&rules), Vec::new()).unwrap();
        fs::write(&set, first.to_bytes()).unwrap();
        let again = super::super::load_rules(std::slice::from_ref(&set), Vec::new()).unwrap();
        assert_eq!(
            (again.digest(), again.rules()),
            (first.digest(), first.rules())
        );
        let both = super::super::load_rules(&[set.clone(), rules], Vec::new()).unwrap_err();
        assert!(both.to_string().contains("alone"), "{both}");
    }
}
