//! A network as it is written down, and what a user's wish for one means.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use shoal_api::{Timestamp, spec::IpamConfig};
use shoal_docker_api::backend::{LocalNetwork, LocalNetworkSpec};
use shoal_overlay::{BridgeSpec, core::ipam};

use super::BridgesError;

/// Name of the network that containers are in unless told otherwise.
pub const BRIDGE: &str = "bridge";
/// Range of the bridge by which cluster networks reach the world; never given to another network.
const GATEWAY_BRIDGE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(172, 18, 0, 0), 16);
/// Interface names have at most 15 characters (`IFNAMSIZ` without its final zero).
const INTERFACE_NAME_MAX: usize = 15;

const OPTION_NAME: &str = "com.docker.network.bridge.name";
const OPTION_ICC: &str = "com.docker.network.bridge.enable_icc";
const OPTION_MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
const OPTION_HOST_BINDING: &str = "com.docker.network.bridge.host_binding_ipv4";
const OPTION_DEFAULT: &str = "com.docker.network.bridge.default_bridge";
const OPTION_GATEWAY_MODE: &str = "com.docker.network.bridge.gateway_mode_ipv4";
const OPTION_MTU: &str = "com.docker.network.driver.mtu";
const OPTION_IFACE_PREFIX: &str = "com.docker.network.container_iface_prefix";

/// A network of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Definition {
    /// Identity, 64 hexadecimal digits.
    pub id: String,
    /// Name.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// The bridge; absent for `host` and `none`.
    pub bridge: Option<Bridge>,
    /// Options as the user wrote them.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// What a network with a bridge has besides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Bridge {
    /// What the kernel is to hold.
    pub spec: BridgeSpec,
    /// Part of the subnet from which addresses are given.
    pub range: Option<Ipv4Net>,
    /// Whether the user chose the subnet, without which he may not choose addresses.
    pub subnet_by_user: bool,
    /// Where ports are published if the user does not say.
    pub host_binding: Ipv4Addr,
    /// Start of interface names inside containers.
    pub interface_prefix: String,
}

impl Definition {
    /// `bridge`: the network of containers that name none.
    pub(super) fn default_bridge(
        id: String,
        prefix: &str,
        now: Timestamp,
        taken: &[Ipv4Net],
    ) -> Result<Self, BridgesError> {
        let ifname = format!("{prefix}0");
        let options = [
            (OPTION_DEFAULT, "true"),
            (OPTION_ICC, "true"),
            (OPTION_MASQUERADE, "true"),
            (OPTION_HOST_BINDING, "0.0.0.0"),
            (OPTION_NAME, ifname.as_str()),
            (OPTION_MTU, "1500"),
        ];
        let spec = LocalNetworkSpec {
            name: BRIDGE.to_owned(),
            driver: BRIDGE.to_owned(),
            options: options
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            ..LocalNetworkSpec::default()
        };
        Self::new(spec, id, prefix, now, taken)
    }

    /// `host` or `none`, which need nothing from the kernel.
    pub(super) fn without_bridge(name: &str, id: String, now: Timestamp) -> Self {
        let (options, labels) = (BTreeMap::new(), BTreeMap::new());
        Self {
            id,
            name: name.to_owned(),
            created: now,
            bridge: None,
            options,
            labels,
        }
    }

    /// What the user's wish means; `taken` are ranges that others have.
    pub(super) fn new(
        wish: LocalNetworkSpec,
        id: String,
        prefix: &str,
        now: Timestamp,
        taken: &[Ipv4Net],
    ) -> Result<Self, BridgesError> {
        match wish.driver.as_str() {
            "bridge" | "" => {}
            "host" | "null" => {
                let text = format!(
                    "only one instance of \"{}\" network is allowed",
                    wish.driver
                );
                return Err(BridgesError::Forbidden(text));
            }
            "macvlan" | "ipvlan" => {
                return Err(BridgesError::Unsupported(format!(
                    "network driver {}",
                    wish.driver
                )));
            }
            other => {
                return Err(BridgesError::Invalid(format!(
                    "plugin \"{other}\" not found"
                )));
            }
        }
        if wish.ipv6 {
            return Err(BridgesError::Unsupported(
                "IPv6 in a network of one host".to_owned(),
            ));
        }
        let option = |name: &str| {
            wish.options
                .get(name)
                .map(String::as_str)
                .filter(|value| !value.is_empty())
        };
        let flag = |name: &str, otherwise| match option(name) {
            None => Ok(otherwise),
            Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => Err(invalid_option(name, other)),
        };
        if let Some(mode) = option(OPTION_GATEWAY_MODE).filter(|mode| *mode != "nat") {
            return Err(BridgesError::Unsupported(format!("gateway mode {mode:?}")));
        }
        let ifname = match option(OPTION_NAME) {
            Some(name) if is_interface_name(name) => name.to_owned(),
            Some(name) => return Err(invalid_option(OPTION_NAME, name)),
            None => format!("{prefix}b{}", id.get(..8).unwrap_or(&id)),
        };
        let mtu = match option(OPTION_MTU) {
            None => None,
            // 68 is the least that IPv4 allows (RFC 791), 65535 the most that Linux gives a veth.
            Some(text) => match text.parse::<u32>() {
                Ok(mtu) if (68..=65_535).contains(&mtu) => Some(mtu),
                _ => return Err(invalid_option(OPTION_MTU, text)),
            },
        };
        let host_binding = match option(OPTION_HOST_BINDING) {
            None => Ipv4Addr::UNSPECIFIED,
            Some(text) => text
                .parse()
                .map_err(|_| invalid_option(OPTION_HOST_BINDING, text))?,
        };
        let interface_prefix = match option(OPTION_IFACE_PREFIX) {
            None => "eth".to_owned(),
            // Two characters are left for the number.
            Some(text) if is_interface_name(text) && text.len() <= INTERFACE_NAME_MAX - 2 => {
                text.to_owned()
            }
            Some(text) => return Err(invalid_option(OPTION_IFACE_PREFIX, text)),
        };
        let addresses = Addresses::of(&wish.ipam, taken)?;
        let spec = BridgeSpec {
            id: id.clone(),
            ifname,
            subnet: addresses.subnet,
            gateway: addresses.gateway,
            internal: wish.internal,
            mtu,
            icc: flag(OPTION_ICC, true)?,
            masquerade: flag(OPTION_MASQUERADE, true)?,
        };
        let bridge = Bridge {
            spec,
            range: addresses.range,
            subnet_by_user: addresses.by_user,
            host_binding,
            interface_prefix,
        };
        Ok(Self {
            id,
            name: wish.name,
            created: now,
            bridge: Some(bridge),
            options: wish.options,
            labels: wish.labels,
        })
    }

    /// Whether docker has it from the start.
    pub(super) fn is_predefined(&self) -> bool {
        is_predefined(&self.name)
    }

    /// Whether its containers find each other by name; those of the default network do not, as in docker.
    pub(super) fn has_names(&self) -> bool {
        self.bridge.is_some() && !self.is_predefined()
    }

    /// What the API shows, without containers.
    pub(super) fn show(&self) -> LocalNetwork {
        let bridge = self.bridge.as_ref();
        let ipam = bridge.map(|bridge| IpamConfig {
            subnet: Some(IpNet::V4(bridge.spec.subnet)),
            ip_range: bridge.range.map(IpNet::V4),
            gateway: Some(IpAddr::V4(bridge.spec.gateway)),
        });
        let driver = match (bridge, self.name.as_str()) {
            (Some(_), _) => BRIDGE,
            (None, "none") => "null",
            (None, _) => "host",
        };
        LocalNetwork {
            id: self.id.clone(),
            name: self.name.clone(),
            driver: driver.to_owned(),
            created: self.created,
            internal: bridge.is_some_and(|bridge| bridge.spec.internal),
            ipv6: false,
            ipam: ipam.into_iter().collect(),
            options: self.options.clone(),
            labels: self.labels.clone(),
            containers: BTreeMap::new(),
        }
    }
}

/// Names that are docker's own.
pub fn is_predefined(name: &str) -> bool {
    matches!(name, "bridge" | "host" | "none" | "default")
}

struct Addresses {
    subnet: Ipv4Net,
    gateway: Ipv4Addr,
    range: Option<Ipv4Net>,
    by_user: bool,
}

impl Addresses {
    fn of(wish: &[IpamConfig], taken: &[Ipv4Net]) -> Result<Self, BridgesError> {
        let wish = match wish {
            [] => &IpamConfig {
                subnet: None,
                ip_range: None,
                gateway: None,
            },
            [one] => one,
            _ => {
                return Err(BridgesError::Unsupported(
                    "more than one subnet in a network of one host".to_owned(),
                ));
            }
        };
        let v4 = |net: Option<IpNet>| match net {
            None => Ok(None),
            Some(IpNet::V4(net)) => Ok(Some(net)),
            Some(IpNet::V6(_)) => Err(BridgesError::Unsupported(
                "IPv6 in a network of one host".to_owned(),
            )),
        };
        let (subnet, range) = (
            v4(wish.subnet)?,
            v4(wish.ip_range)?.map(|range| range.trunc()),
        );
        let by_user = subnet.is_some();
        let subnet = match subnet {
            Some(subnet) if subnet.trunc() != subnet => {
                let text = format!(
                    "invalid network config:\ninvalid subnet {subnet}: it should be {}",
                    subnet.trunc()
                );
                return Err(BridgesError::Invalid(text));
            }
            // A gateway and a container want an address each.
            Some(subnet) if subnet.prefix_len() > 30 => {
                return Err(BridgesError::Invalid(format!(
                    "invalid subnet {subnet}: too small"
                )));
            }
            Some(subnet) if taken.iter().any(|other| ipam::overlap(subnet, *other)) => {
                return Err(BridgesError::Overlap);
            }
            Some(subnet) => subnet,
            None => {
                let taken: Vec<Ipv4Net> = taken.iter().copied().chain([GATEWAY_BRIDGE]).collect();
                ipam::free_subnet(&taken).ok_or(BridgesError::NoSubnet)?
            }
        };
        if let Some(range) = range.filter(|range| !by_user || !subnet.contains(range)) {
            return Err(BridgesError::Invalid(format!(
                "no matching subnet for ip-range {range}"
            )));
        }
        let is_host = |ip: Ipv4Addr| {
            subnet.contains(&ip) && ip != subnet.network() && ip != subnet.broadcast()
        };
        let gateway = match wish.gateway {
            Some(IpAddr::V4(gateway)) if by_user && is_host(gateway) => gateway,
            Some(gateway) => {
                return Err(BridgesError::Invalid(format!(
                    "no matching subnet for gateway {gateway}"
                )));
            }
            None => {
                let first = range.unwrap_or(subnet).hosts().find(|ip| is_host(*ip));
                first.ok_or(BridgesError::NoSubnet)?
            }
        };
        Ok(Self {
            subnet,
            gateway,
            range,
            by_user,
        })
    }
}

fn invalid_option(name: &str, value: &str) -> BridgesError {
    BridgesError::Invalid(format!("invalid value {value:?} of option {name}"))
}

fn is_interface_name(name: &str) -> bool {
    (1..=INTERFACE_NAME_MAX).contains(&name.len())
        && !matches!(name, "." | "..")
        && name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'))
}

/// The ranges to which the host has a route, by the text of `/proc/net/route`; those through `except` do not count.
pub(super) fn ranges_in_use(routes: &str, except: &str) -> Vec<Ipv4Net> {
    let address = |text: &str| {
        u32::from_str_radix(text, 16)
            .ok()
            .map(|raw| Ipv4Addr::from(raw.to_ne_bytes()))
    };
    let range = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (interface, to, mask) = (
            columns.first()?,
            address(columns.get(1)?)?,
            address(columns.get(7)?)?,
        );
        let net = Ipv4Net::with_netmask(to, mask).ok()?;
        (*interface != except && net.prefix_len() > 0).then_some(net)
    };
    routes.lines().skip(1).filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(wish: LocalNetworkSpec, taken: &[&str]) -> Result<Definition, String> {
        let taken: Vec<Ipv4Net> = taken.iter().map(|text| text.parse().unwrap()).collect();
        Definition::new(
            wish,
            "0123456789abcdef".repeat(4),
            "shoal",
            Timestamp::ZERO,
            &taken,
        )
        .map_err(|error| error.to_string())
    }

    fn wish(subnet: &str, range: &str, gateway: &str) -> LocalNetworkSpec {
        let ipam = IpamConfig {
            subnet: subnet.parse().ok(),
            ip_range: range.parse().ok(),
            gateway: gateway.parse().ok(),
        };
        LocalNetworkSpec {
            name: "n".to_owned(),
            driver: "bridge".to_owned(),
            ipam: vec![ipam],
            ..Default::default()
        }
    }

    fn addresses(wish: LocalNetworkSpec, taken: &[&str]) -> Result<String, String> {
        let spec = make(wish, taken)?.bridge.unwrap().spec;
        Ok(format!("{} {}", spec.subnet, spec.gateway))
    }

    #[test]
    fn a_subnet_is_chosen_that_nobody_has() {
        let none = || wish("", "", "");
        assert_eq!(addresses(none(), &[]).unwrap(), "172.17.0.0/16 172.17.0.1");
        let after = addresses(none(), &["172.17.0.0/16"]).unwrap();
        assert_eq!(
            after, "172.19.0.0/16 172.19.0.1",
            "172.18 is the gateway bridge's"
        );
        let beyond = addresses(none(), &["172.16.0.0/12"]).unwrap();
        assert_eq!(beyond, "192.168.0.0/20 192.168.0.1");
        let all = addresses(none(), &["172.16.0.0/12", "192.168.0.0/16"]).unwrap_err();
        assert_eq!(
            all,
            "all predefined address pools have been fully subnetted"
        );
    }

    #[test]
    fn a_wanted_subnet_is_checked() {
        assert_eq!(
            addresses(wish("10.9.0.0/24", "", ""), &[]).unwrap(),
            "10.9.0.0/24 10.9.0.1"
        );
        assert_eq!(
            addresses(wish("10.9.0.0/24", "", "10.9.0.254"), &[]).unwrap(),
            "10.9.0.0/24 10.9.0.254"
        );
        assert_eq!(
            addresses(wish("10.9.0.0/24", "10.9.0.128/25", ""), &[]).unwrap(),
            "10.9.0.0/24 10.9.0.129"
        );
        let overlap = "invalid pool request: Pool overlaps with other one on this address space";
        assert_eq!(
            addresses(wish("10.9.0.0/24", "", ""), &["10.0.0.0/8"]).unwrap_err(),
            overlap
        );
        for (subnet, range, gateway) in [
            ("10.9.0.1/24", "", ""),
            ("10.9.0.0/31", "", ""),
            ("10.9.0.0/24", "10.8.0.0/25", ""),
            ("10.9.0.0/24", "", "10.8.0.1"),
            ("10.9.0.0/24", "", "10.9.0.255"),
            ("", "", "10.9.0.1"),
            ("fd00::/64", "", ""),
        ] {
            addresses(wish(subnet, range, gateway), &[]).unwrap_err();
        }
    }

    #[test]
    fn options_are_heard() {
        let with = |options: &[(&str, &str)]| {
            let options = options
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect();
            make(
                LocalNetworkSpec {
                    options,
                    ..wish("", "", "")
                },
                &[],
            )
        };
        let bridge = with(&[
            (OPTION_NAME, "mine"),
            (OPTION_MTU, "1400"),
            (OPTION_ICC, "false"),
        ])
        .unwrap()
        .bridge
        .unwrap();
        assert_eq!(
            (
                bridge.spec.ifname.as_str(),
                bridge.spec.mtu,
                bridge.spec.icc
            ),
            ("mine", Some(1400), false)
        );
        assert_eq!(
            with(&[]).unwrap().bridge.unwrap().spec.ifname,
            "shoalb01234567"
        );
        for (name, value) in [
            (OPTION_NAME, "a/b"),
            (OPTION_NAME, "sixteencharacter"),
            (OPTION_MTU, "9"),
            (OPTION_ICC, "x"),
        ] {
            assert_eq!(
                with(&[(name, value)]).unwrap_err(),
                format!("invalid value {value:?} of option {name}")
            );
        }
        let host = make(
            LocalNetworkSpec {
                driver: "host".to_owned(),
                ..wish("", "", "")
            },
            &[],
        );
        assert_eq!(
            host.unwrap_err(),
            "only one instance of \"host\" network is allowed"
        );
    }

    #[test]
    fn routes_of_the_host_are_ranges_in_use() {
        let routes = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            shoal0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        assert_eq!(
            ranges_in_use(routes, "shoal0"),
            ["192.0.2.0/24".parse().unwrap()]
        );
        assert_eq!(ranges_in_use(routes, "").len(), 2);
    }
}
