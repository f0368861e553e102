//! Published ports: by a host without a task, against haproxy on that host.

use std::fs;

use anyhow::Result;

use super::{
    Bench, Pair,
    network::{Net, Place, goal},
    until,
};
use crate::shell;

/// The pairs of this subject.
pub(super) const PAIRS: &[Pair] = &[Pair {
    name: "ingress",
    about: "a published port whose task is on another host, against haproxy in TCP mode to the same host",
    run: ingress,
}];

const LAB: &str = "benchin";
const SUBNET: &str = "198.18.61.0/24";
/// Port that the service publishes, and where its task listens.
const PUBLISHED: u16 = 8080;
const TARGET: u16 = 7000;
/// haproxy's port, and the port of its server, which is on the host itself: one way less than into a container.
const PROXY: u16 = 8081;
const BEHIND_PROXY: u16 = 7001;
/// What the mesh must reach of haproxy's rate.
const OF_PROXY_MIN: f64 = 1.0;

fn ingress(bench: &Bench) -> Result<()> {
    let mut net = Net::up(bench, LAB, 3, SUBNET)?;
    net.on_one_processor = true;
    net.line("n1", "shoal swarm init --advertise-addr 198.18.61.11")?;
    let token = net.line("n1", "shoal swarm join-token -q worker")?;
    let join = format!(
        "shoal swarm join --token {} 198.18.61.11:2377",
        token.trim()
    );
    net.line("n2", &join)?;
    let create = format!(
        "shoal service create --detach --quiet --name one --publish {PUBLISHED}:{TARGET} --constraint node.hostname==n2 shoal-demo:latest idle"
    );
    net.line("n1", &create)?;
    until("the task", || {
        Ok(net
            .line("n1", "shoal service ls --format {{.Replicas}}")?
            .starts_with("1/1"))
    })?;
    let task = net.line("n2", "shoal ps -q --filter name=one.1")?;
    let inspect = format!("shoal inspect --format {{{{.State.Pid}}}} {}", task.trim());
    let pid = net.line("n2", &inspect)?;
    let inside = Place {
        host: "n2",
        netns: Some(format!("--net=/proc/{}/ns/net", pid.trim())),
    };
    let bare = Place {
        host: "n2",
        netns: None,
    };
    net.serve(&inside, TARGET)?;
    net.serve(&bare, BEHIND_PROXY)?;
    let folder = shell::target().join("bench");
    fs::create_dir_all(&folder)?;
    let file = folder.join("haproxy.cfg");
    let configuration = format!(
        "global\n  maxconn 4096\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
         listen mesh\n  bind :{PROXY}\n  server one 198.18.61.12:{BEHIND_PROXY}\n"
    );
    fs::write(&file, configuration)?;
    let file = file.to_string_lossy();
    let proxy = [net.processors(), vec!["haproxy", "-db", "-f", &file]].concat();
    net.start("n1", &proxy, false)?;
    net.count_last("haproxy")?;
    // A host beside the two is the client.
    let client = Place {
        host: "n3",
        netns: None,
    };
    let (ours, theirs) = (
        format!("198.18.61.11:{PUBLISHED}"),
        format!("198.18.61.11:{PROXY}"),
    );
    for way in [&ours, &theirs] {
        until("an answer by the first host", || {
            Ok(net.measure(&client, "crr", way).is_ok())
        })?;
    }
    for kind in ["crr", "rr", "stream"] {
        println!("published port, {kind}:");
        let ways = [
            ("shoal", &client, ours.clone()),
            ("haproxy", &client, theirs.clone()),
        ];
        let ratios = net.compare(kind, &ways)?;
        goal(&format!("{kind} of haproxy's"), ratios[0], OF_PROXY_MIN);
    }
    Ok(())
}
