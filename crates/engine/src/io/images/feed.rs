//! A stream of bytes from async code to a blocking reader.

use std::io::{self, Read};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::ImageError;

/// Chunks on their way; bounds what a fast network piles up before a slow disk.
const CHUNKS_MAX: usize = 16;

/// The async end. The reader sees the end of the stream only after [`Feed::end`]: dropping it means that the rest
/// will never come, and is an error over there.
pub(super) struct Feed(mpsc::Sender<Option<Bytes>>);

/// The blocking end.
pub(super) struct FeedReader {
    chunks: mpsc::Receiver<Option<Bytes>>,
    current: Bytes,
    ended: bool,
}

/// The reader went away; it knows why.
pub(super) struct ReaderGone;

pub(super) fn feed() -> (Feed, FeedReader) {
    let (sender, chunks) = mpsc::channel(CHUNKS_MAX);
    (
        Feed(sender),
        FeedReader {
            chunks,
            current: Bytes::new(),
            ended: false,
        },
    )
}

impl Feed {
    pub(super) async fn push(&self, chunk: Bytes) -> Result<(), ReaderGone> {
        self.0.send(Some(chunk)).await.map_err(|_| ReaderGone)
    }

    pub(super) async fn end(self) -> Result<(), ReaderGone> {
        self.0.send(None).await.map_err(|_| ReaderGone)
    }
}

impl Read for FeedReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.chunks.blocking_recv() {
                Some(Some(chunk)) => self.current = chunk,
                Some(None) => self.ended = true,
                None => return Err(ImageError::Interrupted("the transfer").into()),
            }
        }
        let count = self.current.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}
