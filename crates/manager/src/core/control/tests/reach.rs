//! Chosen addresses and options of ports: what is refused, and in which words.

use shoal_api::spec::{Affinity, FixedAddress, Protocol};

use super::*;

fn at(network: &str, address: &str) -> FixedAddress {
    FixedAddress {
        network: network.into(),
        address: address.parse().unwrap(),
    }
}

fn in_front(spec: &mut ServiceSpec, id: &shoal_api::NetworkId) {
    spec.task.networks.push(NetworkAttachmentSpec {
        target: NetworkTarget::Cluster(id.clone()),
        aliases: Vec::new(),
        addresses: Vec::new(),
        driver_options: Default::default(),
    });
}

#[test]
fn an_address_that_a_service_cannot_have_is_named_with_what_it_can() {
    let mut world = World::new(&["n1"]);
    let made =
        world.user(|state, cx| create_network(state, cx, network("front", Some("10.7.0.0/24"))));
    let Ok(ObjectKey::Network(front)) = made else {
        panic!("{made:?} is no network")
    };
    world.settle();
    let mut first = service("first", 1);
    in_front(&mut first, &front);
    first.endpoint.addresses = vec![at("front", "10.7.0.50")];
    world.create(first);
    world.settle();
    let mut said = Vec::new();
    let mut check = |change: &dyn Fn(&mut ServiceSpec)| {
        let refusal = refused(&mut world, |spec| {
            in_front(spec, &front);
            change(spec);
        });
        let text = refusal
            .strip_prefix("rpc error: code = InvalidArgument desc = ")
            .unwrap_or(&refusal);
        let id = text.find(" (").map_or(text.len(), |at| at);
        let rest = text.find("): ").map_or("", |at| &text[at + 1..]);
        said.push(format!("{}{rest}", &text[..id]));
    };
    check(&|spec| spec.endpoint.addresses = vec![at("front", "10.8.0.50")]);
    check(&|spec| spec.endpoint.addresses = vec![at("front", "10.7.0.255")]);
    check(&|spec| spec.endpoint.addresses = vec![at("front", "10.7.0.50")]);
    check(&|spec| spec.endpoint.addresses = vec![at("front", "10.7.0.1")]);
    check(&|spec| {
        // By its port it is on ingress, too.
        spec.endpoint.ports = vec![publish(8080, PublishMode::Ingress)];
        spec.endpoint.addresses = vec![at("back", "10.7.0.60")];
    });
    check(&|spec| {
        spec.endpoint.addresses = vec![at("front", "10.7.0.60"), at("front", "10.7.0.61")];
    });
    check(&|spec| {
        spec.endpoint.mode = EndpointMode::Dnsrr;
        spec.endpoint.addresses = vec![at("front", "10.7.0.60")];
    });
    expect_test::expect![[r#"
        label 'shoal.ip': address 10.8.0.50 is not part of network front: expected one of 10.7.0.0/24
        label 'shoal.ip': address 10.7.0.255 of network front is not one of a host: it is the first or the last of 10.7.0.0/24
        label 'shoal.ip': address 10.7.0.50 of network front is already in use by service 'first': expected one that is free
        label 'shoal.ip': address 10.7.0.1 of network front is already in use by the network's gateway: expected one that is free
        label 'shoal.ip': the service is not in a network "back": expected one of front
        label 'shoal.ip': network "front" is given two addresses of one family: expected one
        label 'shoal.ip': a service has no virtual address in the endpoint mode dnsrr: expected vip"#]]
    .assert_eq(&said.join("\n"));
}

#[test]
fn of_services_that_ask_for_an_address_at_once_one_gets_it() {
    let mut world = World::new(&["n1"]);
    let made =
        world.user(|state, cx| create_network(state, cx, network("front", Some("10.7.0.0/24"))));
    let Ok(ObjectKey::Network(front)) = made else {
        panic!("{made:?} is no network")
    };
    world.settle();
    let asks = |name: &str, network: &str| {
        let mut spec = service(name, 1);
        in_front(&mut spec, &front);
        spec.endpoint.addresses = vec![at(network, "10.7.0.50")];
        spec
    };
    let mut other = service("other", 1);
    in_front(&mut other, &front);
    let other = world.create(other);
    let create = |spec: ServiceSpec| Write::new(Intent::Create(Spec::Service(Box::new(spec))));
    let mut writes = [
        create(asks("first", "front")),
        // By the network's id, too.
        create(asks("second", front.as_str())),
        Write::new(Intent::Update {
            key: ObjectKey::Service(other.clone()),
            version: world.service(&other).meta.version,
            spec: Spec::Service(Box::new(asks("other", "front"))),
        }),
    ];
    // All are decided before any is known.
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
            panic!("the address is taken");
        };
        let words = format!(
            "label 'shoal.ip': address 10.7.0.50 of network front is already in use by service 'first' ({first}): \
             expected one that is free"
        );
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
fn options_of_ports_that_exclude_each_other_are_named() {
    let mut world = World::new(&["n1"]);
    let mut said = Vec::new();
    let mut check = |change: &dyn Fn(&mut PortConfig, &mut Affinity)| {
        let refusal = refused(&mut world, |spec| {
            let mut port = publish(8080, PublishMode::Ingress);
            change(&mut port, &mut spec.endpoint.affinity);
            spec.endpoint.ports = vec![port];
        });
        said.push(refusal.replace("rpc error: code = InvalidArgument desc = ", ""));
    };
    check(&|port, _| {
        port.protocol = Protocol::Udp;
        port.proxy_protocol = true;
    });
    check(&|port, _| {
        port.mode = PublishMode::Host;
        port.proxy_protocol = true;
    });
    check(&|port, affinity| {
        port.proxy_protocol = true;
        *affinity = Affinity::Source;
    });
    check(&|port, _| {
        port.mode = PublishMode::Host;
        port.local = true;
    });
    check(&|port, _| port.host_ip = "0.0.0.0".parse().ok());
    check(&|port, _| port.host_ip = "fe80::1".parse().ok());
    expect_test::expect![[r#"
        label 'shoal.publish.80/udp.proxy-protocol': only a tcp port has connections that can begin with a header
        label 'shoal.publish.80.proxy-protocol': a port published in host mode tells the client's address by itself: expected mode ingress
        label 'shoal.publish.80.proxy-protocol': cannot be used with the label 'shoal.affinity=source': connections to tasks are the node's own
        label 'shoal.publish.80.local': a port published in host mode is answered by the task's node alone: expected mode ingress
        label 'shoal.publish.80.host-ip': 0.0.0.0 stands for all addresses: expected an address of a node
        label 'shoal.publish.80.host-ip': fe80::1 holds on one link only: expected an address of a node"#]]
    .assert_eq(&said.join("\n"));
}
