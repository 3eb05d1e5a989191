//! RabbitMQ, Redis, an S3 server and clamd, as private child processes.

use crate::authority::Authority;
use crate::{block_on, free_port, wait_for};
use ramsift_layers::source::{S3Client, S3Config};
use ramsift_queue::{Queue, RabbitConfig, RabbitQueue};
use ramsift_store::S3Objects;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A child process that ends with this value.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts a command with its output in `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Self {
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(log)
            .unwrap_or_else(|e| panic!("log {}: {e}", log.display()));
        let err = file.try_clone().expect("a second handle");
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(err)
            .spawn()
            .unwrap_or_else(|e| {
                panic!("{name} can't be started ({e}): run tests/run, which installs it")
            });
        Self {
            child,
            name: name.to_owned(),
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it at once, as a power cut would.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.child
            .wait()
            .unwrap_or_else(|e| panic!("{}: {e}", self.name));
    }

    /// Asks it to end and waits for that. Returns its exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        self.signal(libc::SIGTERM);
        let done = wait_for(
            &format!("{} ends", self.name),
            Duration::from_secs(60),
            || self.child.try_wait().expect("a child of ours"),
        );
        done.code()
    }

    /// Its exit code, if it has ended.
    pub fn exited(&mut self) -> Option<i32> {
        self.child
            .try_wait()
            .expect("a child of ours")
            .map(|s| s.code().unwrap_or(-1))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        // SAFETY: kill takes two integers; the child has not been waited for, so its id is ours.
        let done = unsafe { libc::kill(pid, signal) };
        assert_eq!(done, 0, "{} could not be signalled", self.name);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|s| s.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// The first of these that exists.
fn program(names: &[&str]) -> PathBuf {
    names
        .iter()
        .map(PathBuf::from)
        .find(|p| p.exists())
        .unwrap_or_else(|| {
            panic!("none of {names:?} is installed: run tests/run, which installs it")
        })
}

/// The folder with tools that tests/run fetched.
pub fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.test-tools")
}

/// A private RabbitMQ node.
#[derive(Debug)]
pub struct Rabbit {
    process: Option<Process>,
    dir: TempDir,
    port: u16,
    dist: u16,
    epmd: u16,
    authority: Option<Authority>,
}

impl Rabbit {
    /// Starts a node and waits until it takes messages. A port that was free may be taken by the
    /// time the node wants it: then another node is tried.
    pub fn start() -> Self {
        Self::come_up(|| None)
    }

    /// Starts a node that speaks TLS only, on 127.0.0.1, which its certificate names, and on
    /// 127.0.0.2, which it doesn't.
    pub fn start_tls() -> Self {
        Self::come_up(|| Some(Authority::new("IP:127.0.0.1")))
    }

    fn come_up(authority: impl Fn() -> Option<Authority>) -> Self {
        for _ in 0..3 {
            let mut r = Self::prepare(authority());
            if r.launch(Duration::from_secs(60)) {
                return r;
            }
            eprintln!("a RabbitMQ node did not come up; trying another");
        }
        panic!("RabbitMQ does not come up: see its log with RABBITMQ_LOG_BASE, or run tests/run");
    }

    fn prepare(authority: Option<Authority>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let r = Self {
            process: None,
            dir,
            port: free_port(),
            dist: free_port(),
            epmd: free_port(),
            authority,
        };
        let d = r.dir.path();
        std::fs::write(
            d.join("rabbitmq.conf"),
            format!(
                "{}\nloopback_users.guest = true\n\
                 vm_memory_high_watermark.absolute = 1GB\ndisk_free_limit.absolute = 200MB\n",
                r.listeners()
            ),
        )
        .expect("write");
        std::fs::write(d.join("plugins"), "[].").expect("write");
        r
    }

    fn listeners(&self) -> String {
        let port = self.port;
        let Some(a) = &self.authority else {
            return format!("listeners.tcp.1 = 127.0.0.1:{port}");
        };
        let [certificate, key] = a.server();
        format!(
            "listeners.tcp = none\nlisteners.ssl.1 = 127.0.0.1:{port}\n\
             listeners.ssl.2 = 127.0.0.2:{port}\nssl_options.cacertfile = {}\n\
             ssl_options.certfile = {}\nssl_options.keyfile = {}\n\
             ssl_options.verify = verify_none",
            a.ca_file().display(),
            certificate.display(),
            key.display()
        )
    }

    /// Starts the node again on the data it has.
    pub fn up(&mut self) {
        assert!(
            self.launch(Duration::from_secs(120)),
            "RabbitMQ does not come up again"
        );
    }

    /// Starts the node; whether it takes messages within `limit`.
    fn launch(&mut self, limit: Duration) -> bool {
        let d = self.dir.path();
        let mut c = Command::new(program(&["/usr/lib/rabbitmq/bin/rabbitmq-server"]));
        c.env("HOME", d)
            .env("ERL_CRASH_DUMP", "/dev/null")
            .env("RABBITMQ_NODENAME", format!("t{}@localhost", self.port))
            .env("RABBITMQ_DIST_PORT", self.dist.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", self.epmd.to_string())
            .env("RABBITMQ_CONFIG_FILE", d.join("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", d.join("plugins"))
            .env("RABBITMQ_MNESIA_BASE", d.join("mnesia"))
            .env("RABBITMQ_LOG_BASE", d.join("log"))
            .env("RABBITMQ_PID_FILE", d.join("pid"))
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2",
            );
        // Its shell wrapper starts the emulator as a child: a group of its own takes both down.
        std::os::unix::process::CommandExt::process_group(&mut c, 0);
        self.process = Some(Process::start(
            "rabbitmq-server",
            &mut c,
            &d.join("out.log"),
        ));
        let queue = self.queue("ready");
        let started = std::time::Instant::now();
        while started.elapsed() < limit {
            if listens(self.port) && block_on(queue.check()).is_ok() {
                return true;
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
        false
    }

    /// Takes the whole node down at once.
    pub fn down(&mut self) {
        let Some(p) = self.process.take() else { return };
        let pid = i32::try_from(p.child.id()).expect("a process id");
        // SAFETY: kill takes two integers; the negative id names the group that `up` made.
        unsafe { libc::kill(-pid, libc::SIGKILL) };
        drop(p);
        let what = format!("RabbitMQ no longer listens at {}", self.port);
        wait_for(&what, Duration::from_secs(120), || {
            (!listens(self.port)).then_some(())
        });
    }

    /// Takes away what a node that is down has stored: it comes up empty.
    pub fn forget(&mut self) {
        assert!(self.process.is_none(), "the node is down");
        let stored = self.dir.path().join("mnesia");
        std::fs::remove_dir_all(stored).expect("what it stored");
    }

    /// Where it is.
    pub fn url(&self) -> String {
        self.url_at("127.0.0.1")
    }

    /// Where it is, by way of a link that listens on another port.
    pub fn url_by(&self, port: u16) -> String {
        self.url()
            .replace(&format!(":{}/", self.port), &format!(":{port}/"))
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Deletes a queue with all that lies in it; whether the node did.
    pub fn delete_queue(&self, name: &str) -> bool {
        block_on(async {
            let properties = lapin::ConnectionProperties::default();
            let Ok(c) = lapin::Connection::connect(&self.url(), properties).await else {
                return false;
            };
            let Ok(channel) = c.create_channel().await else {
                return false;
            };
            let options = lapin::options::QueueDeleteOptions::default();
            let done = channel.queue_delete(name.into(), options).await;
            let _ = c.close(200, "done".into()).await;
            done.is_ok()
        })
    }

    /// Where it is, by another of its addresses.
    pub fn url_at(&self, host: &str) -> String {
        let scheme = if self.authority.is_some() {
            "amqps"
        } else {
            "amqp"
        };
        format!(
            "{scheme}://guest:guest@{host}:{}/%2f?heartbeat=10",
            self.port
        )
    }

    /// Who signed its certificate, where it has one.
    pub fn ca_file(&self) -> Option<PathBuf> {
        self.authority.as_ref().map(Authority::ca_file)
    }

    /// A queue at this node.
    pub fn queue(&self, prefix: &str) -> RabbitQueue {
        RabbitQueue::new(RabbitConfig {
            url: self.url().into(),
            prefix: prefix.to_owned(),
            name: "tests".into(),
            ca_file: self.ca_file(),
        })
    }
}

impl Drop for Rabbit {
    fn drop(&mut self) {
        if let Some(p) = self.process.take() {
            let pid = i32::try_from(p.child.id()).unwrap_or(0);
            if pid > 0 {
                // SAFETY: kill takes two integers; the negative id names the group that `up` made.
                unsafe { libc::kill(-pid, libc::SIGKILL) };
            }
        }
        // The port mapper daemonises itself and outlives its node.
        let _ = Command::new("epmd")
            .args(["-port", &self.epmd.to_string(), "-kill"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

/// A private Redis.
#[derive(Debug)]
pub struct Redis {
    process: Option<Process>,
    dir: TempDir,
    port: u16,
    authority: Option<Authority>,
}

/// Password of a Redis that speaks TLS.
pub const REDIS_PASSWORD: &str = "redis-p4ssw0rd";

impl Redis {
    /// Starts a server and waits for it.
    pub fn start() -> Self {
        Self::come_up(None)
    }

    /// Starts a server that speaks TLS only and asks for a password.
    pub fn start_tls() -> Self {
        Self::come_up(Some(Authority::new("IP:127.0.0.1")))
    }

    fn come_up(authority: Option<Authority>) -> Self {
        let mut r = Self {
            process: None,
            dir: tempfile::tempdir().expect("a temporary folder"),
            port: free_port(),
            authority,
        };
        r.up();
        r
    }

    /// Who signed its certificate, where it has one.
    pub fn ca_file(&self) -> Option<PathBuf> {
        self.authority.as_ref().map(Authority::ca_file)
    }

    /// Starts the server (again), empty.
    pub fn up(&mut self) {
        let mut c = Command::new("redis-server");
        let port = self.port.to_string();
        c.args(["--bind", "127.0.0.1", "--save", ""])
            .arg("--dir")
            .arg(self.dir.path());
        if let Some(a) = &self.authority {
            let [certificate, key] = a.server();
            c.args([
                "--port",
                "0",
                "--tls-port",
                &port,
                "--tls-auth-clients",
                "no",
            ])
            .args(["--requirepass", REDIS_PASSWORD])
            .arg("--tls-cert-file")
            .arg(certificate)
            .arg("--tls-key-file")
            .arg(key)
            .arg("--tls-ca-cert-file")
            .arg(a.ca_file());
        } else {
            c.args(["--port", &port]);
        }
        self.process = Some(Process::start(
            "redis-server",
            &mut c,
            &self.dir.path().join("log"),
        ));
        wait_for("Redis listens", Duration::from_secs(20), || {
            listens(self.port).then_some(())
        });
    }

    /// Takes the server down at once.
    pub fn down(&mut self) {
        if let Some(mut p) = self.process.take() {
            p.kill();
        }
    }

    /// Gives it a certificate of a new authority, for when it comes up again.
    pub fn renew(&mut self) {
        self.authority = Some(Authority::new("IP:127.0.0.1"));
    }

    /// Where it is.
    pub fn url(&self) -> String {
        match &self.authority {
            Some(_) => format!("rediss://:{REDIS_PASSWORD}@127.0.0.1:{}/0", self.port),
            None => format!("redis://127.0.0.1:{}/0", self.port),
        }
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Forgets everything.
    pub fn flush(&self) {
        let done = Command::new("redis-cli")
            .args(["-p", &self.port.to_string(), "flushall"])
            .stdout(Stdio::null())
            .status()
            .expect("redis-cli");
        assert!(done.success());
    }
}

/// A private S3 server (SeaweedFS).
#[derive(Debug)]
pub struct S3 {
    process: Option<Process>,
    dir: TempDir,
    ports: [u16; 5],
    authority: Option<Authority>,
}

/// The credentials of the S3 server.
pub const KEYS: (&str, &str) = ("testkey", "testsecret");
/// Credentials that open the bucket `case` of a server that speaks TLS, and no other.
pub const OTHER_KEYS: (&str, &str) = ("otherkey", "othersecret");

impl S3 {
    /// Starts a server and waits for it.
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// Starts one that speaks TLS alone, with a certificate that a private authority signed. Everybody may read the bucket `public`.
    pub fn start_tls() -> Self {
        Self::start_with(Some(Authority::new("IP:127.0.0.1")))
    }

    fn start_with(authority: Option<Authority>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut identities = serde_json::json!({"identities": [{"name": "test",
            "credentials": [{"accessKey": KEYS.0, "secretKey": KEYS.1}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]});
        if let (Some(_), Some(all)) = (&authority, identities["identities"].as_array_mut()) {
            all.push(serde_json::json!({"name": "other",
                "credentials": [{"accessKey": OTHER_KEYS.0, "secretKey": OTHER_KEYS.1}],
                "actions": ["Read:case", "List:case", "Write:case"]}));
            all.push(serde_json::json!({"name": "anonymous",
                "actions": ["Read:public", "List:public"]}));
        }
        std::fs::write(dir.path().join("s3.json"), identities.to_string()).expect("write");
        std::fs::create_dir(dir.path().join("data")).expect("folder");
        let ports = std::array::from_fn(|_| free_port());
        let mut s = Self {
            process: None,
            dir,
            ports,
            authority,
        };
        // Each of its ports has another 10,000 above it, which somebody may have.
        for _ in 0..2 {
            s.run();
            if s.works(Duration::from_secs(30)) {
                return s;
            }
            s.down();
            s.ports = std::array::from_fn(|_| free_port());
        }
        s.up();
        s
    }

    /// Starts the server (again) on the data it has, and waits for it.
    pub fn up(&mut self) {
        self.run();
        let log = self.dir.path().join("log");
        assert!(
            self.works(Duration::from_secs(60)),
            "the S3 server does not work: {}",
            std::fs::read_to_string(log).unwrap_or_default()
        );
    }

    fn run(&mut self) {
        let [s3, master, filer, volume, admin] = self.ports;
        let weed = tools().join("venv/bin/weed");
        let mut c = Command::new(program(&[&weed.display().to_string(), "/usr/bin/weed"]));
        c.current_dir(self.dir.path())
            .args(["mini", "-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"])
            .args([
                "-master.telemetry=false",
                "-webdav=false",
                "-admin.ui=false",
            ])
            .args([
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                "-s3.config=s3.json",
            ])
            .arg(format!("-s3.port={s3}"))
            .arg(format!("-master.port={master}"))
            .arg(format!("-filer.port={filer}"))
            .arg(format!("-volume.port={volume}"))
            .arg(format!("-admin.port={admin}"));
        if let Some(a) = &self.authority {
            let [cert, key] = a.issued("server");
            c.arg(format!("-s3.cert.file={}", cert.display()))
                .arg(format!("-s3.key.file={}", key.display()));
        }
        std::os::unix::process::CommandExt::process_group(&mut c, 0);
        self.process = Some(Process::start("weed", &mut c, &self.dir.path().join("log")));
    }

    /// Whether it answers within a time.
    fn works(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let answers = || {
            block_on(async {
                let c = S3Client::connect(&self.config()).await;
                c.sdk.list_buckets().send().await.is_ok()
            })
        };
        while Instant::now() < until {
            if listens(self.ports[0]) && answers() {
                return true;
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        false
    }

    /// Takes the server down at once.
    pub fn down(&mut self) {
        if let Some(mut p) = self.process.take() {
            p.kill();
        }
    }

    /// How to reach it.
    pub fn config(&self) -> S3Config {
        S3Config {
            endpoint: self.endpoint().into(),
            region: "us-east-1".into(),
            access_key: KEYS.0.into(),
            secret_key: KEYS.1.into(),
            path_style: true,
            authorities: self.ca_file().map_or(Vec::new(), |f| {
                std::fs::read(f).expect("the authority's certificate")
            }),
            ..S3Config::default()
        }
    }

    /// Who signed its certificate, where it speaks TLS.
    pub fn ca_file(&self) -> Option<PathBuf> {
        self.authority.as_ref().map(|a| a.at("ca.pem"))
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.ports[0]
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        let scheme = if self.authority.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://127.0.0.1:{}", self.ports[0])
    }

    /// Stores a file as one object, without the server's own compression, which is no part of S3: SeaweedFS gzips
    /// what looks compressible, and unpacks 8 MiB of it for every read (6.6 CPU seconds for a GiB, against 1.0).
    /// A content type that says "compressed" keeps it from that.
    pub fn put_as_is(&self, bucket: &str, key: &str, path: &Path) {
        block_on(async {
            let c = S3Client::connect(&self.config()).await;
            let body = aws_sdk_s3::primitives::ByteStream::from_path(path)
                .await
                .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let put = c.sdk.put_object().bucket(bucket).key(key).body(body);
            // The server answers when all of it is stored, which takes longer than an answer may otherwise.
            let patient = aws_sdk_s3::config::Builder::new()
                .timeout_config(aws_sdk_s3::config::timeout::TimeoutConfig::disabled());
            put.content_type("application/zstd")
                .customize()
                .config_override(patient)
                .send()
                .await
                .unwrap_or_else(|e| panic!("s3://{bucket}/{key}: {e:?}"));
        });
    }

    /// Makes a bucket and gives the objects in it.
    pub fn bucket(&self, name: &str) -> S3Objects {
        block_on(async {
            let c = S3Client::connect(&self.config()).await;
            c.sdk
                .create_bucket()
                .bucket(name)
                .send()
                .await
                .expect("a new bucket");
            S3Objects::new(c, name, "")
        })
    }
}

/// A private clamd with two signatures of our own.
#[derive(Debug)]
pub struct Clamd {
    process: Process,
    _dir: TempDir,
    port: u16,
}

/// Text that the signature `Ramsift.Test.Needle` is for.
pub const CLAM_NEEDLE: &[u8] = b"ramsift-clamav-needle-7731";

/// Text of a file that machines of captures have deleted and still open; `Ramsift.Test.Deleted` is for it.
pub const CLAM_DELETED: &[u8] = b"DELETED-OPEN-FILE-MARKER\nDELETED-OPEN-FILE-MARKER\n";

impl Clamd {
    /// Starts a daemon and waits until it scans.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let d = dir.path();
        let port = free_port();
        std::fs::create_dir(d.join("db")).expect("folder");
        let hex = |text: &[u8]| -> String { text.iter().map(|b| format!("{b:02x}")).collect() };
        let (needle, deleted) = (hex(CLAM_NEEDLE), hex(CLAM_DELETED));
        std::fs::write(
            d.join("db/t.ndb"),
            format!("Ramsift.Test.Needle:0:*:{needle}\nRamsift.Test.Deleted:0:*:{deleted}\n"),
        )
        .expect("write");
        let conf = format!(
            "DatabaseDirectory {0}/db\nTCPSocket {port}\nTCPAddr 127.0.0.1\nTemporaryDirectory {0}\n\
             User {1}\nForeground yes\nStreamMaxLength 16M\nMaxFileSize 16M\nMaxScanSize 32M\n\
             MaxThreads 2\n",
            d.display(),
            user()
        );
        std::fs::write(d.join("clamd.conf"), conf).expect("write");
        let mut c = Command::new(program(&["/usr/sbin/clamd"]));
        c.arg("-c").arg(d.join("clamd.conf"));
        let process = Process::start("clamd", &mut c, &d.join("log"));
        wait_for("clamd listens", Duration::from_secs(60), || {
            listens(port).then_some(())
        });
        Self {
            process,
            _dir: dir,
            port,
        }
    }

    /// Where it is.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Takes it down at once.
    pub fn down(&mut self) {
        self.process.kill();
    }
}

fn user() -> String {
    let out = Command::new("id").arg("-un").output().expect("id");
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}
