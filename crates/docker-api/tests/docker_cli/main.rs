//! The server on a socket, with the unmodified docker client and with raw requests.

#![allow(clippy::print_stdout)] // says why a test was skipped

mod bollard;
mod daemon;
mod engine;
mod protocol;
mod swarm;
