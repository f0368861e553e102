//! Keys by which the user of a terminal detaches from a container that goes on.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::StreamExt;
use shoal_docker_api::{
    ApiError,
    backend::{ApiResult, Attached},
};
use shoal_engine::io::Attachment;
use tokio::{io::AsyncWrite, sync::oneshot};

/// Docker's default.
const DEFAULT_KEYS: [u8; 2] = [16, 17];

/// Streams of the engine as streams of the API; with a terminal, certain keys detach.
pub(super) fn attached(attachment: Attachment, keys: Option<&str>) -> ApiResult<Attached> {
    let Attachment { output, input, tty } = attachment;
    let output = output.map(Ok);
    let input = match input {
        Some(input) if tty => input,
        // Without a terminal every byte is input.
        input => {
            return Ok(Attached {
                output: Box::pin(output),
                input: input.map(|input| Box::pin(input) as _),
                tty,
            });
        }
    };
    let (input, detached) = Escapable::new(input, parse_keys(keys)?);
    let left = async move {
        // Without a word the input just ended, and the output goes on.
        if detached.await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    Ok(Attached {
        output: Box::pin(output.take_until(left)),
        input: Some(Box::pin(input)),
        tty,
    })
}

/// Reads docker's grammar: a comma between keys, each a character or `ctrl-` and one of `a`–`z`, `@`, `[`, `\`, `]`,
/// `^`, `_`.
pub(super) fn parse_keys(text: Option<&str>) -> Result<Vec<u8>, ApiError> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(DEFAULT_KEYS.to_vec());
    };
    let key = |part: &str| match (
        part.as_bytes(),
        part.strip_prefix("ctrl-").map(str::as_bytes),
    ) {
        ([one], _) => Ok(*one),
        (_, Some([one @ b'a'..=b'z'])) => Ok(one - b'a' + 1),
        (_, Some(b"@")) => Ok(0),
        (_, Some([one @ b'['..=b'_'])) => Ok(one - b'[' + 27),
        _ => Err(ApiError::invalid(format!(
            "Invalid detach keys ({text}) provided"
        ))),
    };
    text.split(',').map(key).collect()
}

/// Standard input of a terminal, in which a sequence of keys means to detach.
pub(super) struct Escapable<W> {
    input: W,
    keys: Vec<u8>,
    /// How many of the keys were pressed in a row; they are held back.
    pressed: usize,
    /// Bytes that go on their way.
    buffer: Vec<u8>,
    sent: usize,
    detach: Option<oneshot::Sender<()>>,
}

impl<W> Escapable<W> {
    /// The input, and what hears of it when the user detaches.
    pub(super) fn new(input: W, keys: Vec<u8>) -> (Self, oneshot::Receiver<()>) {
        let (detach, detached) = oneshot::channel();
        let escapable = Self {
            input,
            keys,
            pressed: 0,
            buffer: Vec::new(),
            sent: 0,
            detach: Some(detach),
        };
        (escapable, detached)
    }

    /// Sorts what was typed into what goes on and what is held back.
    fn take(&mut self, typed: &[u8]) {
        for byte in typed {
            if self.keys.get(self.pressed) == Some(byte) {
                self.pressed += 1;
                if self.pressed == self.keys.len() {
                    self.pressed = 0;
                    if let Some(detach) = self.detach.take() {
                        // Nobody waits any more if the output has ended.
                        let _ = detach.send(());
                    }
                    return;
                }
                continue;
            }
            self.buffer.extend_from_slice(&self.keys[..self.pressed]);
            self.pressed = usize::from(self.keys.first() == Some(byte));
            if self.pressed == 0 {
                self.buffer.push(*byte);
            }
        }
    }
}

impl<W: AsyncWrite + Unpin> Escapable<W> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.buffer.len() {
            let sent = ready!(Pin::new(&mut self.input).poll_write(cx, &self.buffer[self.sent..]))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += sent;
        }
        self.buffer.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Escapable<W> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        typed: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        this.take(typed);
        // What does not go out now goes out with the next write or flush; all of it is taken.
        match this.poll_drain(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(typed.len())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.input).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.input).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[test]
    fn keys_are_written_as_docker_writes_them() {
        assert_eq!(parse_keys(None).unwrap(), [16, 17]);
        assert_eq!(
            parse_keys(Some("ctrl-a,x,ctrl-[,ctrl-_,ctrl-@")).unwrap(),
            [1, b'x', 27, 31, 0]
        );
        assert_eq!(
            parse_keys(Some("ctrl-")).unwrap_err().message,
            "Invalid detach keys (ctrl-) provided"
        );
        parse_keys(Some("abc")).unwrap_err();
    }

    #[tokio::test]
    async fn the_sequence_detaches_and_everything_else_passes() {
        let (mut input, mut detached) = Escapable::new(Vec::new(), vec![16, 17]);
        for typed in [&[b'a', 16][..], &[b'b', 16, 16], b"c"] {
            input.write_all(typed).await.unwrap();
        }
        input.flush().await.unwrap();
        assert_eq!(input.input, [b'a', 16, b'b', 16, 16, b'c']);
        assert!(detached.try_recv().is_err());
        input.write_all(&[b'd', 16]).await.unwrap();
        input.write_all(&[17, b'e']).await.unwrap();
        assert!(detached.try_recv().is_ok());
        assert_eq!(input.input.last(), Some(&b'd'));
    }
}
