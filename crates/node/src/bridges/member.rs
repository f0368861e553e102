//! A container's place in the networks of this host.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use shoal_api::{
    container::{
        ContainerId, EndpointInfo, EndpointSpec, NetworkSettings, Port, PortBinding, PortProtocol,
        PublishedPort as Shown,
    },
    network::Protocol,
};
use shoal_dns::Host;
use shoal_docker_api::backend::NetworkMember;
use shoal_overlay::{Attachment, BridgeError, DYNAMIC_PORTS, PortRequest, PublishedPort, netns};

use super::{BridgesError, definition::Definition};

/// A container with endpoints in networks of this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Member {
    /// The container.
    pub container: ContainerId,
    /// Its name.
    pub name: String,
    /// Its hostname.
    pub hostname: String,
    /// Its network namespace.
    pub netns: PathBuf,
    /// Its endpoints, the one that is its way out first.
    pub endpoints: Vec<Endpoint>,
    /// Ports of the host that lead to it.
    pub published: Vec<PublishedPort>,
    /// Ports that it says it listens on, published or not.
    pub exposed: BTreeSet<Port>,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Endpoint {
    /// Identity, 64 hexadecimal digits.
    pub id: String,
    /// What the kernel holds.
    pub attachment: Attachment,
    /// What was asked for.
    pub spec: EndpointSpec,
}

impl Endpoint {
    /// Its addresses, IPv4 first.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.attachment.addresses()
    }
}

impl Member {
    /// Adds an endpoint behind those with the same priority as the way out.
    pub(super) fn insert(&mut self, endpoint: Endpoint) {
        let priority = endpoint.spec.gw_priority;
        let mut others = self.endpoints.iter();
        let place = others.position(|other| other.spec.gw_priority < priority);
        self.endpoints
            .insert(place.unwrap_or(self.endpoints.len()), endpoint);
    }

    /// The place of an endpoint among all of them.
    pub(super) fn rank(&self, endpoint: &Endpoint) -> usize {
        let mut all = self.endpoints.iter();
        let place = all.position(|other| other.id == endpoint.id);
        place.unwrap_or(self.endpoints.len())
    }

    /// The endpoint in a network, by its id.
    pub(super) fn endpoint(&self, network: &str) -> Option<&Endpoint> {
        self.endpoints
            .iter()
            .find(|endpoint| endpoint.attachment.network == network)
    }

    /// Names of an endpoint: of the container, its aliases, its short id, its hostname; the first is the one that
    /// addresses resolve to.
    pub(super) fn names(&self, endpoint: &Endpoint) -> Vec<String> {
        let mut names = vec![self.name.clone()];
        let others = endpoint.spec.aliases.iter().cloned();
        for name in others.chain([self.container.short().to_owned(), self.hostname.clone()]) {
            if !name.is_empty() && !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// Its names and address in a network, for the resolver.
    pub(super) fn host(&self, network: &str) -> Option<Host> {
        let endpoint = self.endpoint(network)?;
        Some(Host {
            names: self.names(endpoint),
            addresses: endpoint.addresses().collect(),
        })
    }

    /// What `network inspect` shows of it.
    pub(super) fn show(&self, network: &Definition) -> Option<NetworkMember> {
        let endpoint = self.endpoint(&network.id)?;
        Some(NetworkMember {
            name: self.name.clone(),
            endpoint_id: endpoint.id.clone(),
            mac_address: endpoint.attachment.mac().to_string(),
            ipv4: net_of(endpoint, network).map(IpNet::V4),
            ipv6: net6_of(endpoint, network).map(IpNet::V6),
        })
    }

    /// What `inspect` of the container shows of an endpoint.
    pub(super) fn info(&self, endpoint: &Endpoint, network: &Definition) -> EndpointInfo {
        let spec = network.bridge.as_ref().map(|bridge| &bridge.spec);
        EndpointInfo {
            network_id: network.id.clone(),
            endpoint_id: endpoint.id.clone(),
            ipv4: endpoint.attachment.address,
            ipv4_prefix_len: net_of(endpoint, network).map_or(0, |net| net.prefix_len()),
            gateway: spec
                .filter(|spec| !spec.internal)
                .and_then(|spec| Some(spec.ipv4?.gateway)),
            ipv6: endpoint.attachment.ipv6,
            ipv6_prefix_len: net6_of(endpoint, network).map_or(0, |net| net.prefix_len()),
            ipv6_gateway: spec
                .filter(|spec| !spec.internal && endpoint.attachment.ipv6.is_some())
                .and_then(|spec| Some(spec.ipv6?.gateway)),
            mac_address: Some(endpoint.attachment.mac().to_string()),
            dns_names: if network.has_names() {
                self.names(endpoint)
            } else {
                Vec::new()
            },
            spec: endpoint.spec.clone(),
            ..EndpointInfo::default()
        }
    }

    /// All of that, and the ports.
    pub(super) fn settings(&self, networks: &BTreeMap<String, Definition>) -> NetworkSettings {
        let infos = self.endpoints.iter().filter_map(|endpoint| {
            let network = networks.get(&endpoint.attachment.network)?;
            Some((network.name.clone(), self.info(endpoint, network)))
        });
        NetworkSettings {
            sandbox: Some(self.netns.clone()),
            sandbox_id: self.container.to_string(),
            ports: shown_ports(&self.exposed, &self.published),
            networks: infos.collect(),
        }
    }
}

fn net_of(endpoint: &Endpoint, network: &Definition) -> Option<Ipv4Net> {
    let place = network.bridge.as_ref()?.spec.ipv4?;
    Ipv4Net::new(endpoint.attachment.address?, place.subnet.prefix_len()).ok()
}

fn net6_of(endpoint: &Endpoint, network: &Definition) -> Option<Ipv6Net> {
    let place = network.bridge.as_ref()?.spec.ipv6?;
    Ipv6Net::new(endpoint.attachment.ipv6?, place.subnet.prefix_len()).ok()
}

/// Reads an Ethernet address that a single host may have.
pub(super) fn parse_mac(text: &str) -> Result<[u8; 6], BridgesError> {
    let invalid = || BridgesError::Invalid(format!("invalid MAC address {text:?}"));
    let bytes = text
        .split([':', '-'])
        .map(|part| u8::from_str_radix(part, 16))
        .collect::<Result<Vec<u8>, _>>();
    let mac: [u8; 6] = bytes
        .map_err(|_| invalid())?
        .try_into()
        .map_err(|_| invalid())?;
    // The lowest bit of the first byte marks addresses of groups.
    if mac[0] & 1 == 1 || mac == [0; 6] {
        Err(invalid())
    } else {
        Ok(mac)
    }
}

/// What is to be published at which ports of the host for a container with this endpoint.
pub(super) fn port_requests(
    bindings: &BTreeMap<Port, Vec<PortBinding>>,
    exposed: &BTreeSet<Port>,
    all: bool,
    attachment: &Attachment,
    host_binding: Ipv4Addr,
) -> Result<Vec<PortRequest>, BridgesError> {
    let any = [PortBinding::default()];
    let unnamed = exposed
        .iter()
        .filter(|port| all && !bindings.contains_key(port))
        .map(|port| (port, any.as_slice()));
    let named = bindings
        .iter()
        .map(|(port, bindings)| (port, bindings.as_slice()));
    let (v4, v6) = (
        attachment.address.map(IpAddr::V4),
        attachment.ipv6.map(IpAddr::V6),
    );
    let everywhere = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let mut requests = Vec::new();
    for (port, bindings) in named.chain(unnamed) {
        for binding in bindings {
            let (host_ip, address, twin) = match (binding.host_ip, v4, v6) {
                (None, Some(v4), Some(v6)) if host_binding.is_unspecified() => {
                    (host_binding.into(), v4, Some((everywhere, v6)))
                }
                (None, Some(v4), _) => (host_binding.into(), v4, None),
                (None, None, Some(v6)) => (everywhere, v6, None),
                // It has no address that a port could lead to.
                (None, None, None) => continue,
                (Some(ip @ IpAddr::V4(_)), Some(v4), _) => (ip, v4, None),
                (Some(ip @ IpAddr::V4(_)), None, _) => {
                    return Err(BridgesError::Invalid(format!(
                        "cannot publish port {port} on {ip}: the container has no IPv4 address"
                    )));
                }
                (Some(ip @ IpAddr::V6(_)), _, Some(v6)) => (ip, v6, None),
                (Some(ip @ IpAddr::V6(_)), _, None) => {
                    return Err(BridgesError::Invalid(format!(
                        "cannot publish port {port} on [{ip}]: the container has no IPv6 address; make its network with --ipv6"
                    )));
                }
            };
            requests.push(PortRequest {
                host_ip,
                host_ports: range_of(binding.host_ports),
                protocol: protocol(port.protocol),
                address,
                port: port.number,
                twin,
            });
        }
    }
    // Whoever names a port gets it before a port is chosen for somebody who does not care.
    requests.sort_by_key(|request| request.host_ports == DYNAMIC_PORTS);
    Ok(requests)
}

/// The same ports again, for another place of the container; those of a family that it has no address of are left out.
pub(super) fn moved(published: &[PublishedPort], to: &Attachment) -> Vec<PortRequest> {
    let again = published.iter().filter_map(|port| {
        let address = match port.address {
            IpAddr::V4(_) => to.address?.into(),
            IpAddr::V6(_) => to.ipv6?.into(),
        };
        Some(PortRequest {
            host_ip: port.host_ip,
            host_ports: port.host_port..=port.host_port,
            protocol: port.protocol,
            address,
            port: port.port,
            twin: None,
        })
    });
    again.collect()
}

fn range_of(ports: Option<(u16, u16)>) -> RangeInclusive<u16> {
    ports.map_or(DYNAMIC_PORTS, |(first, last)| first..=last)
}

/// Ports as the API shows them: those that are only exposed have an empty list.
pub(super) fn shown_ports(
    exposed: &BTreeSet<Port>,
    published: &[PublishedPort],
) -> BTreeMap<Port, Vec<Shown>> {
    let mut ports: BTreeMap<Port, Vec<Shown>> =
        exposed.iter().map(|port| (*port, Vec::new())).collect();
    for port in published {
        let protocol = match port.protocol {
            Protocol::Tcp => PortProtocol::Tcp,
            Protocol::Udp => PortProtocol::Udp,
            Protocol::Sctp => PortProtocol::Sctp,
        };
        let shown = Shown {
            host_ip: Some(port.host_ip),
            host_port: Some(port.host_port),
            container_port: port.port,
            protocol,
        };
        ports
            .entry(Port {
                number: port.port,
                protocol,
            })
            .or_default()
            .push(shown);
    }
    ports
}

fn protocol(protocol: PortProtocol) -> Protocol {
    match protocol {
        PortProtocol::Tcp => Protocol::Tcp,
        PortProtocol::Udp => Protocol::Udp,
        PortProtocol::Sctp => Protocol::Sctp,
    }
}

/// Names of the interfaces in a namespace, whoever made them.
pub(super) fn interfaces_in(netns: &Path) -> Result<BTreeSet<String>, BridgesError> {
    let names = netns::run_in(netns, || {
        let interfaces = nix::net::if_::if_nameindex()?;
        let names = interfaces
            .iter()
            .map(|one| one.name().to_string_lossy().into_owned());
        Ok(names.collect())
    });
    let names: nix::Result<BTreeSet<String>> = names.map_err(BridgeError::from)?;
    names.map_err(|errno| BridgesError::io("list the interfaces of", netns)(errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(text: &str) -> Port {
        text.parse().unwrap()
    }

    #[test]
    fn bindings_become_requests() {
        let fixed = PortBinding {
            host_ip: "127.0.0.1".parse().ok(),
            host_ports: Some((8080, 8080)),
        };
        let bindings = BTreeMap::from([
            (port("53/udp"), vec![PortBinding::default()]),
            (
                port("80"),
                vec![
                    fixed,
                    PortBinding {
                        host_ip: None,
                        host_ports: Some((9000, 9010)),
                    },
                ],
            ),
        ]);
        let exposed = BTreeSet::from([port("80"), port("443")]);
        let mut place = Attachment {
            network: "n".to_owned(),
            address: Some(Ipv4Addr::new(172, 17, 0, 2)),
            mac: None,
            ifname: "eth0".to_owned(),
            ipv6: None,
            link_local: Vec::new(),
        };
        let ask = |all| {
            let requests =
                port_requests(&bindings, &exposed, all, &place, Ipv4Addr::UNSPECIFIED).unwrap();
            let text = |r: &PortRequest| {
                format!(
                    "{}:{}-{}/{} {}",
                    r.host_ip,
                    r.host_ports.start(),
                    r.host_ports.end(),
                    r.protocol,
                    r.port
                )
            };
            requests.iter().map(text).collect::<Vec<_>>()
        };
        let named = ["127.0.0.1:8080-8080/tcp 80", "0.0.0.0:9000-9010/tcp 80"];
        assert_eq!(
            ask(false),
            [named[0], named[1], "0.0.0.0:32768-60999/udp 53"]
        );
        let all = ask(true);
        assert_eq!(all[..2], named);
        assert_eq!(
            all[2..],
            ["0.0.0.0:32768-60999/udp 53", "0.0.0.0:32768-60999/tcp 443"]
        );
        let v6 = BTreeMap::from([(
            port("80"),
            vec![PortBinding {
                host_ip: "::1".parse().ok(),
                host_ports: None,
            }],
        )]);
        port_requests(&v6, &exposed, false, &place, Ipv4Addr::UNSPECIFIED).unwrap_err();
        place.ipv6 = "fd00::2".parse().ok();
        let requests = port_requests(&v6, &exposed, false, &place, Ipv4Addr::UNSPECIFIED).unwrap();
        assert_eq!(requests[0].host_ip, "::1".parse::<IpAddr>().unwrap());
        let both = port_requests(&bindings, &exposed, false, &place, Ipv4Addr::UNSPECIFIED);
        let twins = both.unwrap().iter().filter(|r| r.twin.is_some()).count();
        assert_eq!(
            twins, 2,
            "what names no address is published in both families"
        );
        place.address = None;
        let requests = port_requests(&v6, &exposed, true, &place, Ipv4Addr::UNSPECIFIED).unwrap();
        let ips = requests.iter().map(|request| request.host_ip.to_string());
        assert_eq!(ips.collect::<Vec<_>>(), ["::1", "::"]);
        port_requests(&bindings, &exposed, false, &place, Ipv4Addr::UNSPECIFIED).unwrap_err();
    }

    #[test]
    fn exposed_ports_are_shown_without_a_place_on_the_host() {
        let published = PublishedPort {
            host_ip: Ipv4Addr::UNSPECIFIED.into(),
            host_port: 8080,
            protocol: Protocol::Tcp,
            address: [172, 17, 0, 2].into(),
            port: 80,
        };
        let ports = shown_ports(&BTreeSet::from([port("80"), port("443")]), &[published]);
        assert_eq!(ports[&port("443")], []);
        assert_eq!(ports[&port("80")][0].host_port, Some(8080));
    }

    #[test]
    fn mac_addresses_are_of_one_host() {
        assert_eq!(
            parse_mac("02:42:ac:11:00:02").unwrap(),
            [2, 0x42, 0xac, 0x11, 0, 2]
        );
        for text in [
            "",
            "02:42:ac:11:00",
            "02:42:ac:11:00:02:03",
            "03:42:ac:11:00:02",
            "00:00:00:00:00:00",
            "x",
        ] {
            parse_mac(text).unwrap_err();
        }
    }
}
