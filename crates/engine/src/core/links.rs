//! Legacy links: names and variables that one container gets of another.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use shoal_api::container::Port;

/// `name` or `name:alias`; both are never empty.
pub fn parse(text: &str) -> Option<(&str, &str)> {
    // Inspected links come as `/name:/container/alias`.
    let (name, alias) = text.split_once(':').unwrap_or((text, text));
    let (name, alias) = (name.trim_start_matches('/'), alias.rsplit('/').next()?);
    (!name.is_empty() && !alias.is_empty() && !alias.contains(':')).then_some((name, alias))
}

/// The links without the one of this alias; `None` if there is none.
pub fn without(links: &[String], alias: &str) -> Option<Vec<String>> {
    let others = links.iter();
    let others = others.filter(|link| parse(link).is_none_or(|(_, own)| own != alias));
    let others: Vec<String> = others.cloned().collect();
    (others.len() < links.len()).then_some(others)
}

/// Variables of a container that is linked to, as docker makes them (moby, `daemon/links`).
pub fn environment(
    parent: &str,
    alias: &str,
    address: Ipv4Addr,
    ports: &BTreeSet<Port>,
    child: &[String],
) -> Vec<String> {
    let prefix = alias.replace('-', "_").to_uppercase();
    let mut env = Vec::new();
    if let Some(first) = ports.iter().min_by_key(|port| (port.protocol, port.number)) {
        let protocol = first.protocol.as_str();
        env.push(format!(
            "{prefix}_PORT={protocol}://{address}:{}",
            first.number
        ));
    }
    for port in ports {
        let protocol = port.protocol.as_str();
        let name = format!("{prefix}_PORT_{}_{}", port.number, protocol.to_uppercase());
        env.push(format!("{name}={protocol}://{address}:{}", port.number));
        env.push(format!("{name}_ADDR={address}"));
        env.push(format!("{name}_PORT={}", port.number));
        env.push(format!("{name}_PROTO={protocol}"));
    }
    env.push(format!("{prefix}_NAME=/{parent}/{alias}"));
    for entry in child {
        match entry.split_once('=') {
            Some(("HOME" | "PATH", _)) | None => {}
            Some((key, value)) => env.push(format!("{prefix}_ENV_{key}={value}")),
        }
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_goes_by_its_alias() {
        let links = ["/web:/app/db".to_owned(), "cache".to_owned()];
        assert_eq!(without(&links, "db"), Some(vec!["cache".to_owned()]));
        assert_eq!(without(&links, "cache").unwrap().len(), 1);
        assert_eq!(without(&links, "web"), None);
    }

    #[test]
    fn links_have_an_alias() {
        assert_eq!(parse("web"), Some(("web", "web")));
        assert_eq!(parse("web:db"), Some(("web", "db")));
        assert_eq!(parse("/web:/app/db"), Some(("web", "db")));
        assert_eq!(parse("web:"), None);
        assert_eq!(parse(":db"), None);
    }

    #[test]
    fn variables_are_dockers() {
        let ports = ["80/tcp", "53/udp"].map(|port| port.parse().expect("port"));
        let child = ["A=b".to_owned(), "PATH=/bin".to_owned()];
        let address = Ipv4Addr::new(172, 17, 0, 2);
        assert_eq!(
            environment("app", "my-db", address, &ports.into(), &child),
            [
                "MY_DB_PORT=tcp://172.17.0.2:80",
                "MY_DB_PORT_53_UDP=udp://172.17.0.2:53",
                "MY_DB_PORT_53_UDP_ADDR=172.17.0.2",
                "MY_DB_PORT_53_UDP_PORT=53",
                "MY_DB_PORT_53_UDP_PROTO=udp",
                "MY_DB_PORT_80_TCP=tcp://172.17.0.2:80",
                "MY_DB_PORT_80_TCP_ADDR=172.17.0.2",
                "MY_DB_PORT_80_TCP_PORT=80",
                "MY_DB_PORT_80_TCP_PROTO=tcp",
                "MY_DB_NAME=/app/my-db",
                "MY_DB_ENV_A=b",
            ]
        );
    }
}
