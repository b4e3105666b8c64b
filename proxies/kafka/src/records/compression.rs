//! The codecs of record batches, one way: what a rule has taken apart goes on uncompressed.

use std::io::Read;

use bytes::Bytes;

use crate::codec::Malformed;

/// The most that one batch may decompress to: brokers take a megabyte unless they are told otherwise, and what compresses a
/// hundredfold is seldom meant to be read.
const LARGEST: u64 = 128 << 20;

/// Decompresses by the number in the attributes: 1 gzip, 2 snappy, 3 lz4, 4 zstd.
///
/// # Errors
/// Another number, bytes that do not decompress, and a batch that grows past 128 MiB.
pub fn decompress(codec: i16, bytes: &[u8]) -> Result<Bytes, Malformed> {
    match codec {
        1 => read(flate2::read::MultiGzDecoder::new(bytes)),
        2 => snappy(bytes),
        3 => read(lz4_flex::frame::FrameDecoder::new(bytes)),
        4 => read(
            ruzstd::decoding::StreamingDecoder::new(bytes)
                .map_err(|_| Malformed("a batch that is no zstd"))?,
        ),
        _ => Err(Malformed(
            "a batch in a compression that Kafka does not have",
        )),
    }
}

fn read(decoder: impl Read) -> Result<Bytes, Malformed> {
    let mut out = vec![];
    match decoder.take(LARGEST + 1).read_to_end(&mut out) {
        Ok(n) if n as u64 <= LARGEST => Ok(out.into()),
        Ok(_) => Err(TOO_LARGE),
        Err(_) => Err(Malformed("a batch that does not decompress")),
    }
}

const TOO_LARGE: Malformed = Malformed("a batch that decompresses to more than 128 MiB");

/// What begins the framing of the Java library snappy-java; other clients leave it out.
const XERIAL: &[u8] = b"\x82SNAPPY\0";

fn snappy(bytes: &[u8]) -> Result<Bytes, Malformed> {
    let wrong = Malformed("a batch that is no snappy");
    let mut out = vec![];
    let mut block = |bytes: &[u8]| {
        let length = snap::raw::decompress_len(bytes).map_err(|_| wrong)?;
        if (out.len() + length) as u64 > LARGEST {
            return Err(TOO_LARGE);
        }
        let block = snap::raw::Decoder::new().decompress_vec(bytes);
        out.extend_from_slice(&block.map_err(|_| wrong)?);
        Ok(())
    };
    if !bytes.starts_with(XERIAL) {
        block(bytes)?;
        return Ok(out.into());
    }
    // The magic, a version and a compatible version; then blocks behind their lengths.
    let mut rest = bytes.get(16..).ok_or(wrong)?;
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        block(after.get(..length).ok_or(wrong)?)?;
        rest = &after[length..];
    }
    Ok(out.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const TEXT: &[u8] = b"the same words, the same words, the same words again";

    #[test]
    fn gzip_snappy_and_lz4() {
        let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
        gzip.write_all(TEXT).unwrap();
        let mut lz4 = lz4_flex::frame::FrameEncoder::new(vec![]);
        lz4.write_all(TEXT).unwrap();
        let raw = snap::raw::Encoder::new().compress_vec(TEXT).unwrap();
        let (first, second) = TEXT.split_at(20);
        let mut xerial = [XERIAL, &[0, 0, 0, 1, 0, 0, 0, 1]].concat();
        for part in [first, second] {
            let block = snap::raw::Encoder::new().compress_vec(part).unwrap();
            xerial.extend_from_slice(&(block.len() as u32).to_be_bytes());
            xerial.extend_from_slice(&block);
        }
        for (codec, bytes) in [
            (1, gzip.finish().unwrap()),
            (2, raw),
            (2, xerial),
            (3, lz4.finish().unwrap()),
        ] {
            assert_eq!(decompress(codec, &bytes).unwrap(), TEXT);
            assert!(
                decompress(codec, &bytes[..bytes.len() / 2]).is_err(),
                "{codec}"
            );
        }
        assert!(decompress(5, TEXT).is_err() && decompress(4, TEXT).is_err());
    }

    #[test]
    fn zstd() {
        let bytes =
            ruzstd::encoding::compress_to_vec(TEXT, ruzstd::encoding::CompressionLevel::Fastest);
        assert_eq!(decompress(4, &bytes).unwrap(), TEXT);
    }
}
