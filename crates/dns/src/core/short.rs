//! Bytes that are mostly few, and then lie where they are spoken of.

use std::{fmt, ops::Deref};

/// How many bytes lie in place: a name of usual length, or the records of one address.
const IN_PLACE: usize = 30;

/// A few bytes, in place where they fit.
#[derive(Clone)]
pub(super) enum Bytes {
    Here(u8, [u8; IN_PLACE]),
    Elsewhere(Box<[u8]>),
}

impl Default for Bytes {
    fn default() -> Self {
        Self::Here(0, [0; IN_PLACE])
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        let mut here = [0; IN_PLACE];
        match (here.get_mut(..bytes.len()), u8::try_from(bytes.len())) {
            (Some(place), Ok(length)) => {
                place.copy_from_slice(bytes);
                Self::Here(length, here)
            }
            _ => Self::Elsewhere(bytes.into()),
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Here(length, bytes) => &bytes[..usize::from(*length)],
            Self::Elsewhere(bytes) => bytes,
        }
    }
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Bytes {}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}
