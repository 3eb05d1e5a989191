//! kallsyms: every layout from an encoder, and the real thing from captures.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{capture, synthetic};
use proptest::prelude::*;
use ramsift_layers::{PhysAddr, VirtAddr};
use ramsift_symbols::kallsyms::{self, DIGITS, Encoding, Hints, Kallsyms, NameLength, Places};
use synthetic::{ERAS, Era, encode, symbols};

fn rows(k: &Kallsyms) -> Vec<(u64, u8, String)> {
    k.iter()
        .map(|s| (s.address.0, s.kind, s.name.to_owned()))
        .collect()
}

#[test]
fn every_layout_is_carved_from_its_digits_alone() {
    for era in ERAS {
        let e = encode(era, symbols(era, 3000, 7), 99);
        let k = kallsyms::carve(&e.memory, e.digits, &Hints::default())
            .unwrap_or_else(|err| panic!("{era:?}: {err}"));
        assert_eq!(rows(&k), e.symbols, "{era:?}");
        let want = match era {
            Era::Absolute => Encoding::Absolute,
            Era::RelativeWide | Era::RelativeLast => Encoding::Relative,
            Era::PcRelative => Encoding::PcRelative,
            _ => Encoding::AbsolutePerCpu,
        };
        assert_eq!(k.layout().encoding, want, "{era:?}");
        let wide = matches!(era, Era::Absolute | Era::PerCpuWide | Era::RelativeWide);
        assert_eq!(k.layout().marker_width, Some(if wide { 8 } else { 4 }));
        if era.long_names() {
            assert_eq!(k.layout().lengths, NameLength::Uleb128, "{era:?}");
        }
        // The same with the places given, as VMCOREINFO does.
        let places = k.places();
        let again = kallsyms::decode(&e.memory, &places, &Hints::default()).expect("decodes");
        assert_eq!(rows(&again), e.symbols, "{era:?}");
    }
}

#[test]
fn hints_choose_and_refuse() {
    let e = encode(Era::PerCpuLast, symbols(Era::PerCpuLast, 1000, 3), 5);
    let known = [("_stext", VirtAddr(synthetic::BASE_VA))];
    let hints = Hints {
        known: &known,
        delta: None,
    };
    assert!(kallsyms::carve(&e.memory, e.digits, &hints).is_ok());
    let known = [("_stext", VirtAddr(synthetic::BASE_VA + 0x1000))];
    let hints = Hints {
        known: &known,
        delta: None,
    };
    let err = kallsyms::carve(&e.memory, e.digits, &hints).expect_err("wrong kernel");
    assert!(err.to_string().contains("_stext"), "{err}");
    // Entries that count from themselves: any of the three tells where they are.
    let e = encode(Era::PcRelative, symbols(Era::PcRelative, 1000, 3), 5);
    let known = [("_stext", VirtAddr(synthetic::BASE_VA))];
    for hints in [
        Hints {
            known: &known,
            delta: None,
        },
        Hints {
            known: &[],
            delta: Some(e.delta),
        },
    ] {
        let k = kallsyms::carve(&e.memory, e.digits, &hints).expect("carved");
        assert_eq!(rows(&k), e.symbols);
    }
}

#[test]
fn errors_name_the_place() {
    let e = encode(Era::PerCpu, symbols(Era::PerCpu, 1000, 3), 5);
    let k = kallsyms::carve(&e.memory, e.digits, &Hints::default()).expect("carved");
    let mut m = e.memory.clone();
    let at = |pa: PhysAddr| usize::try_from(pa.0 - m.base).unwrap();
    let (index, count) = (at(k.places().token_index), at(k.places().num_syms));
    m.bytes[index + 20] ^= 0xff;
    let err = kallsyms::decode(&m, &k.places(), &Hints::default()).expect_err("torn");
    let place = format!("{}", k.places().token_index.saturating_add(20));
    assert!(err.to_string().contains(&place), "{err}");
    m.bytes[index + 20] ^= 0xff;
    m.bytes[count..count + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let err = kallsyms::decode(&m, &k.places(), &Hints::default()).expect_err("absurd");
    assert!(err.to_string().contains("num_syms"), "{err}");
    let err = kallsyms::carve(&m, PhysAddr(0), &Hints::default()).expect_err("nothing");
    assert!(err.to_string().contains("0\\0 1\\0"), "{err}");
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: see docs/symbols.md"
)]
fn captures_agree_with_the_guest_by_both_ways_in() {
    for name in capture::names("") {
        let c = capture::open(&name);
        let stext = VirtAddr(c.info.symbol("_stext").expect("_stext"));
        let places = Places::from_vmcoreinfo(&c.info, c.delta()).expect("6.0 or later");
        let known = [("_stext", stext)];
        let hints = Hints {
            known: &known,
            delta: None,
        };
        let a = kallsyms::decode(&c.image, &places, &hints).expect("decodes");
        let carved: Vec<Kallsyms> = c
            .hits(DIGITS)
            .into_iter()
            .filter_map(|pa| kallsyms::carve(&c.image, pa, &Hints::default()).ok())
            .collect();
        assert_eq!(carved.len(), 1, "{name}: one kernel");
        assert_eq!(rows(&a), rows(&carved[0]), "{name}");
        let b = carved[0].places();
        assert_eq!(
            (b.names, b.addresses, b.num_syms, b.relative_base),
            (
                places.names,
                places.addresses,
                places.num_syms,
                places.relative_base
            )
        );
        let arm = name.contains("arm64");
        let want = if arm {
            Encoding::Relative
        } else {
            Encoding::AbsolutePerCpu
        };
        assert_eq!(a.layout().encoding, want);
        let all: std::collections::HashSet<_> = rows(&a).into_iter().collect();
        let truth = c.truth_symbols();
        assert!(truth.len() >= 5, "{name}: samples");
        for symbol in truth {
            assert!(all.contains(&symbol), "{name}: {symbol:x?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn round_trip(era in 0..ERAS.len(), n in 300usize..1500, seed: u64, noise: u64) {
        let era = ERAS[era];
        let e = encode(era, symbols(era, n, seed), noise);
        let hints = Hints { known: &[], delta: Some(e.delta) };
        let k = kallsyms::carve(&e.memory, e.digits, &hints).expect("carved");
        prop_assert_eq!(rows(&k), e.symbols);
    }

    #[test]
    fn flipped_bytes_end_in_a_result(
        era in 0..ERAS.len(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
    ) {
        let era = ERAS[era];
        let e = encode(era, symbols(era, 600, 11), 1);
        let places = kallsyms::carve(&e.memory, e.digits, &Hints::default()).unwrap().places();
        let mut m = e.memory;
        let tables = usize::try_from(places.names.0.min(places.addresses.0) - m.base).unwrap();
        let len = m.bytes.len() - tables;
        for (i, v) in flips {
            m.bytes[tables + i.index(len)] = v;
        }
        let _ = kallsyms::carve(&m, e.digits, &Hints::default());
        let _ = kallsyms::decode(&m, &places, &Hints::default());
    }
}
