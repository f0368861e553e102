use std::{
    collections::{BTreeMap, VecDeque},
    future::pending,
    sync::Mutex,
};

use async_trait::async_trait;
use shoal_api::{
    container::LogQuery,
    object::{ContainerStatus, NodeDescription},
    spec::{SecretReference, TaskSpec},
};
use tokio::{task::JoinHandle, time::Instant};

use super::*;
use crate::{
    core::task_machine::tests::task,
    ports::{Exit, LogLines, Started},
};

/// What an operation does when it is called.
#[derive(Clone, Copy)]
enum Does {
    Succeed,
    Fail(ExecErrorKind),
    Exit(i64),
    Hang,
}

/// A node whose operations follow a script; without one they succeed, and waiting takes for ever.
#[derive(Default)]
struct Scripted {
    script: Mutex<BTreeMap<&'static str, VecDeque<Does>>>,
    calls: Arc<Mutex<Vec<String>>>,
}

struct Hand(Arc<Scripted>);

/// What a start exits with whose health is to be waited for.
const CHECKED: i64 = 1;

#[async_trait]
impl Executor for Scripted {
    async fn describe(&self) -> Result<NodeDescription, ExecError> {
        Ok(NodeDescription::default())
    }
    async fn controller(&self, _: &Task) -> Result<Box<dyn Controller>, ExecError> {
        let script = Mutex::new(self.script.lock().expect("whole").clone());
        Ok(Box::new(Hand(Arc::new(Self {
            script,
            calls: Arc::clone(&self.calls),
        }))))
    }
    async fn logs(&self, _: &Task, _: &LogQuery) -> Result<Option<LogLines>, ExecError> {
        Ok(None)
    }
}

impl Hand {
    async fn play(&self, op: &'static str) -> Result<i64, ExecError> {
        self.0.calls.lock().expect("whole").push(op.to_owned());
        let default = if op == "wait" {
            Does::Hang
        } else {
            Does::Succeed
        };
        let does = self
            .0
            .script
            .lock()
            .expect("whole")
            .get_mut(op)
            .and_then(VecDeque::pop_front)
            .unwrap_or(default);
        match does {
            Does::Succeed => Ok(0),
            Does::Fail(kind) => Err(ExecError::new(kind, format!("{op} failed"))),
            Does::Exit(code) => Ok(code),
            Does::Hang => pending().await,
        }
    }
}

#[async_trait]
impl Controller for Hand {
    async fn update(&self, _: &Task) -> Result<(), ExecError> {
        Ok(())
    }
    async fn prepare(&self, _: &TaskFiles) -> Result<(), ExecError> {
        self.play("prepare").await.map(drop)
    }
    async fn start(&self) -> Result<Started, ExecError> {
        let is_checked = self.play("start").await? == CHECKED;
        Ok(Started {
            is_checked,
            ..Started::default()
        })
    }
    async fn become_healthy(&self) -> Result<(), ExecError> {
        self.play("become_healthy").await.map(drop)
    }
    async fn wait(&self) -> Result<Exit, ExecError> {
        let exit_code = self.play("wait").await?;
        Ok(Exit {
            container: ContainerStatus {
                exit_code,
                ..ContainerStatus::default()
            },
            reason: None,
        })
    }
    async fn shutdown(&self, grace: Duration) -> Result<(), ExecError> {
        assert_eq!(grace, Duration::from_secs(10));
        self.play("shutdown").await.map(drop)
    }
    async fn remove(&self) -> Result<(), ExecError> {
        self.play("remove").await.map(drop)
    }
}

/// A runner under test, with everything it told.
struct Bench {
    calls: Arc<Mutex<Vec<String>>>,
    orders: watch::Sender<Arc<Order>>,
    observed: mpsc::Receiver<Observation>,
    runner: JoinHandle<()>,
}

impl Bench {
    fn new(task: Task, files: Option<TaskFiles>, script: &[(&'static str, &[Does])]) -> Self {
        let script = script
            .iter()
            .map(|(op, does)| (*op, does.iter().copied().collect()))
            .collect();
        let executor = Scripted {
            script: Mutex::new(script),
            ..Scripted::default()
        };
        let calls = Arc::clone(&executor.calls);
        let (orders, receiver) = watch::channel(Arc::new(Order {
            task,
            files,
            removed: false,
        }));
        let (observer, observed) = mpsc::channel(100);
        let runner = tokio::spawn(run(Arc::new(executor), receiver, observer));
        Self {
            calls,
            orders,
            observed,
            runner,
        }
    }

    /// What it tells until it says `last`.
    async fn until(&mut self, last: &str) -> Vec<String> {
        let mut told = Vec::new();
        while told.last().is_none_or(|line| line != last) {
            told.push(
                match self.observed.recv().await.expect("the runner still tells") {
                    Observation::Status(_, status) => status.state.to_string(),
                    Observation::Gone(_) => "gone".to_owned(),
                },
            );
        }
        told
    }

    fn order(&self, change: impl FnOnce(&mut Order)) {
        self.orders
            .send_modify(|order| change(Arc::make_mut(order)));
    }

    /// Waits until the last call is `op`.
    async fn called(&self, op: &str) {
        while self
            .calls
            .lock()
            .expect("whole")
            .last()
            .is_none_or(|last| last != op)
        {
            tokio::task::yield_now().await;
        }
    }

    fn calls(&self) -> String {
        self.calls.lock().expect("whole").join(" ")
    }
}

fn assigned(desired: TaskState) -> Task {
    task("t1", TaskState::Assigned, desired)
}

fn bench(desired: TaskState, script: &[(&'static str, &[Does])]) -> Bench {
    Bench::new(assigned(desired), Some(TaskFiles::default()), script)
}

#[tokio::test]
async fn a_task_is_walked_to_its_end() {
    let mut bench = bench(TaskState::Running, &[("wait", &[Does::Exit(0)])]);
    let told = bench.until("complete").await;
    assert_eq!(
        told,
        [
            "accepted",
            "preparing",
            "ready",
            "starting",
            "running",
            "complete"
        ]
    );
    assert_eq!(bench.calls(), "prepare start wait");
}

#[tokio::test]
async fn a_start_is_told_before_the_health_that_is_waited_for() {
    let checked = ("start", &[Does::Exit(CHECKED)][..]);
    let mut healthy = bench(TaskState::Running, &[checked]);
    healthy.until("ready").await;
    let told = healthy.until("running").await;
    assert_eq!(told, ["starting", "starting", "running"]);
    healthy.called("wait").await;
    assert_eq!(healthy.calls(), "prepare start become_healthy wait");

    let fails = [Does::Fail(ExecErrorKind::Fatal)];
    let mut ill = bench(TaskState::Running, &[checked, ("become_healthy", &fails)]);
    ill.until("failed").await;
    assert_eq!(ill.calls(), "prepare start become_healthy");
}

#[tokio::test]
async fn a_replacement_is_made_ready_and_waits_for_its_turn() {
    let mut bench = bench(TaskState::Ready, &[]);
    bench.until("ready").await;
    bench.order(|order| order.task.desired_state = TaskState::Running);
    assert_eq!(bench.until("running").await, ["starting", "running"]);
    bench.called("wait").await;
    assert_eq!(bench.calls(), "prepare start wait");
}

#[tokio::test(start_paused = true)]
async fn what_may_succeed_later_is_tried_again_after_a_second() {
    use ExecErrorKind::{AlreadyDone, NotReady, Temporary};
    let began = Instant::now();
    let mut bench = bench(
        TaskState::Running,
        &[
            (
                "prepare",
                &[
                    Does::Fail(Temporary),
                    Does::Fail(NotReady),
                    Does::Fail(AlreadyDone),
                ],
            ),
            ("wait", &[Does::Exit(3)]),
        ],
    );
    bench.until("failed").await;
    assert_eq!(bench.calls(), "prepare prepare prepare start wait");
    assert_eq!(began.elapsed().as_secs(), 2);
}

#[tokio::test]
async fn errors_end_a_task() {
    let mut before = bench(
        TaskState::Running,
        &[("prepare", &[Does::Fail(ExecErrorKind::Fatal)])],
    );
    assert_eq!(
        before.until("rejected").await,
        ["accepted", "preparing", "rejected"]
    );
    let mut after = bench(
        TaskState::Running,
        &[("start", &[Does::Fail(ExecErrorKind::Fatal)])],
    );
    assert_eq!(after.until("failed").await.len(), 5);
}

#[tokio::test]
async fn stopping_goes_before_everything_else() {
    for (op, script) in [
        ("prepare", "prepare"),
        ("start", "prepare start"),
        ("become_healthy", "prepare start become_healthy"),
        ("wait", "prepare start wait"),
    ] {
        let start: &[Does] = match op {
            "start" => &[Does::Hang],
            "become_healthy" => &[Does::Exit(CHECKED)],
            _ => &[Does::Succeed],
        };
        let mut bench = bench(TaskState::Running, &[(op, &[Does::Hang]), ("start", start)]);
        bench.called(op).await;
        bench.order(|order| order.task.desired_state = TaskState::Shutdown);
        bench.until("shutdown").await;
        assert_eq!(bench.calls(), format!("{script} shutdown"));
    }
}

#[tokio::test]
async fn what_is_no_longer_assigned_is_stopped_and_removed() {
    let mut bench = bench(TaskState::Running, &[]);
    bench.called("wait").await;
    bench.order(|order| order.removed = true);
    assert_eq!(bench.until("gone").await[5..], ["shutdown", "gone"]);
    assert_eq!(bench.calls(), "prepare start wait shutdown remove");
    bench.runner.await.expect("it ends");
}

#[tokio::test]
async fn what_is_over_is_kept_until_it_is_no_longer_assigned() {
    let ended = task("t1", TaskState::Failed, TaskState::Running);
    let mut bench = Bench::new(ended, Some(TaskFiles::default()), &[]);
    bench.order(|order| order.task.desired_state = TaskState::Shutdown);
    bench.order(|order| order.removed = true);
    assert_eq!(bench.until("gone").await, ["gone"]);
    assert_eq!(bench.calls(), "remove");
}

#[tokio::test]
async fn a_task_is_not_prepared_before_its_secrets_are_here() {
    let mut spec = TaskSpec::default();
    let id = "s1".parse().expect("an id");
    spec.container.secrets = vec![SecretReference {
        id,
        name: "key".to_owned(),
        target: Default::default(),
    }];
    let with_secret = Task {
        spec: Arc::new(spec),
        ..assigned(TaskState::Running)
    };
    let mut bench = Bench::new(with_secret, None, &[]);
    assert_eq!(bench.until("preparing").await, ["accepted", "preparing"]);
    assert_eq!(bench.calls(), "");
    bench.order(|order| order.files = Some(TaskFiles::default()));
    bench.until("running").await;
}

#[tokio::test]
async fn a_runner_without_orders_leaves_its_task_alone() {
    let bench = bench(TaskState::Running, &[]);
    bench.called("wait").await;
    let Bench {
        calls,
        orders,
        runner,
        ..
    } = bench;
    drop(orders);
    runner.await.expect("it ends");
    assert_eq!(
        calls.lock().expect("whole").last().map(String::as_str),
        Some("wait")
    );
}
