//! Everything that touches the kernel.

mod actor;
pub mod bridge;
pub mod kernel;
pub mod netns;
pub mod observe;
pub mod plane;
pub mod resolver;
pub mod socket;
