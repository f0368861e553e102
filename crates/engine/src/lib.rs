//! The container engine of one host: images, containers, and the shim that runs them.

pub mod core;
pub mod io;
pub mod shim;
