//! What says that something has changed, for those who would otherwise ask again and again.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::{StreamExt, stream};
use shoal_api::{
    NodeId, ServiceId, TaskId,
    object::{NodeState, Task},
};
use shoal_docker_api::backend::ItemStream;
use shoal_manager::{Manager, State, core::state::Event, io::store::Notice};

/// Says whenever the cluster itself or one of its nodes has changed.
pub(super) fn of_nodes(manager: &Manager) -> ItemStream<()> {
    let changes = stream::unfold(manager.watch_nodes(), |mut watch| async move {
        watch.next().await;
        Some((Ok(()), watch))
    });
    changes.boxed()
}

/// Says whenever a service, one of its tasks or a node has changed. Ends when the service is gone and its last task has
/// stopped.
pub(super) fn of_service(manager: Arc<Manager>, id: &ServiceId) -> ItemStream<()> {
    let watch = manager.watch();
    let id = id.clone();
    // Where its tasks are on their way, as last told, and the version of that.
    let told = (None, BTreeMap::new());
    // What happens between two looks is one change: the watch hands out all of it.
    let changes = stream::unfold((watch, told), move |(mut watch, mut told)| {
        let (manager, id) = (Arc::clone(&manager), id.clone());
        async move {
            if is_gone(&manager.state(), &id) {
                return None;
            }
            let is_of = |change: &Event| match change {
                Event::Service(delta) => delta.any().id == id,
                Event::Task(delta) => delta.any().service == id,
                Event::Node(_) => true,
                _ => false,
            };
            loop {
                tokio::select! {
                    notice = watch.next() => match notice {
                        Notice::Applied { events, .. } if !events.iter().any(is_of) => {}
                        Notice::Made(_) => {}
                        _ => break,
                    },
                    (version, mut passing) = manager.passing_after(told.0) => {
                        let state = manager.state();
                        let is_own = |task: &TaskId| {
                            state.task(task).is_some_and(|task| task.service == id)
                        };
                        passing.retain(|task, _| is_own(task));
                        let is_news = told.0.is_some() && told.1 != passing;
                        told = (Some(version), passing);
                        if is_news {
                            break;
                        }
                    }
                }
            }
            Some((Ok(()), (watch, told)))
        }
    });
    changes.boxed()
}

fn is_gone(state: &State, service: &ServiceId) -> bool {
    // Of a node that is lost nobody hears when its tasks end.
    let is_heard = |id: &NodeId| {
        let node = state.node(id);
        node.is_some_and(|node| node.status.state == NodeState::Ready)
    };
    let is_there = |task: &Arc<Task>| {
        !task.status.state.is_terminal() && task.node.as_ref().is_none_or(is_heard)
    };
    state.service(service).is_none() && !state.tasks_of_service(service).any(is_there)
}
