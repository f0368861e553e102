//! The life of a task as one table.

use std::fmt;

use serde::{Deserialize, Serialize};

/// State of a task, observed or desired.
///
/// The numbers are those of SwarmKit's `api/types.proto`, 64 apart so that states can be added between. States are a
/// logical clock: an observed state only ever grows, and merging two reports is taking the greater one.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[repr(u32)]
pub enum TaskState {
    /// Made by an orchestrator; addresses and ports not yet allocated.
    #[default]
    New = 0,
    /// Everything allocated; waits for a node.
    Pending = 64,
    /// The scheduler chose a node.
    Assigned = 192,
    /// The node's agent knows of it.
    Accepted = 256,
    /// Image, networks and volumes are being made ready.
    Preparing = 320,
    /// Prepared; waits for the desired state to be [`TaskState::Running`].
    Ready = 384,
    /// Process started; stays here until healthy when it has a health check.
    Starting = 448,
    /// Running, and healthy where that is checked.
    Running = 512,
    /// Ended with exit code 0.
    Complete = 576,
    /// Ended because it was told to.
    Shutdown = 640,
    /// Ended by an error or a non-zero exit code after it was started.
    Failed = 704,
    /// Could not be started on its node, or the node no longer fits.
    Rejected = 768,
    /// Desired only: stop it, then delete it.
    Remove = 800,
    /// Its node is gone for good; nobody knows what became of it.
    Orphaned = 832,
}

impl TaskState {
    /// All states in order.
    pub const ALL: [Self; 14] = [
        Self::New,
        Self::Pending,
        Self::Assigned,
        Self::Accepted,
        Self::Preparing,
        Self::Ready,
        Self::Starting,
        Self::Running,
        Self::Complete,
        Self::Shutdown,
        Self::Failed,
        Self::Rejected,
        Self::Remove,
        Self::Orphaned,
    ];

    /// Name as docker's REST API writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Remove => "remove",
            Self::Orphaned => "orphaned",
        }
    }

    /// The state with this number on the wire.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|state| *state as u32 == number)
    }

    /// Whether an observed task in this state is over.
    pub fn is_terminal(self) -> bool {
        self > Self::Running
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for TaskState {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| format!("invalid task state {text:?}"))
    }
}

/// Who may write a fact. One fact has one writer; `State::apply` refuses everybody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Actor {
    /// The control API on behalf of users: specs, node availability, role, labels.
    User,
    /// Orchestrators: tasks, slots, desired states, update status.
    Orchestrator,
    /// Subnets, VNIs, addresses, published ports; New → Pending.
    Allocator,
    /// The node of a task; Pending → Assigned.
    Scheduler,
    /// The one assigned agent: states from Accepted on, exit code, host ports.
    Agent,
    /// Liveness and membership: node status, Orphaned.
    Dispatcher,
    /// Deletes tasks that are over.
    Reaper,
}

/// Whether `who` may move a task's observed state from `from` to `to`; `None` is "does not exist".
///
/// After SwarmKit's `design/tla/Tasks.tla`: monotone, and each source state has one owner. Two deliberate differences:
/// an agent may skip states, since only its last report of several need arrive, and it may report `shutdown` from any
/// live state, as its executor does.
pub fn may_move(who: Actor, from: Option<TaskState>, to: Option<TaskState>) -> bool {
    use TaskState as S;
    match (who, from, to) {
        (Actor::Orchestrator, None, Some(S::New)) => true,
        (Actor::Allocator, Some(S::New), Some(S::Pending)) => true,
        (Actor::Scheduler, Some(S::Pending), Some(S::Assigned)) => true,
        // A task that never reached a node ends where it stands; one whose node stopped fitting is rejected there.
        (Actor::Orchestrator, Some(S::New | S::Pending), Some(S::Shutdown)) => true,
        (Actor::Orchestrator, Some(from), Some(S::Rejected)) => {
            from >= S::Assigned && from <= S::Running
        }
        (Actor::Agent, Some(from), Some(to)) => {
            from >= S::Assigned
                && from <= S::Running
                && to > from
                && to <= S::Rejected
                && to != S::Remove
        }
        (Actor::Dispatcher, Some(from), Some(S::Orphaned)) => {
            from >= S::Assigned && from < S::Orphaned
        }
        (Actor::Reaper, Some(from), None) => from < S::Assigned || from.is_terminal(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTORS: [Actor; 7] = [
        Actor::User,
        Actor::Orchestrator,
        Actor::Allocator,
        Actor::Scheduler,
        Actor::Agent,
        Actor::Dispatcher,
        Actor::Reaper,
    ];

    #[test]
    fn observed_states_only_grow() {
        for who in ACTORS {
            for from in TaskState::ALL {
                for to in TaskState::ALL {
                    assert!(
                        !may_move(who, Some(from), Some(to)) || to > from,
                        "{who:?} moves {from} to {to}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_way_from_new_to_assigned_has_one_owner_per_step() {
        use TaskState as S;
        for (from, to, owner) in [
            (None, Some(S::New), Actor::Orchestrator),
            (Some(S::New), Some(S::Pending), Actor::Allocator),
            (Some(S::Pending), Some(S::Assigned), Actor::Scheduler),
            (Some(S::Assigned), Some(S::Running), Actor::Agent),
        ] {
            let owners: Vec<_> = ACTORS
                .into_iter()
                .filter(|who| may_move(*who, from, to))
                .collect();
            assert_eq!(owners, [owner], "{from:?} → {to:?}");
        }
    }

    #[test]
    fn remove_is_desired_but_never_observed() {
        for who in ACTORS {
            for from in TaskState::ALL {
                assert!(!may_move(who, Some(from), Some(TaskState::Remove)));
            }
        }
    }

    #[test]
    fn names_and_numbers_are_read_back() {
        for state in TaskState::ALL {
            assert_eq!(TaskState::from_number(state as u32), Some(state));
            assert_eq!(state.as_str().parse(), Ok(state));
        }
    }
}
