//! Identities of cluster objects: 128 random bits in base 36, 25 characters, as Swarm writes them.

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

/// Number of characters of an id: 128 bits need at most 25 digits of base 36.
pub const ID_LENGTH: usize = 25;

/// A string that cannot be an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {kind} id {value:?}: expected 1 to 64 characters of a-z, A-Z, 0-9")]
pub struct InvalidId {
    /// What the id was to name, for instance `node`.
    pub kind: &'static str,
    /// What was given.
    pub value: String,
}

/// Gives the 128 bits of the next id; the only randomness that decisions may use.
///
/// Production draws from the operating system ([`RandomIds`]); simulations from a seed.
pub trait IdSource {
    /// Returns 128 fresh bits.
    fn next_bits(&mut self) -> u128;
}

impl dyn IdSource + '_ {
    /// Returns a fresh id of the wanted kind.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator has one kind of items, and an end"
    )]
    pub fn next<T: ObjectId>(&mut self) -> T {
        T::from_bits(self.next_bits())
    }
}

/// Ids from the operating system's random source.
#[derive(Debug, Default, Clone, Copy)]
pub struct RandomIds;

impl IdSource for RandomIds {
    fn next_bits(&mut self) -> u128 {
        let mut bytes = [0u8; 16];
        getrandom::fill(&mut bytes).expect("the operating system gives random bytes after boot");
        u128::from_le_bytes(bytes)
    }
}

/// What every typed id can do.
pub trait ObjectId: Sized {
    /// Makes an id of 128 bits.
    fn from_bits(bits: u128) -> Self;
    /// The id as written.
    fn as_str(&self) -> &str;
    /// A fresh id from the operating system's random source.
    fn random() -> Self {
        Self::from_bits(RandomIds.next_bits())
    }
}

/// Writes `bits` in base 36, padded with zeros to [`ID_LENGTH`] characters.
pub fn base36(mut bits: u128) -> String {
    let mut digits = [b'0'; ID_LENGTH];
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdefghijklmnopqrstuvwxyz"[(bits % 36) as usize];
        bits /= 36;
    }
    String::from_utf8(digits.to_vec()).expect("base 36 digits are ASCII")
}

/// An id as written.
///
/// One of the usual length lies in place: ids are the keys of most tables, and a search compares a dozen of them, which would
/// else each lie somewhere of their own.
#[derive(Clone)]
enum Text {
    /// Letters and digits.
    Usual([u8; ID_LENGTH]),
    /// Of any other length.
    Other(Arc<str>),
}

impl Text {
    fn new(text: &str) -> Self {
        match text.as_bytes().try_into() {
            Ok(usual) if text.is_ascii() => Self::Usual(usual),
            _ => Self::Other(text.into()),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Usual(bytes) => bytes,
            Self::Other(text) => text.as_bytes(),
        }
    }

    fn as_str(&self) -> &str {
        match self {
            Self::Usual(bytes) => str::from_utf8(bytes).expect("letters and digits are UTF-8"),
            Self::Other(text) => text,
        }
    }
}

/// The order of the texts.
impl Ord for Text {
    fn cmp(&self, other: &Self) -> Ordering {
        let (own, others) = (self.as_bytes(), other.as_bytes());
        match (own.first_chunk(), others.first_chunk()) {
            // Two random ids nearly always differ in their first characters, which make one number.
            (Some(first), Some(second)) if first != second => {
                u128::from_be_bytes(*first).cmp(&u128::from_be_bytes(*second))
            }
            _ => own.cmp(others),
        }
    }
}

impl PartialOrd for Text {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Text {}

/// As that of the text, by which ids can be looked up.
impl Hash for Text {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $kind:literal),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Text);

        impl ObjectId for $name {
            fn from_bits(bits: u128) -> Self {
                Self(Text::new(&base36(bits)))
            }
            fn as_str(&self) -> &str {
                self.0.as_str()
            }
        }
        impl $name {
            /// The id as written.
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}:{}", $kind, self.as_str())
            }
        }
        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(value: &str) -> Result<Self, InvalidId> {
                let valid = (1..=64).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_alphanumeric());
                if valid { Ok(Self(Text::new(value))) } else { Err(InvalidId { kind: $kind, value: value.to_owned() }) }
            }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(value: String) -> Result<Self, InvalidId> {
                value.parse()
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.as_str().to_owned()
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.0.as_str()
            }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                self.0.as_str()
            }
        }
    )*};
}

ids! {
    /// Identity of a node; chosen by the manager that issues its first certificate.
    NodeId = "node",
    /// Identity of a service.
    ServiceId = "service",
    /// Identity of a task; a task is one-shot, its replacement has another id.
    TaskId = "task",
    /// Identity of a cluster network.
    NetworkId = "network",
    /// Identity of a secret.
    SecretId = "secret",
    /// Identity of a config.
    ConfigId = "config",
    /// Identity of the cluster.
    ClusterId = "cluster",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_25_characters_of_base_36() {
        assert_eq!(base36(0), "0".repeat(25));
        assert_eq!(base36(35), format!("{}z", "0".repeat(24)));
        assert_eq!(base36(u128::MAX), "f5lxx1zz5pnorynqglhzmsp33");
        assert_eq!(TaskId::random().as_str().len(), ID_LENGTH);
    }

    #[test]
    fn ids_of_any_length_stand_in_the_order_of_their_texts() {
        let usual = |bits| TaskId::from_bits(bits).to_string();
        let long = usual(7);
        let mut texts = vec![
            usual(0),
            usual(1),
            usual(36),
            usual(u128::MAX),
            usual(u128::MAX - 1),
            long.clone(),
            format!("{long}0"),
            long[..24].to_owned(),
            long[..16].to_owned(),
            "n1".to_owned(),
            "N1".to_owned(),
            "node10".to_owned(),
            "z".repeat(64),
        ];
        let mut ids: Vec<TaskId> = texts.iter().map(|text| text.parse().unwrap()).collect();
        texts.sort();
        ids.sort();
        let sorted: Vec<&str> = ids.iter().map(TaskId::as_str).collect();
        assert_eq!(sorted, texts);
        // A table can be asked for a text.
        let known: std::collections::HashSet<TaskId> = ids.into_iter().collect();
        assert!(texts.iter().all(|text| known.contains(text.as_str())));
    }

    #[test]
    fn a_foreign_string_is_refused_with_its_value() {
        let refused = "web 1".parse::<ServiceId>().unwrap_err();
        assert_eq!(
            refused.to_string(),
            "invalid service id \"web 1\": expected 1 to 64 characters of a-z, A-Z, 0-9"
        );
    }
}
