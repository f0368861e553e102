use std::sync::Arc;

use expect_test::{Expect, expect};
use shoal_api::network::{
    Endpoint, NamedPort, NetworkSlice, NetworkView, Protocol, ServiceSlice, Subnet,
};

use super::*;
use crate::core::{
    records::{Host, TTL_SECONDS},
    wire::Name,
};

fn endpoint(service: Option<&str>, addresses: &[&str], names: &[&str], serving: bool) -> Endpoint {
    Endpoint {
        node: "node1".parse().expect("an id"),
        service: service.map(|id| id.parse().expect("an id")),
        addresses: addresses
            .iter()
            .map(|text| text.parse().expect("an address"))
            .collect(),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        serving,
    }
}

fn service(name: &str, vips: &[&str], aliases: &[&str]) -> Arc<ServiceSlice> {
    Arc::new(ServiceSlice {
        name: name.to_owned(),
        vips: vips
            .iter()
            .map(|text| text.parse().expect("an address"))
            .collect(),
        aliases: aliases.iter().map(|name| (*name).to_owned()).collect(),
        ports: Vec::new(),
        named_ports: vec![NamedPort {
            name: "http".to_owned(),
            protocol: Protocol::Tcp,
            target: 8080,
        }],
        ..ServiceSlice::default()
    })
}

fn slice(name: &str, internal: bool, subnets: &[&str]) -> NetworkSlice {
    NetworkSlice {
        name: name.to_owned(),
        ingress: false,
        internal,
        encrypted: false,
        vni: 4097,
        mtu: None,
        subnets: subnets
            .iter()
            .map(|range| Subnet {
                range: range.parse().expect("a range"),
                gateway: "10.0.1.1".parse().expect("one"),
            })
            .collect(),
        attachable: false,
        labels: Default::default(),
        options: Default::default(),
        ip_ranges: Vec::new(),
        endpoints: Default::default(),
        services: Default::default(),
    }
}

/// `front`: a service with a VIP, one without, a plain container. `back`: internal, with a name that `front` has too.
fn records() -> Records {
    let mut front = slice("demo_front", false, &["10.0.1.0/24", "fd00:1::/64"]);
    front.services.insert(
        "web".parse().expect("an id"),
        service("demo_web", &["10.0.1.2", "fd00:1::2"], &["web"]),
    );
    front
        .services
        .insert("rr".parse().expect("an id"), service("rr", &[], &[]));
    for (task, endpoint) in [
        (
            "t1",
            endpoint(
                Some("web"),
                &["10.0.1.3/24", "fd00:1::3/64"],
                &["demo_web.1.t1", "c1"],
                true,
            ),
        ),
        (
            "t2",
            endpoint(
                Some("web"),
                &["10.0.1.4/24", "fd00:1::4/64"],
                &["demo_web.2.t2"],
                true,
            ),
        ),
        (
            "t3",
            endpoint(
                Some("web"),
                &["10.0.1.5/24", "fd00:1::5/64"],
                &["demo_web.3.t3"],
                false,
            ),
        ),
        (
            "t4",
            endpoint(Some("rr"), &["10.0.1.6/24"], &["rr.1.t4"], true),
        ),
        (
            "t5",
            endpoint(Some("rr"), &["10.0.1.7/24"], &["rr.2.t5"], true),
        ),
        ("t6", endpoint(None, &["10.0.1.8/24"], &["Plain"], true)),
    ] {
        front
            .endpoints
            .insert(task.parse().expect("an id"), Arc::new(endpoint));
    }
    let mut back = slice("back", true, &["10.0.2.0/24"]);
    back.endpoints.insert(
        "t7".parse().expect("an id"),
        Arc::new(endpoint(None, &["10.0.2.8/24"], &["plain", "db"], true)),
    );
    let mut ingress = NetworkSlice {
        ingress: true,
        ..front.clone()
    };
    ingress.name = "ingress".to_owned();
    let networks = [("front", front), ("back", back), ("ingress", ingress)];
    Records::from_view(&NetworkView {
        networks: networks
            .into_iter()
            .map(|(id, slice)| (id.parse().expect("an id"), slice))
            .collect(),
        ..NetworkView::default()
    })
}

fn ask(records: &Records, networks: &[&str], name: &str, kind: u16) -> String {
    ask_by(records, networks, (&[], 0), name, kind)
}

/// Asks as a client does whose resolv.conf has these search domains and that `ndots`.
fn ask_by(
    records: &Records,
    networks: &[&str],
    (search, ndots): (&[&str], u32),
    name: &str,
    kind: u16,
) -> String {
    let networks = networks.iter().map(|id| id.parse().expect("an id"));
    let search: Vec<String> = search.iter().map(|domain| (*domain).to_owned()).collect();
    let asker = Asker::new(networks.collect(), &search, ndots);
    let mut packet = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    packet.extend_from_slice(Name::from_text(name).expect("a name").labels());
    packet.extend_from_slice(&[0, 0, kind as u8, 0, 1]);
    let query = Query::parse(&packet).expect("a query");
    match answer(records, &asker, &query) {
        Answer::Records(set) => {
            let mut reply = Vec::new();
            query.write_records(set, 0, 512, &mut reply);
            let reply =
                hickory_proto::op::Message::from_vec(&reply).expect("a reply that others can read");
            let records: Vec<String> = reply
                .answers
                .iter()
                .map(|record| {
                    // What is gone is to be forgotten within 5 s.
                    assert!(record.ttl == TTL_SECONDS && record.ttl <= 5);
                    record.data.to_string()
                })
                .collect();
            records.join(" ")
        }
        other => format!("{other:?}"),
    }
}

fn check(networks: &[&str], questions: &[(&str, u16)], expected: &Expect) {
    let records = records();
    let lines: String = questions
        .iter()
        .map(|(name, kind)| format!("{name} {kind}: {}\n", ask(&records, networks, name, *kind)))
        .collect();
    expected.assert_eq(&lines);
}

const A: u16 = qtype::A;
const AAAA: u16 = qtype::AAAA;
const PTR: u16 = qtype::PTR;
const SRV: u16 = qtype::SRV;

#[test]
fn named_ports_resolve_to_host_and_port() {
    check(
        &["front"],
        &[
            ("_http._tcp.demo_web", SRV),
            ("_HTTP._TCP.web.demo_front", SRV),
            ("_http._tcp.tasks.web", SRV),
            ("_http._tcp.rr", SRV),
            ("_http._tcp.web", A),
            ("_http._udp.web", SRV),
            ("_smtp._tcp.web", SRV),
        ],
        &expect![[r#"
            _http._tcp.demo_web 33: 0 0 8080 demo_web.demo_front.
            _HTTP._TCP.web.demo_front 33: 0 0 8080 web.demo_front.
            _http._tcp.tasks.web 33: 0 0 8080 demo_web.1.t1.demo_front. 0 0 8080 demo_web.2.t2.demo_front.
            _http._tcp.rr 33: 0 0 8080 rr.1.t4.demo_front. 0 0 8080 rr.2.t5.demo_front.
            _http._tcp.web 1: Empty
            _http._udp.web 33: NoSuchName
            _smtp._tcp.web 33: NoSuchName
        "#]],
    );
}

#[test]
fn services_resolve_to_their_vip_or_else_to_their_tasks() {
    check(
        &["front"],
        &[
            ("demo_web", A),
            ("demo_web", AAAA),
            ("WEB.", A),
            ("rr", A),
            ("tasks.demo_web", A),
            ("tasks.web", AAAA),
            ("tasks.rr", A),
        ],
        &expect![[r#"
            demo_web 1: 10.0.1.2
            demo_web 28: fd00:1::2
            WEB. 1: 10.0.1.2
            rr 1: 10.0.1.6 10.0.1.7
            tasks.demo_web 1: 10.0.1.3 10.0.1.4
            tasks.web 28: fd00:1::3 fd00:1::4
            tasks.rr 1: 10.0.1.6 10.0.1.7
        "#]],
    );
}

#[test]
fn what_is_ours_is_never_asked_elsewhere() {
    check(
        &["front"],
        &[
            ("rr", AAAA),
            ("demo_web", 15),
            ("demo_web.3.t3", A),
            ("8.1.0.10.in-addr.arpa", A),
        ],
        &expect![[r#"
            rr 28: Empty
            demo_web 15: Empty
            demo_web.3.t3 1: Empty
            8.1.0.10.in-addr.arpa 1: Empty
        "#]],
    );
}

#[test]
fn names_of_containers_and_names_within_a_network() {
    check(
        &["front", "back"],
        &[
            ("plain", A),
            ("plain.back", A),
            ("plain.demo_front", A),
            ("demo_web.1.t1.demo_front", A),
            ("c1", AAAA),
            ("db", A),
            ("db.demo_front", A),
            ("a.b.Demo_Front", A),
            ("_http._tcp.nobody.demo_front", SRV),
            ("xdemo_front", A),
            ("demo_front", A),
            ("nobody.back", A),
            ("demo_front.example.com", A),
        ],
        &expect![[r#"
            plain 1: 10.0.1.8
            plain.back 1: 10.0.2.8
            plain.demo_front 1: 10.0.1.8
            demo_web.1.t1.demo_front 1: 10.0.1.3
            c1 28: fd00:1::3
            db 1: 10.0.2.8
            db.demo_front 1: NoSuchName
            a.b.Demo_Front 1: NoSuchName
            _http._tcp.nobody.demo_front 33: NoSuchName
            xdemo_front 1: Forward
            demo_front 1: Forward
            nobody.back 1: Forward
            demo_front.example.com 1: Forward
        "#]],
    );
}

#[test]
fn addresses_resolve_to_names() {
    check(
        &["front"],
        &[
            ("3.1.0.10.in-addr.arpa", PTR),
            ("2.1.0.10.in-addr.arpa", PTR),
            (
                "3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa",
                PTR,
            ),
            ("5.1.0.10.in-addr.arpa", PTR),
            ("1.1.1.1.in-addr.arpa", PTR),
            ("999.1.0.10.in-addr.arpa", PTR),
        ],
        &expect![[r#"
            3.1.0.10.in-addr.arpa 12: demo_web.1.t1.demo_front.
            2.1.0.10.in-addr.arpa 12: demo_web.demo_front.
            3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa 12: demo_web.1.t1.demo_front.
            5.1.0.10.in-addr.arpa 12: NoSuchName
            1.1.1.1.in-addr.arpa 12: Forward
            999.1.0.10.in-addr.arpa 12: Forward
        "#]],
    );
}

#[test]
fn questions_leave_only_networks_that_have_a_way_out() {
    let records = records();
    for (networks, expected) in [
        (&["front"][..], "Forward"),
        (&["back"], "NoSuchName"),
        (&["back", "front"], "Forward"),
        (&["ingress"], "Forward"),
        (&["back", "unheard"], "NotYet"),
        (&["unheard"], "NotYet"),
        (&[], "Forward"),
    ] {
        assert_eq!(
            ask(&records, networks, "example.com", A),
            expected,
            "{networks:?}"
        );
    }
    assert_eq!(
        ask(&records, &["ingress"], "web", A),
        "Forward",
        "ingress has no names"
    );
    assert_eq!(ask(&records, &["back"], "db", A), "10.0.2.8");
    assert_eq!(
        ask(&records, &["back"], "web", A),
        "NoSuchName",
        "names of other networks are not seen"
    );
}

#[test]
fn a_network_called_by_a_word_is_a_domain_for_who_searches_it() {
    let records = records();
    let asked = |search: &[&str], name| ask_by(&records, &["back", "front"], (search, 0), name, A);
    for name in ["nobody.back", "a.nobody.BACK"] {
        assert_eq!(asked(&[], name), "Forward", "{name}");
        assert_eq!(asked(&["example.com"], name), "Forward", "{name}");
        assert_eq!(
            asked(&["example.com", "Back"], name),
            "NoSuchName",
            "{name}"
        );
    }
    assert_eq!(asked(&["back"], "db.back"), "10.0.2.8");
    assert_eq!(asked(&["example.com"], "nobody.example.com"), "Forward");
}

#[test]
fn a_word_leaves_only_if_it_is_not_tried_in_search_domains_first() {
    let records = records();
    let asked = |ndots, name, kind| ask_by(&records, &["front"], (&[], ndots), name, kind);
    for kind in [A, AAAA] {
        assert_eq!(asked(0, "nobody", kind), "Forward");
        assert_eq!(asked(1, "nobody", kind), "NoSuchName");
        assert_eq!(asked(5, "nobody.example.com", kind), "Forward");
    }
    assert_eq!(asked(1, "com", 2), "Forward", "name servers are asked for");
    assert_eq!(asked(1, "plain", A), "10.0.1.8");
}

#[test]
fn bridges_of_this_node_have_names_too() {
    let host = |names: &[&str], address: &str| Host {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        addresses: vec![address.parse().expect("an address")],
    };
    let hosts = [
        host(&["db1", "db"], "172.18.0.2"),
        host(&["db2", "db"], "172.18.0.3"),
    ];
    let mut bridges = Records::default();
    bridges.insert(
        "b1".parse().expect("an id"),
        Zone::local(
            "mine",
            false,
            vec!["172.18.0.0/16".parse().expect("a range")],
            &hosts,
        ),
    );
    let records = records().merged(&bridges);
    let asked = |name, kind| ask(&records, &["b1", "front"], name, kind);
    assert_eq!(asked("db", A), "172.18.0.2 172.18.0.3");
    assert_eq!(asked("db2.mine", A), "172.18.0.3");
    assert_eq!(asked("2.0.18.172.in-addr.arpa", PTR), "db1.mine.");
    assert_eq!(asked("web", A), "10.0.1.2");
}
