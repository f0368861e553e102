//! Who takes part: a manager's own place in the group, and the leader's work on the places of others.

use std::collections::{BTreeSet, VecDeque};

use raft::eraftpb::{ConfChange, ConfChangeType, Snapshot};
use tokio::sync::oneshot;

use super::{
    ProposeError, RemoveError, Start, StartError, Vault,
    node::{Node, snapshot_data},
    snapshot::Snapshots,
    wal::{WalError, disk_error},
};
use crate::core::{
    consensus::{
        Member, MemberChange, Members, RaftId, may_remove,
        wire::{Malformed, Reader, Writer},
    },
    state::Rejected,
};

/// File with our raft id and the members that we were told of when admitted.
const PLACE: &str = "place";

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
        reply: oneshot::Sender<Result<RaftId, ProposeError>>,
    },
    Remove {
        raft_id: RaftId,
        reply: Option<oneshot::Sender<Result<(), RemoveError>>>,
    },
    Promote {
        raft_id: RaftId,
    },
}

impl MembershipQueue {
    /// Answers everyone who waits, because this manager leads no longer.
    pub(super) fn abandon(&mut self, leader: Option<RaftId>) {
        if let Some((_, request)) = self.open.take() {
            request.refuse(&ProposeError::Lost);
        }
        for request in self.waiting.drain(..) {
            request.refuse(&ProposeError::NotLeader { leader });
        }
    }

    fn is_promoting(&self, id: RaftId) -> bool {
        let open = self.open.iter().map(|(_, request)| request);
        open.chain(&self.waiting)
            .any(|request| matches!(request, Request::Promote { raft_id } if *raft_id == id))
    }
}

impl Request {
    fn refuse(self, why: &ProposeError) {
        // The asker may be gone.
        match self {
            Self::Admit { reply, .. } => drop(reply.send(Err(why.clone()))),
            Self::Remove {
                reply: Some(reply), ..
            } => drop(reply.send(Err(why.clone().into()))),
            Self::Remove { reply: None, .. } | Self::Promote { .. } => {}
        }
    }
}

impl Node {
    pub(super) fn admit(
        &mut self,
        member: Member,
        reply: oneshot::Sender<Result<RaftId, ProposeError>>,
    ) {
        if !self.is_leader() {
            let _ = reply.send(Err(ProposeError::NotLeader {
                leader: self.leader(),
            })); // the asker may be gone
            return;
        }
        match self.members.id_of(&member.node_id) {
            Some(id) if id == self.raft_id() => {
                let reason = Rejected::Reference("the leader is a member already".to_owned());
                let _ = reply.send(Err(ProposeError::Rejected(reason))); // the asker may be gone
                return;
            }
            // It asks because it has no log (any more); under its old id it could break promises that it forgot.
            Some(old) => self.membership.waiting.push_back(Request::Remove {
                raft_id: old,
                reply: None,
            }),
            None => {}
        }
        self.membership
            .waiting
            .push_back(Request::Admit { member, reply });
    }

    pub(super) fn remove(
        &mut self,
        raft_id: RaftId,
        reply: oneshot::Sender<Result<(), RemoveError>>,
    ) {
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
                reply: Some(reply),
            }),
            Ok(true) => drop(reply.send(Ok(()))), // the asker may be gone
            Err(refused) => drop(reply.send(Err(refused))),
        }
    }

    /// Members heard of within an election's time, this one included.
    pub(super) fn reachable(&self) -> BTreeSet<RaftId> {
        let since = self.ticks.saturating_sub(self.election_ticks());
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
            let Some(change) = self.change_for(&request) else {
                continue;
            };
            let ticket = self.take_ticket();
            let context = self.context(ticket, Some(&change));
            let mut raft_change = ConfChange {
                node_id: change.raft_id(),
                ..ConfChange::default()
            };
            raft_change.set_change_type(match change {
                MemberChange::AddLearner(..) => ConfChangeType::AddLearnerNode,
                MemberChange::SetVoter(..) => ConfChangeType::AddNode,
                MemberChange::Remove(_) => ConfChangeType::RemoveNode,
            });
            match self.try_propose(|raw| raw.propose_conf_change(context, raft_change)) {
                Ok(()) => {
                    self.membership.open = Some((ticket, request));
                    return;
                }
                Err(refused) => request.refuse(&refused),
            }
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
        // The asker may be gone.
        match self.membership.open.take().map(|(_, request)| request) {
            Some(Request::Admit { reply, .. }) => drop(reply.send(Ok(change.raft_id()))),
            Some(Request::Remove {
                reply: Some(reply), ..
            }) => drop(reply.send(Ok(()))),
            Some(Request::Remove { reply: None, .. } | Request::Promote { .. }) | None => {}
        }
    }
}

/// Finds or takes our place in the group: our raft id, and the members as far as we were told.
///
/// The place file is written last: until it stands, nothing was promised to anyone.
pub(super) fn prepare_place(
    vault: &Vault,
    snapshots: &Snapshots,
    start: Start,
) -> Result<(RaftId, Members), StartError> {
    let found = read_place(vault)?;
    match (start, found) {
        (Start::Restart, Some(place)) => Ok(place),
        (Start::Restart, None) => Err(StartError::Unexpected("there is no log to start from")),
        (Start::Bootstrap { .. } | Start::Join { .. }, Some(_)) => {
            Err(StartError::Unexpected("there is a log already"))
        }
        (Start::Bootstrap { member, state }, None) => {
            let raft_id = 1;
            let members = Members::genesis(raft_id, member);
            let mut genesis = Snapshot {
                data: snapshot_data(&members, &state),
                ..Snapshot::default()
            };
            let metadata = genesis.mut_metadata();
            (metadata.index, metadata.term) = (1, 1);
            metadata.mut_conf_state().voters = vec![raft_id];
            snapshots.save(&genesis)?;
            write_place(vault, raft_id, &members)?;
            Ok((raft_id, members))
        }
        (Start::Join { raft_id, members }, None) => {
            write_place(vault, raft_id, &members)?;
            Ok((raft_id, members))
        }
    }
}

/// Whether this vault holds a place in a group, so that [`Start::Restart`] is the way to start.
pub fn has_place(vault: &Vault) -> Result<bool, WalError> {
    read_place(vault).map(|place| place.is_some())
}

fn read_place(vault: &Vault) -> Result<Option<(RaftId, Members)>, WalError> {
    let names = vault
        .disk
        .list()
        .map_err(disk_error("list", "the log's directory"))?;
    if !names.iter().any(|name| name == PLACE) {
        return Ok(None);
    }
    let sealed = vault.disk.read(PLACE).map_err(disk_error("read", PLACE))?;
    let plain = vault
        .key
        .open(&sealed, &about(vault))
        .ok_or_else(|| WalError::Foreign {
            name: PLACE.to_owned(),
            reason: "it is damaged, or belongs to another node, or was sealed with another key",
        })?;
    let decode = || -> Result<_, Malformed> {
        let mut input = Reader::new(&plain);
        Ok((input.number()?, Members::decode(&mut input)?))
    };
    decode().map(Some).map_err(|_| WalError::Foreign {
        name: PLACE.to_owned(),
        reason: "it was written by another version",
    })
}

fn write_place(vault: &Vault, raft_id: RaftId, members: &Members) -> Result<(), WalError> {
    let mut out = Writer::default();
    out.number(raft_id);
    members.encode(&mut out);
    let sealed = vault.key.seal(&out.finish(), &about(vault));
    let temporary = format!("{PLACE}.tmp");
    let mut file = vault
        .disk
        .create(&temporary, 0)
        .map_err(disk_error("create", &temporary))?;
    file.write_at(0, &sealed)
        .map_err(disk_error("write", &temporary))?;
    file.sync().map_err(disk_error("sync", &temporary))?;
    vault
        .disk
        .rename(&temporary, PLACE)
        .map_err(disk_error("rename", &temporary))?;
    vault
        .disk
        .sync_names()
        .map_err(disk_error("sync", "the log's directory"))
}

fn about(vault: &Vault) -> Vec<u8> {
    [b"shoal place 1".as_slice(), &vault.owner.0].concat()
}
