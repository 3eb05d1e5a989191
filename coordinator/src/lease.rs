//! One active coordinator: a lease object that its holder renews, and whose epoch goes on every
//! state it writes. The others stand by.

use ramsift_store::job::{now_micros, read_opt, to_json};
use ramsift_store::{Objects, StoreError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

const KEY: &str = "leases/coordinator.json";

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    holder: String,
    epoch: u64,
    expires_micros: i64,
}

/// A lease that is held.
#[derive(Debug)]
pub struct Lease {
    objects: Arc<dyn Objects>,
    record: Record,
    etag: String,
    length: Duration,
}

fn expiry(length: Duration) -> i64 {
    now_micros().saturating_add(i64::try_from(length.as_micros()).unwrap_or(i64::MAX))
}

impl Lease {
    /// Tries to become active. `None` while another holds the lease.
    pub async fn acquire(
        objects: &Arc<dyn Objects>,
        holder: &str,
        length: Duration,
    ) -> Result<Option<Self>, StoreError> {
        let found = read_opt::<Record>(objects.as_ref(), KEY).await?;
        let epoch = found.as_ref().map_or(1, |(r, _)| r.epoch + 1);
        let record = Record {
            holder: holder.to_owned(),
            epoch,
            expires_micros: expiry(length),
        };
        let data = to_json(&record)?;
        let won = match found {
            None => objects.put_new(KEY, data).await,
            Some((r, _)) if r.expires_micros > now_micros() => return Ok(None),
            Some((_, etag)) => objects.put_over(KEY, data, &etag).await,
        };
        match won {
            Ok(etag) => Ok(Some(Self {
                objects: objects.clone(),
                record,
                etag,
                length,
            })),
            Err(e) if e.is_conflict() => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The number of this reign; every later one is higher.
    pub fn epoch(&self) -> u64 {
        self.record.epoch
    }

    /// Renews; `false` when another has taken over.
    pub async fn renew(&mut self) -> Result<bool, StoreError> {
        self.record.expires_micros = expiry(self.length);
        let data = to_json(&self.record)?;
        match self.objects.put_over(KEY, data, &self.etag).await {
            Ok(etag) => {
                self.etag = etag;
                Ok(true)
            }
            Err(e) if e.is_conflict() => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Gives the lease up at once, so that a standby need not wait.
    pub async fn release(mut self) -> Result<(), StoreError> {
        self.record.expires_micros = 0;
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

    #[tokio::test]
    async fn one_holder_and_a_growing_epoch() {
        let dir = tempfile::tempdir().expect("tempdir");
        let o: Arc<dyn Objects> = Arc::new(LocalObjects::open(dir.path()).expect("open"));
        let long = Duration::from_secs(60);
        let mut a = Lease::acquire(&o, "a", long)
            .await
            .expect("store")
            .expect("free");
        assert!(
            Lease::acquire(&o, "b", long)
                .await
                .expect("store")
                .is_none()
        );
        assert!(a.renew().await.expect("store"));
        let epoch = a.epoch();
        a.release().await.expect("store");
        let b = Lease::acquire(&o, "b", Duration::ZERO)
            .await
            .expect("store")
            .expect("released");
        assert!(b.epoch() > epoch);
        // b's lease has run out: c takes over and b notices.
        let _c = Lease::acquire(&o, "c", long)
            .await
            .expect("store")
            .expect("expired");
        let mut b = b;
        assert!(!b.renew().await.expect("store"));
    }
}
