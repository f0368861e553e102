//! A network as it is written down, and what a user's wish for one means.

mod addresses;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use shoal_api::{Timestamp, spec::IpamConfig};
use shoal_docker_api::backend::{LocalNetwork, LocalNetworkSpec};
use shoal_overlay::{BridgeSpec, Ipv6Place};

use super::BridgesError;
use crate::config::NetworkDefaults;
use addresses::Addresses;
pub(super) use addresses::{Taken, ranges_in_use, ranges6_in_use};

/// Name of the network that containers are in unless told otherwise.
pub const BRIDGE: &str = "bridge";
/// Bytes of a packet on Ethernet, which docker names for its default network.
const MTU: u32 = 1500;
/// Interface names have at most 15 characters (`IFNAMSIZ` without its final zero).
const INTERFACE_NAME_MAX: usize = 15;

const OPTION_NAME: &str = "com.docker.network.bridge.name";
const OPTION_ICC: &str = "com.docker.network.bridge.enable_icc";
const OPTION_MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
const OPTION_HOST_BINDING: &str = "com.docker.network.bridge.host_binding_ipv4";
const OPTION_DEFAULT: &str = "com.docker.network.bridge.default_bridge";
const OPTION_GATEWAY_MODES: [&str; 2] = [
    "com.docker.network.bridge.gateway_mode_ipv4",
    "com.docker.network.bridge.gateway_mode_ipv6",
];
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
    /// Addresses that no container is given, by what the user calls them.
    #[serde(default)]
    pub auxiliary: BTreeMap<String, IpAddr>,
    /// The network whose configuration it has.
    #[serde(default)]
    pub config_from: Option<String>,
    /// What it says to those that take their configuration from it, if it is there for that alone.
    #[serde(default)]
    pub config: Option<Configuration>,
}

/// What a network that is but a configuration says of addresses; options and labels are the network's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Configuration {
    /// Subnets.
    pub ipam: Vec<IpamConfig>,
    /// Whether there is IPv6.
    pub ipv6: bool,
    /// Whether there is no IPv4.
    #[serde(default)]
    pub without_ipv4: bool,
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
    /// Part of the IPv6 subnet from which addresses are given.
    #[serde(default)]
    pub range6: Option<Ipv6Net>,
}

impl Bridge {
    /// Its addresses of IPv4.
    fn ipam4(&self) -> Option<IpamConfig> {
        let place = self.spec.ipv4?;
        Some(IpamConfig {
            subnet: Some(IpNet::V4(place.subnet)),
            ip_range: self.range.map(IpNet::V4),
            gateway: Some(IpAddr::V4(place.gateway)),
        })
    }
}

impl Definition {
    /// `bridge`: the network of containers that name none. One that there is already keeps what nothing else is said of.
    pub(super) fn default_bridge(
        id: String,
        prefix: &str,
        now: Timestamp,
        taken: &Taken,
        defaults: &NetworkDefaults,
        before: Option<&Self>,
    ) -> Result<Self, BridgesError> {
        let (ifname, said) = (format!("{prefix}0"), &defaults.bridge);
        let options = [
            (OPTION_DEFAULT, "true".to_owned()),
            (OPTION_ICC, said.icc.to_string()),
            (OPTION_MASQUERADE, said.masquerade.to_string()),
            (OPTION_HOST_BINDING, said.binding.to_string()),
            (OPTION_NAME, ifname),
            (OPTION_MTU, said.mtu.unwrap_or(MTU).to_string()),
        ];
        let held = before.and_then(|before| before.bridge.as_ref());
        let v4 = match (said.address, said.range) {
            (Some(address), range) => Some(IpamConfig {
                subnet: Some(address.trunc().into()),
                ip_range: range.map(IpNet::V4),
                gateway: Some(address.addr().into()),
            }),
            (None, Some(range)) => Some(IpamConfig {
                subnet: Some(range.trunc().into()),
                ip_range: None,
                gateway: None,
            }),
            (None, None) => held.and_then(Bridge::ipam4),
        };
        let held6 = held.and_then(|held| Some((held.spec.ipv6?, held.range6)));
        let v6 = match (said.address6, said.range6, held6) {
            (Some(address), range, _) => Some(IpamConfig {
                subnet: Some(address.trunc().into()),
                ip_range: range.map(IpNet::V6),
                gateway: Some(address.addr().into()),
            }),
            (None, Some(range), _) => Some(IpamConfig {
                subnet: Some(range.trunc().into()),
                ip_range: None,
                gateway: None,
            }),
            (None, None, Some((place, range))) => Some(IpamConfig {
                subnet: Some(place.subnet.into()),
                ip_range: range.map(IpNet::V6),
                gateway: Some(place.gateway.into()),
            }),
            (None, None, None) => None,
        };
        let spec = LocalNetworkSpec {
            name: BRIDGE.to_owned(),
            driver: BRIDGE.to_owned(),
            options: options.map(|(key, value)| (key.to_owned(), value)).into(),
            ipv6: said.ipv6,
            ipam: v4.into_iter().chain(v6.filter(|_| said.ipv6)).collect(),
            ..LocalNetworkSpec::default()
        };
        Self::new(spec, id, prefix, now, taken, defaults)
    }

    /// A network that is but a configuration for others.
    pub(super) fn configuration(wish: LocalNetworkSpec, id: String, now: Timestamp) -> Self {
        Self {
            id,
            name: wish.name,
            created: now,
            bridge: None,
            options: wish.options,
            labels: wish.labels,
            auxiliary: wish.auxiliary,
            config_from: None,
            config: Some(Configuration {
                ipam: wish.ipam,
                ipv6: wish.ipv6,
                without_ipv4: wish.without_ipv4,
            }),
        }
    }

    /// Puts what this network says, which is there for that alone, into a wish.
    pub(super) fn configure(&self, wish: &mut LocalNetworkSpec) -> Result<(), BridgesError> {
        let Some(config) = &self.config else {
            let text = format!("{} is not a configuration network", self.name);
            return Err(BridgesError::Forbidden(text));
        };
        if !wish.ipam.is_empty() || !wish.options.is_empty() || !wish.auxiliary.is_empty() {
            let text = "user supplied configuration are not supported if the network depends on a configuration network";
            return Err(BridgesError::Forbidden(text.to_owned()));
        }
        wish.ipam.clone_from(&config.ipam);
        wish.ipv6 |= config.ipv6;
        wish.without_ipv4 |= config.without_ipv4;
        wish.options.clone_from(&self.options);
        wish.auxiliary.clone_from(&self.auxiliary);
        for (key, value) in &self.labels {
            let own = wish.labels.entry(key.clone());
            own.or_insert_with(|| value.clone());
        }
        Ok(())
    }

    /// `host` or `none`, which need nothing from the kernel.
    pub(super) fn without_bridge(name: &str, id: String, now: Timestamp) -> Self {
        Self {
            id,
            name: name.to_owned(),
            created: now,
            bridge: None,
            options: BTreeMap::new(),
            labels: BTreeMap::new(),
            auxiliary: BTreeMap::new(),
            config_from: None,
            config: None,
        }
    }

    /// What the user's wish means; `taken` are ranges that others have.
    pub(super) fn new(
        mut wish: LocalNetworkSpec,
        id: String,
        prefix: &str,
        now: Timestamp,
        taken: &Taken,
        defaults: &NetworkDefaults,
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
        if wish.name != BRIDGE {
            for (key, value) in &defaults.options {
                let own = wish.options.entry(key.clone());
                own.or_insert_with(|| value.clone());
            }
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
        for name in OPTION_GATEWAY_MODES {
            if let Some(mode) = option(name).filter(|mode| *mode != "nat") {
                return Err(BridgesError::Unsupported(format!("gateway mode {mode:?}")));
            }
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
        let addresses = Addresses::of(&wish, &id, taken, &defaults.pools)?;
        let spec = BridgeSpec {
            id: id.clone(),
            ifname,
            ipv4: addresses.v4.map(|(place, _)| place),
            internal: wish.internal,
            mtu,
            icc: flag(OPTION_ICC, true)?,
            masquerade: flag(OPTION_MASQUERADE, true)?,
            ipv6: addresses.v6.map(|(place, _)| place),
        };
        let bridge = Bridge {
            spec,
            range: addresses.v4.and_then(|(_, range)| range),
            subnet_by_user: addresses.by_user,
            host_binding,
            interface_prefix,
            range6: addresses.v6.and_then(|(_, range)| range),
        };
        Ok(Self {
            id,
            name: wish.name,
            created: now,
            bridge: Some(bridge),
            options: wish.options,
            labels: wish.labels,
            auxiliary: wish.auxiliary,
            config_from: wish.config_from,
            config: None,
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
        let mut ipam = Vec::new();
        if let Some(bridge) = bridge {
            ipam.extend(bridge.ipam4());
            let v6 = |place: Ipv6Place| IpamConfig {
                subnet: Some(IpNet::V6(place.subnet)),
                ip_range: bridge.range6.map(IpNet::V6),
                gateway: Some(IpAddr::V6(place.gateway)),
            };
            ipam.extend(bridge.spec.ipv6.map(v6));
        }
        if let Some(config) = &self.config {
            ipam.extend(config.ipam.iter().cloned());
        }
        let driver = match (bridge, self.name.as_str()) {
            (Some(_), _) => BRIDGE,
            (None, "none") => "null",
            (None, _) if self.config.is_some() => "null",
            (None, _) => "host",
        };
        LocalNetwork {
            id: self.id.clone(),
            name: self.name.clone(),
            driver: driver.to_owned(),
            created: self.created,
            internal: bridge.is_some_and(|bridge| bridge.spec.internal),
            ipv6: bridge.is_some_and(|bridge| bridge.spec.ipv6.is_some())
                || self.config.as_ref().is_some_and(|config| config.ipv6),
            without_ipv4: bridge.is_some_and(|bridge| bridge.spec.ipv4.is_none())
                || self
                    .config
                    .as_ref()
                    .is_some_and(|config| config.without_ipv4),
            ipam,
            attachable: false,
            ingress: false,
            options: self.options.clone(),
            labels: self.labels.clone(),
            auxiliary: self.auxiliary.clone(),
            config_only: self.config.is_some(),
            config_from: self.config_from.clone(),
            containers: BTreeMap::new(),
        }
    }
}

/// Names that are docker's own.
pub fn is_predefined(name: &str) -> bool {
    matches!(name, "bridge" | "host" | "none" | "default")
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

#[cfg(test)]
mod tests {
    use super::*;

    fn make(wish: LocalNetworkSpec, taken: &[&str]) -> Result<Definition, String> {
        let taken = Taken {
            v4: taken.iter().filter_map(|text| text.parse().ok()).collect(),
            v6: taken.iter().filter_map(|text| text.parse().ok()).collect(),
        };
        Definition::new(
            wish,
            "0123456789abcdef".repeat(4),
            "shoal",
            Timestamp::ZERO,
            &taken,
            &NetworkDefaults::default(),
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
        let place = spec.ipv4.unwrap();
        Ok(format!("{} {}", place.subnet, place.gateway))
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
            // Without --ipv6.
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
    fn ipv6_has_a_subnet_of_its_own() {
        let both = |subnet: &str, gateway: &str, taken: &[&str]| {
            let wish = LocalNetworkSpec {
                ipv6: true,
                ..wish(subnet, "", gateway)
            };
            let place = make(wish, taken)?.bridge.unwrap().spec.ipv6.unwrap();
            Ok::<_, String>(format!("{} {}", place.subnet, place.gateway))
        };
        let chosen = both("", "", &[]).unwrap();
        assert!(
            chosen.starts_with("fd") && chosen.contains("::/64 "),
            "{chosen}"
        );
        assert_eq!(
            both("fd00:9::/64", "", &[]).unwrap(),
            "fd00:9::/64 fd00:9::1"
        );
        assert_eq!(
            both("fd00:9::/64", "fd00:9::ff", &[]).unwrap(),
            "fd00:9::/64 fd00:9::ff"
        );
        for (subnet, gateway, taken) in [
            ("fd00:9::/64", "", &["fd00:9::/48"][..]),
            ("fd00:9::1/64", "", &[]),
            ("fd00:9::/64", "fd00:8::1", &[]),
            ("fd00:9::/127", "", &[]),
        ] {
            both(subnet, gateway, taken).unwrap_err();
        }
    }

    #[test]
    fn a_network_has_addresses_of_one_family_at_least() {
        let without = |subnet: &str, ipv6| {
            let wish = LocalNetworkSpec {
                ipv6,
                without_ipv4: true,
                ..wish(subnet, "", "")
            };
            make(wish, &[])
        };
        let made = without("fd00:9::/64", true).unwrap();
        let shown = made.show();
        assert!(shown.ipv6 && shown.without_ipv4, "{shown:?}");
        assert_eq!(shown.ipam.len(), 1, "{shown:?}");
        assert_eq!(
            without("", false).unwrap_err(),
            "IPv4 or IPv6 must be enabled"
        );
        without("10.9.0.0/24", true).unwrap_err();
        // What an earlier daemon wrote down, and what this one does.
        let kept = serde_json::to_string(&made).unwrap();
        assert_eq!(serde_json::from_str::<Definition>(&kept).unwrap(), made);
        let both = make(wish("10.9.0.0/24", "", ""), &[]).unwrap();
        let kept = serde_json::to_value(&both).unwrap();
        assert_eq!(kept["bridge"]["spec"]["subnet"], "10.9.0.0/24");
        assert_eq!(serde_json::from_value::<Definition>(kept).unwrap(), both);
    }

    #[test]
    fn a_configuration_is_taken_as_a_whole() {
        let from = LocalNetworkSpec {
            ipv6: true,
            options: [(OPTION_MTU.to_owned(), "1400".to_owned())].into(),
            ..wish("10.9.0.0/24", "", "")
        };
        let config = Definition::configuration(from, "c".repeat(64), Timestamp::ZERO);
        let mut made = LocalNetworkSpec {
            name: "made".to_owned(),
            ..LocalNetworkSpec::default()
        };
        config.configure(&mut made).unwrap();
        let spec = make(made.clone(), &[]).unwrap().bridge.unwrap().spec;
        assert_eq!((spec.mtu, spec.ipv6.is_some()), (Some(1400), true));
        config.configure(&mut made).unwrap_err();
        let shown = config.show();
        assert!(shown.config_only && shown.driver == "null");
    }
}
