//! JSON of the Engine API and the domain types, both ways.

pub(crate) mod cluster;
pub(crate) mod container_check;
pub(crate) mod container_create;
pub(crate) mod container_show;
pub(crate) mod image;
pub(crate) mod network;
pub(crate) mod network_detail;
pub(crate) mod service_read;
pub(crate) mod service_show;
pub(crate) mod system;
pub(crate) mod time;
pub(crate) mod volume;
