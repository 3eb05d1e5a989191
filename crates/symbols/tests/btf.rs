//! BTF from an encoder: every kind, split blobs, and damage.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::blob::{Blob, every_kind};
use common::synthetic::Memory;
use proptest::prelude::*;
use ramsift_layers::PhysAddr;
use ramsift_symbols::btf::{self, BtfError, Kind};
use ramsift_symbols::{BitRange, Btf, Shape, Types};
use std::sync::Arc;

#[test]
fn every_kind_is_read() {
    let b = Btf::parse(&every_kind().finish()).expect("sound");
    let kinds: std::collections::BTreeSet<u8> = b.iter().map(|t| t.kind as u8).collect();
    assert_eq!(kinds, (1..=19).collect());
    let t = btf::to_types(&b);
    assert_eq!(t.size_of("task_struct"), Ok(80));
    let f = t.field("task_struct", "pid").expect("pid");
    assert_eq!((f.offset, f.size, f.bits), (0, 4, None));
    assert_eq!(t.name(t.resolve(f.ty)), "int");
    let f = t.field("task_struct", "flag_b").expect("a bit-field");
    let bits = BitRange { offset: 1, size: 5 };
    assert_eq!((f.offset, f.size, f.bits), (4, 4, Some(bits)));
    assert_eq!(f.value(&0b11_0110_1010u32.to_le_bytes()), Some(0b1_0101));
    assert_eq!(f.value(&[0; 3]), None);
    let f = t.field("task_struct", "word").expect("inside a union");
    assert_eq!((f.offset, f.size), (32, 8));
    let f = t.field("task_struct", "comm[15]").expect("an element");
    assert_eq!((f.offset, f.size), (23, 1));
    let f = t.field("task_struct", "far").expect("a pointer");
    assert_eq!(t.describe(f.ty), "struct nowhere *");
    assert_eq!(t.size_of("pid_t"), Ok(4));
    assert_eq!(t.enum_value("colour", "RED"), Some(-1));
    assert_eq!(t.enum_name("colour", 7), Some("GREEN"));
    assert_eq!(t.constant("BIG"), Some(i64::MIN + 5));
    let current = t.variable("current_task").expect("a variable");
    assert_eq!(t.describe(current), "struct task_struct *");
    assert!(!t.has_type("current_task") && !t.has_type("do_it"));
    // Both are kept, the larger one answers.
    assert_eq!(t.composites("twice").len(), 2);
    assert!(t.has_field("twice", "b") && !t.has_field("twice", "a"));
    assert!(t.field_in(t.composites("twice")[1], "a").is_ok());
}

#[test]
fn integers_that_are_bit_fields_themselves() {
    // Before the flag, the integer had the bits: `u32 : 3` at bit 2.
    let mut b = Blob::new();
    let narrow = b.add("unsigned int", 1, 0, 4, &[(2 << 16) | 3]);
    b.composite(4, "old", 4, &[("x", narrow, 8, 0)]);
    let t = btf::to_types(&Btf::parse(&b.finish()).expect("sound"));
    let f = t.field("old", "x").expect("x");
    let bits = BitRange {
        offset: 10,
        size: 3,
    };
    assert_eq!((f.offset, f.size, f.bits), (0, 4, Some(bits)));
}

#[test]
fn modules_go_on_where_the_kernel_ends() {
    let base = Arc::new(Btf::parse(&every_kind().finish()).expect("sound"));
    let (strings, _) = base.strings();
    let next = u32::try_from(base.len()).unwrap() + 1;
    let string_base = u32::try_from(strings.len()).unwrap();
    let task = base
        .iter()
        .find(|t| t.kind == Kind::Struct && base.string(t.name) == Some("task_struct"))
        .expect("there")
        .id;
    let module = |name: &str| {
        let mut m = Blob::split(next, string_base);
        let p = m.add("", 2, 0, task, &[]);
        m.composite(4, name, 24, &[("owner", p, 64, 0)]);
        Btf::parse_split(&m.finish(), &base).expect("sound")
    };
    let mut t = btf::to_types(&base);
    for name in ["nf_one", "nf_two"] {
        let split = module(name);
        assert_eq!(split.first_id(), next);
        btf::add_split(&mut t, &split);
        let f = t.field(name, "owner").expect("owner");
        assert_eq!(f.offset, 8);
        assert_eq!(t.describe(f.ty), "struct task_struct *");
    }
    assert_eq!(t.size_of("task_struct"), Ok(80));
    // Without its base a module's blob refers to nothing.
    let mut m = Blob::split(next, string_base);
    m.add("", 2, 0, task, &[]);
    m.string("own");
    assert!(matches!(
        Btf::parse(&m.finish()),
        Err(BtfError::Header { .. })
    ));
    let mut m = Blob::new();
    m.add("", 2, 0, task, &[]);
    assert!(matches!(
        Btf::parse(&m.finish()),
        Err(BtfError::Type { id: 1, .. })
    ));
}

#[test]
fn a_modules_names_do_not_take_the_kernels_place() {
    let base = Arc::new(Btf::parse(&every_kind().finish()).expect("sound"));
    let (strings, _) = base.strings();
    let next = u32::try_from(base.len()).unwrap() + 1;
    let mut m = Blob::split(next, u32::try_from(strings.len()).unwrap());
    let int = m.add("long long int", 1, 0, 8, &[(1 << 24) | 64]);
    // Larger than the kernel's; the name of a typedef, and of an integer; one of its own, twice.
    m.composite(4, "task_struct", 4096, &[("other", int, 0, 0)]);
    m.composite(4, "pid_t", 24, &[("other", int, 0, 0)]);
    m.composite(4, "own", 8, &[("small", int, 0, 0)]);
    m.composite(4, "own", 16, &[("large", int, 64, 0)]);
    let mut t = btf::to_types(&base);
    btf::add_split(
        &mut t,
        &Btf::parse_split(&m.finish(), &base).expect("sound"),
    );
    assert_eq!(t.size_of("task_struct"), Ok(80));
    assert!(t.has_field("task_struct", "pid") && !t.has_field("task_struct", "other"));
    assert_eq!(t.size_of("pid_t"), Ok(4));
    let both = t.composites("task_struct");
    let of: Vec<bool> = both.iter().map(|id| t.is_of_module(*id)).collect();
    assert_eq!(of, [false, true]);
    // What only the module has is answered as ever, from the largest.
    assert_eq!(t.size_of("own"), Ok(16));
    assert!(t.has_field("own", "large"));
}

#[test]
fn decoys_are_refused_with_a_reason() {
    let good = every_kind().finish();
    let says = |b: &[u8], what: &str| {
        let e = Btf::parse(b).expect_err(what).to_string();
        assert!(e.contains(what), "{e}");
    };
    let with = |at: usize, v: &[u8]| {
        let mut b = good.clone();
        b[at..at + v.len()].copy_from_slice(v);
        b
    };
    says(&with(0, &[0xeb, 0x9f]), "big-endian");
    says(&with(2, &[2]), "version 1");
    says(&with(4, &[20]), "header of 24 bytes");
    says(&with(12, &[0, 0, 0, 0]), "64 MiB of types");
    says(&good[..good.len() - 1], "needs");
    says(&good[..10], "header");
    says(&with(24 + 7, &[30]), "kind 1 to 19");
    says(&with(24 + 8, &[3]), "an integer of 1 to 16 bytes");
    says(&with(24, &[0xff; 4]), "a name inside the strings");
    says(&with(good.len() - 2, &[7]), "text");
    // Nothing of this is a kernel's, for it is too small.
    let memory = Memory {
        base: 0x1000,
        bytes: good.clone(),
    };
    assert!(btf::candidate(&memory, PhysAddr(0x1000)).is_ok());
    assert!(btf::read_at(&memory, PhysAddr(0x1000)).is_ok());
    assert!(matches!(
        btf::read_kernel_at(&memory, PhysAddr(0x1000)),
        Err(BtfError::NotAKernel { .. })
    ));
    assert!(btf::candidate(&memory, PhysAddr(0x10)).is_err());
}

/// Asks everything of all types.
fn ask(t: &Types) {
    let mut names = Vec::new();
    for member in ["pid", "word", "comm[3]", "parent.x", ""] {
        let _ = t.field("task_struct", member);
    }
    for name in ["task_struct", "twice", "pid_t", "int", "colour"] {
        for id in t.composites(name) {
            names.push(t.describe(id));
            let _ = (t.size(id), t.fields(id).len());
            for m in t.members(id) {
                names.push(t.describe(m.ty));
                let resolved = t.shape(t.resolve(m.ty));
                let _ = (t.array(m.ty), t.target(m.ty), resolved == Shape::Void);
            }
        }
        let _ = t.size_of(name);
    }
}

#[test]
fn tangles_end() {
    // A typedef of itself, an array of itself, structs that hold themselves twice.
    let mut b = Blob::new();
    let td = b.add("pid_t", 8, 0, 1, &[]);
    b.add("", 3, 0, 0, &[2, 2, 9]);
    b.composite(
        4,
        "task_struct",
        8,
        &[("", 3, 0, 0), ("", 3, 0, 0), ("pid", td, 0, 0)],
    );
    b.composite(4, "twice", 8, &[("", 2, 0, 0), ("", td, 0, 0)]);
    let t = btf::to_types(&Btf::parse(&b.finish()).expect("sound"));
    ask(&t);
    assert!(t.field("task_struct", "nothing").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn flipped_bytes_end_in_a_result(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut b = every_kind().finish();
        let n = b.len();
        for (i, v) in flips {
            b[i.index(n)] = v;
        }
        if let Ok(b) = Btf::parse(&b) {
            ask(&btf::to_types(&b));
        }
    }
}
