//! Virtual memory of the captured machine, through its own page tables.

use super::linear::Linear;
use super::{Kernel, LinuxError, Object};
use ramsift_layers::translate::{PhysError, PhysRead, Shape, TranslateError, walk};
use ramsift_layers::{Dtb, PhysAddr, VirtAddr};
use std::cell::RefCell;
use std::collections::HashMap;

/// Why virtual memory could not be read.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// It has no physical address.
    #[error(transparent)]
    Translate(#[from] TranslateError),
    /// The image does not hold it.
    #[error("virtual address {va}: {source}")]
    Phys {
        /// The virtual address.
        va: VirtAddr,
        /// What is missing.
        source: PhysError,
    },
}

/// Translations kept at a time; they are forgotten together.
const KEPT: usize = 64 << 10;
/// The least page; larger ones are kept as many.
const PAGE: u64 = 4096;

/// An address space.
pub struct AddressSpace<'a> {
    memory: &'a dyn PhysRead,
    shape: Shape,
    dtb: Dtb,
    known: RefCell<HashMap<u64, u64>>,
    linear: Linear,
    /// Whether arithmetic goes before page tables, since those are damaged.
    linear_first: bool,
}

impl std::fmt::Debug for AddressSpace<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AddressSpace({}, {})", self.shape.name, self.dtb.0)
    }
}

impl<'a> AddressSpace<'a> {
    /// The space below the table at `dtb`.
    pub fn new(memory: &'a dyn PhysRead, shape: Shape, dtb: Dtb) -> Self {
        Self {
            memory,
            shape,
            dtb,
            known: RefCell::default(),
            linear: Linear::default(),
            linear_first: false,
        }
    }

    /// The same with what is linear in it: taken where page tables are not in the image, or before them (`first`).
    pub(super) fn with_linear(mut self, linear: Linear, first: bool) -> Self {
        self.linear = linear;
        self.linear_first = first;
        self
    }

    /// Whether arithmetic goes before page tables: in a kernel whose own tables are damaged.
    pub(super) fn prefers_linear(&self) -> bool {
        self.linear_first
    }

    /// The same machine below another table: the memory of a process.
    pub fn with_table(&self, dtb: Dtb) -> AddressSpace<'a> {
        Self::new(self.memory, self.shape, dtb)
    }

    /// The shape of its tables.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Where its top table lies.
    pub fn dtb(&self) -> Dtb {
        self.dtb
    }

    /// Physical memory.
    pub fn memory(&self) -> &'a dyn PhysRead {
        self.memory
    }

    /// The physical address of a virtual one.
    pub fn translate(&self, va: u64) -> Result<PhysAddr, ReadError> {
        let (page, inside) = (va & !(PAGE - 1), va & (PAGE - 1));
        if self.linear_first
            && let Some(pa) = self.linear.translate(va)
        {
            return Ok(pa);
        }
        if let Some(pa) = self.known.borrow().get(&page) {
            return Ok(PhysAddr(pa + inside));
        }
        let t = match walk(self.memory, &self.shape, self.dtb, VirtAddr(page)) {
            Ok(t) => t,
            // A table that the image lacks.
            Err(e @ TranslateError::Phys(_)) => {
                return self.linear.translate(va).ok_or_else(|| e.into());
            }
            Err(e) => return Err(e.into()),
        };
        let mut known = self.known.borrow_mut();
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(page, t.pa.0);
        Ok(PhysAddr(t.pa.0 + inside))
    }

    /// Fills `buf` from `va`, all of it or nothing that counts.
    pub fn read(&self, va: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let mut done = 0;
        while done < buf.len() {
            let at = va.wrapping_add(done as u64);
            let left = usize::try_from(PAGE - (at & (PAGE - 1))).unwrap_or(usize::MAX);
            let n = left.min(buf.len() - done);
            let pa = self.translate(at)?;
            self.memory
                .read_phys(pa, &mut buf[done..done + n])
                .map_err(|source| ReadError::Phys {
                    va: VirtAddr(at),
                    source,
                })?;
            done += n;
        }
        Ok(())
    }

    /// A 64-bit number.
    pub fn u64(&self, va: u64) -> Result<u64, ReadError> {
        let mut raw = [0; 8];
        self.read(va, &mut raw)?;
        Ok(u64::from_le_bytes(raw))
    }
}

/// The memory of a task's process; `None` of a kernel thread.
pub(crate) fn task_memory<'k>(
    kernel: &'k Kernel<'_>,
    task: &Object<'k>,
) -> Result<Option<(Object<'k>, AddressSpace<'k>)>, LinuxError> {
    let Some(mm) = task.follow("mm", "mm_struct")? else {
        return Ok(None);
    };
    let dtb = kernel.space.translate(mm.number("pgd")?)?;
    Ok(Some((mm, kernel.space.with_table(Dtb(dtb.0)))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramsift_layers::translate::X86_64;

    /// One table of each level that maps 2 MiB at 0 onto 4 MiB.
    struct Machine;

    impl PhysRead for Machine {
        fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
            let entry: u64 = match pa.0 {
                0x1000 => 0x2003,
                0x2000 => 0x3003,
                0x3000 => 0x40_0083,
                a if (0x40_0000..0x60_0000).contains(&a) => {
                    for (i, b) in buf.iter_mut().enumerate() {
                        *b = ((a + i as u64) / PAGE) as u8;
                    }
                    return Ok(());
                }
                a if a < 0x4000 => 0,
                _ => return Err(PhysError::NotInImage { pa }),
            };
            buf.copy_from_slice(&entry.to_le_bytes()[..buf.len()]);
            Ok(())
        }
    }

    #[test]
    fn reads_cross_pages_and_say_where_nothing_is() {
        let s = AddressSpace::new(&Machine, X86_64, Dtb(0x1000));
        let mut buf = [0; 8];
        s.read(0x1ffc, &mut buf).expect("mapped");
        assert_eq!(buf, [1, 1, 1, 1, 2, 2, 2, 2]);
        let e = s.read(0x1f_fffc, &mut buf).expect_err("half of it");
        assert!(e.to_string().contains("0x200000"), "{e}");
    }
}
