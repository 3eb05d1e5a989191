//! Several files or objects that are one capture: their bytes one after the other.

use super::{ByteSource, Mapping, SourceError, SourcePin, in_bounds};
use crate::FileOffset;
use async_trait::async_trait;
use std::ops::Range;
use std::sync::Arc;

/// Sources laid end to end.
#[derive(Debug)]
pub struct JoinedSource {
    parts: Vec<Arc<dyn ByteSource>>,
    /// Where each begins.
    starts: Vec<u64>,
    pin: SourcePin,
}

impl JoinedSource {
    /// Joins sources in this order.
    pub fn new(parts: Vec<Arc<dyn ByteSource>>) -> Self {
        let mut at = 0u64;
        let mut starts = Vec::with_capacity(parts.len());
        for p in &parts {
            starts.push(at);
            at = at.saturating_add(p.len());
        }
        let pin = SourcePin::Parts {
            parts: parts.iter().map(|p| p.pin().clone()).collect(),
        };
        Self { parts, starts, pin }
    }

    /// The part that has an offset, and where in it that is.
    fn part(&self, offset: u64) -> Option<(&Arc<dyn ByteSource>, u64)> {
        let i = self
            .starts
            .partition_point(|s| *s <= offset)
            .checked_sub(1)?;
        let (part, start) = (self.parts.get(i)?, self.starts.get(i)?);
        (offset - start < part.len()).then_some((part, offset - start))
    }
}

#[async_trait]
impl ByteSource for JoinedSource {
    fn pin(&self) -> &SourcePin {
        &self.pin
    }

    async fn read_at(&self, offset: FileOffset, buf: &mut [u8]) -> Result<(), SourceError> {
        in_bounds(&self.pin, offset.0, buf.len())?;
        let (mut at, mut rest) = (offset.0, buf);
        while !rest.is_empty() {
            let Some((part, inside)) = self.part(at) else {
                break;
            };
            let there = usize::try_from(part.len() - inside).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at_mut(there.min(rest.len()));
            part.read_at(FileOffset(inside), now).await?;
            at += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    async fn check_pin(&self) -> Result<(), SourceError> {
        for p in &self.parts {
            p.check_pin().await?;
        }
        Ok(())
    }

    fn map(&self, range: Range<u64>) -> Option<Mapping> {
        let (part, inside) = self.part(range.start)?;
        let end = inside.checked_add(range.end.checked_sub(range.start)?)?;
        part.map(inside..end)
    }

    fn unmap(&self) {
        for p in &self.parts {
            p.unmap();
        }
    }

    fn coalesce_distance(&self) -> u64 {
        self.parts
            .iter()
            .map(|p| p.coalesce_distance())
            .max()
            .unwrap_or(0)
    }

    fn parts(&self) -> &[Arc<dyn ByteSource>] {
        &self.parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::RamSource;

    #[tokio::test]
    async fn any_range_reads_as_the_parts_one_after_the_other() {
        let all: Vec<u8> = (0..300u32).map(|i| (i * 7 % 251) as u8).collect();
        let cut = [0, 100, 101, 250, 300];
        let parts = cut.windows(2).map(|w| {
            let name = format!("part{}", w[0]);
            Arc::new(RamSource::new(name, all[w[0]..w[1]].to_vec())) as Arc<dyn ByteSource>
        });
        let j = JoinedSource::new(parts.collect());
        assert_eq!(j.len(), 300);
        assert!(j.pin().to_string().contains("3 more"), "{}", j.pin());
        for from in 0..300usize {
            for len in [0, 1, 2, 60, 300 - from] {
                let len = len.min(300 - from);
                let got = j
                    .read_vec(FileOffset(from as u64), len)
                    .await
                    .expect("there");
                assert_eq!(got, all[from..from + len]);
            }
        }
        assert!(j.read_vec(FileOffset(299), 2).await.is_err());
    }
}
