//! The cluster as the Engine API sees it: everything read from this manager's state, everything written by intents.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use shoal_api::{
    ConfigId, IdSource, NetworkId, NodeId, RandomIds, SecretId, ServiceId, TaskId, TaskState,
    Timestamp,
    container::{ExecSpec, LogQuery},
    explain::Explanation,
    id::InvalidId,
    object::{Config, Network, NodeState, Object, ObjectKey, Secret, Service, Task},
    spec::{ClusterSpec, ConfigSpec, NetworkSpec, NodeSpec, SecretSpec, ServiceSpec},
    stack::VolumesRemoved,
    wire::{DecodeError, LogMessage, LogSelector, SubscribeLogsRequest},
};
use shoal_ca::UnlockKey;
use shoal_docker_api::backend::{
    ApiError, ApiResult, ClusterBackend, ClusterRestore, CreatedService, ItemStream, LocalNetwork,
    LocalNodeState, LogSelection, ManagerView, NodeView, RemoteManager, Rotations, ServicesChecked,
    SwarmInfo, SwarmInit, SwarmJoin, SwarmView, TaskExec, TaskLogLine, TaskSelection,
};
use shoal_manager::{
    Intent, Manager, Refusal, Spec, State, WriteError,
    core::{control::check_services, dispatch::seen, orchestrator::is_dirty, reconcile::Ctx},
    explain, foresee,
    io::store::Notice,
};

use super::{
    ClusterError, ClusterNode, Init, Place, authority, changes, doctor, events, processes, stacks,
};
use crate::network::chain;

/// How long the removal of a network waits for tasks that are stopping: the default grace and some more.
const NETWORK_RELEASE_MAX: Duration = Duration::from_secs(15);

fn refused(refusal: &Refusal) -> ApiError {
    let status = refusal.kind.http_status();
    let status = status.try_into().expect("refusals have valid statuses");
    // Clients match on the prefix that swarmkit's errors have in docker.
    let code = refusal.kind.as_str();
    ApiError::new(
        status,
        format!("rpc error: code = {code} desc = {}", refusal.text),
    )
}

pub(super) fn write_error(error: WriteError) -> ApiError {
    match error {
        WriteError::Refused(refusal) => refused(&refusal),
        WriteError::NoLeader => ApiError::internal(format!(
            "rpc error: code = Unknown desc = {}",
            chain(&WriteError::NoLeader)
        )),
        WriteError::Forward(status) => ApiError::internal(format!(
            "rpc error: code = {:?} desc = {}",
            status.code(),
            status.message()
        )),
        error => ApiError::internal(format!(
            "rpc error: code = Unavailable desc = {}",
            chain(&error)
        )),
    }
}

fn log_line(message: LogMessage) -> ApiResult<TaskLogLine> {
    let invalid = |error: InvalidId| ApiError::internal(error.to_string());
    Ok(TaskLogLine {
        node: message.node_id.parse().map_err(invalid)?,
        service: message.service_id.parse().map_err(invalid)?,
        task: message.task_id.parse().map_err(invalid)?,
        line: message
            .try_into()
            .map_err(|error: DecodeError| ApiError::internal(error.to_string()))?,
    })
}

fn cluster_error(error: ClusterError) -> ApiError {
    let text = chain(&error);
    match error {
        // Docker's statuses for these.
        ClusterError::AlreadyIn
        | ClusterError::NotIn
        | ClusterError::ManagerLeaves(_)
        | ClusterError::JoinTakesLong => ApiError::unavailable(text),
        ClusterError::Locked => ApiError::swarm_locked(),
        ClusterError::NotManager => ApiError::not_a_manager(),
        ClusterError::Restore(_) => ApiError::invalid(text),
        ClusterError::NotLocked => ApiError::conflict(text),
        ClusterError::WrongUnlockKey => ApiError::unauthorized(text),
        ClusterError::Address(_) | ClusterError::NoUnlockKey => ApiError::invalid(text),
        _ => ApiError::internal(text),
    }
}

impl ClusterNode {
    async fn managing(&self) -> ApiResult<Arc<Manager>> {
        match (self.manager().await, self.active.read().await.is_some()) {
            (Some(manager), _) => Ok(manager),
            (None, false) if self.is_locked() => Err(ApiError::swarm_locked()),
            (None, true) => Err(ApiError::not_a_manager()),
            (None, false) => Err(ApiError::no_swarm()),
        }
    }

    async fn own_id(&self) -> ApiResult<NodeId> {
        let node = self.swarm_info().await.node_id;
        node.ok_or_else(|| ApiError::internal("the swarm was left at once"))
    }

    /// The state with everything that anybody was told before this call.
    async fn latest(&self) -> ApiResult<State> {
        self.managing().await?.latest().await.map_err(write_error)
    }

    async fn write(&self, intent: Intent) -> ApiResult<Option<Object>> {
        self.managing()
            .await?
            .write(intent)
            .await
            .map_err(write_error)
    }

    /// Tasks with where they have come to, also where that is not written down.
    async fn as_seen(&self, mut tasks: Vec<Task>) -> Vec<Task> {
        let is_on_its_way =
            |task: &Task| (TaskState::Assigned..TaskState::Running).contains(&task.status.state);
        if tasks.iter().any(is_on_its_way)
            && let Ok(manager) = self.managing().await
        {
            let passing = manager.passing().await;
            for task in tasks.iter_mut().filter(|task| is_on_its_way(task)) {
                task.status = seen(task, passing.get(&task.id));
            }
        }
        tasks
    }

    async fn create(&self, spec: Spec) -> ApiResult<ObjectKey> {
        let made = self.write(Intent::Create(spec)).await?;
        made.map(|object| object.key())
            .ok_or_else(|| ApiError::internal("the object was removed at once"))
    }

    async fn update(&self, key: ObjectKey, version: u64, spec: Spec) -> ApiResult<()> {
        self.write(Intent::Update { key, version, spec })
            .await
            .map(drop)
    }

    async fn remove(&self, key: ObjectKey, force: bool) -> ApiResult<()> {
        self.write(Intent::Remove { key, force }).await.map(drop)
    }
}

/// Whether a network is in use only by tasks that have been told to stop, or will be since their service is gone, and by
/// places of containers that have been given back.
fn is_being_left(
    state: &State,
    network: &NetworkId,
    is_given_back: impl Fn(&Task) -> bool,
) -> bool {
    let on_it = |task: &&Arc<Task>| {
        let attached = task.networks.iter().any(|at| at.network == *network);
        attached && !task.status.state.is_terminal()
    };
    let mut users = state.tasks().filter(on_it).peekable();
    users.peek().is_some()
        && users.all(|task| {
            let orphaned = state.service(&task.service).is_none() && !task.is_attachment();
            task.desired_state > TaskState::Running || orphaned || is_given_back(task)
        })
}

fn unlike(kind: &str, key: &ObjectKey) -> ApiError {
    ApiError::internal(format!("a {kind} was made as {key:?}"))
}

/// The tasks of a selection that are wanted.
fn selected(
    state: &State,
    selection: &TaskSelection,
    is_wanted: impl Fn(&Task) -> bool,
) -> Vec<Task> {
    let is_selected = |task: &&Arc<Task>| {
        let node = task.node.as_ref();
        (selection.services.is_empty() || selection.services.contains(&task.service))
            && (selection.nodes.is_empty()
                || node.is_some_and(|node| selection.nodes.contains(node)))
            && !task.is_attachment()
            && is_wanted(task)
    };
    let owned = |task: &Arc<Task>| task.as_ref().clone();
    // A progress bar asks for one service's tasks again and again: the index serves it.
    match selection.services.as_slice() {
        [service] => state
            .tasks_of_service(service)
            .filter(is_selected)
            .map(owned)
            .collect(),
        _ => state.tasks().filter(is_selected).map(owned).collect(),
    }
}

#[async_trait]
impl ClusterBackend for ClusterNode {
    async fn swarm_info(&self) -> SwarmInfo {
        let active = self.active.read().await;
        let Some(active) = active.as_ref() else {
            return SwarmInfo {
                state: if self.is_locked() {
                    LocalNodeState::Locked
                } else {
                    LocalNodeState::Inactive
                },
                ..SwarmInfo::default()
            };
        };
        let session = active.agent.state().borrow().clone();
        let membership = active.seat.membership();
        let manager = active.seat.manager();
        let mut remote_managers: Vec<RemoteManager> = Vec::new();
        let mut has_leader = true;
        if let Some(manager) = &manager {
            let members = Arc::clone(&manager.members().borrow());
            remote_managers.extend(members.iter().map(|(_, member)| RemoteManager {
                node_id: Some(member.node_id.clone()),
                addr: member.address.clone(),
            }));
            has_leader = manager.leadership().borrow().leader.is_some();
        } else {
            let known = if session.managers.is_empty() {
                membership.managers
            } else {
                session.managers
            };
            remote_managers.extend(known.into_iter().map(|addr| RemoteManager {
                node_id: None,
                addr,
            }));
        }
        let no_leader = (!has_leader).then(|| chain(&WriteError::NoLeader));
        let error = session
            .refused
            .or(no_leader)
            .or_else(|| active.seat.trouble());
        SwarmInfo {
            state: LocalNodeState::Active,
            node_id: Some(active.seat.identity().peer().node_id.clone()),
            node_addr: Some(membership.advertise.ip()),
            control_available: manager.is_some(),
            error: error.unwrap_or_default(),
            remote_managers,
        }
    }

    async fn swarm_init(&self, request: SwarmInit) -> ApiResult<NodeId> {
        let place = Place {
            listen: request.listen_addr,
            advertise: request.advertise_addr,
            data_path: request.data_path_addr,
            availability: request.availability,
        };
        if request.force_new_cluster && self.swarm_info().await.state != LocalNodeState::Inactive {
            self.force_new_cluster(&place)
                .await
                .map_err(cluster_error)?;
            return self.own_id().await;
        }
        self.init(Init {
            place,
            spec: request.spec,
        })
        .await
        .map_err(cluster_error)?;
        self.own_id().await
    }

    async fn swarm_join(&self, request: SwarmJoin) -> ApiResult<()> {
        let place = Place {
            listen: request.listen_addr,
            advertise: request.advertise_addr,
            data_path: request.data_path_addr,
            availability: request.availability,
        };
        let joined = Self::join(self, place, request.remote_addrs, &request.token).await;
        joined.map_err(cluster_error)
    }

    async fn swarm_leave(&self, force: bool) -> ApiResult<()> {
        Self::leave(self, force).await.map_err(cluster_error)
    }

    async fn swarm_inspect(&self) -> ApiResult<SwarmView> {
        let manager = self.managing().await?;
        let state = manager.latest().await.map_err(write_error)?;
        let missing = || ApiError::internal("the cluster's own object is missing");
        let cluster = state.cluster().ok_or_else(missing)?.as_ref().clone();
        let tls = authority::cluster_tls(&cluster);
        let (worker_token, manager_token) = manager.join_tokens().ok_or_else(missing)?;
        Ok(SwarmView {
            cluster,
            worker_token,
            manager_token,
            tls,
        })
    }

    async fn swarm_update(
        &self,
        version: u64,
        spec: ClusterSpec,
        rotate: Rotations,
    ) -> ApiResult<()> {
        let state = self.latest().await?;
        let cluster = state.cluster().ok_or_else(ApiError::no_swarm)?;
        let intent = match authority::rotation(cluster, &spec, rotate.signing_ca.as_ref())? {
            Some(rotation) => Intent::RotateRoot {
                version,
                spec: Box::new(spec),
                rotation,
            },
            None => Intent::Update {
                key: ObjectKey::Cluster,
                version,
                spec: Spec::Cluster(spec),
            },
        };
        self.write(intent).await?;
        if rotate.worker_token || rotate.manager_token || rotate.unlock_key {
            let intent = Intent::RotateTokens {
                worker: rotate.worker_token,
                manager: rotate.manager_token,
                unlock_key: rotate.unlock_key,
            };
            self.write(intent).await?;
        }
        Ok(())
    }

    async fn cluster_backup(&self) -> ApiResult<Vec<u8>> {
        self.managing().await?.backup().await.map_err(write_error)
    }

    async fn cluster_restore(&self, request: ClusterRestore) -> ApiResult<NodeId> {
        let place = Place {
            listen: request.listen_addr,
            advertise: request.advertise_addr,
            data_path: request.data_path_addr,
            ..Place::default()
        };
        self.restore(&place, &request.backup, &request.unlock_key)
            .await
            .map_err(cluster_error)?;
        self.own_id().await
    }

    async fn swarm_unlock(&self, key: &str) -> ApiResult<()> {
        self.unlock(key).await.map_err(cluster_error)
    }

    async fn swarm_unlock_key(&self) -> ApiResult<String> {
        let state = self.latest().await?;
        let key = state.cluster().map(|cluster| cluster.unlock_key.as_slice());
        let key = key.and_then(UnlockKey::from_bytes);
        Ok(key.map(|key| key.reveal()).unwrap_or_default())
    }

    async fn nodes(&self) -> ApiResult<Vec<NodeView>> {
        let manager = self.managing().await?;
        let state = manager.latest().await.map_err(write_error)?;
        let leadership = *manager.leadership().borrow();
        let view = |node: &Arc<shoal_api::object::Node>| NodeView {
            manager: node.manager.as_ref().map(|place| ManagerView {
                leader: leadership.leader == Some(place.raft_id),
                reachable: Some(
                    node.status.state == NodeState::Ready
                        || leadership.leader == Some(place.raft_id),
                ),
                addr: place.addr.clone(),
            }),
            tls: state
                .cluster()
                .map(|cluster| authority::node_tls(cluster, node))
                .unwrap_or_default(),
            node: node.as_ref().clone(),
        };
        Ok(state.nodes().map(view).collect())
    }

    async fn node_update(&self, id: &NodeId, version: u64, spec: NodeSpec) -> ApiResult<()> {
        self.update(ObjectKey::Node(id.clone()), version, Spec::Node(spec))
            .await
    }

    async fn node_remove(&self, id: &NodeId, force: bool) -> ApiResult<()> {
        self.remove(ObjectKey::Node(id.clone()), force).await
    }

    async fn departed_nodes(&self) -> ApiResult<Vec<(NodeId, String)>> {
        let state = self.latest().await?;
        let departed = state.cluster().map(|cluster| cluster.departed.clone());
        Ok(departed.unwrap_or_default().into_iter().collect())
    }

    async fn services(&self) -> ApiResult<Vec<Service>> {
        Ok(self
            .latest()
            .await?
            .services()
            .map(|service| service.as_ref().clone())
            .collect())
    }

    async fn service(&self, id: &ServiceId) -> ApiResult<Option<Service>> {
        Ok(self
            .latest()
            .await?
            .service(id)
            .map(|service| service.as_ref().clone()))
    }

    async fn service_create(&self, mut spec: ServiceSpec) -> ApiResult<CreatedService> {
        // As docker's daemon does; the digit makes it rare that two are the same.
        if spec.annotations.name.is_empty() {
            let random = RandomIds.next_bits() as u64;
            spec.annotations.name = shoal_engine::core::names::invent(random, 1);
        }
        match self.create(Spec::Service(Box::new(spec))).await? {
            ObjectKey::Service(id) => Ok(CreatedService {
                id,
                warnings: Vec::new(),
            }),
            key => Err(unlike("service", &key)),
        }
    }

    async fn service_update(
        &self,
        id: &ServiceId,
        version: u64,
        spec: ServiceSpec,
        rollback: bool,
    ) -> ApiResult<Vec<String>> {
        let key = ObjectKey::Service(id.clone());
        let intent = if rollback {
            Intent::Rollback {
                key,
                version,
                to: None,
            }
        } else {
            Intent::Update {
                key,
                version,
                spec: Spec::Service(Box::new(spec)),
            }
        };
        self.write(intent).await?;
        Ok(Vec::new())
    }

    async fn service_rollback(
        &self,
        id: &ServiceId,
        version: u64,
        to: Option<u64>,
    ) -> ApiResult<Vec<String>> {
        let key = ObjectKey::Service(id.clone());
        self.write(Intent::Rollback { key, version, to }).await?;
        Ok(Vec::new())
    }

    async fn service_explain(&self, id: &ServiceId) -> ApiResult<Explanation> {
        let state = self.latest().await?;
        explain(&state, id, Timestamp::now())
            .ok_or_else(|| ApiError::not_found(format!("service {id} not found")))
    }

    async fn services_check(&self, specs: Vec<ServiceSpec>) -> ApiResult<ServicesChecked> {
        let state = self.latest().await?;
        let mut cx = Ctx {
            now: Timestamp::now(),
            ids: &mut RandomIds,
        };
        let checked = check_services(&state, &mut cx, specs);
        let refused_ones = checked.refused.into_iter();
        Ok(ServicesChecked {
            foreseen: foresee(&checked.state, &checked.made, &mut cx),
            refused: refused_ones
                .map(|(name, refusal)| (name, refused(&refusal)))
                .collect(),
        })
    }

    async fn service_remove(&self, id: &ServiceId) -> ApiResult<()> {
        self.remove(ObjectKey::Service(id.clone()), false).await
    }

    async fn tasks(&self, selection: TaskSelection) -> ApiResult<Vec<Task>> {
        let state = self.latest().await?;
        Ok(self.as_seen(selected(&state, &selection, |_| true)).await)
    }

    async fn up_to_date_tasks(&self, selection: TaskSelection) -> ApiResult<Vec<Task>> {
        let state = self.latest().await?;
        let is_wanted = |task: &Task| {
            let node = task.node.as_ref().and_then(|node| state.node(node));
            state
                .service(&task.service)
                .is_none_or(|service| !is_dirty(service, task, node.map(Arc::as_ref)))
        };
        Ok(self.as_seen(selected(&state, &selection, is_wanted)).await)
    }

    async fn task_logs(
        &self,
        selection: LogSelection,
        query: LogQuery,
    ) -> ApiResult<ItemStream<TaskLogLine>> {
        let mut selector = LogSelector::default();
        match selection {
            LogSelection::Service(id) => selector.service_ids.push(id.to_string()),
            LogSelection::Task(id) => selector.task_ids.push(id.to_string()),
        }
        let request = SubscribeLogsRequest {
            selector: Some(selector),
            options: Some((&query).into()),
        };
        let manager = self.managing().await?;
        let lines = manager.logs(request).await.map_err(write_error)?;
        Ok(lines
            .map(|line| {
                let failed = |status| write_error(WriteError::Forward(Box::new(status)));
                log_line(line.map_err(failed)?)
            })
            .boxed())
    }

    async fn task_exec(&self, task: &TaskId, spec: ExecSpec) -> ApiResult<TaskExec> {
        processes::exec(&self.managing().await?, task, spec).await
    }

    async fn attachments(&self) -> ApiResult<Vec<Task>> {
        let state = self.latest().await?;
        let tasks = state.tasks().filter(|task| task.is_attachment());
        Ok(tasks.map(|task| Task::clone(task)).collect())
    }

    async fn network_doctor(&self) -> ApiResult<shoal_api::doctor::Report> {
        doctor::network(&self.managing().await?).await
    }

    async fn service_changes(&self, id: &ServiceId) -> ApiResult<ItemStream<()>> {
        Ok(changes::of_service(self.managing().await?, id))
    }

    async fn stack_volumes_remove(&self, stack: &str) -> ApiResult<Vec<VolumesRemoved>> {
        stacks::remove_volumes(&self.managing().await?, stack).await
    }

    async fn cluster_changes(&self) -> ApiResult<ItemStream<()>> {
        Ok(changes::of_nodes(&*self.managing().await?))
    }

    async fn events(
        &self,
        _since: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> ApiResult<ItemStream<shoal_api::container::Event>> {
        let watch = self.managing().await?.watch();
        let happening = stream::unfold(watch, |mut watch| async move {
            let notice = watch.next().await;
            let events: Vec<_> = match notice {
                Notice::Applied { events, .. } | Notice::Made(events) => {
                    let now = Timestamp::now();
                    let told = events
                        .iter()
                        .filter_map(|change| events::event(change, now));
                    told.map(Ok).collect()
                }
                // What was missed nobody can tell.
                Notice::Everything { .. } => Vec::new(),
            };
            Some((stream::iter(events), watch))
        });
        let Some(until) = until else {
            return Ok(happening.flatten().boxed());
        };
        let left = until.since(Timestamp::now());
        let ended = tokio::time::sleep(left);
        Ok(happening.flatten().take_until(ended).boxed())
    }

    async fn carried_networks(&self) -> Vec<LocalNetwork> {
        self.networks.carried()
    }

    async fn networks(&self) -> ApiResult<Vec<Network>> {
        Ok(self
            .latest()
            .await?
            .networks()
            .map(|network| network.as_ref().clone())
            .collect())
    }

    async fn network_create(&self, spec: NetworkSpec) -> ApiResult<NetworkId> {
        match self.create(Spec::Network(spec)).await? {
            ObjectKey::Network(id) => Ok(id),
            key => Err(unlike("network", &key)),
        }
    }

    async fn network_remove(&self, id: &NetworkId) -> ApiResult<()> {
        let manager = self.managing().await?;
        // `stack rm` removes a service and then its networks at once, and users a container and then its network. What is
        // stopping already is waited for, and what a manager is about to hear from this node.
        let me = self.swarm_info().await.node_id;
        let is_given_back = |task: &Task| {
            let held = self.networks.attachments().container(&task.id);
            task.is_attachment() && task.node == me && held.is_none()
        };
        let released = async {
            let mut watch = manager.watch();
            while is_being_left(&manager.state(), id, is_given_back) {
                watch.next().await;
            }
        };
        // If it takes longer, the refusal below names the task.
        let _ = tokio::time::timeout(NETWORK_RELEASE_MAX, released).await;
        self.remove(ObjectKey::Network(id.clone()), false).await
    }

    async fn secrets(&self) -> ApiResult<Vec<Secret>> {
        let state = self.latest().await?;
        // What a user may read of a secret is everything but the secret.
        let public = |secret: &Arc<Secret>| {
            let mut secret = secret.as_ref().clone();
            secret.spec.data = Vec::new();
            secret
        };
        Ok(state.secrets().map(public).collect())
    }

    async fn secret_create(&self, spec: SecretSpec) -> ApiResult<SecretId> {
        match self.create(Spec::Secret(spec)).await? {
            ObjectKey::Secret(id) => Ok(id),
            key => Err(unlike("secret", &key)),
        }
    }

    async fn secret_update(&self, id: &SecretId, version: u64, spec: SecretSpec) -> ApiResult<()> {
        self.update(ObjectKey::Secret(id.clone()), version, Spec::Secret(spec))
            .await
    }

    async fn secret_remove(&self, id: &SecretId) -> ApiResult<()> {
        self.remove(ObjectKey::Secret(id.clone()), false).await
    }

    async fn configs(&self) -> ApiResult<Vec<Config>> {
        Ok(self
            .latest()
            .await?
            .configs()
            .map(|config| config.as_ref().clone())
            .collect())
    }

    async fn config_create(&self, spec: ConfigSpec) -> ApiResult<ConfigId> {
        match self.create(Spec::Config(spec)).await? {
            ObjectKey::Config(id) => Ok(id),
            key => Err(unlike("config", &key)),
        }
    }

    async fn config_update(&self, id: &ConfigId, version: u64, spec: ConfigSpec) -> ApiResult<()> {
        self.update(ObjectKey::Config(id.clone()), version, Spec::Config(spec))
            .await
    }

    async fn config_remove(&self, id: &ConfigId) -> ApiResult<()> {
        self.remove(ObjectKey::Config(id.clone()), false).await
    }
}
