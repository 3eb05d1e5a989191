//! Captures for the tests: planted images with ground truth, and small made-up ones.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// A planted image and its ground truth.
#[derive(Clone, Debug)]
pub struct Planted {
    /// The raw image.
    pub image: PathBuf,
    /// What was planted where.
    pub truth: serde_json::Value,
    /// YARA rules for what was planted.
    pub rules: PathBuf,
}

/// A capture of a real machine and what the machine said of itself.
#[derive(Clone, Debug)]
pub struct Capture {
    /// The raw image.
    pub image: PathBuf,
    /// What the machine said.
    pub truth: serde_json::Value,
    /// What is known of the machine from outside.
    pub info: serde_json::Value,
}

/// The capture for everyday tests, which `tests/run` has built by `tests/captures`.
pub fn capture() -> &'static Capture {
    static OPENED: OnceLock<Capture> = OnceLock::new();
    OPENED.get_or_init(|| {
        let dir = captures().join("deb6.1-cloud-256m-zerofree");
        opened(&dir).unwrap_or_else(|e| {
            panic!("{}: {e}; tests/captures builds it", dir.display());
        })
    })
}

/// A capture that takes minutes to build, so that it is not there everywhere.
pub fn another_capture(name: &str) -> Option<Capture> {
    opened(&captures().join(name)).ok()
}

fn captures() -> PathBuf {
    std::env::var_os("RAMSIFT_CAPTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.test-tools/captures"),
        PathBuf::from,
    )
}

fn opened(dir: &Path) -> std::io::Result<Capture> {
    let json = |name: &str| -> std::io::Result<serde_json::Value> {
        let text = std::fs::read(dir.join(name))?;
        Ok(serde_json::from_slice(&text).expect("what tests/captures writes is JSON"))
    };
    Ok(Capture {
        truth: json("truth.json")?,
        info: json("info.json")?,
        image: dir.join("memory.raw").canonicalize()?,
    })
}

/// The 64 MiB planted image, made once.
pub fn planted() -> &'static Planted {
    static MADE: OnceLock<Planted> = OnceLock::new();
    MADE.get_or_init(|| make_planted(64, 1))
}

fn make_planted(mib: u64, seed: u32) -> Planted {
    let dir = folder();
    let name = format!("planted-{mib}-{seed}");
    let (image, truth, rules) = (
        dir.join(format!("{name}.img")),
        dir.join(format!("{name}.json")),
        dir.join(format!("{name}.yar")),
    );
    if !truth.exists() {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/make_ram_image.py");
        let made = dir.join(format!("{name}-{}.part", std::process::id()));
        let done = Command::new("python3")
            .arg(script)
            .args([
                "--size",
                &format!("{mib}M"),
                "--seed",
                &seed.to_string(),
                "--out",
            ])
            .arg(&image)
            .arg("--truth")
            .arg(&made)
            .arg("--rules")
            .arg(&rules)
            .status()
            .expect("python3 is needed to make the planted image");
        assert!(done.success(), "the planted image could not be made");
        // Takes its name last: a run that was cut short is made again.
        std::fs::rename(made, &truth).expect("rename");
    }
    let text = std::fs::read_to_string(&truth).expect("truth");
    Planted {
        image,
        truth: serde_json::from_str(&text).expect("truth is JSON"),
        rules,
    }
}

/// Pseudo-random bytes (splitmix64), the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        out.extend((z ^ z >> 31).to_le_bytes());
    }
    out.truncate(len);
    out
}

/// A raw image of noise and zeros with these bytes at these places.
pub fn image(len: usize, planted: &[(usize, &[u8])]) -> Vec<u8> {
    let mut out = vec![0u8; len];
    for (i, page) in out.chunks_mut(4096).enumerate() {
        if i % 3 == 1 {
            let n = page.len();
            page.copy_from_slice(&noise(i as u64, n));
        }
    }
    for (at, bytes) in planted {
        out[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    out
}

/// A LiME file of these ranges: first physical address and bytes.
pub fn lime(ranges: &[(u64, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (pa, bytes) in ranges {
        out.extend(b"EMiL");
        out.extend(1u32.to_le_bytes());
        out.extend(pa.to_le_bytes());
        out.extend((pa + bytes.len() as u64 - 1).to_le_bytes());
        out.extend([0; 8]);
        out.extend_from_slice(bytes);
    }
    out
}

/// A library to load into the program under test, which makes faults happen (see `faults.c`).
pub fn faults() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let dir = folder();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/faults.c");
        let (made, library) = (
            dir.join(format!("faults-{}.part", std::process::id())),
            dir.join("faults.so"),
        );
        let done = Command::new("cc")
            .args(["-O2", "-shared", "-fPIC", "-o"])
            .arg(&made)
            .arg(source)
            .arg("-ldl")
            .status()
            .expect("a C compiler");
        assert!(done.success(), "faults.c does not compile");
        std::fs::rename(made, &library).expect("rename");
        library
    })
}

/// The folder beside the tests where what they make is kept.
pub(crate) fn folder() -> PathBuf {
    let exe = std::env::current_exe().expect("the path of this test");
    let dir = exe
        .ancestors()
        .nth(2)
        .expect("target/<profile>")
        .join("test-fixtures");
    std::fs::create_dir_all(&dir).expect("folder for fixtures");
    dir
}

/// A made machine with Windows of build 19041: its image, its crash dump, and what was put into it.
#[derive(Clone, Debug)]
pub struct WindowsMachine {
    /// The raw image, without a low stub.
    pub image: PathBuf,
    /// Its page file, which lies beside the image.
    pub page_file: PathBuf,
    /// The same as a bitmap crash dump.
    pub dump: PathBuf,
    /// What was put into it.
    pub truth: serde_json::Value,
}

/// The machine for everyday tests, made once.
pub fn windows_machine() -> &'static WindowsMachine {
    static MADE: OnceLock<WindowsMachine> = OnceLock::new();
    MADE.get_or_init(|| {
        let stem = folder().join(format!("windows-{}", std::process::id()));
        make_windows(&stem, &["--bmp", "--no-low-stub", "--page-out"])
    })
}

/// A machine with these options of the generator; its files are called as `stem` says.
pub fn make_windows(stem: &Path, options: &[&str]) -> WindowsMachine {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let done = Command::new("python3")
        .args(["-B", "-m", "winsynth", "--layouts"])
        .arg(root.join("../crates/symbols/data/windows-x64.json.xz"))
        .args(["--guid", "606FF669409B00F7FC8C61A9C1670129", "--seed", "11"])
        .args(options)
        .arg("--out")
        .arg(stem)
        .current_dir(root.join("fixtures/windows"))
        .output()
        .expect("python3 runs the generator of machines");
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{told}");
    let text = std::fs::read(stem.with_extension("truth.json")).expect("truth");
    WindowsMachine {
        image: stem.with_extension("raw"),
        page_file: stem.with_extension("pagefile.sys"),
        dump: stem.with_extension("bmp.dmp"),
        truth: serde_json::from_slice(&text).expect("JSON"),
    }
}
