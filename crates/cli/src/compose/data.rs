//! Secrets and configs of a compose file.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{
    NAMESPACE, Problem, Scope,
    network::{external, named},
    read::Fields,
    yaml::Node,
};

/// A secret or config that services may use.
#[derive(Debug, Clone)]
pub(crate) struct Data {
    /// Name in the cluster.
    pub(crate) name: String,
    /// Its spec; `None` if somebody else made it.
    pub(crate) create: Option<Value>,
}

/// Reads the section `secrets` or `configs`.
pub(super) fn declared(
    section: Option<&Node>,
    kind: &str,
    scope: &Scope<'_>,
) -> Result<BTreeMap<String, Data>, Problem> {
    let mut all = BTreeMap::new();
    if let Some(section) = section {
        for (key, node) in section.entries()? {
            all.insert(key.name.clone(), data(&key.name, node, kind, scope)?);
        }
    }
    Ok(all)
}

fn data(key: &str, node: &Node, kind: &str, scope: &Scope<'_>) -> Result<Data, Problem> {
    let path = format!("{kind}.{key}");
    let mut fields = Fields::of(node, &path)?;
    let named = named(node)?;
    if let Some(name) = external(&mut fields, key)? {
        fields.finish()?;
        return Ok(Data { name, create: None });
    }
    let name = named.unwrap_or_else(|| scope.name(key));
    let mut labels = fields.maybe("labels", Node::labels)?.unwrap_or_default();
    labels.insert(NAMESPACE.to_owned(), scope.stack.into());
    let mut spec = json!({"Name": name, "Labels": labels});
    if let Some(driver) = fields.maybe("template_driver", Node::text)? {
        spec["Templating"] = json!({"Name": driver});
    }
    let driver = fields.maybe("driver", Node::text)?;
    let options = fields.maybe("driver_opts", Node::labels)?;
    if let Some(driver) = &driver {
        spec["Driver"] = json!({"Name": driver, "Options": options.unwrap_or_default()});
    }
    let file = fields.take("file");
    let variable = fields.take("environment");
    let content = if kind == "configs" {
        fields.take("content")
    } else {
        None
    };
    fields.finish()?;
    let bytes = match (file, variable, content) {
        (Some(file), None, None) => {
            let path = scope.host_path(&file.place, &file.text()?);
            if scope.dry {
                Vec::new()
            } else {
                std::fs::read(&path)
                    .map_err(|error| file.problem(format!("cannot be read: {path}: {error}")))?
            }
        }
        (None, Some(variable), None) => {
            let name = variable.text()?;
            let value = (scope.lookup)(&name);
            value
                .ok_or_else(|| {
                    variable.problem(format!("names the variable {name}, which is not set"))
                })?
                .into_bytes()
        }
        (None, None, Some(content)) => content.text()?.into_bytes(),
        (None, None, None) if driver.is_some() => Vec::new(),
        (None, None, None) => {
            return Err(node
                .place
                .problem(format!("{path} needs file, environment or external")));
        }
        _ => {
            return Err(node.place.problem(format!(
                "{path} can have only one of file, environment and content"
            )));
        }
    };
    if !bytes.is_empty() {
        spec["Data"] = STANDARD.encode(bytes).into();
    }
    Ok(Data {
        name,
        create: Some(spec),
    })
}
