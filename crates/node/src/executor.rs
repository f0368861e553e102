//! The agent's hands: a task becomes a container of this node's engine.

mod attachment;
mod container;
mod exec;
mod files;
mod logs;
mod volumes;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose};
use shoal_api::{
    container::{ContainerInspect, EventKind, ExecSpec, HealthStatus, LogQuery, PortProtocol},
    image::RegistryAuth,
    network::Protocol,
    object::{ContainerStatus, NodeDescription, Task},
    spec::{Platform, PortConfig, PublishMode, PullPolicy, Resources},
    template::task::{self as template, Values},
    tunnel::ENCRYPTED_PLUGIN,
};
use shoal_engine::{
    core::logging::Driver as LogDriver,
    io::{
        Engine, EngineError, EngineErrorKind, cdi_watch,
        engine::{StopOptions, WaitCondition},
        images::{ImageError, ImageErrorKind},
    },
};
use shoal_overlay::KeyState;
use shoal_worker::{
    core::assignment::TaskFiles,
    ports::{Controller, ExecError, ExecErrorKind, Executor, Exit, LogLines, Started, TaskExec},
};
use tokio::sync::{broadcast, mpsc, watch};
pub(crate) use volumes::VOLUME_RELEASE_MAX;

use crate::{
    config::DaemonConfig,
    network::{NodeNetworks, chain},
    plane::ClusterPlane,
};

/// Messages of a pull that nobody reads; more are dropped.
const PROGRESS_MAX: usize = 16;

/// Makes a controller per task, all over one engine.
#[derive(Clone)]
pub struct NodeExecutor {
    engine: Engine,
    networks: Arc<NodeNetworks>,
    plane: Arc<ClusterPlane>,
    config: Arc<DaemonConfig>,
    data_path_addr: Option<std::net::IpAddr>,
}

impl NodeExecutor {
    /// An executor over this node's parts. `data_path_addr` is where other nodes reach its VXLAN.
    pub fn new(
        engine: Engine,
        networks: Arc<NodeNetworks>,
        plane: Arc<ClusterPlane>,
        config: Arc<DaemonConfig>,
        data_path_addr: Option<std::net::IpAddr>,
    ) -> Self {
        Self {
            engine,
            networks,
            plane,
            config,
            data_path_addr,
        }
    }
}

impl NodeExecutor {
    /// Names of the volumes that somebody named.
    fn volumes(&self) -> Result<Vec<String>, ExecError> {
        let volumes = self.engine.volumes();
        let volumes = volumes.map_err(|error| exec_error("cannot list volumes", error))?;
        let named = volumes.into_iter().filter(|volume| !volume.anonymous);
        Ok(named.map(|volume| volume.name).collect())
    }
}

/// Waits until this node has other keys for encrypted networks.
async fn changed(keys: &mut Option<watch::Receiver<KeyState>>) {
    let told = match keys {
        Some(keys) => keys.changed().await.is_ok(),
        None => false,
    };
    if !told {
        std::future::pending().await
    }
}

#[async_trait]
impl Executor for NodeExecutor {
    async fn describe(&self) -> Result<NodeDescription, ExecError> {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let memory = tokio::fs::read_to_string("/proc/meminfo").await;
        let memory = memory
            .map_err(|error| ExecError::temporary("cannot read /proc/meminfo").because(error))?;
        let live = self.config.live();
        let labels = live
            .labels
            .iter()
            .map(|label| label.split_once('=').unwrap_or((label, "")));
        let keys = self.plane.tunnel_keys();
        let tunnel_keys = keys.map_or_else(Vec::new, |keys| keys.borrow().told.clone());
        let plugins = [
            "Network/bridge",
            "Network/host",
            "Network/overlay",
            "Volume/local",
        ];
        let encrypts = (!tunnel_keys.is_empty()).then_some(ENCRYPTED_PLUGIN);
        let devices = cdi_watch::names(&self.config.cdi_spec_dirs);
        let log_drivers = LogDriver::NAMES.iter().map(|name| format!("Log/{name}"));
        Ok(NodeDescription {
            hostname: self.config.hostname(),
            platform: Platform {
                os: "linux".to_owned(),
                architecture: kernel_architecture().to_owned(),
            },
            resources: Resources {
                nano_cpus: cpus as u64 * 1_000_000_000,
                memory_bytes: memory_total(&memory),
                generic: self.config.generic_resources.clone(),
                ..Resources::default()
            },
            engine_version: env!("CARGO_PKG_VERSION").to_owned(),
            engine_labels: labels
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            plugins: log_drivers
                .chain(plugins.into_iter().chain(encrypts).map(str::to_owned))
                .chain(devices.into_iter().map(|name| format!("CDI/{name}")))
                .collect(),
            data_path_addr: self.data_path_addr,
            certificate_issuer: String::new(),
            volumes: self.volumes()?,
            tunnel_keys,
        })
    }

    fn changes(&self) -> mpsc::Receiver<()> {
        let (bell, rings) = mpsc::channel(1);
        let mut events = self.engine.events();
        let mut keys = self.plane.tunnel_keys();
        let devices = cdi_watch::Watch::new(&self.config.cdi_spec_dirs);
        let mut devices = devices
            .inspect_err(|error| tracing::warn!(%error, "devices that come and go go unnoticed"))
            .ok();
        tokio::spawn(async move {
            loop {
                let other_devices = async {
                    match &mut devices {
                        Some(watch) => watch.changed().await,
                        None => std::future::pending().await,
                    }
                };
                let concerns = tokio::select! {
                    () = changed(&mut keys) => true,
                    changed = other_devices => {
                        if let Err(error) = changed {
                            tracing::warn!(%error, "devices that come and go go unnoticed from now on");
                            devices = None;
                        }
                        true
                    }
                    event = events.recv() => match event {
                        Ok(event) => event.kind == EventKind::Volume,
                        Err(broadcast::error::RecvError::Lagged(_)) => true,
                        Err(broadcast::error::RecvError::Closed) => return,
                    },
                    () = bell.closed() => return,
                };
                if concerns {
                    // One that has not been heard yet stands for this one too.
                    let _ = bell.try_send(());
                }
            }
        });
        rings
    }

    async fn controller(&self, task: &Task) -> Result<Box<dyn Controller>, ExecError> {
        if task.is_attachment() {
            return Ok(Box::new(attachment::AttachmentController {
                networks: Arc::clone(&self.networks),
                task: task.clone(),
            }));
        }
        Ok(Box::new(TaskController {
            node: self.clone(),
            name: task.name(),
            folder: files::folder(&self.config.exec_root, task),
            task: Mutex::new(task.clone()),
        }))
    }

    async fn logs(&self, task: &Task, query: &LogQuery) -> Result<Option<LogLines>, ExecError> {
        logs::read(&self.engine, &task.name(), query).await
    }

    async fn exec(&self, task: &Task, spec: ExecSpec) -> Result<TaskExec, ExecError> {
        exec::start(&self.engine, task, spec).await
    }

    async fn look_at_network(&self, token: &str) -> Result<Vec<u8>, ExecError> {
        let look = self.plane.look_at_network(token).await;
        let look = look.map_err(|error| {
            ExecError::fatal("cannot look at the network between nodes").because(error)
        })?;
        serde_json::to_vec(&look)
            .map_err(|error| ExecError::fatal("cannot write what was found").because(error))
    }

    async fn remove_volumes(&self, stack: &str) -> Result<Vec<u8>, ExecError> {
        let removed = volumes::remove(&self.engine, stack).await;
        let removed = removed.map_err(|error| exec_error("cannot list volumes", error))?;
        serde_json::to_vec(&removed)
            .map_err(|error| ExecError::fatal("cannot write what was removed").because(error))
    }
}

/// The kernel's name of this processor, as nodes are described in Swarm.
fn kernel_architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "aarch64"
    } else {
        "x86_64"
    }
}

/// `MemTotal` of /proc/meminfo in bytes (proc_meminfo(5)).
fn memory_total(meminfo: &str) -> u64 {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line
        .and_then(|line| line.split_whitespace().next())
        .and_then(|kib| kib.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// One task's container.
struct TaskController {
    node: NodeExecutor,
    /// Name of the container; the task's.
    name: String,
    /// Where its secrets and configs lie.
    folder: PathBuf,
    task: Mutex<Task>,
}

impl TaskController {
    fn task(&self) -> Task {
        self.task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Its container, if there is one.
    async fn found(&self) -> Result<Option<ContainerInspect>, ExecError> {
        match self.node.engine.inspect(&self.name, false).await {
            Ok(container) => Ok(Some(container)),
            Err(error) if error.kind() == EngineErrorKind::NotFound => Ok(None),
            Err(error) => Err(exec_error("cannot look at the container", error)),
        }
    }

    /// Its container, which was made in an earlier step.
    async fn there(&self) -> Result<ContainerInspect, ExecError> {
        self.found()
            .await?
            .ok_or_else(|| ExecError::fatal("task: the container is gone"))
    }

    /// Has the image here. Unless the policy says otherwise, one that is here under its name is taken as it is: the manager
    /// pins names to digests where a registry can be asked, so a name without a digest is of an image that no registry has.
    async fn pull(&self, task: &Task) -> Result<(), ExecError> {
        let image = &task.spec.container.image;
        let policy = task.spec.container.host.pull_policy;
        if policy != PullPolicy::Always && self.node.engine.images().resolve(image).is_ok() {
            return Ok(());
        }
        if policy == PullPolicy::Never {
            return Err(ExecError::fatal(format!("No such image: {image}")));
        }
        let auth = registry_auth(&task.spec.container.pull_auth.0)?;
        let (progress, mut told) = mpsc::channel(PROGRESS_MAX);
        let pull = self
            .node
            .engine
            .images()
            .pull(image, None, auth.as_ref(), progress);
        let unread = async { while told.recv().await.is_some() {} };
        let (pulled, ()) = tokio::join!(pull, unread);
        pulled.map(drop).map_err(|error| image_error(image, error))
    }

    /// Events of its container from now on.
    fn events(&self) -> broadcast::Receiver<shoal_api::container::Event> {
        self.node.engine.events()
    }

    /// Waits until something happens to its container.
    async fn next_event(
        &self,
        id: &str,
        events: &mut broadcast::Receiver<shoal_api::container::Event>,
    ) {
        loop {
            match events.recv().await {
                Ok(event) if event.kind == EventKind::Container && event.actor.id == id => return,
                Ok(_) => {}
                // Some were missed: look again. Or the engine is going down, and the caller with it.
                Err(
                    broadcast::error::RecvError::Lagged(_) | broadcast::error::RecvError::Closed,
                ) => return,
            }
        }
    }
}

#[async_trait]
impl Controller for TaskController {
    async fn update(&self, task: &Task) -> Result<(), ExecError> {
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = task.clone();
        Ok(())
    }

    async fn prepare(&self, files: &TaskFiles) -> Result<(), ExecError> {
        if self.found().await?.is_some() {
            return Ok(());
        }
        let task = self.task();
        self.pull(&task).await?;
        let values = Values::of(&task, &self.node.config.hostname(), kernel_architecture());
        let expanded = template::expand(&task.spec.container, &values);
        let expanded = expanded.map_err(|error| ExecError::fatal(error.to_string()))?;
        let written = files::write(&self.folder, &expanded, files, &values);
        let written = written.map_err(|error| match error {
            files::FilesError::Io(error) => {
                ExecError::temporary("cannot write secrets and configs").because(error)
            }
            error => ExecError::fatal(chain(&error)),
        })?;
        let spec = container::container_spec(&task, &expanded, &self.node.plane.view(), &written);
        let spec = spec.map_err(|error| match error {
            container::ContainerError::NoNetwork(_) => {
                ExecError::new(ExecErrorKind::NotReady, chain(&error))
            }
            _ => ExecError::fatal(chain(&error)),
        });
        let mut spec = spec?;
        self.node.config.fill(&mut spec);
        match self.node.engine.create(spec).await {
            Ok(_) | Err(EngineError::NameTaken { .. }) => Ok(()),
            Err(error) => Err(exec_error("cannot create the container", error)),
        }
    }

    async fn start(&self) -> Result<Started, ExecError> {
        let task = self.task();
        self.node.networks.expect_task(task.id.clone());
        match self.node.engine.start(&self.name).await {
            Ok(()) | Err(EngineError::NotModified(_)) => {}
            // The text of a failed start is what `service ps` shows; it needs no introduction.
            Err(error) => return Err(ExecError::fatal(error.report())),
        }
        Ok(started(&self.there().await?, &task))
    }

    async fn become_healthy(&self) -> Result<(), ExecError> {
        let mut events = self.events();
        loop {
            let container = self.there().await?;
            if !container.state.status.is_up() {
                // It ended already; that it did and how is for `wait` to tell.
                return Ok(());
            }
            match container.state.health.as_ref().map(|health| health.status) {
                None | Some(HealthStatus::Healthy) => return Ok(()),
                Some(HealthStatus::Unhealthy) => {
                    return Err(ExecError::fatal(
                        "task: non-zero exit (1): dockerexec: unhealthy container",
                    ));
                }
                Some(HealthStatus::Starting) => {
                    self.next_event(container.id.as_str(), &mut events).await
                }
            }
        }
    }

    async fn wait(&self) -> Result<Exit, ExecError> {
        let mut events = self.events();
        loop {
            let container = self.there().await?;
            if !container.state.status.is_up() {
                let reason =
                    (!container.state.error.is_empty()).then(|| container.state.error.clone());
                return Ok(Exit {
                    container: status_of(&container),
                    reason,
                });
            }
            if container
                .state
                .health
                .as_ref()
                .is_some_and(|health| health.status == HealthStatus::Unhealthy)
            {
                let stopped = self
                    .node
                    .engine
                    .stop(&self.name, &StopOptions::default())
                    .await;
                stopped.map_err(|error| exec_error("cannot stop an unhealthy container", error))?;
                let container = self.there().await?;
                let reason = Some("dockerexec: unhealthy container".to_owned());
                return Ok(Exit {
                    container: status_of(&container),
                    reason,
                });
            }
            self.next_event(container.id.as_str(), &mut events).await;
        }
    }

    async fn shutdown(&self, grace: Duration) -> Result<(), ExecError> {
        let options = StopOptions {
            signal: None,
            grace: Some(grace),
        };
        match self.node.engine.stop(&self.name, &options).await {
            Ok(()) => {}
            Err(error) => match error.kind() {
                EngineErrorKind::NotFound | EngineErrorKind::NotModified => return Ok(()),
                _ => return Err(exec_error("cannot stop the container", error)),
            },
        }
        let ended = self.node.engine.wait(&self.name, WaitCondition::NotRunning);
        match ended {
            Ok(ended) => {
                ended.await;
                Ok(())
            }
            Err(error) if error.kind() == EngineErrorKind::NotFound => Ok(()),
            Err(error) => Err(exec_error("cannot wait for the container's end", error)),
        }
    }

    async fn remove(&self) -> Result<(), ExecError> {
        match self.node.engine.remove(&self.name, true, true).await {
            Ok(()) => {}
            Err(error) if error.kind() == EngineErrorKind::NotFound => {}
            Err(error) => return Err(exec_error("cannot remove the container", error)),
        }
        self.node.networks.forget_task(&self.task().id);
        files::remove(&self.folder).map_err(|error| {
            ExecError::temporary("cannot remove secrets and configs").because(error)
        })
    }
}

fn status_of(container: &ContainerInspect) -> ContainerStatus {
    ContainerStatus {
        container_id: container.id.as_str().to_owned(),
        pid: u32::try_from(container.state.pid).unwrap_or(0),
        exit_code: i64::from(container.state.exit_code),
    }
}

fn started(container: &ContainerInspect, task: &Task) -> Started {
    let host_ports = task
        .ports
        .iter()
        .filter(|port| port.mode == PublishMode::Host);
    let host_ports = host_ports.map(|wanted| {
        let in_force = container
            .network
            .ports
            .values()
            .flatten()
            .find(|published| {
                published.container_port == wanted.target
                    && same_protocol(published.protocol, wanted.protocol)
            });
        let published = in_force
            .and_then(|published| published.host_port)
            .unwrap_or(wanted.published);
        PortConfig {
            published,
            ..wanted.clone()
        }
    });
    Started {
        container: status_of(container),
        host_ports: host_ports.collect(),
        is_checked: container.state.status.is_up()
            && (container.state.health.as_ref())
                .is_some_and(|health| health.status != HealthStatus::Healthy),
    }
}

fn same_protocol(a: PortProtocol, b: Protocol) -> bool {
    a.as_str() == b.as_str()
}

/// Credentials as `X-Registry-Auth` carries them: JSON in URL-safe base64, padded or not.
fn registry_auth(encoded: &str) -> Result<Option<RegistryAuth>, ExecError> {
    if encoded.is_empty() {
        return Ok(None);
    }
    let unreadable = || ExecError::fatal("cannot read the registry credentials of the service");
    let json = general_purpose::URL_SAFE_NO_PAD
        .decode(encoded.trim_end_matches('='))
        .map_err(|_| unreadable())?;
    serde_json::from_slice(&json)
        .map(Some)
        .map_err(|_| unreadable())
}

fn image_error(image: &str, error: ImageError) -> ExecError {
    let text = match error.kind() {
        // Swarm's words for an image that is nowhere.
        ImageErrorKind::NotFound | ImageErrorKind::Denied => format!("No such image: {image}"),
        _ => format!("cannot pull {image}"),
    };
    // A registry that cannot be reached ends the task too: the restart policy tries again, and the error is seen.
    ExecError::fatal(text).because(error)
}

fn exec_error(doing: &str, error: EngineError) -> ExecError {
    let kind = match error.kind() {
        EngineErrorKind::Internal => ExecErrorKind::Temporary,
        _ => ExecErrorKind::Fatal,
    };
    ExecError::new(kind, format!("{doing}: {}", error.report()))
}
