//! The manager: one replicated value, the control loops that change it, and the services that show it.

pub mod core;
pub mod io;
