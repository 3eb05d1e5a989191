//! Which system was captured: what every system is asked, and what is known then.

use crate::SYSTEMS;
use crate::input::ViewInput;
use ramsift_layers::Dtb;
use ramsift_layers::translate::{AARCH64_4K_48, X86_64};
use std::collections::BTreeMap;

/// A spot that helps to find the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// `linux_banner`, `vmcoreinfo`, `rsds`, ...
    pub kind: String,
    /// First byte.
    pub image_offset: u64,
    /// The bytes that tell.
    pub data: Vec<u8>,
}

/// A candidate for the top page table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageTable {
    /// Its physical address.
    pub dtb: Dtb,
    /// Name of its shape.
    pub shape: &'static str,
    /// Where the candidate comes from.
    pub source: &'static str,
    /// Image offset of the VMCOREINFO that it comes from.
    pub vmcoreinfo: Option<u64>,
    /// Whether a walk through it led where it should.
    pub confirmed: bool,
}

/// What is known of the captured system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discovery {
    /// The name of its system.
    pub os: Option<&'static str>,
    /// `x86_64` or `aarch64`.
    pub architecture: Option<String>,
    /// The kernel's banner.
    pub banner: Option<String>,
    /// Its image offset.
    pub banner_offset: Option<u64>,
    /// Kernel release.
    pub release: Option<String>,
    /// Build id.
    pub build_id: Option<String>,
    /// Virtual address of the kernel's image, where its system tells.
    pub kernel_base: Option<u64>,
    /// Candidates, confirmed ones first.
    pub page_tables: Vec<PageTable>,
    /// How many anchors of each kind there were.
    pub anchors: BTreeMap<String, usize>,
    /// Why structured analysis is not possible.
    pub impossible: Option<String>,
}

/// Looks at the anchors and reads what they point at.
pub fn discover(input: &ViewInput<'_>) -> Discovery {
    let mut d = Discovery {
        architecture: input.arch.map(str::to_owned),
        ..Discovery::default()
    };
    for a in input.anchors {
        *d.anchors.entry(a.kind.clone()).or_default() += 1;
    }
    for system in SYSTEMS {
        system.discover(input, &mut d);
    }
    for hint in input.dtb_hints {
        let known = d.page_tables.iter().any(|p| p.dtb.0 == *hint);
        if !known {
            let shape = if d.architecture.as_deref() == Some("aarch64") {
                AARCH64_4K_48
            } else {
                X86_64
            };
            d.page_tables.push(PageTable {
                dtb: Dtb(*hint),
                shape: shape.name,
                source: "the container's processor state",
                vmcoreinfo: None,
                confirmed: false,
            });
        }
    }
    d.impossible = reason(&d);
    d
}

/// Anchors of one kind.
pub(crate) fn of_kind<'a>(
    input: &'a ViewInput<'_>,
    kind: &'a str,
) -> impl Iterator<Item = &'a Anchor> {
    input.anchors.iter().filter(move |a| a.kind == kind)
}

/// Where the physical memory of a raw image begins, if not at 0: a raw image does not say so, but the kernel in it may.
pub fn raw_base(input: &ViewInput<'_>) -> Option<u64> {
    SYSTEMS.iter().find_map(|s| s.raw_base(input))
}

fn reason(d: &Discovery) -> Option<String> {
    if d.page_tables.iter().any(|p| p.confirmed) {
        return None;
    }
    let system = SYSTEMS.iter().find(|s| Some(s.name()) == d.os);
    Some(system.map_or_else(
        || {
            let looked_for: Vec<&str> = SYSTEMS.iter().map(|s| s.looked_for()).collect();
            let all = looked_for.join(", no ");
            format!("no kernel was found in the image (no {all})")
        },
        |s| s.unconfirmed(d),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramsift_layers::PhysAddr;
    use ramsift_layers::run::RunMap;
    use ramsift_layers::translate::{PhysError, PhysRead};

    struct Nothing;

    impl PhysRead for Nothing {
        fn read_phys(&self, pa: PhysAddr, _: &mut [u8]) -> Result<(), PhysError> {
            Err(PhysError::NotInImage { pa })
        }
    }

    fn input<'a>(runs: &'a RunMap, anchors: &'a [Anchor]) -> ViewInput<'a> {
        ViewInput {
            memory: &Nothing,
            runs,
            arch: None,
            dtb_hints: &[],
            anchors,
            symbols: None,
            page_files: &[],
            pool: None,
        }
    }

    #[test]
    fn nothing_found_says_what_was_looked_for() {
        let runs = RunMap::raw(4096);
        let d = discover(&input(&runs, &[]));
        assert!(
            d.impossible
                .expect("a reason")
                .contains("no kernel was found")
        );
    }

    #[test]
    fn a_weak_banner_is_passed_over() {
        let runs = RunMap::raw(4096);
        let banner = |text: &str, at| Anchor {
            kind: "linux_banner".into(),
            image_offset: at,
            data: text.as_bytes().to_vec(),
        };
        let anchors = [
            banner("Linux version 6.1.0 (x) SMP", 1),
            banner("Linux version 6.1.0 (x) #1 SMP Debian", 2),
        ];
        let d = discover(&input(&runs, &anchors));
        assert_eq!((d.os, d.banner_offset), (Some("linux"), Some(2)));
        assert_eq!(d.release.as_deref(), Some("6.1.0"));
        assert!(d.impossible.expect("a reason").contains("no VMCOREINFO"));
    }
}
