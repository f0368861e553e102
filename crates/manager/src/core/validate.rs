//! Whether what a user asks for makes sense: the specs by themselves, and against the rest of the state.
//!
//! Texts are SwarmKit's (`manager/controlapi`, `api/validation`) where it has one, since clients match on them.

mod container;
mod data;
mod depends;
mod image;
mod network;
mod reach;
mod service;

use shoal_api::spec::Annotations;

use super::state::{Claim, Kind, Rejected};

pub use data::{cluster, config, data_name, node, secret};
pub use network::{network, pools};
pub use service::service;

/// A request that is not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// Which kind of no it is.
    pub kind: RefusalKind,
    /// Why.
    pub text: String,
}

/// Kinds of refusals; each is a code of gRPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// Not for this caller or in this way.
    PermissionDenied,
    /// The request makes no sense by itself.
    InvalidArgument,
    /// What it names does not exist.
    NotFound,
    /// What it makes exists.
    AlreadyExists,
    /// It makes no sense now.
    FailedPrecondition,
    /// It may make sense one day.
    Unimplemented,
    /// Swarm's code for changes based on an old version.
    Unknown,
}

impl RefusalKind {
    /// The code's name, as gRPC for Go writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "InvalidArgument",
            Self::NotFound => "NotFound",
            Self::PermissionDenied => "PermissionDenied",
            Self::AlreadyExists => "AlreadyExists",
            Self::FailedPrecondition => "FailedPrecondition",
            Self::Unimplemented => "Unimplemented",
            Self::Unknown => "Unknown",
        }
    }

    /// Status of an HTTP answer, as in moby's `daemon/server/httpstatus`.
    pub fn http_status(self) -> u16 {
        match self {
            Self::InvalidArgument | Self::FailedPrecondition => 400,
            Self::NotFound => 404,
            Self::PermissionDenied => 403,
            Self::AlreadyExists => 409,
            Self::Unimplemented => 501,
            Self::Unknown => 500,
        }
    }
}

impl Refusal {
    pub(crate) fn new(kind: RefusalKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
        }
    }

    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::new(RefusalKind::InvalidArgument, text)
    }

    pub(crate) fn not_found(kind: &str, id: impl std::fmt::Display) -> Self {
        Self::new(RefusalKind::NotFound, format!("{kind} {id} not found"))
    }

    pub(crate) fn precondition(text: impl Into<String>) -> Self {
        Self::new(RefusalKind::FailedPrecondition, text)
    }

    /// A request based on an older version of the object.
    pub fn out_of_sequence() -> Self {
        Self::new(RefusalKind::Unknown, "update out of sequence")
    }

    /// A name that another object of the kind has.
    pub(crate) fn name_taken(kind: Kind, name: &str) -> Self {
        let text = match kind {
            Kind::Service => {
                format!("name conflicts with an existing object: service {name} already exists")
            }
            Kind::Network => format!("network with name {name} already exists"),
            Kind::Secret | Kind::Config => format!("{} {name} already exists", kind.as_str()),
        };
        Self::new(RefusalKind::AlreadyExists, text)
    }

    /// The text as docker shows it: gRPC for Go's rendering of a status.
    pub fn rpc_text(&self) -> String {
        format!(
            "rpc error: code = {} desc = {}",
            self.kind.as_str(),
            self.text
        )
    }
}

impl From<Rejected> for Refusal {
    /// What a user is told when the state had moved on between the check and the log.
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::Stale { .. } | Rejected::SpecGone { .. } => Self::out_of_sequence(),
            Rejected::Taken {
                claim: Claim::Name(kind, name),
                ..
            } => Self::name_taken(kind, &name.to_string()),
            Rejected::Taken { .. } => Self::new(RefusalKind::AlreadyExists, rejected.to_string()),
            // Nobody knows what became of it.
            Rejected::Granted { .. } | Rejected::Forgotten => {
                Self::new(RefusalKind::Unknown, rejected.to_string())
            }
            Rejected::Reference(_) | Rejected::Illegal { .. } | Rejected::NotOwner { .. } => {
                Self::precondition(rejected.to_string())
            }
        }
    }
}

/// Checks the name of a service, network or node (SwarmKit's `validateAnnotations`).
pub(crate) fn name(annotations: &Annotations) -> Result<(), Refusal> {
    let name = annotations.name.as_str();
    if name.is_empty() {
        return Err(Refusal::invalid("meta: name must be provided"));
    }
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inner = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !edge(name.chars().next()) || !edge(name.chars().last()) || !name.chars().all(inner) {
        return Err(Refusal::invalid(
            "name must be valid as a DNS name component",
        ));
    }
    if name.len() > 63 {
        return Err(Refusal::invalid("name must be 63 characters or fewer"));
    }
    Ok(())
}
