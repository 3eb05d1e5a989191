//! Views of the kernel itself.

use crate::common::{build, captures, each_with_tasks, number, text};
use std::collections::BTreeMap;

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn modules_are_those_that_the_machine_listed() {
    each_with_tasks(|c, k| {
        let t = build(k, "linux/lsmod");
        assert_eq!(t.doubts, Vec::<String>::new(), "{}", c.name);
        // name size users dependants state address
        let want: BTreeMap<String, (i128, i128)> = c.truth["modules"]
            .as_str()
            .unwrap()
            .lines()
            .map(|l| {
                let f: Vec<&str> = l.split_whitespace().collect();
                let base = f.iter().find_map(|w| w.strip_prefix("0x")).unwrap();
                let base = i128::from_str_radix(base, 16).unwrap();
                (f[0].to_owned(), (f[1].parse().unwrap(), base))
            })
            .collect();
        let got: BTreeMap<String, (i128, i128)> = (0..t.rows.len())
            .map(|r| {
                let name = text(&t, r, "name").to_owned();
                (name, (number(&t, r, "size"), number(&t, r, "base")))
            })
            .collect();
        assert_eq!(got, want, "{}", c.name);
    });
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn a_carved_symbol_table_is_the_one_that_vmcoreinfo_names() {
    use ramsift_layers::VirtAddr;
    use ramsift_symbols::kallsyms::{Hints, Places, carve, decode, image_delta};
    let mut checked = 0;
    for c in captures() {
        let infos = c.anchors.iter().filter(|a| a.kind == "vmcoreinfo");
        let info = infos
            .filter_map(|a| ramsift_symbols::VmCoreInfo::parse(&a.data).ok())
            .find(|v| v.len() > 10)
            .unwrap();
        let delta = image_delta(&info).unwrap();
        let known = [("_stext", VirtAddr(info.symbol("_stext").unwrap()))];
        let hints = Hints {
            known: &known,
            delta: Some(delta),
        };
        // 5.10 names no tables.
        let Ok(places) = Places::from_vmcoreinfo(&info, delta) else {
            continue;
        };
        checked += 1;
        let told = decode(&c.image, &places, &hints).unwrap();
        let tokens = c
            .anchors
            .iter()
            .filter(|a| a.kind == "kallsyms_token_table");
        let carved = tokens
            .filter_map(|a| c.runs.to_phys(ramsift_layers::ImageOffset(a.image_offset)))
            .find_map(|pa| carve(&c.image, pa, &hints).ok())
            .unwrap_or_else(|| panic!("{}: nothing carved", c.name));
        assert_eq!(told.len(), carved.len(), "{}", c.name);
        let differ = told
            .iter()
            .zip(carved.iter())
            .find(|(a, b)| (a.name, a.address) != (b.name, b.address));
        assert!(differ.is_none(), "{}: {differ:?}", c.name);
    }
    assert!(checked > 0, "no capture with kallsyms in VMCOREINFO");
}
