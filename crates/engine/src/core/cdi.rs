//! Devices by name: specifications of the Container Device Interface (CNCF, version 1.0), and what they change of a
//! container.

use std::collections::BTreeMap;

use serde::Deserialize;
use shoal_api::container::DeviceRequest;

/// Class of the devices that `--gpus` asks for.
const GPU_CLASS: &str = "gpu";
/// The device that stands for all of its kind, by convention.
const ALL: &str = "all";

/// Why devices cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CdiError {
    /// Docker's words.
    #[error("CDI device injection failed: unresolvable CDI devices {0}")]
    Unresolvable(String),
    /// Docker's words, and what would help.
    #[error(
        "could not select device driver \"{driver}\" with capabilities: [{capabilities}]: no specification of a gpu is in {dirs}"
    )]
    NoDriver {
        driver: String,
        capabilities: String,
        dirs: String,
    },
    #[error("invalid CDI specification: {0}")]
    Specification(String),
}

/// How a specification is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Json,
    Yaml,
}

impl Form {
    /// By the ending of a file's name; other files are no specifications.
    pub fn of_extension(extension: &str) -> Option<Self> {
        match extension {
            "json" => Some(Self::Json),
            "yaml" | "yml" => Some(Self::Yaml),
            _ => None,
        }
    }
}

/// One file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Specification {
    cdi_version: String,
    /// `vendor.com/class`.
    kind: String,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

/// What a device changes of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Edits {
    /// Variables, `NAME=value`.
    pub env: Vec<String>,
    pub device_nodes: Vec<NodeEdit>,
    pub mounts: Vec<MountEdit>,
    pub hooks: Vec<HookEdit>,
    #[serde(rename = "additionalGids")]
    pub additional_gids: Vec<u32>,
}

/// A device node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeEdit {
    /// In the container.
    pub path: String,
    /// On the host; the same when it is empty.
    pub host_path: String,
    /// Some of `rwm`.
    pub permissions: String,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub file_mode: Option<u32>,
}

/// A mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MountEdit {
    pub host_path: String,
    pub container_path: String,
    pub options: Vec<String>,
}

/// A program of the host that the runtime calls.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HookEdit {
    /// `createRuntime`, `createContainer`, `startContainer`, `poststart`, `poststop`.
    pub hook_name: String,
    pub path: String,
    pub args: Vec<String>,
    pub env: Vec<String>,
    /// In seconds.
    pub timeout: Option<i64>,
}

impl Edits {
    fn append(&mut self, other: &Self) {
        self.env.extend(other.env.iter().cloned());
        self.device_nodes.extend(other.device_nodes.iter().cloned());
        self.mounts.extend(other.mounts.iter().cloned());
        self.hooks.extend(other.hooks.iter().cloned());
        self.additional_gids.extend(&other.additional_gids);
    }
}

/// All devices that this host has specifications of, by full name.
#[derive(Debug, Clone, Default)]
pub struct Devices {
    /// What belongs to every device of a specification, by its number, and the device's own.
    devices: BTreeMap<String, (usize, Edits)>,
    common: Vec<Edits>,
    /// Where specifications were looked for, for messages.
    dirs: String,
}

impl Devices {
    /// None yet; `dirs` are where specifications are looked for.
    pub fn new(dirs: String) -> Self {
        Self {
            dirs,
            ..Self::default()
        }
    }

    /// Adds those of a file. A name that is there already stays what it was made by a file of less priority.
    pub fn add(&mut self, text: &str, form: Form) -> Result<(), CdiError> {
        let wrong = |why: String| CdiError::Specification(why);
        let read: Specification = match form {
            Form::Json => serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?,
            Form::Yaml => {
                let options = serde_saphyr::options! { with_snippet: false };
                serde_saphyr::from_str_with_options(text, options)
                    .map_err(|error| wrong(error.to_string()))?
            }
        };
        if read.cdi_version.is_empty() {
            return Err(wrong("cdiVersion is missing".to_owned()));
        }
        if read.kind.split_once('/').is_none() {
            let kind = &read.kind;
            return Err(wrong(format!("kind {kind:?} is not vendor/class")));
        }
        let number = self.common.len();
        self.common.push(read.container_edits);
        for device in read.devices {
            let name = format!("{}={}", read.kind, device.name);
            self.devices.insert(name, (number, device.container_edits));
        }
        Ok(())
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.devices.keys().map(String::as_str)
    }

    /// What these devices change together; what belongs to their specifications comes once.
    fn edits<'n>(&self, names: impl Iterator<Item = &'n str>) -> Result<Edits, CdiError> {
        let (mut edits, mut missing) = (Edits::default(), Vec::new());
        let mut seen = std::collections::BTreeSet::new();
        for name in names {
            match self.devices.get(name) {
                None => missing.push(name),
                Some((number, own)) => {
                    if seen.insert(*number) {
                        edits.append(&self.common[*number]);
                    }
                    edits.append(own);
                }
            }
        }
        if missing.is_empty() {
            Ok(edits)
        } else {
            Err(CdiError::Unresolvable(missing.join(", ")))
        }
    }

    /// What the requests of a container change.
    pub fn resolve(&self, requests: &[DeviceRequest]) -> Result<Edits, CdiError> {
        let mut names = Vec::new();
        for request in requests {
            if request.driver == "cdi" {
                names.extend(request.device_ids.iter().cloned());
            } else {
                names.extend(self.gpus(request)?);
            }
        }
        self.edits(names.iter().map(String::as_str))
    }

    /// The names of the GPUs that a request asks for.
    fn gpus(&self, request: &DeviceRequest) -> Result<Vec<String>, CdiError> {
        let wants_gpu = request
            .capabilities
            .iter()
            .any(|all| all.iter().any(|one| one == GPU_CLASS));
        let kind = self.names().find_map(|name| {
            let (kind, _) = name.split_once('=')?;
            let (vendor, class) = kind.split_once('/')?;
            let same = ["", "nvidia"].contains(&request.driver.as_str())
                || vendor.split('.').next() == Some(request.driver.as_str());
            (class == GPU_CLASS && same).then(|| kind.to_owned())
        });
        let Some(kind) = kind.filter(|_| wants_gpu) else {
            let sets = request.capabilities.iter();
            let sets = sets.map(|set| format!("[{}]", set.join(" ")));
            return Err(CdiError::NoDriver {
                driver: request.driver.clone(),
                capabilities: sets.collect::<Vec<_>>().join(" "),
                dirs: self.dirs.clone(),
            });
        };
        let named = |id: &str| format!("{kind}={id}");
        if !request.device_ids.is_empty() {
            return Ok(request.device_ids.iter().map(|id| named(id)).collect());
        }
        match usize::try_from(request.count) {
            Ok(count) => Ok((0..count)
                .map(|number| named(&number.to_string()))
                .collect()),
            // -1 is all of them.
            Err(_) if self.devices.contains_key(&named(ALL)) => Ok(vec![named(ALL)]),
            Err(_) => {
                let prefix = named("");
                let all = self.names().filter(|name| name.starts_with(&prefix));
                Ok(all.map(str::to_owned).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices() -> Devices {
        let mut devices = Devices::new("/etc/cdi".to_owned());
        let text = r#"{
            "cdiVersion": "0.6.0", "kind": "vendor.com/gpu",
            "devices": [
                {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/g0", "hostPath": "/dev/null"}]}},
                {"name": "1", "containerEdits": {"env": ["G=1"]}}
            ],
            "containerEdits": {"env": ["COMMON=1"]}
        }"#;
        devices.add(text, Form::Json).expect("a specification");
        devices
    }

    #[test]
    fn yaml_says_the_same() {
        let text = r#"
cdiVersion: "0.6.0"
kind: vendor.com/gpu
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/g0
      hostPath: /dev/null
      fileMode: 438
      permissions: rw
    hooks:
    - hookName: createContainer
      path: /usr/bin/true
      args: ["true", "--flag"]
- name: "1"
  containerEdits:
    env: [G=1]
containerEdits:
  env:
  - COMMON=1
"#;
        let mut read = Devices::new("/etc/cdi".to_owned());
        read.add(text, Form::Yaml).expect("a specification");
        let ids = ["vendor.com/gpu=0", "vendor.com/gpu=1"];
        let edits = read.resolve(&[request("cdi", &ids, 0)]).expect("two");
        assert_eq!(edits.env, ["COMMON=1", "G=1"]);
        assert_eq!(edits.device_nodes[0].file_mode, Some(0o666));
        assert_eq!(edits.hooks[0].args, ["true", "--flag"]);
        for text in ["", "kind: [", "cdiVersion: 1\nkind: a", "devices: &a [*a]"] {
            assert!(read.add(text, Form::Yaml).is_err(), "{text}");
        }
    }

    fn request(driver: &str, ids: &[&str], count: i64) -> DeviceRequest {
        DeviceRequest {
            driver: driver.to_owned(),
            count,
            device_ids: ids.iter().map(|&id| id.to_owned()).collect(),
            capabilities: vec![vec!["gpu".to_owned()]],
            ..DeviceRequest::default()
        }
    }

    #[test]
    fn devices_are_had_by_name() {
        let both = ["vendor.com/gpu=0", "vendor.com/gpu=1"];
        let edits = devices().resolve(&[request("cdi", &both, 0)]).expect("two");
        assert_eq!(edits.env, ["COMMON=1", "G=1"]);
        assert_eq!(edits.device_nodes[0].host_path, "/dev/null");
        let missing = devices().resolve(&[request("cdi", &["vendor.com/gpu=9"], 0)]);
        assert_eq!(
            missing.expect_err("there is none").to_string(),
            "CDI device injection failed: unresolvable CDI devices vendor.com/gpu=9"
        );
    }

    #[test]
    fn gpus_are_devices_of_their_class() {
        let env = |ids: &[&str], count| {
            let edits = devices().resolve(&[request("", ids, count)]);
            edits
                .map(|edits| edits.env)
                .map_err(|error| error.to_string())
        };
        assert_eq!(env(&[], -1), Ok(vec!["COMMON=1".into(), "G=1".into()]));
        assert_eq!(env(&["1"], 0), Ok(vec!["COMMON=1".into(), "G=1".into()]));
        assert_eq!(env(&[], 1), Ok(vec!["COMMON=1".into()]));
        let none = Devices::new("/etc/cdi".to_owned()).resolve(&[request("", &[], -1)]);
        assert_eq!(
            none.expect_err("there is none").to_string(),
            "could not select device driver \"\" with capabilities: [[gpu]]: no specification of a gpu is in /etc/cdi"
        );
    }

    #[test]
    fn what_is_no_specification_is_refused() {
        let mut devices = devices();
        for text in [
            "",
            "{}",
            r#"{"cdiVersion":"","kind":"a/b"}"#,
            r#"{"cdiVersion":"0.6.0","kind":"a"}"#,
        ] {
            assert!(devices.add(text, Form::Json).is_err(), "{text}");
        }
    }
}
