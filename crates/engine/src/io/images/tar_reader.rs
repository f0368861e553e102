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
                        .map_err(|error| match error.kind() {
                            io::ErrorKind::UnexpectedEof => InvalidTar::End.into(),
                            _ => ImageError::doing("read the archive")(error),
                        })?;
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

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    /// A member that a writer makes of three choices: what it is, its name's pieces, its size.
    type Wish = (u8, Vec<String>, usize);

    fn wishes() -> impl Strategy<Value = Vec<Wish>> {
        let piece = "[a-zA-Z][a-zA-Z0-9._ -]{0,59}";
        let wish = (0..4u8, prop::collection::vec(piece, 1..6), 0..2000usize);
        prop::collection::vec(wish, 0..12)
    }

    /// Packs members as GNU's tar and Go's writers do, long names and all; the number keeps names apart.
    fn packed(wishes: &[Wish]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (number, (kind, pieces, size)) in wishes.iter().enumerate() {
            let path = format!("{number}/{}", pieces.join("/"));
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            let added = match kind {
                0 => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_size(0);
                    archive.append_data(&mut header, &path, io::empty())
                }
                1 => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_size(0);
                    archive.append_link(&mut header, &path, "../somewhere")
                }
                _ => {
                    header.set_size(*size as u64);
                    archive.append_data(&mut header, &path, &vec![b'x'; *size][..])
                }
            };
            added.expect("a member");
        }
        archive.into_inner().expect("an archive")
    }

    /// The names in an archive and how many bytes belong to each, or why it is none.
    fn read(bytes: &[u8]) -> Result<Vec<(Vec<u8>, u64)>, ImageError> {
        let mut reader = TarReader::new(bytes);
        let mut found = Vec::new();
        while let Some(member) = reader.next_member()? {
            let mut data = Vec::new();
            reader
                .read_to_end(&mut data)
                .map_err(ImageError::doing("read a member"))?;
            assert_eq!(data.len() as u64, member.size);
            found.push((member.path, member.size));
        }
        Ok(found)
    }

    /// The names that GNU's tar finds, one a line.
    fn listed(bytes: &[u8]) -> Vec<u8> {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("archive");
        std::fs::write(&file, bytes).expect("the archive");
        let output = Command::new("tar")
            .args(["--quoting-style=literal", "-tf"])
            .arg(&file)
            .stdin(Stdio::null())
            .output()
            .expect("tar");
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Two readers that disagree about an archive are how strangers get files past checks.
        #[test]
        fn gnu_tar_finds_the_same_names(wishes in wishes()) {
            let archive = packed(&wishes);
            let found = read(&archive).expect("a good archive");
            let lines = |bytes: &[u8]| -> Vec<String> {
                // Some writers end the names of directories with a slash, and some readers do.
                let text = String::from_utf8_lossy(bytes);
                text.lines().map(|line| line.trim_end_matches('/').to_owned()).collect()
            };
            let names: Vec<Vec<u8>> = found.into_iter().map(|(path, _)| path).collect();
            prop_assert_eq!(lines(&names.join(&b'\n')), lines(&listed(&archive)));
        }

        /// Whatever is cut off or changed, the reader ends, and never gives more than there is.
        #[test]
        fn damaged_archives_are_read_or_refused(
            wishes in wishes(),
            cut in any::<prop::sample::Index>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        ) {
            let mut archive = packed(&wishes);
            for (at, byte) in changes {
                let at = at.index(archive.len());
                archive[at] = byte;
            }
            archive.truncate(cut.index(archive.len() + 1));
            let length = archive.len() as u64;
            if let Ok(found) = read(&archive) {
                prop_assert!(found.iter().map(|(_, size)| size).sum::<u64>() <= length);
            }
        }
    }
}
