//! Bugs that are planted on purpose, so that the simulator can be asked whether it would find them.
//!
//! Without the feature `planted-bugs` nothing of this exists at run time: [`planted`] is constantly false. With it, a
//! thread says by [`plant`] which one of them it wants to live with.

/// Declares the bugs with the crime that each one is.
macro_rules! bugs {
    ($($name:ident: $area:literal, $crime:literal;)*) => {
        /// A mistake that somebody could have made.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[allow(missing_docs, reason = "what each one is, `Bug::crime` says")]
        pub enum Bug { $($name),* }

        impl Bug {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The part of the program in which it is.
            pub const fn area(self) -> &'static str {
                match self { $(Self::$name => $area),* }
            }

            /// What it does.
            pub const fn crime(self) -> &'static str {
                match self { $(Self::$name => $crime),* }
            }
        }
    };
}

bugs! {
    WalNoSync: "log", "a record is not synced";
    WalForgetsVote: "log", "a record does not hold the vote";
    WalForgetsTerm: "log", "a record that holds no entries is not written";
    WalDropsLast: "log", "the last record is dropped at the start";
    WalSegmentUnnamed: "log", "the name of a new segment is not synced";
    WalReleasesAll: "log", "all segments are removed after a snapshot, the one in use too";
    WalSkipsDamage: "log", "damage in the middle of the log is taken for its end";
    LogKeepsInstalled: "log", "entries from before an installed snapshot survive it";
    SnapshotNoSync: "log", "a snapshot is not synced";
    SnapshotCutFirst: "log", "the log is cut before the snapshot is durable";
    WalNeverCut: "log", "segments stay that no snapshot needs";
    SnapshotUnsaid: "log", "after a crash the log does not say that a snapshot has replaced it";
    LogKeepsConflict: "log", "entries of an older term survive those that replace them";
    SendBeforePersist: "consensus", "promises are sent before they are durable";
    AckOnAppend: "consensus", "a write is acknowledged when it is appended";
    ReadWithoutBarrier: "consensus", "a read is answered without asking the quorum";
    ReadAheadOfApply: "consensus", "a read is answered before it is applied";
    RefusesOnSight: "control", "a write is refused by a leader that may be deposed";
    RemovedMayCall: "control", "a node that was removed may call as before";
    LossIsSuccess: "consensus", "a write whose leader was deposed is acknowledged";
    RaftIdReused: "consensus", "the id of a removed member is given out again";
    RejoinKeepsId: "consensus", "a manager without its log gets its old id back";
    AppliesTwice: "consensus", "an entry at the end of a snapshot is applied again";
    SnapshotLosesTasks: "state", "a snapshot leaves out tasks that are not assigned";
    VersionUnchecked: "state", "a batch made on an old version is applied";
    WishGrantedTwice: "state", "a wish that is passed on again is granted again";
    SlotTwice: "orchestrator", "a slot that waits for its restart is filled at once as well";
    ScaleDownForgets: "orchestrator", "scaling down leaves one task";
    RefilledTooSoon: "orchestrator", "a slot that is filled again does not wait for the task that leaves it";
    UpdateAllAtOnce: "orchestrator", "an update replaces all tasks at once";
    UpdateForgetsBusy: "orchestrator", "an update does not count the tasks that do not run yet";
    StartFirstHasty: "orchestrator", "a predecessor is stopped before its replacement runs";
    WaitersForgotten: "allocator", "who waits for a port or an address is not told that it is free";
    StopFirstOverlaps: "orchestrator", "a replacement starts before its predecessor has stopped";
    RestartNever: "orchestrator", "a failed task is not replaced";
    ReaperSleeps: "orchestrator", "tasks of removed services stay";
    SchedulerDrained: "scheduler", "a drained node gets tasks";
    SchedulerOvercommits: "scheduler", "reservations of memory are not counted";
    ThingsShared: "scheduler", "a thing of which a node has one is given to two tasks";
    LeaderImpatient: "dispatcher", "a new leader gives up nodes that have had no time to find it";
    LivenessBlind: "dispatcher", "a silent node is never given up";
    SecretsToAll: "dispatcher", "every node gets every secret";
    SecretsStay: "dispatcher", "a node keeps the secrets of tasks that are gone";
    DrainImpatient: "dispatcher", "a task is stopped before its name is gone";
    ViewServesAll: "dispatcher", "tasks that do not run are in names and load balancers";
    AgentIgnoresRemoval: "agent", "a task that is no longer named goes on running";
    AgentDropsNews: "agent", "what happens while a report is on its way is not told";
    AgentStopsLate: "agent", "a task is told to be stopped while it runs";
}

/// What a program with planted bugs carries, and no other: a text to look for in it.
pub const MARK: &str = "this program has bugs that were planted on purpose";

#[cfg(feature = "planted-bugs")]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Chooses the bug that this thread lives with.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    std::hint::black_box(MARK);
    ACTIVE.set(bug);
}

/// Whether this thread lives with a bug.
#[cfg(feature = "planted-bugs")]
pub fn planted(bug: Bug) -> bool {
    ACTIVE.get() == Some(bug)
}

/// Whether this thread lives with a bug: it does not.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub const fn planted(_: Bug) -> bool {
    false
}
