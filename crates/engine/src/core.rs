//! Decisions of the engine: pure, without files, clocks or sockets.

pub mod build;
pub mod capabilities;
pub mod cdi;
pub mod config;
pub mod device_program;
pub mod etc;
pub mod health;
pub mod images;
pub mod limits;
pub mod links;
pub mod logging;
pub mod mounts;
pub mod names;
pub mod oci;
pub mod processes;
pub mod propagation;
pub mod restart;
pub mod seccomp;
pub mod security;
pub mod selftest;
pub mod signals;
pub mod user;
pub mod volume;
