//! IPVS on a kernel that has it: the tests of `net.rs` and `ipv6.rs`, with `SHOAL_LB_DRIVER=ipvs`, in a kernel as a process.
//!
//! `SHOAL_LAB_KERNEL` names a User-Mode Linux kernel, `SHOAL_LAB_RUN` a program that boots it and runs a command in it:
//! `RUN -k KERNEL -M '' -- COMMAND …`. Without them, and on a kernel with IPVS of its own, see what is said.
#![allow(clippy::print_stderr, reason = "tests say why they were skipped")]

use std::{env, path::PathBuf, process::Command};

/// The program of another test beside this one.
fn program(name: &str) -> Option<PathBuf> {
    let own = env::current_exe().ok()?;
    let entries = std::fs::read_dir(own.parent()?).ok()?.flatten();
    let programs = entries.map(|entry| entry.path()).filter(|path| {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let hash = file
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('-'));
        hash.is_some_and(|hash| hash.bytes().all(|b| b.is_ascii_hexdigit()))
    });
    programs.max_by_key(|path| path.metadata().and_then(|file| file.modified()).ok())
}

#[test]
fn a_kernel_with_ipvs_passes_the_same_tests() {
    let (Some(kernel), Some(run)) = (
        env::var_os("SHOAL_LAB_KERNEL"),
        env::var_os("SHOAL_LAB_RUN"),
    ) else {
        return eprintln!(
            "skipped, because SHOAL_LAB_KERNEL and SHOAL_LAB_RUN name no kernel with IPVS"
        );
    };
    for tests in ["net", "ipv6"] {
        let Some(tests) = program(tests) else {
            return eprintln!("skipped, because the program of {tests}.rs is not built");
        };
        let done = Command::new(&run)
            .arg("-k")
            .arg(&kernel)
            .args(["-M", "", "-m", "700M", "-t", "280", "--"])
            .arg(&tests)
            .arg("--test-threads=1")
            .env("SHOAL_LB_DRIVER", "ipvs")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        eprintln!("{said}");
        assert!(done.status.success(), "{}", tests.display());
        assert!(!said.contains("skipped"), "{}", tests.display());
    }
}
