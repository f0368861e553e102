//! Decisions of the engine: pure, without files, clocks or sockets.

pub mod images;
