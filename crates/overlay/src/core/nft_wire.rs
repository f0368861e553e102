//! nftables over netlink: batches that change a table, and what dumps of it say.
//!
//! Numbers are those of `linux/netfilter/nf_tables.h` and `linux/netfilter/nfnetlink.h`; nftables writes them in
//! network byte order. A batch is one transaction: all of it or nothing.

use std::collections::BTreeMap;

use super::{
    naming,
    netlink::{Message, attribute, attributes, flags, text},
    nft::{Base, Chain, Element, Expr, HookPoint, Outline, Part, SetData, SetKind, Table},
    state::Family,
};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const GOTO: i32 = -4;
/// `NFPROTO_NETDEV`: packets as they enter by an interface.
const NETDEV: u8 = 5;
const VERDICT_REGISTER: u32 = 0;
/// `NFT_REG32_00`: the kernel's number of our register 0.
const FIRST_REGISTER: u32 = 8;
const VERDICT_TYPE: u32 = 0xffff_ff00;
/// The same on every node, so that a client finds the same backend by whichever it comes.
const HASH_SEED: u32 = 0x5348_4f41;
/// Elements per message, so that the list stays far below an attribute's 64 KiB.
const ELEMENTS_PER_MESSAGE_MAX: usize = 400;

#[derive(Debug, Clone, Copy)]
#[repr(u16)]
enum Command {
    NewTable = 0,
    GetTable = 1,
    DeleteTable = 2,
    NewChain = 3,
    GetChain = 4,
    NewRule = 6,
    GetRule = 7,
    NewSet = 9,
    GetSet = 10,
    NewElement = 12,
    GetElement = 13,
    DeleteElement = 14,
}

/// A change of one element of one set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElementEdit {
    /// Set or map.
    pub set: String,
    /// Key.
    pub key: Vec<u8>,
    /// What it carries.
    pub element: Element,
}

/// Replaces a table, whatever stood there before, by this one.
pub fn replace(table: &Table) -> Vec<Message> {
    let mut batch = vec![begin()];
    batch.extend(table_removal(table.family, &table.name));
    batch.push(message(
        Command::NewTable,
        table.family,
        &table.name,
        flags::CREATE,
    ));
    batch.extend(table.chains.iter().map(|chain| new_chain(table, chain)));
    batch.extend(
        table
            .sets
            .iter()
            .zip(1..)
            .map(|((name, kind), id)| new_set(table, name, kind, id)),
    );
    let outline = table.outline();
    for chain in &table.chains {
        for (rule, comment) in chain.rules.iter().zip(&outline.chains[&chain.name]) {
            batch.push(new_rule(table, chain, &rule.does, comment));
        }
    }
    let add: Vec<ElementEdit> = table
        .elements
        .iter()
        .flat_map(|(set, elements)| {
            elements.iter().map(|(key, element)| ElementEdit {
                set: set.clone(),
                key: key.clone(),
                element: element.clone(),
            })
        })
        .collect();
    batch.extend(element_messages(
        Command::NewElement,
        table.family,
        &table.name,
        &add,
    ));
    batch.push(end());
    batch
}

/// Removes a table, whether it exists or not.
pub fn remove(family: Family, name: &str) -> Vec<Message> {
    std::iter::once(begin())
        .chain(table_removal(family, name))
        .chain([end()])
        .collect()
}

/// Removes and adds elements in one transaction.
pub fn edit(
    family: Family,
    table: &str,
    remove: &[ElementEdit],
    add: &[ElementEdit],
) -> Vec<Message> {
    let mut batch = vec![begin()];
    batch.extend(element_messages(
        Command::DeleteElement,
        family,
        table,
        remove,
    ));
    batch.extend(element_messages(Command::NewElement, family, table, add));
    batch.push(end());
    batch
}

/// Asks for all tables of the family of `table`.
pub fn list_tables(family: Family, table: &str) -> Message {
    message(Command::GetTable, family, table, flags::DUMP)
}

/// Asks for all chains of the family of `table`.
pub fn list_chains(family: Family, table: &str) -> Message {
    message(Command::GetChain, family, table, flags::DUMP)
}

/// Asks for the rules of a table.
pub fn list_rules(family: Family, table: &str) -> Message {
    message(Command::GetRule, family, table, flags::DUMP)
}

/// Asks for the sets of a table.
pub fn list_sets(family: Family, table: &str) -> Message {
    message(Command::GetSet, family, table, flags::DUMP)
}

/// Asks for the elements of a set.
pub fn list_elements(family: Family, table: &str, set: &str) -> Message {
    message(Command::GetElement, family, table, flags::DUMP).text(2, set)
}

/// Name of a table in an answer to [`list_tables`].
pub fn read_table(body: &[u8]) -> Option<String> {
    Some(text(attribute(body.get(4..)?, 1)?))
}

/// Adds a chain from an answer to [`list_chains`] if it belongs to `table`.
pub fn read_chain(body: &[u8], table: &str, outline: &mut Outline) {
    let attrs = body.get(4..).unwrap_or_default();
    if attribute(attrs, 1).map(text).as_deref() == Some(table)
        && let Some(name) = attribute(attrs, 3)
    {
        outline.chains.entry(text(name)).or_default();
    }
}

/// Adds the comment of a rule from an answer to [`list_rules`].
pub fn read_rule(body: &[u8], table: &str, outline: &mut Outline) {
    let attrs = body.get(4..).unwrap_or_default();
    if attribute(attrs, 1).map(text).as_deref() != Some(table) {
        return;
    }
    let Some(chain) = attribute(attrs, 2) else {
        return;
    };
    // User data is a list of one-byte type, one-byte length, value; type 0 is the comment.
    let comment = match attribute(attrs, 7) {
        Some([0, length, value @ ..]) => {
            text(value.get(..usize::from(*length)).unwrap_or_default())
        }
        _ => String::new(),
    };
    outline.chains.entry(text(chain)).or_default().push(comment);
}

/// Name of a set in an answer to [`list_sets`].
pub fn read_set(body: &[u8], table: &str) -> Option<String> {
    let attrs = body.get(4..)?;
    (text(attribute(attrs, 1)?) == table).then(|| attribute(attrs, 2).map(text))?
}

/// Adds the elements of an answer to [`list_elements`].
pub fn read_elements(body: &[u8], into: &mut BTreeMap<Vec<u8>, Element>) {
    let list = body
        .get(4..)
        .and_then(|attrs| attribute(attrs, 3))
        .unwrap_or_default();
    for (_, item) in attributes(list) {
        let Some(key) = attribute(item, 1).and_then(|key| attribute(key, 1)) else {
            continue;
        };
        let element = match attribute(item, 2) {
            None => Element::Member,
            Some(data) => match (attribute(data, 1), attribute(data, 2)) {
                (Some(value), _) => Element::Value(value.to_vec()),
                (None, Some(verdict)) => {
                    Element::Goto(attribute(verdict, 2).map(text).unwrap_or_default())
                }
                (None, None) => Element::Member,
            },
        };
        into.insert(key.to_vec(), element);
    }
}

/// The expressions of a rule as attributes.
pub fn expressions(family: Family, does: &[Expr]) -> Vec<u8> {
    does.iter()
        .fold(Message::bare(), |m, expr| expression(m, family, expr))
        .into_bare()
}

fn begin() -> Message {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    Message::new(BATCH_BEGIN, 0, &[0, 0, high, low])
}

fn end() -> Message {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    Message::new(BATCH_END, 0, &[0, 0, high, low])
}

/// A message about a table, which is of the family that its name says.
fn message(command: Command, family: Family, table: &str, flags: u16) -> Message {
    let number = match naming::is_entry_table(table) {
        true => NETDEV,
        false => family_number(family),
    };
    Message::new((SUBSYSTEM << 8) | command as u16, flags, &[number, 0, 0, 0]).text(1, table)
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn table_removal(family: Family, name: &str) -> [Message; 2] {
    // Made first so that removing it cannot fail.
    [Command::NewTable, Command::DeleteTable]
        .map(|command| message(command, family, name, flags::CREATE))
}

fn new_chain(table: &Table, chain: &Chain) -> Message {
    let new =
        message(Command::NewChain, table.family, &table.name, flags::CREATE).text(3, &chain.name);
    match chain.hook {
        None => new,
        Some(hook) => new
            .nest(4, |m| match hook.at {
                // The only one but that of leaving packets, and number 0 in this family.
                HookPoint::Entry => m
                    .be32(1, 0)
                    .attr(2, &hook.priority.to_be_bytes())
                    .text(3, &chain.name),
                at => m.be32(1, at as u32).attr(2, &hook.priority.to_be_bytes()),
            })
            .text(7, hook.kind)
            .be32(5, 1),
    }
}

fn new_set(table: &Table, name: &str, kind: &SetKind, id: u32) -> Message {
    let is_map = if kind.data == SetData::None { 0 } else { 8 };
    // Names are kept as text; the tool that prints them must be told their byte order (type 0, 4 bytes, 1 is host).
    let userdata = if kind.key == [Part::Interface] {
        [&[0, 4], &1u32.to_ne_bytes()[..]].concat()
    } else {
        Vec::new()
    };
    let new = message(Command::NewSet, table.family, &table.name, flags::CREATE)
        .text(2, name)
        .be32(3, is_map)
        .be32(4, datatype(&kind.key))
        .be32(5, padded_length(&kind.key))
        .be32(10, id)
        .attr(13, &userdata);
    match &kind.data {
        SetData::None => new,
        SetData::Parts(parts) => new.be32(6, datatype(parts)).be32(7, padded_length(parts)),
        SetData::Verdict => new.be32(6, VERDICT_TYPE).be32(7, 16),
    }
}

/// The `nft` tool's number of a type; a concatenation shifts its parts by six bits each.
fn datatype(parts: &[Part]) -> u32 {
    parts
        .iter()
        .fold(0, |joined, part| (joined << 6) | *part as u32)
}

fn padded_length(parts: &[Part]) -> u32 {
    match parts {
        [one] => one.width(),
        many => many
            .iter()
            .map(|part| part.width().next_multiple_of(4))
            .sum(),
    }
}

fn new_rule(table: &Table, chain: &Chain, does: &[Expr], comment: &str) -> Message {
    let length = u8::try_from(comment.len() + 1).expect("comments are short texts of ours");
    let userdata: Vec<u8> = [&[0, length], comment.as_bytes(), &[0]].concat();
    let flags = flags::CREATE | 0x800;
    message(Command::NewRule, table.family, &table.name, flags)
        .text(2, &chain.name)
        .nest(4, |m| {
            does.iter()
                .fold(m, |m, expr| expression(m, table.family, expr))
        })
        .attr(7, &userdata)
}

fn element_messages(
    command: Command,
    family: Family,
    table: &str,
    edits: &[ElementEdit],
) -> Vec<Message> {
    let mut sets: BTreeMap<&str, Vec<&ElementEdit>> = BTreeMap::new();
    for edit in edits {
        sets.entry(&edit.set).or_default().push(edit);
    }
    let chunks = sets.iter().flat_map(|(set, edits)| {
        edits
            .chunks(ELEMENTS_PER_MESSAGE_MAX)
            .map(move |c| (set, c))
    });
    chunks
        .map(|(set, chunk)| {
            message(command, family, table, flags::CREATE)
                .text(2, set)
                .nest(3, |list| {
                    chunk.iter().fold(list, |list, edit| {
                        list.nest(1, |item| {
                            let item = item.nest(1, |key| key.attr(1, &edit.key));
                            match &edit.element {
                                Element::Member => item,
                                Element::Value(value) => item.nest(2, |data| data.attr(1, value)),
                                Element::Goto(chain) => item.nest(2, |data| {
                                    data.nest(2, |verdict| {
                                        verdict.attr(1, &GOTO.to_be_bytes()).text(2, chain)
                                    })
                                }),
                            }
                        })
                    })
                })
        })
        .collect()
}

fn expression(list: Message, family: Family, expr: &Expr) -> Message {
    let reg = |register: &u32| FIRST_REGISTER + register;
    let named = |name: &str, fill: &dyn Fn(Message) -> Message| {
        list.nest(1, |m| m.text(1, name).nest(2, fill))
    };
    let compare = |op: u32, register: &u32, bytes: &[u8]| {
        let (register, bytes) = (reg(register), bytes.to_vec());
        move |m: Message| {
            m.be32(1, register)
                .be32(2, op)
                .nest(3, |v| v.attr(1, &bytes))
        }
    };
    match expr {
        Expr::Meta(key, to) => named("meta", &|m| m.be32(2, *key as u32).be32(1, reg(to))),
        Expr::SetMark(from) => named("meta", &|m| m.be32(2, 3).be32(3, reg(from))),
        Expr::Payload {
            base,
            offset,
            len,
            to,
        } => named("payload", &|m| {
            m.be32(1, reg(to))
                .be32(2, *base as u32)
                .be32(3, *offset)
                .be32(4, *len)
        }),
        Expr::SetPort {
            offset,
            from,
            checksum,
        } => named("payload", &|m| {
            // The checksum is that of the Internet protocols (RFC 1071): kind 1.
            m.be32(5, reg(from))
                .be32(2, Base::Transport as u32)
                .be32(3, *offset)
                .be32(4, 2)
                .be32(6, 1)
                .be32(7, *checksum)
        }),
        Expr::Is(register, bytes) => named("cmp", &compare(0, register, bytes)),
        Expr::IsNot(register, bytes) => named("cmp", &compare(1, register, bytes)),
        Expr::And(register, mask) => named("bitwise", &|m| {
            m.be32(1, reg(register))
                .be32(2, reg(register))
                .be32(3, 4)
                .nest(4, |v| v.attr(1, &mask.to_ne_bytes()))
                .nest(5, |v| v.attr(1, &[0; 4]))
        }),
        Expr::InSet(key, set) => named("lookup", &|m| m.text(1, set).be32(2, reg(key))),
        Expr::Map { key, map, to } => named("lookup", &|m| {
            m.text(1, map).be32(2, reg(key)).be32(3, reg(to))
        }),
        Expr::VerdictMap(key, map) => named("lookup", &|m| {
            m.text(1, map).be32(2, reg(key)).be32(3, VERDICT_REGISTER)
        }),
        Expr::Load(to, bytes) => named("immediate", &|m| {
            m.be32(1, reg(to)).nest(2, |v| v.attr(1, bytes))
        }),
        Expr::Ct(key, to) => named("ct", &|m| m.be32(2, *key as u32).be32(1, reg(to))),
        Expr::SetCtMark(from) => named("ct", &|m| m.be32(2, 3).be32(4, reg(from))),
        // Key 17 is the zone, direction 0 the original one.
        Expr::SetZone(from) => named("ct", &|m| m.be32(2, 17).attr(3, &[0]).be32(4, reg(from))),
        Expr::Dnat(address, port) => named("nat", &|m| {
            let m = m
                .be32(1, 1)
                .be32(2, family_number(family).into())
                .be32(3, reg(address));
            port.iter().fold(m, |m, port| m.be32(5, reg(port)))
        }),
        Expr::Snat(address) => named("nat", &|m| {
            m.be32(1, 0)
                .be32(2, family_number(family).into())
                .be32(3, reg(address))
        }),
        Expr::Masquerade => named("masq", &|m| m),
        Expr::SendBy(device, address) => named("fwd", &|m| {
            m.be32(1, reg(device))
                .be32(2, reg(address))
                .be32(3, family_number(family).into())
        }),
        Expr::DestinationType(to) => named("fib", &|m| m.be32(1, reg(to)).be32(2, 3).be32(3, 2)),
        Expr::Turn {
            modulus,
            offset,
            to,
        } => named("numgen", &|m| {
            m.be32(1, reg(to))
                .be32(2, *modulus)
                .be32(3, 0)
                .be32(4, *offset)
        }),
        Expr::Chance { modulus, to } => named("numgen", &|m| {
            m.be32(1, reg(to)).be32(2, *modulus).be32(3, 1)
        }),
        // Jenkins' hash (type 0); without a seed each rule would have its own.
        Expr::Hash {
            from,
            len,
            modulus,
            to,
        } => named("hash", &|m| {
            m.be32(1, reg(from))
                .be32(2, reg(to))
                .be32(3, *len)
                .be32(4, *modulus)
                .be32(5, HASH_SEED)
        }),
        Expr::Notrack => named("notrack", &|m| m),
        Expr::Accept => named("immediate", &|m| verdict(m, 1)),
        Expr::Drop => named("immediate", &|m| verdict(m, 0)),
    }
}

fn verdict(m: Message, code: i32) -> Message {
    m.be32(1, VERDICT_REGISTER)
        .nest(2, |v| v.nest(2, |v| v.attr(1, &code.to_be_bytes())))
}
