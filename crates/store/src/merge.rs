//! Merging segments into one sorted table.
//!
//! Chunks own disjoint stretches of the image and segments hold sorted row groups, so most row
//! groups reach into no other one. Those are copied as they are: their columns are neither
//! decompressed nor decoded. Only row groups that reach into one another, and small ones, are read
//! and written again, by a sort with bounded memory that spills.
//!
//! ```text
//! segment footers -> row groups by least offset -> |alone and large| -> copy the columns
//!                                                  |  the others   | -> sort, encode
//! ```
//!
//! The capture's id and the pass, which are known only now, go in front of every row, and whose memory
//! it lies in behind.

mod clock;
mod output;

pub use clock::Reference;

use crate::objects::Objects;
use crate::query::{QueryLimits, Tables, fail, wrong};
use crate::splice::Order;
use crate::tables::{FAIR_GROUP, ROW_GROUP, in_order, is_view, place_columns, schema, sort_keys};
use crate::{ObjectError, StoreError};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use output::Output;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::statistics::Statistics;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A stored segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its key.
    pub key: String,
    /// Its size.
    pub bytes: u64,
}

/// What a merge wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Rows.
    pub rows: u64,
    /// Bytes of the Parquet file.
    pub bytes: u64,
    /// Rows that were copied without being decoded.
    pub copied: u64,
}

/// What is added to every row of a merged table.
#[derive(Clone, Copy, Debug)]
pub struct Stamp<'a> {
    /// The capture's id.
    pub capture: &'a str,
    /// The pass.
    pub pass: u16,
    /// The finished `frames` table: rows that have a place are given their owners from it.
    pub frames: Option<&'a Path>,
    /// Where the memory of a raw image begins, when a kernel says that it is not at 0, which is what
    /// chunk workers count from. A raw image has no holes: each row's physical address is then its
    /// image offset and this.
    pub base: Option<u64>,
    /// Pages that were carved in the order of their file or process.
    pub order: Option<&'a Order>,
    /// When the capture was taken: years that records lack rest on it.
    pub clock: Option<&'a Reference>,
}

/// Merges segments into one table in the file `to`. Memory is bounded by `limits` and a few row
/// groups; what doesn't fit is spilled.
pub async fn merge(
    objects: &Arc<dyn Objects>,
    table: &str,
    segments: &[Segment],
    stamp: Stamp<'_>,
    to: &Path,
    limits: &QueryLimits,
) -> Result<Merged, StoreError> {
    merge_through(objects, table, segments, stamp, to, limits, None).await
}

/// Changes the rows of a table on their way, in their order.
pub trait Filter: Send {
    /// Takes rows and gives those that are ready.
    fn rows(&mut self, batch: RecordBatch) -> Result<Option<RecordBatch>, StoreError>;

    /// Gives what is left.
    fn end(&mut self) -> Result<Option<RecordBatch>, StoreError>;
}

/// [`merge`] with rows that are changed on their way.
pub async fn merge_through(
    objects: &Arc<dyn Objects>,
    table: &str,
    segments: &[Segment],
    stamp: Stamp<'_>,
    to: &Path,
    limits: &QueryLimits,
    filter: Option<&mut dyn Filter>,
) -> Result<Merged, StoreError> {
    let schema = match schema(table) {
        Some(s) => s,
        None => view_schema(objects, table, segments).await?,
    };
    let mut out = Output::create(to, table, &schema, stamp)?;
    let sql = Sql {
        objects,
        table,
        schema: &schema,
        limits,
    };
    let groups = match place_columns(table) {
        Some(c) if filter.is_none() => {
            groups(objects, segments, schema.index_of(c.start).ok()).await?
        }
        _ => None,
    };
    match groups {
        Some(groups) => {
            let steps = steps(groups);
            let mut at = 0;
            while at < steps.len() {
                let run = steps[at..].iter().take_while(|s| s.is_copy()).count();
                if run > 0 {
                    copy(objects, &steps[at..at + run], &mut out).await?;
                    at += run;
                    continue;
                }
                if let Step::Sort(groups, _) = &steps[at]
                    && groups.iter().map(|g| g.rows).sum::<usize>() <= SMALL
                {
                    sort_here(objects, table, groups, &mut out).await?;
                } else if let Step::Sort(groups, range) = &steps[at] {
                    let mut keys: Vec<String> =
                        groups.iter().map(|g| g.segment.key.clone()).collect();
                    keys.sort_unstable();
                    keys.dedup();
                    sql.sort(&keys, Some(range.clone()), None, &mut out).await?;
                }
                at += 1;
            }
        }
        None => {
            let keys: Vec<String> = segments.iter().map(|s| s.key.clone()).collect();
            sql.sort(&keys, None, filter, &mut out).await?;
        }
    }
    out.close(to)
}

/// The schema of a view's table, which its rows bring along.
async fn view_schema(
    objects: &Arc<dyn Objects>,
    table: &str,
    segments: &[Segment],
) -> Result<SchemaRef, StoreError> {
    let first = segments.first().filter(|_| is_view(table));
    let Some(first) = first else {
        return Err(wrong(format!("{table} has no schema")));
    };
    let (segment, meta) = footer(objects.clone(), first.clone()).await?;
    let meta = ArrowReaderMetadata::try_new(Arc::new(meta), ArrowReaderOptions::new());
    let meta = meta.map_err(|e| StoreError::Segment {
        what: segment.key,
        source: e.into(),
    })?;
    Ok(meta.schema().clone())
}

/// A sorted row group of a segment.
#[derive(Clone, Debug)]
struct Group {
    segment: Arc<Segment>,
    meta: Arc<ParquetMetaData>,
    index: usize,
    /// Least and greatest image offset.
    first: u64,
    last: u64,
    rows: usize,
}

impl Group {
    fn meta(&self) -> &RowGroupMetaData {
        self.meta.row_group(self.index)
    }

    /// Where its columns lie in the segment.
    fn extent(&self) -> Range<u64> {
        let (mut from, mut to) = (u64::MAX, 0);
        for c in self.meta().columns() {
            let (start, len) = c.byte_range();
            from = from.min(start);
            to = to.max(start + len);
        }
        from.min(to)..to
    }
}

/// What is done with row groups.
#[derive(Debug)]
enum Step {
    Copy(Group),
    /// Sort all rows of these groups; their image offsets.
    Sort(Vec<Group>, Range<u64>),
}

impl Step {
    fn is_copy(&self) -> bool {
        matches!(self, Self::Copy(_))
    }
}

/// Footers read at a time, and row groups fetched ahead.
const AHEAD: usize = 4;

/// All row groups, or `None` when one doesn't say that it is sorted and what it spans.
async fn groups(
    objects: &Arc<dyn Objects>,
    segments: &[Segment],
    start: Option<usize>,
) -> Result<Option<Vec<Group>>, StoreError> {
    let Some(start) = start else { return Ok(None) };
    let mut footers = futures::stream::iter(segments.iter().cloned())
        .map(|s| footer(objects.clone(), s))
        .buffered(AHEAD);
    let mut out = Vec::new();
    while let Some((segment, meta)) = footers.try_next().await? {
        let (segment, meta) = (Arc::new(segment), Arc::new(meta));
        for (index, g) in meta.row_groups().iter().enumerate() {
            let sorted = g.sorting_columns().is_some_and(|c| {
                c.first()
                    .is_some_and(|c| usize::try_from(c.column_idx) == Ok(start) && !c.descending)
            });
            let Some(Statistics::Int64(s)) = g.column(start).statistics() else {
                return Ok(None);
            };
            let (Some(first), Some(last), true) = (s.min_opt(), s.max_opt(), sorted) else {
                return Ok(None);
            };
            out.push(Group {
                segment: segment.clone(),
                meta: meta.clone(),
                index,
                first: first.cast_unsigned(),
                last: last.cast_unsigned(),
                rows: usize::try_from(g.num_rows()).unwrap_or(0),
            });
        }
    }
    Ok(Some(out))
}

/// Bytes from the end of a segment that are read first; most footers fit.
const TAIL: u64 = 64 << 10;

/// Reads a segment's footer.
async fn footer(
    objects: Arc<dyn Objects>,
    s: Segment,
) -> Result<(Segment, ParquetMetaData), StoreError> {
    let damaged = |e: ParquetError| StoreError::Segment {
        what: s.key.clone(),
        source: e.into(),
    };
    let mut want = TAIL;
    loop {
        let from = s.bytes.saturating_sub(want);
        let tail = objects.get_range(&s.key, from..s.bytes).await?;
        let mut reader = ParquetMetaDataReader::new();
        match reader.try_parse_sized(&tail, s.bytes) {
            Ok(()) => {
                let meta = reader.finish().map_err(damaged)?;
                return Ok((s, meta));
            }
            Err(ParquetError::NeedMoreData(n)) if from > 0 && n as u64 > want => want = n as u64,
            Err(e) => return Err(damaged(e)),
        }
    }
}

/// Rows and columns of a segment, by its footer.
pub async fn segment_facts(
    objects: &Arc<dyn Objects>,
    s: &Segment,
) -> Result<(u64, SchemaRef), StoreError> {
    let (_, meta) = footer(objects.clone(), s.clone()).await?;
    let rows = u64::try_from(meta.file_metadata().num_rows()).unwrap_or(0);
    let meta = ArrowReaderMetadata::try_new(Arc::new(meta), ArrowReaderOptions::new());
    let meta = meta.map_err(|e| StoreError::Segment {
        what: s.key.clone(),
        source: e.into(),
    })?;
    Ok((rows, meta.schema().clone()))
}

/// Puts row groups in order and decides which are copied.
fn steps(mut groups: Vec<Group>) -> Vec<Step> {
    groups.sort_by_key(|g| (g.first, g.last));
    let mut out: Vec<Step> = Vec::new();
    let mut run: Vec<Group> = Vec::new();
    let mut end = 0;
    for g in groups {
        if !run.is_empty() && g.first > end {
            push(&mut out, std::mem::take(&mut run), end);
        }
        end = if run.is_empty() {
            g.last
        } else {
            end.max(g.last)
        };
        run.push(g);
    }
    push(&mut out, run, end);
    out
}

/// Adds groups that reach into one another. What has to be written again joins its neighbours, up
/// to a row group.
fn push(out: &mut Vec<Step>, run: Vec<Group>, end: u64) {
    let Some(first) = run.first().map(|g| g.first) else {
        return;
    };
    if let [g] = run.as_slice()
        && g.rows >= FAIR_GROUP
    {
        out.push(Step::Copy(g.clone()));
        return;
    }
    let rows = |gs: &[Group]| gs.iter().map(|g| g.rows).sum::<usize>();
    match out.last_mut() {
        Some(Step::Sort(gs, range)) if rows(gs) + rows(&run) <= ROW_GROUP => {
            gs.extend(run);
            range.end = end;
        }
        _ => out.push(Step::Sort(run, first..end)),
    }
}

/// Bytes of a segment from a place on, as the Parquet library reads them.
struct Piece {
    start: u64,
    bytes: Bytes,
}

impl Length for Piece {
    fn len(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

impl ChunkReader for Piece {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        use bytes::Buf;
        let at = start
            .checked_sub(self.start)
            .and_then(|a| usize::try_from(a).ok());
        match at {
            Some(at) if at <= self.bytes.len() => Ok(self.bytes.slice(at..).reader()),
            _ => Err(ParquetError::EOF(format!("no byte {start} in this piece"))),
        }
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let at = start
            .checked_sub(self.start)
            .and_then(|a| usize::try_from(a).ok());
        match at.and_then(|a| Some((a, a.checked_add(length)?))) {
            Some((a, b)) if b <= self.bytes.len() => Ok(self.bytes.slice(a..b)),
            _ => Err(ParquetError::EOF(format!(
                "no bytes {start}+{length} in this piece"
            ))),
        }
    }
}

/// Copies row groups, fetching the next while one is written.
async fn copy(
    objects: &Arc<dyn Objects>,
    steps: &[Step],
    out: &mut Output<'_>,
) -> Result<(), StoreError> {
    let groups: Vec<Group> = steps
        .iter()
        .filter_map(|s| match s {
            Step::Copy(g) => Some(g.clone()),
            Step::Sort(..) => None,
        })
        .collect();
    let mut fetched = futures::stream::iter(groups)
        .map(|g| fetch(objects.clone(), g))
        .buffered(AHEAD);
    while let Some((g, piece)) = fetched.try_next().await? {
        out.copy(&g, &piece)?;
    }
    Ok(())
}

/// Rows that are sorted in memory without the query engine.
const SMALL: usize = 2 * ROW_GROUP;

/// Reads row groups, sorts their rows and writes them.
async fn sort_here(
    objects: &Arc<dyn Objects>,
    table: &str,
    groups: &[Group],
    out: &mut Output<'_>,
) -> Result<(), StoreError> {
    let Some(place) = place_columns(table) else {
        return Err(wrong(format!("{table} is not sorted by place")));
    };
    let mut fetched = futures::stream::iter(groups.iter().cloned())
        .map(|g| fetch(objects.clone(), g))
        .buffered(AHEAD);
    let mut batches = Vec::new();
    while let Some((g, piece)) = fetched.try_next().await? {
        let damaged = |e: ParquetError| StoreError::Segment {
            what: g.segment.key.clone(),
            source: e.into(),
        };
        let meta = ArrowReaderMetadata::try_new(g.meta.clone(), ArrowReaderOptions::new())
            .map_err(damaged)?;
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(piece, meta)
            .with_row_groups(vec![g.index])
            .with_batch_size(g.rows)
            .build()
            .map_err(damaged)?;
        for b in reader {
            batches.push(b.map_err(fail)?);
        }
    }
    for b in in_order(batches, place).map_err(fail)? {
        out.write(&b)?;
    }
    out.cut()
}

/// Reads the bytes of a row group.
async fn fetch(objects: Arc<dyn Objects>, g: Group) -> Result<(Group, Piece), ObjectError> {
    let extent = g.extent();
    let bytes = objects.get_range(&g.segment.key, extent.clone()).await?;
    let piece = Piece {
        start: extent.start,
        bytes,
    };
    Ok((g, piece))
}

/// Sorting through the query engine.
struct Sql<'a> {
    objects: &'a Arc<dyn Objects>,
    table: &'a str,
    schema: &'a SchemaRef,
    limits: &'a QueryLimits,
}

impl Sql<'_> {
    /// Rows of these segments in order, those of a range of image offsets (inclusive) if given.
    async fn sort(
        &self,
        keys: &[String],
        range: Option<Range<u64>>,
        mut filter: Option<&mut dyn Filter>,
        out: &mut Output<'_>,
    ) -> Result<(), StoreError> {
        if keys.is_empty() {
            return Ok(());
        }
        let table = self.table;
        let t = Tables::new(self.objects.clone(), self.limits)?;
        t.register(table, keys, Some(self.schema.clone())).await?;
        let columns = self
            .schema
            .fields()
            .iter()
            .map(|f| format!("\"{}\"", f.name()))
            .collect::<Vec<_>>()
            .join(", ");
        let only = match (range, place_columns(table)) {
            (Some(r), Some(c)) => {
                format!(
                    " WHERE \"{}\" >= {} AND \"{}\" <= {}",
                    c.start, r.start, c.start, r.end
                )
            }
            _ => String::new(),
        };
        let sql = format!(
            "SELECT {columns} FROM {table}{only} ORDER BY {}",
            sort_keys(table)
        );
        let mut stream = t.stream(&sql).await?;
        while let Some(b) = stream.next().await {
            let b = b.map_err(fail)?;
            let b = match &mut filter {
                Some(f) => f.rows(b)?,
                None => Some(b),
            };
            if let Some(b) = b {
                out.write(&b)?;
            }
        }
        if let Some(b) = filter.map_or(Ok(None), |f| f.end())? {
            out.write(&b)?;
        }
        out.cut()
    }
}
