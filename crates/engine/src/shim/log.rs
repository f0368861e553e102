//! Where a container's output goes: files of ours, and perhaps a log service.

mod file;
mod remote;
mod ring;

use shoal_api::Timestamp;
use shoal_api::container::StdStream;

use super::protocol::LogSetup;
use file::FileLog;
use remote::Remote;
use ring::Ring;

/// Longest piece of a line in one record, as in Docker; longer lines are split.
const LINE_MAX: usize = 16 << 10;

/// Splits output into lines and passes them on. Errors lose log lines, never the container.
pub(super) struct Logger {
    to: To,
    partial: [Vec<u8>; 2],
}

/// Where lines go: into the log, or to a process that has nothing else to do than to write it.
enum To {
    Log(Sinks),
    Ring(Ring),
}

/// The logs themselves.
struct Sinks {
    file: Option<FileLog>,
    remote: Option<Remote>,
}

impl Sinks {
    fn open(setup: LogSetup) -> Result<Self, String> {
        let file = match setup.file {
            Some(file) => {
                let path = file.path.clone();
                let opened = FileLog::open(file);
                Some(opened.map_err(|err| format!("cannot open {}: {err}", path.display()))?)
            }
            None => None,
        };
        let remote = setup.remote.map(Remote::open).transpose();
        let remote = remote.map_err(|err| format!("failed to initialize logging driver: {err}"))?;
        Ok(Self { file, remote })
    }

    fn line(&mut self, stream: StdStream, line: &[u8], at: Timestamp) {
        if let Some(file) = &mut self.file {
            file.line(stream, line, at);
        }
        if let Some(remote) = &mut self.remote {
            remote.line(stream, line, at);
        }
    }

    fn flush(&mut self) {
        if let Some(file) = &mut self.file {
            file.flush();
        }
    }

    fn finish(&mut self) {
        self.flush();
        if let Some(file) = &mut self.file {
            file.finish();
        }
    }
}

impl Logger {
    /// An error says, in words for the user, which log cannot be reached.
    pub(super) fn open(setup: LogSetup) -> Result<Self, String> {
        let to = match setup.buffer {
            Some(bytes) => To::Ring(Ring::start(bytes, setup)?),
            None => To::Log(Sinks::open(setup)?),
        };
        Ok(Self {
            to,
            partial: [Vec::new(), Vec::new()],
        })
    }

    /// Takes what came out of one stream.
    pub(super) fn write(&mut self, stream: StdStream, mut bytes: &[u8]) {
        let slot = usize::from(stream == StdStream::Stderr);
        let now = Timestamp::now();
        while !bytes.is_empty() {
            let partial = &mut self.partial[slot];
            let room = LINE_MAX - partial.len();
            let newline = bytes.iter().take(room).position(|&b| b == b'\n');
            let end = newline.map(|at| at + 1);
            let taken = end.unwrap_or_else(|| bytes.len().min(room));
            let (head, rest) = bytes.split_at(taken);
            bytes = rest;
            partial.extend_from_slice(head);
            if end.is_some() || partial.len() == LINE_MAX {
                let line = std::mem::take(partial);
                self.line(stream, &line, now);
                self.partial[slot] = line;
                self.partial[slot].clear();
            }
        }
        self.flush();
    }

    /// Writes the line that a stream ended in the middle of.
    pub(super) fn finish(&mut self) {
        for (slot, stream) in [StdStream::Stdout, StdStream::Stderr]
            .into_iter()
            .enumerate()
        {
            let partial = std::mem::take(&mut self.partial[slot]);
            if !partial.is_empty() {
                self.line(stream, &partial, Timestamp::now());
            }
        }
        match &mut self.to {
            To::Log(sinks) => sinks.finish(),
            To::Ring(ring) => ring.finish(),
        }
    }

    fn line(&mut self, stream: StdStream, line: &[u8], at: Timestamp) {
        match &mut self.to {
            To::Log(sinks) => sinks.line(stream, line, at),
            To::Ring(ring) => ring.line(stream, line, at),
        }
    }

    fn flush(&mut self) {
        if let To::Log(sinks) = &mut self.to {
            sinks.flush();
        }
    }
}
