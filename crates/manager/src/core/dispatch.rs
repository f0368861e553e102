//! What nodes are told, what they say, and whether they are there.

mod assignment;
mod drain;
mod forget;
mod liveness;
mod orphan;
mod passing;
mod status;
mod view;

#[cfg(test)]
mod tests;

pub use assignment::{AssignmentChange, AssignmentSet, assignment_set, assignment_set_with, diff};
pub use drain::{DRAIN_MAX, Drain};
pub use forget::Forget;
pub use liveness::{Liveness, Verdict, node_seen, node_verdict};
pub use orphan::{ORPHAN_AFTER, Orphans};
pub use passing::{Passing, seen};
pub use status::{merge_reports, merge_status};
pub use view::{MTU_OPTION, NetworkSlices, Views, is_serving, network_view};
