//! What the API said, and took, before its newest version: clients of an older one get what they were written for.
//!
//! The versions are those of moby's API change log.

use serde_json::{Value, json};
use shoal_api::container::{ContainerSpec, MountKind, ReadOnlyDepth};

use crate::backend::{ApiError, ApiResult};

/// `GET /info`: fields that came later.
pub(crate) fn info(minor: u32, info: &mut Value) {
    let since = [(49, "FirewallBackend"), (50, "DiscoveredDevices")];
    if let Some(members) = info.as_object_mut() {
        for (_, name) in since.iter().filter(|(since, _)| minor < *since) {
            members.remove(*name);
        }
    }
}

/// An image: until 1.43 it had its size twice.
pub(crate) fn image(minor: u32, image: &mut Value) {
    if minor < 44 {
        image["VirtualSize"] = image["Size"].clone();
    }
}

/// A network: since 1.48 it says whether it has IPv4.
pub(crate) fn network(minor: u32, network: &mut Value) {
    if minor < 48
        && let Some(members) = network.as_object_mut()
    {
        members.remove("EnableIPv4");
    }
}

/// A container that is inspected: until 1.43 its hardware address was its own, and not its endpoint's.
pub(crate) fn container(minor: u32, container: &mut Value) {
    if minor < 44 {
        let networks = container.pointer("/NetworkSettings/Networks");
        let first = networks.and_then(|all| all.as_object()?.values().next());
        let mac = first.and_then(|endpoint| endpoint.get("MacAddress"));
        container["Config"]["MacAddress"] = mac.cloned().unwrap_or_else(|| json!(""));
    }
}

/// A container that is wished for: what an older API did not know is passed over, as docker does, or refused.
pub(crate) fn create(minor: u32, spec: &mut ContainerSpec) -> ApiResult<()> {
    if minor < 44 {
        if spec.endpoints.len() > 1 {
            let names: Vec<&str> = spec.endpoints.keys().map(String::as_str).collect();
            return Err(ApiError::invalid(format!(
                "Container cannot be connected to network endpoints: {}",
                names.join(", ")
            )));
        }
        if let Some(health) = &mut spec.healthcheck {
            health.start_interval = None;
        }
    }
    for mount in &mut spec.host.mounts {
        match &mut mount.kind {
            MountKind::Bind {
                read_only_depth, ..
            } if minor < 44 => *read_only_depth = ReadOnlyDepth::default(),
            MountKind::Volume { subpath, .. } if minor < 45 => *subpath = None,
            MountKind::Image { .. } if minor < 48 => {
                return Err(ApiError::invalid(
                    "invalid mount config for type \"image\": mount type unknown",
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_clients_see_what_they_know() {
        let pruned = |minor, f: fn(u32, &mut Value), value: Value| {
            let mut value = value;
            f(minor, &mut value);
            value
        };
        let all = json!({"DiscoveredDevices": [], "FirewallBackend": {}, "ID": "a"});
        assert_eq!(pruned(48, info, all.clone()), json!({"ID": "a"}));
        assert_eq!(pruned(51, info, all.clone()), all);
        assert_eq!(
            pruned(43, image, json!({"Size": 5})),
            json!({"Size": 5, "VirtualSize": 5})
        );
        assert_eq!(pruned(47, network, json!({"EnableIPv4": true})), json!({}));
        let seen =
            json!({"NetworkSettings": {"Networks": {"n": {"MacAddress": "02:00"}}}, "Config": {}});
        assert_eq!(pruned(43, container, seen)["Config"]["MacAddress"], "02:00");
    }

    #[test]
    fn older_clients_get_what_they_could_ask_for() {
        let mut spec = ContainerSpec::default();
        spec.endpoints.insert("a".to_owned(), Default::default());
        spec.endpoints.insert("b".to_owned(), Default::default());
        assert!(create(44, &mut spec).is_ok());
        assert_eq!(
            create(43, &mut spec).unwrap_err().message,
            "Container cannot be connected to network endpoints: a, b"
        );
    }
}
