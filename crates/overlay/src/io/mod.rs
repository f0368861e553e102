//! Everything that touches the kernel.

mod actor;
pub mod bridge;
pub mod config;
pub mod error;
pub mod kernel;
pub mod look;
pub mod netns;
pub mod observe;
pub mod plane;
mod ports;
mod probe;
mod proxy;
pub mod resolver;
pub mod socket;
pub mod watch;
