//! External variables: names that rule sets expect whoever runs them to define.
//!
//! LOKI and THOR define `filename`, `filepath`, `extension`, `filetype`, `md5` and `owner`; rules of public sets use them
//! and do not compile without. They are empty strings in memory, and have their true values for files. Others are defined
//! by the user.
//!
//! Sources: LOKI `loki.py` (externals), THOR documentation, "External Variables in YARA Rules"; YARA manual, "External
//! variables".

use super::cond::Cond;
use super::info::RulesError;
use serde::{Deserialize, Serialize};
use std::fmt;
use yara_x::Compiler;

/// What is known of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileFacts {
    /// Name without folders.
    pub filename: String,
    /// Folder, as LOKI has it.
    pub filepath: String,
    /// Ending with its dot: `.exe`.
    pub extension: String,
    /// What kind of file it is where its first bytes don't tell (`EXE`, `ELF`, `ZIP`): the carver's kind in upper case.
    pub filetype: String,
    /// MD5, lower-case hexadecimal; empty where no rule asks for it.
    pub md5: String,
    /// SHA-256, lower-case hexadecimal.
    pub sha256: String,
}

impl FileFacts {
    /// What a path and the kind of content tell.
    pub fn of(path: &str, kind: &str) -> Self {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let ending = name
            .rfind('.')
            .filter(|i| *i > 0)
            .map_or("", |i| &name[i..]);
        Self {
            filename: name.to_owned(),
            filepath: folder.to_owned(),
            extension: ending.to_lowercase(),
            // A view's kind (`cached_file`) says where content was found, not what it is.
            filetype: match kind.contains('_') {
                true => String::new(),
                false => kind.to_uppercase(),
            },
            ..Self::default()
        }
    }

    /// The value of a variable, where this says one.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        Some(match name {
            "filename" => &self.filename,
            "filepath" => &self.filepath,
            "extension" => &self.extension,
            "filetype" => &self.filetype,
            "md5" => &self.md5,
            "sha256" => &self.sha256,
            _ => return None,
        })
    }
}

/// What files are called by their first bytes, longer ones before those that they begin with. Sources: the names that rules of
/// public sets compare with, as LOKI's and THOR's list of signatures has them (signature-base, `file-type-signatures.txt`).
const TYPES: &[(&[u8], &str)] = &[
    (b"MZ", "EXE"),
    (b"\x7fELF", "ELF"),
    (b"%PDF", "PDF"),
    (b"PK\x03\x04\x14\0\x06\0", "Office"),
    (b"PK\x03\x04\x14\0\x08\0", "JAR"),
    (b"PK\x03\x04", "ZIP"),
    (b"PK\x05\x06", "PKZIP"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "OLE"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF", "GIF"),
    (b"\x89PNG", "PNG"),
    (b"Rar!\x1a\x07", "RAR"),
    (b"7z\xbc\xaf\x27\x1c", "7Zip"),
    (b"\x1f\x8b\x08", "GZIP"),
    (b"BZh", "BZip2"),
    (b"MSCF", "CAB"),
    (b"{\\rtf1", "RTF"),
    (b"L\0\0\0\x01\x14\x02\0", "LNK"),
    (b"MDMP", "MDMP"),
    (b"ElfFil", "EVTX"),
    (b"regf", "Registry Hive"),
    (b"\xca\xfe\xba\xbe", "Class"),
    (b"<?php", "PHP"),
    (b"<?xm", "XML"),
    (b"#!/", "UNIX SCRIPT"),
    (b"#!", "Script"),
    (b"FWS", "FWS (Flash)"),
    (b"CWS", "SWF"),
    (b"ZWS", "SWF"),
    (b"\xd4\xc3\xb2\xa1", "WINPCAP"),
    (b"\xa1\xb2\xc3\xd4", "LIBPCAP"),
];

/// The type of a file by its content.
pub(super) fn type_of(data: &[u8]) -> Option<&'static str> {
    let by_magic = TYPES.iter().find(|(magic, _)| data.starts_with(magic));
    by_magic.map(|t| t.1)
}

/// Names that are always defined, as empty strings.
pub(super) const NAMES: &[&str] = &[
    "filename",
    "filepath",
    "extension",
    "filetype",
    "md5",
    "sha1",
    "sha256",
    "owner",
    "group",
    "mimetype",
    "unpack_parent",
    "unpack_source",
];

/// The value of a variable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum External {
    /// `name=text`
    Text(String),
    /// `name=7`
    Integer(i64),
    /// `name=0.5`
    Float(f64),
    /// `name=true`
    Bool(bool),
}

impl fmt::Display for External {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(t) => write!(f, "{t:?}"),
            Self::Integer(n) => n.fmt(f),
            Self::Float(n) => n.fmt(f),
            Self::Bool(b) => b.fmt(f),
        }
    }
}

/// A variable that the user defines: `name=value`. Numbers, `true` and `false` are what they look like; in quotes they are text.
pub fn parse_define(text: &str) -> Result<(String, External), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?}: expected name=value"))?;
    let first = name.chars().next();
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if !first.is_some_and(|c| c.is_ascii_alphabetic() || c == '_') || !name.chars().all(plain) {
        return Err(format!("{name:?} is no name of a variable"));
    }
    let quoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    let value = match (quoted, value) {
        (Some(text), _) => External::Text(text.to_owned()),
        (None, "true") => External::Bool(true),
        (None, "false") => External::Bool(false),
        (None, v) => v
            .parse()
            .map(External::Integer)
            .or_else(|_| v.parse().map(External::Float))
            .unwrap_or_else(|_| External::Text(v.to_owned())),
    };
    Ok((name.to_owned(), value))
}

/// What a set is compiled with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Externals {
    /// Variables that the user defined.
    pub(super) defined: Vec<(String, External)>,
}

impl Externals {
    fn all(&self) -> impl Iterator<Item = (&str, Option<&External>)> {
        let own = self.defined.iter().map(|(n, v)| (n.as_str(), Some(v)));
        let is_own = |n: &&&str| !self.defined.iter().any(|(d, _)| d == **n);
        own.chain(NAMES.iter().filter(is_own).map(|n| (*n, None)))
    }

    /// The value that a variable has in memory, as a condition; `None` of names that are none.
    pub(super) fn in_memory(&self, name: &str) -> Option<Cond> {
        let (_, value) = self.all().find(|(n, _)| *n == name)?;
        Some(match value {
            None => Cond::Str(Vec::new()),
            Some(External::Text(t)) => Cond::Str(t.as_bytes().to_vec()),
            Some(External::Integer(n)) => Cond::Int(*n),
            Some(External::Float(n)) => Cond::Float(*n),
            Some(External::Bool(b)) => Cond::Bool(*b),
        })
    }

    /// Whether a variable is set anew for each file.
    pub(super) fn is_of_files(&self, name: &str) -> bool {
        NAMES.contains(&name) && !self.defined.iter().any(|(d, _)| d == name)
    }

    /// A compiler in which all variables are defined. `relaxed`: regular expressions as YARA 4 took them.
    pub(super) fn compiler<'s>(&self, relaxed: bool) -> Result<Compiler<'s>, RulesError> {
        let mut c = Compiler::new();
        c.relaxed_re_syntax(relaxed);
        for (name, value) in self.all() {
            let done = match value {
                None => c.define_global(name, ""),
                Some(External::Text(t)) => c.define_global(name, t.as_str()),
                Some(External::Integer(n)) => c.define_global(name, *n),
                Some(External::Float(n)) => c.define_global(name, *n),
                Some(External::Bool(b)) => c.define_global(name, *b),
            };
            done.map_err(|e| RulesError::Compile {
                reason: format!("variable {name}: {e}"),
            })?;
        }
        Ok(c)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yara::{FileScanner, RuleSet, ScanLimits};

    #[test]
    fn values_are_what_they_look_like() {
        let of = |t: &str| parse_define(t).map(|d| d.1);
        assert_eq!(of("a=7"), Ok(External::Integer(7)));
        assert_eq!(of("a=\"7\""), Ok(External::Text("7".into())));
        assert_eq!(of("a=0.5"), Ok(External::Float(0.5)));
        assert_eq!(of("a=true"), Ok(External::Bool(true)));
        assert_eq!(of("a=x=y"), Ok(External::Text("x=y".into())));
        assert!(of("a").is_err() && of("1a=2").is_err() && of("=2").is_err());
    }

    #[test]
    fn files_have_their_names_and_memory_has_none() {
        let text = r#"
            rule by_name { strings: $a = "evil" condition: $a and filename == "sshd" and filepath == "/usr/sbin" }
            rule by_ending { condition: extension == ".php" }
            rule not_there { strings: $a = "evil" condition: $a and filename != "" }
            rule of_user { strings: $a = "evil" condition: $a and level > 3 }
        "#;
        let defined = vec![parse_define("level=4").unwrap()];
        let set = RuleSet::from_source_with("t", text, defined).unwrap();
        assert!(set.errors().is_empty(), "{:?}", set.errors());
        let mut scanner = FileScanner::new(&set, ScanLimits::default()).unwrap();
        let mut fired = |path: &str| -> Vec<String> {
            let hits = scanner
                .scan_file(b"evil", &FileFacts::of(path, "text"))
                .hits;
            hits.iter()
                .map(|h| set.rules()[h.rule as usize].identifier.clone())
                .collect()
        };
        assert_eq!(fired("/usr/sbin/sshd"), ["by_name", "not_there", "of_user"]);
        assert_eq!(
            fired("/var/www/x.PHP"),
            ["by_ending", "not_there", "of_user"]
        );
        assert_eq!(fired(""), ["of_user"]);
        // Another value is another set.
        let other =
            RuleSet::from_source_with("t", text, vec![parse_define("level=5").unwrap()]).unwrap();
        assert_ne!(set.digest(), other.digest());
        let again = RuleSet::from_bytes(&set.to_bytes()).unwrap();
        assert_eq!(again.digest(), set.digest());
    }

    /// As rules of public sets ask: a program under another name, and a crash dump that is no program.
    #[test]
    fn types_are_told_by_the_content() {
        let text = r#"
            rule cloaked { condition: extension == ".jpg" and filetype == "EXE" }
            rule no_program { condition: not filetype == "EXE" and filetype != "" }
            rule office { condition: filetype == "Office" }
        "#;
        let set = RuleSet::from_source_with("t", text, Vec::new()).unwrap();
        let mut scanner = FileScanner::new(&set, ScanLimits::default()).unwrap();
        let mut fired = |path: &str, kind: &str, data: &[u8]| -> Vec<String> {
            let hits = scanner.scan_file(data, &FileFacts::of(path, kind)).hits;
            hits.iter()
                .map(|h| set.rules()[h.rule as usize].identifier.clone())
                .collect()
        };
        assert_eq!(fired("/tmp/a.jpg", "cached_file", b"MZ\x90\0"), ["cloaked"]);
        assert_eq!(fired("", "pe", b"MZ\x90\0"), [""; 0]);
        assert_eq!(
            fired("/a.dmp", "cached_file", b"MDMP\x93\xa7"),
            ["no_program"]
        );
        assert_eq!(
            fired("/a.docx", "cached_file", b"PK\x03\x04\x14\0\x06\0"),
            ["no_program", "office"]
        );
        assert_eq!(fired("/a", "cached_file", b"words"), [""; 0]);
    }

    #[test]
    fn what_yara_4_took_is_taken_with_a_warning() {
        let text =
            "rule old { strings: $a = /a\\Rb/ condition: $a } rule broken { condition: nonsense }";
        let set = RuleSet::from_source_with("t", text, Vec::new()).unwrap();
        assert_eq!(set.rules().len(), 1);
        assert_eq!(set.warnings().len(), 1, "{:?}", set.warnings());
        assert_eq!(set.errors().len(), 1, "{:?}", set.errors());
    }
}
