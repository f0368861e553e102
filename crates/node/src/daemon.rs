//! The daemon from its start to its end.

use std::{fs, io, os::unix::net::UnixDatagram, path::Path, sync::Arc};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use shoal_api::container::{ContainerFilter, ContainerInspect};
use shoal_dns::{Dns, DnsConfig, core::resolv_conf::Overrides};
use shoal_docker_api::Server;
use shoal_engine::io::{
    Engine, EngineConfig,
    images::{ImageStore, Registries},
    memory,
};
use shoal_overlay::{Plane, PlaneConfig, netns};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    bridges::Bridges,
    cluster::ClusterNode,
    config::{DaemonConfig, Reloadable},
    engine_backend::EngineApi,
    listeners::Listeners,
    network::{NodeNetworks, TASK_LABEL, chain},
    plane::ClusterPlane,
};

/// Changes what is logged while the daemon runs.
type LogFilter = tracing_subscriber::reload::Handle<EnvFilter, tracing_subscriber::Registry>;

/// Runs a daemon until it is told to stop. Containers go on without it.
pub fn run(config: DaemonConfig) -> Result<()> {
    memory::keep_small();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| log_filter(&config.live()));
    let (filter, handle) = tracing_subscriber::reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(false);
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .init();
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(config, handle))
}

/// What is logged with these settings.
fn log_filter(live: &Reloadable) -> EnvFilter {
    EnvFilter::new(match (live.debug, live.log_level.as_str()) {
        (true, _) | (false, "debug" | "trace") => "debug,h2=info,hyper=info,tower=info",
        (false, "warn") => "warn",
        (false, "error" | "fatal" | "panic") => "error",
        (false, _) => "info",
    })
}

async fn serve(config: DaemonConfig, logs: LogFilter) -> Result<()> {
    for dir in [&config.data_root, &config.exec_root] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let _lock = lock(&config.data_root)?;
    let config = Arc::new(config);

    let dns = Arc::new(Dns::start(&DnsConfig::default()));
    let (overlay, no_data_path) = open_plane(&config);
    let plane = Arc::new(ClusterPlane::new(overlay, Arc::clone(&dns)));
    let kept = Arc::clone(&plane);
    tokio::spawn(async move { kept.keep().await });
    let names = Arc::clone(&plane);
    let bridges = Bridges::open(&config, move |records| names.publish_local(records)).await;
    let bridges = bridges.context("cannot open the networks of this host")?;
    let bridges = Arc::new(bridges);
    let kept = Arc::clone(&bridges);
    tokio::spawn(async move { kept.keep().await });
    let networks = Arc::new(NodeNetworks::new(Arc::clone(&plane), bridges, dns));
    let root = config.data_root.clone();
    let images = tokio::task::spawn_blocking(move || ImageStore::open(&root)).await?;
    let images = images.context("cannot open the images of this host")?;
    images.set_registries(registries(&config.live()));
    let handles = config.exec_root.join("netns");
    netns::make_directory(&handles).context("cannot make room for network namespaces")?;
    let engine = Engine::open(EngineConfig {
        root: config.data_root.clone(),
        run_dir: config.exec_root.clone(),
        cgroup_parent: config.cgroup_parent.clone(),
        shim_exe: std::env::current_exe().context("cannot find this program")?,
        images,
        network: Arc::clone(&networks) as _,
        cdi_spec_dirs: config.cdi_spec_dirs.clone(),
    });
    let engine = engine.await.context("cannot open the container engine")?;
    adopt(&engine, &networks).await?;

    let cluster = ClusterNode::new(
        Arc::clone(&config),
        engine.clone(),
        Arc::clone(&networks),
        plane,
        no_data_path,
    );
    let cluster = Arc::new(cluster);
    // A node that cannot take its place still serves its containers, and says why.
    if let Err(error) = cluster.resume().await {
        tracing::error!(
            error = chain(&error),
            "cannot take up the place in the swarm"
        );
    }

    let listeners = Listeners::bind(&config).await?;
    let engine_api = Arc::new(EngineApi::new(engine, networks, &config));
    let api = Server::new(Arc::clone(&engine_api) as _, Arc::clone(&cluster) as _);
    let stop = CancellationToken::new();
    let serving = tokio::spawn({
        let stop = stop.clone();
        async move { listeners.serve(&api, &stop).await }
    });
    if let Some(path) = &config.pidfile {
        fs::write(path, std::process::id().to_string())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    tell_ready();
    tracing::info!(socket = %config.socket().display(), "ready");

    wait_for_end(&config, &engine_api, &logs).await?;
    tracing::info!("stopping; containers go on");
    stop.cancel();
    cluster.stop().await;
    serving.await??;
    netns::release_directory(&handles);
    if let Some(path) = &config.pidfile {
        let _ = fs::remove_file(path);
    }
    Ok(())
}

/// One daemon per data root: two would undo each other's work.
fn lock(data_root: &Path) -> Result<Flock<fs::File>> {
    let path = data_root.join("daemon.lock");
    let file = fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
            bail!(
                "another daemon runs on {}: stop it, or give this one another --data-root",
                data_root.display()
            )
        }
        Err((_, problem)) => {
            Err(problem).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// The overlay plane, or why there can be none on this kernel; containers run without it.
fn open_plane(config: &DaemonConfig) -> (Option<Plane>, Option<String>) {
    let settings = PlaneConfig {
        prefix: config.interface_prefix.clone(),
        lb_driver: config.lb_driver,
        ..PlaneConfig::new(&config.exec_root)
    };
    match Plane::open(settings) {
        Ok(plane) => (Some(plane), None),
        Err(error) => {
            let reason = chain(&error);
            tracing::error!(reason, "no overlay networks on this host");
            (None, Some(reason))
        }
    }
}

/// Takes up the networks of containers that outlived an earlier daemon.
async fn adopt(engine: &Engine, networks: &NodeNetworks) -> Result<()> {
    let running = engine
        .list(&ContainerFilter::default())
        .await
        .context("cannot list the containers")?;
    for container in running {
        let container = engine.inspect(container.id.as_str(), false).await?;
        let Some(netns) = container.network.sandbox.clone() else {
            continue;
        };
        let task = container
            .spec
            .labels
            .get(TASK_LABEL)
            .and_then(|label| label.parse().ok());
        let task = task.filter(|_| is_on_cluster_networks(&container));
        let user = Overrides {
            nameservers: container.spec.host.dns.clone(),
            search: container.spec.host.dns_search.clone(),
            options: container.spec.host.dns_options.clone(),
        };
        if let Err(error) = networks
            .adopt(&container.id, task, &netns, &container.network, &user)
            .await
        {
            tracing::warn!(container.id = %container.id, %error, "taking up a container's networks");
        }
    }
    Ok(())
}

/// Whether a container's endpoints are a task's: their id is the task's then.
fn is_on_cluster_networks(container: &ContainerInspect) -> bool {
    let label = container.spec.labels.get(TASK_LABEL);
    container
        .network
        .networks
        .values()
        .any(|endpoint| Some(&endpoint.endpoint_id) == label)
}

/// Tells the service manager, by sd_notify(3), that clients may come.
fn tell_ready() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let sent = UnixDatagram::unbound().and_then(|socket| socket.send_to(b"READY=1", &path));
    if let Err(problem) = sent {
        tracing::warn!(%problem, "telling the service manager");
    }
}

/// Waits for the signal to end; SIGHUP reads the configuration again.
async fn wait_for_end(config: &DaemonConfig, api: &EngineApi, logs: &LogFilter) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => reload(config, api, logs),
        }
    }
}

/// How registries are spoken to, by the settings in force.
fn registries(live: &Reloadable) -> Registries {
    let usual = Registries::default();
    let count = |wish: Option<u32>, usual: usize| {
        wish.and_then(|wish| usize::try_from(wish).ok())
            .filter(|wish| *wish > 0)
            .unwrap_or(usual)
    };
    Registries {
        insecure: live.insecure_registries.clone(),
        mirrors: live.registry_mirrors.clone(),
        downloads_max: count(live.max_concurrent_downloads, usual.downloads_max),
        uploads_max: count(live.max_concurrent_uploads, usual.uploads_max),
        ..usual
    }
}

fn reload(config: &DaemonConfig, api: &EngineApi, logs: &LogFilter) {
    let live = match config.reload() {
        Ok(live) => live,
        // As docker: a file with a mistake leaves everything as it was.
        Err(error) => {
            tracing::error!(%error, "the configuration stays as it was");
            return;
        }
    };
    // A filter of the environment is the operator's own.
    if EnvFilter::try_from_default_env().is_err()
        && let Err(error) = logs.reload(log_filter(&live))
    {
        tracing::error!(%error, "cannot change what is logged");
    }
    api.images().set_registries(registries(&live));
    tracing::info!(?live, "took over the configuration");
    api.tell_reload(&live);
}
