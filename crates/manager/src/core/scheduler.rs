//! Which node runs a task.

pub mod constraint;
