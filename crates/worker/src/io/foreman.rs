//! Owns the assignments: turns messages into orders and observations into reports.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use shoal_api::{TaskId, network::NetworkView, object::TaskStatus};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinSet,
};

use super::{
    ledger::{Ledger, Row},
    logs::{self, Readable},
    plane::{Plane, Settled},
    task_runner::{self, Observation, Order},
};
use crate::{
    core::{
        assignment::{Assignments, Gap, Message, Touched},
        reporter::Reporter,
    },
    ports::Executor,
};

/// Observations that may wait to be taken down; one round of a node full of tasks.
const OBSERVATIONS_MAX: usize = 1024;

/// The reporter, shared with the session that sends what it holds.
#[derive(Default)]
pub(super) struct Outbox {
    reporter: Mutex<Reporter>,
    filled: Notify,
}

impl Outbox {
    fn with<T>(&self, act: impl FnOnce(&mut Reporter) -> T) -> T {
        // A reporter does nothing that can fail half-way.
        act(&mut self.reporter.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn push(&self, task: TaskId, status: TaskStatus) {
        self.with(|reporter| reporter.push(task, status));
        self.filled.notify_one();
    }

    /// Waits for something to send.
    pub(super) async fn next_report(&self) -> Vec<(TaskId, TaskStatus)> {
        loop {
            if let Some(report) = self.with(Reporter::poll_report) {
                return report;
            }
            self.filled.notified().await;
        }
    }

    pub(super) fn delivered(&self) {
        self.with(Reporter::delivered);
    }

    /// To be called at the start of a session: what an earlier one had on its way may be lost.
    pub(super) fn lost(&self) {
        self.with(Reporter::lost);
    }
}

/// What the foreman can be asked.
pub(super) enum Command {
    /// Take in a message. Answered when it is in the ledger, not when it is carried out.
    Apply(Box<Message>, oneshot::Sender<Result<(), Gap>>),
    /// Remember these managers.
    Managers(Vec<String>),
    /// Remove every task and forget everything. Answered when nothing is left.
    Leave(oneshot::Sender<()>),
}

pub(super) struct Foreman {
    assignments: Assignments,
    ledger: Ledger,
    executor: Arc<dyn Executor>,
    plane: Plane,
    settled: watch::Receiver<Settled>,
    outbox: Arc<Outbox>,
    version: watch::Sender<String>,
    readable: watch::Sender<Readable>,
    runners: BTreeMap<TaskId, watch::Sender<Arc<Order>>>,
    running: JoinSet<()>,
    observer: mpsc::Sender<Observation>,
    observed: mpsc::Receiver<Observation>,
    /// Tasks to act on once the view that came with them has been tried.
    held_back: Option<(u64, Touched)>,
    leaving: Option<Leaving>,
}

/// A node on its way out of the cluster: first its tasks go, then its networks.
struct Leaving {
    networks_gone: bool,
    done: oneshot::Sender<()>,
}

/// What an earlier agent was told last.
pub(super) struct Inherited {
    pub(super) assignments: Assignments,
    pub(super) view: Option<NetworkView>,
}

impl Foreman {
    /// A foreman for remembered assignments, which it takes up once the remembered view has been tried.
    pub(super) fn new(
        executor: Arc<dyn Executor>,
        plane: Plane,
        ledger: Ledger,
        outbox: Arc<Outbox>,
        version: watch::Sender<String>,
        readable: watch::Sender<Readable>,
        inherited: Inherited,
    ) -> Self {
        let Inherited { assignments, view } = inherited;
        let (observer, observed) = mpsc::channel(OBSERVATIONS_MAX);
        let touched = Touched {
            updated: assignments.tasks().keys().cloned().collect(),
            ..Touched::default()
        };
        for (id, task) in assignments.tasks() {
            logs::show(&readable, id, Some(task));
        }
        let number = view.map_or(0, |view| plane.want(Arc::new(view)));
        Self {
            settled: plane.settled(),
            held_back: Some((number, touched)),
            runners: BTreeMap::new(),
            running: JoinSet::new(),
            leaving: None,
            assignments,
            ledger,
            executor,
            plane,
            outbox,
            version,
            readable,
            observer,
            observed,
        }
    }

    /// Works until nobody can ask anything any more. Its runners end with it, their tasks do not.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            self.act_if_settled();
            self.go_on_leaving().await;
            tokio::select! {
                command = commands.recv(), if self.held_back.is_none() => match command {
                    Some(command) => self.handle(command).await,
                    None => return,
                },
                Some(observation) = self.observed.recv() => self.take_down(observation).await,
                Some(_) = self.running.join_next() => {}
                changed = self.settled.changed(), if self.held_back.is_some() => if changed.is_err() { return },
            }
        }
    }

    async fn handle(&mut self, command: Command) {
        match command {
            Command::Apply(message, done) => {
                // Whoever no longer waits will ask for everything again.
                let _ = done.send(self.apply(*message).await);
            }
            Command::Managers(managers) => self.ledger.post(vec![Row::Managers(managers)]).await,
            Command::Leave(done) => {
                // A complete message follows on anything. The networks stay until nobody is in them.
                let _ = self
                    .apply(Message {
                        complete: true,
                        ..Message::default()
                    })
                    .await;
                self.leaving = Some(Leaving {
                    networks_gone: false,
                    done,
                });
            }
        }
    }

    async fn apply(&mut self, message: Message) -> Result<(), Gap> {
        let applied = self.assignments.apply(message);
        self.version
            .send_replace(self.assignments.version().to_owned());
        let mut touched = applied?;
        let tasks = touched
            .updated
            .iter()
            .filter_map(|id| self.assignments.tasks().get(id));
        let rows: Vec<Row> = tasks
            .map(|task| Row::Task(Box::new(task.clone())))
            .collect();
        if !rows.is_empty()
            && let Err(error) = self.ledger.write(rows).await
        {
            // After a crash a manager must send these again; not to go on would be an outage now.
            tracing::error!(%error, "carrying out tasks that the ledger does not know");
        }
        for id in touched.updated.iter().chain(&touched.removed) {
            logs::show(&self.readable, id, self.assignments.tasks().get(id));
        }
        for id in &touched.removed {
            self.outbox.with(|reporter| reporter.forget(id));
        }
        for (id, status) in &touched.unreported {
            self.outbox.push(id.clone(), status.clone());
        }
        let number = match touched.view.take() {
            Some(view) => {
                self.ledger.post(vec![Row::View(Arc::clone(&view))]).await;
                self.plane.want(view)
            }
            None => 0,
        };
        self.held_back = Some((number, touched));
        Ok(())
    }

    /// Gives the orders of the last message, if its view has been tried. Nothing is stopped before packets and names
    /// stopped leading to it, nothing is prepared before its networks are there.
    fn act_if_settled(&mut self) {
        let tried = self.settled.borrow_and_update().tried;
        let Some((_, touched)) = self.held_back.take_if(|(number, _)| *number <= tried) else {
            return;
        };
        for id in touched.removed {
            if let Some(orders) = self.runners.get(&id) {
                orders.send_modify(|order| Arc::make_mut(order).removed = true);
            }
        }
        for id in touched.updated {
            self.order(&id);
        }
        // Secrets may have come for tasks that are otherwise unchanged.
        let waiting: Vec<TaskId> = self
            .runners
            .iter()
            .filter(|(_, o)| o.borrow().files.is_none())
            .map(|(id, _)| id.clone())
            .collect();
        for id in waiting {
            self.order(&id);
        }
    }

    /// Orders the task's runner, a new one if need be, to carry out the assignment as it stands.
    fn order(&mut self, id: &TaskId) {
        let Some(task) = self.assignments.tasks().get(id) else {
            return;
        };
        let order = Arc::new(Order {
            task: task.clone(),
            files: self.assignments.files(task),
            removed: false,
        });
        match self.runners.get(id) {
            // It is on its way out, and is begun anew when it is gone.
            Some(orders) if orders.borrow().removed => {}
            Some(orders) => drop(orders.send_replace(order)),
            None => {
                let (orders, receiver) = watch::channel(order);
                self.running.spawn(task_runner::run(
                    Arc::clone(&self.executor),
                    receiver,
                    self.observer.clone(),
                ));
                self.runners.insert(id.clone(), orders);
            }
        }
    }

    async fn take_down(&mut self, first: Observation) {
        let mut rows = Vec::new();
        let mut next = Some(first);
        while let Some(observation) = next {
            match observation {
                Observation::Status(id, status) => {
                    if let Some(task) = self.assignments.observe(&id, &status) {
                        logs::show(&self.readable, &id, Some(task));
                        rows.push(Row::Status(id.clone(), status.clone()));
                        self.outbox.push(id, status);
                    }
                }
                Observation::Gone(id) => {
                    self.runners.remove(&id);
                    if self.assignments.tasks().contains_key(&id) {
                        self.order(&id);
                    } else {
                        rows.push(Row::Forget(id));
                    }
                }
            }
            next = self.observed.try_recv().ok();
        }
        if !rows.is_empty() {
            self.ledger.post(rows).await;
        }
    }

    async fn go_on_leaving(&mut self) {
        if !self.runners.is_empty() || self.held_back.is_some() {
            return;
        }
        match self.leaving.take() {
            None => {}
            Some(Leaving {
                networks_gone: false,
                done,
            }) => {
                let number = self.plane.want(Arc::default());
                self.held_back = Some((number, Touched::default()));
                self.leaving = Some(Leaving {
                    networks_gone: true,
                    done,
                });
            }
            Some(Leaving {
                networks_gone: true,
                done,
            }) => {
                if let Err(error) = self.ledger.write(vec![Row::ForgetAll]).await {
                    // What is left in it are tasks that no other cluster will name.
                    tracing::warn!(%error, "left the cluster without clearing the ledger");
                }
                // Whoever asked may be gone.
                let _ = done.send(());
            }
        }
    }
}
