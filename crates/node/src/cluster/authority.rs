//! The cluster's certificate authority as users see it and replace it.

use std::{sync::Arc, time::SystemTime};

use shoal_api::{
    object::{Cluster, Node, RootRotation},
    spec::ClusterSpec,
};
use shoal_ca::{CaError, RootCa, RootCertificate};
use shoal_docker_api::backend::{ApiError, ApiResult, SigningCa, TlsInfo};

use crate::network::chain;

/// Whom the cluster trusts, and who issues certificates now.
pub(super) fn cluster_tls(cluster: &Cluster) -> TlsInfo {
    let rotation = cluster.root_rotation.as_ref();
    let issuer = rotation.map_or(&cluster.root_ca_cert, |rotation| &rotation.ca_cert);
    tls_info(cluster, issuer)
}

/// Whom a node trusts, and who has issued its certificate; the root in force until it has said otherwise.
pub(super) fn node_tls(cluster: &Cluster, node: &Arc<Node>) -> TlsInfo {
    let rotation = cluster.root_rotation.as_ref();
    let is_issuer = |pem: &&String| {
        RootCertificate::from_pem(pem)
            .is_ok_and(|root| root.digest() == node.description.certificate_issuer)
    };
    let incoming = rotation.map(|rotation| &rotation.ca_cert).filter(is_issuer);
    tls_info(cluster, incoming.unwrap_or(&cluster.root_ca_cert))
}

fn tls_info(cluster: &Cluster, issuer: &str) -> TlsInfo {
    let issuer = RootCertificate::from_pem(issuer);
    let (issuer_subject, issuer_public_key) = issuer
        .map(|issuer| issuer.subject_and_public_key())
        .unwrap_or_default();
    TlsInfo {
        trust_root: cluster.root_ca_cert.clone(),
        issuer_subject,
        issuer_public_key,
    }
}

/// The root to come, if these settings ask for one.
pub(super) fn rotation(
    cluster: &Cluster,
    spec: &ClusterSpec,
    signing_ca: Option<&SigningCa>,
) -> ApiResult<Option<RootRotation>> {
    let is_in_force = |ca: &SigningCa| {
        let roots = (
            RootCertificate::from_pem(&ca.cert),
            RootCertificate::from_pem(&cluster.root_ca_cert),
        );
        matches!(roots, (Ok(wanted), Ok(current)) if wanted == current)
    };
    let wanted = signing_ca.filter(|ca| !is_in_force(ca));
    if wanted.is_none() && spec.force_rotate == cluster.spec.force_rotate {
        return Ok(None);
    }
    let invalid = |error: CaError| {
        let text = chain(&error);
        ApiError::invalid(format!("rpc error: code = InvalidArgument desc = {text}"))
    };
    let now = SystemTime::now();
    let new = match wanted {
        Some(ca) => RootCa::from_user(&ca.cert, &ca.key, now),
        None => RootCa::create(now),
    };
    let new = new.map_err(invalid)?;
    let old = RootCa::from_pem(&cluster.root_ca_cert, &cluster.root_ca_key).map_err(invalid)?;
    Ok(Some(RootRotation {
        ca_cert: new.certificate().pem().to_owned(),
        ca_key: new.key_pem(),
        cross_signed: old.cross_sign(&new, now).map_err(invalid)?,
    }))
}
