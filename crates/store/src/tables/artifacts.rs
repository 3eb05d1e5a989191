//! Rows of `artifacts`: recovered content and where it lies.

use super::name::ARTIFACTS;
use arrow::array::{
    ArrayRef, BooleanBuilder, FixedSizeBinaryBuilder, RecordBatch, StringBuilder, UInt64Builder,
};
use arrow::error::ArrowError;
use std::sync::Arc;

/// One artifact.
#[derive(Clone, Copy, Debug)]
pub struct ArtifactRow<'a> {
    /// See [`super::row_id`].
    pub id: [u8; 16],
    /// Of its content, hex.
    pub sha256: &'a str,
    /// Of its content, hex.
    pub md5: Option<&'a str>,
    /// `carver:png`.
    pub detector: &'a str,
    /// What it is.
    pub kind: &'a str,
    /// A name that the content gives.
    pub name: Option<&'a str>,
    /// Bytes.
    pub size: u64,
    /// First byte.
    pub image_offset: u64,
    /// The same as a physical address.
    pub physical_address: Option<u64>,
    /// Whether all of it is there; `None`: that can't be told.
    pub complete: Option<bool>,
    /// Why it is not whole, or why that can't be told.
    pub gap: Option<&'a str>,
    /// Key of the object that holds a copy of it, and where in that; `None`: it lies in the image.
    pub object: Option<(&'a str, u64)>,
    /// Where it lies in the image, as [`Placed`](crate::placed::Placed) writes it.
    pub extents: Option<&'a str>,
    /// Typed fields as JSON.
    pub fields: Option<&'a str>,
}

/// Collects artifacts column by column.
#[derive(Debug, Default)]
pub struct ArtifactsBuilder {
    id: Option<FixedSizeBinaryBuilder>,
    sha256: StringBuilder,
    md5: StringBuilder,
    detector: StringBuilder,
    kind: StringBuilder,
    name: StringBuilder,
    size: UInt64Builder,
    image_offset: UInt64Builder,
    physical_address: UInt64Builder,
    complete: BooleanBuilder,
    gap: StringBuilder,
    object: StringBuilder,
    object_offset: UInt64Builder,
    fields: StringBuilder,
    extents: StringBuilder,
    rows: usize,
    bytes: usize,
}

impl ArtifactsBuilder {
    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Roughly the bytes that the rows take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a row.
    pub fn push(&mut self, r: &ArtifactRow<'_>) {
        // The width is right by its type, so this can't fail.
        let _ = self
            .id
            .get_or_insert_with(|| FixedSizeBinaryBuilder::new(16))
            .append_value(r.id);
        self.sha256.append_value(r.sha256);
        self.md5.append_option(r.md5);
        self.detector.append_value(r.detector);
        self.kind.append_value(r.kind);
        self.name.append_option(r.name);
        self.size.append_value(r.size);
        self.image_offset.append_value(r.image_offset);
        self.physical_address.append_option(r.physical_address);
        self.complete.append_option(r.complete);
        self.gap.append_option(r.gap);
        self.object.append_option(r.object.map(|o| o.0));
        self.object_offset.append_option(r.object.map(|o| o.1));
        self.extents.append_option(r.extents);
        self.fields.append_option(r.fields);
        self.rows += 1;
        let texts = [r.fields, r.name, r.extents];
        self.bytes += 300 + texts.iter().flatten().map(|t| t.len()).sum::<usize>();
    }

    /// The rows as a batch; the builder is empty afterwards. `None` without rows.
    pub fn finish(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        let Some(mut id) = self.id.take() else {
            return Ok(None);
        };
        self.rows = 0;
        self.bytes = 0;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(id.finish()),
            Arc::new(self.sha256.finish()),
            Arc::new(self.md5.finish()),
            Arc::new(self.detector.finish()),
            Arc::new(self.kind.finish()),
            Arc::new(self.name.finish()),
            Arc::new(self.size.finish()),
            Arc::new(self.image_offset.finish()),
            Arc::new(self.physical_address.finish()),
            Arc::new(self.complete.finish()),
            Arc::new(self.gap.finish()),
            Arc::new(self.object.finish()),
            Arc::new(self.object_offset.finish()),
            Arc::new(self.extents.finish()),
            Arc::new(self.fields.finish()),
        ];
        let schema = super::schema(ARTIFACTS)
            .ok_or_else(|| ArrowError::SchemaError("artifacts has no schema".into()))?;
        RecordBatch::try_new(schema, columns).map(Some)
    }
}
