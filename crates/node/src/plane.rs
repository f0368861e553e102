//! The cluster's networks on this node: overlay carries the packets, dns answers for the names.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use shoal_api::{
    NodeId, TaskId,
    network::{LocalNamespaces, NetworkView},
};
use shoal_dns::{Dns, Records};
use shoal_overlay::Plane;
use shoal_worker::ports::{NamePlane, NetworkPlane, PlaneError};

/// What the plane was last told.
#[derive(Debug, Default)]
struct Wanted {
    me: Option<NodeId>,
    view: NetworkView,
    local: LocalNamespaces,
}

/// The one writer of overlay's kernel state and of the published names.
#[derive(Debug)]
pub struct ClusterPlane {
    /// `None` on a kernel that cannot carry overlay networks; then there is no cluster to have any.
    overlay: Option<Plane>,
    dns: Arc<Dns>,
    /// Held while converging, so that two callers never work at once and the later one sees the newer wish.
    turn: tokio::sync::Mutex<()>,
    wanted: Mutex<Wanted>,
    names: Mutex<Names>,
}

/// Names of both kinds of networks; what is published is always both.
#[derive(Debug, Default)]
struct Names {
    cluster: Records,
    local: Records,
}

impl ClusterPlane {
    /// A plane that carries nothing yet.
    pub fn new(overlay: Option<Plane>, dns: Arc<Dns>) -> Self {
        Self {
            overlay,
            dns,
            turn: tokio::sync::Mutex::default(),
            wanted: Mutex::default(),
            names: Mutex::default(),
        }
    }

    fn wanted(&self) -> std::sync::MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says who this node is in its cluster.
    pub fn set_identity(&self, me: NodeId) {
        self.wanted().me = Some(me);
    }

    /// The view that was last received.
    pub fn view(&self) -> NetworkView {
        self.wanted().view.clone()
    }

    /// Connects a task's namespace to the networks that the view names for it.
    pub async fn attach(
        &self,
        task: TaskId,
        netns: PathBuf,
    ) -> Result<(), Vec<shoal_overlay::PlaneError>> {
        self.wanted().local.insert(task, netns);
        self.bring_about().await
    }

    /// Takes a task's namespace from all networks.
    pub async fn detach(&self, task: &TaskId) -> Result<(), Vec<shoal_overlay::PlaneError>> {
        if self.wanted().local.remove(task).is_none() {
            return Ok(());
        }
        self.bring_about().await
    }

    /// Namespaces that outlived an earlier daemon. Nothing is converged: the next view does that.
    pub fn adopt(&self, task: TaskId, netns: &Path) {
        self.wanted().local.insert(task, netns.to_owned());
    }

    /// Brings the kernel to the latest wish.
    async fn bring_about(&self) -> Result<(), Vec<shoal_overlay::PlaneError>> {
        let _turn = self.turn.lock().await;
        let (me, view, local) = {
            let wanted = self.wanted();
            let Some(me) = wanted.me.clone() else {
                return Ok(());
            };
            (me, wanted.view.clone(), wanted.local.clone())
        };
        match &self.overlay {
            Some(overlay) => overlay.converge(&view, &me, &local).await,
            None => Ok(()),
        }
    }

    /// Forgets the cluster and takes all of its networks from the kernel.
    pub async fn leave(&self) -> Result<(), Vec<shoal_overlay::PlaneError>> {
        let _turn = self.turn.lock().await;
        *self.wanted() = Wanted::default();
        self.set_names(|names| names.cluster = Records::default());
        match &self.overlay {
            Some(overlay) => overlay.teardown_all().await,
            None => Ok(()),
        }
    }

    fn set_names(&self, change: impl FnOnce(&mut Names)) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut names);
        self.dns
            .publish(Arc::new(names.cluster.merged(&names.local)));
    }

    /// Replaces the names of the networks that only this host has.
    pub fn publish_local(&self, records: Records) {
        self.set_names(|names| names.local = records);
    }
}

#[async_trait]
impl NetworkPlane for ClusterPlane {
    async fn converge(&self, want: &NetworkView) -> Result<(), Vec<PlaneError>> {
        self.wanted().view = want.clone();
        let done = self.bring_about().await;
        done.map_err(|errors| {
            errors
                .into_iter()
                .map(|error| PlaneError {
                    what: "the cluster's networks".to_owned(),
                    source: error.into(),
                })
                .collect()
        })
    }
}

impl NamePlane for ClusterPlane {
    fn publish(&self, want: &NetworkView) {
        self.set_names(|names| names.cluster = Records::from_view(want));
    }
}
