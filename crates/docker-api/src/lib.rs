//! The Docker Engine API (1.51) as a server over two backends, so that the unmodified `docker` client works.
//!
//! The crate knows the API's JSON and the domain types of `shoal-api`, and nothing of how a container is run or a
//! cluster is kept: that is behind [`EngineBackend`] and [`ClusterBackend`].

pub mod backend;

pub use backend::{ApiError, ClusterBackend, EngineBackend};
