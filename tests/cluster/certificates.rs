//! The cluster's root certificate, replaced while everything runs.

use anyhow::{Context, Result};
use shoal_tests::{
    lab::{TestLab, text},
    wait,
};

const ROOT: &str = "/var/lib/shoal/swarm/certificates/swarm-root-ca.crt";
const NODE: &str = "/var/lib/shoal/swarm/certificates/swarm-node.pem";

/// What a token says of the root certificate: the SHA-256 of its DER in base 36, 50 digits (SwarmKit's ca/config.go).
fn digest_of_root(lab: &TestLab) -> Result<String> {
    let hash = format!("openssl x509 -in {ROOT} -outform DER | sha256sum");
    let hash = text(&lab.output("n1", &["sh", "-c", &hash])?)?;
    let hex = hash.split_whitespace().next().context("no digest")?;
    let mut number = Vec::new();
    for place in (0..hex.len()).step_by(2) {
        number.push(u32::from_str_radix(&hex[place..place + 2], 16)?);
    }
    let mut digits = Vec::new();
    for _ in 0..50 {
        let mut rest = 0;
        for byte in &mut number {
            let value = rest * 256 + *byte;
            (*byte, rest) = (value / 36, value % 36);
        }
        digits.push(char::from_digit(rest, 36).context("a digit")?);
    }
    Ok(digits.into_iter().rev().collect())
}

#[test]
fn the_root_certificate_is_replaced_while_writes_and_tasks_go_on() -> Result<()> {
    let lab = TestLab::up(3, 2)?;
    let words = [
        "service",
        "create",
        "--detach",
        "--name",
        "idle",
        "--mode",
        "global",
        "shoal-demo:latest",
        "idle",
    ];
    lab.on("n1", &words)?;
    let tasks = lab.wait_running("idle", 3)?;
    let old = lab.on("n1", &["swarm", "ca"])?;
    let token = lab.on("n1", &["swarm", "join-token", "-q", "worker"])?;

    let done = std::sync::atomic::AtomicBool::new(false);
    let written = std::thread::scope(|scope| -> Result<u32> {
        let writer = scope.spawn(|| -> Result<u32> {
            let mut count = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let label = format!("n={count}");
                lab.on(
                    "n2",
                    &[
                        "service",
                        "update",
                        "--detach",
                        "--label-add",
                        &label,
                        "idle",
                    ],
                )?;
                count += 1;
            }
            Ok(count)
        });
        let rotated = lab.on("n1", &["swarm", "ca", "--rotate", "-q"]);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        let written = writer.join().expect("the writer does not panic")?;
        assert_ne!(rotated?, old);
        Ok(written)
    })?;
    assert!(written > 0);

    let new = lab.on("n2", &["swarm", "ca"])?;
    assert!(
        new != old && new.starts_with("-----BEGIN CERTIFICATE-----"),
        "{new}"
    );
    for host in ["n1", "n2", "n3"] {
        wait(&format!("{host} to trust the new root"), || {
            let kept = text(&lab.output(host, &["cat", ROOT])?)?;
            Ok(if kept == new { Ok(()) } else { Err(kept) })
        })?;
    }
    for host in ["n1", "n2", "n3"] {
        wait(
            &format!("{host}'s own certificate to be of the new root"),
            || {
                let verified = lab.output(host, &["openssl", "verify", "-CAfile", ROOT, NODE])?;
                Ok(text(&verified).map_err(|problem| format!("{problem:#}")))
            },
        )?;
    }
    assert_eq!(lab.wait_running("idle", 3)?, tasks);
    let listed = lab.on("n1", &["node", "ls"])?;
    assert_eq!(listed.matches(" Ready ").count(), 3, "{listed}");

    // Tokens name the root: the old one is of no use, the new one is.
    let next = lab.on("n1", &["swarm", "join-token", "-q", "worker"])?;
    assert_ne!(next, token);
    let digest = next.split('-').nth(2).map(str::to_owned);
    assert_eq!(digest, Some(digest_of_root(&lab)?), "{next}");
    lab.on("n3", &["swarm", "leave"])?;
    let remote = format!("{}:2377", lab.addr("n1"));
    let (_, said) = lab.refused("n3", &["swarm", "join", "--token", token.trim(), &remote])?;
    assert!(
        said.contains("root certificate does not match the join token"),
        "{said}"
    );
    lab.on("n3", &["swarm", "join", "--token", next.trim(), &remote])?;

    // What is no authority is refused by name.
    let script = format!("cp {ROOT} /var/lib/shoal/ca.crt; echo nonsense > /var/lib/shoal/ca.key");
    text(&lab.output("n1", &["sh", "-c", &script])?)?;
    let words = [
        "swarm",
        "ca",
        "--rotate",
        "--ca-cert",
        "/var/lib/shoal/ca.key",
        "--ca-key",
        "/var/lib/shoal/ca.key",
    ];
    let (_, said) = lab.refused("n1", &words)?;
    assert!(
        said.contains("invalid CA certificate: expected a certificate as PEM"),
        "{said}"
    );
    Ok(())
}
