//! The underlay of a lab: a bridge on the machine, one veth pair per host.

use std::{
    net::Ipv4Addr,
    process::{Command, Output, Stdio},
};

use ipnet::Ipv4Net;
use nix::ifaddrs::getifaddrs;

use super::{LabError, doing, host};

fn output(mut command: Command) -> Result<Output, LabError> {
    let what = format!("{command:?}");
    doing(command.stdin(Stdio::null()).output(), || {
        format!("cannot run {what}")
    })
}

fn done(words: &str, output: &Output) -> Result<(), LabError> {
    if output.status.success() {
        return Ok(());
    }
    let problem = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(LabError::Command {
        host: "this machine".to_owned(),
        command: words.to_owned(),
        problem,
    })
}

fn ip(words: &str) -> Result<(), LabError> {
    let mut command = Command::new("ip");
    command.args(words.split(' '));
    done(&format!("ip {words}"), &output(command)?)
}

fn ip_inside(init: u32, words: &str) -> Result<(), LabError> {
    let Some(init) = host::ProcessId::of(init) else {
        return Err(LabError::Down {
            host: format!("process {init}"),
        });
    };
    let mut command = Command::new("ip");
    command
        .args(words.split(' '))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = host::spawn_inside(init, command)?;
    let output = doing(child.wait_with_output(), || {
        format!("cannot wait for ip {words}")
    })?;
    done(&format!("ip {words}"), &output)
}

/// Parts of the range for benchmarks of network devices (RFC 2544 appendix C.2.2): seldom anybody's LAN.
fn candidates() -> impl Iterator<Item = Ipv4Net> {
    (0..=255).map(|third| Ipv4Net::new_assert([198, 19, third, 0].into(), 24))
}

/// Subnets that this machine is in, by interface.
fn in_use() -> Vec<(String, Ipv4Net)> {
    let all = getifaddrs().into_iter().flatten();
    let subnets = all.filter_map(|interface| {
        let addr = interface.address?.as_sockaddr_in()?.ip();
        let mask = interface.netmask?.as_sockaddr_in()?.ip();
        let net = Ipv4Net::with_netmask(addr, mask).ok()?.trunc();
        Some((interface.interface_name, net))
    });
    subnets.collect()
}

/// Checks the wanted subnet, or chooses one. Packets for a subnet that the machine is in already would leave by that
/// interface and reach strangers.
pub(super) fn free_subnet(wanted: Option<Ipv4Net>) -> Result<Ipv4Net, LabError> {
    let used = in_use();
    let user_of = |net: &Ipv4Net| {
        let overlaps =
            |other: &Ipv4Net| net.contains(&other.network()) || other.contains(&net.network());
        used.iter().find(|(_, other)| overlaps(other))
    };
    let refused = |net: String, expected: String| LabError::Invalid {
        field: "subnet",
        value: net,
        expected,
    };
    match wanted {
        Some(net) if net.prefix_len() > 24 => {
            let expected = "expected a prefix length of at most 24".to_owned();
            Err(refused(net.to_string(), expected))
        }
        Some(net) => match user_of(&net.trunc()) {
            None => Ok(net.trunc()),
            Some((interface, other)) => Err(refused(
                net.to_string(),
                format!(
                    "it overlaps with {other} on {interface}; without --subnet a free one is taken"
                ),
            )),
        },
        None => candidates()
            .find(|net| user_of(net).is_none())
            .ok_or_else(|| {
                refused(
                    "any".to_owned(),
                    "this machine uses all that a lab tries: say --subnet".to_owned(),
                )
            }),
    }
}

/// First address of the subnet: the machine's own on the bridge.
fn gateway(subnet: Ipv4Net) -> Ipv4Addr {
    (u32::from(subnet.network()) + 1).into()
}

/// Makes the bridge. The machine gets the first address, so that it can call the hosts.
pub(super) fn make_bridge(bridge: &str, subnet: Ipv4Net, mtu: u32) -> Result<(), LabError> {
    ip(&format!("link add {bridge} mtu {mtu} type bridge"))?;
    ip(&format!(
        "addr add {}/{} dev {bridge}",
        gateway(subnet),
        subnet.prefix_len()
    ))?;
    ip(&format!("link set {bridge} up"))
}

/// Name of a host's port on the bridge, at most 15 characters (IFNAMSIZ, linux/if.h).
fn port(lab: &str, name: &str) -> String {
    format!("sl{lab}{name}")
}

/// Disconnects a host. The kernel would do it too, but only some time after the host's last process has ended.
pub(super) fn unplug(lab: &str, name: &str) -> Result<(), LabError> {
    let port = port(lab, name);
    if exists(&port)? {
        ip(&format!("link del {port}"))
    } else {
        Ok(())
    }
}

fn exists(link: &str) -> Result<bool, LabError> {
    let mut command = Command::new("ip");
    command.args(["link", "show", "dev", link]);
    Ok(output(command)?.status.success())
}

/// Connects a host: `eth0` inside, a port of the bridge outside.
pub(super) fn plug(
    bridge: &str,
    lab: &str,
    name: &str,
    init: u32,
    addr: Ipv4Addr,
    subnet: Ipv4Net,
    mtu: u32,
) -> Result<(), LabError> {
    let port = port(lab, name);
    ip(&format!(
        "link add {port} mtu {mtu} master {bridge} type veth peer name eth0 mtu {mtu} netns {init}"
    ))?;
    ip(&format!("link set {port} up"))?;
    ip_inside(init, "link set lo up")?;
    ip_inside(
        init,
        &format!("addr add {addr}/{} dev eth0", subnet.prefix_len()),
    )?;
    ip_inside(init, "link set eth0 up")?;
    ip_inside(init, &format!("route add default via {}", gateway(subnet)))
}

/// nftables family and name of the table that holds the cut cables of a lab.
fn table(bridge: &str) -> String {
    format!("bridge {}", bridge.replace('-', "_"))
}

fn nft(words: &str) -> Result<(), LabError> {
    let mut command = Command::new("nft");
    command.arg(words);
    done(&format!("nft {words}"), &output(command)?)
}

/// Drops what two hosts send to each other, ARP included, on the bridge that carries it.
pub(super) fn cut(bridge: &str, a: Ipv4Addr, b: Ipv4Addr) -> Result<(), LabError> {
    let table = table(bridge);
    nft(&format!(
        "add table {table}; \
         add chain {table} cables {{ type filter hook forward priority 0; policy accept; }}; \
         add rule {table} cables ip saddr {{ {a}, {b} }} ip daddr {{ {a}, {b} }} drop; \
         add rule {table} cables arp saddr ip {{ {a}, {b} }} arp daddr ip {{ {a}, {b} }} drop"
    ))
}

/// Mends all cables.
pub(super) fn heal(bridge: &str) -> Result<(), LabError> {
    let table = table(bridge);
    nft(&format!("add table {table}; delete table {table}"))
}

/// Removes the bridge and what hangs on it.
pub(super) fn remove(bridge: &str) -> Result<(), LabError> {
    if exists(bridge)? {
        ip(&format!("link del {bridge}"))?;
    }
    // Only a lab whose cables were cut has a table.
    let table = table(bridge);
    let mut command = Command::new("nft");
    command.arg(format!("list table {table}"));
    if output(command).is_ok_and(|listed| listed.status.success()) {
        nft(&format!("delete table {table}"))?;
    }
    Ok(())
}
