//! How domain types and messages become each other: one trait for fields, three macros for messages.

use std::{collections::BTreeMap, fmt::Display, net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;

use crate::{
    ClusterId, ConfigId, NetworkId, NodeId, SecretId, ServiceId, TaskId, Timestamp, Words,
    spec::{Labels, SharedLabels},
    table::Table,
};

mod logs;
mod network;
mod object;
mod spec;

/// A message that is not a value of the domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot decode {field}: {problem}")]
pub struct DecodeError {
    /// Path of the field, from the name of the message: `ServiceSpec.task.container.mounts[0].kind`.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

impl DecodeError {
    pub(super) fn new(problem: impl Display) -> Self {
        Self {
            field: String::new(),
            problem: problem.to_string(),
        }
    }

    pub(super) fn missing() -> Self {
        Self::new("required field is missing")
    }

    /// The same error as seen from the message that holds the field.
    pub(super) fn within(mut self, outer: &str) -> Self {
        let joint = if self.field.is_empty() || self.field.starts_with('[') {
            ""
        } else {
            "."
        };
        self.field = format!("{outer}{joint}{}", self.field);
        self
    }
}

/// A domain type that is written as `W` in messages.
pub(super) trait Field<W>: Sized {
    fn to_wire(&self) -> W;
    fn from_wire(wire: W) -> Result<Self, DecodeError>;
}

/// Messages that stand beside the one that they are part of, because they are large.
macro_rules! boxed {
    ($($name:ident),*) => {$(
        impl Field<Box<wire::$name>> for $name {
            fn to_wire(&self) -> Box<wire::$name> {
                Box::new(self.to_wire())
            }
            fn from_wire(wire: Box<wire::$name>) -> Result<Self, DecodeError> {
                Self::from_wire(*wire)
            }
        }
    )*};
}

/// Field by field, same names on both sides; forgetting one does not compile.
macro_rules! messages {
    ($($name:ident { $($field:ident),* $(,)? })*) => {$(
        impl Field<wire::$name> for $name {
            fn to_wire(&self) -> wire::$name {
                wire::$name { $($field: self.$field.to_wire()),* }
            }
            fn from_wire(wire: wire::$name) -> Result<Self, DecodeError> {
                Ok(Self {
                    $($field: Field::from_wire(wire.$field).map_err(|e| e.within(stringify!($field)))?),*
                })
            }
        }
        bridge!($name);
    )*};
}

/// What every message offers besides its fields: the public conversions, and being a required field itself.
macro_rules! bridge {
    ($name:ident) => {
        impl From<&$name> for wire::$name {
            fn from(value: &$name) -> Self {
                value.to_wire()
            }
        }
        impl TryFrom<wire::$name> for $name {
            type Error = DecodeError;
            fn try_from(wire: wire::$name) -> Result<Self, DecodeError> {
                Self::from_wire(wire).map_err(|e| e.within(stringify!($name)))
            }
        }
        impl Field<Option<wire::$name>> for $name {
            fn to_wire(&self) -> Option<wire::$name> {
                Some(self.to_wire())
            }
            fn from_wire(wire: Option<wire::$name>) -> Result<Self, DecodeError> {
                Self::from_wire(wire.ok_or_else(DecodeError::missing)?)
            }
        }
    };
}

/// An enum without data, variants of the same names.
macro_rules! enums {
    ($($name:ident { $($variant:ident),* $(,)? })*) => {$(
        impl From<$name> for wire::$name {
            fn from(value: $name) -> Self {
                match value { $($name::$variant => Self::$variant),* }
            }
        }
        impl From<wire::$name> for $name {
            fn from(wire: wire::$name) -> Self {
                match wire { $(wire::$name::$variant => Self::$variant),* }
            }
        }
        impl Field<i32> for $name {
            fn to_wire(&self) -> i32 {
                wire::$name::from(*self) as i32
            }
            fn from_wire(number: i32) -> Result<Self, DecodeError> {
                wire::$name::try_from(number).map(Self::from).map_err(|_| {
                    DecodeError::new(format!("unknown {} {number}", stringify!($name)))
                })
            }
        }
    )*};
}

/// An enum with one value per variant, or none (`Variant => EmptyMessage`), as a oneof called `kind`.
macro_rules! oneof {
    ($name:ident in $module:ident { $($variant:ident),* $(; $unit:ident => $empty:ident)? }) => {
        impl Field<wire::$name> for $name {
            fn to_wire(&self) -> wire::$name {
                use wire::$module as m;
                wire::$name { kind: Some(match self {
                    $(Self::$variant(value) => m::Kind::$variant(value.to_wire()),)*
                    $(Self::$unit => m::Kind::$unit(m::$empty {}),)?
                }) }
            }
            fn from_wire(wire: wire::$name) -> Result<Self, DecodeError> {
                use wire::$module as m;
                match wire.kind.ok_or_else(|| DecodeError::missing().within("kind"))? {
                    $(m::Kind::$variant(value) => Field::from_wire(value)
                        .map(Self::$variant)
                        .map_err(|e| e.within(stringify!($variant))),)*
                    $(m::Kind::$unit(m::$empty {}) => Ok(Self::$unit),)?
                }
            }
        }
        bridge!($name);
    };
}

use {boxed, bridge, enums, messages, oneof};

macro_rules! verbatim {
    ($($kind:ty),*) => {$(
        impl Field<Self> for $kind {
            fn to_wire(&self) -> Self {
                self.clone()
            }
            fn from_wire(wire: Self) -> Result<Self, DecodeError> {
                Ok(wire)
            }
        }
    )*};
}
verbatim!(String, bool, u32, u64, i64, f32);

impl Field<Self> for Vec<u8> {
    fn to_wire(&self) -> Self {
        self.clone()
    }
    fn from_wire(wire: Self) -> Result<Self, DecodeError> {
        Ok(wire)
    }
}

impl Field<Vec<u8>> for u128 {
    fn to_wire(&self) -> Vec<u8> {
        self.to_be_bytes().to_vec()
    }
    fn from_wire(wire: Vec<u8>) -> Result<Self, DecodeError> {
        let length = wire.len();
        let bytes = wire.try_into();
        let bytes = bytes.map_err(|_| DecodeError::new(format!("{length} bytes, 16 expected")));
        bytes.map(Self::from_be_bytes)
    }
}

macro_rules! narrow {
    ($($kind:ty),*) => {$(
        impl Field<u32> for $kind {
            fn to_wire(&self) -> u32 {
                (*self).into()
            }
            fn from_wire(wire: u32) -> Result<Self, DecodeError> {
                wire.try_into()
                    .map_err(|_| DecodeError::new(format!("{wire} is greater than {}", Self::MAX)))
            }
        }
    )*};
}
narrow!(u8, u16);

macro_rules! text {
    ($($kind:ty: $what:literal),* $(,)?) => {$(
        impl Field<String> for $kind {
            fn to_wire(&self) -> String {
                self.to_string()
            }
            fn from_wire(wire: String) -> Result<Self, DecodeError> {
                wire.parse()
                    .map_err(|_| DecodeError::new(format!("invalid {} {wire:?}", $what)))
            }
        }
    )*};
}
text! {
    IpAddr: "address",
    IpNet: "prefix",
    NodeId: "node id",
    ServiceId: "service id",
    TaskId: "task id",
    NetworkId: "network id",
    SecretId: "secret id",
    ConfigId: "config id",
    ClusterId: "cluster id",
}

impl Field<i64> for Timestamp {
    fn to_wire(&self) -> i64 {
        self.0
    }
    fn from_wire(wire: i64) -> Result<Self, DecodeError> {
        Ok(Self(wire))
    }
}

impl Field<i64> for Duration {
    fn to_wire(&self) -> i64 {
        // 292 years; a longer wait is as good as that.
        i64::try_from(self.as_nanos()).unwrap_or(i64::MAX)
    }
    fn from_wire(wire: i64) -> Result<Self, DecodeError> {
        u64::try_from(wire)
            .map(Self::from_nanos)
            .map_err(|_| DecodeError::new(format!("negative duration {wire} ns")))
    }
}

impl<T: Field<W>, W> Field<Option<W>> for Option<T> {
    fn to_wire(&self) -> Option<W> {
        self.as_ref().map(Field::to_wire)
    }
    fn from_wire(wire: Option<W>) -> Result<Self, DecodeError> {
        wire.map(Field::from_wire).transpose()
    }
}

impl<T: Field<W>, W> Field<Vec<W>> for Vec<T> {
    fn to_wire(&self) -> Vec<W> {
        self.iter().map(Field::to_wire).collect()
    }
    fn from_wire(wire: Vec<W>) -> Result<Self, DecodeError> {
        wire.into_iter()
            .enumerate()
            .map(|(i, item)| T::from_wire(item).map_err(|e| e.within(&format!("[{i}]"))))
            .collect()
    }
}

impl<T: Field<W>, W> Field<Vec<W>> for Box<[T]> {
    fn to_wire(&self) -> Vec<W> {
        self.iter().map(Field::to_wire).collect()
    }
    fn from_wire(wire: Vec<W>) -> Result<Self, DecodeError> {
        Vec::from_wire(wire).map(Self::from)
    }
}

impl Field<Labels> for SharedLabels {
    fn to_wire(&self) -> Labels {
        Labels::clone(self)
    }
    fn from_wire(wire: Labels) -> Result<Self, DecodeError> {
        Ok(wire.into())
    }
}

impl<K: Field<String> + Ord, V: Field<W>, W> Field<BTreeMap<String, W>> for BTreeMap<K, V> {
    fn to_wire(&self) -> BTreeMap<String, W> {
        self.iter()
            .map(|(key, value)| (key.to_wire(), value.to_wire()))
            .collect()
    }
    fn from_wire(wire: BTreeMap<String, W>) -> Result<Self, DecodeError> {
        wire.into_iter()
            .map(|(key, value)| {
                let place = format!("[{key:?}]");
                let entry = K::from_wire(key).and_then(|key| Ok((key, V::from_wire(value)?)));
                entry.map_err(|e| e.within(&place))
            })
            .collect()
    }
}

impl<K: Field<String> + Ord + Clone, V: Field<W> + Clone, W> Field<BTreeMap<String, W>>
    for Table<K, V>
{
    fn to_wire(&self) -> BTreeMap<String, W> {
        self.iter()
            .map(|(key, value)| (key.to_wire(), value.to_wire()))
            .collect()
    }
    fn from_wire(wire: BTreeMap<String, W>) -> Result<Self, DecodeError> {
        BTreeMap::<K, V>::from_wire(wire).map(Self::from_iter)
    }
}

impl Field<String> for Arc<str> {
    fn to_wire(&self) -> String {
        self.as_ref().to_owned()
    }
    fn from_wire(wire: String) -> Result<Self, DecodeError> {
        Ok(wire.into())
    }
}

impl Field<String> for Words {
    fn to_wire(&self) -> String {
        self.to_string()
    }
    fn from_wire(wire: String) -> Result<Self, DecodeError> {
        Ok(wire.into())
    }
}

impl<T: Field<W>, W> Field<W> for Box<T> {
    fn to_wire(&self) -> W {
        self.as_ref().to_wire()
    }
    fn from_wire(wire: W) -> Result<Self, DecodeError> {
        T::from_wire(wire).map(Self::new)
    }
}

impl<T: Field<W>, W> Field<W> for Arc<T> {
    fn to_wire(&self) -> W {
        self.as_ref().to_wire()
    }
    fn from_wire(wire: W) -> Result<Self, DecodeError> {
        T::from_wire(wire).map(Self::new)
    }
}
