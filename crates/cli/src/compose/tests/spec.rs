//! All keys of the compose-spec: each is read, and either changes what is deployed or is warned of with its line.

use super::*;

/// Keys of a service that change what is deployed, each with a value.
const WITH_EFFECT: &[(&str, &str)] = &[
    ("cap_add", "[NET_ADMIN]"),
    ("cap_drop", "[ALL]"),
    ("cgroup", "host"),
    ("cgroup_parent", "/parent"),
    ("command", "sleep 1"),
    (
        "configs",
        "[{source: c, target: /c, uid: '1', gid: '1', mode: 0440}]",
    ),
    ("cpus", "0.5"),
    ("cpuset", "0-1"),
    (
        "depends_on",
        "{db: {condition: service_healthy, required: false, restart: false}}",
    ),
    (
        "deploy",
        "{mode: replicated, replicas: 2, endpoint_mode: dnsrr, labels: {a: b}, \
         update_config: {parallelism: 2, delay: 1s, failure_action: rollback, monitor: 1s, max_failure_ratio: 0.1, order: start-first}, \
         rollback_config: {parallelism: 2, delay: 1s, failure_action: pause, monitor: 1s, max_failure_ratio: 0.1, order: stop-first}, \
         resources: {limits: {cpus: '1', memory: 64M, pids: 10}, reservations: {cpus: '0.5', memory: 32M, \
         generic_resources: [{discrete_resource_spec: {kind: gpu, value: 1}}], devices: [{capabilities: [gpu], driver: cdi, \
         device_ids: [vendor.com/gpu=0]}]}}, \
         restart_policy: {condition: on-failure, delay: 1s, max_attempts: 2, window: 1m}, \
         placement: {constraints: [node.role==manager], preferences: [{spread: node.labels.zone}], max_replicas_per_node: 1}}",
    ),
    ("device_cgroup_rules", "['c 1:3 mr']"),
    (
        "devices",
        "['/dev/zero:/dev/zap:r', {source: /dev/null, target: /dev/nil, permissions: r}]",
    ),
    ("dns", "10.0.0.1"),
    ("dns_opt", "[ndots:1]"),
    ("dns_search", "example.org"),
    ("domainname", "example.org"),
    ("entrypoint", "[sh, -c]"),
    ("environment", "{A: b}"),
    ("extends", "{service: db}"),
    ("extra_hosts", "['db:10.0.0.1']"),
    ("gpus", "[{driver: cdi, device_ids: [vendor.com/gpu=0]}]"),
    ("group_add", "[wheel]"),
    (
        "healthcheck",
        "{test: [CMD, true], interval: 1s, timeout: 1s, retries: 2, start_period: 1s, start_interval: 1s}",
    ),
    ("hostname", "web"),
    ("init", "true"),
    ("ipc", "host"),
    ("labels", "{a: b}"),
    ("logging", "{driver: json-file, options: {max-size: 1m}}"),
    ("mem_limit", "64m"),
    ("mem_reservation", "32m"),
    ("mem_swappiness", "10"),
    ("memswap_limit", "128m"),
    ("network_mode", "host"),
    (
        "networks",
        "{n: {aliases: [a], driver_opts: {a: b}, priority: 1}}",
    ),
    ("oom_kill_disable", "true"),
    ("oom_score_adj", "5"),
    ("pid", "host"),
    ("pids_limit", "10"),
    ("platform", "linux/amd64"),
    (
        "ports",
        "['80', '81:80/udp', {name: x, target: 90, published: '91', protocol: tcp, mode: host, app_protocol: http}]",
    ),
    ("privileged", "true"),
    ("profiles", "[debug]"),
    ("pull_policy", "always"),
    ("read_only", "true"),
    ("restart", "on-failure:3"),
    ("scale", "2"),
    (
        "secrets",
        "[s, {source: s, target: t, uid: '1', gid: '1', mode: 0440}]",
    ),
    ("security_opt", "[no-new-privileges]"),
    ("shm_size", "64m"),
    ("stdin_open", "true"),
    ("stop_grace_period", "1s"),
    ("stop_signal", "SIGINT"),
    ("sysctls", "{net.core.somaxconn: 1}"),
    ("tmpfs", "/t"),
    ("tty", "true"),
    ("ulimits", "{nofile: {soft: 1, hard: 2}, nproc: 3}"),
    ("user", "me"),
    ("userns_mode", "host"),
    ("uts", "host"),
    (
        "volumes",
        "['v:/v:ro', {type: volume, source: v, target: /w, read_only: true, volume: {nocopy: true, subpath: a}}, \
         {type: bind, source: /etc, target: /e, bind: {propagation: rslave, create_host_path: true}}, \
         {type: tmpfs, target: /t, tmpfs: {size: 1m, mode: 0700}}]",
    ),
    ("working_dir", "/w"),
];

/// Keys that a stack cannot do anything with.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("annotations", "{a: b}"),
    ("attach", "false"),
    ("blkio_config", "{weight: 300}"),
    ("build", "{context: .}"),
    ("container_name", "web"),
    ("cpu_count", "1"),
    ("cpu_percent", "50"),
    ("cpu_period", "1000"),
    ("cpu_quota", "1000"),
    ("cpu_rt_period", "1000"),
    ("cpu_rt_runtime", "1000"),
    ("cpu_shares", "10"),
    ("credential_spec", "{file: a}"),
    ("develop", "{watch: [{path: ., action: sync, target: /a}]}"),
    ("expose", "['80']"),
    ("external_links", "[a]"),
    ("isolation", "default"),
    ("links", "[db]"),
    ("mac_address", "02:00:00:00:00:01"),
    ("models", "[m]"),
    ("post_start", "[{command: a}]"),
    ("pre_stop", "[{command: a}]"),
    ("provider", "{type: a}"),
    ("pull_refresh_after", "1d"),
    ("runtime", "runc"),
    ("storage_opt", "{size: 1G}"),
    ("use_api_socket", "true"),
];

/// A file with a service that has this key on line 4.
fn with(key: &str, value: &str) -> String {
    format!(
        "services:\n  web:\n    image: a\n    {key}: {value}\n  db: {{image: b, command: c}}\n\
         networks: {{n: {{}}}}\nvolumes: {{v: {{}}}}\nsecrets: {{s: {{environment: PASSWORD}}}}\nconfigs: {{c: {{content: x}}}}\n"
    )
}

#[test]
fn every_key_of_a_service_takes_effect_or_is_warned_of() {
    let plain = stack(&with("x-nothing", "1")).unwrap();
    assert_eq!(plain.warnings, Vec::<String>::new());
    for (key, value) in WITH_EFFECT {
        let read = stack(&with(key, value)).unwrap_or_else(|error| panic!("{key}: {error:#}"));
        assert_ne!(read.services, plain.services, "{key}");
        let about = format!("services.web.{key} has no effect");
        let ignored = read.warnings.iter().find(|line| line.contains(&about));
        assert_eq!(ignored, None, "{key}");
    }
    for (key, value) in WITHOUT_EFFECT {
        let read = stack(&with(key, value)).unwrap_or_else(|error| panic!("{key}: {error:#}"));
        let want = format!("demo.yml:4: services.web.{key} has no effect in a stack");
        assert_eq!(read.warnings, [want]);
        assert_eq!(read.services, plain.services, "{key}");
    }
}

/// Keys below those of a service that change nothing, with the path that the warning names.
const INNER_WITHOUT_EFFECT: &[(&str, &str, &str)] = &[
    (
        "ports",
        "[{target: 90, published: '91', name: x}]",
        "ports[0].name",
    ),
    (
        "ports",
        "[{target: 90, published: '91', app_protocol: http}]",
        "ports[0].app_protocol",
    ),
    ("networks", "{n: {priority: 1}}", "networks.n.priority"),
    (
        "networks",
        "{n: {gw_priority: 1}}",
        "networks.n.gw_priority",
    ),
    (
        "networks",
        "{n: {interface_name: eth7}}",
        "networks.n.interface_name",
    ),
    (
        "networks",
        "{n: {mac_address: '02:00:00:00:00:01'}}",
        "networks.n.mac_address",
    ),
    (
        "networks",
        "{n: {link_local_ips: [169.254.1.1]}}",
        "networks.n.link_local_ips",
    ),
    (
        "volumes",
        "[{type: bind, source: /e, target: /e, consistency: cached}]",
        "volumes[0].consistency",
    ),
    (
        "volumes",
        "[{type: bind, source: /e, target: /e, bind: {selinux: z}}]",
        "volumes[0].bind.selinux",
    ),
    (
        "volumes",
        "['/e:/e:ro,z']",
        "volumes[0] has the option z, which",
    ),
    (
        "volumes",
        "['v:/e:cached']",
        "volumes[0] has the option cached, which",
    ),
    (
        "env_file",
        "[{path: /nothing, required: false, format: raw}]",
        "env_file[0].format",
    ),
    (
        "depends_on",
        "{db: {condition: service_started, restart: true}}",
        "depends_on.db.restart",
    ),
];

#[test]
fn keys_within_keys_that_have_no_effect_are_warned_of() {
    for (key, value, path) in INNER_WITHOUT_EFFECT {
        let read = stack(&with(key, value)).unwrap_or_else(|error| panic!("{path}: {error:#}"));
        let want = format!("demo.yml:4: services.web.{path} has no effect in a stack");
        assert_eq!(read.warnings, [want]);
    }
    let named = |name: &str| {
        let text = format!("name: {name}\nservices: {{web: {{image: a}}}}\n");
        stack(&text).unwrap().warnings
    };
    assert_eq!(named("demo"), Vec::<String>::new());
    let want = "demo.yml:1: name has no effect in a stack: this one is called \"demo\"";
    assert_eq!(named("shop"), [want]);
}

#[test]
fn every_key_outside_of_services_is_read() {
    let text = "
version: '3.8'
name: shop
x-common: {a: b}
services:
  web:
    image: a
    networks: [n, far]
    volumes: ['v:/v', 'far:/far']
    secrets: [s, far]
    configs: [c, far]
networks:
  n:
    name: other
    driver: overlay
    driver_opts: {encrypted: ''}
    attachable: true
    internal: true
    enable_ipv6: true
    labels: {a: b}
    ipam: {driver: default, config: [{subnet: 10.9.0.0/24, ip_range: 10.9.0.0/25, gateway: 10.9.0.1}]}
  far: {external: true, name: far}
volumes:
  v: {name: other, driver: local, driver_opts: {type: tmpfs}, labels: {a: b}}
  far: {external: true}
secrets:
  s: {name: other, environment: PASSWORD, labels: {a: b}, template_driver: golang}
  far: {external: true}
configs:
  c: {name: other, content: x, labels: {a: b}, template_driver: golang}
  far: {external: true}
";
    let read = stack(text).unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(read.services.len(), 1);
    assert_eq!(read.networks.len(), 2);
    let unknown = stack("services: {web: {image: a}}\nservises: {}\n").unwrap_err();
    assert!(format!("{unknown:#}").contains("demo.yml:2"), "{unknown:#}");
}
