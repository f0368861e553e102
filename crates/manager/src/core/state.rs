//! The replicated state: one value, changed by [`State::apply`] and by nothing else.
//!
//! A `State` is a persistent value: copying it is cheap and copies share what they have in common. Readers hold copies,
//! control loops plan on copies, and a batch that is refused leaves no trace because it was tried on a copy.
//! What is looked up by something else than its id has an index here; indexes are derived, never written to the log.

mod addresses;
mod apply;
mod change;
mod claim;
mod history;
mod ownership;
mod ports;
mod references;
mod wishes;

#[cfg(test)]
mod tests;

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use shoal_api::{
    ConfigId, NetworkId, NodeId, SecretId, ServiceId, TaskId, TaskState, Timestamp,
    object::{Cluster, Config, Network, Node, Object, ObjectKey, Secret, Service, Task},
    spec::{Protocol, TaskSpec},
};

pub use shoal_api::table::{Groups, Table};

pub use addresses::AddressClash;
pub(crate) use apply::specs_of_service;
pub use change::{Delta, Event, LogIndex, Rejected};
pub use claim::{Claim, Kind, overlap};
pub(crate) use history::supersede;
pub use ports::PortClash;
pub(crate) use ports::ports_of;
pub use references::{User, in_use};

use wishes::Wishes;

/// Everything that the cluster knows, after the batch at one index of the log.
#[derive(Debug, Clone, Default)]
pub struct State {
    index: LogIndex,
    time: Timestamp,
    cluster: Option<Arc<Cluster>>,
    nodes: Table<NodeId, Arc<Node>>,
    services: Table<ServiceId, Arc<Service>>,
    tasks: Table<TaskId, Arc<Task>>,
    networks: Table<NetworkId, Arc<Network>>,
    secrets: Table<SecretId, Arc<Secret>>,
    configs: Table<ConfigId, Arc<Config>>,
    /// Who holds what only one may hold.
    claims: Table<Claim, ObjectKey>,
    tasks_by_service: Groups<ServiceId, TaskId, ()>,
    tasks_by_node: Table<(NodeId, TaskId), ()>,
    /// Tasks in the states New and Pending, which wait for the allocator and the scheduler.
    waiting: Groups<(TaskState, ServiceId), TaskId, Arc<Task>>,
    /// Services that wait for others.
    dependents: Table<ServiceId, ()>,
    /// What tasks run, by service and spec version, with the number of objects that refer to it.
    specs: Table<(ServiceId, u64), (Arc<TaskSpec>, u64)>,
    wishes: Wishes,
}

impl State {
    /// Index of the last batch that was applied or refused.
    pub fn index(&self) -> LogIndex {
        self.index
    }

    /// The latest time at which something was changed, by the clock of the leader of that moment.
    pub fn time(&self) -> Timestamp {
        self.time
    }

    /// The cluster; `None` before it is made.
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.as_ref()
    }

    /// A node.
    pub fn node(&self, id: &NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(id)
    }

    /// All nodes by id.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// A service.
    pub fn service(&self, id: &ServiceId) -> Option<&Arc<Service>> {
        self.services.get(id)
    }

    /// All services by id.
    pub fn services(&self) -> impl DoubleEndedIterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The services that wait for others before their tasks start.
    pub fn dependents(&self) -> impl Iterator<Item = &Arc<Service>> {
        let ids = self.dependents.keys();
        ids.filter_map(|id| self.services.get(id))
    }

    /// A task.
    pub fn task(&self, id: &TaskId) -> Option<&Arc<Task>> {
        self.tasks.get(id)
    }

    /// All tasks by id.
    pub fn tasks(&self) -> impl DoubleEndedIterator<Item = &Arc<Task>> {
        self.tasks.values()
    }

    /// The tasks of a service, past ones included, by id.
    pub fn tasks_of_service(&self, service: &ServiceId) -> impl Iterator<Item = &Arc<Task>> {
        let of_service = self.tasks_by_service.of(service);
        of_service.map(|(task, ())| self.indexed(task))
    }

    /// The tasks on a node, past ones included, by id.
    pub fn tasks_of_node(&self, node: &NodeId) -> impl Iterator<Item = &Arc<Task>> {
        let of_node = self.tasks_by_node.iter_from(move |(n, _)| n < node);
        of_node
            .take_while(move |((n, _), ())| n == node)
            .map(|((_, task), ())| self.indexed(task))
    }

    /// The tasks in the observed state New or Pending, by service and id.
    pub fn tasks_waiting(&self, state: TaskState) -> impl Iterator<Item = &Arc<Task>> {
        self.services_in(state)
            .flat_map(|(_, tasks)| tasks.values())
    }

    /// The services with tasks in the observed state New or Pending.
    pub fn services_waiting(&self, state: TaskState) -> Vec<ServiceId> {
        let services = self.services_in(state);
        services.map(|(service, _)| service.clone()).collect()
    }

    fn services_in(
        &self,
        state: TaskState,
    ) -> impl Iterator<Item = (&ServiceId, &Table<TaskId, Arc<Task>>)> {
        let tables = self.waiting.tables().iter_from(move |(s, _)| *s < state);
        let in_state = tables.take_while(move |((s, _), _)| *s == state);
        in_state.map(|((_, service), tasks)| (service, tasks))
    }

    /// The tasks of a service in the observed state New or Pending, by id.
    pub fn tasks_of_service_waiting(
        &self,
        state: TaskState,
        service: &ServiceId,
    ) -> impl Iterator<Item = &Arc<Task>> {
        let waiting = self.waiting.of(&(state, service.clone()));
        waiting.map(|(_, task)| task)
    }

    /// A network.
    pub fn network(&self, id: &NetworkId) -> Option<&Arc<Network>> {
        self.networks.get(id)
    }

    /// All networks by id.
    pub fn networks(&self) -> impl DoubleEndedIterator<Item = &Arc<Network>> {
        self.networks.values()
    }

    /// The ingress network, if there is one.
    pub fn ingress_network(&self) -> Option<&Arc<Network>> {
        self.networks().find(|network| network.spec.ingress)
    }

    /// A secret.
    pub fn secret(&self, id: &SecretId) -> Option<&Arc<Secret>> {
        self.secrets.get(id)
    }

    /// All secrets by id.
    pub fn secrets(&self) -> impl DoubleEndedIterator<Item = &Arc<Secret>> {
        self.secrets.values()
    }

    /// A config.
    pub fn config(&self, id: &ConfigId) -> Option<&Arc<Config>> {
        self.configs.get(id)
    }

    /// All configs by id.
    pub fn configs(&self) -> impl DoubleEndedIterator<Item = &Arc<Config>> {
        self.configs.values()
    }

    /// The object of a key.
    pub fn object(&self, key: &ObjectKey) -> Option<Object> {
        Some(match key {
            ObjectKey::Node(id) => Object::Node(self.node(id)?.as_ref().clone()),
            ObjectKey::Service(id) => Object::Service(self.service(id)?.as_ref().clone()),
            ObjectKey::Task(id) => Object::Task(self.task(id)?.as_ref().clone()),
            ObjectKey::Network(id) => Object::Network(self.network(id)?.as_ref().clone()),
            ObjectKey::Secret(id) => Object::Secret(self.secret(id)?.as_ref().clone()),
            ObjectKey::Config(id) => Object::Config(self.config(id)?.as_ref().clone()),
            ObjectKey::Cluster => Object::Cluster(self.cluster()?.as_ref().clone()),
        })
    }

    /// Version of the object of a key.
    pub fn version(&self, key: &ObjectKey) -> Option<LogIndex> {
        Some(match key {
            ObjectKey::Node(id) => self.node(id)?.meta.version,
            ObjectKey::Service(id) => self.service(id)?.meta.version,
            ObjectKey::Task(id) => self.task(id)?.meta.version,
            ObjectKey::Network(id) => self.network(id)?.meta.version,
            ObjectKey::Secret(id) => self.secret(id)?.meta.version,
            ObjectKey::Config(id) => self.config(id)?.meta.version,
            ObjectKey::Cluster => self.cluster()?.meta.version,
        })
    }

    /// The object of a kind that has a name.
    pub fn named(&self, kind: Kind, name: &str) -> Option<&ObjectKey> {
        self.claims.get(&Claim::Name(kind, name.into()))
    }

    /// Who holds a claim.
    pub fn holder(&self, claim: &Claim) -> Option<&ObjectKey> {
        self.claims.get(claim)
    }

    /// The addresses in use in a network, ascending from `from` on.
    pub fn addresses_from(
        &self,
        network: &NetworkId,
        from: IpAddr,
    ) -> impl Iterator<Item = IpAddr> + use<'_> {
        let network = network.clone();
        let start = Claim::Address(network.clone(), from);
        self.claims
            .iter_from(move |claim| *claim < start)
            .map_while(move |(claim, _)| match claim {
                Claim::Address(of, address) if *of == network => Some(*address),
                _ => None,
            })
    }

    /// Who holds the addresses of a network, in the order of the addresses.
    pub fn address_holders(
        &self,
        network: &NetworkId,
    ) -> impl Iterator<Item = &ObjectKey> + use<'_> {
        let network = network.clone();
        let start = Claim::Address(network.clone(), IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        self.claims
            .iter_from(move |claim| *claim < start)
            .take_while(move |(claim, _)| matches!(claim, Claim::Address(of, _) if *of == network))
            .map(|(_, holder)| holder)
    }

    /// The greatest address in use in a network that is at most `to`.
    pub fn last_address(&self, network: &NetworkId, to: IpAddr) -> Option<IpAddr> {
        let end = Claim::Address(network.clone(), to);
        match self.claims.last_before(|claim| *claim <= end)?.0 {
            Claim::Address(of, address) if of == network => Some(*address),
            _ => None,
        }
    }

    /// The VXLAN network identifiers in use, ascending.
    pub fn vnis(&self) -> impl Iterator<Item = u32> {
        self.claims
            .iter_from(|claim| *claim < Claim::Vni(0))
            .map_while(|(claim, _)| match claim {
                Claim::Vni(vni) => Some(*vni),
                _ => None,
            })
    }

    /// The service that publishes a port on all nodes.
    pub fn ingress_port_holder(&self, protocol: Protocol, port: u16) -> Option<&Arc<Service>> {
        match self.claims.get(&Claim::IngressPort(protocol, port))? {
            ObjectKey::Service(id) => self.service(id),
            _ => None,
        }
    }

    /// What tasks of a service at a spec version run. All tasks of that version share it.
    pub fn task_spec(&self, service: &ServiceId, spec_version: u64) -> Option<&Arc<TaskSpec>> {
        let (spec, _) = self.specs.get(&(service.clone(), spec_version))?;
        Some(spec)
    }

    /// All objects. Cluster first, then by kind and id, tasks last.
    pub fn snapshot(&self) -> Vec<Object> {
        let own = |cluster: &Arc<Cluster>| Object::Cluster(cluster.as_ref().clone());
        self.cluster
            .iter()
            .map(own)
            .chain(self.nodes().map(|o| Object::Node(o.as_ref().clone())))
            .chain(self.networks().map(|o| Object::Network(o.as_ref().clone())))
            .chain(self.secrets().map(|o| Object::Secret(o.as_ref().clone())))
            .chain(self.configs().map(|o| Object::Config(o.as_ref().clone())))
            .chain(self.services().map(|o| Object::Service(o.as_ref().clone())))
            .chain(self.tasks().map(|o| Object::Task(o.as_ref().clone())))
            .collect()
    }

    /// Whether two states hold the same, indexes included.
    pub fn is_same(&self, other: &Self) -> bool {
        self.index == other.index
            && self.snapshot() == other.snapshot()
            && self.claims.iter().eq(other.claims.iter())
            && self.tasks_by_service.tables() == other.tasks_by_service.tables()
            && self.tasks_by_node.iter().eq(other.tasks_by_node.iter())
            && self.waiting.tables() == other.waiting.tables()
            && self.dependents.iter().eq(other.dependents.iter())
            && self.specs.iter().eq(other.specs.iter())
            && self.wishes.is_same(&other.wishes)
    }

    fn indexed(&self, task: &TaskId) -> &Arc<Task> {
        self.tasks
            .get(task)
            .expect("an index lists only tasks that exist")
    }
}
