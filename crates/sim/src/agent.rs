//! An agent's process: the real decisions about sessions, assignments, tasks and reports, with an executor that only
//! pretends.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use shoal_api::{
    TaskId, TaskState,
    network::NetworkView,
    object::{Task, TaskAttachment, TaskStatus},
    spec::PortConfig,
};
use shoal_dns::Records;
use shoal_worker::core::{
    assignment::{Assignments, Message, TaskFiles, Touched},
    reporter::Reporter,
    session::{Call, Managers},
    task_machine::{Op, Outcome, Step, merged, must_stop, next_step, on_result},
};

use crate::{
    env::{Conn, Env, Event, HostId, Instant, MS, SECOND},
    executor::{describe, perform},
    manager::{Me, host_of},
    rpc::{Down, Up},
    trouble::Point,
};

/// Pause before an operation is tried again, as in the product.
const RETRY_PAUSE: u64 = SECOND;
/// How long an answer is awaited, as in the product.
const CALL_TIMEOUT: u64 = 5 * SECOND;
const HEARTBEAT_TIMEOUT_MIN: u64 = SECOND;

/// What an agent waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Timer {
    /// To call a manager.
    Dial(u64),
    /// To say that it is there.
    Beat(Conn),
    /// To give up on an answer.
    Overdue(Conn, u64),
    /// A network view to be in force.
    Plane(u64),
    /// An operation of a task to be done, or worth another try.
    Op(TaskId, u64),
}

/// A container, which outlives its agent.
#[derive(Debug, Clone, Default)]
pub struct Container {
    /// Whether its process was started.
    pub is_started: bool,
    /// How it ended.
    pub exit: Option<i64>,
    /// Its task, as it was when the container was made.
    pub task: Option<Arc<Task>>,
}

impl Container {
    /// Whether its process runs.
    pub fn runs(&self) -> bool {
        self.is_started && self.exit.is_none()
    }
}

/// What an agent has written down.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    tasks: BTreeMap<TaskId, Task>,
    view: Option<Arc<NetworkView>>,
    managers: Vec<String>,
}

/// What belongs to the host rather than to its agent.
#[derive(Debug, Default)]
pub struct Body {
    /// Its containers.
    pub containers: BTreeMap<TaskId, Container>,
    /// What its agent wrote down.
    pub ledger: Ledger,
    /// How often the machine was started.
    pub boot: u64,
}

impl Body {
    /// Tasks of which something is left here.
    pub fn kept(&self) -> impl Iterator<Item = &TaskId> {
        self.containers.keys().chain(self.ledger.tasks.keys())
    }

    /// The managers that its agent was told of last.
    pub fn managers(&self) -> &[String] {
        &self.ledger.managers
    }
}

#[derive(Debug)]
struct Runner {
    held: Task,
    order: Task,
    files: Option<TaskFiles>,
    is_removed: bool,
    /// The operation on its way, and its number.
    op: Option<(Op, u64)>,
    is_retrying: bool,
    begun: (Box<[TaskAttachment]>, Box<[PortConfig]>),
}

#[derive(Debug)]
struct Link {
    conn: Conn,
    to: HostId,
    address: String,
    session: Option<u64>,
    since: Instant,
    period: u64,
    beats: u64,
    reports: u64,
    told_view: Option<u64>,
}

/// An agent that runs.
#[derive(Debug)]
pub struct Agent {
    assignments: Assignments,
    reporter: Reporter,
    managers: Managers,
    link: Option<Link>,
    dial: u64,
    runners: BTreeMap<TaskId, Runner>,
    next_op: u64,
    messages: VecDeque<Message>,
    held_back: Option<(u64, Touched)>,
    wanted: Vec<(u64, Arc<NetworkView>)>,
    next_view: u64,
    tried: u64,
    /// The view in force.
    pub view: Option<Arc<NetworkView>>,
    /// The names in force.
    pub names: Records,
    /// Since when this process runs.
    pub since: Instant,
}

impl Agent {
    /// Starts on what an earlier agent has written down.
    pub fn start(me: Me, body: &mut Body, managers: &[String], env: &mut Env) -> Self {
        let ledger = &body.ledger;
        let known = if ledger.managers.is_empty() {
            managers.to_vec()
        } else {
            ledger.managers.clone()
        };
        let assignments =
            Assignments::adopted(ledger.tasks.values().cloned().collect(), BTreeSet::new());
        let touched = Touched {
            updated: assignments.tasks().keys().cloned().collect(),
            ..Touched::default()
        };
        let view = ledger.view.clone();
        let mut agent = Self {
            assignments,
            reporter: Reporter::default(),
            managers: Managers::new(known),
            link: None,
            dial: 0,
            runners: BTreeMap::new(),
            next_op: 0,
            messages: VecDeque::new(),
            held_back: None,
            wanted: Vec::new(),
            next_view: 0,
            tried: 0,
            view: None,
            names: Records::default(),
            since: env.now,
        };
        let number = view.map_or(0, |view| agent.want(view, me, env));
        agent.held_back = Some((number, touched));
        agent.dial_after(0, me, env);
        agent.work(me, body, env);
        agent
    }

    /// Somebody says where the managers are.
    pub fn is_told_managers(&mut self, managers: Vec<String>, body: &mut Body) {
        self.managers.update(managers.clone());
        body.ledger.managers = managers;
    }

    /// The tasks that it holds.
    pub fn tasks(&self) -> &BTreeMap<TaskId, Task> {
        self.assignments.tasks()
    }

    /// Whether it speaks over this connection.
    pub fn is_on(&self, conn: Conn) -> bool {
        self.link.as_ref().is_some_and(|link| link.conn == conn)
    }

    /// Whether it has an open session.
    pub fn is_connected(&self) -> bool {
        self.link
            .as_ref()
            .is_some_and(|link| link.session.is_some())
    }

    fn dial_after(&mut self, delay: u64, me: Me, env: &mut Env) {
        self.dial += 1;
        let timer = Timer::Dial(self.dial);
        let Me { host, life, .. } = me;
        env.after(delay, Event::Timer { host, life, timer });
    }

    fn timer(&self, delay: u64, timer: Timer, me: Me, env: &mut Env) {
        let Me { host, life, .. } = me;
        env.after(delay, Event::Timer { host, life, timer });
    }

    fn want(&mut self, view: Arc<NetworkView>, me: Me, env: &mut Env) -> u64 {
        self.next_view += 1;
        let number = self.next_view;
        self.wanted.push((number, view));
        let delay = env.rng.range(MS, 40 * MS);
        self.timer(delay, Timer::Plane(number), me, env);
        number
    }

    /// Something that was waited for.
    pub fn on_timer(&mut self, timer: Timer, me: Me, body: &mut Body, env: &mut Env) {
        match timer {
            Timer::Dial(number) if number == self.dial && self.link.is_none() => {
                self.call(me, env);
            }
            Timer::Beat(conn) => self.beat(conn, me, env),
            Timer::Overdue(conn, what) => {
                let is_overdue = self.link.as_ref().is_some_and(|link| {
                    link.conn == conn
                        && match what {
                            0 => link.session.is_none(),
                            n if n % 2 == 1 => link.beats == n,
                            n => link.reports == n,
                        }
                });
                if is_overdue {
                    self.end_session(me, env);
                }
            }
            Timer::Plane(number) => self.converge(number, me, env),
            Timer::Op(task, number) => self.op_done(&task, number, me, body, env),
            Timer::Dial(_) => {}
        }
        self.work(me, body, env);
    }

    fn call(&mut self, me: Me, env: &mut Env) {
        let random = env.rng.next_u64() as u32;
        match self.managers.next_call(random) {
            Call::After(pause) => self.dial_after(pause.as_nanos() as u64 + MS, me, env),
            Call::Now(address) => {
                let Some(to) = host_of(&address) else {
                    return self.dial_after(MS, me, env);
                };
                let conn = env.net.connect();
                self.link = Some(Link {
                    conn,
                    to,
                    address,
                    session: None,
                    since: env.now,
                    period: SECOND,
                    beats: 1,
                    reports: 2,
                    told_view: None,
                });
                let open = Up::Open {
                    description: Box::new(describe(me.host)),
                    address: format!("10.0.0.{}", me.host + 1)
                        .parse()
                        .expect("an address"),
                    host: me.host,
                };
                env.up(me.host, to, conn, open);
                self.timer(CALL_TIMEOUT, Timer::Overdue(conn, 0), me, env);
            }
        }
    }

    fn beat(&mut self, conn: Conn, me: Me, env: &mut Env) {
        let Some(link) = self.link.as_mut().filter(|link| link.conn == conn) else {
            return;
        };
        let Some(session) = link.session else { return };
        link.beats += 2;
        let (to, period, number) = (link.to, link.period, link.beats);
        env.up(me.host, to, conn, Up::Heartbeat(session));
        let limit = period.max(HEARTBEAT_TIMEOUT_MIN);
        self.timer(limit, Timer::Overdue(conn, number), me, env);
    }

    fn end_session(&mut self, me: Me, env: &mut Env) {
        env.tell(|| format!("agent {} ends its session", me.host));
        if let Some(link) = self.link.take() {
            env.up(me.host, link.to, link.conn, Up::Closed);
            let lasted = Duration::from_nanos(env.now - link.since);
            let random = env.rng.next_u64() as u32;
            let lasted = link.session.map_or(Duration::ZERO, |_| lasted);
            self.managers.on_session_end(&link.address, lasted, random);
            self.dial_after(MS, me, env);
        }
    }

    /// A message of a manager.
    pub fn on_down(&mut self, conn: Conn, message: Down, me: Me, body: &mut Body, env: &mut Env) {
        let Some(link) = self.link.as_mut().filter(|link| link.conn == conn) else {
            return;
        };
        match message {
            Down::Opened {
                session,
                managers,
                period,
            } => {
                env.tell(|| format!("agent {} has session {session}", me.host));
                link.session = Some(session);
                link.since = env.now;
                link.period = period;
                if self.managers.update(managers.clone()) {
                    body.ledger.managers = managers;
                }
                self.reporter.lost();
                self.timer(period, Timer::Beat(conn), me, env);
            }
            Down::Managers(managers) => {
                if self.managers.update(managers.clone()) {
                    body.ledger.managers = managers;
                }
            }
            Down::Redirect(leader) => {
                let here = link.address.clone();
                self.managers.redirect(&here, &leader);
                self.link = None;
                self.dial_after(MS, me, env);
            }
            Down::Beaten => {
                link.beats += 2;
                let period = link.period;
                self.timer(period, Timer::Beat(conn), me, env);
            }
            Down::Reported => {
                link.reports += 2;
                self.reporter.delivered();
            }
            Down::Assignments(message) => {
                let to_check = env.oracle.clone();
                to_check.lock().told(me.host, &message, env.now);
                env.tell(|| {
                    format!(
                        "agent {} is told {} -> {}",
                        me.host, message.applies_to, message.results_in
                    )
                });
                self.messages.push_back(*message);
                env.reach(Point::Told, me.host);
            }
            Down::Closed => self.end_session(me, env),
        }
        self.work(me, body, env);
    }

    /// A container's process has ended.
    pub fn on_exit(&mut self, task: &TaskId, me: Me, body: &mut Body, env: &mut Env) {
        let waiting = self.runners.get(task).and_then(|runner| runner.op);
        if let Some((Op::Wait, number)) = waiting {
            self.op_done(task, number, me, body, env);
        }
        self.work(me, body, env);
    }

    fn converge(&mut self, number: u64, me: Me, env: &mut Env) {
        let Some(place) = self.wanted.iter().position(|(n, _)| *n == number) else {
            return;
        };
        let (_, view) = self
            .wanted
            .drain(..=place)
            .next_back()
            .expect("it was found");
        self.names = Records::from_view(&view);
        crate::plane::check(me.host, &view, env);
        self.tried = number;
        self.view = Some(view);
    }

    /// Goes on with whatever can go on.
    fn work(&mut self, me: Me, body: &mut Body, env: &mut Env) {
        loop {
            let tried = self.tried;
            if let Some((_, touched)) = self.held_back.take_if(|(number, _)| *number <= tried) {
                self.act(touched, me, body, env);
            }
            if self.held_back.is_some() {
                break;
            }
            let Some(message) = self.messages.pop_front() else {
                break;
            };
            self.apply(message, me, body, env);
        }
        self.speak(me, env);
    }

    fn apply(&mut self, message: Message, me: Me, body: &mut Body, env: &mut Env) {
        let Ok(mut touched) = self.assignments.apply(message) else {
            self.messages.clear();
            return self.end_session(me, env);
        };
        for id in &touched.updated {
            if let Some(task) = self.assignments.tasks().get(id) {
                body.ledger.tasks.insert(id.clone(), task.clone());
            }
        }
        for id in &touched.removed {
            self.reporter.forget(id);
        }
        for (id, status) in &touched.unreported {
            self.reporter.push(id.clone(), status.clone());
        }
        let number = match touched.view.take() {
            Some(view) => {
                body.ledger.view = Some(Arc::clone(&view));
                self.want(view, me, env)
            }
            None => 0,
        };
        self.held_back = Some((number, touched));
    }

    fn act(&mut self, touched: Touched, me: Me, body: &mut Body, env: &mut Env) {
        for id in touched.removed {
            if let Some(runner) = self.runners.get_mut(&id) {
                runner.is_removed = true;
                self.changed(&id, me, body, env);
            } else {
                body.ledger.tasks.remove(&id);
            }
        }
        for id in touched.updated {
            self.order(&id, me, body, env);
        }
        let waiting = self
            .runners
            .iter()
            .filter(|(_, runner)| runner.files.is_none());
        let waiting: Vec<TaskId> = waiting.map(|(id, _)| id.clone()).collect();
        for id in waiting {
            self.order(&id, me, body, env);
        }
    }

    fn order(&mut self, id: &TaskId, me: Me, body: &mut Body, env: &mut Env) {
        let Some(task) = self.assignments.tasks().get(id) else {
            return;
        };
        let files = self.assignments.files(task);
        match self.runners.get_mut(id) {
            Some(runner) if runner.is_removed => return,
            Some(runner) => {
                runner.order = task.clone();
                runner.files = files;
            }
            None => {
                let runner = Runner {
                    held: task.clone(),
                    order: task.clone(),
                    files,
                    is_removed: false,
                    op: None,
                    is_retrying: false,
                    begun: Default::default(),
                };
                self.runners.insert(id.clone(), runner);
            }
        }
        self.changed(id, me, body, env);
    }

    /// A runner has new orders: some operations are dropped for them, others are not.
    fn changed(&mut self, id: &TaskId, me: Me, body: &mut Body, env: &mut Env) {
        let Some(runner) = self.runners.get_mut(id) else {
            return;
        };
        if let Some((op, _)) = runner.op {
            let stops = runner.is_removed || must_stop(&runner.order);
            let drops = runner.is_retrying
                || match op {
                    Op::Prepare | Op::Start | Op::BecomeHealthy => stops,
                    Op::Wait => {
                        let begun = (&runner.begun.0, &runner.begun.1);
                        stops || begun != (&runner.order.networks, &runner.order.ports)
                    }
                    Op::Shutdown | Op::Remove => false,
                };
            if !drops {
                return;
            }
            runner.op = None;
            runner.is_retrying = false;
        }
        self.drive(id, me, body, env);
    }

    /// Takes a runner from step to step until it waits for something.
    fn drive(&mut self, id: &TaskId, me: Me, body: &mut Body, env: &mut Env) {
        loop {
            let now = me.clock.read(env.now);
            let Some(runner) = self.runners.get_mut(id) else {
                return;
            };
            runner.held = merged(Some(&runner.held), runner.order.clone());
            if runner.is_removed {
                runner.held.desired_state = runner.held.desired_state.max(TaskState::Shutdown);
            }
            let is_over = runner.is_removed && runner.held.status.state.is_terminal();
            let step = if is_over {
                Step::Run(Op::Remove)
            } else {
                next_step(&runner.held, now)
            };
            match step {
                Step::Idle => return,
                Step::Report(status) => {
                    runner.held.status = status.clone();
                    self.observe(id, &status, body, env);
                }
                Step::Run(Op::Prepare) if runner.files.is_none() => return,
                Step::Run(op) => {
                    self.next_op += 1;
                    let number = self.next_op;
                    runner.op = Some((op, number));
                    runner.begun = (runner.order.networks.clone(), runner.order.ports.clone());
                    let container = body.containers.get(id);
                    let runs = container.is_some_and(Container::runs);
                    let delay = match op {
                        Op::Prepare => env.rng.range(MS, 300 * MS),
                        Op::Start | Op::BecomeHealthy => env.rng.range(MS, 200 * MS),
                        Op::Wait if runs => return, // until it exits
                        Op::Shutdown if runs => {
                            let task = &runner.held;
                            env.oracle.clone().lock().stopping(me.host, task, env.now);
                            env.rng.range(10 * MS, env.faults.grace)
                        }
                        Op::Wait | Op::Shutdown | Op::Remove => MS,
                    };
                    let timer = Timer::Op(id.clone(), number);
                    return self.timer(delay, timer, me, env);
                }
            }
        }
    }

    fn op_done(&mut self, id: &TaskId, number: u64, me: Me, body: &mut Body, env: &mut Env) {
        let Some(runner) = self.runners.get_mut(id) else {
            return;
        };
        let Some((op, _)) = runner.op.take_if(|(_, n)| *n == number) else {
            return;
        };
        if std::mem::take(&mut runner.is_retrying) {
            return self.drive(id, me, body, env);
        }
        let performed = perform(op, &runner.held, me, body, env);
        if op == Op::Remove {
            self.runners.remove(id);
            if self.assignments.tasks().contains_key(id) {
                self.order(id, me, body, env);
            } else {
                body.ledger.tasks.remove(id);
            }
            return;
        }
        match on_result(&runner.held, op, performed, me.clock.read(env.now)) {
            Outcome::Moved(status) => {
                runner.held.status = status.clone();
                self.observe(id, &status, body, env);
                self.drive(id, me, body, env);
            }
            Outcome::Retry => {
                self.next_op += 1;
                runner.op = Some((op, self.next_op));
                runner.is_retrying = true;
                let timer = Timer::Op(id.clone(), self.next_op);
                self.timer(RETRY_PAUSE, timer, me, env);
            }
        }
    }

    fn observe(&mut self, id: &TaskId, status: &TaskStatus, body: &mut Body, env: &Env) {
        env.tell(|| format!("task {id} is {}", status.state));
        if self.assignments.observe(id, status).is_some() {
            if let Some(task) = body.ledger.tasks.get_mut(id) {
                task.status = status.clone();
            }
            self.reporter.push(id.clone(), status.clone());
        }
    }

    /// Tells the manager what it does not know yet.
    fn speak(&mut self, me: Me, env: &mut Env) {
        let Some(link) = &mut self.link else { return };
        let (Some(session), conn, to) = (link.session, link.conn, link.to) else {
            return;
        };
        let version = self.view.as_ref().map(|view| view.version);
        if let Some(version) = version.filter(|version| link.told_view != Some(*version)) {
            link.told_view = Some(version);
            env.up(me.host, to, conn, Up::AcknowledgeView(session, version));
        }
        if let Some(report) = self.reporter.poll_report() {
            link.reports += 2;
            let number = link.reports;
            env.up(me.host, to, conn, Up::Report(session, report));
            env.reach(Point::Report, me.host);
            self.timer(CALL_TIMEOUT, Timer::Overdue(conn, number), me, env);
        }
    }
}
