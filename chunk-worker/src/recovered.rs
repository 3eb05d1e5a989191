//! Rules and the virus scanner on what views recovered: cached files, modules, programs in memory.

use crate::Worker;
use crate::context::JobContext;
use crate::scan::{Scanned, rows, thread_cpu};
use crate::sink::Inspected;
use ramsift_store::lists::FileList;
use ramsift_store::tables::CoverageRow;
use tokio::runtime::Handle;

/// A program as it lies in a process's memory.
const PROCESS_ELF: &str = "process_elf";

/// Looks at a list of artifacts. Runs on a blocking thread.
pub(crate) fn inspect(
    worker: &Worker,
    ctx: &JobContext,
    list: &FileList,
    attempt: &str,
) -> Result<Scanned, String> {
    let cpu = thread_cpu();
    let mut rows = rows(worker, ctx, attempt).all_rules();
    let limit = worker.config.max_artifact as u64;
    for f in &list.files {
        if worker.abandon.is_cancelled() {
            return Err("stopping".into());
        }
        if f.size > limit {
            rows.coverage.push(&CoverageRow {
                engine: "yara files".into(),
                outcome: "not scanned".into(),
                start: f.image_offset,
                end: f.image_offset + f.size,
                reason: Some(format!(
                    "{}: {} bytes are more than {limit}",
                    f.name, f.size
                )),
            });
            continue;
        }
        let range = f.object_offset..f.object_offset + f.size;
        let objects = worker.deps.objects.as_ref();
        let data = if range.is_empty() {
            continue;
        } else {
            Handle::current().block_on(objects.get_range(&f.object, range))
        };
        let data = data.map_err(|e| e.to_string())?;
        rows.inspect(&Inspected {
            offset: f.image_offset,
            physical: f.physical_address,
            path: &f.name,
            sha256: &f.sha256,
            data: &data,
            gap: f.gap.as_deref(),
            // The rules have been searched for in the process as a whole.
            file_oriented_only: f.kind == PROCESS_ELF,
        });
        rows.checkpoint_rows();
    }
    Ok(Scanned {
        rows: rows.finish()?,
        cpu: thread_cpu().saturating_sub(cpu),
        ..Scanned::default()
    })
}
