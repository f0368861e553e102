//! A manager in a process of its own, and the way to it: orders on its standard input, answers on its output.

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ChildStdin, ChildStdout},
    sync::Arc,
};

use anyhow::{Result, bail, ensure};
use shoal_api::{
    TaskState,
    object::{NodeDescription, NodeState},
    spec::{Annotations, Availability, ClusterSpec, ConfigSpec},
};
use shoal_ca::{IdentityFiles, NodeIdentity, StoredIdentity};
use shoal_manager::{
    Begin, Founding, Intent, Manager, ManagerConfig, NewCluster, RaftConfig, Spec, State,
    join_cluster,
};

use crate::program::{Program, Recipe};

/// Runs a manager until its input ends: `manager DIRECTORY ADDRESS found | join MANAGER TOKEN | restart`.
pub(crate) async fn serve(words: &[&str]) -> Result<()> {
    let [directory, address, how @ ..] = words else {
        bail!("manager DIRECTORY ADDRESS found | join MANAGER TOKEN | restart");
    };
    let directory = PathBuf::from(directory);
    let listen: SocketAddr = address.parse()?;
    let files = IdentityFiles::new(directory.join("certificates"));
    let config = ManagerConfig {
        directory: directory.join("manager"),
        listen,
        advertise: listen.to_string(),
        lock: None,
        raft: RaftConfig::default(),
    };
    let (identity, begin) = match how {
        ["found"] => {
            let new = NewCluster {
                spec: ClusterSpec::default(),
                availability: Availability::Drain,
                description: NodeDescription::default(),
                address: listen.ip(),
                advertise: listen.to_string(),
            };
            let Founding {
                identity, state, ..
            } = new.found()?;
            files.save(&identity, None)?;
            (identity, Begin::Found { state })
        }
        ["join", manager, token] => {
            let name = format!("manager-{}", listen.port());
            let identity = join_cluster(manager, token, &name, Availability::Drain).await?;
            files.save(&identity, None)?;
            let managers = vec![(*manager).to_owned()];
            (identity, Begin::Join { managers })
        }
        _ => (load(&files)?, Begin::Restart),
    };
    std::fs::create_dir_all(&config.directory)?;
    let manager = Arc::new(Manager::start(config, identity, begin).await?);
    println!("ready");
    let (lines, mut orders) = tokio::sync::mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    while let Some(order) = orders.recv().await {
        println!("{}", obey(&manager, &order).await);
    }
    Ok(())
}

fn load(files: &IdentityFiles) -> Result<NodeIdentity> {
    match files.load(None)? {
        StoredIdentity::Open(identity) => Ok(*identity),
        StoredIdentity::Nothing | StoredIdentity::Sealed => bail!("there is no identity"),
    }
}

async fn obey(manager: &Manager, order: &str) -> String {
    let words: Vec<&str> = order.split(' ').collect();
    match words.as_slice() {
        ["token", "worker"] => manager.join_tokens().unwrap_or_default().0,
        ["token", "manager"] => manager.join_tokens().unwrap_or_default().1,
        ["leads"] => manager.leadership().borrow().is_leader.to_string(),
        ["voters"] => {
            let members = manager.members();
            let members = members.borrow();
            let voters = members.iter().filter(|(id, _)| members.is_voter(*id));
            voters.count().to_string()
        }
        ["configs"] => manager.state().configs().count().to_string(),
        ["index"] => manager.state().index().to_string(),
        ["log"] => manager.log_bytes().to_string(),
        ["put", name] => match manager.write(put(name, 256)).await {
            Ok(_) => "ok".to_owned(),
            Err(error) => format!("failed: {error}"),
        },
        ["running", wanted] => until(manager, wanted, running).await,
        ["nodes", wanted] => until(manager, wanted, ready_nodes).await,
        _ => format!("failed: {order:?} is no order"),
    }
}

/// Answers when there are so many.
async fn until(manager: &Manager, wanted: &str, count: impl Fn(&State) -> usize) -> String {
    let wanted: usize = wanted.parse().unwrap_or(usize::MAX);
    let mut watch = manager.watch();
    let mut state = manager.state();
    loop {
        let there = count(&state);
        if there >= wanted {
            return there.to_string();
        }
        watch.next().await;
        while watch.try_next().is_some() {}
        state = manager.state();
    }
}

fn running(state: &State) -> usize {
    let running = |task: &&Arc<shoal_api::object::Task>| task.status.state == TaskState::Running;
    state.tasks().filter(running).count()
}

fn ready_nodes(state: &State) -> usize {
    let ready = |node: &&Arc<shoal_api::object::Node>| node.status.state == NodeState::Ready;
    state.nodes().filter(ready).count()
}

/// A write of so many bytes.
pub(crate) fn put(name: &str, bytes: usize) -> Intent {
    Intent::Create(Spec::Config(ConfigSpec {
        annotations: Annotations {
            name: name.to_owned(),
            ..Annotations::default()
        },
        data: vec![b'x'; bytes],
        templating: None,
    }))
}

/// A manager that was started.
pub(crate) struct Process {
    pub(crate) address: String,
    pub(crate) program: Program,
    directory: PathBuf,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// A manager's process: `how` as [`serve`] reads it.
fn recipe(directory: &Path, address: &str, how: &[&str]) -> Result<Recipe> {
    let directory = directory.display().to_string();
    let words = ["manager", &directory, address].into_iter();
    let words = words.chain(how.iter().copied());
    Ok(Recipe {
        program: std::env::current_exe()?.display().to_string(),
        words: words.map(str::to_owned).collect(),
        talks: true,
    })
}

impl Process {
    fn start(directory: &Path, address: &str, how: &[&str]) -> Result<Self> {
        let mut program = Program::start(&recipe(directory, address, how)?)?;
        let (orders, answers) = program.talk()?;
        let mut process = Self {
            address: address.to_owned(),
            program,
            directory: directory.to_owned(),
            orders,
            answers: BufReader::new(answers),
        };
        process.await_ready()?;
        Ok(process)
    }

    fn await_ready(&mut self) -> Result<()> {
        let said = self.hear()?;
        ensure!(said == "ready", "a manager did not start: {said:?}");
        Ok(())
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(
            !line.is_empty(),
            "the manager at {} has ended",
            self.address
        );
        Ok(line.trim_end().to_owned())
    }

    /// Gives an order and waits for the answer.
    pub(crate) fn ask(&mut self, order: &str) -> Result<String> {
        writeln!(self.orders, "{order}")?;
        self.hear()
    }

    /// Starts it again, with what it has on its disk.
    pub(crate) fn restart(&mut self) -> Result<()> {
        let recipe = recipe(&self.directory, &self.address, &["restart"])?;
        self.program.restart(&recipe)?;
        let (orders, answers) = self.program.talk()?;
        (self.orders, self.answers) = (orders, BufReader::new(answers));
        self.await_ready()
    }

    /// Its certificate, by which whoever has it is a manager.
    pub(crate) fn identity(&self) -> Result<NodeIdentity> {
        load(&IdentityFiles::new(self.directory.join("certificates")))
    }
}

/// Three managers of one cluster, each with a disk of its own below `directory`.
pub(crate) fn three(directory: &Path) -> Result<Vec<Process>> {
    let mut managers: Vec<Process> = Vec::new();
    for number in 0..3 {
        let directory = directory.join(format!("m{number}"));
        std::fs::create_dir_all(&directory)?;
        let address = format!("127.0.0.1:{}", crate::free_port()?);
        let process = match managers.first_mut() {
            None => Process::start(&directory, &address, &["found"])?,
            Some(first) => {
                let token = first.ask("token manager")?;
                let to = first.address.clone();
                Process::start(&directory, &address, &["join", &to, &token])?
            }
        };
        managers.push(process);
        let wanted = managers.len().to_string();
        while managers[0].ask("voters")? != wanted {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
    Ok(managers)
}

/// The one that leads, asked until there is one.
pub(crate) fn leader(managers: &mut [Process]) -> Result<usize> {
    loop {
        for (place, manager) in managers.iter_mut().enumerate() {
            if manager.ask("leads")? == "true" {
                return Ok(place);
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
