//! `shoal stack deploy` and `shoal stack plan`: what the files say against what there is.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::{Map, Value};

use super::{
    Deploy, Opened, Plan, Shape, check, lookup, of_stack,
    plan::{self, Action, Difference, Step},
    report,
};
use crate::{
    client::{Client, Target},
    command::{image::registry_auth, service},
    compose::{self, Data, IMAGE, Network, Stack},
    flags::quantity,
    json::{number, significant, text},
    output,
    progress::service::converge,
};

/// Networks of the node itself, which need not be made.
pub(super) const NODE_NETWORKS: [&str; 3] = ["host", "none", "bridge"];

/// What there is in the cluster that the stack may have to do with.
pub(super) struct Known {
    /// Of the stack.
    services: Vec<Value>,
    pub(super) networks: Vec<Value>,
    secrets: Vec<Value>,
    configs: Vec<Value>,
}

impl Known {
    async fn read(stack: &str, client: &Client) -> Result<Self> {
        let list = async |path: &str| -> Result<Vec<Value>> {
            let found = client.get(Target::new(path, &[])).await?;
            Ok(found.as_array().cloned().unwrap_or_default())
        };
        Ok(Self {
            services: service::fetch(&[of_stack(stack)], client).await?,
            networks: list("/networks").await?,
            secrets: list("/secrets").await?,
            configs: list("/configs").await?,
        })
    }

    pub(super) fn data(&self, kind: &str) -> &[Value] {
        if kind == "secret" {
            &self.secrets
        } else {
            &self.configs
        }
    }

    pub(super) fn network(&self, name: &str) -> Option<&Value> {
        let mut all = self.networks.iter();
        all.find(|network| text(network, "/Name") == name)
    }

    fn service(&self, name: &str) -> Option<&Value> {
        let mut all = self.services.iter();
        all.find(|service| text(service, "/Spec/Name") == name)
    }
}

pub(super) fn named<'a>(list: &'a [Value], name: &str) -> Option<&'a Value> {
    list.iter().find(|item| text(item, "/Spec/Name") == name)
}

/// Ids by name, per kind of object.
#[derive(Default)]
pub(super) struct Ids {
    networks: BTreeMap<String, String>,
    secrets: BTreeMap<String, String>,
    configs: BTreeMap<String, String>,
}

/// Reads the files, and the cluster; refuses what cannot be before anything changes.
async fn prepare(stack: &str, opened: &Opened, client: &Client) -> Result<(Stack, Known)> {
    if stack.is_empty() || stack.contains(char::is_whitespace) {
        bail!("invalid stack name: {stack:?}");
    }
    let lookup = lookup(&opened.variables);
    let read = compose::load(&opened.sources, &opened.settings(stack), &lookup)?;
    for warning in &read.warnings {
        output::note(warning);
    }
    let info = client.get(Target::new("/info", &[])).await?;
    if info.pointer("/Swarm/ControlAvailable") != Some(&Value::Bool(true)) {
        bail!(
            "this node is not a swarm manager. Use \"shoal swarm init\" or \"shoal swarm join\" to connect this node to swarm and try again"
        );
    }
    let known = Known::read(stack, client).await?;
    check(&read, &known)?;
    check::templates(&read, &known)?;
    check::secrets(&read.secrets, &known, client).await?;
    for warning in check::networks(&read.networks, &known) {
        output::note(warning);
    }
    Ok((read, known))
}

/// Refuses what cannot be.
fn check(stack: &Stack, known: &Known) -> Result<()> {
    let external = |network: &&Network| network.create.is_none();
    for wanted in stack.networks.iter().filter(external) {
        if NODE_NETWORKS.contains(&wanted.name.as_str()) {
            continue;
        }
        match known.network(&wanted.name) {
            None => bail!(
                "network {:?} is declared as external, but could not be found. You need to create a swarm-scoped network before the stack is deployed",
                wanted.name
            ),
            Some(found) if text(found, "/Scope") != "swarm" => bail!(
                "network {:?} is declared as external, but it is not in the right scope: {:?} instead of \"swarm\"",
                wanted.name,
                text(found, "/Scope")
            ),
            Some(_) => {}
        }
    }
    for (kind, list) in [("secret", &stack.secrets), ("config", &stack.configs)] {
        for wanted in list {
            match (named(known.data(kind), &wanted.name), &wanted.create) {
                (None, None) => bail!("{kind} not found: {}", wanted.name),
                // A secret's data only the managers know.
                (Some(found), Some(spec))
                    if kind == "config" && found["Spec"]["Data"] != spec["Data"] =>
                {
                    return Err(check::changed_data(kind, &wanted.name));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

impl Plan {
    pub(super) async fn run(self, client: &Client) -> Result<()> {
        let opened = self.files.open()?;
        let (stack, known) = prepare(&self.stack, &opened, client).await?;
        let mut steps = Vec::new();
        for wanted in &stack.networks {
            if wanted.create.is_some() {
                let action = match known.network(&wanted.name) {
                    // One that there is stays as it is.
                    Some(_) => Action::Unchanged,
                    None => Action::Create,
                };
                steps.push(Step {
                    kind: "network",
                    name: wanted.name.clone(),
                    action,
                });
            }
        }
        for (kind, list) in [("secret", &stack.secrets), ("config", &stack.configs)] {
            for wanted in list {
                let Some(spec) = &wanted.create else { continue };
                let action = match named(known.data(kind), &wanted.name) {
                    None => Action::Create,
                    Some(found) => match relabelled(found, spec) {
                        None => Action::Unchanged,
                        Some(change) => Action::Update(vec![change]),
                    },
                };
                steps.push(Step {
                    kind,
                    name: wanted.name.clone(),
                    action,
                });
            }
        }
        let ids = known_ids(&stack, &known);
        // As they would be made: an image says for which platforms it is.
        let (mut specs, mut found) = (Vec::new(), Vec::new());
        for spec in stack.services {
            let (spec, before) = self.shape.finish(spec, &known, &ids, client).await?;
            specs.push(spec);
            found.push(before);
        }
        let foreseen = check::services(&specs, &ids, &known, client).await?;
        let mut names = Vec::new();
        for (spec, before) in specs.iter().zip(found) {
            let name = text(spec, "/Name").to_owned();
            let place = foreseen.iter().find(|one| text(one, "/Name") == name);
            let action = match (before, place) {
                (None, None) => Action::Create,
                (None, Some(place)) => Action::Place(plan::places(place)),
                (Some(before), _) => match plan::differences(&before["Spec"], spec) {
                    none if none.is_empty() => Action::Unchanged,
                    some => Action::Update(some),
                },
            };
            names.push(name.clone());
            steps.push(Step {
                kind: "service",
                name,
                action,
            });
        }
        let gone = known
            .services
            .iter()
            .map(|service| text(service, "/Spec/Name"));
        for name in gone.filter(|name| self.shape.prune && !names.iter().any(|known| known == name))
        {
            steps.push(Step {
                kind: "service",
                name: name.to_owned(),
                action: Action::Remove,
            });
        }
        output::write(plan::show(&self.stack, &steps).as_bytes());
        Ok(())
    }
}

/// What changes of a secret's or config's labels.
fn relabelled(found: &Value, spec: &Value) -> Option<Difference> {
    let labels = |spec: &Value| significant(&spec["Labels"]);
    let (old, new) = (labels(&found["Spec"]), labels(spec));
    (old != new).then(|| Difference {
        path: "Labels".to_owned(),
        old,
        new,
    })
}

/// Ids of what there is already. What there is not stands for itself.
fn known_ids(stack: &Stack, known: &Known) -> Ids {
    let mut ids = Ids::default();
    for wanted in &stack.networks {
        // Each node has its own ones, which go by their names.
        if NODE_NETWORKS.contains(&wanted.name.as_str()) {
            continue;
        }
        if let Some(found) = known.network(&wanted.name) {
            let id = text(found, "/Id").to_owned();
            ids.networks.insert(wanted.name.clone(), id);
        }
    }
    for (kind, list, ids) in [
        ("secret", &stack.secrets, &mut ids.secrets),
        ("config", &stack.configs, &mut ids.configs),
    ] {
        for wanted in list {
            let found = named(known.data(kind), &wanted.name);
            let id = found.map_or(wanted.name.as_str(), |found| text(found, "/ID"));
            ids.insert(wanted.name.clone(), id.to_owned());
        }
    }
    ids
}

impl Shape {
    /// Puts what only the cluster and the registry know into a service's spec; also returns the service as it is. An image
    /// that its registry does not know is refused.
    async fn finish<'k>(
        &self,
        mut spec: Value,
        known: &'k Known,
        ids: &Ids,
        client: &Client,
    ) -> Result<(Value, Option<&'k Value>)> {
        resolve(&mut spec, ids)?;
        let found = known.service(text(&spec, "/Name"));
        let Some(found) = found else {
            if self.resolve_image != "never" {
                pin(&mut spec, client).await?;
            }
            return Ok((spec, None));
        };
        let image = text(&spec, "/TaskTemplate/ContainerSpec/Image");
        let unchanged_image = found["Spec"]["Labels"][IMAGE] == image;
        match self.resolve_image.as_str() {
            "always" => pin(&mut spec, client).await?,
            "changed" if !unchanged_image => pin(&mut spec, client).await?,
            // What was pinned stays pinned.
            _ if unchanged_image => {
                let template = &mut spec["TaskTemplate"];
                template["ContainerSpec"]["Image"] =
                    found["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"].clone();
            }
            _ => {}
        }
        let force = number(found, "/Spec/TaskTemplate/ForceUpdate");
        if force > 0 {
            spec["TaskTemplate"]["ForceUpdate"] = force.into();
        }
        Ok((spec, Some(found)))
    }
}

impl Deploy {
    pub(super) async fn run(self, client: &Client) -> Result<()> {
        let name = self
            .stack
            .trim_matches(|c: char| c.is_whitespace() || c == '"' || c == '\'');
        let timeout = self
            .timeout
            .as_deref()
            .map(quantity::duration)
            .transpose()?;
        let timeout = timeout.map(|nanos| Duration::from_nanos(nanos.unsigned_abs()));
        let opened = self.files.open()?;
        let (mut stack, known) = prepare(name, &opened, client).await?;
        let mut ids = known_ids(&stack, &known);
        check::services(&stack.services, &ids, &known, client).await?;
        let mut finished = Vec::new();
        for spec in std::mem::take(&mut stack.services) {
            let (spec, found) = self.shape.finish(spec, &known, &ids, client).await?;
            finished.push((spec, found));
        }
        // What there is and cannot be changed is found before anything is made.
        for (kind, list) in [("secret", &stack.secrets), ("config", &stack.configs)] {
            relabel(kind, list, &known, client).await?;
        }
        make(&stack, &known, &mut ids, client).await?;
        let mut services = Vec::new();
        for (mut spec, found) in finished {
            // Of what has been made meanwhile.
            resolve(&mut spec, &ids)?;
            let name = text(&spec, "/Name").to_owned();
            let id = self.service(spec, found, client).await?;
            services.push((name, id));
        }
        if self.wait {
            let converged = async {
                for (_, id) in &services {
                    converge(id, self.quiet, client).await?;
                }
                Ok(())
            };
            let converged = report::in_time(timeout, converged, &services, client).await;
            if converged.is_err() && self.rollback {
                go_back(&known, &services, self.quiet, client).await?;
            }
            converged?;
        } else if !self.detach {
            for (_, id) in &services {
                converge(id, self.quiet, client).await?;
            }
        }
        if self.shape.prune {
            prune(&known, &services, client).await?;
        }
        Ok(())
    }

    /// Makes a service, or updates the one that there is, and returns its id.
    async fn service(&self, spec: Value, found: Option<&Value>, client: &Client) -> Result<String> {
        let name = text(&spec, "/Name").to_owned();
        let image = text(&spec, "/TaskTemplate/ContainerSpec/Image");
        let auth = self
            .with_registry_auth
            .then(|| registry_auth(image))
            .flatten();
        let Some(found) = found else {
            output::line(format!("Creating service {name}"));
            let target = Target::new("/services/create", &[]).registry_auth(auth);
            let made = client
                .post(target, spec)
                .await
                .with_context(|| format!("failed to create service {name}"))?;
            return Ok(text(&made, "/ID").to_owned());
        };
        let id = text(found, "/ID").to_owned();
        // New credentials replace no task, but they must reach the cluster.
        if plan::differences(&found["Spec"], &spec).is_empty() && auth.is_none() {
            output::line(format!("Service {name} is unchanged (id: {id})"));
            return Ok(id);
        }
        output::line(format!("Updating service {name} (id: {id})"));
        service::update(found, spec, false, auth, client)
            .await
            .with_context(|| format!("failed to update service {name}"))?;
        Ok(id)
    }
}

/// Takes the services that there were before back to what they were, and waits until they are.
async fn go_back(
    known: &Known,
    services: &[(String, String)],
    quiet: bool,
    client: &Client,
) -> Result<()> {
    let mut errors = Vec::new();
    for (name, id) in services {
        let Some(found) = known.service(name) else {
            continue;
        };
        let now = client.get(Target::new("/services/{}", &[id])).await?;
        // Its own failure action may have done it.
        if !plan::differences(&now["Spec"], &found["Spec"]).is_empty() {
            output::line(format!("Rolling back service {name} (id: {id})"));
            let back = service::update(&now, found["Spec"].clone(), false, None, client).await;
            if let Err(error) = back {
                errors.push(format!("failed to roll back service {name}: {error:#}"));
                continue;
            }
        }
        if let Err(error) = converge(id, quiet, client).await {
            errors.push(format!("service {name}: {error:#}"));
        }
    }
    output::fail_with(errors)
}

/// Removes services that the files name no more. Last, so that nothing is gone before its successor is there.
async fn prune(known: &Known, services: &[(String, String)], client: &Client) -> Result<()> {
    let mut errors = Vec::new();
    for service in &known.services {
        let name = text(service, "/Spec/Name");
        if services.iter().any(|(kept, _)| kept == name) {
            continue;
        }
        output::line(format!("Removing service {name}"));
        let target = Target::new("/services/{}", &[text(service, "/ID")]);
        if let Err(error) = client.delete(target).await {
            errors.push(format!("failed to remove service {name}: {error:#}"));
        }
    }
    output::fail_with(errors)
}

/// Makes what services refer to and what there is not yet. Where one is refused, those before it are removed again.
async fn make(stack: &Stack, known: &Known, ids: &mut Ids, client: &Client) -> Result<()> {
    let mut made = Vec::new();
    let all = make_all(stack, known, ids, &mut made, client).await;
    if all.is_err() {
        for (kind, name, id) in made.iter().rev() {
            output::line(format!("Removing {kind} {name}"));
            let target = Target::new(&format!("/{kind}s/{{}}"), &[id]);
            if let Err(error) = client.delete(target).await {
                output::note(format!("failed to remove {kind} {name}: {error:#}"));
            }
        }
    }
    all
}

/// Makes them in the order in which they are listed; notes kind, name and id of each in `made`.
async fn make_all(
    stack: &Stack,
    known: &Known,
    ids: &mut Ids,
    made: &mut Vec<(&'static str, String, String)>,
    client: &Client,
) -> Result<()> {
    for wanted in &stack.networks {
        if let (Some(body), false) = (&wanted.create, ids.networks.contains_key(&wanted.name)) {
            let id = create("network", &wanted.name, body, client).await?;
            made.push(("network", wanted.name.clone(), id.clone()));
            ids.networks.insert(wanted.name.clone(), id);
        }
    }
    for (kind, list, ids) in [
        ("secret", &stack.secrets, &mut ids.secrets),
        ("config", &stack.configs, &mut ids.configs),
    ] {
        for wanted in list {
            if let (Some(body), None) = (&wanted.create, named(known.data(kind), &wanted.name)) {
                let id = create(kind, &wanted.name, body, client).await?;
                made.push((kind, wanted.name.clone(), id.clone()));
                ids.insert(wanted.name.clone(), id);
            }
        }
    }
    Ok(())
}

/// Makes a network, secret or config; returns its id.
async fn create(kind: &str, name: &str, body: &Value, client: &Client) -> Result<String> {
    output::line(format!("Creating {kind} {name}"));
    let target = Target::new(&format!("/{kind}s/create"), &[]);
    let made = client.post(target, body.clone()).await;
    let made = made.with_context(|| format!("failed to create {kind} {name}"))?;
    let id = if kind == "network" { "/Id" } else { "/ID" };
    Ok(text(&made, id).to_owned())
}

/// Writes labels of secrets or configs that there are and have others.
async fn relabel(kind: &str, wanted: &[Data], known: &Known, client: &Client) -> Result<()> {
    for wanted in wanted {
        let found = named(known.data(kind), &wanted.name);
        let (Some(found), Some(spec)) = (found, &wanted.create) else {
            continue;
        };
        if relabelled(found, spec).is_none() {
            continue;
        }
        let target = Target::new(&format!("/{kind}s/{{}}/update"), &[text(found, "/ID")]);
        let target = target.arg("version", number(found, "/Version/Index"));
        client
            .post(target, spec.clone())
            .await
            .with_context(|| format!("failed to update {kind} {}", wanted.name))?;
    }
    Ok(())
}

/// Pins the image if its registry can be asked; in a stack nobody is told otherwise.
async fn pin(spec: &mut Value, client: &Client) -> Result<()> {
    service::pin_image(spec, client).await.map(drop)
}

/// Puts ids in the place of names.
pub(super) fn resolve(spec: &mut Value, ids: &Ids) -> Result<()> {
    let Some(task) = spec["TaskTemplate"].as_object_mut() else {
        return Ok(());
    };
    for attachment in each(task, "Networks") {
        if let Some(id) = ids.networks.get(text(attachment, "/Target")) {
            attachment["Target"] = id.as_str().into();
        }
    }
    let Some(container) = task.get_mut("ContainerSpec").and_then(Value::as_object_mut) else {
        return Ok(());
    };
    for (list, kind, ids) in [
        ("Secrets", "Secret", &ids.secrets),
        ("Configs", "Config", &ids.configs),
    ] {
        for reference in each(container, list) {
            let name = text(reference, &format!("/{kind}Name")).to_owned();
            let id = ids
                .get(&name)
                .ok_or_else(|| anyhow!("{} not found: {name}", kind.to_lowercase()))?;
            reference[format!("{kind}ID")] = id.as_str().into();
        }
    }
    Ok(())
}

/// The items of a list, if there is one.
fn each<'a>(fields: &'a mut Map<String, Value>, list: &str) -> impl Iterator<Item = &'a mut Value> {
    let items = fields.get_mut(list).and_then(Value::as_array_mut);
    items.into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_become_ids() {
        let mut spec = json!({"TaskTemplate": {"Networks": [{"Target": "n"}], "ContainerSpec": {"Secrets": [{"SecretName": "s"}]}}});
        let ids = |name: &str| BTreeMap::from([(name.to_owned(), format!("{name}-id"))]);
        let all = Ids {
            networks: ids("n"),
            secrets: ids("s"),
            configs: BTreeMap::new(),
        };
        resolve(&mut spec, &all).unwrap();
        assert_eq!(
            spec,
            json!({"TaskTemplate": {"Networks": [{"Target": "n-id"}], "ContainerSpec": {"Secrets": [{"SecretID": "s-id", "SecretName": "s"}]}}})
        );
        let missing = resolve(&mut spec, &Ids::default()).unwrap_err();
        assert_eq!(missing.to_string(), "secret not found: s");
    }
}
