//! What is assigned to this node, and how a message changes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use shoal_api::{
    ConfigId, SecretId, TaskId,
    network::{NetworkView, ViewUpdate},
    object::{Config, Secret, Task, TaskStatus},
    planted::{Bug, planted},
};

use super::task_machine::merged;

/// A message of the assignment stream.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Message {
    /// Whether it names everything that is assigned, rather than the changes.
    pub complete: bool,
    /// Version to which the changes apply.
    pub applies_to: String,
    /// Version that holds afterwards.
    pub results_in: String,
    /// What is new or changed.
    pub updates: Vec<Item>,
    /// What is no longer assigned.
    pub removals: Vec<ItemKey>,
    /// The network view; `None` when unchanged.
    pub view: Option<ViewUpdate>,
}

/// Something that can be assigned.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// A task to carry out.
    Task(Box<Task>),
    /// A secret that a task uses.
    Secret(Secret),
    /// A config that a task uses.
    Config(Config),
}

/// Names something that is assigned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ItemKey {
    /// A task.
    Task(TaskId),
    /// A secret.
    Secret(SecretId),
    /// A config.
    Config(ConfigId),
}

/// The secrets and configs of one task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskFiles {
    /// Its secrets.
    pub secrets: BTreeMap<SecretId, Arc<Secret>>,
    /// Its configs.
    pub configs: BTreeMap<ConfigId, Arc<Config>>,
}

/// A message that does not follow on what is held: something was missed, so everything must be sent again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("assignments for version {applies_to:?} came while {held:?} is held")]
pub struct Gap {
    /// Version that the message applies to.
    pub applies_to: String,
    /// Version that is held.
    pub held: String,
}

/// Tasks that a message touched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// The network view, if it is another one now.
    pub view: Option<Arc<NetworkView>>,
    /// Those to be carried out as they now stand.
    pub updated: Vec<TaskId>,
    /// Those to be stopped and forgotten.
    pub removed: Vec<TaskId>,
    /// Statuses that the manager does not know yet, or lost.
    pub unreported: Vec<(TaskId, TaskStatus)>,
}

/// Everything that is assigned to this node.
#[derive(Debug, Clone, Default)]
pub struct Assignments {
    version: String,
    tasks: BTreeMap<TaskId, Task>,
    secrets: BTreeMap<SecretId, Arc<Secret>>,
    configs: BTreeMap<ConfigId, Arc<Config>>,
    /// Tasks of an earlier agent whose credentials only a manager knows.
    withheld: BTreeSet<TaskId>,
    /// The view that was told last, to which changes apply.
    view: Option<Arc<NetworkView>>,
}

impl Assignments {
    /// The assignments that an earlier agent wrote down. Without secrets, without the credentials of those that had some,
    /// and with no version to continue from.
    pub fn adopted(tasks: Vec<Task>, withheld: BTreeSet<TaskId>) -> Self {
        Self {
            withheld,
            tasks: tasks
                .into_iter()
                .map(|task| (task.id.clone(), task))
                .collect(),
            ..Self::default()
        }
    }

    /// Version that is held, empty before the first message.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The tasks.
    pub fn tasks(&self) -> &BTreeMap<TaskId, Task> {
        &self.tasks
    }

    /// Takes in a message.
    pub fn apply(&mut self, message: Message) -> Result<Touched, Gap> {
        let mut touched = Touched::default();
        let is_missed = match &message.view {
            Some(ViewUpdate::Change(_)) => self.view.is_none(),
            Some(ViewUpdate::Whole(_)) | None => false,
        };
        if message.complete && !is_missed {
            let named = |task: &TaskId| {
                message
                    .updates
                    .iter()
                    .any(|item| matches!(item, Item::Task(named) if named.id == *task))
            };
            touched.removed = self
                .tasks
                .keys()
                .filter(|task| !named(task) && !planted(Bug::AgentIgnoresRemoval))
                .cloned()
                .collect();
            self.secrets.clear();
            self.configs.clear();
        } else if is_missed || message.applies_to != self.version {
            // Only a complete message can follow.
            return Err(Gap {
                applies_to: message.applies_to,
                held: std::mem::take(&mut self.version),
            });
        }
        for removal in message.removals {
            match removal {
                ItemKey::Task(id) if self.tasks.contains_key(&id) => touched.removed.push(id),
                ItemKey::Task(_) => {}
                ItemKey::Secret(id) => drop(self.secrets.remove(&id)),
                ItemKey::Config(id) => drop(self.configs.remove(&id)),
            }
        }
        for id in &touched.removed {
            self.tasks.remove(id);
            self.withheld.remove(id);
        }
        for item in message.updates {
            match item {
                Item::Secret(secret) => {
                    drop(self.secrets.insert(secret.id.clone(), Arc::new(secret)))
                }
                Item::Config(config) => {
                    drop(self.configs.insert(config.id.clone(), Arc::new(config)))
                }
                Item::Task(told) => {
                    self.withheld.remove(&told.id);
                    let known = told.status.state;
                    let task = merged(self.tasks.get(&told.id), *told);
                    if task.status.state > known {
                        touched
                            .unreported
                            .push((task.id.clone(), task.status.clone()));
                    }
                    touched.updated.push(task.id.clone());
                    self.tasks.insert(task.id.clone(), task);
                }
            }
        }
        if let Some(update) = message.view {
            self.view = update.onto(self.view.as_deref()).map(Arc::new);
            touched.view.clone_from(&self.view);
        }
        self.version = message.results_in;
        Ok(touched)
    }

    /// Takes down what a runner observed. Returns the task unless it is gone or further already.
    pub fn observe(&mut self, id: &TaskId, status: &TaskStatus) -> Option<&Task> {
        let task = self
            .tasks
            .get_mut(id)
            .filter(|task| task.status.state <= status.state)?;
        task.status = status.clone();
        Some(task)
    }

    /// The secrets and configs of a task; `None` if one of them is not here, or the credentials for its image are not.
    pub fn files(&self, task: &Task) -> Option<TaskFiles> {
        if self.withheld.contains(&task.id) {
            return None;
        }
        let container = &task.spec.container;
        let secret = |id: &SecretId| Some((id.clone(), Arc::clone(self.secrets.get(id)?)));
        let config = |id: &ConfigId| Some((id.clone(), Arc::clone(self.configs.get(id)?)));
        Some(TaskFiles {
            secrets: container
                .secrets
                .iter()
                .map(|used| secret(&used.id))
                .collect::<Option<_>>()?,
            configs: container
                .configs
                .iter()
                .map(|used| config(&used.id))
                .collect::<Option<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use shoal_api::{
        TaskState as S,
        object::Meta,
        spec::{SecretReference, SecretSpec, TaskSpec},
    };

    use super::*;
    use crate::core::task_machine::tests::task;

    fn message(
        complete: bool,
        applies_to: &str,
        results_in: &str,
        tasks: &[Task],
        removals: &[&str],
    ) -> Message {
        Message {
            complete,
            applies_to: applies_to.to_owned(),
            results_in: results_in.to_owned(),
            updates: tasks
                .iter()
                .map(|task| Item::Task(Box::new(task.clone())))
                .collect(),
            removals: removals
                .iter()
                .map(|id| ItemKey::Task(id.parse().expect("an id")))
                .collect(),
            view: None,
        }
    }

    fn ids(ids: &[TaskId]) -> Vec<&str> {
        ids.iter().map(TaskId::as_str).collect()
    }

    #[test]
    fn a_complete_message_replaces_and_an_incremental_one_adds() {
        let [one, two, three] = ["t1", "t2", "t3"].map(|id| task(id, S::Assigned, S::Running));
        let mut held = Assignments::adopted(vec![one.clone(), two.clone()], BTreeSet::new());
        let touched = held
            .apply(message(true, "", "1", &[two, three.clone()], &[]))
            .expect("complete");
        assert_eq!(
            (ids(&touched.updated), ids(&touched.removed)),
            (vec!["t2", "t3"], vec!["t1"])
        );
        let touched = held
            .apply(message(false, "1", "2", &[one], &["t2", "t9"]))
            .expect("in sequence");
        assert_eq!(
            (ids(&touched.updated), ids(&touched.removed)),
            (vec!["t1"], vec!["t2"])
        );
        assert_eq!(held.version(), "2");
        assert_eq!(held.tasks().len(), 2);
        let gap = held
            .apply(message(false, "1", "3", &[], &["t1"]))
            .expect_err("out of sequence");
        assert_eq!(
            gap.to_string(),
            r#"assignments for version "1" came while "2" is held"#
        );
        assert!(
            held.tasks().contains_key(&three.id) && held.tasks().len() == 2,
            "nothing was changed"
        );
    }

    #[test]
    fn what_a_manager_does_not_know_is_reported_again() {
        let mut held =
            Assignments::adopted(vec![task("t1", S::Running, S::Running)], BTreeSet::new());
        let told = task("t1", S::Preparing, S::Running);
        let touched = held
            .apply(message(true, "", "1", &[told], &[]))
            .expect("complete");
        assert_eq!(touched.unreported.len(), 1);
        assert_eq!(touched.unreported[0].1.state, S::Running);
        let told = task("t1", S::Running, S::Running);
        assert!(
            held.apply(message(true, "", "2", &[told], &[]))
                .expect("complete")
                .unreported
                .is_empty()
        );
    }

    #[test]
    fn a_task_waits_for_all_of_its_secrets() {
        let mut user = task("t1", S::Assigned, S::Running);
        let mut spec = TaskSpec::default();
        let id: SecretId = "s1".parse().expect("an id");
        spec.container.secrets = vec![SecretReference {
            id: id.clone(),
            name: "key".to_owned(),
            target: Default::default(),
        }];
        user.spec = Arc::new(spec);
        let mut held = Assignments::default();
        held.apply(message(true, "", "1", &[user.clone()], &[]))
            .expect("complete");
        assert_eq!(held.files(&user), None);
        let secret = Secret {
            id: id.clone(),
            meta: Meta::default(),
            spec: SecretSpec::default(),
        };
        let update = Message {
            updates: vec![Item::Secret(secret)],
            ..message(false, "1", "2", &[], &[])
        };
        held.apply(update).expect("in sequence");
        assert!(
            held.files(&user)
                .expect("it is here")
                .secrets
                .contains_key(&id)
        );
    }
    #[test]
    fn a_task_waits_for_the_credentials_that_were_not_written_down() {
        let adopted = task("t1", S::Preparing, S::Running);
        let withheld = BTreeSet::from([adopted.id.clone()]);
        let mut held = Assignments::adopted(vec![adopted.clone()], withheld);
        assert_eq!(held.files(&adopted), None);
        held.apply(message(true, "", "1", &[adopted.clone()], &[]))
            .expect("complete");
        assert_eq!(held.files(&adopted), Some(TaskFiles::default()));
    }
}
