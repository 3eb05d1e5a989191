//! Real servers on free ports for the tests, and the program under test as child processes.
//!
//! Every server is private to the test that starts it, lives in a temporary folder, listens on the
//! loopback interface alone, and ends with the value that stands for it. A server that is not
//! installed is a failure that says what to install, never a skipped test.

pub mod authority;
pub mod dumps;
pub mod fixtures;
pub mod program;
pub mod proxy;
pub mod servers;
pub mod sparse_s3;
pub mod tables;

use std::net::TcpListener;
use std::time::{Duration, Instant};

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let l = TcpListener::bind("127.0.0.1:0").expect("a free port on the loopback interface");
    l.local_addr().expect("bound").port()
}

/// Asks again and again until `done` gives something; fails with `what` after `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut done: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(v) = done() {
            return v;
        }
        assert!(
            started.elapsed() < limit,
            "{what}: not within {} s",
            limit.as_secs()
        );
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Runs something async on a runtime of its own.
pub fn block_on<F: Future>(f: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(f)
}
