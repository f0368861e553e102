//! Control loops without their loops: each is a judgement from state to changes, and one pure machine runs them all.
//!
//! A reconciler keeps no state of its own: delays, windows and progress are derived from replicated facts, so a new
//! leader starts with everything dirty and needs no repair path. Time is a returned `wake_at`, never a sleeping task.

use std::collections::{BTreeMap, BTreeSet};

use shoal_api::{
    Actor, IdSource, Timestamp,
    object::{Batch, Change, Expect, Object, ObjectKey},
};

use super::state::{Event, LogIndex, State};

/// Bytes of one batch, about; a larger plan still goes out alone. Keeps log entries well below the transport's limits.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// What decisions may use besides the state.
pub struct Ctx<'a> {
    /// Now, by the leader's clock.
    pub now: Timestamp,
    /// Fresh ids.
    pub ids: &'a mut dyn IdSource,
}

/// What a reconciler wants.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// Changes that go together.
    pub changes: Vec<Change>,
    /// When to look again if nothing happens before.
    pub wake_at: Option<Timestamp>,
}

impl Plan {
    /// Looks again at `at`, or earlier if that was planned already.
    pub fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |planned| planned.min(at)));
    }

    /// Makes an object.
    pub fn create(&mut self, object: Object) {
        self.changes.push(Change::Put {
            object: Box::new(object),
            expect: Expect::Absent,
        });
    }

    /// Replaces an object; its `meta` is that of the version that was read.
    pub fn update(&mut self, object: Object) {
        let expect = Expect::Version(object.meta().version);
        self.changes.push(Change::Put {
            object: Box::new(object),
            expect,
        });
    }

    /// Deletes an object of which `version` was read.
    pub fn delete(&mut self, key: ObjectKey, version: LogIndex) {
        self.changes.push(Change::Delete {
            key,
            expect: Expect::Version(version),
        });
    }
}

/// A control loop's judgement.
pub trait Reconciler {
    /// What it looks at as one thing.
    type Key: Ord + Clone;
    /// In whose name it changes facts.
    const ACTOR: Actor;
    /// Takes note of an event before it is asked what it concerns; `state` is the one after it. For what is remembered as
    /// a matter of speed.
    fn observe(&self, _state: &State, _event: &Event) {}
    /// The keys that an event concerns.
    fn affected(&self, state: &State, event: &Event) -> Vec<Self::Key>;
    /// All keys that there are, for a leader that has just begun.
    fn all(&self, state: &State) -> Vec<Self::Key>;
    /// What to change about a key.
    fn reconcile(&self, state: &State, key: &Self::Key, cx: &mut Ctx<'_>) -> Plan;
}

/// A reconciler with its unfinished business.
///
/// How to drive it: `mark_all` on becoming leader; `observe` the events of every applied batch; `pass` when
/// [`Dirty::is_due`], propose what it returns, and do not call `pass` again before that batch has been applied, refused
/// or lost. On refusal or loss call `retry`.
#[derive(Debug)]
pub struct Dirty<R: Reconciler> {
    /// The judgement.
    pub reconciler: R,
    dirty: BTreeSet<R::Key>,
    deadlines: BTreeMap<R::Key, Timestamp>,
    /// Keys of the last pass that changed something.
    proposed: Vec<R::Key>,
}

impl<R: Reconciler> Dirty<R> {
    /// A reconciler that has nothing to do yet.
    pub fn new(reconciler: R) -> Self {
        Self {
            reconciler,
            dirty: BTreeSet::new(),
            deadlines: BTreeMap::new(),
            proposed: Vec::new(),
        }
    }

    /// Marks everything to be looked at and forgets the rest: the start of a leader.
    pub fn mark_all(&mut self, state: &State) {
        self.deadlines.clear();
        self.proposed.clear();
        self.dirty = self.reconciler.all(state).into_iter().collect();
    }

    /// Marks a key to be looked at.
    pub fn mark(&mut self, key: R::Key) {
        self.dirty.insert(key);
    }

    /// Marks the keys that wait for a time, because something else that they wait for may have happened.
    pub fn mark_waiting(&mut self) {
        self.dirty.extend(self.deadlines.keys().cloned());
    }

    /// Marks what an applied batch concerns; `state` is the one after it.
    pub fn observe(&mut self, state: &State, events: &[Event]) {
        for event in events {
            self.reconciler.observe(state, event);
            self.dirty.extend(self.reconciler.affected(state, event));
        }
    }

    /// Marks the keys of the last pass again, after its batch was refused or lost.
    pub fn retry(&mut self) {
        self.dirty.extend(self.proposed.drain(..));
    }

    /// When to run a pass at the latest; `now` if there is something to do.
    pub fn next_wake(&self, now: Timestamp) -> Option<Timestamp> {
        if self.dirty.is_empty() {
            self.deadlines.values().min().copied()
        } else {
            Some(now)
        }
    }

    /// Plans for all keys that are dirty or due and returns one batch, or `None` if nothing is to be changed.
    ///
    /// Each plan sees the ones before it on a scratch state, so that a hundred tasks get a hundred different addresses.
    /// Plans that touch one of `foreign` keys are put off; the keys that this pass touches are added there, so that the
    /// batches of several reconcilers, planned on the same state, cannot refuse each other.
    pub fn pass(
        &mut self,
        state: &State,
        cx: &mut Ctx<'_>,
        foreign: &mut BTreeSet<ObjectKey>,
    ) -> Option<Batch> {
        let now = cx.now;
        let due = self.deadlines.extract_if(.., |_, at| *at <= now);
        self.dirty.extend(due.map(|(key, _)| key));
        self.proposed.clear();

        let mut scratch = state.clone();
        let mut merged = Merged::default();
        let mut put_off = BTreeSet::new();
        while let Some(key) = self.dirty.pop_first() {
            let plan = self.reconciler.reconcile(&scratch, &key, cx);
            if plan
                .changes
                .iter()
                .any(|change| foreign.contains(&key_of(change)))
            {
                put_off.insert(key);
                continue;
            }
            match plan.wake_at {
                Some(at) => self.deadlines.insert(key.clone(), at),
                None => self.deadlines.remove(&key),
            };
            if plan.changes.is_empty() {
                continue;
            }
            let bytes = plan.changes.iter().map(bytes_of).sum::<usize>();
            if merged.bytes > 0 && merged.bytes + bytes > BATCH_BYTES_MAX {
                put_off.insert(key);
                break;
            }
            let batch = Batch {
                actor: R::ACTOR,
                at: now,
                changes: plan.changes,
                wish: None,
            };
            let index = scratch.index() + 1;
            if let Err(rejected) = scratch.apply(index, &batch) {
                // A reconciler that breaks the rules is a defect of ours; the others must go on all the same.
                tracing::error!(actor = ?R::ACTOR, %rejected, "a plan breaks the rules of the state");
                debug_assert!(false, "{:?}: {rejected}", R::ACTOR);
                continue;
            }
            merged.add(batch.changes, bytes);
            self.proposed.push(key);
        }
        self.dirty.append(&mut put_off);
        if merged.changes.is_empty() {
            return None;
        }
        foreign.extend(merged.places.into_keys());
        Some(Batch {
            actor: R::ACTOR,
            at: now,
            changes: merged.changes.into_iter().flatten().collect(),
            wish: None,
        })
    }
}

/// Changes of several plans as one batch: at most one change per object, expecting what the real state holds.
#[derive(Default)]
struct Merged {
    changes: Vec<Option<Change>>,
    places: BTreeMap<ObjectKey, usize>,
    bytes: usize,
}

impl Merged {
    fn add(&mut self, changes: Vec<Change>, bytes: usize) {
        self.bytes += bytes;
        for change in changes {
            let key = key_of(&change);
            let Some(place) = self.places.get(&key).copied() else {
                self.places.insert(key, self.changes.len());
                self.changes.push(Some(change));
                continue;
            };
            // The later change expects a version that exists on the scratch state only.
            let first = self.changes[place].take();
            let expect = first.as_ref().map(expect_of);
            self.changes[place] = match (change, expect) {
                (Change::Put { object, .. }, Some(expect)) => Some(Change::Put { object, expect }),
                (Change::Delete { .. }, Some(Expect::Absent)) => None,
                (Change::Delete { key, .. }, Some(expect)) => Some(Change::Delete { key, expect }),
                (change, None) => Some(change),
            };
        }
    }
}

fn key_of(change: &Change) -> ObjectKey {
    match change {
        Change::Put { object, .. } => object.key(),
        Change::Delete { key, .. } => key.clone(),
    }
}

fn expect_of(change: &Change) -> Expect {
    match change {
        Change::Put { expect, .. } | Change::Delete { expect, .. } => *expect,
    }
}

/// About how long a change is on the wire. Task specs travel once per version, so they do not count.
fn bytes_of(change: &Change) -> usize {
    /// Ids, times and messages of one object.
    const ROW_BYTES: usize = 512;
    match change {
        Change::Delete { .. } => 64,
        Change::Put { object, .. } => match object.as_ref() {
            Object::Secret(secret) => ROW_BYTES + secret.spec.data.len(),
            Object::Config(config) => ROW_BYTES + config.spec.data.len(),
            Object::Service(_) | Object::Cluster(_) => 8 * ROW_BYTES,
            Object::Node(_) | Object::Task(_) | Object::Network(_) => ROW_BYTES,
        },
    }
}
