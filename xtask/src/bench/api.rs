//! The Engine API as both daemons speak it, without a client program between the clock and the daemon.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, bail};

/// A daemon's socket.
#[derive(Clone)]
pub(super) struct Api(PathBuf);

impl Api {
    /// The daemon that listens there.
    pub(super) fn at(socket: impl Into<PathBuf>) -> Self {
        Self(socket.into())
    }

    /// Where it listens, as clients want it.
    pub(super) fn host(&self) -> String {
        format!("unix://{}", self.0.display())
    }

    /// Sends a request and returns the answer's body; an answer that is none of success is an error.
    pub(super) fn call(&self, method: &str, path: &str, body: &str) -> Result<String> {
        let mut stream = UnixStream::connect(&self.0)
            .with_context(|| format!("no daemon at {}", self.0.display()))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len(),
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, rest) = answer.split_once("\r\n\r\n").context("no answer")?;
        let status = head.split(' ').nth(1).unwrap_or_default();
        if !status.starts_with('2') {
            bail!("{method} {path}: {status} {rest}");
        }
        Ok(rest.to_owned())
    }

    /// Makes a container of `image` that runs `words`, with what else `host` (JSON members) says, and returns its id.
    pub(super) fn create(&self, image: &str, words: &[&str], host: &str) -> Result<String> {
        let words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
        let body = format!(
            r#"{{"Image":"{image}","Cmd":[{}],"HostConfig":{{{host}}}}}"#,
            words.join(",")
        );
        let made = self.call("POST", "/containers/create", &body)?;
        let id = made
            .split("\"Id\":\"")
            .nth(1)
            .and_then(|rest| rest.get(..64));
        Ok(id.context("an answer without an id")?.to_owned())
    }

    /// Starts a container.
    pub(super) fn start(&self, id: &str) -> Result<()> {
        self.call("POST", &format!("/containers/{id}/start"), "")
            .map(drop)
    }

    /// Kills and removes a container.
    pub(super) fn remove(&self, id: &str) -> Result<()> {
        let path = format!("/containers/{id}?force=1&v=1");
        self.call("DELETE", &path, "").map(drop)
    }

    /// Makes, starts, waits for and removes a container, as `run --rm` does.
    pub(super) fn run(&self, image: &str, words: &[&str]) -> Result<()> {
        let id = self.create(image, words, "")?;
        self.start(&id)?;
        self.call("POST", &format!("/containers/{id}/wait"), "")?;
        self.remove(&id)
    }
}

/// Does `deed` with every one of `items`, `at_once` of them at a time; returns what it returned.
pub(super) fn together<T: Sync, R: Send>(
    items: &[T],
    at_once: usize,
    deed: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) else {
                return;
            };
            let result = deed(item);
            done.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(result);
        }
    };
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(work);
        }
    });
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.into_iter().collect()
}
