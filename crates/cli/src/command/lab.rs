//! `shoal lab`: a cluster of several hosts on one machine.

use anyhow::Result;
use clap::Subcommand;
use shoal_node::lab::{Lab, LabConfig};

use crate::{
    Exit,
    output::{line, note},
};

/// Make a cluster of several hosts on this machine
#[derive(Subcommand)]
#[command(
    after_help = "Examples:\n  shoal lab up --nodes 5 --managers 3\n  shoal lab exec n2 -- shoal ps\n  shoal lab kill n2\n  shoal lab start n2\n  shoal lab down"
)]
pub(crate) enum Command {
    /// Make hosts and start a daemon on each
    Up(Up),
    /// List labs
    Ls {
        /// Only display names
        #[arg(short, long)]
        quiet: bool,
    },
    /// List the hosts of a lab
    Ps {
        #[command(flatten)]
        lab: Name,
    },
    /// Run a command on a host
    #[command(after_help = "Example:\n  shoal lab exec n1 -- shoal node ls")]
    Exec {
        #[command(flatten)]
        lab: Name,
        /// Name of the host
        host: String,
        /// Command and its arguments; `shoal` is this very program
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// Cut the power of a host, or end only its daemon
    Kill {
        #[command(flatten)]
        lab: Name,
        /// End the daemon with SIGKILL and leave the host running
        #[arg(long)]
        daemon: bool,
        /// Name of the host
        host: String,
    },
    /// Start a host, or only its daemon if that is what is missing
    Start {
        #[command(flatten)]
        lab: Name,
        /// Name of the host
        host: String,
    },
    /// Pull the cable between two hosts
    Cut {
        #[command(flatten)]
        lab: Name,
        /// Name of one host
        a: String,
        /// Name of the other
        b: String,
    },
    /// Put all cables back
    Heal {
        #[command(flatten)]
        lab: Name,
    },
    /// Take a lab down; nothing remains
    Down {
        #[command(flatten)]
        lab: Name,
    },
}

#[derive(clap::Args)]
pub(crate) struct Name {
    /// Name of the lab
    #[arg(long, value_name = "string", default_value = "default")]
    name: String,
}

#[derive(clap::Args)]
pub(crate) struct Up {
    #[command(flatten)]
    lab: Name,
    /// Number of hosts
    #[arg(long, value_name = "int", default_value_t = 3)]
    nodes: usize,
    /// Form a cluster with so many managers; 0 leaves the hosts single
    #[arg(long, value_name = "int", default_value_t = 0)]
    managers: usize,
    /// Subnet of the hosts (default one that this machine does not use)
    #[arg(long, value_name = "ipNet")]
    subnet: Option<String>,
    /// MTU of the hosts' network
    #[arg(long, value_name = "int", default_value_t = 1500)]
    mtu: u32,
    /// Flag for each daemon, for instance --daemon-arg=--label=zone=a
    #[arg(long, value_name = "list", allow_hyphen_values = true)]
    daemon_arg: Vec<String>,
}

pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Up(up) => {
            let subnet = match &up.subnet {
                None => None,
                Some(text) => match text.parse() {
                    Ok(subnet) => Some(subnet),
                    Err(_) => anyhow::bail!("invalid --subnet {text:?}: expected ADDRESS/LENGTH"),
                },
            };
            let config = LabConfig {
                name: up.lab.name,
                nodes: up.nodes,
                managers: up.managers,
                subnet,
                mtu: up.mtu,
                daemon_args: up.daemon_arg,
                load_demo: true,
            };
            show(&Lab::up(&config, &mut |step| note(step))?);
        }
        Command::Ls { quiet } => {
            for name in Lab::all() {
                if quiet {
                    line(name);
                } else {
                    let lab = Lab::open(&name)?;
                    let up = lab.hosts.iter().filter(|host| host.is_up()).count();
                    line(format!(
                        "{name}   {up}/{} hosts up   {}",
                        lab.hosts.len(),
                        lab.subnet
                    ));
                }
            }
        }
        Command::Ps { lab } => show(&Lab::open(&lab.name)?),
        Command::Exec { lab, host, command } => {
            let status = Lab::open(&lab.name)?.exec(&host, &command)?;
            if !status.success() {
                // The command has said itself what went wrong.
                let code = status.code().unwrap_or(125);
                let message = String::new();
                return Err(Exit { code, message }.into());
            }
        }
        Command::Kill { lab, daemon, host } => {
            let mut lab = Lab::open(&lab.name)?;
            if daemon {
                lab.kill_daemon(&host)?;
            } else {
                lab.kill(&host)?;
            }
        }
        Command::Start { lab, host } => Lab::open(&lab.name)?.start(&host)?,
        Command::Cut { lab, a, b } => Lab::open(&lab.name)?.cut(&a, &b)?,
        Command::Heal { lab } => Lab::open(&lab.name)?.heal()?,
        Command::Down { lab } => Lab::open(&lab.name)?.down()?,
    }
    Ok(())
}

fn show(lab: &Lab) {
    for host in &lab.hosts {
        let state = if host.is_up() { "up" } else { "down" };
        let socket = lab.socket(&host.name);
        line(format!(
            "{}   {}   {state}   unix://{}",
            host.name,
            host.addr,
            socket.display()
        ));
    }
}
