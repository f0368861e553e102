//! Encrypted networks: where their tasks may run, and what nodes hear of one another's keys.

use shoal_api::{
    NetworkId, TaskState,
    object::NodeDescription,
    spec::{NetworkAttachmentSpec, NetworkTarget},
    tunnel::{ENCRYPTED_PLUGIN, PublicKey, TunnelKey},
};

use super::*;
use crate::core::dispatch::{network_view, node_seen};

/// The node says something else of itself.
fn say(world: &mut World, name: &str, change: impl FnOnce(&mut NodeDescription)) {
    let id = node_id(name);
    let mut description = world.state.node(&id).unwrap().description.clone();
    change(&mut description);
    let batch = node_seen(&world.state, &id, &description, None, world.now);
    world.apply(batch.unwrap()).unwrap();
}

fn key(n: u8) -> TunnelKey {
    TunnelKey {
        public: PublicKey([n; 32]),
        port: 51_820,
    }
}

fn encrypts(world: &mut World, name: &str, keys: &[u8]) {
    say(world, name, |description| {
        description.plugins.push(ENCRYPTED_PLUGIN.into());
        description.tunnel_keys = keys.iter().copied().map(key).collect();
    });
}

fn make(world: &mut World, name: &str, value: &str) -> Result<NetworkId, Refusal> {
    let mut spec = network(name, None);
    spec.attachable = true;
    let options = &mut spec.driver.options;
    options.insert("encrypted".into(), value.into());
    let made = world.user(|state, cx| create_network(state, cx, spec))?;
    let ObjectKey::Network(id) = made else {
        panic!("{made:?} is not a network")
    };
    Ok(id)
}

fn on(network: &NetworkId, name: &str, replicas: u64) -> ServiceSpec {
    let mut spec = service(name, replicas);
    spec.task.networks = vec![NetworkAttachmentSpec {
        target: NetworkTarget::Cluster(network.clone()),
        aliases: Vec::new(),
        addresses: Vec::new(),
        driver_options: Default::default(),
    }];
    spec
}

#[test]
fn tasks_run_where_the_kernel_can_encrypt_and_wait_where_none_can() {
    let mut world = World::new(&["n1", "n2", "n3"]);
    let secret = make(&mut world, "secret", "").unwrap();
    let plain = make(&mut world, "plain", "false").unwrap();
    let id = world.create(on(&secret, "web", 2));
    let open = world.create(on(&plain, "open", 1));
    world.settle();
    assert_eq!(world.running(&open), 1);
    for task in world.runnable(&id) {
        assert_eq!(task.status.state, TaskState::Pending);
        let why = &*task.status.err;
        assert_eq!(why, "no suitable node (missing plugin on 3 nodes)");
    }
    let explained = crate::core::scheduler::explain(&world.state, &id, world.now).unwrap();
    assert_eq!(
        explained.nodes[0].reasons,
        ["missing plugin: Network/encrypted"]
    );
    encrypts(&mut world, "n2", &[2]);
    world.settle();
    assert_eq!(world.running(&id), 2);
    let nodes = world.runnable(&id);
    assert!(nodes.iter().all(|task| task.node == Some(node_id("n2"))));
}

#[test]
fn keys_are_told_to_those_alone_who_need_them() {
    let mut world = World::new(&["n1", "n2", "n3"]);
    encrypts(&mut world, "n1", &[1]);
    encrypts(&mut world, "n2", &[2, 22]);
    let secret = make(&mut world, "secret", "true").unwrap();
    let id = world.create(on(&secret, "web", 2));
    world.settle();
    assert_eq!(world.running(&id), 2);
    let view = network_view(&world.state, &node_id("n1"));
    assert!(view.networks[&secret].encrypted);
    assert_eq!(view.peers[&node_id("n1")].tunnel_keys, [key(1)]);
    assert_eq!(view.peers[&node_id("n2")].tunnel_keys, [key(2), key(22)]);
    let elsewhere = network_view(&world.state, &node_id("n3"));
    assert!(
        elsewhere
            .peers
            .values()
            .all(|peer| peer.tunnel_keys.is_empty())
    );
}

#[test]
fn a_container_is_not_attached_where_it_would_talk_in_the_open() {
    let mut world = World::new(&["n1"]);
    make(&mut world, "secret", "1").unwrap();
    let wish = || AttachmentWish {
        id: "t1".parse().unwrap(),
        network: "secret".into(),
        container: "c".repeat(64),
        name: "c1".into(),
        aliases: Vec::new(),
        addresses: Vec::new(),
    };
    let attach = |world: &mut World| {
        let wish = wish();
        world.user(|state, cx| create_attachment(state, cx, &node_id("n1"), &wish))
    };
    let refusal = attach(&mut world).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::FailedPrecondition);
    assert_eq!(
        refusal.text,
        "network secret is encrypted, which this node cannot carry: its kernel lacks WireGuard (CONFIG_WIREGUARD) or IPv6"
    );
    encrypts(&mut world, "n1", &[1]);
    attach(&mut world).unwrap();
    let refusal = make(&mut world, "other", "ipsec").unwrap_err();
    assert_eq!(
        refusal.text,
        "invalid value 'ipsec' of option encrypted: expected true or false"
    );
}
