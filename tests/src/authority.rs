//! A private certificate authority, made for one test by `openssl`.

use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// An authority that nobody else trusts, and the certificate of one server.
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
        std::fs::write(a.at("name"), format!("subjectAltName={name}\n")).expect("write");
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        a.openssl(&format!(
            "req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=ramsift-tests -days 2"
        ));
        a.openssl(&format!(
            "req {key} -keyout key.pem -out request -subj /CN=server"
        ));
        a.openssl(
            "x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -extfile name \
             -days 2 -out certificate.pem",
        );
        a
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

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The authority's own certificate, PEM.
    pub fn ca_file(&self) -> PathBuf {
        self.at("ca.pem")
    }

    /// The server's certificate and its key, PEM.
    pub fn server(&self) -> [PathBuf; 2] {
        ["certificate.pem", "key.pem"].map(|n| self.at(n))
    }
}
