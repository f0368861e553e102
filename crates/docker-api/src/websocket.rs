//! Attaching over a websocket (RFC 6455), as far as a terminal needs it: no extensions, no subprotocols.

use base64::Engine as _;
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderValue, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::{
    backend::Attached,
    reply::{self, Reply},
    server::Api,
};

/// Appended to the client's key (RFC 6455, 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Bytes of one message from the client at most. Nobody types faster.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Hands the connection over to a container's streams.
pub(crate) fn hijack(api: &Api, upgrade: OnUpgrade, key: &str, attached: Attached) -> Reply {
    let stop = api.stop.clone();
    api.sessions.spawn(async move {
        let work = async {
            if let Ok(connection) = upgrade.await {
                session(TokioIo::new(connection), attached).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
    });
    let mut reply = reply::empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = reply.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    let accept = HeaderValue::from_str(&accept(key)).expect("base 64 is plain");
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    reply
}

/// The proof that the key was read.
fn accept(key: &str) -> String {
    let digest = sha1(format!("{key}{GUID}").as_bytes());
    base64::engine::general_purpose::STANDARD.encode(digest)
}

async fn session(connection: impl AsyncRead + AsyncWrite, attached: Attached) {
    let (mut from_client, mut to_client) = tokio::io::split(connection);
    let Attached {
        mut output,
        mut input,
        ..
    } = attached;
    // What the reader has to say to the client, which only the writer may do.
    let (answers, mut answered) = mpsc::channel::<(u8, Vec<u8>)>(4);
    let read = async {
        while let Ok((kind, payload)) = read_frame(&mut from_client).await {
            match kind {
                TEXT | BINARY | CONTINUATION => {
                    if let Some(stdin) = &mut input
                        && stdin.write_all(&payload).await.is_err()
                    {
                        // The process no longer reads, which is no reason to withhold what it writes.
                        input = None;
                    }
                }
                PING => drop(answers.send((PONG, payload)).await),
                CLOSE => {
                    let _ = answers.send((CLOSE, payload)).await;
                    break;
                }
                _ => {}
            }
        }
        drop(answers);
    };
    let write = async {
        loop {
            let (kind, payload) = tokio::select! {
                biased;
                answer = answered.recv() => match answer {
                    Some((kind, payload)) => (kind, Bytes::from(payload)),
                    // The client has gone.
                    None => return,
                },
                piece = output.next() => match piece {
                    Some(Ok((_, bytes))) => (BINARY, bytes),
                    Some(Err(_)) | None => (CLOSE, Bytes::from_static(&[0x03, 0xe8])),
                },
            };
            let sent = to_client.write_all(&frame(kind, &payload)).await;
            if sent.is_err() || to_client.flush().await.is_err() || kind == CLOSE {
                let _ = to_client.shutdown().await;
                return;
            }
        }
    };
    tokio::pin!(read, write);
    tokio::select! {
        () = &mut write => {}
        // The answer to a close is still to be sent.
        () = &mut read => write.await,
    }
}

/// A whole message to a client, which is never masked.
fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(payload.len() + 10);
    frame.push(0x80 | kind);
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(len), _) if len < 126 => frame.push(len),
        (_, Ok(len)) => {
            frame.push(126);
            frame.extend_from_slice(&len.to_be_bytes());
        }
        _ => {
            frame.push(127);
            frame.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame
}

/// One frame of a client: its kind and what it carries. Clients must mask (RFC 6455, 5.1).
async fn read_frame(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<(u8, Vec<u8>)> {
    let invalid = |what| std::io::Error::new(std::io::ErrorKind::InvalidData, what);
    let [first, second] = [from.read_u8().await?, from.read_u8().await?];
    if first & 0x70 != 0 || second & 0x80 == 0 {
        return Err(invalid("not a frame of a client"));
    }
    let len = match second & 0x7f {
        126 => u64::from(from.read_u16().await?),
        127 => from.read_u64().await?,
        len => u64::from(len),
    };
    if len > MESSAGE_BYTES_MAX {
        return Err(invalid("a frame is too long"));
    }
    let mut mask = [0; 4];
    from.read_exact(&mut mask).await?;
    let mut payload = vec![0; usize::try_from(len).map_err(|_| invalid("length"))?];
    from.read_exact(&mut payload).await?;
    for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    Ok((first & 0x0f, payload))
}

/// SHA-1 (RFC 3174), which the handshake prescribes. It protects nothing there, so no library is worth its weight.
fn sha1(message: &[u8]) -> [u8; 20] {
    let mut state: [u32; 5] = [
        0x6745_2301,
        0xefcd_ab89,
        0x98ba_dcfe,
        0x1032_5476,
        0xc3d2_e1f0,
    ];
    let mut padded = message.to_vec();
    padded.push(0x80);
    while padded.len() % 64 != 56 {
        padded.push(0);
    }
    padded.extend_from_slice(&(message.len() as u64 * 8).to_be_bytes());
    for block in padded.chunks_exact(64) {
        let mut words = [0_u32; 80];
        for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
            *word = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        for t in 16..80 {
            words[t] = (words[t - 3] ^ words[t - 8] ^ words[t - 14] ^ words[t - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        for (t, word) in words.iter().enumerate() {
            let (mix, add) = match t {
                0..20 => ((b & c) | (!b & d), 0x5a82_7999),
                20..40 => (b ^ c ^ d, 0x6ed9_eba1),
                40..60 => ((b & c) | (b & d) | (c & d), 0x8f1b_bcdc_u32),
                _ => (b ^ c ^ d, 0xca62_c1d6),
            };
            let next = a
                .rotate_left(5)
                .wrapping_add(mix)
                .wrapping_add(e)
                .wrapping_add(*word)
                .wrapping_add(add);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (have, add) in state.iter_mut().zip([a, b, c, d, e]) {
            *have = have.wrapping_add(add);
        }
    }
    let mut digest = [0; 20];
    for (bytes, word) in digest.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handshake_is_that_of_the_standard() {
        // The example of RFC 6455, 1.3.
        assert_eq!(
            accept("dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[test]
    fn lengths_have_three_forms() {
        assert_eq!(frame(BINARY, b"hi"), [0x82, 2, b'h', b'i']);
        assert_eq!(frame(BINARY, &[0; 300])[..4], [0x82, 126, 1, 44]);
        assert_eq!(
            frame(BINARY, &[0; 70_000])[..10],
            [0x82, 127, 0, 0, 0, 0, 0, 1, 0x11, 0x70]
        );
    }

    #[tokio::test]
    async fn bytes_flow_both_ways_and_a_close_is_answered() {
        let (client, server) = tokio::io::duplex(4096);
        let (input, mut stdin) = tokio::io::duplex(64);
        let attached = Attached {
            output: Box::pin(
                futures_util::stream::iter([Ok((
                    shoal_api::container::StdStream::Stdout,
                    Bytes::from_static(b"out"),
                ))])
                .chain(futures_util::stream::pending()),
            ),
            input: Some(Box::pin(input)),
            tty: true,
        };
        let served = tokio::spawn(session(server, attached));
        let (mut from, mut to) = tokio::io::split(client);
        let mut seen = [0; 5];
        from.read_exact(&mut seen).await.expect("output");
        assert_eq!(&seen, b"\x82\x03out");
        let masked = [0x82, 0x82, 1, 2, 3, 4, b'i' ^ 1, b'n' ^ 2];
        to.write_all(&masked).await.expect("write");
        let mut typed = [0; 2];
        stdin.read_exact(&mut typed).await.expect("input");
        assert_eq!(&typed, b"in");
        to.write_all(&[0x88, 0x80, 0, 0, 0, 0])
            .await
            .expect("close");
        let mut closed = [0; 2];
        from.read_exact(&mut closed).await.expect("answer");
        assert_eq!(closed, [0x88, 0]);
        served.await.expect("session");
    }
}
