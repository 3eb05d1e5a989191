//! The chart: linted strictly, rendered, and every manifest checked against Kubernetes' schemas.

use ramsift_tests::program::{command, run};
use ramsift_tests::servers::tools;
use std::collections::BTreeMap;
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
                "secrets.s3Ca=a,secrets.s3Buckets=b,secrets.s3CustomerKey=c",
                "--set",
                "otel.OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4317",
                "--set",
                "chunkWorker.clamd=clamd:3310",
            ],
        ),
        (
            "tokens",
            vec!["--set", "tls.tokens=tokens,secrets.ledgerCa=authority"],
        ),
        ("insecure", vec!["--set", "tls.insecure=true"]),
        ("cert-manager", CERT_MANAGER.to_vec()),
    ] {
        let path = dir.path().join(format!("{name}.yaml"));
        std::fs::write(&path, render(&args)).expect("write");
        let check = "import sys, yaml, kubernetes_validate as k\n\
            n = 0\n\
            for d in yaml.safe_load_all(open(sys.argv[1])):\n\
            \tif d and d['apiVersion'] != 'cert-manager.io/v1':\n\
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

/// What has cert-manager make the certificates.
const CERT_MANAGER: [&str; 2] = [
    "--set",
    "tls.certManager.enabled=true,tls.certManager.issuerRef.name=authority",
];

/// A rendered chart as JSON, one manifest each, by a reader of YAML that is not ours.
fn manifests(args: &[&str]) -> Vec<serde_json::Value> {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("chart.yaml");
    std::fs::write(&path, render(args)).expect("write");
    let read = "import sys, yaml, json\n\
        print(json.dumps([d for d in yaml.safe_load_all(open(sys.argv[1])) if d]))\n";
    let out = Command::new(tools().join("venv/bin/python"))
        .args(["-c", read])
        .arg(&path)
        .output()
        .expect("python starts");
    serde_json::from_slice(&out.stdout).expect("JSON")
}

/// Settings of a deployment's container, and the secrets that its volumes are of with the keys that it gets (all: none
/// named).
fn deployment(
    all: &[serde_json::Value],
    name: &str,
) -> (BTreeMap<String, String>, BTreeMap<String, Vec<String>>) {
    let is = |d: &&serde_json::Value| d["kind"] == "Deployment" && d["metadata"]["name"] == name;
    let pod = &all.iter().find(is).expect(name)["spec"]["template"]["spec"];
    let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
    let list = |v: &serde_json::Value| v.as_array().cloned().unwrap_or_default();
    let env = list(&pod["containers"][0]["env"]);
    let env = env.iter().map(|e| (text(&e["name"]), text(&e["value"])));
    let mounts = list(&pod["containers"][0]["volumeMounts"]);
    let secrets = list(&pod["volumes"]).into_iter().filter_map(|v| {
        let secret = v["secret"]["secretName"].as_str()?.to_owned();
        let mounted = mounts.iter().find(|m| m["name"] == v["name"]);
        assert_eq!(mounted.expect("mounted")["readOnly"], true);
        let keys = list(&v["secret"]["items"]);
        Some((secret, keys.iter().map(|i| text(&i["key"])).collect()))
    });
    (env.collect(), secrets.collect())
}

#[test]
fn every_pod_gets_what_it_shows_and_compares_and_no_more() {
    let said = |env: &BTreeMap<String, String>, what: &str| {
        let ours = env.iter().filter(|(k, _)| k.starts_with(what));
        ours.map(|(k, v)| format!("{}={v}", &k[what.len()..]))
            .collect::<Vec<_>>()
    };
    let (server, client) = ("RAMSIFT_SERVER_", "RAMSIFT_CLIENT_");
    let tls = "/etc/ramsift/tls";
    let show = [
        format!("CERT_FILE={tls}/tls.crt"),
        format!("KEY_FILE={tls}/tls.key"),
    ];
    let ask = [
        show[0].clone(),
        format!("CLIENT_CA_FILE={tls}/ca.crt"),
        show[1].clone(),
    ];
    let call = [
        format!("CA_FILE={tls}/ca.crt"),
        show[0].clone(),
        show[1].clone(),
    ];

    // Certificates, from secrets that are there or from cert-manager.
    for (args, prefix) in [(&[][..], "ramsift"), (&CERT_MANAGER[..], "r")] {
        let all = manifests(args);
        for (name, serves, calls) in [
            ("coordinator", true, true),
            ("aggregator", true, false),
            ("chunk-worker", false, true),
            ("structured-worker", false, true),
        ] {
            let (env, secrets) = deployment(&all, &format!("r-{name}"));
            assert_eq!(
                said(&env, server),
                if serves { &ask[..] } else { &[] },
                "{name}"
            );
            assert_eq!(
                said(&env, client),
                if calls { &call[..] } else { &[] },
                "{name}"
            );
            let own = if serves { name } else { "worker" };
            let wanted = BTreeMap::from([(format!("{prefix}-{own}-tls"), Vec::new())]);
            assert_eq!(secrets, wanted, "{name}");
        }
    }
    let certificates = manifests(&CERT_MANAGER);
    let of = |name: &str| {
        let is =
            |d: &&serde_json::Value| d["kind"] == "Certificate" && d["metadata"]["name"] == name;
        certificates.iter().find(is).expect(name)["spec"].clone()
    };
    for role in ["coordinator", "worker", "client"] {
        let spec = of(&format!("r-{role}"));
        assert_eq!(
            spec["uris"],
            serde_json::json!([format!("ramsift://{role}")])
        );
        assert_eq!(spec["secretName"], format!("r-{role}-tls"));
        assert!(
            spec["usages"]
                .as_array()
                .expect("usages")
                .contains(&"client auth".into())
        );
    }
    let spec = of("r-aggregator");
    assert_eq!(spec["dnsNames"][0], "r-aggregator");
    assert!(spec["uris"].is_null(), "it calls nobody");

    // Tokens: a worker's pod has no other token than its own, and no key.
    let all = manifests(&["--set", "tls.tokens=tokens"]);
    let tokens = "/etc/ramsift/tokens";
    for (name, takes, sends, keys) in [
        (
            "coordinator",
            Some("client"),
            Some("coordinator"),
            &["client", "coordinator"][..],
        ),
        (
            "aggregator",
            Some("worker"),
            None,
            &["worker", "coordinator"],
        ),
        ("chunk-worker", None, Some("worker"), &["worker"]),
        ("structured-worker", None, Some("worker"), &["worker"]),
    ] {
        let (env, secrets) = deployment(&all, &format!("r-{name}"));
        let get = |k: &str| {
            env.get(k)
                .map(String::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let taken = get("RAMSIFT_SERVER_TOKEN_FILE");
        match takes {
            Some(t) => assert!(
                taken.starts_with(&format!("{tokens}/{t}")),
                "{name}: {taken}"
            ),
            None => assert_eq!(taken, ""),
        }
        let sent = sends.map(|s| format!("{tokens}/{s}")).unwrap_or_default();
        assert_eq!(get("RAMSIFT_CLIENT_TOKEN_FILE"), sent, "{name}");
        assert_eq!(secrets["tokens"], keys, "{name}");
        if takes.is_none() {
            assert_eq!(secrets["ramsift-aggregator-tls"], ["ca.crt"], "{name}");
        }
    }

    // Neither, which the services are told to say.
    let all = manifests(&["--set", "tls.insecure=true"]);
    let (env, secrets) = deployment(&all, "r-coordinator");
    assert_eq!(said(&env, server), ["INSECURE=true"]);
    assert!(secrets.is_empty() && said(&env, client).is_empty());
}

#[test]
fn values_are_checked() {
    let chart = chart().display().to_string();
    for bad in [
        "coordinator.replicas=-1",
        "store=x",
        "config.store.url=/local",
        "chunkWorker.slot=2",
        "tls.insecure=yes",
        "tls.certManager.enabled=true",
        "tls.secrets.aggregator=",
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
    let more = ["--set", "secrets.ledgerCa=authority,tls.tokens=tokens"];
    for args in [&[][..], &more, &["--set", "tls.insecure=true"]] {
        let all = manifests(args);
        for name in [
            "coordinator",
            "aggregator",
            "chunk-worker",
            "structured-worker",
        ] {
            let (env, _) = deployment(&all, &format!("r-{name}"));
            c.envs(env.into_iter().filter(|(k, _)| k.starts_with("RAMSIFT_")));
        }
    }
    let r = run(c.arg("config"));
    assert_eq!(r.code, 0, "{}", r.err);
    assert!(r.out.contains("r-coordinator:7400"), "{}", r.out);
}
