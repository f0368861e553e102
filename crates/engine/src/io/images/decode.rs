//! Hashing and decompressing on the way.

use std::io::{self, BufReader, Cursor, Read};

use sha2::{Digest as _, Sha256};

use super::ImageError;
use crate::core::images::{Assembler, BLOCK, Digest, MediaType};

const BUFFER_BYTES: usize = 64 * 1024;

/// Passes bytes on, hashing and counting them, and stops at more than was announced.
pub(super) struct Hashing<R> {
    inner: R,
    hash: Sha256,
    count: u64,
    expected: Option<(Digest, u64)>,
}

impl<R: Read> Hashing<R> {
    pub(super) fn new(inner: R, expected: Option<(Digest, u64)>) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            count: 0,
            expected,
        }
    }

    /// Reads what nobody wanted, and compares with what was announced. Returns digest and size.
    pub(super) fn finish(mut self) -> Result<(Digest, u64), ImageError> {
        io::copy(&mut self, &mut io::sink()).map_err(ImageError::doing("read content"))?;
        let found = Digest::from_hash(self.hash);
        if let Some((digest, size)) = self.expected {
            if self.count != size {
                return Err(ImageError::Size { digest, size });
            }
            if found != digest {
                return Err(ImageError::Digest {
                    expected: digest,
                    found,
                });
            }
        }
        Ok((found, self.count))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.count += count as u64;
        if let Some((digest, size)) = &self.expected
            && self.count > *size
        {
            return Err(ImageError::Size {
                digest: digest.clone(),
                size: *size,
            }
            .into());
        }
        Ok(count)
    }
}

/// Passes bytes on and writes them to a file as well.
pub(super) struct Tee<R, W> {
    pub(super) inner: R,
    pub(super) copy: Option<W>,
}

impl<R: Read, W: io::Write> Read for Tee<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if let Some(copy) = &mut self.copy {
            copy.write_all(&buffer[..count])?;
        }
        Ok(count)
    }
}

/// Enough of an archive to tell whether it is one, packed or not: the first block of any compression.
pub(in crate::io) const SNIFF_BYTES: u64 = 256 << 10;

/// Whether something begins like a tar archive, packed or not.
pub(in crate::io) fn is_tar(source: impl Read) -> bool {
    let Ok((_, mut plain)) = opened(source).and_then(decoded) else {
        return false;
    };
    let mut block = [0; BLOCK];
    // An archive of nothing is two blocks of zeros.
    plain.read_exact(&mut block).is_ok()
        && (block == [0; BLOCK] || Assembler::default().header(&block).is_ok())
}

/// What a decoder of xz may use; the strongest preset takes a quarter of it.
const XZ_MEMORY_BYTES_MAX: u64 = 256 << 20;

/// Unpacks what archives are packed with, but layers never: xz and bzip2. Everything else passes as it is.
pub(super) fn opened<'a>(packed: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let (magic, packed) = peeked(packed)?;
    let whole = BufReader::with_capacity(BUFFER_BYTES, packed);
    Ok(match magic.as_slice() {
        [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            let stream = liblzma::stream::Stream::new_stream_decoder(
                XZ_MEMORY_BYTES_MAX,
                liblzma::stream::CONCATENATED,
            );
            let stream = stream.map_err(io::Error::other)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(whole, stream))
        }
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Box::new(bzip2::bufread::MultiBzDecoder::new(whole)),
        _ => Box::new(whole),
    })
}

/// The first bytes, and a reader that still has them.
fn peeked<R: Read>(mut packed: R) -> io::Result<(Vec<u8>, io::Chain<Cursor<Vec<u8>>, R>)> {
    let mut magic = Vec::with_capacity(6);
    packed.by_ref().take(6).read_to_end(&mut magic)?;
    let whole = Cursor::new(magic.clone()).chain(packed);
    Ok((magic, whole))
}

/// Unpacks gzip and zstd, told by their first bytes, and says which layer type it was.
///
/// In this process and never by a program of the host's or the image's (CVE-2019-14271 and its kin).
pub(super) fn decoded<'a>(
    packed: impl Read + 'a,
) -> io::Result<(&'static str, Box<dyn Read + 'a>)> {
    let (magic, packed) = peeked(packed)?;
    let kind = match magic.as_slice() {
        [0x1f, 0x8b, ..] => MediaType::OCI_LAYER_GZIP,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => MediaType::OCI_LAYER_ZSTD,
        [0xfd, b'7', b'z', b'X', b'Z', ..] | [b'B', b'Z', b'h', ..] => {
            return Err(ImageError::Archive(
                "layer is compressed with xz or bzip2, which no registry's layer may be".to_owned(),
            )
            .into());
        }
        _ => MediaType::OCI_LAYER,
    };
    let whole = BufReader::with_capacity(BUFFER_BYTES, packed);
    let plain: Box<dyn Read + 'a> = match kind {
        MediaType::OCI_LAYER_GZIP => Box::new(BufReader::with_capacity(
            BUFFER_BYTES,
            flate2::bufread::MultiGzDecoder::new(whole),
        )),
        MediaType::OCI_LAYER_ZSTD => Box::new(BufReader::with_capacity(
            BUFFER_BYTES,
            zstd::stream::read::Decoder::with_buffer(whole)?,
        )),
        _ => Box::new(whole),
    };
    Ok((kind, plain))
}
