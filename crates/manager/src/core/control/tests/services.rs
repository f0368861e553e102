//! Services against the rest of the state: what they name, their hosts, their circles, their history.

use super::*;

#[test]
fn what_a_service_names_must_exist() {
    let mut world = World::new(&["n1"]);
    let config = refused(&mut world, |spec| {
        let reference = |name: &str| ConfigReference {
            id: "gone".parse().unwrap(),
            name: name.into(),
            target: FileTarget {
                name: name.into(),
                ..FileTarget::default()
            },
        };
        spec.task.container.configs = vec![reference("a"), reference("b")];
    });
    assert_eq!(
        config,
        "rpc error: code = InvalidArgument desc = configs not found: a, b"
    );
    let network = refused(&mut world, |spec| {
        spec.task.networks = vec![NetworkAttachmentSpec {
            target: NetworkTarget::Cluster("gone".parse().unwrap()),
            aliases: Vec::new(),
            addresses: Vec::new(),
            driver_options: Default::default(),
        }];
    });
    assert_eq!(
        network,
        "rpc error: code = NotFound desc = network gone not found"
    );
}

#[test]
fn templates_of_files_are_refused_before_anything_changes() {
    let mut world = World::new(&["n1"]);
    let spec = |name: &str, text: &str| ConfigSpec {
        annotations: Annotations {
            name: name.into(),
            ..Annotations::default()
        },
        data: text.into(),
        templating: Some(Driver {
            name: "golang".into(),
            ..Driver::default()
        }),
    };
    let refusal = world
        .user(|state, cx| create_config(state, cx, spec("broken", "{{.Task.Slot")))
        .unwrap_err();
    assert_eq!(
        refusal.text,
        "expanding config broken failed: template parsing error: unclosed action"
    );
    // What else is wrong shows with the service that uses it.
    let mut make = |name: &str, text: &str| {
        let made = world.user(|state, cx| create_config(state, cx, spec(name, text)));
        let Ok(ObjectKey::Config(id)) = made else {
            panic!("{made:?}");
        };
        ConfigReference {
            id,
            name: name.into(),
            target: FileTarget {
                name: format!("/{name}"),
                ..FileTarget::default()
            },
        }
    };
    let colour = make("colour", "{{.Task.Colour}}");
    let absent = make("absent", "{{secret \"key\"}}");
    let fine = make("fine", "{{.Service.Name}} {{.Task.Slot}} {{env \"A\"}}");
    for (config, problem) in [
        (
            colour,
            "expanding config colour failed: template: can't evaluate field Colour",
        ),
        (
            absent,
            "expanding config absent failed: template: secret target key not found",
        ),
    ] {
        let said = refused(&mut world, |spec| {
            spec.task.container.configs = vec![fine.clone(), config];
        });
        assert!(said.contains(problem), "{said}");
    }
    let mut good = service("good", 1);
    good.task.container.configs = vec![fine];
    world
        .user(|state, cx| create_service(state, cx, good))
        .expect("it can be filled in");
}

#[test]
fn start_first_with_a_host_port_needs_a_free_node() {
    let mut world = World::new(&["n1", "n2", "n3"]);
    let start_first = |replicas: Option<u64>, constraint: &str| {
        let mut spec = service("new", replicas.unwrap_or(0));
        if replicas.is_none() {
            spec.mode = ServiceMode::Global;
        }
        spec.endpoint.ports = vec![publish(80, PublishMode::Host)];
        spec.task.placement.constraints = vec![constraint.into()];
        spec.update = Some(UpdateConfig {
            order: UpdateOrder::StartFirst,
            ..UpdateConfig::default()
        });
        spec
    };
    let mut decide = |replicas, constraint| {
        let spec = start_first(replicas, constraint);
        let state = world.state.clone();
        create_service(&state, &mut world.cx(), spec).map_err(|refusal| refusal.text)
    };
    let clash = "EndpointSpec: a port published in host mode can't be used with the update order start-first";
    for (replicas, constraint, why) in [
        (
            Some(3),
            "node.id!=x",
            "by 3 replicas on 3 nodes: no node would be left for a new task beside the old ones",
        ),
        (
            Some(1),
            "node.id==n1",
            "by 1 replicas on 1 nodes: no node would be left for a new task beside the old ones",
        ),
        (
            None,
            "node.id!=x",
            "in a global service: both tasks would need it on the same node",
        ),
    ] {
        assert_eq!(
            decide(replicas, constraint).unwrap_err(),
            format!("{clash} {why}")
        );
    }
    for (replicas, constraint) in [(2, "node.id!=x"), (3, "node.id==x")] {
        assert!(
            decide(Some(replicas), constraint).is_ok(),
            "{replicas} {constraint}"
        );
    }
}

#[test]
fn a_circle_of_dependencies_is_refused_when_it_closes() {
    let mut world = World::new(&["n1"]);
    let depends = |name: &str, on: &str, stack: Option<&str>| {
        let mut spec = service(name, 1);
        if let Some(stack) = stack {
            let label = "com.docker.stack.namespace".to_owned();
            spec.annotations.labels.insert(label, stack.to_owned());
        }
        spec.depends_on = vec![Dependency {
            service: on.into(),
            ..Dependency::default()
        }];
        spec
    };
    world.create(depends("s_a", "b", Some("s")));
    world.create(depends("s_b", "s_c", None));
    // Another stack's c is not meant.
    world.create(depends("t_c", "s_a", None));
    let refusal = world.user(|state, cx| create_service(state, cx, depends("s_c", "a", Some("s"))));
    assert_eq!(
        refusal.unwrap_err().text,
        "depends_on: dependency cycle detected: s_c -> s_a -> s_b -> s_c"
    );
    let never = world.user(|state, cx| {
        let mut spec = depends("web", "t_c", None);
        spec.depends_on[0].condition = shoal_api::spec::DependencyCondition::CompletedSuccessfully;
        create_service(state, cx, spec)
    });
    assert!(
        never
            .unwrap_err()
            .text
            .starts_with("depends_on: service t_c never completes")
    );
}

#[test]
fn a_cluster_may_refuse_privileged_services() {
    let mut world = World::new(&["n1"]);
    let privileged = |name: &str| {
        let mut spec = service(name, 1);
        spec.task.container.host.privileged = true;
        spec
    };
    world.create(privileged("a"));
    let cluster = world.state.cluster().unwrap().clone();
    let mut spec = cluster.spec.clone();
    let label = shoal_api::spec::labels::ALLOW_PRIVILEGED.to_owned();
    spec.annotations.labels.insert(label, "false".to_owned());
    world
        .user(|state, cx| update_cluster(state, cx, cluster.meta.version, spec))
        .unwrap();
    let refusal = world.user(|state, cx| create_service(state, cx, privileged("b")));
    assert_eq!(
        refusal.unwrap_err().text,
        "privileged services are not allowed in this cluster: its label shoal.allow-privileged is false"
    );
}

#[test]
fn a_service_goes_back_to_any_of_ten_earlier_specs() {
    let mut world = World::new(&["n1"]);
    let id = world.create(service("web", 1));
    let image = |world: &World| world.service(&id).spec.task.container.image.clone();
    for version in 2..=13 {
        world.update(&id, |spec| {
            spec.task.container.image = format!("demo:{version}")
        });
    }
    let known: Vec<_> = world
        .service(&id)
        .history
        .iter()
        .map(|r| r.number)
        .collect();
    assert_eq!(known, (3..=12).collect::<Vec<_>>());
    let back = |world: &mut World, to| {
        let version = world.service(&id).meta.version;
        let decided = world.user(|state, cx| rollback_service(state, cx, &id, version, Some(to)));
        decided.map_err(|refusal| refusal.text)
    };
    assert_eq!(
        back(&mut world, 2).unwrap_err(),
        "service web has no revision 2: expected one of 3, 4, 5, 6, 7, 8, 9, 10, 11, 12"
    );
    assert_eq!(
        back(&mut world, 13).unwrap_err(),
        "service web is at revision 13 already"
    );
    back(&mut world, 3).unwrap();
    assert_eq!(
        (image(&world).as_str(), world.service(&id).revision),
        ("demo:3", 14)
    );
    world.settle();
    // What was in force is one revision like the others now, and also what a plain rollback leads to.
    let version = world.service(&id).meta.version;
    world
        .user(|state, cx| rollback_service(state, cx, &id, version, None))
        .unwrap();
    assert_eq!(image(&world), "demo:13");
    back(&mut world, 14).unwrap();
    assert_eq!(image(&world), "demo:3");
    world.settle();
    assert_eq!(world.running(&id), 1);
}

#[test]
fn of_two_that_ask_for_one_port_at_once_the_second_is_refused_in_swarm_s_words() {
    let mut world = World::new(&["n1"]);
    let published = |name: &str, port: u16, mode| {
        let mut spec = service(name, 1);
        spec.endpoint.ports = vec![publish(port, mode)];
        spec
    };
    let other = world.create(service("other", 1));
    world.settle();
    // All are decided on one state, before any of them is applied.
    let version = world.service(&other).meta.version;
    let create = |name, mode| Intent::Create(Spec::Service(Box::new(published(name, 80, mode))));
    let mut writes = [
        create("first", PublishMode::Ingress),
        create("second", PublishMode::Ingress),
        create("third", PublishMode::Host),
        Intent::Update {
            key: ObjectKey::Service(other.clone()),
            version,
            spec: Spec::Service(Box::new(published("other", 80, PublishMode::Ingress))),
        },
    ]
    .map(Write::new);
    let before = world.state.clone();
    let decided = writes
        .each_mut()
        .map(|write| match write.next(&before, &mut world.cx()) {
            Turn::Propose(decision) => decision,
            turn => panic!("nothing is in the way yet: {turn:?}"),
        });
    let [first, others @ ..] = decided;
    world.apply(first.batch).unwrap();
    let ObjectKey::Service(first) = first.key else {
        panic!("it is a service");
    };
    let [_, writes @ ..] = &mut writes;
    for (write, decision) in writes.iter_mut().zip(others) {
        let rejected = world.apply(decision.batch).unwrap_err();
        assert_eq!(write.rejected(rejected), None);
        let state = world.state.clone();
        let Turn::Refuse(refusal) = write.next(&state, &mut world.cx()) else {
            panic!("the port is taken");
        };
        let words =
            format!("port '80' is already in use by service 'first' ({first}) as an ingress port");
        assert_eq!(
            (refusal.kind, refusal.text),
            (RefusalKind::InvalidArgument, words)
        );
    }
    world.settle();
    assert_eq!((world.running(&first), world.running(&other)), (1, 1));
    // Nobody is in the way of the first one's next spec.
    world.update(&first, |spec| {
        "demo:2".clone_into(&mut spec.task.container.image)
    });
    world.settle();
    assert_eq!(world.running(&first), 1);
}

#[test]
fn services_are_checked_together_and_nothing_is_made() {
    let mut world = World::new(&["n1"]);
    let published = |name: &str, port: u16| {
        let mut spec = service(name, 1);
        spec.endpoint.ports = vec![publish(port, PublishMode::Ingress)];
        spec
    };
    world.create(published("there", 80));
    world.settle();
    let state = world.state.clone();
    let mut wrong = service("wrong", 1);
    wrong.task.placement.constraints = vec!["node.rolle==x".into()];
    let specs = vec![
        published("there", 81), // an update that makes room
        published("one", 80),
        wrong,
        published("two", 80),
        service("two", 1),
    ];
    let refused = check_services(&state, &mut world.cx(), specs).refused;
    let refused: Vec<_> = refused
        .iter()
        .map(|(name, refusal)| format!("{name}: {}", refusal.text))
        .collect();
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert!(refused[0].starts_with("wrong: key 'node.rolle' is unknown"));
    assert!(refused[1].starts_with("two: port '80' is already in use by service 'one'"));
    assert_eq!(world.state.services().count(), 1);
}
