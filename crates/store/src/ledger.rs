//! The ledger: which tasks are settled and which jobs are closed, for those who want to know
//! before they read gigabytes. A cache of the commit records; losing it costs work, never results.

use crate::StoreError;
use async_trait::async_trait;
use ramsift_mask::MaskedUrl;
use redis::AsyncCommands;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Whether a task is still wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Do it.
    Yes,
    /// Another attempt has settled it.
    Settled,
    /// The job was cancelled or sealed.
    Closed,
}

/// Which tasks are settled, and which jobs are closed.
#[async_trait]
pub trait Ledger: Send + Sync + fmt::Debug {
    /// Notes settled tasks.
    async fn settle(&self, job: &str, tasks: &[String]) -> Result<(), StoreError>;

    /// Notes that nothing more is wanted for a job.
    async fn close(&self, job: &str) -> Result<(), StoreError>;

    /// Whether a task is still wanted.
    async fn wanted(&self, job: &str, task: &str) -> Result<Wanted, StoreError>;

    /// How many tasks are settled.
    async fn settled(&self, job: &str) -> Result<u64, StoreError>;

    /// The same of many jobs, in one question.
    async fn settled_of(&self, jobs: &[String]) -> Result<Vec<u64>, StoreError>;

    /// Notes how many tasks a job has, as far as is known by now: settled ones and others.
    async fn expect(&self, job: &str, tasks: u64) -> Result<(), StoreError>;

    /// How many of those are not settled yet. `None` where nobody has told how many there are.
    async fn left(&self, job: &str) -> Result<Option<u64>, StoreError>;

    /// Notes that a worker is at a task, to be noted again within `time`.
    async fn working(&self, job: &str, task: &str, time: Duration) -> Result<(), StoreError>;

    /// Whether a worker is at each of these tasks, as far as was noted.
    async fn worked_on(&self, job: &str, tasks: &[String]) -> Result<Vec<bool>, StoreError>;

    /// Forgets a job.
    async fn forget(&self, job: &str) -> Result<(), StoreError>;

    /// Whether the ledger answers.
    async fn check(&self) -> Result<(), StoreError>;
}

#[derive(Debug, Default)]
struct Entry {
    settled: BTreeSet<String>,
    expected: Option<u64>,
    closed: bool,
    working: BTreeMap<String, Instant>,
}

/// The ledger in this process.
#[derive(Debug, Default)]
pub struct MemoryLedger {
    jobs: Mutex<BTreeMap<String, Entry>>,
}

impl MemoryLedger {
    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<String, Entry>) -> T) -> T {
        f(&mut self.jobs.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl Ledger for MemoryLedger {
    async fn settle(&self, job: &str, tasks: &[String]) -> Result<(), StoreError> {
        self.with(|j| {
            j.entry(job.to_owned())
                .or_default()
                .settled
                .extend(tasks.iter().cloned())
        });
        Ok(())
    }

    async fn close(&self, job: &str) -> Result<(), StoreError> {
        self.with(|j| j.entry(job.to_owned()).or_default().closed = true);
        Ok(())
    }

    async fn wanted(&self, job: &str, task: &str) -> Result<Wanted, StoreError> {
        Ok(self.with(|j| match j.get(job) {
            Some(e) if e.closed => Wanted::Closed,
            Some(e) if e.settled.contains(task) => Wanted::Settled,
            _ => Wanted::Yes,
        }))
    }

    async fn settled(&self, job: &str) -> Result<u64, StoreError> {
        Ok(self.with(|j| j.get(job).map_or(0, |e| e.settled.len() as u64)))
    }

    async fn settled_of(&self, jobs: &[String]) -> Result<Vec<u64>, StoreError> {
        let settled = |all: &BTreeMap<String, Entry>, job| {
            all.get(job).map_or(0, |e: &Entry| e.settled.len() as u64)
        };
        Ok(self.with(|all| jobs.iter().map(|job| settled(all, job)).collect()))
    }

    async fn expect(&self, job: &str, tasks: u64) -> Result<(), StoreError> {
        self.with(|j| j.entry(job.to_owned()).or_default().expected = Some(tasks));
        Ok(())
    }

    async fn left(&self, job: &str) -> Result<Option<u64>, StoreError> {
        Ok(self.with(|j| {
            let e = j.get(job)?;
            Some(e.expected?.saturating_sub(e.settled.len() as u64))
        }))
    }

    async fn working(&self, job: &str, task: &str, time: Duration) -> Result<(), StoreError> {
        let until = Instant::now() + time;
        self.with(|j| {
            let working = &mut j.entry(job.to_owned()).or_default().working;
            working.insert(task.to_owned(), until)
        });
        Ok(())
    }

    async fn worked_on(&self, job: &str, tasks: &[String]) -> Result<Vec<bool>, StoreError> {
        let now = Instant::now();
        Ok(self.with(|j| {
            let until = |t: &String| j.get(job)?.working.get(t).copied();
            let at_it = |t: &String| until(t).is_some_and(|u| u > now);
            tasks.iter().map(at_it).collect()
        }))
    }

    async fn forget(&self, job: &str) -> Result<(), StoreError> {
        self.with(|j| j.remove(job));
        Ok(())
    }

    async fn check(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// How long Redis keeps a job that nobody touches, seconds.
const KEEP: i64 = 7 * 24 * 3600;

/// The ledger in Redis: per job a set of task names, how many there are, and a flag.
pub struct RedisLedger {
    url: MaskedUrl,
    prefix: String,
    ca_file: Option<PathBuf>,
    connection: tokio::sync::Mutex<Option<Open>>,
}

/// A connection, which comes back by itself, and what it trusts.
struct Open {
    manager: ConnectionManager,
    authorities: Option<Vec<u8>>,
    /// When the file with the authorities was looked at.
    looked: Instant,
}

/// How often the file with the authorities is looked at.
const LOOK: Duration = Duration::from_secs(5);

impl fmt::Debug for RedisLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisLedger({})", self.place())
    }
}

impl RedisLedger {
    /// A ledger at `redis://[user:password@]host:port/db`, or `rediss://`. Connects when it is first used.
    pub fn new(url: impl Into<MaskedUrl>, prefix: &str) -> Self {
        Self {
            url: url.into(),
            prefix: prefix.to_owned(),
            ca_file: None,
            connection: tokio::sync::Mutex::default(),
        }
    }

    /// Trusts the authorities in this PEM file in place of those of the system; for `rediss://` alone. A file that changes
    /// is read again.
    #[must_use]
    pub fn trusting(mut self, ca_file: Option<PathBuf>) -> Self {
        self.ca_file = ca_file;
        self
    }

    fn place(&self) -> &str {
        self.url.place()
    }

    fn error(&self, e: &dyn fmt::Display) -> StoreError {
        StoreError::Ledger {
            at: self.place().to_owned(),
            detail: self.url.scrub(&e.to_string()),
        }
    }

    /// What the file with the authorities says.
    fn authorities(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(path) = &self.ca_file else {
            return Ok(None);
        };
        match authorities(path) {
            Ok(pem) => Ok(Some(pem)),
            Err(why) => Err(self.error(&format!("ledger.ca_file {}: {why}", path.display()))),
        }
    }

    async fn connection(&self) -> Result<ConnectionManager, StoreError> {
        let mut open = self.connection.lock().await;
        if let Some(o) = open.as_mut() {
            if self.ca_file.is_none() || o.looked.elapsed() < LOOK {
                return Ok(o.manager.clone());
            }
            o.looked = Instant::now();
            match self.authorities() {
                Ok(now) if now != o.authorities => {}
                Ok(_) => return Ok(o.manager.clone()),
                Err(e) => {
                    tracing::warn!(error = %e, "going on with the authorities of before");
                    return Ok(o.manager.clone());
                }
            }
        }
        let authorities = self.authorities()?;
        let manager = self
            .connect(authorities.clone())
            .await
            .map_err(|e| self.error(&untrusted(&e)))?;
        *open = Some(Open {
            manager: manager.clone(),
            authorities,
            looked: Instant::now(),
        });
        Ok(manager)
    }

    async fn connect(&self, authorities: Option<Vec<u8>>) -> redis::RedisResult<ConnectionManager> {
        let url = self.url.reveal();
        let client = match authorities {
            Some(pem) if url.starts_with("rediss:") => {
                let trusted = redis::TlsCertificates {
                    client_tls: None,
                    root_cert: Some(pem),
                };
                redis::Client::build_with_tls(url, trusted)?
            }
            _ => redis::Client::open(url)?,
        };
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(3)))
            .set_response_timeout(Some(Duration::from_secs(3)))
            .set_number_of_retries(2);
        ConnectionManager::new_with_config(client, config).await
    }

    fn tasks_key(&self, job: &str) -> String {
        format!("{}:settled:{job}", self.prefix)
    }

    fn closed_key(&self, job: &str) -> String {
        format!("{}:closed:{job}", self.prefix)
    }

    fn working_key(&self, job: &str, task: &str) -> String {
        format!("{}:working:{job}:{task}", self.prefix)
    }

    fn expected_key(&self, job: &str) -> String {
        format!("{}:expected:{job}", self.prefix)
    }
}

/// Reads a file of authorities.
fn authorities(path: &Path) -> Result<Vec<u8>, String> {
    let pem = std::fs::read(path).map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&pem);
    if text.contains("-----BEGIN CERTIFICATE-----") {
        Ok(pem)
    } else {
        Err("no certificate in it; it must be a PEM file".into())
    }
}

/// What a failed handshake means to who set Redis up.
fn untrusted(e: &redis::RedisError) -> String {
    let said = e.to_string();
    let hint = if said.contains("UnknownIssuer") {
        "; name the authority that signed its certificate in ledger.ca_file"
    } else if said.contains("not valid for name") || said.contains("NotValidForName") {
        "; the host in ledger.url must be a name in its certificate"
    } else {
        ""
    };
    format!("{said}{hint}")
}

#[async_trait]
impl Ledger for RedisLedger {
    async fn settle(&self, job: &str, tasks: &[String]) -> Result<(), StoreError> {
        if tasks.is_empty() {
            return Ok(());
        }
        let mut c = self.connection().await?;
        let key = self.tasks_key(job);
        let done: redis::RedisResult<()> = redis::pipe()
            .sadd(&key, tasks)
            .ignore()
            .expire(&key, KEEP)
            .ignore()
            .query_async(&mut c)
            .await;
        done.map_err(|e| self.error(&e))
    }

    async fn close(&self, job: &str) -> Result<(), StoreError> {
        let mut c = self.connection().await?;
        let done: redis::RedisResult<()> = c
            .set_ex(self.closed_key(job), 1, KEEP.cast_unsigned())
            .await;
        done.map_err(|e| self.error(&e))
    }

    async fn wanted(&self, job: &str, task: &str) -> Result<Wanted, StoreError> {
        let mut c = self.connection().await?;
        let got: redis::RedisResult<(bool, bool)> = redis::pipe()
            .exists(self.closed_key(job))
            .sismember(self.tasks_key(job), task)
            .query_async(&mut c)
            .await;
        match got.map_err(|e| self.error(&e))? {
            (true, _) => Ok(Wanted::Closed),
            (_, true) => Ok(Wanted::Settled),
            _ => Ok(Wanted::Yes),
        }
    }

    async fn settled(&self, job: &str) -> Result<u64, StoreError> {
        let mut c = self.connection().await?;
        c.scard(self.tasks_key(job))
            .await
            .map_err(|e| self.error(&e))
    }

    async fn settled_of(&self, jobs: &[String]) -> Result<Vec<u64>, StoreError> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let mut c = self.connection().await?;
        let mut ask = redis::pipe();
        for job in jobs {
            ask.scard(self.tasks_key(job));
        }
        let got: redis::RedisResult<Vec<u64>> = ask.query_async(&mut c).await;
        got.map_err(|e| self.error(&e))
    }

    async fn expect(&self, job: &str, tasks: u64) -> Result<(), StoreError> {
        let mut c = self.connection().await?;
        let done: redis::RedisResult<()> = c
            .set_ex(self.expected_key(job), tasks, KEEP.cast_unsigned())
            .await;
        done.map_err(|e| self.error(&e))
    }

    async fn left(&self, job: &str) -> Result<Option<u64>, StoreError> {
        let mut c = self.connection().await?;
        let got: redis::RedisResult<(Option<u64>, u64)> = redis::pipe()
            .get(self.expected_key(job))
            .scard(self.tasks_key(job))
            .query_async(&mut c)
            .await;
        let (expected, settled) = got.map_err(|e| self.error(&e))?;
        Ok(expected.map(|n| n.saturating_sub(settled)))
    }

    async fn working(&self, job: &str, task: &str, time: Duration) -> Result<(), StoreError> {
        let mut c = self.connection().await?;
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let done: redis::RedisResult<()> = c.pset_ex(self.working_key(job, task), 1, millis).await;
        done.map_err(|e| self.error(&e))
    }

    async fn worked_on(&self, job: &str, tasks: &[String]) -> Result<Vec<bool>, StoreError> {
        if tasks.is_empty() {
            return Ok(Vec::new());
        }
        let mut c = self.connection().await?;
        let mut ask = redis::pipe();
        for t in tasks {
            ask.exists(self.working_key(job, t));
        }
        let got: redis::RedisResult<Vec<bool>> = ask.query_async(&mut c).await;
        got.map_err(|e| self.error(&e))
    }

    async fn forget(&self, job: &str) -> Result<(), StoreError> {
        let mut c = self.connection().await?;
        let keys = [
            self.tasks_key(job),
            self.closed_key(job),
            self.expected_key(job),
        ];
        let done: redis::RedisResult<()> = c.del(&keys[..]).await;
        done.map_err(|e| self.error(&e))
    }

    async fn check(&self) -> Result<(), StoreError> {
        let mut c = self.connection().await?;
        let pong: redis::RedisResult<String> = redis::cmd("PING").query_async(&mut c).await;
        pong.map(|_| ()).map_err(|e| self.error(&e))
    }
}
