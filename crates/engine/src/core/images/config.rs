//! The configuration of an image, read into a closed set of fields.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shoal_api::{
    Timestamp,
    container::HealthCheck,
    image::{ImageConfig, Platform},
};

use super::Digest;

/// What an image's configuration document says.
///
/// Only these fields are looked at. In particular nothing in an image can ask for mounts, hooks,
/// devices or capabilities.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageSpec {
    pub platform: Platform,
    /// `ZERO` where the image does not say.
    pub created: Timestamp,
    pub author: String,
    pub comment: String,
    pub config: ImageConfig,
    /// Digests of the uncompressed layers, lowest first.
    pub diff_ids: Vec<Digest>,
    /// Oldest first.
    pub history: Vec<BuildStep>,
}

/// One step of an image's making.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildStep {
    pub created: Timestamp,
    pub created_by: String,
    pub comment: String,
    /// The step changed the configuration only.
    pub empty_layer: bool,
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidConfig {
    #[error("image configuration is not readable JSON")]
    Json(#[source] serde_json::Error),
    #[error("image operating system {0:?} cannot be used on this platform")]
    OperatingSystem(String),
    #[error("image configuration has an invalid {field}: {value:?}")]
    Field { field: &'static str, value: String },
}

#[derive(Deserialize)]
struct WireImage {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: String,
    created: Option<String>,
    #[serde(default)]
    author: String,
    #[serde(default)]
    comment: String,
    config: Option<WireConfig>,
    rootfs: WireRootfs,
    history: Option<Vec<WireStep>>,
}

#[derive(Deserialize)]
struct WireRootfs {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Option<Vec<Digest>>,
}

#[derive(Deserialize)]
struct WireStep {
    created: Option<String>,
    #[serde(default)]
    created_by: String,
    #[serde(default)]
    comment: String,
    #[serde(default)]
    empty_layer: bool,
}

/// Go writes `null` for empty lists and maps, hence the options.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct WireConfig {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    exposed_ports: Option<BTreeMap<String, Value>>,
    volumes: Option<BTreeMap<String, Value>>,
    labels: Option<BTreeMap<String, String>>,
    stop_signal: Option<String>,
    healthcheck: Option<WireHealthcheck>,
    shell: Option<Vec<String>>,
    on_build: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct WireHealthcheck {
    test: Option<Vec<String>>,
    /// Nanoseconds, all of them; 0 inherits the default.
    interval: i64,
    timeout: i64,
    start_period: i64,
    start_interval: i64,
    retries: i64,
}

impl ImageSpec {
    /// Parses and checks a configuration document.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidConfig> {
        let wire: WireImage = serde_json::from_slice(bytes).map_err(InvalidConfig::Json)?;
        if wire.os != "linux" {
            return Err(InvalidConfig::OperatingSystem(wire.os));
        }
        if wire.rootfs.kind != "layers" {
            return Err(invalid("rootfs type", &wire.rootfs.kind));
        }
        let steps = wire.history.unwrap_or_default().into_iter();
        Ok(Self {
            platform: Platform {
                os: wire.os,
                architecture: wire.architecture,
                variant: wire.variant,
            },
            created: instant(wire.created.as_deref()),
            author: wire.author,
            comment: wire.comment,
            config: check_config(wire.config.unwrap_or_default())?,
            diff_ids: wire.rootfs.diff_ids.unwrap_or_default(),
            history: steps
                .map(|step| BuildStep {
                    created: instant(step.created.as_deref()),
                    created_by: step.created_by,
                    comment: step.comment,
                    empty_layer: step.empty_layer,
                })
                .collect(),
        })
    }
}

/// A date that cannot be read is as good as none: it is shown, never acted upon.
fn instant(text: Option<&str>) -> Timestamp {
    text.and_then(Timestamp::parse_rfc3339).unwrap_or_default()
}

fn invalid(field: &'static str, value: &str) -> InvalidConfig {
    InvalidConfig::Field {
        field,
        value: value.chars().take(200).collect(),
    }
}

fn check_config(wire: WireConfig) -> Result<ImageConfig, InvalidConfig> {
    let config = ImageConfig {
        env: wire.env.unwrap_or_default(),
        entrypoint: wire.entrypoint,
        cmd: wire.cmd,
        user: wire.user.unwrap_or_default(),
        working_dir: wire.working_dir.unwrap_or_default(),
        exposed_ports: wire.exposed_ports.unwrap_or_default().into_keys().collect(),
        volumes: wire.volumes.unwrap_or_default().into_keys().collect(),
        labels: wire.labels.unwrap_or_default(),
        stop_signal: wire.stop_signal.filter(|signal| !signal.is_empty()),
        healthcheck: wire.healthcheck.map(check_healthcheck).transpose()?,
        shell: wire.shell,
        on_build: wire.on_build.unwrap_or_default(),
    };
    // Strings below reach execve(2) and mount(2), which end them at the first NUL.
    let words = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let fields: [(&'static str, Vec<String>); 6] = [
        ("environment", config.env.clone()),
        ("entrypoint", words(&config.entrypoint)),
        ("command", words(&config.cmd)),
        ("user", vec![config.user.clone()]),
        ("working directory", vec![config.working_dir.clone()]),
        ("volume", config.volumes.iter().cloned().collect()),
    ];
    for (field, values) in &fields {
        if let Some(value) = values.iter().find(|value| value.contains('\0')) {
            return Err(invalid(field, value));
        }
    }
    // A number that does not fit would wrap around, to root in the worst case (CVE-2024-40635).
    for part in config.user.split(':') {
        if !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_digit())
            && part.parse::<i32>().is_err()
        {
            return Err(invalid("user", &config.user));
        }
    }
    if config.user.split(':').count() > 2 {
        return Err(invalid("user", &config.user));
    }
    Ok(config)
}

fn check_healthcheck(wire: WireHealthcheck) -> Result<HealthCheck, InvalidConfig> {
    let duration = |nanos: i64| match u64::try_from(nanos) {
        Ok(0) => Ok(None),
        Ok(nanos) => Ok(Some(Duration::from_nanos(nanos))),
        Err(_) => Err(invalid("healthcheck duration", &nanos.to_string())),
    };
    let retries = match u32::try_from(wire.retries) {
        Ok(0) => None,
        Ok(retries) => Some(retries),
        Err(_) => return Err(invalid("healthcheck retries", &wire.retries.to_string())),
    };
    Ok(HealthCheck {
        test: wire.test.unwrap_or_default(),
        interval: duration(wire.interval)?,
        timeout: duration(wire.timeout)?,
        start_period: duration(wire.start_period)?,
        start_interval: duration(wire.start_interval)?,
        retries,
    })
}

/// Writes the configuration document of an image made here.
pub fn render_config(spec: &ImageSpec) -> Vec<u8> {
    let config = &spec.config;
    let set = |names: &std::collections::BTreeSet<String>| -> BTreeMap<String, Value> {
        names.iter().map(|name| (name.clone(), json!({}))).collect()
    };
    let nanos = |duration: Option<Duration>| {
        duration.map_or(0, |duration| {
            i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
        })
    };
    let mut wire = json!({
        "User": config.user,
        "Env": config.env,
        "Entrypoint": config.entrypoint,
        "Cmd": config.cmd,
        "WorkingDir": config.working_dir,
        "Labels": config.labels,
        "OnBuild": config.on_build,
    });
    let mut add = |key: &str, value: Value| {
        wire[key] = value;
    };
    if !config.exposed_ports.is_empty() {
        add("ExposedPorts", json!(set(&config.exposed_ports)));
    }
    if !config.volumes.is_empty() {
        add("Volumes", json!(set(&config.volumes)));
    }
    if let Some(signal) = &config.stop_signal {
        add("StopSignal", json!(signal));
    }
    if let Some(shell) = &config.shell {
        add("Shell", json!(shell));
    }
    if let Some(check) = &config.healthcheck {
        add(
            "Healthcheck",
            json!({
                "Test": check.test,
                "Interval": nanos(check.interval),
                "Timeout": nanos(check.timeout),
                "StartPeriod": nanos(check.start_period),
                "StartInterval": nanos(check.start_interval),
                "Retries": check.retries.unwrap_or(0),
            }),
        );
    }
    let history: Vec<_> = spec
        .history
        .iter()
        .map(|step| {
            json!({
                "created": step.created.to_string(),
                "created_by": step.created_by,
                "comment": step.comment,
                "empty_layer": step.empty_layer,
            })
        })
        .collect();
    let mut image = json!({
        "architecture": spec.platform.architecture,
        "os": spec.platform.os,
        "created": spec.created.to_string(),
        "author": spec.author,
        "comment": spec.comment,
        "config": wire,
        "rootfs": { "type": "layers", "diff_ids": spec.diff_ids },
        "history": history,
    });
    if !spec.platform.variant.is_empty() {
        image["variant"] = json!(spec.platform.variant);
    }
    serde_json::to_vec(&image).expect("a configuration has only string keys")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(config: &str) -> Result<ImageSpec, String> {
        let text = format!(
            r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":null}},"config":{config}}}"#
        );
        ImageSpec::parse(text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn nulls_of_go_are_empty() {
        let spec =
            parse(r#"{"Env":null,"Cmd":null,"Volumes":null,"Labels":null,"Healthcheck":null}"#)
                .unwrap();
        assert_eq!(spec.config, ImageConfig::default());
        assert_eq!(parse("null").unwrap().config, ImageConfig::default());
    }

    #[test]
    fn what_an_image_may_not_say_is_refused_or_unheard() {
        assert!(
            parse(r#"{"User":"4294967296"}"#)
                .unwrap_err()
                .contains("invalid user")
        );
        assert!(
            parse(r#"{"User":"0:99999999999"}"#)
                .unwrap_err()
                .contains("invalid user")
        );
        assert!(parse(r#"{"User":"a:b:c"}"#).is_err());
        assert!(
            parse(r#"{"Env":["A=\u0000"]}"#)
                .unwrap_err()
                .contains("invalid environment")
        );
        assert!(parse(r#"{"Healthcheck":{"Interval":-1}}"#).is_err());
        assert!(
            parse(r#"{"Env":[],"Env":["A=1"]}"#)
                .unwrap_err()
                .contains("JSON")
        );
        // Hooks, mounts and devices have no field to land in.
        assert_eq!(
            parse(r#"{"Hooks":{"prestart":[]},"Mounts":[1],"Devices":["/dev/sda"]}"#)
                .unwrap()
                .config,
            ImageConfig::default()
        );
    }

    #[test]
    fn a_configuration_survives_the_trip() {
        let spec = parse(
            r#"{"User":"1000:100","Env":["A=1"],"Entrypoint":["/x"],"Cmd":["y"],"WorkingDir":"/w","ExposedPorts":{"80/tcp":{}},
                "Volumes":{"/v":{}},"Labels":{"k":"v"},"StopSignal":"SIGINT","Shell":["/bin/sh"],
                "Healthcheck":{"Test":["CMD","true"],"Interval":1000000000,"Retries":2}}"#,
        )
        .unwrap();
        assert_eq!(ImageSpec::parse(&render_config(&spec)).unwrap(), spec);
        assert_eq!(
            spec.config.healthcheck.unwrap().interval,
            Some(Duration::from_secs(1))
        );
    }

    #[test]
    fn other_operating_systems_are_refused() {
        let windows = br#"{"os":"windows","rootfs":{"type":"layers"}}"#;
        assert_eq!(
            ImageSpec::parse(windows).unwrap_err().to_string(),
            r#"image operating system "windows" cannot be used on this platform"#
        );
    }
}
