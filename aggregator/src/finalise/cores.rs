//! The bytes of the image that are each chunk's own.

use ramsift_layers::extent::{Extents, owned};
use ramsift_proto::TaskId;
use ramsift_store::{Keys, Objects, Plan, StoreError, image};
use std::ops::Range;
use std::sync::Arc;

/// Tells which bytes of the image are a chunk's own.
#[derive(Debug)]
pub(super) struct Cores<'a> {
    plan: &'a Plan,
    extents: Option<Arc<Extents>>,
}

impl<'a> Cores<'a> {
    pub(super) async fn open(
        objects: &Arc<dyn Objects>,
        keys: &Keys,
        plan: &'a Plan,
    ) -> Result<Self, StoreError> {
        let extents = image::extents(objects, keys, plan).await?;
        Ok(Self { plan, extents })
    }

    /// The job's plan.
    pub(super) fn plan(&self) -> &'a Plan {
        self.plan
    }

    /// The image ranges that a chunk task owns; none of another task.
    pub(super) async fn of(&self, task: &str) -> Result<Vec<Range<u64>>, StoreError> {
        let Ok(id) = task.parse::<TaskId>() else {
            return Ok(Vec::new());
        };
        let TaskId::Chunk { index, .. } = &id else {
            return Ok(Vec::new());
        };
        let plan = self.plan;
        let start = index * plan.chunks.size;
        let whole = start..(start + plan.chunks.size).min(plan.pin.size());
        let file = id.narrow(whole);
        let own = owned(self.extents.as_deref(), &plan.layout.runs, file).await;
        own.map_err(image::of_source)
    }
}
