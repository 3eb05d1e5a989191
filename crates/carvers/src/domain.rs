//! Host names under a real top-level domain, in ASCII and UTF-16LE.
//!
//! ```text
//! label . label . tld        RFC 1035 section 2.3.1, RFC 1123 section 2.1
//! <- a maximal run of letters, digits, '.', '-', '_', at most 253 characters ->
//! ```
//!
//! Memory is full of words with dots that are no host names: files, methods, packages. The policy,
//! for names that stand alone:
//!
//! * after `://` or `@` nothing is reported: the URL or the address is;
//! * after `/` or `\` it is a path, before `(` a method, with `_` an identifier;
//! * `com.`, `org.`, `net.`, `io.`, `java.`, ... first means a package, `www.` a host in any case;
//! * lower case throughout, or upper case throughout;
//! * a top-level domain that is also a file suffix (`.py`, `.so`, `.zip`) needs `www.`;
//! * one that is also a word in code (`.info`, `.live`) needs three labels or a digit or `-` in the
//!   label before it, no dot in front and no `=` behind; of units, sections and properties (`.data`,
//!   `.name`, `.target`) it needs three labels and that;
//! * with two labels only, the first needs three characters.

use crate::api::Field;
use crate::chars::{Chars, HOST, is};
use crate::feature::{Place, Said, fields};
use crate::tld::{self, Trust};
use crate::{idn, reserved};

pub(crate) const VERSION: u32 = 2;

/// First labels that tell of a package or an object and not of a host.
const PACKAGES: &[&str] = &[
    "com",
    "org",
    "net",
    "io",
    "edu",
    "gov",
    "dev",
    "java",
    "javax",
    "jdk",
    "sun",
    "android",
    "androidx",
    "kotlin",
    "scala",
    "system",
    "windows",
    "microsoft",
    "self",
    "this",
    "os",
    "sys",
    "lib",
    "console",
    "window",
    "document",
    "math",
    "json",
    "string",
    "object",
    "array",
    "std",
    "core",
    "err",
    "ctx",
    "llvm",
    "data",
    "note",
    "plt",
    "spec",
    "types",
    "clang",
    "rust",
    "python",
    "go",
    "github",
    "e",
    "de",
    "me",
    "ru",
    "cn",
    "jp",
    "fr",
    "uk",
    "eu",
    "us",
    "io",
    "app",
    "tk",
];

/// Files of every system whose names are those of hosts.
const FILES: &[&str] = &["issue.net"];

/// Looks at the dot at byte `at`, or at the bracket before a dot; the whole run of host-name
/// characters is dealt with at once.
#[inline(never)]
pub(crate) fn visit<const STEP: usize>(
    place: &mut Place<'_>,
    at: usize,
    domains: bool,
    addresses: bool,
) {
    if at < place.run_end[STEP - 1] {
        return;
    }
    let chars = place.chars::<STEP>();
    // Else the dots behind a bracket would have two runs.
    if !is(chars.at(at), HOST) && !idn::named_before(chars, at) {
        return;
    }
    let run = match idn::run(chars, at) {
        Ok(run) => run,
        Err(end) => {
            place.run_end[STEP - 1] = end;
            return;
        }
    };
    place.run_end[STEP - 1] = run.to;
    // An address whose sign is written as a word.
    let sign = run.from.checked_sub(4 * STEP);
    if let Some(sign) = sign.filter(|_| matches!(chars.before(run.from), b']' | b')'))
        && place.emails
        && idn::bracketed(chars, sign, b"at").is_some()
    {
        crate::email::visit::<STEP>(place, sign);
        return;
    }
    let (mut from, mut to) = (run.from, run.to);
    while matches!(chars.at(from), b'.' | b'-') && from < to {
        from += STEP;
    }
    while to > from && matches!(chars.before(to), b'.' | b'-') {
        to -= STEP;
    }
    if chars.before(to).is_ascii_digit() && !run.beyond {
        if addresses {
            crate::ip::quad::<STEP>(place, from, to, run.defanged);
        }
        return;
    }
    let around = Around {
        before: chars.before(from),
        after: chars.at(run.to),
        dotted: from > run.from && chars.before(from) == b'.',
    };
    if !domains || around.elsewhere() {
        return;
    }
    if around.after == b':' && chars.at(run.to + STEP) == b':' {
        return;
    }
    if run.beyond || run.defanged {
        foreign(place, chars, from, to);
        return;
    }
    let name = place.text::<STEP>(from, to);
    if is_name(name) && stands_alone(name, around) {
        let unicode = idn::unicode(name);
        let fields = fields(&[
            ("unicode", unicode.as_deref()),
            ("doubt", doubtful(name)),
            ("reserved", reserved::name(name)),
        ]);
        place.report::<STEP>(&said(None, &fields), from, to);
    }
}

fn said<'s>(value: Option<&'s str>, fields: &'s [(&'static str, Field<'s>)]) -> Said<'s> {
    Said {
        carver: "domain",
        kind: "domain",
        value,
        fields,
    }
}

/// A name with letters beyond ASCII, or with dots in brackets.
fn foreign<const STEP: usize>(
    place: &mut Place<'_>,
    chars: Chars<'_, STEP>,
    from: usize,
    mut to: usize,
) {
    let mut value = chars.string(from, to);
    if !value.is_ascii() && !worded(&value) {
        return;
    }
    let mut name = idn::refang(&value);
    // The last label is told first: most of these end in no top-level domain.
    let last = name.rsplit('.').next().unwrap_or_default();
    let hopeless = if last.is_ascii() {
        !tld::known(last)
    } else {
        !idn::ascii(last).is_some_and(|l| tld::known(&l))
    };
    if hopeless || !tld::known(&idn::ascii(&name).unwrap_or_default()) {
        let Some(n) = idn::cut(&value) else { return };
        value.truncate(n);
        to = from + idn::bytes::<STEP>(&value);
        name = idn::refang(&value);
    }
    let Some(ascii) = idn::ascii(&name) else {
        return;
    };
    // A sentence that ends without a space: `fini.Il`.
    let last = name.rsplit('.').next().unwrap_or_default();
    let shouted = !name.chars().any(char::is_lowercase);
    let mixed = last.chars().any(char::is_uppercase) && !shouted;
    let around = Around::default();
    if mixed || !is_name(&ascii) || !stands_alone(&ascii, around) {
        return;
    }
    let refanged = Some(name.as_str()).filter(|n| *n != value);
    let fields = fields(&[
        ("ascii", Some(ascii.as_str()).filter(|a| *a != name)),
        ("refanged", refanged),
        ("reserved", reserved::name(&ascii)),
    ]);
    place.report::<STEP>(&said(Some(&value), &fields), from, to);
}

/// True when a label with letters beyond ASCII is a word: two letters of random bytes make none.
fn worded(name: &str) -> bool {
    let labels = name.split('.').filter(|l| !l.is_ascii());
    labels
        .map(|l| (l.chars().count(), l))
        .any(|(n, l)| n >= 3 || (n == 2 && l.chars().all(idn::is_spaceless)))
}

/// The characters beside a name.
#[derive(Clone, Copy, Default)]
struct Around {
    before: u8,
    after: u8,
    /// A dot is before it: a section's or a hidden file's name, or a host's with all below it.
    dotted: bool,
}

impl Around {
    /// True for parts of paths, addresses, variables and calls.
    fn elsewhere(self) -> bool {
        matches!(self.before, b'/' | b'\\' | b'@' | b'$' | b'%' | b'#')
            || matches!(self.after, b'(' | b'@' | b'\\')
    }
}

/// Two or more labels of letters, digits and inner hyphens, the last of letters or `xn--`.
pub(crate) fn is_name(name: &str) -> bool {
    let mut labels = 0;
    let mut last = "";
    for label in name.split('.') {
        let fine = !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !fine {
            return false;
        }
        labels += 1;
        last = label;
    }
    let letters = last.bytes().all(|b| b.is_ascii_alphabetic());
    let punycode = last
        .get(..4)
        .is_some_and(|p| p.eq_ignore_ascii_case("xn--"));
    labels >= 2 && last.len() >= 2 && (letters || punycode)
}

/// The policy for names that no URL and no address vouch for.
fn stands_alone(name: &str, around: Around) -> bool {
    let lower = name.bytes().any(|b| b.is_ascii_lowercase());
    let upper = name.bytes().any(|b| b.is_ascii_uppercase());
    let Some(trust) = tld::trust(name) else {
        return false;
    };
    if lower && upper {
        return false;
    }
    let first = name.split('.').next().unwrap_or_default();
    if first.eq_ignore_ascii_case("www") {
        return name.matches('.').count() >= 2;
    }
    let dots = name.matches('.').count();
    let rest = name.rsplit('.').nth(1).unwrap_or_default();
    if PACKAGES.iter().any(|p| first.eq_ignore_ascii_case(p)) || rest.len() < 2 {
        return false;
    }
    // Hashes, versions and numbers with a suffix are no names.
    let numbers = rest.bytes().all(|b| b.is_ascii_digit());
    let digits = rest.bytes().any(|b| b.is_ascii_digit());
    let coined = rest.contains('-') || (digits && !numbers);
    match trust {
        Trust::File => false,
        // A property, a section, a unit.
        Trust::Word | Trust::Code if around.dotted || around.after == b'=' => false,
        Trust::Code => coined && dots >= 2,
        _ if FILES.contains(&name) => false,
        _ if dots == 1 && rest.len() < 3 => false,
        _ if numbers && rest.len() < 4 && dots == 1 => false,
        Trust::Word => dots >= 2 || rest.bytes().any(|b| b.is_ascii_digit() || b == b'-'),
        Trust::Plain => true,
    }
}

/// Why a name that was taken may be none.
fn doubtful(name: &str) -> Option<&'static str> {
    let (rest, last) = name.rsplit_once('.')?;
    let plain = rest.bytes().all(|b| b.is_ascii_alphabetic());
    let word = !matches!(tld::trust(name), Some(Trust::Plain)) && !rest.starts_with("www.");
    let short = plain && last.len() == 2 && !last.eq_ignore_ascii_case("de");
    (word || short).then_some("may be words of a program or a text")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALONE: Around = Around {
        before: 0,
        after: 0,
        dotted: false,
    };

    #[test]
    fn hosts_and_not_files_methods_or_packages() {
        for good in [
            "zqabc.c2-example.org",
            "example.com",
            "evil-update.xyz",
            "a.b.co.uk",
            "WWW.EXAMPLE.COM",
            "www.example.rs",
            "update.cdn77.info",
            "mail.google.com",
            "bad.ru",
            "files.my-site.name",
            "XN--BCHER-KVA.EXAMPLE.COM",
            "xn--e1afmkfd.xn--p1ai",
        ] {
            assert!(is_name(good) && stands_alone(good, ALONE), "{good}");
        }
        for bad in [
            "foo.py",
            "libc.so",
            "main.rs",
            "run.sh",
            "a.zip",
            "System.Net",
            "java.net",
            "com.example.io",
            "user.name",
            "self.id",
            "x.c",
            "foo.o",
            "a.com",
            "1.2.3",
            "foo..com",
            "-a.com",
            "a-.com",
            "config.json",
            "data.info",
            "foo_bar.com",
            "rela.init.data",
            "glibc.cpu.name",
            "privdrop.user.id",
            "nginx.pid",
            "crc32.author",
            "multi-user.target",
            "memory.oom.group",
            "zone1970.tab",
            "issue.net",
        ] {
            assert!(!(is_name(bad) && stands_alone(bad, ALONE)), "{bad}");
        }
    }
}
