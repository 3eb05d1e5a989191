//! What the services of a cluster must have in common, as the active coordinator has it.

use crate::job::{read_opt, to_json};
use crate::{Objects, StoreError};
use serde::{Deserialize, Serialize};

/// Where it lies in the store.
const KEY: &str = "leases/agreement.json";

/// Settings that services must agree on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreement {
    /// Who says so.
    pub coordinator: String,
    /// `queue.prefix`: another one is another set of queues.
    pub queue_prefix: String,
    /// `ledger.prefix`: another one is another ledger.
    pub ledger_prefix: String,
    /// Version of the program.
    pub version: String,
}

impl Agreement {
    /// Has everybody know.
    pub async fn store(&self, objects: &dyn Objects) -> Result<(), StoreError> {
        objects.put(KEY, to_json(self)?).await?;
        Ok(())
    }

    /// What the active coordinator said last; `None` where none has run yet.
    pub async fn read(objects: &dyn Objects) -> Result<Option<Self>, StoreError> {
        Ok(read_opt(objects, KEY).await?.map(|(a, _)| a))
    }

    /// What a service has otherwise than the coordinator: sentences; empty when it has the same.
    pub fn differences(&self, own: &Self) -> Vec<String> {
        let settings = [
            ("queue.prefix", &own.queue_prefix, &self.queue_prefix),
            ("ledger.prefix", &own.ledger_prefix, &self.ledger_prefix),
        ];
        let differ = settings.into_iter().filter(|(_, own, other)| own != other);
        differ
            .map(|(name, own, other)| {
                format!(
                    "{name} is {own:?} here and {other:?} at the coordinator {}: set the same everywhere",
                    self.coordinator
                )
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LocalObjects;

    #[tokio::test]
    async fn what_differs_is_named() {
        let dir = tempfile::tempdir().expect("folder");
        let objects = LocalObjects::open(dir.path()).expect("a store");
        assert_eq!(Agreement::read(&objects).await.expect("read"), None);
        let said = Agreement {
            coordinator: "coordinator@a:1".into(),
            queue_prefix: "ramsift".into(),
            ledger_prefix: "ramsift".into(),
            version: "1".into(),
        };
        said.store(&objects).await.expect("stored");
        let read = Agreement::read(&objects).await.expect("read");
        assert_eq!(read.as_ref(), Some(&said));
        let own = Agreement {
            queue_prefix: "other".into(),
            coordinator: String::new(),
            version: "2".into(),
            ..said.clone()
        };
        let differ = said.differences(&own);
        assert_eq!(differ.len(), 1, "{differ:?}");
        assert!(differ[0].contains(
            "queue.prefix is \"other\" here and \"ramsift\" at the coordinator coordinator@a:1"
        ));
        assert!(said.differences(&said).is_empty());
    }
}
