//! Compiles the demo's web service, `demo/server.rs`, to a static program that the lab packs into an image.

use std::{env, path::PathBuf, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=demo/server.rs");
    let out =
        PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("demo-server");
    let rustc = env::var_os("RUSTC").expect("cargo sets RUSTC");
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let status = Command::new(rustc)
        .args([
            "demo/server.rs",
            "--edition=2024",
            "--crate-name=demo_server",
            "--crate-type=bin",
        ])
        .args([
            "-Copt-level=z",
            "-Cpanic=abort",
            "-Cstrip=symbols",
            "-Ctarget-feature=+crt-static",
        ])
        .args(["--target", &target])
        .arg("-o")
        .arg(&out)
        .status()
        .expect("rustc can be run");
    assert!(status.success(), "demo/server.rs does not compile");
}
