//! Managers that come and go: lost for good, moved, removed, restored from a file.

use anyhow::{Result, bail};
use shoal_tests::{
    lab::{TestLab, text},
    wait,
};

fn nodes(lab: &TestLab, host: &str) -> Result<String> {
    let format = "{{.Hostname}} {{.Status}} {{.ManagerStatus}}";
    lab.on(host, &["node", "ls", "--format", format])
}

/// Waits until `node ls` of a host has these lines: host, status and what it is as a manager.
pub(crate) fn wait_nodes(lab: &TestLab, host: &str, wanted: &[&str]) -> Result<()> {
    wait(&format!("{wanted:?}"), || {
        let listed = nodes(lab, host)?;
        let all = wanted
            .iter()
            .all(|line| listed.lines().any(|l| l.trim() == *line));
        Ok(if all { Ok(()) } else { Err(listed) })
    })
}

fn restart(lab: &TestLab, host: &str) -> Result<()> {
    lab.lab("kill", &["--daemon", host])?;
    lab.lab("start", &[host]).map(drop)
}

/// A service with one task on each of the hosts.
fn everywhere(lab: &TestLab, hosts: usize) -> Result<Vec<(String, String)>> {
    let words = [
        "service",
        "create",
        "--detach",
        "--name",
        "idle",
        "--mode",
        "global",
        "shoal-demo:latest",
        "idle",
    ];
    lab.on("n1", &words)?;
    lab.wait_running("idle", hosts)
}

#[test]
fn one_manager_of_three_goes_on_alone_and_the_others_come_back() -> Result<()> {
    let lab = TestLab::up(3, 3)?;
    everywhere(&lab, 3)?;
    let container = lab.on("n1", &["ps", "-q", "--no-trunc"])?;
    lab.lab("kill", &["n2"])?;
    wait_nodes(&lab, "n1", &["n2 Down Unreachable"])?;
    // Of the two that are left one alone could decide nothing.
    let (_, said) = lab.refused("n1", &["node", "demote", "n3"])?;
    assert!(
        said.contains("this would result in a loss of quorum"),
        "{said}"
    );
    lab.lab("kill", &["n3"])?;
    let (_, said) = lab.refused(
        "n1",
        &["service", "create", "--detach", "shoal-demo:latest", "idle"],
    )?;
    assert!(said.contains("The swarm does not have a leader."), "{said}");
    assert!(said.contains("shoal cluster recover"), "{said}");

    // The same as `shoal cluster recover`, in docker's words.
    lab.on("n1", &["swarm", "init", "--force-new-cluster"])?;
    wait_nodes(&lab, "n1", &["n1 Ready Leader"])?;
    assert_eq!(lab.on("n1", &["ps", "-q", "--no-trunc"])?, container);
    lab.on(
        "n1",
        &[
            "service",
            "update",
            "--detach",
            "--label-add",
            "a=b",
            "idle",
        ],
    )?;

    // Whoever was thought to be lost learns that its log counts no more, and takes part anew.
    for host in ["n2", "n3"] {
        lab.lab("start", &[host])?;
    }
    wait_nodes(
        &lab,
        "n1",
        &[
            "n1 Ready Leader",
            "n2 Ready Reachable",
            "n3 Ready Reachable",
        ],
    )?;
    lab.wait_running("idle", 3)?;
    assert_eq!(lab.on("n1", &["ps", "-q", "--no-trunc"])?, container);
    assert!(lab.on("n3", &["service", "ls"])?.contains("idle"));
    Ok(())
}

#[test]
fn a_cluster_comes_back_from_a_file() -> Result<()> {
    let lab = TestLab::up(2, 1)?;
    everywhere(&lab, 2)?;
    lab.on("n1", &["network", "create", "--driver", "overlay", "back"])?;
    let services = lab.on("n1", &["service", "ls", "-q"])?;
    let worker_token = lab.on("n1", &["swarm", "join-token", "-q", "worker"])?;
    let file = "/var/lib/shoal/cluster.backup";
    let said = lab.on("n1", &["cluster", "backup", file])?;
    assert!(said.starts_with("Wrote "), "{said}");
    let (_, said) = lab.refused("n1", &["cluster", "restore", file])?;
    assert!(said.contains("already part of a swarm"), "{said}");
    let mode = text(&lab.output("n1", &["stat", "-c", "%a", file])?)?;
    assert_eq!(mode.trim(), "600");

    lab.on("n1", &["swarm", "leave", "--force"])?;
    let damaged = format!("head -c -1 {file} > /var/lib/shoal/damaged");
    text(&lab.output("n1", &["sh", "-c", &damaged])?)?;
    let (_, said) = lab.refused("n1", &["cluster", "restore", "/var/lib/shoal/damaged"])?;
    assert!(said.contains("the backup is damaged"), "{said}");
    let (_, said) = lab.refused("n1", &["cluster", "restore", "/etc/hostname"])?;
    assert!(said.contains("this is not a backup of a swarm"), "{said}");

    let address = lab.addr("n1");
    let said = lab.on(
        "n1",
        &["cluster", "restore", file, "--advertise-addr", &address],
    )?;
    assert!(said.starts_with("Cluster restored: current node"), "{said}");
    wait_nodes(&lab, "n1", &["n1 Ready Leader", "n2 Ready"])?;
    assert_eq!(lab.on("n1", &["service", "ls", "-q"])?, services);
    assert_eq!(
        lab.on("n1", &["swarm", "join-token", "-q", "worker"])?,
        worker_token
    );
    lab.wait_running("idle", 2)?;
    Ok(())
}

#[test]
fn a_manager_that_lives_elsewhere_is_found_again() -> Result<()> {
    let lab = TestLab::up(3, 3)?;
    lab.lab("kill", &["--daemon", "n2"])?;
    let old = lab.addr("n2");
    let (net, _) = old.rsplit_once('.').expect("an IPv4 address");
    let new = format!("{net}.77");
    // The old one goes first: with it would go a second address of its subnet, and the routes go anyway.
    let script = format!(
        "set -e; dev=$(ip -o addr show to {old} | awk '{{print $2; exit}}'); route=$(ip route show default); ip addr \
         del {old}/24 dev $dev; ip addr add {new}/24 dev $dev; test -z \"$route\" || ip route replace $route"
    );
    text(&lab.output("n2", &["sh", "-c", &script])?)?;
    // It votes: with another one gone there is no leader to write its new address down until the two that are left find one.
    lab.lab("kill", &["n3"])?;
    lab.lab("start", &["n2"])?;
    wait("n2 at its new address", || {
        let format = "{{.Status.Addr}} {{.ManagerStatus.Addr}} {{.ManagerStatus.Reachability}}";
        let said = lab.on("n1", &["node", "inspect", "--format", format, "n2"])?;
        Ok(if said.trim() == format!("{new} {new}:2377 reachable") {
            Ok(())
        } else {
            Err(said)
        })
    })?;
    lab.on("n2", &["network", "create", "--driver", "overlay", "back"])?;
    Ok(())
}

#[test]
fn who_was_removed_stays_out_and_roles_come_and_go() -> Result<()> {
    let lab = TestLab::up(3, 1)?;
    let tasks = everywhere(&lab, 3)?;
    // Round and round; the tasks do not notice.
    for _ in 0..2 {
        lab.on("n1", &["node", "promote", "n2"])?;
        wait_nodes(&lab, "n1", &["n2 Ready Reachable"])?;
        lab.on("n2", &["node", "demote", "n2"])?;
        wait_nodes(&lab, "n1", &["n1 Ready Leader", "n2 Ready"])?;
    }
    let (_, said) = lab.refused("n1", &["node", "demote", "n1"])?;
    assert!(
        said.contains("attempting to demote the last manager of the swarm"),
        "{said}"
    );
    let mut now = lab.wait_running("idle", 3)?;
    let mut before = tasks;
    before.sort();
    now.sort();
    assert_eq!(now, before);

    let (_, said) = lab.refused("n1", &["node", "rm", "n1"])?;
    assert!(
        said.contains("is a cluster manager and is a member of the raft cluster"),
        "{said}"
    );
    lab.on("n1", &["node", "rm", "--force", "n3"])?;
    wait("n3 to be told", || {
        let said = lab.on("n3", &["info", "--format", "{{.Swarm.Error}}"])?;
        Ok(if said.contains("was removed from the cluster") {
            Ok(())
        } else {
            Err(said)
        })
    })?;
    restart(&lab, "n3")?;
    wait("n3 to be told again", || {
        let said = lab.on("n3", &["info", "--format", "{{.Swarm.Error}}"])?;
        Ok(if said.contains("was removed from the cluster") {
            Ok(())
        } else {
            Err(said)
        })
    })?;
    if nodes(&lab, "n1")?.contains("n3") {
        bail!("it came back");
    }
    // With a token it may join as somebody new.
    lab.on("n3", &["swarm", "leave"])?;
    let token = lab.on("n1", &["swarm", "join-token", "-q", "worker"])?;
    let remote = format!("{}:2377", lab.addr("n1"));
    lab.on("n3", &["swarm", "join", "--token", token.trim(), &remote])?;
    wait_nodes(&lab, "n1", &["n3 Ready"])?;
    lab.wait_running("idle", 3)?;
    Ok(())
}

fn id_of(lab: &TestLab, host: &str) -> Result<String> {
    let said = lab.on(host, &["info", "--format", "{{.Swarm.NodeID}}"])?;
    Ok(said.trim().to_owned())
}

/// The hosts that the cluster knows, once they are these.
fn wait_hosts(lab: &TestLab, wanted: &[&str]) -> Result<()> {
    wait(&format!("the nodes {wanted:?}"), || {
        let listed = lab.on("n1", &["node", "ls", "--format", "{{.Hostname}}"])?;
        let mut hosts: Vec<&str> = listed.lines().collect();
        hosts.sort_unstable();
        Ok(if hosts == wanted { Ok(()) } else { Err(listed) })
    })
}

#[test]
fn who_leaves_is_forgotten_and_who_stays_down_is_when_the_cluster_says_so() -> Result<()> {
    let lab = TestLab::up(4, 3)?;
    let words = ["service", "create", "--detach", "--name", "idle"];
    let words = [
        &words[..],
        &["--replicas", "4", "shoal-demo:latest", "idle"],
    ]
    .concat();
    lab.on("n1", &words)?;
    lab.wait_running("idle", 4)?;

    // A worker: no later than its command ends, and its tasks run elsewhere.
    let worker = id_of(&lab, "n4")?;
    assert_eq!(
        lab.on("n4", &["swarm", "leave"])?.trim(),
        "Node left the swarm."
    );
    wait_hosts(&lab, &["n1", "n2", "n3"])?;
    lab.wait_running("idle", 4)?;
    assert_eq!(lab.on("n4", &["ps", "-aq"])?, "");
    // What scripts for Swarm do afterwards.
    for name in ["n4", worker.as_str(), &worker[..12]] {
        lab.on("n1", &["node", "rm", name])?;
    }
    let (_, said) = lab.refused("n1", &["node", "rm", "n5"])?;
    assert!(said.contains("node n5 not found"), "{said}");
    let (_, said) = lab.refused("n1", &["node", "inspect", "n4"])?;
    assert!(said.contains("node n4 not found"), "{said}");

    // It may come back as somebody new, and is then no stranger to `node rm`.
    let token = lab.on("n1", &["swarm", "join-token", "-q", "worker"])?;
    let remote = format!("{}:2377", lab.addr("n1"));
    lab.on("n4", &["swarm", "join", "--token", token.trim(), &remote])?;
    wait_nodes(&lab, "n1", &["n4 Ready"])?;
    let (_, said) = lab.refused("n1", &["node", "rm", "n4"])?;
    assert!(said.contains("is not down and can't be removed"), "{said}");

    // A manager: docker's warning first, then the others go on without it, whoever leads.
    let (_, said) = lab.refused("n3", &["swarm", "leave"])?;
    assert!(said.contains("participating as a manager"), "{said}");
    lab.on("n3", &["swarm", "leave", "--force"])?;
    wait_hosts(&lab, &["n1", "n2", "n4"])?;

    // One that stays down is forgotten if the cluster says after which time, and shut out.
    lab.lab("kill", &["--daemon", "n4"])?;
    wait_nodes(&lab, "n1", &["n4 Down"])?;
    let (_, said) = lab.refused(
        "n1",
        &["swarm", "update", "--label-add", "shoal.node-ttl=soon"],
    )?;
    assert!(
        said.contains("label 'shoal.node-ttl' has the invalid value 'soon': expected DURATION"),
        "{said}"
    );
    lab.on(
        "n1",
        &["swarm", "update", "--label-add", "shoal.node-ttl=1s"],
    )?;
    wait_hosts(&lab, &["n1", "n2"])?;
    lab.lab("start", &["n4"])?;
    wait("n4 to be told", || {
        let said = lab.on("n4", &["info", "--format", "{{.Swarm.Error}}"])?;
        Ok(if said.contains("was removed from the cluster") {
            Ok(())
        } else {
            Err(said)
        })
    })?;
    Ok(())
}
