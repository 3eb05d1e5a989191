//! Generates the messages and services with a Rust protobuf compiler: no protoc is needed.

const STORED: &[&str] = &[
    "Task",
    "ChunkWork",
    "VerdictWork",
    "ViewWork",
    "MemoryWork",
    "FilesWork",
    "Wishes",
    "RuleCount",
    "RuleGap",
    "SegmentPart",
    "SegmentRef",
    "ObjectRef",
    "TaskReport",
    "CommitRecord",
    "Label",
    "JobSpec",
    "JobState",
    "JobProgress",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "ramsift/v1/task.proto",
        "ramsift/v1/job.proto",
        "ramsift/v1/service.proto",
    ];
    for f in files {
        println!("cargo:rerun-if-changed={f}");
    }
    let set = protox::compile(files, ["."])?;
    let mut config = tonic_prost_build::configure().bytes(".");
    // Plans, commit records and states are stored as JSON.
    for m in STORED {
        let path = format!(".ramsift.v1.{m}");
        config = config.type_attribute(&path, "#[derive(serde::Serialize, serde::Deserialize)]");
        config = config.message_attribute(&path, "#[serde(default)]");
    }
    config.compile_fds(set)?;
    Ok(())
}
