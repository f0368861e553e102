//! Placement constraints: `key==value` or `key!=value` on what is known of a node.
//!
//! Grammar and comparison as in SwarmKit's `manager/constraint/constraint.go`, with one difference: a key or
//! value that no node can have is refused when the service is made, instead of leaving its tasks without a node for ever.

use std::net::IpAddr;

use ipnet::IpNet;
use shoal_api::{
    object::Node,
    spec::{NodeRole, Placement, Platform},
};

/// A fact about a node that constraints and preferences can name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeAttribute {
    /// `node.id`
    Id,
    /// `node.hostname`
    Hostname,
    /// `node.ip`, compared with an address or a range.
    Ip,
    /// `node.role`: `worker` or `manager`.
    Role,
    /// `node.platform.os`
    Os,
    /// `node.platform.arch`
    Architecture,
    /// `node.labels.<key>`: a label that a user gave the node.
    NodeLabel(String),
    /// `engine.labels.<key>`: a label of the node's own configuration.
    EngineLabel(String),
}

impl NodeAttribute {
    /// Reads an attribute. Fixed names in any case, label keys as they are.
    pub fn parse(key: &str) -> Option<Self> {
        let label = |prefix: &str| {
            let head = key.get(..prefix.len())?;
            let rest = key.get(prefix.len()..)?;
            (head.eq_ignore_ascii_case(prefix) && !rest.is_empty()).then(|| rest.to_owned())
        };
        if let Some(label) = label("node.labels.") {
            return Some(Self::NodeLabel(label));
        }
        if let Some(label) = label("engine.labels.") {
            return Some(Self::EngineLabel(label));
        }
        match key.to_ascii_lowercase().as_str() {
            "node.id" => Some(Self::Id),
            "node.hostname" => Some(Self::Hostname),
            "node.ip" => Some(Self::Ip),
            "node.role" => Some(Self::Role),
            "node.platform.os" => Some(Self::Os),
            "node.platform.arch" => Some(Self::Architecture),
            _ => None,
        }
    }

    /// The node's value; a missing label is empty.
    pub fn of(&self, node: &Node) -> String {
        let label = |labels: &shoal_api::spec::Labels, key: &str| {
            labels.get(key).cloned().unwrap_or_default()
        };
        match self {
            Self::Id => node.id.to_string(),
            Self::Hostname => node.description.hostname.clone(),
            Self::Ip => node
                .status
                .addr
                .map(|addr| addr.to_string())
                .unwrap_or_default(),
            Self::Role => match node.role {
                NodeRole::Worker => "worker".to_owned(),
                NodeRole::Manager => "manager".to_owned(),
            },
            Self::Os => node.description.platform.os.clone(),
            Self::Architecture => node.description.platform.architecture.clone(),
            Self::NodeLabel(key) => label(&node.spec.annotations.labels, key),
            Self::EngineLabel(key) => label(&node.description.engine_labels, key),
        }
    }
}

impl std::fmt::Display for NodeAttribute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Id => f.write_str("node.id"),
            Self::Hostname => f.write_str("node.hostname"),
            Self::Ip => f.write_str("node.ip"),
            Self::Role => f.write_str("node.role"),
            Self::Os => f.write_str("node.platform.os"),
            Self::Architecture => f.write_str("node.platform.arch"),
            Self::NodeLabel(key) => write!(f, "node.labels.{key}"),
            Self::EngineLabel(key) => write!(f, "engine.labels.{key}"),
        }
    }
}

/// One constraint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    attribute: NodeAttribute,
    equal: bool,
    value: String,
}

/// Why a text is no constraint; the words are SwarmKit's where it has some.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConstraint {
    /// No operator.
    #[error("constraint expected one operator from ==, !=")]
    Operator,
    /// The key has characters that no key has.
    #[error("key '{0}' is invalid")]
    Key(String),
    /// The key is well-formed but names nothing.
    #[error(
        "key '{0}' is unknown: expected node.id, node.hostname, node.ip, node.role, node.platform.os, \
         node.platform.arch, node.labels.<key> or engine.labels.<key>"
    )]
    UnknownKey(String),
    /// The value is empty or has characters that no value has.
    #[error("value '{0}' is invalid")]
    Value(String),
    /// The value is one that the fact never has.
    #[error("value '{value}' of {key} is invalid: expected {expected}")]
    Never {
        /// The fact.
        key: NodeAttribute,
        /// Its value.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
}

impl std::str::FromStr for Constraint {
    type Err = InvalidConstraint;
    fn from_str(text: &str) -> Result<Self, InvalidConstraint> {
        let (key, equal, value) = if let Some((key, value)) = text.split_once("==") {
            (key, true, value)
        } else if let Some((key, value)) = text.split_once("!=") {
            (key, false, value)
        } else {
            return Err(InvalidConstraint::Operator);
        };
        let (key, value) = (key.trim(), value.trim());
        let starts_well = key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let key_char = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if key.len() < 2 || !starts_well || !key.chars().all(key_char) {
            return Err(InvalidConstraint::Key(key.to_owned()));
        }
        let value_char = |c: char| {
            c.is_ascii_alphanumeric() || c.is_ascii_whitespace() || ":-_.*()?+[]\\^$|/".contains(c)
        };
        if value.is_empty() || !value.chars().all(value_char) {
            return Err(InvalidConstraint::Value(value.to_owned()));
        }
        let attribute = NodeAttribute::parse(key)
            .ok_or_else(|| InvalidConstraint::UnknownKey(key.to_owned()))?;
        let (possible, expected) = match attribute {
            NodeAttribute::Role => {
                let roles = ["manager", "worker"];
                let is_role = roles.iter().any(|role| role.eq_ignore_ascii_case(value));
                (is_role, "manager or worker")
            }
            NodeAttribute::Ip => {
                let is_address = value.parse::<IpAddr>().is_ok() || value.parse::<IpNet>().is_ok();
                (is_address, "an address or a range like 10.0.0.0/24")
            }
            _ => (true, ""),
        };
        if !possible {
            return Err(InvalidConstraint::Never {
                key: attribute,
                value: value.to_owned(),
                expected,
            });
        }
        Ok(Self {
            attribute,
            equal,
            value: value.to_owned(),
        })
    }
}

impl std::fmt::Display for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let operator = if self.equal { "==" } else { "!=" };
        write!(f, "{}{operator}{}", self.attribute, self.value)
    }
}

impl Constraint {
    /// Whether a node satisfies it. Values are compared without regard to case.
    pub fn matches(&self, node: &Node) -> bool {
        let equal = match (&self.attribute, node.status.addr) {
            (NodeAttribute::Ip, None) => false,
            (NodeAttribute::Ip, Some(addr)) => {
                let address = self
                    .value
                    .parse::<IpAddr>()
                    .is_ok_and(|wanted| wanted == addr);
                address
                    || self
                        .value
                        .parse::<IpNet>()
                        .is_ok_and(|range| range.contains(&addr))
            }
            (attribute, _) => attribute.of(node).eq_ignore_ascii_case(&self.value),
        };
        equal == self.equal
    }
}

/// Reads all constraints of a placement; what validation let through earlier and is refused now matches no node.
pub fn parse_all(placement: &Placement) -> Result<Vec<Constraint>, InvalidConstraint> {
    placement
        .constraints
        .iter()
        .map(|text| text.parse())
        .collect()
}

/// Whether a node satisfies all constraints of a placement and can run its platforms.
pub fn node_fits(placement: &Placement, node: &Node) -> bool {
    let constraints = parse_all(placement);
    constraints.is_ok_and(|all| all.iter().all(|c| c.matches(node)))
        && platform_fits(&placement.platforms, node)
}

/// Whether a node can run one of the platforms; none named means any.
pub fn platform_fits(platforms: &[Platform], node: &Node) -> bool {
    let normal = |arch: &str| match arch {
        "x86_64" => "amd64".to_owned(),
        "aarch64" => "arm64".to_owned(),
        other => other.to_ascii_lowercase(),
    };
    let have = &node.description.platform;
    platforms.is_empty()
        || platforms.iter().any(|want| {
            (want.os.is_empty() || want.os.eq_ignore_ascii_case(&have.os))
                && (want.architecture.is_empty()
                    || normal(&want.architecture) == normal(&have.architecture))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_constraint_is_refused_with_a_reason() {
        for (text, reason) in [
            (
                "node.role=manager",
                "constraint expected one operator from ==, !=",
            ),
            (
                "node.rolex==manager",
                "key 'node.rolex' is unknown: expected",
            ),
            ("no de==manager", "key 'no de' is invalid"),
            ("node.role==", "value '' is invalid"),
            ("node.role==a;b", "value 'a;b' is invalid"),
            (
                "node.role==manger",
                "value 'manger' of node.role is invalid: expected manager or worker",
            ),
            (
                "node.ip!=10.0.0.300",
                "value '10.0.0.300' of node.ip is invalid: expected an address",
            ),
            ("node.ip==10.0.0.0/33", "value '10.0.0.0/33' of node.ip"),
        ] {
            let refused = text.parse::<Constraint>().unwrap_err().to_string();
            assert!(refused.starts_with(reason), "{text}: {refused}");
        }
    }

    #[test]
    fn values_compare_without_case_and_label_keys_with_case() {
        let mut node = crate::core::fixture::node("n1");
        node.spec
            .annotations
            .labels
            .insert("Zone".into(), "East".into());
        node.description.hostname = "alpha".into();
        node.description
            .engine_labels
            .insert("Disk".into(), "SSD".into());
        node.status.addr = Some("192.0.2.7".parse().unwrap());
        for (text, expected) in [
            ("node.hostname==ALPHA", true),
            ("NODE.HOSTNAME == alpha", true),
            ("node.hostname!=alpha", false),
            ("node.labels.Zone==east", true),
            ("node.labels.zone==east", false),
            ("node.labels.zone!=east", true),
            ("node.ip==192.0.2.0/24", true),
            ("node.ip!=192.0.2.7", false),
            ("node.role==worker", true),
            ("node.role==manager", false),
            ("node.id==N1", true),
            ("node.id!=n1", false),
            ("node.platform.os==Linux", true),
            ("node.platform.os==windows", false),
            ("node.platform.arch==amd64", true),
            ("node.platform.arch==arm64", false),
            ("engine.labels.Disk==ssd", true),
            ("engine.labels.disk==ssd", false),
            ("node.labels.Disk==ssd", false),
        ] {
            assert_eq!(
                text.parse::<Constraint>().unwrap().matches(&node),
                expected,
                "{text}"
            );
        }
    }
}
