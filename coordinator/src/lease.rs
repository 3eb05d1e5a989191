//! One active coordinator: a lease object that its holder renews, and whose epoch goes on every
//! state it writes. The others stand by.
//!
//! No clock is compared with another. The lease counts its renewals; a standby takes it over when it has seen the same count
//! for the lease's length, by its own clock that never jumps. The holder reckons from before it sent its last renewal, which
//! a standby can only have seen later, so it gives up first.

use ramsift_store::job::{read_opt, to_json};
use ramsift_store::{Objects, StoreError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Tries at a renewal that meet an earlier one whose answer was lost.
const TRIES: usize = 3;

const KEY: &str = "leases/coordinator.json";

/// The object. Fields of other versions are passed over: a lease must not become unreadable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    holder: String,
    epoch: u64,
    /// Renewals in this epoch.
    #[serde(default)]
    sequence: u64,
    /// Its holder has given it up.
    #[serde(default)]
    released: bool,
}

/// What one that stands by has seen of the lease, and since when.
#[derive(Debug, Default)]
pub struct Watch {
    seen: Option<(Record, String, Instant)>,
    /// An epoch that was used before, should the lease object have been lost.
    used: u64,
}

impl Watch {
    /// Notes an epoch that states were written under: the next term's is higher.
    pub fn used(&mut self, epoch: u64) {
        self.used = self.used.max(epoch);
    }

    /// Who held the lease when it was looked at last.
    pub fn holder(&self) -> Option<&str> {
        let held = self.seen.as_ref().filter(|(r, ..)| !r.released);
        held.map(|(r, ..)| r.holder.as_str())
    }

    /// Notes a look; how long the lease has been as it is.
    fn look(&mut self, record: &Record, etag: &str) -> Duration {
        match &self.seen {
            Some((r, e, since)) if r == record && e == etag => since.elapsed(),
            _ => {
                self.seen = Some((record.clone(), etag.to_owned(), Instant::now()));
                Duration::ZERO
            }
        }
    }
}

/// A lease that is held.
#[derive(Debug)]
pub struct Lease {
    objects: Arc<dyn Objects>,
    record: Record,
    etag: String,
    length: Duration,
    good_until: Instant,
}

impl Lease {
    /// Tries to become active. `None` while another holds the lease, as far as was seen since `watch` was begun.
    pub async fn acquire(
        objects: &Arc<dyn Objects>,
        watch: &mut Watch,
        holder: &str,
        length: Duration,
    ) -> Result<Option<Self>, StoreError> {
        let found = read_opt::<Record>(objects.as_ref(), KEY).await?;
        if let Some((r, etag)) = &found
            && watch.look(r, etag) < length
            && !r.released
        {
            return Ok(None);
        }
        let record = Record {
            holder: holder.to_owned(),
            epoch: found.as_ref().map_or(0, |(r, _)| r.epoch).max(watch.used) + 1,
            sequence: 0,
            released: false,
        };
        let data = to_json(&record)?;
        let good_until = Instant::now() + length;
        let won = match &found {
            None => objects.put_new(KEY, data).await,
            Some((_, etag)) => objects.put_over(KEY, data, etag).await,
        };
        match won {
            Ok(etag) => {
                watch.seen = None;
                Ok(Some(Self {
                    objects: objects.clone(),
                    record,
                    etag,
                    length,
                    good_until,
                }))
            }
            Err(e) if e.is_conflict() => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The number of this term; every later one is higher.
    pub fn epoch(&self) -> u64 {
        self.record.epoch
    }

    /// When no other can have taken over yet.
    pub fn good_until(&self) -> Instant {
        self.good_until
    }

    /// Renews; `false` when another has taken over.
    pub async fn renew(&mut self) -> Result<bool, StoreError> {
        for _ in 0..TRIES {
            // Each try has a count of its own: one that was thought lost must not pass for this one, which is later.
            self.record.sequence = self.record.sequence.wrapping_add(1);
            let data = to_json(&self.record)?;
            let good_until = Instant::now() + self.length;
            match self.objects.put_over(KEY, data, &self.etag).await {
                Ok(etag) => {
                    (self.etag, self.good_until) = (etag, good_until);
                    return Ok(true);
                }
                Err(e) if e.is_conflict() => {}
                Err(e) => return Err(e.into()),
            }
            let ours = |r: &Record| r.holder == self.record.holder && r.epoch == self.record.epoch;
            match read_opt::<Record>(self.objects.as_ref(), KEY).await? {
                Some((r, etag)) if ours(&r) && !r.released => self.etag = etag,
                _ => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Gives the lease up at once, so that a standby need not wait.
    pub async fn release(mut self) -> Result<(), StoreError> {
        self.record.released = true;
        let data = to_json(&self.record)?;
        match self.objects.put_over(KEY, data, &self.etag).await {
            Err(e) if !e.is_conflict() => Err(e.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramsift_store::LocalObjects;

    const LENGTH: Duration = Duration::from_secs(15);

    struct World {
        _dir: tempfile::TempDir,
        objects: Arc<dyn Objects>,
    }

    fn world() -> World {
        let dir = tempfile::tempdir().expect("tempdir");
        let objects = Arc::new(LocalObjects::open(dir.path()).expect("open"));
        World { _dir: dir, objects }
    }

    impl World {
        async fn try_with(&self, watch: &mut Watch, holder: &str) -> Option<Lease> {
            let got = Lease::acquire(&self.objects, watch, holder, LENGTH).await;
            got.expect("store")
        }

        async fn stored(&self, record: serde_json::Value) {
            let data = to_json(&record).expect("JSON");
            self.objects.put(KEY, data).await.expect("stored");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewed_lease_stays_and_a_silent_one_goes() {
        let w = world();
        let (mut of_a, mut of_b) = (Watch::default(), Watch::default());
        let mut a = w.try_with(&mut of_a, "a").await.expect("free");
        for _ in 0..20 {
            assert!(w.try_with(&mut of_b, "b").await.is_none());
            assert_eq!(of_b.holder(), Some("a"));
            tokio::time::advance(LENGTH / 3).await;
            assert!(a.renew().await.expect("store"));
        }
        // From the first look that sees no change, not from whatever was seen before.
        assert!(w.try_with(&mut of_b, "b").await.is_none());
        tokio::time::advance(LENGTH - Duration::from_millis(1)).await;
        assert!(w.try_with(&mut of_b, "b").await.is_none());
        assert!(Instant::now() < a.good_until() + LENGTH);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(
            Instant::now() >= a.good_until(),
            "its holder has given up before"
        );
        let b = w.try_with(&mut of_b, "b").await.expect("silent");
        assert!(b.epoch() > a.epoch());
        assert!(
            !a.renew().await.expect("store"),
            "refused: its epoch is old"
        );
        a.release().await.expect("store");
        assert!(
            w.try_with(&mut Watch::default(), "c").await.is_none(),
            "not released by another"
        );
        b.release().await.expect("store");
        w.try_with(&mut Watch::default(), "c")
            .await
            .expect("released");
    }

    /// A holder whose clock is slow writes times that have passed long ago, as others see it.
    #[tokio::test(start_paused = true)]
    async fn a_living_holder_with_any_clock_keeps_the_lease() {
        let now = ramsift_store::job::now_micros();
        for skew in [-1_200_000_000_i64, 0, 1_200_000_000] {
            let w = world();
            let mut standby = Watch::default();
            for sequence in 0..10 {
                w.stored(serde_json::json!({
                    "holder": "a", "epoch": 3, "sequence": sequence, "expires_micros": now + skew,
                }))
                .await;
                assert!(w.try_with(&mut standby, "b").await.is_none(), "{skew}");
                tokio::time::advance(LENGTH * 2 / 3).await;
            }
        }
    }

    /// A holder whose clock is fast leaves a time in the future behind.
    #[tokio::test(start_paused = true)]
    async fn a_dead_holder_with_any_clock_loses_the_lease() {
        let now = ramsift_store::job::now_micros();
        for skew in [-1_200_000_000_i64, 0, 1_200_000_000] {
            let w = world();
            w.stored(serde_json::json!({
                "holder": "a", "epoch": 3, "expires_micros": now + skew,
            }))
            .await;
            let mut standby = Watch::default();
            assert!(w.try_with(&mut standby, "b").await.is_none(), "{skew}");
            tokio::time::advance(LENGTH).await;
            let b = w.try_with(&mut standby, "b").await.expect("silent");
            assert_eq!(b.epoch(), 4);
            let (data, _) = w.objects.get(KEY).await.expect("stored");
            let text = String::from_utf8(data.to_vec()).expect("text");
            assert!(!text.contains("micros"), "no wall time: {text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_whose_answer_was_lost_is_made_again() {
        let w = world();
        let mut a = w.try_with(&mut Watch::default(), "a").await.expect("free");
        let next = Record {
            sequence: 1,
            ..a.record.clone()
        };
        w.stored(serde_json::to_value(&next).expect("JSON")).await;
        assert!(a.renew().await.expect("store"));
        let (stored, _) = read_opt::<Record>(w.objects.as_ref(), KEY)
            .await
            .expect("store")
            .expect("a lease");
        assert!(stored.sequence > next.sequence, "written anew");
        assert!(a.renew().await.expect("store"));
    }
}
