//! Which Linux was captured: banner, architecture, and candidates for the page-table root.
//!
//! VMCOREINFO names the top page table and how the kernel image lies in physical memory. A candidate counts as confirmed
//! when walking it from the virtual address of `init_uts_ns` leads to the physical page where the kernel image says it
//! is, and the release stands there. Memory may hold several kernels: what was left of one when the machine went on with
//! another (kexec), or notes of one alone. Each VMCOREINFO is tried with its own table; of several kernels the one whose
//! processes are still there is the one that ran.
//!
//! Source: Linux, `Documentation/admin-guide/kdump/vmcoreinfo.rst`: on x86-64 the kernel image maps
//! `va - 0xffffffff80000000 + phys_base`; on arm64 `va - kimage_voffset`.

use super::{Linux, image, page};
use crate::discover::{Anchor, Discovery, PageTable, of_kind};
use crate::image::KernelImage;
use crate::input::ViewInput;
use crate::machine::{Machine, OpenError};
use crate::page::{OverviewSection, ProcessSection};
use crate::system::System;
use crate::view::{Purpose, View};
use ramsift_layers::translate::{
    AARCH64_4K_48, PhysError, PhysRead, Shape, X86_64, X86_64_LA57, walk,
};
use ramsift_layers::{Dtb, ImageOffset, PhysAddr, VirtAddr};
use ramsift_symbols::VmCoreInfo;
use ramsift_symbols::kallsyms::image_delta;

/// Where x86-64 links its kernel.
const START_KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;

/// Source of a candidate that no walk confirms, since its tables are damaged or not in the image.
pub(crate) const BY_ARITHMETIC: &str = "VMCOREINFO, by arithmetic: its tables can't be read";

impl System for Linux {
    fn name(&self) -> &'static str {
        "linux"
    }

    fn images(&self, memory: &dyn PhysRead, roots: &[u64]) -> Vec<KernelImage> {
        image::images(memory, roots)
    }

    fn anchors_beside(&self, input: &ViewInput<'_>, image: &KernelImage) -> Vec<Anchor> {
        image::anchors_beside(input, image)
    }

    fn discover(&self, input: &ViewInput<'_>, d: &mut Discovery) {
        let infos: Vec<(u64, VmCoreInfo)> = of_kind(input, "vmcoreinfo")
            .filter_map(|a| Some((a.image_offset, VmCoreInfo::parse(&a.data).ok()?)))
            .filter(|(_, v)| v.len() > 10)
            .collect();
        for (at, v) in &infos {
            from_vmcoreinfo(input.memory, *at, v, d);
        }
        if !d.page_tables.iter().any(|t| t.confirmed) {
            by_arithmetic(input.memory, &infos, d);
        }
        d.page_tables.sort_by_key(|p| (!p.confirmed, p.dtb));
        let of = |t: &PageTable| {
            let own = infos.iter().find(|(at, _)| Some(*at) == t.vmcoreinfo);
            own.map(|(_, v)| v)
        };
        if let Some(ran) = latest(input, d, &of) {
            // Before the others that are confirmed.
            d.page_tables[..=ran].rotate_right(1);
        }
        let confirmed = d.page_tables.first().filter(|t| t.confirmed).and_then(of);
        names(input, confirmed.or(infos.first().map(|(_, v)| v)), d);
    }

    fn raw_base(&self, input: &ViewInput<'_>) -> Option<u64> {
        raw_base(input)
    }

    fn looked_for(&self) -> &'static str {
        "Linux banner, no VMCOREINFO"
    }

    fn unconfirmed(&self, d: &Discovery) -> String {
        if d.anchors.contains_key("vmcoreinfo") {
            "the page table that VMCOREINFO names does not translate the kernel; the image is incomplete, or its \
             physical base is not known"
                .into()
        } else {
            "a Linux banner was found, but no VMCOREINFO: the page tables can't be located".into()
        }
    }

    /// The first banner in the kernel's read-only data has no build number, and nothing else can be told by it.
    fn release_in(&self, anchor: &Anchor) -> Option<String> {
        let text = String::from_utf8_lossy(&anchor.data);
        let rest = text
            .strip_prefix("Linux version ")
            .filter(|_| anchor.kind == "linux_banner")?;
        rest.split_whitespace().next().map(str::to_owned)
    }

    fn telling_anchors(&self) -> &'static [&'static str] {
        &["vmcoreinfo", "swapper"]
    }

    fn open<'a>(
        &self,
        input: &ViewInput<'a>,
        d: &Discovery,
    ) -> Result<Box<dyn Machine + 'a>, OpenError> {
        let kernel = super::open(input, d).map_err(OpenError::new)?;
        Ok(Box::new(kernel))
    }

    fn views(&self) -> &'static [View] {
        &super::SHARED
    }

    fn view_for(&self, purpose: Purpose) -> Option<&'static View> {
        let name = match purpose {
            Purpose::Processes => "linux/pslist",
            Purpose::CachedFiles => "linux/pagecache_files",
            Purpose::ProcessCores => "linux/procdump",
            Purpose::Logins => "linux/logins",
            Purpose::CrossView => "linux/psxview",
            Purpose::Clock => "linux/boottime",
        };
        self.views().iter().find(|v| v.name == name)
    }

    fn process_page(&self) -> &'static [ProcessSection] {
        page::PROCESS
    }

    fn overview(&self) -> &'static [OverviewSection] {
        page::OVERVIEW
    }
}

/// Kernels that are compared at most.
const KERNELS: usize = 4;

/// Where among the page tables is that of the kernel that ran last, if several are confirmed: the
/// one with more processes that can be read, since those of an earlier one lay in memory that was used again; of
/// equals the one whose clock stands latest. (The clock alone would not do: two kernels of one build take the
/// same pages early on for the tables that map their data, so the earlier one's may lead to the later one's clock.)
fn latest<'v>(
    input: &ViewInput<'_>,
    d: &Discovery,
    of: &impl Fn(&PageTable) -> Option<&'v VmCoreInfo>,
) -> Option<usize> {
    let confirmed = d.page_tables.iter().take_while(|t| t.confirmed);
    let confirmed: Vec<&PageTable> = confirmed.take(KERNELS).collect();
    if confirmed.len() < 2 {
        return None;
    }
    let rank = |t: &PageTable| {
        let mut alone = Discovery {
            page_tables: vec![t.clone()],
            ..d.clone()
        };
        names(input, of(t), &mut alone);
        let kernel = super::open(input, &alone).ok()?;
        let tasks = kernel.processes(&mut Vec::new()).map_or(0, |p| p.len());
        Some((tasks, kernel.clock().map(|c| c.seconds)))
    };
    let ranked = confirmed.into_iter().map(rank).enumerate();
    // Of equals the first.
    ranked
        .max_by_key(|(i, r)| (*r, std::cmp::Reverse(*i)))
        .map(|(i, _)| i)
}

/// What the kernel of a VMCOREINFO calls itself.
fn names(input: &ViewInput<'_>, info: Option<&VmCoreInfo>, d: &mut Discovery) {
    banner(input, info, d);
    if let Some(v) = info {
        d.os = Some("linux");
        d.release = v.release().map(str::to_owned);
        d.build_id = v.build_id().map(str::to_owned);
    }
}

/// Bytes of a kernel's image at most.
const IMAGE: u64 = 128 << 20;

/// Whether a banner has the number of its build.
fn is_numbered(banner: &str) -> bool {
    let rest = banner.split_once(" #").map(|(_, r)| r);
    rest.is_some_and(|r| r.starts_with(|c: char| c.is_ascii_digit()))
}

/// The banner: one that names the release of VMCOREINFO if there is such, else one with a build
/// number (a weak banner without it also lies in the kernel's read-only data).
fn banner(input: &ViewInput<'_>, info: Option<&VmCoreInfo>, d: &mut Discovery) {
    let all: Vec<(String, u64)> = of_kind(input, "linux_banner")
        .map(|a| {
            (
                String::from_utf8_lossy(&a.data).trim_end().to_owned(),
                a.image_offset,
            )
        })
        .collect();
    let release = info.and_then(VmCoreInfo::release);
    // Copies lie in logs and in cached files: the kernel's own is the next one above the beginning of its image.
    let text = info.and_then(|v| Some(v.symbol("_stext")?.wrapping_sub(image_delta(v)?)));
    let above = |at: u64| {
        let pa = input.runs.to_phys(ImageOffset(at))?;
        pa.0.checked_sub(text?).filter(|d| *d < IMAGE)
    };
    let named = release.and_then(|r| {
        let start = format!("Linux version {r} ");
        all.iter()
            .filter(|(b, _)| b.starts_with(&start) && is_numbered(b))
            .min_by_key(|(_, at)| above(*at).unwrap_or(u64::MAX))
    });
    if let Some((b, at)) = named.or_else(|| all.iter().find(|(b, _)| is_numbered(b))) {
        d.os = Some("linux");
        d.banner = Some(b.clone());
        d.banner_offset = Some(*at);
        let release = b.split_whitespace().nth(2).map(str::to_owned);
        d.release = d.release.take().or(release);
    }
}

/// Candidates from one VMCOREINFO block, checked by a walk.
fn from_vmcoreinfo(memory: &dyn PhysRead, at: u64, v: &VmCoreInfo, d: &mut Discovery) {
    let Some(root) = v.symbol("swapper_pg_dir") else {
        return;
    };
    let arm = v.number("kimage_voffset");
    let (to_pa, shape, arch): (Box<dyn Fn(u64) -> u64>, Shape, &str) = match arm {
        Some(off) => (
            Box::new(move |va: u64| va.wrapping_sub(off)),
            AARCH64_4K_48,
            "aarch64",
        ),
        None => {
            let base = v.number("phys_base").unwrap_or(0);
            let five = v.number("pgtable_l5_enabled") == Some(1);
            let to = move |va: u64| va.wrapping_sub(START_KERNEL_MAP).wrapping_add(base);
            (
                Box::new(to),
                if five { X86_64_LA57 } else { X86_64 },
                "x86_64",
            )
        }
    };
    d.architecture.get_or_insert_with(|| arch.to_owned());
    let dtb = Dtb(to_pa(root));
    if d.page_tables.iter().any(|p| p.dtb == dtb) {
        return;
    }
    let leads = |name: &str| {
        v.symbol(name).is_some_and(|va| {
            walk(memory, &shape, dtb, VirtAddr(va)).is_ok_and(|t| t.pa.0 == to_pa(va))
        })
    };
    let named = v.symbol("init_uts_ns").is_some_and(|va| {
        v.release()
            .is_some_and(|r| holds(memory, PhysAddr(to_pa(va)), r))
    });
    // The page with the release may be damaged: three places in three parts of the image do as well.
    let confirmed = leads("init_uts_ns") && (named || (leads("_stext") && leads("swapper_pg_dir")));
    d.page_tables.push(PageTable {
        dtb,
        shape: shape.name,
        source: "VMCOREINFO",
        vmcoreinfo: Some(at),
        confirmed,
    });
}

/// Takes a candidate whose table does not lead anywhere, if the release stands where VMCOREINFO says: pages of the
/// tables are missing, and the kernel's image needs none.
fn by_arithmetic(memory: &dyn PhysRead, infos: &[(u64, VmCoreInfo)], d: &mut Discovery) {
    for t in &mut d.page_tables {
        let own = infos.iter().find(|(at, _)| Some(*at) == t.vmcoreinfo);
        let Some((_, v)) = own else { continue };
        let names = image_delta(v)
            .zip(v.symbol("init_uts_ns"))
            .map(|(delta, va)| PhysAddr(va.wrapping_sub(delta)));
        let stands = names
            .zip(v.release())
            .is_some_and(|(pa, r)| holds(memory, pa, r));
        if stands {
            t.confirmed = true;
            t.source = BY_ARITHMETIC;
        }
    }
}

/// Physical memory whose addresses begin at `base`.
struct Above<'m> {
    memory: &'m dyn PhysRead,
    base: u64,
}

impl PhysRead for Above<'_> {
    fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
        let below = pa.0.checked_sub(self.base);
        let below = below.ok_or(PhysError::NotInImage { pa })?;
        self.memory.read_phys(PhysAddr(below), buf)
    }
}

/// Bases that are tried are multiples of this.
const BASE_STEP: u64 = 1 << 20;
/// Bases that are tried at most.
const BASES: u64 = 1 << 20;

/// Where the physical memory of a raw image begins, if not at 0: arm64 machines often have theirs
/// at 1 GiB, and a raw image does not say so. The base counts with which the release stands where
/// VMCOREINFO says and the kernel's own table translates `_stext`.
fn raw_base(input: &ViewInput<'_>) -> Option<u64> {
    let [run] = input.runs.runs() else {
        return None;
    };
    if run.pa != 0 {
        return None;
    }
    let infos = of_kind(input, "vmcoreinfo").filter_map(|a| VmCoreInfo::parse(&a.data).ok());
    infos.filter(|v| v.len() > 10).find_map(|v| {
        let offset = v.number("kimage_voffset")?;
        let release = v.release()?;
        let at = |name: &str| Some(v.symbol(name)?.wrapping_sub(offset));
        let (names, root, text) = (at("init_uts_ns")?, at("swapper_pg_dir")?, at("_stext")?);
        if holds(input.memory, PhysAddr(names), release) {
            return None;
        }
        let lowest = names
            .saturating_sub(run.len)
            .next_multiple_of(BASE_STEP)
            .max(BASE_STEP);
        let bases = (0..BASES)
            .map(|i| lowest + i * BASE_STEP)
            .take_while(|b| *b <= names);
        bases.into_iter().find(|base| {
            let memory = Above {
                memory: input.memory,
                base: *base,
            };
            let va = VirtAddr(text.wrapping_add(offset));
            holds(&memory, PhysAddr(names), release)
                && walk(&memory, &AARCH64_4K_48, Dtb(root), va).is_ok_and(|t| t.pa.0 == text)
        })
    })
}

/// Whether `text` stands in the 512 bytes from `pa`.
fn holds(memory: &dyn PhysRead, pa: PhysAddr, text: &str) -> bool {
    let mut buf = [0; 512];
    memory.read_phys(pa, &mut buf).is_ok() && buf.windows(text.len()).any(|w| w == text.as_bytes())
}
