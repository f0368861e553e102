//! The replicated state on this manager: applied by consensus, read by everyone, changed by proposing.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use shoal_api::{
    ServiceId, TaskState,
    object::{Batch, Change, Object, ObjectKey, Service, Task},
    planted::{Bug, planted},
    spec::TaskSpec,
    wire::{
        self, append_put, decode_batch_with, decode_wishes, encode_batch, encode_batch_lean,
        encode_wishes, object::Kind,
    },
};
use tokio::sync::{broadcast, watch};

use super::raft::{FrozenState, ProposeError, Raft, StateMachine};
use crate::core::{
    consensus::{
        LogIndex,
        wire::{Malformed, Reader, Writer},
    },
    state::{Event, Rejected, State, specs_of_service},
};

/// Notices that a watcher may be behind; one that is further behind looks at everything again.
const NOTICES_MAX: usize = 1024;

/// The state that consensus applies batches to; readers look at it or take copies, which is cheap.
///
/// What is changed while nobody has a copy is changed in place. A copy that is kept costs whoever writes next, so those who
/// wait for changes keep none.
#[derive(Debug, Clone)]
pub struct Replica {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// What was changed and not yet told. Whoever holds it has taken it before the state.
    untold: Mutex<Vec<Event>>,
    state: RwLock<State>,
    notices: broadcast::Sender<Notice>,
    nodes: watch::Sender<()>,
}

/// Something happened to the state.
#[derive(Debug, Clone)]
pub enum Notice {
    /// Batches were applied.
    Applied {
        /// The state after them.
        state: State,
        /// What they changed, in order.
        events: Arc<[Event]>,
    },
    /// Secrets and configs were made, and nothing else: whoever will use them comes later. No state comes along, so that
    /// nobody holds one which the next write would have to copy.
    Made(Arc<[Event]>),
    /// Anything may have changed: another state was taken over, or the watcher was too slow.
    Everything {
        /// The state as it is now.
        state: State,
    },
}

impl Notice {
    /// The state after what happened, if that concerns anything that was there before.
    pub fn state(&self) -> Option<&State> {
        match self {
            Self::Applied { state, .. } | Self::Everything { state } => Some(state),
            Self::Made(_) => None,
        }
    }
}

/// Sees all that is applied, in order.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    notices: broadcast::Receiver<Notice>,
}

impl Watch {
    /// Waits for the next thing to happen.
    pub async fn next(&mut self) -> Notice {
        match self.notices.recv().await {
            Ok(notice) => notice,
            Err(_) => self.shared.everything(),
        }
    }

    /// What has happened already and was not yet seen.
    pub fn try_next(&mut self) -> Option<Notice> {
        match self.notices.try_recv() {
            Ok(notice) => Some(notice),
            Err(broadcast::error::TryRecvError::Lagged(_)) => Some(self.shared.everything()),
            Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed) => {
                None
            }
        }
    }
}

/// Sees that nodes or the cluster itself have changed, or may have; nothing else wakes it.
#[derive(Debug)]
pub struct NodeWatch {
    shared: Arc<Shared>,
    changes: watch::Receiver<()>,
}

impl NodeWatch {
    /// Waits for the next change, or for several; gives the state after them.
    pub async fn next(&mut self) -> State {
        let changed = self.changes.changed().await;
        changed.expect("what we share holds the sender");
        self.shared.read().clone()
    }
}

fn concerns_nodes(event: &Event) -> bool {
    matches!(event, Event::Cluster(_) | Event::Node(_))
}

/// Whether this is a secret or a config that was just made.
fn is_made(event: &Event) -> bool {
    match event {
        Event::Secret(delta) => delta.is_created(),
        Event::Config(delta) => delta.is_created(),
        _ => false,
    }
}

impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state
            .read()
            .expect("nobody panics while holding the state")
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state
            .write()
            .expect("nobody panics while holding the state")
    }

    fn untold(&self) -> MutexGuard<'_, Vec<Event>> {
        self.untold.lock().expect("nobody panics while holding it")
    }

    fn tell(&self, untold: &mut Vec<Event>) {
        if untold.is_empty() {
            return;
        }
        let events: Arc<[Event]> = std::mem::take(untold).into();
        if events.iter().any(concerns_nodes) {
            self.nodes.send_replace(());
        }
        if self.notices.receiver_count() == 0 {
            return;
        }
        let notice = if events.iter().all(is_made) {
            Notice::Made(events)
        } else {
            let state = self.read().clone();
            Notice::Applied { state, events }
        };
        let _ = self.notices.send(notice); // nobody may be watching any more
    }

    fn replace(&self, state: State) {
        let mut untold = self.untold();
        self.tell(&mut untold);
        *self.write() = state;
        self.nodes.send_replace(());
        let _ = self.notices.send(self.everything()); // nobody may be watching
    }

    fn everything(&self) -> Notice {
        let state = self.read().clone();
        Notice::Everything { state }
    }
}

impl Default for Replica {
    fn default() -> Self {
        let (notices, _) = broadcast::channel(NOTICES_MAX);
        Self {
            shared: Arc::new(Shared {
                untold: Mutex::default(),
                state: RwLock::default(),
                notices,
                nodes: watch::Sender::new(()),
            }),
        }
    }
}

impl Replica {
    /// The state as of the last batch applied here.
    pub fn state(&self) -> State {
        self.shared.read().clone()
    }

    /// Looks at the state as of the last batch applied here, which waits for `look`: for what is quick and done often.
    pub fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.shared.read())
    }

    /// Watches from now on. Take the state afterwards, then nothing is missed.
    pub fn watch(&self) -> Watch {
        Watch {
            shared: Arc::clone(&self.shared),
            notices: self.shared.notices.subscribe(),
        }
    }

    /// The state, and a watch that tells what is not in it, no less and no more.
    pub fn watch_state(&self) -> (State, Watch) {
        let mut untold = self.shared.untold();
        self.shared.tell(&mut untold);
        (self.state(), self.watch())
    }
}

impl StateMachine for Replica {
    fn apply(&mut self, index: LogIndex, data: &[u8]) -> Result<(), Rejected> {
        let gone = RefCell::new(None);
        // Nobody else writes, so that what is looked up here is still so below.
        let batch = self.look(|state| {
            decode_batch_with(data, &|service, version| {
                let spec = state.task_spec(service, version).cloned();
                if spec.is_none() {
                    gone.replace(Some((service.clone(), version)));
                }
                spec
            })
        });
        let mut untold = self.shared.untold();
        let result = match (&batch, gone.take()) {
            (Ok(batch), _) => self.shared.write().apply(index, batch),
            // The proposer left the spec out because it had it; an entry in between took away all who used it.
            (Err(_), Some((service, version))) => Err(Rejected::SpecGone { service, version }),
            (Err(error), None) => Err(Rejected::Reference(format!(
                "a batch that cannot be read: {error}"
            ))),
        };
        match result {
            Ok(events) => {
                untold.extend(events);
                Ok(())
            }
            Err(rejected) => {
                tracing::debug!(raft.index = index, %rejected, "a batch was refused");
                Err(rejected)
            }
        }
    }

    fn tell(&mut self) {
        self.shared.tell(&mut self.shared.untold());
    }

    fn freeze(&self) -> FrozenState {
        let state = self.state();
        Box::new(move |out| write_state(&state, out))
    }

    fn snapshot_entries(&self) -> Option<u64> {
        self.look(|state| Some(state.cluster()?.spec.snapshot_interval))
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String> {
        let state = decode_state(snapshot)?;
        self.shared.replace(state);
        Ok(())
    }
}

/// Writes a whole state. Tasks come last, without the specs that their services have.
pub fn encode_state(state: &State) -> Vec<u8> {
    let mut out = Writer::default();
    write_state(state, &mut out);
    out.finish()
}

/// As [`encode_state`]. A state may be large: no more than one of its objects is in memory twice.
fn write_state(state: &State, out: &mut Writer) {
    let specs = specs(state.services().map(AsRef::as_ref));
    let lean = |task: &Arc<Task>| {
        let mut message: Box<wire::Task> = boxed(task);
        if specs.contains_key(&(task.service.clone(), task.spec_version)) {
            message.spec = None;
        }
        Kind::Task(message)
    };
    let is_kept = |task: &&Arc<Task>| {
        !(planted(Bug::SnapshotLosesTasks) && task.status.state < TaskState::Assigned)
    };
    let tasks = state.tasks().filter(is_kept).map(lean);
    out.number(state.index());
    out.part(|out| write_objects(objects_but_tasks(state), out.buffer()));
    out.part(|out| write_objects(tasks, out.buffer()));
    out.bytes(&encode_wishes(&state.wishes()));
}

/// All objects but tasks as messages. Cluster first, then by kind and id.
fn objects_but_tasks(state: &State) -> impl Iterator<Item = Kind> {
    let cluster = state.cluster().map(|o| Kind::Cluster(boxed(o)));
    cluster
        .into_iter()
        .chain(state.nodes().map(|o| Kind::Node(boxed(o))))
        .chain(state.networks().map(|o| Kind::Network(boxed(o))))
        .chain(state.secrets().map(|o| Kind::Secret(o.as_ref().into())))
        .chain(state.configs().map(|o| Kind::Config(o.as_ref().into())))
        .chain(state.services().map(|o| Kind::Service(boxed(o))))
}

fn boxed<'o, T, W: From<&'o T>>(object: &'o Arc<T>) -> Box<W> {
    Box::new(object.as_ref().into())
}

/// Writes objects as one batch that puts them all.
fn write_objects(objects: impl Iterator<Item = Kind>, out: &mut Vec<u8>) {
    out.extend(encode_batch(&Batch {
        actor: shoal_api::Actor::User,
        at: shoal_api::Timestamp::ZERO,
        changes: Vec::new(),
        wish: None,
    }));
    for object in objects {
        append_put(out, object);
    }
}

/// What tasks of these services run, by service and version of its spec.
fn specs<'s>(
    services: impl Iterator<Item = &'s Service>,
) -> BTreeMap<(ServiceId, u64), Arc<TaskSpec>> {
    let of_service = |service: &'s Service| {
        let specs = specs_of_service(service);
        specs.map(|(version, spec)| ((service.id.clone(), version), Arc::new(spec.clone())))
    };
    services.flat_map(of_service).collect()
}

fn decode_state(bytes: &[u8]) -> Result<State, String> {
    let malformed = |error: Malformed| error.to_string();
    let mut input = Reader::new(bytes);
    let index = input.number().map_err(malformed)?;
    let others = decode_batch_with(input.bytes().map_err(malformed)?, &|_, _| None)
        .map_err(|e| e.to_string())?;
    let mut objects = as_objects(others);
    let specs = specs(objects.iter().filter_map(|object| match object {
        Object::Service(service) => Some(service),
        _ => None,
    }));
    let tasks = decode_batch_with(input.bytes().map_err(malformed)?, &|service, version| {
        specs.get(&(service.clone(), version)).cloned()
    });
    objects.extend(as_objects(tasks.map_err(|error| error.to_string())?));
    let mut state = State::restore(index, objects).map_err(|rejected| rejected.to_string())?;
    // Snapshots were written without them once.
    if !input.is_empty() {
        let wishes = decode_wishes(input.bytes().map_err(malformed)?);
        state.set_wishes(wishes.map_err(|error| error.to_string())?);
    }
    Ok(state)
}

fn as_objects(batch: Batch) -> Vec<Object> {
    let object = |change| match change {
        Change::Put { object, .. } => Some(*object),
        Change::Delete { .. } => None,
    };
    batch.changes.into_iter().filter_map(object).collect()
}

/// The state with the way to change it.
#[derive(Debug, Clone)]
pub struct Store {
    replica: Replica,
    raft: Raft,
}

impl Store {
    /// Puts together a replica and the consensus that applies to it.
    pub fn new(replica: Replica, raft: Raft) -> Self {
        Self { replica, raft }
    }

    /// The consensus behind it.
    pub fn raft(&self) -> &Raft {
        &self.raft
    }

    /// The state as of the last batch applied here. May be behind the leader's.
    pub fn state(&self) -> State {
        self.replica.state()
    }

    /// The state with everything in it that anybody was told before this call.
    pub async fn latest(&self) -> Result<State, ProposeError> {
        self.raft.read_barrier().await?;
        Ok(self.state())
    }

    /// Watches from now on. Take the state afterwards, then nothing is missed.
    pub fn watch(&self) -> Watch {
        self.replica.watch()
    }

    /// The state, and a watch that tells what is not in it, no less and no more.
    pub fn watch_state(&self) -> (State, Watch) {
        self.replica.watch_state()
    }

    /// Watches nodes and the cluster itself from now on. Take the state afterwards, then nothing is missed.
    pub fn watch_nodes(&self) -> NodeWatch {
        let shared = Arc::clone(&self.replica.shared);
        let changes = shared.nodes.subscribe();
        NodeWatch { shared, changes }
    }

    /// Proposes a batch; returns once it is applied here.
    pub async fn propose(&self, batch: &Batch) -> Result<LogIndex, ProposeError> {
        let data = self.look(|state| {
            encode_batch_lean(batch, &|service, version| {
                state.task_spec(service, version).cloned()
            })
        });
        self.raft.propose(data).await
    }

    /// The object of a key, as last applied here.
    pub fn object(&self, key: &ObjectKey) -> Option<Object> {
        self.look(|state| state.object(key))
    }

    /// Looks at the state as of the last batch applied here, see [`Replica::look`].
    pub fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        self.replica.look(look)
    }
}

#[cfg(test)]
mod tests {
    use shoal_api::{Actor, object::Expect};

    use super::*;
    use crate::core::{control, fixture::service, world::World};

    fn as_batch(objects: Vec<Object>) -> Batch {
        let put = |object| Change::Put {
            object: Box::new(object),
            expect: Expect::Absent,
        };
        Batch {
            actor: Actor::User,
            at: shoal_api::Timestamp::ZERO,
            changes: objects.into_iter().map(put).collect(),
            wish: None,
        }
    }

    fn replica(state: State) -> Replica {
        let replica = Replica::default();
        replica.shared.replace(state);
        replica
    }

    #[test]
    fn a_report_on_a_service_that_is_gone_is_refused_alike_everywhere() {
        let mut world = World::new(&["n1"]);
        let id = world.create(service("web", 1));
        world.settle();
        let before = world.state.clone();
        let mut task = before
            .tasks_of_service(&id)
            .next()
            .unwrap()
            .as_ref()
            .clone();
        task.status.state = TaskState::Failed;
        let report = Batch {
            actor: Actor::Agent,
            at: world.now,
            changes: vec![Change::Put {
                expect: Expect::Version(task.meta.version),
                object: Box::new(Object::Task(task)),
            }],
            wish: None,
        };
        let report = encode_batch_lean(&report, &|service, version| {
            before.task_spec(service, version).cloned()
        });
        world
            .user(|state, cx| control::remove_service(state, cx, &id))
            .unwrap();
        world.settle();
        assert_eq!(world.state.tasks_of_service(&id).count(), 0);

        let mut old_hand = replica(world.state.clone());
        let mut newcomer = Replica::default();
        newcomer.restore(&encode_state(&old_hand.state())).unwrap();
        let index = world.state.index() + 1;
        let refused = old_hand.apply(index, &report).unwrap_err();
        assert!(
            refused.is_stale()
                && matches!(&refused, Rejected::SpecGone { service, .. } if *service == id)
        );
        assert_eq!(newcomer.apply(index, &report), Err(refused));
        assert!(old_hand.state().is_same(&newcomer.state()));
        assert_eq!(old_hand.state().snapshot(), world.state.snapshot());
        // Who has the spec yet takes the same bytes.
        assert_eq!(replica(before.clone()).apply(index, &report), Ok(()));
    }

    #[test]
    fn a_state_is_read_as_it_was_written() {
        let mut world = World::new(&["n1", "n2"]);
        for number in 0..3 {
            let spec = shoal_api::spec::ConfigSpec {
                annotations: shoal_api::spec::Annotations {
                    name: format!("config{number}"),
                    ..Default::default()
                },
                data: vec![number; 300],
                templating: None,
            };
            world
                .user(|state, cx| control::create_config(state, cx, spec))
                .unwrap();
        }
        world.create(service("web", 3));
        world.settle();
        assert!(world.state.tasks().count() >= 3);
        let written = encode_state(&world.state);
        let read = decode_state(&written).unwrap();
        assert_eq!(read.snapshot(), world.state.snapshot());
        assert_eq!(encode_state(&read), written);
        let spec = |task: &Arc<Task>| Arc::as_ptr(&task.spec);
        let specs: std::collections::BTreeSet<_> = read.tasks().map(spec).collect();
        assert_eq!(specs.len(), 1, "tasks of one version share their spec");
    }

    #[test]
    fn a_newcomer_remembers_what_was_granted() {
        let mut old_hand = replica(World::new(&["n1"]).state);
        let about = ObjectKey::Cluster;
        let wish = |id| shoal_api::object::Wish {
            id,
            about: about.clone(),
            since: None,
        };
        let batch = |id| {
            encode_batch(&Batch {
                wish: Some(wish(id)),
                ..as_batch(Vec::new())
            })
        };
        let index = old_hand.state().index();
        old_hand.apply(index + 1, &batch(7)).unwrap();
        let mut newcomer = Replica::default();
        newcomer.restore(&encode_state(&old_hand.state())).unwrap();
        assert_eq!(newcomer.state().granted(7), Some((index + 1, &about)));
        let refused = newcomer.apply(index + 2, &batch(7)).unwrap_err();
        assert!(matches!(refused, Rejected::Granted { .. }), "{refused}");
        assert_eq!(newcomer.apply(index + 3, &batch(8)), Ok(()));
    }

    #[test]
    fn what_is_committed_together_is_told_at_once_and_a_watch_continues_its_state() {
        let mut replica = replica(World::new(&["n1"]).state);
        let secret = |id: &str| {
            Object::Secret(shoal_api::object::Secret {
                id: id.parse().unwrap(),
                meta: Default::default(),
                spec: shoal_api::spec::SecretSpec {
                    annotations: shoal_api::spec::Annotations {
                        name: id.to_owned(),
                        ..Default::default()
                    },
                    ..Default::default()
                },
            })
        };
        let batch = |object| encode_batch(&as_batch(vec![object]));
        let index = replica.state().index();
        let mut before = replica.watch();
        replica.apply(index + 1, &batch(secret("a"))).unwrap();
        replica.apply(index + 2, &batch(secret("b"))).unwrap();
        assert!(before.try_next().is_none());
        // Whoever comes now sees both in the state, and is not told of them.
        let (state, mut after) = replica.watch_state();
        assert_eq!(state.secrets().count(), 2);
        let Some(Notice::Made(events)) = before.try_next() else {
            panic!("two secrets were made")
        };
        assert_eq!(events.len(), 2);
        replica.tell();
        assert!(before.try_next().is_none() && after.try_next().is_none());

        // A change of what was there brings the state along.
        let mut node = state.nodes().next().unwrap().as_ref().clone();
        node.spec.availability = shoal_api::spec::Availability::Pause;
        let change = Change::Put {
            expect: Expect::Version(node.meta.version),
            object: Box::new(Object::Node(node)),
        };
        let pause = Batch {
            changes: vec![change],
            ..as_batch(Vec::new())
        };
        replica.apply(index + 3, &batch(secret("c"))).unwrap();
        replica.apply(index + 4, &encode_batch(&pause)).unwrap();
        replica.tell();
        let Some(Notice::Applied { state, events }) = after.try_next() else {
            panic!("a node was changed")
        };
        assert_eq!((state.index(), events.len()), (index + 4, 2));
        // Nothing that was copied is changed under its owner.
        replica.apply(index + 5, &batch(secret("d"))).unwrap();
        assert_eq!(state.secrets().count(), 3);
        assert_eq!(replica.state().secrets().count(), 4);
    }

    #[test]
    fn bytes_that_are_no_batch_are_refused() {
        let refused = Replica::default().apply(1, &[0xff; 9]).unwrap_err();
        assert!(matches!(refused, Rejected::Reference(_)), "{refused}");
    }
}
