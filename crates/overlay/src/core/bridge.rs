//! Bridge networks of this host: what docker calls `bridge`, and user-defined networks of that driver.

mod rules;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use shoal_api::network::Protocol;

use super::{
    naming::{self, Mac},
    observed::ContainerFacts,
    state::{
        BRIDGE_PROTOCOL, Family, KernelState, Link, LinkKind, MAIN_TABLE, RULE_PRIORITY, Route,
        Rule, Space, SpaceState, VethPeer,
    },
};

/// Set in the numbers of tables for answers, so that none is one of the kernel's own below 256.
const ANSWERS_TABLE_BIT: u32 = 1 << 30;

/// A bridge network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeSpec {
    /// Id of the network.
    pub id: String,
    /// Name of the bridge interface, at most 15 characters.
    pub ifname: String,
    /// IPv4, if the network has it.
    #[serde(flatten)]
    pub ipv4: Option<Ipv4Place>,
    /// Whether it has no way out (`--internal`).
    pub internal: bool,
    /// MTU in bytes; `None` for the kernel's default.
    pub mtu: Option<u32>,
    /// Whether its containers may talk to one another (`enable_icc`).
    pub icc: bool,
    /// Whether its containers leave under the host's address (`enable_ip_masquerade`).
    pub masquerade: bool,
    /// IPv6, if the network has it.
    #[serde(default)]
    pub ipv6: Option<Ipv6Place>,
}

/// IPv4 of a bridge network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv4Place {
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// The host's address in it.
    pub gateway: Ipv4Addr,
}

/// IPv6 of a bridge network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv6Place {
    /// Its subnet.
    pub subnet: Ipv6Net,
    /// The host's address in it.
    pub gateway: Ipv6Addr,
}

impl BridgeSpec {
    /// Subnet and gateway in a family.
    pub fn place(&self, family: Family) -> Option<(IpNet, IpAddr)> {
        match family {
            Family::V4 => self
                .ipv4
                .map(|place| (place.subnet.into(), place.gateway.into())),
            Family::V6 => self
                .ipv6
                .map(|place| (place.subnet.into(), place.gateway.into())),
        }
    }
}

/// A container's place in a bridge network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Id of the network.
    pub network: String,
    /// Address in its IPv4 subnet, if it has one.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
    /// Ethernet address; `None` for the one derived from the first address.
    pub mac: Option<[u8; 6]>,
    /// Name of the interface inside the container.
    pub ifname: String,
    /// Address in its IPv6 subnet, if it has one.
    #[serde(default)]
    pub ipv6: Option<Ipv6Addr>,
    /// Further addresses, which hold on the link alone.
    #[serde(default)]
    pub link_local: Vec<IpAddr>,
}

impl Attachment {
    /// Its address in a family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.address.map(Into::into),
            Family::V6 => self.ipv6.map(Into::into),
        }
    }

    /// Its addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        Family::ALL
            .into_iter()
            .filter_map(|family| self.address(family))
    }

    /// Its Ethernet address.
    pub fn mac(&self) -> Mac {
        let own = |address: IpAddr| naming::mac_of(address);
        let derived = || self.addresses().next().map_or(Mac([0x02; 6]), own);
        self.mac.map_or_else(derived, Mac)
    }
}

/// A port of this host that leads to a port of a container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Address of the host, 0.0.0.0 or :: for all.
    pub host_ip: IpAddr,
    /// Port of the host.
    pub host_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Address of the container, of the same family.
    pub address: IpAddr,
    /// Port of the container.
    pub port: u16,
}

/// All bridge networks of this host with what hangs on them; the node keeps it across restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeView {
    /// Networks by id.
    pub networks: BTreeMap<String, BridgeSpec>,
    /// Attachments by container, the first of which is its way out.
    pub attachments: BTreeMap<String, Vec<Attachment>>,
    /// Published ports by container.
    pub published: BTreeMap<String, Vec<PublishedPort>>,
}

impl BridgeView {
    /// The container that has published this port, or one that it would be confused with.
    pub fn holder(&self, host_ip: IpAddr, host_port: u16, protocol: Protocol) -> Option<&str> {
        let same = |port: &PublishedPort| {
            port.host_port == host_port
                && port.protocol == protocol
                && port.host_ip.is_ipv4() == host_ip.is_ipv4()
                && (port.host_ip == host_ip
                    || port.host_ip.is_unspecified()
                    || host_ip.is_unspecified())
        };
        self.published
            .iter()
            .find(|(_, ports)| ports.iter().any(same))
            .map(|(container, _)| container.as_str())
    }
}

/// Name of the host's end of an attachment.
pub fn port_name(prefix: &str, container: &str, network: &str) -> String {
    format!(
        "{prefix}v{:08x}",
        naming::hash32(&format!("{container}/{network}"))
    )
}

/// Name of the table of bridge networks.
pub fn table_name(prefix: &str) -> String {
    format!("{prefix}_bridge")
}

/// Returns what the kernel should hold for the bridges and, inside containers, for those among `found`.
pub fn desired(
    view: &BridgeView,
    found: &BTreeMap<String, ContainerFacts>,
    prefix: &str,
) -> KernelState {
    let mut host = SpaceState::default();
    let mut containers: BTreeMap<Space, SpaceState> = BTreeMap::new();
    for spec in view.networks.values() {
        let bridge = &spec.ifname;
        let gateways = Family::ALL
            .into_iter()
            .filter_map(|family| spec.place(family));
        let mac = gateways.map(|(_, gateway)| naming::mac_of(gateway)).next();
        let link = Link {
            kind: LinkKind::Bridge,
            mac,
            mtu: spec.mtu,
            master: None,
            isolated: false,
            hairpin: false,
        };
        host.links.insert(bridge.clone(), link);
        for family in Family::ALL {
            if let Some((subnet, gateway)) = spec.place(family) {
                let net = IpNet::new_assert(gateway, subnet.prefix_len());
                host.objects.addresses.insert((bridge.clone(), net));
            }
        }
        let settings = &mut host.objects.settings;
        settings.insert("ipv4/ip_forward".to_owned(), "1".to_owned());
        settings.insert(format!("ipv4/conf/{bridge}/route_localnet"), "1".to_owned());
        // A container is no router of the host's.
        settings.insert(naming::listens_to_routers(bridge), "0".to_owned());
        if spec.ipv6.is_some() {
            // A host may have it off for what has no address yet.
            settings.insert(format!("ipv6/conf/{bridge}/disable_ipv6"), "0".to_owned());
            settings.insert(naming::FORWARDING6.to_owned(), "1".to_owned());
        }
    }
    for (container, attachments) in &view.attachments {
        let space = Space::Container(container.clone());
        let mut inside = SpaceState::default();
        let networks = attachments
            .iter()
            .filter_map(|a| Some((a, view.networks.get(&a.network)?)));
        let mut way_out = Family::ALL.map(|family| {
            let facts = found.get(container);
            facts.is_none_or(|facts| !facts.foreign_default.contains(&family))
        });
        for (attachment, spec) in networks {
            let peer = VethPeer {
                space: space.clone(),
                name: attachment.ifname.clone(),
                mac: attachment.mac(),
                mtu: spec.mtu,
                ipv6: attachment.ipv6.is_some(),
            };
            let link = Link {
                kind: LinkKind::Veth { peer },
                mac: None,
                mtu: spec.mtu,
                master: Some(spec.ifname.clone()),
                isolated: !spec.icc,
                hairpin: true,
            };
            host.links
                .insert(port_name(prefix, container, &attachment.network), link);
            for address in &attachment.link_local {
                let net = match address {
                    IpAddr::V4(v4) => Ipv4Net::new_assert(*v4, 16).into(),
                    IpAddr::V6(v6) => Ipv6Net::new_assert(*v6, 64).into(),
                };
                let name = attachment.ifname.clone();
                inside.objects.addresses.insert((name, net));
            }
            for (family, way_out) in Family::ALL.into_iter().zip(&mut way_out) {
                inside_family(&mut inside, attachment, spec, family, way_out);
            }
        }
        if found.contains_key(container) {
            containers.insert(space, inside);
        }
    }
    for family in Family::ALL {
        let mut networks = view.networks.values();
        if networks.any(|spec| spec.place(family).is_some()) {
            let table = rules::table(view, &table_name(prefix), family);
            host.tables
                .insert((table.family, table.name.clone()), table);
        }
    }
    let spaces = containers
        .into_iter()
        .chain([(Space::Host, host)])
        .collect();
    KernelState { spaces }
}

/// The container's side of an attachment in one family; `way_out` is whether it still needs one.
fn inside_family(
    inside: &mut SpaceState,
    attachment: &Attachment,
    spec: &BridgeSpec,
    family: Family,
    way_out: &mut bool,
) {
    let (Some(address), Some((subnet, gateway))) = (attachment.address(family), spec.place(family))
    else {
        return;
    };
    let objects = &mut inside.objects;
    let net = IpNet::new_assert(address, subnet.prefix_len());
    objects.addresses.insert((attachment.ifname.clone(), net));
    if spec.internal {
        return;
    }
    let main = std::mem::take(way_out);
    let table = if main {
        MAIN_TABLE
    } else {
        naming::hash32(&attachment.network) | ANSWERS_TABLE_BIT
    };
    let everything = match family {
        Family::V4 => Ipv4Net::default().into(),
        Family::V6 => Ipv6Net::default().into(),
    };
    objects.routes.insert(Route {
        table,
        via: Some(gateway),
        protocol: BRIDGE_PROTOCOL,
        ..Route::on(&attachment.ifname, everything)
    });
    if !main {
        // What was asked by way of this network is answered by way of it, wherever the way out is.
        objects.rules.insert(Rule {
            family,
            from: Some(address.into()),
            mark: None,
            source_port: None,
            suppressed: None,
            table,
            priority: RULE_PRIORITY,
            protocol: BRIDGE_PROTOCOL,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_for_all_addresses_conflicts_with_one_for_any() {
        let port = |ip: [u8; 4]| PublishedPort {
            host_ip: ip.into(),
            host_port: 80,
            protocol: Protocol::Tcp,
            address: [172, 17, 0, 2].into(),
            port: 80,
        };
        let view = |ip| BridgeView {
            published: [("c".to_owned(), vec![port(ip)])].into(),
            ..BridgeView::default()
        };
        let holder = |view: BridgeView, ip: [u8; 4], n| {
            view.holder(ip.into(), n, Protocol::Tcp).map(str::to_owned)
        };
        assert_eq!(
            holder(view([0; 4]), [127, 0, 0, 1], 80).as_deref(),
            Some("c")
        );
        assert_eq!(
            holder(view([127, 0, 0, 1]), [0; 4], 80).as_deref(),
            Some("c")
        );
        assert_eq!(holder(view([127, 0, 0, 1]), [192, 0, 2, 1], 80), None);
        assert_eq!(holder(view([0; 4]), [0; 4], 81), None);
        let v4 = view([0; 4]);
        assert_eq!(
            v4.holder(Ipv6Addr::UNSPECIFIED.into(), 80, Protocol::Tcp),
            None,
            "families have ports of their own"
        );
    }
}
