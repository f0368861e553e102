//! The caller's terminal: raw mode, its size, and copying streams between it and a process.

use std::{io::IsTerminal as _, os::fd::AsFd as _};

use anyhow::{Context as _, Result, bail};
use nix::sys::termios::{self, SetArg, Termios};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    signal::unix::{SignalKind, signal},
};

use crate::{
    client::{Client, Payload, Target},
    output,
};

/// Bytes of the header before each frame of a multiplexed stream: stream, three zeros, length in network order.
const FRAME_HEADER: usize = 8;
/// Ctrl-P Ctrl-Q leaves a container running.
const DETACH_KEYS: [u8; 2] = [16, 17];

/// A terminal in raw mode; it gets its old mode back when this goes.
pub(crate) struct RawMode(Termios);

impl RawMode {
    /// Passes every key through, if standard input is a terminal.
    pub(crate) fn enter() -> Result<Option<Self>> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before =
            termios::tcgetattr(stdin.as_fd()).context("cannot read the terminal's mode")?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw)
            .context("cannot set the terminal to raw mode")?;
        Ok(Some(Self(before)))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // The terminal may be gone; then there is nothing to restore.
        let _ = termios::tcsetattr(std::io::stdin().as_fd(), SetArg::TCSADRAIN, &self.0);
    }
}

/// Whether a terminal can be given to a process: `-t` wants one on standard input when that is attached.
pub(crate) fn check_tty(stdin: bool, tty: bool) -> Result<()> {
    if stdin && tty && !std::io::stdin().is_terminal() {
        bail!("the input device is not a TTY");
    }
    Ok(())
}

/// How the copying between the terminal and a process ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The process closed its output.
    Output,
    /// The user pressed the detach keys.
    Detached,
}

/// Copies standard input to the process and its output to ours until the output ends or the user detaches.
pub(crate) async fn copy<S>(stream: S, stdin: bool, tty: bool) -> Result<Ended>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (reader, mut writer) = tokio::io::split(stream);
    let (detach, detached) = tokio::sync::oneshot::channel();
    if stdin {
        tokio::spawn(async move {
            if copy_in(&mut writer, tty).await == Ended::Detached {
                let _ = detach.send(());
            }
            // The process sees the end of its input; a broken stream is seen by the reading half.
            let _ = writer.shutdown().await;
            // Keeps the sender's silence from looking like an answer.
            std::future::pending::<()>().await;
        });
    } else {
        std::mem::forget(detach);
    }
    tokio::select! {
        result = copy_out(reader, tty) => result.map(|()| Ended::Output),
        Ok(()) = detached => Ok(Ended::Detached),
    }
}

async fn copy_in(writer: &mut (impl AsyncWrite + Unpin), tty: bool) -> Ended {
    let mut input = tokio::io::stdin();
    let mut buffer = vec![0; 16 << 10];
    let mut pending = false;
    loop {
        let Ok(count @ 1..) = input.read(&mut buffer).await else {
            return Ended::Output;
        };
        let mut keys = Vec::with_capacity(count + 1);
        for &key in &buffer[..count] {
            if tty && pending && key == DETACH_KEYS[1] {
                return Ended::Detached;
            }
            if std::mem::take(&mut pending) {
                keys.push(DETACH_KEYS[0]);
            }
            if tty && key == DETACH_KEYS[0] {
                pending = true;
            } else {
                keys.push(key);
            }
        }
        if writer.write_all(&keys).await.is_err() || writer.flush().await.is_err() {
            return Ended::Output;
        }
    }
}

/// Copies a process's output to ours, taking a multiplexed stream apart unless it comes from a terminal.
pub(crate) async fn copy_out(reader: impl AsyncRead + Unpin, tty: bool) -> Result<()> {
    if !tty {
        return frames(reader, async |stream, bytes: &[u8]| match stream {
            2 => output::write_error(bytes),
            _ => output::write(bytes),
        })
        .await;
    }
    let mut reader = reader;
    let mut buffer = vec![0; 32 << 10];
    loop {
        match reader.read(&mut buffer).await {
            Ok(0) => return Ok(()),
            Ok(count) => output::write(&buffer[..count]),
            Err(error) => return Err(error).context("the stream of the container broke off"),
        }
    }
}

/// Calls `sink` with each piece of a multiplexed stream: 1 is standard output, 2 standard error.
pub(crate) async fn frames(
    mut reader: impl AsyncRead + Unpin,
    mut sink: impl AsyncFnMut(u8, &[u8]),
) -> Result<()> {
    let mut header = [0; FRAME_HEADER];
    let mut buffer = vec![0; 32 << 10];
    loop {
        match reader.read_exact(&mut header).await {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error).context("the stream of the container broke off"),
        }
        if header[0] > 3 || header[1..4] != [0, 0, 0] {
            bail!("unrecognized input header: {}", header[0]);
        }
        let length = [header[4], header[5], header[6], header[7]];
        let mut left = u32::from_be_bytes(length) as usize;
        while left > 0 {
            let want = left.min(buffer.len());
            let count = reader.read(&mut buffer[..want]).await?;
            if count == 0 {
                return Ok(());
            }
            if header[0] == 3 {
                bail!(
                    "error from daemon in stream: {}",
                    String::from_utf8_lossy(&buffer[..count])
                );
            }
            sink(header[0], &buffer[..count]).await;
            left -= count;
        }
    }
}

/// Tells the process at `path` (`/containers/{}/resize`) the size of our terminal, now and whenever it changes.
///
/// Runs until it is dropped.
pub(crate) async fn follow_size(client: &Client, path: &str, id: &str) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else {
        return;
    };
    loop {
        if let Some((width, height)) = terminal_size::terminal_size() {
            let target = Target::new(path, &[id])
                .arg("h", height.0)
                .arg("w", width.0);
            // A container that is not up yet, or no more, has no size; the next change tries again.
            let _ = client.post(target, Payload::Empty).await;
        }
        if changes.recv().await.is_none() {
            return;
        }
    }
}

/// Passes the signals that end or steer a program on to the container. Runs until it is dropped.
pub(crate) async fn proxy_signals(client: &Client, id: &str) {
    use futures_util::StreamExt as _;
    let kinds = [
        ("HUP", SignalKind::hangup()),
        ("INT", SignalKind::interrupt()),
        ("QUIT", SignalKind::quit()),
        ("TERM", SignalKind::terminate()),
        ("USR1", SignalKind::user_defined1()),
        ("USR2", SignalKind::user_defined2()),
        ("ALRM", SignalKind::alarm()),
    ];
    let streams = kinds.into_iter().filter_map(|(name, kind)| {
        let received = signal(kind).ok()?;
        Some(Box::pin(futures_util::stream::unfold(
            received,
            move |mut received| async move { received.recv().await.map(|()| (name, received)) },
        )))
    });
    let mut signals = futures_util::stream::select_all(streams);
    while let Some(name) = signals.next().await {
        let target = Target::new("/containers/{}/kill", &[id]).arg("signal", name);
        // A container that has ended cannot be told anything.
        let _ = client.post(target, Payload::Empty).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_multiplexed_stream_is_taken_apart() {
        let bytes = b"\x01\0\0\0\0\0\0\x02hi\x02\0\0\0\0\0\0\x03err\x01\0\0\0\0\0\0\x09cut";
        let mut seen = Vec::new();
        frames(&bytes[..], async |stream, bytes: &[u8]| {
            seen.push((stream, String::from_utf8_lossy(bytes).into_owned()));
        })
        .await
        .unwrap();
        assert_eq!(
            seen,
            [(1, "hi".into()), (2, "err".into()), (1, "cut".into())]
        );
        assert!(
            frames(&b"plain text"[..], async |_, _: &[u8]| {})
                .await
                .is_err()
        );
    }
}
