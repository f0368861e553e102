//! The steps from what the kernel holds to what it should hold.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use ipnet::IpNet;

use super::{
    ipvs_wire::{Edit, Service, ServiceKey},
    lb::Elements,
    naming::{self, Mac},
    nft::{Element, Table},
    nft_wire::ElementEdit,
    observed::{Observed, ObservedLink, ObservedSpace},
    rtnl_wire::Verb,
    state::{Family, KernelState, Link, LinkKind, Objects, Route, Rule, Space, SpaceState},
    tunnel::{self, TunnelStep},
};

/// One step, in one namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetOp {
    /// Where.
    pub space: Space,
    /// What.
    pub change: Change,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Makes the namespace.
    CreateSpace,
    /// Removes the namespace with everything in it.
    RemoveSpace,
    /// Removes an interface.
    DeleteLink(String),
    /// Makes an interface.
    CreateLink(String, Link),
    /// Brings an existing interface to the wanted MTU, bridge and state.
    UpdateLink(String, Link),
    /// Writes a kernel setting.
    Set(String, String),
    /// Adds or removes an address.
    Address(Verb, String, IpNet),
    /// Adds or removes a permanent neighbour.
    Neighbour(Verb, String, IpAddr, Mac),
    /// Adds or removes a VXLAN forwarding entry.
    Fdb(Verb, String, Mac, IpAddr),
    /// Adds or removes a route.
    Route(Verb, Route),
    /// Adds or removes a policy rule.
    Rule(Verb, Rule),
    /// Replaces a table.
    ReplaceTable(Table),
    /// Removes a table.
    RemoveTable(Family, String),
    /// Removes and adds elements of a table's sets.
    EditElements {
        /// Family.
        family: Family,
        /// Table.
        table: String,
        /// To be removed first.
        remove: Vec<ElementEdit>,
        /// To be added then.
        add: Vec<ElementEdit>,
    },
    /// Changes a service of IPVS.
    Ipvs(IpvsStep),
    /// Changes the tunnel's device of this name.
    Tunnel(String, TunnelStep),
}

/// A change of a service of IPVS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IpvsStep {
    /// Makes it, without destinations.
    New(ServiceKey, String),
    /// Changes its scheduler.
    Set(ServiceKey, String),
    /// Removes it.
    Delete(ServiceKey),
    /// Changes a destination, with the weight that it is to have.
    Destination(ServiceKey, Edit, (IpAddr, u16), u32),
    /// Sets the seconds after which a silent TCP connection is forgotten.
    Idle(u32),
}

impl fmt::Display for NetOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = |verb: &Verb| if *verb == Verb::Add { "add" } else { "remove" };
        match &self.change {
            Change::CreateSpace => f.write_str("create the namespace"),
            Change::RemoveSpace => f.write_str("remove the namespace"),
            Change::DeleteLink(name) => write!(f, "remove interface {name}"),
            Change::CreateLink(name, _) => write!(f, "create interface {name}"),
            Change::UpdateLink(name, _) => write!(f, "adjust interface {name}"),
            Change::Set(path, value) => write!(f, "set {path} to {value}"),
            Change::Address(v, link, net) => write!(f, "{} address {net} of {link}", verb(v)),
            Change::Neighbour(v, link, at, _) => write!(f, "{} neighbour {at} on {link}", verb(v)),
            Change::Fdb(v, link, mac, remote) => {
                write!(f, "{} {mac} at {remote} on {link}", verb(v))
            }
            Change::Route(v, route) => {
                write!(f, "{} route to {} on {}", verb(v), route.to, route.link)
            }
            Change::Rule(v, rule) => write!(f, "{} rule for table {}", verb(v), rule.table),
            Change::ReplaceTable(table) => write!(f, "load nftables table {}", table.name),
            Change::RemoveTable(_, table) => write!(f, "remove nftables table {table}"),
            Change::EditElements { table, .. } => {
                write!(f, "update sets of nftables table {table}")
            }
            Change::Tunnel(name, _) => write!(f, "set key, port and peers of {name}"),
            Change::Ipvs(step) => match step {
                IpvsStep::New(key, _) => write!(f, "make IPVS service {:#x}", key.mark),
                IpvsStep::Set(key, _) => write!(f, "change IPVS service {:#x}", key.mark),
                IpvsStep::Delete(key) => write!(f, "remove IPVS service {:#x}", key.mark),
                IpvsStep::Destination(key, _, (address, _), _) => {
                    let mark = key.mark;
                    write!(f, "change destination {address} of IPVS service {mark:#x}")
                }
                IpvsStep::Idle(seconds) => {
                    write!(f, "let IPVS keep silent connections for {seconds} s")
                }
            },
        }?;
        write!(f, " in the {}", self.space)
    }
}

/// Returns the steps from `have` to `want`, in the order in which they work; none if nothing is missing.
pub fn diff(want: &KernelState, have: &Observed) -> Vec<NetOp> {
    let mut have = have.clone();
    let mut ops = Vec::new();
    let nothing = SpaceState::default();
    // Interfaces are removed first, and one by one even where their namespace goes too: the kernel takes namespaces
    // apart later, and would hold a VXLAN identifier until then.
    let found: Vec<Space> = have.spaces.keys().cloned().collect();
    for space in &found {
        let wanted = want.spaces.get(space).unwrap_or(&nothing);
        for name in surplus_links(space, wanted, &have) {
            forget_link(&mut have, space, &name);
            ops.push(op(space, Change::DeleteLink(name)));
        }
    }
    for space in &found {
        if matches!(space, Space::Router(_)) && !want.spaces.contains_key(space) {
            have.spaces.remove(space);
            ops.push(op(space, Change::RemoveSpace));
        }
    }
    for space in want.spaces.keys() {
        if matches!(space, Space::Router(_)) && !have.spaces.contains_key(space) {
            have.spaces.insert(space.clone(), ObservedSpace::default());
            ops.push(op(space, Change::CreateSpace));
        }
    }
    for (space, wanted) in &want.spaces {
        let empty = ObservedSpace::default();
        let mut changes = link_changes(wanted, have.spaces.get(space).unwrap_or(&empty));
        // Nothing can be put into a container that is not open.
        changes.retain(|change| match change {
            Change::CreateLink(
                _,
                Link {
                    kind: LinkKind::Veth { peer },
                    ..
                },
            ) => have.spaces.contains_key(&peer.space),
            _ => true,
        });
        for change in &changes {
            // What the old far end of a veth carried is gone with it.
            if let Change::CreateLink(
                _,
                Link {
                    kind: LinkKind::Veth { peer },
                    ..
                },
            ) = change
            {
                forget_link(&mut have, &peer.space, &peer.name);
            }
        }
        ops.extend(changes.into_iter().map(|change| op(space, change)));
    }
    for (space, held) in &have.spaces {
        let wanted = want.spaces.get(space).unwrap_or(&nothing);
        // Another key goes with another address, and between the two packets are lost: one comes right after the other.
        let mut changes: Vec<Change> = tunnel_change(wanted, held).into_iter().collect();
        changes.extend(object_changes(space, wanted, &held.objects));
        changes.extend(table_changes(wanted, held));
        if let Some(idle) = wanted.ipvs_idle_s
            && held.ipvs_idle_s != Some(idle)
        {
            changes.push(Change::Ipvs(IpvsStep::Idle(idle)));
        }
        changes.extend(ipvs_changes(&wanted.ipvs, &held.ipvs));
        ops.extend(changes.into_iter().map(|change| op(space, change)));
    }
    ops
}

fn op(space: &Space, change: Change) -> NetOp {
    NetOp {
        space: space.clone(),
        change,
    }
}

/// Kinds of interfaces that we make. Some kernels put others into every namespace, which cannot even be removed.
const OURS: [&str; 4] = ["bridge", "veth", "vxlan", "wireguard"];

/// Interfaces that must go: not wanted any more, of another kind, or one whose other end is not where it belongs.
fn surplus_links(space: &Space, wanted: &SpaceState, have: &Observed) -> Vec<String> {
    if matches!(space, Space::Container(_)) {
        return Vec::new();
    }
    let held = have.spaces[space]
        .links
        .iter()
        .filter(|(_, link)| OURS.contains(&link.kind.as_str()));
    // A router's links to the host are far ends of some there, which decide about both.
    let of_host = |name: &str| [naming::UPLINK, naming::LOOPBACK6].contains(&name);
    let held =
        held.filter(|(name, _)| !(matches!(space, Space::Router(_)) && of_host(name.as_str())));
    let surplus = held.filter(|(name, found)| match wanted.links.get(*name) {
        None => true,
        Some(link) => !same_device(link, found) || !far_end_is_there(link, have),
    });
    surplus.map(|(name, _)| name.clone()).collect()
}

fn same_device(link: &Link, found: &ObservedLink) -> bool {
    match &link.kind {
        LinkKind::Bridge => found.kind == "bridge",
        LinkKind::Veth { .. } => found.kind == "veth",
        LinkKind::Wireguard => found.kind == "wireguard",
        LinkKind::Vxlan { vni, port, local } => {
            // Any address is told as none.
            let local = (!local.is_unspecified()).then_some(*local);
            found.index == naming::VXLAN_INDEX && found.vxlan == Some((*vni, *port, local))
        }
    }
}

fn far_end_is_there(link: &Link, have: &Observed) -> bool {
    let LinkKind::Veth { peer } = &link.kind else {
        return true;
    };
    let space = have.spaces.get(&peer.space);
    if space.is_none() && matches!(peer.space, Space::Container(_)) {
        // Not looked into this time; the kernel removes both ends together.
        return true;
    }
    let far = space.and_then(|space| space.links.get(&peer.name));
    far.is_some_and(|far| far.mac == Some(peer.mac) && far.kind == "veth" && far.up)
}

/// Removes an interface with all that the kernel removes with it in its namespace.
fn forget_link(have: &mut Observed, space: &Space, name: &str) {
    if let Some(held) = have.spaces.get_mut(space) {
        held.links.remove(name);
        forget_objects(&mut held.objects, name);
    }
}

/// Forgets what the kernel removes together with an interface.
pub(crate) fn forget_objects(objects: &mut Objects, link: &str) {
    objects.addresses.retain(|(name, _)| name != link);
    objects.routes.retain(|route| route.link != link);
    objects.neighbours.retain(|(name, _), _| name != link);
    objects.fdb.retain(|(name, _), _| name != link);
    let (conf, neigh) = (format!("/conf/{link}/"), format!("/neigh/{link}/"));
    objects
        .settings
        .retain(|path, _| !path.contains(&conf) && !path.contains(&neigh));
}

fn link_changes(wanted: &SpaceState, held: &ObservedSpace) -> Vec<Change> {
    // Bridges come first: ports name them as their master.
    let mut links: Vec<(&String, &Link)> = wanted.links.iter().collect();
    links.sort_by_key(|(_, link)| link.kind != LinkKind::Bridge);
    let changes = links
        .into_iter()
        .filter_map(|(name, link)| match held.links.get(name) {
            None => Some(Change::CreateLink(name.clone(), link.clone())),
            Some(found) if !as_wanted(link, found, held) => {
                Some(Change::UpdateLink(name.clone(), link.clone()))
            }
            Some(_) => None,
        });
    changes.collect()
}

fn as_wanted(link: &Link, found: &ObservedLink, held: &ObservedSpace) -> bool {
    let master = link
        .master
        .as_ref()
        .map(|bridge| held.links.get(bridge).map(|bridge| bridge.index));
    found.up
        && link.mtu.is_none_or(|mtu| mtu == found.mtu)
        && link.mac.is_none_or(|mac| Some(mac) == found.mac)
        && master.is_none_or(|index| index.is_some() && index == found.master)
        && (link.master.is_none()
            || (link.isolated, link.hairpin) == (found.isolated, found.hairpin))
}

fn object_changes(space: &Space, wanted: &SpaceState, held: &Objects) -> Vec<Change> {
    use Verb::{Add, Remove};
    let want = &wanted.objects;
    let mut changes = Vec::new();
    // In a container, addresses of interfaces that are not ours are not ours either.
    let ours = |link: &String| {
        !matches!(space, Space::Container(_))
            || want.addresses.iter().any(|(wanted, _)| wanted == link)
    };
    changes.extend(
        held.rules
            .difference(&want.rules)
            .map(|rule| Change::Rule(Remove, rule.clone())),
    );
    changes.extend(
        held.routes
            .difference(&want.routes)
            .map(|route| Change::Route(Remove, route.clone())),
    );
    let stale = held
        .fdb
        .iter()
        .filter(|(key, _)| !want.fdb.contains_key(key));
    changes.extend(
        stale.map(|((link, mac), remote)| Change::Fdb(Remove, link.clone(), *mac, *remote)),
    );
    let stale = held
        .neighbours
        .iter()
        .filter(|(key, _)| !want.neighbours.contains_key(key));
    changes
        .extend(stale.map(|((link, at), mac)| Change::Neighbour(Remove, link.clone(), *at, *mac)));
    let stale = held
        .addresses
        .difference(&want.addresses)
        .filter(|(link, _)| ours(link));
    changes.extend(stale.map(|(link, net)| Change::Address(Remove, link.clone(), *net)));

    let missing = want
        .settings
        .iter()
        .filter(|(path, value)| held.settings.get(*path) != Some(value));
    changes.extend(missing.map(|(path, value)| Change::Set(path.clone(), value.clone())));
    let missing = want.addresses.difference(&held.addresses);
    changes.extend(missing.map(|(link, net)| Change::Address(Add, link.clone(), *net)));
    let missing = want
        .neighbours
        .iter()
        .filter(|(key, mac)| held.neighbours.get(key) != Some(mac));
    changes
        .extend(missing.map(|((link, at), mac)| Change::Neighbour(Add, link.clone(), *at, *mac)));
    let missing = want
        .fdb
        .iter()
        .filter(|(key, remote)| held.fdb.get(key) != Some(remote));
    changes
        .extend(missing.map(|((link, mac), remote)| Change::Fdb(Add, link.clone(), *mac, *remote)));
    changes.extend(
        want.routes
            .difference(&held.routes)
            .map(|route| Change::Route(Add, route.clone())),
    );
    changes.extend(
        want.rules
            .difference(&held.rules)
            .map(|rule| Change::Rule(Add, rule.clone())),
    );
    changes
}

/// What must be done so that IPVS has these services.
pub(super) fn ipvs_changes(
    want: &BTreeMap<ServiceKey, Service>,
    have: &BTreeMap<ServiceKey, Service>,
) -> Vec<Change> {
    let mut steps = Vec::new();
    for key in have.keys().filter(|key| !want.contains_key(key)) {
        steps.push(IpvsStep::Delete(*key));
    }
    let nothing = BTreeMap::new();
    for (key, service) in want {
        let found = have.get(key);
        match found {
            None => steps.push(IpvsStep::New(*key, service.scheduler.clone())),
            Some(found) if found.scheduler != service.scheduler => {
                steps.push(IpvsStep::Set(*key, service.scheduler.clone()));
            }
            Some(_) => {}
        }
        let held = found.map_or(&nothing, |found| &found.destinations);
        for (at, weight) in &service.destinations {
            let edit = match held.get(at) {
                None => Edit::Add,
                Some(found) if found != weight => Edit::Set,
                Some(_) => continue,
            };
            steps.push(IpvsStep::Destination(*key, edit, *at, *weight));
        }
        for at in held
            .keys()
            .filter(|at| !service.destinations.contains_key(at))
        {
            steps.push(IpvsStep::Destination(*key, Edit::Remove, *at, 0));
        }
    }
    steps.into_iter().map(Change::Ipvs).collect()
}

fn tunnel_change(wanted: &SpaceState, held: &ObservedSpace) -> Option<Change> {
    let (name, wanted) = wanted.tunnel.as_ref()?;
    // One that is made anew has nothing.
    let found = held.tunnel.as_ref();
    let found = found.filter(|_| held.links.contains_key(name));
    let step = tunnel::step(wanted, found)?;
    Some(Change::Tunnel(name.clone(), step))
}

fn table_changes(wanted: &SpaceState, held: &ObservedSpace) -> Vec<Change> {
    let mut changes = Vec::new();
    for (family, name) in held
        .tables
        .keys()
        .filter(|key| !wanted.tables.contains_key(key))
    {
        changes.push(Change::RemoveTable(*family, name.clone()));
    }
    for (key, table) in &wanted.tables {
        let Some(found) = held
            .tables
            .get(key)
            .filter(|found| found.outline == table.outline())
        else {
            changes.push(Change::ReplaceTable(table.clone()));
            continue;
        };
        let (remove, add) = element_edits(table.sets.keys(), &table.elements, &found.elements);
        if !remove.is_empty() || !add.is_empty() {
            changes.push(Change::EditElements {
                family: key.0,
                table: key.1.clone(),
                remove,
                add,
            });
        }
    }
    changes
}

/// What must be removed from and added to these sets, so that they hold what is wanted.
pub(super) fn element_edits<'s>(
    sets: impl Iterator<Item = &'s String>,
    want: &Elements,
    have: &Elements,
) -> (Vec<ElementEdit>, Vec<ElementEdit>) {
    let nothing = BTreeMap::new();
    let (mut remove, mut add) = (Vec::new(), Vec::new());
    for set in sets {
        let want = want.get(set).unwrap_or(&nothing);
        let have = have.get(set).unwrap_or(&nothing);
        let edit = |(key, element): (&Vec<u8>, &Element)| ElementEdit {
            set: set.clone(),
            key: key.clone(),
            element: element.clone(),
        };
        let stale = have.iter();
        remove.extend(
            stale
                .filter(|(key, element)| want.get(*key) != Some(element))
                .map(edit),
        );
        let missing = want.iter();
        add.extend(
            missing
                .filter(|(key, element)| have.get(*key) != Some(element))
                .map(edit),
        );
    }
    (remove, add)
}
