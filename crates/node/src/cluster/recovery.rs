//! A cluster that goes on with this manager alone, and a node that lives elsewhere than it did.

use std::net::IpAddr;

use shoal_ca::UnlockKey;
use shoal_manager::{Backup, Begin, Manager, NodeLock, read_backup};

use super::{
    ClusterError, ClusterNode, Place, address,
    membership::{Membership, at},
    seat::Lock,
};

impl ClusterNode {
    /// Makes this manager the only one of its cluster, whose others are lost: what it knows is what goes on. Containers do
    /// not notice.
    pub(super) async fn force_new_cluster(&self, place: &Place) -> Result<(), ClusterError> {
        let _changing = self.changing.lock().await;
        if self.is_locked() {
            return Err(ClusterError::Locked);
        }
        let seat = {
            let active = self.active.read().await;
            let active = active.as_ref().ok_or(ClusterError::NotIn)?;
            if !self.files().manager().exists() {
                return Err(ClusterError::NotManager);
            }
            active.seat.clone()
        };
        let mut membership = seat.membership();
        if !place.listen.is_empty() {
            membership.listen = address::listen(&place.listen)?;
        }
        if !place.advertise.is_empty() {
            membership.advertise = address::advertise(&place.advertise, membership.listen, None)?;
        }
        if let Some(data_path) = address::data_path(&place.data_path)? {
            membership.data_path = data_path;
        }
        // Whoever else there was goes by what this one says from now on.
        membership.managers = Vec::new();
        let (identity, lock) = (seat.identity(), seat.lock());
        if let Some(active) = self.active.write().await.take() {
            active.upkeep.stop().await;
            active.agent.stop().await;
            active.seat.stop_manager().await;
        }
        let files = self.files();
        let advertise = membership.advertise.to_string();
        let begun = Manager::begin_anew(
            &files.manager(),
            &identity,
            lock.as_ref().map(|lock| &lock.lock),
            advertise,
        );
        // Also when that failed the node is what it was, and says so.
        if begun.is_ok() {
            files.save(&membership)?;
        }
        let begin = Some(Begin::Restart);
        self.activate(identity.as_ref().clone(), membership, begin, lock)
            .await?;
        tracing::warn!("this manager is the only one of the swarm now");
        Ok(begun?)
    }

    /// Makes this node the only manager of the cluster in a backup.
    pub(super) async fn restore(
        &self,
        place: &Place,
        backup: &[u8],
        unlock_key: &str,
    ) -> Result<(), ClusterError> {
        let _changing = self.changing.lock().await;
        self.require_inactive().await?;
        let key = match unlock_key {
            "" => None,
            text => Some(UnlockKey::parse(text).ok_or(ClusterError::NoUnlockKey)?),
        };
        let Backup {
            anew,
            identity,
            unlock_key,
        } = read_backup(backup, key.as_ref())?;
        let membership = self.membership(place, Vec::new())?;
        let files = self.files();
        let lock = self.make_lock(unlock_key)?;
        files.save(&membership)?;
        files.save_identity(&identity, lock.as_ref().map(|lock| &lock.lock))?;
        let begin = Some(Begin::Anew(Box::new(anew)));
        let begun = self.activate(identity, membership, begin, lock).await;
        self.forget_unless(begun).await
    }

    /// The lock of a manager that begins, where there is an unlock key; kept before anything is sealed by it.
    pub(super) fn make_lock(&self, key: Option<UnlockKey>) -> Result<Option<Lock>, ClusterError> {
        let Some(key) = key else {
            return Ok(None);
        };
        let files = self.files();
        let lock = NodeLock::generate();
        files
            .lock()
            .save(&lock, &key)
            .map_err(at(&files.manager()))?;
        Ok(Some(Lock {
            key,
            lock,
            is_settled: true,
        }))
    }

    /// Notices that the node has another address than when it was last up, which its manager then tells the others.
    ///
    /// An address that no interface has may also be one that others are led from (port forwarding): only where the node
    /// once had it itself is it replaced.
    pub(super) fn settle_address(&self, membership: &mut Membership) -> Result<(), ClusterError> {
        let old = membership.advertise.ip();
        let here = address::own_addresses();
        if !membership.is_own_address || here.contains(&old) || here.is_empty() {
            return Ok(());
        }
        let towards = membership.managers.first().map(String::as_str);
        let now = address::advertise("", membership.listen, towards)?;
        tracing::warn!(%old, new = %now.ip(), "this node has another address than before");
        membership.advertise.set_ip(now.ip());
        if membership.data_path == old {
            membership.data_path = now.ip();
        }
        self.files().save(membership)
    }
}

/// Whether an address is one of this host's own.
pub(super) fn is_own(address: IpAddr) -> bool {
    address::own_addresses().contains(&address)
}
