//! Services, against docker's swarm mode.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{
    Bench, Pair,
    docker::{IMAGE, OURS, Sides, THEIRS},
    tell, until,
};

/// The pairs of this subject.
pub(super) const PAIRS: &[Pair] = &[Pair {
    name: "service",
    about: "a service of 50 replicas, created to running, against docker's swarm mode",
    run: replicas,
}];

/// Time from `service create` to all tasks running, docker's own way to wait left out.
fn replicas(bench: &Bench) -> Result<()> {
    let sides = Sides::up(bench)?;
    sides.ours(&["swarm", "init", "--advertise-addr", OURS])?;
    sides.theirs(&["swarm", "init", "--advertise-addr", THEIRS])?;
    let up = |side: &dyn Fn(&[&str]) -> Result<String>| -> Result<Duration> {
        let began = Instant::now();
        let words = [
            "service",
            "create",
            "--detach",
            "--quiet",
            "--name",
            "idle",
            "--replicas",
            "50",
        ];
        let rest = ["--stop-grace-period", "0s", IMAGE, "sleep", "100000"];
        side(&[words.as_slice(), rest.as_slice()].concat())?;
        until("50 tasks", || {
            Ok(side(&["service", "ls", "--format", "{{.Replicas}}"])?.starts_with("50/50"))
        })?;
        let took = began.elapsed();
        side(&["service", "rm", "idle"])?;
        until("no containers", || Ok(side(&["ps", "-aq"])?.is_empty()))?;
        Ok(took)
    };
    let mut times = Vec::new();
    for _ in 0..3 {
        times.push((
            up(&|words| sides.ours(words))?,
            up(&|words| sides.theirs(words))?,
        ));
    }
    tell(
        "service of 50 replicas, created to running",
        "docker",
        &times,
    );
    Ok(())
}
