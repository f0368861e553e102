//! The Docker Engine API (1.51) as a server over two backends, so that the unmodified `docker` client works.
//!
//! The crate knows the API's JSON and the domain types of `shoal-api`, and nothing of how a container is run or a
//! cluster is kept: that is behind [`EngineBackend`] and [`ClusterBackend`]. A request goes `server` → `routes` (one
//! file per kind of object) → `convert` → a backend, and back through `convert`.

// `json!` expands once per member, and some answers have many.
#![recursion_limit = "256"]

pub mod backend;

mod call;
mod convert;
mod fields;
mod filters;
mod reply;
mod resolve;
mod routes;
mod server;
mod streams;
mod versions;
mod websocket;

pub use backend::{ApiError, ClusterBackend, EngineBackend};
pub use server::{Accepted, Caller, Connection, Listener, Server, Transport};

/// The version of the Engine API that is announced, the newest that is served.
pub const API_VERSION: &str = "1.51";
/// The oldest version that is served.
pub const API_VERSION_MIN: &str = "1.24";
