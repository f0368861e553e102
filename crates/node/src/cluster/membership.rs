//! What a node remembers of its membership, on disk: where it lives, its certificate, and its manager's directory.

use std::{
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use shoal_ca::{IdentityFiles, KeySeal, NodeIdentity, Role, StoredIdentity};
use shoal_manager::{LockFile, NodeLock, is_locked};

use super::ClusterError;

/// What a node must remember of its membership, besides its certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Membership {
    /// Where a manager listens.
    pub(super) listen: SocketAddr,
    /// Where others reach it.
    pub(super) advertise: SocketAddr,
    /// Where others reach its data path.
    pub(super) data_path: IpAddr,
    /// Whether [`Self::advertise`] was an address of this host when it was chosen.
    #[serde(default)]
    pub(super) is_own_address: bool,
    /// Other managers, as last heard of.
    pub(super) managers: Vec<String>,
}

impl Membership {
    /// Takes over the managers that the cluster names, but for this node itself. Returns whether that is news; no names
    /// are none.
    pub(super) fn learn(&mut self, managers: &[String]) -> bool {
        let own = self.advertise.to_string();
        let others = managers.iter().filter(|address| **address != own);
        let others: Vec<String> = others.cloned().collect();
        let same = |old: &[String]| {
            old.len() == others.len() && others.iter().all(|address| old.contains(address))
        };
        // Who leads comes first and changes often; that alone is not worth a write.
        let is_news = !managers.is_empty() && !same(&self.managers);
        if is_news {
            self.managers = others;
        }
        is_news
    }
}

/// What an earlier daemon left.
#[derive(Debug)]
pub(super) enum Stored {
    /// Nothing: the node is in no cluster.
    Nothing,
    /// A manager whose keys are sealed.
    Locked,
    /// A membership to take up.
    Open(Box<NodeIdentity>, Membership),
}

/// The directory of a membership.
#[derive(Debug, Clone)]
pub(super) struct MembershipFiles {
    directory: PathBuf,
}

impl MembershipFiles {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn identity(&self) -> IdentityFiles {
        IdentityFiles::new(self.directory.join("certificates"))
    }

    /// The agent's ledger.
    pub(super) fn ledger(&self) -> PathBuf {
        self.directory.join("agent.redb")
    }

    /// The manager's directory.
    pub(super) fn manager(&self) -> PathBuf {
        self.directory.join("manager")
    }

    /// Where the lock of a locked manager is kept.
    pub(super) fn lock(&self) -> LockFile {
        LockFile::new(self.directory.join("lock"))
    }

    /// Forgets the lock, when nothing is sealed by it.
    pub(super) fn forget_lock(&self) -> Result<(), ClusterError> {
        let path = self.directory.join("lock");
        self.lock().remove().map_err(at(&path))
    }

    /// What an earlier daemon left.
    pub(super) fn load(&self, lock: Option<&NodeLock>) -> Result<Stored, ClusterError> {
        self.shut_out_others().map_err(at(&self.directory))?;
        let identity = match self.identity().load(seal(lock))? {
            StoredIdentity::Nothing => return Ok(Stored::Nothing),
            StoredIdentity::Sealed => return Ok(Stored::Locked),
            StoredIdentity::Open(identity) => identity,
        };
        let is_locked = || is_locked(&self.manager()).map_err(at(&self.manager()));
        if identity.peer().role == Role::Manager && lock.is_none() && is_locked()? {
            return Ok(Stored::Locked);
        }
        Ok(Stored::Open(identity, self.load_membership()?))
    }

    /// Where the node lives.
    pub(super) fn load_membership(&self) -> Result<Membership, ClusterError> {
        let path = self.directory.join("membership.json");
        let read = || Ok(serde_json::from_slice(&fs::read(&path)?)?);
        read().map_err(at(&path))
    }

    /// Writes where the node lives so that it survives a loss of power.
    pub(super) fn save(&self, membership: &Membership) -> Result<(), ClusterError> {
        let path = self.directory.join("membership.json");
        let temporary = path.with_extension("tmp");
        let write = || {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&self.directory)?;
            self.shut_out_others()?;
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = options.open(&temporary)?;
            file.write_all(&serde_json::to_vec_pretty(membership)?)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            fs::File::open(&self.directory)?.sync_all()
        };
        write().map_err(at(&path))
    }

    /// What is in the directory is its owner's alone, also where an earlier version made it.
    fn shut_out_others(&self) -> io::Result<()> {
        match fs::set_permissions(&self.directory, Permissions::from_mode(0o700)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Writes the certificate. A node that has one counts itself in: [`Self::save`] comes first.
    /// Its key is sealed where there is a lock.
    pub(super) fn save_identity(
        &self,
        identity: &NodeIdentity,
        lock: Option<&NodeLock>,
    ) -> Result<(), ClusterError> {
        Ok(self.identity().save(identity, seal(lock))?)
    }

    /// Forgets the manager's log, for a node that is none any more.
    pub(super) fn forget_manager(&self) -> Result<(), ClusterError> {
        remove(&self.manager())
    }

    /// Forgets everything; the certificate first, so that half of this is no membership either.
    pub(super) fn forget(&self) -> Result<(), ClusterError> {
        self.identity().clear()?;
        remove(&self.directory)
    }
}

fn seal(lock: Option<&NodeLock>) -> Option<&dyn KeySeal> {
    lock.map(|lock| lock as _)
}

fn remove(path: &Path) -> Result<(), ClusterError> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(at(path)(source)),
        _ => Ok(()),
    }
}

/// Attaches the file to an error.
pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> ClusterError {
    let path = path.to_owned();
    move |source| ClusterError::File { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership() -> Membership {
        Membership {
            listen: "0.0.0.0:2377".parse().expect("an address"),
            advertise: "192.0.2.2:2377".parse().expect("an address"),
            data_path: "192.0.2.2".parse().expect("an address"),
            is_own_address: false,
            managers: vec!["192.0.2.1:2377".to_owned()],
        }
    }

    fn addresses(hosts: &[u8]) -> Vec<String> {
        let address = |host: &u8| format!("192.0.2.{host}:2377");
        hosts.iter().map(address).collect()
    }

    #[test]
    fn other_managers_are_remembered_when_they_change() {
        let mut membership = membership();
        assert!(!membership.learn(&[]), "nobody named is no news");
        assert!(!membership.learn(&addresses(&[1])));
        assert!(!membership.learn(&addresses(&[2, 1])), "the node itself");
        assert!(membership.learn(&addresses(&[3, 1, 2])));
        assert_eq!(membership.managers, addresses(&[3, 1]));
        assert!(!membership.learn(&addresses(&[1, 3])), "another leader");
        assert!(membership.learn(&addresses(&[3])));
        assert_eq!(membership.managers, addresses(&[3]));
    }

    #[test]
    fn a_node_that_has_no_certificate_is_in_no_cluster() {
        let directory = tempfile::tempdir().expect("a directory");
        let files = MembershipFiles::new(directory.path().join("swarm"));
        let is_nothing = || matches!(files.load(None), Ok(Stored::Nothing));
        assert!(is_nothing());
        files.save(&membership()).expect("saved");
        let mode = |path: &Path| {
            let found = fs::metadata(path).expect("it is there").permissions();
            found.mode() & 0o777
        };
        let swarm = directory.path().join("swarm");
        assert_eq!(mode(&swarm), 0o700);
        assert_eq!(mode(&swarm.join("membership.json")), 0o600);
        // One that an earlier version made is closed when it is read.
        fs::set_permissions(&swarm, Permissions::from_mode(0o755)).expect("it is ours");
        assert!(is_nothing());
        assert_eq!(mode(&swarm), 0o700);
        files.forget_manager().expect("there is none");
        files.forget().expect("forgotten");
        files.forget().expect("forgotten again");
        assert!(!directory.path().join("swarm").exists());
    }
}
