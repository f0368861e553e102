//! `swarm ca`: the root certificate, and another one in its place.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use crate::{
    client::{Client, Target},
    flags::{self, quantity},
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
    /// Specifications of one or more certificate signing endpoints
    #[arg(long, value_name = "external-ca", value_parser = external, requires = "rotate")]
    external_ca: Vec<Value>,
    /// Exit immediately instead of waiting for the root rotation to converge
    #[arg(short, long, requires = "rotate")]
    detach: bool,
    /// Suppress progress output
    #[arg(short, long)]
    quiet: bool,
}

/// Reads `protocol=cfssl,url=https://…[,cacert=FILE][,OPTION=VALUE]`. Whether there may be such an authority says the
/// daemon.
pub(super) fn external(flag: &str) -> Result<Value> {
    let mut authority = json!({"Options": {}});
    for (key, value) in flags::fields(flag)? {
        let Some(value) = value else {
            bail!("invalid field '{key}' must be a key=value pair");
        };
        match key.as_str() {
            "protocol" if value.eq_ignore_ascii_case("cfssl") => {
                authority["Protocol"] = json!("cfssl");
            }
            "protocol" => bail!("unrecognized external CA protocol {value}"),
            "url" => authority["URL"] = json!(value),
            "cacert" => {
                let pem = std::fs::read_to_string(&value);
                let pem = pem.context("unable to read CA cert for external CA")?;
                authority["CACert"] = json!(pem);
            }
            _ => authority["Options"][key] = json!(value),
        }
    }
    for (field, name) in [("Protocol", "protocol"), ("URL", "url")] {
        if authority[field].is_null() {
            bail!("the external-ca option needs a {name}= parameter");
        }
    }
    Ok(authority)
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
        if !self.external_ca.is_empty() {
            spec["CAConfig"]["ExternalCAs"] = self.external_ca.into();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_external_authority_is_named_by_protocol_and_url() {
        let read = external("protocol=CFSSL,url=https://ca.example,label=a").expect("well formed");
        let want =
            json!({"Protocol": "cfssl", "URL": "https://ca.example", "Options": {"label": "a"}});
        assert_eq!(read, want);
        for (flag, problem) in [
            ("url=x", "needs a protocol= parameter"),
            ("protocol=cfssl", "needs a url= parameter"),
            (
                "protocol=acme,url=x",
                "unrecognized external CA protocol acme",
            ),
            ("cfssl", "must be a key=value pair"),
        ] {
            let said = external(flag).unwrap_err().to_string();
            assert!(said.contains(problem), "{said}");
        }
    }
}
