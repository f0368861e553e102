//! A whole cluster in one thread: the real decisions of managers, agents and names, on virtual time, from one seed.
//!
//! What is real: the consensus machine with its log and snapshots on a (simulated) disk, the replicated state, all
//! control loops, what the dispatcher decides and says, the agent's assignments, task machine, reports and choice of
//! managers, the table of names, the kernel state of a network view. What is not: threads, sockets, TLS, containers.
//!
//! [`world`] holds the hosts and moves them; [`env`](mod@env) is time, network and chance; [`trouble`] and [`fate`] make
//! it hard; [`oracle`] knows what must be true after every event, [`rest`] what must become true when trouble ends.
//!
//! | What must be true | Who looks |
//! |---|---|
//! | one leader per term; whoever leads has all that was decided; an entry has one term | [`oracle::Oracle::look_at`] |
//! | managers that have applied the same have the same state | [`oracle::Oracle::applied`], [`oracle::Oracle::restored`] |
//! | one vote per term; nothing promised is forgotten, whatever the disk lost | [`oracle::Oracle::promised`], [`oracle::Oracle::check_kept`] |
//! | reads, writes and refusals are linearizable; no write twice; none lost that was acknowledged | [`oracle::Oracle::replied`], [`rest::look`] |
//! | task states go forward, each step by its owner | `Oracle::judge_task` |
//! | a slot runs one task, or two while a replacement starts first | [`oracle::Oracle::started`], `core::audit` |
//! | addresses, subnets, VNIs, ports, names and Raft ids are given out once | `core::audit` after every entry |
//! | a Raft id is one node's and one log's for ever; who was removed does not come back, and no manager that knows does what it asks | [`oracle::Oracle::members`], [`oracle::Oracle::begins`], `Oracle::judge_removals`, [`oracle::Oracle::let_in`] |
//! | a node is told of its own tasks alone, and of their secrets | [`oracle::Oracle::told`] |
//! | memory and things of a node are not promised twice; tasks go to nodes that are open | [`plans::judge`], `core::audit` |
//! | no task that runs is ended without a reason; an update leaves as many running as its service says | [`plans::judge`] |
//! | a new leader gives nodes the time to find it | `leader::Reign::work` |
//! | who is asked to stop is out of names and load balancers | [`rest::check_stop`] |
//! | damage in the middle of a log is refused, never taken for its end | `World::start_manager` |
//! | whoever is asked when trouble has long ended answers | `World::on_user` |
//! | nobody works in vain | `World::step`, [`run::run`] |
//! | in the end: members, nodes, tasks, processes, names and kernel plans are as asked for; nodes keep nothing of tasks that are gone; disks hold the newest snapshots and what follows them | [`rest::look`] |
//!
//! Not here: the bytes of certificates and tokens (`shoal-ca`, `tests/cluster/certificates.rs`), the keys under autolock
//! (`tests/cluster/autolock.rs`).

pub use shoal_api::planted::MARK;

pub mod agent;
pub mod disk;
pub mod env;
pub mod executor;
pub mod fate;
#[cfg(feature = "planted-bugs")]
pub mod gate;
pub mod genesis;
pub mod leader;
pub mod manager;
pub mod oracle;
pub mod plane;
pub mod plans;
pub mod rest;
pub mod rng;
pub mod rpc;
pub mod run;
pub mod script;
pub mod trouble;
pub mod user;
pub mod world;
