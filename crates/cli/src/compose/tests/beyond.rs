//! What Swarm's API cannot say, and what must not be said.

use super::*;

fn labels(service: &str) -> String {
    let text = format!("services:\n  web:\n    image: a\n{service}");
    match stack(&text) {
        Ok(stack) => {
            let labels = stack.services[0]["Labels"]
                .as_object()
                .cloned()
                .unwrap_or_default();
            let ours = labels
                .iter()
                .filter(|(label, _)| label.starts_with("shoal."));
            let ours = ours.map(|(label, value)| format!("{label}={}", value.as_str().unwrap()));
            stack
                .warnings
                .into_iter()
                .chain(ours)
                .collect::<Vec<_>>()
                .join("\n")
        }
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn options_that_swarm_lacks_become_labels() {
    expect![[r#"
        shoal.cdi-devices=nvidia.com/gpu=all,vendor.com/toy=0
        shoal.cgroup-parent=/batch
        shoal.cgroupns=host
        shoal.cpuset=0-1
        shoal.device-cgroup-rules=c 42:* rwm
        shoal.devices=/dev/null:/dev/zap,/dev/zero:/dev/zero:r
        shoal.domainname=example.org
        shoal.ipc=host
        shoal.memory-swap=-1
        shoal.memory-swappiness=10
        shoal.oom-kill-disable=true
        shoal.pid=host
        shoal.privileged=true
        shoal.pull-policy=missing
        shoal.security-opt=no-new-privileges
        shoal.shm-size=268435456
        shoal.userns=host
        shoal.uts=host"#]]
    .assert_eq(&labels(
        "    privileged: true\n    devices: ['/dev/null:/dev/zap', {source: /dev/zero, permissions: r}, vendor.com/toy=0]\n    \
         device_cgroup_rules: ['c 42:* rwm']\n    security_opt: [no-new-privileges]\n    shm_size: 256m\n    ipc: host\n    pid: host\n    \
         uts: host\n    userns_mode: host\n    cgroup: host\n    cgroup_parent: /batch\n    domainname: example.org\n    pull_policy: if_not_present\n    \
         cpuset: 0-1\n    memswap_limit: -1\n    mem_swappiness: 10\n    oom_kill_disable: true\n    gpus: all\n",
    ));
    assert_eq!(
        labels("    pid: service:db\n"),
        "demo.yml:4: services.web.pid has no effect in a stack: tasks share no namespaces"
    );
    assert_eq!(
        labels("    ipc: everything\n"),
        "demo.yml:4: services.web.ipc must be one of none, private, shareable, host, not \"everything\""
    );
    assert_eq!(
        labels("    devices: [null0]\n"),
        "demo.yml:4: services.web.devices[0] must be a path of the host or a CDI name, not \"null0\""
    );
}

#[test]
fn depends_on_becomes_a_label_and_never_a_circle() {
    assert_eq!(
        labels(
            "    depends_on: {db: {condition: service_healthy, restart: true}, mq: {condition: service_started, required: false}}\n  db: {image: b}\n"
        ),
        "demo.yml:4: services.web.depends_on.db.restart has no effect in a stack"
    );
    let text = "services:\n  web:\n    image: a\n    depends_on:\n      db: {condition: service_healthy}\n  db:\n    image: b\n    depends_on: [mq]\n  mq:\n    image: c\n";
    let read = stack(text).unwrap();
    let names: Vec<_> = read
        .services
        .iter()
        .map(|service| crate::json::text(service, "/Name"))
        .collect();
    assert_eq!(names, ["demo_mq", "demo_db", "demo_web"]);
    assert_eq!(
        read.services[2]["Labels"]["shoal.depends-on"],
        "demo_db:service_healthy"
    );
    let circle = format!("{text}    depends_on: [web]\n");
    assert_eq!(
        stack(&circle).unwrap_err().to_string(),
        "demo.yml:5: services.web.depends_on.db makes services wait for each other: db → mq → web → db"
    );
    assert_eq!(
        labels("    depends_on: {db: {condition: healthy}}\n  db: {image: b}\n"),
        "demo.yml:4: services.web.depends_on.db.condition must be one of service_started, service_healthy, service_completed_successfully, not \"healthy\""
    );
}

#[test]
fn two_things_in_one_place_are_refused() {
    for (service, problem) in [
        (
            "    volumes: ['/a:/x', '/b:/x/']\n",
            "demo.yml:4: services.web.volumes[1] has the target \"/x\", which demo.yml:4 has already",
        ),
        (
            "    volumes: ['/a:/x']\n    tmpfs: /x\n",
            "demo.yml:5: services.web.tmpfs has the target \"/x\", which demo.yml:4 has already",
        ),
        (
            "    ports: ['80:80', {target: 81, published: 80}]\n",
            "demo.yml:4: services.web.ports[1] has the target \"80/tcp\", which demo.yml:4 has already",
        ),
        (
            "    configs: [a, {source: b, target: /a}]\nconfigs: {a: {external: true}, b: {external: true}}\n",
            "demo.yml:4: services.web.configs[1] has the target \"/a\", which demo.yml:4 has already",
        ),
        (
            "    network_mode: host\n    networks: [default]\n",
            "demo.yml:4: services.web.network_mode and networks cannot be set at the same time",
        ),
        (
            "    cpus: 2\n    deploy: {resources: {limits: {cpus: '1'}}}\n",
            "demo.yml:4: services.web.cpus and deploy.resources say different things",
        ),
        (
            "    volumes_from: [db]\n",
            "demo.yml:4: services.web.volumes_from is not possible in a stack: tasks need not be on one node",
        ),
    ] {
        assert_eq!(labels(service), problem);
    }
}

#[test]
fn keys_outside_of_deploy_say_the_same_as_those_in_it() {
    let old = stack("services: {a: {image: x, cpus: 0.5, mem_limit: 64m, mem_reservation: 32m, pids_limit: 10, scale: 3, network_mode: host, restart: on-failure:3}}").unwrap();
    let new = stack("services: {a: {image: x, networks: [h], deploy: {replicas: 3, restart_policy: {condition: on-failure, max_attempts: 3}, resources: {limits: {cpus: '0.5', memory: 64m, pids: 10}, reservations: {memory: 32m}}}}}\nnetworks: {h: {external: true, name: host}}").unwrap();
    assert_eq!(old.services, new.services);
    let placed = stack("services: {a: {image: x, platform: linux/amd64}}").unwrap();
    assert_eq!(
        placed.services[0]["TaskTemplate"]["Placement"]["Constraints"],
        serde_json::json!(["node.platform.os==linux", "node.platform.arch==x86_64"])
    );
}

#[test]
fn what_yaml_forbids_is_named_with_its_line() {
    for (text, line, word) in [
        ("services:\n\tweb:\n", 2, "tab"),
        (
            "services:\n  web:\n    image: a\n    image: b\n",
            4,
            "duplicate",
        ),
        (
            "services:\n  web: {image: a}\n  web: {image: b}\n",
            3,
            "duplicate",
        ),
        ("a: &a [*a]\n", 1, ""),
    ] {
        let problem = stack(text).unwrap_err();
        let problem = problem
            .downcast_ref::<Problem>()
            .expect("a problem with a place");
        assert_eq!(
            (problem.file.as_str(), problem.line),
            ("demo.yml", line),
            "{problem}"
        );
        assert!(problem.what.to_lowercase().contains(word), "{problem}");
    }
}

#[test]
fn anchors_and_merge_keys_are_followed() {
    let text = "x-a: &a {environment: {A: 1, B: 1}, init: true}\nx-b: &b {environment: {B: 2}, tty: true}\nservices:\n  web:\n    <<: [*b, *a]\n    image: x\n    labels: &l {k: v}\n    deploy: {labels: *l}\n";
    let read = stack(text).unwrap();
    let container = &read.services[0]["TaskTemplate"]["ContainerSpec"];
    assert_eq!(container["Env"], serde_json::json!(["B=2"]));
    assert_eq!(
        (&container["Init"], &container["TTY"]),
        (&true.into(), &true.into())
    );
    assert_eq!(read.services[0]["Labels"]["k"], "v");
}
