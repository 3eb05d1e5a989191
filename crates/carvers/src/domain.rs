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
//! * after `://` or `@` nothing is reported: the URL or the address is, where its scheme is a known one;
//! * after `/` or `\` it is a path, before `(` a method, with `_` an identifier, save in the names of services
//!   (RFC 2782, RFC 8552);
//! * `com.`, `org.`, `net.`, `io.`, `java.`, ... first means a package, `www.` a host in any case;
//! * lower case throughout, or upper case throughout;
//! * a top-level domain that is also a file suffix (`.py`, `.so`, `.zip`) needs `www.`;
//! * one that is also a word in code (`.info`, `.live`) needs three labels or a digit or `-` in the
//!   label before it, no dot in front and no `=` behind; of units, sections and properties (`.data`,
//!   `.name`, `.target`) it needs three labels and that;
//! * with two labels only, the first needs three characters.

use crate::api::Field;
use crate::chars::{Chars, HOST, is};
use crate::escape::{How, token};
use crate::feature::{Place, Said, fields};
use crate::tld::{self, Trust};
use crate::{idn, reserved, url};

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

/// Labels of services, which begin with `_` (IANA, "Underscored and Globally Scoped DNS Node Names").
const SERVICES: &[&str] = &[
    "_tcp",
    "_udp",
    "_tls",
    "_msdcs",
    "_sites",
    "_dmarc",
    "_domainkey",
    "_spf",
    "_acme-challenge",
    "_mta-sts",
    "_dnsauth",
    "_autodiscover",
];

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
    if let Some(sign) = sign.filter(|_| matches!(chars.before(run.from), b']' | b')' | b'}'))
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
    // `%2Fbad.example.net`, `user%40example.net`: how forms, and addresses in other addresses, write it.
    let mut before = chars.before(from);
    if before == b'%' {
        match escaped(chars, from) {
            Some(b'@') if place.emails => {
                crate::email::visit::<STEP>(place, from - STEP);
                return;
            }
            Some(b'@') | None => {}
            Some(_) => (from, before) = (from + 2 * STEP, b' '),
        }
    }
    if chars.before(to).is_ascii_digit() && !run.beyond {
        if addresses {
            crate::ip::quad::<STEP>(place, from, to, run.defanged);
        }
        return;
    }
    let mut around = Around {
        before,
        after: chars.at(run.to),
        dotted: from > run.from && chars.before(from) == b'.',
    };
    let begun = from == run.from || !matches!(chars.before(run.from), b'@' | b'/');
    if around.before == b'/' && host(chars, from) {
        around.before = b' ';
    }
    if !domains || !begun || around.elsewhere() || quoted_url(chars, from) {
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
    if (is_name(name) && stands_alone(name, around)) || is_service(name) {
        let unicode = idn::unicode(name);
        let fields = fields(&[
            ("unicode", unicode.as_deref()),
            ("doubt", doubtful(name)),
            ("reserved", reserved::name(name)),
        ]);
        place.report::<STEP>(&said(None, &fields), from, to);
    }
}

/// The character that a percent sign before byte `from` and the two digits there stand for, if a name begins behind it.
fn escaped<const STEP: usize>(chars: Chars<'_, STEP>, from: usize) -> Option<u8> {
    let digit = |p: usize| char::from(chars.at(p)).to_digit(16);
    let c = digit(from)? * 16 + digit(from + STEP)?;
    let c = u8::try_from(c).ok()?;
    let begins = matches!(
        c,
        b'/' | b'@' | b'=' | b'&' | b'?' | b' ' | b'"' | b'\'' | b'<' | b'(' | b',' | b';' | b'\n'
    );
    (begins && is(chars.at(from + 2 * STEP), crate::chars::ALNUM)).then_some(c)
}

/// True for a host behind two slashes that no URL is reported for: one of another scheme, or one without a scheme in
/// quotes or brackets, as pages of the web have them.
fn host<const STEP: usize>(chars: Chars<'_, STEP>, from: usize) -> bool {
    let Some(first) = from.checked_sub(2 * STEP).filter(|p| chars.at(*p) == b'/') else {
        return false;
    };
    match chars.before(first) {
        b':' => {
            let colon = first - STEP;
            is(chars.before(colon), crate::chars::ALNUM) && !url::begins(chars, colon)
        }
        b'"' | b'\'' | b'=' | b'(' => true,
        _ => false,
    }
}

/// True behind slashes of a URL that are in brackets or written as references.
fn quoted_url<const STEP: usize>(chars: Chars<'_, STEP>, from: usize) -> bool {
    match chars.before(from) {
        b']' | b')' | b'}' => chars.before(from - STEP) == b'/',
        b';' => (5..=6).any(|n| {
            let at = from.checked_sub(n * STEP);
            let t = at
                .filter(|p| chars.at(*p) == b'&')
                .and_then(|p| token(chars, p));
            t.is_some_and(|t| t.c == '/' && t.how == How::Escaped && t.len == n * STEP)
        }),
        _ => false,
    }
}

/// True for the name of a service: `_ldap._tcp.dc._msdcs.example.com`.
fn is_service(name: &str) -> bool {
    if !name.contains('_') {
        return false;
    }
    let known = |l: &str| SERVICES.iter().any(|s| s.eq_ignore_ascii_case(l));
    let fits = |l: &str| {
        let l = l.strip_prefix('_').unwrap_or(l);
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        !l.is_empty() && l.len() < 63 && l.bytes().all(inner) && !l.starts_with('-')
    };
    let owner = name.rfind("._").map_or(0, |n| n + 1);
    let owner = name[owner..].split_once('.').map_or("", |x| x.1);
    name.split('.').any(known) && name.split('.').all(fits) && is_name(owner) && tld::known(owner)
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
    let mut name = idn::dotted(&idn::refang(&value));
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
        name = idn::dotted(&idn::refang(&value));
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
    let refanged = idn::refang(&value);
    let refanged = Some(refanged.as_str()).filter(|n| *n != value);
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
