//! Acts for the cores: the log, the network, the clock.

pub mod raft;
