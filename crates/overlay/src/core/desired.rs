//! From the network view to the kernel state of this node.

mod container;
mod host;
mod services;
mod tunnel;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use shoal_api::{
    NetworkId, NodeId, TaskId,
    network::{NetworkSlice, NetworkView},
};

use super::{
    naming::{self, LOOPBACK6, UPLINK, VXLAN},
    nft::Table,
    observed::Facts,
    ruleset::{self, direct},
    state::{
        Family, KernelState, Link, LinkKind, MAIN_TABLE, OVERLAY_PROTOCOL, RULE_PRIORITY, Route,
        RouteKind, Rule, Space, SpaceState,
    },
};

use services::mark_for_ipvs;
pub(super) use services::{Balance, IpvsBalance};

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
    /// Its IPv6 subnet, of 64 bits; `None` where the kernel cannot carry IPv6.
    pub gwbridge_subnet6: Option<Ipv6Net>,
    /// By which scheduler IPVS keeps a client with its backend; `None` where nftables distributes connections.
    pub ipvs: Option<&'static str>,
    /// Whether the kernel can keep a client with its backend.
    pub source_hash: bool,
    /// Whether the kernel can keep apart what nodes of entry send under one client's address and port.
    pub zones: bool,
    /// Whether the kernel can send a packet on from where it enters.
    pub direct: bool,
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
    let carried = carried(view, me, facts.keys.is_some());
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
    let uplinks = uplink_addresses(params, &carried)?;
    let mut local: BTreeMap<&TaskId, Vec<Place<'_>>> = BTreeMap::new();
    for (id, slice) in &carried {
        state.spaces.insert(
            Space::Router((*id).clone()),
            cx.router(slice, uplinks.get(*id)),
        );
        for task in slice
            .endpoints
            .iter()
            .filter(|(_, endpoint)| endpoint.node == *me)
            .map(|(task, _)| task)
        {
            let container = facts.further.get(task).unwrap_or(task);
            local
                .entry(container)
                .or_default()
                .push(Place { id, slice, task });
        }
    }
    state
        .spaces
        .insert(Space::Host, cx.host(&carried, &uplinks));
    for (container, mut places) in local {
        let Some(found) = facts.containers.get(container.as_str()) else {
            continue;
        };
        places.sort_by_key(|place| (!place.slice.ingress, place.id));
        cx.container(&mut state, container, &places, found);
    }
    Ok(state)
}

/// The networks that node `me` carries. Without a key there is no tunnel, and without the tunnel nothing of what it is to
/// carry.
fn carried<'v>(
    view: &'v NetworkView,
    me: &NodeId,
    has_key: bool,
) -> Vec<(&'v NetworkId, &'v NetworkSlice)> {
    let takes_part = |slice: &NetworkSlice| {
        let mut endpoints = slice.endpoints.values();
        slice.ingress || endpoints.any(|endpoint| endpoint.node == *me)
    };
    let all = view.networks.iter();
    all.filter(|(_, slice)| takes_part(slice) && (!slice.encrypted || has_key))
        .collect()
}

/// Where the router of ingress is on the gateway bridge of node `me`.
pub fn ingress_uplink(
    view: &NetworkView,
    me: &NodeId,
    has_key: bool,
    params: &Params,
) -> Option<IpAddr> {
    let carried = carried(view, me, has_key);
    let (ingress, _) = carried.iter().find(|(_, slice)| slice.ingress)?;
    let uplinks = uplink_addresses(params, &carried).ok()?;
    Some(uplinks.get(*ingress)?.v4.into())
}

/// Addresses of the routers on the gateway bridge, by VNI so that they stay when other networks come and go.
fn uplink_addresses(
    params: &Params,
    carried: &[(&NetworkId, &NetworkSlice)],
) -> Result<BTreeMap<NetworkId, Uplink>, DesiredError> {
    let subnet = params.gwbridge_subnet;
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
        let base6 = params.gwbridge_subnet6.map(|net| net.network());
        let uplink = Uplink {
            v4: Ipv4Addr::from(base + offset),
            v6: base6.map(|base| Ipv6Addr::from(u128::from(base) + u128::from(offset))),
        };
        addresses.insert((*id).clone(), uplink);
    }
    Ok(addresses)
}

/// A container's place in one network.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    id: &'a NetworkId,
    slice: &'a NetworkSlice,
    /// The task that has the place.
    task: &'a TaskId,
}

pub(super) fn of_family(addresses: &[IpNet], family: Family) -> Option<IpNet> {
    let mut addresses = addresses.iter().copied();
    addresses.find(|net| Family::of(net.addr()) == family)
}

/// Whether what a network's containers send to those of other nodes is not routed: the kernel can, and no address is virtual
/// and no port published.
pub(super) fn goes_directly(params: &Params, slice: &NetworkSlice, family: Family) -> bool {
    let services = slice.services.values();
    let mut vips = services.flat_map(|service| &service.vips);
    params.direct && !slice.ingress && !vips.any(|vip| Family::of(*vip) == family)
}

pub(super) fn gateway(slice: &NetworkSlice, family: Family) -> Option<IpAddr> {
    let mut gateways = slice.subnets.iter().map(|subnet| subnet.gateway);
    gateways.find(|gateway| Family::of(*gateway) == family)
}

/// The route to something on another node.
pub(super) fn by_peer(family: Family, table: u32, to: IpNet, peer: IpAddr) -> Route {
    Route {
        table,
        via: Some(naming::peer_hop(family, peer)),
        ..Route::on(VXLAN, to)
    }
}

pub(super) fn host_route(address: IpAddr) -> IpNet {
    address.into()
}

fn default_route(family: Family) -> IpNet {
    match family {
        Family::V4 => Ipv4Net::default().into(),
        Family::V6 => Ipv6Net::default().into(),
    }
}

/// Where a router is on the gateway bridge.
#[derive(Debug, Clone, Copy)]
struct Uplink {
    v4: Ipv4Addr,
    v6: Option<Ipv6Addr>,
}

impl Uplink {
    fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => Some(self.v4.into()),
            Family::V6 => self.v6.map(IpAddr::V6),
        }
    }
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
    /// Families of a network that this node can carry.
    fn families(&self, slice: &NetworkSlice) -> impl Iterator<Item = (Family, IpAddr)> {
        let can = |family| family == Family::V4 || self.params.gwbridge_subnet6.is_some();
        let gateways = Family::ALL.map(|family| Some((family, gateway(slice, family)?)));
        let carried = gateways.into_iter().flatten();
        carried
            .filter(move |(family, _)| can(*family))
            .collect::<Vec<_>>()
            .into_iter()
    }

    /// The host's address on the gateway bridge, with the prefix of the subnet.
    fn bridge_address(&self, family: Family) -> Option<IpNet> {
        match family {
            Family::V4 => {
                let subnet = self.params.gwbridge_subnet;
                let first = Ipv4Addr::from(u32::from(subnet.network()) + 1);
                Some(Ipv4Net::new_assert(first, subnet.prefix_len()).into())
            }
            Family::V6 => {
                let subnet = self.params.gwbridge_subnet6?;
                let first = Ipv6Addr::from(u128::from(subnet.network()) + 1);
                Some(Ipv6Net::new_assert(first, subnet.prefix_len()).into())
            }
        }
    }

    /// Addresses of the host and of the ingress router on the link between them alone: the last of the bridge's subnet,
    /// where no router is.
    fn loopback6_ends(&self) -> Option<[IpAddr; 2]> {
        let last = u128::from(self.params.gwbridge_subnet6?.broadcast());
        Some([last - 1, last].map(|at| Ipv6Addr::from(at).into()))
    }

    /// Everything of a router namespace but the ports of its local endpoints.
    fn router(&self, slice: &NetworkSlice, uplink: Option<&Uplink>) -> SpaceState {
        let mut router = SpaceState::default();
        let settings = [
            ("ipv4/ip_forward", "1"),
            // What a router passes on is for no socket of its own: nobody need look for one.
            ("ipv4/ip_early_demux", "0"),
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
            local: if slice.encrypted {
                // That of the key in use, which the kernel finds by the way it takes.
                Ipv6Addr::UNSPECIFIED.into()
            } else {
                self.tunnel_end()
            },
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
        let involved = self.involved(slice);
        for peer in &involved {
            if let Some(end) = self.far_end(slice, *peer) {
                let mac = naming::mac_of(*peer);
                router.objects.fdb.insert((VXLAN.to_owned(), mac), end);
            }
        }
        for (family, gateway) in self.families(slice) {
            self.router_family(&mut router, slice, family, gateway, &involved);
            if slice.ingress && family == Family::V6 {
                self.router_loopback6(&mut router);
                // By it other routers send what tries the way between them.
                let own = naming::peer_hop(family, self.underlay);
                let own = IpNet::new(own, 64).expect("64 is a prefix length");
                let addresses = &mut router.objects.addresses;
                addresses.insert((VXLAN.to_owned(), own));
            }
            let (Some(uplink), Some(host)) = (
                uplink.and_then(|uplink| uplink.address(family)),
                self.bridge_address(family),
            ) else {
                continue;
            };
            let objects = &mut router.objects;
            objects
                .addresses
                .insert((UPLINK.to_owned(), host_route(uplink)));
            // Known from the start: a bridge that has just come up loses the first questions.
            if let Some(own) = self.bridge_address(Family::V4) {
                let mac = naming::mac_of(own.addr());
                objects
                    .neighbours
                    .insert((UPLINK.to_owned(), host.addr()), mac);
            }
            objects.routes.insert(Route {
                via: Some(host.addr()),
                ..Route::on(UPLINK, default_route(family))
            });
        }
        router
    }

    /// The ingress router's end of its link to the host.
    fn router_loopback6(&self, router: &mut SpaceState) {
        let Some([host, own]) = self.loopback6_ends() else {
            return;
        };
        let objects = &mut router.objects;
        let link = || LOOPBACK6.to_owned();
        objects.addresses.insert((link(), host_route(own)));
        let mac = naming::mac_of(host);
        objects.neighbours.insert((link(), host), mac);
        let to_host = Route::on(LOOPBACK6, host_route(host));
        objects.routes.insert(to_host);
    }

    /// From which address packets of tunnels leave: any, where the node's own is given by a router on the way.
    fn tunnel_end(&self) -> IpAddr {
        match (self.facts.underlay_elsewhere, self.underlay) {
            (false, underlay) => underlay,
            (true, IpAddr::V4(_)) => Ipv4Addr::UNSPECIFIED.into(),
            (true, IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// The other nodes that take part in a network; every node is a possible entry to ingress.
    fn involved(&self, slice: &NetworkSlice) -> BTreeSet<IpAddr> {
        let endpoints = slice.endpoints.values();
        let with_endpoints = endpoints.filter_map(|endpoint| self.peers.get(&endpoint.node));
        let everybody = self.peers.values().filter(|_| slice.ingress);
        with_endpoints.chain(everybody).copied().collect()
    }

    /// Addresses, routes and rules of one family in a router.
    fn router_family(
        &self,
        router: &mut SpaceState,
        slice: &NetworkSlice,
        family: Family,
        gateway: IpAddr,
        involved: &BTreeSet<IpAddr>,
    ) {
        let objects = &mut router.objects;
        if family == Family::V6 {
            for (path, value) in [
                (naming::FORWARDING6, "1"),
                ("ipv6/conf/all/accept_redirects", "0"),
            ] {
                objects.settings.insert(path.to_owned(), value.to_owned());
            }
        }
        let own = ("lo".to_owned(), host_route(gateway));
        objects.addresses.insert(own);
        // Routes make an address the router's own like an address of an interface does, in time that does not grow with
        // their number.
        let vips = slice.services.values().flat_map(|service| &service.vips);
        let vips = vips.filter(|vip| Family::of(**vip) == family);
        let own = vips.map(|vip| Route::own("lo", host_route(*vip)));
        objects.routes.extend(own);
        // What no endpoint has is nowhere, and not out in the world, which the way out leads to. Nobody is told: an endpoint
        // that comes, or another one that the sender is led to, may have it by the next attempt. Clients of published ports may
        // be in a network of the same addresses as ingress.
        let subnets = slice.subnets.iter().filter(|_| !slice.ingress);
        let subnets = subnets.map(|subnet| subnet.range);
        let subnets = subnets.filter(|subnet| Family::of(subnet.addr()) == family);
        objects.routes.extend(subnets.map(|subnet| Route {
            kind: RouteKind::Blackhole,
            ..Route::on("lo", subnet.trunc())
        }));
        for endpoint in slice.endpoints.values() {
            if let Some(peer) = self.peers.get(&endpoint.node)
                && let Some(address) = of_family(&endpoint.addresses, family)
            {
                let to = host_route(address.addr());
                objects
                    .routes
                    .insert(by_peer(family, MAIN_TABLE, to, *peer));
            }
        }
        for peer in involved {
            if slice.ingress {
                let mark = naming::peer_mark(*peer);
                let route = by_peer(family, mark, default_route(family), *peer);
                objects.routes.insert(route);
                objects.rules.insert(Rule {
                    family,
                    from: None,
                    mark: Some(mark),
                    source_port: None,
                    suppressed: None,
                    table: mark,
                    priority: RULE_PRIORITY,
                    protocol: OVERLAY_PROTOCOL,
                });
            }
            let hop = naming::peer_hop(family, *peer);
            let mac = naming::mac_of(*peer);
            objects.neighbours.insert((VXLAN.to_owned(), hop), mac);
        }
        if goes_directly(self.params, slice, family) {
            let mut table = direct::direct(family, &self.params.prefix);
            for endpoint in slice.endpoints.values() {
                if let Some(peer) = self.peers.get(&endpoint.node)
                    && let Some(address) = of_family(&endpoint.addresses, family)
                {
                    let (key, hop) = direct::hop(address.addr(), *peer);
                    table.element(direct::HOPS, key, hop);
                }
            }
            router.tables.insert((family, table.name.clone()), table);
        }
        let table = self.router_table(slice, family, gateway, involved);
        if let Some(by_source) = self.params.ipvs {
            self.ipvs(router, slice, family, by_source);
        }
        router
            .tables
            .insert((table.family, table.name.clone()), table);
    }

    fn router_table(
        &self,
        slice: &NetworkSlice,
        family: Family,
        gateway: IpAddr,
        involved: &BTreeSet<IpAddr>,
    ) -> Table {
        let peers: Vec<IpAddr> = involved.iter().copied().collect();
        let local = slice
            .endpoints
            .iter()
            .filter(|(_, endpoint)| endpoint.node == *self.me)
            .filter_map(|(task, endpoint)| {
                let address = of_family(&endpoint.addresses, family)?.addr();
                Some((naming::endpoint_port(task), address))
            });
        let local: Vec<(String, IpAddr)> = local.collect();
        let mut table = ruleset::router(
            &self.params.prefix,
            &ruleset::Router {
                family,
                ingress: slice.ingress,
                ipvs: self.params.ipvs.is_some(),
                source_hash: self.params.source_hash,
                zones: self.params.zones,
                direct: goes_directly(self.params, slice, family),
                gateway,
                peers: &peers,
                local: &local,
            },
        );
        if self.params.ipvs.is_some() {
            mark_for_ipvs(&mut table, slice);
            return table;
        }
        let balance = Balance {
            me: self.me,
            slice,
            family,
            params: self.params,
        };
        for (id, backends) in balance.backends(slice.endpoints.values()) {
            if let Some(service) = slice.services.get(id) {
                balance.add(&mut table.elements, service, &backends);
            }
        }
        table
    }
}
