//! Encrypted networks as users see them, on a kernel that has WireGuard and on one that has not.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use shoal_tests::{lab::TestLab, wait};

/// Whether the hosts' kernel can encrypt, as the node says itself.
fn can_encrypt(lab: &TestLab) -> Result<bool> {
    let plugins = lab.on(
        "n1",
        &["node", "inspect", "--format", "{{json .Description}}", "n1"],
    )?;
    Ok(plugins.contains("\"encrypted\""))
}

#[test]
fn an_encrypted_network_is_in_the_tunnel_or_nowhere() -> Result<()> {
    let lab = TestLab::up(2, 1)?;
    let create = [
        "lab",
        "exec",
        "--name",
        lab.name(),
        "n1",
        "--",
        "sh",
        "-c",
        "shoal network create -d overlay --attachable --opt encrypted secret 2>&1",
    ];
    let made = lab.shoal(&create)?;
    let words =
        "service create --detach --name web --network secret --replicas 2 shoal-demo:latest";
    lab.on("n1", &words.split(' ').collect::<Vec<_>>())?;
    let attach = [
        "run",
        "-d",
        "--name",
        "one",
        "--network",
        "secret",
        "shoal-demo:latest",
    ];
    if !can_encrypt(&lab)? {
        ensure!(
            made.contains("WARNING: nothing in this network can run on n1, n2: the kernel there lacks WireGuard"),
            "{made}"
        );
        wait("the reason why no task runs", || {
            let shown = lab.on("n1", &["service", "ps", "--no-trunc", "web"])?;
            let why = "no suitable node (missing plugin on 2 nodes)";
            Ok(if shown.contains(why) {
                Ok(())
            } else {
                Err(shown)
            })
        })?;
        let (_, said) = lab.refused("n2", &attach)?;
        ensure!(
            said.contains("network secret is encrypted, which this node cannot carry: its kernel lacks WireGuard"),
            "{said}"
        );
        return Ok(());
    }
    ensure!(!made.contains("WARNING"), "{made}");
    let running = lab.wait_running("web", 2)?;
    ensure!(
        running[0].1 != running[1].1,
        "one on each host: {running:?}"
    );
    lab.on("n1", &attach)?;
    // The keys have come by way of the cluster: a container on one host is answered from both.
    let ask = "run --rm --network secret --entrypoint /demo shoal-demo:latest get web";
    let ask: Vec<&str> = ask.split(' ').collect();
    let mut hosts = BTreeSet::new();
    wait("answers from both hosts", || {
        let said = lab
            .on("n1", &ask)
            .unwrap_or_else(|error| format!("{error:#}"));
        let task = said
            .split_whitespace()
            .find(|word| word.starts_with("task="));
        hosts.extend(task.map(str::to_owned));
        Ok(if hosts.len() == 2 { Ok(()) } else { Err(said) })
    })?;
    let shown = lab.output("n1", &["wg", "show", "all", "latest-handshakes"])?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let time = shown.split_whitespace().last();
    ensure!(time.is_some_and(|time| time != "0"), "{shown}");
    Ok(())
}
