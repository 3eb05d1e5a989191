//! Files in which shells and clients keep what was typed.
//!
//! ```text
//! bash       #1700000000            readline's: a line of digits is the time of what follows
//!            apt-get update
//! tcsh       #+1700000000           the same with a plus
//! zsh        : 1700000000:0;ls -la  extended: start and duration; bytes behind 0x83 are xored with 32,
//!                                   a backslash before the newline continues a command
//! fish       - cmd: ls -la          YAML's looks; \n and \\ in it
//!              when: 1700000000
//! libedit    _HiStOrY_V2_           first line; then lines with \040 for a space
//! psql       newlines of a command are bytes of 1
//! less       .less-history-file:    then sections; of .search and .shell a line is `"text`
//! vim        :wq                    newest first; then |2,0,1700000000,,"wq"
//! ksh        81 01                  then commands with NULs behind; 82 begins the number of one
//! ```
//!
//! Sources: GNU readline `histfile.c`; tcsh `sh.hist.c`; zsh `Src/hist.c` (`readhistfile`), `Src/utils.c`
//! (`unmetafy`); fish `src/history/yaml_backend.rs`; libedit `history.c`; PostgreSQL
//! `src/bin/psql/input.c`; less `cmdbuf.c` (`read_cmdhist`); Vim `src/viminfo.c`; ksh93 `edit/history.c`;
//! Node.js `lib/internal/repl/history.js` (newest first); CPython `Lib/_pyrepl/readline.py`.

use crate::linux::cached::Piece;

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::linux) enum Format {
    /// A command a line, times before it where there are any.
    Stamped,
    Zsh,
    Fish,
    /// A command a line, of a shell.
    Shell,
    /// The same, maybe in ksh's own way.
    Korn,
    /// A line for a client of readline or libedit.
    Client,
    /// The same, newest first.
    NewestFirst,
    /// A line that ends with a backtick goes on.
    PowerShell,
    Less,
    Vim,
}

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::linux) struct Entry {
    /// Place of its first byte in the file.
    pub(in crate::linux) offset: u64,
    /// Seconds since 1970.
    pub(in crate::linux) time: Option<i64>,
    pub(in crate::linux) text: String,
    /// Whether part of it lies where nothing is in memory.
    pub(in crate::linux) cut: bool,
}

/// Bytes of a command at most.
const MAX_TEXT: usize = 64 << 10;
/// Lines of a command at most.
const MAX_LINES: usize = 1000;

/// What may stand behind the name of a file: copies that editors, shells and people make.
const COPIES: [&str; 8] = ["~", ".bak", ".old", ".orig", ".save", ".new", ".tmp", ".1"];

/// The program that writes a file of this path, and how; `None` of other files.
pub(in crate::linux) fn program(path: &str) -> Option<(&'static str, Format)> {
    let (folder, mut name) = path.rsplit_once('/')?;
    for copy in COPIES {
        name = name.strip_suffix(copy).unwrap_or(name);
    }
    // bash writes `.bash_history-01234.tmp` first, and renames it.
    let name = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let name = name.strip_suffix('-').unwrap_or(name);
    let folder = folder.rsplit('/').next().unwrap_or_default();
    use Format::*;
    Some(match (name, folder) {
        (".bash_history", _) | ("history" | "bash_history", "bash") => ("bash", Stamped),
        (".zsh_history" | ".zhistory" | ".histfile", _) => ("zsh", Zsh),
        ("history" | "zsh_history", "zsh") => ("zsh", Zsh),
        (".ash_history", _) => ("ash", Shell),
        (".sh_history", _) => ("sh", Korn),
        (".ksh_history" | ".mksh_history", _) => ("ksh", Korn),
        (".history", _) => ("tcsh", Stamped),
        ("fish_history", _) => ("fish", Fish),
        (_, "fish") if name.ends_with("_history") => ("fish", Fish),
        ("ConsoleHost_history.txt", _) => ("pwsh", PowerShell),
        (".python_history", _) => ("python", Client),
        (".mysql_history" | ".mariadb_history", _) => ("mysql", Client),
        (".psql_history", _) => ("psql", Client),
        (".sqlite_history", _) => ("sqlite3", Client),
        (".rediscli_history", _) => ("redis-cli", Client),
        (".irb_history" | ".irb-history", _) => ("irb", Client),
        (".php_history", _) => ("php", Client),
        (".gdb_history", _) => ("gdb", Client),
        (".lftp_history", _) => ("lftp", Client),
        (".dbshell", _) => ("mongo", Client),
        ("mongosh_repl_history", _) => ("mongosh", NewestFirst),
        (".node_repl_history", _) => ("node", NewestFirst),
        (".lesshst" | "lesshst", _) => ("less", Less),
        (".viminfo" | "viminfo", _) => ("vim", Vim),
        _ => return None,
    })
}

/// A line of a piece.
#[derive(Clone, Copy, Debug)]
struct Line<'p> {
    offset: u64,
    bytes: &'p [u8],
    cut: bool,
}

impl Line<'_> {
    fn text(&self) -> String {
        String::from_utf8_lossy(self.bytes.get(..MAX_TEXT).unwrap_or(self.bytes)).into_owned()
    }

    fn entry(&self, time: Option<i64>, text: String) -> Entry {
        Entry {
            offset: self.offset,
            time,
            text,
            cut: self.cut || self.bytes.len() > MAX_TEXT,
        }
    }
}

/// The lines of a piece, less NULs around them: a crash leaves those.
fn lines(piece: &Piece) -> Vec<Line<'_>> {
    let mut out = Vec::new();
    let mut at = piece.offset;
    let mut rest = piece.bytes.as_slice();
    while !rest.is_empty() {
        let end = rest.iter().position(|b| *b == b'\n');
        let (line, behind) = rest.split_at(end.unwrap_or(rest.len()));
        let nuls = line.iter().take_while(|b| **b == 0).count();
        let kept = line.get(nuls..).unwrap_or_default();
        let last = kept.iter().rposition(|b| *b != 0).map_or(0, |i| i + 1);
        let torn = at == piece.offset && piece.offset > 0 && nuls == 0;
        if last > 0 {
            out.push(Line {
                offset: at + nuls as u64,
                bytes: kept.get(..last).unwrap_or_default(),
                cut: torn || (end.is_none() && piece.goes_on),
            });
        }
        at += line.len() as u64 + 1;
        rest = behind.get(1..).unwrap_or_default();
    }
    out
}

/// What was typed, in the order of the file.
pub(in crate::linux) fn entries(format: Format, piece: &Piece) -> Vec<Entry> {
    let korn = format == Format::Korn && piece.bytes.contains(&0);
    if korn {
        return korn_shell(piece);
    }
    let lines = lines(piece);
    match format {
        Format::Stamped | Format::Shell | Format::Korn => stamped(&lines),
        Format::Zsh => zsh(&lines),
        Format::Fish => fish(&lines),
        Format::Client | Format::NewestFirst => client(&lines),
        Format::PowerShell => continued(&lines, b'`'),
        Format::Less => less(&lines),
        Format::Vim => vim(&lines),
    }
}

/// Digits as seconds.
fn seconds(digits: &[u8]) -> Option<i64> {
    if !(1..=11).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The time that a line of its own says.
fn stamp(line: &Line<'_>) -> Option<i64> {
    let digits = line.bytes.strip_prefix(b"#")?;
    seconds(digits.strip_prefix(b"+").unwrap_or(digits)).filter(|_| !line.cut)
}

/// Commands behind their times. Lines up to the next time are one command where the shell would have asked
/// for more; others were written by a shell that keeps no times.
fn stamped(lines: &[Line<'_>]) -> Vec<Entry> {
    let mut out = Vec::new();
    let mut rest = lines;
    let mut time = None;
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if let Some(t) = stamp(first) {
            time = Some(t);
            continue;
        }
        let mut entry = first.entry(time, first.text());
        if time.take().is_some() {
            let more = behind.iter().take_while(|l| stamp(l).is_none());
            let more: Vec<&Line<'_>> = more.take(MAX_LINES).collect();
            if let Some((text, used)) = completed(&entry.text, &more) {
                entry.text = text;
                entry.cut |= more.iter().take(used).any(|l| l.cut);
                rest = behind.get(used..).unwrap_or_default();
            }
        }
        out.push(entry);
    }
    out
}

/// A command of several lines and how many further ones it takes, if its first line is not all.
fn completed(first: &str, more: &[&Line<'_>]) -> Option<(String, usize)> {
    if is_whole(first) {
        return None;
    }
    let mut text = first.to_owned();
    for (i, line) in more.iter().enumerate() {
        text.push('\n');
        text.push_str(&line.text());
        if text.len() > MAX_TEXT {
            return None;
        }
        if is_whole(&text) {
            return Some((text, i + 1));
        }
    }
    None
}

/// Whether a shell would run a text and not ask for more of it: quotes closed, no backslash at the end, here
/// documents and blocks ended. Only plain forms are known.
fn is_whole(text: &str) -> bool {
    let (mut quote, mut escaped) = (None, false);
    let mut plain = String::new();
    for c in text.chars() {
        if escaped {
            escaped = false;
            continue;
        }
        match (quote, c) {
            (None | Some('"'), '\\') => escaped = true,
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"' | '`') => quote = Some(c),
            (None, c) => plain.push(c),
        }
    }
    if quote.is_some() || escaped {
        return false;
    }
    for (at, _) in text.match_indices("<<") {
        let after = text.get(at + 2..).unwrap_or_default();
        if after.starts_with('<') || text.get(..at).is_some_and(|b| b.ends_with('<')) {
            continue;
        }
        let word = after.trim_start_matches('-').trim_start();
        let end = word.find(|c: char| c.is_whitespace() || ";|&)<>".contains(c));
        let word = word.get(..end.unwrap_or(word.len())).unwrap_or_default();
        let word = word.trim_matches(|c| c == '\'' || c == '"' || c == '\\');
        let named = word.starts_with(|c: char| c.is_alphabetic() || c == '_');
        if named
            && !text
                .lines()
                .skip(1)
                .any(|l| l.trim_start_matches('\t') == word)
        {
            return false;
        }
    }
    let end = plain.trim_end();
    !end.ends_with("&&") && !end.ends_with('|') && blocks(&plain) <= 0
}

/// How many blocks of a text without quotes are open. Words that open and close them count only where a
/// command may begin.
fn blocks(plain: &str) -> i64 {
    let (mut depth, mut begins) = (0, true);
    let mut rest = plain;
    while let Some(c) = rest.chars().next() {
        let separator = |c: char| c.is_whitespace() || ";|&()".contains(c);
        if separator(c) {
            begins |= !matches!(c, ' ' | '\t');
            rest = rest.get(c.len_utf8()..).unwrap_or_default();
            continue;
        }
        let (word, behind) = rest.split_at(rest.find(separator).unwrap_or(rest.len()));
        rest = behind;
        if !begins {
            continue;
        }
        match word {
            "if" | "for" | "while" | "until" | "select" | "case" | "{" => depth += 1,
            "fi" | "done" | "esac" | "}" => depth -= 1,
            _ => {}
        }
        begins = matches!(
            word,
            "if" | "while" | "until" | "{" | "do" | "then" | "else" | "elif" | "!"
        );
    }
    depth
}

fn zsh(lines: &[Line<'_>]) -> Vec<Entry> {
    let mut out: Vec<Entry> = Vec::new();
    let mut open = false;
    for line in lines {
        let mut raw = Vec::with_capacity(line.bytes.len());
        let mut bytes = line.bytes.iter().take(MAX_TEXT);
        while let Some(b) = bytes.next() {
            match (*b, bytes.clone().next()) {
                (0x83, Some(next)) => {
                    raw.push(next ^ 32);
                    bytes.next();
                }
                (b, _) => raw.push(b),
            }
        }
        let backslashes = raw.iter().rev().take_while(|b| **b == b'\\').count();
        let goes_on = backslashes % 2 == 1;
        if goes_on {
            raw.pop();
        }
        let last = out.last_mut().filter(|_| open);
        open = goes_on;
        if let Some(last) = last {
            if last.text.len() < MAX_TEXT {
                last.text.push('\n');
                last.text.push_str(&String::from_utf8_lossy(&raw));
            }
            last.cut |= line.cut;
            continue;
        }
        let (time, text) = extended(&raw).map_or((None, raw.as_slice()), |(t, c)| (Some(t), c));
        out.push(line.entry(time, String::from_utf8_lossy(text).into_owned()));
    }
    out
}

/// `: 1700000000:0;command`.
fn extended(line: &[u8]) -> Option<(i64, &[u8])> {
    let rest = line.strip_prefix(b":")?.trim_ascii_start();
    let colon = rest.iter().position(|b| *b == b':')?;
    let time = seconds(rest.get(..colon)?)?;
    let rest = rest.get(colon + 1..)?;
    let semicolon = rest.iter().position(|b| *b == b';')?;
    seconds(rest.get(..semicolon)?)?;
    Some((time, rest.get(semicolon + 1..)?))
}

fn fish(lines: &[Line<'_>]) -> Vec<Entry> {
    let mut out: Vec<Entry> = Vec::new();
    for line in lines {
        if let Some(command) = line.bytes.strip_prefix(b"- cmd:") {
            let command = String::from_utf8_lossy(command.get(..MAX_TEXT).unwrap_or(command));
            out.push(line.entry(
                None,
                unescaped(command.strip_prefix(' ').unwrap_or(&command)),
            ));
        } else if let Some(when) = line.bytes.strip_prefix(b"  when:")
            && let Some(last) = out.last_mut()
            && !line.cut
        {
            last.time = seconds(when.trim_ascii());
        }
    }
    out
}

/// Text with `\n`, `\"` and `\\`.
fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some(c @ ('\\' | '"')) => out.push(c),
                Some(c) => out.extend(['\\', c]),
                None => out.push('\\'),
            },
            c => out.push(c),
        }
    }
    out
}

fn client(lines: &[Line<'_>]) -> Vec<Entry> {
    const LIBEDIT: &[u8] = b"_HiStOrY_V2_";
    let libedit = lines.first().is_some_and(|l| l.bytes == LIBEDIT);
    let mut out: Vec<Entry> = Vec::new();
    let mut open = false;
    for line in lines.iter().filter(|l| l.bytes != LIBEDIT) {
        let mut text = if libedit { octal(line) } else { line.text() };
        // psql's newlines.
        text = text.replace('\u{1}', "\n");
        // Python's: a line that ends with a carriage return goes on.
        let goes_on = text.ends_with('\r');
        text.truncate(text.trim_end_matches('\r').len());
        match out.last_mut().filter(|l| open && l.text.len() < MAX_TEXT) {
            Some(last) => {
                last.text.push('\n');
                last.text.push_str(&text);
                last.cut |= line.cut;
            }
            // Times of readline, where a client keeps them.
            None if stamp(line).is_some() => continue,
            None => out.push(line.entry(None, text)),
        }
        open = goes_on;
    }
    out
}

/// A line with `\040` for bytes.
fn octal(line: &Line<'_>) -> String {
    let mut out = Vec::with_capacity(line.bytes.len());
    let mut rest = line.bytes.get(..MAX_TEXT).unwrap_or(line.bytes);
    while let Some((b, behind)) = rest.split_first() {
        rest = behind;
        let digits = behind
            .get(..3)
            .filter(|d| d.iter().all(|d| (b'0'..=b'7').contains(d)));
        match (b, digits) {
            (b'\\', Some(d)) => {
                out.push(
                    d.iter()
                        .fold(0u8, |n, d| n.wrapping_mul(8).wrapping_add(d - b'0')),
                );
                rest = behind.get(3..).unwrap_or_default();
            }
            (b'\\', None) if behind.first() == Some(&b'\\') => {
                out.push(b'\\');
                rest = behind.get(1..).unwrap_or_default();
            }
            (b, _) => out.push(*b),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn continued(lines: &[Line<'_>], mark: u8) -> Vec<Entry> {
    let mut out: Vec<Entry> = Vec::new();
    let mut open = false;
    for line in lines {
        let goes_on = line.bytes.last() == Some(&mark);
        let mut text = line.text();
        text.truncate(text.trim_end_matches('\r').len());
        if goes_on {
            text.pop();
        }
        match out.last_mut().filter(|l| open && l.text.len() < MAX_TEXT) {
            Some(last) => {
                last.text.push('\n');
                last.text.push_str(&text);
                last.cut |= line.cut;
            }
            None => out.push(line.entry(None, text)),
        }
        open = goes_on;
    }
    out
}

fn less(lines: &[Line<'_>]) -> Vec<Entry> {
    let mut out = Vec::new();
    let mut before = "";
    for line in lines {
        match line.bytes {
            b".search" => before = "/",
            b".shell" => before = "!",
            [b'.', ..] => before = "",
            [b'"', ..] if !before.is_empty() => {
                let text = line.text();
                out.push(line.entry(
                    None,
                    format!("{before}{}", text.get(1..).unwrap_or_default()),
                ));
            }
            _ => {}
        }
    }
    out
}

fn vim(lines: &[Line<'_>]) -> Vec<Entry> {
    let mut out: Vec<Entry> = Vec::new();
    let mut before = None;
    for line in lines {
        let text = line.text();
        match line.bytes {
            [b'#', b' ', ..] => {
                before = if text.contains("Command Line History") {
                    Some(':')
                } else if text.contains("Search String History") {
                    Some('?')
                } else {
                    None
                };
            }
            [b'|', b'2', b',', ..] => {
                let mut fields = text.split(',').skip(2);
                let time = fields.next().and_then(|t| seconds(t.as_bytes()));
                if let Some(last) = out
                    .last_mut()
                    .filter(|l| l.time.is_none() && before.is_some())
                {
                    last.time = time.filter(|t| *t > 0 && !line.cut);
                }
            }
            [b':' | b'?', ..] if before.is_some_and(|b| text.starts_with(b)) => {
                let text = match text.strip_prefix("??").or_else(|| text.strip_prefix("?/")) {
                    Some(pattern) => format!("/{pattern}"),
                    None => text,
                };
                let text = text
                    .replace("\u{16}n", "\n")
                    .replace("\u{16}\u{16}", "\u{16}");
                out.push(line.entry(None, text));
            }
            _ => {}
        }
    }
    out
}

fn korn_shell(piece: &Piece) -> Vec<Entry> {
    let mut out = Vec::new();
    let bytes = &piece.bytes;
    let mut at = if piece.offset == 0 && bytes.starts_with(&[0x81, 1]) {
        2
    } else {
        0
    };
    let mut torn = piece.offset > 0;
    while let Some(rest) = bytes.get(at..).filter(|r| !r.is_empty()) {
        // A mark, a NUL, three bytes of a number, a NUL.
        if rest.first() == Some(&0x82) && rest.get(1) == Some(&0) {
            at += 6;
            continue;
        }
        let end = rest.iter().position(|b| *b == 0);
        let text = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
        let line = Line {
            offset: piece.offset + at as u64,
            bytes: text.trim_ascii_end(),
            cut: torn || (end.is_none() && piece.goes_on),
        };
        torn = false;
        if !line.bytes.is_empty() && line.bytes != [0x81] {
            out.push(line.entry(None, line.text()));
        }
        at += text.len() + 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(format: Format, bytes: &[u8]) -> Vec<(Option<i64>, String)> {
        let piece = Piece {
            bytes: bytes.to_vec(),
            ..Piece::default()
        };
        let all = entries(format, &piece).into_iter();
        all.map(|e| (e.time, e.text)).collect()
    }

    fn want(rows: &[(i64, &str)]) -> Vec<(Option<i64>, String)> {
        let row = |(t, c): &(i64, &str)| ((*t != 0).then_some(*t), (*c).to_owned());
        rows.iter().map(row).collect()
    }

    #[test]
    fn files_are_known_by_their_names() {
        for (path, program_name) in [
            ("/root/.bash_history", Some("bash")),
            ("/home/a/.bash_history-01234.tmp", Some("bash")),
            ("/home/a/.zsh_history.new", Some("zsh")),
            ("/home/a/.bash_history~", Some("bash")),
            ("/home/a/.local/share/fish/fish_history", Some("fish")),
            ("/home/a/.local/share/fish/work_history", Some("fish")),
            ("/home/a/.viminfo.tmp", Some("vim")),
            ("/home/a/.local/state/lesshst", Some("less")),
            ("/usr/share/doc/bash_history", None),
            ("/var/log/apt/history.log", None),
        ] {
            assert_eq!(program(path).map(|p| p.0), program_name, "{path}");
        }
    }

    #[test]
    fn times_stand_before_commands() {
        let file =
            b"old line\n#1700000000\nls -la\nno time of its own\n#1700000060\n# a comment\n#17x\n";
        let rows = [
            (0, "old line"),
            (1_700_000_000, "ls -la"),
            (0, "no time of its own"),
            (1_700_000_060, "# a comment"),
            (0, "#17x"),
        ];
        assert_eq!(typed(Format::Stamped, file), want(&rows));
        let tcsh = b"#+1700000000\nset prompt\n#+1700000001\nls\n";
        let rows = [(1_700_000_000, "set prompt"), (1_700_000_001, "ls")];
        assert_eq!(typed(Format::Stamped, tcsh), want(&rows));
    }

    #[test]
    fn commands_of_several_lines_stay_whole() {
        for command in [
            "cat <<EOF > x\nline\nEOF",
            "echo 'a\nb'",
            "for i in 1 2\ndo echo $i\ndone",
            "if true\nthen a\nelif b\nthen c\nfi",
            "make \\\n  all",
        ] {
            let file = format!("#1700000000\n{command}\nnext\n#1700000060\nlast\n");
            let rows = [
                (1_700_000_000, command),
                (0, "next"),
                (1_700_000_060, "last"),
            ];
            assert_eq!(typed(Format::Stamped, file.as_bytes()), want(&rows));
        }
        // What is never closed ends with its line.
        let file = b"#1700000000\necho 'a\nb\n#1700000060\nlast\n";
        let rows = [
            (1_700_000_000, "echo 'a"),
            (0, "b"),
            (1_700_000_060, "last"),
        ];
        assert_eq!(typed(Format::Stamped, file), want(&rows));
    }

    #[test]
    fn zsh_has_times_and_bytes_of_its_own() {
        // `é` is c3 a9: zsh writes a9 as 83 89.
        let file =
            b": 1700000000:0;echo \xc3\x83\x89\n: 1700000005:12;for i\\\ndo x\\\ndone\nplain\n";
        let rows = [
            (1_700_000_000, "echo é"),
            (1_700_000_005, "for i\ndo x\ndone"),
            (0, "plain"),
        ];
        assert_eq!(typed(Format::Zsh, file), want(&rows));
    }

    #[test]
    fn fish_is_read() {
        let file = b"- cmd: echo a\\nb \\\\ c\n  when: 1700000000\n  paths:\n    - c\n- cmd: ls\n  when: 1700000009\n";
        let rows = [(1_700_000_000, "echo a\nb \\ c"), (1_700_000_009, "ls")];
        assert_eq!(typed(Format::Fish, file), want(&rows));
    }

    #[test]
    fn clients_escape_in_their_own_ways() {
        let mysql = b"_HiStOrY_V2_\nselect\\040*\\040from\\040users;\nquit\n";
        let rows = [(0, "select * from users;"), (0, "quit")];
        assert_eq!(typed(Format::Client, mysql), want(&rows));
        let psql = b"select 1\x01from t;\n\\q\n";
        let rows = [(0, "select 1\nfrom t;"), (0, "\\q")];
        assert_eq!(typed(Format::Client, psql), want(&rows));
        let python = b"import os\ndef f():\r\n    return 1\nf()\n";
        let rows = [(0, "import os"), (0, "def f():\n    return 1"), (0, "f()")];
        assert_eq!(typed(Format::Client, python), want(&rows));
    }

    #[test]
    fn pagers_and_editors_are_read() {
        let less =
            b".less-history-file:\n.search\n\"passwd\n.shell\n\"id\n.mark\nm a 1 40 /etc/passwd\n";
        assert_eq!(
            typed(Format::Less, less),
            want(&[(0, "/passwd"), (0, "!id")])
        );
        let vim = b"# This viminfo file was generated by Vim 9.0.\n|1,4\n\n# Command Line History (newest to oldest):\n\
            :wq\n|2,0,1700000009,,\"wq\"\n:!sh\n|2,0,1700000001,,\"!sh\"\n\n# Search String History (newest to oldest):\n\
            ?/root\n|2,1,1700000002,47,\"root\"\n\n# Registers:\n\"1\tLINE\t0\n\tx\n# File marks:\n'0  1  0  /etc/shadow\n";
        let rows = [
            (1_700_000_009, ":wq"),
            (1_700_000_001, ":!sh"),
            (1_700_000_002, "/root"),
        ];
        assert_eq!(typed(Format::Vim, vim), want(&rows));
        let ksh = b"\x81\x01whoami\n\0\x82\0\0\0\x02\0id\n\0\0";
        assert_eq!(typed(Format::Korn, ksh), want(&[(0, "whoami"), (0, "id")]));
        assert_eq!(
            typed(Format::Korn, b"ls\nid\n"),
            want(&[(0, "ls"), (0, "id")])
        );
    }

    #[test]
    fn what_lies_beside_a_gap_is_called_cut() {
        let piece = Piece {
            offset: 4096,
            bytes: b"wget x\nls\n#1700000000\nid\ncu".to_vec(),
            goes_on: true,
        };
        let got: Vec<_> = entries(Format::Stamped, &piece)
            .into_iter()
            .map(|e| (e.offset, e.text, e.cut))
            .collect();
        let row = |offset, text: &str, cut| (offset, text.to_owned(), cut);
        assert_eq!(
            got,
            [
                row(4096, "wget x", true),
                row(4103, "ls", false),
                row(4118, "id", false),
                row(4121, "cu", true)
            ]
        );
        // NULs that a crash left.
        let rows = typed(Format::Stamped, b"\0\0\0ls\0\0\n\0\0\0\0");
        assert_eq!(rows, want(&[(0, "ls")]));
    }
}
