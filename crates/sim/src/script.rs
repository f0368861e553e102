//! Stories in plain words, which both the simulator and a lab of real hosts can act out (`tests/scenarios`).
//!
//! One step a line, `#` begins a remark. Hosts are `n1`, `n2` and so on, the first ones are managers. A step that expects
//! something waits for it.

use shoal_api::{
    TaskState,
    object::{Node, Object, ObjectKey},
    spec::{Availability, NodeRole, NodeSpec, ServiceMode, ServiceSpec},
};
use shoal_manager::{
    Intent, Spec,
    core::state::{Kind, State},
};

use crate::{env::SECOND, manager::node_of, rest, trouble::Faults, user::named, world::World};

/// Virtual time that an expectation waits at most.
const PATIENCE: u64 = 180 * SECOND;

/// Of which host a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// That one; the first is 0.
    Host(usize),
    /// The one that leads when the step is reached.
    Leader,
}

/// A step of a story.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// `hosts N managers M`: the cluster to begin with; the first step.
    Hosts(usize, usize),
    /// `create SERVICE N`: a service with so many tasks.
    Create(String, u64),
    /// `scale SERVICE N`.
    Scale(String, u64),
    /// `update SERVICE`: replaces every task of it.
    Update(String),
    /// `remove SERVICE`.
    Remove(String),
    /// `drain HOST`.
    Drain(usize),
    /// `activate HOST`.
    Activate(usize),
    /// `promote HOST`.
    Promote(usize),
    /// `demote HOST` or `demote leader`.
    Demote(Who),
    /// `kill HOST` or `kill leader`: it loses power.
    Kill(Who),
    /// `crash HOST` or `crash leader`: its daemon ends, its containers go on.
    Crash(Who),
    /// `start HOST`, or `start all` that do not run.
    Start(Option<usize>),
    /// `cut HOST HOST`: nothing passes between them.
    Cut(usize, usize),
    /// `isolate HOST` or `isolate leader`: nothing passes between it and any other host.
    Isolate(Who),
    /// `heal`: everything passes.
    Heal,
    /// `running SERVICE N [not on HOST]`: expects so many running tasks, and no other ones.
    Running(String, u64, Option<usize>),
    /// `gone SERVICE`: expects that nothing is left of it.
    Gone(String),
    /// `managers N`: expects so many managers, all of which answer.
    Managers(usize),
    /// `leaderless`: expects that nobody leads, so that nothing can be changed.
    Leaderless,
}

/// Reads a story.
///
/// # Errors
/// The line that makes no sense.
pub fn parse(text: &str) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let step = step(&words).ok_or_else(|| format!("line {}: {line}", number + 1))?;
        if steps.is_empty() != matches!(step, Step::Hosts(..)) {
            return Err(format!(
                "line {}: `hosts` comes first, and once",
                number + 1
            ));
        }
        steps.push(step);
    }
    Ok(steps)
}

fn step(words: &[&str]) -> Option<Step> {
    let host = |word: &str| {
        word.strip_prefix('n')?
            .parse::<usize>()
            .ok()?
            .checked_sub(1)
    };
    let who = |word: &str| match word {
        "leader" => Some(Who::Leader),
        word => host(word).map(Who::Host),
    };
    Some(match words {
        ["hosts", hosts, "managers", managers] => {
            Step::Hosts(hosts.parse().ok()?, managers.parse().ok()?)
        }
        ["create", name, count] => Step::Create((*name).to_owned(), count.parse().ok()?),
        ["scale", name, count] => Step::Scale((*name).to_owned(), count.parse().ok()?),
        ["update", name] => Step::Update((*name).to_owned()),
        ["remove", name] => Step::Remove((*name).to_owned()),
        ["drain", node] => Step::Drain(host(node)?),
        ["activate", node] => Step::Activate(host(node)?),
        ["promote", node] => Step::Promote(host(node)?),
        ["demote", node] => Step::Demote(who(node)?),
        ["kill", node] => Step::Kill(who(node)?),
        ["crash", node] => Step::Crash(who(node)?),
        ["start", "all"] => Step::Start(None),
        ["start", node] => Step::Start(Some(host(node)?)),
        ["isolate", node] => Step::Isolate(who(node)?),
        ["cut", a, b] => Step::Cut(host(a)?, host(b)?),
        ["heal"] => Step::Heal,
        ["running", name, count] => Step::Running((*name).to_owned(), count.parse().ok()?, None),
        ["running", name, count, "not", "on", node] => {
            Step::Running((*name).to_owned(), count.parse().ok()?, Some(host(node)?))
        }
        ["gone", name] => Step::Gone((*name).to_owned()),
        ["managers", count] => Step::Managers(count.parse().ok()?),
        ["leaderless"] => Step::Leaderless,
        _ => return None,
    })
}

/// Acts a story out on virtual time.
///
/// # Errors
/// What did not come to pass, or what the oracle saw that must not be.
pub fn play(steps: &[Step], seed: u64) -> Result<(), String> {
    let Some(Step::Hosts(hosts, managers)) = steps.first() else {
        return Err("a story begins with `hosts`".to_owned());
    };
    let mut world = World::empty(seed, Faults::none(*managers, hosts - managers));
    for step in &steps[1..] {
        act(&mut world, step)?;
    }
    Ok(())
}

fn act(world: &mut World, step: &Step) -> Result<(), String> {
    let mut step = step.clone();
    if let Step::Kill(who) | Step::Crash(who) | Step::Isolate(who) | Step::Demote(who) = &mut step
        && *who == Who::Leader
    {
        await_(world, "a leader", |world| rest::leader(world).is_some())?;
        *who = Who::Host(rest::leader(world).expect("it was just there"));
    }
    match &step {
        Step::Hosts(..) => return Err("`hosts` comes once".to_owned()),
        Step::Kill(Who::Host(host)) => {
            world.dead.insert(*host);
            world.power_cut(*host);
        }
        Step::Crash(Who::Host(host)) => {
            world.dead.insert(*host);
            world.kill(*host);
        }
        Step::Start(host) => {
            let all: Vec<_> = world.dead.iter().copied().collect();
            for host in host.map_or(all, |host| vec![host]) {
                world.dead.remove(&host);
                world.start(host);
            }
        }
        Step::Cut(a, b) => {
            world.env.net.cut(*a, *b);
            world.env.net.cut(*b, *a);
        }
        Step::Isolate(Who::Host(host)) => {
            for other in (0..world.hosts.len()).filter(|other| other != host) {
                world.env.net.cut(*host, other);
                world.env.net.cut(other, *host);
            }
        }
        Step::Heal => world.env.net.heal(),
        _ => {}
    }
    reach(world, &step)
}

/// Lets time pass until something is so.
fn await_(world: &mut World, what: &str, is_so: impl Fn(&World) -> bool) -> Result<(), String> {
    let end = world.env.now + PATIENCE;
    while !is_so(world) {
        if world.env.now > end {
            return Err(format!("{what} did not come to pass"));
        }
        world.step();
    }
    Ok(())
}

/// Lets time pass until a step has come to pass; what users want is asked for again and again.
fn reach(world: &mut World, step: &Step) -> Result<(), String> {
    let end = world.env.now + PATIENCE;
    let mut ask_at = 0;
    let was = wish(&world.truth(), step, None).map(|(mark, _)| mark);
    loop {
        let truth = world.truth();
        if let Some(problem) = world.problem() {
            return Err(problem);
        }
        let wish = wish(&truth, step, was);
        if wish.is_none() && holds(world, &truth, step) {
            return Ok(());
        }
        if world.env.now > end {
            let tasks = truth
                .tasks()
                .map(|t| crate::oracle::describe(&Object::Task(t.as_ref().clone())));
            return Err(format!(
                "{step:?} did not come to pass:\n{}",
                tasks.collect::<Vec<_>>().join("\n")
            ));
        }
        if let Some((_, intent)) = wish
            && world.env.now >= ask_at
        {
            ask_at = world.env.now + SECOND;
            rest::ask(world, intent);
        }
        world.step();
    }
}

fn spec_of(name: &str, replicas: u64) -> ServiceSpec {
    let mut spec = ServiceSpec {
        annotations: named(name),
        mode: ServiceMode::Replicated { replicas },
        ..ServiceSpec::default()
    };
    "demo:1".clone_into(&mut spec.task.container.image);
    spec
}

/// What to ask for so that a step comes to pass, with a mark of how things stand; `None` if there is nothing to ask for.
fn wish(truth: &State, step: &Step, was: Option<u64>) -> Option<(u64, Intent)> {
    let service = |name: &str| {
        let key = truth.named(Kind::Service, name)?;
        match truth.object(key)? {
            Object::Service(service) => Some(service),
            _ => None,
        }
    };
    let change = |name: &str, change: &dyn Fn(&mut ServiceSpec)| {
        let service = service(name)?;
        let mut spec = service.spec.as_ref().clone();
        change(&mut spec);
        let intent = Intent::Update {
            key: ObjectKey::Service(service.id.clone()),
            version: service.meta.version,
            spec: Spec::Service(Box::new(spec.clone())),
        };
        (spec != *service.spec).then_some((service.spec.task.force_update, intent))
    };
    let node = |host: usize, change: &dyn Fn(&mut NodeSpec)| {
        let node = truth.node(&node_of(host))?;
        let mut spec = node.spec.clone();
        change(&mut spec);
        let intent = Intent::Update {
            key: ObjectKey::Node(node.id.clone()),
            version: node.meta.version,
            spec: Spec::Node(spec.clone()),
        };
        (spec != node.spec).then_some((0, intent))
    };
    match step {
        Step::Create(name, count) => {
            let intent = Intent::Create(Spec::Service(Box::new(spec_of(name, *count))));
            service(name).is_none().then_some((0, intent))
        }
        Step::Scale(name, count) => change(name, &|spec| {
            spec.mode = ServiceMode::Replicated { replicas: *count };
        }),
        Step::Update(name) => {
            let now = service(name)?.spec.task.force_update;
            let is_done = was.is_some_and(|was| now > was);
            let wish = change(name, &|spec| spec.task.force_update += 1);
            wish.filter(|_| !is_done)
        }
        Step::Remove(name) => {
            let key = ObjectKey::Service(service(name)?.id);
            Some((0, Intent::Remove { key, force: false }))
        }
        Step::Drain(host) => node(*host, &|spec| spec.availability = Availability::Drain),
        Step::Activate(host) => node(*host, &|spec| spec.availability = Availability::Active),
        Step::Promote(host) => node(*host, &|spec| spec.role = NodeRole::Manager),
        Step::Demote(Who::Host(host)) => node(*host, &|spec| spec.role = NodeRole::Worker),
        _ => None,
    }
}

/// Whether what a step expects is so.
fn holds(world: &World, truth: &State, step: &Step) -> bool {
    let of = |name: &str| {
        let tasks = truth.tasks().filter(|task| *task.service_name == *name);
        tasks.cloned().collect::<Vec<_>>()
    };
    match step {
        Step::Running(name, count, not_on) => {
            let tasks = of(name);
            let wanted = tasks
                .iter()
                .filter(|task| task.desired_state <= TaskState::Running);
            let running = wanted
                .clone()
                .filter(|task| task.status.state == TaskState::Running);
            let elsewhere = not_on.map(node_of);
            let is_there = wanted
                .clone()
                .any(|task| elsewhere.is_some() && task.node == elsewhere);
            wanted.count() as u64 == *count && running.count() as u64 == *count && !is_there
        }
        Step::Gone(name) => truth.named(Kind::Service, name).is_none() && of(name).is_empty(),
        Step::Managers(count) => {
            let of = |node: &&std::sync::Arc<Node>| {
                node.role == NodeRole::Manager && node.manager.is_some()
            };
            truth.nodes().filter(of).count() == *count && rest::all_managers_vote(world)
        }
        Step::Leaderless => rest::leader(world).is_none(),
        _ => true,
    }
}
