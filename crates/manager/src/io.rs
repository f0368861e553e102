//! Acts for the cores: the log, the network, the clock.

mod attachments;
mod control_loop;
mod departures;
mod dispatcher;
mod exec_broker;
pub mod grpc;
pub mod keys;
mod leader;
mod log_broker;
pub mod manager;
pub mod raft;
pub mod store;
