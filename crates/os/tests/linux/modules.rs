//! Modules: their parameters and their types, against what the machine said of them.

use crate::common::{build, each_with_tasks, number, text};
use ramsift_os::table::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// What an older scenario did not write down.
const AGAIN: &str =
    "no capture says so: they are of an older scenario, remove one and let tests/captures build it";

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn parameters_are_those_of_sysfs() {
    let checked = std::cell::Cell::new(0);
    each_with_tasks(|c, k| {
        let t = build(k, "linux/module_parameters");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        let (mut listed, mut hidden) = (BTreeMap::new(), BTreeMap::new());
        for r in 0..t.rows.len() {
            let of = match t.cell(r, "hidden") {
                Some(Value::Flag(true)) => &mut hidden,
                _ => &mut listed,
            };
            let key = (text(&t, r, "module"), text(&t, r, "name"));
            assert!(of.insert(key, r).is_none(), "{}: {key:?} twice", c.name);
        }
        let same = |r: usize, want: &serde_json::Value, at: (&str, &str)| {
            let Some(want) = want.as_str() else {
                // It can only be written.
                assert_eq!(number(&t, r, "mode") & 0o444, 0, "{} {at:?}", c.name);
                return;
            };
            match t.cell(r, "value") {
                Some(Value::Text(got)) => {
                    assert_eq!(got, want.trim_end_matches('\n'), "{} {at:?}", c.name);
                    checked.set(checked.get() + 1);
                }
                // Written by a function of the module's own.
                _ => assert!(
                    text(&t, r, "type").ends_with(&format!(" [{}]", at.0)),
                    "{} {at:?}",
                    c.name
                ),
            }
        };
        let tamper = &c.truth["tamper"]["module"];
        for (name, want) in tamper["parameters"].as_object().into_iter().flatten() {
            let at = ("lab_tamper", name.as_str());
            same(hidden[&at], want, at);
        }
        if tamper.is_object() {
            // Counters that go on after the machine has told them.
            let calls = hidden[&("lab_tamper", "lab_calls")];
            assert_eq!(text(&t, calls, "type"), "ulong[]");
            let got: Vec<u64> = text(&t, calls, "value")
                .split(',')
                .map(|n| n.parse().unwrap())
                .collect();
            let told = &c.truth["tamper"]["calls"];
            let told = ["syscall", "ftrace", "kprobe", "netfilter", "keyboard"]
                .map(|n| told[n].as_u64().unwrap());
            assert_eq!(got.len(), told.len());
            assert!(
                got.iter().zip(told).all(|(g, t)| *g >= t),
                "{got:?} {told:?}"
            );
            let hide = hidden[&("lab_tamper", "hide")];
            assert_eq!(t.cell(hide, "type"), Some(&Value::Null));
            assert_eq!(number(&t, hide, "mode"), 0o200);
        }
        let Some(want) = c.truth["module_parameters"].as_object() else {
            return;
        };
        listed.retain(|_, r| number(&t, *r, "mode") != 0);
        for (module, parameters) in want {
            for (name, want) in parameters.as_object().unwrap() {
                let at = (module.as_str(), name.as_str());
                let row = listed.remove(&at);
                same(
                    row.unwrap_or_else(|| panic!("{}: no {at:?}", c.name)),
                    want,
                    at,
                );
            }
        }
        assert_eq!(listed, BTreeMap::new(), "{}", c.name);
    });
    assert!(checked.get() > 10, "{AGAIN}");
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn types_of_modules_are_those_that_the_machine_has() {
    /// Caches of structs with a constructor or freed by RCU, which share no slabs with others: the kernel
    /// made them with the size of the struct.
    const CACHES: [(&str, &str, &str); 2] = [
        ("nf_conntrack", "nf_conntrack", "nf_conn"),
        ("overlay", "ovl_inode", "ovl_inode"),
    ];
    let checked = std::cell::Cell::new(0);
    each_with_tasks(|c, k| {
        let mut doubts = Vec::new();
        let blobs = k.module_btf(&mut doubts).unwrap();
        assert_eq!(doubts, Vec::<String>::new(), "{}", c.name);
        // What kept a module's types from being known is told with the modules.
        assert_eq!(build(k, "linux/lsmod").doubts, doubts, "{}", c.name);
        let types = k.symbols.types();
        for (module, cache, ty) in CACHES {
            let (Some(_), Some(size)) = (
                c.truth["btf"][module].as_u64(),
                c.truth["slab_objects"][cache].as_u64(),
            ) else {
                continue;
            };
            if k.symbols.address("btf_modules").is_some() {
                assert_eq!(types.size_of(ty), Ok(size), "{} {ty}", c.name);
                checked.set(checked.get() + 1);
            }
        }
        // The kernel's own are what they were.
        let task = types.find("task_struct").unwrap();
        assert!(!types.is_of_module(task), "{}", c.name);
        let Some(told) = c.truth["btf_sha256"].as_object() else {
            return;
        };
        let hash = |blob: &[u8]| {
            let digest = Sha256::digest(blob);
            digest
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect::<String>()
        };
        let got: BTreeMap<&str, String> = blobs.iter().map(|(n, b)| (&**n, hash(b))).collect();
        let mut want: BTreeMap<&str, String> = told
            .iter()
            .map(|(n, h)| (n.as_str(), h.as_str().unwrap().to_owned()))
            .collect();
        want.remove("vmlinux");
        if k.symbols.address("btf_modules").is_some() {
            assert_eq!(got, want, "{}", c.name);
            let ovl = types.find("ovl_inode").unwrap();
            assert!(types.is_of_module(ovl), "{}", c.name);
        }
    });
    assert!(checked.get() > 0, "{AGAIN}");
}
