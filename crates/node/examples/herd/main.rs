//! Real managers in processes of their own, a herd of agents that run nothing, and etcd beside them: what
//! `cargo xtask bench cluster`, `failover` and `etcd` measure.
//!
//! ```text
//! herd cluster [NODES …]   tasks to RUNNING by 10 to 1,000 agents, or by these numbers of them
//! herd failover [ROUNDS]   a leader that is killed, and one that is stopped: time to the next acknowledged write
//! herd etcd [ROUNDS]       writes of 256 bytes by 100 clients
//! ```
#![allow(clippy::print_stdout, reason = "a program for people")]

mod agents;
mod cluster;
mod etcd;
mod failover;
mod manager;
mod program;
mod puts;

// The managers of the product have its allocator.
use shoal_node as _;

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, getrlimit, setrlimit};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    allow_files()?;
    let runtime = tokio::runtime::Runtime::new()?;
    match words.as_slice() {
        // A process of the herd's own.
        ["manager", rest @ ..] => runtime.block_on(manager::serve(rest)),
        ["cluster", rest @ ..] => runtime.block_on(cluster::run(&numbers(rest)?)),
        ["failover", rest @ ..] => runtime.block_on(failover::run(&numbers(rest)?)),
        ["etcd", rest @ ..] => runtime.block_on(puts::run(&numbers(rest)?)),
        _ => bail!("usage: herd cluster [NODES …] | failover [ROUNDS] | etcd [ROUNDS]"),
    }
}

/// As many open files as may be: a thousand agents have several each. Managers are started with the same.
fn allow_files() -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}

fn numbers(words: &[&str]) -> Result<Vec<usize>> {
    let number = |word: &&str| {
        word.parse()
            .with_context(|| format!("{word:?} is not a number"))
    };
    words.iter().map(number).collect()
}

/// Where the disks of the managers and of etcd are: the same one, and a real one.
fn disk() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new()
        .prefix("herd-")
        .tempdir_in("/var/tmp")?)
}

/// A port on loopback that nobody uses now.
fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok(listener.local_addr()?.port())
}
