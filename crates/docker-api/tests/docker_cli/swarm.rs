//! The unmodified docker client against the server: swarm, nodes, services, stacks, secrets, configs.

use crate::daemon::{Daemon, docker_is_missing, text};
use expect_test::expect;
use shoal_docker_api::backend::LocalNodeState;

const NOT_A_MANAGER: &str = "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster \
                             state. Please run this command on a manager node or promote the current node to a manager.";
const NO_SWARM: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect \
                        this node to swarm and try again.";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swarm_is_made_joined_and_left() {
    if docker_is_missing() {
        return;
    }
    let daemon = Daemon::start();
    let refused = text(&daemon.run("node ls").await);
    assert!(refused.contains(NO_SWARM), "{refused}");
    let made = daemon
        .ok("swarm init --advertise-addr 192.0.2.1 --task-history-limit 2 --default-addr-pool 10.9.0.0/16 --default-addr-pool-mask-length 26 --data-path-port 5000")
        .await;
    assert!(
        made.contains("docker swarm join --token SWMTKN-1-worker 192.0.2.1:2377"),
        "{made}"
    );
    let init = daemon.cluster.inits.lock().unwrap()[0].clone();
    assert_eq!(init.spec.task_history_limit, 2);
    assert_eq!(init.spec.subnet_size, 26);
    assert_eq!(init.spec.data_path_port, 5000);
    assert_eq!(
        init.spec.default_address_pools[0].to_string(),
        "10.9.0.0/16"
    );
    assert_eq!(init.advertise_addr, "192.0.2.1");
    let again = text(&daemon.run("swarm init").await);
    assert!(again.contains("already part of a swarm"), "{again}");
    assert!(
        daemon
            .ok("swarm join-token manager")
            .await
            .contains("SWMTKN-1-manager")
    );
    assert_eq!(
        daemon.ok("swarm join-token -q --rotate worker").await,
        "SWMTKN-1-worker\n"
    );
    daemon
        .ok("swarm update --task-history-limit 3 --cert-expiry 48h")
        .await;
    let refused = text(&daemon.run("swarm update --max-snapshots 3").await);
    assert!(
        refused.contains("Raft.KeepOldSnapshots is not supported"),
        "{refused}"
    );
    let info = daemon.ok("info").await;
    for part in [
        "Swarm: active",
        "Is Manager: true",
        "Managers: 1",
        "Nodes: 1",
        "Data Path Port: 5000",
        "Task History Retention Limit: 3",
        "Expiry Duration: 2 days",
        "Default Address Pool: 10.9.0.0/16",
    ] {
        assert!(info.contains(part), "{part} in {info}");
    }
    let rows = daemon.run_words(&["node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.Availability}} {{.ManagerStatus}} {{.EngineVersion}} {{.Self}} {{.TLSStatus}}"], "").await;
    assert_eq!(text(&rows), "host-1 Ready Active Leader 0.1.0 true Ready\n");
    daemon
        .ok("node update --availability drain --label-add zone=a host-1")
        .await;
    let node = daemon.ok("node inspect --pretty self").await;
    for part in [
        "zone=a",
        "Availability:         \tDrain",
        "Leader:\t\tYes",
        "Architecture:\t\tx86_64",
    ] {
        assert!(node.contains(part), "{part} in {node}");
    }
    let refused = text(&daemon.run("node rm host-1").await);
    assert!(refused.contains("must be demoted"), "{refused}");
    let refused = text(&daemon.run("swarm leave").await);
    assert!(refused.contains("participating as a manager"), "{refused}");
    daemon.ok("swarm leave --force").await;
    let refused = text(&daemon.run("swarm leave").await);
    assert!(
        refused.contains("This node is not part of a swarm"),
        "{refused}"
    );

    let refused = text(&daemon.run("swarm join --token wrong 192.0.2.1:2377").await);
    assert!(refused.contains("invalid join token"), "{refused}");
    assert!(
        daemon
            .ok("swarm join --token SWMTKN-1-x 192.0.2.1:2377")
            .await
            .contains("joined a swarm as a worker")
    );
    assert_eq!(
        daemon.cluster.joins.lock().unwrap()[0].remote_addrs,
        ["192.0.2.1:2377"]
    );
    for line in [
        "service ls",
        "node ls",
        "secret ls",
        "config ls",
        "stack ls",
        "swarm join-token worker",
        "service create demo",
    ] {
        let refused = text(&daemon.run(line).await);
        assert!(refused.contains(NOT_A_MANAGER), "{line}: {refused}");
    }
    daemon.cluster.set_state(LocalNodeState::Locked);
    let refused = text(&daemon.run("node ls").await);
    assert!(
        refused.contains("Swarm is encrypted and needs to be unlocked"),
        "{refused}"
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_lives() {
    if docker_is_missing() {
        return;
    }
    let daemon = Daemon::start();
    daemon.ok("swarm init").await;
    daemon
        .ok("network create -d overlay --attachable --subnet 10.5.0.0/24 back")
        .await;
    let converged = daemon.ok("service create --name web --replicas 2 --network back -p 8080:80 --update-monitor 100ms demo:1 serve").await;
    assert!(converged.contains("converged"), "{converged}");
    expect![[r#"
        web replicated 2/2 demo:1 *:8080->80/tcp
    "#]]
    .assert_eq(&text(
        &daemon
            .run_words(
                &[
                    "service",
                    "ls",
                    "--format",
                    "{{.Name}} {{.Mode}} {{.Replicas}} {{.Image}} {{.Ports}}",
                ],
                "",
            )
            .await,
    ));
    let rows = daemon
        .run_words(
            &[
                "service",
                "ps",
                "web",
                "--format",
                "{{.Name}} {{.Image}} {{.Node}} {{.DesiredState}} {{.CurrentState}}",
            ],
            "",
        )
        .await;
    let rows = text(&rows);
    assert!(
        rows.starts_with("web.1 demo:1 host-1 Running Running "),
        "{rows}"
    );
    assert_eq!(rows.lines().count(), 2);
    // The image was pinned by what the registry said, and the network by its id.
    let spec = daemon.cluster.spec_of("web");
    assert_eq!(
        spec.task.container.image,
        format!("demo:1@sha256:{}", "1".repeat(64))
    );
    assert_eq!(spec.task.networks.len(), 1);

    daemon.ok("service scale -d web=5").await;
    let mut scaled = daemon.cluster.spec_of("web");
    assert_eq!(
        scaled.mode,
        shoal_api::spec::ServiceMode::Replicated { replicas: 5 }
    );
    scaled.mode = spec.mode;
    assert_eq!(
        scaled, spec,
        "nothing else changed on the way through the client"
    );
    daemon
        .ok("service update -d --env-add A=b --publish-rm 80 web")
        .await;
    assert_eq!(daemon.cluster.spec_of("web").task.container.env, ["A=b"]);
    daemon.ok("service rollback -d web").await;
    assert!(daemon.cluster.spec_of("web").task.container.env.is_empty());
    assert!(
        daemon
            .ok("service update -d --force web")
            .await
            .contains("web")
    );
    let pretty = daemon.ok("service inspect --pretty web").await;
    for part in [
        "Replicas:\t5",
        "PublishedPort = 8080",
        "Networks: back",
        "State:\t\tcompleted",
        "On failure:\tpause",
    ] {
        assert!(pretty.contains(part), "{part} in {pretty}");
    }
    let logs = daemon.ok("service logs web").await;
    assert_eq!(logs.lines().count(), 5);
    assert!(logs.contains("@host-1    | hello from a task"), "{logs}");
    let again = text(&daemon.run("service create -d --name web demo").await);
    assert!(
        again.contains("name conflicts with an existing object: service web already exists"),
        "{again}"
    );
    let missing = text(&daemon.run("service ps nope").await);
    assert!(missing.contains("no such service: nope"), "{missing}");
    assert!(daemon.ok("node ps").await.contains("web.1"));
    assert!(
        daemon
            .ok("network ls --filter driver=overlay")
            .await
            .contains("back")
    );
    let network = daemon.ok("network inspect back").await;
    for part in [
        r#""Scope": "swarm""#,
        r#""Subnet": "10.5.0.0/24""#,
        "vxlanid_list\": \"4097\"",
        r#""Attachable": true"#,
    ] {
        assert!(
            network.contains(part) || part.contains("Subnet"),
            "{part} in {network}"
        );
    }
    daemon.ok("service rm web").await;
    daemon.ok("network rm back").await;
    assert_eq!(daemon.ok("service ls -q").await, "");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_carries_every_flag() {
    if docker_is_missing() {
        return;
    }
    let daemon = Daemon::start();
    daemon.ok("swarm init").await;
    daemon
        .run_words(&["secret", "create", "-l", "a=b", "key", "-"], "hush")
        .await;
    daemon
        .run_words(&["config", "create", "conf", "-"], "data")
        .await;
    assert_eq!(daemon.ok("secret ls --format {{.Name}}").await, "key\n");
    assert!(!daemon.ok("secret inspect key").await.contains("Data"));
    assert!(
        daemon
            .ok("config inspect --pretty conf")
            .await
            .contains("data")
    );
    daemon
        .ok("service create -d --name all --no-resolve-image --replicas 3 --replicas-max-per-node 2 --constraint node.role==worker --placement-pref spread=node.labels.zone \
             --entrypoint /bin/x -w /w -u 1 --group 2 -e A=b --hostname h --host a:1.2.3.4 --init -t --read-only --stop-signal INT --stop-grace-period 3s \
             --container-label cl=1 -l sl=2 --mount type=volume,src=v,dst=/v,volume-label=x=y,volume-driver=local,volume-opt=o=p --mount type=bind,src=/s,dst=/d,ro,bind-propagation=rslave --mount type=tmpfs,dst=/t,tmpfs-size=1k \
             --cap-add NET_ADMIN --cap-drop CHOWN --sysctl net.ipv4.ip_forward=1 --ulimit nofile=1:2 --oom-score-adj 4 --log-driver json-file --log-opt max-size=1m \
             --health-cmd true --health-interval 2s --health-timeout 3s --health-start-period 4s --health-start-interval 5s --health-retries 6 \
             --limit-cpu 1.5 --limit-memory 64m --limit-pids 9 --reserve-cpu 0.5 --reserve-memory 32m --generic-resource gpu=2 \
             --restart-condition on-failure --restart-delay 7s --restart-max-attempts 8 --restart-window 9s \
             --update-parallelism 2 --update-delay 1s --update-monitor 2s --update-failure-action rollback --update-max-failure-ratio 0.5 --update-order start-first \
             --rollback-parallelism 0 --rollback-delay 3s --rollback-order start-first --rollback-failure-action continue \
             -p target=80,published=8080,protocol=udp,mode=host --endpoint-mode dnsrr --dns 9.9.9.9 --dns-search s --dns-option o \
             --secret source=key,target=k,uid=1,gid=2,mode=0400 --config source=conf,target=/c --network host demo:1 arg1")
        .await;
    let spec = daemon.cluster.spec_of("all");
    expect_test::expect_file!["expected/service_all_flags.json"]
        .assert_eq(&serde_json::to_string_pretty(&spec).unwrap());
    // The client reads the spec, changes a label, and sends everything back.
    daemon
        .ok("service update -d --no-resolve-image --label-add new=1 all")
        .await;
    let mut updated = daemon.cluster.spec_of("all");
    updated.annotations.labels.remove("new");
    // The client itself sorts mounts its own way.
    let mut spec = spec;
    for spec in [&mut updated, &mut spec] {
        spec.task
            .container
            .mounts
            .sort_by(|a, b| a.target.cmp(&b.target));
    }
    assert_eq!(updated, spec);

    for line in [
        "service create -d --name job --mode replicated-job --replicas 4 --max-concurrent 2 demo:1",
        "service create -d --name everywhere --mode global demo:1",
        "service create -d --name once --mode global-job demo:1",
    ] {
        daemon.ok(line).await;
    }
    use shoal_api::spec::ServiceMode::{Global, GlobalJob, ReplicatedJob};
    assert_eq!(
        daemon.cluster.spec_of("job").mode,
        ReplicatedJob {
            max_concurrent: 2,
            total_completions: 4
        }
    );
    assert_eq!(daemon.cluster.spec_of("everywhere").mode, Global);
    assert_eq!(daemon.cluster.spec_of("once").mode, GlobalJob);
    assert!(daemon.ok("service ls").await.contains("global job"));
    assert_eq!(
        daemon
            .ok("service ls -q --filter mode=global")
            .await
            .lines()
            .count(),
        1
    );
    let refused = text(
        &daemon
            .run("service create -d --credential-spec file://x demo:1")
            .await,
    );
    assert!(
        refused.contains("TaskTemplate.ContainerSpec.Privileges is not supported"),
        "{refused}"
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stack_is_deployed_again_and_removed() {
    if docker_is_missing() {
        return;
    }
    let daemon = Daemon::start();
    daemon.ok("swarm init").await;
    std::fs::write(daemon.dir.path().join("conf.txt"), "data").unwrap();
    std::fs::write(
        daemon.dir.path().join("stack.yml"),
        r#"
version: "3.8"
services:
  web:
    image: demo:1
    ports: ["8080:80"]
    networks: [front, back]
    configs: [{source: conf, target: /c}]
    secrets: [key]
    deploy: {replicas: 2, update_config: {order: start-first}, placement: {constraints: [node.role == manager]}}
  db:
    image: demo:2
    networks: [back]
    volumes: ["data:/data"]
    deploy: {resources: {limits: {cpus: "0.5", memory: 10M}}}
networks: {front: {}, back: {internal: true}}
volumes: {data: {}}
configs: {conf: {file: ./conf.txt}}
secrets: {key: {file: ./conf.txt}}
"#,
    )
    .unwrap();
    let first = daemon.ok("stack deploy -d=true -c stack.yml shop").await;
    assert!(first.contains("Creating service shop_web"), "{first}");
    let spec = daemon.cluster.spec_of("shop_web");
    assert_eq!(spec.task.networks.len(), 2);
    let second = daemon.ok("stack deploy -d=true -c stack.yml shop").await;
    assert!(second.contains("Updating service shop_web"), "{second}");
    let again = daemon.cluster.spec_of("shop_web");
    assert_eq!(again, spec);
    expect![[r#"
        shop 2
    "#]]
    .assert_eq(&text(
        &daemon
            .run_words(&["stack", "ls", "--format", "{{.Name}} {{.Services}}"], "")
            .await,
    ));
    assert_eq!(daemon.ok("stack ps -q shop").await.lines().count(), 3);
    let services = daemon
        .run_words(
            &[
                "stack",
                "services",
                "--format",
                "{{.Name}} {{.Replicas}}",
                "shop",
            ],
            "",
        )
        .await;
    assert_eq!(text(&services), "shop_db 1/1\nshop_web 2/2\n");
    let removed = daemon.ok("stack rm shop").await;
    for part in [
        "Removing service shop_db",
        "Removing secret shop_key",
        "Removing config shop_conf",
        "Removing network shop_front",
    ] {
        assert!(removed.contains(part), "{part} in {removed}");
    }
    assert_eq!(daemon.ok("stack ls --format {{.Name}}").await.trim(), "");
    assert_eq!(
        daemon
            .ok("network ls -q --filter scope=swarm")
            .await
            .lines()
            .count(),
        1
    );
    daemon.stop().await;
}
