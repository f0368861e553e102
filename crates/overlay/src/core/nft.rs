//! An nftables table as a value: chains of rules, each a list of the kernel's own expressions, and sets.
//!
//! Rules are few and fixed per kind of namespace; what changes lives in the elements of sets and maps.

use std::collections::BTreeMap;

use super::{lb::Elements, naming::hash64, nft_wire, state::Family};

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Protocol family.
    pub family: Family,
    /// Name.
    pub name: String,
    /// Chains, those without a hook first because others jump to them.
    pub chains: Vec<Chain>,
    /// Sets and maps by name.
    pub sets: BTreeMap<String, SetKind>,
    /// Their elements.
    pub elements: Elements,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Name.
    pub name: String,
    /// Where it hooks in; `None` for a chain that others jump to.
    pub hook: Option<Hook>,
    /// Rules in order.
    pub rules: Vec<RuleText>,
}

/// Where a base chain hooks in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// `nat` or `filter`.
    pub kind: &'static str,
    /// Hook of the kernel.
    pub at: HookPoint,
    /// Lower runs earlier; conntrack sits at −200, destination NAT at −100, source NAT at 100.
    pub priority: i32,
}

/// Netfilter hooks, numbered as in `linux/netfilter.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum HookPoint {
    /// Before the routing decision.
    Prerouting = 0,
    /// To a local socket.
    Input = 1,
    /// Through.
    Forward = 2,
    /// From a local socket.
    Output = 3,
    /// After the routing decision.
    Postrouting = 4,
    /// Where a packet enters by the interface whose name the chain has.
    Entry = 5,
}

/// A rule: why it is there, and its expressions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleText {
    /// Shown as the rule's comment by `nft list ruleset`.
    pub why: &'static str,
    /// Expressions in order; one that does not match ends the rule.
    pub does: Vec<Expr>,
}

/// Type of a set: parts of the key, and what an element carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetKind {
    /// Parts of the key.
    pub key: Vec<Part>,
    /// What an element carries.
    pub data: SetData,
}

/// What an element carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetData {
    /// Nothing: a set.
    None,
    /// A value.
    Parts(Vec<Part>),
    /// A chain to go to.
    Verdict,
}

/// One part of a key or value; the numbers are those of the `nft` tool's datatypes, which lets it print them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// IPv4 address.
    Ipv4 = 7,
    /// IPv6 address.
    Ipv6 = 8,
    /// Ethernet address.
    Ether = 9,
    /// Transport protocol number.
    Protocol = 12,
    /// Transport port.
    Port = 13,
    /// Number in host byte order, or four bytes of a packet: the tool cannot show what has no type with a size.
    Mark = 19,
    /// Name of an interface.
    Interface = 41,
}

impl Part {
    /// An address of a family.
    pub fn address(family: Family) -> Self {
        match family {
            Family::V4 => Self::Ipv4,
            Family::V6 => Self::Ipv6,
        }
    }

    /// Bytes it takes, before padding.
    pub fn width(self) -> u32 {
        match self {
            Self::Ipv4 | Self::Mark => 4,
            Self::Ether => 6,
            Self::Protocol => 1,
            Self::Port => 2,
            Self::Interface | Self::Ipv6 => 16,
        }
    }
}

/// What an element of a set carries.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// Nothing.
    Member,
    /// A value.
    Value(Vec<u8>),
    /// A chain to go to.
    Goto(String),
}

/// Expressions of the kernel's nftables machine that we use. Registers count from 0 in steps of four bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Loads a property of the packet.
    Meta(Meta, u32),
    /// Sets the packet's mark.
    SetMark(u32),
    /// Loads `len` bytes at `offset` of a header.
    Payload {
        /// Header.
        base: Base,
        /// Bytes from its start.
        offset: u32,
        /// Number of bytes.
        len: u32,
        /// Register.
        to: u32,
    },
    /// Writes two bytes of the transport header, and what that changes in the header's checksum.
    SetPort {
        /// Bytes from the start of the header.
        offset: u32,
        /// Register.
        from: u32,
        /// Where the checksum is.
        checksum: u32,
    },
    /// Ends the rule unless the register equals the bytes.
    Is(u32, Vec<u8>),
    /// Ends the rule if the register equals the bytes.
    IsNot(u32, Vec<u8>),
    /// Ands a register of four bytes with a mask.
    And(u32, u32),
    /// Ends the rule unless the set has the key.
    InSet(u32, String),
    /// Loads a map's value; ends the rule if there is none.
    Map {
        /// First register of the key.
        key: u32,
        /// Name.
        map: String,
        /// First register of the value.
        to: u32,
    },
    /// Goes where a verdict map says; ends the rule if it says nothing.
    VerdictMap(u32, String),
    /// Loads bytes.
    Load(u32, Vec<u8>),
    /// Loads a property of the connection.
    Ct(Ct, u32),
    /// Sets the connection's mark.
    SetCtMark(u32),
    /// Has packets that begin a connection compared with those of this zone alone, two bytes; answers are of none.
    SetZone(u32),
    /// Rewrites the destination: register of the address, register of the port if that changes too.
    Dnat(u32, Option<u32>),
    /// Rewrites the source.
    Snat(u32),
    /// Rewrites the source to the address of the interface it leaves by.
    Masquerade,
    /// Sends the packet on by an interface to a neighbour there, one hop further: registers of the interface's number and of the
    /// neighbour's address.
    SendBy(u32, u32),
    /// Loads the type of the destination address (2 is local).
    DestinationType(u32),
    /// Draws offset + 0, 1, … modulus − 1 in turn.
    Turn {
        /// How many numbers.
        modulus: u32,
        /// The first of them.
        offset: u32,
        /// Register.
        to: u32,
    },
    /// Draws one of 0, 1, … modulus − 1 by chance.
    Chance {
        /// How many numbers.
        modulus: u32,
        /// Register.
        to: u32,
    },
    /// Draws a number from bytes, the same for the same bytes on every node.
    Hash {
        /// First register of the bytes.
        from: u32,
        /// How many bytes.
        len: u32,
        /// How many numbers.
        modulus: u32,
        /// Register of the number.
        to: u32,
    },
    /// Lets the packet pass without a record of its connection.
    Notrack,
    /// Lets the packet pass this chain.
    Accept,
    /// Drops the packet.
    Drop,
}

/// Properties of a packet, numbered as in `linux/netfilter/nf_tables.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meta {
    /// Protocol that an Ethernet frame carries.
    EtherType = 1,
    /// Mark.
    Mark = 3,
    /// Name of the interface it came by, 16 bytes.
    InName = 6,
    /// Name of the interface it leaves by, 16 bytes.
    OutName = 7,
    /// Transport protocol.
    Protocol = 16,
}

/// Properties of a connection, numbered as in `linux/netfilter/nf_tables.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ct {
    /// Bits: 2 established, 4 related, 8 new.
    State = 0,
    /// 0 original, 1 reply.
    Direction = 1,
    /// Bits: 0x20 destination rewritten.
    Status = 2,
    /// Mark.
    Mark = 3,
}

/// Headers of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// Ethernet.
    Link = 0,
    /// IP.
    Network = 1,
    /// TCP, UDP, SCTP.
    Transport = 2,
}

/// A table without its elements, reduced to what can be read back: comments of rules by chain, names of sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outline {
    /// Comments of the rules in order, by chain.
    pub chains: BTreeMap<String, Vec<String>>,
    /// Names of sets and maps.
    pub sets: Vec<String>,
}

impl Table {
    /// A table without chains.
    pub fn new(family: Family, name: &str) -> Self {
        Self {
            family,
            name: name.to_owned(),
            chains: Vec::new(),
            sets: BTreeMap::new(),
            elements: Elements::new(),
        }
    }

    /// Adds a set or map.
    pub fn set(&mut self, name: &str, key: &[Part], data: SetData) -> &mut Self {
        self.sets.insert(
            name.to_owned(),
            SetKind {
                key: key.to_vec(),
                data,
            },
        );
        self
    }

    /// Adds a chain.
    pub fn chain(&mut self, name: &str, hook: Option<Hook>, rules: Vec<RuleText>) -> &mut Self {
        self.chains.push(Chain {
            name: name.to_owned(),
            hook,
            rules,
        });
        self
    }

    /// Adds an element.
    pub fn element(&mut self, set: &str, key: Vec<u8>, element: Element) -> &mut Self {
        self.elements
            .entry(set.to_owned())
            .or_default()
            .insert(key, element);
        self
    }

    /// What the kernel must show for this table to stand as computed.
    ///
    /// A rule's comment ends in a hash of its expressions, its chain's hook and all sets, so a rule of an older
    /// version or one changed by hand in text does not pass for ours.
    pub fn outline(&self) -> Outline {
        let salt = format!("{:?}", self.sets);
        let chains = self.chains.iter().map(|chain| {
            let comments = chain
                .rules
                .iter()
                .map(|rule| self.comment(&salt, chain, rule))
                .collect();
            (chain.name.clone(), comments)
        });
        Outline {
            chains: chains.collect(),
            sets: self.sets.keys().cloned().collect(),
        }
    }

    fn comment(&self, salt: &str, chain: &Chain, rule: &RuleText) -> String {
        let mut bytes = nft_wire::expressions(self.family, &rule.does);
        bytes.extend_from_slice(format!("{salt}{:?}", chain.hook).as_bytes());
        format!("{} #{:08x}", rule.why, hash64(&bytes) >> 32)
    }
}
