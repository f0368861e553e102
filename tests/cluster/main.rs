//! Whole clusters on one machine: real daemons, real images, pulled cables.
#![allow(clippy::unwrap_used)]

mod autolock;
mod beyond;
mod certificates;
mod churn;
mod crash;
mod damage;
mod encrypted;
mod exec;
mod failures;
mod liveness;
mod logs;
mod lossless;
mod membership;
mod mesh;
mod names;
mod options;
mod overlay;
mod plans;
mod planted;
mod possessions;
mod promises;
mod reach;
mod real_images;
mod reboot;
mod refusals;
mod scenarios;
mod services;
mod stack;
mod stack_keys;
mod stacks;
mod underlay;
mod updates;
mod voting;
