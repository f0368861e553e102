//! Reading container logs.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use shoal_api::Timestamp;
use shoal_api::container::{LogLine, LogQuery, StdStream};
use tokio::sync::mpsc;

use super::log_watch::LogWatch;

/// Lines waiting for a slow reader.
const LINES_MAX: usize = 256;
const BLOCK: usize = 64 << 10;

#[derive(Deserialize)]
struct JsonLine<'a> {
    #[serde(borrow)]
    log: Cow<'a, str>,
    #[serde(borrow)]
    stream: Cow<'a, str>,
    #[serde(borrow)]
    time: Cow<'a, str>,
}

/// The lines of the log at `path`, the oldest first, rotated files included. With `query.follow` goes on until `ended`.
pub(super) fn read(
    path: PathBuf,
    query: LogQuery,
    watch: LogWatch,
    ended: impl Future<Output = ()> + Send + 'static,
) -> mpsc::Receiver<io::Result<LogLine>> {
    let (lines, receiver) = mpsc::channel(LINES_MAX);
    tokio::spawn(async move {
        let result = tokio::select! {
            result = run(&path, &query, &watch, &lines, ended) => result,
            () = lines.closed() => Ok(()),
        };
        if let Err(err) = result {
            let _ = lines.send(Err(err)).await;
        }
    });
    receiver
}

async fn run(
    path: &Path,
    query: &LogQuery,
    watch: &LogWatch,
    lines: &mpsc::Sender<io::Result<LogLine>>,
    ended: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    // Before the first read, so that nothing written after it goes unnoticed.
    let dir = path.parent().unwrap_or_else(|| Path::new("/"));
    let growth = if query.follow {
        Some(watch.follow(dir)?)
    } else {
        None
    };
    let (path2, query2, lines2) = (path.to_owned(), query.clone(), lines.clone());
    let dumped = tokio::task::spawn_blocking(move || {
        let mut reader = Tailer::new(path2, query2);
        let mut batch = Vec::new();
        reader.open_at_tail()?;
        while reader.read_some(&mut batch)? {
            for line in batch.drain(..) {
                if lines2.blocking_send(Ok(line)).is_err() {
                    return Ok(None);
                }
            }
        }
        Ok::<_, io::Error>(Some(reader))
    });
    let Some(mut reader) = dumped.await.map_err(io::Error::other)?? else {
        return Ok(());
    };
    let Some(growth) = growth else { return Ok(()) };
    tokio::pin!(ended);
    let mut over = false;
    while !over {
        tokio::select! {
            () = growth.happened() => {}
            () = &mut ended => over = true,
        }
        let mut batch = Vec::new();
        while reader.read_some(&mut batch)? {
            for line in batch.drain(..) {
                if lines.send(Ok(line)).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// Reads a log file and those that follow it.
struct Tailer {
    path: PathBuf,
    query: LogQuery,
    /// Rotated files still to be read, the next one last.
    todo: Vec<(File, u64)>,
    file: Option<File>,
    /// Bytes of a line that is not complete yet.
    rest: Vec<u8>,
}

impl Tailer {
    fn new(path: PathBuf, query: LogQuery) -> Self {
        Self {
            path,
            query,
            todo: Vec::new(),
            file: None,
            rest: Vec::new(),
        }
    }

    /// Finds where the wanted lines begin.
    fn open_at_tail(&mut self) -> io::Result<()> {
        let mut wanted = self.query.tail;
        let mut number = 0_u32;
        while wanted != Some(0) || number == 0 {
            let path = if number == 0 {
                self.path.clone()
            } else {
                numbered(&self.path, number)
            };
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(err) if err.kind() == io::ErrorKind::NotFound && number > 0 => {
                    match decompressed(&path)? {
                        Some(file) => file,
                        None => break,
                    }
                }
                Err(err) if err.kind() == io::ErrorKind::NotFound => {
                    number += 1;
                    continue;
                }
                Err(err) => return Err(err),
            };
            let offset = match &mut wanted {
                None => 0,
                Some(wanted) => {
                    let (offset, found) = tail_offset(&file, *wanted)?;
                    *wanted -= found;
                    offset
                }
            };
            self.todo.push((file, offset));
            number += 1;
        }
        self.next_file()
    }

    fn next_file(&mut self) -> io::Result<()> {
        if let Some((mut file, offset)) = self.todo.pop() {
            file.seek(SeekFrom::Start(offset))?;
            self.file = Some(file);
        }
        Ok(())
    }

    /// Reads a block into `batch`; false when there is nothing more for now.
    fn read_some(&mut self, batch: &mut Vec<LogLine>) -> io::Result<bool> {
        if self.file.is_none() {
            match File::open(&self.path) {
                Ok(file) => self.file = Some(file),
                Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(err) => return Err(err),
            }
        }
        let Some(file) = &mut self.file else {
            return Ok(false);
        };
        let mut block = vec![0; BLOCK];
        let read = file.read(&mut block)?;
        if read == 0 {
            if !self.todo.is_empty() {
                self.next_file()?;
                return Ok(true);
            }
            // When the log was rotated since, this file is complete and the next one begins.
            let ours = file.metadata()?.ino();
            let rotated = std::fs::metadata(&self.path).is_ok_and(|now| now.ino() != ours);
            if rotated {
                self.file = None;
            }
            return Ok(rotated);
        }
        self.rest.extend_from_slice(&block[..read]);
        let complete = self
            .rest
            .iter()
            .rposition(|&b| b == b'\n')
            .map_or(0, |at| at + 1);
        let tail = self.rest.split_off(complete);
        let whole = std::mem::replace(&mut self.rest, tail);
        batch.extend(
            whole
                .split(|&b| b == b'\n')
                .filter_map(|line| parse(line, &self.query)),
        );
        Ok(true)
    }
}

/// The line, if it is one and wanted.
fn parse(line: &[u8], query: &LogQuery) -> Option<LogLine> {
    let (stream, time, bytes) = match line.first()? {
        b'{' => {
            let line: JsonLine<'_> = serde_json::from_slice(line).ok()?;
            let stream = match line.stream.as_ref() {
                "stderr" => StdStream::Stderr,
                _ => StdStream::Stdout,
            };
            let time = Timestamp::parse_rfc3339(&line.time)?;
            (stream, time, line.log.into_owned().into_bytes())
        }
        letter => {
            // The compact form, described where it is written (`shim/log/file.rs`).
            let (stream, whole) = match letter {
                b'O' => (StdStream::Stdout, true),
                b'o' => (StdStream::Stdout, false),
                b'E' => (StdStream::Stderr, true),
                b'e' => (StdStream::Stderr, false),
                _ => return None,
            };
            let blank = line.iter().position(|&b| b == b' ')?;
            let digits = std::str::from_utf8(&line[1..blank]).ok()?;
            let time = Timestamp(i64::from_str_radix(digits, 16).ok()?);
            let mut bytes = line[blank + 1..].to_vec();
            if whole {
                bytes.push(b'\n');
            }
            (stream, time, bytes)
        }
    };
    let wanted = match stream {
        StdStream::Stderr => query.stderr,
        _ => query.stdout,
    };
    let in_time = query.since.is_none_or(|since| time >= since)
        && query.until.is_none_or(|until| time <= until);
    (wanted && in_time).then_some(LogLine {
        stream,
        time,
        bytes,
    })
}

/// What was in a file before it was compressed, in a file without a name.
fn decompressed(path: &Path) -> io::Result<Option<File>> {
    let mut packed = path.as_os_str().to_owned();
    packed.push(".gz");
    let packed = match File::open(PathBuf::from(packed)) {
        Ok(file) => file,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(err),
    };
    let mut plain = tempfile::tempfile()?;
    io::copy(&mut flate2::read::GzDecoder::new(packed), &mut plain)?;
    plain.seek(SeekFrom::Start(0))?;
    Ok(Some(plain))
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// Where the last `wanted` lines begin, and how many there are.
fn tail_offset(file: &File, wanted: usize) -> io::Result<(u64, usize)> {
    let size = file.metadata()?.len();
    let mut end = size;
    let mut found = 0;
    let mut block = vec![0; BLOCK];
    while end > 0 {
        let start = end.saturating_sub(BLOCK as u64);
        let part = &mut block[..usize::try_from(end - start).unwrap_or(BLOCK)];
        file.read_exact_at(part, start)?;
        for (index, _) in part
            .iter()
            .enumerate()
            .rev()
            .filter(|(_, byte)| **byte == b'\n')
        {
            let after = start + index as u64 + 1;
            // The newline at the very end closes the last line; every other one begins a line behind it.
            if after < size {
                found += 1;
                if found == wanted {
                    return Ok((after, found));
                }
            } else if wanted == 0 {
                return Ok((size, 0));
            }
        }
        end = start;
    }
    // The first line has no newline before it.
    Ok(if size > 0 && found < wanted {
        (0, found + 1)
    } else {
        (size, found)
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn check(tail: Option<usize>) -> Vec<String> {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("log");
        for (file, numbers) in [(numbered(&path, 1), 0..3), (path.clone(), 3..5)] {
            let mut file = File::create(file).expect("log");
            for n in numbers {
                writeln!(
                    file,
                    r#"{{"log":"{n}\n","stream":"stdout","time":"2026-01-01T00:00:0{n}Z"}}"#
                )
                .expect("write");
            }
        }
        let query = LogQuery {
            stdout: true,
            tail,
            ..LogQuery::default()
        };
        let mut tailer = Tailer::new(path, query);
        tailer.open_at_tail().expect("open");
        let mut lines = Vec::new();
        while tailer.read_some(&mut lines).expect("read") {}
        lines
            .into_iter()
            .map(|line| {
                String::from_utf8(line.bytes)
                    .expect("text")
                    .trim()
                    .to_owned()
            })
            .collect()
    }

    #[test]
    fn the_tail_reaches_into_rotated_files() {
        assert_eq!(check(None), ["0", "1", "2", "3", "4"]);
        assert_eq!(check(Some(1)), ["4"]);
        assert_eq!(check(Some(2)), ["3", "4"]);
        assert_eq!(check(Some(3)), ["2", "3", "4"]);
        assert_eq!(check(Some(9)), ["0", "1", "2", "3", "4"]);
        assert_eq!(check(Some(0)), Vec::<String>::new());
    }
}
