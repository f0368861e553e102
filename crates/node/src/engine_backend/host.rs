//! What this host is.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    path::Path,
};

use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags, sys::statfs::statfs};
use shoal_api::id::{IdSource, RandomIds};

/// Release of the kernel.
pub(super) fn kernel_version() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

/// Go's name of a processor that Rust names so.
pub(super) fn go_arch(arch: &str) -> &str {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

/// Name and version of the distribution.
pub(super) fn operating_system() -> (String, String) {
    let paths = ["/etc/os-release", "/usr/lib/os-release"];
    let text = paths.iter().find_map(|path| fs::read_to_string(path).ok());
    let mut values = parse_os_release(&text.unwrap_or_default());
    let name = values
        .remove("PRETTY_NAME")
        .unwrap_or_else(|| "Linux".to_owned());
    (name, values.remove("VERSION_ID").unwrap_or_default())
}

fn parse_os_release(text: &str) -> BTreeMap<String, String> {
    let line = |line: &str| {
        let (key, value) = line.split_once('=')?;
        let value = value.trim().trim_matches(['"', '\'']);
        Some((key.trim().to_owned(), value.to_owned()))
    };
    text.lines().filter_map(line).collect()
}

/// Bytes of memory.
pub(super) fn memory_bytes() -> u64 {
    parse_memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

fn parse_memory(text: &str) -> u64 {
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|total| total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Name of the file system that holds `path`, as docker writes it.
pub(super) fn backing_file_system(path: &Path) -> &'static str {
    // Magic numbers of `linux/magic.h`.
    match statfs(path).map(|at| at.filesystem_type().0) {
        Ok(0xef53) => "extfs",
        Ok(0x5846_5342) => "xfs",
        Ok(0x9123_683e) => "btrfs",
        Ok(0x0102_1994) => "tmpfs",
        Ok(0x794c_7630) => "overlayfs",
        Ok(0x2fc1_2fc1) => "zfs",
        Ok(0xf2f5_2010) => "f2fs",
        _ => "<unknown>",
    }
}

/// Identity of this installation, made when it is first asked for.
pub(super) fn engine_id(data_root: &Path) -> io::Result<String> {
    let path = data_root.join("engine-id");
    match fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => return Ok(id.trim().to_owned()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let bits = format!("{:032x}", RandomIds.next_bits());
    let id = [
        &bits[..8],
        &bits[8..12],
        &bits[12..16],
        &bits[16..20],
        &bits[20..],
    ]
    .join("-");
    fs::write(path, &id)?;
    Ok(id)
}

/// The address with which this host reaches the world, or the first that is not loopback or of our own interfaces.
pub(super) fn default_address(own_prefix: &str) -> Option<IpAddr> {
    routed_address().or_else(|| first_address(own_prefix))
}

/// The source address of the default route. Connecting a UDP socket chooses one and sends nothing; the destinations
/// are reserved for documentation (RFC 5737, RFC 3849).
fn routed_address() -> Option<IpAddr> {
    let pairs: [(IpAddr, IpAddr); 2] = [
        (
            Ipv4Addr::UNSPECIFIED.into(),
            Ipv4Addr::new(192, 0, 2, 1).into(),
        ),
        (
            Ipv6Addr::UNSPECIFIED.into(),
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        ),
    ];
    let source = |(any, far): (IpAddr, IpAddr)| {
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((far, 9)).ok()?;
        let address = socket.local_addr().ok()?.ip();
        (!address.is_loopback() && !address.is_unspecified()).then_some(address)
    };
    pairs.into_iter().find_map(source)
}

fn first_address(own_prefix: &str) -> Option<IpAddr> {
    let interfaces = getifaddrs().ok()?.filter(|interface| {
        interface.flags.contains(InterfaceFlags::IFF_UP)
            && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK)
            && !interface.interface_name.starts_with(own_prefix)
    });
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|at| IpAddr::V4(at.ip()));
        let v6 = || {
            let ip = address.as_sockaddr_in6()?.ip();
            (!ip.is_unicast_link_local()).then_some(IpAddr::V6(ip))
        };
        v4.or_else(v6)
    });
    let (v4, v6): (Vec<_>, Vec<_>) = addresses.partition(IpAddr::is_ipv4);
    v4.into_iter().chain(v6).next()
}

/// A proxy of the environment, without the password that may be in it.
pub(super) fn proxy(name: &str) -> String {
    let lower = name.to_lowercase();
    let value = std::env::var(name)
        .or_else(|_| std::env::var(lower))
        .unwrap_or_default();
    hide_password(&value)
}

fn hide_password(url: &str) -> String {
    match url
        .split_once("://")
        .and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?.1)))
    {
        Some((scheme, host)) => format!("{scheme}://xxxxx:xxxxx@{host}"),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_host_are_understood() {
        assert_eq!(
            parse_memory("MemTotal:        8010072 kB\nMemFree: 1 kB\n"),
            8_010_072 * 1024
        );
        assert_eq!(parse_memory(""), 0);
        let release = parse_os_release(
            "PRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\nVERSION_ID='13'\nID=debian\n",
        );
        assert_eq!(release["PRETTY_NAME"], "Debian GNU/Linux 13 (trixie)");
        assert_eq!(release["VERSION_ID"], "13");
        assert_eq!(go_arch("x86_64"), "amd64");
        assert!(memory_bytes() > 0);
        assert!(!kernel_version().is_empty());
    }

    #[test]
    fn passwords_of_proxies_are_not_shown() {
        assert_eq!(
            hide_password("http://me:secret@proxy:3128"),
            "http://xxxxx:xxxxx@proxy:3128"
        );
        assert_eq!(hide_password("http://proxy:3128"), "http://proxy:3128");
        assert_eq!(hide_password(""), "");
    }
}
