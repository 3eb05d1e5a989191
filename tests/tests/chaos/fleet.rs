//! The cluster that the storm is over: services in twos, links that can be disturbed, clocks that are wrong, a small disk.

use ramsift_store::S3Objects;
use ramsift_tests::program::{Cluster, Service, http_get, with_small_disk};
use ramsift_tests::proxy::Proxy;
use ramsift_tests::{block_on, free_port};
use std::path::PathBuf;

/// One service, which is started anew when it is gone.
pub(crate) struct Member {
    pub(crate) what: &'static str,
    settings: Vec<(String, String)>,
    small_disk: bool,
    pub(crate) service: Option<Service>,
    pub(crate) stopped: bool,
}

pub(crate) struct Fleet {
    pub(crate) cluster: Cluster,
    pub(crate) members: Vec<Member>,
    /// To S3, broker, ledger and aggregator.
    pub(crate) links: [(&'static str, Proxy); 4],
    full: tempfile::TempDir,
}

/// Where Debian's package has the library that shifts clocks.
fn faketime() -> PathBuf {
    let all = std::fs::read_dir("/usr/lib").expect("/usr/lib").flatten();
    let mut found = all.map(|e| e.path().join("faketime/libfaketimeMT.so.1"));
    let found = found.find(|p| p.exists());
    found.expect("libfaketime: run tests/run, which installs it")
}

impl Fleet {
    /// The servers and their links; no service runs yet.
    pub(crate) fn new() -> Self {
        let cluster = Cluster::start(&[
            ("RAMSIFT_SCAN_CHUNK_SIZE", "4194304"),
            ("RAMSIFT_SCAN_OVERLAP", "65536"),
            ("RAMSIFT_COORDINATOR_WINDOW", "32"),
        ]);
        let links = [
            ("S3", Proxy::to(cluster.s3.port())),
            ("broker", Proxy::to(cluster.rabbit.port())),
            ("ledger", Proxy::to(cluster.redis.port())),
            ("aggregator", Proxy::to(cluster.ports[1])),
        ];
        let [s3, broker, ledger, aggregator] = &links;
        let by_links = [
            (
                "RAMSIFT_S3_ENDPOINT",
                format!("http://127.0.0.1:{}", s3.1.port()),
            ),
            ("RAMSIFT_QUEUE_URL", cluster.rabbit.url_by(broker.1.port())),
            (
                "RAMSIFT_LEDGER_URL",
                format!("redis://127.0.0.1:{}/0", ledger.1.port()),
            ),
            (
                "RAMSIFT_AGGREGATOR_URL",
                format!("http://127.0.0.1:{}", aggregator.1.port()),
            ),
        ];
        let library = faketime().display().to_string();
        let clock = |offset: &str| {
            vec![
                ("LD_PRELOAD", library.clone()),
                ("FAKETIME", offset.to_owned()),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ]
        };
        let port = |name| vec![(name, format!("127.0.0.1:{}", free_port()))];
        let member = |what, more: Vec<Vec<(&str, String)>>, small_disk| Member {
            what,
            settings: by_links
                .iter()
                .cloned()
                .chain(more.concat())
                .map(|(k, v)| (k.to_owned(), v))
                .collect(),
            small_disk,
            service: None,
            stopped: false,
        };
        // Of the two coordinators one is 10 minutes fast, and of the workers one 10 minutes slow: services of S3 refuse
        // requests of clocks that are 15 minutes off.
        let members = vec![
            member("coordinator", vec![], false),
            member(
                "coordinator",
                vec![port("RAMSIFT_COORDINATOR_LISTEN"), clock("+10m")],
                false,
            ),
            member("aggregator", vec![], false),
            member("chunk-worker", vec![], false),
            member("chunk-worker", vec![clock("-10m")], true),
            member("structured-worker", vec![], false),
            member("structured-worker", vec![clock("-10m")], false),
        ];
        Self {
            cluster,
            members,
            links,
            full: tempfile::tempdir().expect("a folder"),
        }
    }

    /// Objects of a bucket, by a way that the storm does not touch.
    pub(crate) fn objects(&self, bucket: &str, prefix: &str) -> S3Objects {
        block_on(async {
            let client = ramsift_layers::source::S3Client::connect(&self.cluster.s3.config()).await;
            S3Objects::new(client, bucket, prefix)
        })
    }

    /// Starts every service that does not run.
    pub(crate) fn start(&mut self) {
        for i in 0..self.members.len() {
            self.start_one(i);
        }
    }

    pub(crate) fn start_one(&mut self, i: usize) {
        let m = &mut self.members[i];
        let runs = m
            .service
            .as_mut()
            .is_some_and(|s| s.process.exited().is_none());
        if runs {
            return;
        }
        m.service = None;
        m.stopped = false;
        let settings: Vec<(&str, &str)> = m
            .settings
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        let full = self.full.path();
        let spill = full.display().to_string();
        let mut settings = settings;
        if m.small_disk {
            settings.push(("RAMSIFT_WORKER_SPILL", &spill));
        }
        let small = m.small_disk;
        let how = |c| {
            if small {
                with_small_disk(full, "1m", &c)
            } else {
                c
            }
        };
        m.service = Some(self.cluster.service_as(m.what, &settings, how));
    }

    /// Which coordinator says that it is the active one.
    pub(crate) fn active(&self) -> Option<usize> {
        let says_so = |m: &Member| {
            let service = m
                .service
                .as_ref()
                .filter(|_| !m.stopped && m.what == "coordinator");
            let text = service.and_then(|s| http_get(s.http(), "/metrics"));
            text.is_some_and(|(_, t)| {
                t.lines()
                    .any(|l| l.starts_with("ramsift_coordinator_active{") && l.ends_with(" 1"))
            })
        };
        self.members.iter().position(says_so)
    }
}
