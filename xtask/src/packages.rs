//! Debian packages that building, running and testing need.

use anyhow::{Context, Result};

use crate::shell;

/// To compile and link.
pub(crate) const BUILD: &[&str] = &["gcc", "libc6-dev", "libseccomp-dev", "pkg-config"];
/// To run the daemon and the lab.
pub(crate) const RUN: &[&str] = &["iproute2", "nftables"];
/// To test: other programs' view of the kernel (IPVS, WireGuard, packets), a static shell, a registry with accounts, a way to make images of Debian packages, and what docker's SDKs
/// and old clients run on.
pub(crate) const TEST: &[&str] = &[
    "apache2-utils",
    "busybox-static",
    "curl",
    "debootstrap",
    "docker-compose",
    "docker-registry",
    "iputils-ping",
    "ipvsadm",
    "nodejs",
    "npm",
    "openssl",
    "python3-minimal",
    "python3-venv",
    "strace",
    "wireguard-tools",
];
/// The original to measure against.
pub(crate) const BENCH: &[&str] = &[
    "aardvark-dns",
    "busybox-static",
    "curl",
    "dnsperf",
    "docker-registry",
    "docker.io",
    "etcd-server",
    "haproxy",
    "iptables",
];

/// Installs those that are missing. Does nothing where all are there, so that it needs no network then.
pub(crate) fn ensure(groups: &[&[&str]]) -> Result<()> {
    let missing: Vec<&str> = groups
        .iter()
        .flat_map(|group| group.iter().copied())
        .filter(|name| !is_there(name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing {}", missing.join(" "));
    shell::run("apt-get", &["update", "-qq"])
        .context("shoal's tasks install what they need on Debian; elsewhere install it by hand")?;
    let mut words = vec![
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "install",
        "-y",
        "-qq",
        "--no-install-recommends",
    ];
    words.extend(missing);
    shell::read("env", &words).map(drop)
}

fn is_there(package: &str) -> bool {
    // Other packages of node bring npm with them, and do not go together with Debian's.
    if package == "npm" && shell::read("sh", &["-c", "command -v npm"]).is_ok() {
        return true;
    }
    shell::read("dpkg-query", &["-W", "-f", "${Status}", package])
        .is_ok_and(|status| status.ends_with(" installed"))
}
