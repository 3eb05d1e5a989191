//! Lays out what a container holds: runs of physical memory, and a table of the extents in them.

use super::table::{Table, Writer};
use super::{Codec, Extent, MAX_EXTENT};
use crate::run::{Run, RunError, RunMap};

/// Bytes that neighbours that are stored as they are may have in one extent.
const MAX_RAW: u64 = 1 << 20;

/// Where the bytes of a piece of memory lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Where its first byte lies in the source.
    pub source: u64,
    /// Bytes in the source.
    pub len: u64,
    /// Where the rest lies, and how many bytes, where it is in two parts.
    pub rest: Option<(u64, u64)>,
    /// How they are stored.
    pub codec: Codec,
}

/// Takes the pieces of an image in physical order.
#[derive(Debug, Default)]
pub struct ImageBuilder {
    runs: Vec<Run>,
    table: Writer,
    /// The extent that its successor may join.
    last: Option<Extent>,
    /// Bytes of the image so far.
    len: u64,
    /// Where the last extent that has bytes lies.
    place: u64,
}

impl ImageBuilder {
    /// Runs so far.
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    /// Bytes of the image so far.
    pub fn image_len(&self) -> u64 {
        self.len
    }

    /// The physical address behind the last piece.
    pub fn end(&self) -> Option<u64> {
        self.runs.last().map(|r| r.pa + r.len)
    }

    fn extend(&mut self, pa: u64, len: u64, stored: bool) -> Result<(), RunError> {
        let overflow = RunError::Overflow { pa, len };
        let image = self.len;
        let end = image.checked_add(len).ok_or(overflow.clone())?;
        pa.checked_add(len).ok_or(overflow)?;
        match self.runs.last_mut() {
            Some(last) if last.pa + last.len > pa => {
                return Err(RunError::Overlap {
                    first: last.pa,
                    second: pa,
                });
            }
            // What is stored comes first in a run.
            Some(last) if last.pa + last.len == pa && (!stored || last.stored == last.len) => {
                last.len += len;
                last.stored += if stored { len } else { 0 };
            }
            _ => self.runs.push(Run {
                pa,
                len,
                file: image,
                stored: if stored { len } else { 0 },
            }),
        }
        self.len = end;
        Ok(())
    }

    fn add(&mut self, e: Extent) -> Result<(), String> {
        if let Some(l) = &mut self.last {
            let most = if e.codec == Codec::Zero {
                MAX_EXTENT
            } else {
                MAX_RAW
            };
            let joins = match e.codec {
                Codec::Zero => l.source == e.source,
                Codec::Raw => l.source + l.stored == e.source && e.rest.is_none(),
                _ => false,
            };
            if joins
                && l.codec == e.codec
                && l.rest.is_none()
                && l.end() == e.image
                && l.len + e.len <= most
            {
                l.len += e.len;
                l.stored += e.stored;
                return Ok(());
            }
        }
        match self.last.replace(e) {
            Some(before) => self.table.push(before),
            None => Ok(()),
        }
    }

    /// Adds memory that is stored.
    pub fn stored(&mut self, pa: u64, len: u64, at: Stored) -> Result<(), BuildError> {
        let image = self.len;
        self.extend(pa, len, true)?;
        self.place = at.source;
        if at.codec != Codec::Raw {
            let e = Extent {
                image,
                len,
                source: at.source,
                stored: at.len,
                rest: at.rest,
                codec: at.codec,
                part: None,
            };
            return Ok(self.add(e)?);
        }
        // Bytes as they are can be told in as many extents as there is need for.
        let mut done = 0;
        let parts = [Some((at.source, at.len)), at.rest];
        for (source, n) in parts.into_iter().flatten() {
            let mut off = 0;
            while off < n && done < len {
                let step = MAX_RAW.min(n - off).min(len - done);
                self.add(Extent {
                    image: image + done,
                    len: step,
                    source: source + off,
                    stored: step,
                    rest: None,
                    codec: Codec::Raw,
                    part: None,
                })?;
                off += step;
                done += step;
            }
        }
        Ok(())
    }

    /// Adds pieces of memory, each an address and its bytes, that are packed together: they follow each other, from `before` bytes
    /// on, in the `whole` that `at` stands for.
    pub fn packed(
        &mut self,
        pieces: &[(u64, u64)],
        at: Stored,
        before: u64,
        whole: u64,
    ) -> Result<(), BuildError> {
        let image = self.len;
        for (pa, len) in pieces {
            self.extend(*pa, *len, true)?;
        }
        self.place = at.source;
        let len = self.len - image;
        let e = Extent {
            image,
            len,
            source: at.source,
            stored: at.len,
            rest: at.rest,
            codec: at.codec,
            part: (len != whole).then_some((before, whole)),
        };
        Ok(self.add(e)?)
    }

    /// Adds memory of which the container says that it is zero.
    pub fn zeros(&mut self, pa: u64, len: u64) -> Result<(), BuildError> {
        let image = self.len;
        self.extend(pa, len, true)?;
        let mut done = 0;
        while done < len {
            let step = MAX_EXTENT.min(len - done);
            self.add(Extent {
                image: image + done,
                len: step,
                source: self.place,
                stored: 0,
                rest: None,
                codec: Codec::Zero,
                part: None,
            })?;
            done += step;
        }
        Ok(())
    }

    /// Adds memory that the container claims to hold and lacks.
    pub fn missing(&mut self, pa: u64, len: u64) -> Result<(), BuildError> {
        Ok(self.extend(pa, len, false)?)
    }

    /// Adds what is missing of a range, of which all before `pa` has been added.
    pub fn missing_if_any(&mut self, pa: u64, end: u64) -> Result<(), BuildError> {
        match end.checked_sub(pa) {
            Some(n) if n > 0 => self.missing(pa, n),
            _ => Ok(()),
        }
    }

    /// The runs, whose bytes lie at image offsets, and the table.
    pub fn finish(mut self) -> Result<(RunMap, Table), BuildError> {
        if let Some(e) = self.last.take() {
            self.table.push(e)?;
        }
        Ok((RunMap::new(self.runs)?, self.table.finish()?))
    }
}

/// Why an image can't be laid out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Its pieces contradict each other.
    #[error(transparent)]
    Runs(#[from] RunError),
    /// The table can't be packed.
    #[error("the table of extents: {0}")]
    Table(String),
}

impl From<String> for BuildError {
    fn from(why: String) -> Self {
        Self::Table(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::Extents;
    use crate::source::RamSource;
    use crate::{ImageOffset, PhysAddr};
    use std::sync::Arc;

    #[tokio::test]
    async fn runs_name_image_offsets_and_extents_fill_them() {
        let mut b = ImageBuilder::default();
        let at = |source, len, codec| Stored {
            source,
            len,
            rest: None,
            codec,
        };
        b.stored(0x1000, 0x1000, at(100, 50, Codec::Zstd))
            .expect("room");
        b.zeros(0x2000, 40 << 20).expect("room");
        b.stored(0x10_0000_0000, 0x1000, at(4096, 0x1000, Codec::Raw))
            .expect("room");
        b.stored(0x10_0000_1000, 0x1000, at(8192, 0x1000, Codec::Raw))
            .expect("room");
        b.missing(0x10_0000_2000, 0x1000).expect("room");
        assert!(
            b.stored(0x10_0000_2000, 1, at(0, 1, Codec::Raw)).is_err(),
            "overlap"
        );
        assert!(b.zeros(u64::MAX, 2).is_err(), "overflow");
        let (runs, table) = b.finish().expect("sound");
        let zeros = 0x1000 + (40 << 20);
        assert_eq!(runs.image_len(), zeros + 0x3000);
        assert_eq!(runs.missing(), vec![zeros + 0x2000..zeros + 0x3000]);
        assert_eq!(
            runs.to_phys(ImageOffset(zeros)),
            Some(PhysAddr(0x10_0000_0000))
        );
        for image in [0, 0x1234, zeros] {
            let file = runs.to_file(ImageOffset(image)).expect("stored");
            assert_eq!(file.0, image, "what reads it counts in image offsets");
        }
        let table_source = Arc::new(RamSource::new("t", table.data.to_vec()));
        let x = Extents::open(table_source, &table.info, 1 << 20)
            .await
            .expect("sound");
        let all = x.in_image(0..u64::MAX).await.expect("read");
        let short: Vec<_> = all
            .iter()
            .map(|e| (e.image, e.len, e.source, e.codec))
            .collect();
        assert_eq!(
            short,
            [
                (0, 0x1000, 100, Codec::Zstd),
                (0x1000, 16 << 20, 100, Codec::Zero),
                (0x1000 + (16 << 20), 16 << 20, 100, Codec::Zero),
                (0x1000 + (32 << 20), 8 << 20, 100, Codec::Zero),
                (zeros, 0x2000, 4096, Codec::Raw),
            ]
        );
    }
}
