//! What users are told when the answer is no, and what is written when it is yes.

mod encrypted;
mod networks;
mod reach;
mod services;

use shoal_api::{
    ServiceId,
    object::ObjectKey,
    spec::{
        Annotations, Availability, ConfigReference, ConfigSpec, Dependency, Driver, EndpointMode,
        FileTarget, HealthConfig, IpamConfig, Mount, MountKind, NetworkAttachmentSpec, NetworkSpec,
        NetworkTarget, NodeRole, PortConfig, PublishMode, SecretReference, SecretSpec, ServiceMode,
        ServiceSpec, UpdateConfig, UpdateOrder,
    },
};

use super::*;
use crate::core::validate::RefusalKind;
use crate::core::{
    fixture::{node_id, service},
    world::World,
};

/// The refusal of a service with this change of its spec, as docker shows it.
fn refused(world: &mut World, change: impl FnOnce(&mut ServiceSpec)) -> String {
    let mut spec = service("new", 1);
    change(&mut spec);
    world
        .user(|state, cx| create_service(state, cx, spec))
        .unwrap_err()
        .rpc_text()
}

fn publish(published: u16, mode: PublishMode) -> PortConfig {
    PortConfig {
        target: 80,
        published,
        mode,
        ..PortConfig::default()
    }
}

fn network(name: &str, subnet: Option<&str>) -> NetworkSpec {
    let ipam = subnet.map(|subnet| IpamConfig {
        subnet: Some(subnet.parse().unwrap()),
        ip_range: None,
        gateway: None,
    });
    NetworkSpec {
        annotations: Annotations {
            name: name.into(),
            ..Annotations::default()
        },
        ipam: ipam.into_iter().collect(),
        ..NetworkSpec::default()
    }
}

#[test]
fn a_service_that_makes_no_sense_is_refused_in_swarm_s_words() {
    let mut world = World::new(&["n1"]);
    let mut check = |expected: &str, change: &dyn Fn(&mut ServiceSpec)| {
        let refusal = refused(&mut world, change);
        assert_eq!(
            refusal,
            format!("rpc error: code = InvalidArgument desc = {expected}")
        );
    };
    let mount = |target: &str| Mount {
        target: target.into(),
        ..Mount::default()
    };
    check("meta: name must be provided", &|spec| {
        spec.annotations.name.clear()
    });
    check("name must be valid as a DNS name component", &|spec| {
        spec.annotations.name = "a.b".into()
    });
    check("name must be valid as a DNS name component", &|spec| {
        spec.annotations.name = "-a".into()
    });
    check("name must be 63 characters or fewer", &|spec| {
        spec.annotations.name = "a".repeat(64)
    });
    check("ContainerSpec: image reference must be provided", &|spec| {
        spec.task.container.image.clear()
    });
    check("ContainerSpec: duplicate mount point: /data/", &|spec| {
        spec.task.container.mounts = vec![mount("/data"), mount("/data/")];
    });
    check("ContainerSpec: duplicate mount point: /site", &|spec| {
        spec.task.container.mounts = vec![mount("/site/")];
        spec.task.container.configs = vec![ConfigReference {
            id: "site".parse().unwrap(),
            name: "site".into(),
            target: FileTarget {
                name: "site".into(),
                ..FileTarget::default()
            },
        }];
    });
    check(
        "invalid mount target, must be an absolute path: data",
        &|spec| {
            spec.task.container.mounts = vec![mount("data")];
        },
    );
    check(
        "invalid cpu value 0.0005: Must be at least 0.001",
        &|spec| {
            spec.task.resources.limits.nano_cpus = 500_000;
        },
    );
    check(
        "invalid memory value 1024: Must be at least 4MiB",
        &|spec| {
            spec.task.resources.reservations.memory_bytes = 1024;
        },
    );
    check("constraint expected one operator from ==, !=", &|spec| {
        spec.task.placement.constraints = vec!["node.role=manager".into()];
    });
    check(
        "ContainerSpec: \"demo:1!\" is not a valid repository/tag",
        &|spec| {
            spec.task.container.image = "demo:1!".into();
        },
    );
    check(
        "key 'node.rolex' is unknown: expected node.id, node.hostname, node.ip, node.role, node.platform.os, \
         node.platform.arch, node.labels.<key> or engine.labels.<key>",
        &|spec| spec.task.placement.constraints = vec!["node.rolex==manager".into()],
    );
    check(
        "invalid placement preference 'node.role': expected node.labels.<key> or engine.labels.<key>",
        &|spec| spec.task.placement.spread = vec!["node.role".into()],
    );
    check(
        "invalid memory reservation 8388608: more than the limit 4194304",
        &|spec| {
            spec.task.resources.limits.memory_bytes = 4 << 20;
            spec.task.resources.reservations.memory_bytes = 8 << 20;
        },
    );
    check(
        "invalid cpu reservation 2: more than the limit 1",
        &|spec| {
            spec.task.resources.limits.nano_cpus = 1_000_000_000;
            spec.task.resources.reservations.nano_cpus = 2_000_000_000;
        },
    );
    check(
        "invalid bind mount source, must be an absolute path: data",
        &|spec| {
            let kind = MountKind::Bind;
            let source = "data".into();
            spec.task.container.mounts = vec![Mount {
                kind,
                source,
                ..mount("/data")
            }];
        },
    );
    check(
        "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1",
        &|spec| {
            spec.update = Some(UpdateConfig {
                max_failure_ratio: 1.5,
                ..UpdateConfig::default()
            });
        },
    );
    check(
        "job-mode services cannot have update options set",
        &|spec| {
            spec.mode = ServiceMode::GlobalJob;
            spec.update = Some(UpdateConfig::default());
        },
    );
    check(
        "ContainerSpec: unknown type \"curl\" in HealthConfig: expected NONE, CMD or CMD-SHELL",
        &|spec| {
            let test = vec!["curl".into()];
            spec.task.container.healthcheck = Some(HealthConfig {
                test,
                ..HealthConfig::default()
            });
        },
    );
    check("invalid hostname format: -web", &|spec| {
        spec.task.container.hostname = "-web".into();
    });
    check(
        "invalid host entry 'db 10.0.0.1': expected an address and at least one name",
        &|spec| spec.task.container.hosts = vec!["db 10.0.0.1".into()],
    );
    check(
        "depends_on: dependency cycle detected: new -> new",
        &|spec| {
            spec.depends_on = vec![Dependency {
                service: "new".into(),
                ..Dependency::default()
            }];
        },
    );
    check(
        "EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
        &|spec| {
            spec.endpoint.mode = EndpointMode::Dnsrr;
            spec.endpoint.ports = vec![publish(80, PublishMode::Ingress)];
        },
    );
    check(
        "EndpointSpec: duplicate published ports provided",
        &|spec| {
            spec.endpoint.ports = vec![
                publish(80, PublishMode::Ingress),
                publish(80, PublishMode::Host),
            ];
        },
    );
    check("secret not found: key", &|spec| {
        spec.task.container.secrets = vec![SecretReference {
            id: "gone".parse().unwrap(),
            name: "key".into(),
            target: FileTarget {
                name: "key".into(),
                ..FileTarget::default()
            },
        }];
    });
}

#[test]
fn a_port_that_is_published_already_names_the_other_service() {
    let mut world = World::new(&["n1"]);
    let mut web = service("web", 1);
    web.endpoint.ports = vec![
        publish(8080, PublishMode::Ingress),
        publish(0, PublishMode::Ingress),
    ];
    let web = world.create(web);
    let mut host = service("host", 1);
    host.endpoint.ports = vec![publish(9090, PublishMode::Host)];
    let host = world.create(host);
    world.settle();
    for (published, mode, expected) in [
        (
            8080,
            PublishMode::Ingress,
            format!("'web' ({web}) as an ingress port"),
        ),
        (
            8080,
            PublishMode::Host,
            format!("'web' ({web}) as an ingress port"),
        ),
        (
            30000,
            PublishMode::Ingress,
            format!("'web' ({web}) as an ingress port"),
        ),
        (
            9090,
            PublishMode::Ingress,
            format!("'host' ({host}) as a host-published port"),
        ),
    ] {
        let refusal = refused(&mut world, |spec| {
            spec.endpoint.ports = vec![publish(published, mode)]
        });
        assert_eq!(
            refusal,
            format!(
                "rpc error: code = InvalidArgument desc = port '{published}' is already in use by service {expected}"
            )
        );
    }
    let mut same = service("same", 1);
    same.endpoint.ports = vec![publish(9090, PublishMode::Host)];
    world.create(same);
}

#[test]
fn names_are_taken_once() {
    let mut world = World::new(&["n1"]);
    world.create(service("web", 1));
    let refusal = world
        .user(|state, cx| create_service(state, cx, service("web", 1)))
        .unwrap_err();
    assert_eq!(
        (refusal.kind.http_status(), refusal.text.as_str()),
        (
            409,
            "name conflicts with an existing object: service web already exists"
        )
    );
    world
        .user(|state, cx| create_network(state, cx, network("a", None)))
        .unwrap();
    let refusal = world
        .user(|state, cx| create_network(state, cx, network("a", None)))
        .unwrap_err();
    assert_eq!(refusal.text, "network with name a already exists");
}

#[test]
fn an_update_needs_the_version_that_it_changes() {
    let mut world = World::new(&["n1"]);
    let id = world.create(service("web", 1));
    let version = world.service(&id).meta.version;
    let refusal = world
        .user(|state, cx| update_service(state, cx, &id, version - 1, service("web", 2)))
        .unwrap_err();
    assert_eq!(
        refusal.rpc_text(),
        "rpc error: code = Unknown desc = update out of sequence"
    );
    assert_eq!(refusal.kind.http_status(), 500);
    let renamed = world
        .user(|state, cx| update_service(state, cx, &id, version, service("other", 2)))
        .unwrap_err();
    assert_eq!(renamed.text, "renaming services is not supported");
    let mut global = service("web", 1);
    global.mode = ServiceMode::Global;
    let changed = world
        .user(|state, cx| update_service(state, cx, &id, version, global))
        .unwrap_err();
    assert_eq!(changed.text, "service mode change is not allowed");
    let nobody: ServiceId = "nobody".parse().unwrap();
    let missing = world
        .user(|state, cx| remove_service(state, cx, &nobody))
        .unwrap_err();
    assert_eq!(
        (missing.kind.http_status(), missing.text.as_str()),
        (404, "service nobody not found")
    );
}

#[test]
fn a_rollback_needs_something_to_go_back_to() {
    let mut world = World::new(&["n1"]);
    let id = world.create(service("web", 1));
    let version = world.service(&id).meta.version;
    let refusal = world
        .user(|state, cx| rollback_service(state, cx, &id, version, None))
        .unwrap_err();
    assert_eq!(
        refusal.text,
        format!("service {id} does not have a previous spec")
    );
}

#[test]
fn spec_versions_follow_what_tasks_are_made_of() {
    let mut world = World::new(&["n1"]);
    let id = world.create(service("web", 1));
    world.update(&id, |spec| {
        spec.mode = ServiceMode::Replicated { replicas: 3 }
    });
    assert_eq!(world.service(&id).spec_version, 0);
    let before = world.service(&id).meta.version;
    world.update(&id, |spec| spec.task.container.args = vec!["-v".into()]);
    let service = world.service(&id);
    assert_eq!(
        (service.spec_version, service.previous_spec_version),
        (before, 0)
    );
    assert!(
        service
            .previous_spec
            .as_ref()
            .unwrap()
            .task
            .container
            .args
            .is_empty()
    );
}

#[test]
fn a_network_must_not_overlap_and_must_not_be_in_use() {
    let mut world = World::new(&["n1"]);
    world
        .user(|state, cx| create_network(state, cx, network("a", Some("10.1.0.0/16"))))
        .unwrap();
    let refusal = world
        .user(|state, cx| create_network(state, cx, network("b", Some("10.1.2.0/24"))))
        .unwrap_err();
    assert_eq!(
        refusal.text,
        "invalid pool request: Pool overlaps with other one on this address space: 10.1.2.0/24 overlaps 10.1.0.0/16 of \
         network a"
    );
    for (subnet, expected) in [
        (
            "10.2.0.1/24",
            "invalid subnet 10.2.0.1/24: it should be 10.2.0.0/24",
        ),
        ("10.2.0.0/31", "subnet 10.2.0.0/31 has no room for tasks"),
        (
            "fd00::/64",
            "IPv6 subnet fd00::/64 in a network without IPv6",
        ),
    ] {
        let refusal = world
            .user(|state, cx| create_network(state, cx, network("b", Some(subnet))))
            .unwrap_err();
        assert_eq!(refusal.text, expected);
    }
    let ingress = world.state.ingress_network().unwrap().id.clone();
    let mut web = service("web", 1);
    web.endpoint.ports = vec![publish(80, PublishMode::Ingress)];
    let id = world.create(web);
    world.settle();
    let refusal = world
        .user(|state, cx| remove_network(state, cx, &ingress))
        .unwrap_err();
    assert_eq!(
        refusal.text,
        format!("ingress network cannot be removed because service {id} depends on it")
    );
}

#[test]
fn secrets_and_configs_have_bounds_and_change_labels_alone() {
    let mut world = World::new(&["n1"]);
    let annotations = |name: &str| Annotations {
        name: name.into(),
        ..Annotations::default()
    };
    let spec = |name: &str, bytes: usize| SecretSpec {
        annotations: annotations(name),
        data: vec![b'x'; bytes],
        templating: None,
    };
    for bytes in [0, 512_000] {
        let refusal = world
            .user(|state, cx| create_secret(state, cx, spec("a", bytes)))
            .unwrap_err();
        assert_eq!(
            refusal.text,
            "secret data must be larger than 0 and less than 512000 bytes"
        );
    }
    let big = ConfigSpec {
        annotations: annotations("a"),
        data: vec![b'x'; 1_024_000],
        templating: None,
    };
    let refusal = world
        .user(|state, cx| create_config(state, cx, big))
        .unwrap_err();
    assert_eq!(
        refusal.text,
        "config data must be larger than 0 and less than 1024000 bytes"
    );
    let refusal = world
        .user(|state, cx| create_secret(state, cx, spec("a/b", 1)))
        .unwrap_err();
    assert!(
        refusal
            .text
            .starts_with("invalid name, only 64 [a-zA-Z0-9-_.] characters allowed")
    );

    let ObjectKey::Secret(id) = world
        .user(|state, cx| create_secret(state, cx, spec("a.b", 1)))
        .unwrap()
    else {
        panic!("no secret");
    };
    let refusal = world
        .user(|state, cx| create_secret(state, cx, spec("a.b", 1)))
        .unwrap_err();
    assert_eq!(refusal.text, "secret a.b already exists");
    let version = world.state.secret(&id).unwrap().meta.version;
    let refusal = world
        .user(|state, cx| update_secret(state, cx, &id, version, spec("a.b", 2)))
        .unwrap_err();
    assert_eq!(refusal.text, "only updates to Labels are allowed");
    let mut labelled = spec("a.b", 0);
    labelled.annotations.labels.insert("k".into(), "v".into());
    world
        .user(|state, cx| update_secret(state, cx, &id, version, labelled))
        .unwrap();
    assert_eq!(world.state.secret(&id).unwrap().spec.data, b"x");
    world
        .user(|state, cx| remove_secret(state, cx, &id))
        .unwrap();
}

#[test]
fn the_last_manager_stays_and_members_are_demoted_before_they_go() {
    let mut world = World::new(&["n1", "n2"]);
    let node = |world: &World, name: &str| world.state.node(&node_id(name)).unwrap().clone();
    let manager = node(&world, "n1");
    let mut spec = manager.spec.clone();
    spec.role = NodeRole::Worker;
    let refusal = world
        .user(|state, cx| update_node(state, cx, &manager.id, manager.meta.version, spec))
        .unwrap_err();
    assert_eq!(
        refusal.text,
        "attempting to demote the last manager of the swarm"
    );
    let refusal = world
        .user(|state, cx| remove_node(state, cx, &manager.id, true))
        .unwrap_err();
    assert_eq!(
        refusal.text,
        "node n1 is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal"
    );
    let worker = node_id("n2");
    let refusal = world
        .user(|state, cx| remove_node(state, cx, &worker, false))
        .unwrap_err();
    assert_eq!(refusal.text, "node n2 is not down and can't be removed");
    world.change_node("n2", |spec| spec.availability = Availability::Drain);
    world
        .user(|state, cx| remove_node(state, cx, &worker, true))
        .unwrap();
    assert!(world.state.node(&worker).is_none());
    assert!(
        world
            .state
            .cluster()
            .unwrap()
            .blacklisted
            .contains_key(&worker),
        "its certificate is void"
    );
}

#[test]
fn tokens_are_rotated_one_by_one() {
    let mut world = World::new(&["n1"]);
    let before = world.state.cluster().unwrap().clone();
    assert_ne!(before.worker_token, before.manager_token);
    world
        .user(|state, cx| rotate_tokens(state, cx, true, false, false))
        .unwrap();
    let after = world.state.cluster().unwrap();
    assert_ne!(after.worker_token, before.worker_token);
    assert_eq!(after.manager_token, before.manager_token);
}

#[test]
fn an_intent_is_decided_like_its_function() {
    let mut world = World::new(&["n1"]);
    let intent = Intent::Create(Spec::Service(Box::new(service("web", 1))));
    let key = world.user(|state, cx| decide(state, cx, intent)).unwrap();
    world
        .user(|state, cx| decide(state, cx, Intent::Remove { key, force: false }))
        .unwrap();
    assert_eq!(world.state.services().count(), 0);
}
