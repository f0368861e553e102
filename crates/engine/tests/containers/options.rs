//! Options of `docker run` that reach beyond one container's own walls.

use shoal_api::container::{ContainerSpec, DeviceSpec, MountKind, MountSpec, Resources};

use crate::host::{Host, cmd, sh};

fn wish(command: &str, change: impl FnOnce(&mut ContainerSpec)) -> ContainerSpec {
    let mut spec = sh(command);
    change(&mut spec);
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn a_privileged_container_has_all_rights() {
    let host = Host::new().await;
    let spec = wish(
        "grep -e CapEff -e Seccomp: /proc/self/status; mount -t tmpfs none /tmp && echo mounted; test -e /dev/kmsg && echo devices; touch /proc/sys/kernel/hostname && echo writable",
        |spec| spec.host.privileged = true,
    );
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    // All that the engine itself has, which may be less than there is.
    let all = status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:\t"))
        .expect("bounding set");
    let expected = format!("CapEff:\t{all}\nSeccomp:\t0\nmounted\ndevices\nwritable\n");
    let (code, said) = host.run(spec).await;
    assert_eq!((code, said.as_str()), (0, expected.as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_init_passes_signals_on_and_buries_the_dead() {
    let host = Host::new().await;
    let spec = wish(
        "trap 'echo got; exit 7' TERM; (sleep 0.01 & exec true) ; echo up $$; while true; do sleep 0.05; done",
        |spec| spec.host.init = Some(true),
    );
    let id = host.start(spec).await;
    host.wait_for_output(&id, "up").await;
    let (_, said) = host
        .exec(
            &id,
            &["sh", "-c", "cat /proc/1/comm; ls -d /proc/[0-9]* | wc -l"],
        )
        .await;
    assert!(said.starts_with("shoal-init\n"), "{said}");
    // One may be seen that its own parent is about to bury; one that nobody buries stays.
    let zombies =
        "count() { for s in /proc/[0-9]*/stat; do cat $s; done 2>/dev/null | grep -c ' Z '; }
        for try in $(seq 50); do n=$(count); [ $n = 0 ] && break; done; echo $n";
    assert_eq!(host.exec(&id, &["sh", "-c", zombies]).await.1, "0\n");
    host.engine
        .kill(id.as_str(), Some("TERM"))
        .await
        .expect("kill");
    assert_eq!(host.wait(&id).await, 7);
    assert!(host.logs(&id, Default::default()).await.ends_with("got\n"));

    // What it runs keeps its exit code, and says why it cannot run.
    let init = |words: &[&str]| {
        let mut spec = cmd(words);
        spec.host.init = Some(true);
        spec
    };
    assert_eq!(host.run(init(&["sh", "-c", "exit 3"])).await.0, 3);
    assert_eq!(host.run(init(&["sh", "-c", "kill -9 $$"])).await.0, 137);
    let id = host
        .engine
        .create(init(&["/nothing"]))
        .await
        .expect("create");
    let err = host
        .engine
        .start(id.as_str())
        .await
        .expect_err("no such file");
    assert!(err.report().contains("no such file"), "{}", err.report());
    host.engine
        .remove(id.as_str(), true, true)
        .await
        .expect("remove");
    // A single static binary is all the image needs, and it may even be read-only.
    host.import("bare:latest", |tar| {
        let bytes = std::fs::read("/bin/busybox").expect("busybox");
        crate::host::file(tar, "busybox", &bytes, 0o755);
    })
    .await;
    let mut spec = cmd(&["/busybox", "echo", "ran"]);
    spec.image = "bare".into();
    spec.host.init = Some(true);
    spec.host.readonly_rootfs = true;
    assert_eq!(host.run(spec).await, (0, "ran\n".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_init_hands_the_terminal_to_its_command() {
    let host = Host::new().await;
    let spec = wish(
        "test -t 0 && ps -o pid,tpgid 2>/dev/null; read line; echo line $line",
        |spec| {
            spec.host.init = Some(true);
            spec.tty = true;
            spec.open_stdin = true;
        },
    );
    let id = host.engine.create(spec).await.expect("create");
    let streams = shoal_engine::shim::protocol::Streams {
        stdin: true,
        stdout: true,
        stderr: true,
    };
    let mut attached = host
        .engine
        .attach(id.as_str(), streams)
        .await
        .expect("attach");
    host.engine.start(id.as_str()).await.expect("start");
    use tokio::io::AsyncWriteExt;
    // A background process that reads its terminal would be stopped, and this would hang.
    let input = attached.input.as_mut().expect("input");
    input.write_all(b"hello\n").await.expect("write");
    let said = crate::host::read(attached).await;
    assert!(said.contains("line hello"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_come_with_their_rules() {
    let host = Host::new().await;
    let device = |host_path: &str, container_path: &str, permissions: &str| DeviceSpec {
        host_path: host_path.into(),
        container_path: container_path.into(),
        permissions: permissions.into(),
    };
    // The kernel's log, which is no device that containers may use otherwise.
    let check = "dd if=/dev/log0 of=/dev/null count=1 2>/dev/null && echo read; (echo x > /dev/log0) 2>/dev/null && echo written; true";
    let with = |permissions: &str| {
        wish(check, |spec| {
            spec.host.devices = vec![device("/dev/kmsg", "/dev/log0", permissions)];
            spec.host.cap_add = vec!["SYSLOG".into()];
        })
    };
    assert_eq!(host.run(with("r")).await, (0, "read\n".into()));
    assert_eq!(host.run(with("rwm")).await, (0, "read\nwritten\n".into()));
    let spec = wish(
        "mknod /tmp/k c 1 11; dd if=/tmp/k count=1 of=/dev/null 2>/dev/null && echo read; true",
        |spec| {
            spec.host.device_cgroup_rules = vec!["c 1:11 rm".into()];
            spec.host.cap_add = vec!["SYSLOG".into()];
        },
    );
    assert_eq!(host.run(spec).await, (0, "read\n".into()));
    for (path, why) in [
        ("/dev/none", "no such file or directory"),
        ("/etc/passwd", "not a device node"),
    ] {
        let spec = wish("true", |spec| {
            spec.host.devices = vec![device(path, "/dev/x", "rwm")]
        });
        let id = host.engine.create(spec).await.expect("create");
        let err = host.engine.start(id.as_str()).await.expect_err(path);
        assert_eq!(
            err.report(),
            format!(
                "error gathering device information while adding custom device {path:?}: {why}"
            )
        );
        host.engine
            .remove(id.as_str(), true, true)
            .await
            .expect("remove");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_others_can_be_taken() {
    let host = Host::new().await;
    let donor = host
        .start(wish("echo data > /vol/x; echo up; sleep 1000", |spec| {
            spec.name = Some("donor".into());
            spec.host.binds = vec!["kept:/vol".into()];
            spec.volumes = ["/anonymous".to_owned()].into();
        }))
        .await;
    host.wait_for_output(&donor, "up").await;
    let with = |mode: &str, command: &str| {
        wish(command, |spec| {
            spec.host.volumes_from = vec![format!("donor{mode}")]
        })
    };
    assert_eq!(
        host.run(with(
            "",
            "cat /vol/x; test -d /anonymous && echo too; echo y > /vol/y"
        ))
        .await,
        (0, "data\ntoo\n".into())
    );
    let (code, said) = host.run(with(":ro", "cat /vol/y; touch /vol/z")).await;
    assert!(code != 0 && said.starts_with("y\n"), "{said}");
    let err = host
        .engine
        .create(with(":odd", "true"))
        .await
        .expect_err("no such mode");
    assert_eq!(err.report(), "invalid mode for volumes-from: odd");
    let volumes = host.engine.volumes().expect("volumes");
    assert_eq!(volumes.len(), 2, "a removed taker takes none along");
    host.engine
        .remove(donor.as_str(), true, true)
        .await
        .expect("remove");
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_of_others_can_be_joined() {
    let host = Host::new().await;
    let donor = host
        .start(wish(
            "echo shared > /dev/shm/x; echo up; sleep 1000",
            |spec| {
                spec.name = Some("donor".into());
                spec.host.ipc_mode = Some("shareable".into());
            },
        ))
        .await;
    host.wait_for_output(&donor, "up").await;
    let spec = wish(
        "cat /dev/shm/x; cat /proc/1/cmdline | tr '\\0' ' '; readlink /proc/self/ns/ipc; readlink /proc/1/ns/ipc",
        |spec| {
            spec.host.ipc_mode = Some("container:donor".into());
            spec.host.pid_mode = Some("container:donor".into());
        },
    );
    let (code, said) = host.run(spec).await;
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(code, 0, "{said}");
    assert_eq!(lines[0], "shared");
    assert!(lines[1].contains("sleep 1000"), "{said}");
    host.engine
        .remove(donor.as_str(), true, true)
        .await
        .expect("remove");
    let closed = host
        .start(wish("sleep 1000", |spec| spec.name = Some("closed".into())))
        .await;
    let join = |mode: &str| wish("true", |spec| spec.host.ipc_mode = Some(mode.into()));
    let id = host
        .engine
        .create(join("container:closed"))
        .await
        .expect("create");
    let err = host
        .engine
        .start(id.as_str())
        .await
        .expect_err("not shareable");
    assert!(
        err.report()
            .contains("non-shareable IPC (hint: use IpcMode:shareable for the donor container)"),
        "{}",
        err.report()
    );
    host.engine
        .create(join("container:nobody"))
        .await
        .expect_err("nobody");
    let _ = closed;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_of_ones_own_takes_effect() {
    let host = Host::new().await;
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#;
    let spec = wish("mkdir /tmp/x; grep Seccomp: /proc/self/status", |spec| {
        spec.host.security_opt = vec![format!("seccomp={profile}"), "apparmor=anything".into()];
    });
    let (_, said) = host.run(spec).await;
    assert!(
        said.contains("No space left on device") && said.contains("Seccomp:\t2"),
        "{said}"
    );
    let spec = wish("grep -e NoNewPrivs -e Seccomp: /proc/self/status", |spec| {
        spec.host.security_opt = vec!["seccomp=unconfined".into(), "no-new-privileges".into()];
    });
    assert_eq!(host.run(spec).await.1, "NoNewPrivs:\t1\nSeccomp:\t0\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_volume_can_be_mounted() {
    let host = Host::new().await;
    let (code, _) = host
        .run(wish(
            "mkdir -p /vol/a/b; echo deep > /vol/a/b/c; ln -s / /vol/out; ln -s a /vol/in",
            |spec| {
                spec.host.binds = vec!["kept:/vol".into()];
            },
        ))
        .await;
    assert_eq!(code, 0);
    let with = |subpath: &str, command: &str| {
        wish(command, |spec| {
            spec.host.mounts = vec![MountSpec {
                target: "/part".into(),
                read_only: false,
                kind: MountKind::Volume {
                    name: Some("kept".into()),
                    no_copy: false,
                    labels: Default::default(),
                    driver: None,
                    driver_opts: Default::default(),
                    subpath: Some(subpath.into()),
                },
            }];
        })
    };
    assert_eq!(
        host.run(with("a/b", "cat /part/c; echo new > /part/d"))
            .await,
        (0, "deep\n".into())
    );
    assert_eq!(
        host.run(with("in/b/d", "cat /part")).await,
        (0, "new\n".into())
    );
    for wrong in ["missing", "out/etc"] {
        let id = host
            .engine
            .create(with(wrong, "true"))
            .await
            .expect("create");
        let err = host.engine.start(id.as_str()).await.expect_err(wrong);
        assert!(
            err.report().contains("cannot access path "),
            "{}",
            err.report()
        );
        host.engine
            .remove(id.as_str(), true, false)
            .await
            .expect("remove");
    }
    host.engine
        .create(with("../up", "true"))
        .await
        .expect_err("it climbs");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_change_while_it_runs() {
    let host = Host::new().await;
    let id = host
        .start(wish("echo up; sleep 1000", |spec| {
            spec.host.resources.memory_bytes = Some(64 << 20);
        }))
        .await;
    host.wait_for_output(&id, "up").await;
    let change = Resources {
        memory_bytes: Some(128 << 20),
        nano_cpus: Some(500_000_000),
        pids: Some(77),
        ..Resources::default()
    };
    host.engine
        .update(id.as_str(), &change, None)
        .await
        .expect("update");
    let read = |file: &str| {
        let dirs = host.cgroups();
        let mut found = dirs
            .iter()
            .filter_map(|dir| std::fs::read_to_string(dir.join(file)).ok());
        found.next().unwrap_or_default().trim().to_owned()
    };
    if host.engine.cgroup_version() == 1 {
        assert_eq!(read("memory.limit_in_bytes"), (128 << 20).to_string());
        assert_eq!(read("cpu.cfs_quota_us"), "50000");
    } else {
        assert_eq!(read("memory.max"), (128 << 20).to_string());
        assert_eq!(read("cpu.max"), "50000 100000");
    }
    assert_eq!(read("pids.max"), "77");
    let inspect = host
        .engine
        .inspect(id.as_str(), false)
        .await
        .expect("inspect");
    assert_eq!(inspect.spec.host.resources.pids, Some(77));
    let too_small = Resources {
        memory_bytes: Some(1),
        ..Resources::default()
    };
    let err = host
        .engine
        .update(id.as_str(), &too_small, None)
        .await
        .expect_err("too small");
    assert_eq!(err.report(), "minimum memory limit allowed is 6MB");
    host.engine
        .remove(id.as_str(), true, true)
        .await
        .expect("remove");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_may_have_another_parent() {
    let host = Host::new().await;
    let parent = format!("{}/below", host.cgroup);
    let id = host
        .start(wish("echo up; sleep 1000", |spec| {
            spec.host.cgroup_parent = Some(format!("/{parent}"));
        }))
        .await;
    host.wait_for_output(&id, "up").await;
    let pid = host
        .engine
        .inspect(id.as_str(), false)
        .await
        .expect("inspect")
        .state
        .pid;
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("groups");
    assert!(groups.contains(&format!("/{parent}/{id}")), "{groups}");
    assert_eq!(
        host.engine
            .top(id.as_str(), "-eo pid,args")
            .await
            .expect("top")
            .processes[0][0],
        pid.to_string()
    );
    host.engine.pause(id.as_str()).await.expect("pause");
    host.engine.unpause(id.as_str()).await.expect("unpause");
    host.engine
        .remove(id.as_str(), true, true)
        .await
        .expect("remove");
}
