//! Rows of `yara_matches`: every match of the rules that fired over the image, where all are asked for.

use super::name::YARA_MATCHES;
use super::small::batch;
use arrow::array::{FixedSizeBinaryBuilder, RecordBatch, StringBuilder, UInt64Builder};
use arrow::error::ArrowError;
use std::sync::Arc;

/// One match.
#[derive(Clone, Copy, Debug)]
pub struct YaraMatchRow<'a> {
    /// See [`super::row_id`].
    pub id: [u8; 16],
    /// Name of the rule.
    pub rule: &'a str,
    /// The file that it was loaded for.
    pub namespace: &'a str,
    /// Name of the pattern.
    pub pattern: &'a str,
    /// First byte.
    pub image_offset: u64,
    /// The same as a physical address.
    pub physical_address: Option<u64>,
    /// Bytes.
    pub length: u64,
}

/// Collects matches.
#[derive(Debug, Default)]
pub struct YaraMatchesBuilder {
    id: Option<FixedSizeBinaryBuilder>,
    rule: StringBuilder,
    namespace: StringBuilder,
    pattern: StringBuilder,
    image_offset: UInt64Builder,
    physical_address: UInt64Builder,
    length: UInt64Builder,
    bytes: usize,
}

impl YaraMatchesBuilder {
    /// Adds a match.
    pub fn push(&mut self, r: &YaraMatchRow<'_>) -> Result<(), ArrowError> {
        self.id
            .get_or_insert_with(|| FixedSizeBinaryBuilder::new(16))
            .append_value(r.id)?;
        self.rule.append_value(r.rule);
        self.namespace.append_value(r.namespace);
        self.pattern.append_value(r.pattern);
        self.image_offset.append_value(r.image_offset);
        self.physical_address.append_option(r.physical_address);
        self.length.append_value(r.length);
        self.bytes += 48 + r.rule.len() + r.namespace.len() + r.pattern.len();
        Ok(())
    }

    /// Bytes of the rows so far, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The rows as a batch. `None` without rows.
    pub fn finish(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        self.bytes = 0;
        let Some(mut id) = self.id.take() else {
            return Ok(None);
        };
        batch(
            YARA_MATCHES,
            vec![
                Arc::new(id.finish()),
                Arc::new(self.rule.finish()),
                Arc::new(self.namespace.finish()),
                Arc::new(self.pattern.finish()),
                Arc::new(self.image_offset.finish()),
                Arc::new(self.physical_address.finish()),
                Arc::new(self.length.finish()),
            ],
        )
    }
}
