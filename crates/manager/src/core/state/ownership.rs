//! One fact, one writer: which actor may change which field.
//!
//! The tables below name every field of every object, so a new field does not compile until somebody owns it.

use shoal_api::{
    Actor, TaskState, may_move,
    object::{
        Cluster, Config, Network, Node, Object, ObjectKey, Secret, Service, Task, UpdateState,
    },
};

use super::{Rejected, history};

/// A field, or an action, that the actor does not own.
type Foreign = &'static str;

/// Returns the first field that differs and is not owned by `actor`.
macro_rules! owned {
    ($type:ident, $actor:expr, $old:expr, $new:expr, { $($field:ident: [$($owner:ident),*]),* $(,)? }) => {{
        let ($type { id: _, meta: _, $($field: _),* }, old, new, actor): (_, &$type, &$type, Actor) =
            ($new, $old, $new, $actor);
        $(
            let owners: &[Actor] = &[$(Actor::$owner),*];
            if !owners.contains(&actor) && old.$field != new.$field {
                return Err(stringify!($field));
            }
        )*
        Ok(())
    }};
}

/// Checks that `actor` may make `new` of `old`.
pub(super) fn check(
    actor: Actor,
    key: &ObjectKey,
    old: Option<&Object>,
    new: Option<&Object>,
) -> Result<(), Rejected> {
    let verdict = match (old, new) {
        (Some(old), Some(new)) => update(actor, old, new),
        (None, Some(new)) => create(actor, new),
        (Some(old), None) => delete(actor, old),
        (None, None) => Ok(()),
    };
    verdict.map_err(|field| Rejected::NotOwner {
        actor,
        key: key.clone(),
        field,
    })
}

fn update(actor: Actor, old: &Object, new: &Object) -> Result<(), Foreign> {
    match (old, new) {
        (Object::Node(old), Object::Node(new)) => node(actor, old, new),
        (Object::Service(old), Object::Service(new)) => service(actor, old, new),
        (Object::Task(old), Object::Task(new)) => task(actor, old, new),
        (Object::Network(old), Object::Network(new)) => owned!(Network, actor, old, new, {
            spec: [User],
            allocated: [Allocator],
        }),
        (Object::Secret(old), Object::Secret(new)) => {
            owned!(Secret, actor, old, new, { spec: [User] })
        }
        (Object::Config(old), Object::Config(new)) => {
            owned!(Config, actor, old, new, { spec: [User] })
        }
        (Object::Cluster(old), Object::Cluster(new)) => cluster(actor, old, new),
        _ => Err("kind"),
    }
}

fn node(actor: Actor, old: &Node, new: &Node) -> Result<(), Foreign> {
    owned!(Node, actor, old, new, {
        spec: [User],
        description: [Dispatcher],
        status: [Dispatcher],
        role: [Dispatcher],
        manager: [Dispatcher],
        availability_since: [User],
    })
}

fn service(actor: Actor, old: &Service, new: &Service) -> Result<(), Foreign> {
    if actor == Actor::Orchestrator && is_rollback(old, new) {
        return Ok(());
    }
    // What a user does to the spec ends the update in flight; how an update goes is not for users to say.
    if actor == Actor::User && old.update_status != new.update_status {
        let state = new.update_status.as_ref().map(|status| status.state);
        if !matches!(state, None | Some(UpdateState::RollbackStarted)) {
            return Err("update_status");
        }
    }
    owned!(Service, actor, old, new, {
        spec: [User],
        spec_version: [User],
        previous_spec: [User],
        previous_spec_version: [User],
        endpoint: [Allocator],
        update_status: [Orchestrator, User],
        job: [User],
        revision: [User],
        history: [User],
    })
}

/// Whether this is an automatic rollback: the one case in which a spec changes without its user.
fn is_rollback(old: &Service, new: &Service) -> bool {
    history::is_previous_restored(old, new)
        && new.previous_spec.is_none()
        && new.endpoint == old.endpoint
        && new.job == old.job
        && new
            .update_status
            .as_ref()
            .is_some_and(|status| status.state == UpdateState::RollbackStarted)
}

fn task(actor: Actor, old: &Task, new: &Task) -> Result<(), Foreign> {
    if old.status != new.status {
        let (from, to) = (old.status.state, new.status.state);
        let may = if from == to {
            speaks_for(actor, from) || explains_gate(actor, old, new)
        } else {
            may_move(actor, Some(from), Some(to))
        };
        if !may {
            return Err("status");
        }
    }
    // The scheduler chooses a node once; afterwards the task never moves.
    if old.node.is_some() && old.node != new.node {
        return Err("node");
    }
    if new.desired_state < old.desired_state {
        return Err("desired_state (lowered)");
    }
    owned!(Task, actor, old, new, {
        service: [],
        slot: [],
        node: [Scheduler],
        spec_version: [],
        spec: [],
        service_name: [],
        service_labels: [],
        desired_state: [Orchestrator],
        status: [Orchestrator, Allocator, Scheduler, Agent, Dispatcher],
        networks: [Allocator],
        ports: [Allocator],
        attempts: [],
        start_after: [],
        job_iteration: [],
        drained: [Dispatcher],
        assigned: [Scheduler],
    })
}

/// Whether this is an orchestrator that says why a prepared task is not let go yet.
fn explains_gate(actor: Actor, old: &Task, new: &Task) -> bool {
    let mut explained = old.status.clone();
    explained.err.clone_from(&new.status.err);
    actor == Actor::Orchestrator
        && (TaskState::Assigned..=TaskState::Ready).contains(&old.status.state)
        && new.desired_state == TaskState::Ready
        && explained == new.status
}

/// Whether `actor` may say more about a task that stays in a state, for instance why it waits there.
fn speaks_for(actor: Actor, state: TaskState) -> bool {
    match state {
        TaskState::New => actor == Actor::Allocator,
        TaskState::Pending => actor == Actor::Scheduler,
        _ => actor == Actor::Agent && !state.is_terminal(),
    }
}

fn cluster(actor: Actor, old: &Cluster, new: &Cluster) -> Result<(), Foreign> {
    if old.id != new.id {
        return Err("id");
    }
    owned!(Cluster, actor, old, new, {
        spec: [User],
        root_ca_cert: [User, Dispatcher],
        root_ca_key: [User, Dispatcher],
        worker_token: [User, Dispatcher],
        manager_token: [User, Dispatcher],
        blacklisted: [Dispatcher, User],
        departed: [Dispatcher, User],
        last_raft_id: [Dispatcher],
        unlock_key: [User],
        root_rotation: [User, Dispatcher],
    })
}

fn create(actor: Actor, new: &Object) -> Result<(), Foreign> {
    let (owners, born): (&[Actor], bool) = match new {
        // The first node comes with the cluster, every other one by joining.
        Object::Node(_) => (&[Actor::Dispatcher, Actor::User], true),
        Object::Service(o) => (
            &[Actor::User],
            o.endpoint.is_none() && o.update_status.is_none(),
        ),
        Object::Network(o) => (&[Actor::User], o.allocated.is_none()),
        Object::Secret(_) | Object::Config(_) | Object::Cluster(_) => (&[Actor::User], true),
        Object::Task(o) => {
            let bare = o.networks.is_empty() && o.ports.is_empty() && !o.drained;
            let may = may_move(actor, None, Some(o.status.state));
            return if may && bare { Ok(()) } else { Err("creation") };
        }
    };
    if owners.contains(&actor) && born {
        Ok(())
    } else {
        Err("creation")
    }
}

fn delete(actor: Actor, old: &Object) -> Result<(), Foreign> {
    let may = match old {
        Object::Node(_) => matches!(actor, Actor::User | Actor::Dispatcher),
        Object::Service(_) | Object::Network(_) | Object::Secret(_) | Object::Config(_) => {
            actor == Actor::User
        }
        Object::Task(task) => may_move(actor, Some(task.status.state), None),
        Object::Cluster(_) => false,
    };
    if may { Ok(()) } else { Err("deletion") }
}
