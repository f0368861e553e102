//! Encrypted networks: their option, and the public keys by which nodes know one another's tunnels.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::spec::NetworkSpec;

/// Option of a network's driver that has its packets encrypted between nodes; docker takes it without a value.
pub const ENCRYPTED_OPTION: &str = "encrypted";
/// What a node says among its plugins that can encrypt: its kernel has WireGuard.
pub const ENCRYPTED_PLUGIN: &str = "Network/encrypted";
/// Keys that a node has at a time: the one in use, and while it changes the next one or the one before.
pub const TUNNEL_KEYS_MAX: usize = 2;

/// A public key of WireGuard (Curve25519, RFC 7748).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PublicKey(pub [u8; 32]);

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "PublicKey({a:02x}{b:02x}{c:02x}{d:02x}…)")
    }
}

/// A key of a node's tunnel; the private half never leaves the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TunnelKey {
    /// The public half.
    pub public: PublicKey,
    /// UDP port on the underlay at which the tunnel listens.
    pub port: u16,
}

/// Whether a network's driver options ask for encryption.
///
/// # Errors
/// A value that is neither yes nor no; the text says so.
pub fn is_encrypted(options: &BTreeMap<String, String>) -> Result<bool, String> {
    match options.get(ENCRYPTED_OPTION).map(String::as_str) {
        None | Some("false" | "0") => Ok(false),
        Some("" | "true" | "1") => Ok(true),
        Some(other) => Err(format!(
            "invalid value '{other}' of option {ENCRYPTED_OPTION}: expected true or false"
        )),
    }
}

impl NetworkSpec {
    /// Whether packets of this network are encrypted between nodes.
    pub fn is_encrypted(&self) -> bool {
        // What is neither yes nor no has been refused; plain text is for those alone who say no.
        is_encrypted(&self.driver.options).unwrap_or(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_no_means_plain_text() {
        let says =
            |value: &str| is_encrypted(&BTreeMap::from([("encrypted".into(), value.into())]));
        assert_eq!(is_encrypted(&BTreeMap::new()), Ok(false));
        assert_eq!(
            [says(""), says("true"), says("1")],
            [Ok(true), Ok(true), Ok(true)]
        );
        assert_eq!([says("false"), says("0")], [Ok(false), Ok(false)]);
        assert!(says("ipsec").unwrap_err().contains("'ipsec'"));
        let mut spec = NetworkSpec::default();
        spec.driver
            .options
            .insert("encrypted".into(), "perhaps".into());
        assert!(spec.is_encrypted());
    }
}
