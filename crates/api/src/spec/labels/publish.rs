//! Options of single published ports: `shoal.publish.80.local=true`.

use super::{InvalidLabel, PORT_OPTIONS, PUBLISH, value};
use crate::spec::{PortConfig, Protocol};

/// Takes all options from ports.
pub(super) fn clear(ports: &mut [PortConfig]) {
    for port in ports {
        port.proxy_protocol = false;
        port.local = false;
        port.host_ip = None;
    }
}

/// Applies a label whose name goes on with `of_port` to every port that it is of.
pub(super) fn apply(
    ports: &mut [PortConfig],
    name: &str,
    of_port: &str,
    text: &str,
) -> Result<(), InvalidLabel> {
    let unknown = || InvalidLabel::Unknown(name.to_owned(), and_ports(&[]));
    let (port, option) = of_port.split_once('.').ok_or_else(unknown)?;
    let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    let target: u16 = number.parse().map_err(|_| unknown())?;
    let protocol: Protocol = protocol.parse().map_err(|_| unknown())?;
    let known = PORT_OPTIONS.iter().find(|(known, ..)| *known == option);
    let (_, form, _) = known.ok_or_else(unknown)?;
    let wrong = || InvalidLabel::Value {
        name: name.to_owned(),
        value: text.to_owned(),
        expected: (*form).to_owned(),
    };
    let published: Vec<String> = ports
        .iter()
        .map(|port| format!("{}/{}", port.target, port.protocol))
        .collect();
    let is_of = |port: &&mut PortConfig| (port.target, port.protocol) == (target, protocol);
    let mut of_label = ports.iter_mut().filter(is_of).peekable();
    if of_label.peek().is_none() {
        let none = "none".to_owned();
        return Err(InvalidLabel::NoSuchPort {
            name: name.to_owned(),
            published: Some(published.join(", "))
                .filter(|all| !all.is_empty())
                .unwrap_or(none),
        });
    }
    for port in of_label {
        match option {
            "proxy-protocol" if text == "v2" => port.proxy_protocol = true,
            "local" => port.local = value::flag(text).ok_or_else(wrong)?,
            "host-ip" => port.host_ip = Some(text.parse().map_err(|_| wrong())?),
            _ => return Err(wrong()),
        }
    }
    Ok(())
}

/// The names that are known, those of ports at the end.
pub(super) fn and_ports(known: &[&str]) -> String {
    let known = known.iter().map(|name| (*name).to_owned());
    let options = PORT_OPTIONS.map(|(option, ..)| format!("{PUBLISH}PORT.{option}"));
    known.chain(options).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::spec::ServiceSpec;

    fn spec(labels: &[(&str, &str)]) -> Result<ServiceSpec, String> {
        let mut spec = ServiceSpec::default();
        let port = |target, protocol| PortConfig {
            target,
            protocol,
            ..PortConfig::default()
        };
        spec.endpoint.ports = vec![port(80, Protocol::Tcp), port(80, Protocol::Udp)];
        let labels = labels.iter();
        spec.annotations.labels = labels
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        spec.apply_labels().map_err(|error| error.to_string())?;
        Ok(spec)
    }

    #[test]
    fn an_option_is_of_one_port_and_goes_with_its_label() {
        let mut filled = spec(&[
            ("shoal.publish.80.proxy-protocol", "v2"),
            ("shoal.publish.80/udp.local", "true"),
            ("shoal.publish.80.host-ip", "fd00::5"),
        ])
        .unwrap();
        let [tcp, udp] = &filled.endpoint.ports[..] else {
            panic!("two ports")
        };
        let address: IpAddr = "fd00::5".parse().unwrap();
        assert_eq!(
            (tcp.proxy_protocol, tcp.local, tcp.host_ip),
            (true, false, Some(address))
        );
        assert_eq!(
            (udp.proxy_protocol, udp.local, udp.host_ip),
            (false, true, None)
        );
        filled.annotations.labels.clear();
        filled.apply_labels().unwrap();
        assert_eq!(filled, spec(&[]).unwrap());
    }

    #[test]
    fn what_is_wrong_is_named_with_what_would_be_right() {
        let refused = |name, value| spec(&[(name, value)]).unwrap_err();
        expect_test::expect![[r#"
            label 'shoal.publish.80.proxy-protocol' has the invalid value 'v1': expected v2
            label 'shoal.publish.80.local' has the invalid value 'maybe': expected true|false
            label 'shoal.publish.80.host-ip' has the invalid value 'eth0': expected ADDRESS
            label 'shoal.publish.81.local' is of a port that the service does not publish: expected one of 80/tcp, 80/udp
            label 'shoal.publish.80.hostip' is unknown: expected one of shoal.publish.PORT.proxy-protocol, shoal.publish.PORT.local, shoal.publish.PORT.host-ip
            label 'shoal.publish.http.local' is unknown: expected one of shoal.publish.PORT.proxy-protocol, shoal.publish.PORT.local, shoal.publish.PORT.host-ip"#]]
        .assert_eq(
            &[
                refused("shoal.publish.80.proxy-protocol", "v1"),
                refused("shoal.publish.80.local", "maybe"),
                refused("shoal.publish.80.host-ip", "eth0"),
                refused("shoal.publish.81.local", "true"),
                refused("shoal.publish.80.hostip", "10.0.0.5"),
                refused("shoal.publish.http.local", "true"),
            ]
            .join("\n"),
        );
    }
}
