//! The manager's port: gRPC over TLS 1.3, one port for everything, each call allowed by the caller's certificate.

pub mod authorize;
mod ca;
pub mod client;
pub(crate) mod control;
mod dispatcher;
mod exec;
mod gathered;
mod logs;
mod raft;
pub mod server;

pub(crate) use self::{
    ca::CaService, control::ControlService, dispatcher::DispatcherService, exec::ExecService,
    logs::LogsService, raft::RaftService,
};
pub use control::{from_status, to_status};
