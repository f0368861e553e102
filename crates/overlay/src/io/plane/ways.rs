//! What the kernel has, and whether the ways to other nodes carry packets.

use std::{collections::BTreeMap, io, sync::Arc};

use shoal_api::{NodeId, network::NetworkView};

use super::Plane;
use crate::io::look::{self, Look, Post};

impl Plane {
    /// What of the kernel is there, by name. Without those that are always true there is no plane.
    pub fn features(&self) -> BTreeMap<String, bool> {
        let features = [
            ("VXLAN", true),
            ("nftables", true),
            ("IPv6", self.abilities.ipv6),
            ("conntrack entries", self.abilities.flows),
            ("conntrack zones", self.abilities.zones),
            ("nftables fwd", self.abilities.direct),
            ("IPVS", self.abilities.families.ipvs.is_some()),
            ("WireGuard", self.abilities.families.wireguard.is_some()),
        ];
        features
            .map(|(name, there)| (name.to_owned(), there))
            .into()
    }

    /// Tries the ways to the tunnels of all other nodes, which must do so at the same time with the same token; takes
    /// some seconds.
    ///
    /// # Errors
    /// There is no ingress network yet, or its router cannot be listened in.
    pub async fn look(
        &self,
        view: &Arc<NetworkView>,
        me: &NodeId,
        token: &str,
    ) -> io::Result<Look> {
        let (view, me, token) = (Arc::clone(view), me.clone(), token.to_owned());
        let places = Arc::clone(&self.places);
        let looking = tokio::task::spawn_blocking(move || {
            let (home, handles) = &*places;
            look::look(&Post { home, handles }, &view, &me, &token)
        });
        looking.await.map_err(io::Error::other)?
    }
}
