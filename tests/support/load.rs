//! A steady load on a published port, and what it saw.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// Requests under way at once, so that a slow one does not hold up the others.
const LOADERS: usize = 32;
/// How long a request may take; longer than any stall of a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// What takes so long was lost on its way and sent again: the kernel waits a second for an answer to a SYN (RFC 6298 §2).
const SLOW: Duration = Duration::from_millis(950);

/// Requests at a steady rate until it is stopped, each on a connection of its own.
pub struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    seen: Arc<Mutex<Seen>>,
    loaders: Vec<JoinHandle<()>>,
}

/// What is to be told of requests, each with number, address and time.
#[derive(Debug, Default)]
pub struct Seen {
    /// Requests that were made.
    pub requests: u64,
    /// Those that failed, with the reason.
    pub failed: Vec<String>,
    /// Those that took so long that a packet must have been lost.
    pub slow: Vec<String>,
}

impl Load {
    /// Begins with so many requests per second, in turn to each address.
    pub fn begin(addresses: &[SocketAddr], rate: u64) -> Self {
        let load = Self {
            stop: Arc::default(),
            sent: Arc::default(),
            seen: Arc::default(),
            loaders: Vec::new(),
        };
        let began = Instant::now();
        let loaders = (0..LOADERS).map(|_| {
            let (stop, sent, seen) = (
                Arc::clone(&load.stop),
                Arc::clone(&load.sent),
                Arc::clone(&load.seen),
            );
            let addresses = addresses.to_vec();
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let number = sent.fetch_add(1, Ordering::Relaxed);
                    let due = began + Duration::from_nanos(number * 1_000_000_000 / rate);
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    let (asked, place) = (began.elapsed(), number as usize % addresses.len());
                    let address = addresses[place];
                    let answer = ask(address);
                    let took = began.elapsed() - asked;
                    let what = format!("request {number} to {address} at {} ms", asked.as_millis());
                    let seen = || seen.lock().unwrap_or_else(PoisonError::into_inner);
                    let took_ms = took.as_millis();
                    if let Err(problem) = answer {
                        let what = format!("{what} failed after {took_ms} ms: {problem:#}");
                        seen().failed.push(what);
                    } else if took >= SLOW {
                        seen().slow.push(format!("{what} took {took_ms} ms"));
                    }
                }
            })
        });
        let loaders = loaders.collect();
        Self { loaders, ..load }
    }

    /// Stops and returns what was seen.
    pub fn end(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        for loader in self.loaders {
            loader.join().expect("a loader does not panic");
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.requests = self.sent.load(Ordering::Relaxed);
        std::mem::take(&mut seen)
    }
}

fn ask(address: SocketAddr) -> Result<()> {
    let mut connection =
        TcpStream::connect_timeout(&address, PATIENCE).context("cannot connect")?;
    connection.set_read_timeout(Some(PATIENCE))?;
    write!(connection, "GET / HTTP/1.0\r\nHost: {address}\r\n\r\n").context("cannot send")?;
    let mut answer = String::new();
    connection
        .read_to_string(&mut answer)
        .context("cannot read")?;
    anyhow::ensure!(answer.contains("task="), "no answer, but {answer:?}");
    Ok(())
}
