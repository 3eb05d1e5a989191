//! What a system is like is told by its own folder alone.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

/// Rust files below a folder.
fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// The lines of code of a file, without comments and tests.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate();
    lines
        .take_while(|(_, l)| !l.starts_with("#[cfg(test)]"))
        .filter(|(_, l)| !l.trim_start().starts_with("//"))
}

#[test]
fn nobody_else_names_a_system() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = Vec::new();
    for dir in ["crates/os/src", "structured-worker/src", "cli/src"] {
        sources(&root.join(dir), &mut files);
    }
    let mut seen = 0;
    let mut named = Vec::new();
    for path in files {
        let short = path.strip_prefix(&root).unwrap().display().to_string();
        let own = ramsift_os::SYSTEMS
            .iter()
            .any(|s| short.starts_with(&format!("crates/os/src/{}/", s.name())));
        // The help shows examples; the registry names the systems.
        if own || short == "cli/src/args.rs" || short == "crates/os/src/lib.rs" {
            continue;
        }
        seen += 1;
        let text = fs::read_to_string(&path).unwrap();
        for (i, line) in code(&text) {
            let low = line.to_ascii_lowercase();
            // What the program itself runs on is another matter.
            if low.contains("linux") && !low.contains("target_os") && !low.contains("vmlinux") {
                named.push(format!("{short}:{}: {}", i + 1, line.trim()));
            }
        }
    }
    assert!(seen > 40, "{seen} files: the folders moved");
    assert_eq!(named, Vec::<String>::new());
}
