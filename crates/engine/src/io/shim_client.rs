//! Talking to a shim: requests and answers on one connection, streams on others.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;

use bytes::Bytes;
use shoal_api::container::StdStream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use super::nursery;
use crate::shim::protocol::{
    Exit, FRAME_HEADER, Failure, KIND_MESSAGE, Reply, Request, Streams, parse_header, push_frame,
    push_message, stream_of,
};

/// Pieces of output waiting for a slow reader; beyond that the shim waits, and then the container.
const OUTPUT_PIECES_MAX: usize = 16;
/// Standard input waiting for the shim.
const INPUT_BYTES_MAX: usize = 64 << 10;

/// A handle on a shim's control connection. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct ShimHandle {
    requests: mpsc::UnboundedSender<(Request, oneshot::Sender<Reply>)>,
}

/// What comes from a shim unasked.
#[derive(Debug)]
pub(super) enum ShimEvent {
    /// Process 1 ended, or an exec.
    Exited { exec: Option<String>, exit: Exit },
    /// The connection closed: the shim has finished, or died.
    Gone,
}

impl ShimHandle {
    /// Serves a control connection in a task of its own.
    pub(super) fn new(stream: UnixStream) -> (Self, mpsc::UnboundedReceiver<ShimEvent>) {
        let (requests, request_rx) = mpsc::unbounded_channel();
        let (events, event_rx) = mpsc::unbounded_channel();
        tokio::spawn(control(stream, request_rx, events));
        (Self { requests }, event_rx)
    }

    /// Asks and waits for the answer; an error when the shim is gone.
    pub(super) async fn ask(&self, request: Request) -> io::Result<Reply> {
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the container's shim is gone");
        let (answer, answered) = oneshot::channel();
        self.requests.send((request, answer)).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())
    }
}

/// Asks over a connection that nobody serves, and waits for the answer; what comes unasked before it is passed over.
pub(super) async fn ask_once(stream: &mut UnixStream, request: &Request) -> io::Result<Reply> {
    let mut out = Vec::new();
    push_message(&mut out, request);
    stream.write_all(&out).await?;
    while let Some((kind, payload)) = read_frame(stream).await? {
        if kind != KIND_MESSAGE {
            continue;
        }
        match serde_json::from_slice(&payload)? {
            Reply::Exited { .. } => {}
            reply => return Ok(reply),
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

async fn control(
    stream: UnixStream,
    mut requests: mpsc::UnboundedReceiver<(Request, oneshot::Sender<Reply>)>,
    events: mpsc::UnboundedSender<ShimEvent>,
) {
    let (mut reader, mut writer) = stream.into_split();
    let mut waiting: VecDeque<oneshot::Sender<Reply>> = VecDeque::new();
    let (frames, mut frame_rx) = mpsc::channel(OUTPUT_PIECES_MAX);
    // Reading a frame is no single await, so it has a task which no other event can interrupt half-way.
    tokio::spawn(async move {
        while let Ok(Some(frame)) = read_frame(&mut reader).await {
            if frames.send(frame).await.is_err() {
                break;
            }
        }
    });
    loop {
        tokio::select! {
            request = requests.recv() => {
                // Without a handle left nobody will ask again, but the end is still to be told.
                let Some((request, answer)) = request else {
                    while let Some((_, payload)) = frame_rx.recv().await {
                        tell(&payload, &mut waiting, &events);
                    }
                    break;
                };
                let mut out = Vec::new();
                push_message(&mut out, &request);
                waiting.push_back(answer);
                if writer.write_all(&out).await.is_err() {
                    break;
                }
            }
            frame = frame_rx.recv() => {
                let Some((kind, payload)) = frame else { break };
                if kind == KIND_MESSAGE {
                    tell(&payload, &mut waiting, &events);
                }
            }
        }
    }
    let _ = events.send(ShimEvent::Gone);
}

fn tell(
    payload: &[u8],
    waiting: &mut VecDeque<oneshot::Sender<Reply>>,
    events: &mpsc::UnboundedSender<ShimEvent>,
) {
    match serde_json::from_slice(payload) {
        Ok(Reply::Exited { exec, exit }) => drop(events.send(ShimEvent::Exited { exec, exit })),
        Ok(reply) => {
            if let Some(answer) = waiting.pop_front() {
                let _ = answer.send(reply);
            }
        }
        Err(err) => tracing::warn!(error = %err, "a shim said what cannot be understood"),
    }
}

async fn read_frame(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<(u8, Vec<u8>)>> {
    let mut header = [0; FRAME_HEADER];
    match reader.read_exact(&mut header).await {
        Ok(_) => {}
        Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(err) => return Err(err),
    }
    let (kind, len) = parse_header(header)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a frame"))?;
    let mut payload = vec![0; len];
    reader.read_exact(&mut payload).await?;
    Ok(Some((kind, payload)))
}

/// The streams of a process. Dropping it detaches.
pub struct Attachment {
    /// What the process writes, until it ends. With a terminal everything comes as standard output.
    pub output: ReceiverStream<(StdStream, Bytes)>,
    /// Standard input, when asked for; shutting it down ends the input.
    pub input: Option<DuplexStream>,
    pub tty: bool,
}

impl std::fmt::Debug for Attachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attachment")
            .field("tty", &self.tty)
            .finish_non_exhaustive()
    }
}

/// A connection that has asked for streams and was not refused, with the process id of an exec.
pub(super) struct StreamConnection {
    stream: UnixStream,
    pub(super) pid: i32,
}

/// Why a stream connection did not come about.
#[derive(Debug)]
pub(super) enum StreamRefused {
    Io(io::Error),
    Failed(Failure),
}

/// Connects to the shim in `run_dir` and sends `request`, an attach or an exec.
pub(super) async fn open_streams(
    run_dir: &Path,
    request: &Request,
) -> Result<StreamConnection, StreamRefused> {
    let io = StreamRefused::Io;
    let stream = nursery::connect(run_dir).map_err(io)?;
    stream.set_nonblocking(true).map_err(io)?;
    let mut stream = UnixStream::from_std(stream).map_err(io)?;
    let mut out = Vec::new();
    push_message(&mut out, request);
    stream.write_all(&out).await.map_err(io)?;
    let closed = || {
        StreamRefused::Io(io::Error::new(
            io::ErrorKind::BrokenPipe,
            "the container's shim is gone",
        ))
    };
    loop {
        let (kind, payload) = read_frame(&mut stream)
            .await
            .map_err(io)?
            .ok_or_else(closed)?;
        if kind != KIND_MESSAGE {
            continue;
        }
        match serde_json::from_slice(&payload).map_err(|err| StreamRefused::Io(err.into()))? {
            Reply::Done => return Ok(StreamConnection { stream, pid: 0 }),
            Reply::Started { pid, .. } => return Ok(StreamConnection { stream, pid }),
            Reply::Failed(failure) => return Err(StreamRefused::Failed(failure)),
            Reply::State { .. } | Reply::Exited { .. } => {}
        }
    }
}

/// Lets bytes flow once `connection` is there. If it never comes the output just ends.
pub(super) fn attach(
    connection: Pin<Box<dyn Future<Output = Option<StreamConnection>> + Send>>,
    streams: Streams,
    tty: bool,
    on_end: impl FnOnce(Exit) + Send + 'static,
) -> Attachment {
    let (output_tx, output_rx) = mpsc::channel(OUTPUT_PIECES_MAX);
    let (input, input_rx) = if streams.stdin {
        let (ours, theirs) = tokio::io::duplex(INPUT_BYTES_MAX);
        (Some(ours), Some(theirs))
    } else {
        (None, None)
    };
    tokio::spawn(async move {
        let connection = tokio::select! {
            connection = connection => connection,
            () = output_tx.closed() => None,
        };
        let Some(connection) = connection else { return };
        let (reader, writer) = connection.stream.into_split();
        let feeding = async {
            if let Some(input) = input_rx {
                feed(input, &writer).await;
            }
            // The other half still reads; dropping this one would shut the connection's writing down, which the shim
            // takes for a client that went away.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            // Before the output is seen to end, so that who waits for that can ask how.
            exit = drain(reader, &output_tx) => {
                if let Some(exit) = exit {
                    on_end(exit);
                }
            }
            () = output_tx.closed() => {}
            () = feeding => {}
        }
    });
    Attachment {
        output: ReceiverStream::new(output_rx),
        input,
        tty,
    }
}

/// Passes output on until the process has ended.
async fn drain(
    mut reader: OwnedReadHalf,
    output: &mpsc::Sender<(StdStream, Bytes)>,
) -> Option<Exit> {
    while let Ok(Some((kind, payload))) = read_frame(&mut reader).await {
        match stream_of(kind) {
            Some(stream) => output.send((stream, payload.into())).await.ok()?,
            None => {
                if let Ok(Reply::Exited { exit, .. }) = serde_json::from_slice(&payload) {
                    return Some(exit);
                }
            }
        }
    }
    None
}

async fn feed(mut input: DuplexStream, writer: &OwnedWriteHalf) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = input.read(&mut buffer).await.unwrap_or(0);
        let mut out = Vec::new();
        push_frame(&mut out, StdStream::Stdin as u8, &buffer[..read]);
        if write_all(writer, &out).await.is_err() || read == 0 {
            return;
        }
    }
}

async fn write_all(writer: &OwnedWriteHalf, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        writer.writable().await?;
        match writer.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
            Err(err) => return Err(err),
        }
    }
    Ok(())
}
