//! Deeds of the engine.

pub mod build;
pub mod engine;
pub mod images;
pub mod lookups;
pub mod memory;
pub mod network;

pub mod cdi;
pub mod cdi_watch;

mod cgroup;
mod devices;
mod files;
mod filters;
mod log_watch;
mod logs;
mod nursery;
mod processes;
mod sealed;
mod shim_client;
mod volumes;

pub use engine::{Engine, EngineConfig, EngineError, EngineErrorKind};
pub use shim_client::Attachment;
