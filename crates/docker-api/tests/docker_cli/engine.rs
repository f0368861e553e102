//! The unmodified docker client against the server: containers, images, volumes, the system.

use crate::daemon::{Daemon, docker_is_missing, text};
use expect_test::expect;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn version_info_and_lists() {
    if docker_is_missing() {
        return;
    }
    let daemon = Daemon::start();
    let version = daemon
        .ok("version --format {{.Server.APIVersion}}/{{.Server.Version}}/{{.Server.KernelVersion}}")
        .await;
    expect![[r#"
        1.51/0.1.0/6.18.0
    "#]]
    .assert_eq(&version);
    assert!(
        daemon
            .ok("version")
            .await
            .contains("1.51 (minimum version 1.24)")
    );
    let info = daemon.ok("info").await;
    for part in [
        "Swarm: inactive",
        "Storage Driver: overlay2",
        "Backing Filesystem: extfs",
        "Total Memory: 8GiB",
    ] {
        assert!(info.contains(part), "{part} in {info}");
    }
    expect![[r#"
        REPOSITORY   TAG       IMAGE ID       SIZE
        demo         latest    111111111111   1.23MB
    "#]]
    .assert_eq(
        &daemon
            .run_words(
                &[
                    "images",
                    "--format",
                    "table {{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.Size}}",
                ],
                "",
            )
            .await
            .stdout
            .iter()
            .map(|b| char::from(*b))
            .collect::<String>(),
    );
    assert!(
        daemon
            .ok("image inspect demo")
            .await
            .contains(r#""UpperDir": "/layers/2""#)
    );
    assert!(
        daemon
            .ok("image history demo")
            .await
            .contains("COPY demo /")
    );
    expect![[r#"
        Untagged: demo:latest
        Deleted: sha256:1111111111111111111111111111111111111111111111111111111111111111
    "#]]
    .assert_eq(&daemon.ok("rmi demo:latest").await);
    daemon.ok("tag demo other:1").await;
    assert!(daemon.ok("network ls").await.contains("bridge"));
    daemon.ok("volume create --label a=b data").await;
    assert_eq!(daemon.ok("volume ls -q --filter label=a").await, "data\n");
    assert!(
        daemon
            .ok("volume inspect data")
            .await
            .contains(r#""Mountpoint": "/volumes/x/_data""#)
    );
    assert!(daemon.ok("system df").await.contains("Local Volumes"));
    daemon.ok("volume rm data").await;
    expect![[r#"
        [] []
        Error response from daemon: get data: no such volume
    "#]]
    .assert_eq(&format!(
        "[] {}",
        text(&daemon.run("volume inspect data").await)
    ));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_carries_streams_and_the_exit_code() {
    if docker_is_missing() {
        return;
    }
    let daemon = Daemon::start();
    let output = daemon.run("run --rm demo echo hi").await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out echo hi\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "err echo hi\n");
    assert_eq!(output.status.code(), Some(7));
    let words = ["run", "-i", "--name", "cat", "demo", "cat"];
    let output = daemon.run_words(&words, "line 1\nline 2\n").await;
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "out cat\nline 1\nline 2\n"
    );
    assert_eq!(output.status.code(), Some(7));
    let output = daemon.run("run other true").await;
    assert_eq!(output.status.code(), Some(7), "{}", text(&output));
    assert!(text(&output).contains("Unable to find image 'other:latest' locally"));
    let output = daemon.run("run -t demo tty").await;
    assert_eq!(
        text(&output),
        "out tty\nerr tty\n",
        "unframed, all as output"
    );
    let output = daemon.run("run absent true").await;
    assert_eq!(output.status.code(), Some(125));
    assert!(
        text(&output).contains("pull access denied for absent"),
        "{}",
        text(&output)
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_life_of_a_container() {
    if docker_is_missing() {
        return;
    }
    let daemon = Daemon::start();
    daemon
        .ok("run -d --name web -p 127.0.0.1:8080:80 demo sleep")
        .await;
    let format = "{{.Names}} {{.Image}} {{.State}} {{.Status}} {{.Ports}}";
    let rows = daemon.run_words(&["ps", "--format", format], "").await;
    expect![[r#"
        web demo running Up Less than a second 127.0.0.1:8080->80/tcp
    "#]]
    .assert_eq(&text(&rows).replace("Up 1 second", "Up Less than a second"));
    assert_eq!(
        daemon
            .ok("inspect -f {{.State.Running}}{{.Config.Image}}{{.HostConfig.NetworkMode}} web")
            .await,
        "truedemobridge\n"
    );
    assert_eq!(daemon.ok("logs web").await, "out sleep\nerr sleep\n");
    assert_eq!(
        daemon.ok("logs -t web").await,
        "1970-01-01T00:00:00.000000001Z out sleep\n1970-01-01T00:00:00.000000001Z err sleep\n"
    );
    assert!(daemon.ok("top web").await.contains("demo"));
    assert_eq!(
        daemon
            .ok("stats --no-stream --format {{.Name}},{{.MemUsage}},{{.PIDs}} web")
            .await,
        "web,1MiB / 1GiB,3\n"
    );
    let output = daemon
        .run_words(&["exec", "-i", "web", "cat", "x"], "typed")
        .await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out cat x\ntyped");
    assert_eq!(output.status.code(), Some(5));
    daemon.ok("exec -d web true").await;
    daemon.ok("pause web").await;
    assert!(daemon.ok("ps").await.contains("(Paused)"));
    daemon.ok("unpause web").await;
    daemon.ok("rename web site").await;
    let refused = daemon.run("rm site").await;
    assert!(
        text(&refused).contains("container is running"),
        "{}",
        text(&refused)
    );
    daemon.ok("restart -t 1 site").await;
    daemon.ok("stop site").await;
    assert_eq!(daemon.ok("wait site").await, "143\n");
    assert_eq!(daemon.ok("ps -q").await, "");
    assert!(daemon.ok("ps -a").await.contains("Exited (143)"));
    assert!(
        daemon
            .ok("ps -a --filter status=exited --filter expose=80/tcp")
            .await
            .contains("site")
    );
    assert!(
        daemon
            .ok("container prune -f")
            .await
            .contains("Total reclaimed space: 7B")
    );
    let missing = daemon.run("inspect site").await;
    assert!(
        text(&missing).contains("No such object: site"),
        "{}",
        text(&missing)
    );
    daemon.ok("create --name later demo sleep").await;
    daemon.ok("start later").await;
    daemon.ok("kill later").await;
    daemon.ok("rm -f later").await;
    daemon.ok("volume create kept").await;
    daemon.ok("system prune -f --volumes").await;
    assert_eq!(daemon.ok("volume ls -q").await, "kept\n");
    assert!(daemon.ok("volume prune -f -a").await.contains("kept"));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn create_carries_every_flag() {
    if docker_is_missing() {
        return;
    }
    let daemon = Daemon::start();
    daemon
        .ok("create --name all -h host --domainname dom -u 1:2 -w /w -e A=b -l k=v --entrypoint /bin/x --init --stop-signal INT --stop-timeout 3 \
             --health-cmd true --health-interval 2s --health-retries 4 --network net --network-alias al --ip 10.1.2.3 --mac-address 02:00:00:00:00:01 \
             -p 8080-8081:80-81 -p 53:53/udp --expose 9 --dns 9.9.9.9 --dns-search s --add-host a:1.2.3.4 -v vol:/v:ro --mount type=bind,src=/s,dst=/d,readonly \
             --mount type=tmpfs,dst=/t,tmpfs-size=1024,tmpfs-mode=0700 --mount type=volume,src=v2,dst=/v2,volume-nocopy --tmpfs /run:size=1k --read-only --shm-size 1m --pid host --ipc host --privileged --cap-add NET_ADMIN \
             --cap-drop ALL --security-opt no-new-privileges --device /dev/null:/dev/n:r --sysctl net.ipv4.ip_forward=1 -m 64m --memory-swap -1 --cpus 1.5 \
             --cpuset-cpus 0 --pids-limit 9 --ulimit nofile=1:2 --restart on-failure:3 --log-driver json-file --log-opt max-size=1m \
             --device-read-bps /dev/null:1k --oom-score-adj 5 --group-add 7 --cgroup-parent /up -t -i demo arg1 arg2")
        .await;
    let spec = serde_json::to_string_pretty(&daemon.engine.spec_of("all")).unwrap();
    expect_test::expect_file!["expected/create_all_flags.json"].assert_eq(&spec);
    // What inspect shows can be sent back and means the same.
    let shown: serde_json::Value = serde_json::from_str(&text(
        &daemon
            .run_words(&["inspect", "-f", "{{json .}}", "all"], "")
            .await,
    ))
    .unwrap();
    let mut body = shown["Config"].clone();
    body["HostConfig"] = shown["HostConfig"].clone();
    let answer = daemon
        .request(
            "POST",
            "/v1.51/containers/create?name=copy",
            &body.to_string(),
        )
        .await;
    assert!(answer.starts_with("201 "), "{answer}");
    let (mut original, mut copy) = (daemon.engine.spec_of("all"), daemon.engine.spec_of("copy"));
    original.endpoints.clear();
    copy.name = original.name.clone();
    // Inspect names the defaults of these.
    copy.host.runtime = None;
    copy.host.cgroupns_mode = None;
    assert_eq!(copy, original);
    daemon.ok("create --name plain demo").await;
    let spec = serde_json::to_string_pretty(&daemon.engine.spec_of("plain")).unwrap();
    expect_test::expect_file!["expected/create_plain.json"].assert_eq(&spec);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pull_load_and_events() {
    if docker_is_missing() {
        return;
    }
    let daemon = Daemon::start();
    expect![[r#"
        latest: Pulling from shop/web
        0123456789ab: Pull complete
        Status: Downloaded newer image for shop/web:latest
        docker.io/shop/web:latest
    "#]]
    .assert_eq(
        &daemon
            .ok("pull shop/web")
            .await
            .lines()
            .filter(|l| !l.contains("Downloading") && !l.contains("Using default tag"))
            .map(|l| format!("{l}\n"))
            .collect::<String>(),
    );
    let broken = daemon.run("pull broken").await;
    assert_eq!(broken.status.code(), Some(1));
    assert!(
        text(&broken).contains("unexpected EOF"),
        "{}",
        text(&broken)
    );
    let absent = daemon.run("pull absent").await;
    assert!(
        text(&absent).contains("Error response from daemon: pull access denied"),
        "{}",
        text(&absent)
    );
    let loaded = daemon.run_words(&["load"], &"x".repeat(3_000_000)).await;
    assert_eq!(text(&loaded), "Loaded image: 3000000 bytes\n");
    let events = daemon
        .ok("events --since 0 --until 5 --filter type=container --filter event=exec_create")
        .await;
    assert!(
        events.contains("container exec_create: ls f00 (name=web)"),
        "{events}"
    );
    assert_eq!(events.lines().count(), 1);
    for (line, part) in [
        ("save demo", "saving images is not supported"),
        ("push demo", "pushing an image is not supported"),
        ("diff x", "changes"),
        ("commit x y", "commit"),
        ("network create net", "network"),
    ] {
        let output = daemon
            .run_words(&line.split(' ').collect::<Vec<_>>(), "")
            .await;
        assert!(
            !output.status.success() && text(&output).contains(part),
            "{line}: {}",
            text(&output)
        );
    }
    daemon.stop().await;
}
