//! A store of symbol files, found by the exact banner of the kernel that they are for.
//!
//! ```text
//! <digest>.json.xz  <digest>.json    an imported file; the digest is the first 32 hexadecimal
//!                                    digits of the SHA-256 of the banner
//! <digest>.banner                    the banner itself, so that listing opens no large file
//! anything else .json or .json.xz    a file put there by hand: found too, but read to be found
//! NAME.pdb/GUIDAGE/NAME.pdb          a PDB, as a symbol server has it; any other .pdb is found too, but read for it
//! ```
//!
//! The store is a [`Files`]: a folder ([`Folder`]), or whatever else can list, read and write, such
//! as a prefix of an object store.

use crate::isf::{self, IsfError};
use crate::pdb::{self, PdbError};
use crate::table::SymbolTable;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Bytes of a file at most.
const MAX_FILE: u64 = 512 << 20;
/// Bytes of a banner at most.
const MAX_BANNER: usize = 4096;

/// What a store lies on.
pub trait Files {
    /// All names, without folders.
    fn list(&self) -> io::Result<Vec<String>>;

    /// The contents of one; `NotFound` if there is none of that name. At most `max` bytes: more is
    /// an error.
    fn read(&self, name: &str, max: u64) -> io::Result<Vec<u8>>;

    /// Creates or replaces one, all of it or nothing.
    fn write(&self, name: &str, data: &[u8]) -> io::Result<()>;
}

/// A folder.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The folder at a path, which is created on the first import.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Files for Folder {
    fn list(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut names = Vec::new();
        for e in entries {
            names.extend(e?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    fn read(&self, name: &str, max: u64) -> io::Result<Vec<u8>> {
        let path = self.path.join(name);
        let size = fs::metadata(&path)?.len();
        if size > max {
            let why = format!("{} has {size} bytes, more than {max}", path.display());
            return Err(io::Error::other(why));
        }
        fs::read(path)
    }

    fn write(&self, name: &str, data: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.path)?;
        let new = self.path.join(format!(".{name}.{}", std::process::id()));
        fs::write(&new, data)?;
        fs::rename(&new, self.path.join(name)).inspect_err(|_| {
            let _ = fs::remove_file(&new);
        })
    }
}

/// Why a store can't answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store can't be listed, read or written.
    #[error("symbol store: {name}: {source}")]
    Io {
        /// The file, or what was done.
        name: String,
        /// What happened.
        source: io::Error,
    },
    /// A file is no symbol file.
    #[error("symbol store: {name}: {source}")]
    Isf {
        /// The file.
        name: String,
        /// What is wrong with it.
        source: IsfError,
    },
    /// A file is no PDB.
    #[error("symbol store: {name}: {source}")]
    Pdb {
        /// The file.
        name: String,
        /// What is wrong with it.
        source: PdbError,
    },
    /// A file does not say what kernel it is for, and so could never be found.
    #[error(
        "symbol store: {name} has neither a linux_banner nor the name of a Windows symbol file"
    )]
    NoBanner {
        /// The file.
        name: String,
    },
    /// A file is for another kernel than its name says.
    #[error("symbol store: {name} is for {found:?}, not for {expected:?}")]
    WrongBanner {
        /// The file.
        name: String,
        /// The banner that was asked for.
        expected: String,
        /// The banner that it has.
        found: String,
    },
}

/// One file of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub name: String,
    /// The kernel that it is for; `None` if it could not be read.
    pub banner: Option<String>,
}

/// A store.
#[derive(Clone, Debug)]
pub struct SymbolStore<F> {
    files: F,
}

/// How a banner is written wherever it is compared: without the line end.
fn clean(banner: &str) -> &str {
    banner.trim_end_matches(['\n', '\0', ' '])
}

/// The first 32 hexadecimal digits of the SHA-256 of a banner, its line end left out.
pub fn digest(banner: &str) -> String {
    let hash = Sha256::digest(clean(banner));
    hex::encode(hash.get(..16).unwrap_or_default())
}

/// What a PDB is called where it is looked for, by the name of its file.
fn database(name: &str) -> String {
    let own = name.rsplit(['/', '\\']).next().unwrap_or(name);
    own.to_ascii_lowercase()
}

/// Name, GUID and age of the symbol file that stands for the banner of a Windows kernel.
pub fn windows(banner: &str) -> Option<(&str, &str, u32)> {
    let (name, key) = banner.split_once(' ')?;
    let (guid, age) = key.split_once('-')?;
    let is_guid = guid.len() == 32 && guid.bytes().all(|b| b.is_ascii_hexdigit());
    let plain = !name.contains(['/', '\\']) && name.ends_with(".pdb");
    (is_guid && plain).then_some((name, guid, age.parse().ok()?))
}

fn failed(name: &str) -> impl FnOnce(io::Error) -> StoreError {
    let name = name.to_owned();
    move |source| StoreError::Io { name, source }
}

impl<F: Files> SymbolStore<F> {
    /// The store on these files.
    pub fn new(files: F) -> Self {
        Self { files }
    }

    fn symbol_files(&self) -> Result<Vec<String>, StoreError> {
        let mut names = self.files.list().map_err(failed("listing"))?;
        let hidden = |n: &str| n.starts_with('.');
        let ends = [".json", ".json.xz", ".pdb"];
        names.retain(|n| !hidden(n) && ends.iter().any(|e| n.ends_with(e)));
        Ok(names)
    }

    /// All files with their banners. Files that were put there by hand are read for it.
    pub fn list(&self) -> Result<Vec<Stored>, StoreError> {
        let files = self.symbol_files()?;
        Ok(files.into_iter().map(|name| self.stored(name)).collect())
    }

    fn stored(&self, name: String) -> Stored {
        let banner = self.side(&name).or_else(|| {
            let file = self.files.read(&name, MAX_FILE).ok()?;
            if pdb::is_pdb(&file) {
                let (guid, age) = pdb::key(&file)
                    .inspect_err(|error| tracing::warn!(name, %error, "no symbol file"))
                    .ok()?;
                return Some(format!("{} {guid}-{age}", database(&name)));
            }
            isf::banner(&file)
                .inspect_err(|error| tracing::warn!(name, %error, "no symbol file"))
                .ok()
                .flatten()
        });
        Stored { name, banner }
    }

    /// The banner that stands beside an imported file.
    fn side(&self, name: &str) -> Option<String> {
        let stem = name.split('.').next()?;
        let text = self
            .files
            .read(&format!("{stem}.banner"), MAX_BANNER as u64);
        String::from_utf8(text.ok()?).ok()
    }

    /// Checks a file by reading all of it, and keeps it under its banner's digest.
    ///
    /// Fails with [`StoreError`] if it is no symbol file or does not say for what kernel it is.
    ///
    /// A PDB is kept as the ISF of what views need of it.
    pub fn import(&self, name: &str, file: &[u8]) -> Result<Stored, StoreError> {
        if pdb::is_pdb(file) {
            let isf = pdb::to_isf_xz(&database(name), file);
            let isf = isf.map_err(|source| StoreError::Pdb {
                name: name.to_owned(),
                source,
            })?;
            return self.import(name, &isf);
        }
        let table = isf::parse(name, file).map_err(|source| StoreError::Isf {
            name: name.to_owned(),
            source,
        })?;
        let Some(banner) = table.banner().filter(|b| !b.is_empty()) else {
            return Err(StoreError::NoBanner {
                name: name.to_owned(),
            });
        };
        let digest = digest(banner);
        let end = if file.first() == Some(&0xfd) {
            "json.xz"
        } else {
            "json"
        };
        let stored = format!("{digest}.{end}");
        self.files.write(&stored, file).map_err(failed(&stored))?;
        let side = format!("{digest}.banner");
        self.files
            .write(&side, clean(banner).as_bytes())
            .map_err(failed(&side))?;
        Ok(Stored {
            name: stored,
            banner: Some(clean(banner).to_owned()),
        })
    }

    /// The table for a kernel, by its exact banner. `None` if the store has none.
    ///
    /// Fails with [`StoreError`] if the file that should be it is damaged or for another kernel.
    pub fn find(&self, banner: &str) -> Result<Option<SymbolTable>, StoreError> {
        let banner = clean(banner);
        let digest = digest(banner);
        for name in [format!("{digest}.json.xz"), format!("{digest}.json")] {
            match self.files.read(&name, MAX_FILE) {
                Ok(file) => return self.open(&name, &file, banner).map(Some),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(failed(&name)(e)),
            }
        }
        // As a symbol server has it.
        if let Some((database, guid, age)) = windows(banner) {
            let name = format!("{database}/{guid}{age:X}/{database}");
            match self.files.read(&name, MAX_FILE) {
                Ok(file) => return self.open(&name, &file, banner).map(Some),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                // What is a file cannot be looked into.
                Err(e) if e.kind() == io::ErrorKind::NotADirectory => {}
                Err(e) => return Err(failed(&name)(e)),
            }
        }
        for name in self.symbol_files()? {
            let is_pdb = name.ends_with(".pdb");
            let found = self.stored(name);
            let own = found.banner.as_deref().map(clean);
            // A PDB does not say how it is called.
            let same = match is_pdb {
                true => {
                    own.and_then(windows).map(|w| (w.1, w.2)) == windows(banner).map(|w| (w.1, w.2))
                        && own.is_some()
                }
                false => own == Some(banner),
            };
            if same {
                let file = self.files.read(&found.name, MAX_FILE);
                let file = file.map_err(failed(&found.name))?;
                return self.open(&found.name, &file, banner).map(Some);
            }
        }
        Ok(None)
    }

    fn open(&self, name: &str, file: &[u8], banner: &str) -> Result<SymbolTable, StoreError> {
        if let (true, Some((database, ..))) = (pdb::is_pdb(file), windows(banner)) {
            let failed = |source| StoreError::Pdb {
                name: name.to_owned(),
                source,
            };
            let isf = pdb::to_isf(database, file).map_err(failed)?;
            let isf = serde_json::to_vec(&isf).map_err(|e| failed(IsfError::from(e).into()))?;
            return self.open(name, &isf, banner);
        }
        let table = isf::parse(name, file).map_err(|source| StoreError::Isf {
            name: name.to_owned(),
            source,
        })?;
        match table.banner().map(clean) {
            Some(b) if b == banner => Ok(table),
            other => Err(StoreError::WrongBanner {
                name: name.to_owned(),
                expected: banner.to_owned(),
                found: other.unwrap_or_default().to_owned(),
            }),
        }
    }
}
