//! Lets trouble happen.

use shoal_api::object::ObjectKey;
use shoal_manager::Intent;

use crate::{
    env::{Event, MS, SECOND},
    manager::{Input, node_of},
    rest,
    trouble::Trouble,
    world::World,
};

/// How often it is looked at whether the cluster has come to rest.
const LOOK: u64 = SECOND;

/// Something bad happens, or ends.
pub fn strike(world: &mut World, trouble: Trouble) {
    if !matches!(trouble, Trouble::Next | Trouble::Look | Trouble::Start(_)) {
        world.env.tell(|| format!("trouble: {trouble:?}"));
    }
    let hosts = world.hosts.len();
    match trouble {
        Trouble::Next => {
            let faults = world.env.faults;
            if let Some((after, next)) = faults.next(&mut world.env.rng, hosts)
                && !world.is_quiet
            {
                let next_at = after.max(MS);
                world.env.after(next_at, Event::Trouble(next));
                world.env.after(next_at + 1, Event::Trouble(Trouble::Next));
            }
        }
        Trouble::Start(host) => world.start(host),
        Trouble::Resume(host) => world.resume(host),
        Trouble::Look => {
            rest::look(world);
            if !world.is_done {
                world.env.after(LOOK, Event::Trouble(Trouble::Look));
            }
        }
        Trouble::End => end(world),
        _ if world.is_quiet => {}
        Trouble::Kill(host) => world.kill(host),
        Trouble::PowerCut(host) => world.power_cut(host),
        Trouble::Pause(host, time) => {
            world.pause(host);
            world.env.after(time, Event::Trouble(Trouble::Resume(host)));
        }
        Trouble::DiskFails(host, after) => world.fail_disk(host, after),
        Trouble::Wipe(host) => {
            if rest::may_lose_log(world) {
                world.wipe(host);
            }
        }
        Trouble::Rot(host) => {
            if rest::may_lose_log(world) {
                world.rot(host);
            }
        }
        Trouble::Isolate(host, to, from) => {
            for other in (0..hosts).filter(|other| *other != host) {
                if to {
                    world.env.net.cut(other, host);
                }
                if from {
                    world.env.net.cut(host, other);
                }
            }
            heal_later(world);
        }
        Trouble::Split(bits) => {
            for a in 0..hosts {
                for b in 0..hosts {
                    if (bits >> a ^ bits >> b) & 1 == 1 {
                        world.env.net.cut(a, b);
                    }
                }
            }
            heal_later(world);
        }
        Trouble::Ring => {
            for a in 0..hosts {
                for b in 0..hosts {
                    if a.abs_diff(b) > 1 && a.abs_diff(b) + 1 < hosts {
                        world.env.net.cut(a, b);
                    }
                }
            }
            heal_later(world);
        }
        Trouble::Heal => world.env.net.heal(),
        Trouble::Clock(host, by) => world.set_clock(host, by),
        Trouble::Forsake(time) => {
            if let Some(leader) = rest::leader(world) {
                for other in (0..hosts).filter(|other| *other != leader) {
                    world.env.net.cut(other, leader);
                    world.env.net.cut(leader, other);
                }
                world.pause(leader);
                let goes_on = Event::Trouble(Trouble::Resume(leader));
                world.env.after(time, goes_on);
                world
                    .env
                    .after(time + SECOND, Event::Trouble(Trouble::Heal));
            }
        }
        Trouble::Expel => expel(world),
        Trouble::Transfer(host) => {
            if let Some(manager) = &mut world.hosts[host].manager {
                manager.put(Input::Transfer(0));
                world.work(host);
            }
        }
    }
}

/// Asks for the removal of the last host, if it is a worker.
fn expel(world: &mut World) {
    let last = world.hosts.len() - 1;
    if rest::may_die(world, last) {
        let key = ObjectKey::Node(node_of(last));
        rest::ask(world, Intent::Remove { key, force: true });
    }
}

fn heal_later(world: &mut World) {
    let delay = *world.env.rng.pick(&[500 * MS, 3 * SECOND, 12 * SECOND]);
    world.env.after(delay, Event::Trouble(Trouble::Heal));
}

/// All trouble ends: from now on things only get better.
fn end(world: &mut World) {
    world.is_quiet = true;
    world.env.faults = world.env.faults.ended();
    world.env.net.heal();
    let last = world.hosts.len() - 1;
    if world.env.faults.leaves_dead && rest::may_die(world, last) {
        world.power_cut(last);
        world.dead.insert(last);
    }
    for host in 0..world.hosts.len() {
        world.resume(host);
        world.fail_disk(host, u64::MAX);
        world.start(host);
    }
    let encore = world.env.faults.encore;
    world
        .env
        .after(encore + LOOK, Event::Trouble(Trouble::Look));
}
