//! The daemon of one host, and the lab that makes many hosts of one machine.

pub mod lab;
