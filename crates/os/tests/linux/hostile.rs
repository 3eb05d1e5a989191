//! Memory that lies: every view ends, without a panic and soon, whatever the bytes say.

use crate::common::{Image, captures, has_data_symbols};
use ramsift_layers::PhysAddr;
use ramsift_layers::translate::{PhysError, PhysRead, X86_64};
use ramsift_os::Machine as _;
use ramsift_os::discover::discover;
use ramsift_os::linux::{AddressSpace, FileTree};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// An image of which one word in some hundreds is another: a random number, a neighbour's value, a
/// pointer to itself or all ones.
struct Liar<'i> {
    image: &'i Image,
    seed: u64,
    one_in: u64,
}

/// SplitMix64.
fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl PhysRead for Liar<'_> {
    fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
        self.image.read_phys(pa, buf)?;
        let first = pa.0 & !7;
        for word in (first..pa.0 + buf.len() as u64).step_by(8) {
            let chance = mix(word ^ self.seed);
            if !chance.is_multiple_of(self.one_in) {
                continue;
            }
            let lie = match chance >> 60 {
                0..4 => mix(chance),
                4..8 => mix(chance) & 0xffff,
                8..12 => {
                    let mut raw = [0; 8];
                    let near = PhysAddr(word ^ 0x40);
                    self.image.read_phys(near, &mut raw).unwrap_or_default();
                    u64::from_le_bytes(raw)
                }
                12..14 => 0,
                _ => u64::MAX,
            };
            for (i, b) in lie.to_le_bytes().into_iter().enumerate() {
                let at = (word + i as u64).checked_sub(pa.0);
                if let Some(at) = at.and_then(|a| buf.get_mut(a as usize)) {
                    *at = b;
                }
            }
        }
        Ok(())
    }
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn views_end_on_torn_and_forged_memory() {
    let mut checked = 0;
    for c in captures() {
        let d = discover(&c.input());
        let table = d.page_tables.iter().find(|p| p.confirmed).unwrap();
        if !has_data_symbols(&c.kernel(&d)) || table.shape != X86_64.name {
            continue;
        }
        for (seed, one_in) in [(1, 30), (2, 300), (3, 3000), (4, 300), (5, 100)] {
            let liar = Liar {
                image: &c.image,
                seed,
                one_in,
            };
            let mut k = c.kernel(&d);
            k.space = AddressSpace::new(&liar, X86_64, table.dtb);
            for v in ramsift_os::views() {
                let start = Instant::now();
                // That a view can't be built at all is a fair answer too.
                let _ = k.build(v);
                if v.recovers {
                    let _ = k.recover(v, None, &mut Vec::new(), &mut |_| ControlFlow::Continue(()));
                }
                let took = start.elapsed();
                let at = format!("{} {} seed {seed}", c.name, v.name);
                assert!(took < Duration::from_secs(60), "{at}: {took:?}");
            }
            let _ = FileTree::new(&k);
            checked += 1;
        }
    }
    assert!(checked > 0);
}
