//! A membership in force: what of it can change while it lasts, and the steps that change it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shoal_ca::{ClientConfig, NodeIdentity, client_config};
use shoal_manager::{Begin, Manager, ManagerConfig, renew_identity};
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
    held: Mutex<Held>,
}

struct Held {
    membership: Membership,
    identity: Arc<NodeIdentity>,
    manager: Option<Arc<Manager>>,
    trouble: Option<String>,
}

impl Seat {
    /// A seat as the certificate names it, without a manager yet.
    pub(super) fn new(
        files: MembershipFiles,
        identity: NodeIdentity,
        membership: Membership,
    ) -> Result<Self, ClusterError> {
        let tls = client_config(identity.root(), Some(&identity))?;
        Ok(Self {
            files,
            tls: watch::Sender::new(tls),
            held: Mutex::new(Held {
                membership,
                identity: Arc::new(identity),
                manager: None,
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
        let old = self.identity();
        let identity = renew_identity(managers, &old).await?;
        self.files.save_identity(&identity)?;
        let tls = client_config(identity.root(), Some(&identity))?;
        tracing::info!(role = %identity.peer().role, "renewed the node's certificate");
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
        Ok(Manager::has_log(&self.files.manager(), &self.identity())?)
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
            raft: Default::default(),
        };
        std::fs::create_dir_all(&config.directory).map_err(at(&config.directory))?;
        let begin = if matches!(begin, Begin::Join { .. }) && self.has_log()? {
            Begin::Restart
        } else {
            begin
        };
        let identity = NodeIdentity::clone(&self.identity());
        let manager = Manager::start(config, identity, begin).await?;
        self.held().manager = Some(Arc::new(manager));
        Ok(())
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
        self.files.forget_manager()
    }
}
