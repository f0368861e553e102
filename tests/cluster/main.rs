//! Whole clusters on one machine: real daemons, real images, pulled cables.
#![allow(clippy::unwrap_used)]

mod failures;
mod real_images;
mod refusals;
mod stack;
