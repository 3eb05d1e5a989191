//! From paths to rule sources: folders are walked, includes resolved.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs, io,
    path::{Path, PathBuf},
};

use yara_x_parser::ast::{AST, Item, WithSpan};

use super::info::{RuleError, RulesError};

/// First bytes of a set that yara-x compiled.
const COMPILED_MAGIC: &[u8] = b"YARA-X";
/// Includes nested deeper than this are taken for a loop.
const MAX_INCLUDES: usize = 32;

/// One file's rules.
#[derive(Clone, Debug)]
pub(super) struct RuleSource {
    /// The end of its path that no other file of the set shares: rules see those of their own namespace, and the
    /// same files are the same rules however their paths were written and wherever they lie.
    pub(super) namespace: String,
    /// The file with this text; another one than the namespace when included.
    pub(super) file: String,
    pub(super) content: Content,
}

#[derive(Clone, Debug)]
pub(super) enum Content {
    /// Source text, includes blanked out.
    Text(String),
    /// A set compiled by yara-x.
    Compiled(Vec<u8>),
}

/// Sources in the order they are to be compiled, and files that can't be read as rules.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub(super) sources: Vec<RuleSource>,
    pub(super) errors: Vec<RuleError>,
}

pub(super) fn read_sources(paths: &[PathBuf]) -> Result<Sources, RulesError> {
    let mut files = Vec::new();
    let mut seen = HashSet::new();
    for path in paths {
        let failed = |source| RulesError::Read {
            path: path.clone(),
            source,
        };
        let named = !fs::metadata(path).map_err(failed)?.is_dir();
        let mut found = Vec::new();
        walk(path, named, &mut found).map_err(failed)?;
        for file in found {
            let real = fs::canonicalize(&file).map_err(failed)?;
            if seen.insert(real.clone()) {
                files.push((file, real, named));
            }
        }
    }
    let names = shortest_ends(files.iter().map(|(_, real, _)| real.as_path()));
    let mut files: Vec<_> = names.into_iter().zip(files).collect();
    files.sort_by(|a, b| a.0.cmp(&b.0));
    let mut out = Sources::default();
    let mut included = BTreeSet::new();
    let mut loaded = Vec::new();
    for (namespace, (file, real, named)) in files {
        let mut unit = Sources::default();
        let mut reader = Reader {
            namespace,
            out: &mut unit,
            stack: Vec::new(),
            done: HashSet::new(),
            included: &mut included,
        };
        reader.file(&file, &real, None);
        loaded.push((real, named, unit));
    }
    for (real, named, unit) in loaded {
        // A file that another one includes was loaded there; twice would report everything twice.
        if named || !included.contains(&real) {
            out.sources.extend(unit.sources);
            out.errors.extend(unit.errors);
        }
    }
    Ok(out)
}

/// The ends of paths, each as long as it must be for no other path to have it: `a.yar`, or `linux/a.yar` and
/// `windows/a.yar`.
fn shortest_ends<'p>(paths: impl Iterator<Item = &'p Path>) -> Vec<String> {
    let parts = |p: &'p Path| {
        let part = |c: std::path::Component<'_>| c.as_os_str().to_string_lossy().into_owned();
        p.components().rev().map(part).collect::<Vec<_>>()
    };
    let paths: Vec<Vec<String>> = paths.map(parts).collect();
    let end = |p: &[String], n: usize| {
        let mut end = p[..n.min(p.len())].to_vec();
        end.reverse();
        end.join("/")
    };
    let mut lengths = vec![1; paths.len()];
    loop {
        let ends: Vec<String> = paths
            .iter()
            .zip(&lengths)
            .map(|(p, n)| end(p, *n))
            .collect();
        let mut count: BTreeMap<&str, usize> = BTreeMap::new();
        for e in &ends {
            *count.entry(e).or_default() += 1;
        }
        let mut longer = false;
        for ((p, n), e) in paths.iter().zip(&mut lengths).zip(&ends) {
            if count[e.as_str()] > 1 && *n < p.len() {
                *n += 1;
                longer = true;
            }
        }
        if !longer {
            return ends;
        }
    }
}

/// Rule files under `path`, sorted by name at each level.
fn walk(path: &Path, named: bool, found: &mut Vec<PathBuf>) -> io::Result<()> {
    if named {
        found.push(path.to_owned());
        return Ok(());
    }
    let mut entries: Vec<_> = fs::read_dir(path)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let kind = entry.file_type()?;
        // Links to folders aren't followed: they may lead back.
        if kind.is_dir() {
            walk(&path, false, found)?;
        } else if path.is_file() {
            let extension = path
                .extension()
                .and_then(|e| e.to_str())
                .unwrap_or_default();
            if ["yar", "yara", "yarc"]
                .iter()
                .any(|e| extension.eq_ignore_ascii_case(e))
            {
                found.push(path);
            }
        }
    }
    Ok(())
}

fn display(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

struct Reader<'a> {
    namespace: String,
    out: &'a mut Sources,
    stack: Vec<PathBuf>,
    /// Files this namespace has: a second include would only define the same rules again.
    done: HashSet<PathBuf>,
    included: &'a mut BTreeSet<PathBuf>,
}

impl Reader<'_> {
    fn error(&mut self, file: &str, line: u32, column: u32, reason: String) {
        let error = RuleError {
            file: file.to_owned(),
            line,
            column,
            rule: None,
            reason,
        };
        self.out.errors.push(error);
    }

    /// Adds a file after the files it includes. `from`: where it is included.
    fn file(&mut self, path: &Path, real: &Path, from: Option<(&str, u32, u32)>) {
        let name = display(path);
        let (at, line, column) = from.unwrap_or((&name, 0, 0));
        let at = at.to_owned();
        if self.stack.iter().any(|p| p == real) || self.stack.len() >= MAX_INCLUDES {
            return self.error(
                &at,
                line,
                column,
                format!("includes go in a circle: {name}"),
            );
        }
        if !self.done.insert(real.to_owned()) {
            return;
        }
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) => return self.error(&at, line, column, format!("can't read {name}: {e}")),
        };
        let namespace = self.namespace.clone();
        if bytes.starts_with(COMPILED_MAGIC) {
            let content = Content::Compiled(bytes);
            return self.out.sources.push(RuleSource {
                namespace,
                file: name,
                content,
            });
        }
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(e) => {
                let valid = e.utf8_error().valid_up_to();
                let line = e.as_bytes()[..valid]
                    .iter()
                    .filter(|b| **b == b'\n')
                    .count()
                    + 1;
                let reason = "is not UTF-8: save it as UTF-8".to_owned();
                return self.error(&name, line as u32, 0, reason);
            }
        };
        self.stack.push(real.to_owned());
        let text = self.resolve_includes(path, &name, text);
        self.stack.pop();
        let content = Content::Text(text);
        self.out.sources.push(RuleSource {
            namespace,
            file: name,
            content,
        });
    }

    /// Reads what `text` includes, and blanks the statements, so that lines and columns stay.
    fn resolve_includes(&mut self, path: &Path, name: &str, text: String) -> String {
        let mut blanks = Vec::new();
        {
            let ast = AST::from(text.as_str());
            for item in ast.items() {
                let Item::Include(include) = item else {
                    continue;
                };
                let span = include.span();
                let (line, column) = line_column(&text, span.start());
                blanks.push(span.range());
                let file_name = include.file_name.trim_matches('"');
                let target = path.parent().unwrap_or(Path::new("")).join(file_name);
                match fs::canonicalize(&target) {
                    Ok(real) => {
                        self.included.insert(real.clone());
                        self.file(&target, &real, Some((name, line, column)));
                    }
                    Err(e) => {
                        let reason = format!("can't include {}: {e}", display(&target));
                        self.error(name, line, column, reason);
                    }
                }
            }
        }
        let mut bytes = text.into_bytes();
        for range in blanks {
            for b in bytes.get_mut(range).unwrap_or_default() {
                if *b != b'\n' {
                    *b = b' ';
                }
            }
        }
        // Whole statements were replaced, so this is still UTF-8.
        String::from_utf8(bytes).unwrap_or_default()
    }
}

/// Line and column of a byte, both from 1.
pub(super) fn line_column(text: &str, at: usize) -> (u32, u32) {
    let before = text.as_bytes().get(..at).unwrap_or(text.as_bytes());
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|b| **b != b'\n').count() + 1;
    (line as u32, column as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_paths_are_as_long_as_they_must_be() {
        let ends = |all: &[&str]| shortest_ends(all.iter().map(|p| Path::new(*p)));
        assert_eq!(ends(&["/r/a.yar", "/r/b.yar"]), ["a.yar", "b.yar"]);
        assert_eq!(
            ends(&["/r/linux/a.yar", "/r/windows/a.yar", "/r/b.yar"]),
            ["linux/a.yar", "windows/a.yar", "b.yar"]
        );
        assert_eq!(
            ends(&["/x/r/a.yar", "/y/r/a.yar"]),
            ["x/r/a.yar", "y/r/a.yar"]
        );
        assert_eq!(ends(&["/a.yar", "/r/a.yar"]), ["//a.yar", "r/a.yar"]);
    }

    #[test]
    fn the_same_files_are_the_same_rules_however_they_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let rule =
            |name: &str| format!("rule {name} {{ strings: $a = \"{name}-needle\" condition: $a }}");
        for place in ["one/rules", "two/deep/rules"] {
            let folder = dir.path().join(place);
            fs::create_dir_all(folder.join("sub")).unwrap();
            fs::write(folder.join("b.yar"), rule("b")).unwrap();
            fs::write(folder.join("sub/a.yar"), rule("a")).unwrap();
        }
        let spelled = |path: &str| {
            let sources = read_sources(&[dir.path().join(path)]).unwrap();
            let all = sources.sources.into_iter();
            all.map(|s| s.namespace).collect::<Vec<_>>()
        };
        let want = ["a.yar", "b.yar"];
        for path in [
            "one/rules",
            "one/./rules/",
            "one/../one/rules/sub/..",
            "two/deep/rules",
        ] {
            assert_eq!(spelled(path), want, "{path}");
        }
        let files = ["one/rules/sub/a.yar", "one/rules/b.yar"].map(|p| dir.path().join(p));
        let digest =
            |paths: &[PathBuf]| crate::yara::load_rules(paths, Vec::new()).unwrap().digest();
        let [a, b] = files.clone();
        assert_eq!(digest(&files), digest(&[b, a]));
        assert_eq!(digest(&files), digest(&[dir.path().join("two/deep/rules")]));
    }
}
