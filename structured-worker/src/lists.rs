//! What chunk workers are asked to scan: the memory of processes, cut into buffers of bounded size,
//! and the content that views recovered.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::UInt64Type;
use bytes::Bytes;
use ramsift_layers::PhysAddr;
use ramsift_layers::run::RunMap;
use ramsift_os::content::Extent;
use ramsift_os::resident::{Resident, Unit};
use ramsift_proto::v1::Wishes;
use ramsift_store::job::to_json;
use ramsift_store::lists::{
    BUFFER, Buffer, FileList, LIST, MemoryList, PROCESSES, Process, ProcessList, Recovered,
    Stretch, files_name, memory_name,
};
use ramsift_store::placed::Placed;
use ramsift_store::{Objects, Plan};
use std::ops::Range;
use std::sync::Arc;
use tokio::runtime::Handle;

/// Bytes in front of a buffer's core, for what depends on the bytes before a match: carvers look that far back.
const BEFORE: u64 = ramsift_carvers::api::LOOK_BEHIND as u64;

/// What a job wants scanned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// Memory of processes, by rules or the virus scanner.
    pub(crate) memory: bool,
    /// Memory of processes and cached files, by carvers.
    pub(crate) lines: bool,
    /// Recovered content.
    pub(crate) files: bool,
    /// Bytes behind a buffer's core: the longest match that is sure to be found across two.
    pub(crate) overlap: u64,
}

impl Asked {
    /// What a plan asks for.
    pub(crate) fn of(plan: &Plan) -> Self {
        let rules = !plan.spec.rules_digest.is_empty();
        Self {
            memory: rules || (plan.spec.clamav && plan.spec.av != "files"),
            lines: plan.spec.unstructured,
            files: rules || (plan.spec.clamav && plan.spec.av != "memory"),
            overlap: plan.chunks.overlap,
        }
    }
}

/// Lists on their way into the store.
#[derive(Debug)]
pub(crate) struct Lists {
    objects: Arc<dyn Objects>,
    runtime: Handle,
    wishes: Wishes,
    memory: MemoryList,
    /// Bytes in it.
    bytes: u64,
    processes: ProcessList,
}

impl Lists {
    pub(crate) fn new(objects: Arc<dyn Objects>, runtime: Handle, folder: String) -> Self {
        Self {
            objects,
            runtime,
            wishes: Wishes {
                folder,
                ..Wishes::default()
            },
            memory: MemoryList::default(),
            bytes: 0,
            processes: ProcessList::default(),
        }
    }

    fn put(&self, name: &str, data: Bytes) -> Result<(), String> {
        let key = format!("{}{name}", self.wishes.folder);
        let put = self.objects.put(&key, data);
        self.runtime
            .block_on(put)
            .map(|_| ())
            .map_err(|e| e.to_string())
    }

    /// Adds memory that is scanned once.
    pub(crate) fn unit(&mut self, unit: Unit, runs: &RunMap, asked: &Asked) -> Result<(), String> {
        // Files are carved as a whole, from the page cache.
        let carve = asked.lines && unit.process.is_some();
        self.add(&unit, runs, asked, asked.memory, carve)?;
        if let Some(path) = unit.file {
            self.processes.files.insert(unit.number, path);
        }
        Ok(())
    }

    /// Adds a cached file, for the carvers.
    pub(crate) fn cached(
        &mut self,
        number: u32,
        path: String,
        extents: Vec<Extent>,
        runs: &RunMap,
        asked: &Asked,
    ) -> Result<(), String> {
        let unit = Unit {
            number,
            file: Some(path),
            process: None,
            extents,
        };
        self.add(&unit, runs, asked, false, true)
    }

    fn add(
        &mut self,
        unit: &Unit,
        runs: &RunMap,
        asked: &Asked,
        scan: bool,
        carve: bool,
    ) -> Result<(), String> {
        if !scan && !carve {
            return Ok(());
        }
        let mut buffers = Vec::new();
        cut(
            &Buffer {
                unit: unit.number,
                scan,
                carve,
                ..Buffer::default()
            },
            &stretches(unit, runs),
            BUFFER,
            asked.overlap,
            &mut |b| {
                buffers.push(b);
            },
        );
        let name = match (&unit.process, &unit.file) {
            (Some(p), _) => format!("process:{p}"),
            (None, Some(f)) => format!("file:{f}"),
            (None, None) => format!("memory:{}", unit.number),
        };
        for b in buffers {
            self.bytes += b.len();
            self.memory.buffers.push(b);
            self.memory.names.insert(unit.number, name.clone());
            if self.bytes >= LIST {
                self.close()?;
            }
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), String> {
        let list = std::mem::take(&mut self.memory);
        if list.buffers.is_empty() {
            return Ok(());
        }
        self.bytes = 0;
        let data = serde_json::to_vec(&list).map_err(|e| e.to_string())?;
        self.put(&memory_name(self.wishes.memory), data.into())?;
        self.wishes.memory += 1;
        Ok(())
    }

    /// Closes the lists of memory with the processes that have it. Gives their number.
    pub(crate) fn processes(&mut self, all: Vec<Resident>) -> Result<u64, String> {
        self.close()?;
        let n = all.len() as u64;
        let process = |r: Resident| Process {
            pid: r.pid,
            comm: r.comm,
            object: r.object,
            started: r.started,
            units: r.units,
        };
        self.processes.processes = all.into_iter().map(process).collect();
        let list = std::mem::take(&mut self.processes);
        let data = serde_json::to_vec(&list).map_err(|e| e.to_string())?;
        self.put(PROCESSES, data.into())?;
        Ok(n)
    }

    /// Memory is not asked for after all.
    pub(crate) fn forget_memory(&mut self) {
        self.memory = MemoryList::default();
        self.wishes.memory = 0;
    }

    /// Lists the artifacts of a batch of their table.
    pub(crate) fn files(&mut self, rows: &RecordBatch) -> Result<(), String> {
        let (mut list, mut bytes) = (FileList::default(), 0);
        for f in recovered(rows)
            .ok_or("the table of artifacts lacks a column, or a place in it can't be read")?
        {
            bytes += f.size;
            list.files.push(f);
            if bytes >= LIST {
                self.close_files(&mut list)?;
                bytes = 0;
            }
        }
        self.close_files(&mut list)
    }

    fn close_files(&mut self, list: &mut FileList) -> Result<(), String> {
        let list = std::mem::take(list);
        if list.files.is_empty() {
            return Ok(());
        }
        let data = to_json(&list).map_err(|e| e.to_string())?;
        self.put(&files_name(self.wishes.files), data)?;
        self.wishes.files += 1;
        Ok(())
    }

    /// The lists that were written.
    pub(crate) fn finish(&mut self) -> Wishes {
        std::mem::take(&mut self.wishes)
    }
}

/// The artifacts of a batch.
fn recovered(rows: &RecordBatch) -> Option<Vec<Recovered>> {
    let text = |name| Some(rows.column_by_name(name)?.as_string::<i32>());
    let number = |name| Some(rows.column_by_name(name)?.as_primitive::<UInt64Type>());
    let (kind, name, sha256) = (text("kind")?, text("name")?, text("sha256")?);
    let (object, gap, extents) = (text("object")?, text("gap")?, text("extents")?);
    let (size, at, inside) = (
        number("size")?,
        number("image_offset")?,
        number("object_offset")?,
    );
    let physical = number("physical_address")?;
    let row = |i: usize| {
        // A place that can't be read is an error: zeros in its stead would be content that was not there.
        let places = match extents.is_valid(i) {
            true => Placed::parse(extents.value(i), size.value(i))?,
            false => Placed::default(),
        };
        Some(Recovered {
            kind: kind.value(i).to_owned(),
            name: if name.is_valid(i) { name.value(i) } else { "" }.to_owned(),
            sha256: sha256.value(i).to_owned(),
            size: size.value(i),
            object: if object.is_valid(i) {
                object.value(i)
            } else {
                ""
            }
            .to_owned(),
            object_offset: if inside.is_valid(i) {
                inside.value(i)
            } else {
                0
            },
            extents: places,
            image_offset: at.value(i),
            physical_address: physical.is_valid(i).then(|| physical.value(i)),
            gap: gap.is_valid(i).then(|| gap.value(i).to_owned()),
        })
    };
    (0..rows.num_rows()).map(row).collect()
}

/// What of a unit is stored in the image, in the unit's addresses.
fn stretches(unit: &Unit, runs: &RunMap) -> Vec<Stretch> {
    let mut out: Vec<Stretch> = Vec::new();
    let mut end = None;
    for e in &unit.extents {
        let mut at = 0;
        while at < e.len {
            let pa = PhysAddr(e.pa.0.saturating_add(at));
            let stored = runs.stored_at(pa).map(|(_, n)| n);
            let (Some(n), Some(image)) = (stored.filter(|n| *n > 0), runs.from_phys(pa)) else {
                // A page that the image lacks; the next one may be there.
                at += 4096 - pa.0 % 4096;
                continue;
            };
            let n = n.min(e.len - at);
            let address = e.offset + at;
            if end != Some(address) {
                out.push(Stretch {
                    address,
                    extents: Vec::new(),
                });
            }
            if let Some(s) = out.last_mut() {
                match s.extents.last_mut() {
                    Some(l) if l.0 + l.1 == image.0 => l.1 += n,
                    _ => s.extents.push((image.0, n)),
                }
            }
            end = Some(address + n);
            at += n;
        }
    }
    out
}

/// A part of a stretch; `ends` says where in it each extent ends.
fn part(s: &Stretch, ends: &[u64], range: Range<u64>) -> Stretch {
    let first = ends.partition_point(|e| *e <= range.start);
    let mut extents = Vec::new();
    for (&(image, len), end) in s.extents[first..].iter().zip(&ends[first..]) {
        let start = end - len;
        if start >= range.end {
            break;
        }
        let (from, to) = (range.start.max(start), range.end.min(*end));
        extents.push((image + (from - start), to - from));
    }
    Stretch {
        address: s.address + range.start,
        extents,
    }
}

/// Cuts a unit into buffers whose cores have `size` bytes at most. Where a stretch is cut, both buffers
/// have what lies around the cut.
fn cut(like: &Buffer, all: &[Stretch], size: u64, after: u64, out: &mut dyn FnMut(Buffer)) {
    let empty = || like.clone();
    let (mut open, mut core) = (empty(), 0);
    for s in all {
        let mut len = 0;
        let ends: Vec<u64> = s.extents.iter().map(|e| (len += e.1, len).1).collect();
        let mut done = 0;
        while done < len {
            let n = (size - core).min(len - done);
            let before = if open.stretches.is_empty() {
                done.min(BEFORE)
            } else {
                0
            };
            let full = core + n == size;
            let behind = if full { (len - done - n).min(after) } else { 0 };
            open.stretches
                .push(part(s, &ends, done - before..done + n + behind));
            open.before = open.before.max(before);
            done += n;
            core += n;
            if full {
                open.after = behind;
                out(std::mem::replace(&mut open, empty()));
                core = 0;
            }
        }
    }
    if core > 0 {
        out(open);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramsift_layers::run::Run;

    fn stretch(address: u64, extents: &[(u64, u64)]) -> Stretch {
        Stretch {
            address,
            extents: extents.to_vec(),
        }
    }

    /// Addresses in the cores of buffers, with where each byte lies in the image.
    fn cores(buffers: &[Buffer]) -> Vec<(u64, u64)> {
        let mut out = Vec::new();
        for b in buffers {
            let mut bytes = Vec::new();
            for s in &b.stretches {
                let mut at = s.address;
                for (image, len) in &s.extents {
                    bytes.extend((0..*len).map(|i| (at + i, image + i)));
                    at += len;
                }
            }
            let end = bytes.len() - usize::try_from(b.after).expect("small");
            out.extend_from_slice(&bytes[usize::try_from(b.before).expect("small")..end]);
        }
        out
    }

    #[test]
    fn every_byte_is_in_one_core() {
        let all = [
            stretch(0x1000, &[(0x9000, 300), (0x5000, 700)]),
            stretch(0x8000, &[(0x100, 10)]),
            stretch(0x9000, &[(0x200, 5000), (0x8000, 1), (0x8100, 2500)]),
        ];
        let whole = cores(&[Buffer {
            stretches: all.to_vec(),
            ..Buffer::default()
        }]);
        for (size, after) in [(64, 0), (64, 16), (1000, 1 << 20), (8511, 5), (1 << 20, 5)] {
            let mut got = Vec::new();
            let like = Buffer {
                unit: 3,
                ..Buffer::default()
            };
            cut(&like, &all, size, after, &mut |b| got.push(b));
            assert_eq!(cores(&got), whole, "{size} {after}");
            for b in &got {
                assert!(b.len() - b.before - b.after <= size);
                assert!(b.after <= after && b.before <= BEFORE && b.unit == 3);
            }
            if size == 64 && after == 16 {
                assert_eq!((got[0].before, got[0].after), (0, 16));
                assert_eq!((got[1].before, got[1].stretches[0].address), (64, 0x1000));
            }
        }
        cut(&Buffer::default(), &[], 64, 0, &mut |_| {
            panic!("nothing to scan")
        });
    }

    #[test]
    fn pages_that_the_image_lacks_part_stretches() {
        let run = |pa, len, file, stored| Run {
            pa,
            len,
            file,
            stored,
        };
        // Physical 0x3000 up to 0x4000 is a hole, 0x6000 is claimed and cut off.
        let runs = RunMap::new(vec![
            run(0, 0x3000, 64, 0x3000),
            run(0x4000, 0x3000, 0x3040, 0x2000),
        ])
        .expect("in order");
        let e = |offset, pa, len| Extent {
            offset,
            pa: PhysAddr(pa),
            len,
        };
        let unit = Unit {
            number: 0,
            file: None,
            process: None,
            extents: vec![
                e(0x7000, 0x2000, 0x3000),
                e(0xa000, 0x1000, 0x1000),
                e(0xb000, 0x5000, 0x2000),
            ],
        };
        let want = [
            stretch(0x7000, &[(0x2000, 0x1000)]),
            stretch(
                0x9000,
                &[(0x3000, 0x1000), (0x1000, 0x1000), (0x4000, 0x1000)],
            ),
        ];
        assert_eq!(stretches(&unit, &runs), want);
    }
}
