//! Stories in plain words, which both the simulator and a lab of real hosts can act out (`tests/scenarios`).
//!
//! One step a line, `#` begins a remark. Hosts are `n1`, `n2` and so on, the first ones are managers. A step that expects
//! something waits for it.

use shoal_api::{
    TaskState,
    object::{Object, ObjectKey},
    spec::{Availability, ServiceMode, ServiceSpec},
};
use shoal_manager::{
    Intent, Spec,
    core::state::{Kind, State},
};

use crate::{env::SECOND, manager::node_of, rest, trouble::Faults, user::named, world::World};

/// Virtual time that an expectation waits at most.
const PATIENCE: u64 = 180 * SECOND;

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
    /// `kill HOST`: it loses power.
    Kill(usize),
    /// `start HOST`.
    Start(usize),
    /// `cut HOST HOST`: nothing passes between them.
    Cut(usize, usize),
    /// `heal`: everything passes.
    Heal,
    /// `running SERVICE N [not on HOST]`: expects so many running tasks, and no other ones.
    Running(String, u64, Option<usize>),
    /// `gone SERVICE`: expects that nothing is left of it.
    Gone(String),
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
        ["kill", node] => Step::Kill(host(node)?),
        ["start", node] => Step::Start(host(node)?),
        ["cut", a, b] => Step::Cut(host(a)?, host(b)?),
        ["heal"] => Step::Heal,
        ["running", name, count] => Step::Running((*name).to_owned(), count.parse().ok()?, None),
        ["running", name, count, "not", "on", node] => {
            Step::Running((*name).to_owned(), count.parse().ok()?, Some(host(node)?))
        }
        ["gone", name] => Step::Gone((*name).to_owned()),
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
        match step {
            Step::Hosts(..) => return Err("`hosts` comes once".to_owned()),
            Step::Kill(host) => {
                world.dead.insert(*host);
                world.power_cut(*host);
            }
            Step::Start(host) => {
                world.dead.remove(host);
                world.start(*host);
            }
            Step::Cut(a, b) => {
                world.env.net.cut(*a, *b);
                world.env.net.cut(*b, *a);
            }
            Step::Heal => world.env.net.heal(),
            _ => {}
        }
        reach(&mut world, step)?;
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
        if wish.is_none() && holds(&truth, step) {
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
    let open = |host: usize, availability: Availability| {
        let node = truth.node(&node_of(host))?;
        let mut spec = node.spec.clone();
        spec.availability = availability;
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
        Step::Drain(host) => open(*host, Availability::Drain),
        Step::Activate(host) => open(*host, Availability::Active),
        _ => None,
    }
}

/// Whether what a step expects is so.
fn holds(truth: &State, step: &Step) -> bool {
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
        _ => true,
    }
}
