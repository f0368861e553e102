//! Decisions: pure functions and values, the same on every manager and in the simulator.

pub mod consensus;
pub mod reconcile;
pub mod state;
