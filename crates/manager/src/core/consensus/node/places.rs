//! The leader's work on who takes part.

use std::collections::{BTreeSet, VecDeque};

use shoal_api::planted::{Bug, planted};

use super::{Answer, Caller, Effect, Node, Persist, ProposeError, RemoveError, to_raft};
use crate::core::{
    consensus::{Member, MemberChange, RaftId, may_remove, record::Record},
    state::Rejected,
};

/// What the leader was asked about the membership, done one after the other: Raft allows one open change at a time.
#[derive(Debug, Default)]
pub(super) struct MembershipQueue {
    waiting: VecDeque<Request>,
    open: Option<(u64, Request)>,
}

#[derive(Debug)]
enum Request {
    Admit {
        member: Member,
        caller: Caller,
    },
    Remove {
        raft_id: RaftId,
        caller: Option<Caller>,
    },
    Promote {
        raft_id: RaftId,
    },
    Relocate {
        raft_id: RaftId,
        member: Member,
        caller: Caller,
    },
}

impl MembershipQueue {
    fn is_promoting(&self, id: RaftId) -> bool {
        let open = self.open.iter().map(|(_, request)| request);
        open.chain(&self.waiting)
            .any(|request| matches!(request, Request::Promote { raft_id } if *raft_id == id))
    }
}

impl Request {
    /// Who waits for it.
    fn caller(&self) -> Option<Caller> {
        match self {
            Self::Admit { caller, .. } | Self::Relocate { caller, .. } => Some(*caller),
            Self::Remove { caller, .. } => *caller,
            Self::Promote { .. } => None,
        }
    }

    fn refused(&self, why: ProposeError) -> Answer {
        match self {
            Self::Remove { .. } => Answer::NotRemoved(why.into()),
            Self::Admit { .. } | Self::Promote { .. } | Self::Relocate { .. } => {
                Answer::Failed(why)
            }
        }
    }
}

impl Node {
    /// Admits a manager; answered with [`Answer::Admitted`]. It receives the log at once and votes as soon as it has
    /// caught up. A node that already takes part loses its old place: it asks because it has lost its log.
    pub fn admit(&mut self, member: Member, caller: Caller) {
        if !self.is_leader() {
            let leader = self.leader();
            return self.fail(caller, ProposeError::NotLeader { leader });
        }
        if self.members.id_of(&member.node_id) == Some(self.raft_id()) {
            let reason = Rejected::Reference("the leader is a member already".to_owned());
            return self.fail(caller, ProposeError::Rejected(reason));
        }
        if planted(Bug::RejoinKeepsId)
            && let Some(old) = self.members.id_of(&member.node_id)
        {
            return self.answer(caller, Answer::Admitted(old));
        }
        self.membership
            .waiting
            .push_back(Request::Admit { member, caller });
    }

    /// Tells everyone a member's new address; answered with [`Answer::Done`]. It keeps its id and its log.
    pub fn relocate(&mut self, raft_id: RaftId, member: Member, caller: Caller) {
        if !self.is_leader() {
            let leader = self.leader();
            return self.fail(caller, ProposeError::NotLeader { leader });
        }
        match self.members.get(raft_id) {
            Some(known) if *known == member => self.answer(caller, Answer::Done),
            Some(known) if known.node_id == member.node_id => {
                self.membership.waiting.push_back(Request::Relocate {
                    raft_id,
                    member,
                    caller,
                });
            }
            _ => {
                let reason = format!("raft member {raft_id} is not node {}", member.node_id);
                self.fail(caller, ProposeError::Rejected(Rejected::Reference(reason)));
            }
        }
    }

    /// Removes a manager for good; answered with [`Answer::Done`].
    pub fn remove(&mut self, raft_id: RaftId, caller: Caller) {
        let voters: BTreeSet<_> = self
            .raw
            .store()
            .conf_state()
            .voters
            .iter()
            .copied()
            .collect();
        let judged = if !self.is_leader() {
            Err(ProposeError::NotLeader {
                leader: self.leader(),
            }
            .into())
        } else if self.members.get(raft_id).is_none() {
            Ok(true) // gone already
        } else {
            may_remove(&voters, &self.reachable(), raft_id)
                .map_err(RemoveError::from)
                .and_then(|()| {
                    if raft_id == self.raft_id() {
                        Err(RemoveError::IsLeader)
                    } else {
                        Ok(false)
                    }
                })
        };
        match judged {
            Ok(false) => self.membership.waiting.push_back(Request::Remove {
                raft_id,
                caller: Some(caller),
            }),
            Ok(true) => self.answer(caller, Answer::Done),
            Err(refused) => self.answer(caller, Answer::NotRemoved(refused)),
        }
    }

    /// Answers everyone who waits, because this manager leads no longer.
    pub(super) fn abandon_membership(&mut self, leader: Option<RaftId>) {
        let lost = self.membership.open.take();
        let lost = lost.map(|(_, request)| (request, ProposeError::Lost));
        let waiting = std::mem::take(&mut self.membership.waiting);
        let refused = waiting
            .into_iter()
            .map(|request| (request, ProposeError::NotLeader { leader }));
        for (request, why) in lost.into_iter().chain(refused) {
            self.refuse(&request, why);
        }
    }

    fn refuse(&mut self, request: &Request, why: ProposeError) {
        if let Some(caller) = request.caller() {
            self.answer(caller, request.refused(why));
        }
    }

    /// Members heard of within an election's time, this one included.
    pub(super) fn reachable(&self) -> BTreeSet<RaftId> {
        let since = self.ticks.saturating_sub(self.limits.election_ticks as u64);
        let heard = self
            .heard
            .iter()
            .filter(|(_, at)| **at >= since)
            .map(|(id, _)| *id);
        heard.chain([self.raft_id()]).collect()
    }

    /// Proposes the next change, if none is open. Learners that have caught up become voters by themselves.
    pub(super) fn propose_membership(&mut self) {
        if !self.is_leader() || self.membership.open.is_some() || self.raw.raft.has_pending_conf() {
            return;
        }
        for id in self.caught_up_learners() {
            if !self.membership.is_promoting(id) {
                self.membership
                    .waiting
                    .push_front(Request::Promote { raft_id: id });
            }
        }
        while let Some(request) = self.membership.waiting.pop_front() {
            let request = self.first_of(request);
            let Some(change) = self.change_for(&request) else {
                self.refuse(&request, ProposeError::Lost); // it is gone meanwhile
                continue;
            };
            let ticket = self.take_ticket();
            let context = self.context(ticket, Some(&change));
            let raft_change = to_raft(&change);
            match self.try_propose(|raw| raw.propose_conf_change(context, raft_change)) {
                Ok(()) => {
                    self.membership.open = Some((ticket, request));
                    return;
                }
                Err(refused) => {
                    // Whoever waits for an old place to be given up is refused with it.
                    let heir = match &request {
                        Request::Remove { caller: None, .. } => self.membership.waiting.pop_front(),
                        _ => None,
                    };
                    for request in [Some(request), heir].into_iter().flatten() {
                        self.refuse(&request, refused.clone());
                    }
                }
            }
        }
    }

    /// A node asks to be admitted because it has no log (any more); under its old id it could break promises that it
    /// forgot. So that one goes first. Judged when it is the request's turn: it may have been asked twice.
    fn first_of(&mut self, request: Request) -> Request {
        let old = match &request {
            Request::Admit { member, .. } => self.members.id_of(&member.node_id),
            Request::Remove { .. } | Request::Promote { .. } | Request::Relocate { .. } => None,
        };
        let Some(raft_id) = old else { return request };
        self.membership.waiting.push_front(request);
        Request::Remove {
            raft_id,
            caller: None,
        }
    }

    fn caught_up_learners(&self) -> Vec<RaftId> {
        let raft = &self.raw.raft;
        let learners = &self.raw.store().conf_state().learners;
        let caught_up = |id: &RaftId| {
            raft.prs()
                .get(*id)
                .is_some_and(|p| p.matched >= raft.raft_log.committed)
        };
        learners
            .iter()
            .copied()
            .filter(|id| self.heard.contains_key(id) && caught_up(id))
            .collect()
    }

    fn change_for(&self, request: &Request) -> Option<MemberChange> {
        match request {
            Request::Admit { member, .. } => Some(MemberChange::AddLearner(
                self.members.next_id(),
                member.clone(),
            )),
            Request::Remove { raft_id, .. } => Some(MemberChange::Remove(*raft_id)),
            Request::Promote { raft_id } => self
                .members
                .get(*raft_id)
                .map(|member| MemberChange::SetVoter(*raft_id, member.clone())),
            Request::Relocate {
                raft_id, member, ..
            } => {
                self.members.get(*raft_id)?;
                let change = if self.members.is_voter(*raft_id) {
                    MemberChange::SetVoter
                } else {
                    MemberChange::AddLearner
                };
                Some(change(*raft_id, member.clone()))
            }
        }
    }

    /// Tells the asker, if it was one of ours.
    pub(super) fn membership_applied(&mut self, ticket: Option<u64>, change: &MemberChange) {
        self.heard.retain(|id, _| self.members.get(*id).is_some());
        if self
            .membership
            .open
            .as_ref()
            .is_none_or(|(open, _)| Some(*open) != ticket)
        {
            return;
        }
        let Some((_, request)) = self.membership.open.take() else {
            return;
        };
        if let Some(caller) = request.caller() {
            let answer = match request {
                Request::Admit { .. } => Answer::Admitted(change.raft_id()),
                Request::Remove { .. } | Request::Promote { .. } | Request::Relocate { .. } => {
                    Answer::Done
                }
            };
            self.answer(caller, answer);
        }
    }

    /// Makes durable that a change of the membership is committed. Who forgets that does not know its voters after a restart,
    /// nor perhaps that it is one, and has to be told by a leader, who may be gone for good.
    pub(super) fn note_membership(&mut self) {
        if self.persisting.is_none() && std::mem::take(&mut self.is_commit_owed) {
            let record = Record {
                hard_state: self.raw.store().hard_state().clone(),
                entries: Vec::new(),
                installed: None,
            };
            self.effects.push_back(Effect::Persist(Persist {
                snapshot: None,
                record: Some(record),
            }));
        }
    }
}
