//! One file with every key of the compose specification: what has an effect is seen, and what has none is said.

use std::{collections::BTreeSet, fs, process::Command};

use anyhow::{Context, Result};
use shoal_tests::{
    busybox,
    lab::{TestLab, text},
    skipped,
};

use crate::{
    options::{
        Seen::{self, Container, Inside, Service, Volume},
        docker,
    },
    stacks::write,
};

const FILE: &str = include_str!("stack_keys.yml");

/// Devices by name.
const DEVICES: [(&str, &str); 2] = [
    (
        "toy.json",
        r#"{"cdiVersion": "0.6.0", "kind": "example.com/toy", "devices": [{"name": "one", "containerEdits": {"env": ["TOY=one"]}}]}"#,
    ),
    (
        "gpu.json",
        r#"{"cdiVersion": "0.6.0", "kind": "nvidia.com/gpu", "devices": [{"name": "0", "containerEdits": {"env": ["GPU=zero"]}}]}"#,
    ),
];

/// A profile of system calls without those that make symbolic links.
const CALLS: &str = r#"{
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["symlink", "symlinkat"], "action": "SCMP_ACT_ERRNO"}]
}"#;

/// Keys by their service, and where they are seen.
const KEYS: [(&str, &[(&str, Seen)]); 6] = [
    (
        "app",
        &[
            (
                "extends",
                Inside(
                    "echo $BASE $LEVEL $FROM_FILE ${EMPTY-unset}",
                    "yes info yes",
                ),
            ),
            (
                "cap_add, cap_drop",
                Inside(
                    "echo $((0x$(awk '/^CapBnd/ {print $2}' /proc/self/status) & 0x1001))",
                    "4096",
                ),
            ),
            (
                "cgroup",
                Inside("cut -d: -f3 /proc/1/cgroup | sort -u", "/"),
            ),
            (
                "configs",
                Inside(
                    "cat /site; echo; stat -c '%u %g %a' /etc/other.conf; cat /theirs",
                    "level info slot 1\n103 104 440\nconfig of others",
                ),
            ),
            (
                "cpuset",
                Inside("awk '/Cpus_allowed_list/ {print $2}' /proc/1/status", "0"),
            ),
            (
                "deploy.endpoint_mode",
                Service("{{.Spec.EndpointSpec.Mode}}", "vip"),
            ),
            ("deploy.labels", Service("{{.Spec.Labels.tier}}", "front")),
            (
                "deploy.update_config",
                Service(
                    "{{with .Spec.UpdateConfig}}{{.Parallelism}} {{.Delay}} {{.Monitor}} {{.FailureAction}} {{.MaxFailureRatio}} {{.Order}}{{end}}",
                    "2 5s 10s rollback 0.2 stop-first",
                ),
            ),
            (
                "deploy.rollback_config",
                Service(
                    "{{with .Spec.RollbackConfig}}{{.Parallelism}} {{.Delay}} {{.Monitor}} {{.FailureAction}} {{.MaxFailureRatio}} {{.Order}}{{end}}",
                    "3 1s 3s continue 0.3 stop-first",
                ),
            ),
            (
                "deploy.restart_policy",
                Service(
                    "{{with .Spec.TaskTemplate.RestartPolicy}}{{.Condition}} {{.Delay}} {{.MaxAttempts}} {{.Window}}{{end}}",
                    "on-failure 2s 4 1m0s",
                ),
            ),
            (
                "deploy.placement, platform",
                Service(
                    "{{with .Spec.TaskTemplate.Placement}}{{.Constraints}} {{range .Preferences}}{{.Spread.SpreadDescriptor}}{{end}} {{.MaxReplicas}}{{end}}",
                    "[node.role==manager node.platform.os==linux node.platform.arch==x86_64] node.labels.zone 2",
                ),
            ),
            (
                "deploy.resources",
                Container(
                    "{{with .HostConfig}}{{.NanoCpus}} {{.Memory}} {{.PidsLimit}} {{.MemoryReservation}} {{.MemorySwap}}{{end}}",
                    "500000000 67108864 200 16777216 134217728",
                ),
            ),
            (
                "deploy.resources.reservations.devices, gpus, generic_resources",
                Inside("echo $TOY $GPU $DOCKER_RESOURCE_APPLE", "one zero 2"),
            ),
            (
                "device_cgroup_rules",
                Inside(
                    "mknod /tmp/none c 120 7; cat /tmp/none 2>&1 | sed 's/.*: //'; rm /tmp/none",
                    "No such device or address",
                ),
            ),
            (
                "devices",
                Inside(
                    "head -c 3 /dev/zap | wc -c; (echo > /dev/nothing) 2>&1 | grep -c 'not permitted'",
                    "3\n1",
                ),
            ),
            (
                "dns",
                Container(
                    "{{.HostConfig.Dns}} {{.HostConfig.DnsOptions}} {{.HostConfig.DnsSearch}}",
                    "[10.1.2.3] [use-vc] [example.org]",
                ),
            ),
            (
                "domainname",
                Inside("cat /proc/sys/kernel/domainname", "example.test"),
            ),
            (
                "entrypoint, command",
                Container(
                    "{{.Config.Entrypoint}} {{.Config.Cmd}}",
                    "[env] [sleep 100000]",
                ),
            ),
            (
                "extra_hosts",
                Inside("awk '/192.0.2.1/ {print $2}' /etc/hosts", "somewhere"),
            ),
            (
                "group_add",
                Inside("awk '/^Groups/ {print $NF}' /proc/1/status", "2000"),
            ),
            (
                "healthcheck",
                Container(
                    "{{with .Config.Healthcheck}}{{.Test}} {{.Interval}} {{.Timeout}} {{.Retries}} {{.StartPeriod}} {{.StartInterval}}{{end}} {{.State.Health.Status}}",
                    "[CMD-SHELL true] 1m30s 10s 3 40s 200ms healthy",
                ),
            ),
            ("hostname", Inside("hostname", "keys_app-1")),
            ("init", Inside("cat /proc/1/comm", "shoal-init")),
            ("ipc", Container("{{.HostConfig.IpcMode}}", "shareable")),
            (
                "labels, label_file",
                Container(
                    "{{index .Config.Labels \"com.example.a\"}} {{index .Config.Labels \"from.file\"}}",
                    "b yes",
                ),
            ),
            (
                "logging",
                Container(
                    "{{with .HostConfig.LogConfig}}{{.Type}} {{index .Config \"max-size\"}}{{end}}",
                    "json-file 10m",
                ),
            ),
            (
                "networks",
                Container(
                    "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}",
                    "ingress shared the-front",
                ),
            ),
            (
                "networks.front.ipv4_address, ipv6_address",
                Service(
                    "{{range .Endpoint.VirtualIPs}}{{if eq .Addr \"10.99.7.77/24\" \"fd00:99::77/64\"}}{{.Addr}} {{end}}{{end}}",
                    "10.99.7.77/24 fd00:99::77/64",
                ),
            ),
            (
                "networks.front.aliases",
                Inside("ping -c 1 -w 5 www > /dev/null && echo reached", "reached"),
            ),
            (
                "networks.front.driver_opts",
                Inside("ip -o link | grep -c 'mtu 1400'", "1"),
            ),
            ("oom_score_adj", Inside("cat /proc/1/oom_score_adj", "100")),
            (
                "ports",
                Service(
                    "{{range .Endpoint.Ports}}{{.PublishMode}} {{.PublishedPort}} {{.TargetPort}} {{.Protocol}}, {{end}}",
                    "host 8097 53 udp, ingress 8098 80 tcp,",
                ),
            ),
            (
                "secrets",
                Inside(
                    "cat /run/secrets/key; echo; stat -c '%u %g %a' /run/secrets/other; cat /run/secrets/theirs",
                    "hunter2\n103 104 400\nsecret of others",
                ),
            ),
            (
                "security_opt",
                Inside(
                    "awk '/NoNewPrivs/ {print $2}' /proc/1/status; ln -s to /tmp/no 2>&1 | grep -c 'not permitted'",
                    "1\n1",
                ),
            ),
            (
                "shm_size",
                Inside("df -k /dev/shm | awk 'NR==2 {print $2}'", "32768"),
            ),
            (
                "stdin_open, tty",
                Container("{{.Config.OpenStdin}} {{.Config.Tty}}", "true true"),
            ),
            (
                "stop_signal, stop_grace_period",
                Container(
                    "{{.Config.StopSignal}} {{.Config.StopTimeout}}",
                    "SIGUSR1 0",
                ),
            ),
            (
                "sysctls",
                Inside("cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "7"),
            ),
            (
                "tmpfs",
                Inside(
                    "stat -c '%u %g %a' /work; df -k /work | awk 'NR==2 {print $2}'",
                    "1000 2000 700\n1024",
                ),
            ),
            (
                "ulimits",
                Inside(
                    "awk '/open files/ {print $4, $5} /Max processes/ {print $3}' /proc/1/limits",
                    "65535\n1234 2345",
                ),
            ),
            (
                "volumes",
                Inside(
                    "ls /data; cat /pages/page; ls /inner; cat /share/greeting /theirs.d/here; touch /inner/x 2>&1 | grep -c 'Read-only'",
                    "inner\npage\nhere\nhello\nhere\n1",
                ),
            ),
            (
                "volumes, bind",
                Inside(
                    "grep -c ' /flat/' /proc/self/mountinfo; grep ' /flat ' /proc/self/mountinfo | grep -c ' master:'",
                    "0\n1",
                ),
            ),
            (
                "volumes, bind.recursive",
                Inside(
                    "awk '$5 ~ \"^/upper(/below)?$\" {print $5, substr($6, 1, 2)}' /proc/self/mountinfo",
                    "/upper ro\n/upper/below rw",
                ),
            ),
            (
                "volumes, tmpfs",
                Inside(
                    "stat -c %a /scratch; df -k /scratch | awk 'NR==2 {print $2}'",
                    "1777\n2048",
                ),
            ),
            (
                "working_dir",
                Inside("readlink /proc/$(pidof sleep)/cwd", "/tmp"),
            ),
            (
                "volumes.data",
                Volume(
                    "the-data",
                    "{{.Labels.of}} {{.Options.device}}",
                    "volume /run/data",
                ),
            ),
        ],
    ),
    (
        "small",
        &[
            (
                "cpus, mem_limit, mem_reservation, pids_limit",
                Container(
                    "{{with .HostConfig}}{{.NanoCpus}} {{.Memory}} {{.MemoryReservation}} {{.PidsLimit}}{{end}}",
                    "500000000 67108864 16777216 50",
                ),
            ),
            (
                "mem_swappiness",
                Inside(
                    "cat /sys/fs/cgroup/memory/memory.swappiness 2>/dev/null || echo 7",
                    "7",
                ),
            ),
            (
                "oom_kill_disable",
                Inside(
                    "awk '/oom_kill_disable/ {print $2}' /sys/fs/cgroup/memory/memory.oom_control 2>/dev/null || echo 1",
                    "1",
                ),
            ),
            (
                "pull_policy",
                Service("{{index .Spec.Labels \"shoal.pull-policy\"}}", "never"),
            ),
            (
                "read_only",
                Inside("touch /tmp/new 2>&1 | grep -c 'Read-only'", "1"),
            ),
            (
                "restart",
                Service(
                    "{{with .Spec.TaskTemplate.RestartPolicy}}{{.Condition}} {{.MaxAttempts}}{{end}}",
                    "on-failure 3",
                ),
            ),
            (
                "user",
                Inside(
                    "awk '/^Uid|^Gid/ {print $2}' /proc/1/status | xargs",
                    "1000 1000",
                ),
            ),
        ],
    ),
    (
        "open",
        &[
            (
                "cgroup, cgroup_parent",
                Inside(
                    "grep -o '/stack-keys/' /proc/self/cgroup | sort -u",
                    "/stack-keys/",
                ),
            ),
            (
                "ipc",
                Inside(
                    "test $(readlink /proc/self/ns/ipc) = $(readlink /proc/1/ns/ipc) && echo same",
                    "same",
                ),
            ),
            (
                "network_mode",
                Inside(
                    "test $(readlink /proc/self/ns/net) = $(readlink /proc/1/ns/net) && echo same",
                    "same",
                ),
            ),
            (
                "pid",
                Inside("test $(cat /proc/1/comm) != sleep && echo others", "others"),
            ),
            (
                "privileged",
                Inside("awk '/^Seccomp:/ {print $2}' /proc/self/status", "0"),
            ),
            (
                "userns_mode",
                Inside("xargs < /proc/self/uid_map", "0 0 4294967295"),
            ),
            ("uts", Inside("hostname", "n1")),
        ],
    ),
    (
        "db",
        &[
            (
                "deploy.mode, endpoint_mode",
                Service(
                    "{{if .Spec.Mode.Global}}global{{end}} {{.Spec.EndpointSpec.Mode}}",
                    "global dnsrr",
                ),
            ),
            (
                "healthcheck",
                Container("{{.State.Health.Status}}", "healthy"),
            ),
        ],
    ),
    (
        "once",
        &[(
            "deploy.mode",
            Service("{{.Spec.Mode.ReplicatedJob.TotalCompletions}}", "1"),
        )],
    ),
    (
        "idle",
        &[("scale", Service("{{.Spec.Mode.Replicated.Replicas}}", "2"))],
    ),
];

/// Keys of `idle` and of its attachment to a network, which are there for single containers or other builders alone.
const WITHOUT_EFFECT: [&str; 33] = [
    "annotations",
    "attach",
    "blkio_config",
    "build",
    "container_name",
    "cpu_count",
    "cpu_percent",
    "cpu_period",
    "cpu_quota",
    "cpu_rt_period",
    "cpu_rt_runtime",
    "cpu_shares",
    "credential_spec",
    "develop",
    "expose",
    "external_links",
    "gw_priority",
    "interface_name",
    "isolation",
    "link_local_ips",
    "links",
    "mac_address",
    "mac_address",
    "models",
    "models",
    "post_start",
    "pre_stop",
    "priority",
    "provider",
    "pull_refresh_after",
    "runtime",
    "storage_opt",
    "use_api_socket",
];

#[test]
fn every_key_of_a_stack_takes_effect_or_is_warned_of() -> Result<()> {
    let found = Command::new("docker").arg("--version").output();
    if !found.is_ok_and(|said| said.status.success()) {
        skipped("docker's client is not on PATH");
        return Ok(());
    }
    let apples = ["--daemon-arg", "--node-generic-resource=apple=3"];
    let specs = ["--daemon-arg", "--cdi-spec-dir=/var/lib/shoal/cdi"];
    let lab = TestLab::up_with(1, 1, &[apples, specs].concat())?;
    busybox::load(&lab, &["n1"])?;
    let devices = lab.folder("n1").join("lib/cdi");
    fs::create_dir_all(&devices)?;
    for (name, spec) in DEVICES {
        fs::write(devices.join(name), spec)?;
    }

    // The file, and what it refers to.
    let folder = tempfile::tempdir()?;
    let file = write(folder.path(), "keys.yml", FILE)?;
    fs::create_dir(folder.path().join("site"))?;
    for (name, text) in [
        (".env", "PASSWORD=hunter2\n"),
        ("app.env", "FROM_FILE=yes\n"),
        ("app.labels", "from.file=yes\n"),
        ("key.txt", "of a file"),
        ("calls.json", CALLS),
        ("site/page", "page\n"),
        ("secret", "secret of others"),
        ("config", "config of others"),
    ] {
        fs::write(folder.path().join(name), text)?;
    }
    for kind in ["secret", "config"] {
        let path = folder.path().join(kind);
        docker(&lab, &[kind, "create", "theirs", &path.to_string_lossy()])?;
    }
    docker(&lab, &["network", "create", "-d", "overlay", "shared"])?;
    docker(&lab, &["volume", "create", "theirs"])?;
    let fill = "mkdir -p /run/data/inner /run/shared && touch /run/data/inner/here && \
        mount -t tmpfs none /run/shared && mount --make-shared /run/shared && \
        mkdir /run/shared/below && mount -t tmpfs none /run/shared/below && \
        echo here > /var/lib/shoal/volumes/theirs/_data/here";
    text(&lab.output("n1", &["sh", "-c", fill])?)?;

    let stack = |verb: &[&str]| -> Result<(String, String)> {
        let words = [&["shoal", "stack"], verb, &["-c", &file, "keys"]].concat();
        let output = lab.output("n1", &words)?;
        let said = text(&output).with_context(|| verb.join(" "))?;
        Ok((said, String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    let deploy = ["deploy", "-q", "--wait", "--timeout", "180s"];
    let (_, warnings) = stack(&deploy)?;
    for (service, keys) in KEYS {
        let service = format!("keys_{service}");
        for (key, seen) in keys {
            seen.check(&lab, &service, key)?;
        }
    }
    let format = "{{.Attachable}} {{.EnableIPv6}} {{.Labels.of}} {{range .IPAM.Config}}{{.Subnet}} {{.Gateway}} {{end}}";
    let network = docker(&lab, &["network", "inspect", "-f", format, "the-front"])?;
    assert_eq!(
        network.trim(),
        "true true network 10.99.7.0/24 10.99.7.9 fd00:99::/64 fd00:99::1"
    );
    for (kind, name, label) in [
        ("secret", "the-key", "secret"),
        ("config", "the-site", "config"),
    ] {
        let seen = docker(&lab, &[kind, "inspect", "-f", "{{.Spec.Labels.of}}", name])?;
        assert_eq!(seen.trim(), label);
    }

    // Every other key has its warning, which names the line where it stands.
    let lines: Vec<&str> = FILE.lines().collect();
    let mut warned = Vec::new();
    for warning in warnings
        .lines()
        .filter(|line| line.contains(" has no effect "))
    {
        let (place, rest) = warning.split_once(": ").context("a place")?;
        let number: usize = place.rsplit(':').next().context("a line")?.parse()?;
        let path = rest.split(' ').next().context("a key")?;
        let key = path.rsplit('.').next().context("a key")?;
        assert!(lines[number - 1].contains(&format!("{key}:")), "{warning}");
        warned.push(key);
    }
    warned.sort_unstable();
    assert_eq!(warned, WITHOUT_EFFECT, "{warnings}");

    // Nothing of it changes by another look at the file.
    let (plan, _) = stack(&["plan"])?;
    assert_eq!(
        plan,
        "Stack keys\nPlan: 0 to create, 0 to update, 0 to remove, 13 unchanged\n"
    );
    let tasks = || -> Result<BTreeSet<String>> {
        let words = ["stack", "ps", "-q", "--no-trunc", "keys"];
        Ok(lab.on("n1", &words)?.lines().map(str::to_owned).collect())
    };
    let before = tasks()?;
    stack(&deploy)?;
    assert_eq!(tasks()?, before);
    lab.on("n1", &["stack", "rm", "keys"])?;
    Ok(())
}
