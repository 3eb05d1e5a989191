//! Rules and the virus scanner on what views recovered: cached files, modules, programs in memory.

use crate::Worker;
use crate::context::JobContext;
use crate::gather::{Wanted, gather};
use crate::scan::{ScanError, Scanned, rows, thread_cpu};
use crate::sink::Inspected;
use ramsift_layers::ByteSource;
use ramsift_store::lists::{FileList, Recovered};
use ramsift_store::tables::CoverageRow;
use std::ops::Range;
use tokio::runtime::Handle;

/// A program as it lies in a process's memory.
const PROCESS_ELF: &str = "process_elf";
/// Bytes of a pack that one request gets: most files are small, and a request takes longer than they do.
const SPAN: u64 = 16 << 20;

/// Files that are read together, in order: neighbours in a pack, or files that lie in the image. What is larger than
/// `limit` is apart.
fn spans(files: &[Recovered], limit: u64) -> Vec<&[Recovered]> {
    let end = |f: &Recovered| f.object_offset.saturating_add(f.size);
    let mut out = Vec::new();
    let (mut from, mut bytes) = (0, 0);
    for i in 1..=files.len() {
        bytes += files[i - 1].size;
        let cut = files.get(i).is_none_or(|f| {
            let (first, before) = (&files[from], &files[i - 1]);
            let apart = if f.object.is_empty() {
                bytes.saturating_add(f.size) > SPAN
            } else {
                f.object_offset < end(before) || end(f).saturating_sub(first.object_offset) > SPAN
            };
            f.object != first.object || apart || f.size > limit || before.size > limit
        });
        if cut {
            out.push(&files[from..i]);
            (from, bytes) = (i, 0);
        }
    }
    out
}

/// Content that was read for some files, end to end.
struct Content {
    bytes: Vec<u8>,
    /// What could not be read, and is zeros.
    bad: Vec<(Range<usize>, String)>,
}

/// Content of files from the pack that has copies of them.
fn from_pack(worker: &Worker, files: &[Recovered]) -> Result<Content, ScanError> {
    let (first, last) = (&files[0], &files[files.len() - 1]);
    let range = first.object_offset..last.object_offset.saturating_add(last.size);
    let mut bytes = Vec::new();
    if !range.is_empty() {
        let objects = worker.deps.objects.as_ref();
        let data = Handle::current().block_on(objects.get_range(&first.object, range));
        bytes = data.map_err(|e| ScanError::Store(e.to_string()))?.to_vec();
    }
    Ok(Content {
        bytes,
        bad: Vec::new(),
    })
}

/// Content of files from where it lies in the image, holes as zeros.
fn from_image(
    ctx: &JobContext,
    image: &dyn ByteSource,
    files: &[Recovered],
) -> Result<Content, ScanError> {
    let runs = &ctx.plan.layout.runs;
    let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let (mut wanted, mut base) = (Vec::new(), 0);
    for f in files {
        for p in f.extents.pieces() {
            let to_file = runs.pieces(p.image..p.image.saturating_add(p.len));
            wanted.extend(to_file.into_iter().map(|piece| Wanted {
                file: piece.file,
                len: size(piece.len),
                at: base + size(p.at + (piece.image - p.image)),
            }));
        }
        base += size(f.size);
    }
    let mut bytes = vec![0; base];
    let bad = Handle::current()
        .block_on(gather(image, &wanted, &mut bytes))
        .map_err(ScanError::Source)?;
    Ok(Content { bytes, bad })
}

/// Looks at a list of artifacts; `image` has the bytes of the image as it is stored. Runs on a blocking thread.
pub(crate) fn inspect(
    worker: &Worker,
    ctx: &JobContext,
    image: &dyn ByteSource,
    list: &FileList,
    attempt: &str,
) -> Result<Scanned, ScanError> {
    let cpu = thread_cpu();
    let mut rows = rows(worker, ctx, attempt).all_rules();
    let limit = worker.config.max_artifact as u64;
    for files in spans(&list.files, limit) {
        if worker.stop.abandon.is_cancelled() {
            return Err(ScanError::Store("stopping".into()));
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
        let content = match files[0].object.is_empty() {
            true => from_image(ctx, image, files)?,
            false => from_pack(worker, files)?,
        };
        let mut at: usize = 0;
        for f in files {
            let len = usize::try_from(f.size).unwrap_or(usize::MAX);
            let range = at..at.saturating_add(len);
            at = range.end;
            if range.is_empty() {
                continue;
            }
            let short = || ScanError::Store(format!("{} is shorter than its files", f.object));
            let data = content.bytes.get(range.clone()).ok_or_else(short)?;
            let unread = content
                .bad
                .iter()
                .find(|(bad, _)| bad.start < range.end && range.start < bad.end);
            if let Some((_, why)) = unread {
                rows.coverage.push(&CoverageRow {
                    engine: "yara files".into(),
                    outcome: "partial".into(),
                    start: f.image_offset,
                    end: f.image_offset + f.size,
                    reason: Some(format!("{}: {why}", f.name)),
                });
            }
            rows.inspect(&Inspected {
                offset: f.image_offset,
                physical: f.physical_address,
                path: &f.name,
                named: true,
                kind: &f.kind,
                sha256: &f.sha256,
                data,
                gap: f.gap.as_deref().or(unread.map(|(_, why)| why.as_str())),
                // The rules have been searched for in the process as a whole.
                file_oriented_only: f.kind == PROCESS_ELF,
            });
        }
        rows.checkpoint_rows();
    }
    Ok(Scanned {
        rows: rows.finish().map_err(ScanError::Store)?,
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
        // In the image it does not matter where they lie.
        let files = [
            file("", 0, 10),
            file("", 0, SPAN - 20),
            file("", 0, 11),
            file("", 0, 5),
            file("a", 0, 5),
        ];
        let sizes: Vec<usize> = spans(&files, u64::MAX).iter().map(|s| s.len()).collect();
        assert_eq!(sizes, [2, 2, 1]);
    }
}
