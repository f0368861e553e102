//! Content digests.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use shoal_api::image::ImageId;

/// The SHA-256 of some content. Prints as `sha256:<64 digits>`.
///
/// Other algorithms are refused: nothing in the field uses them, and a store that
/// checks two algorithms has twice the ways to be confused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// The text is not a SHA-256 digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid digest {0:?}: expected sha256 and 64 hexadecimal digits")]
pub struct InvalidDigest(pub String);

impl Digest {
    /// Hashes `content`.
    pub fn of(content: &[u8]) -> Self {
        Self(hex::encode(Sha256::digest(content)))
    }

    /// Takes over a finished hash.
    pub fn from_hash(hash: Sha256) -> Self {
        Self(hex::encode(hash.finalize()))
    }

    /// The 64 digits, without the name of the algorithm.
    pub fn hex(&self) -> &str {
        &self.0
    }

    /// The first twelve digits, as progress lines show them.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("sha256:") {
            Some(hex)
                if hex.len() == 64
                    && hex
                        .bytes()
                        .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) =>
            {
                Ok(Self(hex.to_owned()))
            }
            _ => Err(InvalidDigest(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

impl From<&Digest> for ImageId {
    fn from(digest: &Digest) -> Self {
        digest
            .0
            .parse()
            .expect("a digest has the digits of an image id")
    }
}

impl From<&ImageId> for Digest {
    fn from(id: &ImageId) -> Self {
        Self(id.hex().to_owned())
    }
}

/// Names every layer by itself and all layers below it, lowest first.
///
/// The first chain id is the first diff id; each further one hashes the one below and its own
/// diff id, separated by a space (OCI image specification, "Layer ChainID").
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff in diff_ids {
        let next = match chain.last() {
            None => diff.clone(),
            Some(below) => Digest::of(format!("{below} {diff}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_hash_the_chain_below() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let chain = chain_ids(&[a.clone(), b.clone()]);
        assert_eq!(chain[0], a);
        assert_eq!(
            chain[1],
            Digest::of(format!("sha256:{} sha256:{}", a.hex(), b.hex()).as_bytes())
        );
    }

    #[test]
    fn only_sha256_in_lower_case_is_a_digest() {
        for bad in [
            "",
            "sha256:",
            "sha512:00",
            &format!("sha256:{}", "A".repeat(64)),
            &"a".repeat(64),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        let text = format!("sha256:{}", "a".repeat(64));
        assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
    }
}
