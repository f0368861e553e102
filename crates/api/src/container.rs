//! Containers as the engine sees them: what may be asked of one, and what can be seen of one.
//!
//! The meaning of every field is that of the Docker Engine API (v1.51) unless its comment says otherwise; the shapes
//! are our own. Absent means "engine default". Sizes are bytes, instants are [`Timestamp`](crate::Timestamp), `ZERO` where Docker
//! prints its zero time.

mod observed;
mod spec;
mod streams;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use observed::*;
pub use spec::*;
pub use streams::*;

/// The identity of a container: 64 lower-case hexadecimal digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

/// The text is not 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a container id: {0:?}")]
pub struct InvalidContainerId(pub String);

impl ContainerId {
    /// Makes an id out of 32 random bytes; the caller brings the randomness.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        use fmt::Write;
        let mut hex = String::with_capacity(64);
        for byte in bytes {
            write!(hex, "{byte:02x}").expect("writing to a String cannot fail");
        }
        Self(hex)
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first twelve digits, as shown in lists and used as the default host name.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl FromStr for ContainerId {
    type Err = InvalidContainerId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == 64 && text.bytes().all(hex) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidContainerId(text.to_owned()))
        }
    }
}

impl TryFrom<String> for ContainerId {
    type Error = InvalidContainerId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> Self {
        id.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}
