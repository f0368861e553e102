//! Addresses of a node, as users write them: `ADDR`, `ADDR:PORT`, an interface, or nothing.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use nix::ifaddrs::getifaddrs;

use super::CLUSTER_PORT;

/// An address that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {field} {value:?}: {expected}")]
pub struct AddressError {
    field: &'static str,
    value: String,
    expected: String,
}

impl AddressError {
    pub(super) fn new(field: &'static str, value: &str, expected: impl Into<String>) -> Self {
        Self {
            field,
            value: value.to_owned(),
            expected: expected.into(),
        }
    }
}

/// Adds a port where there is none.
pub(super) fn with_port(address: &str, port: u16) -> String {
    match address.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, port).to_string(),
        Err(_)
            if address
                .rsplit_once(':')
                .is_some_and(|(_, port)| port.parse::<u16>().is_ok()) =>
        {
            address.to_owned()
        }
        Err(_) => format!("{address}:{port}"),
    }
}

/// Where to listen; nothing is all addresses.
pub(super) fn listen(text: &str) -> Result<SocketAddr, AddressError> {
    if text.is_empty() {
        return Ok(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), CLUSTER_PORT));
    }
    one("listen address", text, CLUSTER_PORT)
}

/// All addresses of this host but link-local ones; none when they cannot be read.
pub(super) fn own_addresses() -> Vec<IpAddr> {
    let all = addresses(|_, _| true);
    all.into_iter().map(|(_, address)| address).collect()
}

/// Where others reach this node; nothing is the address that leads to `towards`, else the only address it has.
pub(super) fn advertise(
    text: &str,
    listen: SocketAddr,
    towards: Option<&str>,
) -> Result<SocketAddr, AddressError> {
    const FIELD: &str = "advertise address";
    if !text.is_empty() {
        let address = one(FIELD, text, listen.port())?;
        return if address.ip().is_unspecified() {
            Err(AddressError::new(
                FIELD,
                text,
                "expected an address at which other nodes reach this one",
            ))
        } else {
            Ok(address)
        };
    }
    if !listen.ip().is_unspecified() {
        return Ok(listen);
    }
    if let Some(ip) = towards.and_then(local_address_towards) {
        return Ok(SocketAddr::new(ip, listen.port()));
    }
    let mut candidates = addresses(|_, ip| !ip.is_loopback() && ip.is_ipv4());
    candidates.retain(|(name, _)| {
        !name.starts_with("docker") && !name.starts_with("shoal") && !name.starts_with("br-")
    });
    match candidates.as_slice() {
        [(_, ip)] => Ok(SocketAddr::new(*ip, listen.port())),
        [] => Err(AddressError::new(
            FIELD,
            text,
            "could not find a non-loopback address: specify one with --advertise-addr",
        )),
        // Docker's words.
        several => {
            let names = several
                .iter()
                .map(|(name, ip)| format!("{ip} on {name}"))
                .collect::<Vec<_>>()
                .join(" and ");
            let expected = format!(
                "could not choose an IP address to advertise since this system has multiple addresses on different \
                 interfaces ({names}) - specify one with --advertise-addr"
            );
            Err(AddressError::new(FIELD, text, expected))
        }
    }
}

/// Where others reach this node's data path; nothing is where they reach the rest.
pub(super) fn data_path(text: &str) -> Result<Option<IpAddr>, AddressError> {
    if text.is_empty() {
        return Ok(None);
    }
    one("data path address", text, 0).map(|address| Some(address.ip()))
}

/// Reads `ADDR`, `ADDR:PORT`, `INTERFACE` or `INTERFACE:PORT`.
fn one(field: &'static str, text: &str, port: u16) -> Result<SocketAddr, AddressError> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, number)) => match number.parse() {
            Ok(port) => (name, port),
            Err(_) => {
                return Err(AddressError::new(
                    field,
                    text,
                    "expected ADDR[:PORT] or INTERFACE[:PORT]",
                ));
            }
        },
        None => (text, port),
    };
    let found = addresses(|interface, _| interface == name);
    let ip = found
        .iter()
        .find(|(_, ip)| ip.is_ipv4())
        .or_else(|| found.first());
    ip.map(|(_, ip)| SocketAddr::new(*ip, port)).ok_or_else(|| {
        AddressError::new(field, text, "expected ADDR[:PORT] or INTERFACE[:PORT], and there is no such interface with an address")
    })
}

/// Addresses of this host that somebody wants, with their interfaces.
fn addresses(wanted: impl Fn(&str, IpAddr) -> bool) -> Vec<(String, IpAddr)> {
    let all = getifaddrs().into_iter().flatten().filter_map(|interface| {
        let address = interface.address?;
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (None, Some(v6)) if !v6.ip().is_unicast_link_local() => IpAddr::V6(v6.ip()),
            _ => return None,
        };
        Some((interface.interface_name, ip))
    });
    all.filter(|(name, ip)| wanted(name, *ip)).collect()
}

/// The address that packets to a manager leave from. Nothing is sent: connecting a UDP socket only looks up the route.
fn local_address_towards(remote: &str) -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect(remote).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_added_where_there_is_none() {
        assert_eq!(with_port("192.0.2.1", 2377), "192.0.2.1:2377");
        assert_eq!(with_port("192.0.2.1:9", 2377), "192.0.2.1:9");
        assert_eq!(with_port("manager", 2377), "manager:2377");
        assert_eq!(with_port("2001:db8::1", 2377), "[2001:db8::1]:2377");
    }

    #[test]
    fn an_unspecified_address_cannot_be_advertised() {
        let listen = listen("").expect("the default");
        let refused = advertise("0.0.0.0", listen, None).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "invalid advertise address \"0.0.0.0\": expected an address at which other nodes reach this one"
        );
        assert_eq!(
            advertise("192.0.2.1", listen, None)
                .map(|a| a.to_string())
                .as_deref(),
            Ok("192.0.2.1:2377")
        );
    }
}
