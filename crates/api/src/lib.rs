//! The vocabulary of Shoal: ids, specs, objects, task states, the network view, and the wire.
//!
//! Every other crate speaks in these types. The crate decides nothing and touches nothing; it is also the only
//! bridge between the domain and the protobuf messages in `proto/` (module `wire`).

pub mod build;
pub mod container;
pub mod doctor;
pub mod explain;
pub mod id;
pub mod image;
pub mod network;
pub mod object;
pub mod planted;
pub mod spec;
pub mod stack;
pub mod table;
pub mod task_state;
pub mod template;
pub mod time;
pub mod tunnel;
pub mod wire;
pub mod words;

pub use id::{
    ClusterId, ConfigId, IdSource, NetworkId, NodeId, ObjectId, RandomIds, SecretId, ServiceId,
    TaskId,
};
pub use task_state::{Actor, TaskState, may_move};
pub use time::Timestamp;
pub use words::Words;
