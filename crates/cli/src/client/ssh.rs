//! A daemon at the other end of ssh: `ssh HOST shoal system dial-stdio`, as docker does it. The user's own ssh brings keys,
//! known hosts and configuration.

use std::{
    io,
    pin::Pin,
    process::Stdio,
    task::{Context, Poll},
};

use anyhow::{Context as _, Result, bail};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    process::{Child, ChildStdin, ChildStdout, Command},
};

/// A host that ssh leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remote {
    user: Option<String>,
    host: String,
    port: Option<u16>,
    /// Socket of the daemon there, if it is not the usual one.
    socket: Option<String>,
}

impl Remote {
    /// Reads `[user@]host[:port][/socket]`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let (place, socket) = match text.split_once('/') {
            Some((place, socket)) => (place, Some(format!("/{socket}"))),
            None => (text, None),
        };
        let (user, place) = match place.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, place),
        };
        if user.is_some_and(|user| user.contains(':')) {
            bail!(
                "unable to parse docker host \"ssh://{text}\": plain-text password is not supported"
            );
        }
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                let port = port.parse().with_context(|| {
                    format!("unable to parse docker host \"ssh://{text}\": invalid port {port:?}")
                })?;
                (host, Some(port))
            }
            _ => (place, None),
        };
        // What begins with a dash would be an option of ssh.
        let good = |text: &str| !text.is_empty() && !text.starts_with('-');
        if !good(host) || !user.is_none_or(good) {
            bail!("unable to parse docker host \"ssh://{text}\": expected ssh://user@host");
        }
        Ok(Self {
            user: user.map(str::to_owned),
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            socket: socket.filter(|socket| socket != "/"),
        })
    }

    /// What ssh is called with.
    fn arguments(&self) -> Vec<String> {
        let mut words = vec![
            "-o".to_owned(),
            "ConnectTimeout=30".to_owned(),
            "-T".to_owned(),
        ];
        if let Some(user) = &self.user {
            words.extend(["-l".to_owned(), user.clone()]);
        }
        if let Some(port) = self.port {
            words.extend(["-p".to_owned(), port.to_string()]);
        }
        words.extend([
            "--".to_owned(),
            self.host.clone(),
            crate::program().to_owned(),
        ]);
        if let Some(socket) = &self.socket {
            words.extend(["--host".to_owned(), format!("unix://{socket}")]);
        }
        words.extend(["system".to_owned(), "dial-stdio".to_owned()]);
        words
    }

    /// Starts ssh; what it has to say goes to standard error.
    pub(super) fn connect(&self) -> Result<Connection> {
        let mut child = Command::new("ssh")
            .args(self.arguments())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .context("cannot run ssh; it must be installed for a host of this kind")?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("ssh has no standard input or output");
        };
        Ok(Connection {
            input: Some(input),
            output,
            _child: child,
        })
    }
}

/// Bytes through a running ssh, which ends with this.
pub(super) struct Connection {
    /// Closed once nothing more is to be sent: the daemon hears of it by the end of ssh's input.
    input: Option<ChildStdin>,
    output: ChildStdout,
    _child: Child,
}

impl Connection {
    fn input(&mut self) -> io::Result<Pin<&mut ChildStdin>> {
        let input = self.input.as_mut();
        input
            .map(Pin::new)
            .ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.output).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.input()?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.input.as_mut() {
            Some(input) => Pin::new(input).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.as_mut().poll_flush(cx);
        // A pipe knows no other end than being closed.
        if flushed.is_ready() {
            self.input = None;
        }
        flushed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_becomes_words_for_ssh() {
        let words = |text: &str| Remote::parse(text).map(|remote| remote.arguments().join(" "));
        assert_eq!(
            words("me@far:2222").unwrap(),
            "-o ConnectTimeout=30 -T -l me -p 2222 -- far shoal system dial-stdio"
        );
        assert_eq!(
            words("far/run/a.sock").unwrap(),
            "-o ConnectTimeout=30 -T -- far shoal --host unix:///run/a.sock system dial-stdio"
        );
        for bad in [
            "",
            "-oProxyCommand=x",
            "me:secret@far",
            "me@",
            "-l@far",
            "far:port",
        ] {
            assert!(words(bad).is_err(), "{bad}");
        }
    }
}
