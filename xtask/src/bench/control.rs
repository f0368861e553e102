//! The control plane: how it grows, how fast it writes, and what becomes of it when managers die.

use anyhow::Result;

use super::{Bench, Pair};
use crate::shell;

/// The pairs of this subject.
pub(super) const PAIRS: &[Pair] = &[
    Pair {
        name: "cluster",
        about: "three managers and 10 to 1,000 agents that run nothing: tasks/s to RUNNING, the leader's memory",
        run: |_| herd("cluster"),
    },
    Pair {
        name: "failover",
        about: "the leader is killed, or stopped, 100 times: time to the next acknowledged write, beside etcd",
        run: |_| herd("failover"),
    },
    Pair {
        name: "etcd",
        about: "writes of 256 bytes by 100 clients on three managers, beside etcd",
        run: |_| herd("etcd"),
    },
    Pair {
        name: "crash",
        about: "daemons of managers are killed 200 times while clients write: no acknowledged write is lost",
        run: crash,
    },
];

/// Managers that are killed.
const KILLS: &str = "200";

fn herd(what: &str) -> Result<()> {
    shell::run(&shell::example("herd")?.to_string_lossy(), &[what])
}

/// The test of the clusters' rung, longer.
fn crash(bench: &Bench) -> Result<()> {
    let test = "crash::no_acknowledged_write_is_lost_when_managers_are_killed";
    let program = format!("SHOAL_BIN={}", bench.shoal.display());
    let kills = format!("SHOAL_TEST_KILLS={KILLS}");
    let cargo = shell::cargo();
    let test_of = ["test", "--quiet", "--workspace", "--test", "cluster"];
    let alone = ["--", "--exact", test, "--nocapture"];
    let all = [
        &[program.as_str(), &kills, &cargo],
        &test_of[..],
        &alone[..],
    ]
    .concat();
    shell::run("env", &all)
}
