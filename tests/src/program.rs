//! The program under test: one run of a command, or a whole cluster of services.

use crate::authority::Authority;
use crate::servers::{KEYS, Process, Rabbit, Redis, S3};
use crate::{free_port, wait_for};
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;
use tempfile::TempDir;

/// The binary, built by `tests/run` (or `cargo build --release`) beside the tests.
pub fn binary() -> PathBuf {
    let exe = std::env::current_exe().expect("the path of this test");
    let dir = exe
        .ancestors()
        .nth(2)
        .expect("target/<profile>/deps/<test>");
    let path = dir.join("ramsift");
    assert!(
        path.exists(),
        "{} is not built: run tests/run",
        path.display()
    );
    path
}

/// A command without any configuration from outside.
pub fn command() -> Command {
    let mut c = Command::new(binary());
    for (k, _) in std::env::vars() {
        if k.starts_with("RAMSIFT_") || k.starts_with("OTEL_") || k.starts_with("AWS_") {
            c.env_remove(k);
        }
    }
    c
}

/// What a run printed and how it ended.
#[derive(Debug)]
pub struct Run {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl From<Output> for Run {
    fn from(o: Output) -> Self {
        Self {
            code: o.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&o.stdout).into_owned(),
            err: String::from_utf8_lossy(&o.stderr).into_owned(),
        }
    }
}

/// Runs a command to its end.
pub fn run(c: &mut Command) -> Run {
    c.output().expect("the program starts").into()
}

/// Runs `ramsift scan` of an image into `out` with more arguments.
pub fn scan(image: &Path, out: &Path, more: &[&str]) -> Run {
    run(command()
        .arg("scan")
        .arg(image)
        .arg("--out")
        .arg(out)
        .args(more))
}

/// The program with a disk of this many bytes at `full`, which nobody else sees.
pub fn with_small_disk(full: &Path, size: &str, program: &Command) -> Command {
    let line = "mount -t tmpfs -o size=$2 tmpfs \"$1\" && shift 2 && exec \"$@\"";
    in_own_mounts(line, &[full.as_os_str(), size.as_ref()], program)
}

/// The same; what lies on the disk in the end is copied to the folder `kept`.
pub fn with_small_disk_kept(full: &Path, size: &str, kept: &Path, program: &Command) -> Command {
    let line = "mount -t tmpfs -o size=$2 tmpfs \"$1\" && full=$1 kept=$3 && shift 3 || exit 125; \
                \"$@\"; code=$?; cp -a \"$full/.\" \"$kept\" && exit $code";
    let of = [full.as_os_str(), size.as_ref(), kept.as_os_str()];
    in_own_mounts(line, &of, program)
}

/// The program with this file in place of `/etc/hosts`, which nobody else sees.
pub fn with_hosts(hosts: &Path, program: &Command) -> Command {
    let line = "mount --bind \"$1\" /etc/hosts && shift && exec \"$@\"";
    in_own_mounts(line, &[hosts.as_os_str()], program)
}

/// Runs a line of shell, which can mount for itself, with its own arguments and then the program's.
fn in_own_mounts(line: &str, own: &[&OsStr], program: &Command) -> Command {
    // SAFETY: geteuid takes nothing and can't fail.
    let root = unsafe { libc::geteuid() } == 0;
    let mut c = Command::new("unshare");
    c.arg(if root { "-m" } else { "-Urm" });
    c.args(["sh", "-c", line, "sh"]).args(own);
    c.arg(program.get_program()).args(program.get_args());
    for (name, value) in program.get_envs() {
        match value {
            Some(v) => c.env(name, v),
            None => c.env_remove(name),
        };
    }
    c
}

/// A whole cluster on one machine.
#[derive(Debug)]
pub struct Cluster {
    /// The broker.
    pub rabbit: Rabbit,
    /// The ledger's server.
    pub redis: Redis,
    /// Evidence and results.
    pub s3: S3,
    /// Logs of the services.
    pub logs: TempDir,
    /// Ports of coordinator and aggregator.
    pub ports: [u16; 2],
    proof: Option<Proof>,
    settings: Vec<(String, String)>,
}

/// How services and clients of a cluster know each other, over TLS.
#[derive(Debug)]
pub enum Proof {
    /// By certificates of their roles.
    Certificates(Authority),
    /// By tokens; the authority signs those of the services.
    Tokens(Authority),
}

impl Proof {
    /// Makes what each role shows.
    pub fn certificates() -> Self {
        let a = Authority::new("IP:127.0.0.1");
        a.issue("coordinator", "IP:127.0.0.1,URI:ramsift://coordinator");
        a.issue("aggregator", "IP:127.0.0.1");
        a.issue("worker", "URI:ramsift://worker/one");
        a.issue("client", "URI:ramsift://client");
        Self::Certificates(a)
    }

    /// Makes what each role shows.
    pub fn tokens() -> Self {
        let a = Authority::new("IP:127.0.0.1");
        for role in ["coordinator", "worker", "client"] {
            std::fs::write(a.at(role), format!("{role}:token-of-{role}-0123456789\n"))
                .expect("write");
        }
        Self::Tokens(a)
    }

    /// The authority that signed the services' certificates.
    pub fn authority(&self) -> &Authority {
        let (Self::Certificates(a) | Self::Tokens(a)) = self;
        a
    }

    /// Settings of a service, or of a `client`.
    pub fn settings(&self, what: &str) -> Vec<(String, String)> {
        let a = self.authority();
        let mut out = Vec::new();
        let mut set = |name: &str, value: String| out.push((format!("RAMSIFT_{name}"), value));
        let path = |p: PathBuf| p.display().to_string();
        let serves = matches!(what, "coordinator" | "aggregator");
        let role = if what.ends_with("worker") {
            "worker"
        } else {
            what
        };
        let [cert, key] = match self {
            Self::Certificates(_) => a.issued(role),
            Self::Tokens(_) => a.server(),
        };
        if serves {
            set("SERVER_CERT_FILE", path(cert.clone()));
            set("SERVER_KEY_FILE", path(key.clone()));
        }
        set("CLIENT_CA_FILE", path(a.ca_file()));
        match self {
            Self::Certificates(_) => {
                if serves {
                    set("SERVER_CLIENT_CA_FILE", path(a.ca_file()));
                }
                set("CLIENT_CERT_FILE", path(cert));
                set("CLIENT_KEY_FILE", path(key));
            }
            Self::Tokens(_) => {
                if serves {
                    let all = ["coordinator", "worker", "client"].map(|r| path(a.at(r)));
                    set("SERVER_TOKEN_FILE", all.join(","));
                }
                if what != "aggregator" {
                    set("CLIENT_TOKEN_FILE", path(a.at(role)));
                }
            }
        }
        out
    }
}

/// A service and its health endpoint.
#[derive(Debug)]
pub struct Service {
    /// The process.
    pub process: Process,
    http: u16,
}

/// Answer of a health endpoint: status and body.
pub fn http_get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut s = TcpStream::connect(("127.0.0.1", port)).ok()?;
    s.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(
        s,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut text = String::new();
    s.read_to_string(&mut text).ok()?;
    let status = text.split_whitespace().nth(1)?.parse().ok()?;
    let body = text
        .split_once("\r\n\r\n")
        .map(|(_, b)| b.to_owned())
        .unwrap_or_default();
    Some((status, body))
}

impl Service {
    /// Port of `/readyz` and `/metrics`.
    pub fn http(&self) -> u16 {
        self.http
    }

    /// Status and body of `/readyz`.
    pub fn ready(&self) -> Option<(u16, String)> {
        http_get(self.http, "/readyz")
    }

    /// Waits until it is ready.
    pub fn await_ready(&self) {
        wait_for("a service is ready", Duration::from_secs(60), || {
            self.ready().filter(|(s, _)| *s == 200)
        });
    }
}

impl Cluster {
    /// Starts the servers, with a bucket `evidence` and one `results`.
    pub fn start(settings: &[(&str, &str)]) -> Self {
        Self::with(Rabbit::start(), Redis::start(), settings)
    }

    /// Has the services know each other.
    #[must_use]
    pub fn secured(mut self, proof: Proof) -> Self {
        self.proof = Some(proof);
        self
    }

    /// Starts the servers beside this broker and this Redis.
    pub fn with(rabbit: Rabbit, redis: Redis, settings: &[(&str, &str)]) -> Self {
        let s3 = S3::start();
        s3.bucket("evidence");
        s3.bucket("results");
        Self {
            rabbit,
            redis,
            s3,
            logs: tempfile::tempdir().expect("a temporary folder"),
            ports: [free_port(), free_port()],
            proof: None,
            settings: settings
                .iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect(),
        }
    }

    /// A command with the cluster's configuration, run by a client.
    pub fn command(&self) -> Command {
        self.command_of("client")
    }

    /// What is shown to whom, where the cluster is secured.
    pub fn proof(&self) -> &Proof {
        self.proof.as_ref().expect("a secured cluster")
    }

    /// Where coordinator and aggregator are.
    pub fn urls(&self) -> [String; 2] {
        let scheme = if self.proof.is_some() {
            "https"
        } else {
            "http"
        };
        self.ports
            .map(|port| format!("{scheme}://127.0.0.1:{port}"))
    }

    /// A command with the cluster's configuration, as a service or a `client` runs it.
    pub fn command_of(&self, what: &str) -> Command {
        let mut c = command();
        let [coordinator, aggregator] = self.urls();
        let [coordinator_port, aggregator_port] = self.ports;
        c.env("RAMSIFT_STORE_URL", "s3://results/r")
            .env("RAMSIFT_S3_ENDPOINT", self.s3.endpoint())
            .env("RAMSIFT_S3_REGION", "us-east-1")
            .env("RAMSIFT_S3_ACCESS_KEY", KEYS.0)
            .env("RAMSIFT_S3_SECRET_KEY", KEYS.1)
            .env("RAMSIFT_S3_PATH_STYLE", "true")
            .env("RAMSIFT_QUEUE_URL", self.rabbit.url())
            .env("RAMSIFT_LEDGER_URL", self.redis.url())
            .env(
                "RAMSIFT_COORDINATOR_LISTEN",
                format!("127.0.0.1:{coordinator_port}"),
            )
            .env("RAMSIFT_COORDINATOR_URL", coordinator)
            .env("RAMSIFT_COORDINATOR_POLL_MILLISECONDS", "100")
            .env("RAMSIFT_COORDINATOR_LEASE_SECONDS", "3")
            .env(
                "RAMSIFT_AGGREGATOR_LISTEN",
                format!("127.0.0.1:{aggregator_port}"),
            )
            .env("RAMSIFT_AGGREGATOR_URL", aggregator)
            .env("RAMSIFT_AGGREGATOR_COMMIT_MILLISECONDS", "100")
            .env("RAMSIFT_WORKER_SLOTS", "1");
        if let Some(file) = self.rabbit.ca_file() {
            c.env("RAMSIFT_QUEUE_CA_FILE", file);
        }
        if let Some(file) = self.redis.ca_file() {
            c.env("RAMSIFT_LEDGER_CA_FILE", file);
        }
        if let Some(proof) = &self.proof {
            c.envs(proof.settings(what));
        }
        for (k, v) in &self.settings {
            c.env(k, v);
        }
        c
    }

    /// Starts a service and waits until it answers.
    pub fn service(&self, what: &str) -> Service {
        self.service_with(what, &[])
    }

    /// Starts a service with more settings in its environment and waits until it answers.
    pub fn service_with(&self, what: &str, more: &[(&str, &str)]) -> Service {
        self.service_as(what, more, |c| c)
    }

    /// The same, run in some other way.
    pub fn service_as(
        &self,
        what: &str,
        more: &[(&str, &str)],
        how: impl FnOnce(Command) -> Command,
    ) -> Service {
        let http = free_port();
        let mut c = self.command_of(what);
        c.arg(what)
            .env("RAMSIFT_HTTP_LISTEN", format!("127.0.0.1:{http}"))
            .envs(more.iter().copied());
        let mut c = how(c);
        let moved = more.iter().any(|(k, _)| k.ends_with("_LISTEN"));
        let log = self.logs.path().join(format!("{what}-{http}.log"));
        let process = Process::start(what, &mut c, &log);
        wait_for(&format!("{what} answers"), Duration::from_secs(60), || {
            http_get(http, "/livez").filter(|(s, _)| *s == 200)
        });
        let port = match what {
            "coordinator" => Some(self.ports[0]),
            "aggregator" => Some(self.ports[1]),
            _ => None,
        };
        if let Some(port) = port.filter(|_| !moved) {
            wait_for(&format!("{what} listens"), Duration::from_secs(60), || {
                TcpStream::connect(("127.0.0.1", port)).ok()
            });
        }
        Service { process, http }
    }

    /// What the services have logged, for messages of failed tests.
    pub fn log(&self) -> String {
        let mut out = String::new();
        for e in std::fs::read_dir(self.logs.path())
            .expect("folder")
            .flatten()
        {
            let text = std::fs::read_to_string(e.path()).unwrap_or_default();
            let tail: Vec<&str> = text.lines().rev().take(30).collect();
            out.push_str(&format!("--- {}\n", e.file_name().to_string_lossy()));
            for l in tail.into_iter().rev() {
                out.push_str(l);
                out.push('\n');
            }
        }
        out
    }
}
