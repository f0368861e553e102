//! The wire: messages and services of `proto/`, and the only bridge between them and the domain.
//!
//! `wire::X::from(&x)` writes a domain value, `X::try_from(wire)` reads it back and names the field that is wrong.
//! Maps are ordered, so equal values have equal bytes.

use std::fmt;

use prost::Message;

mod assignment;
mod batch;
mod convert;

pub use assignment::{
    encode_change, encode_task_spec, encode_task_update, encode_view, encode_view_change,
};
pub use batch::{
    SpecSource, append_put, decode_batch, decode_batch_with, decode_object, decode_wishes,
    encode_batch, encode_batch_lean, encode_object, encode_wishes,
};
pub use convert::DecodeError;
pub use generated::*;

#[allow(
    clippy::all,
    clippy::use_self,
    clippy::or_fun_call,
    unused_qualifications,
    unreachable_pub
)]
mod generated {
    tonic::include_proto!("shoal.v1");
}

/// Bytes of a service's spec in a message.
pub fn service_spec_bytes(spec: &crate::spec::ServiceSpec) -> usize {
    ServiceSpec::from(spec).encoded_len()
}

impl fmt::Debug for SecretSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretSpec")
            .field("annotations", &self.annotations)
            .field("data_bytes", &self.data.len())
            .finish()
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("id", &self.id)
            .field("spec", &self.spec)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for IssueNodeCertificateRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssueNodeCertificateRequest")
            .field("hostname", &self.hostname)
            .finish_non_exhaustive()
    }
}
