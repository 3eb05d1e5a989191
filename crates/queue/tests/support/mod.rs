//! A private RabbitMQ node that can be killed and started again on the data it has.

#![allow(dead_code, reason = "each test uses a part of it")]

use ramsift_queue::{Consumer, Delivery, Lane, Message, Queue, RabbitConfig, RabbitQueue};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longest wait for anything that a loaded machine does in seconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A message with this text, and headers.
pub(crate) fn message(text: &str) -> Message {
    Message {
        body: text.as_bytes().to_vec().into(),
        headers: [("traceparent".to_owned(), format!("00-{text}"))].into(),
    }
}

/// Asks again and again until `done` gives something; fails with `what` after a while.
fn wait_for<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(v) = done() {
            return v;
        }
        assert!(
            started.elapsed() < PATIENCE,
            "{what}: not within {PATIENCE:?}"
        );
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let l = TcpListener::bind("127.0.0.1:0").expect("a free port on the loopback interface");
    l.local_addr().expect("bound").port()
}

fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// A child in a process group of its own, which ends with this value.
#[derive(Debug)]
struct Group(Child);

impl Group {
    fn start(program: &Path, command: &mut Command, log: &Path) -> Self {
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(log)
            .expect("a log");
        let err = file.try_clone().expect("a second handle");
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(err)
            .process_group(0)
            .spawn();
        Self(child.unwrap_or_else(|e| panic!("{} does not start: {e}", program.display())))
    }
}

impl Drop for Group {
    /// As a power cut would. The node's shell wrapper starts the emulator as a child of its own.
    fn drop(&mut self) {
        let pid = i32::try_from(self.0.id()).expect("a process id");
        // SAFETY: kill takes two integers; the negative id names the group that `start` made, whose
        // leader has not been waited for.
        unsafe { libc::kill(-pid, libc::SIGKILL) };
        self.0.wait().ok();
    }
}

/// A private RabbitMQ node.
#[derive(Debug)]
pub(crate) struct Broker {
    node: Option<Group>,
    _epmd: Group,
    dir: TempDir,
    port: u16,
    dist: u16,
    epmd_port: u16,
}

fn program(places: &[&str]) -> PathBuf {
    let found = places.iter().map(PathBuf::from).find(|p| p.exists());
    found.unwrap_or_else(|| panic!("none of {places:?} is installed: run tests/run --install"))
}

impl Broker {
    /// Starts a node. A port that was free may be taken by the time the node wants it: then another
    /// is tried.
    pub(crate) fn start() -> Self {
        for _ in 0..3 {
            let mut b = Self::prepare();
            if b.launch() {
                return b;
            }
            eprintln!(
                "a RabbitMQ node did not come up; trying another\n{}",
                b.log()
            );
        }
        panic!("RabbitMQ does not come up");
    }

    fn prepare() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| dir.path().join(name);
        let (port, dist, epmd_port) = (free_port(), free_port(), free_port());
        let conf = format!(
            "listeners.tcp.1 = 127.0.0.1:{port}\nloopback_users.guest = true\n\
             vm_memory_high_watermark.absolute = 1GB\ndisk_free_limit.absolute = 50MB\n"
        );
        std::fs::write(at("rabbitmq.conf"), conf).expect("write");
        std::fs::write(at("plugins"), "[].").expect("write");
        // The port mapper that a node starts by itself would outlive it.
        let epmd = program(&["/usr/bin/epmd", "/usr/local/bin/epmd"]);
        let mut c = Command::new(&epmd);
        c.args(["-address", "127.0.0.1", "-port", &epmd_port.to_string()]);
        let _epmd = Group::start(&epmd, &mut c, &at("epmd.log"));
        wait_for("the port mapper listens", || {
            listens(epmd_port).then_some(())
        });
        Self {
            node: None,
            _epmd,
            dir,
            port,
            dist,
            epmd_port,
        }
    }

    /// Starts the node again on the data it has.
    pub(crate) fn up(&mut self) {
        assert!(
            self.launch(),
            "RabbitMQ does not come up again\n{}",
            self.log()
        );
    }

    /// Starts the node; whether it listens for clients in the end.
    fn launch(&mut self) -> bool {
        let at = |name: &str| self.dir.path().join(name);
        let server = program(&["/usr/lib/rabbitmq/bin/rabbitmq-server"]);
        let mut c = Command::new(&server);
        c.env("HOME", self.dir.path())
            .current_dir(self.dir.path())
            .env("ERL_CRASH_DUMP", "/dev/null")
            .env("RABBITMQ_NODENAME", format!("t{}@localhost", self.port))
            .env("RABBITMQ_DIST_PORT", self.dist.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("RABBITMQ_CONFIG_FILE", at("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", at("plugins"))
            .env("RABBITMQ_MNESIA_BASE", at("mnesia"))
            .env("RABBITMQ_LOG_BASE", at("log"))
            .env("RABBITMQ_PID_FILE", at("pid"))
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2",
            );
        let mut node = Group::start(&server, &mut c, &at("out.log"));
        let port = self.port;
        let up = wait_for("RabbitMQ listens or ends", || {
            let ended = node.0.try_wait().expect("a child of ours").is_some();
            (ended || listens(port)).then_some(!ended)
        });
        self.node = Some(node);
        up
    }

    /// Takes the whole node down at once, as a power cut would.
    pub(crate) fn kill(&mut self) {
        self.node = None;
        let port = self.port;
        wait_for("RabbitMQ is gone", || (!listens(port)).then_some(()));
    }

    /// What the node said.
    pub(crate) fn log(&self) -> String {
        let name = format!("log/t{}@localhost.log", self.port);
        std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// A queue at this node.
    pub(crate) fn queue(&self) -> RabbitQueue {
        queue_at(self.port)
    }
}

/// A queue at what listens on this port.
pub(crate) fn queue_at(port: u16) -> RabbitQueue {
    RabbitQueue::new(RabbitConfig {
        url: format!("amqp://guest:guest@127.0.0.1:{port}/%2f?heartbeat=1").into(),
        prefix: "tests".to_owned(),
        name: "tests".to_owned(),
        ca_file: None,
    })
}

/// What it is waited for, or a failure that names it.
pub(crate) async fn soon<T>(what: &str, f: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, f).await;
    done.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// The next message; subscribes again as often as that is needed.
pub(crate) async fn next_of(q: &dyn Queue, lane: Lane) -> (Box<dyn Consumer>, Delivery) {
    soon("a delivery", async {
        loop {
            let subscribed = q.consume(lane, 1).await;
            if let Ok(mut c) = subscribed
                && let Ok(d) = c.next().await
            {
                return (c, d);
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}
