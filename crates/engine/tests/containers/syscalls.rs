//! Which system calls the kernel refuses to a container, asked from inside, one by one.
#![cfg(target_arch = "x86_64")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use shoal_engine::core::capabilities::CapabilitySet;
use shoal_engine::core::seccomp::default_profile;

use crate::host::{Host, cmd, file};

/// What docker's documentation names as refused by its filter, as far as x86-64 has it.
const REFUSED: &str = "acct add_key bpf clock_settime create_module delete_module finit_module get_kernel_syms \
    get_mempolicy init_module ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie mbind mount move_pages \
    nfsservctl open_by_handle_at perf_event_open pivot_root query_module quotactl reboot request_key set_mempolicy setns \
    settimeofday swapon swapoff sysfs _sysctl umount2 unshare uselib userfaultfd ustat syslog fsopen fsconfig fsmount \
    fspick move_mount open_tree mount_setattr io_uring_setup io_uring_enter io_uring_register fanotify_init vhangup";

/// Depends on the arguments; tried one by one.
const BY_ARGUMENT: [&str; 4] = ["clone", "clone3", "personality", "socket"];

/// Refused by the kernel itself to those without CAP_SYS_ADMIN and without no_new_privs.
const BY_KERNEL: [&str; 1] = ["landlock_restrict_self"];

/// The kernel's own table, by the header that comes with the C library.
fn table() -> BTreeMap<u64, String> {
    let words = [
        "-E",
        "-dM",
        "-include",
        "asm/unistd_64.h",
        "-x",
        "c",
        "/dev/null",
    ];
    let said = Command::new("cc")
        .args(words)
        .output()
        .expect("cc links this test, too");
    let text = String::from_utf8(said.stdout).expect("text");
    let entry = |line: &str| {
        let (name, number) = line.strip_prefix("#define __NR_")?.split_once(' ')?;
        Some((number.parse().ok()?, name.to_owned()))
    };
    text.lines().filter_map(entry).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_refuses_what_the_filter_leaves_out_on_every_gate() {
    let host = Host::bare().await;
    let program = host.root.join("calls");
    let built = Command::new("cc")
        .args([
            "-O1",
            "-static",
            "-nostdlib",
            "-ffreestanding",
            "-fno-stack-protector",
        ])
        .args(["-x", "c", "-o"])
        .arg(&program)
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/containers/calls.c"
        ))
        .output()
        .expect("cc links this test, too");
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    let program = std::fs::read(program).expect("program");
    host.import("calls:latest", |tar| file(tar, "calls", &program, 0o755))
        .await;
    let mut spec = cmd(&["/calls"]);
    spec.image = "calls".into();
    let (code, said) = host.run(spec).await;
    assert_eq!(code, 0, "{said}");
    let verdicts: BTreeMap<&str, &str> = said
        .lines()
        .filter_map(|line| line.split_once(' '))
        .collect();
    let verdict = |what: &str| *verdicts.get(what).unwrap_or(&"nothing");

    let profile = default_profile(CapabilitySet::of(&[], &[]).expect("the usual ones"));
    let rules = profile.syscalls().clone().expect("a filter has rules");
    let allowed: BTreeSet<String> = rules
        .iter()
        .filter(|rule| rule.args().as_ref().is_none_or(Vec::is_empty))
        .flat_map(|rule| rule.names().clone())
        .collect();
    let table = table();
    assert!(table.len() > 300, "{} calls", table.len());
    let mut wrong = Vec::new();
    for number in 0..512 {
        let Some(name) = table.get(&number) else {
            continue;
        };
        if BY_ARGUMENT.contains(&name.as_str()) || BY_KERNEL.contains(&name.as_str()) {
            continue;
        }
        let expected = if allowed.contains(name) { "A" } else { "E" };
        let seen = verdict(&number.to_string());
        if seen != expected {
            wrong.push(format!("{name} ({number}): {seen} instead of {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let numbers: BTreeMap<&str, u64> = table
        .iter()
        .map(|(number, name)| (name.as_str(), *number))
        .collect();
    for name in REFUSED.split_whitespace() {
        // Very new ones are not in every header.
        if let Some(number) = numbers.get(name) {
            assert_eq!(verdict(&number.to_string()), "E", "{name}");
        }
    }

    for family in 0..48 {
        let expected = if matches!(family, 38 | 40) { "E" } else { "A" };
        let seen = verdict(&format!("family:{family}"));
        // Some families ask for a capability by themselves.
        let by_kernel = expected == "A" && seen == "E" && matches!(family, 16 | 17 | 29);
        assert!(
            seen == expected || by_kernel,
            "socket family {family}: {seen}"
        );
    }
    for (what, expected) in [
        ("family:38+2^32", "E"),
        ("i386:getpid", "K"),
        ("i386:socketcall", "K"),
        ("i386:socket", "K"),
        ("x32:getpid", "K"),
        ("x32:socket", "K"),
        ("clone:NEWUSER", "E"),
        ("clone:NEWNS", "E"),
        ("clone:NEWNET", "E"),
        ("unshare:NEWUSER", "E"),
        ("personality:query", "A"),
        ("personality:ADDR_NO_RANDOMIZE", "E"),
    ] {
        assert_eq!(verdict(what), expected, "{what}");
    }
}
