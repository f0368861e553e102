//! Decisions about identity: pure functions of their arguments.

pub mod authorize;
pub mod role;
pub mod token;
pub mod unlock_key;
