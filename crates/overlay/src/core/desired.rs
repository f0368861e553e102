//! From the network view to the kernel state of this node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::{IpNet, Ipv4Net};
use shoal_api::{
    NetworkId, NodeId, ServiceId, TaskId,
    network::{NetworkSlice, NetworkView, VXLAN_OVERHEAD},
};

use super::{
    lb,
    naming::{self, UPLINK, VXLAN},
    observed::{ContainerFacts, Facts},
    ruleset,
    state::{
        KernelState, Link, LinkKind, MAIN_TABLE, OVERLAY_PROTOCOL, RULE_PRIORITY, Route, Rule,
        Space, SpaceState, VethPeer,
    },
};

/// Table in a container for what must leave by its ingress interface.
const INGRESS_TABLE: u32 = 4_083;

/// What is set per daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Params {
    /// Start of interface and table names; at most six characters.
    pub prefix: String,
    /// Name of the bridge that joins the routers with the host.
    pub gwbridge: String,
    /// Its subnet; the first address is the host's.
    pub gwbridge_subnet: Ipv4Net,
}

/// Why no state can be computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DesiredError {
    /// The view does not know this node's underlay address.
    #[error("the network view of version {version} has no underlay address for this node, {node}")]
    NotAPeer {
        /// This node.
        node: NodeId,
        /// Version of the view.
        version: u64,
    },
    /// More networks than addresses on the gateway bridge.
    #[error("no address left on the gateway bridge {subnet} for network {network}")]
    GatewayBridgeFull {
        /// Subnet of the bridge.
        subnet: Ipv4Net,
        /// Network that got none.
        network: NetworkId,
    },
}

/// Returns everything of ours that the kernel of node `me` should hold.
///
/// A router namespace stands for ingress and for every network with an endpoint of this node in the view, so that it
/// is there before the container is. Endpoints whose container is not among `facts` get no interface yet.
pub fn desired(
    view: &NetworkView,
    me: &NodeId,
    facts: &Facts,
    params: &Params,
) -> Result<KernelState, DesiredError> {
    let mut state = KernelState::default();
    let carried: Vec<(&NetworkId, &NetworkSlice)> = view
        .networks
        .iter()
        .filter(|(_, slice)| {
            slice.ingress
                || slice
                    .endpoints
                    .values()
                    .any(|endpoint| endpoint.node == *me)
        })
        .collect();
    if carried.is_empty() {
        return Ok(state);
    }
    let underlay = view
        .peers
        .get(me)
        .ok_or_else(|| DesiredError::NotAPeer {
            node: me.clone(),
            version: view.version,
        })?
        .underlay;
    let peers: BTreeMap<&NodeId, IpAddr> = view
        .peers
        .iter()
        .filter(|(node, _)| *node != me)
        .map(|(node, peer)| (node, peer.underlay))
        .collect();
    let cx = Cx {
        view,
        me,
        underlay,
        peers,
        facts,
        params,
    };
    let uplinks = cx.uplink_addresses(&carried)?;
    let mut local: BTreeMap<&TaskId, Vec<(&NetworkId, &NetworkSlice)>> = BTreeMap::new();
    for (id, slice) in &carried {
        state.spaces.insert(
            Space::Router((*id).clone()),
            cx.router(slice, uplinks.get(*id).copied()),
        );
        for task in slice
            .endpoints
            .iter()
            .filter(|(_, endpoint)| endpoint.node == *me)
            .map(|(task, _)| task)
        {
            local.entry(task).or_default().push((id, slice));
        }
    }
    state
        .spaces
        .insert(Space::Host, cx.host(&carried, &uplinks));
    for (task, mut networks) in local {
        let Some(found) = facts.containers.get(task.as_str()) else {
            continue;
        };
        networks.sort_by_key(|(id, slice)| (!slice.ingress, *id));
        cx.container(&mut state, task, &networks, found);
    }
    Ok(state)
}

/// IPv4 backends of a service: its serving endpoints, in the order of their addresses.
fn backends(slice: &NetworkSlice, service: &ServiceId) -> Vec<Ipv4Addr> {
    let serving = slice
        .endpoints
        .values()
        .filter(|e| e.serving && e.service.as_ref() == Some(service));
    let addresses: BTreeSet<Ipv4Addr> = serving
        .filter_map(|e| ipv4(&e.addresses))
        .map(|net| net.addr())
        .collect();
    addresses.into_iter().collect()
}

fn ipv4(addresses: &[IpNet]) -> Option<Ipv4Net> {
    addresses.iter().find_map(|net| {
        if let IpNet::V4(v4) = net {
            Some(*v4)
        } else {
            None
        }
    })
}

fn gateway(slice: &NetworkSlice) -> Option<Ipv4Addr> {
    slice.subnets.iter().find_map(|subnet| {
        if let IpAddr::V4(v4) = subnet.gateway {
            Some(v4)
        } else {
            None
        }
    })
}

fn host_route(address: Ipv4Addr) -> IpNet {
    Ipv4Net::new_assert(address, 32).into()
}

fn default_route() -> IpNet {
    Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0).into()
}

struct Cx<'a> {
    view: &'a NetworkView,
    me: &'a NodeId,
    underlay: IpAddr,
    peers: BTreeMap<&'a NodeId, IpAddr>,
    facts: &'a Facts,
    params: &'a Params,
}

impl Cx<'_> {
    fn bridge_address(&self) -> Ipv4Addr {
        let first = u32::from(self.params.gwbridge_subnet.network()) + 1;
        first.into()
    }

    /// Addresses of the routers on the gateway bridge, by VNI so that they stay when other networks come and go.
    fn uplink_addresses(
        &self,
        carried: &[(&NetworkId, &NetworkSlice)],
    ) -> Result<BTreeMap<NetworkId, Ipv4Addr>, DesiredError> {
        let subnet = self.params.gwbridge_subnet;
        let base = u32::from(subnet.network());
        // Network, host and broadcast addresses are taken.
        let room = (u32::from(subnet.broadcast()) - base).saturating_sub(2);
        let mut outward: Vec<_> = carried
            .iter()
            .filter(|(_, slice)| !slice.internal)
            .collect();
        outward.sort_by_key(|(id, slice)| (slice.vni, *id));
        let mut taken = BTreeSet::new();
        let mut addresses = BTreeMap::new();
        for (id, slice) in outward {
            let offset = (0..room)
                .map(|step| 2 + (slice.vni % room + step) % room)
                .find(|offset| taken.insert(*offset))
                .ok_or_else(|| DesiredError::GatewayBridgeFull {
                    subnet,
                    network: (*id).clone(),
                })?;
            addresses.insert((*id).clone(), Ipv4Addr::from(base + offset));
        }
        Ok(addresses)
    }

    /// Everything of a router namespace but the ports of its local endpoints.
    fn router(&self, slice: &NetworkSlice, uplink: Option<Ipv4Addr>) -> SpaceState {
        let mut router = SpaceState::default();
        let settings = [
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv4/conf/all/accept_redirects", "0"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
        ];
        router
            .objects
            .settings
            .extend(settings.map(|(path, value)| (path.to_owned(), value.to_owned())));
        let vxlan = LinkKind::Vxlan {
            vni: slice.vni,
            port: self.view.data_path_port,
            local: self.underlay,
        };
        router.links.insert(
            VXLAN.to_owned(),
            Link {
                kind: vxlan,
                mac: Some(naming::mac_of(self.underlay)),
                mtu: Some(self.mtu(slice)),
                master: None,
                isolated: false,
                hairpin: false,
            },
        );
        let objects = &mut router.objects;
        let gateway = gateway(slice);
        let vips = slice.services.values().flat_map(|service| &service.vips);
        let vips = vips.filter_map(|vip| {
            if let IpAddr::V4(v4) = vip {
                Some(*v4)
            } else {
                None
            }
        });
        objects.addresses.extend(
            gateway
                .into_iter()
                .chain(vips)
                .map(|own| ("lo".to_owned(), host_route(own))),
        );
        let mut involved = BTreeSet::new();
        for endpoint in slice.endpoints.values() {
            let (Some(peer), Some(address)) =
                (self.peers.get(&endpoint.node), ipv4(&endpoint.addresses))
            else {
                continue;
            };
            involved.insert(*peer);
            objects.routes.insert(Route {
                table: MAIN_TABLE,
                to: host_route(address.addr()),
                via: Some(naming::peer_hop(*peer).into()),
                link: VXLAN.to_owned(),
                protocol: OVERLAY_PROTOCOL,
            });
        }
        if slice.ingress {
            // Every node is a possible entry, with or without endpoints.
            involved.extend(self.peers.values());
            for peer in &involved {
                let mark = naming::peer_mark(*peer);
                let (via, link) = (Some(naming::peer_hop(*peer).into()), VXLAN.to_owned());
                objects.routes.insert(Route {
                    table: mark,
                    to: default_route(),
                    via,
                    link,
                    protocol: OVERLAY_PROTOCOL,
                });
                objects.rules.insert(Rule {
                    from: None,
                    mark: Some(mark),
                    table: mark,
                    priority: RULE_PRIORITY,
                    protocol: OVERLAY_PROTOCOL,
                });
            }
        }
        for peer in &involved {
            let mac = naming::mac_of(*peer);
            objects
                .neighbours
                .insert((VXLAN.to_owned(), naming::peer_hop(*peer).into()), mac);
            objects.fdb.insert((VXLAN.to_owned(), mac), *peer);
        }
        if let Some(uplink) = uplink {
            objects
                .addresses
                .insert((UPLINK.to_owned(), host_route(uplink)));
            let via = Some(self.bridge_address().into());
            objects.routes.insert(Route {
                table: MAIN_TABLE,
                to: default_route(),
                via,
                link: UPLINK.to_owned(),
                protocol: OVERLAY_PROTOCOL,
            });
        }
        self.router_table(&mut router, slice, gateway, &involved);
        router
    }

    fn router_table(
        &self,
        router: &mut SpaceState,
        slice: &NetworkSlice,
        gateway: Option<Ipv4Addr>,
        involved: &BTreeSet<IpAddr>,
    ) {
        let Some(gateway) = gateway else { return };
        let peers: Vec<IpAddr> = involved.iter().copied().collect();
        let local: Vec<Ipv4Addr> = slice
            .endpoints
            .values()
            .filter(|endpoint| endpoint.node == *self.me)
            .filter_map(|endpoint| ipv4(&endpoint.addresses).map(|net| net.addr()))
            .collect();
        let mut table = ruleset::router(
            &self.params.prefix,
            &ruleset::Router {
                ingress: slice.ingress,
                gateway,
                peers: &peers,
                local: &local,
            },
        );
        for (id, service) in &slice.services {
            let backends = backends(slice, id);
            for vip in &service.vips {
                if let IpAddr::V4(vip) = vip {
                    lb::add_vip(&mut table.elements, *vip, &backends);
                }
            }
            for port in service.ports.iter().filter(|_| slice.ingress) {
                lb::add_port(
                    &mut table.elements,
                    port.protocol,
                    port.published,
                    port.target,
                    &backends,
                );
            }
        }
        router
            .tables
            .insert((table.family, table.name.clone()), table);
    }

    fn host(
        &self,
        carried: &[(&NetworkId, &NetworkSlice)],
        uplinks: &BTreeMap<NetworkId, Ipv4Addr>,
    ) -> SpaceState {
        let bridge = &self.params.gwbridge;
        let mut host = SpaceState::default();
        let own = self.bridge_address();
        let mac = Some(naming::mac_of(own.into()));
        let link = Link {
            kind: LinkKind::Bridge,
            mac,
            mtu: None,
            master: None,
            isolated: false,
            hairpin: false,
        };
        host.links.insert(bridge.clone(), link);
        let net = Ipv4Net::new_assert(own, self.params.gwbridge_subnet.prefix_len());
        host.objects.addresses.insert((bridge.clone(), net.into()));
        let settings = &mut host.objects.settings;
        settings.insert("ipv4/ip_forward".to_owned(), "1".to_owned());
        settings.insert(format!("ipv4/conf/{bridge}/route_localnet"), "1".to_owned());
        settings.insert(format!("ipv4/conf/{bridge}/send_redirects"), "0".to_owned());
        for (network, address) in uplinks {
            let peer = VethPeer {
                space: Space::Router(network.clone()),
                name: UPLINK.to_owned(),
                mac: naming::mac_of((*address).into()),
                mtu: None,
            };
            let link = Link {
                kind: LinkKind::Veth { peer },
                mac: None,
                mtu: None,
                master: Some(bridge.clone()),
                isolated: true,
                hairpin: false,
            };
            host.links
                .insert(naming::uplink_port(&self.params.prefix, network), link);
        }
        let mut published = Vec::new();
        for (id, slice) in carried.iter().filter(|(_, slice)| slice.ingress) {
            let Some(router) = uplinks.get(*id) else {
                continue;
            };
            let ports = slice.services.values().flat_map(|service| &service.ports);
            published.extend(ports.map(|port| (port.protocol, port.published, *router)));
        }
        let vnis: Vec<u32> = carried.iter().map(|(_, slice)| slice.vni).collect();
        let peers: Vec<IpAddr> = self.peers.values().copied().collect();
        let table = ruleset::host(
            &self.params.prefix,
            &ruleset::Host {
                bridge,
                subnet: self.params.gwbridge_subnet,
                vxlan_port: self.view.data_path_port,
                vnis: &vnis,
                peers: &peers,
                published: &published,
            },
        );
        host.tables
            .insert((table.family, table.name.clone()), table);
        host
    }

    /// Connects a container with the routers of its networks, the first of which becomes eth0.
    fn container(
        &self,
        state: &mut KernelState,
        task: &TaskId,
        networks: &[(&NetworkId, &NetworkSlice)],
        found: &ContainerFacts,
    ) {
        let mut inside = SpaceState::default();
        let mut taken: BTreeSet<String> = found.interfaces.keys().cloned().collect();
        let outward = |slice: &NetworkSlice| !slice.internal && gateway(slice).is_some();
        let way_out = networks
            .iter()
            .find(|(_, slice)| !slice.ingress && outward(slice))
            .or_else(|| networks.iter().find(|(_, slice)| outward(slice)))
            .filter(|_| !found.foreign_default)
            .map(|(id, _)| *id);
        for (id, slice) in networks {
            let Some(address) = ipv4(&slice.endpoints[task].addresses) else {
                continue;
            };
            let mac = naming::mac_of(address.addr().into());
            let held = found
                .interfaces
                .iter()
                .find(|(_, held)| **held == Some(mac))
                .map(|(name, _)| name.clone());
            let name = held.unwrap_or_else(|| {
                let free = (0..)
                    .map(|n| format!("eth{n}"))
                    .find(|name| !taken.contains(name));
                free.expect("a container has finitely many interfaces")
            });
            taken.insert(name.clone());
            let mtu = Some(self.mtu(slice));
            let peer = VethPeer {
                space: Space::Container(task.to_string()),
                name: name.clone(),
                mac,
                mtu,
            };
            let port = naming::endpoint_port(task);
            let router = state
                .spaces
                .get_mut(&Space::Router((*id).clone()))
                .expect("carried networks have routers");
            let link = Link {
                kind: LinkKind::Veth { peer },
                mac: None,
                mtu,
                master: None,
                isolated: false,
                hairpin: false,
            };
            router.links.insert(port.clone(), link);
            let settings = &mut router.objects.settings;
            settings.insert(format!("ipv4/conf/{port}/proxy_arp"), "1".to_owned());
            settings.insert(format!("ipv4/neigh/{port}/proxy_delay"), "0".to_owned());
            let to = host_route(address.addr());
            router.objects.routes.insert(Route {
                table: MAIN_TABLE,
                to,
                via: None,
                link: port,
                protocol: OVERLAY_PROTOCOL,
            });

            inside
                .objects
                .addresses
                .insert((name.clone(), address.into()));
            let Some(gateway) = gateway(slice) else {
                continue;
            };
            let via = Some(gateway.into());
            if way_out == Some(*id) {
                let (to, link) = (default_route(), name.clone());
                inside.objects.routes.insert(Route {
                    table: MAIN_TABLE,
                    to,
                    via,
                    link,
                    protocol: OVERLAY_PROTOCOL,
                });
            }
            if slice.ingress {
                let from = Some(host_route(address.addr()));
                let rule = Rule {
                    from,
                    mark: None,
                    table: INGRESS_TABLE,
                    priority: RULE_PRIORITY,
                    protocol: OVERLAY_PROTOCOL,
                };
                inside.objects.rules.insert(rule);
                let route = Route {
                    table: INGRESS_TABLE,
                    to: default_route(),
                    via,
                    link: name,
                    protocol: OVERLAY_PROTOCOL,
                };
                inside.objects.routes.insert(route);
            }
        }
        state
            .spaces
            .insert(Space::Container(task.to_string()), inside);
    }

    fn mtu(&self, slice: &NetworkSlice) -> u32 {
        let overhead = if self.underlay.is_ipv4() {
            VXLAN_OVERHEAD
        } else {
            VXLAN_OVERHEAD + 20
        };
        let fits = self.facts.underlay_mtu.saturating_sub(overhead);
        slice.mtu.map_or(fits, |asked| asked.min(fits))
    }
}
