//! Published ports: `8080:80/udp`, `127.0.0.1:8000-8010:80-90`, `published=8080,target=80,mode=host`.

use anyhow::{Result, anyhow, bail};
use serde_json::{Map, Value, json};

use super::fields;

/// One port of the short form; ranges are taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Published {
    /// Address to listen on; empty is all.
    pub(crate) host_ip: String,
    /// Port or range on the host; empty lets the engine choose.
    pub(crate) published: String,
    /// Port in the container.
    pub(crate) target: u16,
    /// `tcp`, `udp` or `sctp`.
    pub(crate) protocol: String,
}

/// Reads the short form, one element per container port.
pub(crate) fn short(text: &str) -> Result<Vec<Published>> {
    let (ports, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
        bail!("invalid proto: {protocol}");
    }
    let (front, target) = match ports.rsplit_once(':') {
        Some((front, target)) => (Some(front), target),
        None => (None, ports),
    };
    if target.is_empty() {
        bail!("no port specified: {text}<empty>");
    }
    let (host_ip, published) = match front {
        None => (String::new(), ""),
        Some(front) => match front.rsplit_once(':') {
            Some((ip, published)) => {
                let ip = ip.trim_start_matches('[').trim_end_matches(']');
                if !ip.is_empty() && ip.parse::<std::net::IpAddr>().is_err() {
                    bail!("invalid IP address: {ip}");
                }
                (ip.to_owned(), published)
            }
            None => (String::new(), front),
        },
    };
    let (first, last) = range(target).map_err(|_| anyhow!("invalid containerPort: {target}"))?;
    let host = match published {
        "" => None,
        text => Some(range(text).map_err(|_| anyhow!("invalid hostPort: {text}"))?),
    };
    let count = u32::from(last) - u32::from(first);
    if let Some((low, high)) = host
        && u32::from(high) - u32::from(low) != count
        && count != 0
    {
        bail!("invalid ranges specified for container and host Ports: {target} and {published}");
    }
    Ok((first..=last)
        .enumerate()
        .map(|(i, target)| Published {
            host_ip: host_ip.clone(),
            published: match host {
                None => String::new(),
                // One port of the container, any of these on the host.
                Some((low, high)) if count == 0 && low != high => format!("{low}-{high}"),
                Some((low, _)) => (usize::from(low) + i).to_string(),
            },
            target,
            protocol: protocol.clone(),
        })
        .collect())
}

fn range(text: &str) -> Result<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse()?, last.parse()?);
    if first > last {
        bail!("invalid range");
    }
    Ok((first, last))
}

/// Reads `--publish` of a service, short or long, as ports of an endpoint spec.
pub(crate) fn service(text: &str) -> Result<Vec<Value>> {
    if !text.contains('=') {
        let mut ports = Vec::new();
        for port in short(text)? {
            let (first, last) = match port.published.as_str() {
                "" => (0, 0),
                text => range(text)?,
            };
            ports.extend(
                (first..=last)
                    .map(|published| endpoint(&port.protocol, port.target, published, "ingress")),
            );
        }
        return Ok(ports);
    }
    let (mut target, mut published) = (None, 0_u16);
    let (mut protocol, mut mode) = ("tcp".to_owned(), "ingress".to_owned());
    for (key, value) in fields(text)? {
        let Some(value) = value else {
            bail!("invalid field: {key}");
        };
        let number = || {
            value
                .parse::<u16>()
                .map_err(|_| anyhow!("invalid {key} port ({value}): value must be an integer"))
        };
        match key.as_str() {
            "target" => target = Some(number()?),
            "published" => published = number()?,
            "protocol" if ["tcp", "udp", "sctp"].contains(&value.as_str()) => protocol = value,
            "protocol" => bail!("invalid protocol value '{value}'"),
            "mode" if ["ingress", "host"].contains(&value.as_str()) => mode = value,
            "mode" => {
                bail!("invalid publish mode value ({value}): must be either 'ingress' or 'host'")
            }
            // They become labels, see `labels`.
            _ if OPTIONS.contains(&key.as_str()) => {}
            _ => bail!("invalid field key: {key}"),
        }
    }
    let target = target.ok_or_else(|| anyhow!("missing mandatory field 'target'"))?;
    Ok(vec![endpoint(&protocol, target, published, &mode)])
}

/// Options of a published port that docker's API has no field for.
const OPTIONS: [&str; 3] = ["host-ip", "local", "proxy-protocol"];

/// The labels that say what else `--publish` of a service asks for: `host-ip=10.0.0.5,local=true,proxy-protocol=v2`, or
/// the address before a port in the short form.
pub(crate) fn labels(text: &str) -> Result<Vec<(String, String)>> {
    if !text.contains('=') {
        let ports = short(text)?.into_iter();
        let bound = ports.filter(|port| !port.host_ip.is_empty());
        return Ok(bound
            .map(|port| {
                let name = label(&port.protocol, i64::from(port.target), "host-ip");
                (name, port.host_ip)
            })
            .collect());
    }
    let mut labels = Vec::new();
    for port in service(text)? {
        for (key, value) in fields(text)? {
            if OPTIONS.contains(&key.as_str()) {
                let target = crate::json::number(&port, "/TargetPort");
                let protocol = crate::json::text(&port, "/Protocol");
                labels.push((label(protocol, target, &key), value.unwrap_or_default()));
            }
        }
    }
    Ok(labels)
}

/// Name of the label of a port's option.
pub(crate) fn label(protocol: &str, target: i64, option: &str) -> String {
    let protocol = match protocol {
        "tcp" => String::new(),
        other => format!("/{other}"),
    };
    format!("shoal.publish.{target}{protocol}.{option}")
}

/// A port of an endpoint spec.
pub(crate) fn endpoint(protocol: &str, target: u16, published: u16, mode: &str) -> Value {
    let mut port = json!({"Protocol": protocol, "TargetPort": target, "PublishMode": mode});
    if published != 0 {
        port["PublishedPort"] = published.into();
    }
    port
}

/// `ExposedPorts` and `PortBindings` of a container.
pub(crate) fn container(publish: &[String], expose: &[String]) -> Result<(Value, Value)> {
    let mut exposed = Map::new();
    let mut bindings: Map<String, Value> = Map::new();
    for text in publish {
        for port in short(text)? {
            let key = format!("{}/{}", port.target, port.protocol);
            exposed.insert(key.clone(), json!({}));
            let binding = json!({"HostIp": port.host_ip, "HostPort": port.published});
            if let Value::Array(all) = bindings.entry(key).or_insert_with(|| json!([])) {
                all.push(binding);
            }
        }
    }
    for text in expose {
        for port in short(text)? {
            exposed.insert(format!("{}/{}", port.target, port.protocol), json!({}));
        }
    }
    Ok((exposed.into(), bindings.into()))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(read: Result<Vec<Value>>, want: &Expect) {
        let text = match read {
            Ok(ports) => ports.iter().map(|port| format!("{port}\n")).collect(),
            Err(error) => format!("{error:#}\n"),
        };
        want.assert_eq(&text);
    }

    #[test]
    fn options_of_a_port_are_labels() {
        let labels = |text: &str| {
            let labels = labels(text).unwrap().into_iter();
            let labels = labels.map(|(name, value)| format!("{name}={value}"));
            labels.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(labels("8080:80"), "");
        assert_eq!(
            labels("127.0.0.1:8080:80/udp"),
            "shoal.publish.80/udp.host-ip=127.0.0.1"
        );
        assert_eq!(
            labels("published=8080,target=80,host-ip=fd00::5,local=true,proxy-protocol=v2"),
            "shoal.publish.80.host-ip=fd00::5 shoal.publish.80.local=true shoal.publish.80.proxy-protocol=v2"
        );
        assert_eq!(service("1.2.3.4:8080:80").unwrap().len(), 1);
    }

    #[test]
    fn services_take_short_and_long_forms() {
        check(
            service("80"),
            &expect![[r#"
            {"Protocol":"tcp","PublishMode":"ingress","TargetPort":80}
        "#]],
        );
        check(
            service("8080:80/udp"),
            &expect![[r#"
            {"Protocol":"udp","PublishMode":"ingress","PublishedPort":8080,"TargetPort":80}
        "#]],
        );
        check(
            service("8000-8001:80-81"),
            &expect![[r#"
            {"Protocol":"tcp","PublishMode":"ingress","PublishedPort":8000,"TargetPort":80}
            {"Protocol":"tcp","PublishMode":"ingress","PublishedPort":8001,"TargetPort":81}
        "#]],
        );
        check(
            service("published=53,target=5353,protocol=udp,mode=host"),
            &expect![[r#"
            {"Protocol":"udp","PublishMode":"host","PublishedPort":53,"TargetPort":5353}
        "#]],
        );
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for (text, problem) in [
            ("http", "invalid containerPort: http"),
            ("8080:", "no port specified: 8080:<empty>"),
            ("80/icmp", "invalid proto: icmp"),
            ("1.2.3:80:80", "invalid IP address: 1.2.3"),
            ("70000:80", "invalid hostPort: 70000"),
            (
                "80-90:80-81",
                "invalid ranges specified for container and host Ports: 80-81 and 80-90",
            ),
            ("published=80", "missing mandatory field 'target'"),
            (
                "target=80,mode=mesh",
                "invalid publish mode value (mesh): must be either 'ingress' or 'host'",
            ),
            ("target=80,colour=red", "invalid field key: colour"),
        ] {
            assert_eq!(service(text).unwrap_err().to_string(), problem, "{text}");
        }
    }

    #[test]
    fn containers_bind_ports() {
        let publish =
            ["8080:80", "127.0.0.1::53/udp", "[::1]:9:9", "7000-7005:70"].map(str::to_owned);
        let (exposed, bindings) = container(&publish, &["443".to_owned()]).unwrap();
        expect![[r#"
            {"443/tcp":{},"53/udp":{},"70/tcp":{},"80/tcp":{},"9/tcp":{}}
            {"53/udp":[{"HostIp":"127.0.0.1","HostPort":""}],"70/tcp":[{"HostIp":"","HostPort":"7000-7005"}],"80/tcp":[{"HostIp":"","HostPort":"8080"}],"9/tcp":[{"HostIp":"::1","HostPort":"9"}]}"#]]
        .assert_eq(&format!("{exposed}\n{bindings}"));
    }
}
