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
    config_file::ConfigFile,
    output,
};

/// Bytes of the header before each frame of a multiplexed stream: stream, three zeros, length in network order.
const FRAME_HEADER: usize = 8;
/// Leave a container running, unless the user says otherwise.
const DETACH_KEYS: &str = "ctrl-p,ctrl-q";

/// The keys that leave a container running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DetachKeys {
    /// In docker's grammar, for the daemon.
    pub(crate) text: String,
    bytes: Vec<u8>,
}

impl DetachKeys {
    /// Those of the flag, else of the configuration file, else docker's.
    pub(crate) fn wanted(flag: Option<&str>) -> Result<Self> {
        match flag {
            Some(text) => Self::parse(text),
            None => {
                let file = ConfigFile::load()?;
                Self::parse(file.text("detachKeys").unwrap_or(DETACH_KEYS))
            }
        }
    }

    /// Reads keys: letters and `ctrl-x`, with commas between (moby `term.ToBytes`).
    fn parse(text: &str) -> Result<Self> {
        let mut bytes = Vec::new();
        for key in text.split(',') {
            bytes.push(match key.as_bytes() {
                [byte] => *byte,
                [b'c', b't', b'r', b'l', b'-', key @ (b'a'..=b'z')] => key - b'a' + 1,
                b"ctrl-@" => 0,
                b"ctrl-[" => 27,
                b"ctrl-\\" => 28,
                b"ctrl-]" => 29,
                b"ctrl-^" => 30,
                b"ctrl-_" => 31,
                b"DEL" => 127,
                _ => bail!(
                    "invalid detach keys ({text}): unknown character: '{key}'; expected letters or ctrl-<value>, \
                     where <value> is one of a-z @ [ \\ ] ^ _"
                ),
            });
        }
        Ok(Self {
            text: text.to_owned(),
            bytes,
        })
    }
}

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

/// Asks for a line that nobody else shall read: on a terminal it is not shown while it is typed.
pub(crate) fn ask_secret(prompt: &str) -> Result<String> {
    let stdin = std::io::stdin();
    let mut hidden = None;
    if stdin.is_terminal() {
        output::write_error(prompt.as_bytes());
        let before =
            termios::tcgetattr(stdin.as_fd()).context("cannot read the terminal's mode")?;
        let mut quiet = before.clone();
        quiet.local_flags.remove(termios::LocalFlags::ECHO);
        termios::tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &quiet)
            .context("cannot keep the terminal from showing the key")?;
        hidden = Some(RawMode(before));
    }
    let mut line = String::new();
    stdin.read_line(&mut line).context("cannot read the key")?;
    if hidden.is_some() {
        output::write_error(b"\n");
    }
    Ok(line.trim().to_owned())
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
///
/// `keys` detach from a terminal; without one nothing does.
pub(crate) async fn copy<S>(stream: S, stdin: bool, tty: bool, keys: &DetachKeys) -> Result<Ended>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (reader, mut writer) = tokio::io::split(stream);
    let (detach, detached) = tokio::sync::oneshot::channel();
    let keys = if tty { keys.bytes.clone() } else { Vec::new() };
    if stdin {
        tokio::spawn(async move {
            if copy_in(&mut writer, &keys).await == Ended::Detached {
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

async fn copy_in(writer: &mut (impl AsyncWrite + Unpin), detach: &[u8]) -> Ended {
    let mut input = tokio::io::stdin();
    let mut buffer = vec![0; 16 << 10];
    let mut scanner = KeyScanner::default();
    loop {
        let Ok(count @ 1..) = input.read(&mut buffer).await else {
            return Ended::Output;
        };
        let Some(keys) = scanner.scan(&buffer[..count], detach) else {
            return Ended::Detached;
        };
        if writer.write_all(&keys).await.is_err() || writer.flush().await.is_err() {
            return Ended::Output;
        }
    }
}

/// Looks for the detach keys in what is typed.
#[derive(Default)]
struct KeyScanner {
    /// How many of them were typed last.
    matched: usize,
}

impl KeyScanner {
    /// What is to be passed on; `None` when the last of the detach keys was typed.
    fn scan(&mut self, typed: &[u8], detach: &[u8]) -> Option<Vec<u8>> {
        if detach.is_empty() {
            return Some(typed.to_vec());
        }
        let mut keys = Vec::with_capacity(typed.len() + self.matched);
        for &key in typed {
            if key != detach[self.matched] {
                // They were meant for the process after all.
                keys.extend_from_slice(&detach[..self.matched]);
                self.matched = 0;
            }
            if key == detach[self.matched] {
                self.matched += 1;
                if self.matched == detach.len() {
                    return None;
                }
            } else {
                keys.push(key);
            }
        }
        Some(keys)
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

    #[test]
    fn detach_keys_are_found_wherever_they_are_cut() {
        let keys = DetachKeys::parse("ctrl-p,ctrl-q").unwrap().bytes;
        assert_eq!(keys, [16, 17]);
        let scan = |pieces: &[&[u8]]| {
            let mut scanner = KeyScanner::default();
            let mut out = Vec::new();
            for piece in pieces {
                out.extend(scanner.scan(piece, &keys)?);
            }
            Some(out)
        };
        assert_eq!(scan(&[b"a\x10", b"\x11b"]), None);
        assert_eq!(scan(&[b"a\x10", b"b"]).unwrap(), b"a\x10b");
        assert_eq!(scan(&[b"\x10\x10\x10x"]).unwrap(), b"\x10\x10\x10x");
        assert_eq!(scan(&[b"\x10\x10\x11"]), None);
        assert_eq!(
            DetachKeys::parse("@,ctrl-[,ctrl-\\").unwrap().bytes,
            [64, 27, 28]
        );
        assert!(DetachKeys::parse("ctrl-").is_err() && DetachKeys::parse("").is_err());
    }

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
