//! Traffic to measure networks with: `xtask traffic serve ADDR` in one namespace, the other verbs in another.
//!
//! What a client prints is one line: operations, seconds, and seconds of processor time of both ends. With two busy cores
//! the last of them is what can be trusted. A connection's first byte says what it is for.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// Bytes written at once by a stream.
const BLOCK_BYTES: usize = 128 * 1024;
/// A stream's operation, so that its rate reads as megabytes per second.
const STREAM_UNIT_BYTES: f64 = 1e6;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs a verb: `serve ADDR`, or `stream|rr|crr ADDR SECONDS`.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    match words {
        ["serve", at] => serve(at),
        ["stream", to, seconds] => tell(stream(to, wanted(seconds)?)?),
        ["rr", to, seconds] => tell(requests(to, wanted(seconds)?)?),
        ["crr", to, seconds] => tell(connections(to, wanted(seconds)?)?),
        _ => bail!("expected `serve ADDR`, or `stream`, `rr` or `crr` with `ADDR SECONDS`"),
    }
}

fn wanted(seconds: &str) -> Result<Duration> {
    Ok(Duration::from_secs_f64(seconds.parse()?))
}

struct Done {
    operations: f64,
    took: Duration,
    /// Of both ends.
    processor: Duration,
}

fn tell(done: Done) -> Result<()> {
    println!(
        "{} {} {}",
        done.operations,
        done.took.as_secs_f64(),
        done.processor.as_secs_f64()
    );
    Ok(())
}

/// Processor time of the calling thread.
fn processor() -> Result<Duration> {
    let told = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = told.split(' ').next().context("no time in schedstat")?;
    Ok(Duration::from_nanos(nanoseconds.parse()?))
}

fn serve(at: &str) -> Result<()> {
    let listener = TcpListener::bind(at).with_context(|| format!("cannot listen on {at}"))?;
    println!("serving");
    loop {
        let (mut peer, _) = listener.accept()?;
        let mut purpose = [0];
        if peer.read_exact(&mut purpose).is_err() {
            continue;
        }
        // A peer that goes away in between is its own affair.
        match &purpose {
            b"c" => drop(peer.write_all(b"!")),
            b"u" => drop(peer.write_all(&spent(Duration::ZERO)?)),
            b"s" => drop(thread::spawn(move || sink(peer))),
            _ => drop(thread::spawn(move || echo(peer))),
        }
    }
}

/// Processor time of the calling thread since `before`, as it travels.
fn spent(before: Duration) -> Result<[u8; 8]> {
    let nanoseconds = processor()?.saturating_sub(before).as_nanos();
    Ok(u64::try_from(nanoseconds)?.to_be_bytes())
}

fn sink(mut peer: TcpStream) -> Result<()> {
    let mut block = vec![0; BLOCK_BYTES];
    while peer.read(&mut block)? > 0 {}
    Ok(peer.write_all(&spent(Duration::ZERO)?)?)
}

fn echo(mut peer: TcpStream) -> Result<()> {
    peer.set_nodelay(true)?;
    let mut byte = [0];
    while peer.read(&mut byte)? > 0 {
        peer.write_all(&byte)?;
    }
    Ok(peer.write_all(&spent(Duration::ZERO)?)?)
}

fn connect(to: &str, purpose: &[u8]) -> Result<TcpStream> {
    let address = to.parse().with_context(|| format!("{to} is no address"))?;
    let mut peer = TcpStream::connect_timeout(&address, PATIENCE)?;
    peer.set_nodelay(true)?;
    peer.set_read_timeout(Some(PATIENCE))?;
    peer.write_all(purpose)?;
    Ok(peer)
}

/// What the other end says it spent, once it knows that this was all.
fn of_peer(mut peer: TcpStream) -> Result<Duration> {
    peer.shutdown(std::net::Shutdown::Write)?;
    let mut nanoseconds = [0; 8];
    peer.read_exact(&mut nanoseconds)?;
    Ok(Duration::from_nanos(u64::from_be_bytes(nanoseconds)))
}

fn stream(to: &str, wanted: Duration) -> Result<Done> {
    let mut peer = connect(to, b"s")?;
    let block = vec![0; BLOCK_BYTES];
    let (began, before) = (Instant::now(), processor()?);
    let mut blocks = 0.0;
    while began.elapsed() < wanted {
        peer.write_all(&block)?;
        blocks += 1.0;
    }
    let (took, own) = (began.elapsed(), processor()?.saturating_sub(before));
    Ok(Done {
        operations: blocks * BLOCK_BYTES as f64 / STREAM_UNIT_BYTES,
        took,
        processor: own + of_peer(peer)?,
    })
}

fn requests(to: &str, wanted: Duration) -> Result<Done> {
    let mut peer = connect(to, b"e")?;
    let (began, before) = (Instant::now(), processor()?);
    let (mut operations, mut byte) = (0.0, [1]);
    while began.elapsed() < wanted {
        peer.write_all(&byte)?;
        peer.read_exact(&mut byte)?;
        operations += 1.0;
    }
    let (took, own) = (began.elapsed(), processor()?.saturating_sub(before));
    Ok(Done {
        operations,
        took,
        processor: own + of_peer(peer)?,
    })
}

fn connections(to: &str, wanted: Duration) -> Result<Done> {
    let so_far = of_peer(connect(to, b"u")?)?;
    let (began, before) = (Instant::now(), processor()?);
    let mut operations = 0.0;
    while began.elapsed() < wanted {
        let mut peer = connect(to, b"c")?;
        let mut answer = [0];
        // Read to the end, so that the server is the one that keeps the closed connection.
        peer.read_exact(&mut answer)?;
        while peer.read(&mut answer)? > 0 {}
        operations += 1.0;
    }
    let (took, own) = (began.elapsed(), processor()?.saturating_sub(before));
    let theirs = of_peer(connect(to, b"u")?)?.saturating_sub(so_far);
    Ok(Done {
        operations,
        took,
        processor: own + theirs,
    })
}
