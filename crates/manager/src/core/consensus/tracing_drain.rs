//! `raft-rs` speaks slog; this hands what it says to `tracing`.

use std::fmt::{self, Write};

use slog::{Drain, KV, Level, Never, OwnedKVList, Record};

/// A logger for one member of the group.
pub(super) fn logger(raft_id: u64) -> slog::Logger {
    slog::Logger::root(TracingDrain { raft_id }, slog::o!())
}

struct TracingDrain {
    raft_id: u64,
}

impl Drain for TracingDrain {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), Never> {
        let mut text = Text(record.msg().to_string());
        let _ = record.kv().serialize(record, &mut text); // a missing detail is no reason to lose the line
        let (raft_id, text) = (self.raft_id, text.0);
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(raft.id = raft_id, "{text}"),
            Level::Warning => tracing::warn!(raft.id = raft_id, "{text}"),
            // What the library calls info is detail to an operator; elections are told by the node itself.
            Level::Info | Level::Debug => tracing::debug!(raft.id = raft_id, "{text}"),
            Level::Trace => tracing::trace!(raft.id = raft_id, "{text}"),
        }
        Ok(())
    }
}

struct Text(String);

impl slog::Serializer for Text {
    fn emit_arguments(&mut self, key: slog::Key, value: &fmt::Arguments<'_>) -> slog::Result {
        write!(self.0, " {key}={value}")?;
        Ok(())
    }
}
