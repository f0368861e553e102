//! What this machine's kernel lacks, tried on one that has it: IPVS, WireGuard, control groups of version 2 alone.
//!
//! `SHOAL_LAB_KERNEL` names the kernel; see `shoal_tests::kernel`.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use shoal_tests::kernel::{Job, Kernel};

/// After this long a guest hangs.
const PATIENCE: Duration = Duration::from_secs(170);

/// Says, where the harness does not hide it, why a test tries nothing.
fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped, because {why}");
}

/// The programs of tests by target, built from the sources as they are.
fn programs(targets: &[&str]) -> Result<BTreeMap<String, PathBuf>> {
    // As everything is built: a package by itself would have its dependencies built once more.
    let mut words = vec!["test", "--workspace", "--no-run", "--message-format=json"];
    words.extend(targets.iter().flat_map(|target| ["--test", target]));
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let built = Command::new(cargo).args(&words).output()?;
    if !built.status.success() {
        bail!(
            "cargo {}: {}",
            words.join(" "),
            String::from_utf8_lossy(&built.stderr)
        );
    }
    let mut programs = BTreeMap::new();
    for line in String::from_utf8(built.stdout)?.lines() {
        let told: serde_json::Value = serde_json::from_str(line)?;
        if let (Some(name), Some(path)) =
            (told["target"]["name"].as_str(), told["executable"].as_str())
        {
            programs.insert(name.to_owned(), PathBuf::from(path));
        }
    }
    Ok(programs)
}

/// Runs tests in a guest, one after another; none of them may be skipped there.
fn pass(targets: &[&str], more: &[&str], env: &[(&str, &str)]) -> Result<()> {
    let kernel = match Kernel::find() {
        Ok(kernel) => kernel,
        Err(why) => {
            skipped(&why);
            return Ok(());
        }
    };
    let programs = programs(targets)?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    for target in targets {
        let program = programs.get(*target).context("a target without program")?;
        let program = program.to_str().context("a path that is not UTF-8")?;
        let words = [&[program, "--test-threads=1"][..], more].concat();
        let ended = kernel.run(&Job {
            words: &words,
            env,
            folder,
            memory_mib: 700,
            patience: PATIENCE,
        })?;
        ensure!(
            ended.status == 0,
            "{target}: status {}\n{}",
            ended.status,
            ended.said
        );
        ensure!(
            !ended.said.contains("skipped"),
            "a test of {target} was skipped\n{}",
            ended.said
        );
        ensure!(
            !ended.said.contains("running 0 tests"),
            "{target} has no such test"
        );
        let _ = write!(std::io::stderr(), "{target} in a guest:{}", ended.said);
    }
    Ok(())
}

#[test]
fn a_guest_is_another_kernel_and_leaves_this_machine_alone() -> Result<()> {
    let Ok(kernel) = Kernel::find() else {
        return Ok(skipped("there is no other kernel"));
    };
    let trace = format!("/var/tmp/{}-was-here", std::process::id());
    let script =
        format!("cat /proc/sys/kernel/osrelease && echo said >&2 && touch {trace} && exit 7");
    let job = Job {
        words: &["sh", "-c", &script],
        env: &[],
        folder: Path::new("/"),
        memory_mib: 256,
        patience: PATIENCE,
    };
    let ended = kernel.run(&job)?;
    let own = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    ensure!(ended.status == 7, "status {}", ended.status);
    ensure!(ended.said.ends_with("said\n"), "{}", ended.said);
    ensure!(!ended.said.starts_with(own.trim()), "{}", ended.said);
    ensure!(
        !Path::new(&trace).exists(),
        "the guest wrote to this machine"
    );
    Ok(())
}

#[test]
fn what_encrypted_networks_carry_is_seen_by_nobody_on_the_way() -> Result<()> {
    pass(&["encrypted"], &[], &[])
}

#[test]
fn daemons_tell_one_another_their_keys_and_carry_an_encrypted_network() -> Result<()> {
    let program = shoal_tests::lab::program();
    let program = program.to_str().context("a path that is not UTF-8")?;
    pass(&["cluster"], &["encrypted::"], &[("SHOAL_BIN", program)])
}

#[test]
fn containers_are_held_by_control_groups_of_version_2() -> Result<()> {
    let tests = [
        "walls::a_container_is_walled_in",
        // Those of processors and disks are for kernels that have them.
        "walls::limits_reach",
        "options::limits",
        "options::devices",
        "options::a_group",
        "options::an_init_passes",
        "life::pause",
    ];
    pass(&["containers"], &tests, &[])
}

#[test]
fn ipvs_is_chosen_by_itself_and_passes_the_tests_of_the_data_plane() -> Result<()> {
    pass(&["features", "net", "flows", "ipv6", "ports"], &[], &[])
}

/// What a test of `isolation` needs is a kernel without WireGuard.
const UNSEALED: [&str; 2] = ["--skip", "that_must_be_encrypted_is_not_carried"];

#[test]
fn with_ipvs_networks_are_apart_and_leave_nothing() -> Result<()> {
    pass(&["isolation"], &UNSEALED, &[])
}

#[test]
fn with_ipvs_damage_is_repaired_though_the_kernel_does_not_tell_of_it() -> Result<()> {
    pass(&["heal"], &[], &[])
}

#[test]
fn nftables_distributes_where_it_is_told_to_although_there_is_ipvs() -> Result<()> {
    let told = [("SHOAL_LB_DRIVER", "nft")];
    pass(&["features", "net", "flows"], &[], &told)
}
