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

/// Requests at a steady rate until it is stopped, each on a connection of its own.
pub struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    failures: Arc<Mutex<Vec<String>>>,
    loaders: Vec<JoinHandle<()>>,
}

impl Load {
    /// Begins with so many requests per second, in turn to each address.
    pub fn begin(addresses: &[SocketAddr], rate: u64) -> Self {
        let load = Self {
            stop: Arc::default(),
            sent: Arc::default(),
            failures: Arc::default(),
            loaders: Vec::new(),
        };
        let began = Instant::now();
        let loaders = (0..LOADERS).map(|_| {
            let (stop, sent, failures) = (
                Arc::clone(&load.stop),
                Arc::clone(&load.sent),
                Arc::clone(&load.failures),
            );
            let addresses = addresses.to_vec();
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let number = sent.fetch_add(1, Ordering::Relaxed);
                    let due = began + Duration::from_nanos(number * 1_000_000_000 / rate);
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    let (asked, place) = (began.elapsed(), number as usize % addresses.len());
                    if let Err(problem) = ask(addresses[place]) {
                        let what = format!(
                            "request {number} to {} at {} ms failed after {} ms: {problem:#}",
                            addresses[place],
                            asked.as_millis(),
                            (began.elapsed() - asked).as_millis(),
                        );
                        failures
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(what);
                    }
                }
            })
        });
        let loaders = loaders.collect();
        Self { loaders, ..load }
    }

    /// Stops and returns how many requests there were, and those that failed.
    pub fn end(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        for loader in self.loaders {
            loader.join().expect("a loader does not panic");
        }
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        (self.sent.load(Ordering::Relaxed), failures.clone())
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
