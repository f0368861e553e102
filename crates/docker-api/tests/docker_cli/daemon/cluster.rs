//! A cluster of one node that schedules nothing: every task runs from the moment it exists.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use shoal_api::{
    ConfigId, NetworkId, NodeId, ObjectId, SecretId, ServiceId, TaskId, TaskState, Timestamp,
    container::{LogLine, LogQuery, StdStream},
    object::{
        Cluster, Config, ContainerStatus, Meta, Network, NetworkAllocation, Node, NodeDescription,
        NodeState, NodeStatus, Secret, Service, ServiceEndpoint, Task, TaskStatus, UpdateState,
        UpdateStatus,
    },
    spec::{
        ClusterSpec, ConfigSpec, NetworkSpec, NodeRole, NodeSpec, Platform, SecretSpec,
        ServiceMode, ServiceSpec,
    },
};
use shoal_docker_api::backend::*;

#[derive(Default)]
struct State {
    swarm: SwarmInfo,
    index: u64,
    settings: ClusterSpec,
    nodes: Vec<NodeView>,
    services: Vec<Service>,
    tasks: Vec<Task>,
    networks: Vec<Network>,
    secrets: Vec<Secret>,
    configs: Vec<Config>,
}

#[derive(Default)]
pub(crate) struct MemoryCluster {
    state: Mutex<State>,
    pub(crate) inits: Mutex<Vec<SwarmInit>>,
    pub(crate) joins: Mutex<Vec<SwarmJoin>>,
}

impl MemoryCluster {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The spec of a service as it is.
    pub(crate) fn spec_of(&self, name: &str) -> ServiceSpec {
        let state = self.state();
        let found = state
            .services
            .iter()
            .find(|s| s.spec.annotations.name == name);
        (*found.expect("it is there").spec).clone()
    }

    pub(crate) fn set_state(&self, state: LocalNodeState) {
        self.state().swarm.state = state;
    }
}

impl State {
    /// Numbers, not chance: the n-th object has the n-th id.
    fn id<T: ObjectId>(&mut self) -> T {
        T::from_bits(u128::from(self.meta().version))
    }

    fn meta(&mut self) -> Meta {
        self.index += 1;
        let at = Timestamp::parse_rfc3339("2026-01-01T00:00:00Z").unwrap();
        Meta {
            version: self.index,
            created_at: at,
            updated_at: at,
        }
    }

    /// Makes the tasks of a service what its spec says.
    fn converge(&mut self, id: &ServiceId) {
        let service = self.services.iter().find(|s| s.id == *id).unwrap().clone();
        self.tasks.retain(|task| task.service != *id);
        let replicas = match service.spec.mode {
            ServiceMode::Replicated { replicas } => replicas,
            _ => 1,
        };
        for slot in 1..=replicas {
            let task = Task {
                id: self.id::<TaskId>(),
                meta: self.meta(),
                service: id.clone(),
                slot,
                node: self.swarm.node_id.clone(),
                spec_version: service.spec_version,
                spec: Arc::new(service.spec.task.clone()),
                service_name: service.spec.annotations.name.as_str().into(),
                service_labels: Default::default(),
                desired_state: TaskState::Running,
                status: TaskStatus {
                    state: TaskState::Running,
                    at: Timestamp::now(),
                    message: "started".into(),
                    container: Some(Box::new(ContainerStatus {
                        container_id: "c".repeat(64),
                        pid: 42,
                        exit_code: 0,
                    })),
                    ..TaskStatus::default()
                },
                networks: Box::default(),
                ports: Box::default(),
                attempts: 0,
                start_after: None,
                job_iteration: None,
                drained: false,
                assigned: None,
            };
            self.tasks.push(task);
        }
    }
}

fn out_of_sequence() -> ApiError {
    ApiError::internal("rpc error: code = Unknown desc = update out of sequence")
}

#[async_trait]
impl ClusterBackend for MemoryCluster {
    async fn swarm_info(&self) -> SwarmInfo {
        self.state().swarm.clone()
    }

    async fn swarm_init(&self, request: SwarmInit) -> ApiResult<NodeId> {
        let mut state = self.state();
        let id: NodeId = state.id();
        state.settings = request.spec.clone();
        self.inits.lock().unwrap().push(request);
        state.swarm = SwarmInfo {
            state: LocalNodeState::Active,
            node_id: Some(id.clone()),
            node_addr: Some([192, 0, 2, 1].into()),
            control_available: true,
            error: String::new(),
            remote_managers: vec![RemoteManager {
                node_id: Some(id.clone()),
                addr: "192.0.2.1:2377".to_owned(),
            }],
        };
        let meta = state.meta();
        state.nodes.push(NodeView {
            tls: TlsInfo::default(),
            node: Node {
                id: id.clone(),
                meta,
                availability_since: meta.created_at,
                spec: NodeSpec {
                    role: NodeRole::Manager,
                    ..NodeSpec::default()
                },
                description: NodeDescription {
                    hostname: "host-1".to_owned(),
                    platform: Platform {
                        os: "linux".to_owned(),
                        architecture: "amd64".to_owned(),
                    },
                    engine_version: "0.1.0".to_owned(),
                    ..NodeDescription::default()
                },
                status: NodeStatus {
                    state: NodeState::Ready,
                    addr: Some([192, 0, 2, 1].into()),
                    ..NodeStatus::default()
                },
                role: NodeRole::Manager,
                manager: None,
            },
            manager: Some(ManagerView {
                leader: true,
                reachable: Some(true),
                addr: "192.0.2.1:2377".to_owned(),
            }),
        });
        let ingress = Network {
            id: state.id(),
            meta: state.meta(),
            spec: NetworkSpec {
                ingress: true,
                ..NetworkSpec::default()
            },
            allocated: None,
        };
        state.networks.push(ingress);
        Ok(id)
    }

    async fn swarm_join(&self, request: SwarmJoin) -> ApiResult<()> {
        if !request.token.starts_with("SWMTKN-1-") {
            return Err(ApiError::invalid("invalid join token"));
        }
        self.joins.lock().unwrap().push(request);
        let mut state = self.state();
        state.swarm.state = LocalNodeState::Active;
        state.swarm.control_available = false;
        Ok(())
    }

    async fn swarm_leave(&self, force: bool) -> ApiResult<()> {
        let mut state = self.state();
        if state.swarm.control_available && !force {
            return Err(ApiError::unavailable(
                "You are attempting to leave the swarm on a node that is participating as a manager.",
            ));
        }
        *state = State::default();
        Ok(())
    }

    async fn swarm_inspect(&self) -> ApiResult<SwarmView> {
        let state = self.state();
        Ok(SwarmView {
            cluster: Cluster {
                id: ObjectId::from_bits(1),
                meta: Meta {
                    version: state.index,
                    ..Meta::default()
                },
                spec: state.settings.clone(),
                root_ca_cert: "-----BEGIN CERTIFICATE-----\n".to_owned(),
                root_ca_key: "never shown".to_owned(),
                worker_token: "never shown".to_owned(),
                manager_token: "never shown".to_owned(),
                blacklisted: BTreeMap::new(),
                departed: BTreeMap::new(),
                last_raft_id: 1,
                unlock_key: Vec::new(),
                root_rotation: None,
            },
            worker_token: "SWMTKN-1-worker".to_owned(),
            manager_token: "SWMTKN-1-manager".to_owned(),
            tls: TlsInfo::default(),
        })
    }

    async fn swarm_update(
        &self,
        version: u64,
        spec: ClusterSpec,
        _rotate: Rotations,
    ) -> ApiResult<()> {
        let mut state = self.state();
        if version != state.index {
            return Err(out_of_sequence());
        }
        state.settings = spec;
        Ok(())
    }

    async fn nodes(&self) -> ApiResult<Vec<NodeView>> {
        Ok(self.state().nodes.clone())
    }

    async fn node_update(&self, id: &NodeId, version: u64, spec: NodeSpec) -> ApiResult<()> {
        let mut state = self.state();
        let meta = state.meta();
        let view = state.nodes.iter_mut().find(|v| v.node.id == *id).unwrap();
        if view.node.meta.version != version {
            return Err(out_of_sequence());
        }
        view.node.spec = spec;
        view.node.meta = meta;
        Ok(())
    }

    async fn node_remove(&self, _id: &NodeId, _force: bool) -> ApiResult<()> {
        Err(ApiError::invalid(
            "rpc error: code = FailedPrecondition desc = node is a cluster manager and is a member of the raft cluster. \
             It must be demoted to worker before removal",
        ))
    }

    async fn services(&self) -> ApiResult<Vec<Service>> {
        Ok(self.state().services.clone())
    }

    async fn service_create(&self, spec: ServiceSpec) -> ApiResult<CreatedService> {
        let mut state = self.state();
        let name = &spec.annotations.name;
        if state
            .services
            .iter()
            .any(|s| s.spec.annotations.name == *name)
        {
            return Err(ApiError::conflict(format!(
                "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service {name} already \
                 exists"
            )));
        }
        let id: ServiceId = state.id();
        let meta = state.meta();
        state.services.push(Service {
            id: id.clone(),
            meta,
            spec_version: meta.version,
            endpoint: Some(ServiceEndpoint {
                spec: spec.endpoint.clone(),
                ports: spec.endpoint.ports.clone(),
                virtual_ips: Vec::new(),
            }),
            spec: Arc::new(spec),
            previous_spec: None,
            previous_spec_version: 0,
            update_status: None,
            job: None,
            revision: 1,
            history: Vec::new(),
        });
        state.converge(&id);
        Ok(CreatedService {
            id,
            warnings: Vec::new(),
        })
    }

    async fn service_update(
        &self,
        id: &ServiceId,
        version: u64,
        spec: ServiceSpec,
        rollback: bool,
    ) -> ApiResult<Vec<String>> {
        let mut state = self.state();
        let meta = state.meta();
        let service = state.services.iter_mut().find(|s| s.id == *id).unwrap();
        if service.meta.version != version {
            return Err(out_of_sequence());
        }
        let next = match (rollback, service.previous_spec.clone()) {
            (true, None) => return Err(ApiError::invalid("service does not have a previous spec")),
            (true, Some(previous)) => previous,
            (false, _) => Arc::new(spec),
        };
        service.previous_spec = Some(std::mem::replace(&mut service.spec, next));
        service.meta = meta;
        service.spec_version = meta.version;
        service.update_status = Some(UpdateStatus {
            state: UpdateState::Completed,
            started_at: meta.updated_at,
            completed_at: Some(meta.updated_at),
            message: "update completed".to_owned(),
        });
        state.converge(id);
        Ok(Vec::new())
    }

    async fn service_remove(&self, id: &ServiceId) -> ApiResult<()> {
        let mut state = self.state();
        state.services.retain(|s| s.id != *id);
        state.tasks.retain(|t| t.service != *id);
        Ok(())
    }

    async fn tasks(&self, selection: TaskSelection) -> ApiResult<Vec<Task>> {
        let wanted = |task: &&Task| {
            (selection.services.is_empty() || selection.services.contains(&task.service))
                && (selection.nodes.is_empty()
                    || task
                        .node
                        .as_ref()
                        .is_some_and(|n| selection.nodes.contains(n)))
        };
        Ok(self.state().tasks.iter().filter(wanted).cloned().collect())
    }

    async fn task_logs(
        &self,
        selection: LogSelection,
        _query: LogQuery,
    ) -> ApiResult<ItemStream<TaskLogLine>> {
        let state = self.state();
        let lines: Vec<_> = state
            .tasks
            .iter()
            .filter(|task| match &selection {
                LogSelection::Service(service) => task.service == *service,
                LogSelection::Task(id) => task.id == *id,
            })
            .map(|task| {
                Ok(TaskLogLine {
                    node: task.node.clone().unwrap(),
                    service: task.service.clone(),
                    task: task.id.clone(),
                    line: LogLine {
                        stream: StdStream::Stdout,
                        time: Timestamp(1),
                        bytes: b"hello from a task\n".to_vec(),
                    },
                })
            })
            .collect();
        Ok(stream::iter(lines).boxed())
    }

    async fn networks(&self) -> ApiResult<Vec<Network>> {
        Ok(self.state().networks.clone())
    }

    async fn network_create(&self, spec: NetworkSpec) -> ApiResult<NetworkId> {
        let mut state = self.state();
        let id: NetworkId = state.id();
        let network = Network {
            id: id.clone(),
            meta: state.meta(),
            spec,
            allocated: Some(NetworkAllocation {
                vni: 4097,
                subnets: Vec::new(),
            }),
        };
        state.networks.push(network);
        Ok(id)
    }

    async fn network_remove(&self, id: &NetworkId) -> ApiResult<()> {
        self.state().networks.retain(|n| n.id != *id);
        Ok(())
    }

    async fn secrets(&self) -> ApiResult<Vec<Secret>> {
        Ok(self.state().secrets.clone())
    }

    async fn secret_create(&self, spec: SecretSpec) -> ApiResult<SecretId> {
        let mut state = self.state();
        let secret = Secret {
            id: state.id(),
            meta: state.meta(),
            spec,
        };
        state.secrets.push(secret.clone());
        Ok(secret.id)
    }

    async fn secret_update(
        &self,
        _id: &SecretId,
        _version: u64,
        _spec: SecretSpec,
    ) -> ApiResult<()> {
        Ok(())
    }

    async fn secret_remove(&self, id: &SecretId) -> ApiResult<()> {
        self.state().secrets.retain(|s| s.id != *id);
        Ok(())
    }

    async fn configs(&self) -> ApiResult<Vec<Config>> {
        Ok(self.state().configs.clone())
    }

    async fn config_create(&self, spec: ConfigSpec) -> ApiResult<ConfigId> {
        let mut state = self.state();
        let config = Config {
            id: state.id(),
            meta: state.meta(),
            spec,
        };
        state.configs.push(config.clone());
        Ok(config.id)
    }

    async fn config_update(
        &self,
        _id: &ConfigId,
        _version: u64,
        _spec: ConfigSpec,
    ) -> ApiResult<()> {
        Ok(())
    }

    async fn config_remove(&self, id: &ConfigId) -> ApiResult<()> {
        self.state().configs.retain(|c| c.id != *id);
        Ok(())
    }
}
