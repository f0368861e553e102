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
pub mod plane;
