//! One seed from beginning to end.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{rng::Rng, trouble::Faults, world::World};

/// Events after which a run is taken for one that never ends.
const STEPS_MAX: u64 = 3_000_000;

/// What became of a seed.
#[derive(Debug, Clone)]
pub struct Run {
    /// The seed.
    pub seed: u64,
    /// A number that depends on everything that happened.
    pub hash: u64,
    /// Events.
    pub steps: u64,
    /// Entries of the log that changed the state.
    pub entries: u64,
    /// What was wrong, if anything was.
    pub problem: Option<String>,
}

impl Run {
    /// Whether something was wrong.
    pub fn failed(&self) -> bool {
        self.problem.is_some()
    }
}

/// Runs a seed.
pub fn run(seed: u64, trace: bool) -> Run {
    let faults = Faults::draw(&mut Rng::new(seed ^ 0x5eed));
    let mut made = None;
    // A decision that ends in a panic would end the product's process: that is a finding like any other.
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let world = made.insert(World::new(seed, faults));
        world.env.trace = trace;
        world.env.oracle.lock().trace = trace;
        world.env.tell(|| format!("{faults:?}"));
        while !world.is_done && world.problem().is_none() && world.step() {
            if world.steps > STEPS_MAX {
                world.env.blame("it never ends");
            }
        }
    }));
    let panic = panicked.err().map(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        format!("panic: {}", text.unwrap_or("without a word"))
    });
    let Some(world) = made else {
        return Run {
            seed,
            hash: 0,
            steps: 0,
            entries: 0,
            problem: panic,
        };
    };
    let problem = world.problem().or(panic);
    let oracle = world.env.oracle.lock();
    Run {
        seed,
        hash: world.env.hash ^ oracle.fingerprint(),
        steps: world.steps,
        entries: oracle.states.len() as u64,
        problem,
    }
}
