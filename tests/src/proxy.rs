//! A link between two processes that can be made slow, stand still, or be torn.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

/// What a link does to what goes over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    /// Nothing.
    None,
    /// 16 KiB for each 20 ms, in each direction.
    Slow,
    /// Nothing gets through, and nobody is told.
    Stalled,
    /// Connections are cut, new ones too as soon as something was sent.
    Torn,
}

/// A listener on this machine that passes everything on to a port.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    fault: Arc<AtomicU8>,
    stop: Arc<AtomicBool>,
}

impl Proxy {
    /// A link to a port of this machine.
    pub fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let (fault, stop) = (Arc::new(AtomicU8::new(0)), Arc::new(AtomicBool::new(false)));
        let (f, s) = (fault.clone(), stop.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if s.load(Ordering::Relaxed) {
                    return;
                }
                // Whoever is not there refuses, as it would without a link.
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else {
                    continue;
                };
                let ends = [(&client, &server), (&server, &client)];
                for (from, to) in ends {
                    if let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) {
                        let (fault, stop) = (f.clone(), s.clone());
                        std::thread::spawn(move || pass(from, to, &fault, &stop));
                    }
                }
            }
        });
        Self { port, fault, stop }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it does from now on, with connections that are open too.
    pub fn set(&self, fault: Fault) {
        self.fault.store(fault as u8, Ordering::Relaxed);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the listener.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// Passes bytes on in one direction until an end closes.
fn pass(mut from: TcpStream, mut to: TcpStream, fault: &AtomicU8, stop: &AtomicBool) {
    let mut buf = vec![0; 16 << 10];
    let tick = Duration::from_millis(20);
    // Looks up now and then, so that a silent connection is torn too.
    let _ = from.set_read_timeout(Some(Duration::from_millis(100)));
    let is = |f: Fault| fault.load(Ordering::Relaxed) == f as u8;
    while !stop.load(Ordering::Relaxed) && !is(Fault::Torn) {
        let n = match from.read(&mut buf) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e)
                if matches!(
                    e.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) =>
            {
                continue;
            }
            Err(_) => break,
        };
        while is(Fault::Stalled) && !stop.load(Ordering::Relaxed) {
            std::thread::park_timeout(tick);
        }
        if is(Fault::Slow) {
            std::thread::park_timeout(tick);
        }
        if is(Fault::Torn) || to.write_all(&buf[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
