//! Answers of a kernel that are cut short or make no sense are passed over: no panic, and no work without end.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use shoal_overlay::core::{
    conntrack_wire,
    flows::Ending,
    generic_wire, ipvs_wire,
    lb::{Asked, Backend},
    netlink::{Message, attributes, messages},
    nft::Outline,
    nft_wire,
    notice::{self, Scope},
    rtnl_wire,
    state::Family,
    wireguard_wire,
};

/// Reads one body as everything that it could be an answer to.
fn read_all(body: &[u8]) {
    let _ = rtnl_wire::read_link(body);
    let _ = rtnl_wire::read_address(body);
    let _ = rtnl_wire::read_route(body);
    let _ = rtnl_wire::read_neighbour(body);
    let _ = rtnl_wire::read_fdb(body);
    let _ = rtnl_wire::read_rule(body);
    let mut outline = Outline::default();
    let _ = nft_wire::read_table(body);
    nft_wire::read_chain(body, "shoal", &mut outline);
    nft_wire::read_rule(body, "shoal", &mut outline);
    let _ = nft_wire::read_set(body, "shoal");
    let mut elements = BTreeMap::new();
    nft_wire::read_elements(body, &mut elements);
    assert!(elements.len() <= body.len(), "more elements than bytes");
    let _ = generic_wire::read_family(body);
    let mut device = wireguard_wire::Reading::default();
    device.take(body);
    let _ = device.tunnel();
    let _ = ipvs_wire::read_service(body);
    let ending = Ending {
        opened: BTreeSet::from([Asked::Port(Family::V4, 53)]),
        idle: BTreeSet::from([Backend {
            address: "10.0.0.1".parse().unwrap(),
            port: None,
        }]),
        left: BTreeSet::from(["10.0.0.2".parse().unwrap()]),
    };
    for family in Family::ALL {
        let _ = ipvs_wire::read_destination(family, body);
        let _ = conntrack_wire::removal(family, body, &ending);
    }
}

fn read_datagram(datagram: &[u8]) {
    let ours = Scope::default();
    let mut count = 0;
    for message in messages(datagram) {
        count += 1;
        let _ = notice::route_concerns(message, &ours);
        let _ = notice::netfilter_concerns(message, &ours);
        let _ = notice::may_follow_from_ours(message);
        read_all(message.body);
    }
    assert!(
        count <= datagram.len() / 16 + 1,
        "more messages than headers"
    );
    let count = attributes(datagram).count();
    assert!(
        count <= datagram.len() / 4 + 1,
        "more attributes than headers"
    );
}

/// Nested attributes with every length and type that an honest kernel would use, and then some.
fn answer() -> impl Strategy<Value = Vec<u8>> {
    let leaf = (0u16..24, proptest::collection::vec(any::<u8>(), 0..40))
        .prop_map(|(kind, value)| Message::bare().attr(kind, &value).into_bare());
    let nested = leaf.prop_recursive(4, 32, 6, |inner| {
        (0u16..24, proptest::collection::vec(inner, 0..6)).prop_map(|(kind, inner)| {
            Message::bare()
                .nest(kind, |m| m.raw(&inner.concat()))
                .into_bare()
        })
    });
    let fixed = proptest::collection::vec(any::<u8>(), 0..32);
    (fixed, proptest::collection::vec(nested, 0..8))
        .prop_map(|(fixed, attributes)| [fixed, attributes.concat()].concat())
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        read_datagram(&bytes);
        read_all(&bytes);
    }

    #[test]
    fn no_cut_and_no_damage_makes_a_reader_panic(
        kind: u16, body in answer(), cut in 0usize..600, at in 0usize..600, value: u8,
    ) {
        let mut datagram = Message::new(kind, 0, &body).finish(7, 0);
        if let Some(byte) = datagram.get_mut(at) {
            *byte = value;
        }
        datagram.truncate(cut.max(1));
        read_datagram(&datagram);
        read_all(&body[..cut.min(body.len())]);
    }
}

#[test]
fn a_message_that_claims_more_than_there_is_ends_the_list() {
    let mut datagram = Message::new(16, 0, &[0; 16]).finish(1, 0);
    let whole = datagram.clone();
    datagram[0..4].copy_from_slice(&u32::MAX.to_ne_bytes());
    assert_eq!(messages(&datagram).count(), 0);
    // A length of nothing would be read again and again.
    datagram[0..4].copy_from_slice(&0u32.to_ne_bytes());
    assert_eq!(messages(&datagram).count(), 0);
    assert_eq!(messages(&[whole.clone(), datagram].concat()).count(), 1);
    assert_eq!(attributes(&[0, 0, 1, 0, 9, 9, 9, 9]).count(), 0);
}
