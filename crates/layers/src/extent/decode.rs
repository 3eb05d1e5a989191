//! The codecs of extents.
//!
//! Sources: the snappy framing format (`framing_format.txt`: chunks of at most 64 KiB, CRC-32C masked by a rotation and a
//! constant); RFC 1950 (zlib); RFC 8878 (zstd).

use super::xpress::{self, Huffman};
use super::{Codec, lzo, vm_compress};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_PARSE_ZLIB_HEADER, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use std::fmt;

/// Unpacks extents. What a codec needs is made when it is first met.
#[derive(Default)]
pub struct Decoder {
    inflate: Box<DecompressorOxide>,
    zstd: Option<zstd::bulk::Decompressor<'static>>,
    huffman: Huffman,
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Decoder")
    }
}

/// The CRC of a snappy frame's chunk as it is stored.
fn masked_crc(data: &[u8]) -> u32 {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, data);
    // 32 bits of it are used.
    let crc = crc as u32;
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

impl Decoder {
    /// Fills `out` with what `data` stands for; says what is wrong where that is not `out.len()` bytes.
    pub fn decode(&mut self, codec: Codec, data: &[u8], out: &mut [u8]) -> Result<(), String> {
        let want = out.len();
        let n = match codec {
            Codec::Zero => {
                out.fill(0);
                want
            }
            Codec::Raw => copy(data, out)?,
            Codec::PlainFrame | Codec::SnappyFrame => {
                let (crc, body) = data
                    .split_first_chunk::<4>()
                    .ok_or("it is shorter than its checksum")?;
                let n = if codec == Codec::PlainFrame {
                    copy(body, out)?
                } else {
                    snappy(body, out)?
                };
                let (said, is) = (u32::from_le_bytes(*crc), masked_crc(&out[..n]));
                if n == want && said != is {
                    return Err(format!(
                        "its checksum is {is:#010x} and should be {said:#010x}"
                    ));
                }
                n
            }
            Codec::Snappy => snappy(data, out)?,
            Codec::Zlib => {
                self.inflate.init();
                let flags = TINFL_FLAG_PARSE_ZLIB_HEADER | TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
                match decompress(&mut self.inflate, data, out, 0, flags) {
                    (TINFLStatus::Done, _, n) => n,
                    (TINFLStatus::HasMoreOutput, ..) => return Err(more(want)),
                    (TINFLStatus::Adler32Mismatch, ..) => return Err("its checksum differs".into()),
                    (status, ..) => return Err(format!("it can't be unpacked ({status:?})")),
                }
            }
            Codec::Lzo => lzo::decompress(data, out).map_err(str::to_owned)?,
            Codec::Zstd => {
                let unpacker = match self.zstd.take() {
                    Some(d) => d,
                    None => zstd::bulk::Decompressor::new().map_err(|e| e.to_string())?,
                };
                let unpacker = self.zstd.insert(unpacker);
                unpacker
                    .decompress_to_buffer(data, out)
                    .map_err(|e| e.to_string())?
            }
            // What they stand for has no end of its own: they fill what there is to fill.
            Codec::Xpress => xpress::plain(data, out).map(|()| want)?,
            Codec::VmCompress => vm_compress::unpack(data, out)?,
            Codec::XpressHuffman => self.huffman.unpack(data, out).map(|()| want)?,
        };
        if n != want {
            return Err(format!("it holds {n} bytes instead of {want}"));
        }
        Ok(())
    }
}

fn more(want: usize) -> String {
    format!("it holds more than {want} bytes")
}

fn copy(data: &[u8], out: &mut [u8]) -> Result<usize, String> {
    let to = out.get_mut(..data.len()).ok_or_else(|| more(0))?;
    to.copy_from_slice(data);
    Ok(data.len())
}

fn snappy(data: &[u8], out: &mut [u8]) -> Result<usize, String> {
    let n = snap::raw::decompress_len(data).map_err(|e| e.to_string())?;
    if n > out.len() {
        return Err(format!("it holds {n} bytes instead of {}", out.len()));
    }
    snap::raw::Decoder::new()
        .decompress(data, &mut out[..n])
        .map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Vec<u8> {
        (0..4096u32).map(|i| ((i * i) >> 7) as u8).collect()
    }

    #[test]
    fn every_codec_gives_back_what_its_own_writer_packed() {
        let page = page();
        let zlib = miniz_oxide::deflate::compress_to_vec_zlib(&page, 6);
        let zstd = zstd::bulk::compress(&page, 3).expect("zstd");
        let snappy = snap::raw::Encoder::new()
            .compress_vec(&page)
            .expect("snappy");
        let mut d = Decoder::default();
        for (codec, data) in [
            (Codec::Raw, &page),
            (Codec::Zlib, &zlib),
            (Codec::Zstd, &zstd),
            (Codec::Snappy, &snappy),
        ] {
            let mut out = vec![0; page.len()];
            assert_eq!(d.decode(codec, data, &mut out), Ok(()), "{codec:?}");
            assert_eq!(out, page, "{codec:?}");
            // Of another length, or cut: told.
            for (len, cut) in [
                (4095, data.len()),
                (4097, data.len()),
                (4096, data.len() / 2),
            ] {
                let mut out = vec![0; len];
                assert!(
                    d.decode(codec, &data[..cut], &mut out).is_err(),
                    "{codec:?}"
                );
            }
        }
    }

    /// The frame encoder of the snap crate wrote the checksum.
    #[test]
    fn frames_are_checked() {
        use std::io::Write;
        let page = page();
        let mut w = snap::write::FrameEncoder::new(Vec::new());
        w.write_all(&page).expect("written");
        let framed = w.into_inner().expect("flushed");
        // Stream identifier, then one chunk: kind, length, body.
        let mut body = framed[14..].to_vec();
        let codec = if framed[10] == 0 {
            Codec::SnappyFrame
        } else {
            Codec::PlainFrame
        };
        let mut out = vec![0; page.len()];
        let mut d = Decoder::default();
        assert_eq!(d.decode(codec, &body, &mut out), Ok(()));
        assert_eq!(out, page);
        body[1] ^= 1;
        let e = d.decode(codec, &body, &mut out).expect_err("checksum");
        assert!(e.contains("checksum"), "{e}");
    }
}
