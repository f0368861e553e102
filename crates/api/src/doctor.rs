//! A look at the network between the nodes, and what is wrong with it.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

/// How far a node's clock may be from that of the manager that was asked, in milliseconds: certificates and the order of
/// logs suffer by more.
pub const CLOCK_OFFSET_MAX_MS: f64 = 1_000.0;

/// What a node found when all nodes sent one another frames in the way of their networks' packets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeLook {
    /// Address of its end of the tunnels.
    pub underlay: IpAddr,
    /// MTU of the interface that has this address, in bytes.
    pub underlay_mtu: u32,
    /// Its clock when it was asked and when it answered, in nanoseconds of the era.
    pub asked_at: i64,
    /// See `asked_at`.
    pub answered_at: i64,
    /// What of the kernel is there, by name.
    pub kernel: BTreeMap<String, bool>,
    /// Frames that arrived, by the address of the node that sent them.
    pub heard: BTreeMap<IpAddr, Heard>,
    /// The MTU that the kernel knows of the way to each node, in bytes.
    pub path_mtu: BTreeMap<IpAddr, u32>,
    /// Whether it sent datagrams by the tunnel itself, and listened for them; it does where it carries IPv6.
    #[serde(default)]
    pub datagrams: bool,
}

/// Frames of one node that arrived at another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// Whether a short one did.
    pub short: bool,
    /// Whether one of the sender's full size did.
    pub full: bool,
    /// Whether a datagram did whose checksum the sender's kernel left to its network card, as it does with those of
    /// containers, if the card offers that.
    #[serde(default)]
    pub datagram: bool,
}

/// What is known of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NodeState {
    /// Its id.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its hostname.
    pub hostname: String,
    /// Its address on the underlay, as far as it is known.
    pub address: Option<IpAddr>,
    /// MTU of its underlay, in bytes; 0 if it did not answer.
    #[serde(rename = "MTU")]
    pub mtu: u32,
    /// How far its clock is ahead of that of the manager that was asked, in milliseconds.
    pub clock_offset_ms: Option<f64>,
    /// What of the kernel is there.
    pub kernel: BTreeMap<String, bool>,
    /// Why it said nothing.
    pub error: String,
}

/// The way from one node to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Way {
    /// Hostname of the node that sent.
    pub from: String,
    /// Hostname of the node that listened.
    pub to: String,
    /// Whether frames arrived.
    pub reachable: bool,
    /// Whether frames of full size arrived.
    pub full_size: bool,
    /// Whether datagrams arrived whole, whose checksums a network card may have made; unknown where none were sent.
    pub checksums: Option<bool>,
    /// The MTU that the sender's kernel knows of the way, in bytes.
    #[serde(rename = "PathMTU")]
    pub path_mtu: Option<u32>,
}

/// The network between the nodes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Report {
    /// UDP port of the tunnels.
    pub port: u16,
    /// Every node.
    pub nodes: Vec<NodeState>,
    /// Every way between two nodes that were asked.
    pub ways: Vec<Way>,
    /// What is wrong, in sentences; empty if all is well.
    pub problems: Vec<String>,
}

/// A node's answer, or why there is none, and the manager's clock around it in nanoseconds of the era.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Id of the node.
    pub id: String,
    /// Its hostname.
    pub hostname: String,
    /// Its address, as the manager knows it.
    pub address: Option<IpAddr>,
    /// When it was asked.
    pub sent_at: i64,
    /// When the answer was here.
    pub received_at: i64,
    /// What it said.
    pub look: Result<NodeLook, String>,
}

impl Report {
    /// Puts all answers together and says what is wrong.
    pub fn of(port: u16, answers: &[Answer]) -> Self {
        let mut report = Self {
            port,
            ..Self::default()
        };
        for answer in answers {
            report.nodes.push(report_node(answer));
        }
        for from in answers {
            for to in answers {
                if let (Ok(sender), Ok(listener)) = (&from.look, &to.look)
                    && from.id != to.id
                {
                    report.ways.push(way(from, sender, to, listener));
                }
            }
        }
        report.problems = report.find_problems();
        report
    }

    fn find_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let port = self.port;
        let address = |hostname: &str| {
            let node = self.nodes.iter().find(|node| node.hostname == hostname);
            let address = node.and_then(|node| node.address);
            address.map_or_else(|| "unknown".to_owned(), |address| address.to_string())
        };
        for node in &self.nodes {
            let name = &node.hostname;
            if !node.error.is_empty() {
                problems.push(format!("node {name} did not answer: {}", node.error));
            }
            if let Some(offset) = node.clock_offset_ms
                && offset.abs() > CLOCK_OFFSET_MAX_MS
            {
                problems.push(format!(
                    "the clock of node {name} is {:.1} s {} that of the manager that was asked",
                    offset.abs() / 1e3,
                    if offset > 0.0 { "ahead of" } else { "behind" },
                ));
            }
        }
        for way in &self.ways {
            let (from, to) = (&way.from, &way.to);
            let ends = format!("from {from} ({}) to {to} ({})", address(from), address(to));
            if !way.reachable {
                problems.push(format!("{port}/udp is blocked {ends}"));
            } else if !way.full_size {
                let mtu = self.nodes.iter().find(|node| node.hostname == *from);
                let bytes = mtu.map_or(0, |node| node.mtu);
                problems.push(format!(
                    "packets of {bytes} bytes, {from}'s MTU, are lost {ends}"
                ));
            }
            if way.reachable && way.checksums == Some(false) {
                problems.push(format!(
                    "datagrams are damaged or lost {ends} where other packets arrive: {from}'s network card makes wrong \
                     checksums inside of tunnels; 'ethtool -K INTERFACE tx-checksum-ip-generic off' on {from} has the \
                     kernel make them"
                ));
            }
        }
        problems
    }
}

fn report_node(answer: &Answer) -> NodeState {
    let look = answer.look.as_ref().ok();
    NodeState {
        id: answer.id.clone(),
        hostname: answer.hostname.clone(),
        address: look.map(|look| look.underlay).or(answer.address),
        mtu: look.map_or(0, |look| look.underlay_mtu),
        clock_offset_ms: look.map(|look| offset_ms(answer, look)),
        kernel: look.map(|look| look.kernel.clone()).unwrap_or_default(),
        error: answer.look.as_ref().err().cloned().unwrap_or_default(),
    }
}

/// The offset lies between what would hold if the question took no time and if the answer took none (as in NTP, RFC 5905
/// §8).
fn offset_ms(answer: &Answer, look: &NodeLook) -> f64 {
    let (most, least) = (
        look.asked_at - answer.sent_at,
        look.answered_at - answer.received_at,
    );
    if least <= 0 && most >= 0 {
        return 0.0;
    }
    (most + least) as f64 / 2e6
}

fn way(from: &Answer, sender: &NodeLook, to: &Answer, listener: &NodeLook) -> Way {
    let heard = listener.heard.get(&sender.underlay).copied();
    let heard = heard.unwrap_or_default();
    let path_mtu = sender.path_mtu.get(&listener.underlay).copied();
    Way {
        from: from.hostname.clone(),
        to: to.hostname.clone(),
        reachable: heard.short || heard.full,
        // A kernel that has learnt of a narrower way sends what is too long in pieces, which also arrive.
        checksums: (sender.datagrams && listener.datagrams).then_some(heard.datagram),
        full_size: heard.full && path_mtu.is_none_or(|known| known >= sender.underlay_mtu),
        path_mtu,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(n: u8, heard: &[(u8, bool, bool)]) -> Answer {
        let of = |n: u8| IpAddr::from([192, 0, 2, n]);
        let look = NodeLook {
            underlay: of(n),
            underlay_mtu: 1500,
            asked_at: 1_000,
            answered_at: 2_000,
            kernel: BTreeMap::new(),
            heard: heard
                .iter()
                .map(|(from, short, full)| {
                    let (short, full) = (*short, *full);
                    let datagram = short;
                    let heard = Heard {
                        short,
                        full,
                        datagram,
                    };
                    (of(*from), heard)
                })
                .collect(),
            path_mtu: BTreeMap::new(),
            datagrams: true,
        };
        Answer {
            id: format!("id{n}"),
            hostname: format!("h{n}"),
            address: Some(of(n)),
            sent_at: 900,
            received_at: 2_100,
            look: Ok(look),
        }
    }

    #[test]
    fn a_whole_network_has_no_problems() {
        let answers = [answer(1, &[(2, true, true)]), answer(2, &[(1, true, true)])];
        let report = Report::of(4789, &answers);
        assert_eq!(report.problems, Vec::<String>::new());
        assert_eq!(report.ways.len(), 2);
        assert_eq!(report.nodes[0].clock_offset_ms, Some(0.0));
    }

    #[test]
    fn checksums_that_a_network_card_spoils_are_told_from_a_blocked_way() {
        let well = answer(1, &[(2, true, true)]);
        let look = |answer: &mut Answer, change: &dyn Fn(&mut NodeLook)| {
            change(answer.look.as_mut().expect("it answered"));
        };
        let mut spoilt = answer(2, &[(1, true, true)]);
        look(&mut spoilt, &|look| {
            for heard in look.heard.values_mut() {
                heard.datagram = false;
            }
        });
        let report = Report::of(4789, &[well.clone(), spoilt.clone()]);
        assert_eq!(
            report.problems,
            [
                "datagrams are damaged or lost from h1 (192.0.2.1) to h2 (192.0.2.2) where other packets arrive: h1's network \
                 card makes wrong checksums inside of tunnels; 'ethtool -K INTERFACE tx-checksum-ip-generic off' on h1 has \
                 the kernel make them"
            ]
        );
        // Who sends none, since its kernel has no IPv6, has none to be lost.
        let mut without = well;
        look(&mut without, &|look| look.datagrams = false);
        let report = Report::of(4789, &[without, spoilt]);
        assert_eq!(report.problems, Vec::<String>::new());
        // And where nothing arrives at all, that is what is wrong.
        let report = Report::of(4789, &[answer(1, &[(2, true, true)]), answer(2, &[])]);
        assert_eq!(
            report.problems,
            ["4789/udp is blocked from h1 (192.0.2.1) to h2 (192.0.2.2)"]
        );
    }

    #[test]
    fn a_blocked_way_a_narrow_way_a_wrong_clock_and_silence_are_named() {
        let mut late = answer(2, &[(1, true, false), (3, true, true)]);
        let look = late.look.as_mut().expect("it answered");
        look.asked_at += 5_000_000_000;
        look.answered_at += 5_000_000_000;
        let mut silent = answer(4, &[]);
        silent.look = Err("node is down".to_owned());
        let third = answer(3, &[(1, true, true), (2, true, true)]);
        let answers = [answer(1, &[(3, true, true)]), late, third, silent];
        assert_eq!(
            Report::of(4789, &answers).problems,
            [
                "the clock of node h2 is 5.0 s ahead of that of the manager that was asked",
                "node h4 did not answer: node is down",
                "packets of 1500 bytes, h1's MTU, are lost from h1 (192.0.2.1) to h2 (192.0.2.2)",
                "4789/udp is blocked from h2 (192.0.2.2) to h1 (192.0.2.1)",
            ]
        );
    }
}
