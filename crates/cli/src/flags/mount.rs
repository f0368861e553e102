//! Mounts: `--mount type=volume,source=data,target=/data` and `-v data:/data:ro`.

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use serde_json::{Map, Value, json};

use super::{boolean, fields, quantity};

/// Reads `--mount` as a mount of the API.
pub(crate) fn long(text: &str) -> Result<Value> {
    let mut mount = Map::new();
    let mut bind = Map::new();
    let mut volume = Map::new();
    let mut tmpfs = Map::new();
    let mut image = Map::new();
    let (mut labels, mut driver, mut options) = (Map::new(), None, Map::new());
    mount.insert("Type".to_owned(), "volume".into());
    for (key, value) in fields(text)? {
        let flag = || boolean(&key, value.as_deref());
        let given = || {
            value
                .clone()
                .ok_or_else(|| anyhow!("invalid field '{key}' must be a key=value pair"))
        };
        let pair = || given().map(|text| super::pair(&text));
        match key.as_str() {
            "type" => {
                mount.insert("Type".to_owned(), given()?.to_ascii_lowercase().into());
            }
            "source" | "src" => {
                let mut source = given()?;
                if source.starts_with('.') {
                    source = absolute(&source);
                }
                mount.insert("Source".to_owned(), source.into());
            }
            "target" | "dst" | "destination" => {
                mount.insert("Target".to_owned(), given()?.into());
            }
            "readonly" | "ro" => {
                mount.insert("ReadOnly".to_owned(), flag()?.into());
            }
            "consistency" => {
                mount.insert(
                    "Consistency".to_owned(),
                    given()?.to_ascii_lowercase().into(),
                );
            }
            "bind-propagation" => {
                bind.insert(
                    "Propagation".to_owned(),
                    given()?.to_ascii_lowercase().into(),
                );
            }
            "bind-create-src" => {
                bind.insert("CreateMountpoint".to_owned(), flag()?.into());
            }
            "bind-nonrecursive" => {
                bind.insert("NonRecursive".to_owned(), flag()?.into());
            }
            "bind-recursive" => match given()?.as_str() {
                "enabled" => {}
                "disabled" => {
                    bind.insert("NonRecursive".to_owned(), true.into());
                }
                "writable" => {
                    bind.insert("ReadOnlyNonRecursive".to_owned(), true.into());
                }
                "readonly" => {
                    bind.insert("ReadOnlyForceRecursive".to_owned(), true.into());
                }
                other => bail!(
                    "invalid value for {key}: {other} (must be \"enabled\", \"disabled\", \"writable\", or \"readonly\")"
                ),
            },
            "volume-nocopy" => {
                volume.insert("NoCopy".to_owned(), flag()?.into());
            }
            "volume-subpath" => {
                volume.insert("Subpath".to_owned(), given()?.into());
            }
            "volume-label" => {
                let (name, value) = pair()?;
                labels.insert(name, value.into());
            }
            "volume-driver" => driver = Some(given()?),
            "volume-opt" => {
                let (name, value) = pair()?;
                options.insert(name, value.into());
            }
            "tmpfs-size" => {
                tmpfs.insert("SizeBytes".to_owned(), quantity::bytes(&given()?)?.into());
            }
            "tmpfs-mode" => {
                let text = given()?;
                let mode = u32::from_str_radix(&text, 8)
                    .map_err(|_| anyhow!("invalid value for {key}: {text}"))?;
                tmpfs.insert("Mode".to_owned(), mode.into());
            }
            "image-subpath" => {
                image.insert("Subpath".to_owned(), given()?.into());
            }
            _ => bail!("unexpected key '{key}' in '{text}'"),
        }
    }
    if !labels.is_empty() {
        volume.insert("Labels".to_owned(), labels.into());
    }
    if driver.is_some() || !options.is_empty() {
        let name = driver.unwrap_or_default();
        volume.insert(
            "DriverConfig".to_owned(),
            json!({"Name": name, "Options": options}),
        );
    }
    let kind = mount["Type"].as_str().unwrap_or_default().to_owned();
    if !["bind", "volume", "tmpfs", "image", "cluster"].contains(&kind.as_str()) {
        bail!("invalid mount type {kind:?}: expected bind, volume, tmpfs, image or cluster");
    }
    if !mount.contains_key("Target") {
        bail!("target is required");
    }
    let said = |flag: &str| bind.get(flag).is_some();
    let writable = mount.get("ReadOnly") != Some(&Value::Bool(true));
    for (flag, value) in [
        ("ReadOnlyNonRecursive", "writable"),
        ("ReadOnlyForceRecursive", "readonly"),
    ] {
        if said(flag) && writable {
            bail!(
                "option 'bind-recursive={value}' requires 'readonly' to be specified in conjunction"
            );
        }
    }
    if said("ReadOnlyForceRecursive") && bind.get("Propagation") != Some(&"rprivate".into()) {
        bail!(
            "option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction"
        );
    }
    for (group, name, owner) in [
        (bind, "BindOptions", "bind"),
        (volume, "VolumeOptions", "volume"),
        (tmpfs, "TmpfsOptions", "tmpfs"),
        (image, "ImageOptions", "image"),
    ] {
        if group.is_empty() {
            continue;
        }
        if owner != kind {
            bail!("cannot mix '{owner}-*' options with mount type '{kind}'");
        }
        mount.insert(name.to_owned(), group.into());
    }
    Ok(mount.into())
}

/// What `-v` asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Volume {
    /// An anonymous volume at this path.
    Anonymous(String),
    /// `source:target[:options]`, relative host paths made absolute.
    Bind(String),
}

/// Reads `-v`.
pub(crate) fn short(text: &str) -> Result<Volume> {
    let mut parts = text.splitn(3, ':');
    let first = parts.next().unwrap_or_default();
    let Some(target) = parts.next() else {
        if !first.starts_with('/') {
            bail!("invalid volume specification: '{text}': mount path must be absolute");
        }
        return Ok(Volume::Anonymous(first.to_owned()));
    };
    if first.is_empty() || !target.starts_with('/') {
        bail!("invalid volume specification: '{text}'");
    }
    let source = if first.starts_with('.') {
        absolute(first)
    } else {
        first.to_owned()
    };
    let options = parts.next().map(|o| format!(":{o}")).unwrap_or_default();
    Ok(Volume::Bind(format!("{source}:{target}{options}")))
}

/// The path from the working directory, without `.` and `..`.
pub(crate) fn absolute(path: &str) -> String {
    let current = std::env::current_dir().unwrap_or_default();
    clean(&current.join(path))
}

/// Takes `.` and `..` out of an absolute path, as Go's `filepath.Clean`.
pub(crate) fn clean(path: &Path) -> String {
    let mut out = std::path::PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                out.pop();
            }
            std::path::Component::CurDir => {}
            part => out.push(part),
        }
    }
    out.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn every_kind_has_its_options() {
        let seen: Vec<String> = [
            "source=data,target=/data,readonly",
            "type=bind,src=/srv,dst=/srv,ro=false,bind-propagation=rslave",
            "type=volume,src=d,target=/d,volume-nocopy,volume-label=a=b,volume-driver=local,\"volume-opt=o=size=1,nr=2\"",
            "type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770",
        ]
        .iter()
        .map(|text| long(text).unwrap().to_string())
        .collect();
        expect![[r#"
            {"ReadOnly":true,"Source":"data","Target":"/data","Type":"volume"}
            {"BindOptions":{"Propagation":"rslave"},"ReadOnly":false,"Source":"/srv","Target":"/srv","Type":"bind"}
            {"Source":"d","Target":"/d","Type":"volume","VolumeOptions":{"DriverConfig":{"Name":"local","Options":{"o":"size=1,nr=2"}},"Labels":{"a":"b"},"NoCopy":true}}
            {"Target":"/t","TmpfsOptions":{"Mode":1016,"SizeBytes":1048576},"Type":"tmpfs"}"#]]
        .assert_eq(&seen.join("\n"));
    }

    #[test]
    fn what_is_no_mount_is_refused() {
        for (text, problem) in [
            ("type=volume,src=a", "target is required"),
            (
                "type=floppy,target=/a",
                "invalid mount type \"floppy\": expected bind, volume, tmpfs, image or cluster",
            ),
            (
                "target=/a,colour=red",
                "unexpected key 'colour' in 'target=/a,colour=red'",
            ),
            (
                "type=bind,src=/a,target=/a,volume-nocopy",
                "cannot mix 'volume-*' options with mount type 'bind'",
            ),
            ("target=/a,ro=maybe", "invalid value for ro: maybe"),
            ("target", "invalid field 'target' must be a key=value pair"),
        ] {
            assert_eq!(long(text).unwrap_err().to_string(), problem, "{text}");
        }
    }

    #[test]
    fn the_short_form_is_a_bind_or_a_volume() {
        assert_eq!(short("/data").unwrap(), Volume::Anonymous("/data".into()));
        assert_eq!(
            short("d:/data:ro").unwrap(),
            Volume::Bind("d:/data:ro".into())
        );
        assert!(short("data").is_err() && short("a:b").is_err() && short(":/a").is_err());
        assert_eq!(clean(Path::new("/a/./b/../c")), "/a/c");
    }
}
