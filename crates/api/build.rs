//! Compiles `proto/` without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = "../../proto";
    let rooms = [
        "types",
        "specs",
        "objects",
        "ca",
        "control",
        "dispatcher",
        "exec",
        "logs",
        "raft",
    ];
    let files: Vec<_> = rooms
        .iter()
        .map(|room| format!("{root}/{room}.proto"))
        .collect();
    println!("cargo::rerun-if-changed={root}");
    let descriptors = protox::compile(&files, [root])?;
    tonic_prost_build::configure()
        // Same value, same bytes: maps are written in the order of their keys.
        .btree_map(".")
        // Shared among the agents that are sent them.
        .bytes(".shoal.v1.AssignmentsMessage")
        // An object takes as much room as the largest kind, and is passed on a dozen times on its way.
        .boxed(".shoal.v1.Object.kind.node")
        .boxed(".shoal.v1.Object.kind.service")
        .boxed(".shoal.v1.Object.kind.task")
        .boxed(".shoal.v1.Object.kind.network")
        .boxed(".shoal.v1.Object.kind.cluster")
        .boxed(".shoal.v1.Spec.kind.service")
        .boxed(".shoal.v1.Spec.kind.cluster")
        // Their fields are secrets, which no log may show; `wire.rs` writes these by hand.
        .skip_debug([
            ".shoal.v1.SecretSpec",
            ".shoal.v1.Cluster",
            ".shoal.v1.IssueNodeCertificateRequest",
        ])
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    Ok(())
}
