//! YARA matches in the memory of processes, from which verdicts on processes are reached.

use super::name::MEMORY_MATCHES;
use super::small::batch;
use arrow::array::{
    Array, AsArray, BinaryBuilder, RecordBatch, UInt8Builder, UInt32Builder, UInt64Builder,
};
use arrow::datatypes::{UInt8Type, UInt32Type, UInt64Type};
use arrow::error::ArrowError;
use std::sync::Arc;

/// A match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryMatchRow {
    /// Rule id.
    pub rule: u32,
    /// Position of the pattern in the rule.
    pub pattern: u32,
    /// Number of the memory that it lies in, see [`crate::lists`].
    pub unit: u32,
    /// Address of its first byte there.
    pub address: u64,
    /// Where that byte lies in the image.
    pub image_offset: u64,
    /// Bytes.
    pub length: u64,
    /// Stretches of physical memory that it lies in: more than one where it crosses from a page to
    /// another that is not its neighbour in RAM.
    pub pieces: u32,
    /// Bytes around it.
    pub window: Vec<u8>,
    /// Key of an `xor` pattern.
    pub xor_key: Option<u8>,
    /// Further matches of the pattern in the same buffer that aren't listed.
    pub more: u64,
    /// Address of the last of those.
    pub last: u64,
}

/// Collects matches.
#[derive(Debug, Default)]
pub struct MemoryMatchesBuilder {
    rule: UInt32Builder,
    pattern: UInt32Builder,
    unit: UInt32Builder,
    address: UInt64Builder,
    image_offset: UInt64Builder,
    length: UInt64Builder,
    pieces: UInt32Builder,
    window: BinaryBuilder,
    xor_key: UInt8Builder,
    more: UInt64Builder,
    last: UInt64Builder,
    bytes: usize,
}

impl MemoryMatchesBuilder {
    /// Adds a match.
    pub fn push(&mut self, m: &MemoryMatchRow) {
        self.rule.append_value(m.rule);
        self.pattern.append_value(m.pattern);
        self.unit.append_value(m.unit);
        self.address.append_value(m.address);
        self.image_offset.append_value(m.image_offset);
        self.length.append_value(m.length);
        self.pieces.append_value(m.pieces);
        self.window.append_value(&m.window);
        self.xor_key.append_option(m.xor_key);
        self.more.append_value(m.more);
        self.last.append_value(m.last);
        self.bytes += 64 + m.window.len();
    }

    /// Roughly the bytes that the rows take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The rows as a batch. `None` without rows.
    pub fn finish(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        self.bytes = 0;
        batch(
            MEMORY_MATCHES,
            vec![
                Arc::new(self.rule.finish()),
                Arc::new(self.pattern.finish()),
                Arc::new(self.unit.finish()),
                Arc::new(self.address.finish()),
                Arc::new(self.image_offset.finish()),
                Arc::new(self.length.finish()),
                Arc::new(self.pieces.finish()),
                Arc::new(self.window.finish()),
                Arc::new(self.xor_key.finish()),
                Arc::new(self.more.finish()),
                Arc::new(self.last.finish()),
            ],
        )
    }
}

/// The rows of a batch whose rule is wanted.
pub fn memory_match_rows(b: &RecordBatch, wanted: &dyn Fn(u32) -> bool) -> Vec<MemoryMatchRow> {
    let small = |i: usize| b.column(i).as_primitive::<UInt32Type>();
    let large = |i: usize| b.column(i).as_primitive::<UInt64Type>();
    let (rule, pattern, unit, pieces) = (small(0), small(1), small(2), small(6));
    let (address, image, length) = (large(3), large(4), large(5));
    let window = b.column(7).as_binary::<i32>();
    let key = b.column(8).as_primitive::<UInt8Type>();
    let (more, last) = (large(9), large(10));
    (0..b.num_rows())
        .filter(|i| wanted(rule.value(*i)))
        .map(|i| MemoryMatchRow {
            rule: rule.value(i),
            pattern: pattern.value(i),
            unit: unit.value(i),
            address: address.value(i),
            image_offset: image.value(i),
            length: length.value(i),
            pieces: pieces.value(i),
            window: window.value(i).to_vec(),
            xor_key: key.is_valid(i).then(|| key.value(i)),
            more: more.value(i),
            last: last.value(i),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_as_they_went_in() {
        let row = |rule, unit, key| MemoryMatchRow {
            rule,
            pattern: 1,
            unit,
            address: 0x7fff_0000_1000,
            image_offset: 0x123,
            length: 7,
            pieces: 2,
            window: b"around".to_vec(),
            xor_key: key,
            more: 3,
            last: 0x7fff_0000_2000,
        };
        let all = [row(1, 9, None), row(2, 8, Some(0x5a))];
        let mut b = MemoryMatchesBuilder::default();
        all.iter().for_each(|m| b.push(m));
        assert!(b.bytes() > 0);
        let batch = b.finish().expect("valid").expect("rows");
        assert_eq!(memory_match_rows(&batch, &|_| true), all);
        assert_eq!(memory_match_rows(&batch, &|r| r == 2), all[1..]);
    }
}
