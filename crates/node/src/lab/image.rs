//! The demo image: one static program, carried in this binary, packed as `docker save` would.

use std::io::Write;

use sha2::{Digest, Sha256};

/// Name of the demo image.
pub const DEMO_IMAGE: &str = "shoal-demo:latest";

/// `demo/server.rs`, compiled to a static program by the build script.
const SERVER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/demo-server"));

/// The demo image as an archive that `load` takes. Same bytes at every call.
pub fn demo_archive() -> Vec<u8> {
    let layer = archive(&[("demo", SERVER, 0o755)]);
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Entrypoint": ["/demo"],
            "Env": ["PATH=/"],
            "ExposedPorts": { "80/tcp": {} },
            "Labels": { "org.opencontainers.image.title": "shoal-demo" },
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))] },
        "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "shoal lab" }],
    });
    let config = serde_json::to_vec(&config).expect("plain data");
    let config_name = format!("{}.json", digest(&config));
    let manifest = serde_json::json!([{
        "Config": config_name,
        "RepoTags": [DEMO_IMAGE],
        "Layers": ["layer.tar"],
    }]);
    let manifest = serde_json::to_vec(&manifest).expect("plain data");
    archive(&[
        (&config_name, &config, 0o644),
        ("layer.tar", &layer, 0o644),
        ("manifest.json", &manifest, 0o644),
    ])
}

fn digest(data: &[u8]) -> String {
    Sha256::digest(data)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A tar archive of regular files in ustar form (POSIX.1-2017, pax, "ustar Interchange Format").
fn archive(files: &[(&str, &[u8], u32)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, data, mode) in files {
        let mut header = [0u8; 512];
        let mut field =
            |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        field(0, name);
        field(100, &format!("{mode:07o}"));
        field(108, "0000000");
        field(116, "0000000");
        field(124, &format!("{:011o}", data.len()));
        field(136, "00000000000");
        field(148, "        ");
        field(156, "0");
        field(257, "ustar\0");
        field(263, "00");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.write_all(&header).expect("memory takes every write");
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_what_it_was_a_moment_ago() {
        assert_eq!(digest(&demo_archive()), digest(&demo_archive()));
    }
}
