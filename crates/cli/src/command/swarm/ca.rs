//! `swarm ca`: the root certificate, and another one in its place.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use crate::{
    client::{Client, Target},
    flags::quantity,
    json::{is, items, number, text},
    output,
    progress::{Lines, pulse::Pulse},
};

/// Display and rotate the root CA
#[derive(Args)]
#[command(
    after_help = "Examples:\n  shoal swarm ca > root.crt\n  shoal swarm ca --rotate\n  shoal swarm ca --rotate --ca-cert root.crt --ca-key root.key"
)]
pub(crate) struct Ca {
    /// Rotate the swarm CA - if no certificate or key are provided, new ones will be generated
    #[arg(long)]
    rotate: bool,
    /// Path to the PEM-formatted root CA certificate to use for the new cluster
    #[arg(long, value_name = "pem-file", requires = "rotate")]
    ca_cert: Option<PathBuf>,
    /// Path to the PEM-formatted root CA key to use for the new cluster
    #[arg(long, value_name = "pem-file", requires = "rotate")]
    ca_key: Option<PathBuf>,
    /// Validity period for node certificates (ns|us|ms|s|m|h)
    #[arg(long, value_name = "duration", value_parser = quantity::duration, requires = "rotate")]
    cert_expiry: Option<i64>,
    /// Exit immediately instead of waiting for the root rotation to converge
    #[arg(short, long, requires = "rotate")]
    detach: bool,
    /// Suppress progress output
    #[arg(short, long)]
    quiet: bool,
}

impl Ca {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let mut swarm = client.get(Target::new("/swarm", &[])).await?;
        if !self.rotate {
            output::write(text(&swarm, "/TLSInfo/TrustRoot").as_bytes());
            return Ok(());
        }
        let mut spec = swarm["Spec"].take();
        if self.ca_key.is_some() && self.ca_cert.is_none() {
            bail!("--ca-key needs --ca-cert, the certificate of that key");
        }
        for (field, file) in [
            ("SigningCACert", &self.ca_cert),
            ("SigningCAKey", &self.ca_key),
        ] {
            if let Some(path) = file {
                let pem = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                spec["CAConfig"][field] = json!(pem);
            }
        }
        if let Some(expiry) = self.cert_expiry {
            spec["CAConfig"]["NodeCertExpiry"] = json!(expiry);
        }
        spec["CAConfig"]["ForceRotate"] = json!(number(&spec, "/CAConfig/ForceRotate") + 1);
        let target =
            Target::new("/swarm/update", &[]).arg("version", number(&swarm, "/Version/Index"));
        // Opened first, so that nothing is missed.
        let pulse = Pulse::of(Target::new("/shoal/cluster/changes", &[]), client).await;
        client.post(target, spec).await?;
        if self.detach {
            return Ok(());
        }
        converge(client, pulse, (!self.quiet).then(Lines::on_stderr)).await?;
        let swarm = client.get(Target::new("/swarm", &[])).await?;
        output::write(text(&swarm, "/TLSInfo/TrustRoot").as_bytes());
        Ok(())
    }
}

/// Waits until all nodes have certificates from the new root and trust it alone.
async fn converge(client: &Client, mut pulse: Pulse, mut lines: Option<Lines>) -> Result<()> {
    loop {
        pulse.next(None).await;
        let swarm = client.get(Target::new("/swarm", &[])).await?;
        let nodes = client.get(Target::new("/nodes", &[])).await?;
        let nodes = items(&nodes, "");
        let count = |fields: &[&str]| {
            let agrees = |node: &&Value| {
                let same = |field: &&str| {
                    let of_node = format!("/Description/TLSInfo/{field}");
                    text(node, &of_node) == text(&swarm, &format!("/TLSInfo/{field}"))
                };
                fields.iter().all(same)
            };
            nodes.iter().filter(agrees).count()
        };
        let certificates = count(&["CertIssuerSubject", "CertIssuerPublicKey"]);
        let is_done = !is(&swarm, "/RootRotationInProgress") && certificates == nodes.len();
        let roots = if is_done { nodes.len() } else { 0 };
        if let Some(lines) = &mut lines {
            let all = nodes.len();
            lines.set(
                "rotated TLS certificates",
                &format!("{certificates}/{all} nodes"),
                None,
            );
            lines.set(
                "rotated CA certificates",
                &format!("{roots}/{all} nodes"),
                None,
            );
        }
        if is_done {
            return Ok(());
        }
    }
}
