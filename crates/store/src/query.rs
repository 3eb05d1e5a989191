//! Tables through DataFusion: SQL over the finished tables of one job or of many, with bounded
//! memory.

use crate::objects::{LocalObjects, Objects, ReadShim};
use crate::tables;
use crate::{Keys, StoreError};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::datasource::MemTable;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{
    ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl,
};
use datafusion::execution::context::SessionContext;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::prelude::{DataFrame, SessionConfig};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use url::Url;

/// How much memory and which disk a query may use.
#[derive(Clone, Debug)]
pub struct QueryLimits {
    /// Bytes before sorts and joins spill.
    pub memory: usize,
    /// Folder for what is spilled.
    pub spill: PathBuf,
    /// Threads of one query.
    pub threads: usize,
}

impl Default for QueryLimits {
    fn default() -> Self {
        Self {
            memory: 256 << 20,
            spill: std::env::temp_dir(),
            threads: 2,
        }
    }
}

/// What an engine failed with: this machine's disk is told apart from what was asked of it.
pub(crate) fn fail(e: impl std::error::Error + 'static) -> StoreError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&e);
    while let Some(c) = cause {
        if let Some(io) = c.downcast_ref::<std::io::Error>()
            && io.raw_os_error().is_some()
        {
            return StoreError::Disk(io.to_string());
        }
        cause = c.source();
    }
    StoreError::Query(e.to_string())
}

/// What is wrong with what was asked.
pub(crate) fn wrong(what: impl Into<String>) -> StoreError {
    StoreError::Query(what.into())
}

/// A temporary file that can't be written or read.
pub(crate) fn on_disk(path: &std::path::Path, e: &std::io::Error) -> StoreError {
    StoreError::Disk(format!("{}: {e}", path.display()))
}

/// A session over one object store.
pub struct Tables {
    pub(crate) context: SessionContext,
    objects: Arc<dyn Objects>,
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tables({:?})", self.objects)
    }
}

const BASE: &str = "ramsift://store/";

impl Tables {
    /// A session that reads from these objects.
    pub fn new(objects: Arc<dyn Objects>, limits: &QueryLimits) -> Result<Self, StoreError> {
        let disk = DiskManagerBuilder::default()
            .with_mode(DiskManagerMode::Directories(vec![limits.spill.clone()]));
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(FairSpillPool::new(limits.memory)))
            .with_disk_manager_builder(disk)
            .build_arc()
            .map_err(fail)?;
        let threads = limits.threads.clamp(1, 4);
        let config = SessionConfig::new()
            .with_target_partitions(threads)
            .with_information_schema(true)
            .with_collect_statistics(false)
            .set_bool(
                "datafusion.execution.parquet.schema_force_view_types",
                false,
            )
            .set_usize(
                "datafusion.execution.sort_spill_reservation_bytes",
                limits.memory / 8,
            );
        let mut context = SessionContext::new_with_config_rt(config, runtime);
        crate::json::register(&mut context).map_err(fail)?;
        let base = Url::parse(BASE).map_err(fail)?;
        context.register_object_store(&base, Arc::new(ReadShim(objects.clone())));
        Ok(Self { context, objects })
    }

    /// Registers Parquet objects of one schema as a table.
    pub async fn register(
        &self,
        table: &str,
        keys: &[String],
        schema: Option<SchemaRef>,
    ) -> Result<(), StoreError> {
        let provider = self.listing(keys, schema).await?;
        self.context
            .register_table(table, Arc::new(provider))
            .map_err(fail)?;
        Ok(())
    }

    /// Parquet objects of one schema together.
    async fn listing(
        &self,
        keys: &[String],
        schema: Option<SchemaRef>,
    ) -> Result<ListingTable, StoreError> {
        let urls = keys
            .iter()
            .map(|k| ListingTableUrl::parse(format!("{BASE}{k}")).map_err(fail))
            .collect::<Result<Vec<_>, _>>()?;
        let options = ListingOptions::new(Arc::new(
            ParquetFormat::default().with_force_view_types(false),
        ))
        .with_file_extension(".parquet");
        let config = ListingTableConfig::new_with_multi_paths(urls).with_listing_options(options);
        let config = match schema {
            Some(s) => config.with_schema(s),
            None => config
                .infer_schema(&self.context.state())
                .await
                .map_err(fail)?,
        };
        ListingTable::try_new(config).map_err(fail)
    }

    /// Registers rows of a job that is not sealed as a table: `keys` are segments, `rows` others in memory. What sealing
    /// adds (capture, owners) is null.
    pub async fn register_unfinished(
        &self,
        table: &str,
        keys: &[String],
        rows: Vec<RecordBatch>,
    ) -> Result<(), StoreError> {
        use datafusion::prelude::{cast, col, lit};
        use datafusion::scalar::ScalarValue;
        let mut all: Option<DataFrame> = None;
        let mut add = |more: DataFrame| {
            all = Some(match all.take() {
                Some(frame) => frame.union(more).map_err(fail)?,
                None => more,
            });
            Ok::<(), StoreError>(())
        };
        if !keys.is_empty() {
            let segments = self.listing(keys, tables::schema(table)).await?;
            add(self.context.read_table(Arc::new(segments)).map_err(fail)?)?;
        }
        if let Some(schema) = rows.first().map(RecordBatch::schema) {
            let rows = MemTable::try_new(schema, vec![rows]).map_err(fail)?;
            add(self.context.read_table(Arc::new(rows)).map_err(fail)?)?;
        }
        let Some(frame) = all else { return Ok(()) };
        let own: SchemaRef = Arc::new(frame.schema().as_arrow().clone());
        let stamped = tables::finished_schema(table, &own);
        let columns = stamped.fields().iter().map(|f| {
            if own.field_with_name(f.name()).is_ok() {
                return col(format!("\"{}\"", f.name()));
            }
            cast(lit(ScalarValue::Null), f.data_type().clone()).alias(f.name())
        });
        let frame = frame.select(columns).map_err(fail)?;
        self.context
            .register_table(table, frame.into_view())
            .map_err(fail)?;
        Ok(())
    }

    /// Registers rows in memory as a table.
    pub fn register_batch(&self, table: &str, batch: RecordBatch) -> Result<(), StoreError> {
        let rows = MemTable::try_new(batch.schema(), vec![vec![batch]]).map_err(fail)?;
        self.context
            .register_table(table, Arc::new(rows))
            .map_err(fail)?;
        Ok(())
    }

    /// Registers the finished tables of these jobs, those of one name together. Returns the names.
    pub async fn register_jobs(&self, jobs: &[String]) -> Result<Vec<String>, StoreError> {
        let mut by_table: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for job in jobs {
            let folder = Keys::new(job).tables();
            for m in self.objects.list(&folder).await? {
                let name = m.key[folder.len()..]
                    .trim_end_matches(".parquet")
                    .to_owned();
                by_table.entry(name).or_default().push(m.key);
            }
        }
        for (name, keys) in &by_table {
            self.register(name, keys, None).await?;
        }
        let there: Vec<String> = by_table.into_keys().collect();
        if !there.is_empty() {
            self.register_empty(&there)?;
        }
        Ok(there)
    }

    /// Tables that no job has rows of are there all the same: a query of them gives no rows, not an error.
    pub fn register_empty(&self, there: &[String]) -> Result<(), StoreError> {
        let is = |table: &str| there.iter().any(|t| t == table);
        for table in tables::FINAL.iter().filter(|t| !is(t)) {
            let Some(schema) = tables::schema(table) else {
                continue;
            };
            let stamped = tables::finished_schema(table, &schema);
            self.register_batch(table, RecordBatch::new_empty(stamped))?;
        }
        if !is(tables::name::GROUPS) {
            let empty = RecordBatch::new_empty(crate::groups::groups_schema());
            self.register_batch(tables::name::GROUPS, empty)?;
        }
        Ok(())
    }

    /// Plans a statement. Only reading is allowed.
    pub async fn sql(&self, sql: &str) -> Result<DataFrame, StoreError> {
        use datafusion::prelude::SQLOptions;
        let options = SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false);
        let sql = crate::sql::with_decimal_numbers(sql);
        self.context
            .sql_with_options(&sql, options)
            .await
            .map_err(fail)
    }

    /// Runs a statement and hands over its batches as they come.
    pub async fn stream(&self, sql: &str) -> Result<SendableRecordBatchStream, StoreError> {
        self.sql(sql).await?.execute_stream().await.map_err(fail)
    }

    /// Runs a statement whose result is small.
    pub async fn collect(&self, sql: &str) -> Result<Vec<RecordBatch>, StoreError> {
        self.sql(sql).await?.collect().await.map_err(fail)
    }
}

/// A session over Parquet files in a folder of this machine (exports, tests).
pub fn local(root: &Path, limits: &QueryLimits) -> Result<Tables, StoreError> {
    Tables::new(Arc::new(LocalObjects::open_existing(root)?), limits)
}
