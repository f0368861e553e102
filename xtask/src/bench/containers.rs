//! Starting containers, against docker and against a runtime without an engine.

mod bare;

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{
    Bench, Pair,
    api::{Api, together},
    docker::{IMAGE, Sides},
    tell,
};
use crate::shell;

/// The pairs of this subject.
pub(super) const PAIRS: &[Pair] = &[
    Pair {
        name: "run",
        about: "`run --rm IMAGE true` against docker: by the clients, and by the API",
        run,
    },
    Pair {
        name: "runc",
        about: "`run --rm IMAGE true` against bare `runc run` of the same bundle",
        run: bare::against_runc,
    },
    Pair {
        name: "burst",
        about: "200 containers with networks, made and started 16 at a time, against docker",
        run: burst,
    },
    Pair {
        name: "density",
        about: "start of one more container beside 10, 100 and 1,000 running ones, and docker's beside 10 and 100",
        run: density,
    },
];

const ROUNDS: usize = 20;
const BURST: usize = 200;
const BURST_ROUNDS: usize = 10;
/// Requests under way at a time while many containers are made or removed.
const AT_ONCE: usize = 16;
/// Containers that run while one more is started. A bridge has room for 1023.
const DENSITIES: [usize; 3] = [10, 100, 1_000];
/// Docker's shims would take 12 GB beside a thousand.
const DENSITIES_OF_DOCKER: [usize; 2] = [10, 100];
/// Starts of one more container per density, one after the other.
const SAMPLES: usize = 20;
/// A start is as quick among many containers as among few if it takes at most so many times as long: twice the noise of
/// a machine of two processors.
const FLAT: f64 = 1.5;

/// A command that ends with SIGTERM's default of process 1, so it is only ever killed.
const IDLE: [&str; 2] = ["sleep", "1000000"];

fn run(bench: &Bench) -> Result<()> {
    let sides = Sides::up(bench)?;
    let (ours, theirs) = (sides.our_api(), sides.their_api());
    let (our_host, their_host) = (ours.host(), theirs.host());
    let words = ["run", "--rm", IMAGE, "true"];
    let shoal = bench.shoal.to_string_lossy();
    let clients = || -> Result<(Duration, Duration)> {
        let began = Instant::now();
        shell::read(&shoal, &[&["-H", our_host.as_str()], &words[..]].concat())?;
        let took = began.elapsed();
        let began = Instant::now();
        shell::read(
            super::docker::CLIENT,
            &[&["-H", their_host.as_str()], &words[..]].concat(),
        )?;
        Ok((took, began.elapsed()))
    };
    let calls = || -> Result<(Duration, Duration)> {
        let began = Instant::now();
        ours.run(IMAGE, &["true"])?;
        let took = began.elapsed();
        let began = Instant::now();
        theirs.run(IMAGE, &["true"])?;
        Ok((took, began.elapsed()))
    };
    rounds("run --rm IMAGE true, by the clients", clients)?;
    rounds("the same by the API", calls)
}

/// Measures both sides in turn, after one round that does not count.
fn rounds(name: &str, round: impl Fn() -> Result<(Duration, Duration)>) -> Result<()> {
    round()?;
    let times = (0..ROUNDS).map(|_| round()).collect::<Result<Vec<_>>>()?;
    tell(name, "docker", &times);
    Ok(())
}

fn burst(bench: &Bench) -> Result<()> {
    let sides = Sides::up(bench)?;
    let once = |api: &Api| -> Result<Duration> {
        let began = Instant::now();
        let up = crowd(api, BURST)?;
        let took = began.elapsed();
        together(&up, AT_ONCE, |id| api.remove(id))?;
        Ok(took)
    };
    let (ours, theirs) = (sides.our_api(), sides.their_api());
    let mut times = Vec::new();
    for _ in 0..BURST_ROUNDS {
        times.push((once(&ours)?, once(&theirs)?));
    }
    tell("200 containers with networks to running", "docker", &times);
    for (name, of) in [("shoal", 0), ("docker", 1)] {
        let rates = times.iter().map(|(ours, theirs)| {
            let took = if of == 0 { ours } else { theirs };
            200.0 / took.as_secs_f64()
        });
        let rates: Vec<String> = rates.map(|rate| format!("{rate:.0}")).collect();
        println!("  {name}: {} starts per second", rates.join(", "));
    }
    Ok(())
}

/// Makes and starts that many idle containers on the default network.
pub(super) fn crowd(api: &Api, count: usize) -> Result<Vec<String>> {
    together(&vec![(); count], AT_ONCE, |()| {
        let id = api.create(IMAGE, &IDLE, "")?;
        api.start(&id)?;
        Ok(id)
    })
}

fn density(bench: &Bench) -> Result<()> {
    let sides = Sides::up(bench)?;
    let sides = [
        ("shoal", sides.our_api(), &DENSITIES[..]),
        ("docker", sides.their_api(), &DENSITIES_OF_DOCKER[..]),
    ];
    for (name, api, densities) in &sides {
        let (mut up, mut medians) = (Vec::new(), Vec::new());
        for count in *densities {
            up.extend(crowd(api, count - up.len())?);
            let (mut times, mut more) = (Vec::new(), Vec::new());
            for _ in 0..SAMPLES {
                let began = Instant::now();
                let id = api.create(IMAGE, &IDLE, "")?;
                api.start(&id)?;
                times.push(began.elapsed());
                more.push(id);
            }
            // Only now: the kernel goes on with what a removal left behind while the next one starts.
            together(&more, AT_ONCE, |id| api.remove(id))?;
            times.sort();
            println!(
                "{name}: one more beside {count} running containers: median {:.1} ms ({:.1} to {:.1})",
                millis(times[SAMPLES / 2]),
                millis(times[0]),
                millis(times[SAMPLES - 1]),
            );
            medians.push(times[SAMPLES / 2].as_secs_f64());
        }
        let (least, most) = (densities[0], densities[densities.len() - 1]);
        let growth = (medians[medians.len() - 1] / medians[0]).ln();
        #[allow(clippy::cast_precision_loss)]
        let exponent = growth / (most as f64 / least as f64).ln();
        println!(
            "{name}: from {least} to {most} it grows with the power {exponent:.2} of their number"
        );
        let ratio = medians[medians.len() - 1] / medians[0];
        let verdict = if ratio <= FLAT { "met" } else { "NOT met" };
        println!("{name}: {ratio:.2} times as long beside {most}, goal at most {FLAT}: {verdict}");
        together(&up, AT_ONCE, |id| api.remove(id))?;
    }
    Ok(())
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
