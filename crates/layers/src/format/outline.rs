//! What a few KiB tell of a capture whose ranges take a pass over it, or over its descriptors: for who asks before a job
//! is planned.
//!
//! AVML writes the length of a frame behind it, so the last range is found from the end of the file. A kdump's header and
//! bitmap tell how much memory there is; only its descriptors, 24 bytes for each page, tell where.

use super::avml::header as avml_header;
use super::flat::{Dump, MAGIC as FLAT};
use super::{FormatError, Told, kdump};
use crate::FileOffset;
use crate::source::ByteSource;

/// What the beginning and the end of a capture tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// Name of the format.
    pub format: &'static str,
    /// Its version.
    pub version: Option<String>,
    /// Processor, where the container tells.
    pub arch: Option<String>,
    /// Bytes of memory, where they were counted.
    pub memory: Option<u64>,
    /// Page-table roots that the container recorded.
    pub dtb_hints: Vec<u64>,
    /// What the container says of its machine.
    pub told: Told,
    /// What else is known, for people.
    pub notes: Vec<String>,
    /// Why the capture is not complete, as far as this tells.
    pub damage: Option<String>,
}

/// The same of a capture of a format that takes a pass; `None` of one whose headers alone tell all.
pub async fn outline(source: &dyn ByteSource) -> Result<Option<Outline>, FormatError> {
    let head = source.head(32).await?;
    if head.starts_with(super::avml::AVML) {
        return avml(source, &head).await.map(Some);
    }
    if head.starts_with(FLAT) {
        return Ok(Some(Outline {
            format: "kdump",
            notes: vec![
                "a flattened dump (makedumpfile -F): its headers lie anywhere in it".into(),
            ],
            ..Outline::default()
        }));
    }
    if head.starts_with(kdump::MAGIC) {
        return kdump(source).await.map(Some);
    }
    super::hiberfil::outline(source).await
}

/// The kernel's VMCOREINFO, where the container of a capture has it.
pub async fn vmcoreinfo(source: &dyn ByteSource) -> Option<Vec<u8>> {
    let head = source.head(32).await.ok()?;
    if head.starts_with(b"\x7fELF") {
        return super::elf_core::vmcoreinfo(source).await;
    }
    let dump = if head.starts_with(FLAT) {
        let (mut notes, mut gaps) = (Vec::new(), Vec::new());
        Dump::flattened(source, &mut notes, &mut gaps).await.ok()?
    } else if head.starts_with(kdump::MAGIC) {
        Dump::plain(source)
    } else {
        return None;
    };
    kdump::Header::read(&dump).await.ok()?.info(&dump).await
}

/// The last range of an AVML capture, by the length behind its frame.
async fn avml(source: &dyn ByteSource, head: &[u8]) -> Result<Outline, FormatError> {
    let mut out = Outline {
        format: "avml",
        version: Some("2".into()),
        ..Outline::default()
    };
    let first = avml_header(head).ok().map(|h| h.first);
    let last = async {
        let at = source.len().checked_sub(8)?;
        let raw = source.read_vec(FileOffset(at), 8).await.ok()?;
        let frame = u64::from_le_bytes(raw.try_into().ok()?);
        let at = at.checked_sub(frame)?.checked_sub(32)?;
        let raw = source.read_vec(FileOffset(at), 32).await.ok()?;
        let h = avml_header(&raw).ok().filter(|h| !h.plain)?;
        h.first.checked_add(h.len)
    };
    match (first, last.await) {
        (Some(first), Some(end)) => out.notes.push(format!(
            "ranges from physical {first:#x} to {end:#x}; which of it there is takes a pass over the file"
        )),
        _ => {
            out.damage = Some(
                "its end is not that of a packed range: it was cut short, or a plain range comes last".into(),
            );
        }
    }
    Ok(out)
}

async fn kdump(source: &dyn ByteSource) -> Result<Outline, FormatError> {
    let dump = Dump::plain(source);
    let h = kdump::Header::read(&dump).await?;
    Ok(Outline {
        format: "kdump",
        version: Some(h.version.to_string()),
        arch: h.arch.map(str::to_owned),
        memory: h.dumped_bytes(&dump).await?,
        dtb_hints: h.page_tables(&dump).await?,
        told: h.told(&dump).await,
        notes: h.notes(),
        damage: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::RamSource;

    fn range(first: u64, len: u64, frame: &[u8]) -> Vec<u8> {
        let mut out = super::super::avml::AVML.to_vec();
        for v in [first, first + len - 1, 0] {
            out.extend(v.to_le_bytes());
        }
        out.extend(frame);
        out.extend((frame.len() as u64).to_le_bytes());
        out
    }

    #[tokio::test]
    async fn the_last_range_of_avml_is_found_from_the_end() {
        let file = [
            range(0x1000, 0x9000, &[7; 90]),
            range(1 << 30, 0x2000, &[8; 50]),
        ]
        .concat();
        let whole = RamSource::new("x", file.clone());
        let o = outline(&whole).await.expect("read").expect("avml");
        assert!(
            o.damage.is_none() && o.notes[0].contains("0x1000 to 0x40002000"),
            "{o:?}"
        );
        let cut = RamSource::new("x", file[..file.len() - 3].to_vec());
        let o = outline(&cut).await.expect("read").expect("avml");
        assert!(o.damage.is_some(), "{o:?}");
        let raw = RamSource::new("x", vec![0; 4096]);
        assert_eq!(outline(&raw).await.expect("read"), None);
    }
}
