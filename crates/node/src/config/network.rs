//! What `daemon.json` says of networks: `bip`, `default-address-pools`, `mtu` and the like.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::Value;
use shoal_overlay::core::ipam::SubnetPool;

use super::{
    ConfigError,
    settings::{Reader, invalid},
};

/// What networks of this host get that do not say otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkDefaults {
    /// Ranges from which subnets are cut; of a family that none is of, docker's are used.
    pub pools: Vec<SubnetPool>,
    /// The default network.
    pub bridge: DefaultBridge,
    /// Options of networks that users make, by name.
    pub options: BTreeMap<String, String>,
}

/// How the default network, `bridge`, is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultBridge {
    /// Address of the host in it with the length of its prefix; `None` leaves it to the pools.
    pub address: Option<Ipv4Net>,
    /// Part of the subnet from which addresses are given.
    pub range: Option<Ipv4Net>,
    /// Whether it has IPv6 too.
    pub ipv6: bool,
    /// The same as `address` for IPv6.
    pub address6: Option<Ipv6Net>,
    /// The same as `range` for IPv6.
    pub range6: Option<Ipv6Net>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Whether its containers may talk to one another.
    pub icc: bool,
    /// Whether its containers leave under the host's address.
    pub masquerade: bool,
    /// Where ports are published if the user does not say.
    pub binding: Ipv4Addr,
}

impl Default for DefaultBridge {
    fn default() -> Self {
        Self {
            address: None,
            range: None,
            ipv6: false,
            address6: None,
            range6: None,
            mtu: None,
            icc: true,
            masquerade: true,
            binding: Ipv4Addr::UNSPECIFIED,
        }
    }
}

/// Reads the keys.
pub(super) fn read(r: &mut Reader) -> Result<NetworkDefaults, ConfigError> {
    let usual = DefaultBridge::default();
    let bridge = DefaultBridge {
        address: parsed(
            r,
            "bip",
            "an address with a prefix length, as in 10.9.0.1/24",
        )?,
        range: parsed(r, "fixed-cidr", "a range, as in 10.9.0.128/25")?,
        ipv6: r.flag("ipv6")?.unwrap_or(usual.ipv6),
        address6: parsed(
            r,
            "bip6",
            "an address with a prefix length, as in fd00:9::1/64",
        )?,
        range6: parsed(r, "fixed-cidr-v6", "a range, as in fd00:9::/64")?,
        mtu: r.number("mtu")?,
        icc: r.flag("icc")?.unwrap_or(usual.icc),
        masquerade: r.flag("ip-masq")?.unwrap_or(usual.masquerade),
        binding: parsed(r, "ip", "an IPv4 address, as in 127.0.0.1")?.unwrap_or(usual.binding),
    };
    if let Some(address) = bridge.address
        && (address.addr() == address.network() || address.prefix_len() > 30)
    {
        return Err(invalid(
            "bip",
            format!(
                "{address} leaves no address for a container: expected for instance 10.9.0.1/24"
            ),
        ));
    }
    if let (Some(address), Some(range)) = (bridge.address, bridge.range)
        && !address.contains(&range)
    {
        return Err(invalid(
            "fixed-cidr",
            format!(
                "{range} is not within the default network's subnet {}",
                address.trunc()
            ),
        ));
    }
    if let Some(mtu) = bridge.mtu.filter(|mtu| !(68..=65_535).contains(mtu)) {
        return Err(invalid(
            "mtu",
            format!("{mtu} is out of range: expected 68 to 65535"),
        ));
    }
    for (key, said) in [
        ("bip6", bridge.address6.is_some()),
        ("fixed-cidr-v6", bridge.range6.is_some()),
    ] {
        if said && !bridge.ipv6 {
            return Err(invalid(key, "it needs ipv6 to be true"));
        }
    }
    Ok(NetworkDefaults {
        pools: pools(r)?,
        bridge,
        options: options(r)?,
    })
}

fn parsed<T: std::str::FromStr>(
    r: &mut Reader,
    key: &str,
    expected: &str,
) -> Result<Option<T>, ConfigError> {
    let Some(text) = r.text(key)? else {
        return Ok(None);
    };
    match text.parse() {
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(r.wrong(key, &Value::String(text), expected)),
    }
}

/// Docker's form: `[{"base": "10.0.0.0/8", "size": 24}]`.
fn pools(r: &mut Reader) -> Result<Vec<SubnetPool>, ConfigError> {
    const KEY: &str = "default-address-pools";
    let expected = "a list of {\"base\": \"10.0.0.0/8\", \"size\": 24}";
    let list = match r.take(KEY) {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(r.wrong(KEY, &other, expected)),
    };
    let mut pools: Vec<SubnetPool> = Vec::new();
    for item in list {
        let base = item.get("base").and_then(Value::as_str);
        let base: Option<IpNet> = base.and_then(|text| text.parse().ok());
        let size = item.get("size").and_then(Value::as_u64);
        let size = size.and_then(|size| u8::try_from(size).ok());
        let (Some(base), Some(length)) = (base, size) else {
            return Err(r.wrong(KEY, &item, expected));
        };
        let most = if base.addr().is_ipv4() { 30 } else { 126 };
        if length < base.prefix_len() || length > most {
            return Err(invalid(
                KEY,
                format!(
                    "size {length} of {base} is out of range: expected {} to {most}",
                    base.prefix_len()
                ),
            ));
        }
        let base = base.trunc();
        if let Some(other) = pools.iter().find(|other| {
            other.base.contains(&base.network()) || base.contains(&other.base.network())
        }) {
            return Err(invalid(KEY, format!("{base} overlaps with {}", other.base)));
        }
        pools.push(SubnetPool { base, length });
    }
    Ok(pools)
}

/// Docker's form: options by driver, of which there is one here.
fn options(r: &mut Reader) -> Result<BTreeMap<String, String>, ConfigError> {
    const KEY: &str = "default-network-opts";
    let expected = "{\"bridge\": {\"option\": \"value\"}}";
    let members = match r.take(KEY) {
        None => return Ok(BTreeMap::new()),
        Some(Value::Object(members)) => members,
        Some(other) => return Err(r.wrong(KEY, &other, expected)),
    };
    let mut options = BTreeMap::new();
    for (driver, said) in members {
        let Value::Object(said) = said else {
            return Err(r.wrong(KEY, &said, expected));
        };
        if driver != "bridge" {
            return Err(invalid(
                KEY,
                format!("{driver:?} is unknown: expected bridge"),
            ));
        }
        for (name, value) in said {
            match value {
                Value::String(value) => drop(options.insert(name, value)),
                other => return Err(r.wrong(KEY, &other, expected)),
            }
        }
    }
    Ok(options)
}
