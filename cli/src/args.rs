//! The command line.

use clap::{Parser, Subcommand, ValueEnum};
use ramsift_layers::Severity;
use std::path::PathBuf;

/// Sifts RAM captures.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
pub(crate) struct Args {
    /// Configuration file.
    #[arg(long, global = true, env = "RAMSIFT_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// One setting, as section.key=value; may be repeated.
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Where results lie: a folder, or s3://bucket/prefix (setting store.url).
    #[arg(long, global = true, value_name = "STORE")]
    pub(crate) store: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Scan captures in this process and show what was found.
    Scan(ScanArgs),
    /// Make a small capture with planted evidence, scan it, show the results.
    Demo(DemoArgs),
    /// Run the coordinator service.
    Coordinator,
    /// Run a chunk worker.
    ChunkWorker,
    /// Run a structured worker.
    StructuredWorker,
    /// Run the aggregator service.
    Aggregator,
    /// Hand captures in S3 to the coordinator.
    Submit(SubmitArgs),
    /// List jobs.
    Jobs,
    /// Show where a job stands.
    Status {
        /// The job.
        job: String,
    },
    /// Follow a job until it ends.
    Watch {
        /// The job.
        job: String,
    },
    /// End a job; what is settled stays in the store.
    Cancel {
        /// The job.
        job: String,
        /// Why.
        #[arg(long, default_value = "cancelled by the user")]
        reason: String,
    },
    /// Show the findings of a job, loudest first.
    Results(ResultsArgs),
    /// Run SQL over the tables of one job or of many.
    Query(QueryArgs),
    /// Build one OS-aware view of a capture, without a job.
    View(ViewArgs),
    /// List a directory as the captured machine had it in memory.
    Ls(LsArgs),
    /// Print a file of the page cache.
    Cat(CatArgs),
    /// Write every file of the page cache into a folder.
    Recover(RecoverArgs),
    /// Say whose memory physical addresses are in.
    Owner(OwnerArgs),
    /// Write the tables of a job in another format.
    Export(ExportArgs),
    /// Write one recovered file out.
    Artifact(ArtifactArgs),
    /// Recompute every hash of a job's manifest and name what differs.
    Verify(VerifyArgs),
    /// YARA rules.
    Rules {
        #[command(subcommand)]
        command: RulesCommand,
    },
    /// Symbol files, for kernels that don't carry their own.
    Symbols {
        #[command(subcommand)]
        command: SymbolsCommand,
    },
    /// Print the effective configuration, secrets masked.
    Config,
}

impl Command {
    /// Whether it runs until it is told to stop.
    pub(crate) fn is_service(&self) -> bool {
        matches!(
            self,
            Self::Coordinator | Self::ChunkWorker | Self::StructuredWorker | Self::Aggregator
        )
    }

    /// Name in telemetry.
    pub(crate) fn service(&self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::ChunkWorker => "chunk-worker",
            Self::StructuredWorker => "structured-worker",
            Self::Aggregator => "aggregator",
            Self::Scan(_) | Self::Demo(_) => "scan",
            _ => "cli",
        }
    }
}

/// Which analyses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Only {
    /// OS-aware views.
    Structured,
    /// Carvers and engines.
    Unstructured,
}

/// What is asked of a job, embedded or not.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct JobArgs {
    /// YARA rules: files, folders, compiled sets; may be repeated.
    #[arg(long, value_name = "PATH")]
    pub(crate) rules: Vec<PathBuf>,
    /// Run one of the two analyses only.
    #[arg(long, value_enum)]
    pub(crate) only: Option<Only>,
    /// Zone of log lines that name none: UTC, +02:00, Europe/Berlin.
    #[arg(long)]
    pub(crate) timezone: Option<String>,
    /// Carvers to run; default all.
    #[arg(long, value_delimiter = ',')]
    pub(crate) carvers: Vec<String>,
    /// Case number or name, for the manifest.
    #[arg(long = "case")]
    pub(crate) case_name: Option<String>,
    /// Evidence number, for the manifest.
    #[arg(long)]
    pub(crate) evidence: Option<String>,
    /// Who examines it, for the manifest.
    #[arg(long)]
    pub(crate) examiner: Option<String>,
    /// Label for the manifest; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) label: Vec<String>,
    /// Also hash the evidence with SHA-256, in a pass of its own.
    #[arg(long, value_parser = ["sha256"])]
    pub(crate) hash: Option<String>,
    /// BLAKE3 or SHA-256 that the evidence must have.
    #[arg(long, value_name = "HEX")]
    pub(crate) expect_hash: Option<String>,
}

/// `ramsift scan`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ScanArgs {
    /// Captures: files, folders, s3:// URLs or prefixes.
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
    #[command(flatten)]
    pub(crate) job: JobArgs,
    /// clamd: host:port, unix:/path.
    #[arg(long, value_name = "ADDR")]
    pub(crate) clamd: Option<String>,
    /// Folder or s3:// prefix for the results.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<String>,
    /// Exit with 1 when there are findings of this severity or above.
    #[arg(long, value_name = "SEVERITY")]
    pub(crate) fail_on: Option<Severity>,
    /// Scan again although the results are there.
    #[arg(long)]
    pub(crate) fresh: bool,
}

/// `ramsift demo`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Folder for the capture and its results.
    #[arg(long, default_value = "ramsift-demo")]
    pub(crate) out: PathBuf,
    /// Size of the capture in MiB.
    #[arg(long, default_value_t = 64)]
    pub(crate) size: u64,
}

/// `ramsift submit`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SubmitArgs {
    /// Captures: s3:// URLs or prefixes.
    #[arg(required = true, value_name = "URL")]
    pub(crate) sources: Vec<String>,
    #[command(flatten)]
    pub(crate) job: JobArgs,
    /// Have carved files scanned by the workers' clamd.
    #[arg(long)]
    pub(crate) clamav: bool,
    /// From -4 to 4; each step doubles the share of the fleet.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) priority: i32,
    /// Follow the jobs until they end.
    #[arg(long)]
    pub(crate) wait: bool,
}

/// How rows are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rows {
    /// For people.
    Table,
    /// One JSON object a line.
    Jsonl,
    /// Comma-separated, with a header.
    Csv,
}

/// `ramsift results`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ResultsArgs {
    /// The job; may be left out when the store has only one.
    pub(crate) job: Option<String>,
    /// Only this kind: url, email, yara, av, ...
    #[arg(long)]
    pub(crate) kind: Option<String>,
    /// Only this YARA rule or AV signature.
    #[arg(long)]
    pub(crate) rule: Option<String>,
    /// Only this severity or above.
    #[arg(long)]
    pub(crate) severity: Option<Severity>,
    /// Only from this time on (RFC 3339 or a date); shows the timeline.
    #[arg(long)]
    pub(crate) since: Option<String>,
    /// Only before this time; shows the timeline.
    #[arg(long)]
    pub(crate) until: Option<String>,
    /// Only rows whose value or message contains this text.
    #[arg(long)]
    pub(crate) text: Option<String>,
    /// One row per finding instead of groups with counts.
    #[arg(long)]
    pub(crate) each: bool,
    /// Rows at most; 0: all.
    #[arg(long, default_value_t = 50)]
    pub(crate) limit: usize,
    /// How to print.
    #[arg(long, value_enum, default_value_t = Rows::Table)]
    pub(crate) format: Rows,
}

/// `ramsift view`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ViewArgs {
    /// The view: linux/pslist, ...
    pub(crate) name: Option<String>,
    /// The capture: a file, an s3:// URL, or a job.
    pub(crate) image: Option<String>,
    /// List the views and their columns.
    #[arg(long)]
    pub(crate) list: bool,
    /// How to print.
    #[arg(long, value_enum, default_value_t = Rows::Table)]
    pub(crate) format: Rows,
}

/// `ramsift ls`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LsArgs {
    /// The capture (a file, an s3:// URL, or a job) and a path: image.mem:/var/log.
    pub(crate) target: String,
    /// Everything below it too.
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
}

/// `ramsift cat`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CatArgs {
    /// The capture (a file, an s3:// URL, or a job) and a path: image.mem:/etc/passwd.
    pub(crate) target: String,
}

/// `ramsift recover`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RecoverArgs {
    /// The capture (a file, an s3:// URL, or a job), and a path below which files are wanted.
    pub(crate) target: String,
    /// The folder.
    pub(crate) dir: PathBuf,
}

/// `ramsift owner`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct OwnerArgs {
    /// The capture: a file, an s3:// URL, or a job.
    pub(crate) image: String,
    /// Physical addresses: 0x1a2b, or decimal.
    #[arg(required = true)]
    pub(crate) address: Vec<String>,
}

/// `ramsift query`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct QueryArgs {
    /// A SELECT statement over findings, events, artifacts, coverage, captures, system.
    pub(crate) sql: String,
    /// Jobs whose tables are read together; default all in the store.
    #[arg(long)]
    pub(crate) job: Vec<String>,
    /// How to print.
    #[arg(long, value_enum, default_value_t = Rows::Table)]
    pub(crate) format: Rows,
}

/// Formats of exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// One JSON object a line.
    Jsonl,
    /// Comma-separated, with a header.
    Csv,
    /// As stored.
    Parquet,
    /// Events as Timesketch takes them.
    Timesketch,
}

/// `ramsift export`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ExportArgs {
    /// The job.
    pub(crate) job: Option<String>,
    /// Format.
    #[arg(long, value_enum)]
    pub(crate) format: ExportFormat,
    /// Tables; default all (Timesketch: events).
    #[arg(long, value_delimiter = ',')]
    pub(crate) table: Vec<String>,
    /// Folder for the files.
    #[arg(long, default_value = ".")]
    pub(crate) to: PathBuf,
}

/// `ramsift artifact`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ArtifactArgs {
    /// SHA-256 of the content, or the first digits of it.
    pub(crate) sha256: String,
    /// The job.
    #[arg(long)]
    pub(crate) job: Option<String>,
    /// File to write; `-`: standard output; default: the first 16 digits and the kind.
    #[arg(long)]
    pub(crate) to: Option<PathBuf>,
}

/// `ramsift verify`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// A job, or a folder with results.
    pub(crate) job: String,
    /// The evidence, to be hashed again.
    #[arg(long, value_name = "IMAGE")]
    pub(crate) evidence: Option<String>,
}

/// `ramsift rules`
#[derive(Debug, Subcommand)]
pub(crate) enum RulesCommand {
    /// Compile rules and say of each where it can run, and why.
    Check {
        /// Files, folders, compiled sets.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// One line per rule instead of sums.
        #[arg(long)]
        all: bool,
    },
}

/// `ramsift symbols`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum SymbolsCommand {
    /// List the files and the kernels that they are for.
    List,
    /// Check ISF files (.json, .json.xz) and keep them.
    Import {
        /// The files.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Make an ISF from the debug information of a vmlinux, and keep it.
    Build {
        /// The vmlinux, or the file of a debug package that has its debug information.
        vmlinux: PathBuf,
        /// Write it here instead.
        #[arg(long)]
        out: Option<PathBuf>,
    },
}
