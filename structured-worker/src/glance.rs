//! What the known places of a capture tell of its system, without a job and without a pass over its memory.

use crate::alone::{AloneError, Found, Means, at_known_places, input};
use crate::anchors;
use ramsift_layers::format::Layout;
use ramsift_layers::source::CachedPhys;
use ramsift_layers::translate::{PhysError, PhysRead};
use ramsift_layers::{ImageReader, PhysAddr};
use ramsift_os::discover::{Anchor, Discovery, discover};
use ramsift_os::image::{KernelImage, anchors_beside, known_images};
use ramsift_os::machine::is_whole;
use ramsift_os::{SYSTEMS, open};
use std::ops::Range;

/// Read-only data begin at a large page, and what the kernel calls itself is linked first: so many bytes at the beginning of
/// each large page are looked at for its banner.
const BEGINNING: u64 = 8 << 10;
const LARGE_PAGE: u64 = 2 << 20;
/// Large pages that are looked at: more than a kernel's code takes.
const PARTS: usize = 64;
/// Bytes that are fetched around what is missing: the first MiB, where most of the known places lie, in few reads.
const AROUND: u64 = 256 << 10;
/// Where real mode ends.
const REAL_MODE: u64 = 1 << 20;

/// Whether views can be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prospect {
    /// The kernel was opened, and its processes can be listed.
    Possible,
    /// It can't be opened; why, and what is missing.
    Impossible(String),
    /// Nobody tried; why not.
    Open(String),
}

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glance {
    /// The name of the system.
    pub system: Option<&'static str>,
    /// What its kernel calls itself.
    pub kernel: Option<String>,
    /// The known place that led to it.
    pub place: Option<String>,
    /// Whether views can be built.
    pub prospect: Prospect,
    /// Bytes of the capture that were read for it, unpacked.
    pub bytes_read: u64,
}

/// Looks at the known places of a capture; with `whole` opens the kernel that they lead to, which reads its image: 35 to 50 MB.
pub async fn glance(
    image: &ImageReader,
    layout: &Layout,
    means: Means,
    whole: bool,
) -> Result<Glance, AloneError> {
    let (source, paged, layout) = (image.bytes(), image.paged_bytes(), layout.clone());
    let seen = tokio::task::spawn_blocking(move || {
        let memory =
            CachedPhys::new(source.clone(), layout.runs.clone(), means.cache).around(AROUND);
        let near = CachedPhys::new(source.clone(), layout.runs.clone(), means.cache);
        let seen = look(&memory, &near, &layout);
        if let Some(e) = memory.take_trouble().or_else(|| near.take_trouble()) {
            return Err(e.into());
        }
        if !whole || seen.system.is_none() {
            return Ok(seen);
        }
        let symbols = means.symbols.as_deref();
        let (memory, anchors, place) = match at_known_places(
            paged,
            &layout,
            means.cache,
            0,
            symbols,
        ) {
            Found::There(memory, anchors, place) => (memory, anchors, place),
            Found::Trouble(e) => return Err(e.into()),
            Found::Not => {
                let why = "no page table at the known places is confirmed; the scan looks for one in all of memory";
                return Ok(Glance {
                    prospect: Prospect::Open(why.to_owned()),
                    ..seen
                });
            }
        };
        let input = input(&memory, &layout.runs, &layout, &anchors, symbols);
        let d = discover(&input);
        let prospect = match &d.impossible {
            Some(why) => Prospect::Impossible(why.clone()),
            None => match open(&input, &d) {
                Ok(m) if is_whole(m.as_ref()) => Prospect::Possible,
                Ok(m) => Prospect::Impossible(
                    m.damage()
                        .unwrap_or_else(|| "its processes can't be listed".to_owned()),
                ),
                Err(e) => Prospect::Impossible(e.to_string()),
            },
        };
        if let Some(e) = memory.take_trouble() {
            return Err(e.into());
        }
        Ok(Glance {
            system: d.os.or(seen.system),
            kernel: name_of(&d).or(seen.kernel),
            place: Some(place),
            prospect,
            bytes_read: seen.bytes_read + memory.bytes_read(),
        })
    });
    seen.await.map_err(|e| AloneError::Thread(e.to_string()))?
}

/// What a kernel calls itself.
fn name_of(d: &Discovery) -> Option<String> {
    d.release.clone().or_else(|| d.banner.clone())
}

/// Places in a kernel's image where its data may begin.
fn beginnings(data: &[Range<u64>]) -> impl Iterator<Item = Range<u64>> + '_ {
    let of = |r: &Range<u64>| {
        let end = r.end;
        let next = r.start.next_multiple_of(LARGE_PAGE);
        let rest = (next..end).step_by(2 << 20);
        let first = (next != r.start).then_some(r.start);
        first
            .into_iter()
            .chain(rest)
            .map(move |a| a..end.min(a.saturating_add(BEGINNING)))
    };
    data.iter().flat_map(of).take(PARTS)
}

/// Memory in which known places are looked at: the first MiB in few reads, since all of it is, and elsewhere no more than is asked for.
struct Places<'m> {
    low: &'m CachedPhys,
    near: &'m CachedPhys,
}

impl PhysRead for Places<'_> {
    fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
        match pa.0 < REAL_MODE {
            true => self.low.read_phys(pa, buf),
            false => self.near.read_phys(pa, buf),
        }
    }
}

/// Finds images of kernels at known places, and their banners.
fn look(memory: &CachedPhys, near: &CachedPhys, layout: &Layout) -> Glance {
    let places = Places { low: memory, near };
    for (system, images) in SYSTEMS.iter().zip(known_images(&places, &layout.dtb_hints)) {
        let Some(first) = images.first() else {
            continue;
        };
        let kernel = images.iter().find_map(|i| banner(memory, near, layout, i));
        let why = "the kernel was found and not opened: --deep opens it";
        return Glance {
            system: Some(system.name()),
            kernel,
            place: Some(first.place.clone()),
            prospect: Prospect::Open(why.to_owned()),
            bytes_read: memory.bytes_read() + near.bytes_read(),
        };
    }
    Glance {
        system: None,
        kernel: None,
        place: None,
        prospect: Prospect::Open(
            "no known place leads to a kernel; the scan looks for one in all of memory".to_owned(),
        ),
        bytes_read: memory.bytes_read() + near.bytes_read(),
    }
}

/// What the kernel in an image calls itself. `near` reads no more than what is asked for.
fn banner(
    memory: &CachedPhys,
    near: &CachedPhys,
    layout: &Layout,
    image: &KernelImage,
) -> Option<String> {
    let mut found = Vec::new();
    for part in beginnings(&image.data) {
        let short = KernelImage {
            data: vec![part],
            ..image.clone()
        };
        let more = anchors::of_image(near, &layout.runs, &short);
        if more.is_empty() {
            continue;
        }
        found.extend(more);
        let d = discover(&input(near, &layout.runs, layout, &found, None));
        let release = |a: &Anchor| SYSTEMS.iter().find_map(|s| s.release_in(a));
        if let Some(name) = name_of(&d).or_else(|| found.iter().find_map(release)) {
            return Some(name);
        }
    }
    let beside = anchors_beside(&input(memory, &layout.runs, layout, &found, None), image);
    found.extend(beside);
    name_of(&discover(&input(
        memory,
        &layout.runs,
        layout,
        &found,
        None,
    )))
}
