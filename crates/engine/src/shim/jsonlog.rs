//! The log file: one JSON object a line, as Docker's `json-file` driver writes it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use shoal_api::Timestamp;
use shoal_api::container::StdStream;

use super::protocol::LogFile;

/// Longest piece of a line in one record, as in Docker; longer lines are split.
const LINE_MAX: usize = 16 << 10;

/// Splits output into lines and appends them to the log.
pub(super) struct Logger {
    config: LogFile,
    file: Option<File>,
    size: u64,
    partial: [Vec<u8>; 2],
}

impl Logger {
    pub(super) fn open(config: LogFile) -> io::Result<Self> {
        let (file, size) = open_log(&config.path)?;
        Ok(Self {
            config,
            file: Some(file),
            size,
            partial: [Vec::new(), Vec::new()],
        })
    }

    /// Takes what came out of one stream. Errors of the disk lose log lines, never the container.
    pub(super) fn write(&mut self, stream: StdStream, mut bytes: &[u8]) {
        let slot = usize::from(stream == StdStream::Stderr);
        let now = Timestamp::now();
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let partial = &mut self.partial[slot];
            let room = LINE_MAX - partial.len();
            let end = bytes
                .iter()
                .take(room)
                .position(|&b| b == b'\n')
                .map(|at| at + 1);
            let taken = end.unwrap_or_else(|| bytes.len().min(room));
            let (head, rest) = bytes.split_at(taken);
            bytes = rest;
            partial.extend_from_slice(head);
            if end.is_some() || partial.len() == LINE_MAX {
                push_record(&mut records, stream, partial, now);
                partial.clear();
                // Many lines go out in one write, unless the file may have to be rotated between two of them.
                if self.config.max_size.is_some() {
                    self.append(&records);
                    records.clear();
                }
            }
        }
        self.append(&records);
    }

    /// Writes the line that a stream ended in the middle of.
    pub(super) fn finish(&mut self) {
        let mut records = Vec::new();
        for (slot, stream) in [StdStream::Stdout, StdStream::Stderr]
            .into_iter()
            .enumerate()
        {
            let partial = std::mem::take(&mut self.partial[slot]);
            if !partial.is_empty() {
                push_record(&mut records, stream, &partial, Timestamp::now());
            }
        }
        self.append(&records);
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
        let numbered = |n: u32| -> PathBuf {
            let mut name = self.config.path.clone().into_os_string();
            name.push(format!(".{n}"));
            name.into()
        };
        self.file = None;
        if self.config.max_files > 1 {
            for n in (1..self.config.max_files - 1).rev() {
                let _ = std::fs::rename(numbered(n), numbered(n + 1));
            }
            let _ = std::fs::rename(&self.config.path, numbered(1));
        } else {
            let _ = std::fs::remove_file(&self.config.path);
        }
        if let Ok((file, size)) = open_log(&self.config.path) {
            self.file = Some(file);
            self.size = size;
        }
    }
}

fn open_log(path: &std::path::Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

fn push_record(out: &mut Vec<u8>, stream: StdStream, line: &[u8], at: Timestamp) {
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
    writeln!(out, ",\"stream\":\"{name}\",\"time\":\"{at}\"}}").expect("a Vec takes it all");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logger(dir: &tempfile::TempDir, max_size: Option<u64>, max_files: u32) -> Logger {
        Logger::open(LogFile {
            path: dir.path().join("log"),
            max_size,
            max_files,
        })
        .expect("temporary log")
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
