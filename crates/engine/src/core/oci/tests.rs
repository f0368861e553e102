use expect_test::{Expect, expect};

use super::*;

fn around() -> Surroundings {
    Surroundings {
        cgroup: "/shoal/c1".into(),
        netns: Netns::At("/run/netns/c1".into()),
        hostname: "c1".into(),
        mounts: Vec::new(),
        cpus: 1,
        ..Surroundings::default()
    }
}

fn shell() -> ContainerSpec {
    ContainerSpec {
        cmd: Some(vec!["sh".into()]),
        ..ContainerSpec::default()
    }
}

fn check(
    change: impl FnOnce(&mut ContainerSpec),
    pick: impl Fn(&Spec) -> serde_json::Value,
    expect: Expect,
) {
    let mut wish = shell();
    change(&mut wish);
    let spec = spec(&wish, &around()).expect("a good spec");
    expect.assert_eq(&serde_json::to_string_pretty(&pick(&spec)).expect("JSON"));
}

fn of(spec: &Spec, path: &str) -> serde_json::Value {
    serde_json::to_value(spec)
        .expect("JSON")
        .pointer(path)
        .cloned()
        .unwrap_or_default()
}

#[test]
fn the_default_process_has_dockers_rights() {
    check(
        |wish| wish.env.push("A=b".into()),
        |spec| {
            let mut process = of(spec, "/process");
            let bounding = process["capabilities"]["bounding"]
                .as_array()
                .map_or(0, Vec::len);
            process["capabilities"] = serde_json::json!(format!("{bounding} in the bounding set"));
            process
        },
        expect![[r#"
            {
              "args": [
                "sh"
              ],
              "capabilities": "14 in the bounding set",
              "cwd": "/",
              "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOSTNAME=c1",
                "A=b"
              ],
              "oomScoreAdj": 0,
              "terminal": false,
              "user": {
                "gid": 0,
                "uid": 0
              }
            }"#]],
    );
}

#[test]
fn no_new_privileges_is_left_out_when_off() {
    check(
        |_| {},
        |spec| of(spec, "/process/noNewPrivileges"),
        expect!["null"],
    );
    check(
        |wish| wish.host.security_opt.push("no-new-privileges".into()),
        |spec| of(spec, "/process/noNewPrivileges"),
        expect!["true"],
    );
}

#[test]
fn namespaces_and_hidden_paths() {
    check(
        |wish| wish.host.pid_mode = Some("host".into()),
        |spec| {
            serde_json::json!([
                of(spec, "/linux/namespaces"),
                of(spec, "/linux/maskedPaths"),
                of(spec, "/linux/readonlyPaths"),
                of(spec, "/linux/sysctl")
            ])
        },
        expect![[r#"
            [
              [
                {
                  "type": "mount"
                },
                {
                  "type": "ipc"
                },
                {
                  "type": "uts"
                },
                {
                  "type": "cgroup"
                },
                {
                  "path": "/run/netns/c1",
                  "type": "network"
                }
              ],
              [
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
                "/sys/devices/system/cpu/cpu0/thermal_throttle"
              ],
              [
                "/proc/bus",
                "/proc/fs",
                "/proc/irq",
                "/proc/sys",
                "/proc/sysrq-trigger"
              ],
              {
                "net.ipv4.ip_unprivileged_port_start": "0",
                "net.ipv4.ping_group_range": "0 2147483647"
              }
            ]"#]],
    );
}

#[test]
fn nothing_comes_in_by_the_crates_defaults() {
    let keys = |value: serde_json::Value| -> Vec<String> {
        value
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, _)| key.clone())
            .collect()
    };
    check(
        |wish| wish.host.uts_mode = Some("host".into()),
        |spec| {
            serde_json::json!([
                keys(of(spec, "")),
                keys(of(spec, "/linux")),
                keys(of(spec, "/process"))
            ])
            .to_string()
            .into()
        },
        expect![[
            r#""[[\"linux\",\"mounts\",\"ociVersion\",\"process\",\"root\"],[\"cgroupsPath\",\"maskedPaths\",\"namespaces\",\"readonlyPaths\",\"resources\",\"seccomp\",\"sysctl\"],[\"args\",\"capabilities\",\"cwd\",\"env\",\"oomScoreAdj\",\"terminal\",\"user\"]]""#
        ]],
    );
}
