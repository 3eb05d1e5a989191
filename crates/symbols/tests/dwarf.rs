//! DWARF against the compiler: a program prints where its own members are.
#![allow(clippy::unwrap_used, missing_docs)]

use ramsift_symbols::{SymbolTable, dwarf, isf};
use std::process::Command;

const SOURCE: &str = r#"
#include <stddef.h>
#include <stdio.h>
#include <string.h>

struct other;
typedef int (*callback)(struct other *, long);
typedef struct { volatile int counter; } atomic_like;
enum colour { RED = -3, GREEN = 4, BLUE };
enum { LONELY = 77 };
union word { unsigned long whole; unsigned char bytes[8]; };

struct list { struct list *next, *prev; };

struct thing {
    char comm[16];
    unsigned int a : 1;
    unsigned int b : 5;
    unsigned long wide : 33;
    signed char tail : 3;
    struct list list;
    const struct other *other;
    callback call;
    int matrix[3][5];
    struct { short x; union { long y; struct { int z1, z2; }; }; };
    union word word;
    enum colour colour;
    atomic_like count;
    _Bool alive;
    double ratio;
    struct thing *parent;
    char flexible[];
};

struct __attribute__((packed)) tight { char c; unsigned int v; unsigned short f : 9; };

struct thing first_thing;
struct list all_things = { &all_things, &all_things };
struct list *table[4];
static union word hidden = { 1 };
const char linux_banner[] = "Linux version 9.9.9 (made@here) #1 SMP\n";

#define F(S, P) printf("field " #S " " #P " %zu %zu\n", offsetof(struct S, P), sizeof(((struct S *)0)->P))
/* Sets a bit-field to all ones and prints the first bit and how many there are. */
#define B(S, P) do { struct S s; unsigned char *p = (void *)&s; size_t i, from = 0, n = 0; \
    memset(&s, 0, sizeof s); s.P = -1; \
    for (i = 0; i < sizeof s * 8; i++) if (p[i / 8] >> i % 8 & 1) { if (!n++) from = i; } \
    printf("bits " #S " " #P " %zu %zu\n", from, n); } while (0)

int main(void)
{
    printf("size thing %zu\nsize tight %zu\nsize word %zu\nsize atomic_like %zu\n",
           sizeof(struct thing), sizeof(struct tight), sizeof(union word), sizeof(atomic_like));
    F(thing, comm); F(thing, list); F(thing, list.prev); F(thing, other); F(thing, call);
    F(thing, matrix); F(thing, x); F(thing, y); F(thing, z1); F(thing, z2); F(thing, word);
    F(thing, word.bytes); F(thing, colour); F(thing, count); F(thing, count.counter);
    F(thing, alive); F(thing, ratio); F(thing, parent); F(tight, c); F(tight, v);
    B(thing, a); B(thing, b); B(thing, wide); B(thing, tail); B(tight, f);
    printf("value RED %d\nvalue BLUE %d\nvalue LONELY %d\n", RED, BLUE, LONELY);
    return (int)hidden.whole - 1 + (first_thing.call != 0) + (table[0] != 0);
}
"#;

fn run(command: &mut Command) -> String {
    let out = command.output().expect("the program starts");
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command:?}: {err}");
    String::from_utf8(out.stdout).unwrap()
}

fn check(t: &SymbolTable, printed: &str, how: &str) {
    let types = t.types();
    for line in printed.lines() {
        let w: Vec<&str> = line.split(' ').collect();
        let n = |i: usize| w[i].parse::<u64>().unwrap();
        match w[0] {
            "size" => assert_eq!(types.size_of(w[1]), Ok(n(2)), "{how}: {line}"),
            "field" => {
                let f = types.field(w[1], w[2]).expect(line);
                assert_eq!((f.offset, f.size), (n(3), n(4)), "{how}: {line}");
                assert_eq!(f.bits, None);
            }
            "bits" => {
                let f = types.field(w[1], w[2]).expect(line);
                let b = f.bits.expect("a bit-field");
                let first = f.offset * 8 + u64::from(b.offset);
                assert_eq!((first, u64::from(b.size)), (n(3), n(4)), "{how}: {line}");
                assert!(
                    u64::from(b.offset) + u64::from(b.size) <= f.size * 8,
                    "{how}: {line}"
                );
            }
            _ => assert_eq!(types.constant(w[1]), Some(w[2].parse().unwrap()), "{how}"),
        }
    }
    let f = types.field("thing", "matrix[2][4]").expect("an element");
    let m = types.field("thing", "matrix").expect("matrix");
    assert_eq!(f.offset, m.offset + 14 * 4);
    let (_, n) = types
        .array(types.field("thing", "flexible").unwrap().ty)
        .unwrap();
    assert_eq!(n, 0);
    let of = |name: &str| {
        t.type_of(name)
            .map(|s| (types.name(s.base), s.pointers, s.array))
    };
    assert_eq!(of("first_thing"), Some(("thing", 0, None)), "{how}");
    assert_eq!(of("table"), Some(("list", 1, Some(4))), "{how}");
    assert_eq!(
        t.banner(),
        Some("Linux version 9.9.9 (made@here) #1 SMP"),
        "{how}"
    );
    assert!(
        t.address("all_things").is_some()
            && t.find("main")
                .is_some_and(|s| s.kind == b'T' || s.kind == b'?')
    );
}

#[test]
fn members_are_where_the_program_says_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = |n: &str| dir.path().join(n);
    std::fs::write(path("x.c"), SOURCE).unwrap();
    let mut seen = Vec::new();
    for flags in [
        ["-g", "-gdwarf-4", "-O0"],
        ["-g", "-gdwarf-5", "-O1"],
        ["-g", "-gdwarf-3", "-gstrict-dwarf"],
        ["-g", "-gdwarf-5", "-gz"],
    ] {
        let how = flags.join(" ");
        let mut cc = Command::new("cc");
        cc.args(flags)
            .arg("-w")
            .arg("-o")
            .arg(path("x"))
            .arg(path("x.c"));
        run(&mut cc);
        let printed = run(&mut Command::new(path("x")));
        let table = dwarf::parse("x", &std::fs::read(path("x")).unwrap()).expect("DWARF");
        check(&table, &printed, &how);
        // What is written as ISF is the same.
        let mut xz = Vec::new();
        isf::write_xz(&table, &mut xz).expect("written");
        check(&isf::parse("x", &xz).expect("read"), &printed, &how);
        seen.push(printed);
        // A module's object file still has its relocations.
        let mut cc = Command::new("cc");
        cc.args(flags)
            .args(["-w", "-c", "-o"])
            .arg(path("x.o"))
            .arg(path("x.c"));
        run(&mut cc);
        let table = dwarf::parse("x.o", &std::fs::read(path("x.o")).unwrap()).expect("DWARF");
        check(&table, &seen[0], &how);
    }
}

#[test]
fn units_share_their_types() {
    let dir = tempfile::tempdir().unwrap();
    let path = |n: &str| dir.path().join(n);
    let header =
        "struct b; struct a { struct b *b; int n; }; struct b { struct a *a; char c[3]; };";
    let one = format!("{header} struct only {{ int x; }}; struct a first; struct only o;");
    let two = "struct b; struct b *second; struct only { long y; long z; }; struct only p; \
               int main(void) { return second != 0 + (int)p.y; }";
    std::fs::write(path("1.c"), one).unwrap();
    std::fs::write(path("2.c"), two).unwrap();
    let three = format!("{header} struct b third;");
    std::fs::write(path("3.c"), three).unwrap();
    let mut cc = Command::new("cc");
    cc.arg("-g").arg("-o").arg(path("x"));
    run(cc.args([path("2.c"), path("1.c"), path("3.c")]));
    let t = dwarf::parse("x", &std::fs::read(path("x")).unwrap()).expect("DWARF");
    let types = t.types();
    assert_eq!(types.composites("a").len(), 1);
    assert_eq!(types.composites("b").len(), 1);
    assert_eq!(types.composites("only").len(), 2, "two of one name");
    assert!(types.has_field("only", "z"), "the larger one answers");
    // What one unit only declares is what another defines.
    let second = t.type_of("second").expect("a type");
    assert_eq!(types.size(second.base), types.size_of("b").ok());
}

/// What Volatility 3 asks of a file: it knows structs by their names, wants a type of each symbol, and that
/// every type that is named is there (`volatility3/framework/symbols/intermed.py`, schema 6.2.0).
fn resolves(isf: &serde_json::Value, ty: &serde_json::Value) {
    let name = ty["name"].as_str().unwrap_or_default();
    let place = match ty["kind"].as_str().expect("a kind") {
        "pointer" | "array" => return resolves(isf, &ty["subtype"]),
        "bitfield" => return resolves(isf, &ty["type"]),
        "function" => return,
        "base" => "base_types",
        "enum" => "enums",
        "struct" | "union" => "user_types",
        other => panic!("{other}"),
    };
    assert!(isf[place][name].is_object(), "{ty}");
}

#[test]
fn files_are_whole_for_those_who_know_structs_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = |n: &str| dir.path().join(n);
    let header = "typedef struct inner { int v; } inner_t; \
                  struct outer { struct outer *next; inner_t in; struct { inner_t deep; } sub; }; \
                  extern const unsigned int counted; ";
    // Each unit comes upon the structs in another order.
    let one = format!("{header} struct inner i; struct outer first; ");
    let two = format!("{header} struct outer second; inner_t j; ");
    let three = format!(
        "{header} struct outer *third; int main(void) {{ return counted != 7 || third != 0; }}"
    );
    for (name, text) in [("1.c", &*one), ("2.c", &two), ("3.c", &three)] {
        std::fs::write(path(name), text).unwrap();
    }
    // No debug information says what this is but for the declaration.
    let data =
        ".section .rodata\n.globl counted\ncounted: .long 7\n.globl untold\nuntold: .long 8\n";
    std::fs::write(path("4.s"), data).unwrap();
    let mut cc = Command::new("cc");
    cc.arg("-g").arg("-o").arg(path("x"));
    run(cc.args([path("1.c"), path("2.c"), path("3.c"), path("4.s")]));
    run(&mut Command::new(path("x")));
    let table = dwarf::parse("x", &std::fs::read(path("x")).unwrap()).expect("DWARF");
    for name in ["inner", "outer"] {
        assert_eq!(table.types().composites(name).len(), 1, "{name}");
    }
    let mut json = Vec::new();
    isf::write(&table, &mut json).expect("written");
    let isf: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    let ty = |name: &str| &isf["symbols"][name]["type"];
    let outer = serde_json::json!({ "kind": "struct", "name": "outer" });
    for name in ["first", "second"] {
        assert_eq!(ty(name), &outer, "{name}");
    }
    assert_eq!(ty("third")["subtype"], outer);
    assert_eq!(
        isf["user_types"]["outer"]["fields"]["next"]["type"]["subtype"],
        outer
    );
    assert_eq!(ty("counted")["name"], "unsigned int");
    for name in ["main", "untold"] {
        let void = serde_json::json!({ "kind": "base", "name": "void" });
        assert_eq!(ty(name), &void, "{name}");
    }
    let fields = |ty: &serde_json::Value| -> Vec<serde_json::Value> {
        let all = ty["fields"].as_object().unwrap();
        all.values().map(|f| f["type"].clone()).collect()
    };
    let users = isf["user_types"].as_object().unwrap().values();
    let symbols = isf["symbols"].as_object().unwrap().values();
    let all: Vec<_> = users
        .flat_map(fields)
        .chain(symbols.map(|s| s["type"].clone()))
        .collect();
    assert!(all.len() > 10);
    for ty in all {
        resolves(&isf, &ty);
    }
}

#[test]
fn damage_is_an_error() {
    assert!(dwarf::parse("x", b"\x7fELF").is_err());
    assert!(dwarf::parse("x", &[]).is_err());
    let dir = tempfile::tempdir().unwrap();
    let path = |n: &str| dir.path().join(n);
    std::fs::write(path("x.c"), SOURCE).unwrap();
    let mut cc = Command::new("cc");
    run(cc
        .args(["-w", "-g", "-c", "-o"])
        .arg(path("x.o"))
        .arg(path("x.c")));
    let good = std::fs::read(path("x.o")).unwrap();
    let mut state = 88_172_645_463_325_252u64;
    for _ in 0..3000 {
        let mut b = good.clone();
        for _ in 0..4 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let at = usize::try_from(state % b.len() as u64).unwrap();
            b[at] = state.to_le_bytes()[7];
        }
        let _ = dwarf::parse("x", &b);
    }
    let mut cc = Command::new("cc");
    run(cc
        .args(["-w", "-c", "-o"])
        .arg(path("plain.o"))
        .arg(path("x.c")));
    let e = dwarf::parse("x", &std::fs::read(path("plain.o")).unwrap()).expect_err("no types");
    assert!(e.to_string().contains(".debug_info"), "{e}");
}
