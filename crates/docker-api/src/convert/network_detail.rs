//! What `network inspect --verbose` shows besides the network: who uses it, where, and how much of it is left.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use serde_json::{Map, Value, json};
use shoal_api::{
    network::Subnet,
    object::{Network, Node, Service, Task},
    spec::PublishMode,
};

/// Adds peers, services with their tasks, and the use of each subnet, under docker's names.
///
/// Docker's `Info` of a task has the host's address; the host's name is ours.
pub(crate) fn add(
    shown: &mut Value,
    network: &Network,
    services: &[Service],
    tasks: &[Task],
    nodes: &[Node],
) {
    let live = tasks.iter().filter(|task| !task.status.state.is_terminal());
    let attached = live.filter_map(|task| {
        let mut networks = task.networks.iter();
        let place = networks.find(|place| place.network == network.id)?;
        Some((task, place.addresses.as_slice()))
    });
    let attached: Vec<(&Task, &[IpNet])> = attached.collect();
    let node_of = |task: &Task| {
        nodes
            .iter()
            .find(|node| Some(&node.id) == task.node.as_ref())
    };

    let with_tasks: BTreeSet<_> = attached
        .iter()
        .filter_map(|(task, _)| task.node.as_ref())
        .collect();
    let peers = nodes.iter().filter(|node| with_tasks.contains(&node.id));
    shown["Peers"] = peers
        .map(|node| json!({"Name": node.id.as_str(), "IP": underlay(node)}))
        .collect();

    let mut by_name = Map::new();
    for service in services {
        let endpoint = service.endpoint.clone().unwrap_or_default();
        let vips = endpoint.virtual_ips.iter();
        let vips = vips.filter(|vip| vip.network == network.id);
        let vips: Vec<String> = vips.map(|vip| vip.addr.addr().to_string()).collect();
        let of_service = attached
            .iter()
            .filter(|(task, _)| task.service == service.id);
        let tasks: Vec<Value> = of_service
            .map(|(task, addresses)| shown_task(task, addresses, node_of(task)))
            .collect();
        if vips.is_empty() && tasks.is_empty() {
            continue;
        }
        let ports = endpoint.ports.iter();
        let ports = ports.filter(|port| port.mode == PublishMode::Ingress);
        let ports =
            ports.map(|port| format!("Target: {}, Publish: {}", port.target, port.published));
        let one = json!({
            "VIP": vips.first().map_or("", String::as_str),
            "VIPs": vips,
            "Ports": ports.collect::<Vec<_>>(),
            "LocalLBIndex": 0,
            "Tasks": tasks,
        });
        by_name.insert(service.spec.annotations.name.clone(), one);
    }
    let plain = attached.iter().filter(|(task, _)| task.is_attachment());
    let plain: Vec<Value> = plain
        .map(|(task, addresses)| shown_task(task, addresses, node_of(task)))
        .collect();
    if !plain.is_empty() {
        // As docker, which gathers the containers of no service under no name.
        let one = json!({"VIP": "", "VIPs": [], "Ports": [], "LocalLBIndex": 0, "Tasks": plain});
        by_name.insert(String::new(), one);
    }
    shown["Services"] = Value::Object(by_name);

    let held: BTreeSet<IpAddr> = services
        .iter()
        .filter_map(|service| service.endpoint.as_ref())
        .flat_map(|endpoint| &endpoint.virtual_ips)
        .filter(|vip| vip.network == network.id)
        .map(|vip| vip.addr.addr())
        .chain(
            attached
                .iter()
                .flat_map(|(_, addresses)| addresses.iter().map(IpNet::addr)),
        )
        .collect();
    let subnets = network.allocated.iter().flat_map(|given| &given.subnets);
    let subnets: Map<String, Value> = subnets
        .map(|subnet| {
            let used = held
                .iter()
                .filter(|held| subnet.range.contains(*held))
                .count();
            let free = hosts(network, subnet).saturating_sub(used as u128);
            let shown = json!({
                "IPsInUse": used,
                "DynamicIPsAvailable": u64::try_from(free).unwrap_or(u64::MAX),
            });
            (subnet.range.to_string(), shown)
        })
        .collect();
    shown["Status"] = json!({"IPAM": {"Subnets": subnets}});
}

fn underlay(node: &Node) -> String {
    let address = node.description.data_path_addr.or(node.status.addr);
    address
        .map(|address| address.to_string())
        .unwrap_or_default()
}

fn shown_task(task: &Task, addresses: &[IpNet], node: Option<&Node>) -> Value {
    json!({
        "Name": task.name(),
        "EndpointID": task.id.as_str(),
        "EndpointIP": addresses.first().map(|net| net.addr().to_string()).unwrap_or_default(),
        "Info": {
            "Host IP": node.map(underlay).unwrap_or_default(),
            "Host Name": node.map(|node| node.description.hostname.clone()).unwrap_or_default(),
            "State": task.status.state.as_str(),
        },
    })
}

/// Addresses of a subnet that can be given to tasks and services: neither its own, nor broadcast, nor the gateway's.
fn hosts(network: &Network, subnet: &Subnet) -> u128 {
    let mut asked = network.spec.ipam.iter();
    let range = asked
        .find(|ipam| ipam.subnet == Some(subnet.range))
        .and_then(|ipam| ipam.ip_range)
        .unwrap_or(subnet.range);
    let bits = u32::from(range.max_prefix_len() - range.prefix_len());
    let all = 1u128.checked_shl(bits).unwrap_or(u128::MAX);
    let v4 = matches!(subnet.range, IpNet::V4(_));
    let special = [
        Some(subnet.range.network()),
        v4.then(|| subnet.range.broadcast()),
        Some(subnet.gateway),
    ];
    let special: BTreeSet<IpAddr> = special.into_iter().flatten().collect();
    let inside = special.iter().filter(|address| range.contains(*address));
    all - inside.count() as u128
}
