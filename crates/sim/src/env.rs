//! What surrounds the programs: time, chance, the network, and what is yet to happen.

use std::collections::{BTreeMap, BTreeSet};

use shoal_api::{TaskId, Timestamp};

use crate::{
    agent::Timer,
    oracle::SharedOracle,
    rng::Rng,
    rpc::{Down, Up},
    trouble::{Faults, Point, Trouble},
    user::{Op, Reply},
};

/// Nanoseconds of virtual time since the beginning.
pub type Instant = u64;
/// Number of a host.
pub type HostId = usize;
/// Number of a connection between an agent and a manager.
pub type Conn = u64;

/// A millisecond.
pub const MS: u64 = 1_000_000;
/// A second.
pub const SECOND: u64 = 1_000 * MS;

/// The clock that hosts would show if they were right: the year does not matter.
const EPOCH: u64 = 1_000_000_000 * SECOND;

/// Something that will happen.
#[derive(Debug)]
pub enum Event {
    /// A tick of a manager's Raft.
    Tick { host: HostId, life: u64 },
    /// A manager's disk is done.
    DiskDone { host: HostId, life: u64 },
    /// A manager's snapshot is durable.
    Kept { host: HostId, life: u64 },
    /// A leader has something to look at.
    Lead { host: HostId, life: u64 },
    /// A host looks at whether it shall be a manager.
    Upkeep { host: HostId, life: u64 },
    /// A message between managers arrives.
    Raft {
        from: HostId,
        to: HostId,
        raft_id: u64,
        bytes: Vec<u8>,
    },
    /// A manager learns what became of a snapshot that it sent.
    SnapshotSent {
        host: HostId,
        life: u64,
        peer: u64,
        arrived: bool,
    },
    /// A manager learns that a message could not be delivered.
    Unreachable { host: HostId, life: u64, peer: u64 },
    /// A host asks to be admitted as a manager.
    Admit { to: HostId, host: HostId, ask: u64 },
    /// What became of that.
    Admitted {
        host: HostId,
        ask: u64,
        answer: Option<(u64, shoal_manager::core::consensus::Members)>,
    },
    /// An agent's message arrives at a manager.
    Up { to: HostId, conn: Conn, message: Up },
    /// A manager's message arrives at an agent.
    Down {
        to: HostId,
        conn: Conn,
        message: Down,
    },
    /// An agent's time has come.
    Timer {
        host: HostId,
        life: u64,
        timer: Timer,
    },
    /// A container's process ends by itself.
    Exit {
        host: HostId,
        boot: u64,
        task: TaskId,
        code: i64,
    },
    /// A user's request arrives at a manager.
    Request { to: HostId, op: Op },
    /// What became of it arrives at the user.
    Reply { op: u64, reply: Reply },
    /// A user thinks of something, or gives up waiting.
    User { user: usize, op: u64 },
    /// Something bad.
    Trouble(Trouble),
}

/// Which hosts do not hear each other.
#[derive(Debug, Default)]
pub struct Net {
    cut: BTreeSet<(HostId, HostId)>,
    /// Connections that were lost on the way.
    broken: BTreeSet<Conn>,
    /// When the last message of a connection arrives, by direction: they keep their order.
    last: BTreeMap<(Conn, bool), Instant>,
    next_conn: Conn,
}

impl Net {
    /// Cuts one direction.
    pub fn cut(&mut self, from: HostId, to: HostId) {
        self.cut.insert((from, to));
    }

    /// Mends everything.
    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// Whether anything passes.
    pub fn passes(&self, from: HostId, to: HostId) -> bool {
        !self.cut.contains(&(from, to))
    }

    /// A new connection.
    pub fn connect(&mut self) -> Conn {
        self.next_conn += 1;
        self.next_conn
    }

    /// Whether a connection is broken.
    pub fn is_broken(&self, conn: Conn) -> bool {
        self.broken.contains(&conn)
    }
}

/// Time, chance, network and the future.
#[derive(Debug)]
pub struct Env {
    /// Now.
    pub now: Instant,
    /// What will happen, in order.
    pub queue: BTreeMap<(Instant, u64), Event>,
    sequence: u64,
    /// Chance.
    pub rng: Rng,
    /// The network.
    pub net: Net,
    /// How bad it is.
    pub faults: Faults,
    /// Who knows what must be true.
    pub oracle: SharedOracle,
    /// A number that depends on everything that happened.
    pub hash: u64,
    /// A line per event, if somebody wants to read them.
    pub trace: bool,
}

impl Env {
    /// The world of a seed before anything is in it.
    pub fn new(seed: u64, faults: Faults, oracle: SharedOracle) -> Self {
        Self {
            now: 0,
            queue: BTreeMap::new(),
            sequence: 0,
            rng: Rng::new(seed),
            net: Net::default(),
            faults,
            oracle,
            hash: 0xcbf2_9ce4_8422_2325,
            trace: false,
        }
    }

    /// Makes something happen after a while.
    pub fn after(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + delay, self.sequence), event);
    }

    /// Takes note of a fact, for the number that two runs of one seed must have in common.
    pub fn note(&mut self, fact: u64) {
        self.hash = (self.hash ^ fact)
            .wrapping_mul(0x0000_0100_0000_01b3)
            .rotate_left(23);
    }

    /// Prints a line, if somebody wants to read what happens.
    #[allow(clippy::print_stderr, reason = "asked for on the command line")]
    pub fn tell(&self, line: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:>10.4} {}", self.now as f64 / 1e9, line());
        }
    }

    /// Something that must not be was seen.
    pub fn blame(&mut self, what: impl Into<String>) {
        let what = format!("at {:.3} s: {}", self.now as f64 / 1e9, what.into());
        self.oracle.lock().problems.push(what);
    }

    /// A program is at one of the points where its end would hurt; maybe it ends.
    pub fn reach(&mut self, point: Point, host: HostId) {
        if self.rng.chance(self.faults.points[point as usize]) {
            self.tell(|| format!("host {host} is about to die at {point:?}"));
            let delay = self.rng.range(0, 2 * MS);
            self.after(delay, Event::Trouble(Trouble::Kill(host)));
        }
    }

    /// How long a datagram travels; `None` if it does not arrive.
    fn travel(&mut self, from: HostId, to: HostId) -> Option<u64> {
        let faults = self.faults;
        if !self.net.passes(from, to) || self.rng.chance(faults.drop) {
            return None;
        }
        let mut delay = self.rng.range(MS / 5, 2 * MS);
        if self.rng.chance(faults.reorder) {
            delay += self.rng.range(0, 60 * MS);
        }
        if self.rng.chance(faults.slow) {
            delay += self.rng.range(100 * MS, 3 * SECOND);
        }
        Some(delay)
    }

    /// Sends a message of Raft. Returns whether it will arrive.
    pub fn send_raft(
        &mut self,
        (from, to): (HostId, HostId),
        raft_id: u64,
        bytes: Vec<u8>,
        is_bulk: bool,
    ) -> bool {
        let mut arrives = false;
        let lag = if is_bulk && self.rng.chance(self.faults.lag) {
            self.rng.range(50 * MS, 800 * MS)
        } else {
            0
        };
        let copies = 1 + u8::from(self.rng.chance(self.faults.duplicate));
        for _ in 0..copies {
            if let Some(delay) = self.travel(from, to) {
                arrives = true;
                let bytes = bytes.clone();
                self.after(
                    delay + lag,
                    Event::Raft {
                        from,
                        to,
                        raft_id,
                        bytes,
                    },
                );
            }
        }
        arrives
    }

    /// Sends a datagram of another kind, if it arrives at all.
    pub fn send(&mut self, from: HostId, to: HostId, event: Event) {
        if let Some(delay) = self.travel(from, to) {
            self.after(delay, event);
        }
    }

    /// Sends over a connection, in order. What is lost breaks it.
    fn stream(&mut self, from: HostId, to: HostId, conn: Conn, is_up: bool, event: Event) {
        if self.net.is_broken(conn) {
            return;
        }
        let Some(delay) = self.travel(from, to) else {
            self.break_conn(conn, if is_up { (from, to) } else { (to, from) });
            return;
        };
        let last = self.net.last.entry((conn, is_up)).or_default();
        let at = (*last + 1).max(self.now + delay);
        *last = at;
        self.after(at - self.now, event);
    }

    /// Breaks a connection between an agent and a manager. Each end learns of it after a while, or not at all.
    pub fn break_conn(&mut self, conn: Conn, (agent, manager): (HostId, HostId)) {
        if !self.net.broken.insert(conn) {
            return;
        }
        if self.rng.chance(700_000) {
            let delay = self.rng.range(MS, 3 * SECOND);
            let message = Down::Closed;
            self.after(
                delay,
                Event::Down {
                    to: agent,
                    conn,
                    message,
                },
            );
        }
        if self.rng.chance(700_000) {
            let delay = self.rng.range(MS, 3 * SECOND);
            let message = Up::Closed;
            self.after(
                delay,
                Event::Up {
                    to: manager,
                    conn,
                    message,
                },
            );
        }
    }

    /// Sends to a manager over an agent's connection.
    pub fn up(&mut self, from: HostId, to: HostId, conn: Conn, message: Up) {
        self.stream(from, to, conn, true, Event::Up { to, conn, message });
    }

    /// Sends to an agent over its connection.
    pub fn down(&mut self, from: HostId, to: HostId, conn: Conn, message: Down) {
        self.stream(from, to, conn, false, Event::Down { to, conn, message });
    }
}

/// The clock of a host.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// How much faster than time it goes, in millionths.
    pub drift: i64,
    /// By how much it is wrong now, in nanoseconds.
    pub offset: i64,
}

impl Clock {
    /// What it shows.
    pub fn read(&self, now: Instant) -> Timestamp {
        let drifted = now as i64 + now as i64 / 1_000_000 * self.drift;
        Timestamp((EPOCH as i64).saturating_add(drifted + self.offset))
    }

    /// How long it takes until it shows that time, about.
    pub fn until(&self, now: Instant, at: Timestamp) -> u64 {
        let left = at.since(self.read(now)).as_nanos() as u64;
        left - left / 1_000_000 * self.drift.unsigned_abs() + MS / 10
    }
}
