//! An engine that runs nothing: a "process" writes what its command says and ends when its input does.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use shoal_api::{
    Timestamp,
    container::{
        ContainerFilter, ContainerId, ContainerInspect, ContainerSpec, ContainerState,
        ContainerStatus, ContainerSummary, Event, EventActor, EventKind, ExecInspect, ExecSpec,
        LogLine, LogQuery, ProcessList, PublishedPort, Stats, StdStream, Volume, VolumeSpec,
    },
    image::{
        Distribution, ImageHistory, ImageInspect, ImageRemoved, ImageSummary, Platform,
        PullProgress, RegistryAuth,
    },
};
use shoal_docker_api::backend::*;
use tokio::{io::AsyncWrite, sync::watch};

/// Digits of the image that is there from the start.
pub(crate) const IMAGE: &str = "1111111111111111111111111111111111111111111111111111111111111111";

struct Container {
    id: ContainerId,
    name: String,
    spec: ContainerSpec,
    state: watch::Sender<ContainerState>,
}

#[derive(Default)]
pub(crate) struct MemoryEngine {
    containers: Mutex<Vec<Container>>,
    execs: Mutex<BTreeMap<String, (ContainerId, ExecSpec)>>,
    volumes: Mutex<Vec<Volume>>,
    pub(crate) pulled: Mutex<Vec<(String, Option<RegistryAuth>)>>,
    next: AtomicU8,
}

impl MemoryEngine {
    /// The spec of a container as it arrived.
    pub(crate) fn spec_of(&self, name: &str) -> ContainerSpec {
        let containers = self.containers.lock().unwrap();
        find(&containers, name).expect("it is there").spec.clone()
    }

    fn containers(&self) -> MutexGuard<'_, Vec<Container>> {
        self.containers.lock().unwrap()
    }

    fn with<T>(&self, name: &str, f: impl FnOnce(&Container) -> T) -> ApiResult<T> {
        find(&self.containers(), name).map(f)
    }

    fn end(&self, name: &str, exit_code: i32) -> ApiResult<()> {
        self.with(name, |container| end(&container.state, exit_code))
    }
}

fn end(state: &watch::Sender<ContainerState>, exit_code: i32) {
    state.send_modify(|state| {
        state.status = ContainerStatus::Exited;
        state.exit_code = exit_code;
        state.pid = 0;
        state.finished_at = Timestamp::now();
    });
}

fn find<'a>(containers: &'a [Container], name: &str) -> ApiResult<&'a Container> {
    containers
        .iter()
        .find(|c| c.name == name || c.id.as_str().starts_with(name))
        .ok_or_else(|| ApiError::not_found(format!("No such container: {name}")))
}

fn image() -> ImageSummary {
    ImageSummary {
        id: IMAGE.parse().unwrap(),
        repo_tags: vec!["demo:latest".to_owned()],
        repo_digests: Vec::new(),
        created: Timestamp::parse_rfc3339("2020-01-01T00:00:00Z").unwrap(),
        size: 1_234_567,
        labels: BTreeMap::new(),
        parent: None,
        intermediate: false,
    }
}

/// What a "process" prints: `out WORDS` and `err WORDS`.
fn output(cmd: &[String]) -> Vec<ApiResult<(StdStream, Bytes)>> {
    let words = cmd.join(" ");
    vec![
        Ok((StdStream::Stdout, format!("out {words}\n").into())),
        Ok((StdStream::Stderr, format!("err {words}\n").into())),
    ]
}

/// Streams of a "process": what it prints, then its own input back; it ends with its input.
fn attached(
    cmd: &[String],
    stdin: bool,
    tty: bool,
    on_end: impl FnOnce() + Send + 'static,
) -> Attached {
    let printed = stream::iter(output(cmd));
    let (near, far) = tokio::io::duplex(1024);
    let (echo, near) = if stdin {
        (Some(far), Some(near))
    } else {
        (None, None)
    };
    let echoed = stream::iter(echo)
        .flat_map(tokio_util::io::ReaderStream::new)
        .map(|bytes| Ok((StdStream::Stdout, bytes.expect("a pipe in memory"))));
    let ended = stream::once(async move { on_end() }).filter_map(|()| async { None });
    Attached {
        output: printed.chain(echoed).chain(ended).boxed(),
        input: near.map(|near| Box::pin(near) as Pin<Box<dyn AsyncWrite + Send>>),
        tty,
    }
}

#[async_trait]
impl EngineBackend for MemoryEngine {
    async fn container_create(
        &self,
        spec: ContainerSpec,
        _platform: Option<Platform>,
    ) -> ApiResult<CreatedContainer> {
        let pulled = self.pulled.lock().unwrap();
        if spec.image != "demo" && !pulled.iter().any(|(name, _)| *name == spec.image) {
            return Err(ApiError::not_found(format!(
                "No such image: {}",
                spec.image
            )));
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let id = ContainerId::from_bytes([number; 32]);
        let name = spec.name.clone().unwrap_or_else(|| format!("box{number}"));
        let (state, _) = watch::channel(ContainerState::default());
        self.containers().push(Container {
            id: id.clone(),
            name,
            spec,
            state,
        });
        Ok(CreatedContainer {
            id,
            warnings: Vec::new(),
        })
    }

    async fn container_list(&self, filter: ContainerFilter) -> ApiResult<Vec<ContainerSummary>> {
        let rows = self.containers();
        let rows = rows
            .iter()
            .filter(|c| filter.all || c.state.borrow().status.is_up())
            .filter(|c| {
                filter.status.is_empty() || filter.status.contains(&c.state.borrow().status)
            });
        Ok(rows
            .map(|c| ContainerSummary {
                id: c.id.clone(),
                name: c.name.clone(),
                image: c.spec.image.clone(),
                image_id: format!("sha256:{IMAGE}"),
                command: c.spec.cmd.clone().unwrap_or_default().join(" "),
                created: Timestamp::now(),
                state: c.state.borrow().clone(),
                labels: c.spec.labels.clone(),
                ports: c
                    .spec
                    .host
                    .port_bindings
                    .iter()
                    .map(|(port, bindings)| PublishedPort {
                        host_ip: bindings[0].host_ip,
                        host_port: bindings[0].host_ports.map(|(first, _)| first),
                        container_port: port.number,
                        protocol: port.protocol,
                    })
                    .collect(),
                mounts: Vec::new(),
                network_mode: "bridge".to_owned(),
                networks: BTreeMap::new(),
                size_rw: filter.size.then_some(7),
                size_root_fs: filter.size.then_some(1_000_007),
                link_names: Vec::new(),
            })
            .collect())
    }

    async fn container_inspect(&self, name: &str, _size: bool) -> ApiResult<ContainerInspect> {
        self.with(name, |c| ContainerInspect {
            id: c.id.clone(),
            name: c.name.clone(),
            created: Timestamp::now(),
            path: "demo".to_owned(),
            args: Vec::new(),
            state: c.state.borrow().clone(),
            image_id: format!("sha256:{IMAGE}"),
            restart_count: 0,
            spec: c.spec.clone(),
            network: Default::default(),
            mounts: Vec::new(),
            resolv_conf_path: "".into(),
            hostname_path: "".into(),
            hosts_path: "".into(),
            log_path: "".into(),
            graph: Default::default(),
            exec_ids: Vec::new(),
            size_rw: None,
            size_root_fs: None,
            log_attributes: BTreeMap::new(),
        })
    }

    async fn container_start(&self, name: &str) -> ApiResult<()> {
        self.with(name, |c| {
            if c.state.borrow().status.is_up() {
                return Err(ApiError::not_modified());
            }
            c.state.send_modify(|state| {
                state.status = ContainerStatus::Running;
                state.pid = 42;
                state.started_at = Timestamp::now();
            });
            // A detached "process" that is not told to stay is over at once.
            let attached = c.spec.attach_stdout || c.spec.attach_stdin;
            if !attached && c.spec.cmd.as_deref() != Some(&["sleep".to_owned()]) {
                end(&c.state, 7);
            }
            Ok(())
        })?
    }

    async fn container_stop(
        &self,
        name: &str,
        _signal: Option<String>,
        _grace: Option<Duration>,
    ) -> ApiResult<()> {
        self.end(name, 143)
    }

    async fn container_restart(
        &self,
        name: &str,
        _signal: Option<String>,
        _grace: Option<Duration>,
    ) -> ApiResult<()> {
        self.end(name, 143)?;
        self.container_start(name).await
    }

    async fn container_kill(&self, name: &str, _signal: Option<String>) -> ApiResult<()> {
        self.end(name, 137)
    }

    async fn container_remove(&self, name: &str, force: bool, _volumes: bool) -> ApiResult<()> {
        let (id, up) = self.with(name, |c| (c.id.clone(), c.state.borrow().status.is_up()))?;
        if up && !force {
            return Err(ApiError::conflict(format!(
                "cannot remove container \"/{name}\": container is running: stop the container before removing or \
                 force remove"
            )));
        }
        self.containers().retain(|c| c.id != id);
        Ok(())
    }

    async fn container_wait(
        &self,
        name: &str,
        condition: WaitCondition,
    ) -> ApiResult<BoxFuture<'static, ApiResult<WaitResult>>> {
        let mut state = self.with(name, |c| c.state.subscribe())?;
        Ok(async move {
            let met = move |state: &ContainerState| match condition {
                WaitCondition::NotRunning => !state.status.is_up(),
                WaitCondition::NextExit | WaitCondition::Removed => {
                    state.status == ContainerStatus::Exited
                }
            };
            // A removed container's sender is gone; its last state stays readable.
            let _ = state.wait_for(met).await;
            let exit_code = state.borrow().exit_code;
            Ok(WaitResult {
                exit_code,
                error: String::new(),
            })
        }
        .boxed())
    }

    async fn container_unlink(&self, parent: &str, alias: &str) -> ApiResult<()> {
        self.with(parent, |_| ())?;
        Err(ApiError::not_found(format!(
            "No such container: {parent}/{alias}"
        )))
    }

    async fn container_rename(&self, name: &str, new_name: &str) -> ApiResult<()> {
        let id = self.with(name, |c| c.id.clone())?;
        for container in self.containers().iter_mut().filter(|c| c.id == id) {
            container.name = new_name.to_owned();
        }
        Ok(())
    }

    async fn container_pause(&self, name: &str) -> ApiResult<()> {
        self.with(name, |c| {
            c.state.send_modify(|s| s.status = ContainerStatus::Paused)
        })
    }

    async fn container_unpause(&self, name: &str) -> ApiResult<()> {
        self.with(name, |c| {
            c.state.send_modify(|s| s.status = ContainerStatus::Running)
        })
    }

    async fn container_top(&self, name: &str, ps_args: &str) -> ApiResult<ProcessList> {
        self.with(name, |_| ProcessList {
            titles: vec!["PID".to_owned(), "CMD".to_owned()],
            processes: vec![vec!["42".to_owned(), format!("demo {ps_args}")]],
        })
    }

    async fn container_stats(&self, name: &str) -> ApiResult<Stats> {
        self.with(name, |_| {
            let mut stats = Stats {
                read: Timestamp::now(),
                ..Stats::default()
            };
            stats.memory.usage_bytes = 1 << 20;
            stats.memory.limit_bytes = 1 << 30;
            stats.pids.current = 3;
            stats
        })
    }

    async fn container_logs(&self, name: &str, query: LogQuery) -> ApiResult<ItemStream<LogLine>> {
        let cmd = self.with(name, |c| c.spec.cmd.clone().unwrap_or_default())?;
        let lines = output(&cmd).into_iter().map(|item| {
            item.map(|(stream, bytes)| LogLine {
                stream,
                time: Timestamp(1),
                bytes: bytes.to_vec(),
            })
        });
        let wanted: Vec<_> = lines
            .filter(|line| match line {
                Ok(line) if line.stream == StdStream::Stdout => query.stdout,
                _ => query.stderr,
            })
            .collect();
        Ok(stream::iter(wanted).boxed())
    }

    async fn container_attach(&self, name: &str, options: AttachOptions) -> ApiResult<Attached> {
        let (cmd, tty, mut state, ended) = self.with(name, |c| {
            let cmd = c.spec.cmd.clone().unwrap_or_default();
            (cmd, c.spec.tty, c.state.subscribe(), c.state.clone())
        })?;
        let mut attached = attached(&cmd, options.stdin, tty, move || end(&ended, 7));
        // Nothing is printed before the start.
        let output = attached.output;
        attached.output = stream::once(async move {
            let _ = state.wait_for(|state| state.status.is_up()).await;
            output
        })
        .flatten()
        .boxed();
        Ok(attached)
    }

    async fn container_resize(&self, name: &str, _rows: u16, _columns: u16) -> ApiResult<()> {
        self.with(name, |_| ())
    }

    async fn exec_create(&self, container: &str, spec: ExecSpec) -> ApiResult<String> {
        let id = self.with(container, |c| c.id.clone())?;
        let mut execs = self.execs.lock().unwrap();
        let exec = format!("{:064x}", execs.len() + 1);
        execs.insert(exec.clone(), (id, spec));
        Ok(exec)
    }

    async fn exec_attach(&self, id: &str) -> ApiResult<Attached> {
        let execs = self.execs.lock().unwrap();
        let (_, spec) = execs
            .get(id)
            .ok_or_else(|| ApiError::not_found(format!("No such exec instance: {id}")))?;
        Ok(attached(&spec.cmd, spec.attach_stdin, spec.tty, || {}))
    }

    async fn exec_start(&self, _id: &str) -> ApiResult<()> {
        Ok(())
    }

    async fn exec_inspect(&self, id: &str) -> ApiResult<ExecInspect> {
        let execs = self.execs.lock().unwrap();
        let (container, spec) = execs
            .get(id)
            .ok_or_else(|| ApiError::not_found(format!("No such exec instance: {id}")))?;
        Ok(ExecInspect {
            id: id.to_owned(),
            container: container.clone(),
            spec: spec.clone(),
            running: false,
            exit_code: Some(5),
            pid: 0,
        })
    }

    async fn exec_resize(&self, _id: &str, _rows: u16, _columns: u16) -> ApiResult<()> {
        Ok(())
    }

    async fn image_list(&self, _all: bool) -> ApiResult<Vec<ImageSummary>> {
        Ok(vec![image()])
    }

    async fn image_inspect(&self, name: &str) -> ApiResult<ImageInspect> {
        if name != "demo" && name != "demo:latest" {
            return Err(ApiError::not_found(format!("No such image: {name}")));
        }
        let row = image();
        Ok(ImageInspect {
            parent: None,
            id: row.id,
            repo_tags: row.repo_tags,
            repo_digests: row.repo_digests,
            comment: String::new(),
            author: String::new(),
            created: row.created,
            config: Default::default(),
            architecture: "amd64".to_owned(),
            variant: String::new(),
            os: "linux".to_owned(),
            size: row.size,
            diff_ids: vec![format!("sha256:{IMAGE}")],
            layer_dirs: vec!["/layers/1".to_owned(), "/layers/2".to_owned()],
            last_tagged: Timestamp::ZERO,
        })
    }

    async fn image_history(&self, _name: &str) -> ApiResult<Vec<ImageHistory>> {
        Ok(vec![ImageHistory {
            id: Some(IMAGE.parse().unwrap()),
            created: image().created,
            created_by: "COPY demo /".to_owned(),
            comment: String::new(),
            size: 5,
            tags: vec!["demo:latest".to_owned()],
        }])
    }

    async fn image_remove(
        &self,
        name: &str,
        _force: bool,
        _no_prune: bool,
    ) -> ApiResult<Vec<ImageRemoved>> {
        Ok(vec![
            ImageRemoved::Untagged(name.to_owned()),
            ImageRemoved::Deleted(format!("sha256:{IMAGE}")),
        ])
    }

    async fn image_tag(&self, _name: &str, _target: &str) -> ApiResult<()> {
        Ok(())
    }

    async fn image_pull(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
        _platform: Option<Platform>,
    ) -> ApiResult<ItemStream<Progress>> {
        let reference = reference
            .trim_start_matches("docker.io/")
            .trim_start_matches("library/");
        if reference.starts_with("absent") {
            let error =
                ApiError::not_found("pull access denied for absent, repository does not exist");
            return Ok(stream::iter([Err(error)]).boxed());
        }
        let name = reference.trim_end_matches(":latest").to_owned();
        self.pulled.lock().unwrap().push((name.clone(), auth));
        let status = |id: Option<&str>, status: &str, current, total| {
            Ok(Progress::Status(PullProgress {
                id: id.map(str::to_owned),
                status: status.to_owned(),
                current,
                total,
            }))
        };
        let mut messages = vec![
            status(Some("latest"), &format!("Pulling from {name}"), 0, 0),
            status(Some("0123456789ab"), "Downloading", 5, 10),
            status(Some("0123456789ab"), "Pull complete", 0, 0),
        ];
        if reference.starts_with("broken") {
            messages.push(Err(ApiError::internal("unexpected EOF")));
        } else {
            messages.push(status(
                None,
                &format!("Status: Downloaded newer image for {reference}"),
                0,
                0,
            ));
        }
        Ok(stream::iter(messages).boxed())
    }

    async fn image_load(&self, mut archive: ByteStream) -> ApiResult<ItemStream<Progress>> {
        let mut bytes = 0;
        while let Some(chunk) = archive.next().await {
            bytes += chunk?.len();
        }
        let line = Progress::Line(format!("Loaded image: {bytes} bytes\n"));
        Ok(stream::iter([Ok(line)]).boxed())
    }

    async fn image_prune(&self, _filter: PruneFilter) -> ApiResult<PrunedImages> {
        Ok(PrunedImages::default())
    }

    async fn distribution_inspect(
        &self,
        reference: &str,
        _auth: Option<RegistryAuth>,
    ) -> ApiResult<Distribution> {
        if reference.starts_with("absent") {
            return Err(ApiError::not_found("manifest unknown"));
        }
        Ok(Distribution {
            media_type: "application/vnd.oci.image.index.v1+json".to_owned(),
            digest: format!("sha256:{IMAGE}"),
            size: 527,
            platforms: vec![Platform {
                os: "linux".to_owned(),
                architecture: "amd64".to_owned(),
                variant: String::new(),
            }],
        })
    }

    async fn volume_create(&self, spec: VolumeSpec) -> ApiResult<Volume> {
        let volume = Volume {
            name: spec.name.unwrap_or_else(|| "anonymous".to_owned()),
            driver: spec.driver.unwrap_or_else(|| "local".to_owned()),
            mountpoint: "/volumes/x/_data".into(),
            created: Timestamp(1),
            labels: spec.labels,
            options: spec.options,
            anonymous: false,
        };
        self.volumes.lock().unwrap().push(volume.clone());
        Ok(volume)
    }

    async fn volume_list(&self) -> ApiResult<Vec<Volume>> {
        Ok(self.volumes.lock().unwrap().clone())
    }

    async fn volume_inspect(&self, name: &str) -> ApiResult<Volume> {
        let volumes = self.volumes.lock().unwrap();
        volumes
            .iter()
            .find(|volume| volume.name == name)
            .cloned()
            .ok_or_else(|| ApiError::not_found(format!("get {name}: no such volume")))
    }

    async fn volume_remove(&self, name: &str, _force: bool) -> ApiResult<()> {
        self.volume_inspect(name).await?;
        self.volumes.lock().unwrap().retain(|v| v.name != name);
        Ok(())
    }

    async fn network_list(&self) -> ApiResult<Vec<LocalNetwork>> {
        let network = |name: &str, driver: &str, digit: &str| LocalNetwork {
            id: digit.repeat(64),
            name: name.to_owned(),
            driver: driver.to_owned(),
            ..LocalNetwork::default()
        };
        Ok(vec![
            network("bridge", "bridge", "a"),
            network("host", "host", "b"),
            network("none", "null", "c"),
        ])
    }

    async fn version(&self) -> ApiResult<EngineVersion> {
        Ok(EngineVersion {
            version: "0.1.0".to_owned(),
            git_commit: "abcdef".to_owned(),
            build_time: "2026-01-01T00:00:00Z".to_owned(),
            kernel_version: "6.18.0".to_owned(),
            os: "linux".to_owned(),
            arch: "amd64".to_owned(),
        })
    }

    async fn info(&self) -> ApiResult<EngineInfo> {
        Ok(EngineInfo {
            id: "engine-1".to_owned(),
            name: "host-1".to_owned(),
            version: "0.1.0".to_owned(),
            storage_driver: "overlay2".to_owned(),
            storage_status: vec![("Backing Filesystem".to_owned(), "extfs".to_owned())],
            root_dir: "/var/lib/shoal".into(),
            operating_system: "Debian GNU/Linux 13 (trixie)".to_owned(),
            architecture: "x86_64".to_owned(),
            cpus: 2,
            memory_bytes: 8 << 30,
            cgroup_version: "2".to_owned(),
            cgroup_driver: "cgroupfs".to_owned(),
            security_options: vec!["name=seccomp,profile=builtin".to_owned()],
            log_drivers: vec!["json-file".to_owned()],
            network_drivers: vec!["bridge".to_owned(), "overlay".to_owned()],
            ..EngineInfo::default()
        })
    }

    async fn events(
        &self,
        _since: Option<Timestamp>,
        _until: Option<Timestamp>,
    ) -> ApiResult<ItemStream<Event>> {
        let event = |kind, action: &str| {
            Ok(Event {
                kind,
                action: action.to_owned(),
                actor: EventActor {
                    id: "f00".to_owned(),
                    attributes: BTreeMap::from([("name".to_owned(), "web".to_owned())]),
                },
                time: Timestamp(1_000_000_000),
            })
        };
        Ok(stream::iter([
            event(EventKind::Container, "start"),
            event(EventKind::Container, "exec_create: ls"),
            event(EventKind::Image, "pull"),
        ])
        .boxed())
    }

    async fn disk_usage(&self) -> ApiResult<DiskUsage> {
        Ok(DiskUsage {
            layers_bytes: 1_234_567,
            images: vec![image()],
            containers: self
                .container_list(ContainerFilter {
                    all: true,
                    size: true,
                    ..Default::default()
                })
                .await?,
            volumes: self
                .volumes
                .lock()
                .unwrap()
                .iter()
                .map(|v| (v.clone(), 10, 0))
                .collect(),
        })
    }
}
