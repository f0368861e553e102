//! Members of a tar stream, one after the other.

use std::io::{self, Read};

use super::ImageError;
use crate::core::images::{Assembler, BLOCK, InvalidTar, Member, Step};

/// Reads an archive front to back, without seeking.
pub(in crate::io) struct TarReader<R> {
    inner: R,
    assembler: Assembler,
    /// Bytes of the current member not read yet, and the zeros that fill its last block.
    left: u64,
    padding: u64,
}

impl<R: Read> TarReader<R> {
    pub(in crate::io) fn new(inner: R) -> Self {
        Self {
            inner,
            assembler: Assembler::default(),
            left: 0,
            padding: 0,
        }
    }

    /// Skips what is left of the current member and returns the next one, `None` at the end.
    pub(in crate::io) fn next_member(&mut self) -> Result<Option<Member>, ImageError> {
        loop {
            self.skip(self.left + self.padding)?;
            (self.left, self.padding) = (0, 0);
            let Some(block) = self.block()? else {
                return self.end();
            };
            if block == [0; BLOCK] {
                // Two zero blocks end an archive; writers that forget the second are forgiven.
                return match self.block()? {
                    Some(second) if second != [0; BLOCK] => Err(InvalidTar::End.into()),
                    _ => self.end(),
                };
            }
            match self.assembler.header(&block)? {
                Step::Member(member) => {
                    self.left = member.size;
                    self.padding = padding(member.size);
                    return Ok(Some(*member));
                }
                Step::Extension(size) => {
                    let mut content =
                        vec![0; usize::try_from(size).expect("bounded by the assembler")];
                    self.inner
                        .read_exact(&mut content)
                        .map_err(ImageError::doing("read the archive"))?;
                    self.padding = padding(size);
                    self.assembler.extension(&content)?;
                }
            }
        }
    }

    /// Reads to the end of the stream, past the end of the archive.
    pub(in crate::io) fn drain(mut self) -> Result<(), ImageError> {
        io::copy(&mut self.inner, &mut io::sink())
            .map_err(ImageError::doing("read the archive"))?;
        Ok(())
    }

    fn end(&self) -> Result<Option<Member>, ImageError> {
        if self.assembler.is_dangling() {
            return Err(InvalidTar::End.into());
        }
        Ok(None)
    }

    /// The next block, `None` if the stream ends before it.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, ImageError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(InvalidTar::End.into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ImageError::doing("read the archive")(error)),
            }
        }
        Ok(Some(block))
    }

    fn skip(&mut self, count: u64) -> Result<(), ImageError> {
        let skipped = io::copy(&mut (&mut self.inner).take(count), &mut io::sink())
            .map_err(ImageError::doing("read the archive"))?;
        // The last block of an archive may lack its padding.
        if skipped < count.saturating_sub(self.padding) {
            return Err(InvalidTar::End.into());
        }
        Ok(())
    }
}

/// The data of the current member.
impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if most == 0 {
            return Ok(0);
        }
        let count = self.inner.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(ImageError::from(InvalidTar::End).into());
        }
        self.left -= count as u64;
        Ok(count)
    }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}
