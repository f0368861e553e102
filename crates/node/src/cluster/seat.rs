//! A membership in force: what of it can change while it lasts, and the steps that change it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shoal_ca::{ClientConfig, NodeIdentity, Role, RootCertificate, UnlockKey, client_config};
use shoal_manager::{Begin, Manager, ManagerConfig, NodeLock, RaftConfig, renew_identity};
use tokio::sync::watch;

use super::{
    ClusterError,
    membership::{Membership, MembershipFiles, at},
};

/// A membership in force. Steps are taken one at a time: by whoever begins it, then by its upkeep alone.
pub(super) struct Seat {
    files: MembershipFiles,
    /// Feeds the agent with TLS settings.
    tls: watch::Sender<Arc<ClientConfig>>,
    /// How its managers agree.
    raft: RaftConfig,
    held: Mutex<Held>,
}

struct Held {
    membership: Membership,
    identity: Arc<NodeIdentity>,
    manager: Option<Arc<Manager>>,
    /// What seals this manager's keys, and under which unlock key that is kept.
    lock: Option<Lock>,
    trouble: Option<String>,
}

/// A lock in force.
#[derive(Clone)]
pub(super) struct Lock {
    pub(super) key: UnlockKey,
    pub(super) lock: NodeLock,
    /// Whether everything is sealed by it and nothing by an older one.
    pub(super) is_settled: bool,
}

impl Seat {
    /// A seat as the certificate names it, without a manager yet.
    pub(super) fn new(
        files: MembershipFiles,
        identity: NodeIdentity,
        membership: Membership,
        lock: Option<Lock>,
        raft: RaftConfig,
    ) -> Result<Self, ClusterError> {
        let tls = client_config(identity.root(), Some(&identity))?;
        Ok(Self {
            files,
            tls: watch::Sender::new(tls),
            raft,
            held: Mutex::new(Held {
                membership,
                identity: Arc::new(identity),
                manager: None,
                lock,
                trouble: None,
            }),
        })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The TLS settings, now and after each renewal.
    pub(super) fn tls(&self) -> watch::Receiver<Arc<ClientConfig>> {
        self.tls.subscribe()
    }

    /// Who the node is.
    pub(super) fn identity(&self) -> Arc<NodeIdentity> {
        Arc::clone(&self.held().identity)
    }

    /// Where it lives.
    pub(super) fn membership(&self) -> Membership {
        self.held().membership.clone()
    }

    /// Its manager, if it runs one.
    pub(super) fn manager(&self) -> Option<Arc<Manager>> {
        self.held().manager.clone()
    }

    /// What seals its keys, if anything does.
    pub(super) fn lock(&self) -> Option<Lock> {
        self.held().lock.clone()
    }

    /// What its upkeep last failed at.
    pub(super) fn trouble(&self) -> Option<String> {
        self.held().trouble.clone()
    }

    /// Says what upkeep fails at, or that it does no more.
    pub(super) fn set_trouble(&self, trouble: Option<String>) {
        self.held().trouble = trouble;
    }

    /// Remembers which managers there are, if that is news.
    pub(super) fn learn(&self, managers: &[String]) -> Result<(), ClusterError> {
        let membership = {
            let mut held = self.held();
            if !held.membership.learn(managers) {
                return Ok(());
            }
            held.membership.clone()
        };
        self.files.save(&membership)
    }

    /// Gets the next certificate, with the role that the cluster gives the node now.
    pub(super) async fn renew(&self, managers: &[String]) -> Result<(), ClusterError> {
        let identity = renew_identity(managers, &self.identity()).await?;
        let role = identity.peer().role;
        self.take_up(identity)?;
        tracing::info!(%role, "renewed the node's certificate");
        Ok(())
    }

    /// Trusts another root from now on, under which the node's certificate is valid as well.
    pub(super) fn trust(&self, root_pem: &str) -> Result<(), ClusterError> {
        let root = RootCertificate::from_pem(root_pem)?;
        self.take_up(self.identity().under_root(root)?)?;
        tracing::info!("the cluster has a new root certificate");
        Ok(())
    }

    fn take_up(&self, identity: NodeIdentity) -> Result<(), ClusterError> {
        let old = self.identity();
        // A worker knows no unlock key, so nothing of it is sealed.
        let lock = self.held().lock.clone();
        let lock = lock.filter(|_| identity.peer().role == Role::Manager);
        self.files
            .save_identity(&identity, lock.as_ref().map(|lock| &lock.lock))?;
        let tls = client_config(identity.root(), Some(&identity))?;
        let manager = {
            let mut held = self.held();
            held.identity = Arc::new(identity.clone());
            held.manager.clone()
        };
        self.tls.send_replace(tls);
        // A certificate that names no manager is of no use to one: it serves with the old one until it is stopped.
        match manager {
            Some(manager) if identity.peer().role == old.peer().role => {
                Ok(manager.set_identity(identity)?)
            }
            _ => Ok(()),
        }
    }

    fn has_log(&self) -> Result<bool, ClusterError> {
        let lock = self.held().lock.clone();
        let lock = lock.as_ref().map(|lock| &lock.lock);
        Ok(Manager::has_log(
            &self.files.manager(),
            &self.identity(),
            lock,
        )?)
    }

    /// Starts the manager that was here before, if there was one.
    pub(super) async fn restart_manager(&self) -> Result<(), ClusterError> {
        if self.has_log()? {
            self.start_manager(Begin::Restart).await?;
        }
        Ok(())
    }

    /// Starts the manager: with the log that it has, else as told.
    pub(super) async fn start_manager(&self, begin: Begin) -> Result<(), ClusterError> {
        let membership = self.membership();
        let config = ManagerConfig {
            directory: self.files.manager(),
            listen: membership.listen,
            advertise: membership.advertise.to_string(),
            lock: self.held().lock.clone().map(|lock| lock.lock),
            raft: self.raft.clone(),
        };
        std::fs::create_dir_all(&config.directory).map_err(at(&config.directory))?;
        let begin = if matches!(begin, Begin::Join { .. }) && self.has_log()? {
            Begin::Restart
        } else {
            begin
        };
        let identity = NodeIdentity::clone(&self.identity());
        // The state of a cluster, which every write looks through.
        shoal_engine::io::memory::grow();
        let manager = Manager::start(config, identity, begin).await?;
        let manager = Arc::new(manager);
        self.held().manager = Some(Arc::clone(&manager));
        Ok(manager.finish_rekeying().await?)
    }

    /// Stops the manager and leaves its log, for the next daemon.
    pub(super) async fn stop_manager(&self) {
        let manager = self.held().manager.take();
        if let Some(manager) = manager {
            manager.stop().await;
        }
    }

    /// Stops the manager for good: others have taken it out of their group.
    pub(super) async fn dismiss_manager(&self) -> Result<(), ClusterError> {
        self.stop_manager().await;
        self.files.forget_manager()?;
        self.files.forget_lock()?;
        self.held().lock = None;
        Ok(())
    }

    /// Whether this manager's keys may be sealed otherwise than the cluster wants it.
    pub(super) fn lock_differs(&self) -> bool {
        let held = self.held();
        let Some(manager) = &held.manager else {
            return false;
        };
        let wanted = manager.unlock_key();
        let wanted = wanted.borrow();
        match &held.lock {
            Some(lock) => !lock.is_settled || wanted.as_ref() != Some(&lock.key),
            None => wanted.is_some(),
        }
    }

    /// Seals this manager's keys as the cluster wants it, or unseals them. Every step can be the last before a crash: the
    /// lock file opens whatever is sealed at that moment.
    pub(super) async fn settle_lock(&self) -> Result<(), ClusterError> {
        let Some(manager) = self.manager() else {
            return Ok(());
        };
        // What this manager happens to have heard of may be older than the key that opened it.
        let state = manager.latest().await.map_err(ClusterError::Settings)?;
        let wanted = state.cluster().map(|cluster| cluster.unlock_key.as_slice());
        let wanted = wanted.and_then(UnlockKey::from_bytes);
        let held = self.held().lock.clone();
        let Some(wanted) = wanted else {
            self.files.save_identity(&self.identity(), None)?;
            manager.reseal(None).await?;
            self.files.forget_lock()?;
            self.held().lock = None;
            return Ok(());
        };
        let path = self.files.manager();
        let next = match held {
            Some(lock) if lock.key == wanted => lock.lock,
            Some(lock) => lock.lock.succeed(),
            None => NodeLock::generate(),
        };
        let save = |lock: &NodeLock| self.files.lock().save(lock, &wanted).map_err(at(&path));
        save(&next)?;
        let mut lock = Lock {
            key: wanted.clone(),
            lock: next,
            is_settled: false,
        };
        self.held().lock = Some(lock.clone());
        self.files
            .save_identity(&self.identity(), Some(&lock.lock))?;
        lock.lock = lock.lock.alone();
        manager.reseal(Some(lock.lock.clone())).await?;
        save(&lock.lock)?;
        lock.is_settled = true;
        self.held().lock = Some(lock);
        tracing::info!("this manager's keys are sealed under the swarm's unlock key");
        Ok(())
    }
}
