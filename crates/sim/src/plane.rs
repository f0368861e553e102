//! What a node's kernel would be told of a network view.

use shoal_api::network::NetworkView;
use shoal_overlay::core::{
    desired::{DesiredError, Params, desired},
    observed::Facts,
};

use crate::{
    env::{Env, HostId},
    manager::node_of,
};

/// Every so many views it is computed twice: that takes as long as much of the rest.
const TWICE_EVERY: u64 = 8;

/// Computes the kernel state of a view: there must be one, always the same, with every endpoint of this node in it.
///
/// Returns whether the node is part of the networks.
pub fn check(host: HostId, view: &NetworkView, env: &mut Env) -> bool {
    let params = Params {
        prefix: "sh".to_owned(),
        gwbridge: "shgw".to_owned(),
        gwbridge_subnet: "172.31.0.0/16".parse().expect("a subnet"),
        gwbridge_subnet6: Some("fd53::/64".parse().expect("a subnet")),
        ipvs: None,
        source_hash: true,
        zones: true,
        direct: true,
    };
    let facts = Facts {
        underlay_mtu: 1_500,
        ..Facts::default()
    };
    let me = node_of(host);
    let compute = || desired(view, &me, &facts, &params);
    let first = compute();
    if view.version.is_multiple_of(TWICE_EVERY) && compute() != first {
        env.blame(format!("view {} has two kernel states", view.version));
    }
    match first {
        Ok(_) => {}
        // The first view of a node's first session is sent while its address is being written down.
        Err(DesiredError::NotAPeer { .. }) => return false,
        Err(error) => env.blame(format!("host {host}: {error}")),
    }
    true
}
