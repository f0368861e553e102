//! What only one object may hold: names, addresses, ports, numbers.

use std::{
    collections::BTreeSet,
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use shoal_api::{
    NetworkId,
    object::{Object, ObjectKey},
    spec::{Protocol, PublishMode},
};

use super::{Rejected, Table};

/// Kinds of objects with unique names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Services.
    Service,
    /// Networks.
    Network,
    /// Secrets.
    Secret,
    /// Configs.
    Config,
}

impl Kind {
    /// The word for it in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Network => "network",
            Self::Secret => "secret",
            Self::Config => "config",
        }
    }
}

/// A name among those that only one object may have, ordered by its hash first: of tens of thousands of names a search then
/// reads the numbers that lie side by side, and of the texts only the one it looks for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct UniqueName {
    hash: u64,
    text: Arc<str>,
}

impl From<&str> for UniqueName {
    fn from(text: &str) -> Self {
        let mut hasher = DefaultHasher::new(); // without a random key: all managers and all runs keep one order
        text.hash(&mut hasher);
        Self {
            hash: hasher.finish(),
            text: text.into(),
        }
    }
}

impl fmt::Display for UniqueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Something that at most one object holds at a time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claim {
    /// The name of an object of a kind.
    Name(Kind, UniqueName),
    /// A VXLAN network identifier.
    Vni(u32),
    /// A member of the Raft group.
    RaftId(u64),
    /// A port published on all nodes.
    IngressPort(Protocol, u16),
    /// A range of addresses; ranges must not overlap.
    Subnet(IpNet),
    /// An address in a network: a gateway, a service's virtual one or that of a task that is not over.
    Address(NetworkId, IpAddr),
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(kind, name) => write!(f, "the {} name {name}", kind.as_str()),
            Self::Vni(vni) => write!(f, "the VXLAN network identifier {vni}"),
            Self::RaftId(id) => write!(f, "the Raft id {id}"),
            Self::IngressPort(protocol, port) => write!(f, "the ingress port {port}/{protocol}"),
            Self::Subnet(subnet) => write!(f, "the subnet {subnet}"),
            Self::Address(network, address) => {
                write!(f, "the address {address} of network {network}")
            }
        }
    }
}

/// What an object holds.
pub(super) fn claims_of(object: &Object) -> BTreeSet<Claim> {
    match object {
        Object::Node(node) => node
            .manager
            .iter()
            .map(|m| Claim::RaftId(m.raft_id))
            .collect(),
        Object::Service(service) => {
            let endpoint = service.endpoint.as_ref();
            let vips = endpoint
                .into_iter()
                .flat_map(|endpoint| &endpoint.virtual_ips);
            let ports = endpoint.into_iter().flat_map(|endpoint| &endpoint.ports);
            let ingress =
                ports.filter(|port| port.mode == PublishMode::Ingress && port.published != 0);
            [Claim::Name(
                Kind::Service,
                service.spec.annotations.name.as_str().into(),
            )]
            .into_iter()
            .chain(ingress.map(|port| Claim::IngressPort(port.protocol, port.published)))
            .chain(vips.map(|vip| Claim::Address(vip.network.clone(), vip.addr.addr())))
            .collect()
        }
        // A task that is over has given back its addresses.
        Object::Task(task) if task.status.state.is_terminal() => BTreeSet::new(),
        Object::Task(task) => task
            .networks
            .iter()
            .flat_map(|attachment| {
                let addresses = attachment.addresses.iter();
                addresses.map(|address| Claim::Address(attachment.network.clone(), address.addr()))
            })
            .collect(),
        Object::Network(network) => {
            let name = Claim::Name(Kind::Network, network.spec.annotations.name.as_str().into());
            let allocated = network.allocated.iter();
            let given = allocated.flat_map(|given| {
                let subnets = given.subnets.iter().flat_map(|subnet| {
                    [
                        Claim::Subnet(subnet.range),
                        Claim::Address(network.id.clone(), subnet.gateway),
                    ]
                });
                subnets.chain([Claim::Vni(given.vni)])
            });
            given.chain([name]).collect()
        }
        Object::Secret(secret) => BTreeSet::from([Claim::Name(
            Kind::Secret,
            secret.spec.annotations.name.as_str().into(),
        )]),
        Object::Config(config) => BTreeSet::from([Claim::Name(
            Kind::Config,
            config.spec.annotations.name.as_str().into(),
        )]),
        Object::Cluster(_) => BTreeSet::new(),
    }
}

/// The subnet among those claimed that overlaps `wanted`, with its holder.
pub(super) fn overlapping(
    claims: &Table<Claim, ObjectKey>,
    wanted: IpNet,
) -> Option<(IpNet, &ObjectKey)> {
    // Subnets do not overlap each other, so only the nearest neighbours can overlap a further one.
    let at = Claim::Subnet(wanted);
    let below = claims.last_before(|claim| *claim < at);
    let above = claims.iter_from(|claim| *claim < at).next();
    below
        .into_iter()
        .chain(above)
        .find_map(|(claim, holder)| match claim {
            Claim::Subnet(range) if overlap(*range, wanted) => Some((*range, holder)),
            _ => None,
        })
}

/// Whether two ranges have an address in common.
pub fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// Moves the claims of an object from `old` to `new`; if one is refused nothing has changed.
pub(super) fn exchange(
    claims: &mut Table<Claim, ObjectKey>,
    key: &ObjectKey,
    old: &BTreeSet<Claim>,
    new: &BTreeSet<Claim>,
) -> Result<(), Rejected> {
    for claim in old.difference(new) {
        claims.remove(claim);
    }
    let mut given = Vec::new();
    for claim in new.difference(old) {
        if let Some((claim, holder)) = take(claims, key, claim) {
            for claim in given {
                claims.remove(claim);
            }
            for claim in old.difference(new) {
                claims.insert(claim.clone(), key.clone());
            }
            return Err(Rejected::Taken { claim, holder });
        }
        given.push(claim);
    }
    Ok(())
}

/// Gives a claim to an object, unless another one holds it or one that excludes it: that one then, with its holder.
fn take(
    claims: &mut Table<Claim, ObjectKey>,
    key: &ObjectKey,
    claim: &Claim,
) -> Option<(Claim, ObjectKey)> {
    if let Claim::Subnet(range) = claim
        && let Some((range, holder)) = overlapping(claims, *range)
    {
        return Some((Claim::Subnet(range), holder.clone()));
    }
    // One search instead of two: nearly always nobody holds it.
    let holder = claims.insert(claim.clone(), key.clone())?;
    claims.insert(claim.clone(), holder.clone());
    Some((claim.clone(), holder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_refused_one_claim_keeps_all_that_it_had() {
        let (one, other) = (ObjectKey::Cluster, ObjectKey::Node("n1".parse().unwrap()));
        let name = |text: &str| Claim::Name(Kind::Network, text.into());
        let subnet = |text: &str| Claim::Subnet(text.parse().unwrap());
        let none = BTreeSet::new();
        let old = BTreeSet::from([name("a"), Claim::Vni(1), subnet("10.0.0.0/24")]);
        let mut claims = Table::default();
        exchange(&mut claims, &one, &none, &old).unwrap();
        let others = BTreeSet::from([name("b"), subnet("10.0.2.0/24")]);
        exchange(&mut claims, &other, &none, &others).unwrap();
        for (wanted, taken) in [
            (vec![Claim::Vni(2), name("b")], name("b")),
            // The second of two subnets reaches into another's.
            (
                vec![name("c"), subnet("10.0.1.0/24"), subnet("10.0.2.0/23")],
                subnet("10.0.2.0/24"),
            ),
        ] {
            let before = claims.clone();
            let refused = exchange(&mut claims, &one, &old, &wanted.into_iter().collect());
            let holder = other.clone();
            assert_eq!(
                refused,
                Err(Rejected::Taken {
                    claim: taken,
                    holder
                })
            );
            assert!(claims == before);
        }
        // What it gives up makes room for what it takes.
        let new = BTreeSet::from([name("c"), subnet("10.0.0.0/23")]);
        exchange(&mut claims, &one, &old, &new).unwrap();
        assert_eq!(claims.get(&Claim::Vni(1)), None);
        assert_eq!(claims.get(&subnet("10.0.0.0/23")), Some(&one));
    }
}
