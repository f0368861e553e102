//! The cluster, its nodes, secrets and configs.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use ipnet::IpNet;
use serde_json::{Map, Value, json};
use shoal_api::{
    object::{Cluster, Config, Secret},
    spec::{
        Annotations, Availability, ClusterSpec, ConfigSpec, Driver, NodeRole, NodeSpec, SecretSpec,
    },
};

use super::{
    service_read::{read_annotations, read_driver},
    service_show::{object, resources},
    time::nanos,
};
use crate::{
    backend::{ApiError, ApiResult, NodeView, SigningCa, SwarmInit, SwarmJoin, SwarmView, TlsInfo},
    fields::Fields,
};

/// Names and values of availability, the default first.
const AVAILABILITIES: [(&str, Availability); 3] = [
    ("active", Availability::Active),
    ("pause", Availability::Pause),
    ("drain", Availability::Drain),
];

/// Reads the body of `POST /swarm/init`.
pub(crate) fn read_init(body: &[u8]) -> ApiResult<SwarmInit> {
    let mut f = Fields::body(body)?;
    let (mut spec, signing_ca) = read_spec(f.object_or_empty("Spec")?)?;
    if signing_ca.is_some() {
        return Err(ApiError::invalid(
            "invalid Spec.CAConfig.SigningCACert: a new swarm makes its own root; bring your own with `swarm ca --rotate \
             --ca-cert`",
        ));
    }
    spec.annotations.name = "default".to_owned();
    let pools: Vec<IpNet> = f.get("DefaultAddrPool")?;
    if !pools.is_empty() {
        spec.default_address_pools = pools;
    }
    if let Some(size) = f.take::<u8>("SubnetSize")?.filter(|size| *size != 0) {
        spec.subnet_size = size;
    }
    if let Some(port) = f.take::<u16>("DataPathPort")?.filter(|port| *port != 0) {
        if !(1_024..=49_151).contains(&port) {
            return Err(ApiError::invalid(format!(
                "invalid data path port number (must be between 1024 and 49151): {port}"
            )));
        }
        spec.data_path_port = port;
    }
    if f.get::<bool>("AutoLockManagers")? {
        spec.autolock = true;
    }
    let init = SwarmInit {
        listen_addr: f.get("ListenAddr")?,
        advertise_addr: f.get("AdvertiseAddr")?,
        data_path_addr: f.get("DataPathAddr")?,
        force_new_cluster: f.get("ForceNewCluster")?,
        availability: f.word("Availability", &AVAILABILITIES)?,
        spec,
    };
    f.finish()?;
    Ok(init)
}

/// Reads the body of `POST /swarm/join`.
pub(crate) fn read_join(body: &[u8]) -> ApiResult<SwarmJoin> {
    let mut f = Fields::body(body)?;
    let join = SwarmJoin {
        listen_addr: f.get("ListenAddr")?,
        advertise_addr: f.get("AdvertiseAddr")?,
        data_path_addr: f.get("DataPathAddr")?,
        remote_addrs: f.get("RemoteAddrs")?,
        token: f.get("JoinToken")?,
        availability: f.word("Availability", &AVAILABILITIES)?,
    };
    f.finish()?;
    if join.remote_addrs.is_empty() {
        return Err(ApiError::invalid(
            "at least 1 RemoteAddr is required to join",
        ));
    }
    Ok(join)
}

/// Reads the body of `POST /swarm/update`; what only `init` can say is kept from `old`.
pub(crate) fn read_update(
    body: &[u8],
    old: &ClusterSpec,
) -> ApiResult<(ClusterSpec, Option<SigningCa>)> {
    let (mut new, signing_ca) = read_spec(Fields::body(body)?)?;
    // As docker: clients that change something else do not repeat it.
    if new.annotations.name.is_empty() {
        new.annotations.name.clone_from(&old.annotations.name);
    }
    let spec = ClusterSpec {
        default_address_pools: old.default_address_pools.clone(),
        subnet_size: old.subnet_size,
        data_path_port: old.data_path_port,
        ..new
    };
    Ok((spec, signing_ca))
}

/// How managers agree where their daemons say nothing else, as `GET /swarm` tells it: entries that are kept behind a
/// snapshot, and ticks of 50 ms.
const TIMING: [(&str, u64); 3] = [
    ("LogEntriesForSlowFollowers", 500),
    ("ElectionTick", 8),
    ("HeartbeatTick", 1),
];

fn read_spec(mut f: Fields) -> ApiResult<(ClusterSpec, Option<SigningCa>)> {
    let default = ClusterSpec::default();
    let annotations = read_annotations(&mut f)?;
    let mut orchestration = f.object_or_empty("Orchestration")?;
    let mut raft = f.object_or_empty("Raft")?;
    let mut dispatcher = f.object_or_empty("Dispatcher")?;
    let mut ca = f.object_or_empty("CAConfig")?;
    let mut encryption = f.object_or_empty("EncryptionConfig")?;
    let some = |duration: Option<Duration>| duration.filter(|d| !d.is_zero());
    let spec = ClusterSpec {
        annotations,
        task_history_limit: orchestration
            .take("TaskHistoryRetentionLimit")?
            .unwrap_or(default.task_history_limit),
        snapshot_interval: raft
            .take("SnapshotInterval")?
            .filter(|n| *n != 0)
            .unwrap_or(default.snapshot_interval),
        heartbeat_period: some(dispatcher.nanos("HeartbeatPeriod")?)
            .unwrap_or(default.heartbeat_period),
        cert_expiry: some(ca.nanos("NodeCertExpiry")?).unwrap_or(default.cert_expiry),
        autolock: encryption.get("AutoLockManagers")?,
        force_rotate: ca.get("ForceRotate")?,
        ..default
    };
    if spec.cert_expiry < Duration::from_secs(3_600) {
        return Err(ApiError::invalid(
            "minimum certificate expiry time is 1h0m0s",
        ));
    }
    // Every client sends these back. They are each daemon's to say, by its `--swarm-raft-…-tick`.
    raft.ignore(&TIMING.map(|(key, _)| key));
    let external: Vec<Value> = ca.get("ExternalCAs")?;
    if !external.is_empty() {
        return Err(ApiError::invalid(
            "invalid Spec.CAConfig.ExternalCAs: managers sign certificates themselves; bring your own root with `swarm ca \
             --rotate --ca-cert --ca-key`",
        ));
    }
    let (cert, key): (String, String) = (ca.get("SigningCACert")?, ca.get("SigningCAKey")?);
    let signing_ca = match (cert.is_empty(), key.is_empty()) {
        (true, true) => None,
        (false, false) => Some(SigningCa { cert, key }),
        // Docker would hand this to an external authority, which there is none of here.
        (false, true) => {
            return Err(ApiError::invalid(
                "rpc error: code = InvalidArgument desc = a signing CA certificate was given without its key: give \
                 --ca-key as well",
            ));
        }
        (true, false) => {
            return Err(ApiError::invalid(
                "rpc error: code = InvalidArgument desc = if a signing CA key is provided, a signing CA cert must also \
                 be provided",
            ));
        }
    };
    for rest in [orchestration, raft, dispatcher, ca, encryption, f] {
        rest.finish()?;
    }
    Ok((spec, signing_ca))
}

/// The answer of `GET /swarm`.
pub(crate) fn swarm(view: &SwarmView) -> Value {
    let mut answer = cluster_info(&view.cluster, &view.tls);
    answer["JoinTokens"] = json!({"Worker": view.worker_token, "Manager": view.manager_token});
    answer
}

/// The cluster without its tokens, as `/info` shows it.
///
/// Clients compare what it says of certificates with what each node says, to tell which nodes need a new one.
pub(crate) fn cluster_info(cluster: &Cluster, tls: &TlsInfo) -> Value {
    let spec = &cluster.spec;
    let mut answer = object(cluster.id.as_str(), &cluster.meta);
    answer["Spec"] = json!({
        "Name": spec.annotations.name,
        "Labels": spec.annotations.labels,
        "Orchestration": {"TaskHistoryRetentionLimit": spec.task_history_limit},
        "Raft": {
            "SnapshotInterval": spec.snapshot_interval,
            "KeepOldSnapshots": 0,
            TIMING[0].0: TIMING[0].1,
            TIMING[1].0: TIMING[1].1,
            TIMING[2].0: TIMING[2].1,
        },
        "Dispatcher": {"HeartbeatPeriod": nanos(spec.heartbeat_period)},
        "CAConfig": {
            "NodeCertExpiry": nanos(spec.cert_expiry),
            "ForceRotate": spec.force_rotate,
        },
        "TaskDefaults": {},
        "EncryptionConfig": {"AutoLockManagers": spec.autolock},
    });
    answer["TLSInfo"] = tls_info(tls);
    answer["RootRotationInProgress"] = json!(cluster.root_rotation.is_some());
    answer["DefaultAddrPool"] = json!(spec.default_address_pools);
    answer["SubnetSize"] = json!(spec.subnet_size);
    answer["DataPathPort"] = json!(spec.data_path_port);
    answer
}

fn tls_info(tls: &TlsInfo) -> Value {
    json!({
        "TrustRoot": tls.trust_root,
        "CertIssuerSubject": BASE64.encode(&tls.issuer_subject),
        "CertIssuerPublicKey": BASE64.encode(&tls.issuer_public_key),
    })
}

/// Docker's word for a role.
pub(crate) fn role(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Worker => "worker",
        NodeRole::Manager => "manager",
    }
}

/// Docker's word for an availability.
pub(crate) fn availability(availability: Availability) -> &'static str {
    match availability {
        Availability::Active => "active",
        Availability::Pause => "pause",
        Availability::Drain => "drain",
    }
}

/// A node.
pub(crate) fn node(view: &NodeView) -> Value {
    let node = &view.node;
    let mut answer = object(node.id.as_str(), &node.meta);
    let spec = &node.spec;
    answer["Spec"] = json!({
        "Labels": spec.annotations.labels,
        "Role": role(spec.role),
        "Availability": availability(spec.availability),
    });
    if !spec.annotations.name.is_empty() {
        answer["Spec"]["Name"] = json!(spec.annotations.name);
    }
    let description = &node.description;
    let plugins: Vec<Value> = description
        .plugins
        .iter()
        .filter_map(|plugin| plugin.split_once('/'))
        .map(|(kind, name)| json!({"Type": kind, "Name": name}))
        .collect();
    // Docker shows the kernel's names of processors here, where images have Go's.
    let architecture = match description.platform.architecture.as_str() {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        other => other,
    };
    answer["Description"] = json!({
        "Hostname": description.hostname,
        "Platform": {"Architecture": architecture, "OS": description.platform.os},
        "Resources": resources(&description.resources),
        "Engine": {
            "EngineVersion": description.engine_version,
            "Labels": description.engine_labels,
            "Plugins": plugins,
        },
        "TLSInfo": tls_info(&view.tls),
    });
    let mut status = Map::new();
    status.insert("State".to_owned(), json!(node.status.state.as_str()));
    if !node.status.message.is_empty() {
        status.insert("Message".to_owned(), json!(node.status.message));
    }
    if let Some(address) = node.status.addr {
        status.insert("Addr".to_owned(), json!(address));
    }
    answer["Status"] = Value::Object(status);
    if let Some(manager) = &view.manager {
        let mut status = json!({
            "Reachability": match manager.reachable {
                None => "unknown",
                Some(true) => "reachable",
                Some(false) => "unreachable",
            },
            "Addr": manager.addr,
        });
        if manager.leader {
            status["Leader"] = json!(true);
        }
        answer["ManagerStatus"] = status;
    }
    answer
}

/// Reads the body of `POST /nodes/{id}/update`.
pub(crate) fn read_node(body: &[u8]) -> ApiResult<NodeSpec> {
    let mut f = Fields::body(body)?;
    let annotations = read_annotations(&mut f)?;
    let spec = NodeSpec {
        annotations,
        role: f.word(
            "Role",
            &[("worker", NodeRole::Worker), ("manager", NodeRole::Manager)],
        )?,
        availability: f.word("Availability", &AVAILABILITIES)?,
    };
    f.finish()?;
    Ok(spec)
}

/// A secret; its data never leaves.
pub(crate) fn secret(secret: &Secret) -> Value {
    let mut answer = object(secret.id.as_str(), &secret.meta);
    answer["Spec"] = annotations(&secret.spec.annotations);
    show_templating(&mut answer, secret.spec.templating.as_ref());
    answer
}

/// A config with its data.
pub(crate) fn config(config: &Config) -> Value {
    let mut answer = object(config.id.as_str(), &config.meta);
    answer["Spec"] = annotations(&config.spec.annotations);
    answer["Spec"]["Data"] = json!(BASE64.encode(&config.spec.data));
    show_templating(&mut answer, config.spec.templating.as_ref());
    answer
}

fn show_templating(answer: &mut Value, driver: Option<&Driver>) {
    if let Some(driver) = driver {
        answer["Spec"]["Templating"] = json!({"Name": driver.name, "Options": driver.options});
    }
}

fn annotations(annotations: &Annotations) -> Value {
    json!({"Name": annotations.name, "Labels": annotations.labels})
}

/// Reads the body of a secret's create or update.
pub(crate) fn read_secret(body: &[u8]) -> ApiResult<SecretSpec> {
    let mut f = Fields::body(body)?;
    let spec = SecretSpec {
        annotations: read_annotations(&mut f)?,
        data: read_data(&mut f)?,
        templating: f.object("Templating")?.map(read_driver).transpose()?,
    };
    f.finish()?;
    Ok(spec)
}

/// Reads the body of a config's create or update.
pub(crate) fn read_config(body: &[u8]) -> ApiResult<ConfigSpec> {
    let mut f = Fields::body(body)?;
    let spec = ConfigSpec {
        annotations: read_annotations(&mut f)?,
        data: read_data(&mut f)?,
        templating: f.object("Templating")?.map(read_driver).transpose()?,
    };
    f.finish()?;
    Ok(spec)
}

fn read_data(f: &mut Fields) -> ApiResult<Vec<u8>> {
    let text: String = f.get("Data")?;
    BASE64
        .decode(text)
        .map_err(|error| f.invalid("Data", format!("not base 64: {error}")))
}
