//! Clusters that go on with one manager: after the others were lost, or from a file.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use sha2::{Digest, Sha256};
use shoal_api::{ClusterId, IdSource, NodeId, RandomIds};
use shoal_ca::{NodeIdentity, NodeKey, Role, RootCa, Subject, UnlockKey};

use super::{Manager, ManagerError, WriteError, locking};
use crate::{
    core::{
        consensus::{
            LogIndex, Member, MemberChange, Members, RaftId,
            wire::{Malformed, Reader, Writer},
        },
        state::State,
    },
    io::{
        keys::{self, NodeLock},
        raft::{
            Start, StateMachine, Vault,
            disk::OsDisk,
            salvage::{self, Salvaged},
            seal::{DataKey, Owner},
        },
        store::{Replica, encode_state},
    },
};

const LOG: &str = "raft";
/// A log that is being written to take the place of the old one.
const NEXT_LOG: &str = "raft-next";
const OLD_LOG: &str = "raft-old";
const MAGIC: &[u8; 8] = b"SHOALBAK";
const VERSION: u8 = 1;
const PLAIN: u8 = 0;
const SEALED: u8 = 1;

/// A cluster's state, to go on from with one manager.
#[derive(Debug, Clone)]
pub struct Anew {
    state: Vec<u8>,
    members: Members,
    index: LogIndex,
    term: u64,
    /// How many ids may have been given out of which `members` do not know.
    ids_since: RaftId,
}

/// Elections that may have been held, and members that may have come, since a backup was made: more than anybody lives to
/// see, and far from the end of the numbers.
const TERMS_SINCE: u64 = 1 << 32;
const IDS_SINCE: RaftId = 1 << 32;

impl From<Salvaged> for Anew {
    fn from(found: Salvaged) -> Self {
        let Salvaged {
            state,
            members,
            index,
            term,
        } = found;
        Self {
            state,
            members,
            index,
            term,
            ids_since: 0,
        }
    }
}

impl Anew {
    /// The log's beginning, with this node alone, under an id that nobody had.
    pub(super) fn start(self, node_id: NodeId, address: String) -> Start {
        let mut members = self.members;
        let raft_id = members.next_id() + self.ids_since;
        let gone: Vec<_> = members.iter().map(|(id, _)| id).collect();
        for id in gone {
            members.apply(&MemberChange::Remove(id));
        }
        members.apply(&MemberChange::SetVoter(
            raft_id,
            Member { node_id, address },
        ));
        Start::Anew {
            raft_id,
            members,
            state: self.state,
            index: self.index,
            term: self.term,
        }
    }
}

/// The directory of a manager's log; ends a replacement of it that was cut short.
pub(super) fn log_directory(directory: &Path) -> io::Result<PathBuf> {
    let log = directory.join(LOG);
    if !log.exists() && directory.join(NEXT_LOG).exists() {
        fs::rename(directory.join(NEXT_LOG), &log)?;
        fs::File::open(directory)?.sync_all()?;
    }
    Ok(log)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Manager {
    /// Makes the manager of this directory the only one of its cluster. It must not be running. Its log is replaced in one
    /// step: a crash leaves the old one or the new one. Begin with [`super::Begin::Restart`] afterwards.
    ///
    /// # Errors
    /// There is no log, or it cannot be read.
    pub fn begin_anew(
        directory: &Path,
        identity: &NodeIdentity,
        lock: Option<&NodeLock>,
        advertise: String,
    ) -> Result<(), ManagerError> {
        let failed = |source| ManagerError::Directory {
            directory: directory.to_owned(),
            source,
        };
        let log = log_directory(directory).map_err(failed)?;
        let keys = keys::load_or_make(directory, lock).map_err(failed)?;
        let owner = Owner::new(&identity.peer().cluster_id, &identity.peer().node_id);
        let vault = |path: &Path| {
            let disk = Arc::new(OsDisk::open(path).map_err(failed)?);
            Ok::<_, ManagerError>(Vault {
                disk,
                key: keys.clone(),
                owner,
            })
        };
        let found: Anew = salvage::salvage(vault(&log)?, &mut Replica::default())?.into();
        let (next, old) = (directory.join(NEXT_LOG), directory.join(OLD_LOG));
        remove(&next).map_err(failed)?;
        remove(&old).map_err(failed)?;
        let start = found.start(identity.peer().node_id.clone(), advertise);
        salvage::write_anew(&vault(&next)?, start)?;
        let replace = || {
            fs::rename(&log, &old)?;
            fs::rename(&next, &log)?;
            fs::File::open(directory)?.sync_all()?;
            remove(&old)
        };
        replace().map_err(failed)
    }

    /// Everything that the cluster is: a file from which it can be begun anew. It holds all secrets, so it is sealed under
    /// the unlock key where there is one.
    pub async fn backup(&self) -> Result<Vec<u8>, WriteError> {
        let state = self.latest().await?;
        let members = Arc::clone(&self.members().borrow());
        let identity = self.desk.identity();
        let mut out = Writer::default();
        out.bytes(identity.peer().cluster_id.as_str().as_bytes());
        out.bytes(identity.peer().node_id.as_str().as_bytes());
        out.number(state.index());
        out.number(self.desk.leadership().term);
        members.encode(&mut out);
        out.bytes(&encode_state(&state));
        let plain = out.finish();
        let about = [&MAGIC[..], &[VERSION]].concat();
        let (flag, body) = match locking::unlock_key(&state) {
            Some(key) => (SEALED, DataKey::new(*key.bytes()).seal(&plain, &about)),
            None => (PLAIN, [&Sha256::digest(&plain)[..], &plain].concat()),
        };
        Ok([&about[..], &[flag], &body].concat())
    }
}

/// Why a backup is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    /// It is none.
    #[error("this is not a backup of a swarm")]
    NotOne,
    /// By another version.
    #[error("the backup was written by another version")]
    Version,
    /// It is sealed.
    #[error("the backup is sealed: give the unlock key that the swarm had when it was made")]
    Sealed,
    /// The key is another, or the file is damaged.
    #[error("the backup cannot be opened: the unlock key is another one, or the file is damaged")]
    WrongKey,
    /// Its end-to-end check fails.
    #[error("the backup is damaged")]
    Damaged,
}

/// A backup that was read.
#[derive(Debug)]
pub struct Backup {
    /// What [`super::Begin::Anew`] begins with.
    pub anew: Anew,
    /// The identity of the node that it was made on, newly issued by the cluster's own authority.
    pub identity: NodeIdentity,
    /// The key under which its managers seal their disks, if they do.
    pub unlock_key: Option<UnlockKey>,
}

/// Reads a backup.
///
/// # Errors
/// It is damaged, sealed by another key, or its authority cannot issue.
pub fn read_backup(file: &[u8], key: Option<&UnlockKey>) -> Result<Backup, RestoreError> {
    let rest = file.strip_prefix(MAGIC).ok_or(BackupError::NotOne)?;
    let (version, rest) = rest.split_first().ok_or(BackupError::NotOne)?;
    if *version != VERSION {
        return Err(BackupError::Version.into());
    }
    let about = [&MAGIC[..], &[VERSION]].concat();
    let plain = match rest.split_first() {
        Some((&PLAIN, body)) => {
            let (digest, plain) = body.split_first_chunk::<32>().ok_or(BackupError::Damaged)?;
            if Sha256::digest(plain)[..] != digest[..] {
                return Err(BackupError::Damaged.into());
            }
            plain.to_vec()
        }
        Some((&SEALED, body)) => DataKey::new(*key.ok_or(BackupError::Sealed)?.bytes())
            .open(body, &about)
            .ok_or(BackupError::WrongKey)?,
        _ => return Err(BackupError::NotOne.into()),
    };
    let (subject, anew) = decode(&plain).map_err(|_| BackupError::Damaged)?;
    let mut replica = Replica::default();
    replica
        .restore(&anew.state)
        .map_err(|_| BackupError::Damaged)?;
    let state: State = replica.state();
    let cluster = state.cluster().ok_or(BackupError::Damaged)?;
    let now = SystemTime::now();
    let ca = RootCa::from_pem(&cluster.root_ca_cert, &cluster.root_ca_key)?;
    let key = NodeKey::generate()?;
    let certificate = ca.issue(&key.request_pem()?, &subject, cluster.spec.cert_expiry, now)?;
    Ok(Backup {
        identity: NodeIdentity::new(ca.certificate().clone(), certificate, key.pem())?,
        unlock_key: locking::unlock_key(&state),
        anew,
    })
}

/// Why a cluster cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The file is of no use.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// No certificate can be made.
    #[error("the backup's certificate authority cannot issue a certificate")]
    Identity(#[from] shoal_ca::CaError),
}

fn decode(plain: &[u8]) -> Result<(Subject, Anew), Malformed> {
    let mut input = Reader::new(plain);
    let cluster_id: ClusterId = input.text()?.parse().map_err(|_| Malformed)?;
    let node_id: NodeId = input.text()?.parse().map_err(|_| Malformed)?;
    let (index, term) = (input.number()?, input.number()?);
    let members = Members::decode(&mut input)?;
    let state = input.bytes()?.to_vec();
    let subject = Subject {
        node_id,
        role: Role::Manager,
        cluster_id,
    };
    // Beyond whatever the old log may have gone on to since the backup, should one of its managers turn up.
    let anew = Anew {
        state,
        members,
        index,
        term: term + TERMS_SINCE,
        // From one backup more than one cluster may be begun.
        ids_since: IDS_SINCE + (RandomIds.next_bits() >> 96) as RaftId,
    };
    Ok((subject, anew))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_out_after_a_backup_is_not_given_out_again() {
        let member = |name: &str| Member {
            node_id: name.parse().unwrap(),
            address: format!("{name}:2377"),
        };
        let members = Members::genesis(1, member("one"));
        let mut out = Writer::default();
        for id in ["cluster1", "one"] {
            out.bytes(id.as_bytes());
        }
        out.number(9);
        out.number(3);
        members.encode(&mut out);
        out.bytes(b"the state");
        let (_, anew) = decode(&out.finish()).unwrap();
        // The cluster went on: a member came, there were elections.
        let mut later = members;
        later.apply(&MemberChange::AddLearner(later.next_id(), member("two")));
        let Start::Anew {
            raft_id,
            members,
            term,
            ..
        } = anew.start("one".parse().unwrap(), "one:2377".to_owned())
        else {
            panic!("it begins anew")
        };
        assert!(raft_id > later.next_id(), "{raft_id}");
        assert!(members.next_id() > raft_id && members.was_removed(1));
        assert!(term > 3 + 1_000, "{term}");
    }
}
