//! Log lines and which of them are wanted.

use crate::{
    Timestamp,
    container::{LogLine, LogQuery, StdStream},
    wire::{LogMessage, LogOptions},
};

use super::DecodeError;

impl From<&LogQuery> for LogOptions {
    fn from(query: &LogQuery) -> Self {
        let instant = |at: Option<Timestamp>| at.map_or(0, |at| at.0);
        Self {
            stdout: query.stdout,
            stderr: query.stderr,
            follow: query.follow,
            tail: query
                .tail
                .map_or(-1, |lines| i64::try_from(lines).unwrap_or(i64::MAX)),
            since: instant(query.since),
            until: instant(query.until),
        }
    }
}

impl From<&LogOptions> for LogQuery {
    fn from(options: &LogOptions) -> Self {
        let instant = |at: i64| (at != 0).then_some(Timestamp(at));
        Self {
            stdout: options.stdout,
            stderr: options.stderr,
            follow: options.follow,
            since: instant(options.since),
            until: instant(options.until),
            tail: usize::try_from(options.tail).ok(),
        }
    }
}

impl TryFrom<LogMessage> for LogLine {
    type Error = DecodeError;

    /// The line, without where it comes from.
    fn try_from(message: LogMessage) -> Result<Self, DecodeError> {
        let stream = match message.stream {
            1 => StdStream::Stdout,
            2 => StdStream::Stderr,
            other => return Err(DecodeError::new(format!("{other} is no stream")).within("stream")),
        };
        Ok(Self {
            stream,
            time: Timestamp(message.timestamp),
            bytes: message.data,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_the_same_on_the_other_side() {
        let queries = [
            LogQuery::default(),
            LogQuery {
                stdout: true,
                follow: true,
                tail: Some(0),
                since: Some(Timestamp(7)),
                ..LogQuery::default()
            },
            LogQuery {
                stderr: true,
                tail: Some(9),
                until: Some(Timestamp(8)),
                ..LogQuery::default()
            },
        ];
        for query in queries {
            assert_eq!(LogQuery::from(&LogOptions::from(&query)), query);
        }
    }
}
