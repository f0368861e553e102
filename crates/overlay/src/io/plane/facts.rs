//! What of the found is of interest, and what is whose.

use std::{collections::BTreeMap, net::IpAddr};

use shoal_api::{NodeId, network::NetworkView};

use super::{UNDERLAY_MTU_DEFAULT, Worker};
use crate::core::{
    naming,
    observed::{ContainerFacts, Facts, Observed, ObservedSpace},
    state::Space,
};

impl Worker {
    pub(super) fn facts(
        &self,
        view: &NetworkView,
        me: &NodeId,
        read: &BTreeMap<Space, (u64, ObservedSpace)>,
    ) -> Facts {
        let underlay = view.peers.get(me).map(|peer| peer.underlay);
        let host = read.get(&Space::Host).map(|(_, host)| host);
        let measured =
            host.and_then(|host| Some(host.links.get(underlay_link(host, underlay?)?)?.mtu));
        let containers = read.iter().filter_map(|(space, (_, found))| match space {
            Space::Container(id) => Some((id.clone(), ContainerFacts::from(found))),
            Space::Host | Space::Router(_) => None,
        });
        let known = host.zip(underlay);
        Facts {
            underlay_elsewhere: known.is_some_and(|(host, at)| underlay_link(host, at).is_none()),
            underlay_mtu: self
                .config
                .underlay_mtu
                .or(measured)
                .unwrap_or(UNDERLAY_MTU_DEFAULT),
            keys: self.own_keys(),
            containers: containers.collect(),
            further: BTreeMap::new(),
        }
    }

    /// Forgets what others have in the host's namespace.
    pub(super) fn only_ours(&self, have: &mut Observed) {
        let Some(host) = have.spaces.get_mut(&Space::Host) else {
            return;
        };
        let (bridge, port) = (&self.config.gwbridge, format!("{}u", self.config.prefix));
        let is_port = |name: &String| name.strip_prefix(&port).is_some_and(|rest| rest.len() == 8);
        let tunnel = naming::tunnel_link(&self.config.prefix);
        let loopback = naming::loopback6_link(&self.config.prefix);
        let ours = |name: &String| [bridge, &tunnel, &loopback].contains(&name);
        host.links.retain(|name, _| ours(name) || is_port(name));
        host.objects.addresses.retain(|(name, _)| ours(name));
        host.objects.routes.retain(|route| ours(&route.link));
        host.objects.rules.clear();
        host.objects
            .neighbours
            .retain(|(name, _), _| [bridge, &loopback].contains(&name));
        host.objects.fdb.clear();
    }
}

/// The interface that has the underlay address.
pub(super) fn underlay_link(host: &ObservedSpace, underlay: IpAddr) -> Option<&String> {
    let mut addresses = host.objects.addresses.iter();
    let (name, _) = addresses.find(|(_, net)| net.addr() == underlay)?;
    Some(name)
}
