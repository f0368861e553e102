//! The beginning of a cluster, and its join tokens.

use std::{net::IpAddr, time::SystemTime};

use shoal_api::{
    ClusterId, NodeId, ObjectId, RandomIds, Timestamp,
    object::NodeDescription,
    spec::{Availability, ClusterSpec},
};
use shoal_ca::{
    JoinToken, NodeIdentity, NodeKey, Role, RootCa, RootCertificate, Subject, UnlockKey,
};

use super::ManagerError;
use crate::{
    core::{
        control::{Bootstrap, bootstrap},
        reconcile::Ctx,
        state::State,
    },
    io::store::encode_state,
};

/// Index of the log at which a cluster begins.
const GENESIS: u64 = 1;

/// A cluster to be.
#[derive(Debug, Clone)]
pub struct NewCluster {
    /// Its settings.
    pub spec: ClusterSpec,
    /// Whether its first node takes tasks.
    pub availability: Availability,
    /// What that node says of itself.
    pub description: NodeDescription,
    /// Address of that node.
    pub address: IpAddr,
    /// `host:port` at which other nodes will reach its manager.
    pub advertise: String,
}

/// A cluster that was made and is not yet anywhere but here.
#[derive(Debug)]
pub struct Founding {
    /// The identity of its first node, to be kept.
    pub identity: NodeIdentity,
    /// What [`super::Begin::Found`] begins with.
    pub state: Vec<u8>,
    /// The key under which its managers seal their disks, if they do.
    pub unlock_key: Option<UnlockKey>,
}

impl NewCluster {
    /// Makes root, identities, tokens and the first state.
    pub fn found(self) -> Result<Founding, ManagerError> {
        let now = SystemTime::now();
        let ca = RootCa::create(now)?;
        let key = NodeKey::generate()?;
        let subject = Subject {
            node_id: NodeId::random(),
            role: Role::Manager,
            cluster_id: ClusterId::random(),
        };
        let certificate = ca.issue(&key.request_pem()?, &subject, self.spec.cert_expiry, now)?;
        let identity = NodeIdentity::new(ca.certificate().clone(), certificate, key.pem())?;
        let mut cx = Ctx {
            now: Timestamp::now(),
            ids: &mut RandomIds,
        };
        let batch = bootstrap(
            &mut cx,
            Bootstrap {
                cluster: subject.cluster_id,
                spec: self.spec,
                root_ca_cert: ca.certificate().pem().to_owned(),
                root_ca_key: ca.key_pem(),
                node: subject.node_id,
                availability: self.availability,
                description: self.description,
                addr: self.address,
                manager_addr: self.advertise,
            },
        )?;
        let mut state = State::default();
        state
            .apply(GENESIS, &batch)
            .map_err(crate::core::validate::Refusal::from)?;
        Ok(Founding {
            identity,
            unlock_key: super::locking::unlock_key(&state),
            state: encode_state(&state),
        })
    }
}

/// The join tokens (worker's, manager's), as handed to people.
pub(super) fn join_tokens(state: &State) -> Option<(String, String)> {
    let cluster = state.cluster()?;
    let root = RootCertificate::from_pem(&cluster.root_ca_cert).ok()?;
    let token = |secret: &str| {
        JoinToken::with_secret(root.der(), secret)
            .ok()
            .map(|token| token.reveal())
    };
    Some((
        token(&cluster.worker_token)?,
        token(&cluster.manager_token)?,
    ))
}
