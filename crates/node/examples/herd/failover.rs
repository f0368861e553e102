//! A leader that is gone, or that stands still: time to the next acknowledged write.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use tokio::time::timeout;

use crate::{
    disk,
    etcd::{self, Talk},
    manager,
};

/// Leaders that are lost in each way.
const ROUNDS: usize = 100;
/// In 99 of 100 cases a write is acknowledged within this time.
const GOAL: Duration = Duration::from_secs(1);

/// A line of progress comes after so many rounds.
const ROUNDS_TOLD: usize = 10;

/// How long etcd is given for an answer before it is asked again.
const PATIENCE: Duration = Duration::from_millis(200);

/// How a leader is lost.
#[derive(Clone, Copy, PartialEq)]
enum Loss {
    Killed,
    Stopped,
}

pub(crate) async fn run(rounds: &[usize]) -> Result<()> {
    let rounds = rounds.first().copied().unwrap_or(ROUNDS);
    let disk = disk()?;
    let mut managers = manager::three(disk.path())?;
    let mut members = etcd::three(disk.path(), Talk::Clear).await?;
    let mut missed = Vec::new();
    for (loss, name) in [(Loss::Killed, "kill -9"), (Loss::Stopped, "SIGSTOP")] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            ours.push(lose_ours(&mut managers, loss, round)?);
            theirs.push(lose_theirs(&mut members, loss, round).await?);
            if (round + 1) % ROUNDS_TOLD == 0 {
                let most = ours.iter().max().map_or(0, Duration::as_millis);
                println!(
                    "  {name}: {} of {rounds} rounds, shoal {most} ms at most so far",
                    round + 1
                );
            }
        }
        tell(name, "shoal", &mut ours);
        tell(name, "etcd", &mut theirs);
        if ours[rank(&ours, 99)] > GOAL {
            missed.push(name);
        }
    }
    ensure!(
        missed.is_empty(),
        "p99 is more than {GOAL:?} by {}",
        missed.join(" and ")
    );
    println!("p99 is at most {GOAL:?} either way");
    Ok(())
}

fn rank(times: &[Duration], percent: usize) -> usize {
    (times.len() * percent).div_ceil(100).max(1) - 1
}

fn tell(loss: &str, side: &str, times: &mut [Duration]) {
    times.sort();
    println!(
        "leader lost by {loss}, next write acknowledged: {side} p50 {:.0} ms, p99 {:.0} ms, most {:.0} ms ({} times)",
        times[rank(times, 50)].as_secs_f64() * 1e3,
        times[rank(times, 99)].as_secs_f64() * 1e3,
        times[times.len() - 1].as_secs_f64() * 1e3,
        times.len(),
    );
}

/// Writes at a manager that stays, again and again until a write is acknowledged.
fn lose_ours(managers: &mut [manager::Process], loss: Loss, round: usize) -> Result<Duration> {
    let lost = manager::leader(managers)?;
    let stays = (lost + 1) % managers.len();
    // The one that is asked is up to date and knows the leader.
    managers[stays].ask(&format!("put before-{}-{round}", loss as u8))?;
    let began = Instant::now();
    match loss {
        Loss::Killed => managers[lost].program.kill(),
        Loss::Stopped => managers[lost].program.signal(Signal::SIGSTOP)?,
    }
    let mut attempt = 0;
    while managers[stays].ask(&format!("put after-{}-{round}-{attempt}", loss as u8))? != "ok" {
        attempt += 1;
    }
    let took = began.elapsed();
    match loss {
        Loss::Killed => managers[lost].restart()?,
        Loss::Stopped => managers[lost].program.signal(Signal::SIGCONT)?,
    }
    // Back before the next round.
    while managers[lost].ask(&format!("put back-{}-{round}-{attempt}", loss as u8))? != "ok" {
        attempt += 1;
    }
    Ok(took)
}

/// The same with etcd.
async fn lose_theirs(members: &mut [etcd::Member], loss: Loss, round: usize) -> Result<Duration> {
    let lost = etcd::leader(members).await?;
    let stays = (lost + 1) % members.len();
    let mut client = etcd::Client::connect(&members[stays].client).await?;
    client.put("before", b"x").await?;
    let began = Instant::now();
    match loss {
        Loss::Killed => members[lost].program.kill(),
        Loss::Stopped => members[lost].program.signal(Signal::SIGSTOP)?,
    }
    // A member without a leader says nothing for 7 s; a client in a hurry asks again.
    let key = format!("after-{round}");
    while !matches!(timeout(PATIENCE, client.put(&key, b"x")).await, Ok(Ok(()))) {}
    let took = began.elapsed();
    match loss {
        Loss::Killed => members[lost].restart()?,
        Loss::Stopped => members[lost].program.signal(Signal::SIGCONT)?,
    }
    loop {
        if let Ok(mut back) = etcd::Client::connect(&members[lost].client).await
            && back.put(&format!("back-{round}"), b"x").await.is_ok()
        {
            return Ok(took);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
