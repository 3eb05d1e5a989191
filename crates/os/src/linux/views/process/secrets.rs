//! Secrets in environments and on command lines, where other users or whoever reads a log can see them.
//!
//! Told by the names that they are given (`DB_PASSWORD`, `--token`) and by forms that are nothing else. What is
//! said of one never has more than its first two characters.

/// A secret that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::linux) struct Secret {
    /// What it is called.
    pub(in crate::linux) name: String,
    /// Its first characters and stars.
    pub(in crate::linux) masked: String,
}

/// A secret's first two characters; less of a short one.
fn masked(value: &str) -> String {
    let shown = if value.chars().count() > 4 { 2 } else { 0 };
    value.chars().take(shown).chain("****".chars()).collect()
}

/// Bytes of a name at most that are told.
const MAX_NAME: usize = 64;

fn secret(name: &str, value: &str) -> Option<Secret> {
    Some(Secret {
        name: name.chars().take(MAX_NAME).collect(),
        masked: masked(value),
    })
}

/// Words that end the names of secrets.
const NAMES: [&str; 14] = [
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "SECRET",
    "TOKEN",
    "APIKEY",
    "API_KEY",
    "SECRET_KEY",
    "ACCESS_KEY",
    "PRIVATE_KEY",
    "ENCRYPTION_KEY",
    "AUTH_KEY",
    "_PASS",
    "_PWD",
];

/// Whether a name is a secret's; case and the kind of dash don't matter.
fn is_name(name: &str) -> bool {
    let name = name.to_ascii_uppercase().replace(['-', '.'], "_");
    const OTHERS: [&str; 9] = [
        "NO_", "ASK_", "PROMPT", "USE_", "GET_", "SHOW_", "DISABLE", "RESET_", "MAX_",
    ];
    let own =
        NAMES.iter().any(|n| name.ends_with(n)) || matches!(name.as_str(), "PASS" | "MYSQL_PWD");
    own && !OTHERS.iter().any(|o| name.starts_with(o)) && name != "OLD_PWD"
}

/// Whether a value may be a secret and not where it lies, whether there is one, or a place for one.
fn is_value(value: &str) -> bool {
    let value = value.trim_matches(['\'', '"']);
    let place = value.starts_with(['$', '/', '@', '<', '{', '%', '*', '-', '~', '.'])
        || value.contains("***");
    const WORDS: [&str; 14] = [
        "true", "false", "yes", "no", "none", "null", "on", "off", "auto", "prompt", "env", "file",
        "stdin", "ask",
    ];
    let digits = value.bytes().all(|b| b.is_ascii_digit());
    let least = if digits { 4 } else { 3 };
    value.chars().count() >= least
        && !place
        && !WORDS.contains(&value.to_ascii_lowercase().as_str())
}

/// Whether a text is of a form that only secrets have.
fn is_form(value: &str) -> bool {
    const FORMS: [(&str, usize); 9] = [
        ("ghp_", 36),
        ("gho_", 36),
        ("ghs_", 36),
        ("github_pat_", 40),
        ("glpat-", 20),
        ("xoxb-", 20),
        ("xoxp-", 20),
        ("sk_live_", 16),
        ("-----BEGIN ", 20),
    ];
    let formed = FORMS
        .iter()
        .any(|(p, len)| value.strip_prefix(p).is_some_and(|r| r.len() >= *len));
    formed && (!value.starts_with("-----BEGIN ") || value.contains("PRIVATE KEY"))
}

/// The password of an address: `scheme://user:password@host`.
fn of_address(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("://")?;
    let authority = rest.split(['/', '?', '#', ' ']).next()?;
    let (user, _) = authority.rsplit_once('@')?;
    let (_, password) = user.split_once(':')?;
    is_value(password).then_some(password)
}

/// Whether a variable of an environment holds a secret.
pub(in crate::linux) fn in_variable(key: &str, value: &str) -> Option<Secret> {
    if (is_name(key) && is_value(value)) || is_form(value) {
        return secret(key, value);
    }
    secret(key, of_address(value)?)
}

/// The first secret among the words of a command line.
pub(in crate::linux) fn in_words(words: &[String]) -> Option<Secret> {
    let program = words
        .iter()
        .find(|w| !w.contains('='))
        .map(|w| crate::linux::command_lines::base(w))?;
    let mut before: Option<&str> = None;
    for word in words {
        let found = option(program, word, before).or_else(|| {
            let bare = word
                .strip_prefix("-D")
                .unwrap_or(word.trim_start_matches('-'));
            let (key, value) = bare.split_once('=')?;
            let plain = key
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
            (plain && is_name(key) && is_value(value))
                .then(|| secret(key, value))
                .flatten()
        });
        let found = found.or_else(|| secret("address", of_address(word)?));
        let found = found.or_else(|| is_form(word).then(|| secret("token", word)).flatten());
        if found.is_some() {
            return found;
        }
        before = Some(word);
    }
    None
}

/// A value behind an option.
fn option(program: &str, word: &str, before: Option<&str>) -> Option<Secret> {
    let client = matches!(
        program,
        "mysql" | "mysqldump" | "mysqladmin" | "mariadb" | "mariadb-dump" | "mysqlimport"
    );
    if client && let Some(value) = word.strip_prefix("-p").filter(|v| is_value(v)) {
        return secret("-p", value);
    }
    if let Some((_, value)) = word.split_once("uthorization: ")
        && let Some((_, value)) = value.split_once(' ')
        && is_value(value)
    {
        return secret("Authorization", value);
    }
    let before = before?;
    let long = before
        .strip_prefix("--")
        .is_some_and(|n| !n.contains('=') && is_name(n));
    let short = match (program, before) {
        ("sshpass", "-p") | ("redis-cli", "-a") => true,
        ("curl" | "wget", "-u" | "--user" | "--proxy-user") => {
            let (_, value) = word.split_once(':')?;
            return is_value(value).then(|| secret(before, value)).flatten();
        }
        _ => false,
    };
    ((long || short) && is_value(word))
        .then(|| secret(before, word))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_judged_by_name_and_form() {
        for (key, value, want) in [
            ("DB_PASSWORD", "S3cr3t-db", Some("S3****")),
            ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI", Some("wJ****")),
            ("github_token", "abcdef", Some("ab****")),
            ("MYSQL_PWD", "pw12", Some("****")),
            (
                "CI",
                "ghp_0123456789abcdefghijklmnopqrstuvwxyz",
                Some("gh****"),
            ),
            (
                "DATABASE_URL",
                "postgres://app:hunter2@db/app",
                Some("hu****"),
            ),
            ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE", None),
            ("PWD", "/root", None),
            ("OLDPWD", "/root/x", None),
            ("SSH_ASKPASS", "/usr/bin/ssh-askpass", None),
            ("POSTGRES_PASSWORD_FILE", "/run/secrets/pg", None),
            ("DB_PASSWORD", "", None),
            ("DB_PASSWORD", "${PW}", None),
            ("NO_TOKEN", "abcdef", None),
            ("USE_PASSWORD", "maybe", None),
            ("PROXY", "http://proxy.example.com:3128", None),
            ("PATH", "/usr/bin:/bin", None),
        ] {
            let got = in_variable(key, value).map(|s| s.masked);
            assert_eq!(got.as_deref(), want, "{key}={value}");
        }
    }

    #[test]
    fn command_lines_are_judged_by_their_options() {
        for (line, want) in [
            ("mysql -u root -pS3cr3t-db -e x", Some("-p S3****")),
            ("app --password hunter2", Some("--password hu****")),
            ("app --db-password=hunter2 x", Some("db-password hu****")),
            (
                "java -Djavax.net.ssl.keyStorePassword=hunter2",
                Some("javax.net.ssl.keyStorePassword hu****"),
            ),
            (
                "kubeadm join --token abcdef.0123456789abcdef",
                Some("--token ab****"),
            ),
            (
                "curl -u alice:hunter2 https://example.com",
                Some("-u hu****"),
            ),
            ("sshpass -p hunter2 ssh x", Some("-p hu****")),
            (
                "git clone https://bot:hunter2@example.com/x",
                Some("address hu****"),
            ),
            ("PGPASSWORD=hunter2 psql", Some("PGPASSWORD hu****")),
            ("psql --no-password app", None),
            ("app --password-file /run/x", None),
            ("app --password /run/x", None),
            ("app --token $TOKEN", None),
            ("ssh -p 2222 host", None),
            ("mysql -u root -p", None),
            ("git clone ssh://git@example.com:22/x", None),
        ] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let got = in_words(&words).map(|s| format!("{} {}", s.name, s.masked));
            assert_eq!(got.as_deref(), want, "{line}");
        }
    }
}
