//! Decisions: pure functions and values, the same on every manager and in the simulator.

pub mod allocator;
pub mod attempts;
pub mod audit;
pub mod consensus;
pub mod control;
pub mod depends;
pub mod dispatch;
pub mod logs;
pub mod loops;
pub mod orchestrator;
pub mod reconcile;
pub mod scheduler;
pub mod state;
pub mod validate;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
pub(crate) mod world;
