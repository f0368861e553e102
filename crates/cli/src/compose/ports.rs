//! Published ports of a compose service.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{
    Problem, Scope,
    read::Fields,
    service::unique,
    yaml::{Node, Yaml},
};
use crate::{flags::port, json::number};

/// Reads `ports`, short and long forms, sorted by published port. An address to listen at becomes a label.
pub(super) fn convert(
    list: &Node,
    labels: &mut Map<String, Value>,
    scope: &mut Scope<'_>,
) -> Result<Vec<Value>, Problem> {
    let (mut ports, mut seen) = (Vec::new(), Vec::new());
    let mut addresses: BTreeMap<String, String> = BTreeMap::new();
    for item in list.items()? {
        let read = match &item.value {
            Yaml::Map(_) => vec![long(item, scope)?],
            _ => short(item)?,
        };
        if let Some((_, host_ip)) = read.iter().find(|(_, host_ip)| !host_ip.is_empty()) {
            // Docker's client says that it drops the address; here it counts, which a file may not expect.
            let problem = item.problem(format!(
                "listens at {host_ip} alone, where Swarm would listen at every address"
            ));
            scope.warnings.push(problem.to_string());
        }
        for (port, host_ip) in read {
            let protocol = crate::json::text(&port, "/Protocol");
            let label = port::label(protocol, number(&port, "/TargetPort"), "host-ip");
            let before = addresses.entry(label).or_insert_with(|| host_ip.clone());
            if *before != host_ip {
                return Err(item.problem(
                    "listens at another address than a port before it with the same target: one address is possible per \
                     target",
                ));
            }
            let published = number(&port, "/PublishedPort");
            if published != 0 {
                let protocol = crate::json::text(&port, "/Protocol");
                unique(&mut seen, format!("{published}/{protocol}"), item)?;
            }
            ports.push(port);
        }
    }
    let bound = addresses.into_iter().filter(|(_, at)| !at.is_empty());
    labels.extend(bound.map(|(label, at)| (label, at.into())));
    ports.sort_by_key(|port| number(port, "/PublishedPort"));
    Ok(ports)
}

fn short(item: &Node) -> Result<Vec<(Value, String)>, Problem> {
    let text = item.text()?;
    let invalid = |error: anyhow::Error| item.problem(format!("is no port: {error:#}"));
    let read = port::short(&text).map_err(invalid)?;
    let mut out = Vec::new();
    for port in read {
        let published = match port.published.as_str() {
            "" => 0,
            text => text.parse().map_err(|_| {
                item.problem(format!("cannot publish one port as the range {text}"))
            })?,
        };
        let read = port::endpoint(&port.protocol, port.target, published, "ingress");
        out.push((read, port.host_ip));
    }
    Ok(out)
}

/// One port, with the address at which it is to listen.
fn long(item: &Node, scope: &mut Scope<'_>) -> Result<(Value, String), Problem> {
    let mut fields = Fields::of(item, &item.path)?;
    let target = fields.maybe("target", Node::integer::<u16>)?;
    let target = target
        .filter(|port| *port > 0)
        .ok_or_else(|| item.problem("needs a target"))?;
    let published = fields.maybe("published", Node::text)?.unwrap_or_default();
    let protocol = fields.maybe("protocol", |node| node.one_of(&["tcp", "udp", "sctp"]))?;
    let mode = fields.maybe("mode", |node| node.one_of(&["ingress", "host"]))?;
    let host_ip = fields.maybe("host_ip", Node::text)?;
    // For people and for protocols above; nothing in a stack reads them.
    scope.without_effect(&mut fields, &["name", "app_protocol"]);
    fields.finish()?;
    let protocol = protocol.as_deref().unwrap_or("tcp");
    let mode = mode.as_deref().unwrap_or("ingress");
    let published: u16 = match published.as_str() {
        "" => 0,
        text => text
            .parse()
            .map_err(|_| item.problem(format!("publishes {text:?}, which is no port")))?,
    };
    let port = port::endpoint(protocol, target, published, mode);
    Ok((port, host_ip.unwrap_or_default()))
}
