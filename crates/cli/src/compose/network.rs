//! Networks of a compose file.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{NAMESPACE, Problem, Scope, read::Fields, yaml::Node};

/// A network that services may attach to.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    /// Name in the file.
    pub(crate) key: String,
    /// Name in the cluster.
    pub(crate) name: String,
    /// Body of its creation; `None` if somebody else made it.
    pub(crate) create: Option<Value>,
}

/// Reads the section; `default` is there even if nobody says so.
pub(super) fn declared(
    section: Option<&Node>,
    scope: &Scope<'_>,
) -> Result<BTreeMap<String, Network>, Problem> {
    let mut all = BTreeMap::new();
    if let Some(section) = section {
        for (key, node) in section.entries()? {
            all.insert(key.name.clone(), network(&key.name, node, scope)?);
        }
    }
    all.entry("default".to_owned()).or_insert_with(|| Network {
        key: "default".to_owned(),
        name: scope.name("default"),
        create: Some(json!({"Name": scope.name("default"), "Driver": "overlay", "Labels": {NAMESPACE: scope.stack}})),
    });
    Ok(all)
}

/// Reads `external`, also in its old form `external: {name: …}`; returns the name if it is external.
pub(super) fn external(fields: &mut Fields<'_>, key: &str) -> Result<Option<String>, Problem> {
    let name = fields.maybe("name", Node::text)?;
    let Some(node) = fields.take("external") else {
        return Ok(None);
    };
    if let super::yaml::Yaml::Map(_) = node.value {
        let mut inner = Fields::of(node, &format!("{}.external", fields.path()))?;
        let old = inner.maybe("name", Node::text)?;
        inner.finish()?;
        return Ok(Some(old.or(name).unwrap_or_else(|| key.to_owned())));
    }
    Ok(node
        .boolean()?
        .then(|| name.unwrap_or_else(|| key.to_owned())))
}

fn network(key: &str, node: &Node, scope: &Scope<'_>) -> Result<Network, Problem> {
    let mut fields = Fields::of(node, &format!("networks.{key}"))?;
    let named = named(node)?;
    if let Some(name) = external(&mut fields, key)? {
        fields.finish()?;
        return Ok(Network {
            key: key.to_owned(),
            name,
            create: None,
        });
    }
    let name = named.unwrap_or_else(|| scope.name(key));
    let mut labels = fields.maybe("labels", Node::labels)?.unwrap_or_default();
    labels.insert(NAMESPACE.to_owned(), scope.stack.into());
    let driver = fields
        .maybe("driver", Node::text)?
        .unwrap_or_else(|| "overlay".to_owned());
    let mut create = json!({
        "Name": name,
        "Driver": driver,
        "Labels": labels,
        "Internal": fields.flag("internal")?,
        "Attachable": fields.flag("attachable")?,
    });
    if let Some(options) = fields.maybe("driver_opts", Node::labels)? {
        create["Options"] = options.into();
    }
    for (key, name) in [("enable_ipv6", "EnableIPv6"), ("enable_ipv4", "EnableIPv4")] {
        if let Some(enabled) = fields.maybe(key, Node::boolean)? {
            create[name] = enabled.into();
        }
    }
    if let Some(node) = fields.take("ipam") {
        create["IPAM"] = ipam(node, &format!("networks.{key}.ipam"))?;
    }
    fields.finish()?;
    Ok(Network {
        key: key.to_owned(),
        name,
        create: Some(create),
    })
}

/// The `name` of an object that has one.
pub(super) fn named(node: &Node) -> Result<Option<String>, Problem> {
    let mut name = None;
    for (key, value) in node.entries()? {
        if key.name == "name" {
            name = Some(value.text()?);
        }
    }
    Ok(name)
}

fn ipam(node: &Node, path: &str) -> Result<Value, Problem> {
    let mut fields = Fields::of(node, path)?;
    let mut out = json!({"Driver": fields.maybe("driver", Node::text)?.unwrap_or_else(|| "default".to_owned())});
    if let Some(options) = fields.maybe("options", Node::labels)? {
        out["Options"] = options.into();
    }
    let mut pools = Vec::new();
    if let Some(list) = fields.take("config") {
        for (i, item) in list.items()?.iter().enumerate() {
            let mut fields = Fields::of(item, &format!("{path}.config[{i}]"))?;
            let mut pool = json!({});
            for (key, name) in [
                ("subnet", "Subnet"),
                ("ip_range", "IPRange"),
                ("gateway", "Gateway"),
            ] {
                if let Some(text) = fields.maybe(key, Node::text)? {
                    pool[name] = text.into();
                }
            }
            if let Some(addresses) = fields.maybe("aux_addresses", Node::labels)? {
                pool["AuxiliaryAddresses"] = addresses.into();
            }
            fields.finish()?;
            pools.push(pool);
        }
    }
    fields.finish()?;
    out["Config"] = pools.into();
    Ok(out)
}
