//! The resolver inside every container: 127.0.0.11:53, UDP and TCP.
//!
//! `core` turns a network view into an immutable [`Records`] table of pre-encoded answers and decides every question by
//! looking into it; `io` holds the sockets in the containers' namespaces, swaps the table, and forwards what is not ours.
//!
//! Tasks that run: per client one for UDP and one that accepts TCP; per forwarded query and per TCP connection one more,
//! each bounded in number and in time. No task waits for another: a slow upstream delays only the query sent to it.

pub mod core {
    //! Decides: tables, answers, the packet format, resolv.conf. Pure.
    pub mod answer;
    mod names;
    pub mod records;
    pub mod resolv_conf;
    mod short;
    pub mod wire;
}
pub mod io {
    //! Acts: sockets in the clients' namespaces, and queries to upstream servers.
    pub(crate) mod datagrams;
    pub mod forward;
    pub mod namespace;
    pub mod server;
}

pub use crate::{
    core::{
        records::{Host, Records, Zone},
        resolv_conf::{ContainerResolvConf, Overrides, ResolvConf},
    },
    io::server::{ClientScope, Dns, DnsConfig, DnsError, Listening},
};
