//! From files to one document: variables filled in, `include` and `extends` resolved, files laid over each other, services
//! of profiles that are not asked for left out.
//!
//! The order of these steps is the compose specification's.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    path::{Path, PathBuf},
    rc::Rc,
};

use anyhow::{Context as _, Result};

use super::{
    Problem, Source, interpolate, merge,
    read::Fields,
    yaml::{self, Key, Node, Yaml},
};
use crate::flags::environment::Lookup;

/// Files within files; more is a mistake or malice.
const DEPTH_MAX: usize = 16;

/// How documents are read.
pub(super) struct Loader<'a> {
    /// Variables; `None` leaves them as they are.
    pub(super) lookup: Option<Lookup<'a>>,
    /// Folder from which relative paths of the first files count.
    pub(super) folder: &'a Path,
    /// Profiles that are asked for; `*` is all.
    pub(super) profiles: &'a [String],
    /// What is worth a word.
    pub(super) warnings: RefCell<Vec<String>>,
}

/// A file that is being read, and those that led to it.
struct Chain<'a> {
    path: PathBuf,
    before: Option<&'a Self>,
}

impl Chain<'_> {
    fn contains(&self, path: &Path) -> bool {
        self.path == path || self.before.is_some_and(|before| before.contains(path))
    }

    fn len(&self) -> usize {
        1 + self.before.map_or(0, Chain::len)
    }
}

impl Loader<'_> {
    /// The whole document.
    pub(super) fn document(&self, sources: &[Source]) -> Result<Node> {
        let mut whole: Option<Node> = None;
        for source in sources {
            let chain = Chain {
                path: self.folder.join(&source.name),
                before: None,
            };
            let node = self.file(source, None, self.lookup, &chain)?;
            whole = Some(match whole {
                None => node,
                Some(base) => merge::documents(base, node)?,
            });
        }
        let mut whole = whole.context("specify a compose file with -c")?;
        self.select(&mut whole)?;
        Ok(whole)
    }

    /// One file with all that it includes and extends. `folder` is where its relative paths count from, if not from where
    /// those of the first files do.
    fn file(
        &self,
        source: &Source,
        folder: Option<&Rc<Path>>,
        lookup: Option<Lookup<'_>>,
        chain: &Chain<'_>,
    ) -> Result<Node> {
        let mut node = yaml::parse(&source.name, &source.text, folder)?;
        if let Some(lookup) = lookup {
            interpolate::all(&mut node, lookup)?;
        }
        let folder = folder.map_or(self.folder, AsRef::as_ref);
        self.extend_all(&mut node, folder, lookup, chain)?;
        let Some((_, include)) = take(&mut node, "include") else {
            return Ok(node);
        };
        for item in include.items()? {
            let included = self.include(item, folder, lookup, chain)?;
            node = merge::included(node, included)?;
        }
        Ok(node)
    }

    fn include(
        &self,
        item: &Node,
        folder: &Path,
        lookup: Option<Lookup<'_>>,
        chain: &Chain<'_>,
    ) -> Result<Node> {
        let (paths, project, env_files) = match &item.value {
            Yaml::Map(_) => {
                let mut fields = Fields::of(item, &item.path)?;
                let read = (
                    fields.all("path", Node::texts)?,
                    fields.maybe("project_directory", Node::text)?,
                    fields.maybe("env_file", Node::texts)?,
                );
                fields.finish()?;
                read
            }
            _ => (vec![item.text()?], None, None),
        };
        let first = paths.first().ok_or_else(|| item.problem("needs a path"))?;
        let first = folder.join(first);
        let project: Rc<Path> = match project {
            Some(project) => folder.join(project).into(),
            None => first.parent().unwrap_or(folder).into(),
        };
        let mut variables = Vec::new();
        match env_files {
            None => variables = super::dot_env(&project.join(".env"), false)?,
            Some(files) => {
                for file in files {
                    variables.extend(super::dot_env(&folder.join(file), true)?);
                }
            }
        }
        // Those of the including file go before the included one's own.
        let layered = |name: &str| {
            let outer = lookup.and_then(|lookup| lookup(name));
            outer.or_else(|| super::find(&variables, name))
        };
        let lookup: Option<Lookup<'_>> = lookup.is_some().then_some(&layered);
        let mut whole: Option<Node> = None;
        for path in paths {
            let (source, path) = open(item, &folder.join(path), chain)?;
            let chain = Chain {
                path,
                before: Some(chain),
            };
            let node = self.file(&source, Some(&project), lookup, &chain)?;
            whole = Some(match whole {
                None => node,
                Some(base) => merge::documents(base, node)?,
            });
        }
        Ok(whole.expect("there is a first path"))
    }

    /// Resolves `extends` of all services of a document.
    fn extend_all(
        &self,
        document: &mut Node,
        folder: &Path,
        lookup: Option<Lookup<'_>>,
        chain: &Chain<'_>,
    ) -> Result<()> {
        let names: Vec<String> = match entry(document, "services") {
            Some(services) => services
                .entries()?
                .map(|(key, _)| key.name.clone())
                .collect(),
            None => return Ok(()),
        };
        for name in names {
            let mut seen = vec![name.clone()];
            self.extend(document, &name, &mut seen, folder, lookup, chain)?;
        }
        Ok(())
    }

    /// Lays a service over the one that it extends.
    fn extend(
        &self,
        document: &mut Node,
        name: &str,
        seen: &mut Vec<String>,
        folder: &Path,
        lookup: Option<Lookup<'_>>,
        chain: &Chain<'_>,
    ) -> Result<()> {
        let Some(service) = service_mut(document, name) else {
            return Ok(());
        };
        if !matches!(service.value, Yaml::Map(_)) {
            return Ok(());
        }
        let Some((_, extends)) = take(service, "extends") else {
            return Ok(());
        };
        let (file, of) = match &extends.value {
            Yaml::Map(_) => {
                let mut fields = Fields::of(&extends, &extends.path)?;
                let read = (fields.maybe("file", Node::text)?, fields.text("service")?);
                fields.finish()?;
                read
            }
            _ => (None, extends.text()?),
        };
        let missing = |file: &str| {
            extends.problem(format!(
                "names the service {of:?}, which {file} does not have"
            ))
        };
        let base = match file {
            None => {
                if seen.contains(&of) {
                    seen.push(of);
                    return Err(extends
                        .problem(format!("leads back to itself: {}", seen.join(" → ")))
                        .into());
                }
                seen.push(of.clone());
                self.extend(document, &of, seen, folder, lookup, chain)?;
                service_mut(document, &of)
                    .ok_or_else(|| missing("the file"))?
                    .clone()
            }
            Some(file) => {
                let (source, path) = open(&extends, &folder.join(&file), chain)?;
                let base: Rc<Path> = path.parent().unwrap_or(folder).into();
                let chain = Chain {
                    path,
                    before: Some(chain),
                };
                let mut other = self.file(&source, Some(&base), lookup, &chain)?;
                service_mut(&mut other, &of)
                    .ok_or_else(|| missing(&file))?
                    .clone()
            }
        };
        let service = service_mut(document, name).expect("it was there");
        let over = std::mem::replace(service, base.clone());
        *service = merge::documents(base, over)?;
        Ok(())
    }

    /// Leaves out services whose profiles are not asked for.
    fn select(&self, document: &mut Node) -> Result<(), Problem> {
        let Some(services) = entry_mut(document, "services") else {
            return Ok(());
        };
        let Yaml::Map(entries) = &mut services.value else {
            return Ok(());
        };
        let mut left_out = BTreeSet::new();
        for (key, service) in entries.iter_mut() {
            if !matches!(service.value, Yaml::Map(_)) {
                continue;
            }
            let Some((_, profiles)) = take(service, "profiles") else {
                continue;
            };
            let profiles = profiles.texts()?;
            let asked = |profile: &String| {
                self.profiles
                    .iter()
                    .any(|wanted| wanted == "*" || wanted == profile)
            };
            if !profiles.is_empty() && !profiles.iter().any(asked) {
                left_out.insert(key.name.clone());
            }
        }
        entries.retain(|(key, _)| !left_out.contains(&key.name));
        if !left_out.is_empty() {
            let names: Vec<_> = left_out.into_iter().collect();
            self.warnings.borrow_mut().push(format!(
                "left out for their profiles, which --profile names: {}",
                names.join(", ")
            ));
        }
        Ok(())
    }
}

/// Opens a file that `place` names; refuses one that leads back to itself.
fn open(place: &Node, path: &Path, chain: &Chain<'_>) -> Result<(Source, PathBuf), Problem> {
    let path = PathBuf::from(crate::flags::mount::clean(path));
    let shown = path.display().to_string();
    if chain.contains(&path) {
        return Err(place.problem(format!("leads back to itself: {shown}")));
    }
    if chain.len() >= DEPTH_MAX {
        return Err(place.problem(format!("is the {DEPTH_MAX}th file within a file")));
    }
    let text = std::fs::read_to_string(&path)
        .map_err(|error| place.problem(format!("cannot be read: {shown}: {error}")))?;
    Ok((Source { name: shown, text }, path))
}

fn entry<'a>(node: &'a Node, name: &str) -> Option<&'a Node> {
    match &node.value {
        Yaml::Map(entries) => entries
            .iter()
            .find(|(key, _)| key.name == name)
            .map(|(_, value)| value),
        _ => None,
    }
}

fn entry_mut<'a>(node: &'a mut Node, name: &str) -> Option<&'a mut Node> {
    match &mut node.value {
        Yaml::Map(entries) => entries
            .iter_mut()
            .find(|(key, _)| key.name == name)
            .map(|(_, value)| value),
        _ => None,
    }
}

fn service_mut<'a>(document: &'a mut Node, name: &str) -> Option<&'a mut Node> {
    entry_mut(entry_mut(document, "services")?, name)
}

/// Takes an entry out; nothing if its value is null.
fn take(node: &mut Node, name: &str) -> Option<(Key, Node)> {
    let Yaml::Map(entries) = &mut node.value else {
        return None;
    };
    let at = entries.iter().position(|(key, _)| key.name == name)?;
    let (key, node) = entries.remove(at);
    (!matches!(node.value, Yaml::Null)).then_some((key, node))
}
