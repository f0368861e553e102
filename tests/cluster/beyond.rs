//! What Swarm has no options for, in the labels that docker's client carries; and how tasks are stopped and refused.

use std::process::Command;

use anyhow::Result;
use shoal_tests::{
    busybox::{self, BUSYBOX},
    lab::TestLab,
    skipped, wait,
};

use crate::options::{
    Seen::{self, Container, Inside},
    docker,
};

/// Labels of a service that is confined, and of one that is not, and where they are seen.
const BEYOND: [(&str, &[(&str, Seen)]); 2] = [
    (
        "tight",
        &[
            (
                "shoal.shm-size=32m",
                Inside("df -k /dev/shm | awk 'NR==2 {print $2}'", "32768"),
            ),
            (
                "shoal.security-opt=no-new-privileges,seccomp=unconfined",
                Inside(
                    "awk '/^(NoNewPrivs|Seccomp):/ {print $2}' /proc/1/status | xargs",
                    "1 0",
                ),
            ),
            (
                "shoal.devices=/dev/zero:/dev/zap:r",
                Inside("head -c 3 /dev/zap | wc -c", "3"),
            ),
            // A number of the range for experiments, which no driver has: allowed, opening it finds nobody.
            (
                "shoal.device-cgroup-rules=c 120:7 rwm",
                Inside(
                    "test -e /tmp/none || mknod /tmp/none c 120 7; cat /tmp/none 2>&1 | sed 's/.*: //'",
                    "No such device or address",
                ),
            ),
            (
                "shoal.memory-swap=128m",
                Container("{{.HostConfig.MemorySwap}}", "134217728"),
            ),
            (
                "shoal.cpuset=0",
                Inside("awk '/Cpus_allowed_list/ {print $2}' /proc/1/status", "0"),
            ),
            (
                "shoal.domainname=example.test",
                Inside("cat /proc/sys/kernel/domainname", "example.test"),
            ),
            (
                "shoal.cgroupns=private",
                Inside("cut -d: -f3 /proc/1/cgroup | sort -u", "/"),
            ),
            // Version 2 of control groups has neither of these.
            (
                "shoal.memory-swappiness=7",
                Inside(
                    "cat /sys/fs/cgroup/memory/memory.swappiness 2>/dev/null || echo 7",
                    "7",
                ),
            ),
            (
                "shoal.oom-kill-disable=true",
                Inside(
                    "awk '/oom_kill_disable/ {print $2}' /sys/fs/cgroup/memory/memory.oom_control 2>/dev/null || echo 1",
                    "1",
                ),
            ),
        ],
    ),
    (
        "open",
        &[
            (
                "shoal.privileged=true",
                Inside("awk '/^Seccomp:/ {print $2}' /proc/self/status", "0"),
            ),
            (
                "shoal.pid=host",
                Inside("test $(cat /proc/1/comm) != sleep && echo others", "others"),
            ),
            (
                "shoal.ipc=host",
                Inside(
                    "test $(readlink /proc/self/ns/ipc) = $(readlink /proc/1/ns/ipc) && echo same",
                    "same",
                ),
            ),
            ("shoal.uts=host", Inside("hostname", "n1")),
            (
                "shoal.userns=host",
                Inside("xargs < /proc/self/uid_map", "0 0 4294967295"),
            ),
            (
                "shoal.cgroupns=host",
                Container("{{.HostConfig.CgroupnsMode}}", "host"),
            ),
            (
                "shoal.cgroup-parent=/tests-parent",
                Inside(
                    "grep -o '/tests-parent/' /proc/self/cgroup | sort -u",
                    "/tests-parent/",
                ),
            ),
        ],
    ),
];

#[test]
fn what_swarm_refuses_takes_effect_by_labels() -> Result<()> {
    let found = Command::new("docker").arg("--version").output();
    if !found.is_ok_and(|said| said.status.success()) {
        skipped("docker's client is not on PATH");
        return Ok(());
    }
    let lab = TestLab::up(1, 1)?;
    busybox::load(&lab, &["n1"])?;
    for (service, options) in BEYOND {
        let mut words = vec!["service", "create", "--detach", "--no-resolve-image"];
        words.extend(["--name", service, "--limit-memory", "64m"]);
        words.extend(options.iter().flat_map(|(label, _)| ["--label", *label]));
        words.extend([BUSYBOX, "sleep", "100000"]);
        docker(&lab, &words)?;
    }
    for (service, options) in BEYOND {
        lab.wait_running(service, 1)?;
        for (label, seen) in options {
            seen.check(&lab, service, label)?;
        }
    }

    // An image that nobody may pull.
    let create =
        "service create --detach --no-resolve-image --restart-condition none --name never --label";
    let words = create.split(' ');
    let words: Vec<&str> = words
        .chain(["shoal.pull-policy=never", "nobody/has:this"])
        .collect();
    docker(&lab, &words)?;
    wait("the image to be missed", || {
        let format = "{{.CurrentState}} {{.Error}}";
        let words = ["service", "ps", "--no-trunc", "--format", format, "never"];
        let seen = docker(&lab, &words)?;
        let refused =
            seen.starts_with("Rejected") && seen.contains("No such image: nobody/has:this");
        Ok(if refused { Ok(()) } else { Err(seen) })
    })
}

#[test]
fn a_task_is_stopped_by_the_signal_that_its_service_names() -> Result<()> {
    let lab = TestLab::up(1, 1)?;
    busybox::load(&lab, &["n1"])?;
    let words = "service create --detach --no-resolve-image --stop-signal SIGUSR1 --stop-grace-period 60s --name heeds";
    let traps = "trap 'exit 7' USR1; trap 'exit 8' TERM; echo ready; sleep 100000 & wait";
    let words: Vec<&str> = words
        .split(' ')
        .chain([BUSYBOX, "sh", "-c", traps])
        .collect();
    lab.on("n1", &words)?;
    wait("the process to listen", || {
        let said = lab.on("n1", &["service", "logs", "--raw", "heeds"])?;
        Ok(if said == "ready\n" { Ok(()) } else { Err(said) })
    })?;
    let id = lab.on("n1", &["ps", "-q", "--no-trunc"])?;
    lab.on("n1", &["service", "update", "--detach", "--force", "heeds"])?;
    // The container of a task that is over stays until its task is forgotten.
    wait("the task to end by that signal", || {
        let format = "{{.State.Status}} {{.State.ExitCode}}";
        let seen = lab.on("n1", &["inspect", "--format", format, id.trim()])?;
        Ok(if seen == "exited 7\n" {
            Ok(())
        } else {
            Err(seen)
        })
    })
}
