//! The chart: linted strictly, rendered, and every manifest checked against Kubernetes' schemas.

use ramsift_tests::program::{command, run};
use ramsift_tests::servers::tools;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm")
}

fn helm(args: &[&str]) -> Output {
    let path = tools().join("bin/helm");
    assert!(
        path.exists(),
        "helm is not installed: run tests/run, which installs it"
    );
    Command::new(path).args(args).output().expect("helm starts")
}

fn render(args: &[&str]) -> String {
    let chart = chart().display().to_string();
    let out = helm(&[&["template", "r", &chart], args].concat());
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).expect("text")
}

#[test]
fn lints_strictly_and_renders_valid_manifests() {
    let chart = chart().display().to_string();
    let out = helm(&["lint", "--strict", &chart]);
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stdout)
    );
    let dir = tempfile::tempdir().expect("tempdir");
    for (name, args) in [
        ("plain", vec![]),
        (
            "all",
            vec![
                "--set",
                "secrets.s3=keys",
                "--set",
                "secrets.queueCa=authority",
                "--set",
                "otel.OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4317",
                "--set",
                "chunkWorker.clamd=clamd:3310",
            ],
        ),
    ] {
        let path = dir.path().join(format!("{name}.yaml"));
        std::fs::write(&path, render(&args)).expect("write");
        let check = "import sys, yaml, kubernetes_validate as k\n\
            n = 0\n\
            for d in yaml.safe_load_all(open(sys.argv[1])):\n\
            \tif d:\n\
            \t\tk.validate(d, '1.32', strict=True); n += 1\n\
            print(n)\n";
        let out = Command::new(tools().join("venv/bin/python"))
            .args(["-c", check])
            .arg(&path)
            .output()
            .expect("python starts");
        assert!(
            out.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        let n: u32 = String::from_utf8_lossy(&out.stdout)
            .trim()
            .parse()
            .expect("a count");
        assert!(n >= 8, "{n} manifests");
    }
}

#[test]
fn values_are_checked() {
    let chart = chart().display().to_string();
    for bad in [
        "coordinator.replicas=-1",
        "store=x",
        "config.store.url=/local",
        "chunkWorker.slot=2",
    ] {
        let out = helm(&["template", "r", &chart, "--set", bad]);
        assert!(!out.status.success(), "{bad} was taken");
    }
}

#[test]
fn the_program_takes_every_setting_that_the_chart_sets() {
    // The config map's names must be settings: unknown ones are errors.
    let (clamd, ca) = ("chunkWorker.clamd=clamd:3310", "secrets.queueCa=authority");
    let text = render(&["--set", clamd, "--set", ca]);
    assert!(text.contains("name: RAMSIFT_QUEUE_CA_FILE"), "{text}");
    let mut c = command();
    let mut n = 0;
    for line in text.lines() {
        let line = line.trim();
        if let Some((k, v)) = line
            .split_once(": ")
            .filter(|(k, _)| k.starts_with("RAMSIFT_"))
        {
            c.env(k, v.trim_matches('"'));
            n += 1;
        }
    }
    assert!(n > 8, "{n} settings");
    c.env("RAMSIFT_WORKER_GRACE_SECONDS", "25")
        .env("RAMSIFT_CLAMD_ADDRESS", "c:1")
        .env("RAMSIFT_QUEUE_CA_FILE", "/etc/ramsift/queue-ca/ca.crt");
    let r = run(c.arg("config"));
    assert_eq!(r.code, 0, "{}", r.err);
    assert!(r.out.contains("r-coordinator:7400"), "{}", r.out);
}
