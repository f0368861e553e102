//! Where tasks are on their way to running: known to the leader, asked of it by the other managers.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use shoal_api::{
    TaskId,
    object::TaskStatus,
    wire::{ListPassingRequest, control_client::ControlClient},
};
use tokio::sync::watch;
use tonic::Request;

use super::{Desk, Manager, wait_for_change};
use crate::core::dispatch::Passing;

/// How long the leader may take to say. Without an answer people see what is written down.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// What the dispatcher of the leader keeps; readers look at it, and wait for it to change.
#[derive(Debug, Clone)]
pub(crate) struct Board {
    passing: Arc<Mutex<Passing>>,
    /// Beginning of the versions of this reign, and the version of what is told.
    version: Arc<watch::Sender<(u64, u64)>>,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            passing: Arc::default(),
            version: Arc::new(watch::Sender::new((0, 0))),
        }
    }
}

impl Board {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Passing> {
        self.passing.lock().expect("nobody panics while holding it")
    }

    /// A reign begins, or has ended.
    pub(crate) fn clear(&self) {
        *self.lock() = Passing::default();
        // No version of another reign is taken for one of this.
        let first = getrandom::u64().expect("the operating system gives random bytes after boot");
        self.version.send_replace((first, first));
    }

    /// Tells those who wait that something is different, if it is.
    pub(crate) fn tell(&self) {
        let changes = self.lock().changes();
        self.version.send_if_modified(|(first, told)| {
            let now = first.wrapping_add(changes);
            std::mem::replace(told, now) != now
        });
    }

    /// What is there, once it is another version than `after`.
    pub(crate) async fn read(&self, after: Option<u64>) -> Version {
        let mut version = self.version.subscribe();
        let is_news = |(_, now): &(u64, u64)| after != Some(*now);
        let (_, now) = version
            .wait_for(is_news)
            .await
            .map_or_else(|_| Default::default(), |now| *now);
        (now, self.lock().statuses().clone())
    }
}

/// Statuses of tasks that are on their way to running, and the version of all of them together.
type Version = (u64, BTreeMap<TaskId, TaskStatus>);

impl Manager {
    /// Statuses of tasks that are on their way to running, beyond what is written down of them. Empty where the leader
    /// cannot be asked.
    pub async fn passing(&self) -> BTreeMap<TaskId, TaskStatus> {
        let asked = tokio::time::timeout(ANSWER_TIMEOUT, self.desk.ask_passing(None));
        let (_, statuses) = asked.await.ok().flatten().unwrap_or_default();
        statuses
    }

    /// The same, once they are different from those of a version, with their version. Waits for a leader who can be asked.
    pub async fn passing_after(&self, version: Option<u64>) -> Version {
        let mut leadership = self.leadership();
        loop {
            leadership.mark_unchanged();
            let asked = tokio::select! {
                asked = self.desk.ask_passing(version) => asked,
                Ok(()) = leadership.changed() => continue,
            };
            match asked {
                Some(answer) => return answer,
                None => drop(wait_for_change(&mut leadership).await),
            }
        }
    }
}

impl Desk {
    async fn ask_passing(&self, after: Option<u64>) -> Option<Version> {
        if self.leadership().is_leader {
            return Some(self.passing.read(after).await);
        }
        let channel = self.leader_channel(&self.questions).ok()?;
        let request = Request::new(ListPassingRequest { after });
        let answer = ControlClient::new(channel).list_passing(request).await;
        let answer = answer.ok()?.into_inner();
        let read = |(id, status): (String, _)| {
            let status = TaskStatus::try_from(status).ok()?;
            Some((id.parse().ok()?, status))
        };
        let tasks = answer.tasks.into_iter().filter_map(read);
        Some((answer.version, tasks.collect()))
    }
}
