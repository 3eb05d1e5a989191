//! Well-known attack strings in web logs: what a request asks for and says of itself, decoded as a server would, against
//! strings that no honest client sends.
//!
//! Sources: OWASP Core Rule Set (the families of rules 913 scanners, 930 local file inclusion, 932 remote command
//! execution, 933 PHP, 941 cross-site scripting, 942 SQL injection, 944 Java), CVE-2021-44228, CVE-2014-6271,
//! CVE-2021-41773, CVE-2017-5638.

use aho_corasick::{AhoCorasick, AhoCorasickBuilder, MatchKind};
use ramsift_carvers::api::{Event, Field};
use ramsift_layers::Severity;
use std::sync::LazyLock;

/// A family of attacks, and strings of it in lower case.
struct Family {
    name: &'static str,
    severity: Severity,
    strings: &'static [&'static str],
}

const FAMILIES: &[Family] = &[
    Family {
        name: "log4shell",
        severity: Severity::High,
        strings: &["${jndi:", "${${lower:j}", "${${::-j}", "${${env:"],
    },
    Family {
        name: "shellshock",
        severity: Severity::High,
        strings: &["() { :;}", "() { :; }", "() { _; }"],
    },
    Family {
        name: "path_traversal",
        severity: Severity::Medium,
        strings: &[
            "../../",
            "..\\..\\",
            "/etc/passwd",
            "/etc/shadow",
            "/proc/self/",
            "win.ini",
            "boot.ini",
            "php://filter",
            "php://input",
            "file:///etc/",
        ],
    },
    Family {
        name: "command_injection",
        severity: Severity::High,
        strings: &[
            ";wget ",
            "|wget ",
            ";curl ",
            "|curl ",
            "$(wget",
            "$(curl",
            "`wget",
            "`curl",
            ";id;",
            "|id|",
            ";cat /",
            "|cat /",
            "/bin/sh",
            "/bin/bash",
            "/dev/tcp/",
            "cmd.exe",
            "powershell -",
            "nc -e",
            "&&wget",
            "&& wget",
            "&&curl",
            "&& curl",
            "?cmd=",
            "&cmd=",
            "?exec=",
            "&exec=",
        ],
    },
    Family {
        name: "code_injection",
        severity: Severity::High,
        strings: &[
            "<?php",
            "eval(",
            "base64_decode(",
            "phpinfo(",
            "system(",
            "passthru(",
            "shell_exec(",
            "call_user_func_array",
            "allow_url_include",
            "#_memberaccess",
            "@java.lang.runtime",
            "getruntime().exec",
            "class.module.classloader",
            "{{7*7}}",
            "__import__(",
        ],
    },
    Family {
        name: "sql_injection",
        severity: Severity::Medium,
        strings: &[
            "union select",
            "union all select",
            "union+select",
            "' or '1'='1",
            "' or 1=1",
            "\" or \"1\"=\"1",
            "or 1=1--",
            "information_schema.",
            "sleep(",
            "benchmark(",
            "waitfor delay",
            "xp_cmdshell",
            "extractvalue(",
            "updatexml(",
            "into outfile",
            "load_file(",
            "'; drop table",
        ],
    },
    Family {
        name: "cross_site_scripting",
        severity: Severity::Low,
        strings: &[
            "<script",
            "javascript:alert",
            "onerror=",
            "onload=alert",
            "document.cookie",
        ],
    },
    Family {
        name: "scanner",
        severity: Severity::Low,
        strings: &[
            "sqlmap/",
            "nikto",
            "nmap scripting engine",
            "masscan/",
            "zgrab/",
            "nuclei",
            "wpscan",
            "dirbuster",
            "gobuster/",
            "acunetix",
            "nessus",
            "openvas",
            "feroxbuster/",
            "hydra)",
        ],
    },
];

/// All strings, and the family of each.
static SEARCH: LazyLock<Option<(AhoCorasick, Vec<usize>)>> = LazyLock::new(|| {
    let of = |(n, f): (usize, &'static Family)| f.strings.iter().map(move |s| (n, *s));
    let (families, strings): (Vec<usize>, Vec<&str>) =
        FAMILIES.iter().enumerate().flat_map(of).unzip();
    let built = AhoCorasickBuilder::new()
        .match_kind(MatchKind::LeftmostFirst)
        .build(strings);
    Some((built.ok()?, families))
});

/// What a request is, where it is an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attack {
    /// `sql_injection`.
    pub(crate) family: &'static str,
    pub(crate) severity: Severity,
    /// The string that tells.
    pub(crate) string: &'static str,
    /// The column that has it.
    pub(crate) field: &'static str,
}

/// A text in lower case, decoded twice as attackers write it: `%2e%2e%252f` is `../`.
fn decoded(text: &str) -> Vec<u8> {
    let once = |b: &[u8]| {
        let mut out = Vec::with_capacity(b.len());
        let mut at = 0;
        while at < b.len() {
            let hex = |c: u8| {
                char::from(c)
                    .to_digit(16)
                    .and_then(|d| u8::try_from(d).ok())
            };
            match b[at..] {
                [b'%', h, l, ..] if hex(h).is_some() && hex(l).is_some() => {
                    out.push(hex(h).unwrap_or(0) << 4 | hex(l).unwrap_or(0));
                    at += 3;
                }
                _ => {
                    out.push(b[at]);
                    at += 1;
                }
            }
        }
        out
    };
    let mut out = once(&once(text.as_bytes()));
    out.make_ascii_lowercase();
    // Form data writes blanks as plus signs.
    out.iter_mut()
        .filter(|b| **b == b'+')
        .for_each(|b| *b = b' ');
    out
}

/// What a line of a web log is, where it is an attack: the loudest family of its columns.
pub(crate) fn of(e: &Event<'_>) -> Option<Attack> {
    if e.kind != "access" {
        return None;
    }
    let (search, families) = SEARCH.as_ref()?;
    let mut out: Option<Attack> = None;
    for (field, value) in e.fields {
        let Field::Str(text) = value else { continue };
        if !matches!(*field, "path" | "referrer" | "agent" | "user") {
            continue;
        }
        for m in search.find_iter(&decoded(text)) {
            let family = families
                .get(m.pattern().as_usize())
                .and_then(|f| FAMILIES.get(*f))?;
            let string = family
                .strings
                .iter()
                .find(|s| s.len() == m.len() && decoded(text).get(m.range()) == Some(s.as_bytes()));
            // A scanner names itself in the agent; its name in a path is a page about it.
            if family.name == "scanner" && *field != "agent" {
                continue;
            }
            let found = Attack {
                family: family.name,
                severity: family.severity,
                string: string.copied().unwrap_or(""),
                field,
            };
            if out.is_none_or(|o| found.severity > o.severity) {
                out = Some(found);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramsift_carvers::api::Encoding;
    use ramsift_layers::ImageOffset;

    fn family(kind: &'static str, fields: &[(&'static str, Field<'_>)]) -> Option<&'static str> {
        let e = Event {
            carver: "log",
            kind,
            offset: ImageOffset(0),
            len: 1,
            time: None,
            inferred_time: None,
            inferred_from: None,
            raw_time: "",
            time_kind: "logged",
            host: None,
            program: None,
            pid: None,
            message: "",
            encoding: Encoding::Utf8,
            fields,
        };
        of(&e).map(|a| a.family)
    }

    #[test]
    fn attacks_are_told_by_their_family() {
        let path = |p| {
            family(
                "access",
                &[("method", Field::Str("GET")), ("path", Field::Str(p))],
            )
        };
        for (p, want) in [
            ("/?x=${jndi:ldap://a/b}", "log4shell"),
            ("/cgi-bin/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "path_traversal"),
            ("/a?f=..%252f..%252fx", "path_traversal"),
            ("/item?id=1'+UNION+SELECT+1,2--", "sql_injection"),
            ("/upload.php?cmd=id", "command_injection"),
            ("/s?q=%3Cscript%3E1%3C/script%3E", "cross_site_scripting"),
        ] {
            assert_eq!(path(p), Some(want), "{p}");
        }
        for honest in [
            "/",
            "/index.php?id=7",
            "/docs/sqlmap-guide.html",
            "/search?q=select+a+union",
            "/static/../a.css",
            "/blog/c%2B%2B",
        ] {
            assert_eq!(path(honest), None, "{honest}");
        }
        let agent = |a| {
            family(
                "access",
                &[("path", Field::Str("/")), ("agent", Field::Str(a))],
            )
        };
        assert_eq!(
            agent("sqlmap/1.7.2#stable (https://sqlmap.org)"),
            Some("scanner")
        );
        assert_eq!(agent("() { :; }; /bin/bash -c id"), Some("shellshock"));
        assert_eq!(
            agent("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"),
            None
        );
        assert_eq!(family("json", &[("path", Field::Str("/etc/passwd"))]), None);
    }
}
