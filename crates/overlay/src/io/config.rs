//! What is set of a plane per daemon.

use std::{net::Ipv6Addr, path::PathBuf};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::core::{
    ipvs_wire::{BY_SOURCE, TURN},
    keyring::KeyTimes,
};

/// A unique local subnet (RFC 4193) that never leaves the host.
const GWBRIDGE_SUBNET6: Ipv6Addr = Ipv6Addr::new(0xfd53, 0x686f, 0x616c, 1, 0, 0, 0, 0);

/// What is set per daemon.
#[derive(Debug, Clone)]
pub struct PlaneConfig {
    /// Handles of router namespaces live in `<run_dir>/netns`.
    pub run_dir: PathBuf,
    /// Start of the names of our interfaces and tables, one to six characters.
    pub prefix: String,
    /// Name of the bridge that joins the routers with the host.
    pub gwbridge: String,
    /// Its subnet; the first address is the host's.
    pub gwbridge_subnet: Ipv4Net,
    /// The host's network namespace; `None` for that of the caller of [`Plane::open`].
    pub host_netns: Option<PathBuf>,
    /// Its IPv6 subnet, of 64 bits; the first address is the host's.
    pub gwbridge_subnet6: Ipv6Net,
    /// What distributes connections over the tasks of a service.
    pub lb_driver: LbDriver,
    /// How long keys of encrypted networks last.
    pub key_times: KeyTimes,
    /// MTU of the underlay in bytes; `None` to ask the interface that has the underlay address.
    pub underlay_mtu: Option<u32>,
}

impl PlaneConfig {
    /// Docker's customary names and ranges, with handles below `run_dir`.
    pub fn new(run_dir: impl Into<PathBuf>) -> Self {
        Self {
            run_dir: run_dir.into(),
            prefix: "shoal".to_owned(),
            gwbridge: "shoal_gwbridge".to_owned(),
            gwbridge_subnet: Ipv4Net::new_assert([172, 18, 0, 0].into(), 16),
            gwbridge_subnet6: Ipv6Net::new_assert(GWBRIDGE_SUBNET6, 64),
            host_netns: None,
            lb_driver: LbDriver::Auto,
            key_times: KeyTimes::default(),
            underlay_mtu: None,
        }
    }
}

/// What distributes connections over the tasks of a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LbDriver {
    /// IPVS where the kernel has it, else nftables.
    #[default]
    Auto,
    /// Maps of nftables.
    Nft,
    /// IPVS; nftables where the kernel lacks it.
    Ipvs,
}

impl LbDriver {
    /// By which of these schedulers IPVS keeps a client with its backend, if it is IPVS that distributes connections; `None`
    /// if it is nftables, which keeps clients only where it can compute a hash.
    pub(crate) fn ipvs_scheduler(
        self,
        schedulers: &[&'static str],
        nft_keeps_clients: bool,
    ) -> Option<&'static str> {
        if self == Self::Nft || !schedulers.contains(&TURN) {
            return None;
        }
        let found = BY_SOURCE.into_iter().find(|name| schedulers.contains(name));
        match found {
            None if self == Self::Auto && nft_keeps_clients => None,
            found => Some(found.unwrap_or(TURN)),
        }
    }
}

impl std::str::FromStr for LbDriver {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "nft" => Ok(Self::Nft),
            "ipvs" => Ok(Self::Ipvs),
            _ => Err(format!(
                "invalid load-balancing driver {text:?}: expected auto, nft or ipvs"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipvs_is_taken_where_it_can_do_what_nftables_can() {
        use LbDriver::{Auto, Ipvs, Nft};
        let all = ["rr", "mh", "sh"];
        assert_eq!(Auto.ipvs_scheduler(&all, true), Some("mh"));
        assert_eq!(Auto.ipvs_scheduler(&["rr", "sh"], true), Some("sh"));
        assert_eq!(Auto.ipvs_scheduler(&["rr"], true), None);
        assert_eq!(Auto.ipvs_scheduler(&["rr"], false), Some("rr"));
        assert_eq!(Auto.ipvs_scheduler(&["mh"], false), None, "not in turn");
        assert_eq!(Ipvs.ipvs_scheduler(&["rr"], true), Some("rr"), "asked for");
        assert_eq!(Ipvs.ipvs_scheduler(&[], true), None, "there is no IPVS");
        assert_eq!(Nft.ipvs_scheduler(&all, false), None);
    }
}
