//! Hooks that no capture has, forged into its memory: each must be flagged, and nothing else.

use crate::common::{Image, build, captures, has_data_symbols, number, text};
use ramsift_layers::PhysAddr;
use ramsift_layers::translate::{PhysError, PhysRead, X86_64};
use ramsift_os::discover::discover;
use ramsift_os::linux::{AddressSpace, Kernel};

/// An image with other bytes at one place.
struct Forged<'i> {
    image: &'i Image,
    at: u64,
    bytes: Vec<u8>,
}

impl PhysRead for Forged<'_> {
    fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
        self.image.read_phys(pa, buf)?;
        for (i, b) in self.bytes.iter().enumerate() {
            let at = (self.at + i as u64).checked_sub(pa.0);
            if let Some(to) = at.and_then(|a| buf.get_mut(a as usize)) {
                *to = *b;
            }
        }
        Ok(())
    }
}

/// Nobody's: between the kernel's text and the modules' in none of the captures.
const NOWHERE: u64 = 0xffff_ffff_ff10_0000;

/// Where a view has a row with these texts, and the number that it has in a column.
fn find(k: &Kernel<'_>, view: &str, want: &[(&str, &str)], column: &str) -> u64 {
    let t = build(k, view);
    let is = |r: &usize| want.iter().all(|(c, v)| text(&t, *r, c) == *v);
    let row = (0..t.rows.len())
        .find(is)
        .unwrap_or_else(|| panic!("{view}: {want:?}"));
    number(&t, row, column) as u64
}

fn member(k: &Kernel<'_>, ty: &str, name: &str) -> u64 {
    k.symbols.types().field(ty, name).unwrap().offset
}

#[test]
#[cfg_attr(
    not(feature = "captures"),
    ignore = "needs captures of real machines: tests/captures builds them"
)]
fn hooks_of_every_kind_are_flagged() {
    let mut checked = 0;
    for c in captures().iter().filter(|c| c.truth["tamper"].is_null()) {
        let d = discover(&c.input());
        let table = d.page_tables.iter().find(|p| p.confirmed).unwrap();
        let k = c.kernel(&d);
        if !has_data_symbols(&k) || table.shape != X86_64.name {
            continue;
        }
        let astray = NOWHERE.to_le_bytes().to_vec();
        let discipline = [
            ("name", "ttyS0"),
            ("kind", "discipline"),
            ("member", "receive_buf"),
        ];
        let gate = find(
            &k,
            "linux/check_idt",
            &[("symbol", "asm_exc_page_fault")],
            "va",
        );
        let function = k.symbols.address("vfs_read").unwrap().0;
        let mut jump = vec![0xe9];
        let far = NOWHERE.wrapping_sub(function + 5) as u32;
        jump.extend(far.to_le_bytes());
        let forged: [(&str, &str, u64, Vec<u8>); 6] = [
            // The middle 16 bits of the handler: another place, outside the kernel.
            ("linux/check_idt", "idt_hook", gate + 6, vec![0, 0]),
            (
                "linux/tty_check",
                "tty_hook",
                find(&k, "linux/tty_check", &discipline, "ops")
                    + member(&k, "tty_ldisc_ops", "receive_buf"),
                astray.clone(),
            ),
            (
                "linux/check_afinfo",
                "proc_net_hook",
                find(
                    &k,
                    "linux/check_afinfo",
                    &[("name", "tcp"), ("member", "show")],
                    "ops",
                ) + member(&k, "seq_operations", "show"),
                astray.clone(),
            ),
            (
                "linux/check_fops",
                "file_operations_hook",
                k.symbols.address("socket_file_ops").unwrap().0
                    + member(&k, "file_operations", "read_iter"),
                astray.clone(),
            ),
            (
                "linux/check_syscall",
                "syscall_hook",
                k.symbols.address("sys_call_table").unwrap().0 + 8,
                (k.symbols.address("vfs_read").unwrap().0 + 4)
                    .to_le_bytes()
                    .to_vec(),
            ),
            ("linux/inline_hooks", "inline_hook", function, jump),
        ];
        for (view, rule, va, bytes) in forged {
            let forged = Forged {
                image: &c.image,
                at: k.space.translate(va).unwrap().0,
                bytes,
            };
            let mut k = c.kernel(&d);
            k.space = AddressSpace::new(&forged, X86_64, table.dtb);
            let t = build(&k, view);
            assert!(!t.anomalies.is_empty(), "{} {view}", c.name);
            // A struct of functions may have several users, each a row.
            assert!(
                t.anomalies.iter().all(|a| a.rule == rule),
                "{} {view}: {:?}",
                c.name,
                t.anomalies
            );
        }
        checked += 1;
    }
    assert!(checked > 0);
}
