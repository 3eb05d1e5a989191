//! Reports: how a worker hands over what an attempt found, in process or over gRPC.

use crate::tables::{accepted, from_ipc, to_ipc};
use arrow::array::RecordBatch;
use async_trait::async_trait;
use ramsift_auth::{AuthChannel, ClientSecurity, Replicas, SecurityError, describe, is_refusal};
use ramsift_mask::MaskedUrl;
use ramsift_proto::MAX_MESSAGE;
use ramsift_proto::v1::aggregator_client::AggregatorClient;
use ramsift_proto::v1::report_part::Part;
use ramsift_proto::v1::{CheckReporterRequest, ReportPart, TableBatch, TaskReport};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tonic::metadata::{MetadataKey, MetadataValue};

/// What one attempt found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Everything but the rows.
    pub header: TaskReport,
    /// Rows by table.
    pub batches: Vec<(String, RecordBatch)>,
    /// Trace context.
    pub trace: BTreeMap<String, String>,
}

impl Report {
    /// Bytes of the rows in memory.
    pub fn bytes(&self) -> usize {
        self.batches.iter().map(|(_, b)| batch_bytes(b)).sum()
    }
}

/// Bytes of a batch's own rows. The size of its buffers would count what it shares with others:
/// all arrays of a message lie in one allocation.
pub fn batch_bytes(b: &RecordBatch) -> usize {
    b.columns()
        .iter()
        .map(|c| c.to_data().get_slice_memory_size().unwrap_or(0))
        .sum()
}

/// The aggregator's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ack {
    /// The report is durable.
    Durable,
    /// The job is sealed or gone: drop the task.
    Refused(String),
}

/// The report could not be handed over; another try may do.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the aggregator at {at} did not take a report: {detail}")]
pub struct ReportError {
    /// Where.
    pub at: String,
    /// What happened.
    pub detail: String,
    /// The aggregator answers, and does not know who reports or does not let them. It is an outage that lasts until
    /// somebody mends it.
    pub refused: bool,
}

/// Takes reports.
#[async_trait]
pub trait Reporter: Send + Sync + fmt::Debug {
    /// Hands over a report; returns when it is durable.
    async fn report(&self, report: &Report) -> Result<Ack, ReportError>;

    /// Whether the aggregator answers, and would take a report from here.
    async fn check(&self) -> Result<(), ReportError>;
}

/// Reports over gRPC.
#[derive(Clone, Debug)]
pub struct RemoteReporter {
    at: MaskedUrl,
    /// Reports go to each aggregator in turn.
    aggregators: Arc<Replicas>,
}

impl RemoteReporter {
    /// Reports to `https://host:port` or `http://host:port`, which the setting `aggregator.url` names. Connects when it is
    /// first used, and again after a failure.
    pub fn new(at: &MaskedUrl, security: &ClientSecurity) -> Result<Self, SecurityError> {
        Ok(Self {
            at: at.clone(),
            aggregators: Arc::new(Replicas::new(security, "aggregator.url", at, |e| {
                e.connect_timeout(Duration::from_secs(5))
                    .http2_keep_alive_interval(Duration::from_secs(20))
            })?),
        })
    }

    /// A client of the aggregator whose turn it is.
    async fn client(&self) -> Result<(SocketAddr, AggregatorClient<AuthChannel>), ReportError> {
        let (at, channel) = self.aggregators.next().await.map_err(|e| self.error(e))?;
        let client = AggregatorClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        Ok((at, client))
    }

    fn error(&self, detail: impl fmt::Display) -> ReportError {
        ReportError {
            at: self.at.to_string(),
            detail: detail.to_string(),
            refused: false,
        }
    }

    fn failed(&self, at: SocketAddr, status: &tonic::Status) -> ReportError {
        let refused = is_refusal(status);
        if refused {
            self.aggregators.renew();
        } else {
            self.aggregators.silent(at);
        }
        ReportError {
            at: self.at.to_string(),
            detail: describe(status),
            refused,
        }
    }
}

/// Rows of one message at most, so that none comes near [`MAX_MESSAGE`].
const ROWS: usize = 16 << 10;

fn parts(report: &Report) -> Result<Vec<ReportPart>, crate::tables::SegmentError> {
    let mut out = vec![ReportPart {
        part: Some(Part::Header(report.header.clone())),
    }];
    for (table, b) in &report.batches {
        for at in (0..b.num_rows()).step_by(ROWS) {
            let slice = b.slice(at, ROWS.min(b.num_rows() - at));
            let arrow_ipc = to_ipc(&slice)?.into();
            let batch = TableBatch {
                table: table.clone(),
                arrow_ipc,
            };
            out.push(ReportPart {
                part: Some(Part::Batch(batch)),
            });
        }
    }
    Ok(out)
}

/// A report from its parts, as the aggregator receives them.
#[derive(Debug, Default)]
pub struct Assembler {
    report: Report,
    bytes: usize,
    started: bool,
}

impl Assembler {
    /// Adds a part. The header must come first.
    pub fn push(&mut self, part: ReportPart) -> Result<(), String> {
        match part.part {
            Some(Part::Header(h)) if !self.started => {
                self.report.header = h;
                self.started = true;
                Ok(())
            }
            Some(Part::Batch(b)) if self.started => {
                for batch in from_ipc(&b.arrow_ipc).map_err(|e| e.to_string())? {
                    if accepted(&b.table, &batch.schema()).is_none() {
                        return Err(format!(
                            "there is no table {:?} with the columns of these rows",
                            b.table
                        ));
                    }
                    self.bytes += batch_bytes(&batch);
                    self.report.batches.push((b.table.clone(), batch));
                }
                Ok(())
            }
            _ => Err("a report is one header, then rows".into()),
        }
    }

    /// Bytes so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The whole report.
    pub fn finish(self) -> Result<Report, String> {
        if self.started {
            Ok(self.report)
        } else {
            Err("the report was empty".into())
        }
    }
}

#[async_trait]
impl Reporter for RemoteReporter {
    async fn report(&self, report: &Report) -> Result<Ack, ReportError> {
        let parts = parts(report).map_err(|e| self.error(e))?;
        let mut request = tonic::Request::new(tokio_stream::iter(parts));
        for (k, v) in &report.trace {
            if let (Ok(k), Ok(v)) = (
                MetadataKey::from_bytes(k.as_bytes()),
                MetadataValue::try_from(v.as_str()),
            ) {
                request.metadata_mut().insert(k, v);
            }
        }
        request.set_timeout(Duration::from_secs(300));
        let (at, mut client) = self.client().await?;
        let ack = client.report(request).await;
        let ack = ack.map_err(|e| self.failed(at, &e))?;
        let ack = ack.into_inner();
        Ok(if ack.accepted {
            Ack::Durable
        } else {
            Ack::Refused(ack.reason)
        })
    }

    async fn check(&self) -> Result<(), ReportError> {
        let mut request = tonic::Request::new(CheckReporterRequest {});
        request.set_timeout(Duration::from_secs(30));
        let (at, mut client) = self.client().await?;
        let checked = client.check_reporter(request).await;
        checked.map(|_| ()).map_err(|e| self.failed(at, &e))
    }
}
