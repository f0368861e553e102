//! Join tokens: `SWMTKN-1-<digest of the root certificate>-<secret>`, as Swarm writes them.
//!
//! The digest lets a joiner recognise the cluster before it says anything; the secret admits it. A token is never an
//! identity. Unlike SwarmKit the digest is over the certificate's DER, so re-wrapped PEM does not change it.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::role::Role;

const PREFIX: &str = "SWMTKN-1-";
const DIGEST_DIGITS: usize = 50; // 256 bits in base 36
const SECRET_DIGITS: usize = 25; // 128 bits in base 36

/// Why a join token is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not of the form of a join token, or not one that this cluster gave out. One text for both, so that an answer
    /// tells nothing about how close a guess was.
    #[error("invalid join token")]
    Invalid,
    /// The cluster at the other end is not the one that the token is for.
    #[error("the remote cluster's root certificate does not match the join token")]
    ForeignRoot,
}

/// A join token in parts.
#[derive(Clone)]
pub struct JoinToken {
    digest: [u8; 32],
    secret: [u8; 16],
}

impl JoinToken {
    /// Makes the token for the cluster with this root certificate.
    pub fn new(root_der: &[u8], secret: [u8; 16]) -> Self {
        Self {
            digest: Sha256::digest(root_der).into(),
            secret,
        }
    }

    /// Makes the token of which the secret part is kept as text.
    pub fn with_secret(root_der: &[u8], secret: &str) -> Result<Self, TokenError> {
        if secret.len() != SECRET_DIGITS {
            return Err(TokenError::Invalid);
        }
        Ok(Self::new(
            root_der,
            base36_decode(secret).ok_or(TokenError::Invalid)?,
        ))
    }

    /// Reads a token.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let (digest, secret) = text
            .trim()
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once('-'))
            .filter(|(digest, secret)| {
                digest.len() == DIGEST_DIGITS && secret.len() == SECRET_DIGITS
            })
            .ok_or(TokenError::Invalid)?;
        Ok(Self {
            digest: base36_decode(digest).ok_or(TokenError::Invalid)?,
            secret: base36_decode(secret).ok_or(TokenError::Invalid)?,
        })
    }

    /// The token as it is handed to people. Anything that logs must use `Debug` instead, which hides it.
    pub fn reveal(&self) -> String {
        let (digest, secret) = (
            base36_encode(&self.digest, DIGEST_DIGITS),
            base36_encode(&self.secret, SECRET_DIGITS),
        );
        format!("{PREFIX}{digest}-{secret}")
    }

    /// Whether this certificate is the root of the cluster that the token is for.
    pub fn matches_root(&self, root_der: &[u8]) -> bool {
        Sha256::digest(root_der).ct_eq(&self.digest).into()
    }

    /// Compares in constant time.
    pub fn matches(&self, other: &Self) -> bool {
        (self.digest.ct_eq(&other.digest) & self.secret.ct_eq(&other.secret)).into()
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(…)")
    }
}

/// The role that a presented token admits to, given the cluster's two valid tokens.
///
/// Always compares with both, in constant time.
pub fn admitted_role(
    presented: &str,
    worker: &JoinToken,
    manager: &JoinToken,
) -> Result<Role, TokenError> {
    let presented = JoinToken::parse(presented)?;
    match (manager.matches(&presented), worker.matches(&presented)) {
        (true, _) => Ok(Role::Manager),
        (false, true) => Ok(Role::Worker),
        (false, false) => Err(TokenError::Invalid),
    }
}

/// Writes a big-endian number in base 36, padded with zeros to `digits`.
fn base36_encode(bytes: &[u8], digits: usize) -> String {
    let mut number = bytes.to_vec();
    let mut text = vec![b'0'; digits];
    for digit in text.iter_mut().rev() {
        let mut rest = 0u32;
        for byte in &mut number {
            let value = rest << 8 | u32::from(*byte);
            *byte = (value / 36) as u8; // rest < 36, so value < 36 * 256
            rest = value % 36;
        }
        *digit = b"0123456789abcdefghijklmnopqrstuvwxyz"[rest as usize];
    }
    String::from_utf8(text).expect("base 36 digits are ASCII")
}

/// Reads a big-endian number in base 36; `None` for other characters and for numbers that do not fit.
fn base36_decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut number = [0u8; N];
    for digit in text.bytes() {
        let mut carry = u32::from(match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'z' => digit - b'a' + 10,
            _ => return None,
        });
        for byte in number.iter_mut().rev() {
            let value = u32::from(*byte) * 36 + carry;
            *byte = (value & 0xff) as u8;
            carry = value >> 8;
        }
        if carry != 0 {
            return None;
        }
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &[u8] = b"a root certificate";

    #[test]
    fn a_token_has_swarms_form_and_is_read_back() {
        for secret in [[0u8; 16], [0xff; 16], *b"0123456789abcdef"] {
            let token = JoinToken::new(ROOT, secret);
            let text = token.reveal();
            assert_eq!(text.len(), "SWMTKN-1-".len() + 50 + 1 + 25);
            assert!(JoinToken::parse(&text).unwrap().matches(&token));
            assert!(token.matches_root(ROOT));
            let secret = text.rsplit('-').next().unwrap();
            assert!(
                JoinToken::with_secret(ROOT, secret)
                    .unwrap()
                    .matches(&token)
            );
            assert!(!token.matches_root(b"another"));
            assert_eq!(format!("{token:?}"), "JoinToken(…)");
        }
    }

    #[test]
    fn what_is_no_token_is_refused_with_one_text() {
        let good = JoinToken::new(ROOT, [7; 16]).reveal();
        let overflow = format!("SWMTKN-1-{}-{}", "z".repeat(50), "z".repeat(25));
        for bad in [
            "",
            "SWMTKN-1-",
            &good[..good.len() - 1],
            &good.to_uppercase(),
            &format!("{good}-0"),
            &good.replace("SWMTKN-1", "SWMTKN-2"),
            &overflow,
            &"x".repeat(1 << 20),
            "SWMTKN-1-é-é",
        ] {
            assert_eq!(
                JoinToken::parse(bad).unwrap_err().to_string(),
                "invalid join token"
            );
        }
    }

    #[test]
    fn each_token_admits_to_its_role_only() {
        let [worker, manager, stranger] = [1, 2, 3].map(|n| JoinToken::new(ROOT, [n; 16]));
        let check = |token: &JoinToken, want| {
            assert_eq!(admitted_role(&token.reveal(), &worker, &manager), want);
        };
        check(&worker, Ok(Role::Worker));
        check(&manager, Ok(Role::Manager));
        check(&stranger, Err(TokenError::Invalid));
        check(
            &JoinToken::new(b"another root", [1; 16]),
            Err(TokenError::Invalid),
        );
    }
}
