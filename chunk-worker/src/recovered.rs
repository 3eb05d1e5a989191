//! Rules and the virus scanner on what views recovered: cached files, modules, programs in memory.

use crate::Worker;
use crate::context::JobContext;
use crate::scan::{Scanned, rows, thread_cpu};
use crate::sink::Inspected;
use ramsift_store::lists::{FileList, Recovered};
use ramsift_store::tables::CoverageRow;
use tokio::runtime::Handle;

/// A program as it lies in a process's memory.
const PROCESS_ELF: &str = "process_elf";
/// Bytes of a pack that one request gets: most files are small, and a request takes longer than they do.
const SPAN: u64 = 16 << 20;

/// Files that one request gets, in order: neighbours in a pack. What is larger than `limit` is apart.
fn spans(files: &[Recovered], limit: u64) -> Vec<&[Recovered]> {
    let end = |f: &Recovered| f.object_offset.saturating_add(f.size);
    let mut out = Vec::new();
    let mut from = 0;
    for i in 1..=files.len() {
        let cut = files.get(i).is_none_or(|f| {
            let (first, before) = (&files[from], &files[i - 1]);
            f.object != first.object
                || f.object_offset < end(before)
                || end(f).saturating_sub(first.object_offset) > SPAN
                || f.size > limit
                || before.size > limit
        });
        if cut {
            out.push(&files[from..i]);
            from = i;
        }
    }
    out
}

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
    for files in spans(&list.files, limit) {
        if worker.abandon.is_cancelled() {
            return Err("stopping".into());
        }
        if let [f] = files
            && f.size > limit
        {
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
        let (first, last) = (&files[0], &files[files.len() - 1]);
        let range = first.object_offset..last.object_offset + last.size;
        if range.is_empty() {
            continue;
        }
        let objects = worker.deps.objects.as_ref();
        let data = Handle::current().block_on(objects.get_range(&first.object, range));
        let data = data.map_err(|e| e.to_string())?;
        for f in files.iter().filter(|f| f.size > 0) {
            let from = usize::try_from(f.object_offset - first.object_offset).unwrap_or(usize::MAX);
            let len = usize::try_from(f.size).unwrap_or(usize::MAX);
            let short = || format!("{} is shorter than its files", f.object);
            let data = data.get(from..from.saturating_add(len)).ok_or_else(short)?;
            rows.inspect(&Inspected {
                offset: f.image_offset,
                physical: f.physical_address,
                path: &f.name,
                named: true,
                kind: &f.kind,
                sha256: &f.sha256,
                data,
                gap: f.gap.as_deref(),
                // The rules have been searched for in the process as a whole.
                file_oriented_only: f.kind == PROCESS_ELF,
            });
        }
        rows.checkpoint_rows();
    }
    Ok(Scanned {
        rows: rows.finish()?,
        cpu: thread_cpu().saturating_sub(cpu),
        ..Scanned::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_in_a_pack_are_one_request() {
        let file = |object: &str, at, size| Recovered {
            object: object.into(),
            object_offset: at,
            size,
            ..Recovered::default()
        };
        let files = [
            file("a", 0, 10),
            file("a", 10, 0),
            file("a", 10, 90),
            // The same content once more lies before.
            file("a", 0, 10),
            file("a", 100, SPAN - 50),
            file("a", SPAN + 50, 60),
            file("b", SPAN + 110, 5),
            file("b", SPAN + 115, 1000),
            file("b", SPAN + 1115, 5),
        ];
        let sizes =
            |limit| -> Vec<usize> { spans(&files, limit).iter().map(|s| s.len()).collect() };
        assert_eq!(sizes(u64::MAX), [3, 1, 1, 1, 3]);
        assert_eq!(sizes(999), [3, 1, 1, 1, 1, 1, 1]);
        assert!(spans(&[], 1).is_empty());
    }
}
