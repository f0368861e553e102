//! What goes wrong, and how often. Rates are drawn per seed from none, little and much: faults that are always all
//! present at the same rate hide each other.

use crate::{
    env::{HostId, Instant, MS, SECOND},
    rng::Rng,
};

/// Something bad that happens, or its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// Thinks of the next bad thing.
    Next,
    /// The programs of a host end; its containers go on.
    Kill(HostId),
    /// The host loses power.
    PowerCut(HostId),
    /// The programs of a host start again.
    Start(HostId),
    /// The programs of a host stand still for so long.
    Pause(HostId, u64),
    /// And go on.
    Resume(HostId),
    /// The disk of a host fails after so many more operations.
    DiskFails(HostId, u64),
    /// A host forgets its log.
    Wipe(HostId),
    /// A bit of a host's log flips, far from its end.
    Rot(HostId),
    /// One host hears nobody, or is not heard, or both.
    Isolate(HostId, bool, bool),
    /// Two groups do not hear each other: a host is in the first if its bit is set.
    Split(u64),
    /// Each host hears its neighbours only.
    Ring,
    /// The network is mended.
    Heal,
    /// A clock is set wrong by so many nanoseconds.
    Clock(HostId, i64),
    /// A leader hands over.
    Transfer(HostId),
    /// The leader stands still and nobody hears it, for so long: when it goes on it does not know that another one leads.
    Forsake(u64),
    /// A worker is removed from the cluster, and comes back with what it had.
    Expel,
    /// All trouble ends.
    End,
    /// A look at whether the cluster has become what was asked for.
    Look,
}

/// A moment at which the end of a program tempts it most to break its word. Random ends hardly ever meet one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// A record is durable, and nothing was told yet that depends on it.
    Synced,
    /// Entries of another leader have replaced entries of our log.
    Overwritten,
    /// A snapshot was written, and the log is cut.
    Kept,
    /// Another manager's snapshot is durable, and the log does not say so yet.
    Installed,
    /// A leader has just begun to reign.
    Reign,
    /// A leader has proposed what a control loop wants.
    Plan,
    /// An agent was told what to do.
    Told,
    /// An agent says what has become of its tasks.
    Report,
}

/// How many there are.
const POINTS: usize = 8;

/// How bad it is.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    /// Managers at the start.
    pub managers: usize,
    /// Other hosts.
    pub workers: usize,
    /// Users.
    pub users: usize,
    /// When trouble ends.
    pub until: Instant,
    /// Messages lost, in millionths; so are the other rates.
    pub drop: u64,
    /// Messages delivered twice.
    pub duplicate: u64,
    /// Messages overtaken.
    pub reorder: u64,
    /// Messages that take very long.
    pub slow: u64,
    /// Appends of a leader that travel for long while other messages overtake them.
    pub lag: u64,
    /// Leaders that are cut off with a user's write in their hands.
    pub strand: u64,
    /// Ends of a program at each of the points.
    pub points: [u64; POINTS],
    /// Whether users look at once, and elsewhere, whether what they wrote is there.
    pub eager: bool,
    /// Crashes while something is written.
    pub crash_writing: u64,
    /// Crashes while a vote is written.
    pub crash_voting: u64,
    /// Crashes while a snapshot is taken.
    pub crash_snapshot: u64,
    /// Writes that take very long.
    pub slow_disk: u64,
    /// Operations of the executor that fail.
    pub executor: u64,
    /// Mean time between troubles of each kind; 0 is never.
    pub kill: u64,
    /// See [`Trouble::PowerCut`].
    pub power: u64,
    /// See [`Trouble::Pause`].
    pub pause: u64,
    /// See [`Trouble::DiskFails`].
    pub disk: u64,
    /// See [`Trouble::Wipe`].
    pub wipe: u64,
    /// See [`Trouble::Rot`].
    pub rot: u64,
    /// Network partitions of all kinds.
    pub partition: u64,
    /// See [`Trouble::Clock`].
    pub clock: u64,
    /// See [`Trouble::Transfer`].
    pub transfer: u64,
    /// See [`Trouble::Forsake`].
    pub forsake: u64,
    /// See [`Trouble::Expel`].
    pub expel: u64,
    /// Greatest drift of a clock, in millionths.
    pub drift: u64,
    /// Entries between snapshots.
    pub snapshot_entries: u64,
    /// Time that a user thinks, at most.
    pub thought: u64,
    /// How often a service publishes a port, uses a secret or network that there is, and reserves much memory.
    pub taste: [u64; 3],
    /// How often a user who has scaled a service scales it again.
    pub fickle: u64,
    /// Whether networks have fewer addresses than users may want.
    pub narrow: bool,
    /// How long processes may take to stop.
    pub grace: u64,
    /// For how long users go on after trouble has ended: what a change of leaders would have mended shows then.
    pub encore: u64,
    /// Whether users change the roles of nodes.
    pub roles: bool,
    /// Whether one host that is no manager stays dead in the end.
    pub leaves_dead: bool,
}

impl Faults {
    /// Draws what a seed is like.
    pub fn draw(rng: &mut Rng) -> Self {
        let managers = *rng.pick(&[1, 3, 3, 3, 5]);
        let mut rate = |low: u64, high: u64| *rng.pick(&[0, low, high]);
        let faults = Self {
            managers,
            workers: 0,
            users: 0,
            until: 0,
            drop: rate(2_000, 60_000),
            duplicate: rate(5_000, 100_000),
            reorder: rate(20_000, 300_000),
            slow: rate(1_000, 20_000),
            lag: rate(50_000, 400_000),
            strand: rate(20_000, 150_000),
            points: [0; POINTS],
            eager: false,
            crash_writing: rate(500, 5_000),
            crash_voting: rate(20_000, 300_000),
            crash_snapshot: rate(50_000, 400_000),
            slow_disk: rate(2_000, 30_000),
            executor: rate(20_000, 200_000),
            kill: rate(20 * SECOND, 4 * SECOND),
            power: rate(30 * SECOND, 8 * SECOND),
            pause: rate(20 * SECOND, 5 * SECOND),
            disk: rate(60 * SECOND, 15 * SECOND),
            wipe: rate(30 * SECOND, 8 * SECOND),
            rot: rate(30 * SECOND, 8 * SECOND),
            partition: rate(20 * SECOND, 5 * SECOND),
            clock: rate(30 * SECOND, 10 * SECOND),
            transfer: rate(20 * SECOND, 5 * SECOND),
            forsake: rate(15 * SECOND, 5 * SECOND),
            expel: rate(0, 12 * SECOND),
            drift: rate(500, 30_000),
            snapshot_entries: 0,
            thought: 0,
            taste: [0; 3],
            fickle: 0,
            narrow: false,
            grace: 800 * MS,
            encore: 0,
            roles: false,
            leaves_dead: false,
        };
        let hot = [
            3_000, 700_000, 300_000, 500_000, 100_000, 10_000, 10_000, 10_000,
        ];
        // A few of the points in most of the seeds: where all are, nothing gets far enough to go wrong.
        let points = hot.map(|hot| *rng.pick(&[0, 0, 0, hot / 4, hot]));
        Self {
            points,
            eager: rng.chance(500_000),
            taste: [
                *rng.pick(&[0, 400_000, 1_000_000]),
                *rng.pick(&[100_000, 400_000, 800_000]),
                *rng.pick(&[0, 200_000, 800_000]),
            ],
            workers: rng.range(1, 4) as usize,
            users: rng.range(1, 4) as usize,
            until: rng.range(15, 40) * SECOND,
            snapshot_entries: *rng.pick(&[20, 60, 400]),
            thought: *rng.pick(&[100 * MS, 800 * MS, 3 * SECOND]),
            fickle: *rng.pick(&[0, 0, 600_000]),
            narrow: rng.chance(300_000),
            grace: *rng.pick(&[800 * MS, 800 * MS, 6 * SECOND]),
            encore: *rng.pick(&[0, 0, 0, 20 * SECOND]),
            roles: rng.chance(300_000),
            leaves_dead: rng.chance(300_000),
            ..faults
        }
    }

    /// No trouble at all.
    pub fn none(managers: usize, workers: usize) -> Self {
        Self {
            managers,
            workers,
            users: 0,
            until: 0,
            lag: 0,
            strand: 0,
            points: [0; POINTS],
            eager: false,
            drop: 0,
            duplicate: 0,
            reorder: 0,
            slow: 0,
            crash_writing: 0,
            crash_voting: 0,
            crash_snapshot: 0,
            slow_disk: 0,
            executor: 0,
            kill: 0,
            power: 0,
            pause: 0,
            disk: 0,
            wipe: 0,
            rot: 0,
            partition: 0,
            clock: 0,
            transfer: 0,
            forsake: 0,
            expel: 0,
            drift: 0,
            snapshot_entries: 400,
            thought: SECOND,
            taste: [0; 3],
            fickle: 0,
            narrow: false,
            grace: 800 * MS,
            encore: 0,
            roles: false,
            leaves_dead: false,
        }
    }

    /// The same cluster after trouble has ended.
    pub fn ended(self) -> Self {
        Self {
            drift: self.drift,
            snapshot_entries: self.snapshot_entries,
            leaves_dead: self.leaves_dead,
            until: self.until,
            thought: self.thought,
            taste: self.taste,
            fickle: self.fickle,
            narrow: self.narrow,
            grace: self.grace,
            encore: self.encore,
            ..Self::none(self.managers, self.workers)
        }
    }

    /// Whether the process dies in this write, and how long it takes otherwise.
    pub fn persisting(&self, rng: &mut Rng, is_vote: bool, is_snapshot: bool) -> (bool, u64) {
        let rate = if is_vote {
            self.crash_voting
        } else if is_snapshot {
            self.crash_snapshot
        } else {
            self.crash_writing
        };
        if rng.chance(rate) {
            return (true, 0);
        }
        let delay = if rng.chance(self.slow_disk) {
            rng.range(100 * MS, 4 * SECOND)
        } else {
            rng.range(MS / 10, 4 * MS)
        };
        (false, delay)
    }

    /// Thinks of the next bad thing, and when it happens.
    pub fn next(&self, rng: &mut Rng, hosts: usize) -> Option<(u64, Trouble)> {
        let rates = [
            self.kill,
            self.power,
            self.pause,
            self.disk,
            self.wipe,
            self.partition,
            self.clock,
            self.transfer,
            self.rot,
            self.forsake,
            self.expel,
        ];
        let drawn = rates.iter().enumerate().filter(|(_, mean)| **mean > 0);
        let drawn: Vec<(u64, usize)> = drawn
            .map(|(kind, mean)| (rng.range(1, 2 * mean), kind))
            .collect();
        let (after, kind) = drawn.into_iter().min()?;
        let host = rng.index(hosts);
        let trouble = match kind {
            0 => Trouble::Kill(host),
            1 => Trouble::PowerCut(host),
            2 => Trouble::Pause(host, *rng.pick(&[300 * MS, 2 * SECOND, 8 * SECOND])),
            3 => Trouble::DiskFails(host, rng.range(0, 40)),
            4 => Trouble::Wipe(host),
            5 => match rng.index(6) {
                0 => Trouble::Isolate(host, true, false),
                1 => Trouble::Isolate(host, false, true),
                2 => Trouble::Isolate(host, true, true),
                3 => Trouble::Split(rng.next_u64()),
                4 => Trouble::Ring,
                _ => Trouble::Heal,
            },
            6 => {
                let jump = rng.range(0, 20 * SECOND) as i64 - 10 * SECOND as i64;
                Trouble::Clock(host, jump)
            }
            7 => Trouble::Transfer(host),
            8 => Trouble::Rot(host),
            9 => Trouble::Forsake(*rng.pick(&[3 * SECOND, 6 * SECOND, 10 * SECOND])),
            _ => Trouble::Expel,
        };
        Some((after, trouble))
    }
}
