//! Ways out of a container that were found in other engines, tried here. Every class has its tests:
//!
//! | class | what it is | tests |
//! |---|---|---|
//! | A1 | links of the image followed on the host | `walls::hostile_images_leave_the_host_alone`, `walls::a_link_inside_a_volume_is_no_way_out` |
//! | A2 | leaked descriptors and working directories | `walls::the_working_directory_cannot_be_a_leaked_descriptor`, `walls::a_container_is_walled_in` |
//! | A3 | the host's program written through `/proc/…/exe` | `walls::the_shims_binary_cannot_be_written`, `io::sealed::tests` |
//! | A4 | races over masked paths and shared volumes | `attacks::links_that_change_during_a_start_lead_nowhere`, `walls::a_container_is_walled_in` |
//! | A5 | programs and libraries of the container run by the engine | `attacks::nothing_of_the_container_is_run_by_the_engine` |
//! | A6 | `cp` through links that change | `files::links_that_change_during_a_copy_lead_nowhere`, `files::files_travel_both_ways_whether_it_runs_or_not` (`/var/run`) |
//! | A7 | archives that lead out | `io::images::unpack::tests`, `images/archives::hostile_archives_are_refused_or_contained` |
//! | A8 | an image's configuration taken for the user's | `core::oci::images` (properties) |
//! | A9 | bodies of odd size, shape or type | `docker_compat/system::no_body_shakes_the_api_and_no_stream_is_kept`, `docker_cli/protocol::a_huge_body_is_refused_and_the_server_lives` |
//! | A10 | names leaving an internal network | `overlay/resolver`, `docker_compat/exposure::an_internal_network_asks_nobody_outside` |
//! | A11 | clear text on an encrypted network | overlay's `tests/encrypted.rs`, on another kernel |
//! | A12 | foreign packets in a tunnel | `overlay/isolation::a_tunnel_takes_packets_of_nodes_of_its_network_only`, `…::a_container_cannot_send_under_anothers_address` |
//! | A13 | poisoned gossip | there is none |
//! | A14 | system calls that should not be reached | `syscalls::the_kernel_refuses_what_the_filter_leaves_out_on_every_gate`, the self-test at every start |
//! | A15 | what the kernel tells of the host | `attacks::what_moby_hides_is_hidden`, the self-test at every start |
//! | A16 | a socket open to others | `docker_compat/exposure::a_default_daemon_is_reached_by_root_and_its_group_only` |
//! | A17 | a shim's socket reached from a container | `attacks::no_container_reaches_a_shim` |
//! | A18 | hostile contexts and Dockerfiles | `build::nothing_in_a_context_or_image_leads_to_the_host` |
//! | A19 | streams that are never given back | `docker_compat/system::no_body_shakes_the_api_and_no_stream_is_kept`, `trouble::attaching_and_executing_leaks_nothing` |

use shoal_api::container::NetworkMode;
use shoal_engine::core::oci::{MASKED_PATHS, READONLY_PATHS};

use crate::host::{Host, busybox, dir, file, link, sh};
use crate::walls::census;

/// How often something that depends on chance is tried.
fn rounds(variable: &str, usually: usize) -> usize {
    let said = std::env::var(variable).ok();
    said.and_then(|text| text.parse().ok()).unwrap_or(usually)
}

#[tokio::test(flavor = "multi_thread")]
async fn links_that_change_during_a_start_lead_nowhere() {
    let host = Host::new().await;
    let canary = host.root.join("canary");
    for name in ["deep", "kcore"] {
        std::fs::create_dir_all(canary.join(name)).expect("canary");
    }
    std::fs::write(canary.join("deep/secret"), "precious").expect("canary");
    let before = census(&canary);
    // One container exchanges what others find in the volume that they share with it.
    let mut racer = sh(&format!(
        "echo up; while true; do \
         mkdir -p /v/a/deep; rm -rf /v/a; ln -s {0} /v/a; rm /v/a; ln -s ../../../../../../../..{0} /v/a; rm /v/a; \
         ln -s /proc /v/a; rm /v/a; ln -s /proc/self/root /v/a; rm /v/a; done 2>/dev/null",
        canary.display()
    ));
    racer.host.binds = vec!["shared:/v".into()];
    let racer = host.start(racer).await;
    host.wait_for_output(&racer, "up").await;
    let (mut ran, mut refused) = (0, 0);
    for round in 0..rounds("SHOAL_START_ROUNDS", 40) {
        let mut spec = sh(
            "! echo x > /proc/sysrq-trigger; ! echo x > /proc/sys/kernel/core_pattern; \
             test ! -s /proc/kcore; ! cat /v/a/deep/secret | grep precious",
        );
        spec.host.binds = vec!["shared:/v".into(), "other:/v/a/deep".into()];
        // From inside, or by the working directory.
        if round % 2 == 1 {
            spec.host.binds.pop();
            spec.working_dir = Some("/v/a/deep".into());
        }
        let id = host.engine.create(spec).await.expect("create");
        match host.run_created(&id).await {
            Ok((code, said)) => {
                assert!(!said.contains("precious"), "round {round}: {code} {said}");
                ran += 1;
            }
            Err(_) => refused += 1,
        }
        let removed = host.engine.remove(id.as_str(), true, false).await;
        removed.expect("remove");
        assert_eq!(census(&canary), before, "round {round}");
    }
    assert!(ran + refused > 0);
    let removed = host.engine.remove(racer.as_str(), true, true).await;
    removed.expect("remove");
    host.cgroups_gone().await;
    assert!(host.mounts().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_container_is_run_by_the_engine() {
    let host = Host::bare().await;
    // Whoever of them is run leaves a trace, in the container if that is its root.
    let trap = format!(
        "#!/bin/busybox sh\n/bin/busybox touch /tripped {}/tripped\nexec /bin/busybox cat\n",
        host.root.display()
    );
    host.import("traps:latest", |tar| {
        busybox(tar);
        dir(tar, "usr/");
        dir(tar, "usr/bin/");
        dir(tar, "usr/sbin/");
        dir(tar, "lib/");
        for name in [
            "unpigz",
            "pigz",
            "gzip",
            "gunzip",
            "xz",
            "unxz",
            "zstd",
            "bzip2",
            "tar",
            "git",
            "getent",
            "nsenter",
            "runc",
            "newuidmap",
            "modprobe",
            "hostname",
        ] {
            file(tar, &format!("usr/bin/{name}"), trap.as_bytes(), 0o755);
            file(tar, &format!("usr/sbin/{name}"), trap.as_bytes(), 0o755);
        }
        for name in [
            "libnss_files.so.2",
            "libnss_trap.so.2",
            "libc.so.6",
            "ld-linux-x86-64.so.2",
            "libseccomp.so.2",
        ] {
            file(tar, &format!("lib/{name}"), trap.as_bytes(), 0o755);
        }
        link(tar, "lib64", "lib");
        file(
            tar,
            "etc/nsswitch.conf",
            b"passwd: trap\ngroup: trap\nhosts: trap\n",
            0o644,
        );
        file(tar, "etc/ld.so.preload", b"/lib/libnss_trap.so.2\n", 0o644);
    })
    .await;
    let mut spec = sh("echo up; exec sleep 1000");
    spec.image = "traps".into();
    spec.user = Some("user".into());
    spec.host.group_add = vec!["extra".into()];
    spec.host.binds = vec!["fresh:/etc".into()];
    let id = host.start(spec).await;
    host.wait_for_output(&id, "up").await;

    // Into it, out of it, and all that reads its files.
    let mut plain = tar::Builder::new(Vec::new());
    file(&mut plain, "copied", b"copied", 0o644);
    let plain = std::io::Cursor::new(plain.into_inner().expect("archive"));
    let copied = host.engine.extract(id.as_str(), "/tmp", true, false, plain);
    copied.await.expect("copy");
    assert_eq!(
        crate::files::get(&host, &id, "/tmp/copied").await["copied"],
        "copied"
    );
    let exec = shoal_api::container::ExecSpec {
        cmd: vec!["id".into(), "-un".into()],
        user: Some("user:extra".into()),
        attach_stdout: true,
        ..Default::default()
    };
    let exec = host
        .engine
        .exec_create(id.as_str(), exec)
        .expect("exec create");
    let output = crate::host::read(host.engine.exec_start(&exec).await.expect("exec start")).await;
    assert_eq!(output, "user\n");
    host.engine.changes(id.as_str()).await.expect("changes");
    drop(host.engine.export(id.as_str()).await.expect("export"));
    host.engine.top(id.as_str(), "").await.expect("top");
    let (code, said) = host.exec(&id, &["sh", "-c", "! test -e /tripped"]).await;
    assert_eq!(code, 0, "{said}");
    assert!(!host.root.join("tripped").exists());
    // The traps do work.
    let (_, said) = host
        .exec(
            &id,
            &[
                "/bin/busybox",
                "sh",
                "-c",
                "/usr/bin/xz </dev/null; ls -d /tmp",
            ],
        )
        .await;
    // Beside what they say on the other stream.
    assert!(said.lines().any(|line| line == "/tmp"), "{said}");
    host.engine
        .remove(id.as_str(), true, true)
        .await
        .expect("remove");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_container_reaches_a_shim() {
    let host = Host::new().await;
    let mut spec = sh("echo up; exec sleep 1000");
    spec.host.network_mode = NetworkMode::Host;
    let id = host.start(spec).await;
    host.wait_for_output(&id, "up").await;
    let pid = host
        .engine
        .inspect(id.as_str(), false)
        .await
        .expect("inspect")
        .state
        .pid;
    let shim = crate::trouble::parent(pid);
    // Sockets without a path are reached by everybody in a network namespace (CVE-2020-15257); the shims have none.
    let table = std::fs::read_to_string("/proc/net/unix").expect("sockets");
    let mut named = 0;
    for process in [shim, crate::trouble::parent(shim)] {
        for fd in std::fs::read_dir(format!("/proc/{process}/fd"))
            .expect("descriptors")
            .flatten()
        {
            let Ok(target) = std::fs::read_link(fd.path()) else {
                continue;
            };
            let target = target.to_string_lossy().into_owned();
            let Some(inode) = target
                .strip_prefix("socket:[")
                .and_then(|rest| rest.strip_suffix(']'))
            else {
                continue;
            };
            let line = table
                .lines()
                .find(|line| line.split_whitespace().nth(6) == Some(inode));
            let Some(name) = line.and_then(|line| line.split_whitespace().nth(7)) else {
                continue;
            };
            assert!(!name.starts_with('@'), "{name}");
            named += 1;
        }
    }
    assert!(named >= 1, "the shim listens");
    let run = host.root.join("run/c").join(id.as_str());
    let meta = std::fs::metadata(&run).expect("run directory");
    let mode = std::os::unix::fs::MetadataExt::mode(&meta) & 0o777;
    assert_eq!(mode, 0o700);
    let command = format!("! ls {} 2>/dev/null", run.display());
    let (code, said) = host.exec(&id, &["sh", "-c", &command]).await;
    assert_eq!(code, 0, "{said}");
    host.engine
        .remove(id.as_str(), true, true)
        .await
        .expect("remove");
}

#[test]
fn what_moby_hides_is_hidden() {
    // moby, `daemon/pkg/oci/defaults.go`, at v28.
    let masked = [
        "/proc/acpi",
        "/proc/asound",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/sys/devices/virtual/powercap",
        "/sys/firmware",
    ];
    for path in masked {
        assert!(MASKED_PATHS.contains(&path), "{path}");
    }
    for path in [
        "/proc/bus",
        "/proc/fs",
        "/proc/irq",
        "/proc/sys",
        "/proc/sysrq-trigger",
    ] {
        assert!(READONLY_PATHS.contains(&path), "{path}");
    }
}
