//! Options that take out what was given, and what is seen then.

use super::{
    Given,
    Seen::{Container, Inside, Service},
};

/// Options that take out what those above have put in, and what is seen then.
pub(super) const GONE: [(&str, Given); 2] = [
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
            // Whatever has one value gets its first one back.
            (
                &["--entrypoint", "", "--args", "sleep 100000"],
                Inside("tr '\\0' ' ' < /proc/1/cmdline", "sleep 100000"),
            ),
            (
                &["--hostname", ""],
                Inside("test $(hostname) != all-1 && echo other", "other"),
            ),
            (&["--workdir", ""], Inside("readlink /proc/1/cwd", "/")),
            (
                &["--user", ""],
                Inside("awk '/^Uid/ {print $2}' /proc/1/status", "0"),
            ),
            (
                &["--read-only=false"],
                Inside("touch /new && echo written", "written"),
            ),
            (
                &["--tty=false"],
                Inside(
                    "readlink /proc/1/fd/1 | cut -d/ -f1-3 | grep -c pts; true",
                    "0",
                ),
            ),
            (
                &["--stop-signal", ""],
                Service("{{.Spec.TaskTemplate.ContainerSpec.StopSignal}}", ""),
            ),
            // What is dropped is no longer added, and the other way round.
            (
                &["--cap-add", "CHOWN", "--cap-drop", "NET_ADMIN"],
                Inside(
                    "echo $((0x$(awk '/^CapBnd/ {print $2}' /proc/self/status) & 0x1001))",
                    "1",
                ),
            ),
            (
                &["--oom-score-adj", "0"],
                Inside("cat /proc/1/oom_score_adj", "0"),
            ),
            (
                &[
                    "--limit-cpu",
                    "0",
                    "--limit-memory",
                    "0",
                    "--limit-pids",
                    "0",
                ],
                Container(
                    "{{.HostConfig.NanoCpus}} {{.HostConfig.Memory}} {{with .HostConfig.PidsLimit}}{{.}}{{else}}none{{end}}",
                    "0 0 none",
                ),
            ),
            (
                &["--reserve-cpu", "0", "--reserve-memory", "0"],
                Container("{{.HostConfig.MemoryReservation}}", "0"),
            ),
            (
                &["--generic-resource-rm", "apple"],
                Inside("echo ${DOCKER_RESOURCE_APPLE-none}", "none"),
            ),
            (
                &["--restart-condition", "any"],
                Service("{{.Spec.TaskTemplate.RestartPolicy.Condition}}", "any"),
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
            (&["--init=false"], Inside("cat /proc/1/comm", "sleep")),
            (
                &["--endpoint-mode", "vip"],
                Service("{{.Spec.EndpointSpec.Mode}}", "vip"),
            ),
            (
                &["--replicas-max-per-node", "0"],
                Service(
                    "{{with .Spec.TaskTemplate.Placement}}{{.MaxReplicas}}{{else}}0{{end}}",
                    "0",
                ),
            ),
            (
                &["--log-driver", "json-file"],
                Container("{{.HostConfig.LogConfig.Type}}", "json-file"),
            ),
            (
                &["--image", "shoal-busybox:other", "--force"],
                Container("{{.Config.Image}}", "shoal-busybox:other"),
            ),
            (&[], Service("{{.Spec.TaskTemplate.ForceUpdate}}", "1")),
        ],
    ),
];
