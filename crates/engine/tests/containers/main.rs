//! Containers for real: needs root, overlayfs and cgroups. Every test has directories and control groups of its own
//! and leaves nothing behind, also when it fails.
#![allow(clippy::print_stderr)]

mod adoption;
mod attacks;
mod build;
mod files;
mod host;
mod life;
mod logs;
mod networks;
mod options;
mod streams;
mod syscalls;
mod trouble;
mod volumes;
mod walls;
