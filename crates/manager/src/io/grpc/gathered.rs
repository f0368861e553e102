//! A stream on which what is ready at about the same time is written at once.
//!
//! An HTTP/2 connection flushes after each turn of its task, and the parts of one call (headers, data, the end) often come in
//! turns that follow on each other at once. Over TLS each flush is a record of its own and a system call, of which a small
//! call then takes three, and its peer as many. Here a flush lets those who are ready have their turn first.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Written bytes that are held at most; a TLS record holds as many (RFC 8446 §5.1).
const HELD_BYTES_MAX: usize = 16 << 10;

/// See the module.
#[derive(Debug)]
pub(super) struct Gathered<T> {
    stream: T,
    held: BytesMut,
    /// Whether the others have had their turn since something was held.
    is_due: bool,
}

impl<T: AsyncWrite + Unpin> Gathered<T> {
    /// Gathers what is written to this stream.
    pub(super) fn new(stream: T) -> Self {
        Self {
            stream,
            held: BytesMut::new(),
            is_due: false,
        }
    }

    /// Hands on what is held.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.held))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gathered<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gathered<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.held.len() >= HELD_BYTES_MAX {
            ready!(self.poll_held(cx))?;
        }
        let taken = buf.len().min(HELD_BYTES_MAX - self.held.len());
        self.held.extend_from_slice(&buf[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.held.len() >= HELD_BYTES_MAX {
            ready!(self.poll_held(cx))?;
        }
        let mut all = 0;
        for buf in bufs {
            let taken = buf.len().min(HELD_BYTES_MAX - self.held.len());
            self.held.extend_from_slice(&buf[..taken]);
            all += taken;
        }
        Poll::Ready(Ok(all))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.held.is_empty() && !self.is_due {
            // The task goes behind those that are ready, and comes back.
            self.is_due = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.poll_held(cx))?;
        self.is_due = false;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_held(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Counts the writes.
    struct Counted<T>(T, usize);

    impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<T> {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            let written = ready!(Pin::new(&mut self.0).poll_write(cx, buf));
            self.1 += 1;
            Poll::Ready(written)
        }
        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }
        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    #[tokio::test]
    async fn all_that_is_written_arrives_in_order_and_small_parts_at_once() {
        let (near, mut far) = tokio::io::duplex(1 << 10);
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            all
        });
        let mut stream = Gathered::new(Counted(near, 0));
        for part in [&b"headers "[..], b"data ", b"end "] {
            stream.write_all(part).await.unwrap();
        }
        stream.flush().await.unwrap();
        assert_eq!(stream.stream.1, 1);
        // More than is held, and than the other side takes at once.
        let large: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        stream.write_all(&large).await.unwrap();
        let parts = [io::IoSlice::new(b" one"), io::IoSlice::new(b" two")];
        let written = stream.write_vectored(&parts).await.unwrap();
        assert_eq!(written, 8);
        stream.shutdown().await.unwrap();
        drop(stream);
        let all = reader.await.unwrap();
        assert!(all.starts_with(b"headers data end ") && all.ends_with(b" one two"));
        assert_eq!(all.len(), 17 + large.len() + 8);
        assert_eq!(all[17..17 + large.len()], large);
    }

    #[tokio::test]
    async fn what_is_written_while_a_flush_waits_goes_with_it() {
        let (near, mut far) = tokio::io::duplex(1 << 10);
        let mut stream = Gathered::new(Counted(near, 0));
        stream.write_all(b"first ").await.unwrap();
        let waker = std::task::Waker::noop();
        let mut cx = Context::from_waker(waker);
        assert!(Pin::new(&mut stream).poll_flush(&mut cx).is_pending());
        stream.write_all(b"second").await.unwrap();
        assert!(Pin::new(&mut stream).poll_flush(&mut cx).is_ready());
        assert_eq!(stream.stream.1, 1);
        let mut all = [0; 12];
        far.read_exact(&mut all).await.unwrap();
        assert_eq!(&all, b"first second");
    }
}
