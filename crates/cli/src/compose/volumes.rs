//! Volumes of a compose file, and what services mount.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{
    NAMESPACE, Problem, Scope,
    network::{external, named},
    read::Fields,
    service::unique,
    yaml::{Node, Yaml},
};

/// A named volume.
#[derive(Debug, Clone)]
pub(super) struct Volume {
    name: String,
    external: bool,
    driver: Option<Value>,
    labels: Map<String, Value>,
}

/// Reads the section.
pub(super) fn declared(
    section: Option<&Node>,
    scope: &Scope<'_>,
) -> Result<BTreeMap<String, Volume>, Problem> {
    let mut all = BTreeMap::new();
    let Some(section) = section else {
        return Ok(all);
    };
    for (key, node) in section.entries()? {
        let mut fields = Fields::of(node, &format!("volumes.{}", key.name))?;
        let named = named(node)?;
        let outside = external(&mut fields, &key.name)?;
        let driver = fields.maybe("driver", Node::text)?;
        let options = fields.maybe("driver_opts", Node::labels)?;
        let mut labels = fields.maybe("labels", Node::labels)?.unwrap_or_default();
        fields.finish()?;
        labels.insert(NAMESPACE.to_owned(), scope.stack.into());
        let config = (driver.is_some() || options.is_some()).then(
            || json!({"Name": driver.unwrap_or_default(), "Options": options.unwrap_or_default()}),
        );
        let volume = Volume {
            external: outside.is_some(),
            name: outside.or(named).unwrap_or_else(|| scope.name(&key.name)),
            driver: config,
            labels,
        };
        all.insert(key.name.clone(), volume);
    }
    Ok(all)
}

/// Reads `volumes` and `tmpfs` of a service.
pub(super) fn mounts(
    fields: &mut Fields<'_>,
    volumes: &BTreeMap<String, Volume>,
    scope: &mut Scope<'_>,
) -> Result<Vec<Value>, Problem> {
    let (mut out, mut seen) = (Vec::new(), Vec::new());
    let place = |mount: &Value| {
        let target = crate::json::text(mount, "/Target").trim_end_matches('/');
        if target.is_empty() { "/" } else { target }.to_owned()
    };
    if let Some(list) = fields.take("volumes") {
        for item in list.items()? {
            let mount = match &item.value {
                Yaml::Map(_) => long(item, volumes, scope)?,
                _ => short(item, volumes, scope)?,
            };
            unique(&mut seen, place(&mount), item)?;
            out.push(mount);
        }
    }
    if let Some(tmpfs) = fields.take("tmpfs") {
        for text in tmpfs.texts()? {
            let (target, options) = text.split_once(':').unwrap_or((&text, ""));
            let mut mount = json!({"Type": "tmpfs", "Target": target});
            let mut further = Vec::new();
            for option in options.split(',').filter(|option| !option.is_empty()) {
                match option.split_once('=') {
                    Some(("size", size)) => {
                        let size = crate::flags::quantity::bytes(size)
                            .map_err(|error| tmpfs.problem(format!("is an {error}")))?;
                        mount["TmpfsOptions"]["SizeBytes"] = size.into();
                    }
                    Some(("mode", mode)) => {
                        let mode = u32::from_str_radix(mode, 8)
                            .map_err(|_| tmpfs.problem(format!("has no file mode {mode:?}")))?;
                        mount["TmpfsOptions"]["Mode"] = mode.into();
                    }
                    _ if option == "ro" => mount["ReadOnly"] = true.into(),
                    _ if option == "rw" => {}
                    Some((key @ ("uid" | "gid" | "nr_inodes"), value))
                        if value.parse::<u32>().is_ok() =>
                    {
                        further.push(json!([key, value]));
                    }
                    None if TMPFS_FLAGS.contains(&option) => further.push(json!([option])),
                    _ => return Err(tmpfs.problem(format!("has an unknown option {option:?}"))),
                }
            }
            if !further.is_empty() {
                mount["TmpfsOptions"]["Options"] = further.into();
            }
            unique(&mut seen, place(&mount), tmpfs)?;
            out.push(mount);
        }
    }
    Ok(out)
}

/// Options of a tmpfs that are a word alone.
const TMPFS_FLAGS: [&str; 7] = [
    "exec", "noexec", "suid", "nosuid", "dev", "nodev", "noatime",
];

/// Kinds of mounts that services do not have, and why.
const NOT_IN_SERVICES: [(&str, &str); 3] = [
    ("image", "images are mounted in single containers alone"),
    ("cluster", "there are no volumes of the cluster"),
    ("npipe", "named pipes are of Windows"),
];

fn is_path(source: &str) -> bool {
    source.starts_with(['.', '/', '~'])
}

fn short(
    item: &Node,
    volumes: &BTreeMap<String, Volume>,
    scope: &mut Scope<'_>,
) -> Result<Value, Problem> {
    let text = item.text()?;
    let mut parts = text.split(':');
    let first = parts.next().unwrap_or_default();
    let (source, target, options) = match (parts.next(), parts.next(), parts.next()) {
        (None, ..) => ("", first, ""),
        (Some(target), options, None) => (first, target, options.unwrap_or_default()),
        _ => return Err(item.problem(format!("has too many colons: {text:?}"))),
    };
    if !target.starts_with('/') {
        return Err(item.problem(format!("must mount at an absolute path, not {target:?}")));
    }
    let mut mount = json!({"Type": "volume", "Target": target});
    let mut bind = json!({});
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => mount["ReadOnly"] = true.into(),
            "rw" => {}
            "nocopy" => mount["VolumeOptions"]["NoCopy"] = true.into(),
            "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" => {
                bind["Propagation"] = option.into()
            }
            // SELinux labels and consistency: of no meaning here.
            "z" | "Z" | "cached" | "delegated" | "consistent" => {
                let problem = format!("has the option {option}, which has no effect in a stack");
                scope.warnings.push(item.problem(problem).to_string());
            }
            other => return Err(item.problem(format!("has an unknown option {other:?}"))),
        }
    }
    if is_path(source) {
        mount["Type"] = "bind".into();
        mount["Source"] = scope.host_path(&item.place, source).into();
        // The short form has always made the folder.
        bind["CreateMountpoint"] = true.into();
        mount["BindOptions"] = bind;
        return Ok(mount);
    }
    if bind != json!({}) {
        let problem = "has a propagation, which only a path of the host can have";
        return Err(item.problem(problem));
    }
    name_volume(&mut mount, source, item, volumes)?;
    Ok(mount)
}

/// Fills in what the section says of a named volume.
fn name_volume(
    mount: &mut Value,
    source: &str,
    item: &Node,
    volumes: &BTreeMap<String, Volume>,
) -> Result<(), Problem> {
    if source.is_empty() {
        return Ok(());
    }
    let volume = volumes.get(source).ok_or_else(|| {
        item.problem(format!(
            "uses the volume {source:?}, which the file does not declare"
        ))
    })?;
    mount["Source"] = volume.name.as_str().into();
    if !volume.external {
        mount["VolumeOptions"]["Labels"] = volume.labels.clone().into();
        if let Some(driver) = &volume.driver {
            mount["VolumeOptions"]["DriverConfig"] = driver.clone();
        }
    }
    Ok(())
}

fn long(
    item: &Node,
    volumes: &BTreeMap<String, Volume>,
    scope: &mut Scope<'_>,
) -> Result<Value, Problem> {
    let mut fields = Fields::of(item, &item.path)?;
    let node = fields
        .take("type")
        .ok_or_else(|| item.problem("needs a type"))?;
    let said = node.text()?;
    if let Some((kind, why)) = NOT_IN_SERVICES.iter().find(|(kind, _)| *kind == said) {
        return Err(node.problem(format!("cannot be {kind} in a stack: {why}")));
    }
    let kind = node.one_of(&["volume", "bind", "tmpfs"])?;
    let source = fields.text("source")?;
    let target = fields.text("target")?;
    if !target.starts_with('/') {
        return Err(item.problem(format!("must mount at an absolute path, not {target:?}")));
    }
    let mut mount = json!({"Type": kind, "Target": target});
    if fields.flag("read_only")? {
        mount["ReadOnly"] = true.into();
    }
    scope.without_effect(&mut fields, &["consistency"]);
    match kind.as_str() {
        "bind" => {
            if source.is_empty() {
                return Err(item.problem("needs a source"));
            }
            mount["Source"] = scope.host_path(&item.place, &source).into();
        }
        "volume" => name_volume(&mut mount, &source, item, volumes)?,
        "tmpfs" if !source.is_empty() => {
            return Err(item.problem("is a tmpfs and can have no source"));
        }
        _ => {}
    }
    if let Some(node) = fields.take("bind") {
        let mut inner = Fields::of(node, &node.path)?;
        if let Some(propagation) = inner.maybe("propagation", Node::text)? {
            mount["BindOptions"]["Propagation"] = propagation.into();
        }
        if inner.flag("create_host_path")? {
            mount["BindOptions"]["CreateMountpoint"] = true.into();
        }
        if let Some(node) = inner.take("recursive") {
            match node
                .one_of(&["enabled", "disabled", "writable", "readonly"])?
                .as_str()
            {
                "enabled" => {}
                "disabled" => mount["BindOptions"]["NonRecursive"] = true.into(),
                said if mount["ReadOnly"].is_null() => {
                    return Err(node.problem(format!("cannot be {said} without read_only")));
                }
                "writable" => mount["BindOptions"]["ReadOnlyNonRecursive"] = true.into(),
                _ => mount["BindOptions"]["ReadOnlyForceRecursive"] = true.into(),
            }
        }
        scope.without_effect(&mut inner, &["selinux"]);
        inner.finish()?;
    }
    if let Some(node) = fields.take("volume") {
        let mut inner = Fields::of(node, &node.path)?;
        if inner.flag("nocopy")? {
            mount["VolumeOptions"]["NoCopy"] = true.into();
        }
        if let Some(labels) = inner.maybe("labels", Node::labels)? {
            for (label, value) in labels {
                mount["VolumeOptions"]["Labels"][label] = value;
            }
        }
        if let Some(subpath) = inner.maybe("subpath", Node::text)? {
            mount["VolumeOptions"]["Subpath"] = subpath.into();
        }
        inner.finish()?;
    }
    if let Some(node) = fields.take("tmpfs") {
        let mut inner = Fields::of(node, &node.path)?;
        if let Some(size) = inner.maybe("size", Node::bytes)? {
            mount["TmpfsOptions"]["SizeBytes"] = size.into();
        }
        if let Some(mode) = inner.maybe("mode", Node::mode)? {
            mount["TmpfsOptions"]["Mode"] = mode.into();
        }
        inner.finish()?;
    }
    fields.finish()?;
    Ok(mount)
}
