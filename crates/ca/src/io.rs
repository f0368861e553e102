//! Certificates made, presented, checked and kept.

pub mod api_tls;
pub mod bootstrap;
pub mod clock;
pub mod files;
pub mod issuer;
pub mod tls;
