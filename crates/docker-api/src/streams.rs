//! Standard streams of containers over a connection: frames, hijacked connections, logs.

use std::{collections::BTreeMap, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{
    Stream, StreamExt,
    future::{BoxFuture, ready},
};
use http::{HeaderValue, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use shoal_api::container::{LogLine, LogQuery, StdStream};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use crate::{
    backend::{ApiError, ApiResult, Attached},
    call::Query,
    convert::time::instant_fixed,
    reply::{self, Reply},
    server::Api,
};

/// Number of frames in which the daemon says what went wrong.
const SYSTEM_ERROR: u8 = 3;
/// Content type of unframed streams.
const RAW: &str = "application/vnd.docker.raw-stream";
/// Content type of framed streams; announced since API 1.42.
const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";

fn content_type(tty: bool, minor: u32) -> &'static str {
    if tty || minor < 42 { RAW } else { MULTIPLEXED }
}

/// Puts bytes into a frame: stream, three zeros, length, bytes (moby `pkg/stdcopy`).
fn frame(stream: StdStream, bytes: &[u8]) -> Bytes {
    numbered_frame(stream as u8, bytes)
}

fn numbered_frame(number: u8, bytes: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(8 + bytes.len());
    frame.put_u32(u32::from(number) << 24);
    // One read of a container's output is far below 4 GiB.
    frame.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    frame.put_slice(bytes);
    frame.freeze()
}

/// Hands the connection over to a container's streams; without an upgrade only output flows.
pub(crate) fn hijack(
    api: &Api,
    upgrade: Option<OnUpgrade>,
    minor: u32,
    attached: Attached,
) -> Reply {
    let Some(upgrade) = upgrade else {
        let tty = attached.tty;
        return reply::stream(
            content_type(tty, minor),
            attached.output.map(move |item| {
                item.map(|(stream, bytes)| if tty { bytes } else { frame(stream, &bytes) })
            }),
        );
    };
    let tty = attached.tty;
    hijack_then(api, upgrade, minor, tty, Box::pin(ready(Ok(attached))))
}

/// The same with streams that are there only after the connection was handed over. Why they did not come is written to
/// the connection, as docker does: the status is long gone.
pub(crate) fn hijack_then(
    api: &Api,
    upgrade: OnUpgrade,
    minor: u32,
    tty: bool,
    attached: BoxFuture<'static, ApiResult<Attached>>,
) -> Reply {
    let (stop, hang_up) = (api.stop.clone(), api.hang_up.clone());
    api.sessions.spawn(async move {
        tokio::select! {
            () = session(upgrade, tty, attached, hang_up.wait()) => {}
            () = stop.cancelled() => {}
        }
    });
    let mut reply = reply::empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = reply.headers_mut();
    let content_type = content_type(tty, minor);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("tcp"));
    reply
}

/// Time in which a process may still read what a client sent before it hung up.
const LAST_INPUT_TIMEOUT: Duration = Duration::from_secs(10);

/// Carries bytes both ways until the output ends or the client is gone.
async fn session(
    upgrade: OnUpgrade,
    tty: bool,
    attached: BoxFuture<'static, ApiResult<Attached>>,
    gone: impl Future<Output = ()>,
) {
    let connection = match upgrade.await {
        Ok(connection) => TokioIo::new(connection),
        Err(error) => {
            tracing::debug!(%error, "the client went away before its connection was taken over");
            return;
        }
    };
    let (from_client, mut to_client) = tokio::io::split(connection);
    let Attached { output, input, .. } = match attached.await {
        Ok(attached) => attached,
        Err(error) => {
            let text = format!("{error}\r\n");
            let bytes = if tty {
                text.into()
            } else {
                frame(StdStream::Stdout, text.as_bytes())
            };
            // Nobody may be there any more.
            let _ = to_client.write_all(&bytes).await;
            let _ = to_client.shutdown().await;
            return;
        }
    };
    let fed = CancellationToken::new();
    let gone = async {
        gone.await;
        // What it sent before is still to be read.
        let _ = tokio::time::timeout(LAST_INPUT_TIMEOUT, fed.cancelled()).await;
    };
    tokio::select! {
        () = feed(from_client, input, &fed) => {}
        () = drain(output, to_client, tty) => {}
        () = gone => {}
    }
}

/// Copies the client's bytes into standard input. The end of them closes the input but not the session, which is why
/// this never returns after it and tells `fed` instead; a connection that broke ends it.
async fn feed(
    mut from_client: impl AsyncRead + Unpin,
    input: Option<std::pin::Pin<Box<dyn AsyncWrite + Send>>>,
    fed: &CancellationToken,
) {
    let copied = match input {
        None => tokio::io::copy(&mut from_client, &mut tokio::io::sink()).await,
        Some(mut input) => {
            let copied = tokio::io::copy(&mut from_client, &mut input).await;
            // A process that no longer reads is no reason to withhold what it writes.
            let _ = input.shutdown().await;
            copied
        }
    };
    if let Err(error) = copied
        && error.kind() == std::io::ErrorKind::ConnectionReset
    {
        return;
    }
    fed.cancel();
    std::future::pending().await
}

async fn drain(
    mut output: crate::backend::ItemStream<(StdStream, Bytes)>,
    mut to_client: impl AsyncWrite + Unpin,
    tty: bool,
) {
    while let Some(item) = output.next().await {
        let bytes = match item {
            Ok((_, bytes)) if tty => bytes,
            Ok((stream, bytes)) => frame(stream, &bytes),
            Err(error) => {
                tracing::warn!(%error, "the output of a container ended early");
                break;
            }
        };
        if to_client.write_all(&bytes).await.is_err() || to_client.flush().await.is_err() {
            return;
        }
    }
    let _ = to_client.shutdown().await;
}

/// How log lines are written out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogFormat {
    timestamps: bool,
    details: bool,
    tty: bool,
}

impl LogFormat {
    pub(crate) fn new(query: &Query, tty: bool) -> Self {
        Self {
            timestamps: query.flag("timestamps"),
            details: query.flag("details"),
            tty,
        }
    }

    /// What a reader is told when the lines break off, in docker's words.
    fn error(self, error: &ApiError) -> Bytes {
        let text = format!("Error grabbing logs: {error}\n");
        if self.tty {
            text.into()
        } else {
            numbered_frame(SYSTEM_ERROR, text.as_bytes())
        }
    }

    /// A line as it travels: time, details, text, framed unless there is a terminal.
    fn bytes<Name: AsRef<str>>(self, line: &LogLine, details: &BTreeMap<Name, String>) -> Bytes {
        let mut text = Vec::with_capacity(line.bytes.len() + 40);
        if self.timestamps {
            text.extend_from_slice(instant_fixed(line.time).as_bytes());
            text.push(b' ');
        }
        if self.details {
            let pairs: Vec<String> = details
                .iter()
                .map(|(name, value)| format!("{}={}", escape(name.as_ref()), escape(value)))
                .collect();
            text.extend_from_slice(pairs.join(",").as_bytes());
            text.push(b' ');
        }
        text.extend_from_slice(&line.bytes);
        if self.tty {
            text.into()
        } else {
            frame(line.stream, &text)
        }
    }
}

/// Reads which lines a client wants.
pub(crate) fn log_query(query: &Query) -> ApiResult<LogQuery> {
    let (stdout, stderr) = (query.flag("stdout"), query.flag("stderr"));
    if !stdout && !stderr {
        return Err(ApiError::invalid(
            "Bad parameters: you must choose at least one stream",
        ));
    }
    Ok(LogQuery {
        stdout,
        stderr,
        follow: query.flag("follow"),
        since: query.instant("since")?,
        until: query.instant("until")?,
        // `all`, rubbish and negative numbers are all the lines there are, as in docker.
        tail: query.text("tail").and_then(|text| text.parse().ok()),
    })
}

/// The answer of the log requests.
pub(crate) fn logs<T: Send + 'static, Name: AsRef<str> + 'static>(
    lines: impl Stream<Item = ApiResult<T>> + Send + 'static,
    format: LogFormat,
    minor: u32,
    line: impl Fn(&T) -> (&LogLine, BTreeMap<Name, String>) + Send + 'static,
) -> Reply {
    reply::stream(
        content_type(format.tty, minor),
        lines.map(move |item| {
            Ok(match item {
                Ok(item) => {
                    let (line, details) = line(&item);
                    format.bytes(line, &details)
                }
                Err(error) => format.error(&error),
            })
        }),
    )
}

/// Escapes as Go's `url.QueryEscape`.
fn escape(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            b' ' => out.push('+'),
            _ => write!(out, "%{byte:02X}").expect("writing to a String cannot fail"),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_names_its_stream_and_length() {
        assert_eq!(
            &frame(StdStream::Stderr, b"hi")[..],
            b"\x02\0\0\0\0\0\0\x02hi"
        );
    }

    #[test]
    fn a_line_carries_time_and_details_in_this_order() {
        let line = LogLine {
            stream: StdStream::Stdout,
            time: shoal_api::Timestamp(1),
            bytes: b"text\n".to_vec(),
        };
        let format = LogFormat {
            timestamps: true,
            details: true,
            tty: true,
        };
        let details = BTreeMap::from([("b", "x y".to_owned()), ("a", "1/2".to_owned())]);
        assert_eq!(
            &format.bytes(&line, &details)[..],
            b"1970-01-01T00:00:00.000000001Z a=1%2F2,b=x+y text\n"
        );
    }
}
