//! SQL as analysts write it: addresses in hexadecimal.
//!
//! `0x1a2b` is a number here, as in every tool that shows addresses; the SQL parser would take it for bytes.

/// The statement with its hexadecimal numbers in decimal. What stands in quotes or comments stays.
pub(crate) fn with_decimal_numbers(sql: &str) -> String {
    let b = sql.as_bytes();
    let mut out = String::with_capacity(sql.len());
    let (mut at, mut kept) = (0, 0);
    let is_word = |c: u8| c.is_ascii_alphanumeric() || c == b'_' || c >= 0x80;
    while at < b.len() {
        let rest = &b[at..];
        at += match rest[0] {
            quote @ (b'\'' | b'"' | b'`') => {
                let end = rest[1..].iter().position(|c| *c == quote);
                end.map_or(rest.len(), |n| n + 2)
            }
            b'-' if rest.starts_with(b"--") => {
                rest.iter().position(|c| *c == b'\n').unwrap_or(rest.len())
            }
            b'/' if rest.starts_with(b"/*") => {
                let end = rest.windows(2).position(|w| w == b"*/");
                end.map_or(rest.len(), |n| n + 2)
            }
            c if is_word(c) => {
                let n = rest.iter().position(|c| !is_word(*c)).unwrap_or(rest.len());
                let word = &sql[at..at + n];
                let digits = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X"));
                if let Some(v) = digits.and_then(|d| u64::from_str_radix(d, 16).ok()) {
                    out.push_str(&sql[kept..at]);
                    out.push_str(&v.to_string());
                    kept = at + n;
                }
                n
            }
            _ => 1,
        };
    }
    out.push_str(&sql[kept..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_numbers_are_numbers_outside_of_quotes() {
        for (sql, want) in [
            ("a >= 0x1000 AND b < 0XFF", "a >= 4096 AND b < 255"),
            ("x = '0x10' AND \"0x10\" = 1", "x = '0x10' AND \"0x10\" = 1"),
            ("va = 0xffff888000000000", "va = 18446612682070000000"),
            ("a0x10 = 1 -- 0x10\n+ 0x1", "a0x10 = 1 -- 0x10\n+ 1"),
            ("/* 0x1 */ 'ü' 0x", "/* 0x1 */ 'ü' 0x"),
            ("it''s 'a''0x1' 0x2", "it''s 'a''0x1' 2"),
        ] {
            let want = want.replace(
                "18446612682070000000",
                &0xffff_8880_0000_0000u64.to_string(),
            );
            assert_eq!(with_decimal_numbers(sql), want);
        }
    }
}
