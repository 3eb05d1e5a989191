//! How captured text reaches people.
//!
//! Names, paths and log lines of a captured machine were written by whoever held it. On a terminal some of their
//! characters are commands: ESC and the C1 controls move the cursor and set titles, carriage returns write over what was
//! printed, bidirectional marks turn text around, zero-width characters hide in names. [`Shown`] writes such characters
//! as escapes and everything else as it is; [`Plain`] does the same for a whole stream, line ends excepted.
//!
//! Sources: ECMA-48 (controls); Unicode 16, UAX #9 (bidirectional formatting), general categories Cc, Cf, Zl, Zp, Co and
//! noncharacters; CVE-2021-42574 ("Trojan Source").

use std::fmt::{self, Write as _};
use std::io;

/// Text of the captured machine, safe to print: one line, without a character that commands a terminal.
#[derive(Clone, Copy, Debug)]
pub struct Shown<T>(pub T);

impl<T: AsRef<str>> fmt::Display for Shown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.as_ref();
        // Most text is plain, and keeps its padding.
        if !text.chars().any(commands) {
            return f.pad(text);
        }
        let mut out = String::with_capacity(text.len() + 16);
        for c in text.chars() {
            escape(c, &mut out);
        }
        f.pad(&out)
    }
}

/// Bytes of the captured machine: UTF-8 as [`Shown`], what is none as `\xNN`.
pub fn shown_bytes(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        let _ = write!(out, "{}", Shown(chunk.valid()));
        for b in chunk.invalid() {
            let _ = write!(out, "\\x{b:02x}");
        }
    }
    out
}

/// Whether a character may act on a terminal or hide in text.
pub fn commands(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    matches!(u32::from(c),
        0x80..=0x9f                             // C1 controls
        | 0xad                                  // soft hyphen
        | 0x61c | 0x180e                        // Arabic letter mark, Mongolian vowel separator
        | 0x600..=0x605 | 0x6dd | 0x70f | 0x890..=0x891 | 0x8e2
        | 0x115f..=0x1160 | 0x3164 | 0xffa0     // Hangul fillers, which are blank
        | 0x200b..=0x200f                       // zero width, directional marks
        | 0x2028..=0x202e                       // separators, directional embedding and override
        | 0x2060..=0x206f                       // word joiner, directional isolates
        | 0xd800..=0xf8ff                       // private use
        | 0xfe00..=0xfe0f                       // variation selectors
        | 0xfeff | 0xfff0..=0xfffb              // byte order mark, interlinear annotation
        | 0xfdd0..=0xfdef
        | 0x110bd | 0x110cd | 0x13430..=0x1345f | 0x1bca0..=0x1bca3 | 0x1d173..=0x1d17a
        | 0xe0000..=0x10_ffff                   // tags, variation selectors, private use
    ) || u32::from(c) & 0xfffe == 0xfffe
}

/// Adds a character, escaped where it may act.
fn escape(c: char, out: &mut String) {
    match c {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        // How names of files carry bytes that are no UTF-8.
        '\u{10ff80}'..='\u{10ffff}' => {
            let _ = write!(out, "\\x{:02x}", u32::from(c) & 0xff);
        }
        c if commands(c) => {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        }
        c => out.push(c),
    }
}

/// Text of several lines, safe to print: as [`Shown`], with its line ends and tabs.
pub fn shown_lines(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => out.push(c),
            c => escape(c, &mut out),
        }
    }
    out
}

/// JSON that is safe to print: the same value, with characters that may act as `\uNNNN`. What is not in strings is
/// ASCII in any JSON.
pub fn shown_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c != '\n' && commands(c) {
            let mut units = [0; 2];
            for u in c.encode_utf16(&mut units) {
                let _ = write!(out, "\\u{u:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// A writer of lines in which nothing but line ends commands: what logs go through. Colours are not to be had.
#[derive(Debug)]
pub struct Plain<W>(pub W);

impl<W: io::Write> io::Write for Plain<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut out = String::with_capacity(buf.len());
        for chunk in buf.utf8_chunks() {
            out.push_str(&shown_lines(chunk.valid()));
            for b in chunk.invalid() {
                let _ = write!(out, "\\x{b:02x}");
            }
        }
        self.0.write_all(out.as_bytes())?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    /// ESC, a carriage return, C1's CSI, marks that turn text around, a name that hides, a tag character.
    const HOSTILE: &str =
        "a\u{1b}[2Jb\rc\u{9b}1md\u{202e}fdp.exe\u{2066}\u{200b}\u{feff}\u{e0041}\u{7f}\0\n";

    fn acts(c: char) -> bool {
        // Written apart from `commands`: what terminals and Unicode say acts or hides.
        c.is_control()
            || [
                '\u{200b}', '\u{200e}', '\u{200f}', '\u{202a}', '\u{202e}', '\u{2066}', '\u{2069}',
                '\u{61c}', '\u{feff}',
            ]
            .contains(&c)
            || ('\u{e0000}'..='\u{e007f}').contains(&c)
    }

    #[test]
    fn nothing_that_commands_is_printed() {
        let shown = Shown(HOSTILE).to_string();
        assert!(!shown.chars().any(acts), "{shown}");
        assert!(shown.contains("\\u{1b}[2J") && shown.contains("\\u{202e}fdp.exe"));
        let bytes = shown_bytes(&[HOSTILE.as_bytes(), b"\x9b\xff\xfe"].concat());
        assert!(
            !bytes.chars().any(acts) && bytes.ends_with("\\x9b\\xff\\xfe"),
            "{bytes}"
        );
        let lines = shown_lines(HOSTILE);
        assert!(lines.ends_with('\n') && !lines.trim_end_matches('\n').chars().any(acts));
        let mut log = Plain(Vec::new());
        log.write_all(&[HOSTILE.as_bytes(), b"\xff\n"].concat())
            .expect("written");
        let log = String::from_utf8(log.0).expect("UTF-8");
        assert!(!log.chars().any(|c| c != '\n' && acts(c)), "{log}");
    }

    #[test]
    fn text_of_every_language_stays_as_it_is() {
        for plain in [
            "/var/log/auth.log",
            "bücher",
            "путь",
            "日本語",
            "عربي",
            "🙂",
        ] {
            assert_eq!(Shown(plain).to_string(), plain);
        }
        assert_eq!(format!("{:<5}|", Shown("ab")), "ab   |");
    }

    #[test]
    fn json_keeps_its_value() {
        let json = r#"{"a":"x"#.to_owned() + "\u{9b}\u{202e}\u{e0041}" + r#""}"#;
        let shown = shown_json(&json);
        assert!(shown.is_ascii());
        assert_eq!(shown, r#"{"a":"x\u009b\u202e\udb40\udc41"}"#);
    }
}
