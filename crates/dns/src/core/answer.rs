//! Who answers a question: we, an upstream server, or nobody.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use shoal_api::NetworkId;

use super::{
    records::{Records, Sets, Zone},
    wire::{CLASS_ANY, CLASS_IN, Name, Query, RrSet, qtype},
};

/// What to do with a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer<'r> {
    /// The name is ours and has these records of the type asked for.
    Records(&'r RrSet),
    /// The name is ours and has no record of that type.
    Empty,
    /// There is no such name, and nobody else is to be asked.
    NoSuchName,
    /// Not ours: an upstream server knows.
    Forward,
    /// The client's networks are not known yet, so neither are their names nor whether questions may leave.
    NotYet,
}

/// Who asks: what decides about a question besides the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asker {
    /// Its networks; the first that knows a name answers.
    pub networks: Vec<NetworkId>,
    /// Domains that it tries names in, as labels.
    search: Vec<Box<[u8]>>,
    /// Whether it tries a word in those domains before it asks for the word itself.
    words_are_local: bool,
}

impl Asker {
    /// A client that takes part in `networks`, and whose resolv.conf says `search` and `ndots`.
    pub fn new(networks: Vec<NetworkId>, search: &[String], ndots: u32) -> Self {
        let search = search.iter().filter_map(|domain| Name::from_text(domain));
        Self {
            networks,
            search: search.map(|domain| domain.labels().into()).collect(),
            words_are_local: ndots > 0,
        }
    }
}

/// Answers a question of a client.
///
/// The first network that knows the name wins. A name may be followed by the name of one of the client's networks, as
/// with docker. A question leaves the node only if one of the networks has a way out (CVE-2024-29018), and one for the
/// address of a single word only if the client does not try words in its search domains first, as with docker.
pub fn answer<'r>(records: &'r Records, asker: &Asker, query: &Query<'_>) -> Answer<'r> {
    let networks = &asker.networks;
    let zones = || networks.iter().filter_map(|network| records.zone(network));
    if matches!(query.qclass, CLASS_IN | CLASS_ANY) {
        let name = query.name.labels();
        if let Some(address) = reverse_address(name) {
            if let Some(set) = zones().find_map(|zone| zone.reverse.get(&address)) {
                return if matches!(query.qtype, qtype::PTR | qtype::ANY) {
                    Answer::Records(set)
                } else {
                    Answer::Empty
                };
            }
            if zones().any(|zone| zone.subnets.iter().any(|subnet| subnet.contains(&address))) {
                return Answer::NoSuchName;
            }
        } else if let Some(found) = find(zones, name) {
            return found.of_type(query.qtype);
        } else if let Some(host) = host_of_port(name)
            && find(zones, host).is_some()
        {
            return Answer::NoSuchName;
        } else if zones().any(|zone| is_within(name, &zone.suffix, &asker.search)) {
            return Answer::NoSuchName;
        } else if asker.words_are_local
            && matches!(query.qtype, qtype::A | qtype::AAAA)
            && is_word(name)
        {
            return Answer::NoSuchName;
        }
    }
    if zones().any(|zone| !zone.internal) || networks.is_empty() {
        Answer::Forward
    } else if zones().count() < networks.len() {
        Answer::NotYet
    } else {
        Answer::NoSuchName
    }
}

/// The host in the name of a port, `_http._tcp.web` (RFC 2782); `None` if it is not such a name.
fn host_of_port(name: &[u8]) -> Option<&[u8]> {
    let (port, rest) = split_label(name)?;
    let (protocol, host) = split_label(rest)?;
    (port.starts_with(b"_") && protocol.starts_with(b"_")).then_some(host)
}

/// Whether a name is a single label.
fn is_word(name: &[u8]) -> bool {
    split_label(name).is_some_and(|(_, rest)| rest.is_empty())
}

/// Whether a name is one within a network, which nobody else knows anything of.
///
/// A network whose name is one word of letters may be called as a domain of all the world is (`dev`): what follows such a
/// word is nobody's alone, unless the client has it among its search domains and so means the network.
fn is_within(name: &[u8], suffix: &[u8], search: &[Box<[u8]>]) -> bool {
    let of_letters = |label: &[u8]| label.iter().all(u8::is_ascii_alphabetic);
    let may_be_a_domain = is_word(suffix) && of_letters(&suffix[1..]);
    let searched = || search.iter().any(|domain| **domain == *suffix);
    if suffix.is_empty() || (may_be_a_domain && !searched()) {
        return false;
    }
    let mut rest = name;
    while let Some((_, after)) = split_label(rest) {
        if after == suffix {
            return true;
        }
        rest = after;
    }
    false
}

fn find<'r, I: Iterator<Item = &'r Zone>>(zones: impl Fn() -> I, name: &[u8]) -> Option<&'r Sets> {
    if let Some(found) = zones().find_map(|zone| zone.names.get(name)) {
        return Some(found);
    }
    let mut end = 0;
    while let Some(length) = name.get(end).filter(|_| end < name.len()) {
        end += 1 + usize::from(*length);
        let (host, network) = name.split_at(end.min(name.len()));
        let found = zones()
            .filter(|zone| *zone.suffix == *network)
            .find_map(|zone| zone.names.get(host));
        if !network.is_empty() && found.is_some() {
            return found;
        }
    }
    None
}

impl Sets {
    fn of_type(&self, kind: u16) -> Answer<'_> {
        let set = match kind {
            qtype::A => &self.v4,
            qtype::AAAA => &self.v6,
            // One of the sets will do (RFC 8482 §4.1).
            qtype::ANY if self.v4.count() > 0 => &self.v4,
            qtype::ANY if self.v6.count() > 0 => &self.v6,
            qtype::ANY => &self.srv,
            qtype::SRV => &self.srv,
            _ => return Answer::Empty,
        };
        if set.count() > 0 {
            Answer::Records(set)
        } else {
            Answer::Empty
        }
    }
}

/// The address that a name under `in-addr.arpa` or `ip6.arpa` stands for (RFC 1035 §3.5, RFC 3596 §2.5).
fn reverse_address(name: &[u8]) -> Option<IpAddr> {
    if let Some(mut labels) = name.strip_suffix(b"\x07in-addr\x04arpa") {
        let mut octets = [0u8; 4];
        for octet in octets.iter_mut().rev() {
            let digits;
            (digits, labels) = split_label(labels)?;
            *octet = std::str::from_utf8(digits).ok()?.parse().ok()?;
        }
        return labels.is_empty().then(|| Ipv4Addr::from(octets).into());
    }
    let mut labels = name.strip_suffix(b"\x03ip6\x04arpa")?;
    let mut bits = 0u128;
    for place in 0..32 {
        let digits;
        (digits, labels) = split_label(labels)?;
        let [digit] = digits else { return None };
        bits |= u128::from(char::from(*digit).to_digit(16)?) << (4 * place);
    }
    labels.is_empty().then(|| Ipv6Addr::from(bits).into())
}

fn split_label(labels: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = labels.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

#[cfg(test)]
mod tests;
