//! `ramsift symbols`: the store of symbol files for kernels that don't carry their own.

use crate::args::SymbolsCommand;
use crate::config::Config;
use crate::setup;
use crate::terminal::say;
use anyhow::{Context, Result, anyhow, bail};
use ramsift_layers::source::{Sources, split_s3_url};
use ramsift_store::LocalObjects;
use ramsift_structured_worker::{Means, ObjectFiles, symbol_store};
use ramsift_symbols::layouts::{self, Layouts};
use ramsift_symbols::store::{Files, Folder};
use ramsift_symbols::{SymbolStore, dwarf, isf};
use std::path::PathBuf;
use std::sync::Arc;

/// The store's folder, where it isn't in S3.
fn folder(config: &Config) -> Result<PathBuf> {
    if !config.symbols.store.is_empty() {
        return Ok(config.symbols.store.clone().into());
    }
    let set = |k: &str| {
        let value = std::env::var_os(k).filter(|v| !v.is_empty());
        value.map(PathBuf::from)
    };
    let base = set("XDG_DATA_HOME").or_else(|| Some(set("HOME")?.join(".local/share")));
    let base =
        base.context("there is no home folder: name the store with --set symbols.store=DIR")?;
    Ok(base.join("ramsift/symbols"))
}

/// What kernels are read with.
pub(crate) async fn means(config: &Config) -> Result<Means> {
    let symbols = if split_s3_url(&config.symbols.store).is_some() {
        let sources = Sources::new(config.s3.to_layers()?);
        let objects = setup::store(&config.symbols.store, &sources).await?;
        Some(symbol_store(objects, config.symbols.servers.clone()))
    } else {
        // A folder that doesn't exist has no files.
        let folder = folder(config).ok();
        let servers = config.symbols.servers.clone();
        // What a server gives is kept in it.
        let open = |f: PathBuf| match servers.is_empty() {
            true => LocalObjects::open_existing(&f).ok(),
            false => LocalObjects::open(&f).ok(),
        };
        let objects = folder.and_then(open);
        objects.map(|o| symbol_store(Arc::new(o), servers))
    };
    Ok(Means {
        cache: config.worker.cache_bytes,
        symbols,
    })
}

/// Lists, imports or builds.
pub(crate) async fn run(config: &Config, command: SymbolsCommand) -> Result<u8> {
    if split_s3_url(&config.symbols.store).is_some() {
        let sources = Sources::new(config.s3.to_layers()?);
        let files = ObjectFiles::new(setup::store(&config.symbols.store, &sources).await?);
        return tokio::task::spawn_blocking(move || with(files, command)).await?;
    }
    let files = Folder::new(folder(config)?);
    tokio::task::spawn_blocking(move || with(files, command)).await?
}

/// These files, and of folders among them the symbol files in them, by name.
fn with_folders(files: Vec<PathBuf>) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for path in files {
        if !path.is_dir() {
            out.push(path);
            continue;
        }
        let mut own = Vec::new();
        for e in std::fs::read_dir(&path).with_context(|| path.display().to_string())? {
            let e = e?.path();
            let name = e.display().to_string().to_ascii_lowercase();
            if [".json", ".json.xz", ".pdb"]
                .iter()
                .any(|end| name.ends_with(end))
            {
                own.push(e);
            }
        }
        if own.is_empty() {
            bail!(
                "{}: there are neither ISF files nor PDBs in it",
                path.display()
            );
        }
        own.sort();
        out.extend(own);
    }
    Ok(out)
}

fn with<F: Files>(files: F, command: SymbolsCommand) -> Result<u8> {
    let store = SymbolStore::new(files);
    match command {
        SymbolsCommand::List => {
            for s in store.list()? {
                let banner = s.banner.as_deref().unwrap_or("(no banner could be read)");
                say!("{}  {banner}", s.name);
            }
        }
        SymbolsCommand::Import { files } => {
            for path in files {
                let name = path.display().to_string();
                let data = std::fs::read(&path).with_context(|| name.clone())?;
                let stored = store.import(&name, &data)?;
                say!("{}  {}", stored.name, stored.banner.unwrap_or_default());
            }
        }
        SymbolsCommand::Pack { files, out, about } => {
            let mut read = Vec::new();
            for path in with_folders(files)? {
                let name = path.display().to_string();
                let data = std::fs::read(&path).with_context(|| name.clone())?;
                read.push((name, data));
            }
            let table = layouts::pack(&about, &read)?;
            let kernels = Layouts::read(&table)?.len();
            std::fs::write(&out, &table).with_context(|| out.display().to_string())?;
            say!(
                "{}: {kernels} kernels, {} bytes",
                out.display(),
                table.len()
            );
        }
        SymbolsCommand::Build { vmlinux, out } => {
            let name = vmlinux.display().to_string();
            let data = std::fs::read(&vmlinux).with_context(|| name.clone())?;
            let table = dwarf::parse(&name, &data).map_err(|e| anyhow!("{name}: {e}"))?;
            let mut file = Vec::new();
            isf::write_xz(&table, &mut file)?;
            if let Some(out) = out {
                std::fs::write(&out, &file).with_context(|| out.display().to_string())?;
                say!("{}", out.display());
                return Ok(0);
            }
            if table.banner().is_none_or(str::is_empty) {
                bail!("{name} does not say what kernel it is; write a file with --out");
            }
            let stored = store.import(&name, &file)?;
            say!("{}  {}", stored.name, stored.banner.unwrap_or_default());
        }
    }
    Ok(0)
}
