//! The engine of this host as the Engine API sees it.

mod errors;
mod exposure;
mod history;
mod host;
mod images;
mod membership;
mod terminal;
mod transfers;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use shoal_api::{
    Timestamp,
    build::{BuildOptions, CommitOptions, ImportOptions, SearchResult},
    container::{
        ChangeKind, ContainerFilter, ContainerInspect, ContainerSpec, ContainerSummary,
        EndpointSpec, Event, EventKind, ExecInspect, ExecSpec, LogLine, LogQuery, PathStat,
        ProcessList, Stats, StdStream, Volume, VolumeSpec,
    },
    image::{
        Distribution, ImageHistory, ImageInspect, ImageRemoved, ImageSummary, Platform,
        RegistryAuth,
    },
};
use shoal_docker_api::{
    ApiError, EngineBackend,
    backend::{
        ApiResult, AttachOptions, Attached, ByteStream, ContainerUpdate, CreatedContainer,
        DiskUsage, EngineInfo, EngineVersion, ExtractOptions, ItemStream, LocalNetwork,
        LocalNetworkSpec, Progress, PruneFilter, Pruned, PrunedImages, WaitCondition, WaitResult,
    },
};
use shoal_engine::{
    core::images::Reference,
    io::{
        Engine, EngineError,
        engine::{StopOptions, WaitCondition as EngineWait},
        images::ImageStore,
    },
    shim::protocol::Streams,
};

use crate::{config::DaemonConfig, network::NodeNetworks};
use history::History;
use terminal::{attached, parse_keys};

/// The engine, its images and the networks of this host, behind the port that the API server asks.
#[derive(Debug)]
pub struct EngineApi {
    engine: Engine,
    networks: Arc<NodeNetworks>,
    config: DaemonConfig,
    history: History,
}

impl EngineApi {
    /// Serves this engine. Must be called within a runtime: it begins to remember events.
    pub fn new(engine: Engine, networks: Arc<NodeNetworks>, config: &DaemonConfig) -> Self {
        let history = History::of(&engine, &config.data_root.join("events.jsonl"));
        Self {
            engine,
            networks,
            config: config.clone(),
            history,
        }
    }

    pub(crate) fn images(&self) -> &ImageStore {
        self.engine.images()
    }

    fn tell_image(&self, action: &str, id: &str, name: &str) {
        let attributes = [("name".to_owned(), name.to_owned())].into();
        self.engine
            .publish(EventKind::Image, action, id, attributes);
    }

    pub(super) fn tell_network(
        &self,
        action: &str,
        network: &LocalNetwork,
        container: Option<&str>,
    ) {
        let mut attributes = vec![
            ("name".to_owned(), network.name.clone()),
            ("type".to_owned(), network.driver.clone()),
        ];
        attributes.extend(container.map(|id| ("container".to_owned(), id.to_owned())));
        let attributes = attributes.into_iter().collect();
        self.engine
            .publish(EventKind::Network, action, &network.id, attributes);
    }

    pub(super) async fn all_containers(&self, size: bool) -> ApiResult<Vec<ContainerSummary>> {
        let filter = ContainerFilter {
            all: true,
            size,
            ..ContainerFilter::default()
        };
        self.engine.list(&filter).await.map_err(errors::engine)
    }

    pub(super) async fn network(&self, name: &str) -> ApiResult<LocalNetwork> {
        let found = self.networks.bridges().get(name).await;
        found.map_err(errors::network)
    }
}

/// The text of a platform.
fn platform_text(platform: &Platform) -> String {
    let Platform {
        os,
        architecture,
        variant,
    } = platform;
    match variant.as_str() {
        "" => format!("{os}/{architecture}"),
        variant => format!("{os}/{architecture}/{variant}"),
    }
}

/// Bytes of all files below a directory.
fn bytes_below(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
        Ok(meta) if meta.is_file() => meta.len(),
        _ => 0,
    });
    bytes.sum()
}

#[async_trait]
impl EngineBackend for EngineApi {
    async fn container_create(
        &self,
        mut spec: ContainerSpec,
        platform: Option<Platform>,
    ) -> ApiResult<CreatedContainer> {
        self.config.fill(&mut spec);
        if let (Some(wanted), Ok(image)) = (&platform, self.images().resolve(&spec.image)) {
            let have = &image.platform;
            if (&wanted.os, &wanted.architecture) != (&have.os, &have.architecture) {
                return Err(ApiError::not_found(format!(
                    "image with reference {} was found but does not provide the specified platform ({})",
                    spec.image,
                    platform_text(wanted)
                )));
            }
        }
        let exposed = exposure::warning(&self.config, &spec);
        let id = self.engine.create(spec).await.map_err(errors::engine)?;
        self.note_networks(id.as_str()).await?;
        if let Some(warning) = &exposed {
            tracing::warn!(container.id = %id, "{warning}");
        }
        let warnings = exposed.into_iter().collect();
        Ok(CreatedContainer { id, warnings })
    }

    async fn container_list(&self, filter: ContainerFilter) -> ApiResult<Vec<ContainerSummary>> {
        self.engine.list(&filter).await.map_err(errors::engine)
    }

    async fn container_inspect(&self, name: &str, size: bool) -> ApiResult<ContainerInspect> {
        self.engine
            .inspect(name, size)
            .await
            .map_err(errors::engine)
    }

    async fn container_start(&self, name: &str) -> ApiResult<()> {
        self.engine.start(name).await.map_err(errors::engine)
    }

    async fn container_stop(
        &self,
        name: &str,
        signal: Option<String>,
        grace: Option<Duration>,
    ) -> ApiResult<()> {
        let options = StopOptions { signal, grace };
        self.engine
            .stop(name, &options)
            .await
            .map_err(errors::engine)
    }

    async fn container_restart(
        &self,
        name: &str,
        signal: Option<String>,
        grace: Option<Duration>,
    ) -> ApiResult<()> {
        let options = StopOptions { signal, grace };
        self.engine
            .restart(name, &options)
            .await
            .map_err(errors::engine)
    }

    async fn container_kill(&self, name: &str, signal: Option<String>) -> ApiResult<()> {
        let killed = self.engine.kill(name, signal.as_deref()).await;
        killed.map_err(|error| errors::kill(name, error))
    }

    async fn container_remove(&self, name: &str, force: bool, volumes: bool) -> ApiResult<()> {
        self.engine
            .remove(name, force, volumes)
            .await
            .map_err(errors::engine)
    }

    async fn container_unlink(&self, parent: &str, alias: &str) -> ApiResult<()> {
        let unlinked = self.engine.unlink(parent, alias).await;
        unlinked.map_err(errors::engine)
    }

    async fn container_wait(
        &self,
        name: &str,
        condition: WaitCondition,
    ) -> ApiResult<BoxFuture<'static, ApiResult<WaitResult>>> {
        let condition = match condition {
            WaitCondition::NotRunning => EngineWait::NotRunning,
            WaitCondition::NextExit => EngineWait::NextExit,
            WaitCondition::Removed => EngineWait::Removed,
        };
        let outcome = self.engine.wait(name, condition).map_err(errors::engine)?;
        let result = outcome.map(|outcome| {
            Ok(WaitResult {
                exit_code: outcome.exit_code,
                // Why a start failed is told to whoever started it.
                error: String::new(),
            })
        });
        Ok(result.boxed())
    }

    async fn container_rename(&self, name: &str, new_name: &str) -> ApiResult<()> {
        let renamed = self.engine.rename(name, new_name).await;
        renamed.map_err(errors::rename)?;
        let new_name = new_name.strip_prefix('/').unwrap_or(new_name);
        let container = self
            .engine
            .inspect(new_name, false)
            .await
            .map_err(errors::engine)?;
        let bridges = self.networks.bridges();
        bridges
            .rename(&container.id, new_name)
            .await
            .map_err(errors::network)
    }

    async fn container_pause(&self, name: &str) -> ApiResult<()> {
        self.engine.pause(name).await.map_err(errors::engine)
    }

    async fn container_unpause(&self, name: &str) -> ApiResult<()> {
        self.engine.unpause(name).await.map_err(errors::engine)
    }

    async fn container_top(&self, name: &str, ps_args: &str) -> ApiResult<ProcessList> {
        self.engine.top(name, ps_args).await.map_err(errors::engine)
    }

    async fn container_stats(&self, name: &str) -> ApiResult<Stats> {
        self.engine.stats(name).map_err(errors::engine)
    }

    async fn container_logs(&self, name: &str, query: LogQuery) -> ApiResult<ItemStream<LogLine>> {
        let lines = self.engine.logs(name, query).map_err(errors::engine)?;
        Ok(Box::pin(lines.map(|line| {
            line.map_err(|error| ApiError::internal(error.to_string()))
        })))
    }

    async fn container_attach(&self, name: &str, options: AttachOptions) -> ApiResult<Attached> {
        // Before the logs are read: a line may come twice then, but none is lost.
        let streams = Streams {
            stdin: options.stdin && options.stream,
            stdout: options.stdout && options.stream,
            stderr: options.stderr && options.stream,
        };
        let live = self
            .engine
            .attach(name, streams)
            .await
            .map_err(errors::engine)?;
        let live = attached(live, options.detach_keys.as_deref())?;
        if !options.logs {
            return Ok(live);
        }
        let query = LogQuery {
            stdout: options.stdout,
            stderr: options.stderr,
            ..LogQuery::default()
        };
        let past = self.container_logs(name, query).await?;
        let past = past.map(|line| line.map(|line| (line.stream, Bytes::from(line.bytes))));
        let now: ItemStream<(StdStream, Bytes)> = if options.stream {
            live.output
        } else {
            Box::pin(stream::empty())
        };
        Ok(Attached {
            output: Box::pin(past.chain(now)),
            ..live
        })
    }

    async fn container_update(
        &self,
        name: &str,
        update: ContainerUpdate,
    ) -> ApiResult<Vec<String>> {
        let warnings = self.engine.limit_warnings(&update.resources);
        self.engine
            .update(name, &update.resources, update.restart)
            .await
            .map_err(errors::engine)?;
        Ok(warnings)
    }

    async fn container_path_stat(&self, name: &str, path: &str) -> ApiResult<PathStat> {
        self.engine
            .path_stat(name, path)
            .await
            .map_err(errors::engine)
    }

    async fn container_archive(&self, name: &str, path: &str) -> ApiResult<(PathStat, ByteStream)> {
        let found = self.engine.archive(name, path).await;
        let (stat, archive) = found.map_err(errors::engine)?;
        Ok((stat, transfers::pieces(archive)))
    }

    async fn container_extract(
        &self,
        name: &str,
        path: &str,
        options: ExtractOptions,
        archive: ByteStream,
    ) -> ApiResult<()> {
        let (keep, own) = (options.no_overwrite_dir_non_dir, options.copy_uid_gid);
        let archive = transfers::reader(archive);
        let extracted = self.engine.extract(name, path, keep, own, archive).await;
        extracted.map_err(errors::engine)
    }

    async fn container_export(&self, name: &str) -> ApiResult<ByteStream> {
        let archive = self.engine.export(name).await.map_err(errors::engine)?;
        Ok(transfers::pieces(archive))
    }

    async fn container_changes(&self, name: &str) -> ApiResult<Vec<(PathBuf, ChangeKind)>> {
        self.engine.changes(name).await.map_err(errors::engine)
    }

    async fn container_resize(&self, name: &str, rows: u16, columns: u16) -> ApiResult<()> {
        self.engine
            .resize(name, rows, columns)
            .await
            .map_err(errors::engine)
    }

    async fn exec_create(&self, container: &str, spec: ExecSpec) -> ApiResult<String> {
        parse_keys(spec.detach_keys.as_deref())?;
        self.engine
            .exec_create(container, spec)
            .map_err(errors::engine)
    }

    async fn exec_attach(&self, id: &str) -> ApiResult<Attached> {
        let ExecSpec {
            detach_keys: keys,
            tty,
            ..
        } = self.exec_inspect(id).await?.spec;
        match self.engine.exec_start(id).await {
            Ok(attachment) => attached(attachment, keys.as_deref()),
            // As docker does: whoever looks at the streams reads why it could not start, and then finds its exit code.
            Err(error @ EngineError::Exec { .. }) => {
                let text = Bytes::from(format!("{}\r\n", error.report()));
                Ok(Attached {
                    output: Box::pin(stream::iter([Ok((StdStream::Stdout, text))])),
                    input: None,
                    tty,
                })
            }
            Err(error) => Err(errors::engine(error)),
        }
    }

    async fn exec_start(&self, id: &str) -> ApiResult<()> {
        self.engine
            .exec_start(id)
            .await
            .map(drop)
            .map_err(errors::engine)
    }

    async fn exec_inspect(&self, id: &str) -> ApiResult<ExecInspect> {
        self.engine.exec_inspect(id).map_err(errors::engine)
    }

    async fn exec_resize(&self, id: &str, rows: u16, columns: u16) -> ApiResult<()> {
        self.engine
            .exec_resize(id, rows, columns)
            .await
            .map_err(errors::engine)
    }

    async fn image_list(&self, all: bool) -> ApiResult<Vec<ImageSummary>> {
        let mut images = self.images().list();
        // Images without a name are the user's too, unless they are only steps on the way to others.
        images.retain(|image| {
            all || !image.intermediate
                || !(image.repo_tags.is_empty() && image.repo_digests.is_empty())
        });
        Ok(images)
    }

    async fn image_inspect(&self, name: &str) -> ApiResult<ImageInspect> {
        self.images().inspect(name).map_err(errors::image)
    }

    async fn image_history(&self, name: &str) -> ApiResult<Vec<ImageHistory>> {
        self.images().history(name).map_err(errors::image)
    }

    async fn image_remove(
        &self,
        name: &str,
        force: bool,
        no_prune: bool,
    ) -> ApiResult<Vec<ImageRemoved>> {
        let users = self.image_users().await?;
        let image = self.images().resolve(name).map_err(errors::image)?;
        let removed = self.images().remove(name, force, no_prune, users).await;
        let removed = removed.map_err(errors::image)?;
        for what in &removed {
            match what {
                ImageRemoved::Untagged(name) => {
                    self.tell_image("untag", &image.id.to_string(), name);
                }
                ImageRemoved::Deleted(id) if *id == image.id.to_string() => {
                    self.tell_image("delete", id, id);
                }
                ImageRemoved::Deleted(_) => {}
            }
        }
        Ok(removed)
    }

    async fn image_tag(&self, name: &str, target: &str) -> ApiResult<()> {
        let id = self
            .images()
            .tag(name, target)
            .await
            .map_err(errors::image)?;
        let target = target
            .parse::<Reference>()
            .map(|name| name.or_latest().familiar());
        self.tell_image("tag", &id.to_string(), &target.unwrap_or_default());
        Ok(())
    }

    async fn image_pull(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
        platform: Option<Platform>,
    ) -> ApiResult<ItemStream<Progress>> {
        self.pull(reference, auth, platform).await
    }

    async fn image_push(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
    ) -> ApiResult<ItemStream<Progress>> {
        self.push(reference, auth).await
    }

    async fn image_load(&self, archive: ByteStream) -> ApiResult<ItemStream<Progress>> {
        self.load(archive).await
    }

    async fn image_build(
        &self,
        options: BuildOptions,
        context: ByteStream,
    ) -> ApiResult<ItemStream<Progress>> {
        self.build(options, context).await
    }

    async fn build_prune(&self, filter: PruneFilter) -> ApiResult<Pruned> {
        self.prune_builds(filter).await
    }

    async fn image_commit(&self, container: &str, options: CommitOptions) -> ApiResult<String> {
        self.commit(container, options).await
    }

    async fn image_import(
        &self,
        options: ImportOptions,
        archive: ByteStream,
    ) -> ApiResult<ItemStream<Progress>> {
        self.import(options, archive).await
    }

    async fn image_search(
        &self,
        term: &str,
        limit: u32,
        auth: Option<RegistryAuth>,
    ) -> ApiResult<Vec<SearchResult>> {
        let found = self.images().search(term, limit, auth.as_ref()).await;
        found.map_err(errors::image)
    }

    async fn image_save(&self, names: Vec<String>) -> ApiResult<ByteStream> {
        let images = self.images().clone();
        transfers::archive(|writer| async move {
            images.save(&names, writer).await.map_err(errors::image)
        })
        .await
    }

    async fn image_prune(&self, filter: PruneFilter) -> ApiResult<PrunedImages> {
        let which = move |image: &ImageSummary| {
            (filter.all || image.repo_tags.is_empty()) && filter.takes(image.created, &image.labels)
        };
        let pruned = self.images().prune(which, self.image_users().await?).await;
        let (removed, space_reclaimed) = pruned.map_err(errors::image)?;
        Ok(PrunedImages {
            removed,
            space_reclaimed,
        })
    }

    async fn distribution_inspect(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
    ) -> ApiResult<Distribution> {
        let images = self.images();
        let found = images.manifest_digest_of_remote(reference, auth.as_ref());
        found.await.map_err(errors::image)
    }

    async fn registry_login(&self, auth: RegistryAuth) -> ApiResult<()> {
        let checked = self.images().check_login(&auth).await;
        checked.map_err(errors::image)
    }

    async fn volume_create(&self, spec: VolumeSpec) -> ApiResult<Volume> {
        self.engine.volume_create(&spec).map_err(errors::engine)
    }

    async fn volume_list(&self) -> ApiResult<Vec<Volume>> {
        self.engine.volumes().map_err(errors::engine)
    }

    async fn volume_inspect(&self, name: &str) -> ApiResult<Volume> {
        self.engine.volume_inspect(name).map_err(errors::engine)
    }

    async fn volume_remove(&self, name: &str, force: bool) -> ApiResult<()> {
        let (engine, name) = (self.engine.clone(), name.to_owned());
        let removed = tokio::task::spawn_blocking(move || engine.volume_remove(&name, force)).await;
        let removed = removed.map_err(|error| ApiError::internal(error.to_string()))?;
        removed.map_err(errors::engine)
    }

    async fn network_list(&self) -> ApiResult<Vec<LocalNetwork>> {
        Ok(self.networks.bridges().list().await)
    }

    async fn network_create(&self, spec: LocalNetworkSpec) -> ApiResult<String> {
        let bridges = self.networks.bridges();
        let id = bridges.create(spec).await.map_err(errors::network)?;
        self.tell_network("create", &self.network(&id).await?, None);
        Ok(id)
    }

    async fn network_remove(&self, name: &str) -> ApiResult<()> {
        let removed = self.networks.bridges().remove(name).await;
        self.tell_network("destroy", &removed.map_err(errors::network)?, None);
        Ok(())
    }

    async fn network_connect(
        &self,
        network: &str,
        container: &str,
        endpoint: EndpointSpec,
    ) -> ApiResult<()> {
        self.join_network(network, container, endpoint).await
    }

    async fn network_disconnect(
        &self,
        network: &str,
        container: &str,
        _force: bool,
    ) -> ApiResult<()> {
        self.leave_network(network, container).await
    }

    async fn network_prune(&self, filter: PruneFilter) -> ApiResult<Pruned> {
        let bridges = self.networks.bridges();
        let gone = bridges
            .prune(|network| filter.takes(network.created, &network.labels))
            .await
            .map_err(errors::network)?;
        for network in &gone {
            self.tell_network("destroy", network, None);
        }
        Ok(Pruned {
            deleted: gone.into_iter().map(|network| network.name).collect(),
            space_reclaimed: 0,
        })
    }

    async fn version(&self) -> ApiResult<EngineVersion> {
        Ok(EngineVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            git_commit: option_env!("SHOAL_GIT_COMMIT")
                .unwrap_or_default()
                .to_owned(),
            build_time: option_env!("SHOAL_BUILD_TIME")
                .unwrap_or_default()
                .to_owned(),
            kernel_version: host::kernel_version(),
            os: "linux".to_owned(),
            arch: host::go_arch(std::env::consts::ARCH).to_owned(),
        })
    }

    async fn info(&self) -> ApiResult<EngineInfo> {
        self.describe()
    }

    async fn events(
        &self,
        since: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> ApiResult<ItemStream<Event>> {
        Ok(self.history.read(since, until))
    }

    async fn disk_usage(&self) -> ApiResult<DiskUsage> {
        let volumes = self.volume_list().await?;
        let engine = self.engine.clone();
        let volumes = tokio::task::spawn_blocking(move || {
            let usage = |volume: Volume| {
                let users = engine.volume_users(&volume.name).len();
                let bytes = bytes_below(&volume.mountpoint);
                (volume, bytes, u64::try_from(users).unwrap_or(u64::MAX))
            };
            volumes.into_iter().map(usage).collect()
        });
        Ok(DiskUsage {
            layers_bytes: self.images().layers_bytes(),
            images: self.images().list(),
            containers: self.all_containers(true).await?,
            volumes: volumes
                .await
                .map_err(|error| ApiError::internal(error.to_string()))?,
        })
    }
}
