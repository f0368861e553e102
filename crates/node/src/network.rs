//! Networks of containers: a namespace each, connected to cluster networks or to bridges of this host, with a resolver.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use shoal_api::{
    NetworkId, TaskId,
    container::{ContainerId, EndpointInfo, EndpointSpec, NetworkMode, NetworkSettings},
    network::RESOLVER,
};
use shoal_dns::{
    ClientScope, Dns, DnsError, ResolvConf,
    core::resolv_conf::{self, DNS_PORT},
};
use shoal_engine::io::network::{ContainerNetwork, NetworkError, NetworkReady, NetworkRequest};
use shoal_overlay::io::{netns, resolver};

use crate::{
    attachments::Attachments,
    bridges::{Bridges, BridgesError, Joining},
    plane::ClusterPlane,
};

mod overlay;

/// Label by which a task's container says which task it is, as in Swarm.
pub const TASK_LABEL: &str = "com.docker.swarm.task.id";

/// Gives containers their networks.
#[derive(Debug)]
pub struct NodeNetworks {
    plane: Arc<ClusterPlane>,
    bridges: Arc<Bridges>,
    dns: Arc<Dns>,
    attachments: Attachments,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Tasks whose containers the agent is about to start. A label alone makes no task of a container.
    expected: BTreeSet<TaskId>,
    /// The containers with a namespace of their own, and the task that each of them is of.
    held: BTreeMap<ContainerId, Option<TaskId>>,
    /// What the resolver of each of them sees.
    scopes: BTreeMap<ContainerId, ClientScope>,
}

impl NodeNetworks {
    /// Networks over a plane and bridges.
    pub fn new(plane: Arc<ClusterPlane>, bridges: Arc<Bridges>, dns: Arc<Dns>) -> Self {
        Self {
            plane,
            bridges,
            dns,
            attachments: Attachments::default(),
            known: Mutex::default(),
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What distributes the connections of services here.
    pub fn lb_driver(&self) -> &'static str {
        self.plane.lb_driver()
    }

    /// The bridges of this host.
    pub fn bridges(&self) -> &Bridges {
        &self.bridges
    }

    /// Says that a container of this task will be started by the agent.
    pub fn expect_task(&self, task: TaskId) {
        self.known().expected.insert(task);
    }

    /// Says that no container of this task will be started any more.
    pub fn forget_task(&self, task: &TaskId) {
        self.known().expected.remove(task);
    }

    /// Takes up a container that outlived an earlier daemon: its resolver ended with that daemon, its links did not.
    pub async fn adopt(
        &self,
        container: &ContainerId,
        task: Option<TaskId>,
        netns: &Path,
        settings: &NetworkSettings,
        user: &resolv_conf::Overrides,
    ) -> Result<(), NetworkError> {
        if let Some(task) = &task {
            self.plane.adopt(task.clone(), netns);
        } else {
            self.adopt_places(container, netns, settings).await;
            self.bridges.adopt(container, settings).await?;
        }
        self.known().held.insert(container.clone(), task);
        self.serve_names(container, netns, settings, user)
            .await
            .map(drop)
    }

    /// Opens the resolver of a container and returns what its resolv.conf says.
    async fn serve_names(
        &self,
        container: &ContainerId,
        netns: &Path,
        settings: &NetworkSettings,
        user: &resolv_conf::Overrides,
    ) -> Result<ResolvConf, NetworkError> {
        let host = tokio::fs::read_to_string("/etc/resolv.conf")
            .await
            .unwrap_or_default();
        let file = resolv_conf::for_container(&ResolvConf::parse(&host), user);
        let networks = settings
            .networks
            .values()
            .filter_map(|endpoint| endpoint.network_id.parse::<NetworkId>().ok());
        // First what this container alone calls others.
        let mut linked = settings.networks.values();
        let linked = linked.any(|endpoint| !endpoint.spec.links.is_empty());
        let own = container.as_str().parse::<NetworkId>().ok();
        let told = ResolvConf::parse(&file.text);
        let scope = ClientScope {
            networks: own.filter(|_| linked).into_iter().chain(networks).collect(),
            search: told.search.clone(),
            ndots: told.ndots(),
            upstreams: file.upstreams,
            // The servers of the host are the host's to reach.
            asks_inside: !user.nameservers.is_empty(),
        };
        self.open_resolver(container, netns, &scope).await?;
        self.known().scopes.insert(container.clone(), scope);
        Ok(told)
    }

    /// Opens a container's resolver at 127.0.0.11:53, behind other ports so that the container can serve port 53 itself.
    async fn open_resolver(
        &self,
        container: &ContainerId,
        netns: &Path,
        scope: &ClientScope,
    ) -> Result<(), NetworkError> {
        let failed = |error: DnsError| NetworkError::Failed(chain(&error));
        let serve = |port| {
            self.dns
                .serve(container.as_str(), netns, port, scope.clone())
        };
        let listening = serve(0).await.map_err(failed)?;
        let path = netns.to_owned();
        let redirected = tokio::task::spawn_blocking(move || {
            resolver::redirect(&path, RESOLVER, DNS_PORT, listening.udp, listening.tcp)
        });
        let Err(error) = redirected
            .await
            .unwrap_or_else(|panic| Err(std::io::Error::other(panic)))
        else {
            return Ok(());
        };
        tracing::warn!(
            container.id = %container, %error,
            "the kernel cannot lead port 53 elsewhere; the resolver takes it, and this container cannot serve it",
        );
        serve(DNS_PORT).await.map_err(failed).map(drop)
    }

    /// Puts a running container into one more network of this host; its resolver sees the names there from now on.
    pub async fn join(
        &self,
        network: &str,
        who: &Joining,
        spec: EndpointSpec,
    ) -> Result<(String, EndpointInfo), BridgesError> {
        let (name, info) = match self.bridges.look(network).await {
            Ok(_) => self.bridges.join(network, who, spec).await?,
            Err(_) => self.join_cluster_network(network, who, &spec).await?,
        };
        // First what this container alone calls others.
        let own = who.container.as_str().parse::<NetworkId>();
        let own = own.ok().filter(|_| !info.spec.links.is_empty());
        self.rescope(&who.container, |networks| {
            if let Some(own) = own.filter(|own| !networks.contains(own)) {
                networks.insert(0, own);
            }
            networks.extend(info.network_id.parse::<NetworkId>());
        });
        Ok((name, info))
    }

    /// Takes a running container from a network of this host; returns what it has left of this host's networks.
    pub async fn leave(
        &self,
        network: &str,
        container: &ContainerId,
    ) -> Result<NetworkSettings, BridgesError> {
        let left = match self.bridges.look(network).await {
            Ok(_) => self.bridges.leave(network, container).await?,
            Err(_) => self.leave_cluster_network(network, container).await?,
        };
        self.rescope(container, |networks| {
            networks.retain(|network| network.as_str() != left);
        });
        let rest = self.bridges.settings_of(container).await;
        Ok(rest.unwrap_or_default())
    }

    fn rescope(&self, container: &ContainerId, change: impl FnOnce(&mut Vec<NetworkId>)) {
        let mut known = self.known();
        if let Some(scope) = known.scopes.get_mut(container) {
            change(&mut scope.networks);
            self.dns.rescope(container.as_str(), scope.clone());
        }
    }

    /// What the view gives a task: one endpoint per network, by the network's name.
    fn task_settings(&self, task: &TaskId, request: &NetworkRequest) -> NetworkSettings {
        let view = self.plane.view();
        let mut settings = NetworkSettings {
            sandbox: Some(request.netns.clone()),
            sandbox_id: request.container.as_str().to_owned(),
            ..NetworkSettings::default()
        };
        for (id, slice) in &view.networks {
            let Some(endpoint) = slice.endpoints.get(task) else {
                continue;
            };
            let spec = request.endpoints.get(&slice.name).cloned();
            let info = overlay::endpoint_info(id, slice, task, endpoint, spec.unwrap_or_default());
            settings.networks.insert(slice.name.clone(), info);
        }
        settings
    }

    async fn connect(&self, request: &NetworkRequest) -> Result<NetworkSettings, NetworkError> {
        let task = request
            .labels
            .get(TASK_LABEL)
            .and_then(|label| label.parse::<TaskId>().ok());
        let task = task.filter(|task| self.known().expected.contains(task));
        let container = request.container.clone();
        self.known().held.insert(container, task.clone());
        let in_cluster = task.filter(|_| !matches!(request.mode, NetworkMode::Default));
        match in_cluster {
            Some(task) => {
                let settings = self.task_settings(&task, request);
                let attached = self.plane.attach(task, request.netns.clone()).await;
                attached.map_err(|errors| NetworkError::Failed(all(&errors)))?;
                let published = self.bridges.publish_for_task(request).await?;
                Ok(NetworkSettings {
                    ports: published,
                    ..settings
                })
            }
            None => self.connect_user_container(request).await,
        }
    }
}

#[async_trait]
impl ContainerNetwork for NodeNetworks {
    async fn open(&self, request: &NetworkRequest) -> Result<(), NetworkError> {
        // An earlier start may have left its namespace.
        self.teardown(&request.container, &request.netns).await;
        let path = request.netns.clone();
        let made = tokio::task::spawn_blocking(move || {
            netns::delete(&path)?;
            netns::create(&path)
        });
        let failed = |error: &dyn std::error::Error| NetworkError::Failed(chain(error));
        let made = made.await.map_err(|panic| failed(&panic))?;
        made.map_err(|error| failed(&error))
    }

    async fn setup(&self, request: &NetworkRequest) -> Result<NetworkReady, NetworkError> {
        let user = resolv_conf::Overrides {
            nameservers: request.dns.clone(),
            search: request.dns_search.clone(),
            options: request.dns_options.clone(),
        };
        let settings = self.connect(request).await?;
        let file = self
            .serve_names(&request.container, &request.netns, &settings, &user)
            .await?;
        let mut names = vec![request.hostname.clone()];
        names.retain(|name| !name.is_empty());
        let own = settings.networks.values().flat_map(|endpoint| {
            let v6 = endpoint.ipv6.map(IpAddr::V6);
            let all = endpoint.ipv4.map(IpAddr::V4).into_iter().chain(v6);
            all.map(|address| (address, names.clone()))
        });
        Ok(NetworkReady {
            netns: request.netns.clone(),
            hosts: own.collect(),
            nameservers: vec![IpAddr::V4(RESOLVER)],
            search: file.search,
            options: file.options,
            settings,
        })
    }

    async fn teardown(&self, container: &ContainerId, netns: &Path) {
        let held = {
            let mut known = self.known();
            known.scopes.remove(container);
            known.held.remove(container)
        };
        // One that ended while no daemon was there is known to the bridges alone.
        if held.is_some() || self.bridges.settings_of(container).await.is_some() {
            self.take_out(container, held.flatten()).await;
        }
        // Also where nobody is known: a daemon may die between the last step before this one and this one.
        if let Err(error) = netns::delete(netns) {
            tracing::warn!(container.id = %container, error = chain(&error), "removing the network namespace");
        }
    }
}

impl NodeNetworks {
    /// Takes a container out of everything that was made for it, but for its namespace.
    async fn take_out(&self, container: &ContainerId, task: Option<TaskId>) {
        self.dns.stop(container.as_str()).await;
        if let Some(task) = &task
            && let Err(errors) = self.plane.detach(task).await
        {
            tracing::warn!(task.id = %task, error = all(&errors), "detaching from the cluster's networks");
        }
        for place in self.attachments.of(container) {
            self.detach_place(&place).await;
        }
        if let Err(error) = self.bridges.disconnect(container).await {
            tracing::warn!(container.id = %container, %error, "detaching from the networks of this host");
        }
    }
}

/// An error with its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn all(errors: &[shoal_overlay::PlaneError]) -> String {
    errors
        .iter()
        .map(|error| chain(error))
        .collect::<Vec<_>>()
        .join("; ")
}
