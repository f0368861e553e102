//! The manager: one replicated value, the control loops that change it, and the services that show it.
//!
//! [`Manager`] is what a node starts; the rooms behind it are `core`, which decides, and `io`, which acts.

pub mod core;
pub mod io;

pub use crate::core::{
    control::{Decision, Intent, Spec},
    scheduler::{explain, foresee},
    state::{Event, State},
    validate::{Refusal, RefusalKind},
};
pub use io::{
    grpc::client::{JoinError, join_cluster, renew_identity},
    keys::{LockFile, NodeLock},
    manager::{
        Anew, Backup, BackupError, Begin, Founding, LogStream, Manager, ManagerConfig,
        ManagerError, NewCluster, RestoreError, WriteError, is_locked, read_backup,
    },
    raft::{Leadership, RaftConfig},
    store::{Notice, Watch},
};
