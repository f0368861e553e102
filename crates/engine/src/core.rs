//! Decisions of the engine: pure, without files, clocks or sockets.

pub mod capabilities;
pub mod config;
pub mod images;
pub mod mounts;
pub mod oci;
pub mod seccomp;
pub mod selftest;
pub mod user;
