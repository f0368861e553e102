//! Published ports of a compose service.

use serde_json::Value;

use super::{
    Problem, Scope,
    read::Fields,
    service::unique,
    yaml::{Node, Yaml},
};
use crate::{flags::port, json::number};

/// Reads `ports`, short and long forms, sorted by published port.
pub(super) fn convert(list: &Node, scope: &mut Scope<'_>) -> Result<Vec<Value>, Problem> {
    let (mut ports, mut seen) = (Vec::new(), Vec::new());
    for item in list.items()? {
        let read = match &item.value {
            Yaml::Map(_) => long(item, scope)?,
            _ => short(item, scope)?,
        };
        for port in read {
            let published = number(&port, "/PublishedPort");
            if published != 0 {
                let protocol = crate::json::text(&port, "/Protocol");
                unique(&mut seen, format!("{published}/{protocol}"), item)?;
            }
            ports.push(port);
        }
    }
    ports.sort_by_key(|port| number(port, "/PublishedPort"));
    Ok(ports)
}

fn short(item: &Node, scope: &mut Scope<'_>) -> Result<Vec<Value>, Problem> {
    let text = item.text()?;
    let invalid = |error: anyhow::Error| item.problem(format!("is no port: {error:#}"));
    let read = port::short(&text).map_err(invalid)?;
    if let Some(port) = read.first().filter(|port| !port.host_ip.is_empty()) {
        everywhere(item, &port.host_ip, scope);
    }
    let mut out = Vec::new();
    for port in read {
        let published = match port.published.as_str() {
            "" => 0,
            text => text.parse().map_err(|_| {
                item.problem(format!("cannot publish one port as the range {text}"))
            })?,
        };
        out.push(port::endpoint(
            &port.protocol,
            port.target,
            published,
            "ingress",
        ));
    }
    Ok(out)
}

fn everywhere(item: &Node, ip: &str, scope: &mut Scope<'_>) {
    let problem = item.problem(format!("publishes on every address, not only on {ip}"));
    scope.warnings.push(problem.to_string());
}

fn long(item: &Node, scope: &mut Scope<'_>) -> Result<Vec<Value>, Problem> {
    let mut fields = Fields::of(item, &item.path)?;
    let target = fields.maybe("target", Node::integer::<u16>)?;
    let target = target
        .filter(|port| *port > 0)
        .ok_or_else(|| item.problem("needs a target"))?;
    let published = fields.maybe("published", Node::text)?.unwrap_or_default();
    let protocol = fields.maybe("protocol", |node| node.one_of(&["tcp", "udp", "sctp"]))?;
    let mode = fields.maybe("mode", |node| node.one_of(&["ingress", "host"]))?;
    if let Some(ip) = fields.maybe("host_ip", Node::text)? {
        everywhere(item, &ip, scope);
    }
    // For people and for protocols above; nothing in a stack reads them.
    fields.take("name");
    fields.take("app_protocol");
    fields.finish()?;
    let protocol = protocol.as_deref().unwrap_or("tcp");
    let mode = mode.as_deref().unwrap_or("ingress");
    let published: u16 = match published.as_str() {
        "" => 0,
        text => text
            .parse()
            .map_err(|_| item.problem(format!("publishes {text:?}, which is no port")))?,
    };
    Ok(vec![port::endpoint(protocol, target, published, mode)])
}
