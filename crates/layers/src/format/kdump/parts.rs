//! The files of a dump that `makedumpfile --split` wrote: each has headers, both bitmaps of the whole dump, and the descriptors and
//! pages of its own range of page numbers.

use super::header::{Header, bad};
use super::{FLAT, MAGIC};
use crate::format::flat::Dump;
use crate::format::{Beside, ContainerGap, FormatError, note};
use crate::source::{ByteSource, JoinedSource};
use std::sync::Arc;

/// Opens the dump in one file.
async fn dump<'a>(
    source: &'a dyn ByteSource,
    notes: &mut Vec<String>,
    gaps: &mut Vec<ContainerGap>,
) -> Result<Dump<'a>, FormatError> {
    let head = source.head(MAGIC.len()).await?;
    let dump = if head == MAGIC {
        Dump::plain(source)
    } else {
        note(notes, || "a flattened dump (makedumpfile -F)".to_owned());
        Dump::flattened(source, notes, gaps).await?
    };
    if dump.read(0, 4).await?.is_some_and(|b| b == b"\x7fELF") {
        return Err(FormatError::Unsupported {
            what: "a flattened ELF core",
            hint: "rearrange it with makedumpfile -R",
        });
    }
    Ok(dump)
}

/// The files of a dump with their headers, in the order of their pages.
pub(super) async fn read<'a>(
    files: &[&'a dyn ByteSource],
    notes: &mut Vec<String>,
    gaps: &mut Vec<ContainerGap>,
) -> Result<Vec<(Dump<'a>, Header)>, FormatError> {
    let (mut out, mut base) = (Vec::<(Dump<'a>, Header)>::new(), 0u64);
    for f in files {
        let mut own = Vec::new();
        let dump = dump(*f, notes, &mut own).await?.behind(base);
        gaps.extend(own.into_iter().map(|g| ContainerGap {
            file: g.file.start + base..g.file.end + base,
            ..g
        }));
        let h = Header::read(&dump).await?;
        if let Some((_, first)) = out.first().filter(|(_, first)| !is_same(first, &h)) {
            return Err(bad(
                base,
                format!("another file of a dump of {} pages", first.total),
                format!("one of a dump of {}", h.total),
            ));
        }
        base = base.saturating_add(f.len());
        out.push((dump, h));
    }
    out.sort_by_key(|(_, h)| (h.pages.start, h.pages.end));
    Ok(out)
}

/// Whether two files are of one dump.
fn is_same(a: &Header, b: &Header) -> bool {
    let of = |h: &Header| (h.part, h.version, h.block, h.total);
    of(a) == of(b) && a.machine == b.machine
}

/// The headers of a file that is one of several. What is no such file, or is damaged, is for who opens it to say.
async fn part(source: &dyn ByteSource) -> Result<Option<Header>, FormatError> {
    let head = source.head(MAGIC.len()).await?;
    if !head.starts_with(MAGIC) && !head.starts_with(FLAT.get(..MAGIC.len()).unwrap_or(FLAT)) {
        return Ok(None);
    }
    let (mut notes, mut gaps) = (Vec::new(), Vec::new());
    let dump = match dump(source, &mut notes, &mut gaps).await {
        Err(FormatError::Source(e)) if !e.is_content() => return Err(e.into()),
        Err(_) => return Ok(None),
        Ok(d) => d,
    };
    match Header::read(&dump).await {
        Err(FormatError::Source(e)) if !e.is_content() => Err(e.into()),
        Err(_) => Ok(None),
        Ok(h) => Ok(Some(h).filter(|h| h.part)),
    }
}

/// All files of the dump that a file is one of, as far as they lie beside it.
pub(in crate::format) async fn joined(
    source: &Arc<dyn ByteSource>,
    beside: &dyn Beside,
) -> Result<Option<Arc<dyn ByteSource>>, FormatError> {
    let Some(h) = part(source.as_ref()).await? else {
        return Ok(None);
    };
    let mut all = Vec::new();
    for other in beside.numbered().await? {
        let of = part(other.as_ref()).await?;
        // One without pages adds nothing.
        if let Some(o) = of.filter(|o| is_same(o, &h) && !o.pages.is_empty()) {
            all.push((o.pages, other));
        }
    }
    if all.is_empty() {
        return Ok(None);
    }
    if !h.pages.is_empty() {
        all.push((h.pages.clone(), source.clone()));
    }
    all.sort_by_key(|(pages, _)| (pages.start, pages.end));
    let parts = all.into_iter().map(|(_, s)| s).collect();
    Ok(Some(Arc::new(JoinedSource::new(parts))))
}

/// Whether a file is one of several, and not the first of them.
pub(in crate::format) async fn is_later_part(source: &dyn ByteSource) -> Result<bool, FormatError> {
    if !source.head(MAGIC.len()).await?.starts_with(MAGIC) {
        return Ok(false);
    }
    Ok(part(source).await?.is_some_and(|h| h.pages.start > 0))
}
