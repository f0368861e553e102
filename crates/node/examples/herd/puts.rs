//! Writes of 256 bytes by 100 clients, to three managers and to three members of etcd, in turn.
//!
//! All sides are asked over gRPC at their leader, each client on a connection of its own. Ours over mutual TLS, each write a
//! `Control.Write` that makes a config: checked, decided, replicated, sealed, synced on a majority and applied; etcd's each a
//! `KV.Put`, once over TLS (its peers mutually, its clients by the same code as ours) and once in the clear.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use futures_util::future::{BoxFuture, FutureExt};
use shoal_api::wire::{WriteRequest, control_client::ControlClient};
use shoal_ca::client_config;
use shoal_manager::io::grpc::client::dial;
use tokio::task::JoinSet;

use crate::{
    disk,
    etcd::{self, Talk},
    manager,
};

const CLIENTS: usize = 100;
const BYTES: usize = 256;
/// How long a round writes to one side.
const ROUND: Duration = Duration::from_secs(5);
const ROUNDS: usize = 3;

/// How many times as many writes as etcd over TLS ours shall be.
const GOAL: f64 = 2.0;

pub(crate) async fn run(rounds: &[usize]) -> Result<()> {
    let rounds = rounds.first().copied().unwrap_or(ROUNDS);
    let disk = disk()?;
    let mut managers = manager::three(disk.path())?;
    let secured = etcd::three(disk.path(), Talk::Tls).await?;
    let clear = etcd::three(disk.path(), Talk::Clear).await?;
    let (mut to_secured, mut to_clear) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let ours = write_ours(&mut managers, round).await?;
        let tls = write_theirs(&secured, round).await?;
        let plain = write_theirs(&clear, round).await?;
        println!(
            "round {round}: shoal {ours:.0} writes/s; etcd over TLS {tls:.0}, ratio {:.2}; etcd in the clear {plain:.0}, ratio {:.2}",
            ours / tls,
            ours / plain
        );
        to_secured.push(ours / tls);
        to_clear.push(ours / plain);
    }
    println!("writes of {BYTES} bytes by {CLIENTS} clients on three managers, {rounds} rounds:");
    let middle = tell("over TLS", &mut to_secured);
    tell("in the clear", &mut to_clear);
    tell_restart(&mut managers)?;
    ensure!(middle >= GOAL, "less than {GOAL} times etcd's rate");
    Ok(())
}

/// Prints the ratios in brief; gives the one in the middle.
fn tell(talk: &str, ratios: &mut [f64]) -> f64 {
    ratios.sort_by(f64::total_cmp);
    let (middle, most) = (ratios[ratios.len() / 2], ratios[ratios.len() - 1]);
    println!(
        "  shoal/etcd {talk}: {middle:.2} ({:.2} to {most:.2})",
        ratios[0]
    );
    middle
}

/// How soon a manager with all that behind it is back: killed, started, and a write acknowledged through it.
fn tell_restart(managers: &mut [manager::Process]) -> Result<()> {
    let follower = (manager::leader(managers)? + 1) % managers.len();
    let configs = managers[follower].ask("configs")?;
    managers[follower].program.kill();
    let began = Instant::now();
    managers[follower].restart()?;
    let ready = began.elapsed();
    let mut attempt = 0;
    while managers[follower].ask(&format!("put back-{attempt}"))? != "ok" {
        attempt += 1;
    }
    println!(
        "  a manager with {configs} objects, killed and started: ready after {:.0} ms, a write through it after {:.0} ms",
        ready.as_secs_f64() * 1e3,
        began.elapsed().as_secs_f64() * 1e3
    );
    Ok(())
}

async fn write_ours(managers: &mut [manager::Process], round: usize) -> Result<f64> {
    let place = manager::leader(managers)?;
    let leader = &managers[place];
    let identity = leader.identity()?;
    let tls = client_config(identity.root(), Some(&identity))?;
    // Everywhere connections are made before the time runs.
    let mut connections = Vec::new();
    for number in 0..CLIENTS {
        let mut client = ControlClient::new(dial(&leader.address, tls.clone()));
        let first = manager::put(&format!("r{round}-c{number}"), BYTES);
        client.write(WriteRequest::from(&first)).await?;
        connections.push(client);
    }
    clients(|number| {
        let client = connections[number].clone();
        Box::new(move |write| {
            let name = format!("r{round}-c{number}-{write}");
            let request = WriteRequest::from(&manager::put(&name, BYTES));
            let mut client = client.clone();
            async move { Ok(client.write(request).await.map(drop)?) }.boxed()
        })
    })
    .await
}

async fn write_theirs(members: &[etcd::Member], round: usize) -> Result<f64> {
    let place = &members[etcd::leader(members).await?].client;
    let mut connections = Vec::new();
    for number in 0..CLIENTS {
        let mut client = etcd::Client::connect(place).await?;
        client
            .put(&format!("r{round}-c{number}"), &[b'x'; BYTES])
            .await?;
        connections.push(client);
    }
    clients(|number| {
        let client = connections[number].clone();
        Box::new(move |write| {
            let key = format!("r{round}-c{number}-{write}");
            let mut client = client.clone();
            async move { Ok(client.put(&key, &[b'x'; BYTES]).await?) }.boxed()
        })
    })
    .await
}

/// Makes a client's write of this number.
type Write = Box<dyn FnMut(usize) -> BoxFuture<'static, Result<()>> + Send>;

/// Lets the clients write, each its next when the one before is acknowledged; acknowledged writes in a second.
async fn clients(mut client: impl FnMut(usize) -> Write) -> Result<f64> {
    let written = Arc::new(AtomicUsize::new(0));
    let mut all = JoinSet::new();
    let began = Instant::now();
    for number in 0..CLIENTS {
        let (mut write, written) = (client(number), Arc::clone(&written));
        all.spawn(async move {
            let mut count = 0;
            while began.elapsed() < ROUND {
                write(count).await?;
                count += 1;
            }
            written.fetch_add(count, Ordering::Relaxed);
            anyhow::Ok(())
        });
    }
    while let Some(done) = all.join_next().await {
        done??;
    }
    Ok(written.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64())
}
