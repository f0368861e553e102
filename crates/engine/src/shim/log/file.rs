//! Logs in files: a record a line, as Docker's `json-file` driver writes it, or in a compact form of our own.
//!
//! The compact form is one letter (`O` standard output, `E` standard error, in lower case when the line goes on in the
//! next record), the time in nanoseconds as hexadecimal digits, a blank, and the line as it is.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};
use shoal_api::Timestamp;
use shoal_api::container::StdStream;

use crate::shim::protocol::LogFile;

/// Appends records to a log and starts it anew when it has grown too long.
pub(super) struct FileLog {
    config: LogFile,
    file: Option<File>,
    size: u64,
    records: Vec<u8>,
    /// Compresses a file that is no longer written.
    compressor: Option<Pid>,
}

impl FileLog {
    pub(super) fn open(config: LogFile) -> io::Result<Self> {
        let (file, size) = open_log(&config.path)?;
        Ok(Self {
            config,
            file: Some(file),
            size,
            records: Vec::new(),
            compressor: None,
        })
    }

    pub(super) fn line(&mut self, stream: StdStream, line: &[u8], at: Timestamp) {
        if self.config.compact {
            push_compact(&mut self.records, stream, line, at);
        } else {
            push_json(&mut self.records, stream, line, at, &self.config.attributes);
        }
        // Many lines go out in one write, unless the file may have to be rotated between two of them.
        if self.config.max_size.is_some() {
            self.flush();
        }
    }

    pub(super) fn flush(&mut self) {
        let records = std::mem::take(&mut self.records);
        self.append(&records);
        self.records = records;
        self.records.clear();
    }

    /// Nothing more will come.
    pub(super) fn finish(&mut self) {
        self.await_compressor();
    }

    fn append(&mut self, records: &[u8]) {
        if records.is_empty() {
            return;
        }
        if self
            .config
            .max_size
            .is_some_and(|max| self.size > 0 && self.size + records.len() as u64 > max)
        {
            self.rotate();
        }
        if let Some(file) = &mut self.file
            && file.write_all(records).is_ok()
        {
            self.size += records.len() as u64;
        }
    }

    /// `log` becomes `log.1`, that becomes `log.2`, and so on; with one file allowed the log starts anew.
    fn rotate(&mut self) {
        // Its file is about to get another name.
        self.await_compressor();
        self.file = None;
        if self.config.max_files > 1 {
            for n in (1..self.config.max_files - 1).rev() {
                for suffix in ["", ".gz"] {
                    let _ = std::fs::rename(self.numbered(n, suffix), self.numbered(n + 1, suffix));
                }
            }
            let rotated = self.numbered(1, "");
            let _ = std::fs::rename(&self.config.path, &rotated);
            if self.config.compress {
                self.compress(&rotated, &self.numbered(1, ".gz"));
            }
        } else {
            let _ = std::fs::remove_file(&self.config.path);
        }
        if let Ok((file, size)) = open_log(&self.config.path) {
            self.file = Some(file);
            self.size = size;
        }
    }

    fn numbered(&self, n: u32, suffix: &str) -> PathBuf {
        let mut name = self.config.path.clone().into_os_string();
        name.push(format!(".{n}{suffix}"));
        name.into()
    }

    /// In a process of its own: the container shall not wait for it.
    fn compress(&mut self, from: &Path, to: &Path) {
        // SAFETY: the shim has one thread.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => {
                // SAFETY: closes what is the shim's; this process opens its own.
                unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
                let _ = compress_file(from, to);
                // SAFETY: ends this process at once, without the shim's exit handlers.
                unsafe { libc::_exit(0) }
            }
            Ok(ForkResult::Parent { child }) => self.compressor = Some(child),
            // It stays as it is, which is as good to read.
            Err(_) => {}
        }
    }

    fn await_compressor(&mut self) {
        if let Some(child) = self.compressor.take() {
            let _ = waitpid(child, None);
        }
    }
}

/// Replaces a file by a compressed one; there is never none, and never half of one.
fn compress_file(from: &Path, to: &Path) -> io::Result<()> {
    let mut new = to.as_os_str().to_owned();
    new.push(".new");
    let target = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o640)
        .open(&new)?;
    let mut encoder = flate2::write::GzEncoder::new(target, flate2::Compression::fast());
    io::copy(&mut File::open(from)?, &mut encoder)?;
    encoder.finish()?;
    std::fs::rename(&new, to)?;
    std::fs::remove_file(from)
}

fn open_log(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

fn push_json(out: &mut Vec<u8>, stream: StdStream, line: &[u8], at: Timestamp, attributes: &str) {
    let name = if stream == StdStream::Stderr {
        "stderr"
    } else {
        "stdout"
    };
    out.extend_from_slice(b"{\"log\":");
    // A log is JSON and JSON is Unicode: other bytes become U+FFFD, as in Docker.
    let text = String::from_utf8_lossy(line);
    serde_json::to_writer(&mut *out, text.as_ref())
        .expect("a string is JSON, and a Vec takes it all");
    write!(out, ",\"stream\":\"{name}\"").expect("a Vec takes it all");
    if !attributes.is_empty() {
        write!(out, ",\"attrs\":{attributes}").expect("a Vec takes it all");
    }
    writeln!(out, ",\"time\":\"{at}\"}}").expect("a Vec takes it all");
}

fn push_compact(out: &mut Vec<u8>, stream: StdStream, line: &[u8], at: Timestamp) {
    let (line, whole) = match line.strip_suffix(b"\n") {
        Some(line) => (line, true),
        None => (line, false),
    };
    let letter = match (stream, whole) {
        (StdStream::Stderr, true) => 'E',
        (StdStream::Stderr, false) => 'e',
        (_, true) => 'O',
        (_, false) => 'o',
    };
    write!(out, "{letter}{:x} ", at.0).expect("a Vec takes it all");
    out.extend_from_slice(line);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::log::Logger;
    use crate::shim::protocol::LogSetup;

    fn logger(dir: &tempfile::TempDir, max_size: Option<u64>, max_files: u32) -> Logger {
        open(dir, max_size, max_files, false)
    }

    fn open(
        dir: &tempfile::TempDir,
        max_size: Option<u64>,
        max_files: u32,
        compact: bool,
    ) -> Logger {
        let file = LogFile {
            path: dir.path().join("log"),
            max_size,
            max_files,
            compact,
            compress: compact,
            attributes: String::new(),
        };
        let setup = LogSetup {
            file: Some(file),
            remote: None,
            buffer: None,
        };
        Logger::open(setup).expect("temporary log")
    }

    #[test]
    fn the_compact_form_keeps_every_byte() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut log = open(&dir, None, 5, true);
        log.write(StdStream::Stdout, b"\xffone\n");
        log.write(StdStream::Stderr, b"two");
        log.finish();
        let bytes = std::fs::read(dir.path().join("log")).expect("log");
        let lines: Vec<&[u8]> = bytes.split(|&b| b == b'\n').collect();
        assert!(lines[0].starts_with(b"O") && lines[0].ends_with(b" \xffone"));
        assert!(lines[1].starts_with(b"e") && lines[1].ends_with(b" two"));
    }

    #[test]
    fn lines_are_split_and_the_unfinished_one_comes_last() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut log = logger(&dir, None, 1);
        log.write(StdStream::Stdout, b"one\ntw");
        log.write(StdStream::Stderr, b"\"err\"\n");
        log.write(StdStream::Stdout, b"o\nlast");
        log.finish();
        let text = std::fs::read_to_string(dir.path().join("log")).expect("log");
        let logs: Vec<String> = text
            .lines()
            .map(|line| {
                serde_json::from_str::<serde_json::Value>(line).expect("JSON")["log"].to_string()
            })
            .collect();
        assert_eq!(
            logs,
            [r#""one\n""#, r#""\"err\"\n""#, r#""two\n""#, r#""last""#]
        );
    }

    #[test]
    fn the_log_rotates_and_drops_the_oldest() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut log = logger(&dir, Some(100), 3);
        for n in 0..20 {
            log.write(StdStream::Stdout, format!("line {n}\n").as_bytes());
        }
        let mut names: Vec<_> = std::fs::read_dir(dir.path())
            .expect("directory")
            .map(|entry| {
                entry
                    .expect("entry")
                    .file_name()
                    .into_string()
                    .expect("name")
            })
            .collect();
        names.sort();
        assert_eq!(names, ["log", "log.1", "log.2"]);
        let newest = std::fs::read_to_string(dir.path().join("log")).expect("log");
        assert!(newest.contains("line 19"));
    }
}
