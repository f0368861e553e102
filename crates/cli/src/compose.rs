//! Compose files: from YAML to what the Engine API takes, without touching the network.
//!
//! `yaml` keeps where everything stands, `load` makes one document of files, with `interpolate` for variables and `merge`
//! for files over each other; `read` takes values out with types and finds what is unknown, the others convert.

mod data;
mod depends;
mod deploy;
mod extended;
mod interpolate;
mod load;
mod merge;
mod network;
mod ports;
mod read;
mod service;
mod volumes;
mod yaml;

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::flags::environment::{self, Lookup};

pub(crate) use data::Data;
pub(crate) use network::Network;
use read::Fields;
use yaml::{Node, Place};

/// Label that names the stack of an object.
pub(crate) use shoal_api::stack::NAMESPACE;
/// Label that keeps a service's image as the file says it.
pub(crate) const IMAGE: &str = "com.docker.stack.image";

/// Something wrong in a compose file, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {what}")]
pub(crate) struct Problem {
    /// File as it was named.
    pub(crate) file: String,
    /// Line, from 1.
    pub(crate) line: u64,
    /// What is wrong.
    pub(crate) what: String,
}

/// What a stack consists of, ready for the API.
#[derive(Debug, Default)]
pub(crate) struct Stack {
    /// Networks that the services use, by their key in the file.
    pub(crate) networks: Vec<Network>,
    /// Secrets.
    pub(crate) secrets: Vec<Data>,
    /// Configs.
    pub(crate) configs: Vec<Data>,
    /// Specs of the services by name; references to secrets and configs have names instead of ids.
    pub(crate) services: Vec<Value>,
    /// What has no effect.
    pub(crate) warnings: Vec<String>,
}

/// A compose file's text and where it is from.
pub(crate) struct Source {
    /// Name for messages.
    pub(crate) name: String,
    /// Text.
    pub(crate) text: String,
}

/// Reads files; `-` is standard input. Also returns the folder from which relative paths count.
pub(crate) fn read_sources(paths: &[String]) -> Result<(Vec<Source>, PathBuf)> {
    let mut sources = Vec::new();
    for path in paths {
        let (name, text) = if path == "-" {
            (
                "stdin".to_owned(),
                std::io::read_to_string(std::io::stdin()).context("read standard input")?,
            )
        } else {
            (
                path.clone(),
                std::fs::read_to_string(path).with_context(|| format!("open {path}"))?,
            )
        };
        sources.push(Source { name, text });
    }
    let current = std::env::current_dir().context("there is no working directory")?;
    let folder = match paths.first().map(Path::new).and_then(Path::parent) {
        Some(folder) if paths[0] != "-" => current.join(folder),
        _ => current,
    };
    Ok((sources, folder))
}

/// What a reader of compose files is told besides the files.
pub(crate) struct Settings<'a> {
    /// Name of the stack.
    pub(crate) stack: &'a str,
    /// Folder from which relative paths count.
    pub(crate) folder: &'a Path,
    /// Profiles that are asked for.
    pub(crate) profiles: &'a [String],
}

/// The variables of a `.env` file, which go behind those of the environment. One that nobody asked for may be missing.
pub(crate) fn dot_env(path: &Path, required: bool) -> Result<Vec<(String, String)>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(_) if !required => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
    };
    environment::parse_dot_env(&text).with_context(|| path.display().to_string())
}

/// The last value of a variable.
pub(crate) fn find(variables: &[(String, String)], name: &str) -> Option<String> {
    let found = variables.iter().rev().find(|(known, _)| known == name);
    found.map(|(_, value)| value.clone())
}

/// Makes one document of the files; `None` leaves variables as they are. Also returns what is worth a word.
fn document(
    sources: &[Source],
    settings: &Settings<'_>,
    lookup: Option<Lookup<'_>>,
) -> Result<(Node, Vec<String>)> {
    let loader = load::Loader {
        lookup,
        folder: settings.folder,
        profiles: settings.profiles,
        warnings: RefCell::default(),
    };
    let document = loader.document(sources)?;
    Ok((document, loader.warnings.into_inner()))
}

/// The merged files as YAML.
pub(crate) fn config(
    sources: &[Source],
    settings: &Settings<'_>,
    lookup: Option<Lookup<'_>>,
) -> Result<String> {
    let (document, _) = document(sources, settings, lookup)?;
    // Checks it as a deployment would; the values are shown as the files have them.
    if let Some(lookup) = lookup {
        convert(&document, settings, lookup, true)?;
    }
    Ok(yaml::write(&document))
}

/// Reads a stack.
pub(crate) fn load(
    sources: &[Source],
    settings: &Settings<'_>,
    lookup: Lookup<'_>,
) -> Result<Stack> {
    let (document, mut warnings) = document(sources, settings, Some(lookup))?;
    let mut stack = convert(&document, settings, lookup, false)?;
    warnings.append(&mut stack.warnings);
    stack.warnings = warnings;
    Ok(stack)
}

/// What the conversions share.
struct Scope<'a> {
    stack: &'a str,
    folder: &'a Path,
    lookup: Lookup<'a>,
    /// Only check: read no files.
    dry: bool,
    warnings: Vec<String>,
}

impl Scope<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}_{key}", self.stack)
    }

    /// Warns of keys that are understood but change nothing.
    fn without_effect(&mut self, fields: &mut Fields<'_>, keys: &[&str]) {
        for key in keys {
            if let Some((place, _)) = fields.take_with_key(key) {
                let path = match fields.path() {
                    "" => (*key).to_owned(),
                    path => format!("{path}.{key}"),
                };
                let problem = place.problem(format!("{path} has no effect in a stack"));
                self.warnings.push(problem.to_string());
            }
        }
    }

    /// A host path that stands at `place`: `~` is the home directory, relative ones count from the compose file.
    fn host_path(&self, place: &Place, path: &str) -> String {
        let expanded = match path.strip_prefix('~') {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => {
                format!("{}{rest}", (self.lookup)("HOME").unwrap_or_default())
            }
            _ => path.to_owned(),
        };
        let folder = place.folder.as_deref().unwrap_or(self.folder);
        crate::flags::mount::clean(&folder.join(expanded))
    }
}

fn convert(
    document: &Node,
    settings: &Settings<'_>,
    lookup: Lookup<'_>,
    dry: bool,
) -> Result<Stack> {
    let mut scope = Scope {
        stack: settings.stack,
        folder: settings.folder,
        lookup,
        dry,
        warnings: Vec::new(),
    };
    let mut top = Fields::of(document, "")?;
    // Obsolete: what a file may say does not depend on it.
    top.take("version");
    // The command line names the stack.
    if let Some(name) = top.take("name")
        && name.text()? != settings.stack
    {
        let called = format!(
            "has no effect in a stack: this one is called {:?}",
            settings.stack
        );
        scope.warnings.push(name.problem(called).to_string());
    }
    scope.without_effect(&mut top, &["models"]);
    let networks = network::declared(top.take("networks"), &scope)?;
    let volumes = volumes::declared(top.take("volumes"), &scope)?;
    let secrets = data::declared(top.take("secrets"), "secrets", &scope)?;
    let configs = data::declared(top.take("configs"), "configs", &scope)?;
    let mut services = Vec::new();
    let mut used = Vec::new();
    if let Some(node) = top.take("services") {
        let declared = service::Declared {
            networks: &networks,
            volumes: &volumes,
            secrets: &secrets,
            configs: &configs,
        };
        depends::check(node)?;
        for (key, service) in node.entries()? {
            services.push(service::convert(
                key, service, &declared, &mut used, &mut scope,
            )?);
        }
    }
    top.finish()?;
    depends::sort(&mut services);
    let mut networks: Vec<Network> = networks
        .into_values()
        .filter(|network| used.contains(&network.key))
        .collect();
    networks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Stack {
        networks,
        secrets: secrets.into_values().collect(),
        configs: configs.into_values().collect(),
        services,
        warnings: scope.warnings,
    })
}

#[cfg(test)]
mod tests;
