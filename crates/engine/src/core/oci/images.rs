//! What an image says never becomes a right: the property behind CVE-2022-23648, CVE-2024-40635 and their like.

use oci_spec::runtime::Spec;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use shoal_api::container::ContainerSpec;

use super::{Netns, Surroundings, spec};
use crate::core::config;
use crate::core::images::ImageSpec;
use crate::core::mounts::{self, Planned};

fn around() -> Surroundings {
    Surroundings {
        cgroup: "/shoal/c1".into(),
        netns: Netns::At("/run/netns/c1".into()),
        hostname: "c1".into(),
        cpus: 2,
        ..Surroundings::default()
    }
}

/// Words that mean something to some program, and any others.
fn word() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "/",
        "/proc",
        "/sys",
        "/dev",
        "/etc/shadow",
        "../../..",
        "/proc/self/fd/7",
        "/var/run/docker.sock",
        "host",
        "root",
        "0",
        "-1",
        "4294967296",
        "4294967295:0",
        "0:4294967296",
        "2147483648",
        "99999999999999999999",
        "CAP_SYS_ADMIN",
        "privileged=true",
        "seccomp=unconfined",
        "com.docker.swarm.task.id",
        "io.kubernetes.cri-o.Devices",
        "cdi.k8s.io/x",
        "vendor.com/device=all",
        "org.systemd.property.ExecStart",
        "run.oci.hooks.stderr",
        "LD_PRELOAD=/x.so",
        "PATH=",
        "a:b:c",
        "\u{0}",
        "",
    ]);
    prop_oneof![known.prop_map(str::to_owned), ".{0,12}", "/[a-z./]{0,20}"]
}

/// Any JSON, a little deep.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        word().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            btree_map(word(), inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// The members that images have, with what belongs there or with anything; and members of other documents, which an
/// image may carry as well as any.
fn image() -> impl Strategy<Value = Value> {
    let words = || vec(word(), 0..4).prop_map(Value::from);
    let set = || btree_map(word(), Just(json!({})), 0..4).prop_map(|map| json!(map));
    let right = (
        (word(), words(), words(), words(), word()),
        (set(), set(), btree_map(word(), word(), 0..4), word(), words()),
    )
        .prop_map(|((user, env, entrypoint, cmd, dir), (ports, volumes, labels, signal, shell))| {
            json!({
                "User": user, "Env": env, "Entrypoint": entrypoint, "Cmd": cmd, "WorkingDir": dir, "ExposedPorts": ports,
                "Volumes": volumes, "Labels": labels, "StopSignal": signal, "Shell": shell, "OnBuild": shell,
                "Healthcheck": {"Test": cmd},
            })
        });
    let strange = || {
        btree_map(
            prop::sample::select(vec![
                "HostConfig",
                "Mounts",
                "mounts",
                "Binds",
                "hooks",
                "Hooks",
                "process",
                "linux",
                "Privileged",
                "CapAdd",
                "SecurityOpt",
                "Devices",
                "annotations",
                "Annotations",
                "NetworkMode",
                "Runtime",
                "Sysctls",
                "User",
                "Volumes",
                "Env",
                "ArgsEscaped",
                "Tty",
                "OpenStdin",
                "Hostname",
                "Domainname",
            ])
            .prop_map(str::to_owned),
            any_json(),
            0..6,
        )
    };
    (right, strange(), strange(), any::<bool>()).prop_map(|(right, inside, outside, lay)| {
        let mut config: Map<String, Value> = right.as_object().cloned().unwrap_or_default();
        for (key, value) in inside {
            // Half of the time what belongs there stays, else most images would be refused at once.
            if lay || !config.contains_key(&key) {
                config.insert(key, value);
            }
        }
        let mut image: Map<String, Value> = outside.into_iter().collect();
        image.insert("os".into(), json!("linux"));
        image.insert("architecture".into(), json!("amd64"));
        image.insert("rootfs".into(), json!({"type": "layers", "diff_ids": []}));
        image.insert("config".into(), Value::Object(config));
        Value::Object(image)
    })
}

fn asked() -> ContainerSpec {
    ContainerSpec {
        cmd: Some(vec!["sh".into()]),
        ..ContainerSpec::default()
    }
}

/// All that may not depend on the image: the whole document but for what the process is called and told.
fn rights(spec: &Spec) -> Value {
    let mut rights = serde_json::to_value(spec).expect("JSON");
    let process = rights["process"].as_object_mut().expect("a process");
    for own in ["args", "env", "cwd"] {
        process.remove(own);
    }
    // Sets, which are written in any order.
    let sets = process["capabilities"].as_object_mut();
    for set in sets.expect("capabilities").values_mut() {
        if let Some(names) = set.as_array_mut() {
            names.sort_by_key(Value::to_string);
        }
    }
    rights
}

proptest! {
    #[test]
    fn no_image_changes_mounts_hooks_capabilities_or_filter(image in image()) {
        let bytes = serde_json::to_vec(&image).expect("JSON");
        // Refused is well, too.
        let Ok(image) = ImageSpec::parse(&bytes) else { return Ok(()) };
        let merged = config::merge(asked(), &image.config);
        let plain = spec(&asked(), &around()).expect("a good spec");
        let of_image = spec(&merged, &around()).expect("an image cannot make it a bad one");
        prop_assert_eq!(rights(&of_image), rights(&plain));
        prop_assert!(of_image.hooks().is_none());
        prop_assert!(of_image.annotations().is_none());
        prop_assert_eq!(&merged.host, &asked().host);
        // Volumes are all it may ask for: new ones without a name, nowhere near what the runtime hides.
        if let Ok(planned) = mounts::plan(&merged, &[]) {
            for mount in planned {
                let anonymous = matches!(mount.what, Planned::Volume { name: None, .. });
                prop_assert!(anonymous, "{:?}", mount);
                prop_assert!(mount.target.is_absolute() && !mount.target.starts_with("/proc"), "{:?}", mount);
                prop_assert!(mount.target.components().all(|part| part.as_os_str() != ".."), "{:?}", mount);
            }
        }
    }

    #[test]
    fn a_number_of_a_user_never_wraps_round(user in any::<u64>(), group in any::<u64>(), both in any::<bool>()) {
        let text = if both { format!("{user}:{group}") } else { user.to_string() };
        let fits = |number: u64| i32::try_from(number).is_ok();
        let fit = fits(user) && (!both || fits(group));
        let image = json!({
            "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}, "config": {"User": text}
        });
        let bytes = serde_json::to_vec(&image).expect("JSON");
        prop_assert_eq!(ImageSpec::parse(&bytes).is_ok(), fit, "{}", text);
        // The same for what the user of a container says.
        let resolved = crate::core::user::resolve(&text, &[], "", "");
        match resolved {
            Ok(who) => {
                prop_assert!(fit);
                prop_assert_eq!(u64::from(who.uid), user);
                prop_assert_eq!(u64::from(who.gid), if both { group } else { 0 });
            }
            Err(_) => prop_assert!(!fit),
        }
    }
}
