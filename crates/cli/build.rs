//! Links the program statically: it is one file that runs on any distribution, whatever libraries that has or lacks.
//!
//! `-C target-feature=+crt-static` would have to be given for all crates of a build, and proc-macros cannot be built with
//! it. So the linker is led to the archives instead, by scripts under the names of the shared libraries.

use std::{env, fs, path::PathBuf, process::Command};

/// What Rust's standard library and our C dependencies ask for, and the archives that have it.
const LIBRARIES: &[(&str, &[&str])] = &[
    ("c", &["libc.a"]),
    ("dl", &["libdl.a"]),
    ("gcc_s", &["libgcc_eh.a", "libgcc.a"]),
    ("m", &["libm.a"]),
    ("pthread", &["libpthread.a"]),
    ("rt", &["librt.a"]),
    ("seccomp", &["libseccomp.a"]),
    ("util", &["libutil.a"]),
];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=CC");
    let is = |what: &str, value: &str| env::var(what).is_ok_and(|is| is == value);
    if !is("CARGO_CFG_TARGET_OS", "linux") || !is("CARGO_CFG_TARGET_ENV", "gnu") {
        return;
    }
    let archives = LIBRARIES.iter().flat_map(|(_, archives)| archives.iter());
    let missing: Vec<_> = archives.filter(|archive| !is_there(archive)).collect();
    if !missing.is_empty() {
        println!("cargo:warning=shoal is linked dynamically, because there is no {missing:?}");
        return;
    }
    let folder = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for (name, archives) in LIBRARIES {
        let archives: Vec<String> = archives.iter().map(|name| format!("-l:{name}")).collect();
        let script = format!("INPUT({})\n", archives.join(" "));
        fs::write(folder.join(format!("lib{name}.so")), script).expect("cargo made the folder");
    }
    println!("cargo:rustc-link-arg-bins=-static-pie");
    // Every start applies 58,000 relocations; in this form they take a fiftieth of the room.
    println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    println!("cargo:rustc-link-arg-bins=-L{}", folder.display());
}

/// Whether the compiler that links finds an archive.
fn is_there(archive: &str) -> bool {
    let cc = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let asked = Command::new(cc)
        .arg(format!("-print-file-name={archive}"))
        .output();
    // Of what is not there it only says the name again.
    asked.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).trim() != archive)
}
