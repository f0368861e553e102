//! Users: each wants one thing after the other, of any manager, and remembers what it was told.

use shoal_api::{
    NetworkId, SecretId, ServiceId,
    object::{Object, ObjectKey, Service},
    spec::{
        Annotations, Availability, FailureAction, GenericResource, NetworkAttachmentSpec,
        NetworkSpec, NetworkTarget, NodeRole, PortConfig, PublishMode, Resources, SecretReference,
        SecretSpec, ServiceMode, ServiceSpec, UpdateConfig, UpdateOrder,
    },
};
use shoal_manager::{Intent, Spec, core::state::State};

use crate::{
    env::{Env, Event, HostId, MS, SECOND},
    rng::Rng,
};

/// Where users are: no host, so that no partition cuts them off.
pub const USERS: HostId = usize::MAX;
/// How long a user waits for an answer.
pub const PATIENCE: u64 = 15 * SECOND;

/// What a user wants.
#[derive(Debug, Clone)]
pub enum Want {
    /// To see everything.
    Read(()),
    /// To change something.
    Write(Box<Intent>),
}

/// Number of the requests that nobody waits for.
pub const NOBODY: u64 = u64::MAX;

/// A request on its way.
#[derive(Debug, Clone)]
pub struct Op {
    /// Its number.
    pub id: u64,
    /// What is wanted.
    pub want: Want,
    /// Whether a follower has handed it on.
    pub is_forwarded: bool,
    /// Of a write that may have come to pass: up to which index everything was known to be done before it was made.
    pub since: Option<u64>,
}

/// What becomes of a request.
#[derive(Debug, Clone)]
pub enum Reply {
    /// Done, by the entry at this index.
    Written {
        /// The index.
        index: u64,
        /// The object.
        key: ObjectKey,
    },
    /// Everything, as it is.
    Read(State),
    /// Not done.
    Refused {
        /// Why.
        text: String,
        /// Up to which index that was known.
        index: u64,
    },
    /// Not done: try elsewhere.
    NoLeader,
    /// Nobody knows.
    Unknown,
}

impl Op {
    /// Its name, if it must be granted once at most.
    pub fn wish(&self) -> Option<u128> {
        (self.id != NOBODY).then(|| self.id.into())
    }

    /// The answer to a write that came to pass before.
    pub fn granted(&self, state: &State) -> Option<Reply> {
        let (index, key) = state.granted(self.wish()?)?;
        let key = key.clone();
        Some(Reply::Written { index, key })
    }

    /// Sends the answer.
    pub fn reply(self, reply: Reply, from: HostId, env: &mut Env) {
        let op = self.id;
        env.send(from, USERS, Event::Reply { op, reply });
    }
}

/// A user.
#[derive(Debug, Default)]
pub struct User {
    /// What it last saw.
    pub seen: State,
    /// Its request, and up to which index everything was known to be done before it was made.
    pub pending: Option<(Op, u64)>,
    /// Whom it asked.
    pub asked: HostId,
    /// How many things it has made.
    pub made: u64,
    /// Whether it wants to see what it has just done.
    pub is_curious: bool,
    /// The service that it has scaled last.
    scaled: Option<ServiceId>,
    /// See [`crate::trouble::Faults::taste`].
    pub taste: [u64; 3],
}

impl User {
    /// Thinks of something to want.
    pub fn think(&mut self, number: usize, env: &mut Env) -> Want {
        let mut rng = env.rng.fork();
        if std::mem::take(&mut self.is_curious) {
            return Want::Read(());
        }
        let has_roles = env.faults.roles;
        self.taste = env.faults.taste;
        let write = |intent| Want::Write(Box::new(intent));
        let scaled = self.scaled.take().filter(|_| rng.chance(env.faults.fickle));
        if let Some(service) = scaled.and_then(|id| self.seen.service(&id).cloned()) {
            let mut spec = service.spec.as_ref().clone();
            self.scale(&service.id, &mut spec, &mut rng);
            return write(update(&service, spec));
        }
        for _ in 0..8 {
            let services: Vec<_> = self.seen.services().cloned().collect();
            let want = match rng.index(100) {
                0..20 => return Want::Read(()),
                20..35 if services.len() < 6 => {
                    self.made += 1;
                    let spec = self.service(&format!("s{number}x{}", self.made), &mut rng);
                    Intent::Create(Spec::Service(Box::new(spec)))
                }
                35..65 if !services.is_empty() => {
                    // What has just changed is what somebody may not know of.
                    let newest = services.iter().max_by_key(|service| service.meta.version);
                    let is_new = env.faults.eager && rng.chance(500_000);
                    let newest = newest.filter(|_| is_new);
                    let service = newest.unwrap_or_else(|| rng.pick(&services));
                    let mut spec = service.spec.as_ref().clone();
                    self.change(&service.id, &mut spec, &mut rng);
                    update(service, spec)
                }
                65..70 if !services.is_empty() => {
                    let service = rng.pick(&services);
                    Intent::Rollback {
                        key: ObjectKey::Service(service.id.clone()),
                        version: service.meta.version,
                        to: None,
                    }
                }
                70..76 if !services.is_empty() => Intent::Remove {
                    key: ObjectKey::Service(rng.pick(&services).id.clone()),
                    force: false,
                },
                76..82 if self.seen.networks().count() < 4 => {
                    self.made += 1;
                    Intent::Create(Spec::Network(network(&format!("n{number}x{}", self.made))))
                }
                82..84 => {
                    let networks: Vec<_> =
                        self.seen.networks().filter(|n| !n.spec.ingress).collect();
                    if networks.is_empty() {
                        continue;
                    }
                    Intent::Remove {
                        key: ObjectKey::Network(rng.pick(&networks).id.clone()),
                        force: false,
                    }
                }
                84..88 if self.seen.secrets().count() < 5 => {
                    self.made += 1;
                    let name = format!("k{number}x{}", self.made);
                    Intent::Create(Spec::Secret(SecretSpec {
                        annotations: named(&name),
                        data: name.into_bytes(),
                        templating: None,
                    }))
                }
                88..90 => {
                    let secrets: Vec<_> = self.seen.secrets().collect();
                    if secrets.is_empty() {
                        continue;
                    }
                    Intent::Remove {
                        key: ObjectKey::Secret(rng.pick(&secrets).id.clone()),
                        force: false,
                    }
                }
                90..100 => {
                    let nodes: Vec<_> = self.seen.nodes().cloned().collect();
                    if nodes.is_empty() {
                        continue;
                    }
                    let node = rng.pick(&nodes);
                    let mut spec = node.spec.clone();
                    if has_roles && rng.chance(400_000) {
                        spec.role = *rng.pick(&[NodeRole::Manager, NodeRole::Worker]);
                    } else {
                        spec.availability = *rng.pick(&[
                            Availability::Active,
                            Availability::Active,
                            Availability::Pause,
                            Availability::Drain,
                        ]);
                    }
                    Intent::Update {
                        key: ObjectKey::Node(node.id.clone()),
                        version: node.meta.version,
                        spec: Spec::Node(spec),
                    }
                }
                _ => continue,
            };
            return write(want);
        }
        Want::Read(())
    }

    fn service(&self, name: &str, rng: &mut Rng) -> ServiceSpec {
        let [.., memory] = self.taste;
        let mut spec = ServiceSpec {
            annotations: named(name),
            mode: if rng.chance(200_000) {
                ServiceMode::Global
            } else {
                let replicas = rng.range(0, 5);
                ServiceMode::Replicated { replicas }
            },
            ..ServiceSpec::default()
        };
        "demo:1".clone_into(&mut spec.task.container.image);
        spec.task.restart.delay = std::time::Duration::from_millis(*rng.pick(&[0, 500, 2_000]));
        let order = if rng.chance(300_000) && spec.mode != ServiceMode::Global {
            UpdateOrder::StartFirst
        } else {
            UpdateOrder::StopFirst
        };
        let config = UpdateConfig {
            parallelism: rng.range(0, 3),
            monitor: std::time::Duration::from_secs(1),
            failure_action: *rng.pick(&[
                FailureAction::Continue,
                FailureAction::Continue,
                FailureAction::Rollback,
            ]),
            order,
            ..UpdateConfig::default()
        };
        spec.update = Some(config);
        if rng.chance(memory) {
            reserve(&mut spec.task.resources.reservations, rng);
        }
        spec.rollback = Some(UpdateConfig {
            failure_action: FailureAction::Continue,
            ..config
        });
        self.attach(&mut spec, rng);
        spec
    }

    fn attach(&self, spec: &mut ServiceSpec, rng: &mut Rng) {
        let [ports, things, _] = self.taste;
        let networks: Vec<NetworkId> = self
            .seen
            .networks()
            .filter(|network| !network.spec.ingress)
            .map(|network| network.id.clone())
            .collect();
        spec.task.networks.clear();
        for network in networks {
            if rng.chance(things) {
                spec.task.networks.push(NetworkAttachmentSpec {
                    target: NetworkTarget::Cluster(network),
                    aliases: Vec::new(),
                    addresses: Vec::new(),
                    driver_options: Default::default(),
                });
            }
        }
        let secrets: Vec<(SecretId, String)> = self
            .seen
            .secrets()
            .map(|secret| (secret.id.clone(), secret.spec.annotations.name.clone()))
            .collect();
        spec.task.container.secrets.clear();
        for (id, name) in secrets {
            if rng.chance(things) {
                spec.task.container.secrets.push(SecretReference {
                    id,
                    target: shoal_api::spec::FileTarget {
                        name: name.clone(),
                        uid: "0".to_owned(),
                        gid: "0".to_owned(),
                        mode: 0o444,
                    },
                    name,
                });
            }
        }
        spec.endpoint.ports.clear();
        if rng.chance(ports) {
            let is_global = spec.mode == ServiceMode::Global;
            spec.endpoint.ports.push(PortConfig {
                target: 80,
                published: *rng.pick(&[0, 8080, 8081, 30_000]),
                mode: if is_global {
                    PublishMode::Host
                } else {
                    PublishMode::Ingress
                },
                ..PortConfig::default()
            });
        }
    }

    fn scale(&mut self, id: &ServiceId, spec: &mut ServiceSpec, rng: &mut Rng) {
        if let ServiceMode::Replicated { replicas } = &mut spec.mode {
            *replicas = rng.range(0, 7);
            self.scaled = Some(id.clone());
        }
    }

    fn change(&mut self, id: &ServiceId, spec: &mut ServiceSpec, rng: &mut Rng) {
        self.made += 1;
        let number = self.made;
        match rng.index(8) {
            0..3 => self.scale(id, spec, rng),
            3 => {
                let kind = *rng.pick(&["demo", "checked", "bad", "exits"]);
                spec.task.container.image = format!("{kind}:{number}");
            }
            4 => self.attach(spec, rng),
            5 => spec.task.force_update += 1,
            6 => {
                spec.task.resources.reservations = Resources::default();
                reserve(&mut spec.task.resources.reservations, rng);
            }
            _ => {
                spec.task.placement.constraints = rng
                    .pick(&[vec![], vec!["node.role == worker".to_owned()]])
                    .clone();
            }
        }
    }
}

fn update(service: &Service, spec: ServiceSpec) -> Intent {
    Intent::Update {
        key: ObjectKey::Service(service.id.clone()),
        version: service.meta.version,
        spec: Spec::Service(Box::new(spec)),
    }
}

/// Wants much of something that nodes have little of.
fn reserve(wanted: &mut Resources, rng: &mut Rng) {
    match rng.index(4) {
        0 => drop(
            wanted
                .generic
                .insert("card".to_owned(), GenericResource::Discrete(1)),
        ),
        1 => drop(
            wanted
                .generic
                .insert("seat".to_owned(), GenericResource::Discrete(2)),
        ),
        2 => wanted.memory_bytes = 400_000_000,
        _ => wanted.memory_bytes = *rng.pick(&[0, 50_000_000]),
    }
}

/// The wish that makes a service one that can run: after trouble everything must be as asked for, so that it can be asked
/// whether it is. `None` if it is one already. Where networks are narrow services become small, so that there is room for
/// all of them.
pub fn mend(object: &Object, made: u64, is_narrow: bool) -> Option<Intent> {
    match object {
        Object::Service(service) => {
            let mut spec = service.spec.as_ref().clone();
            if !spec.task.container.image.starts_with("demo:") {
                spec.task.container.image = format!("demo:mended{made}");
            }
            spec.task.resources.reservations = Resources::default();
            spec.task.placement.constraints.clear();
            spec.endpoint
                .ports
                .retain(|port| port.mode == PublishMode::Ingress);
            match &mut spec.mode {
                ServiceMode::Replicated { replicas } if is_narrow => *replicas = (*replicas).min(2),
                ServiceMode::Global if is_narrow => spec.task.networks.clear(),
                _ => {}
            }
            (spec != *service.spec).then(|| update(service, spec))
        }
        Object::Node(node) => {
            let mut spec = node.spec.clone();
            spec.availability = Availability::Active;
            (spec != node.spec).then(|| Intent::Update {
                key: ObjectKey::Node(node.id.clone()),
                version: node.meta.version,
                spec: Spec::Node(spec),
            })
        }
        _ => None,
    }
}

/// A network of the default kind.
pub fn network(name: &str) -> NetworkSpec {
    let mut spec = NetworkSpec {
        annotations: named(name),
        ..NetworkSpec::default()
    };
    "overlay".clone_into(&mut spec.driver.name);
    spec
}

/// A name without labels.
pub fn named(name: &str) -> Annotations {
    Annotations {
        name: name.to_owned(),
        ..Annotations::default()
    }
}

/// How long a user thinks.
pub fn thought(env: &mut Env) -> u64 {
    let most = env.faults.thought;
    env.rng.range(10 * MS, most)
}
