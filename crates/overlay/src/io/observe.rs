//! Reads back what a namespace holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use nix::errno::Errno;

use super::{kernel::Handle, socket::Socket};
use crate::core::{
    ipvs_wire::{self, Service, ServiceKey},
    naming::{self, ROUTER_HOP, VXLAN},
    nft::Outline,
    nft_wire,
    observed::{ObservedLink, ObservedSpace, ObservedTable},
    rtnl_wire,
    state::{Family, MAIN_TABLE, Route},
    wireguard_wire::{self, Reading},
};

const SETTINGS: &str = "/proc/sys/net";

/// Reads interfaces, addresses, routes and rules of `protocol`, permanent neighbours and forwarding entries.
pub(crate) fn space(handle: &mut Handle, protocol: u8) -> io::Result<ObservedSpace> {
    let mut found = ObservedSpace::default();
    let socket = &mut handle.route;
    let mut names = BTreeMap::new();
    socket.dump(rtnl_wire::list_links(), |body| {
        if let Some((name, link)) = rtnl_wire::read_link(body) {
            names.insert(link.index, name.clone());
            found.links.insert(name, link);
        }
    })?;
    let objects = &mut found.objects;
    socket.dump(rtnl_wire::list_addresses(), |body| {
        if let Some((index, net)) = rtnl_wire::read_address(body)
            && let Some(name) = names.get(&index)
            && may_be_ours(net.addr())
        {
            objects.addresses.insert((name.clone(), net));
        }
    })?;
    let mut foreign_default = BTreeSet::new();
    socket.dump(rtnl_wire::list_routes(), |body| {
        let Some((index, route)) = rtnl_wire::read_route(body) else {
            return;
        };
        if route.protocol != protocol {
            if route.to.prefix_len() == 0 && route.table == MAIN_TABLE {
                foreign_default.insert(Family::of(route.to.addr()));
            }
        } else if let Some(name) = names.get(&index) {
            objects.routes.insert(Route {
                link: name.clone(),
                ..route
            });
        }
    })?;
    socket.dump(rtnl_wire::list_rules(), |body| {
        objects
            .rules
            .extend(rtnl_wire::read_rule(body).filter(|rule| rule.protocol == protocol))
    })?;
    socket.dump(rtnl_wire::list_neighbours(), |body| {
        if let Some((index, at, mac)) = rtnl_wire::read_neighbour(body)
            && let Some(name) = names.get(&index)
        {
            objects.neighbours.insert((name.clone(), at), mac);
        }
    })?;
    if found.links.contains_key(VXLAN) {
        socket.dump(rtnl_wire::list_fdb(), |body| {
            if let Some((index, mac, remote)) = rtnl_wire::read_fdb(body)
                && let Some(name) = names.get(&index)
            {
                objects.fdb.insert((name.clone(), mac), remote);
            }
        })?;
    }
    found.foreign_default = foreign_default;
    Ok(found)
}

/// Reads one interface, if it is there.
pub(crate) fn link(handle: &mut Handle, name: &str) -> io::Result<Option<(String, ObservedLink)>> {
    let mut found = None;
    let asked = handle.route.ask(rtnl_wire::find_link(name), |body| {
        found = rtnl_wire::read_link(body);
    });
    match asked {
        Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(None),
        asked => asked.map(|()| found),
    }
}

/// Whether it is not one of those that the kernel gives to interfaces by itself.
fn may_be_ours(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback(),
        IpAddr::V6(v6) => {
            v6 == ROUTER_HOP
                || naming::is_peer_hop(v6)
                || !(v6.is_loopback() || v6.is_unicast_link_local())
        }
    }
}

/// Reads our nftables table, if it is there.
pub(crate) fn table(
    handle: &mut Handle,
    family: Family,
    name: &str,
) -> io::Result<Option<Arc<ObservedTable>>> {
    let Some(socket) = &mut handle.netfilter else {
        return Ok(None);
    };
    let mut exists = false;
    socket.dump(nft_wire::list_tables(family, name), |body| {
        exists |= nft_wire::read_table(body).as_deref() == Some(name)
    })?;
    if !exists {
        return Ok(None);
    }
    let mut outline = Outline::default();
    socket.dump(nft_wire::list_chains(family, name), |body| {
        nft_wire::read_chain(body, name, &mut outline)
    })?;
    socket.dump(nft_wire::list_rules(family, name), |body| {
        nft_wire::read_rule(body, name, &mut outline)
    })?;
    socket.dump(nft_wire::list_sets(family, name), |body| {
        outline.sets.extend(nft_wire::read_set(body, name))
    })?;
    outline.sets.sort();
    let mut found = ObservedTable {
        outline,
        elements: BTreeMap::new(),
    };
    for set in &found.outline.sets {
        let elements = found.elements.entry(set.clone()).or_default();
        socket.dump(nft_wire::list_elements(family, name, set), |body| {
            nft_wire::read_elements(body, elements)
        })?;
    }
    Ok(Some(Arc::new(found)))
}

/// Reads the services of IPVS that are known by marks; all of them are ours, for the namespace is.
pub(crate) fn ipvs(socket: &mut Socket, family: u16) -> io::Result<BTreeMap<ServiceKey, Service>> {
    let mut found = Vec::new();
    socket.dump(ipvs_wire::list_services(family), |body| {
        found.extend(ipvs_wire::read_service(body));
    })?;
    let mut services = BTreeMap::new();
    for (key, scheduler) in found {
        let mut destinations = BTreeMap::new();
        socket.dump(ipvs_wire::list_destinations(family, key), |body| {
            destinations.extend(ipvs_wire::read_destination(key.family, body));
        })?;
        let service = Service {
            scheduler,
            destinations,
        };
        services.insert(key, service);
    }
    Ok(services)
}

/// Reads after how many seconds IPVS forgets a silent TCP connection.
pub(crate) fn ipvs_idle(socket: &mut Socket, family: u16) -> io::Result<Option<u32>> {
    let mut found = None;
    socket.ask(ipvs_wire::ask_config(family), |body| {
        found = ipvs_wire::read_idle(body);
    })?;
    Ok(found)
}

/// Reads the tunnel's device, which must be there.
pub(crate) fn tunnel(socket: &mut Socket, family: u16, name: &str) -> io::Result<Reading> {
    let mut reading = Reading::default();
    socket.dump(wireguard_wire::get(family, name), |body| reading.take(body))?;
    Ok(reading)
}

/// Reads kernel settings in the namespace of the calling thread; those that do not exist are left out.
pub(crate) fn settings<'a>(paths: impl Iterator<Item = &'a String>) -> BTreeMap<String, String> {
    let read = |path: &String| fs::read_to_string(Path::new(SETTINGS).join(path)).ok();
    paths
        .filter_map(|path| Some((path.clone(), read(path)?.trim().to_owned())))
        .collect()
}

/// Writes a kernel setting in the namespace of the calling thread.
pub(crate) fn set(path: &str, value: &str) -> io::Result<()> {
    fs::write(Path::new(SETTINGS).join(path), value)
}

/// Lets interfaces of the calling thread's namespace that listen to routers go on doing so when IPv6 is forwarded, which
/// otherwise ends it and takes the routes that they told (`accept_ra` in the kernel's `ip-sysctl`). Not `ours`, which have
/// containers behind them.
pub(crate) fn keep_listening_to_routers(ours: impl Fn(&str) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(Path::new(SETTINGS).join("ipv6/conf"))? {
        let name = entry?.file_name();
        let Some(name) = name
            .to_str()
            .filter(|name| !["all", "default"].contains(name))
        else {
            continue;
        };
        let path = naming::listens_to_routers(name);
        let listens = fs::read_to_string(Path::new(SETTINGS).join(&path));
        if !ours(name) && listens.is_ok_and(|value| value.trim() == "1") {
            set(&path, "2")?;
        }
    }
    Ok(())
}
