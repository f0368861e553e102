//! The daemon of one host, and the lab that makes many hosts of one machine.

pub mod attachments;
pub mod bridges;
pub mod cluster;
pub mod config;
pub mod daemon;
pub mod engine_backend;
pub mod executor;
pub mod lab;
mod listeners;
pub mod network;
mod patience;
pub mod plane;

/// Of everything that holds a daemon. The C library's own is a tenth of the cost of a write to the cluster's state.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
