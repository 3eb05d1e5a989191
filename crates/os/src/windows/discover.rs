//! Which Windows was captured: its kernel's image, its symbol file, and the page table that maps both.

use super::image::{self, Found};
use super::{Windows, page};
use crate::discover::{Anchor, Discovery, PageTable, of_kind};
use crate::image::KernelImage;
use crate::input::ViewInput;
use crate::machine::{Machine, OpenError};
use crate::page::{OverviewSection, ProcessSection};
use crate::system::System;
use crate::view::{Purpose, View};
use ramsift_layers::translate::{PhysRead, X86_64, X86_64_LA57};
use ramsift_layers::{Dtb, ImageOffset};

const PAGE: u64 = 4096;
/// Anchors that may be top tables: pages that lead to themselves and to where KUSER_SHARED_DATA is mapped.
const TOP_TABLE: &str = "top_table";

impl System for Windows {
    fn name(&self) -> &'static str {
        "windows"
    }

    fn images(&self, memory: &dyn PhysRead, roots: &[u64]) -> Vec<KernelImage> {
        let Some(f) = image::find(memory, roots, &[]) else {
            return Vec::new();
        };
        let shape = if f.five_levels { X86_64_LA57 } else { X86_64 };
        let space = super::Space::new(memory, shape, f.dtb);
        // The record that names the symbol file is all that is needed of the image.
        let record = f.pdb.va & !(PAGE - 1);
        let Ok(pa) = space.translate(record) else {
            return Vec::new();
        };
        let next = space.translate(record + PAGE);
        let len = if next.is_ok_and(|n| n.0 == pa.0 + PAGE) {
            2 * PAGE
        } else {
            PAGE
        };
        vec![KernelImage {
            place: f.place.to_owned(),
            root: Dtb(f.dtb),
            shape,
            delta: record.wrapping_sub(pa.0),
            data: std::iter::once(pa.0..pa.0 + len).collect(),
        }]
    }

    fn anchors_beside(&self, _: &ViewInput<'_>, _: &KernelImage) -> Vec<Anchor> {
        Vec::new()
    }

    fn discover(&self, input: &ViewInput<'_>, d: &mut Discovery) {
        let record = of_kind(input, "rsds").next();
        if record.is_none() || d.page_tables.iter().any(|t| t.confirmed) {
            return;
        }
        d.os = Some("windows");
        let tables = of_kind(input, TOP_TABLE)
            .filter_map(|a| input.runs.to_phys(ImageOffset(a.image_offset)));
        let tables: Vec<u64> = tables.map(|pa| pa.0).collect();
        let Some(f) = image::find(input.memory, input.dtb_hints, &tables) else {
            return;
        };
        tell(&f, d);
    }

    fn raw_base(&self, _: &ViewInput<'_>) -> Option<u64> {
        None
    }

    fn looked_for(&self) -> &'static str {
        "Windows kernel debug record"
    }

    fn unconfirmed(&self, _: &Discovery) -> String {
        "a Windows kernel was found, but no page table that maps it: neither the container, nor the first MiBs of memory, nor \
         a table that maps itself lead to one"
            .into()
    }

    fn telling_anchors(&self) -> &'static [&'static str] {
        &["rsds", TOP_TABLE]
    }

    fn open<'a>(
        &self,
        input: &ViewInput<'a>,
        d: &Discovery,
    ) -> Result<Box<dyn Machine + 'a>, OpenError> {
        let kernel = super::open::open(input, d).map_err(OpenError::new)?;
        Ok(Box::new(kernel))
    }

    fn scans_pools(&self) -> bool {
        true
    }

    fn views(&self) -> &'static [View] {
        &super::SHARED
    }

    fn view_for(&self, purpose: Purpose) -> Option<&'static View> {
        let name = match purpose {
            Purpose::Processes => "windows/pslist",
            Purpose::CrossView => "windows/psxview",
            Purpose::CachedFiles => "windows/dumpfiles",
            Purpose::ProcessCores => "windows/procdump",
            Purpose::Clock => "windows/info",
            Purpose::Logins => return None,
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

/// Enters what was found.
fn tell(f: &Found, d: &mut Discovery) {
    let (major, minor, build) = f.version;
    let release = match build {
        Some(b) => format!("{major}.{minor}.{b}"),
        None => format!("{major}.{minor}"),
    };
    d.banner = Some(format!("Windows NT {release}, {}", f.pdb.key()));
    d.banner_offset = None;
    d.release = Some(release);
    d.build_id = Some(format!("{}-{}", f.pdb.guid, f.pdb.age));
    d.architecture = Some("x86_64".to_owned());
    d.kernel_base = Some(f.base);
    let shape = if f.five_levels { X86_64_LA57 } else { X86_64 };
    d.page_tables.retain(|t| t.dtb.0 != f.dtb);
    d.page_tables.insert(
        0,
        PageTable {
            dtb: Dtb(f.dtb),
            shape: shape.name,
            source: f.place,
            vmcoreinfo: None,
            confirmed: true,
        },
    );
}
