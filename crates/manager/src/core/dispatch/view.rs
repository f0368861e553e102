//! The network view of a node, and which view each node has carried out.

use std::{
    cell::{OnceCell, RefCell},
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use shoal_api::{
    NetworkId, NodeId, ServiceId, TaskState,
    network::{
        Endpoint, IngressPort, NamedPort, NetworkSlice, NetworkView, Peer, ServiceSlice, VXLAN_PORT,
    },
    object::{Network, Node, NodeState, ObjectKey, Service, Task},
    planted::{Bug, planted},
    spec::{NetworkTarget, PublishMode},
    tunnel::TUNNEL_KEYS_MAX,
};

use crate::core::state::{State, Table};

/// Option of a network's driver that sets its MTU.
pub const MTU_OPTION: &str = "com.docker.network.driver.mtu";
/// Characters of a container id that count as its short name.
const SHORT_ID_LENGTH: usize = 12;

/// What a node needs to know to carry the packets of its networks.
pub fn network_view(state: &State, node: &NodeId) -> Arc<NetworkView> {
    NetworkSlices::default().view(state, node)
}

/// What makes two nodes' views the same: their networks, and the node itself where nobody else knows of it.
type ViewKey = (Vec<NetworkId>, Option<NodeId>);

/// Views at one state, each computed once for all the nodes that have the same one.
///
/// Use one per state; the one for the next state is made of it by [`Self::next`].
#[derive(Debug, Default)]
pub struct NetworkSlices {
    slices: RefCell<BTreeMap<NetworkId, Option<NetworkSlice>>>,
    views: RefCell<BTreeMap<ViewKey, Arc<NetworkView>>>,
    /// Those of the state before: one that says the same goes on, so that whoever holds it is seen to be up to date.
    before: BTreeMap<ViewKey, Arc<NetworkView>>,
    /// The newest of those views by the networks in them, with which the next ones share what has not changed. Looked for
    /// when the first network is asked for.
    newest_before: OnceCell<BTreeMap<NetworkId, Arc<NetworkView>>>,
}

impl NetworkSlices {
    /// For another state, after this one.
    pub fn next(self) -> Self {
        // It holds views too; below only others shall count.
        drop(self.newest_before);
        let mut before = self.before;
        before.extend(self.views.into_inner());
        // Of networks that nobody asks for any more nothing is kept for longer than the next state.
        let is_held = |view: &mut Arc<NetworkView>| Arc::strong_count(view) > 1;
        before.retain(|_, view| is_held(view));
        Self {
            before,
            ..Self::default()
        }
    }

    /// A network as it was last told.
    fn slice_before(&self, id: &NetworkId) -> Option<&NetworkSlice> {
        let newest = self.newest_before.get_or_init(|| {
            let mut by_age: Vec<_> = self.before.values().collect();
            by_age.sort_by_key(|view| view.version);
            let with_view = |view| move |id: &NetworkId| (id.clone(), Arc::clone(view));
            let networks = by_age.into_iter();
            let networks = networks.flat_map(|view| view.networks.keys().map(with_view(view)));
            networks.collect()
        });
        newest.get(id)?.networks.get(id)
    }

    /// The view of a node: the networks of its tasks that are not over, and always ingress.
    pub fn view(&self, state: &State, node: &NodeId) -> Arc<NetworkView> {
        let tasks = state.tasks_of_node(node).filter(|task| is_live(task));
        let mut ids: BTreeSet<&NetworkId> = tasks
            .flat_map(|task| task.networks.iter().map(|a| &a.network))
            .collect();
        ids.extend(state.ingress_network().map(|network| &network.id));
        let mut slices = self.slices.borrow_mut();
        for id in &ids {
            if !slices.contains_key(*id) {
                let slice = state.network(id).and_then(|network| slice(state, network));
                let slice = slice.map(|slice| match self.slice_before(id) {
                    Some(before) => NetworkSlice {
                        endpoints: before.endpoints.moved_to(&slice.endpoints),
                        services: before.services.moved_to(&slice.services),
                        ..slice
                    },
                    None => slice,
                });
                slices.insert((*id).clone(), slice);
            }
        }
        let networks = || {
            ids.iter()
                .filter_map(|id| Some((*id, slices[*id].as_ref()?)))
        };
        let is_known_to_others = networks().any(|(_, slice)| {
            slice.ingress || slice.endpoints.values().any(|there| there.node == *node)
        });
        let key = (
            networks().map(|(id, _)| id.clone()).collect(),
            (!is_known_to_others).then(|| node.clone()),
        );
        let mut views = self.views.borrow_mut();
        if let Some(view) = views.get(&key) {
            return Arc::clone(view);
        }
        let networks: BTreeMap<_, _> = networks()
            .map(|(id, slice)| (id.clone(), slice.clone()))
            .collect();
        let peers = peers(state, node, &networks);
        let port = state
            .cluster()
            .map_or(VXLAN_PORT, |cluster| cluster.spec.data_path_port);
        let mut view = Arc::new(NetworkView {
            version: state.index(),
            data_path_port: port,
            peers,
            networks,
        });
        if let Some(before) = self.before.get(&key).filter(|old| is_same_view(old, &view)) {
            view = Arc::clone(before);
        }
        views.insert(key, Arc::clone(&view));
        view
    }
}

fn peers(
    state: &State,
    me: &NodeId,
    networks: &BTreeMap<NetworkId, NetworkSlice>,
) -> BTreeMap<NodeId, Peer> {
    // Every node takes part in ingress, since every node listens on published ports.
    let everybody = networks.values().any(|slice| slice.ingress);
    let with_tasks: BTreeSet<&NodeId> = networks
        .values()
        .flat_map(|slice| slice.endpoints.values().map(|endpoint| &endpoint.node))
        .collect();
    let peers = state
        .nodes()
        .filter(|node| everybody || node.id == *me || with_tasks.contains(&node.id));
    let with_secrets: BTreeSet<&NodeId> = networks
        .values()
        .filter(|slice| slice.encrypted)
        .flat_map(|slice| slice.endpoints.values().map(|endpoint| &endpoint.node))
        .collect();
    let encrypted_ingress = networks
        .values()
        .any(|slice| slice.encrypted && slice.ingress);
    let peers = peers.filter_map(|node| {
        let description = &node.description;
        // Keys change twice a day, of which nodes that do not need them shall hear nothing.
        let needed = encrypted_ingress || with_secrets.contains(&node.id);
        let keys = description.tunnel_keys.iter().copied();
        let peer = Peer {
            underlay: description.data_path_addr.or(node.status.addr)?,
            hostname: description.hostname.clone(),
            tunnel_keys: keys.filter(|_| needed).take(TUNNEL_KEYS_MAX).collect(),
        };
        Some((node.id.clone(), peer))
    });
    peers.collect()
}

fn is_live(task: &Task) -> bool {
    (TaskState::Assigned..=TaskState::Running).contains(&task.status.state)
}

/// A network as all its nodes see it; `None` before it has its subnets.
fn slice(state: &State, network: &Network) -> Option<NetworkSlice> {
    let allocated = network.allocated.as_ref()?;
    let mut endpoints = Table::default();
    let mut services: BTreeSet<ServiceId> = BTreeSet::new();
    for holder in state.address_holders(&network.id) {
        match holder {
            ObjectKey::Service(id) => {
                services.insert(id.clone());
            }
            ObjectKey::Task(id) => {
                let task = state.task(id).filter(|task| is_live(task));
                if let Some((task, endpoint)) =
                    task.and_then(|task| Some((task, endpoint(state, network, task)?)))
                {
                    services.insert(task.service.clone());
                    endpoints.insert(task.id.clone(), Arc::new(endpoint));
                }
            }
            _ => {}
        }
    }
    let services = services.into_iter().filter_map(|id| {
        let service = state.service(&id)?;
        Some((id, Arc::new(service_slice(network, service))))
    });
    let ip_ranges = network.spec.ipam.iter().filter_map(|ipam| ipam.ip_range);
    Some(NetworkSlice {
        name: network.spec.annotations.name.clone(),
        ingress: network.spec.ingress,
        internal: network.spec.internal,
        encrypted: network.spec.is_encrypted(),
        vni: allocated.vni,
        mtu: network
            .spec
            .driver
            .options
            .get(MTU_OPTION)
            .and_then(|mtu| mtu.parse().ok()),
        subnets: allocated.subnets.clone(),
        attachable: network.spec.attachable,
        labels: network.spec.annotations.labels.clone(),
        options: network.spec.driver.options.clone(),
        ip_ranges: ip_ranges.collect(),
        endpoints,
        services: services.collect(),
    })
}

fn endpoint(state: &State, network: &Network, task: &Task) -> Option<Endpoint> {
    let node = task.node.clone()?;
    let attachment = task
        .networks
        .iter()
        .find(|attachment| attachment.network == network.id)?;
    let container = task
        .status
        .container
        .as_ref()
        .map(|container| container.container_id.as_str());
    let short_id = container
        .and_then(|id| id.get(..SHORT_ID_LENGTH))
        .map(str::to_owned);
    if task.is_attachment() {
        let container = &task.spec.attached_container;
        let short_id = container.get(..SHORT_ID_LENGTH).unwrap_or(container);
        let names = [task.service_name.to_string(), short_id.to_owned()];
        return Some(Endpoint {
            serving: is_serving(state, task),
            node,
            service: None,
            addresses: attachment.addresses.clone(),
            names: names
                .into_iter()
                .chain(attachment.aliases.iter().cloned())
                .collect(),
        });
    }
    Some(Endpoint {
        serving: is_serving(state, task),
        node,
        service: Some(task.service.clone()),
        addresses: attachment.addresses.clone(),
        names: [task.name()].into_iter().chain(short_id).collect(),
    })
}

/// Whether names and virtual addresses lead to a task: it runs, it shall, and its service and node are there.
pub fn is_serving(state: &State, task: &Task) -> bool {
    let node = task.node.as_ref().and_then(|node| state.node(node));
    task.status.state == TaskState::Running
        && (task.desired_state <= TaskState::Complete || planted(Bug::ViewServesAll))
        && (task.is_attachment() || state.service(&task.service).is_some())
        && node.is_some_and(|node| !is_lost(node))
}

/// Whether a node is not to be counted on. An unknown one is: the leader has just begun.
pub(super) fn is_lost(node: &Node) -> bool {
    matches!(node.status.state, NodeState::Down | NodeState::Disconnected)
}

fn service_slice(network: &Network, service: &Service) -> ServiceSlice {
    let attachments = service.spec.task.networks.iter();
    let aliases = attachments
        .filter(|attachment| matches!(&attachment.target, NetworkTarget::Cluster(id) if *id == network.id))
        .flat_map(|attachment| attachment.aliases.clone());
    let vips = service
        .endpoint
        .iter()
        .flat_map(|endpoint| &endpoint.virtual_ips);
    let vips = vips
        .filter(|vip| vip.network == network.id)
        .map(|vip| vip.addr.addr());
    let ports = || service.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
    let named = ports().filter(|port| !network.spec.ingress && !port.name.is_empty());
    let ports = ports().filter(|port| {
        network.spec.ingress && port.mode == PublishMode::Ingress && port.published != 0
    });
    ServiceSlice {
        name: service.spec.annotations.name.clone(),
        vips: vips.collect(),
        aliases: aliases.collect(),
        ports: ports
            .map(|port| IngressPort {
                protocol: port.protocol,
                published: port.published,
                target: port.target,
                proxy_protocol: port.proxy_protocol,
                local: port.local,
                host_ip: port.host_ip,
            })
            .collect(),
        named_ports: named
            .map(|port| NamedPort {
                name: port.name.clone(),
                protocol: port.protocol,
                target: port.target,
            })
            .collect(),
        affinity: service.spec.endpoint.affinity,
    }
}

/// Which view each node was sent, and which one it has carried out.
#[derive(Debug, Default)]
pub struct Views {
    sent: BTreeMap<NodeId, Sent>,
    acked: BTreeMap<NodeId, u64>,
}

/// The last view that a node was sent.
#[derive(Debug)]
struct Sent {
    view: Arc<NetworkView>,
    /// The state in which it was sent.
    version: u64,
    /// The last state in which the node's view was the same.
    holds_until: u64,
}

impl Views {
    /// The version under which to send a node this view, if it differs from the last one. `at` is the index of the state
    /// that it is of; versions of a node only grow, while the view itself may be shared with nodes that came to it before.
    ///
    /// A node that has carried out a view has also carried out every later state in which its view is the same.
    pub fn refresh(&mut self, view: &Arc<NetworkView>, node: &NodeId, at: u64) -> Option<u64> {
        if let Some(sent) = self.sent.get_mut(node)
            && (Arc::ptr_eq(&sent.view, view) || is_same_view(&sent.view, view))
        {
            sent.holds_until = sent.holds_until.max(at);
            if let Some(acked) = self.acked.get_mut(node)
                && *acked >= sent.version
            {
                *acked = sent.holds_until;
            }
            return None;
        }
        self.resume(node, Arc::clone(view), at);
        Some(at)
    }

    /// A node holds this view, sent to it under this version, also where that was in an earlier session.
    pub fn resume(&mut self, node: &NodeId, view: Arc<NetworkView>, version: u64) {
        let sent = Sent {
            view,
            version,
            holds_until: version,
        };
        self.sent.insert(node.clone(), sent);
    }

    /// The version of the view that a node was sent last.
    pub fn version_sent(&self, node: &NodeId) -> Option<u64> {
        self.sent.get(node).map(|sent| sent.version)
    }

    /// Takes note that a node has carried out the view of this version.
    pub fn acknowledge(&mut self, node: &NodeId, version: u64) {
        // A node cannot have carried out what it was not sent.
        let Some(sent) = self.sent.get(node) else {
            return;
        };
        let reached = if version >= sent.version {
            sent.holds_until
        } else {
            version
        };
        let acked = self.acked.entry(node.clone()).or_default();
        *acked = (*acked).max(reached);
    }

    /// Forgets a node whose session has ended: the next one is sent everything.
    pub fn forget(&mut self, node: &NodeId) {
        self.sent.remove(node);
        self.acked.remove(node);
    }

    /// For each node the last state whose view it has carried out.
    pub fn acked(&self) -> &BTreeMap<NodeId, u64> {
        &self.acked
    }
}

fn is_same_view(a: &NetworkView, b: &NetworkView) -> bool {
    (a.data_path_port, &a.peers, &a.networks) == (b.data_path_port, &b.peers, &b.networks)
}

/// The nodes that send traffic to a task: those with the same networks, and all nodes for ingress.
pub(super) fn interested_nodes(state: &State, task: &Task) -> BTreeSet<NodeId> {
    let mut nodes = BTreeSet::new();
    for attachment in &task.networks {
        if state
            .network(&attachment.network)
            .is_some_and(|network| network.spec.ingress)
        {
            return state.nodes().map(|node| node.id.clone()).collect();
        }
        let holders = state.address_holders(&attachment.network);
        let tasks = holders.filter_map(|holder| match holder {
            ObjectKey::Task(id) => state.task(id),
            _ => None,
        });
        nodes.extend(
            tasks
                .filter(|task: &&Arc<Task>| is_live(task))
                .filter_map(|task| task.node.clone()),
        );
    }
    nodes
}
