//! Hashing and decompressing on the way.

use std::io::{self, BufReader, Cursor, Read};

use sha2::{Digest as _, Sha256};

use super::ImageError;
use crate::core::images::{Digest, MediaType};

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

/// Unpacks gzip and zstd, told by their first bytes, and says which layer type it was.
///
/// In this process and never by a program of the host's or the image's (CVE-2019-14271 and its kin).
pub(super) fn decoded<'a>(
    mut packed: impl Read + 'a,
) -> io::Result<(&'static str, Box<dyn Read + 'a>)> {
    let mut magic = Vec::with_capacity(6);
    packed.by_ref().take(6).read_to_end(&mut magic)?;
    let kind = match magic.as_slice() {
        [0x1f, 0x8b, ..] => MediaType::OCI_LAYER_GZIP,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => MediaType::OCI_LAYER_ZSTD,
        [0xfd, b'7', b'z', b'X', b'Z', ..] | [b'B', b'Z', b'h', ..] => {
            return Err(ImageError::Archive(
                "archive is compressed with xz or bzip2, which is not supported".to_owned(),
            )
            .into());
        }
        _ => MediaType::OCI_LAYER,
    };
    let whole = BufReader::with_capacity(BUFFER_BYTES, Cursor::new(magic).chain(packed));
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
