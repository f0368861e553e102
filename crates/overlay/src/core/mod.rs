//! What the kernel should hold, computed from the network view; nothing here touches the kernel.

pub mod bridge;
pub mod conntrack_wire;
pub mod delta;
pub mod desired;
pub mod diff;
pub mod flows;
pub mod generic_wire;
pub mod ipam;
pub mod ipvs_wire;
pub mod keyring;
pub mod known;
pub mod lb;
pub mod naming;
pub mod netlink;
pub mod nft;
pub mod nft_wire;
pub mod notice;
pub mod observed;
pub mod probe_frame;
pub mod proxy_header;
pub mod resolver;
pub mod rtnl_wire;
pub mod ruleset;
pub mod state;
pub mod tunnel;
pub mod wireguard_wire;
