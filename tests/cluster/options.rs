//! Every option of a service, given by docker's own client, seen where it takes effect.

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use shoal_tests::{
    busybox::{self, BUSYBOX},
    lab::{TestLab, text},
    skipped, wait,
};

/// Docker's client pointed at the lab's first host.
pub(crate) fn docker(lab: &TestLab, words: &[&str]) -> Result<String> {
    let mut docker = Command::new("docker");
    docker.env("DOCKER_HOST", lab.docker_host("n1"));
    docker.args(words).stdin(Stdio::null());
    text(&docker.output()?).with_context(|| format!("docker {}", words.join(" ")))
}

/// Where an option is seen.
pub(crate) enum Seen {
    /// Output of a shell command in the task.
    Inside(&'static str, &'static str),
    /// A template over the container.
    Container(&'static str, &'static str),
    /// A template over the service.
    Service(&'static str, &'static str),
    /// A template over a volume.
    Volume(&'static str, &'static str, &'static str),
}
use Seen::{Container, Inside, Service, Volume};

impl Seen {
    /// Waits until it is seen: an update may still be replacing the task.
    pub(crate) fn check(&self, lab: &TestLab, service: &str, option: &str) -> Result<()> {
        let (Inside(_, want) | Container(_, want) | Service(_, want) | Volume(_, _, want)) = self;
        wait(&format!("{option} to show {want:?}"), || {
            let seen = self.look(lab, service)?;
            let seen = seen.trim();
            Ok(if seen == *want {
                Ok(())
            } else {
                Err(seen.to_owned())
            })
        })
    }

    fn look(&self, lab: &TestLab, service: &str) -> Result<String> {
        // Asked for each time: the container of an earlier look may be that of the task before.
        let container = || -> Result<String> {
            let filter = format!("label=com.docker.swarm.service.name={service}");
            let ids = docker(lab, &["ps", "-q", "-f", &filter])?;
            let mut lines = ids.lines();
            match (lines.next(), lines.next()) {
                (Some(id), None) => Ok(id.to_owned()),
                _ => bail!("not one container: {ids:?}"),
            }
        };
        match self {
            Inside(command, _) => docker(lab, &["exec", &container()?, "sh", "-c", command]),
            Container(template, _) => docker(lab, &["inspect", "-f", template, &container()?]),
            Service(template, _) => docker(lab, &["service", "inspect", "-f", template, service]),
            Volume(volume, template, _) => {
                docker(lab, &["volume", "inspect", "-f", template, volume])
            }
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
];

/// Those that go badly with some of the others.
const APART: &[(&[&str], Seen)] = &[
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
        &["--replicas-max-per-node", "1"],
        Service("{{.Spec.TaskTemplate.Placement.MaxReplicas}}", "1"),
    ),
];

/// Options that take out what those above have put in, and what is seen then.
const GONE: [(&str, &[(&[&str], Seen)]); 2] = [
    (
        "all",
        &[
            (&["--env-rm", "A"], Inside("echo ${A-none}", "none")),
            (
                &["--container-label-rm", "c"],
                Container(
                    "{{with index .Config.Labels \"c\"}}{{.}}{{else}}none{{end}}",
                    "none",
                ),
            ),
            (
                &["--label-rm", "e"],
                Service(
                    "{{with index .Spec.Labels \"e\"}}{{.}}{{else}}none{{end}}",
                    "none",
                ),
            ),
            (
                &["--group-rm", "extra"],
                Inside(
                    "awk '/^Groups/ {print /2000/ ? \"in\" : \"out\"}' /proc/1/status",
                    "out",
                ),
            ),
            (
                &["--mount-rm", "/scratch", "--mount-rm", "/data"],
                Inside("grep -cE ' /(scratch|data) ' /proc/mounts; true", "0"),
            ),
            (
                &["--secret-rm", "key"],
                Inside("ls /run/secrets 2>/dev/null | wc -l", "0"),
            ),
            (
                &["--config-rm", "site"],
                Inside("ls /etc/site.conf 2>/dev/null | wc -l", "0"),
            ),
            (
                &["--ulimit-rm", "nofile"],
                Inside(
                    "awk '/open files/ {print $4 == 1234 ? \"kept\" : \"gone\"}' /proc/1/limits",
                    "gone",
                ),
            ),
            (
                &["--sysctl-rm", "net.ipv4.ip_unprivileged_port_start"],
                Inside(
                    "test $(cat /proc/sys/net/ipv4/ip_unprivileged_port_start) != 7 && echo gone",
                    "gone",
                ),
            ),
            (
                &[
                    "--dns-rm",
                    "10.1.2.3",
                    "--dns-search-rm",
                    "example.org",
                    "--dns-option-rm",
                    "ndots:3",
                ],
                Inside("grep -cE 'example.org|ndots:3' /etc/resolv.conf; true", "0"),
            ),
            (
                &["--host-rm", "db:10.0.0.9"],
                Inside("grep -c 10.0.0.9 /etc/hosts; true", "0"),
            ),
            (
                &["--no-healthcheck"],
                Container(
                    "{{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}}",
                    "none",
                ),
            ),
            (
                &["--constraint-rm", "node.hostname==n1"],
                Service(
                    "{{with .Spec.TaskTemplate.Placement}}{{len .Constraints}}{{else}}0{{end}}",
                    "0",
                ),
            ),
            (
                &["--placement-pref-rm", "spread=node.labels.zone"],
                Service(
                    "{{with .Spec.TaskTemplate.Placement}}{{len .Preferences}}{{else}}0{{end}}",
                    "0",
                ),
            ),
        ],
    ),
    (
        "apart",
        &[
            (
                &["--network-rm", "net"],
                Service("{{len .Spec.TaskTemplate.Networks}}", "0"),
            ),
            (
                &[
                    "--publish-rm",
                    "mode=host,published=8099,target=80,protocol=udp",
                ],
                Service("{{len .Endpoint.Ports}}", "0"),
            ),
        ],
    ),
];

/// A lab of one host with what the options refer to, and the folder of their files.
fn ready() -> Result<Option<(TestLab, tempfile::TempDir)>> {
    let found = Command::new("docker").arg("--version").output();
    if !found.is_ok_and(|said| said.status.success()) {
        skipped("docker's client is not on PATH");
        return Ok(None);
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
    let deep = ["run", "--rm", "-v", "deep:/deep", BUSYBOX, "sh", "-c"];
    let fill = ["mkdir /deep/inner; touch /deep/inner/here"];
    docker(&lab, &[&deep[..], &fill].concat())?;
    let shared = "mkdir -p /run/shared && mount -t tmpfs none /run/shared && mount --make-shared /run/shared";
    text(&lab.output("n1", &["sh", "-c", shared])?)?;
    Ok(Some((lab, folder)))
}

#[test]
fn every_option_of_a_service_takes_effect_in_its_task() -> Result<()> {
    let Some((lab, _folder)) = ready()? else {
        return Ok(());
    };
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

/// Options of one command, and what is seen of each.
type Changes<'a> = Vec<(Vec<String>, &'a Seen)>;

#[test]
fn every_option_of_an_update_reaches_the_task_and_is_taken_out_again() -> Result<()> {
    let Some((lab, _folder)) = ready()? else {
        return Ok(());
    };
    let ours = |words: &[&str]| lab.on("n1", words);
    let dockers = |words: &[&str]| docker(&lab, words);
    let clients: [&dyn Fn(&[&str]) -> Result<String>; 2] = [&dockers, &ours];
    for client in clients {
        let update = |name: &str, changes: Changes<'_>, more: &[&str]| -> Result<()> {
            let mut words = vec!["service", "update", "--detach", "--no-resolve-image"];
            let options = changes.iter().flat_map(|(option, _)| option);
            words.extend(options.map(String::as_str));
            words.extend(more);
            words.push(name);
            client(&words)?;
            for (option, seen) in changes {
                seen.check(&lab, name, &option.join(" "))?;
            }
            Ok(())
        };
        for (name, options) in [("all", CREATE), ("apart", APART)] {
            // With none of them at first.
            let create = "service create --detach --no-resolve-image --stop-grace-period 0s --name";
            let mut words: Vec<&str> = create.split(' ').collect();
            words.extend([name, BUSYBOX, "sleep", "100000"]);
            client(&words)?;
            let changes = options
                .iter()
                .filter_map(|(option, seen)| Some((of_update(option)?, seen)));
            let args = ["--args", "\"sleep 100000\""];
            let more = if name == "all" { &args[..] } else { &[] };
            update(name, changes.collect(), more)?;
        }
        for (name, options) in &GONE {
            let words = |option: &[&str]| option.iter().map(|&word| word.to_owned()).collect();
            let changes = options.iter().map(|(option, seen)| (words(option), seen));
            update(name, changes.collect(), &[])?;
        }
        docker(&lab, &["service", "rm", "all", "apart"])?;
    }
    Ok(())
}

/// An option of `service create` as `service update` has it; none for a file of variables.
fn of_update(option: &[&str]) -> Option<Vec<String>> {
    const LISTS: [&str; 17] = [
        "--config",
        "--constraint",
        "--container-label",
        "--dns",
        "--dns-option",
        "--dns-search",
        "--env",
        "--group",
        "--host",
        "--label",
        "--mount",
        "--network",
        "--placement-pref",
        "--publish",
        "--secret",
        "--sysctl",
        "--ulimit",
    ];
    if option.first() == Some(&"--env-file") {
        return None;
    }
    let word = |word: &&str| match *word {
        list if LISTS.contains(&list) => format!("{list}-add"),
        other => other.to_owned(),
    };
    Some(option.iter().map(word).collect())
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
