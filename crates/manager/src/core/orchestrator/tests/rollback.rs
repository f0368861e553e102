//! What keeps an update from being rolled back.

use shoal_api::spec::{FixedAddress, ServiceSpec};

use super::*;

#[test]
fn an_update_whose_earlier_secret_is_gone_pauses_and_says_so() {
    let mut world = World::new(&["n1", "n2"]);
    let secret = world
        .user(|state, cx| {
            let spec = SecretSpec {
                annotations: Annotations {
                    name: "key".into(),
                    ..Annotations::default()
                },
                data: b"x".to_vec(),
                ..SecretSpec::default()
            };
            control::create_secret(state, cx, spec)
        })
        .unwrap();
    let ObjectKey::Secret(secret) = secret else {
        panic!("no secret");
    };
    let mut spec = service("web", 2);
    spec.update = Some(UpdateConfig {
        failure_action: FailureAction::Rollback,
        ..UpdateConfig::default()
    });
    spec.task.container.secrets = vec![SecretReference {
        id: secret.clone(),
        name: "key".into(),
        target: FileTarget {
            name: "key".into(),
            ..FileTarget::default()
        },
    }];
    let id = world.create(spec);
    world.settle();
    world.behaviours.insert("bad:1".into(), Behaviour::Hangs);
    world.update(&id, |spec| {
        spec.task.container.secrets.clear();
        "bad:1".clone_into(&mut spec.task.container.image);
    });
    world.settle();
    world
        .user(|state, cx| control::remove_secret(state, cx, &secret))
        .unwrap();
    world.behaviours.insert("bad:1".into(), Behaviour::Rejected);
    world.advance(600 * SECOND);
    let (state, message) = update_status(&world, &id).unwrap();
    assert_eq!(state, UpdateState::Paused);
    assert!(
        message.ends_with("; it cannot be rolled back: secret not found: key"),
        "{message}"
    );
    // What is there goes on.
    assert_eq!(world.running(&id), 1);
}

#[test]
fn an_update_is_not_rolled_back_to_a_port_or_an_address_of_another() {
    let port = |spec: &mut ServiceSpec, last: u8| {
        spec.endpoint.ports = vec![PortConfig {
            target: 80,
            published: last.into(),
            ..PortConfig::default()
        }];
    };
    let address = |spec: &mut ServiceSpec, last: u8| {
        spec.endpoint.addresses = vec![FixedAddress {
            network: "ingress".into(),
            address: [10, 0, 0, last].into(),
        }];
    };
    not_rolled_back(
        port,
        "port '80' is already in use by service 'other' (ID) as an ingress port",
    );
    not_rolled_back(
        address,
        "address 10.0.0.80 of network ingress is already in use by service 'other' (ID)",
    );
}

fn not_rolled_back(ask: impl Fn(&mut ServiceSpec, u8), why: &str) {
    let mut world = World::new(&["n1"]);
    let published = |name, last| {
        let mut spec = service(name, 1);
        spec.endpoint.ports = vec![PortConfig {
            target: 80,
            ..PortConfig::default()
        }];
        ask(&mut spec, last);
        spec
    };
    let mut spec = published("web", 80);
    spec.update = Some(UpdateConfig {
        failure_action: FailureAction::Rollback,
        ..UpdateConfig::default()
    });
    let id = world.create(spec);
    world.settle();
    world.behaviours.insert("bad:1".into(), Behaviour::Hangs);
    world.update(&id, |spec| {
        ask(spec, 70);
        "bad:1".clone_into(&mut spec.task.container.image);
    });
    world.settle();
    let other = world.create(published("other", 80));
    world.behaviours.insert("bad:1".into(), Behaviour::Rejected);
    world.advance(600 * SECOND);
    let (state, message) = update_status(&world, &id).unwrap();
    assert_eq!(state, UpdateState::Paused);
    let why = why.replace("ID", other.as_str());
    assert!(
        message.ends_with(&format!("; it cannot be rolled back: {why}")),
        "{message}"
    );
    assert_eq!(world.running(&other), 1);
}
