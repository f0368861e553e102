//! Networks of the cluster that cannot be: what is refused, and in which words.

use shoal_api::spec::Driver;

use super::*;

fn ipam(subnet: &str, ip_range: &str, gateway: &str) -> IpamConfig {
    let net = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
    IpamConfig {
        subnet: net(subnet),
        ip_range: net(ip_range),
        gateway: (!gateway.is_empty()).then(|| gateway.parse().unwrap()),
    }
}

#[test]
fn a_network_that_makes_no_sense_is_refused_by_what_is_wrong_and_nothing_is_made() {
    let mut world = World::new(&["n1"]);
    world
        .user(|state, cx| create_network(state, cx, network("there", Some("10.1.0.0/16"))))
        .unwrap();
    world.settle();
    let before = world.state.networks().count();
    let mut said = Vec::new();
    let mut check = |parts: &[(&str, &str, &str)], options: &[(&str, &str)]| {
        let mut spec = network("odd", None);
        spec.ipv6 = true;
        spec.ipam = parts
            .iter()
            .map(|(subnet, range, gateway)| ipam(subnet, range, gateway))
            .collect();
        spec.driver = Driver {
            name: "overlay".into(),
            options: options
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        };
        let made = world.user(|state, cx| create_network(state, cx, spec));
        said.push(match made {
            Ok(_) => format!("{parts:?} {options:?} was made"),
            Err(refusal) => refusal.text,
        });
    };
    // Of one subnet: what lies in it, and how much.
    check(&[("10.2.0.0/24", "", "10.3.0.1")], &[]);
    check(&[("10.2.0.0/24", "", "10.2.0.0")], &[]);
    check(&[("10.2.0.0/24", "", "10.2.0.255")], &[]);
    check(&[("10.2.0.0/24", "10.3.0.0/25", "")], &[]);
    check(&[("10.2.0.0/24", "10.2.0.0/16", "")], &[]);
    check(&[("10.2.0.0/32", "", "")], &[]);
    check(&[("fd02::1/64", "", "")], &[]);
    check(&[("fd02::/64", "", "10.2.0.1")], &[]);
    check(&[("fd02::/128", "", "")], &[]);
    // Of several.
    check(&[("10.2.0.0/24", "", ""), ("10.2.0.128/25", "", "")], &[]);
    check(&[("fd02::/64", "", ""), ("10.1.7.0/24", "", "")], &[]);
    // Of the driver.
    for (key, value) in [
        ("com.docker.network.driver.mtu", "1279"),
        ("com.docker.network.driver.mtu", "65536"),
        ("com.docker.network.driver.mtu", "much"),
        ("encrypted", "perhaps"),
    ] {
        check(&[("10.2.0.0/24", "", "")], &[(key, value)]);
    }
    expect_test::expect![[r#"
        invalid gateway 10.3.0.1: not a host address of 10.2.0.0/24
        invalid gateway 10.2.0.0: not a host address of 10.2.0.0/24
        invalid gateway 10.2.0.255: not a host address of 10.2.0.0/24
        invalid IP range 10.3.0.0/25: not part of 10.2.0.0/24
        invalid IP range 10.2.0.0/16: not part of 10.2.0.0/24
        subnet 10.2.0.0/32 has no room for tasks
        invalid subnet fd02::1/64: it should be fd02::/64
        invalid gateway 10.2.0.1: not a host address of fd02::/64
        subnet fd02::/128 has no room for tasks
        subnets 10.2.0.0/24 and 10.2.0.128/25 overlap
        invalid pool request: Pool overlaps with other one on this address space: 10.1.7.0/24 overlaps 10.1.0.0/16 of network there
        invalid value '1279' of option com.docker.network.driver.mtu: expected 1280 to 65535
        invalid value '65536' of option com.docker.network.driver.mtu: expected 1280 to 65535
        invalid value 'much' of option com.docker.network.driver.mtu: expected 1280 to 65535
        invalid value 'perhaps' of option encrypted: expected true or false"#]].assert_eq(&said.join("\n"));
    assert_eq!(world.state.networks().count(), before);
}
