//! Consensus among managers: `raft-rs` on a durable log, driven by one thread.

pub mod disk;
pub mod seal;
pub mod snapshot;
pub mod wal;
