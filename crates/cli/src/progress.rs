//! Progress on the terminal: lines by id that change in place, or one line per step where there is no terminal.

pub(crate) mod pulse;
pub(crate) mod service;

use std::io::IsTerminal as _;

use anyhow::{Result, bail};
use futures_util::{Stream, StreamExt as _};
use serde_json::Value;

use crate::{
    human::size,
    json::{number, text},
    output,
};

/// Lines that are rewritten as their subjects go on.
pub(crate) struct Lines {
    live: bool,
    ids: Vec<String>,
    shown: Vec<String>,
    to_stderr: bool,
}

impl Lines {
    /// Lines on standard output; without a terminal only steps are said, not every byte.
    pub(crate) fn new() -> Self {
        Self {
            live: output::is_terminal(),
            ids: Vec::new(),
            shown: Vec::new(),
            to_stderr: false,
        }
    }

    /// The same on standard error.
    pub(crate) fn on_stderr() -> Self {
        Self {
            live: std::io::stderr().is_terminal(),
            to_stderr: true,
            ..Self::new()
        }
    }

    /// Sets the line of `id`; `bar` is only shown where lines can change.
    pub(crate) fn set(&mut self, id: &str, status: &str, bar: Option<&str>) {
        let text = match bar {
            Some(bar) => format!("{id}: {status} {bar}"),
            None => format!("{id}: {status}"),
        };
        if !self.live {
            if bar.is_none() && self.remember(id, &text) {
                self.write(&format!("{text}\n"));
            }
            return;
        }
        let known = self.ids.iter().position(|other| other == id);
        if !self.remember(id, &text) {
            return;
        }
        match known {
            None => self.write(&format!("{text}\n")),
            Some(at) => {
                // Up to the line, erase it, write it, and back down (ECMA-48 CUU, EL, CUD).
                let up = self.ids.len() - at;
                self.write(&format!("\x1b[{up}A\x1b[2K\r{text}\r\x1b[{up}B"));
            }
        }
    }

    /// Says something that belongs to no line.
    pub(crate) fn say(&mut self, text: &str) {
        self.write(&format!("{text}\n"));
        // What stands above it stays as it is.
        self.ids.clear();
        self.shown.clear();
    }

    /// Notes what an id shows; false if it shows that already.
    fn remember(&mut self, id: &str, text: &str) -> bool {
        match self.ids.iter().position(|other| other == id) {
            Some(at) if self.shown[at] == text => false,
            Some(at) => {
                text.clone_into(&mut self.shown[at]);
                true
            }
            None => {
                self.ids.push(id.to_owned());
                self.shown.push(text.to_owned());
                true
            }
        }
    }

    fn write(&self, text: &str) {
        if self.to_stderr {
            output::write_error(text.as_bytes());
        } else {
            output::write(text.as_bytes());
        }
    }
}

/// Shows the messages of a pull, push, load or build as they come; fails with the error among them.
///
/// Returns the last `aux` of the stream.
pub(crate) async fn show(
    messages: impl Stream<Item = Result<Value>> + Unpin,
    mut lines: Option<Lines>,
) -> Result<Value> {
    let mut aux = Value::Null;
    let mut messages = messages;
    while let Some(message) = messages.next().await {
        let message = message?;
        let error = match text(&message, "/errorDetail/message") {
            "" => text(&message, "/error"),
            error => error,
        };
        if !error.is_empty() {
            bail!("{error}");
        }
        if let Some(found) = message.get("aux") {
            aux = found.clone();
        }
        // What an image was loaded as is said even if nothing else is.
        if let Some(stream) = message.get("stream").and_then(Value::as_str) {
            output::write(stream.as_bytes());
            continue;
        }
        let Some(lines) = &mut lines else { continue };
        let status = text(&message, "/status");
        match text(&message, "/id") {
            _ if status.is_empty() => {}
            "" => lines.say(status),
            id => lines.set(id, status, bar(&message).as_deref()),
        }
    }
    Ok(aux)
}

fn bar(message: &Value) -> Option<String> {
    /// Characters of the bar.
    const WIDTH: u64 = 50;
    let current = number(message, "/progressDetail/current").unsigned_abs();
    let total = number(message, "/progressDetail/total").unsigned_abs();
    if current == 0 {
        return None;
    }
    if total == 0 {
        return Some(size(current));
    }
    let done = (current.min(total) * WIDTH / total) as usize;
    let left = WIDTH as usize - done;
    Some(format!(
        "[{}>{}]  {}/{}",
        "=".repeat(done.saturating_sub(1)),
        " ".repeat(left),
        size(current),
        size(total)
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn the_error_in_a_stream_is_the_error_of_the_command() {
        let messages = [
            json!({"status": "Pulling fs layer", "id": "a"}),
            json!({"errorDetail": {"message": "manifest unknown"}, "error": "manifest unknown"}),
        ];
        let stream = futures_util::stream::iter(messages.map(Ok));
        let error = show(stream, None).await.unwrap_err();
        assert_eq!(error.to_string(), "manifest unknown");
    }

    #[test]
    fn a_bar_shows_bytes() {
        let message = json!({"progressDetail": {"current": 5_000_000, "total": 10_000_000}});
        assert_eq!(
            bar(&message).unwrap(),
            format!("[{}>{}]  5MB/10MB", "=".repeat(24), " ".repeat(25))
        );
        assert_eq!(bar(&json!({"progressDetail": {}})), None);
    }
}
