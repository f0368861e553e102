//! How anything ever changes: a batch is checked as a whole and applied as a whole, or not at all.

use std::{collections::BTreeSet, sync::Arc};

use shoal_api::{
    Actor, ServiceId, Timestamp,
    object::{Batch, Change, Expect, Object, ObjectKey, Service, Task},
    planted::{Bug, planted},
    spec::TaskSpec,
};

use super::{
    Delta, Event, LogIndex, Rejected, State, addresses, claim, ownership, ports, references,
};

impl State {
    /// Applies the batch at `index` of the log and tells what changed.
    ///
    /// The result depends on the state, the index and the batch alone, so it is the same on every manager.
    ///
    /// # Errors
    /// The first rule that the batch breaks; then nothing has changed but [`State::index`].
    pub fn apply(&mut self, index: LogIndex, batch: &Batch) -> Result<Vec<Event>, Rejected> {
        debug_assert!(index >= self.index, "the log is applied in order");
        self.index = index;
        if let Some(wish) = &batch.wish {
            self.wishes.check(wish)?;
        }
        let events = match batch.changes.as_slice() {
            // Refused before anything is changed; a copy would have to be copied in part.
            [change] => vec![self.apply_change(batch.actor, batch.at, change)?],
            changes => {
                let mut next = self.clone();
                let change = |change| next.apply_change(batch.actor, batch.at, change);
                let events = changes.iter().map(change).collect::<Result<_, _>>()?;
                *self = next;
                events
            }
        };
        self.time = self.time.max(batch.at);
        if let Some(wish) = &batch.wish {
            self.wishes.remember(index, wish.id, wish.about.clone());
        }
        Ok(events)
    }

    /// Makes the state that a snapshot at `index` describes.
    ///
    /// # Errors
    /// The first object that contradicts another one.
    pub fn restore(index: LogIndex, objects: Vec<Object>) -> Result<Self, Rejected> {
        let mut state = Self {
            index,
            ..Self::default()
        };
        for object in objects {
            let key = object.key();
            state.time = state.time.max(object.meta().updated_at);
            state.exchange_claims(&key, None, Some(&object))?;
            state.store(None, Some(object))?;
        }
        Ok(state)
    }

    /// Applies one change; if it is refused nothing has changed.
    fn apply_change(
        &mut self,
        actor: Actor,
        at: Timestamp,
        change: &Change,
    ) -> Result<Event, Rejected> {
        let (key, expect, new) = match change {
            Change::Put { object, expect } => (object.key(), *expect, Some(object.as_ref())),
            Change::Delete { key, expect } => (key.clone(), *expect, None),
        };
        let old = self.object(&key);
        let found = old.as_ref().map(|object| object.meta().version);
        let expected = match expect {
            Expect::Absent => None,
            Expect::Version(version) => Some(version),
        };
        let is_forgiven = planted(Bug::VersionUnchecked) && found.is_some() && expected.is_some();
        if (found != expected && !is_forgiven) || (found.is_none() && new.is_none()) {
            return Err(Rejected::Stale {
                key,
                expected,
                found,
            });
        }
        ownership::check(actor, &key, old.as_ref(), new)?;
        self.check_rules(&key, old.as_ref(), new)?;
        self.check_specs(new)?;
        ports::check(self, old.as_ref(), new)?;
        addresses::check(self, old.as_ref(), new)?;
        self.exchange_claims(&key, old.as_ref(), new)?;
        let new = new.map(|object| {
            let mut object = object.clone();
            let index = self.index;
            let meta = object.meta_mut();
            meta.version = index;
            meta.created_at = old.as_ref().map_or(at, |old| old.meta().created_at);
            meta.updated_at = at;
            object
        });
        self.store(old, new)
    }

    /// Rules that are neither about owners nor about claims.
    fn check_rules(
        &self,
        key: &ObjectKey,
        old: Option<&Object>,
        new: Option<&Object>,
    ) -> Result<(), Rejected> {
        let illegal = |rule| {
            Err(Rejected::Illegal {
                key: key.clone(),
                rule,
            })
        };
        match (old, new) {
            (None, Some(Object::Task(task)))
                if self.service(&task.service).is_none() && !task.is_attachment() =>
            {
                illegal("its service does not exist")
            }
            (None, Some(Object::Task(task)))
                if task
                    .node
                    .as_ref()
                    .is_some_and(|node| self.node(node).is_none()) =>
            {
                illegal("its node does not exist")
            }
            (Some(Object::Task(old)), Some(Object::Task(new)))
                if new
                    .node
                    .as_ref()
                    .is_some_and(|node| self.node(node).is_none())
                    && old.node.is_none() =>
            {
                illegal("its node does not exist")
            }
            (None, Some(Object::Network(network)))
                if network.spec.ingress && self.ingress_network().is_some() =>
            {
                illegal("there is an ingress network already")
            }
            (Some(old), None) => references::check_unused(self, old),
            (old, Some(new)) if old.is_none_or(|old| !same_spec(old, new)) => {
                references::check_targets(self, new)
            }
            _ => Ok(()),
        }
    }

    /// That no version of a spec gets a second one.
    fn check_specs(&self, new: Option<&Object>) -> Result<(), Rejected> {
        match new {
            Some(Object::Service(service)) => {
                let specs: Vec<_> = specs_of_service(service).collect();
                if let [(now, spec), (before, old)] = specs.as_slice()
                    && now == before
                    && spec != old
                {
                    return Err(two_specs(&service.id));
                }
                let mut specs = specs.into_iter();
                specs.try_for_each(|(version, spec)| self.check_spec(&service.id, version, spec))
            }
            Some(Object::Task(task)) => {
                self.check_spec(&task.service, task.spec_version, &task.spec)
            }
            _ => Ok(()),
        }
    }

    fn check_spec(
        &self,
        service: &ServiceId,
        version: u64,
        spec: &(impl SpecRef + ?Sized),
    ) -> Result<(), Rejected> {
        let known = self.task_spec(service, version);
        if known.is_some_and(|known| !spec.is(known)) {
            return Err(two_specs(service));
        }
        Ok(())
    }

    fn exchange_claims(
        &mut self,
        key: &ObjectKey,
        old: Option<&Object>,
        new: Option<&Object>,
    ) -> Result<(), Rejected> {
        let old = old.map_or_else(BTreeSet::new, claim::claims_of);
        let new = new.map_or_else(BTreeSet::new, claim::claims_of);
        claim::exchange(&mut self.claims, key, &old, &new)
    }

    /// Puts `new` in the place of `old` and brings the indexes up to date.
    fn store(&mut self, old: Option<Object>, new: Option<Object>) -> Result<Event, Rejected> {
        /// Replaces one entry and returns what happened.
        macro_rules! replace {
            ($table:ident, $kind:ident, $old:ident, $new:ident) => {{
                let delta = match $new {
                    Some(object) => {
                        let new = Arc::new(object);
                        let old = self.$table.insert(new.id.clone(), new.clone());
                        Delta {
                            old,
                            new: Some(new),
                        }
                    }
                    None => Delta {
                        old: $old.and_then(|object| self.$table.remove(&object.id)),
                        new: None,
                    },
                };
                Event::$kind(delta)
            }};
        }
        /// Unwraps the same kind from before and after.
        macro_rules! both {
            ($kind:ident) => {
                (
                    old.and_then(|o| {
                        if let Object::$kind(o) = o {
                            Some(o)
                        } else {
                            None
                        }
                    }),
                    new.and_then(|o| {
                        if let Object::$kind(o) = o {
                            Some(o)
                        } else {
                            None
                        }
                    }),
                )
            };
        }
        let kind = old.as_ref().or(new.as_ref()).map(Object::key);
        Ok(match kind.expect("something is stored or removed") {
            ObjectKey::Node(_) => {
                let (old, new) = both!(Node);
                replace!(nodes, Node, old, new)
            }
            ObjectKey::Network(_) => {
                let (old, new) = both!(Network);
                replace!(networks, Network, old, new)
            }
            ObjectKey::Secret(_) => {
                let (old, new) = both!(Secret);
                replace!(secrets, Secret, old, new)
            }
            ObjectKey::Config(_) => {
                let (old, new) = both!(Config);
                replace!(configs, Config, old, new)
            }
            ObjectKey::Cluster => {
                let (_, new) = both!(Cluster);
                let new = new.map(Arc::new);
                let old = std::mem::replace(&mut self.cluster, new.clone());
                Event::Cluster(Delta { old, new })
            }
            ObjectKey::Service(_) => {
                let (old, new) = both!(Service);
                if let Some(new) = &new {
                    for (version, spec) in specs_of_service(new) {
                        self.retain_spec(&new.id, version, spec)?;
                    }
                }
                if let Some(old) = &old {
                    for (version, _) in specs_of_service(old) {
                        self.release_spec(&old.id, version);
                    }
                }
                match &new {
                    Some(new) if !new.spec.depends_on.is_empty() => {
                        self.dependents.insert(new.id.clone(), ());
                    }
                    _ => {
                        let id = old.as_ref().or(new.as_ref()).map(|service| &service.id);
                        id.and_then(|id| self.dependents.remove(id));
                    }
                }
                replace!(services, Service, old, new)
            }
            ObjectKey::Task(_) => {
                let (old, mut new) = both!(Task);
                let version = |task: &Task| (task.service.clone(), task.spec_version);
                match (&old, &mut new) {
                    // The same use of the same spec.
                    (Some(old), Some(new))
                        if version(old) == version(new) && new.spec.is(&old.spec) =>
                    {
                        new.spec = old.spec.clone();
                    }
                    (old, new) => {
                        if let Some(new) = new {
                            new.spec =
                                self.retain_spec(&new.service, new.spec_version, &new.spec)?;
                        }
                        if let Some(old) = old {
                            self.release_spec(&old.service, old.spec_version);
                        }
                    }
                }
                if let Some(new) = &mut new {
                    self.share_with_siblings(new);
                }
                let new = new.map(Arc::new);
                self.index_task(old.as_ref(), new.as_ref());
                let old = match &new {
                    Some(new) => self.tasks.insert(new.id.clone(), new.clone()),
                    None => old.and_then(|old| self.tasks.remove(&old.id)),
                };
                Event::Task(Delta { old, new })
            }
        })
    }

    /// Lets a task hold the same copies as its siblings of what is the same, since there may be very many.
    fn share_with_siblings(&self, task: &mut Task) {
        let sibling = self.tasks_of_service(&task.service).next().cloned();
        if let Some(sibling) = sibling {
            task.service = sibling.service.clone();
            if task.service_name == sibling.service_name {
                task.service_name = sibling.service_name.clone();
            }
            for (text, known) in [
                (&mut task.status.message, &sibling.status.message),
                (&mut task.status.err, &sibling.status.err),
            ] {
                if text == known {
                    text.clone_from(known);
                }
            }
        }
    }

    fn index_task(&mut self, old: Option<&Task>, new: Option<&Arc<Task>>) {
        let waits = |task: &Task| task.status.state < shoal_api::TaskState::Assigned;
        if let Some(task) = old {
            if new.is_none() {
                self.tasks_by_service.remove(&task.service, &task.id);
            }
            if let Some(node) = &task.node
                && new.is_none()
            {
                self.tasks_by_node.remove(&(node.clone(), task.id.clone()));
            }
            if waits(task) && new.is_none_or(|new| new.status.state != task.status.state) {
                let name = (task.status.state, task.service.clone());
                self.waiting.remove(&name, &task.id);
            }
        }
        if let Some(task) = new {
            if old.is_none() {
                self.tasks_by_service
                    .insert(task.service.clone(), task.id.clone(), ());
            }
            if let Some(node) = &task.node
                && old.is_none_or(|old| old.node.is_none())
            {
                self.tasks_by_node
                    .insert((node.clone(), task.id.clone()), ());
            }
            if waits(task) {
                let name = (task.status.state, task.service.clone());
                self.waiting.insert(name, task.id.clone(), task.clone());
            }
        }
    }

    /// Counts one more use of a spec and returns the copy that all its users share.
    fn retain_spec(
        &mut self,
        service: &ServiceId,
        version: u64,
        spec: &(impl SpecRef + ?Sized),
    ) -> Result<Arc<TaskSpec>, Rejected> {
        let key = (service.clone(), version);
        let (shared, uses) = match self.specs.get(&key) {
            Some((known, uses)) if spec.is(known) => (known.clone(), *uses),
            Some(_) => return Err(two_specs(service)),
            None => (spec.share(), 0),
        };
        self.specs.insert(key, (shared.clone(), uses + 1));
        Ok(shared)
    }

    fn release_spec(&mut self, service: &ServiceId, version: u64) {
        let key = (service.clone(), version);
        let Some((spec, uses)) = self.specs.get(&key) else {
            return;
        };
        if *uses > 1 {
            let entry = (spec.clone(), uses - 1);
            self.specs.insert(key, entry);
        } else {
            self.specs.remove(&key);
        }
    }
}

fn two_specs(service: &ServiceId) -> Rejected {
    let key = ObjectKey::Service(service.clone());
    let rule = "one spec version has two specs";
    Rejected::Illegal { key, rule }
}

/// A task spec by itself, or shared already.
trait SpecRef {
    fn is(&self, known: &Arc<TaskSpec>) -> bool;
    fn share(&self) -> Arc<TaskSpec>;
}

impl SpecRef for Arc<TaskSpec> {
    fn is(&self, known: &Arc<TaskSpec>) -> bool {
        Self::ptr_eq(self, known) || self == known
    }
    fn share(&self) -> Arc<TaskSpec> {
        self.clone()
    }
}

impl SpecRef for TaskSpec {
    fn is(&self, known: &Arc<TaskSpec>) -> bool {
        *self == **known
    }
    fn share(&self) -> Arc<TaskSpec> {
        Arc::new(self.clone())
    }
}

/// The specs that a service keeps, by version: the one in force and the one before.
pub(crate) fn specs_of_service(service: &Service) -> impl Iterator<Item = (u64, &TaskSpec)> {
    let now = (service.spec_version, &service.spec.task);
    let before = service.previous_spec.as_ref();
    [now]
        .into_iter()
        .chain(before.map(|spec| (service.previous_spec_version, &spec.task)))
}

fn same_spec(old: &Object, new: &Object) -> bool {
    match (old, new) {
        (Object::Service(old), Object::Service(new)) => {
            Arc::ptr_eq(&old.spec, &new.spec) || old.spec == new.spec
        }
        _ => false,
    }
}
