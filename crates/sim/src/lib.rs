//! A whole cluster in one thread: the real decisions of managers, agents and names, on virtual time, from one seed.
//!
//! What is real: the consensus machine with its log and snapshots on a (simulated) disk, the replicated state, all
//! control loops, what the dispatcher decides and says, the agent's assignments, task machine, reports and choice of
//! managers, the table of names, the kernel state of a network view. What is not: threads, sockets, TLS, containers.
//!
//! [`world`] holds the hosts and moves them; [`env`](mod@env) is time, network and chance; [`trouble`] and [`fate`] make
//! it hard; [`oracle`] knows what must be true after every event, [`rest`] what must become true when trouble ends.

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
