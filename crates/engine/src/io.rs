//! Deeds of the engine.

pub mod images;
