//! What a container can see and do, and what a hostile image cannot.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use shoal_api::container::{ContainerSpec, HostSpec, Resources};
use shoal_api::image::ImageConfig;

use crate::host::{Host, IMAGE, busybox, cmd, dir, file, link, sh};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_walled_in() {
    let host = Host::new().await;
    let (_, status) = host.run(cmd(&["cat", "/proc/self/status"])).await;
    for line in [
        "Seccomp:\t2",
        "CapBnd:\t00000000a80425fb",
        "CapEff:\t00000000a80425fb",
        "CapInh:\t0000000000000000",
        "NoNewPrivs:\t0",
        "SigIgn:\t0000000000000000",
    ] {
        assert!(status.contains(line), "{line} in {status}");
    }
    let checks = [
        "test $$ = 1",
        "test $(ls -d /proc/[0-9]* | wc -l) -le 5",
        "! echo x > /proc/sys/kernel/hostname",
        "! echo 1 > /proc/sysrq-trigger",
        "test $(wc -c < /proc/timer_list) = 0",
        "test $(ls /sys/firmware | wc -l) = 0",
        "! touch /sys/x",
        "! mount -t tmpfs none /tmp",
        "! chroot /tmp true",
        "test $(ip -o link | wc -l) = 1 || ip -o link | grep -q ' lo: '",
        "ip -o link | grep -q ' lo: <LOOPBACK,UP'",
        "test $(ls /dev | wc -l) -lt 20",
        "test ! -e /dev/mem",
        "mknod /tmp/mem c 1 1 && ! dd if=/tmp/mem count=1",
        "test \"$(ls -l /proc/self/fd 2>/dev/null | grep -v -e pipe: -e /dev/null -e total -e ' 3$')\" = ''",
        "test $(cat /etc/hostname) = $(hostname)",
        "grep -q localhost /etc/hosts",
        "test -e /etc/resolv.conf",
        "test $HOME = /root -a $HOSTNAME = $(hostname)",
    ];
    for check in checks {
        let (code, said) = host.sh(check).await;
        assert_eq!(code, 0, "{check}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_lies_above_a_containers_root() {
    let host = Host::bare().await;
    let program = host.root.join("escape");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/containers/escape.c");
    let built = Command::new("cc")
        .args(["-O1", "-static", "-o"])
        .arg(&program)
        .arg(source)
        .output()
        .expect("cc links this test, too");
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{said}");
    let program = std::fs::read(program).expect("program");
    host.import("escape:latest", |tar| {
        file(tar, "escape", &program, 0o755);
    })
    .await;
    let mut spec = cmd(&["/escape"]);
    spec.image = "escape".into();
    spec.host.privileged = true;
    let (code, said) = host.run(spec).await;
    assert_eq!(code, 0, "{said}");
    let mut seen: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (way, name) in said.lines().filter_map(|line| line.split_once(' ')) {
        seen.entry(way).or_default().insert(name);
    }
    let own = BTreeSet::from(["below", "dev", "escape", "etc", "proc", "sys"]);
    assert_eq!(
        seen,
        BTreeMap::from([("chroot", own.clone()), ("setns", own)])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn options_take_effect() {
    let host = Host::new().await;
    let with = |command: &str, change: fn(&mut ContainerSpec)| {
        let mut spec = sh(command);
        change(&mut spec);
        host.run(spec)
    };
    let (code, text) = with(
        "grep NoNewPrivs /proc/self/status; grep Seccomp: /proc/self/status",
        |spec| {
            spec.host.security_opt = vec!["no-new-privileges".into()];
        },
    )
    .await;
    assert_eq!((code, text.as_str()), (0, "NoNewPrivs:\t1\nSeccomp:\t2\n"));
    let (_, text) = with("id; pwd; echo $HOME", |spec| {
        spec.user = Some("user".into());
        spec.working_dir = Some("/made/for/it".into());
    })
    .await;
    assert_eq!(
        text.replace("groups=1000(user),", "groups="),
        "uid=1000(user) gid=1000(user) groups=2000(extra)\n/made/for/it\n/home\n"
    );
    let (code, _) = with("touch /x", |spec| spec.host.readonly_rootfs = true).await;
    assert_eq!(code, 1);
    let (code, text) = with("touch /mem/x; stat -f -c %T /mem; ! /mem/x", |spec| {
        spec.host.tmpfs.insert("/mem".into(), "size=1m".into());
    })
    .await;
    assert_eq!((code, text.lines().next()), (0, Some("tmpfs")), "{text}");
    let (_, text) = with(
        "grep CapEff /proc/self/status; ip link set lo down && echo could",
        |spec| {
            spec.host.cap_drop = vec!["ALL".into()];
            spec.host.cap_add = vec!["NET_ADMIN".into()];
        },
    )
    .await;
    assert_eq!(text, "CapEff:\t0000000000001000\ncould\n");
    let (_, text) = with(
        "ulimit -n; hostname; cat /proc/sys/kernel/domainname",
        |spec| {
            spec.host.ulimits = vec![shoal_api::container::Ulimit {
                name: "nofile".into(),
                soft: 100,
                hard: 200,
            }];
            spec.hostname = Some("nemo".into());
            spec.domainname = Some("sea".into());
        },
    )
    .await;
    assert_eq!(text, "100\nnemo\nsea\n");
    let refused = {
        let mut spec = sh("true");
        spec.host.runtime = Some("other".into());
        host.engine.create(spec).await.expect_err("not supported")
    };
    assert_eq!(
        refused.to_string(),
        "unknown or invalid runtime name: other"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_reach_the_control_groups() {
    let host = Host::new().await;
    let mut spec = sh("sleep 1000");
    spec.host.resources.memory_bytes = Some(64 << 20);
    spec.host.resources.nano_cpus = Some(500_000_000);
    spec.host.resources.pids = Some(20);
    spec.host.resources.cpuset_cpus = has_cpuset().then(|| "0".into());
    let id = host.start(spec).await;
    let read = |names: &[&str]| -> String {
        let find = |name: &&str| {
            host.cgroups()
                .iter()
                .find_map(|dir| std::fs::read_to_string(dir.join(name)).ok())
        };
        names
            .iter()
            .find_map(find)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    assert_eq!(read(&["memory.limit_in_bytes", "memory.max"]), "67108864");
    assert_eq!(read(&["pids.max"]), "20");
    if has_cpuset() {
        assert_eq!(read(&["cpuset.cpus"]), "0");
    }
    assert!(["50000", "50000 100000"].contains(&read(&["cpu.cfs_quota_us", "cpu.max"]).as_str()));
    host.engine
        .remove(id.as_str(), true, true)
        .await
        .expect("remove");
    host.cgroups_gone().await;

    let mut hungry = sh(
        "head -c 200m /dev/zero | tail -c 200m > /dev/null; dd if=/dev/zero of=/dev/shm/x bs=1M count=100",
    );
    hungry.host.resources.memory_bytes = Some(32 << 20);
    hungry.host.resources.memory_swap_bytes = Some(32 << 20);
    hungry.host.shm_size = Some(200 << 20);
    hungry.cmd = Some(
        ["dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=100"]
            .map(str::to_owned)
            .to_vec(),
    );
    let id = host.start(hungry).await;
    assert_eq!(host.wait(&id).await, 137);
    assert!(
        host.engine
            .inspect(id.as_str(), false)
            .await
            .expect("inspect")
            .state
            .oom_killed
    );
}

/// Names, kinds, times and contents of everything below a directory.
pub(crate) fn census(dir: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = path.symlink_metadata().expect("canary");
        let content = if meta.is_file() {
            std::fs::read_to_string(&path).expect("canary")
        } else {
            String::new()
        };
        let facts = format!(
            "{:o} {} {} {content:?}",
            meta.mode(),
            meta.ctime_nsec(),
            meta.mtime_nsec()
        );
        all.insert(path.display().to_string(), facts);
        if meta.is_dir() {
            todo.extend(
                std::fs::read_dir(&path)
                    .expect("canary")
                    .flatten()
                    .map(|entry| entry.path()),
            );
        }
    }
    all
}

/// Whether this kernel lets processors be chosen; a small one may not.
fn has_cpuset() -> bool {
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
    let has_it = Path::new("/sys/fs/cgroup/cpuset").exists()
        || controllers.is_ok_and(|all| all.split_whitespace().any(|one| one == "cpuset"));
    if !has_it {
        eprintln!("processors are not chosen here: this kernel has no cpuset");
    }
    has_it
}

/// A disk of this host, whose name and numbers limits are written with.
fn a_disk() -> (String, String) {
    let mut disks: Vec<_> = std::fs::read_dir("/sys/block")
        .expect("block devices")
        .flatten()
        .filter_map(|disk| {
            let device = format!("/dev/{}", disk.file_name().to_str()?);
            let numbers = std::fs::read_to_string(disk.path().join("dev")).ok()?;
            let there = Path::new(&device).exists();
            there.then(|| (device, numbers.trim().to_owned()))
        })
        .collect();
    disks.sort();
    disks.into_iter().next().expect("a block device")
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_every_kind_are_told_to_the_kernel() {
    let host = Host::new().await;
    let old = host.engine.cgroup_version() == 1;
    let (disk, numbers) = a_disk();
    let rate = |rate: &str| vec![format!("{disk}:{rate}")];
    let mut spec = sh("sleep 1000");
    spec.host.resources = Resources {
        memory_bytes: Some(64 << 20),
        memory_reservation_bytes: Some(32 << 20),
        memory_swap_bytes: Some(96 << 20),
        // Version 2 knows neither, of which the API warns.
        memory_swappiness: old.then_some(10),
        oom_kill_disable: old,
        cpu_shares: Some(512),
        cpu_quota_us: Some(30_000),
        cpu_period_us: Some(50_000),
        cpuset_mems: Some("0".into()),
        blkio_devices: BTreeMap::from([
            ("BlkioDeviceReadBps".to_owned(), rate("1048576")),
            ("BlkioDeviceWriteBps".to_owned(), rate("2097152")),
            ("BlkioDeviceReadIOps".to_owned(), rate("100")),
            ("BlkioDeviceWriteIOps".to_owned(), rate("200")),
        ]),
        ..Resources::default()
    };
    let id = host.start(spec).await;
    let throttle = |what: &str, rate: &str| {
        (
            format!("blkio.throttle.{what}_device"),
            format!("{numbers} {rate}"),
        )
    };
    let file = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let table = if old {
        vec![
            file("memory.limit_in_bytes", "67108864"),
            file("memory.soft_limit_in_bytes", "33554432"),
            file("memory.memsw.limit_in_bytes", "100663296"),
            file("memory.swappiness", "10"),
            file("cpu.shares", "512"),
            file("cpu.cfs_quota_us", "30000"),
            file("cpu.cfs_period_us", "50000"),
            file("cpuset.mems", "0"),
            throttle("read_bps", "1048576"),
            throttle("write_bps", "2097152"),
            throttle("read_iops", "100"),
            throttle("write_iops", "200"),
        ]
    } else {
        vec![
            file("memory.max", "67108864"),
            file("memory.low", "33554432"),
            file("memory.swap.max", "33554432"),
            file("cpu.weight", "20"),
            file("cpu.max", "30000 50000"),
            file("cpuset.mems", "0"),
            (
                "io.max".to_owned(),
                format!("{numbers} rbps=1048576 wbps=2097152 riops=100 wiops=200"),
            ),
        ]
    };
    let read = |name: &str| {
        let dirs = host.cgroups();
        let mut found = dirs
            .iter()
            .filter_map(|dir| std::fs::read_to_string(dir.join(name)).ok());
        found.next().map(|text| text.trim().to_owned())
    };
    for (name, value) in table {
        assert_eq!(read(&name).as_deref(), Some(&*value), "{name}");
    }
    if old {
        let control = read("memory.oom_control").expect("it is there");
        assert!(control.starts_with("oom_kill_disable 1"), "{control}");
    }
    host.engine
        .remove(id.as_str(), true, true)
        .await
        .expect("remove");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_container_shares_with_the_host_is_the_hosts() {
    let host = Host::new().await;
    type Wish = fn(&mut HostSpec);
    let with = async |command: &str, wish: Wish| {
        let mut spec = sh(command);
        wish(&mut spec.host);
        host.run(spec).await.1.trim().to_owned()
    };
    let adj = "cat /proc/self/oom_score_adj";
    assert_eq!(with(adj, |host| host.oom_score_adj = 555).await, "555");
    let forced = "cat /proc/sys/kernel/shm_rmid_forced";
    let sysctl = |host: &mut HostSpec| {
        host.sysctls
            .insert("kernel.shm_rmid_forced".into(), "1".into());
    };
    assert_eq!(with(forced, sysctl).await, "1");
    let table: [(&str, Wish); 5] = [
        ("ipc", |host| host.ipc_mode = Some("host".into())),
        ("pid", |host| host.pid_mode = Some("host".into())),
        ("uts", |host| host.uts_mode = Some("host".into())),
        ("cgroup", |host| host.cgroupns_mode = Some("host".into())),
        ("user", |host| host.userns_mode = Some("host".into())),
    ];
    for (kind, wish) in table {
        let look = format!("readlink /proc/self/ns/{kind}");
        let own = std::fs::read_link(format!("/proc/self/ns/{kind}")).expect("a namespace");
        let own = own.display().to_string();
        assert_eq!(with(&look, wish).await, own);
        // Of users there are the host's alone.
        let alone = with(&look, |_| {}).await;
        assert_eq!(alone == own, kind == "user", "{kind}: {alone}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_images_leave_the_host_alone() {
    let host = Host::new().await;
    let canary = host.root.join("canary");
    for name in [
        "dev",
        "etc",
        "run/secrets",
        "deep/er",
        "data/work",
        "data/volume",
        "tmp/mem",
        "var/run",
    ] {
        std::fs::create_dir_all(canary.join(name)).expect("canary");
    }
    for name in [
        "hosts",
        "dev/ptmx",
        "dev/null",
        "etc/hosts",
        "etc/passwd",
        "run/secrets/key",
    ] {
        std::fs::write(canary.join(name), "precious").expect("canary");
    }
    let before = census(&canary);
    let out = canary.display().to_string();
    let back = format!("{}{out}", "../".repeat(12));
    for (number, target) in [out.as_str(), back.as_str(), "/loop/a", "/nowhere/at/all"]
        .into_iter()
        .enumerate()
    {
        for name in [
            "dev",
            "proc",
            "sys",
            "etc",
            "run",
            "tmp",
            "etc/hosts",
            "etc/resolv.conf",
            "etc/hostname",
            "etc/passwd",
            "etc/group",
            "data",
            // The targets of mounts themselves, and the working directory.
            "run/secrets",
            "data/work",
            "data/volume",
            "tmp/mem",
            "dev/shm",
            "dev/pts",
            "sys/fs",
        ] {
            let image = format!("hostile:{number}-{}", name.replace('/', "-"));
            let config = ImageConfig {
                working_dir: "/data/work".into(),
                ..ImageConfig::default()
            };
            host.import_with(&image, config, |tar| {
                dir(tar, "bin/");
                let bytes = std::fs::read("/bin/busybox").expect("busybox");
                file(tar, "bin/busybox", &bytes, 0o755);
                dir(tar, "loop/");
                link(tar, "loop/a", "b");
                link(tar, "loop/b", "a");
                if let Some((parent, _)) = name.split_once('/') {
                    dir(tar, &format!("{parent}/"));
                    link(
                        tar,
                        name,
                        &format!("{target}/{}", name.trim_start_matches("etc/")),
                    );
                } else {
                    link(tar, name, target);
                }
            })
            .await;
            let mut spec = cmd(&["/bin/busybox", "echo", "ran"]);
            spec.image = image.clone();
            spec.host.binds = vec!["shared:/data/volume".into(), "other:/run/secrets".into()];
            spec.host.tmpfs.insert("/tmp/mem".into(), String::new());
            let id = host.engine.create(spec).await.expect("create");
            match host.run_created(&id).await {
                Ok((code, said)) => assert_eq!((code, said.as_str()), (0, "ran\n"), "{image}"),
                // Refusing is as good as running, as long as it is for the right reason.
                Err(err) => assert!(
                    number == 2 || matches!(name, "etc/passwd" | "etc/group" | "tmp"),
                    "{image}: {}",
                    err.report()
                ),
            }
            host.engine
                .remove(id.as_str(), true, true)
                .await
                .expect("remove");
            assert_eq!(census(&canary), before, "{image}");
        }
    }
    host.cgroups_gone().await;
    assert!(host.mounts().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_inside_a_volume_is_no_way_out() {
    let host = Host::new().await;
    let canary = host.root.join("canary");
    std::fs::create_dir(&canary).expect("canary");
    let volume = host
        .engine
        .volume_create(&shoal_api::container::VolumeSpec {
            name: Some("trap".into()),
            ..Default::default()
        });
    let inside = volume.expect("volume").mountpoint;
    std::os::unix::fs::symlink(&canary, inside.join("out")).expect("link");
    let before = census(&canary);
    let mut spec = sh("true");
    spec.host.binds = vec!["trap:/data".into(), "second:/data/out/new".into()];
    let id = host.engine.create(spec).await.expect("create");
    let err = host.engine.start(id.as_str()).await.expect_err("refused");
    assert!(
        err.report()
            .contains("a symbolic link inside another mount is in the way"),
        "{}",
        err.report()
    );
    assert_eq!(census(&canary), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_working_directory_cannot_be_a_leaked_descriptor() {
    let host = Host::new().await;
    for fd in 0..64 {
        let mut spec = sh("readlink /proc/self/cwd; cat ../../../../../../etc/shadow; ls ../..");
        spec.working_dir = Some(format!("/proc/self/fd/{fd}"));
        let id = host.engine.create(spec).await.expect("create");
        // A descriptor of the container's own root is harmless.
        if let Ok((_, said)) = host.run_created(&id).await {
            assert!(
                said.contains("cat: can't open")
                    && said.contains("/\nbin\ndev\netc\nhome\nproc\nroot\nsys\ntmp\nvar\n"),
                "{fd}: {said}"
            );
        }
        host.engine
            .remove(id.as_str(), true, true)
            .await
            .expect("remove");
    }
    let id = host.start(sh("echo up; sleep 1000")).await;
    host.wait_for_output(&id, "up").await;
    for fd in 3..64 {
        let spec = shoal_api::container::ExecSpec {
            cmd: vec!["pwd".into()],
            working_dir: Some(format!("/proc/self/fd/{fd}")),
            ..Default::default()
        };
        let exec = host
            .engine
            .exec_create(id.as_str(), spec)
            .expect("exec create");
        host.engine
            .exec_start(&exec)
            .await
            .expect_err("no directory");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shims_binary_cannot_be_written() {
    let host = Host::new().await;
    // A container in the host's process namespace sees the shims of others.
    let mut spec = sh(
        "for exe in /proc/[0-9]*/exe; do case $(readlink $exe) in *memfd*|*shoal-shim*) echo seen; echo x > $exe && echo written;; esac; done 2>/dev/null; true",
    );
    spec.host.pid_mode = Some("host".into());
    spec.host.cap_add = vec![
        "SYS_PTRACE".into(),
        "DAC_READ_SEARCH".into(),
        "SYS_ADMIN".into(),
    ];
    let (_, said) = host.run(spec).await;
    assert!(said.contains("seen") && !said.contains("written"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn links_inside_the_image_still_work() {
    let host = Host::new().await;
    host.import("linked:latest", |tar| {
        busybox(tar);
        dir(tar, "run/");
        link(tar, "var/run", "/run");
        link(
            tar,
            "etc/resolv.conf",
            "../run/systemd/resolve/stub-resolv.conf",
        );
    })
    .await;
    let mut spec = sh(
        "echo secret > /run/secrets/x; cat /var/run/secrets/x; test -s /etc/hosts; readlink /etc/resolv.conf",
    );
    spec.image = "linked".into();
    spec.host.binds = vec!["keys:/var/run/secrets".into()];
    assert_eq!(
        host.run(spec).await,
        (
            0,
            "secret\n../run/systemd/resolve/stub-resolv.conf\n".into()
        )
    );
    let _ = IMAGE;
}
