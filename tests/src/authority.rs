//! A private certificate authority, made for one test by `openssl`.

use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// How keys are made.
const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";

/// An authority that nobody else trusts, the certificate of one server, and others that it is asked for.
#[derive(Debug)]
pub struct Authority {
    dir: TempDir,
}

impl Authority {
    /// Makes both. The certificate holds for `name` alone: `DNS:host` or `IP:address`.
    pub fn new(name: &str) -> Self {
        let a = Self {
            dir: tempfile::tempdir().expect("a temporary folder"),
        };
        a.openssl(&format!(
            "req -x509 {KEY} -keyout ca.key -out ca.pem -subj /CN=ramsift-tests -days 2"
        ));
        a.issue("server", name);
        a
    }

    /// Makes a certificate for these names (`DNS:…`, `IP:…`, `URI:…`, separated by commas) and its key. What was made as
    /// `what` before is written over.
    pub fn issue(&self, what: &str, names: &str) -> [PathBuf; 2] {
        std::fs::write(self.at("names"), format!("subjectAltName={names}\n")).expect("write");
        self.openssl(&format!(
            "req {KEY} -keyout {what}.key -out request -subj /CN={what}"
        ));
        self.openssl(&format!(
            "x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -days 2 -out {what}.pem"
        ));
        self.issued(what)
    }

    /// A certificate that was issued, and its key.
    pub fn issued(&self, what: &str) -> [PathBuf; 2] {
        ["pem", "key"].map(|end| self.at(&format!("{what}.{end}")))
    }

    fn openssl(&self, args: &str) {
        let out = Command::new("openssl")
            .args(args.split_whitespace())
            .current_dir(self.dir.path())
            .output()
            .expect("openssl is not installed: run tests/run, which installs it");
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "openssl {args}: {said}");
    }

    /// A file in the folder of what it makes.
    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The authority's own certificate, PEM.
    pub fn ca_file(&self) -> PathBuf {
        self.at("ca.pem")
    }

    /// The server's certificate and its key, PEM.
    pub fn server(&self) -> [PathBuf; 2] {
        self.issued("server")
    }
}
