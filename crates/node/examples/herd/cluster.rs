//! How the control plane grows: tasks to RUNNING by more and more agents.

use std::time::{Duration, Instant};

use anyhow::Result;
use shoal_api::{
    spec::{Annotations, ServiceMode, ServiceSpec},
    wire::{WriteRequest, control_client::ControlClient},
};
use shoal_ca::client_config;
use shoal_manager::{Intent, Spec, io::grpc::client::dial};
use tonic::Code;

use crate::{agents, disk, manager};

/// Numbers of agents, if none are asked for.
const NODES: &[usize] = &[10, 30, 100, 300, 1_000];
/// Tasks of each agent, as in 20,000 on 1,000.
const TASKS_PER_NODE: usize = 20;
/// Tasks of one service.
const REPLICAS: usize = 1_000;
/// What 5,000 tasks may take, and the leader's memory then.
const GOAL: (usize, Duration, u64) = (5_000, Duration::from_secs(60), 500_000_000);

/// Starts one cluster of three and lets it grow.
pub(crate) async fn run(nodes: &[usize]) -> Result<()> {
    let nodes = if nodes.is_empty() { NODES } else { nodes };
    let disk = disk()?;
    // Ledgers of real nodes are on as many disks; here they would wait for each other's syncs, and the managers for them.
    let ledgers = tempfile::Builder::new()
        .prefix("herd-")
        .tempdir_in("/dev/shm")?;
    let mut managers = manager::three(disk.path())?;
    let addresses: Vec<String> = managers.iter().map(|m| m.address.clone()).collect();
    let token = managers[0].ask("token worker")?;
    println!(
        "nodes   tasks  joined s  running s  tasks/s  leader RSS MB (peak)  log bytes/task  entries/task"
    );
    let mut agents = Vec::new();
    let mut there = 0;
    for &count in nodes {
        let began = Instant::now();
        let grown = agents.len()..count;
        agents.extend(agents::start(&addresses, &token, ledgers.path(), grown).await?);
        let place = manager::leader(&mut managers)?;
        managers[place].ask(&format!("nodes {count}"))?;
        let joined = began.elapsed();

        let before = measure(&mut managers[place])?;
        let began = Instant::now();
        let wanted = count * TASKS_PER_NODE - there;
        for (number, replicas) in services(wanted).enumerate() {
            create(
                &mut managers,
                &service(&format!("n{count}-{number}"), replicas),
            )
            .await?;
        }
        there += wanted;
        managers[place].ask(&format!("running {there}"))?;
        let took = began.elapsed();
        let leader = &mut managers[place];
        let after = measure(leader)?;
        let (now, peak) = leader.program.memory()?;
        let per_task = |before: u64, after: u64| (after - before) as f64 / wanted as f64;
        println!(
            "{count:5} {there:7} {:9.1} {:10.2} {:8.0} {:14.0} ({:4.0}) {:15.0} {:13.2}",
            joined.as_secs_f64(),
            took.as_secs_f64(),
            wanted as f64 / took.as_secs_f64(),
            now as f64 / 1e6,
            peak as f64 / 1e6,
            per_task(before.0, after.0),
            per_task(before.1, after.1),
        );
        let (tasks, time, memory) = GOAL;
        if there <= tasks && (took > time || peak > memory) {
            println!("      more than {time:?} or {} MB", memory / 1_000_000);
        }
    }
    for agent in agents {
        agent.stop().await;
    }
    Ok(())
}

/// Makes a service at whoever leads: on a machine with less to give than the herd takes, that may change.
async fn create(managers: &mut [manager::Process], service: &Intent) -> Result<()> {
    loop {
        let place = manager::leader(managers)?;
        let leader = &managers[place];
        let identity = leader.identity()?;
        let tls = client_config(identity.root(), Some(&identity))?;
        let mut client = ControlClient::new(dial(&leader.address, tls));
        match client.write(WriteRequest::from(service)).await {
            Ok(_) => return Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => return Ok(()),
            Err(status) if matches!(status.code(), Code::Unavailable | Code::Unknown) => {
                println!("      {}", status.message());
            }
            Err(status) => return Err(status.into()),
        }
    }
}

/// Bytes that the leader has written to its log, and the index that it is at.
fn measure(leader: &mut manager::Process) -> Result<(u64, u64)> {
    Ok((leader.ask("log")?.parse()?, leader.ask("index")?.parse()?))
}

/// So many tasks, service by service.
fn services(tasks: usize) -> impl Iterator<Item = usize> {
    (0..tasks)
        .step_by(REPLICAS)
        .map(move |begun| REPLICAS.min(tasks - begun))
}

fn service(name: &str, replicas: usize) -> Intent {
    let mut spec = ServiceSpec {
        annotations: Annotations {
            name: name.to_owned(),
            ..Annotations::default()
        },
        mode: ServiceMode::Replicated {
            replicas: replicas as u64,
        },
        ..ServiceSpec::default()
    };
    "hollow:1".clone_into(&mut spec.task.container.image);
    Intent::Create(Spec::Service(Box::new(spec)))
}
