//! Everything that touches the kernel.

pub mod kernel;
pub mod netns;
pub mod observe;
pub mod plane;
pub mod socket;
