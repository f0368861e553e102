//! Whether a cluster that is left alone becomes what was asked for.

use std::{collections::BTreeSet, net::IpAddr};

use shoal_api::{
    NetworkId, TaskId, TaskState,
    object::{NodeState, Object, Task},
    spec::{Availability, NodeRole, ServiceMode},
};
use shoal_dns::core::{
    answer::{Answer, Asker, answer},
    wire::Query,
};
use shoal_manager::{
    Intent,
    core::{orchestrator::is_dirty, state::State},
    io::raft::snapshot::KEPT as SNAPSHOTS_KEPT,
};

use crate::{
    env::{HostId, MS},
    manager::{Me, SEGMENT_BYTES, node_of},
    oracle::describe,
    user::{NOBODY, Op, Want, mend},
    world::{REST, World},
};

/// A stop may come this long after it was decided although somebody has not confirmed, less what clocks may differ.
const DRAIN_SURE: u64 = 1_900 * MS;

/// Whether a host may stay dead: it is no manager.
pub fn may_die(world: &World, host: HostId) -> bool {
    let truth = world.env.oracle.lock().truth.clone();
    let is_worker = truth.node(&node_of(host)).is_some_and(|node| {
        node.role == NodeRole::Worker
            && node.spec.role == NodeRole::Worker
            && node.manager.is_none()
    });
    is_worker && world.hosts[host].manager.is_none()
}

/// Whether a manager may lose its log. A quorum of logs is more than any consensus can lose: so a manager must be back
/// before the next one, and there must be two others, whom nobody demotes meanwhile.
pub fn may_lose_log(world: &World) -> bool {
    let leads = leader(world).and_then(|id| world.hosts[id].manager.as_ref());
    let are_enough = leads.is_some_and(|manager| manager.members.iter().count() > 2);
    are_enough && !world.env.faults.roles && all_managers_vote(world)
}

/// Whether the manager that leads knows every member to be a voter that runs.
pub fn all_managers_vote(world: &World) -> bool {
    let Some(leader) = leader(world) else {
        return false;
    };
    let Some(manager) = &world.hosts[leader].manager else {
        return false;
    };
    let committed = manager.node.committed();
    manager.members.iter().all(|(id, _)| {
        let runs = world.hosts.iter().filter_map(|host| host.manager.as_ref());
        let runs = runs.filter(|m| m.node.raft_id() == id);
        manager.members.is_voter(id) && runs.clone().any(|m| m.node.committed() >= committed)
    })
}

/// Whether a host was removed from the cluster.
fn is_out(truth: &State, host: HostId) -> bool {
    truth.node(&node_of(host)).is_none()
}

/// The host whose manager leads, if one does.
pub fn leader(world: &World) -> Option<HostId> {
    let leads = |host: &&crate::world::Host| {
        host.manager
            .as_ref()
            .is_some_and(|m| m.leadership.is_leader && m.reign.is_some())
    };
    let leaders = world.hosts.iter().filter(leads);
    leaders
        .max_by_key(|host| host.manager.as_ref().map(|m| m.leadership.term))
        .map(|h| h.id)
}

/// Mends what users broke, and looks whether everything is as asked for.
pub fn look(world: &mut World) {
    tell_the_lost(world);
    let missing = missing(world);
    world.is_done = missing.is_none();
    world.missing = missing.unwrap_or_default();
    let faults = &world.env.faults;
    let since = world.env.now.saturating_sub(faults.until + faults.encore);
    if !world.is_done && since > REST {
        let missing = world.missing.clone();
        world.env.blame(format!("no rest: {missing}"));
        world.is_done = true;
    }
}

/// A node that was away while every manager it knew of was replaced cannot find the cluster by itself: it is told.
fn tell_the_lost(world: &mut World) {
    let truth = world.truth();
    let managers = truth.nodes().filter_map(|node| node.manager.as_ref());
    let managers: Vec<String> = managers.map(|manager| manager.addr.clone()).collect();
    for id in 0..world.hosts.len() {
        let knows = world.hosts[id].body.managers();
        let is_lost = !knows.is_empty() && !knows.iter().any(|known| managers.contains(known));
        if is_lost && world.hosts[id].agent.is_some() && !managers.is_empty() {
            world
                .env
                .tell(|| format!("node {id} is told of the managers of today"));
            world.tell_managers(id, managers.clone());
        }
    }
}

fn missing(world: &mut World) -> Option<String> {
    let Some(id) = leader(world) else {
        return Some("nobody leads".to_owned());
    };
    let truth = world.env.oracle.lock().truth.clone();
    let mended = wishes(world, id, &truth);
    let host = &world.hosts[id];
    let leader = host.manager.as_ref()?;
    if mended {
        return Some("not everything is mended".to_owned());
    }
    let told = world.env.oracle.lock().told;
    if leader.state().index() < told {
        return Some(format!("{told} was acknowledged and is not applied"));
    }
    let missing = members(world, &truth)
        .or_else(|| nodes(world, &truth))
        .or_else(|| services(&truth))
        .or_else(|| processes(world, &truth))
        .or_else(|| leftovers(world, &truth))
        .or_else(|| disks(world))
        .or_else(|| names(world, &truth));
    for host in (0..world.hosts.len()).filter(|_| missing.is_none()) {
        if is_out(&truth, host) {
            continue;
        }
        let agent = world.hosts[host].agent.as_ref();
        if let Some(view) = agent.and_then(|agent| agent.view.clone())
            && !crate::plane::check(host, &view, &mut world.env)
        {
            return Some(format!("node {} has a view without itself", node_of(host)));
        }
    }
    missing
}

/// Asks for what makes everything able to run. Returns whether there was something to ask for.
fn wishes(world: &mut World, leader: HostId, truth: &State) -> bool {
    let services = truth
        .services()
        .map(|o| Object::Service(o.as_ref().clone()));
    let nodes = truth.nodes().map(|o| Object::Node(o.as_ref().clone()));
    let (made, is_narrow) = (world.steps, world.env.faults.narrow);
    let wishes = services
        .chain(nodes)
        .filter_map(|object| mend(&object, made, is_narrow));
    let wishes: Vec<_> = wishes.collect();
    let is_any = !wishes.is_empty();
    for intent in wishes {
        ask_host(world, leader, intent);
    }
    is_any
}

/// Asks whoever leads, and does not wait for an answer.
pub fn ask(world: &mut World, intent: Intent) {
    if let Some(leader) = leader(world) {
        ask_host(world, leader, intent);
    }
}

fn ask_host(world: &mut World, leader: HostId, intent: Intent) {
    let op = Op {
        id: NOBODY,
        want: Want::Write(Box::new(intent)),
        is_forwarded: true,
        since: None,
    };
    let me = me(world, leader);
    if let Some(manager) = &mut world.hosts[leader].manager {
        manager.on_request(op, me, &mut world.env);
    }
    world.work(leader);
}

fn me(world: &World, host: HostId) -> Me {
    world.hosts[host].me()
}

fn members(world: &World, truth: &State) -> Option<String> {
    let shall: BTreeSet<_> = truth
        .nodes()
        .filter(|node| node.spec.role == NodeRole::Manager)
        .map(|node| node.id.clone())
        .collect();
    let applied = world.env.oracle.lock().committed();
    for host in &world.hosts {
        let is = shall.contains(&node_of(host.id));
        match &host.manager {
            None if is => return Some(format!("host {} is no manager yet", host.id)),
            Some(_) if !is => return Some(format!("host {} is still a manager", host.id)),
            Some(manager) => {
                let members = manager.members.as_ref();
                let now: BTreeSet<_> = members.iter().map(|(_, m)| m.node_id.clone()).collect();
                let all_vote = members.iter().all(|(id, _)| members.is_voter(id));
                if now != shall || !all_vote {
                    return Some(format!("host {} knows {members:?}, not {shall:?}", host.id));
                }
                if manager.node.applied() < applied {
                    return Some(format!("host {} has not applied {applied}", host.id));
                }
            }
            None => {}
        }
    }
    None
}

fn nodes(world: &World, truth: &State) -> Option<String> {
    for host in &world.hosts {
        let state = truth.node(&node_of(host.id)).map(|node| node.status.state);
        let want = if world.dead.contains(&host.id) {
            NodeState::Down
        } else {
            NodeState::Ready
        };
        if !is_out(truth, host.id) && state != Some(want) {
            return Some(format!("node {} is {state:?}", node_of(host.id)));
        }
    }
    None
}

fn services(truth: &State) -> Option<String> {
    for service in truth.services() {
        let open = truth.nodes().filter(|node| {
            node.status.state == NodeState::Ready && node.spec.availability == Availability::Active
        });
        let wanted = match service.spec.mode {
            ServiceMode::Replicated { replicas } => replicas as usize,
            _ => open.count(),
        };
        let tasks: Vec<_> = truth.tasks_of_service(&service.id).collect();
        let name = &service.spec.annotations.name;
        let table = || -> String {
            let lines = tasks
                .iter()
                .map(|task| describe(&Object::Task(task.as_ref().clone())));
            lines.map(|line| format!("\n    {line}")).collect()
        };
        let is_global = service.spec.mode == ServiceMode::Global;
        let runnable = tasks.iter().filter(|task| {
            let node = task.node.as_ref().and_then(|id| truth.node(id));
            let is_lost = node.is_some_and(|node| node.status.state != NodeState::Ready);
            // A global service's task waits for its node to come back.
            task.desired_state <= TaskState::Running && !(is_global && is_lost)
        });
        let running = runnable.clone().filter(|task| {
            let node = task.node.as_ref().and_then(|id| truth.node(id));
            let is_new = !is_dirty(service, task, node.map(AsRef::as_ref));
            is_new && task.status.state == TaskState::Running
        });
        if running.count() != wanted || runnable.count() != wanted {
            let (version, update) = (service.spec_version, &service.update_status);
            return Some(format!(
                "{name} shall have {wanted} tasks of version {version}, {update:?}, and has{}",
                table()
            ));
        }
    }
    for task in truth.tasks() {
        let is_on_lost = task.node.as_ref().and_then(|id| truth.node(id));
        let is_on_lost = is_on_lost.is_none_or(|node| node.status.state != NodeState::Ready);
        if truth.service(&task.service).is_none() && !is_on_lost {
            return Some(format!("task {} is of no service", task.id));
        }
        let ends = task.desired_state > TaskState::Running && !task.status.state.is_terminal();
        if ends && !is_on_lost {
            return Some(format!("task {} does not end", task.id));
        }
    }
    None
}

/// The processes that run are those of the tasks that run.
fn processes(world: &World, truth: &State) -> Option<String> {
    let oracle = world.env.oracle.lock();
    let live: BTreeSet<(HostId, TaskId)> = oracle
        .running()
        .filter(|(host, _)| !is_out(truth, *host))
        .map(|(host, task)| (host, task.clone()))
        .collect();
    for (host, id) in &live {
        let task = truth.task(id);
        if !task.is_some_and(|task| is_running(task) && task.node == Some(node_of(*host))) {
            return Some(format!("host {host} runs {id}, which nobody wants"));
        }
    }
    for task in truth.tasks().filter(|task| is_running(task)) {
        let is_live = live.iter().any(|(_, id)| *id == task.id);
        let node = task.node.as_ref().and_then(|id| truth.node(id));
        if !is_live && node.is_some_and(|node| node.status.state == NodeState::Ready) {
            return Some(format!("task {} is not running at all", task.id));
        }
    }
    None
}

/// Nodes keep nothing of tasks that are no longer theirs.
fn leftovers(world: &World, truth: &State) -> Option<String> {
    let hosts = world.hosts.iter();
    let mut hosts = hosts.filter(|host| host.agent.is_some() && !is_out(truth, host.id));
    hosts.find_map(|host| {
        let node = Some(node_of(host.id));
        let mut kept = host.body.kept();
        let id = kept.find(|id| truth.task(id).is_none_or(|task| task.node != node))?;
        Some(format!("host {} keeps something of task {id}", host.id))
    })
}

/// Disks hold no more than the snapshots that are kept, and what follows them.
fn disks(world: &World) -> Option<String> {
    let managers = world.hosts.iter().filter(|host| host.manager.is_some());
    let oracle = world.env.oracle.lock();
    managers.into_iter().find_map(|host| {
        let usage = host.disk().usage();
        let from = usage.snapshots.first().copied().unwrap_or(0);
        let most = segments_max(oracle.bytes_after(from));
        if usage.segments > most || usage.snapshots.len() > SNAPSHOTS_KEPT || usage.temporary > 0 {
            return Some(format!("the disk of host {} holds {usage:?}", host.id));
        }
        None
    })
}

/// Segments that entries of so many bytes may take: each is written with what seals it, and now and then once more.
fn segments_max(bytes: u64) -> usize {
    4 + (2 * bytes / SEGMENT_BYTES) as usize
}

fn is_running(task: &Task) -> bool {
    task.status.state == TaskState::Running && task.desired_state <= TaskState::Running
}

/// Names lead to tasks that run, and to all of them.
fn names(world: &World, truth: &State) -> Option<String> {
    for host in &world.hosts {
        let Some(agent) = host.agent.as_ref().filter(|_| !is_out(truth, host.id)) else {
            continue;
        };
        if !agent.is_connected() {
            return Some(format!("agent {} has no session", host.id));
        }
        let Some(view) = &agent.view else { continue };
        // Nobody resolves names in the ingress network.
        for (id, slice) in view.networks.iter().filter(|(_, slice)| !slice.ingress) {
            for service in slice.services.values() {
                let found = resolve(&agent.names, id, &format!("tasks.{}", service.name));
                let running = truth
                    .services()
                    .find(|s| s.spec.annotations.name == service.name);
                let tasks = running
                    .into_iter()
                    .flat_map(|s| truth.tasks_of_service(&s.id));
                let tasks = tasks.filter(|task| {
                    let node = task.node.as_ref().and_then(|id| truth.node(id));
                    let is_there = node.is_some_and(|n| n.status.state == NodeState::Ready);
                    is_running(task) && is_there
                });
                let want: BTreeSet<IpAddr> = tasks
                    .flat_map(|task| &task.networks)
                    .filter(|attachment| attachment.network == *id)
                    .flat_map(|attachment| &attachment.addresses)
                    .map(|address| address.addr())
                    .collect();
                if found != want {
                    let name = &service.name;
                    return Some(format!(
                        "on host {} tasks.{name} is {found:?}, not {want:?}",
                        host.id
                    ));
                }
            }
        }
    }
    None
}

/// Asks a node's resolver for the addresses of a name.
fn resolve(names: &shoal_dns::Records, network: &NetworkId, name: &str) -> BTreeSet<IpAddr> {
    let mut packet = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        packet.push(label.len() as u8);
        packet.extend_from_slice(label.as_bytes());
    }
    packet.extend_from_slice(&[0, 0, 1, 0, 1]);
    let end = packet.len();
    let Ok(query) = Query::parse(&packet) else {
        return BTreeSet::new();
    };
    let asker = Asker::new(vec![network.clone()], &[], 0);
    let Answer::Records(set) = answer(names, &asker, &query) else {
        return BTreeSet::new();
    };
    let mut reply = Vec::new();
    query.write_records(set, 0, usize::from(u16::MAX), &mut reply);
    // Each record: a pointer to the name, type, class, time to live, length, four bytes.
    let records = reply.get(end..).unwrap_or_default().chunks_exact(16);
    records
        .map(|r| IpAddr::from([r[12], r[13], r[14], r[15]]))
        .collect()
}

/// A process is asked to stop: nobody may still send to it, unless somebody did not confirm for long.
pub fn check_stop(world: &mut World, host: HostId, id: &TaskId) {
    let env = &world.env;
    let oracle = env.oracle.lock();
    let Some(task) = oracle.truth.task(id).cloned() else {
        return;
    };
    let since = oracle.ends_since.get(id).copied().unwrap_or(env.now);
    let is_excused = oracle.is_excused(id) || env.faults.clock > 0 || env.faults.drift > 1_000;
    let ready: Vec<bool> = world
        .hosts
        .iter()
        .map(|host| {
            oracle
                .ready_since(&node_of(host.id))
                .is_some_and(|at| at <= since)
        })
        .collect();
    drop(oracle);
    if is_excused || env.now - since > DRAIN_SURE || task.status.state != TaskState::Running {
        return;
    }
    let sends = world.hosts.iter().find(|other| {
        let Some(agent) = &other.agent else {
            return false;
        };
        // A view of before may list networks in which nobody is any more here; nobody sends there.
        let is_used = |network: &NetworkId| {
            let containers = other.body.containers.values().filter(|c| c.runs());
            let mut tasks = containers.filter_map(|c| c.task.as_ref());
            tasks.any(|task| task.networks.iter().any(|a| a.network == *network))
        };
        let serves = agent.view.as_ref().is_some_and(|view| {
            let mut networks = view.networks.iter();
            networks.any(|(network, slice)| {
                let endpoint = slice.endpoints.get(id);
                (slice.ingress || is_used(network)) && endpoint.is_some_and(|e| e.serving)
            })
        });
        let is_new = env.now - agent.since < 5_000 * MS;
        serves && !is_new && other.is_up && ready[other.id]
    });
    if let Some(other) = sends.map(|other| other.id) {
        world.env.blame(format!(
            "task {id} on host {host} is stopped while host {other} sends to it"
        ));
    }
}
