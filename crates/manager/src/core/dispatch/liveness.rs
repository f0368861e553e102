//! Whether nodes are there, judged by their sessions.
//!
//! A closed session is evidence, a missed heartbeat is evidence; neither is a verdict before its grace has passed, because
//! containers survive the restart of an agent. A leader that has just begun, or that has itself stood still, does not
//! trust its own clock enough to condemn anybody and waits once more.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use shoal_api::{
    Actor, NodeId, Timestamp,
    object::{Batch, Change, Expect, NodeDescription, NodeState, Object},
    planted::{Bug, planted},
};

use crate::core::state::State;

/// Heartbeats that may be missed.
const HEARTBEATS_MISSED_MAX: u32 = 4;
/// However short the period, no verdict comes sooner: stalls of a loaded machine are shorter than this.
const SILENCE_MIN: Duration = Duration::from_millis(1_500);
/// Time for an agent to come back after its session has closed.
const RECONNECT_GRACE: Duration = Duration::from_secs(1);
/// Time for agents to find a leader that has just begun.
const LEADER_GRACE: Duration = Duration::from_secs(5);
/// A deadline noticed so much too late means that it was this manager that stood still.
const STALL_MIN: Duration = Duration::from_millis(250);
/// Between the end of a node's time and the verdict. After a stall too short to be noticed, what was sent meanwhile is
/// still on its way through this process, and is heard within this time.
const SECOND_LOOK: Duration = Duration::from_millis(150);

/// What has been seen of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pulse {
    /// The session, if one is open.
    session: Option<u64>,
    /// When the node is to be looked at, and given up at the second look.
    deadline: Timestamp,
    /// Whether it was looked at once.
    is_suspect: bool,
}

/// Sessions and deadlines; lives as long as a leadership.
#[derive(Debug)]
pub struct Liveness {
    period: Duration,
    pulses: BTreeMap<NodeId, Pulse>,
}

/// What is to be written down about a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing was heard of it for too long.
    Down {
        /// The node.
        node: NodeId,
        /// Which evidence there is.
        message: &'static str,
    },
}

impl Liveness {
    /// The beginning of a leadership: all nodes get time to find it.
    pub fn begin(state: &State, period: Duration, now: Timestamp) -> Self {
        let given_up = |state| matches!(state, NodeState::Down | NodeState::Disconnected);
        let awaited = state.nodes().filter(|node| !given_up(node.status.state));
        let grace = if planted(Bug::LeaderImpatient) {
            Duration::ZERO
        } else {
            LEADER_GRACE
        };
        let pulse = Pulse {
            session: None,
            deadline: now + grace,
            is_suspect: false,
        };
        Self {
            period,
            pulses: awaited.map(|node| (node.id.clone(), pulse)).collect(),
        }
    }

    /// The period of heartbeats was changed.
    pub fn set_period(&mut self, period: Duration) {
        self.period = period;
    }

    /// A session was opened; `session` tells it from earlier ones of the node.
    pub fn opened(&mut self, node: NodeId, session: u64, now: Timestamp) {
        let deadline = now + self.silence();
        self.pulses.insert(
            node,
            Pulse {
                session: Some(session),
                deadline,
                is_suspect: false,
            },
        );
    }

    /// A heartbeat came. Returns whether the session is the current one; otherwise the node must open a new one.
    pub fn heartbeat(&mut self, node: &NodeId, session: u64, now: Timestamp) -> bool {
        let deadline = now + self.silence();
        match self.pulses.get_mut(node) {
            Some(pulse) if pulse.session == Some(session) => {
                pulse.deadline = deadline;
                pulse.is_suspect = false;
                true
            }
            _ => false,
        }
    }

    /// A session was closed, by the node or by the network.
    pub fn closed(&mut self, node: &NodeId, session: u64, now: Timestamp) {
        if let Some(pulse) = self.pulses.get_mut(node)
            && pulse.session == Some(session)
        {
            pulse.session = None;
            pulse.deadline = pulse.deadline.min(now + RECONNECT_GRACE);
        }
    }

    /// The node was removed, or has left by itself; nothing is expected of it.
    pub fn forget(&mut self, node: &NodeId) {
        self.pulses.remove(node);
    }

    /// When to ask for verdicts next.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.pulses.values().map(|pulse| pulse.deadline).min()
    }

    /// The nodes whose time is up. To be asked at [`Self::next_deadline`]; if that is noticed late, this manager stood
    /// still and so may have missed what was sent to it, and everybody whose time is up gets some more.
    pub fn verdicts(&mut self, now: Timestamp) -> Vec<Verdict> {
        let Some(first) = self.next_deadline().filter(|first| *first <= now) else {
            return Vec::new();
        };
        if now.since(first) >= STALL_MIN {
            let extra = now + RECONNECT_GRACE;
            for pulse in self.pulses.values_mut() {
                pulse.deadline = pulse.deadline.max(extra);
                pulse.is_suspect = false;
            }
            return Vec::new();
        }
        let is_due = |pulse: &Pulse| pulse.deadline <= now;
        let due = self
            .pulses
            .extract_if(.., |_, pulse| is_due(pulse) && pulse.is_suspect)
            .filter(|_| !planted(Bug::LivenessBlind));
        let verdicts = due.map(|(node, pulse)| Verdict::Down {
            node,
            message: match pulse.session {
                Some(_) => "heartbeat failure",
                None => "session closed",
            },
        });
        let verdicts = verdicts.collect();
        for pulse in self.pulses.values_mut().filter(|pulse| is_due(pulse)) {
            pulse.is_suspect = true;
            pulse.deadline = now + SECOND_LOOK;
        }
        verdicts
    }

    fn silence(&self) -> Duration {
        (self.period * HEARTBEATS_MISSED_MAX).max(SILENCE_MIN)
    }
}

/// A node has opened a session: what it says of itself, and that it is ready. `None` if all of that is known.
pub fn node_seen(
    state: &State,
    node: &NodeId,
    description: &NodeDescription,
    addr: Option<IpAddr>,
    now: Timestamp,
) -> Option<Batch> {
    change_node(state, node, now, |node| {
        node.description = description.clone();
        if addr.is_some() {
            node.status.addr = addr;
        }
        if node.status.state != NodeState::Ready {
            node.status.state = NodeState::Ready;
            node.status.since = now;
        }
        node.status.message.clear();
    })
}

/// A verdict on a node, or that it has left by itself. `None` if that is known.
pub fn node_verdict(
    state: &State,
    node: &NodeId,
    verdict: NodeState,
    message: &str,
    now: Timestamp,
) -> Option<Batch> {
    change_node(state, node, now, |node| {
        if node.status.state != verdict {
            node.status.state = verdict;
            node.status.since = now;
            message.clone_into(&mut node.status.message);
        }
    })
}

fn change_node(
    state: &State,
    id: &NodeId,
    now: Timestamp,
    change: impl FnOnce(&mut shoal_api::object::Node),
) -> Option<Batch> {
    let old = state.node(id)?;
    let mut node = old.as_ref().clone();
    change(&mut node);
    if node == **old {
        return None;
    }
    let expect = Expect::Version(old.meta.version);
    let changes = vec![Change::Put {
        object: Box::new(Object::Node(node)),
        expect,
    }];
    Some(Batch {
        actor: Actor::Dispatcher,
        at: now,
        changes,
        wish: None,
    })
}
