//! Every option of a service, given by docker's own client, seen where it takes effect.

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use shoal_tests::{
    busybox::{self, BUSYBOX},
    lab::{TestLab, text},
    skipped, wait,
};

/// Docker's client pointed at the lab's first host.
fn docker(lab: &TestLab, words: &[&str]) -> Result<String> {
    let mut docker = Command::new("docker");
    docker.env("DOCKER_HOST", lab.docker_host("n1"));
    docker.args(words).stdin(Stdio::null());
    text(&docker.output()?).with_context(|| format!("docker {}", words.join(" ")))
}

/// Where an option is seen.
enum Seen {
    /// Output of a shell command in the task.
    Inside(&'static str, &'static str),
    /// A template over the container.
    Container(&'static str, &'static str),
    /// A template over the service.
    Service(&'static str, &'static str),
}
use Seen::{Container, Inside, Service};

impl Seen {
    fn check(&self, lab: &TestLab, service: &str, option: &str) -> Result<()> {
        let ask = |words: &[&str], want: &str| -> Result<()> {
            // An update may still be replacing the task.
            wait(&format!("{option} to show {want:?}"), || {
                let seen = docker(lab, words)?;
                let seen = seen.trim();
                Ok(if seen == want {
                    Ok(())
                } else {
                    Err(seen.to_owned())
                })
            })
        };
        let container = || -> Result<String> {
            let filter = format!("label=com.docker.swarm.service.name={service}");
            wait("the container", || {
                let ids = docker(lab, &["ps", "-q", "-f", &filter])?;
                let mut lines = ids.lines();
                Ok(match (lines.next(), lines.next()) {
                    (Some(id), None) => Ok(id.to_owned()),
                    _ => Err(ids.clone()),
                })
            })
        };
        match self {
            Inside(command, want) => ask(&["exec", &container()?, "sh", "-c", command], want),
            Container(template, want) => ask(&["inspect", "-f", template, &container()?], want),
            Service(template, want) => ask(&["service", "inspect", "-f", template, service], want),
        }
    }
}

/// Options of `docker service create` and where they are seen.
const CREATE: &[(&[&str], Seen)] = &[
    (
        &["--hostname", "{{.Service.Name}}-{{.Task.Slot}}"],
        Inside("hostname", "all-1"),
    ),
    (
        &["--env", "A=b {{.Node.Hostname}}"],
        Inside("echo $A", "b n1"),
    ),
    (
        &["--env-file", "/tmp/shoal-options.env"],
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
        Container(
            "{{.HostConfig.CapAdd}} {{.HostConfig.CapDrop}}",
            "[CAP_NET_ADMIN] [CAP_CHOWN]",
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
            "--health-start-interval",
            "500ms",
        ],
        Container(
            "{{.State.Health.Status}} {{.Config.Healthcheck.Test}} {{.Config.Healthcheck.Interval}} {{.Config.Healthcheck.Timeout}} {{.Config.Healthcheck.Retries}} {{.Config.Healthcheck.StartPeriod}} {{.Config.Healthcheck.StartInterval}}",
            "healthy [CMD-SHELL true] 1s 2s 4 3s 500ms",
        ),
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
];

/// Those that go badly with some of the others.
const APART: &[(&[&str], Seen)] = &[
    (&["--init"], Container("{{.HostConfig.Init}}", "true")),
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
        &["--replicas-max-per-node", "1"],
        Service("{{.Spec.TaskTemplate.Placement.MaxReplicas}}", "1"),
    ),
];

#[test]
fn every_option_of_a_service_takes_effect_in_its_task() -> Result<()> {
    let found = Command::new("docker").arg("--version").output();
    if !found.is_ok_and(|said| said.status.success()) {
        skipped("docker's client is not on PATH");
        return Ok(());
    }
    let lab = TestLab::up(1, 1)?;
    busybox::load(&lab, &["n1"])?;
    fs::write("/tmp/shoal-options.env", "FROM_FILE=yes\n")?;
    let folder = tempfile::tempdir()?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = folder.path().join(name);
        fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    };
    docker(&lab, &["secret", "create", "key", &file("key", "hunter2")?])?;
    docker(
        &lab,
        &[
            "config",
            "create",
            "--template-driver",
            "golang",
            "site",
            &file("site", "site of {{.Service.Name}}")?,
        ],
    )?;
    docker(&lab, &["network", "create", "-d", "overlay", "net"])?;

    for (name, options, command) in [
        ("all", CREATE, &["sleep 100000"][..]),
        ("apart", APART, &["sleep", "100000"]),
    ] {
        let mut words = vec!["service", "create", "--detach", "--no-resolve-image"];
        words.extend(["--name", name]);
        words.extend(options.iter().flat_map(|(option, _)| *option));
        words.push(BUSYBOX);
        words.extend(command);
        docker(&lab, &words)?;
        lab.wait_running(name, 1)?;
        for (option, seen) in options {
            seen.check(&lab, name, &option.join(" "))?;
        }
    }
    // Each node's own network, by docker's id for it.
    let words = "service create --detach --no-resolve-image --name own --network host";
    let words: Vec<&str> = words
        .split(' ')
        .chain([BUSYBOX, "sleep", "100000"])
        .collect();
    docker(&lab, &words)?;
    lab.wait_running("own", 1)?;
    Inside("hostname", "n1").check(&lab, "own", "--network host")?;

    let ports = docker(&lab, &["service", "ps", "--format", "{{.Ports}}", "apart"])?;
    assert_eq!(ports.trim(), "*:8099->80/udp");

    docker(&lab, &["service", "rm", "all", "apart", "own"])?;
    fs::remove_file("/tmp/shoal-options.env")?;

    let refused = docker(
        &lab,
        &[
            "service",
            "create",
            "--label",
            "shoal.privilege=true",
            BUSYBOX,
        ],
    );
    let said = format!("{:#}", refused.unwrap_err());
    assert!(
        said.contains("label 'shoal.privilege' is unknown"),
        "{said}"
    );
    Ok(())
}

/// What Swarm has no options for, in the labels that docker's client carries: of a service that is confined, and of one
/// that is not.
const BEYOND: [(&str, &[(&str, Seen)]); 2] = [
    (
        "tight",
        &[
            (
                "shoal.shm-size=32m",
                Inside("df -k /dev/shm | awk 'NR==2 {print $2}'", "32768"),
            ),
            (
                "shoal.security-opt=no-new-privileges",
                Inside("awk '/NoNewPrivs/ {print $2}' /proc/1/status", "1"),
            ),
            (
                "shoal.devices=/dev/zero:/dev/zap:r",
                Inside("head -c 3 /dev/zap | wc -c", "3"),
            ),
            (
                "shoal.memory-swap=128m",
                Container("{{.HostConfig.MemorySwap}}", "134217728"),
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
                Container("{{.HostConfig.IpcMode}}", "host"),
            ),
            ("shoal.uts=host", Inside("hostname", "n1")),
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
    Ok(())
}

#[test]
fn secrets_and_configs_have_swarms_rules() -> Result<()> {
    let lab = TestLab::up(1, 1)?;
    let folder = tempfile::tempdir()?;
    let file = |name: &str, bytes: usize| -> Result<String> {
        let path = folder.path().join(name);
        fs::write(&path, vec![b'x'; bytes])?;
        Ok(path.to_string_lossy().into_owned())
    };
    for (kind, bound) in [("secret", 512_000), ("config", 1_024_000)] {
        lab.on("n1", &[kind, "create", "most", &file("most", bound - 1)?])?;
        let (_, said) = lab.refused("n1", &[kind, "create", "x", &file("x", bound)?])?;
        let want = format!("{kind} data must be larger than 0 and less than {bound} bytes");
        assert!(said.contains(&want), "{said}");
        let (_, said) = lab.refused(
            "n1",
            &[
                kind,
                "create",
                "--template-driver",
                "perl",
                "x",
                &file("x", 1)?,
            ],
        )?;
        assert!(said.contains("unrecognized template type 'perl'"), "{said}");
        let flag = format!("--{kind}");
        let name = format!("uses-{kind}");
        lab.on(
            "n1",
            &[
                "service",
                "create",
                "-q",
                "--detach",
                "--name",
                &name,
                &flag,
                "most",
                "shoal-demo:latest",
                "idle",
            ],
        )?;
        let (_, said) = lab.refused("n1", &[kind, "rm", "most"])?;
        assert!(
            said.contains(&format!(
                "{kind} 'most' is in use by the following service: {name}"
            )),
            "{said}"
        );
        lab.on("n1", &["service", "rm", &name])?;
        lab.on("n1", &[kind, "rm", "most"])?;
    }
    Ok(())
}
