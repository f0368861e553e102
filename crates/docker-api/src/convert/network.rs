//! Networks: those of this host and those of the cluster.

use std::{collections::BTreeMap, net::IpAddr};

use serde_json::{Map, Value, json};
use shoal_api::{
    object::Network,
    spec::{Annotations, Driver, IpamConfig, NetworkSpec},
};

use super::{service_show, time::instant};
use crate::{
    backend::{ApiError, ApiResult, LocalNetwork, LocalNetworkSpec, VXLAN_IDS},
    fields::Fields,
};

/// Driver options of an overlay that change something.
const EFFECTIVE_OPTIONS: [&str; 2] = ["encrypted", "com.docker.network.driver.mtu"];

/// What `network create` asks for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum NetworkRequest {
    /// A network of this host.
    Local(LocalNetworkSpec),
    /// A network of the cluster.
    Cluster(NetworkSpec),
}

/// Reads the body of `POST /networks/create`.
pub(crate) fn read(body: &[u8]) -> ApiResult<NetworkRequest> {
    let mut f = Fields::body(body)?;
    let name = f
        .text("Name")?
        .filter(|name| !name.trim().is_empty())
        .ok_or_else(|| ApiError::invalid("network name cannot be blank"))?;
    let labels = f.get("Labels")?;
    let driver = f.text("Driver")?.unwrap_or_else(|| "bridge".to_owned());
    let options: BTreeMap<String, String> = f.get("Options")?;
    let internal = f.get("Internal")?;
    let attachable: bool = f.get("Attachable")?;
    let ingress: bool = f.get("Ingress")?;
    let ipv6: Option<bool> = f.take("EnableIPv6")?;
    let (ipam, auxiliary) = read_ipam(f.object_or_empty("IPAM")?)?;
    // Whoever names a subnet of IPv6 and says no more wants it.
    let is_v6 = |config: &IpamConfig| config.subnet.is_some_and(|net| net.addr().is_ipv6());
    let ipv6 = ipv6.unwrap_or_else(|| ipam.iter().any(is_v6));
    let config_only: bool = f.get("ConfigOnly")?;
    let mut from = f.object_or_empty("ConfigFrom")?;
    let config_from = from.text("Network")?;
    from.finish()?;
    let without_ipv4 = f.take::<bool>("EnableIPv4")? == Some(false);
    let scope = f.text("Scope")?;
    f.ignore(&["CheckDuplicate"]);
    f.finish()?;
    if driver == "overlay" || ingress || scope.as_deref() == Some("swarm") {
        if scope.as_deref() == Some("local") {
            return Err(ApiError::invalid(
                "an overlay network needs the scope swarm",
            ));
        }
        if driver != "overlay" {
            return Err(ApiError::invalid(format!(
                "driver {driver:?} cannot make a network of scope swarm"
            )));
        }
        for (field, said) in [
            ("IPAM.Config.AuxiliaryAddresses", !auxiliary.is_empty()),
            ("EnableIPv4=false", without_ipv4),
            ("ConfigOnly", config_only),
            ("ConfigFrom", config_from.is_some()),
        ] {
            if said {
                return Err(ApiError::invalid(format!(
                    "{field} is not supported for a network of the cluster"
                )));
            }
        }
        return Ok(NetworkRequest::Cluster(NetworkSpec {
            annotations: Annotations { name, labels },
            driver: Driver {
                name: driver,
                options,
            },
            internal,
            attachable,
            ingress,
            ipv6,
            ipam,
        }));
    }
    Ok(NetworkRequest::Local(LocalNetworkSpec {
        name,
        driver,
        internal,
        ipv6,
        without_ipv4,
        ipam,
        options,
        labels,
        auxiliary,
        config_only,
        config_from,
    }))
}

/// Names the driver options of a network of the cluster that change nothing; nothing if all do something.
pub(crate) fn without_effect(spec: &NetworkSpec) -> Option<String> {
    let names = spec.driver.options.keys().map(String::as_str);
    let idle: Vec<&str> = names
        .filter(|name| !EFFECTIVE_OPTIONS.contains(name))
        .collect();
    let (what, have) = match idle[..] {
        [] => return None,
        [_] => ("option", "has"),
        _ => ("options", "have"),
    };
    Some(format!(
        "the {what} {} of network {} {have} no effect: an overlay knows {}",
        idle.join(", "),
        spec.annotations.name,
        EFFECTIVE_OPTIONS.join(" and ")
    ))
}

/// Subnets, and addresses in them that nobody is to be given.
type Addresses = (Vec<IpamConfig>, BTreeMap<String, IpAddr>);

fn read_ipam(mut f: Fields) -> ApiResult<Addresses> {
    match f.text("Driver")?.as_deref() {
        None | Some("default") => {}
        Some(other) => return Err(f.invalid("Driver", format!("unknown driver {other:?}"))),
    }
    let mut auxiliary = BTreeMap::new();
    let configs = f
        .objects("Config")?
        .into_iter()
        .map(|mut f| {
            let config = IpamConfig {
                subnet: f.parse("Subnet")?,
                ip_range: f.parse("IPRange")?,
                gateway: f.parse("Gateway")?,
            };
            let further: BTreeMap<String, IpAddr> = f.get("AuxiliaryAddresses")?;
            if let Some((name, address)) = further
                .iter()
                .find(|(_, ip)| config.subnet.is_none_or(|subnet| !subnet.contains(*ip)))
            {
                return Err(ApiError::invalid(format!(
                    "no matching subnet for aux-address {name}={address}"
                )));
            }
            auxiliary.extend(further);
            f.finish()?;
            Ok(config)
        })
        .collect::<ApiResult<_>>()?;
    f.finish()?;
    Ok((configs, auxiliary))
}

/// Containers of this host in a network.
pub(crate) fn members(network: &LocalNetwork) -> Value {
    let members: Map<String, Value> = network
        .containers
        .iter()
        .map(|(id, member)| {
            let text =
                |net: Option<ipnet::IpNet>| net.map(|net| net.to_string()).unwrap_or_default();
            let shown = json!({
                "Name": member.name,
                "EndpointID": member.endpoint_id,
                "MacAddress": member.mac_address,
                "IPv4Address": text(member.ipv4),
                "IPv6Address": text(member.ipv6),
            });
            (id.clone(), shown)
        })
        .collect();
    Value::Object(members)
}

/// A network of this host; members only where docker shows them.
pub(crate) fn local(network: &LocalNetwork, with_members: bool) -> Value {
    let of_cluster = network.driver == "overlay";
    let members = if with_members {
        members(network)
    } else {
        json!({})
    };
    json!({
        "Name": network.name,
        "Id": network.id,
        "Created": instant(network.created),
        "Scope": if of_cluster { "swarm" } else { "local" },
        "Driver": network.driver,
        "EnableIPv4": !network.without_ipv4,
        "EnableIPv6": network.ipv6,
        "IPAM": {"Driver": "default", "Options": null, "Config": local_ipam(network)},
        "Internal": network.internal,
        "Attachable": network.attachable,
        "Ingress": network.ingress,
        "ConfigFrom": {"Network": network.config_from.as_deref().unwrap_or_default()},
        "ConfigOnly": network.config_only,
        "Containers": members,
        "Options": network.options,
        "Labels": network.labels,
    })
}

fn local_ipam(network: &LocalNetwork) -> Value {
    let mut shown = ipam(&network.ipam);
    for (config, shown) in network
        .ipam
        .iter()
        .zip(shown.as_array_mut().into_iter().flatten())
    {
        let inside = |(_, address): &(&String, &IpAddr)| {
            config
                .subnet
                .is_some_and(|subnet| subnet.contains(*address))
        };
        let further: BTreeMap<_, _> = network.auxiliary.iter().filter(inside).collect();
        if !further.is_empty() {
            shown["AuxiliaryAddresses"] = json!(further);
        }
    }
    shown
}

fn ipam(configs: &[IpamConfig]) -> Value {
    configs
        .iter()
        .map(|config| {
            let mut shown = Map::new();
            if let Some(subnet) = config.subnet {
                shown.insert("Subnet".to_owned(), json!(subnet));
            }
            if let Some(range) = config.ip_range {
                shown.insert("IPRange".to_owned(), json!(range));
            }
            if let Some(gateway) = config.gateway {
                shown.insert("Gateway".to_owned(), json!(gateway));
            }
            Value::Object(shown)
        })
        .collect()
}

/// A cluster network as `GET /networks` shows it.
pub(crate) fn cluster(network: &Network) -> Value {
    let spec = &network.spec;
    json!({
        "Name": spec.annotations.name,
        "Id": network.id.as_str(),
        "Created": instant(network.meta.created_at),
        "Scope": "swarm",
        "Driver": "overlay",
        "EnableIPv4": true,
        "EnableIPv6": spec.ipv6,
        "IPAM": {"Driver": "default", "Options": null, "Config": subnets(network)},
        "Internal": spec.internal,
        "Attachable": spec.attachable,
        "Ingress": spec.ingress,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": false,
        "Containers": null,
        "Options": options(network),
        "Labels": spec.annotations.labels,
    })
}

/// Subnets in force, or those asked for while nothing is allocated yet.
fn subnets(network: &Network) -> Value {
    match &network.allocated {
        None => ipam(&network.spec.ipam),
        Some(allocated) => allocated
            .subnets
            .iter()
            .map(|subnet| {
                let mut shown = json!({"Subnet": subnet.range, "Gateway": subnet.gateway});
                let mut asked = network.spec.ipam.iter();
                let asked = asked.find(|asked| asked.subnet == Some(subnet.range));
                if let Some(range) = asked.and_then(|asked| asked.ip_range) {
                    shown["IPRange"] = json!(range);
                }
                shown
            })
            .collect(),
    }
}

fn options(network: &Network) -> BTreeMap<String, String> {
    let mut options = network.spec.driver.options.clone();
    if let Some(allocated) = &network.allocated {
        options.insert(VXLAN_IDS.to_owned(), allocated.vni.to_string());
    }
    options
}

/// A cluster network as a task's attachment shows it (Go's `swarm.Network`).
pub(crate) fn object(network: &Network) -> Value {
    let spec = &network.spec;
    let mut answer = service_show::object(network.id.as_str(), &network.meta);
    answer["Spec"] = json!({
        "Name": spec.annotations.name,
        "Labels": spec.annotations.labels,
        "DriverConfiguration": {"Name": "overlay"},
        "IPv6Enabled": spec.ipv6,
        "Internal": spec.internal,
        "Attachable": spec.attachable,
        "Ingress": spec.ingress,
        "IPAMOptions": {"Driver": {"Name": "default"}},
        "Scope": "swarm",
    });
    answer["DriverState"] = json!({"Name": "overlay", "Options": options(network)});
    answer["IPAMOptions"] = json!({"Driver": {"Name": "default"}, "Configs": subnets(network)});
    answer
}

/// A network of every node that services may name (`--network host`), as the cluster sees it.
pub(crate) fn of_every_node(name: &str) -> Value {
    json!({
        "Name": name,
        "Id": name,
        "Created": "0001-01-01T00:00:00Z",
        "Scope": "swarm",
        "Driver": name,
        "EnableIPv4": true,
        "EnableIPv6": false,
        "IPAM": {"Driver": "", "Options": null, "Config": []},
        "Internal": false,
        "Attachable": false,
        "Ingress": false,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": false,
        "Containers": null,
        "Options": {},
        "Labels": {},
    })
}
