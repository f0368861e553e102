//! A cluster on one machine: N hosts made of namespaces, each with its own daemon, files, cgroup and address.
//!
//! A host is a process tree under its own process 1 ([`host`]), joined to a bridge of the machine ([`network`]). Cutting
//! the power of a host is ending its process 1: the kernel ends everything in it. The lab's own memory is one file,
//! `lab.json`, in its folder; every command reads it, so a lab outlives the command that made it.

mod host;
mod image;
mod network;

use std::{
    fs, io,
    net::Ipv4Addr,
    os::unix::{fs::symlink, net::UnixDatagram},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

pub use host::init;
pub use image::{DEMO_IMAGE, demo_archive};

/// Hosts of one lab at most: addresses .11 to .254 of its subnet.
pub const HOSTS_MAX: usize = 200;
/// A daemon that is not ready after this long will not be.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Why a lab command did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// There is no such lab.
    #[error("no lab {name:?}: make one with `shoal lab up`")]
    NoLab {
        /// Its name.
        name: String,
    },
    /// There already is one.
    #[error("lab {name:?} is up already: `shoal lab down` ends it")]
    Exists {
        /// Its name.
        name: String,
    },
    /// There is no such host.
    #[error("no host {host:?} in this lab: it has {hosts}")]
    NoHost {
        /// What was asked for.
        host: String,
        /// What there is.
        hosts: String,
    },
    /// The host is without power.
    #[error("host {host} is down: `shoal lab start {host}` starts it")]
    Down {
        /// Its name.
        host: String,
    },
    /// A value that cannot be.
    #[error("invalid {field} {value:?}: {expected}")]
    Invalid {
        /// Which value.
        field: &'static str,
        /// What was given.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// A daemon ended, or did not come up in time.
    #[error("the daemon of {host} did not start: {problem}; its log ends with:\n{log}")]
    Daemon {
        /// Host.
        host: String,
        /// What happened.
        problem: String,
        /// Last lines of its log.
        log: String,
    },
    /// A command inside a host failed.
    #[error("`{command}` on {host}: {problem}")]
    Command {
        /// Host.
        host: String,
        /// What was run.
        command: String,
        /// What it said.
        problem: String,
    },
    /// The operating system refused.
    #[error("{doing}")]
    Io {
        /// What was attempted.
        doing: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Several things could not be taken down.
    #[error("the lab is not completely gone:\n{}", .0.join("\n"))]
    Remains(Vec<String>),
}

/// Attaches what was attempted to an error of the operating system.
fn doing<T>(result: io::Result<T>, what: impl FnOnce() -> String) -> Result<T, LabError> {
    result.map_err(|source| LabError::Io {
        doing: what(),
        source,
    })
}

/// What a lab shall be.
#[derive(Debug, Clone)]
pub struct LabConfig {
    /// Name; several labs can be up at once.
    pub name: String,
    /// Number of hosts.
    pub nodes: usize,
    /// Managers of a cluster to be formed at once; 0 leaves the hosts single.
    pub managers: usize,
    /// Underlay of the hosts; `None` takes one that this machine does not use.
    pub subnet: Option<Ipv4Net>,
    /// MTU of the underlay.
    pub mtu: u32,
    /// Further flags of each daemon.
    pub daemon_args: Vec<String>,
    /// Whether to load the demo image on every host.
    pub load_demo: bool,
}

impl Default for LabConfig {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            nodes: 3,
            managers: 0,
            subnet: None,
            mtu: 1500,
            daemon_args: Vec::new(),
            load_demo: true,
        }
    }
}

/// A lab that is up.
#[derive(Debug, Serialize, Deserialize)]
pub struct Lab {
    /// Name.
    pub name: String,
    /// Bridge on the machine that joins the hosts.
    pub bridge: String,
    /// Underlay.
    pub subnet: Ipv4Net,
    /// MTU of the underlay.
    pub mtu: u32,
    /// Further flags of each daemon.
    pub daemon_args: Vec<String>,
    /// The hosts, n1 first.
    pub hosts: Vec<LabHost>,
    #[serde(skip)]
    dir: PathBuf,
}

/// One host of a lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LabHost {
    /// Name, also its hostname.
    pub name: String,
    /// Address on the underlay.
    pub addr: Ipv4Addr,
    /// Its process 1 as the machine sees it, and when it started (to tell it from a later process of the same number).
    pub init: Option<host::ProcessId>,
    /// Its daemon, likewise.
    pub daemon: Option<host::ProcessId>,
}

impl LabHost {
    /// Whether it has power.
    pub fn is_up(&self) -> bool {
        self.init.is_some_and(|init| init.is_alive())
    }
}

impl Lab {
    /// Where labs are kept: `/var/lib/shoal-lab`, or `SHOAL_LAB_DIR`.
    fn root() -> PathBuf {
        std::env::var_os("SHOAL_LAB_DIR")
            .map_or_else(|| PathBuf::from("/var/lib/shoal-lab"), PathBuf::from)
    }

    /// Opens the lab of this name.
    pub fn open(name: &str) -> Result<Self, LabError> {
        let dir = Self::root().join(name);
        let text = fs::read(dir.join("lab.json")).map_err(|_| LabError::NoLab {
            name: name.to_owned(),
        })?;
        let lab: Self = doing(
            serde_json::from_slice(&text).map_err(io::Error::other),
            || format!("cannot read {}", dir.join("lab.json").display()),
        )?;
        Ok(Self { dir, ..lab })
    }

    /// Names of all labs.
    pub fn all() -> Vec<String> {
        let entries = fs::read_dir(Self::root()).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries
            .filter(|entry| entry.path().join("lab.json").exists())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    /// Makes the hosts and starts their daemons. What was made is removed again if it does not come up whole.
    pub fn up(config: &LabConfig, progress: &mut dyn FnMut(&str)) -> Result<Self, LabError> {
        let invalid = |field, value: String, expected: &str| LabError::Invalid {
            field,
            value,
            expected: expected.to_owned(),
        };
        let name_fits = (1..=8).contains(&config.name.len())
            && config
                .name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !name_fits {
            return Err(invalid(
                "lab name",
                config.name.clone(),
                "expected 1 to 8 characters of a-z, 0-9",
            ));
        }
        if !(1..=HOSTS_MAX).contains(&config.nodes) {
            return Err(invalid(
                "number of nodes",
                config.nodes.to_string(),
                "expected 1 to 200",
            ));
        }
        if config.managers > config.nodes {
            return Err(invalid(
                "number of managers",
                config.managers.to_string(),
                "expected at most the nodes",
            ));
        }
        let subnet = network::free_subnet(config.subnet)?;
        let dir = Self::root().join(&config.name);
        if dir.join("lab.json").exists() {
            return Err(LabError::Exists {
                name: config.name.clone(),
            });
        }
        let mut lab = Self {
            name: config.name.clone(),
            bridge: format!("shlab-{}", config.name),
            subnet,
            mtu: config.mtu,
            daemon_args: config.daemon_args.clone(),
            hosts: (1..=config.nodes)
                .map(|number| LabHost {
                    name: format!("n{number}"),
                    addr: (u32::from(subnet.network())
                        + 10
                        + u32::try_from(number).expect("at most 200"))
                    .into(),
                    init: None,
                    daemon: None,
                })
                .collect(),
            dir,
        };
        match lab.bring_up(config, progress) {
            Ok(()) => Ok(lab),
            Err(problem) => {
                if let Err(remains) = lab.down() {
                    tracing::warn!(%remains, "clean-up after a failed start");
                }
                Err(problem)
            }
        }
    }

    fn bring_up(
        &mut self,
        config: &LabConfig,
        progress: &mut dyn FnMut(&str),
    ) -> Result<(), LabError> {
        doing(fs::create_dir_all(&self.dir), || {
            format!("cannot make {}", self.dir.display())
        })?;
        self.save()?;
        network::make_bridge(&self.bridge, self.subnet, self.mtu)?;
        for name in self.names() {
            progress(&format!("{name}: starting"));
            self.start(&name)?;
        }
        if config.load_demo {
            progress("loading the demo image");
            let archive = self.dir.join("demo.tar");
            doing(fs::write(&archive, demo_archive()), || {
                format!("cannot write {}", archive.display())
            })?;
            for name in self.names() {
                self.run(&name, &["load", "-q", "-i", &archive.to_string_lossy()])?;
            }
        }
        if config.managers > 0 {
            self.form_cluster(config.managers, progress)?;
        }
        Ok(())
    }

    /// Makes n1 a cluster and joins the others to it.
    fn form_cluster(
        &self,
        managers: usize,
        progress: &mut dyn FnMut(&str),
    ) -> Result<(), LabError> {
        let first = &self.hosts[0];
        progress(&format!("{}: swarm init", first.name));
        self.run(
            &first.name,
            &["swarm", "init", "--advertise-addr", &first.addr.to_string()],
        )?;
        let manager_addr = format!("{}:2377", first.addr);
        for (index, host) in self.hosts.iter().enumerate().skip(1) {
            let role = if index < managers {
                "manager"
            } else {
                "worker"
            };
            progress(&format!("{}: joins as {role}", host.name));
            let token = self.run(&first.name, &["swarm", "join-token", "-q", role])?;
            self.run(
                &host.name,
                &["swarm", "join", "--token", token.trim(), &manager_addr],
            )?;
        }
        Ok(())
    }

    fn names(&self) -> Vec<String> {
        self.hosts.iter().map(|host| host.name.clone()).collect()
    }

    fn save(&self) -> Result<(), LabError> {
        let path = self.dir.join("lab.json");
        let text = serde_json::to_vec_pretty(self).expect("a lab is plain data");
        doing(fs::write(&path, text), || {
            format!("cannot write {}", path.display())
        })
    }

    /// The host of this name.
    pub fn host(&self, name: &str) -> Result<&LabHost, LabError> {
        self.hosts
            .iter()
            .find(|host| host.name == name)
            .ok_or_else(|| LabError::NoHost {
                host: name.to_owned(),
                hosts: self.names().join(", "),
            })
    }

    fn host_dir(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Path of a host's API socket as seen from the machine.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.host_dir(name).join("run/shoal.sock")
    }

    /// Path of the log of a host's daemon.
    pub fn daemon_log(&self, name: &str) -> PathBuf {
        self.host_dir(name).join("daemon.log")
    }

    fn cgroup(&self, name: &str) -> String {
        format!("shoal-lab-{}/{name}", self.name)
    }

    /// Gives a host power if it has none and starts its daemon if it does not run. Its files are as they were left.
    pub fn start(&mut self, name: &str) -> Result<(), LabError> {
        let mut host = self.host(name)?.clone();
        let dir = self.host_dir(name);
        if !host.is_up() {
            let lib = dir.join("lib");
            doing(fs::create_dir_all(&lib), || {
                format!("cannot make {}", lib.display())
            })?;
            let init = host::boot(name, &dir)?;
            // It leads nowhere once the host has gone.
            let run = dir.join("run");
            let _ = fs::remove_file(&run);
            doing(symlink(host::run_of(init), &run), || {
                format!("cannot make {}", run.display())
            })?;
            host.init = Some(init);
            host.daemon = None;
            self.remember(&host)?;
            network::plug(
                &self.bridge,
                &self.name,
                name,
                init.pid,
                host.addr,
                self.subnet,
                self.mtu,
            )?;
        }
        if !host.daemon.is_some_and(|daemon| daemon.is_alive()) {
            host.daemon = Some(self.start_daemon(&host)?);
        }
        self.remember(&host)
    }

    fn remember(&mut self, host: &LabHost) -> Result<(), LabError> {
        if let Some(known) = self.hosts.iter_mut().find(|known| known.name == host.name) {
            known.clone_from(host);
        }
        self.save()
    }

    fn start_daemon(&self, host: &LabHost) -> Result<host::ProcessId, LabError> {
        let log_path = self.daemon_log(&host.name);
        let log = doing(
            fs::File::options()
                .create(true)
                .append(true)
                .open(&log_path),
            || format!("cannot open {}", log_path.display()),
        )?;
        let log_again = doing(log.try_clone(), || "cannot share the log file".to_owned())?;
        // The daemon tells by the service manager's protocol (sd_notify(3)) that it is ready.
        let notify_path = self.host_dir(&host.name).join("run/notify");
        let _ = fs::remove_file(&notify_path);
        let notify = doing(UnixDatagram::bind(&notify_path), || {
            format!("cannot bind {}", notify_path.display())
        })?;
        doing(
            notify.set_read_timeout(Some(Duration::from_millis(200))),
            || "cannot set a timeout".to_owned(),
        )?;

        let mut command = Command::new(own_program()?);
        command.args(["daemon", "--cgroup-parent", &self.cgroup(&host.name)]);
        command.args(&self.daemon_args).current_dir("/");
        command.env("NOTIFY_SOCKET", "/run/shoal/notify");
        command.stdin(Stdio::null()).stdout(log).stderr(log_again);
        let mut daemon = self.spawn(host, command)?;
        let failed = |problem: String| LabError::Daemon {
            host: host.name.clone(),
            problem,
            log: last_lines(&log_path, 10),
        };
        let began = std::time::Instant::now();
        let mut message = [0; 256];
        loop {
            match notify.recv(&mut message) {
                Ok(length) if message[..length].starts_with(b"READY=1") => break,
                Ok(_) => {}
                // The wait is for a datagram; the timeout only lets a daemon that ended be noticed.
                Err(_) => match daemon.try_wait() {
                    Ok(Some(status)) => return Err(failed(format!("it ended with {status}"))),
                    _ if began.elapsed() > READY_WITHIN => {
                        let _ = daemon.kill();
                        return Err(failed(format!(
                            "it is not ready after {} s",
                            READY_WITHIN.as_secs()
                        )));
                    }
                    _ => {}
                },
            }
        }
        host::ProcessId::of(daemon.id()).ok_or_else(|| failed("it ended at once".to_owned()))
    }

    fn spawn(&self, host: &LabHost, command: Command) -> Result<std::process::Child, LabError> {
        let init = host
            .init
            .filter(|init| init.is_alive())
            .ok_or_else(|| LabError::Down {
                host: host.name.clone(),
            })?;
        host::spawn_inside(init, command)
    }

    /// Runs a program on a host with this process's input and output, and waits for it.
    pub fn exec(&self, name: &str, words: &[String]) -> Result<ExitStatus, LabError> {
        let Some((program, args)) = words.split_first() else {
            let expected = "expected a program to run".to_owned();
            return Err(LabError::Invalid {
                field: "command",
                value: String::new(),
                expected,
            });
        };
        // `shoal` means this very program, wherever it lies, also to a shell that is started.
        let own = own_program()?;
        let mut path = own
            .parent()
            .map(PathBuf::from)
            .into_iter()
            .collect::<Vec<_>>();
        path.extend(std::env::split_paths(
            &std::env::var_os("PATH").unwrap_or_default(),
        ));
        let program = if program == "shoal" {
            own
        } else {
            PathBuf::from(program)
        };
        let mut command = Command::new(program);
        command.args(args);
        if let Ok(path) = std::env::join_paths(path) {
            command.env("PATH", path);
        }
        // Entering the host's mount namespace moves the process to its root.
        if let Ok(folder) = std::env::current_dir() {
            command.current_dir(folder);
        }
        let mut child = self.spawn(self.host(name)?, command)?;
        doing(child.wait(), || format!("cannot wait for {words:?}"))
    }

    /// Runs `shoal` with these words on a host and returns what it printed.
    pub fn run(&self, name: &str, words: &[&str]) -> Result<String, LabError> {
        let mut command = Command::new(own_program()?);
        command
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = self.spawn(self.host(name)?, command)?;
        let output = doing(child.wait_with_output(), || {
            format!("cannot wait for shoal {words:?}")
        })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let problem = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let problem = if problem.is_empty() {
            output.status.to_string()
        } else {
            problem
        };
        Err(LabError::Command {
            host: name.to_owned(),
            command: format!("shoal {}", words.join(" ")),
            problem,
        })
    }

    /// Cuts the power of a host: everything on it ends at once.
    pub fn kill(&mut self, name: &str) -> Result<(), LabError> {
        let mut host = self.host(name)?.clone();
        let init = host
            .init
            .filter(|init| init.is_alive())
            .ok_or_else(|| LabError::Down {
                host: name.to_owned(),
            })?;
        init.end()?;
        network::unplug(&self.name, name)?;
        host.init = None;
        host.daemon = None;
        self.remember(&host)
    }

    /// Ends a host's daemon with SIGKILL and leaves the rest of the host alone.
    pub fn kill_daemon(&mut self, name: &str) -> Result<(), LabError> {
        let mut host = self.host(name)?.clone();
        let Some(daemon) = host.daemon.filter(|daemon| daemon.is_alive()) else {
            return Err(LabError::Down {
                host: name.to_owned(),
            });
        };
        daemon.end()?;
        host.daemon = None;
        self.remember(&host)
    }

    /// Drops every packet between two hosts, both ways.
    pub fn cut(&self, a: &str, b: &str) -> Result<(), LabError> {
        let (a, b) = (self.host(a)?, self.host(b)?);
        network::cut(&self.bridge, a.addr, b.addr)
    }

    /// Undoes every [`Lab::cut`].
    pub fn heal(&self) -> Result<(), LabError> {
        network::heal(&self.bridge)
    }

    /// Takes everything away: processes, links, cgroups, files. Goes on when a part fails, and tells all of it.
    pub fn down(&mut self) -> Result<(), LabError> {
        let mut remains = Vec::new();
        // The kernel takes seconds to clear a host away; all of them at once take no longer.
        for init in self.hosts.iter().filter_map(|host| host.init) {
            init.kill();
        }
        for host in &mut self.hosts {
            if let Some(init) = host.init.take().filter(|init| init.is_alive())
                && let Err(problem) = init.end()
            {
                remains.push(problem.to_string());
            }
            remains.extend(
                network::unplug(&self.name, &host.name)
                    .err()
                    .map(|problem| problem.to_string()),
            );
        }
        remains.extend(
            network::remove(&self.bridge)
                .err()
                .map(|problem| problem.to_string()),
        );
        remains.extend(host::remove_cgroups(&format!("shoal-lab-{}", self.name)));
        if remains.is_empty() {
            doing(fs::remove_dir_all(&self.dir), || {
                format!("cannot remove {}", self.dir.display())
            })?;
            // Removing a mount point takes the mounts on it from all mount namespaces (since Linux 3.19), so other labs
            // must be gone first.
            if Self::all().is_empty() {
                host::forget_places();
                // Fails where a user keeps something else there.
                let _ = fs::remove_dir(Self::root());
            }
            return Ok(());
        }
        Err(LabError::Remains(remains))
    }
}

fn own_program() -> Result<PathBuf, LabError> {
    doing(std::env::current_exe(), || {
        "cannot find this program".to_owned()
    })
}

fn last_lines(path: &Path, count: usize) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
