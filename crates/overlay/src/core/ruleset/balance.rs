//! Chains that draw a slot and lead to its backend: one per class of services.

use super::{destination, map, protocol_and_port, registers, rule, source};
use crate::core::{
    lb::{self, PORT, SOURCE_SLOTS, VIP, class_name, source_class},
    nft::{Expr, Part, SetData, Table},
    state::Family,
};

/// A table that draws by a hash, which not every kernel can.
pub fn hashing(name: &str) -> Table {
    let mut table = Table::new(Family::V4, name);
    let slot = SetData::Parts(vec![Part::Ipv4]);
    table.set(lb::VIP_SLOTS, &[Part::Ipv4, Part::Mark], slot);
    vip_by_source(&mut table);
    table
}

/// Draws a slot by the client's address.
fn by_source(family: Family, to: u32) -> [Expr; 2] {
    let hash = Expr::Hash {
        from: to,
        len: family.width(),
        modulus: SOURCE_SLOTS,
        to,
    };
    [source(family, to), hash]
}

pub(super) fn vip_by_source(table: &mut Table) {
    let (family, width) = (table.family, registers(table.family));
    let to_backend = vec![map(0, lb::VIP_SLOTS, 0), Expr::Dnat(0, None)];
    let does = [
        vec![destination(family, 0)],
        by_source(family, width).to_vec(),
        to_backend,
    ];
    let rules = vec![rule(
        "virtual address to the client's backend",
        does.concat(),
    )];
    table.chain(&source_class(VIP), None, rules);
}

pub(super) fn port_by_source(table: &mut Table) {
    let (family, width) = (table.family, registers(table.family));
    let to_backend = vec![map(0, lb::PORT_SLOTS, 0), Expr::Dnat(0, Some(width))];
    let draw = by_source(family, 2).to_vec();
    let does = [protocol_and_port(), draw, to_backend].concat();
    let rules = vec![rule("published port to the client's backend", does)];
    table.chain(&source_class(PORT), None, rules);
}

/// Draws a slot of a class.
fn draw(slots: u32, to: u32) -> Vec<Expr> {
    match lb::turn_of(slots) {
        Some(turn) => vec![
            Expr::Turn {
                modulus: turn.end - turn.start,
                offset: turn.start,
                to,
            },
            map(to, lb::TURNS, to),
        ],
        None => vec![Expr::Chance { modulus: slots, to }],
    }
}

pub(super) fn vip_class(table: &mut Table, slots: u32) {
    let (family, width) = (table.family, registers(table.family));
    let class = class_name(VIP, slots);
    let to_backend = vec![map(0, lb::VIP_SLOTS, 0), Expr::Dnat(0, None)];
    let does = [vec![destination(family, 0)], draw(slots, width), to_backend];
    let does = does.concat();
    table.chain(&class, None, vec![rule("virtual address to backend", does)]);
}

pub(super) fn port_class(table: &mut Table, slots: u32) {
    let width = registers(table.family);
    let class = class_name(PORT, slots);
    let to_backend = vec![map(0, lb::PORT_SLOTS, 0), Expr::Dnat(0, Some(width))];
    let does = [protocol_and_port(), draw(slots, 2), to_backend].concat();
    table.chain(&class, None, vec![rule("published port to backend", does)]);
}
