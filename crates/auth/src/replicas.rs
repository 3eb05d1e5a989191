//! One service of several replicas: calls go to each in turn.
//!
//! A connection of HTTP/2 stays with the replica that it was made to, so that all calls of a worker would go to one. The name is looked up again
//! and again, and there is a channel for each address that it stands for (in Kubernetes: a headless service).

use crate::{AuthChannel, ClientSecurity, SecurityError};
use http::Uri;
use ramsift_mask::MaskedUrl;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tonic::transport::Endpoint;

/// How often the name is looked up.
const LOOK_UP: Duration = Duration::from_secs(10);
/// How long a replica that did not answer is left alone while others are there.
const LEFT_ALONE: Duration = Duration::from_secs(5);

/// Addresses of a host and a port.
type Found = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

#[derive(Debug, Default)]
struct State {
    channels: BTreeMap<SocketAddr, AuthChannel>,
    /// Replicas that did not answer, and when.
    silent: BTreeMap<SocketAddr, Instant>,
    looked_up: Option<Instant>,
    next: usize,
}

/// Channels to all replicas of a service.
pub struct Replicas {
    security: ClientSecurity,
    setting: &'static str,
    url: MaskedUrl,
    host: String,
    port: u16,
    tune: fn(Endpoint) -> Endpoint,
    look_up: fn(String, u16) -> Found,
    state: Mutex<State>,
}

impl fmt::Debug for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Replicas({})", self.url)
    }
}

fn by_name(host: String, port: u16) -> Found {
    Box::pin(async move {
        let all = tokio::net::lookup_host((host.as_str(), port)).await?;
        Ok(all.collect())
    })
}

impl Replicas {
    /// The service at `http://host:port` or `https://host:port`, which `setting` names. Connects when it is first used.
    pub fn new(
        security: &ClientSecurity,
        setting: &'static str,
        url: &MaskedUrl,
        tune: fn(Endpoint) -> Endpoint,
    ) -> Result<Self, SecurityError> {
        // Says what is wrong with the settings, if something is.
        security.channel(setting, url, tune)?;
        let uri: Uri = url
            .reveal()
            .parse()
            .map_err(|_| SecurityError(format!("{setting} {url}: not a valid address")))?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let tls = uri.scheme_str() == Some("https");
        Ok(Self {
            security: security.clone(),
            setting,
            url: url.clone(),
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            tune,
            look_up: by_name,
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The replica whose turn it is. An error says why there is none.
    pub async fn next(&self) -> Result<(SocketAddr, AuthChannel), String> {
        let fresh = |s: &State| s.looked_up.is_some_and(|t| t.elapsed() < LOOK_UP);
        if !fresh(&self.state()) {
            let found = (self.look_up)(self.host.clone(), self.port).await;
            self.know(found)?;
        }
        let mut s = self.state();
        s.silent.retain(|_, since| since.elapsed() < LEFT_ALONE);
        let answers = |a: &&SocketAddr| !s.silent.contains_key(*a);
        let mut all: Vec<SocketAddr> = s.channels.keys().filter(answers).copied().collect();
        if all.is_empty() {
            all = s.channels.keys().copied().collect();
        }
        let turn = s.next;
        s.next = s.next.wrapping_add(1);
        let at = *all
            .get(turn.checked_rem(all.len()).unwrap_or(0))
            .ok_or_else(|| format!("{}: the name stands for no address", self.host))?;
        let channel = s.channels.get(&at).cloned();
        channel
            .map(|c| (at, c))
            .ok_or_else(|| format!("{at} is gone"))
    }

    /// Takes what a look-up gave. One that failed leaves what was known.
    fn know(&self, found: io::Result<Vec<SocketAddr>>) -> Result<(), String> {
        let mut s = self.state();
        let found = match found {
            Ok(found) if !found.is_empty() => found,
            _ if !s.channels.is_empty() => return Ok(()),
            Ok(_) => return Err(format!("{}: the name stands for no address", self.host)),
            Err(e) => return Err(format!("{} can't be looked up: {e}", self.host)),
        };
        s.channels.retain(|a, _| found.contains(a));
        for a in found {
            if let Entry::Vacant(new) = s.channels.entry(a) {
                let channel = self
                    .security
                    .channel_to(self.setting, &self.url, Some(a), self.tune);
                new.insert(channel.map_err(|e| e.to_string())?);
            }
        }
        s.looked_up = Some(Instant::now());
        Ok(())
    }

    /// Notes that a replica did not answer: others come first for a while.
    pub fn silent(&self, at: SocketAddr) {
        let mut s = self.state();
        s.silent.insert(at, Instant::now());
        // Perhaps it is gone, and another is there.
        s.looked_up = None;
    }

    /// Makes all connections anew, since a new one shows new certificates.
    pub fn renew(&self) {
        let mut s = self.state();
        s.channels.clear();
        s.looked_up = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn two(_: String, port: u16) -> Found {
        let at = move |last| SocketAddr::from(([127, 0, 0, last], port));
        Box::pin(async move { Ok(vec![at(1), at(2)]) })
    }

    fn nobody(host: String, _: u16) -> Found {
        Box::pin(async move { Err(io::Error::other(format!("no {host}"))) })
    }

    fn replicas(look_up: fn(String, u16) -> Found) -> Replicas {
        let url = "http://aggregators:7401".to_owned().into();
        let r = Replicas::new(&ClientSecurity::nothing(), "aggregator.url", &url, |e| e);
        Replicas {
            look_up,
            ..r.expect("an address")
        }
    }

    #[tokio::test]
    async fn calls_go_to_each_in_turn_and_to_those_that_answer_first() {
        let r = replicas(two);
        let next = async || r.next().await.expect("a replica").0.to_string();
        let turns = [next().await, next().await, next().await, next().await];
        let all: BTreeSet<&str> = turns.iter().map(String::as_str).collect();
        assert_eq!(all.len(), 2, "{turns:?}");
        assert_eq!((&turns[0], &turns[1]), (&turns[2], &turns[3]));
        r.silent("127.0.0.1:7401".parse().expect("an address"));
        for _ in 0..4 {
            assert_eq!(next().await, "127.0.0.2:7401");
        }
        // When none answers, each is tried.
        r.silent("127.0.0.2:7401".parse().expect("an address"));
        let tried: BTreeSet<String> = [next().await, next().await].into();
        assert_eq!(tried.len(), 2, "{tried:?}");
    }

    #[tokio::test]
    async fn a_name_that_stands_for_nothing_is_told_and_known_ones_stay() {
        let r = replicas(nobody);
        let why = r.next().await.expect_err("nobody");
        assert!(why.contains("no aggregators"), "{why}");
        r.know(Ok(vec!["127.0.0.1:7401".parse().expect("an address")]))
            .expect("one");
        r.know(Err(io::Error::other("down")))
            .expect("what was known");
        assert!(r.next().await.is_ok());
        r.know(Ok(vec!["127.0.0.3:7401".parse().expect("an address")]))
            .expect("another");
        assert_eq!(r.next().await.expect("it").0.to_string(), "127.0.0.3:7401");
    }
}
