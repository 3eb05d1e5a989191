//! The command line.

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Parser, Subcommand, ValueEnum};
use ramsift_layers::Severity;
use ramsift_layers::convert::Target;
use ramsift_layers::source::name_of;
use std::path::PathBuf;
use std::str::FromStr;

/// Takes names of files that are no UTF-8 too.
fn any_name() -> impl TypedValueParser<Value = String> {
    OsStringValueParser::new().map(|name| name_of(&name))
}

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
    /// A page file of the captured system, as PATH or s3:// URL, or NUMBER=PATH where it is not the first; may be repeated.
    /// Without it those are taken that lie beside the capture (pagefile.sys, IMAGE.pagefile.sys, pagefile_1.sys).
    #[arg(long = "pagefile", global = true, value_name = "[N=]PATH")]
    pub(crate) page_files: Vec<String>,
    /// Listen for other machines without TLS or without knowing who calls, and send tokens over plain HTTP: where everyone
    /// in the network may do everything.
    #[arg(long, global = true)]
    pub(crate) insecure: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Scan captures in this process and show what was found.
    #[command(
        after_help = "Examples:\n  ramsift scan image.mem --rules rules/ --out results/\n  ramsift scan captures/ s3://bucket/prefix/ --clamd 127.0.0.1:3310 --fail-on high"
    )]
    Scan(ScanArgs),
    /// Say what captures are, before anything is queued: format, memory, gaps, system, what can be analysed.
    #[command(
        after_help = "Examples:\n  ramsift inspect image.mem\n  ramsift inspect s3://captures/incident-7/ --format jsonl"
    )]
    Inspect(InspectArgs),
    /// Write the physical memory of a capture in another format.
    #[command(
        after_help = "Examples:\n  ramsift convert image.avml --to raw -o image.raw\n  ramsift convert s3://captures/web01.kdump --to lime -o s3://captures/web01.lime"
    )]
    Convert(ConvertArgs),
    /// Make a small capture with planted evidence, scan it, show the results.
    #[command(after_help = "Examples:\n  ramsift demo\n  ramsift demo --out /tmp/demo --size 256")]
    Demo(DemoArgs),
    /// Run the coordinator service.
    #[command(
        after_help = "Examples:\n  ramsift coordinator --config /etc/ramsift.toml\n  ramsift coordinator --set coordinator.listen=0.0.0.0:7070"
    )]
    Coordinator,
    /// Run a chunk worker.
    #[command(
        after_help = "Examples:\n  ramsift chunk-worker --config /etc/ramsift.toml\n  ramsift chunk-worker --set worker.slots=8"
    )]
    ChunkWorker,
    /// Run a structured worker.
    #[command(
        after_help = "Examples:\n  ramsift structured-worker --config /etc/ramsift.toml\n  ramsift structured-worker --set worker.view_slots=2"
    )]
    StructuredWorker,
    /// Run the aggregator service.
    #[command(
        after_help = "Examples:\n  ramsift aggregator --config /etc/ramsift.toml\n  ramsift aggregator --set aggregator.spill=/scratch"
    )]
    Aggregator,
    /// Hand captures in S3 to the coordinator.
    #[command(
        after_help = "Examples:\n  ramsift submit s3://captures/web01.mem --rules rules/ --wait\n  ramsift submit s3://captures/incident-7/ --priority 2 --case 2026-017"
    )]
    Submit(SubmitArgs),
    /// List jobs.
    #[command(after_help = "Examples:\n  ramsift jobs\n  ramsift --store results jobs")]
    Jobs,
    /// Show where a job stands.
    #[command(
        after_help = "Examples:\n  ramsift status 001764000000-1a2b3c4d\n  ramsift --store results status web01.mem"
    )]
    Status {
        /// The job.
        job: String,
    },
    /// Follow a job until it ends.
    #[command(
        after_help = "Examples:\n  ramsift watch 001764000000-1a2b3c4d\n  ramsift watch 001764000000-1a2b3c4d && ramsift results 001764000000-1a2b3c4d"
    )]
    Watch {
        /// The job.
        job: String,
    },
    /// End a job; what is settled stays in the store.
    #[command(
        after_help = "Examples:\n  ramsift cancel 001764000000-1a2b3c4d\n  ramsift cancel 001764000000-1a2b3c4d --reason \"wrong capture\""
    )]
    Cancel {
        /// The job.
        job: String,
        /// Why.
        #[arg(long, default_value = "cancelled by the user")]
        reason: String,
    },
    /// Run a job again that failed or was cancelled; what it had settled stays.
    #[command(
        after_help = "Examples:\n  ramsift retry 001764000000-1a2b3c4d\n  ramsift retry 001764000000-1a2b3c4d && ramsift watch 001764000000-1a2b3c4d"
    )]
    Retry {
        /// The job.
        job: String,
    },
    /// Show the findings of a job, loudest first.
    #[command(
        after_help = "Examples:\n  ramsift --store results results web01.mem --severity high\n  ramsift --store results results --all --kind domain"
    )]
    Results(ResultsArgs),
    /// Run SQL over the tables of one job or of many.
    #[command(
        after_help = "Examples:\n  ramsift query \"SELECT host, count(*) FROM events GROUP BY host\"\n  ramsift query \"SELECT value, fields->>'host' FROM findings WHERE physical_address >= 0x100000\" --format csv"
    )]
    Query(QueryArgs),
    /// Build one OS-aware view of a capture, or show that of a job.
    #[command(
        after_help = "Examples:\n  ramsift view pslist image.mem --where \"uid = 0\" --sort -pid\n  ramsift view linux/sockstat web01.mem-083e2862b5a4 --pid 812 --format jsonl"
    )]
    View(ViewArgs),
    /// List a directory as the captured machine had it in memory.
    #[command(
        after_help = "Examples:\n  ramsift ls image.mem:/var/log\n  ramsift ls image.mem:/app --container web -R"
    )]
    Ls(LsArgs),
    /// Print a file of the page cache.
    #[command(
        after_help = "Examples:\n  ramsift cat image.mem:/var/log/auth.log\n  ramsift cat web01.mem-083e2862b5a4:/etc/passwd --evidence /mnt/copy/web01.mem"
    )]
    Cat(CatArgs),
    /// Write every file of the page cache into a folder.
    #[command(
        after_help = "Examples:\n  ramsift recover image.mem:/var/log recovered/\n  ramsift recover win.dmp:/C:/Users recovered/\n  ramsift recover image.mem dumps/ --view linux/procdump --pid 812"
    )]
    Recover(RecoverArgs),
    /// Say whose memory physical addresses are in.
    #[command(
        after_help = "Examples:\n  ramsift owner image.mem 0x12a7001\n  ramsift owner web01.mem-083e2862b5a4 0x12a7001 19623936"
    )]
    Owner(OwnerArgs),
    /// Show one page about a job: machine, times, users, addresses, what is loudest, where to look next.
    #[command(
        after_help = "Examples:\n  ramsift --store results overview\n  ramsift --store results overview web01.mem"
    )]
    Overview(OverviewArgs),
    /// Show everything about one process on one page.
    #[command(
        after_help = "Examples:\n  ramsift process image.mem 812\n  ramsift --store results process web01.mem 812"
    )]
    Process(ProcessArgs),
    /// Look for text, bytes or a regular expression in the image and in processes.
    #[command(
        after_help = "Examples:\n  ramsift grep password image.mem\n  ramsift grep -e \"https?://[a-z.]+/gate\" web01.mem-083e2862b5a4 --pid 812"
    )]
    Grep(GrepArgs),
    /// Write the memory of processes: of Linux as ELF cores, of Windows as minidumps.
    #[command(
        after_help = "Examples:\n  ramsift procdump image.mem 812\n  ramsift procdump web01.mem-083e2862b5a4 812 900 --to dumps/"
    )]
    Procdump(ProcdumpArgs),
    /// Show what was typed into shells.
    #[command(
        after_help = "Examples:\n  ramsift history image.mem\n  ramsift --store results history web01.mem --format jsonl"
    )]
    History(ShortArgs),
    /// Show who logged in, and who failed to.
    #[command(
        after_help = "Examples:\n  ramsift logins image.mem\n  ramsift --store results logins web01.mem --columns time,user,host"
    )]
    Logins(ShortArgs),
    /// Write the tables of a job in another format.
    #[command(
        after_help = "Examples:\n  ramsift export --format csv --to tables/\n  ramsift export web01.mem --format timesketch --to ."
    )]
    Export(ExportArgs),
    /// Write one recovered file out.
    #[command(
        after_help = "Examples:\n  ramsift artifact 9f86d081\n  ramsift artifact 9f86d081884c7d65 --to - | file -"
    )]
    Artifact(ArtifactArgs),
    /// Recompute every hash of a job's manifest and name what differs.
    #[command(
        after_help = "Examples:\n  ramsift verify results/\n  ramsift verify web01.mem-083e2862b5a4 --evidence /mnt/web01.mem"
    )]
    Verify(VerifyArgs),
    /// YARA rules.
    #[command(
        after_help = "Examples:\n  ramsift rules check rules/\n  ramsift rules check rules/ --all"
    )]
    Rules {
        #[command(subcommand)]
        command: RulesCommand,
    },
    /// Symbol files, for kernels that don't carry their own.
    #[command(
        after_help = "Examples:\n  ramsift symbols list\n  ramsift symbols import debian-6.1.json.xz"
    )]
    Symbols {
        #[command(subcommand)]
        command: SymbolsCommand,
    },
    /// Print the effective configuration, secrets masked.
    #[command(
        after_help = "Examples:\n  ramsift config\n  ramsift config --set scan.chunk_size=8388608"
    )]
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

/// What the virus scanner looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AvScope {
    /// Carved and recovered files.
    Files,
    /// The image, and memory of processes in the order of its addresses.
    Memory,
    /// Both.
    Both,
}

/// What is asked of a job, embedded or not.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct JobArgs {
    /// YARA rules: files, folders, compiled sets; may be repeated.
    #[arg(long, value_name = "PATH")]
    pub(crate) rules: Vec<PathBuf>,
    /// An external variable of rules; may be repeated. Numbers, true and false are what they look like.
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) define: Vec<String>,
    /// Which matches of YARA rules that fired over the image are told: the first ones with each finding, or all, in a
    /// table of their own (yara_matches).
    #[arg(long, value_parser = ["listed", "all"], default_value = "listed")]
    pub(crate) matches: String,
    /// Run one of the two analyses only.
    #[arg(long, value_enum)]
    pub(crate) only: Option<Only>,
    /// Zone of log lines that name none: UTC, +02:00, Europe/Berlin.
    #[arg(long)]
    pub(crate) timezone: Option<String>,
    /// Carvers to run; default all.
    #[arg(long, value_delimiter = ',')]
    pub(crate) carvers: Vec<String>,
    /// What clamd looks at, where it is asked: it reaches about 100 MB of memory per CPU second.
    #[arg(long, value_enum, default_value_t = AvScope::Both)]
    pub(crate) av: AvScope,
    /// Artifacts to copy into the results although the capture has them, so that they outlive it: kinds with commas
    /// between them, `all`, or `none`; default: artifacts.copy of the configuration.
    #[arg(long, value_name = "KINDS")]
    pub(crate) copy_artifacts: Option<String>,
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
    #[arg(required = true, value_name = "IMAGE", value_parser = any_name())]
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

/// `ramsift inspect`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// Captures: files, folders, s3:// URLs or prefixes.
    #[arg(required = true, value_name = "IMAGE", value_parser = any_name())]
    pub(crate) images: Vec<String>,
    /// Take the time that it takes: open the kernels of objects, and go over captures that pack their memory.
    #[arg(long)]
    pub(crate) deep: bool,
    /// MB of memory per second that a scan is taken to do, for the estimated time; 300 for each chunk slot of this machine if not
    /// given: carvers without rules.
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rate: Option<u64>,
    #[command(flatten)]
    pub(crate) how: Format,
}

/// `ramsift convert`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ConvertArgs {
    /// The capture: a file or an s3:// URL.
    #[arg(value_parser = any_name())]
    pub(crate) image: String,
    /// The format.
    #[arg(long, value_parser = Target::from_str, value_name = "raw|lime|elf-core|avml|kdump")]
    pub(crate) to: Target,
    /// File or s3:// URL to write; it must not exist.
    #[arg(short, long, value_name = "FILE", value_parser = any_name())]
    pub(crate) output: String,
    /// Don't read what was written to compare it.
    #[arg(long)]
    pub(crate) no_verify: bool,
}

/// `ramsift demo`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Folder for the capture and its results.
    #[arg(long, default_value = "ramsift-demo")]
    pub(crate) out: PathBuf,
    /// Size of the capture in MiB; 64 at least, which the machine in it has.
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
    /// Have the workers' clamd look at what --av says.
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

/// How rows are printed, and which columns.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Format {
    /// How to print.
    #[arg(long, value_enum, default_value_t = Rows::Table)]
    pub(crate) format: Rows,
    /// Show all columns and whole cells, however wide the terminal is.
    #[arg(long)]
    pub(crate) wide: bool,
    /// Only these columns, in this order.
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    pub(crate) columns: Vec<String>,
    /// CSV with cells as they are, also such that a spreadsheet would run.
    #[arg(long)]
    pub(crate) raw_csv: bool,
}

/// Where the capture of a job is now.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct EvidenceArgs {
    /// The capture of the job, where it was moved or copied; it is checked by its hash.
    #[arg(long, value_name = "PATH", value_parser = any_name())]
    pub(crate) evidence: Option<String>,
}

/// As whom files are looked at: mount namespaces differ in what lies where.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct AsArgs {
    /// As the process with this number sees them.
    #[arg(long, value_name = "PID")]
    pub(crate) pid: Option<u32>,
    /// As the processes of this mount namespace see them (its inode number).
    #[arg(long, value_name = "NUMBER", conflicts_with = "pid")]
    pub(crate) namespace: Option<u64>,
    /// As the container with this name, or an id that begins so, sees them.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["pid", "namespace"])]
    pub(crate) container: Option<String>,
}

/// `ramsift results`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ResultsArgs {
    /// The job; may be left out when the store has only one.
    pub(crate) job: Option<String>,
    /// Over all captures of the store: in how many of them a value is, and the rarest first.
    #[arg(long, conflicts_with_all = ["job", "each", "since", "until"])]
    pub(crate) all: bool,
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
    #[command(flatten)]
    pub(crate) how: Format,
}

/// `ramsift view`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ViewArgs {
    /// The view: linux/pslist, or pslist.
    pub(crate) name: Option<String>,
    /// The capture: a file, an s3:// URL, or a job.
    #[arg(value_parser = any_name())]
    pub(crate) image: Option<String>,
    /// List the views and their columns.
    #[arg(long)]
    pub(crate) list: bool,
    /// Only rows of these processes.
    #[arg(long, value_delimiter = ',', value_name = "PID,…")]
    pub(crate) pid: Vec<u32>,
    /// Only rows for which this SQL condition holds: "uid = 0 AND comm LIKE 'ss%'".
    #[arg(long = "where", value_name = "CONDITION")]
    pub(crate) condition: Option<String>,
    /// Sort by this column; with - in front, the greatest first.
    #[arg(long, value_name = "[-]COLUMN", allow_hyphen_values = true)]
    pub(crate) sort: Option<String>,
    /// Rows at most; 0: all.
    #[arg(long, default_value_t = 0)]
    pub(crate) limit: usize,
    #[command(flatten)]
    pub(crate) place: EvidenceArgs,
    #[command(flatten)]
    pub(crate) how: Format,
}

/// `ramsift ls`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LsArgs {
    /// The capture (a file, an s3:// URL, or a job) and a path: image.mem:/var/log.
    #[arg(value_parser = any_name())]
    pub(crate) target: String,
    /// Everything below it too.
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
    #[command(flatten)]
    pub(crate) as_whom: AsArgs,
    #[command(flatten)]
    pub(crate) place: EvidenceArgs,
}

/// `ramsift cat`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CatArgs {
    /// The capture (a file, an s3:// URL, or a job) and a path: image.mem:/etc/passwd.
    #[arg(value_parser = any_name())]
    pub(crate) target: String,
    #[command(flatten)]
    pub(crate) as_whom: AsArgs,
    #[command(flatten)]
    pub(crate) place: EvidenceArgs,
}

/// `ramsift recover`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RecoverArgs {
    /// The capture (a file, an s3:// URL, or a job), and a path below which files are wanted.
    #[arg(value_parser = any_name())]
    pub(crate) target: String,
    /// The folder.
    pub(crate) dir: PathBuf,
    /// What to recover: a view that gives content, as procdump or module_extract do; without it the files that are in
    /// memory.
    #[arg(long, value_name = "VIEW")]
    pub(crate) view: Option<String>,
    /// Only of these processes, for views of processes.
    #[arg(long, value_delimiter = ',', value_name = "PID,…")]
    pub(crate) pid: Vec<u32>,
    #[command(flatten)]
    pub(crate) place: EvidenceArgs,
}

/// `ramsift procdump`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ProcdumpArgs {
    /// The capture: a file, an s3:// URL, or a job.
    #[arg(value_parser = any_name())]
    pub(crate) image: String,
    /// The processes.
    #[arg(required = true)]
    pub(crate) pid: Vec<u32>,
    /// Folder for the files.
    #[arg(long, default_value = ".")]
    pub(crate) to: PathBuf,
    #[command(flatten)]
    pub(crate) place: EvidenceArgs,
}

/// `ramsift process`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ProcessArgs {
    /// The capture: a file, an s3:// URL, or a job.
    #[arg(value_parser = any_name())]
    pub(crate) image: String,
    /// The process.
    pub(crate) pid: u32,
    #[command(flatten)]
    pub(crate) place: EvidenceArgs,
}

/// `ramsift overview`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct OverviewArgs {
    /// The job; may be left out when the store has only one.
    pub(crate) job: Option<String>,
}

/// `ramsift grep`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct GrepArgs {
    /// Text; with --regex a regular expression, with --hex bytes in hexadecimal.
    pub(crate) pattern: String,
    /// The capture: a file, an s3:// URL, or a job.
    #[arg(value_parser = any_name())]
    pub(crate) image: String,
    /// The pattern is a regular expression over bytes.
    #[arg(long, short = 'e')]
    pub(crate) regex: bool,
    /// The pattern is bytes in hexadecimal: 4d5a9000.
    #[arg(long, conflicts_with = "regex")]
    pub(crate) hex: bool,
    /// Upper and lower case are the same.
    #[arg(long, short = 'i')]
    pub(crate) ignore_case: bool,
    /// Not in UTF-16, only as bytes.
    #[arg(long)]
    pub(crate) no_utf16: bool,
    /// Only in the memory of these processes, in the order of their addresses.
    #[arg(long, value_delimiter = ',', value_name = "PID,…")]
    pub(crate) pid: Vec<u32>,
    /// Only in the image, not in processes besides.
    #[arg(long, conflicts_with = "pid")]
    pub(crate) image_only: bool,
    /// Bytes shown before and after a hit.
    #[arg(long, default_value_t = 32)]
    pub(crate) context: usize,
    /// Hits at most; 0: all.
    #[arg(long, default_value_t = 1000)]
    pub(crate) limit: usize,
    #[command(flatten)]
    pub(crate) how: Format,
    #[command(flatten)]
    pub(crate) place: EvidenceArgs,
}

/// `ramsift history` and `ramsift logins`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ShortArgs {
    /// The capture: a file, an s3:// URL, or a job.
    #[arg(value_parser = any_name())]
    pub(crate) image: String,
    /// Rows at most; 0: all.
    #[arg(long, default_value_t = 0)]
    pub(crate) limit: usize,
    #[command(flatten)]
    pub(crate) how: Format,
    #[command(flatten)]
    pub(crate) place: EvidenceArgs,
}

/// `ramsift owner`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct OwnerArgs {
    /// The capture: a file, an s3:// URL, or a job.
    #[arg(value_parser = any_name())]
    pub(crate) image: String,
    /// Physical addresses: 0x1a2b, or decimal.
    #[arg(required = true)]
    pub(crate) address: Vec<String>,
    #[command(flatten)]
    pub(crate) place: EvidenceArgs,
}

/// `ramsift query`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct QueryArgs {
    /// A SELECT statement over findings, groups, events, artifacts, coverage, captures, system, frames, views, and one
    /// table a view (linux_pslist); SHOW TABLES names them all.
    pub(crate) sql: String,
    /// Jobs whose tables are read together; default all in the store.
    #[arg(long)]
    pub(crate) job: Vec<String>,
    #[command(flatten)]
    pub(crate) how: Format,
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
    /// CSV with cells as they are, also such that a spreadsheet would run.
    #[arg(long)]
    pub(crate) raw_csv: bool,
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
    /// Where the capture is now, if it has moved: most artifacts are read from it.
    #[arg(long, value_name = "PATH", value_parser = any_name())]
    pub(crate) evidence: Option<String>,
}

/// `ramsift verify`
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// A job, or a folder with results.
    pub(crate) job: String,
    /// The evidence, to be hashed again.
    #[arg(long, value_name = "IMAGE", value_parser = any_name())]
    pub(crate) evidence: Option<String>,
}

/// `ramsift rules`
#[derive(Debug, Subcommand)]
pub(crate) enum RulesCommand {
    /// Compile rules and say of each where it can run, and why.
    #[command(
        after_help = "Examples:\n  ramsift rules check rules/\n  ramsift rules check a.yar b.yar --all"
    )]
    Check {
        /// Files, folders, compiled sets.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// An external variable of rules; may be repeated.
        #[arg(long, value_name = "NAME=VALUE")]
        define: Vec<String>,
        /// One line per rule instead of sums.
        #[arg(long)]
        all: bool,
    },
    /// Compile rules into one file, which `scan --rules` and `submit --rules` take.
    #[command(
        after_help = "Examples:\n  ramsift rules compile rules/ -o all.rules\n  ramsift rules compile a.yar --define site=hq -o a.rules"
    )]
    Compile {
        /// Files and folders.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// The file to write.
        #[arg(short, long, value_name = "SET")]
        output: PathBuf,
        /// An external variable of rules; may be repeated.
        #[arg(long, value_name = "NAME=VALUE")]
        define: Vec<String>,
    },
}

/// `ramsift symbols`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum SymbolsCommand {
    /// List the files and the kernels that they are for.
    #[command(
        after_help = "Examples:\n  ramsift symbols list\n  ramsift --store s3://bucket/results symbols list"
    )]
    List,
    /// Check ISF files (.json, .json.xz) and keep them.
    #[command(
        after_help = "Examples:\n  ramsift symbols import debian-6.1.json.xz\n  ramsift symbols import isf/*.json.xz"
    )]
    Import {
        /// The files.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Make an ISF from the debug information of a vmlinux, and keep it.
    #[command(
        after_help = "Examples:\n  ramsift symbols build vmlinux-6.1.0-18-amd64\n  ramsift symbols build vmlinux --out vmlinux.json.xz"
    )]
    Build {
        /// The vmlinux, or the file of a debug package that has its debug information.
        vmlinux: PathBuf,
        /// Write it here instead.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Make a table of layouts of Windows kernels, as the program carries one, from ISF files or files of facts.
    #[command(
        after_help = "Examples:\n  ramsift symbols pack windows/*.json.xz --out windows-x64.json.xz\n  ramsift symbols pack facts.json.xz --about \"symbol files of 2026\" --out windows-x64.json.xz"
    )]
    Pack {
        /// The files.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// The table to write.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Where the facts come from; kept in the table.
        #[arg(long, default_value = "")]
        about: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn check(c: &clap::Command, path: &str) {
        let deeper: Vec<_> = c
            .get_subcommands()
            .filter(|s| s.get_name() != "help")
            .collect();
        let examples = c
            .get_after_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        let lines = examples
            .lines()
            .filter(|l| l.starts_with("  ramsift "))
            .count();
        assert!(lines >= 2 || path.is_empty(), "{path}: {lines} examples");
        for l in examples.lines().filter(|l| l.starts_with("  ramsift ")) {
            assert!(l.contains(c.get_name()), "{path}: {l}");
        }
        for s in deeper {
            check(s, &format!("{path} {}", s.get_name()));
        }
    }

    #[test]
    fn every_help_ends_with_two_examples() {
        check(&Args::command(), "");
    }
}
