//! Writes of 256 bytes by 100 clients, to three managers and to three members of etcd, in turn.
//!
//! Both sides are asked over gRPC at their leader. Ours over mutual TLS, each write a `Control.Write` that makes a config:
//! checked, decided, replicated, synced on a majority and applied; etcd's over plain TCP, each a `KV.Put`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use futures_util::future::{BoxFuture, FutureExt};
use shoal_api::wire::{WriteRequest, control_client::ControlClient};
use shoal_ca::client_config;
use shoal_manager::io::grpc::client::dial;
use tokio::task::JoinSet;

use crate::{disk, etcd, manager};

const CLIENTS: usize = 100;
const BYTES: usize = 256;
/// How long a round writes to one side.
const ROUND: Duration = Duration::from_secs(5);
const ROUNDS: usize = 3;

pub(crate) async fn run(rounds: &[usize]) -> Result<()> {
    let rounds = rounds.first().copied().unwrap_or(ROUNDS);
    let disk = disk()?;
    let mut managers = manager::three(disk.path())?;
    let members = etcd::three(disk.path()).await?;
    let mut ratios = Vec::new();
    for round in 0..rounds {
        let place = manager::leader(&mut managers)?;
        let leader = &managers[place];
        let identity = leader.identity()?;
        let tls = client_config(identity.root(), Some(&identity))?;
        // On both sides connections are made before the time runs.
        let mut connections = Vec::new();
        for number in 0..CLIENTS {
            let mut client = ControlClient::new(dial(&leader.address, tls.clone()));
            let first = manager::put(&format!("r{round}-c{number}"), BYTES);
            client.write(WriteRequest::from(&first)).await?;
            connections.push(client);
        }
        let ours = clients(|number| {
            let client = connections[number].clone();
            Box::new(move |write| {
                let name = format!("r{round}-c{number}-{write}");
                let request = WriteRequest::from(&manager::put(&name, BYTES));
                let mut client = client.clone();
                async move { Ok(client.write(request).await.map(drop)?) }.boxed()
            })
        });
        let ours = ours.await?;
        let url = &members[etcd::leader(&members).await?].client;
        let mut connections = Vec::new();
        for _ in 0..CLIENTS {
            connections.push(etcd::Client::connect(url).await?);
        }
        let theirs = clients(|number| {
            let client = connections[number].clone();
            Box::new(move |write| {
                let key = format!("r{round}-c{number}-{write}");
                let mut client = client.clone();
                async move { Ok(client.put(&key, &[b'x'; BYTES]).await?) }.boxed()
            })
        });
        let theirs = theirs.await?;
        println!(
            "round {round}: shoal {ours:.0} writes/s, etcd {theirs:.0} writes/s, ratio {:.2}",
            ours / theirs
        );
        ratios.push(ours / theirs);
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "writes of {BYTES} bytes by {CLIENTS} clients on three managers: shoal/etcd {:.2} ({:.2} to {:.2}, {rounds} rounds)",
        ratios[ratios.len() / 2],
        ratios[0],
        ratios[ratios.len() - 1],
    );
    Ok(())
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
