//! Options that are given, and where they are seen.

use super::{
    Given,
    Seen::{Container, Inside, Service, Volume},
};

/// Options of `docker service create` and where they are seen.
pub(super) const ALL: Given = &[
    (
        &["--hostname", "{{.Service.Name}}-{{.Task.Slot}}"],
        Inside("hostname", "all-1"),
    ),
    (
        &["--env", "A=b {{.Node.Hostname}}"],
        Inside("echo $A", "b n1"),
    ),
    (
        &["--env-file", super::VARIABLES],
        Inside("echo $FROM_FILE", "yes"),
    ),
    (
        &["--workdir", "/tmp"],
        Inside("readlink /proc/1/cwd", "/tmp"),
    ),
    (
        &["--user", "1000:1000"],
        Inside(
            "awk '/^Uid|^Gid/ {print $2}' /proc/1/status | xargs",
            "1000 1000",
        ),
    ),
    (
        &["--group", "extra"],
        Inside("awk '/^Groups/ {print $NF}' /proc/1/status", "2000"),
    ),
    (
        &["--read-only"],
        Inside("touch /new 2>&1 | grep -c 'Read-only file system'", "1"),
    ),
    (
        &["--tty"],
        Inside("readlink /proc/1/fd/1 | cut -d/ -f1-3", "/dev/pts"),
    ),
    (
        &["--stop-signal", "SIGQUIT"],
        Container("{{.Config.StopSignal}}", "SIGQUIT"),
    ),
    (
        &["--stop-grace-period", "1s"],
        Container("{{.Config.StopTimeout}}", "1"),
    ),
    (
        &["--container-label", "c=d"],
        Container("{{.Config.Labels.c}}", "d"),
    ),
    (&["--label", "e=f"], Service("{{.Spec.Labels.e}}", "f")),
    (
        &[
            "--mount",
            "type=tmpfs,target=/scratch,tmpfs-size=1m,tmpfs-mode=0700",
        ],
        Inside(
            "stat -c %a /scratch; df -k /scratch | awk 'NR==2 {print $2}'",
            "700\n1024",
        ),
    ),
    (
        &["--mount", "type=bind,source=/etc,target=/host,readonly"],
        Inside("touch /host/x 2>&1 | grep -c 'Read-only'", "1"),
    ),
    (
        &[
            "--mount",
            "type=volume,source=data-{{.Task.Slot}},target=/data,volume-label=v=w",
        ],
        Inside("grep -c ' /data ' /proc/mounts", "1"),
    ),
    (&[], Volume("data-1", "{{.Labels.v}}", "w")),
    (
        &[
            "--mount",
            "type=volume,source=bare,target=/share,volume-nocopy",
        ],
        Inside("ls /share | wc -l", "0"),
    ),
    (
        &[
            "--mount",
            "type=volume,source=deep,target=/inner,volume-subpath=inner",
        ],
        Inside("ls /inner", "here"),
    ),
    (
        &[
            "--mount",
            "type=bind,source=/run/shared,target=/slave,bind-propagation=rslave",
        ],
        Inside(
            "grep ' /slave ' /proc/self/mountinfo | grep -c ' master:'",
            "1",
        ),
    ),
    // What is mounted below is left out.
    (
        &[
            "--mount",
            "type=bind,source=/run,target=/flat,bind-recursive=disabled",
        ],
        Inside(
            "grep -c ' /flat ' /proc/self/mountinfo; grep -c ' /flat/' /proc/self/mountinfo; true",
            "1\n0",
        ),
    ),
    // How far down a read-only mount is so: not below itself, or all the way.
    (
        &[
            "--mount",
            "type=bind,source=/run,target=/upper,readonly,bind-recursive=writable",
        ],
        Inside(
            "awk '$5 ~ \"^/upper(/shared)?$\" {print $5, substr($6, 1, 2)}' /proc/self/mountinfo",
            "/upper ro\n/upper/shared rw",
        ),
    ),
    (
        &[
            "--mount",
            "type=bind,source=/run,target=/lower,readonly,bind-propagation=rprivate,bind-recursive=readonly",
        ],
        Inside(
            "awk '$5 ~ \"^/lower(/shared)?$\" {print $5, substr($6, 1, 2)}' /proc/self/mountinfo",
            "/lower ro\n/lower/shared ro",
        ),
    ),
    (
        &["--constraint", "node.hostname==n1"],
        Service(
            "{{.Spec.TaskTemplate.Placement.Constraints}}",
            "[node.hostname==n1]",
        ),
    ),
    (
        &["--placement-pref", "spread=node.labels.zone"],
        Service(
            "{{range .Spec.TaskTemplate.Placement.Preferences}}{{.Spread.SpreadDescriptor}}{{end}}",
            "node.labels.zone",
        ),
    ),
    (
        &[
            "--secret",
            "source=key,target=pw,uid=1000,gid=2000,mode=0440",
        ],
        Inside(
            "stat -c '%u %g %a' /run/secrets/pw; cat /run/secrets/pw",
            "1000 2000 440\nhunter2",
        ),
    ),
    (
        &["--config", "source=site,target=/etc/site.conf,mode=0444"],
        Inside("cat /etc/site.conf", "site of all"),
    ),
    (
        &["--cap-add", "NET_ADMIN", "--cap-drop", "CHOWN"],
        // Bits 12 and 0 of what the process can ever have.
        Inside(
            "echo $((0x$(awk '/^CapBnd/ {print $2}' /proc/self/status) & 0x1001))",
            "4096",
        ),
    ),
    (
        &["--ulimit", "nofile=1234:2345"],
        Inside(
            "awk '/open files/ {print $4, $5}' /proc/1/limits",
            "1234 2345",
        ),
    ),
    (
        &["--sysctl", "net.ipv4.ip_unprivileged_port_start=7"],
        Inside("cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "7"),
    ),
    (
        &["--oom-score-adj", "123"],
        Inside("cat /proc/1/oom_score_adj", "123"),
    ),
    (
        &[
            "--dns",
            "10.1.2.3",
            "--dns-search",
            "example.org",
            "--dns-option",
            "ndots:3",
        ],
        Inside(
            "grep -E '^(search|options)' /etc/resolv.conf | xargs",
            "search example.org options ndots:3",
        ),
    ),
    (
        &["--host", "db:10.0.0.9"],
        Inside("awk '/10.0.0.9/ {print $2}' /etc/hosts", "db"),
    ),
    (
        &[
            "--health-cmd",
            "true",
            "--health-interval",
            "1s",
            "--health-timeout",
            "2s",
            "--health-retries",
            "4",
            "--health-start-period",
            "3s",
        ],
        Container(
            "{{.State.Health.Status}} {{.Config.Healthcheck.Test}} {{.Config.Healthcheck.Interval}} {{.Config.Healthcheck.Timeout}} {{.Config.Healthcheck.Retries}} {{.Config.Healthcheck.StartPeriod}}",
            "healthy [CMD-SHELL true] 1s 2s 4 3s",
        ),
    ),
    (
        &["--health-start-interval", "500ms"],
        Container("{{.Config.Healthcheck.StartInterval}}", "500ms"),
    ),
    (
        &["--log-driver", "json-file", "--log-opt", "max-size=1m"],
        Container(
            "{{.HostConfig.LogConfig.Type}} {{index .HostConfig.LogConfig.Config \"max-size\"}}",
            "json-file 1m",
        ),
    ),
    (
        &[
            "--limit-cpu",
            "0.5",
            "--limit-memory",
            "64m",
            "--limit-pids",
            "50",
        ],
        Container(
            "{{.HostConfig.NanoCpus}} {{.HostConfig.Memory}} {{.HostConfig.PidsLimit}}",
            "500000000 67108864 50",
        ),
    ),
    (
        &[],
        Inside(
            "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes pids/pids.max 2>/dev/null || cat memory.max pids.max",
            "67108864\n50",
        ),
    ),
    (
        &[],
        Inside(
            "cd /sys/fs/cgroup; cat cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 cpu.max",
            "50000",
        ),
    ),
    (
        &["--reserve-cpu", "0.1", "--reserve-memory", "16m"],
        Container("{{.HostConfig.MemoryReservation}}", "16777216"),
    ),
    (
        &["--entrypoint", "sh -c"],
        Inside(
            "tr '\\0' ' ' < /proc/1/cmdline | grep -c 'sleep 100000'",
            "1",
        ),
    ),
    (
        &[
            "--restart-condition",
            "on-failure",
            "--restart-delay",
            "3s",
            "--restart-max-attempts",
            "5",
            "--restart-window",
            "20s",
        ],
        Service(
            "{{with .Spec.TaskTemplate.RestartPolicy}}{{.Condition}} {{.Delay}} {{.MaxAttempts}} {{.Window}}{{end}}",
            "on-failure 3s 5 20s",
        ),
    ),
    (
        &[
            "--update-parallelism",
            "2",
            "--update-delay",
            "1s",
            "--update-monitor",
            "2s",
            "--update-failure-action",
            "continue",
            "--update-max-failure-ratio",
            "0.2",
            "--update-order",
            "stop-first",
        ],
        Service(
            "{{with .Spec.UpdateConfig}}{{.Parallelism}} {{.Delay}} {{.Monitor}} {{.FailureAction}} {{.MaxFailureRatio}} {{.Order}}{{end}}",
            "2 1s 2s continue 0.2 stop-first",
        ),
    ),
    (
        &[
            "--rollback-parallelism",
            "3",
            "--rollback-delay",
            "2s",
            "--rollback-monitor",
            "3s",
            "--rollback-failure-action",
            "continue",
            "--rollback-max-failure-ratio",
            "0.3",
            "--rollback-order",
            "start-first",
        ],
        Service(
            "{{with .Spec.RollbackConfig}}{{.Parallelism}} {{.Delay}} {{.Monitor}} {{.FailureAction}} {{.MaxFailureRatio}} {{.Order}}{{end}}",
            "3 2s 3s continue 0.3 start-first",
        ),
    ),
    (
        &["--generic-resource", "apple=2"],
        Inside("echo $DOCKER_RESOURCE_APPLE", "2"),
    ),
];

/// Those that go badly with some of the others.
pub(super) const APART: Given = &[
    // What was asked to sleep is its child.
    (&["--init"], Inside("cat /proc/1/comm", "shoal-init")),
    (
        &["--mount", "type=volume,source=copied,target=/share"],
        Inside("cat /share/greeting", "hello"),
    ),
    (
        &["--network", "name=net,alias=also"],
        Inside("ping -c 1 -w 5 also > /dev/null && echo reached", "reached"),
    ),
    (
        &["--endpoint-mode", "dnsrr"],
        Service(
            "{{.Spec.EndpointSpec.Mode}} {{.Endpoint.VirtualIPs}}",
            "dnsrr []",
        ),
    ),
    (
        &[
            "--publish",
            "mode=host,published=8099,target=80,protocol=udp",
        ],
        Service(
            "{{range .Spec.EndpointSpec.Ports}}{{.PublishMode}} {{.PublishedPort}} {{.TargetPort}} {{.Protocol}}{{end}}",
            "host 8099 80 udp",
        ),
    ),
    // Nodes must say that they have it, or no task would be placed.
    (
        &["--log-driver", "local", "--log-opt", "max-file=2"],
        Container(
            "{{.HostConfig.LogConfig.Type}} {{index .HostConfig.LogConfig.Config \"max-file\"}}",
            "local 2",
        ),
    ),
    (
        &["--no-healthcheck"],
        Container("{{.Config.Healthcheck.Test}}", "[NONE]"),
    ),
    (
        &["--replicas-max-per-node", "1"],
        Service("{{.Spec.TaskTemplate.Placement.MaxReplicas}}", "1"),
    ),
];

/// How many tasks there are.
pub(super) const MANY: Given = &[(
    &["--replicas", "2"],
    Service("{{.Spec.Mode.Replicated.Replicas}}", "2"),
)];

/// Those of jobs. Docker's client changes no job's number of tasks.
pub(super) const JOB: Given = &[(
    &["--max-concurrent", "2"],
    Service(
        "{{with .Spec.Mode.ReplicatedJob}}{{.TotalCompletions}} {{.MaxConcurrent}}{{end}}",
        "3 2",
    ),
)];
