//! The cluster's networks on this node: overlay carries the packets, dns answers for the names.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use shoal_api::{
    NodeId, TaskId,
    doctor::NodeLook,
    network::{LocalNamespaces, NetworkView},
};
use shoal_dns::{Dns, Records};
use shoal_overlay::{KeyState, Plane};
use shoal_worker::ports::{NamePlane, NetworkPlane, PlaneError};
use tokio::sync::{Notify, watch};

/// Least time between two repairs: another program that keeps taking away what we make must not keep us busy.
pub(crate) const REPAIR_PAUSE: Duration = Duration::from_millis(200);
/// Pause after a repair that did not succeed; the reason may be what nobody tells of.
pub(crate) const REPAIR_RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What the plane was last told.
#[derive(Debug, Clone, Default)]
struct Wanted {
    me: Option<NodeId>,
    view: Arc<NetworkView>,
    local: LocalNamespaces,
    /// Counts what was told.
    number: u64,
}

/// The one writer of overlay's kernel state and of the published names.
#[derive(Debug)]
pub struct ClusterPlane {
    /// `None` on a kernel that cannot carry overlay networks; then there is no cluster to have any.
    overlay: Option<Plane>,
    dns: Arc<Dns>,
    /// Held while converging, so that two callers never work at once and the later one sees the newer wish. Number of the
    /// newest wish that is in force.
    turn: tokio::sync::Mutex<u64>,
    wanted: Mutex<Wanted>,
    names: Mutex<Names>,
    /// Told of every new view.
    viewed: Notify,
}

/// Names of both kinds of networks; what is published is always both.
#[derive(Debug, Default)]
struct Names {
    cluster: Records,
    /// The view of which `cluster` is.
    view: Arc<NetworkView>,
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
            viewed: Notify::new(),
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
    pub fn view(&self) -> Arc<NetworkView> {
        Arc::clone(&self.wanted().view)
    }

    /// Waits until a view is there of which `answer` makes something.
    pub async fn wait_for<T>(&self, answer: impl Fn(&NetworkView) -> Option<T>) -> T {
        loop {
            let viewed = self.viewed.notified();
            tokio::pin!(viewed);
            viewed.as_mut().enable();
            let found = answer(&self.wanted().view);
            if let Some(found) = found {
                return found;
            }
            viewed.await;
        }
    }

    /// What distributes the connections of services here.
    pub fn lb_driver(&self) -> &'static str {
        self.overlay.as_ref().map_or("none", Plane::lb_driver)
    }

    /// The keys of this node's tunnel for encrypted networks, to be watched; `None` on a kernel that carries no networks.
    pub fn tunnel_keys(&self) -> Option<watch::Receiver<KeyState>> {
        self.overlay.as_ref().map(Plane::keys)
    }

    /// Who this node is in its cluster.
    pub fn identity(&self) -> Option<NodeId> {
        self.wanted().me.clone()
    }

    /// Tries the ways to all other nodes, which do so at the same time with the same token.
    ///
    /// # Errors
    /// This node is in no cluster, or carries no networks.
    pub async fn look_at_network(&self, token: &str) -> std::io::Result<NodeLook> {
        let asked_at = now();
        let none = |what| std::io::Error::new(std::io::ErrorKind::NotFound, what);
        let overlay = self.overlay.as_ref();
        let overlay = overlay.ok_or_else(|| none("this kernel carries no cluster networks"))?;
        let (me, Wanted { view, .. }) = self
            .latest()
            .ok_or_else(|| none("this node is in no cluster"))?;
        let own = view.peers.get(&me).map(|peer| peer.underlay);
        let underlay = own.ok_or_else(|| none("this node has no underlay address yet"))?;
        let found = overlay.look(&view, &me, token).await?;
        Ok(NodeLook {
            underlay,
            underlay_mtu: found.underlay_mtu,
            asked_at,
            answered_at: now(),
            kernel: overlay.features(),
            heard: found.heard,
            path_mtu: found.path_mtu,
            datagrams: found.datagrams,
        })
    }

    /// Connects a task's namespace to the networks that the view names for it.
    pub async fn attach(
        &self,
        task: TaskId,
        netns: PathBuf,
    ) -> Result<(), Vec<shoal_overlay::PlaneError>> {
        self.bring_about(|wanted| drop(wanted.local.insert(task, netns)))
            .await
    }

    /// Takes a task's namespace from all networks.
    pub async fn detach(&self, task: &TaskId) -> Result<(), Vec<shoal_overlay::PlaneError>> {
        if !self.wanted().local.contains_key(task) {
            return Ok(());
        }
        self.bring_about(|wanted| drop(wanted.local.remove(task)))
            .await
    }

    /// Namespaces that outlived an earlier daemon. Nothing is converged: the next view does that.
    pub fn adopt(&self, task: TaskId, netns: &Path) {
        self.wanted().local.insert(task, netns.to_owned());
    }

    /// Brings the kernel to a wish, and to all others that there are by then.
    ///
    /// Who gets the turn when somebody before has seen to it has nothing left to do: many callers at once need two rounds,
    /// not one each.
    async fn bring_about(
        &self,
        wish: impl FnOnce(&mut Wanted),
    ) -> Result<(), Vec<shoal_overlay::PlaneError>> {
        let wish = {
            let mut wanted = self.wanted();
            wish(&mut wanted);
            wanted.number += 1;
            wanted.number
        };
        let mut in_force = self.turn.lock().await;
        if *in_force < wish
            && let (Some(overlay), Some((me, wanted))) = (&self.overlay, self.latest())
        {
            let Wanted { view, local, .. } = &wanted;
            overlay.converge(view, &me, local).await?;
            *in_force = wanted.number;
        }
        Ok(())
    }

    fn latest(&self) -> Option<(NodeId, Wanted)> {
        let wanted = self.wanted();
        Some((wanted.me.clone()?, wanted.clone()))
    }

    /// Repairs what somebody else changes in the kernel, as soon as the kernel tells. Never ends.
    pub async fn keep(&self) {
        let Some(overlay) = &self.overlay else {
            return std::future::pending().await;
        };
        let mut failed = false;
        let mut keys = overlay.keys();
        loop {
            let is_key_due = tokio::select! {
                () = overlay.disturbed() => false,
                () = tokio::time::sleep(REPAIR_RETRY_PAUSE), if failed => false,
                () = due(&mut keys) => true,
            };
            let turn = self.turn.lock().await;
            let (me, Wanted { view, local, .. }) = match self.latest() {
                Some(latest) => latest,
                // A node's key is replaced whether it is in a cluster or not.
                None if is_key_due => (nobody(), Wanted::default()),
                None => continue,
            };
            let repaired = if is_key_due {
                tracing::info!("replacing the key for encrypted networks");
                overlay.turn_keys(&view, &me, &local).await
            } else {
                tracing::info!("repairing the cluster's networks, which somebody has changed");
                overlay.repair(&view, &me, &local).await
            };
            drop(turn);
            failed = repaired.is_err();
            for error in repaired.err().into_iter().flatten() {
                let error = crate::network::chain(&error);
                tracing::error!(error, "a part of the cluster's networks is not repaired");
            }
            tokio::time::sleep(REPAIR_PAUSE).await;
        }
    }

    /// Forgets the cluster and takes all of its networks from the kernel.
    pub async fn leave(&self) -> Result<(), Vec<shoal_overlay::PlaneError>> {
        let _turn = self.turn.lock().await;
        {
            let mut wanted = self.wanted();
            let number = wanted.number + 1;
            *wanted = Wanted {
                number,
                ..Wanted::default()
            };
        }
        self.set_names(|names| {
            names.cluster = Records::default();
            names.view = Arc::default();
        });
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
    async fn converge(&self, want: &Arc<NetworkView>) -> Result<(), Vec<PlaneError>> {
        let done = self
            .bring_about(|wanted| {
                wanted.view = Arc::clone(want);
                self.viewed.notify_waiters();
            })
            .await;
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
    fn publish(&self, want: &Arc<NetworkView>) {
        self.set_names(|names| {
            names.cluster = names.cluster.next(&names.view, want);
            names.view = Arc::clone(want);
        });
    }
}

/// Waits until a step in replacing this node's key is due.
async fn due(keys: &mut watch::Receiver<KeyState>) {
    loop {
        let at = keys.borrow_and_update().due;
        let reached = async {
            match at {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = reached => return,
            changed = keys.changed() => if changed.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

fn nobody() -> NodeId {
    "none".parse().expect("letters are a valid id")
}

/// This host's clock, in nanoseconds of the era.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    })
}
