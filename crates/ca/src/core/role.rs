//! The two roles of a node and what a certificate says about its holder.

use std::fmt;

use serde::{Deserialize, Serialize};
use shoal_api::{ClusterId, NodeId, Timestamp};

/// What a node is in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs tasks.
    Worker,
    /// Runs tasks and holds a copy of the cluster's state.
    Manager,
}

impl Role {
    /// Name in certificates: organizational unit and DNS name. As SwarmKit's `ca.WorkerRole` and `ca.ManagerRole`.
    pub const fn certificate_name(self) -> &'static str {
        match self {
            Self::Worker => "swarm-worker",
            Self::Manager => "swarm-manager",
        }
    }

    /// The role of this name in certificates.
    pub fn from_certificate_name(name: &str) -> Option<Self> {
        [Self::Worker, Self::Manager]
            .into_iter()
            .find(|role| role.certificate_name() == name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Worker => "worker",
            Self::Manager => "manager",
        })
    }
}

/// Who is at the other end of a connection, as its verified certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Common name.
    pub node_id: NodeId,
    /// Organizational unit.
    pub role: Role,
    /// Organization.
    pub cluster_id: ClusterId,
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
    /// When the certificate becomes valid.
    pub not_before: Timestamp,
    /// When it stops being valid. A session must not outlive it.
    pub not_after: Timestamp,
}

impl PeerIdentity {
    /// When to ask for the next certificate: 50–80 % into the lifetime, as SwarmKit does.
    ///
    /// `jitter` is any random number; it spreads the renewals of nodes that joined together.
    pub fn renew_at(&self, jitter: u16) -> Timestamp {
        let lifetime = self.not_after.since(self.not_before);
        let share = 0.5 + 0.3 * f64::from(jitter) / f64::from(u16::MAX);
        self.not_before + lifetime.mul_f64(share)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_certificate_is_renewed_between_half_and_four_fifths_of_its_life() {
        let start = Timestamp(1_000_000_000_000);
        let peer = PeerIdentity {
            node_id: "n1".parse().unwrap(),
            role: Role::Worker,
            cluster_id: "c1".parse().unwrap(),
            serial: "1".into(),
            not_before: start,
            not_after: start + Duration::from_secs(1000),
        };
        assert_eq!(peer.renew_at(0), start + Duration::from_secs(500));
        let last = peer.renew_at(u16::MAX).since(start);
        assert!(last.abs_diff(Duration::from_secs(800)) < Duration::from_millis(1));
    }

    #[test]
    fn role_names_are_read_back() {
        for role in [Role::Worker, Role::Manager] {
            assert_eq!(
                Role::from_certificate_name(role.certificate_name()),
                Some(role)
            );
        }
        assert_eq!(Role::from_certificate_name("swarm-ca"), None);
    }
}
