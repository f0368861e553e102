//! Acts for the cores: the log, the network, the clock.

pub mod control_loop;
pub mod grpc;
pub mod leader;
pub mod manager;
pub mod raft;
pub mod store;
