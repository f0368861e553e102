use std::path::Path;

use serde_json::{Map, Value, json};

use super::*;

fn keys(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(keys) => keys,
        _ => panic!("an object"),
    }
}

/// Loads a file with this text and these flags.
fn load(text: &str, flags: Value) -> Result<DaemonConfig, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("daemon.json");
    std::fs::write(&path, text).unwrap();
    let loaded = DaemonConfig::load(keys(flags), Some(&path));
    loaded.map_err(|error| {
        let text = error.to_string();
        text.replace(&path.display().to_string(), "FILE")
    })
}

#[test]
fn managers_are_as_patient_as_their_daemon_says() {
    let raft = |text: &str| load(text, json!({})).map(|config| config.raft);
    let usual = raft("{}").unwrap();
    let slower =
        raft(r#"{"swarm-raft-heartbeat-tick": 2, "swarm-raft-election-tick": 40}"#).unwrap();
    assert_eq!(slower.tick, usual.tick * 2);
    assert_eq!((usual.election_ticks, slower.election_ticks), (8, 20));
    let refused = raft(r#"{"swarm-raft-heartbeat-tick": 5, "swarm-raft-election-tick": 9}"#);
    let said = refused.unwrap_err();
    assert!(
        said.contains(
            "swarm-raft-election-tick: it must be at least twice swarm-raft-heartbeat-tick"
        ),
        "{said}"
    );
}

#[test]
fn the_file_of_docker_is_understood() {
    let config = load(
        r#"{
            "data-root": "/srv/shoal", "hosts": ["unix:///run/a.sock", "tcp://127.0.0.1:2375"], "debug": true,
            "log-level": "warn", "labels": ["zone=a"], "log-driver": "local", "log-opts": {"max-size": "1m"},
            "registry-mirrors": ["https://mirror:5000/"], "insecure-registries": ["r:5000"], "dns": ["10.0.0.2"],
            "default-ulimits": {"nofile": {"Name": "nofile", "Hard": 200, "Soft": 100}}, "live-restore": true,
            "exec-opts": ["native.cgroupdriver=cgroupfs"], "storage-driver": "overlay2", "max-concurrent-downloads": 5,
            "default-shm-size": "128M", "group": "staff", "userland-proxy": false, "userns-remap": ""
        }"#,
        json!({"hostname": "n1"}),
    )
    .unwrap();
    assert_eq!(config.data_root, Path::new("/srv/shoal"));
    assert_eq!(config.socket(), Path::new("/run/a.sock"));
    assert_eq!(
        (config.hostname(), config.group.as_deref()),
        ("n1".to_owned(), Some("staff"))
    );
    let live = config.live();
    assert!(live.debug && live.log_level == "warn" && live.labels == ["zone=a"]);
    assert_eq!(live.max_concurrent_downloads, Some(5));
    assert_eq!(config.warnings, [""; 0]);

    let mut spec = ContainerSpec::default();
    config.fill(&mut spec);
    assert_eq!(spec.host.log.driver.as_deref(), Some("local"));
    assert_eq!(spec.host.log.options["max-size"], "1m");
    assert_eq!(
        (spec.host.ulimits[0].soft, spec.host.ulimits[0].hard),
        (100, 200)
    );
    assert_eq!(spec.host.shm_size, Some(128 << 20));
    assert_eq!(spec.host.dns, ["10.0.0.2".parse::<IpAddr>().unwrap()]);

    // What a container says itself stays, and options of the default driver are not another's.
    let mut spec = ContainerSpec::default();
    spec.host.log.driver = Some("none".to_owned());
    spec.host.ulimits = vec![Ulimit {
        name: "nofile".to_owned(),
        soft: 1,
        hard: 1,
    }];
    config.fill(&mut spec);
    assert!(spec.host.log.options.is_empty() && spec.host.ulimits.len() == 1);
}

#[test]
fn what_makes_no_sense_is_refused_in_dockers_words() {
    let seen: Vec<String> = [
        (r#"{"colour": 1, "debug": true}"#, json!({})),
        (
            r#"{"labels": ["a=b"], "debug": true}"#,
            json!({"labels": ["c=d"], "debug": true}),
        ),
        (r#"{"debug": "yes"}"#, json!({})),
        (r#"{"debug": true"#, json!({})),
        (r#"{"labels": ["a"]}"#, json!({})),
        (r#"{"log-level": "loud"}"#, json!({})),
        (r#"{"log-driver": "papyrus"}"#, json!({})),
        (r#"{"dns": ["here"]}"#, json!({})),
        (r#"{"registry-mirrors": ["mirror:5000"]}"#, json!({})),
        (r#"{"registry-mirrors": ["https://m/path"]}"#, json!({})),
        (r#"{"hosts": ["tcp://0.0.0.0:2375"]}"#, json!({})),
        (r#"{"hosts": ["/run/a.sock"]}"#, json!({})),
        (r#"{"userns-remap": "default"}"#, json!({})),
        (
            r#"{"exec-opts": ["native.cgroupdriver=systemd"]}"#,
            json!({}),
        ),
        (r#"{"max-concurrent-downloads": -1}"#, json!({})),
        (
            r#"{"default-ulimits": {"nofile": {"Soft": 2, "Hard": 1}}}"#,
            json!({}),
        ),
    ]
    .into_iter()
    .map(|(text, flags)| load(text, flags).map(drop).unwrap_err())
    .collect();
    let expected = [
        "unable to configure the Shoal daemon with file FILE: the following directives don't match any configuration option: colour",
        "unable to configure the Shoal daemon with file FILE: the following directives are specified both as a flag and in the configuration file: debug: (from flag: true, from file: true), labels: (from flag: [c=d], from file: [a=b])",
        "unable to configure the Shoal daemon with file FILE: invalid debug: \"yes\" given, true or false expected",
        "unable to configure the Shoal daemon with file FILE: EOF while parsing an object at line 1 column 14",
        "invalid labels: bad attribute format: a",
        "invalid log-level: not a valid logrus Level: \"loud\"",
        "invalid log-driver: logger: no log driver named 'papyrus' is registered",
        "invalid dns: here is not an ip address",
        "invalid registry-mirrors: invalid mirror: no scheme specified for \"mirror:5000\": must use either 'https://' or 'http://'",
        "invalid registry-mirrors: invalid mirror: path, query, or fragment at end of the URI \"https://m/path\"",
        "invalid hosts: \"tcp://0.0.0.0:2375\" without --tlsverify is refused: whoever reaches it owns this host; use TLS with client certificates, or a loopback address",
        "invalid hosts: unable to parse daemon host \"/run/a.sock\": expected unix:///PATH or tcp://ADDRESS:PORT",
        "invalid userns-remap: \"default\" is not supported: user namespaces are not remapped",
        "invalid exec-opts: native.cgroupdriver=systemd is not supported: expected cgroupfs",
        "invalid max-concurrent-downloads: invalid value -1: it must be at least 0",
        "invalid default-ulimits: nofile: soft limit must be less than or equal to hard limit: 2 > 1",
    ];
    for (seen, expected) in seen.iter().zip(expected) {
        assert_eq!(seen, expected);
    }
}

#[test]
fn keys_without_effect_are_named() {
    let config = load(
        r#"{"iptables": false, "live-restore": false, "default-gateway": "10.1.0.1"}"#,
        json!({}),
    );
    let warnings = config.unwrap().warnings;
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert!(
        warnings
            .iter()
            .all(|warning| warning.contains("has no effect: "))
    );
}

#[test]
fn networks_are_as_the_file_says() {
    let config = load(
        r#"{"bip": "10.9.0.1/24", "fixed-cidr": "10.9.0.128/25", "mtu": 1400, "icc": false, "ip": "127.0.0.1",
            "ipv6": true, "fixed-cidr-v6": "fd00:9::/64", "ip-masq": false,
            "default-address-pools": [{"base": "10.10.0.0/16", "size": 24}],
            "default-network-opts": {"bridge": {"com.docker.network.driver.mtu": "1300"}}}"#,
        json!({}),
    );
    let config = config.unwrap();
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let bridge = &config.networks.bridge;
    assert_eq!(bridge.address, "10.9.0.1/24".parse().ok());
    assert_eq!(
        (bridge.mtu, bridge.icc, bridge.masquerade, bridge.ipv6),
        (Some(1400), false, false, true)
    );
    assert_eq!(config.networks.pools[0].length, 24);
    for (text, expected) in [
        (
            r#"{"bip": "10.9.0.0/24"}"#,
            "invalid bip: 10.9.0.0/24 leaves no address",
        ),
        (r#"{"bip": "here"}"#, "an address with a prefix length"),
        (
            r#"{"mtu": 9}"#,
            "invalid mtu: 9 is out of range: expected 68 to 65535",
        ),
        (
            r#"{"fixed-cidr-v6": "fd00::/64"}"#,
            "invalid fixed-cidr-v6: it needs ipv6",
        ),
        (
            r#"{"bip": "10.9.0.1/24", "fixed-cidr": "10.8.0.0/25"}"#,
            "invalid fixed-cidr: 10.8.0.0/25 is not within",
        ),
        (
            r#"{"default-address-pools": [{"base": "10.0.0.0/16", "size": 8}]}"#,
            "invalid default-address-pools: size 8 of 10.0.0.0/16 is out of range",
        ),
        (
            r#"{"default-cgroupns-mode": "x"}"#,
            "invalid default-cgroupns-mode: \"x\" is unknown: expected private or host",
        ),
        (
            r#"{"cdi-spec-dirs": ["cdi"]}"#,
            "invalid cdi-spec-dirs: \"cdi\" is not absolute",
        ),
    ] {
        let error = load(text, json!({})).map(drop).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_reload_takes_over_what_may_change() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("daemon.json");
    std::fs::write(&path, r#"{"labels": ["a=b"], "data-root": "/a"}"#).unwrap();
    let config = DaemonConfig::load(Map::new(), Some(&path)).unwrap();
    let copy = config.clone();
    std::fs::write(
        &path,
        r#"{"labels": ["a=c"], "data-root": "/b", "debug": true}"#,
    )
    .unwrap();
    config.reload().unwrap();
    assert_eq!(
        (&copy.live().labels[..], copy.live().debug),
        (&["a=c".to_owned()][..], true)
    );
    assert_eq!(copy.data_root, Path::new("/a"));
    // A file with a mistake changes nothing.
    std::fs::write(&path, r#"{"labels": 3}"#).unwrap();
    config.reload().unwrap_err();
    assert_eq!(copy.live().labels, ["a=c"]);
}

#[test]
fn a_file_that_is_named_must_be_there() {
    let error =
        DaemonConfig::load(Map::new(), Some(Path::new("/nothing/daemon.json"))).unwrap_err();
    assert!(
        error.to_string().contains("/nothing/daemon.json"),
        "{error}"
    );
}
