//! `shoal stack`: services of a compose file, deployed and removed together.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{ListArgs, image::registry_auth, network, service, task};
use crate::{
    client::{Client, Target, is_not_found},
    compose::{self, Data, IMAGE, NAMESPACE, Stack},
    flags::environment,
    json::{number, significant, text},
    output::{self, ListFormat, column, row},
    progress::service::converge,
};

/// Attempts before the daemon's refusal is final. It holds each one for up to 15 s while tasks are leaving the network,
/// and refuses at once when they stay.
const NETWORK_ATTEMPTS: u32 = 4;

/// Manage stacks
#[derive(Subcommand)]
pub(crate) enum Command {
    Config(Config),
    #[command(visible_alias = "up")]
    Deploy(Deploy),
    /// List stacks
    #[command(visible_alias = "list")]
    Ls(ListFormat),
    Ps(Ps),
    #[command(visible_aliases = ["remove", "down"])]
    Rm(Remove),
    Services(Services),
}

/// The compose files of a stack, and what they are filled in with
#[derive(Args)]
pub(crate) struct Files {
    /// Path to a Compose file, or "-" to read from stdin
    #[arg(short, long, value_name = "strings", required = true)]
    compose_file: Vec<String>,
    /// Specify an alternate environment file, instead of .env beside the first Compose file
    #[arg(long, value_name = "strings")]
    env_file: Vec<String>,
    /// Specify a profile whose services are part of the stack
    #[arg(long, value_name = "strings")]
    profile: Vec<String>,
}

/// Compose files that were read, with their variables.
struct Opened {
    sources: Vec<compose::Source>,
    folder: std::path::PathBuf,
    variables: Vec<(String, String)>,
    profiles: Vec<String>,
}

impl Files {
    fn open(&self) -> Result<Opened> {
        let (sources, folder) = compose::read_sources(&self.compose_file)?;
        let mut variables = Vec::new();
        if self.env_file.is_empty() {
            variables = compose::dot_env(&folder.join(".env"), false)?;
        }
        for file in &self.env_file {
            variables.extend(compose::dot_env(std::path::Path::new(file), true)?);
        }
        let mut profiles = self.profile.clone();
        if profiles.is_empty()
            && let Some(named) = environment::process("COMPOSE_PROFILES")
        {
            let named = named.split(',').map(str::trim);
            profiles.extend(named.filter(|name| !name.is_empty()).map(str::to_owned));
        }
        Ok(Opened {
            sources,
            folder,
            variables,
            profiles,
        })
    }
}

impl Opened {
    fn settings<'a>(&'a self, stack: &'a str) -> compose::Settings<'a> {
        compose::Settings {
            stack,
            folder: &self.folder,
            profiles: &self.profiles,
        }
    }
}

/// Output the final config file, after doing merges and interpolations
#[derive(Args)]
pub(crate) struct Config {
    #[command(flatten)]
    files: Files,
    /// Skip interpolation and output only merged config
    #[arg(long)]
    skip_interpolation: bool,
}

/// Deploy a new stack or update an existing stack
#[derive(Args)]
#[command(
    after_help = "Examples:\n  shoal stack deploy -c demo.yml demo\n  shoal stack deploy -c base.yml -c production.yml --prune --detach=false shop"
)]
pub(crate) struct Deploy {
    /// Name of the stack
    stack: String,
    #[command(flatten)]
    files: Files,
    /// Exit immediately instead of waiting for the stack services to converge
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", value_name = "bool")]
    detach: bool,
    /// Prune services that are no longer referenced
    #[arg(long)]
    prune: bool,
    /// Suppress progress output
    #[arg(short, long)]
    quiet: bool,
    /// Query the registry to resolve image digest and supported platforms ("always", "changed", "never")
    #[arg(long, value_name = "string", default_value = "always", value_parser = ["always", "changed", "never"])]
    resolve_image: String,
    /// Send registry authentication details to Swarm agents
    #[arg(long)]
    with_registry_auth: bool,
}

/// List the tasks in the stack
#[derive(Args)]
pub(crate) struct Ps {
    stack: String,
    #[command(flatten)]
    list: ListArgs,
    #[command(flatten)]
    shape: task::Shape,
}

/// List the services in the stack
#[derive(Args)]
pub(crate) struct Services {
    stack: String,
    #[command(flatten)]
    list: ListArgs,
}

/// Remove one or more stacks
#[derive(Args)]
pub(crate) struct Remove {
    #[arg(required = true, value_name = "STACK")]
    stacks: Vec<String>,
    /// Do not wait until networks are gone
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_default_value = true, value_name = "bool")]
    detach: bool,
}

impl Command {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        match self {
            Self::Config(args) => {
                let opened = args.files.open()?;
                let lookup = lookup(&opened.variables);
                let lookup: Option<environment::Lookup<'_>> = if args.skip_interpolation {
                    None
                } else {
                    Some(&lookup)
                };
                let settings = opened.settings("stack");
                output::write(compose::config(&opened.sources, &settings, lookup)?.as_bytes());
                Ok(())
            }
            Self::Deploy(args) => args.run(client).await,
            Self::Ls(format) => list(&format, client).await,
            Self::Ps(args) => {
                let found = service::fetch(&[of_stack(&args.stack)], client).await?;
                if found.is_empty() {
                    bail!("nothing found in stack: {}", args.stack);
                }
                let mut filters = args.list.filter.clone();
                filters.extend(
                    found
                        .iter()
                        .map(|service| format!("service={}", text(service, "/ID"))),
                );
                task::print(&filters, &args.list.format, &args.shape, client).await
            }
            Self::Rm(args) => args.run(client).await,
            Self::Services(args) => {
                let mut filters = args.list.filter.clone();
                filters.push(of_stack(&args.stack));
                let found = service::fetch(&filters, client).await?;
                if found.is_empty() {
                    output::note(format!("Nothing found in stack: {}", args.stack));
                    return Ok(());
                }
                service::list(found, &args.list.format)
            }
        }
    }
}

fn of_stack(stack: &str) -> String {
    format!("label={NAMESPACE}={stack}")
}

fn lookup(variables: &[(String, String)]) -> impl Fn(&str) -> Option<String> + '_ {
    |name| environment::process(name).or_else(|| compose::find(variables, name))
}

async fn list(format: &ListFormat, client: &Client) -> Result<()> {
    let services = service::fetch(&[format!("label={NAMESPACE}")], client).await?;
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for service in &services {
        let label = service["Spec"]["Labels"][NAMESPACE]
            .as_str()
            .unwrap_or_default();
        *counts.entry(label.to_owned()).or_default() += 1;
    }
    let rows = counts
        .into_iter()
        .map(|(name, count)| row! {"Name" => name, "Services" => count.to_string(), "Orchestrator" => "Swarm"})
        .collect();
    format.print(
        &[column("Name", "NAME"), column("Services", "SERVICES")],
        "Name",
        rows,
    )
}

impl Deploy {
    async fn run(self, client: &Client) -> Result<()> {
        let name = self
            .stack
            .trim_matches(|c: char| c.is_whitespace() || c == '"' || c == '\'');
        if name.is_empty() {
            bail!("invalid stack name: {:?}", self.stack);
        }
        let opened = self.files.open()?;
        let lookup = lookup(&opened.variables);
        let stack = compose::load(&opened.sources, &opened.settings(name), &lookup)?;
        for warning in &stack.warnings {
            output::note(warning);
        }
        let info = client.get(Target::new("/info", &[])).await?;
        if info.pointer("/Swarm/ControlAvailable") != Some(&Value::Bool(true)) {
            bail!(
                "this node is not a swarm manager. Use \"shoal swarm init\" or \"shoal swarm join\" to connect this node to swarm and try again"
            );
        }
        let existing = service::fetch(&[of_stack(name)], client).await?;
        if self.prune {
            for service in &existing {
                let service_name = text(service, "/Spec/Name");
                if !stack
                    .services
                    .iter()
                    .any(|spec| text(spec, "/Name") == service_name)
                {
                    output::line(format!("Removing service {service_name}"));
                    client
                        .delete(Target::new("/services/{}", &[text(service, "/ID")]))
                        .await?;
                }
            }
        }
        let networks = networks(&stack, client).await?;
        let secrets = data("secret", &stack.secrets, client).await?;
        let configs = data("config", &stack.configs, client).await?;
        let mut ids = Vec::new();
        for spec in stack.services {
            ids.push(
                self.service(spec, &existing, &networks, &secrets, &configs, client)
                    .await?,
            );
        }
        if !self.detach {
            for id in ids {
                converge(&id, self.quiet, client).await?;
            }
        }
        Ok(())
    }

    /// Makes or updates a service and returns its id.
    async fn service(
        &self,
        mut spec: Value,
        existing: &[Value],
        networks: &BTreeMap<String, String>,
        secrets: &BTreeMap<String, String>,
        configs: &BTreeMap<String, String>,
        client: &Client,
    ) -> Result<String> {
        let name = text(&spec, "/Name").to_owned();
        resolve(&mut spec, networks, secrets, configs)?;
        let image = text(&spec, "/TaskTemplate/ContainerSpec/Image").to_owned();
        let auth = self
            .with_registry_auth
            .then(|| registry_auth(&image))
            .flatten();
        let known = existing
            .iter()
            .find(|service| text(service, "/Spec/Name") == name);
        let Some(known) = known else {
            output::line(format!("Creating service {name}"));
            if self.resolve_image != "never" {
                pin(&mut spec, client).await;
            }
            let target = Target::new("/services/create", &[]).registry_auth(auth);
            let made = client
                .post(target, spec)
                .await
                .with_context(|| format!("failed to create service {name}"))?;
            return Ok(text(&made, "/ID").to_owned());
        };
        let id = text(known, "/ID").to_owned();
        let unchanged_image = known["Spec"]["Labels"][IMAGE] == image.as_str();
        match self.resolve_image.as_str() {
            "always" => pin(&mut spec, client).await,
            "changed" if !unchanged_image => pin(&mut spec, client).await,
            // What was pinned stays pinned.
            _ if unchanged_image => {
                let template = &mut spec["TaskTemplate"];
                template["ContainerSpec"]["Image"] =
                    known["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"].clone();
            }
            _ => {}
        }
        let force = number(known, "/Spec/TaskTemplate/ForceUpdate");
        if force > 0 {
            spec["TaskTemplate"]["ForceUpdate"] = force.into();
        }
        if is_same(&known["Spec"], &spec) {
            output::line(format!("Service {name} is unchanged (id: {id})"));
            return Ok(id);
        }
        output::line(format!("Updating service {name} (id: {id})"));
        service::update(known, spec, false, auth, client)
            .await
            .with_context(|| format!("failed to update service {name}"))?;
        Ok(id)
    }
}

/// Pins the image if its registry can be asked; in a stack nobody is told otherwise.
async fn pin(spec: &mut Value, client: &Client) {
    let _ = service::pin_image(spec, client).await;
}

/// Puts ids in the place of names.
fn resolve(
    spec: &mut Value,
    networks: &BTreeMap<String, String>,
    secrets: &BTreeMap<String, String>,
    configs: &BTreeMap<String, String>,
) -> Result<()> {
    let task = &mut spec["TaskTemplate"];
    for attachment in task["Networks"].as_array_mut().into_iter().flatten() {
        if let Some(id) = networks.get(text(attachment, "/Target")) {
            attachment["Target"] = id.as_str().into();
        }
    }
    for (list, kind, ids) in [
        ("Secrets", "Secret", secrets),
        ("Configs", "Config", configs),
    ] {
        for reference in task["ContainerSpec"][list]
            .as_array_mut()
            .into_iter()
            .flatten()
        {
            let name = text(reference, &format!("/{kind}Name")).to_owned();
            let id = ids
                .get(&name)
                .ok_or_else(|| anyhow!("{} not found: {name}", kind.to_lowercase()))?;
            reference[format!("{kind}ID")] = id.as_str().into();
        }
        // Reading a missing list has made it null.
        if task["ContainerSpec"][list].is_null() {
            task["ContainerSpec"]
                .as_object_mut()
                .map(|fields| fields.remove(list));
        }
    }
    if task["Networks"].is_null() {
        task.as_object_mut().map(|fields| fields.remove("Networks"));
    }
    Ok(())
}

/// Whether writing `new` would change nothing: everything it says is so, and nothing else is said.
fn is_same(old: &Value, new: &Value) -> bool {
    /// What a daemon fills in where a spec says nothing: the API's defaults.
    fn without_defaults(spec: &Value) -> Value {
        let mut spec = spec.clone();
        let mut drop = |pointer: &str, field: &str, default: &Value| {
            if let Some(fields) = spec.pointer_mut(pointer).and_then(Value::as_object_mut)
                && fields.get(field) == Some(default)
            {
                fields.remove(field);
            }
        };
        let task = "/TaskTemplate";
        drop(
            &format!("{task}/ContainerSpec"),
            "StopGracePeriod",
            &json!(10_000_000_000_i64),
        );
        drop(
            &format!("{task}/ContainerSpec"),
            "Isolation",
            &json!("default"),
        );
        drop(&format!("{task}/RestartPolicy"), "Condition", &json!("any"));
        drop(
            &format!("{task}/RestartPolicy"),
            "Delay",
            &json!(5_000_000_000_i64),
        );
        drop(task, "Runtime", &json!("container"));
        drop("/EndpointSpec", "Mode", &json!("vip"));
        for config in ["/UpdateConfig", "/RollbackConfig"] {
            drop(config, "Parallelism", &json!(1));
            drop(config, "FailureAction", &json!("pause"));
            drop(config, "Monitor", &json!(5_000_000_000_i64));
            drop(config, "Order", &json!("stop-first"));
        }
        if let Some(task) = spec.pointer_mut(task).and_then(Value::as_object_mut) {
            // Follow from the image, not from the file.
            if let Some(placement) = task.get_mut("Placement").and_then(Value::as_object_mut) {
                placement.remove("Platforms");
            }
        }
        significant(&spec).unwrap_or_default()
    }
    // An empty label is still a label.
    let labels = |spec: &Value| {
        let of = |pointer: &str| {
            spec.pointer(pointer)
                .cloned()
                .filter(|labels| *labels != json!({}))
        };
        (of("/Labels"), of("/TaskTemplate/ContainerSpec/Labels"))
    };
    without_defaults(old) == without_defaults(new) && labels(old) == labels(new)
}

/// Makes the networks that are missing; returns the ids of all by name.
async fn networks(stack: &Stack, client: &Client) -> Result<BTreeMap<String, String>> {
    let existing = client.get(Target::new("/networks", &[])).await?;
    let existing = existing.as_array().cloned().unwrap_or_default();
    let mut ids = BTreeMap::new();
    // All are checked before any is made.
    for wanted in stack
        .networks
        .iter()
        .filter(|network| network.create.is_none())
    {
        if ["host", "none", "bridge"].contains(&wanted.name.as_str()) {
            continue;
        }
        match existing
            .iter()
            .find(|network| text(network, "/Name") == wanted.name)
        {
            None => bail!(
                "network {:?} is declared as external, but could not be found. You need to create a swarm-scoped network before the stack is deployed",
                wanted.name
            ),
            Some(found) if text(found, "/Scope") != "swarm" => bail!(
                "network {:?} is declared as external, but it is not in the right scope: {:?} instead of \"swarm\"",
                wanted.name,
                text(found, "/Scope")
            ),
            Some(found) => ids.insert(wanted.name.clone(), text(found, "/Id").to_owned()),
        };
    }
    for wanted in &stack.networks {
        let Some(body) = &wanted.create else { continue };
        let found = existing
            .iter()
            .find(|network| text(network, "/Name") == wanted.name);
        let id = match found {
            Some(found) => text(found, "/Id").to_owned(),
            None => {
                output::line(format!("Creating network {}", wanted.name));
                let made = client
                    .post(Target::new("/networks/create", &[]), body.clone())
                    .await;
                let made =
                    made.with_context(|| format!("failed to create network {}", wanted.name))?;
                text(&made, "/Id").to_owned()
            }
        };
        ids.insert(wanted.name.clone(), id);
    }
    Ok(ids)
}

/// Makes or relabels secrets or configs; returns the ids of all by name.
async fn data(kind: &str, wanted: &[Data], client: &Client) -> Result<BTreeMap<String, String>> {
    let mut ids = BTreeMap::new();
    if wanted.is_empty() {
        return Ok(ids);
    }
    let existing = client.get(Target::new(&format!("/{kind}s"), &[])).await?;
    let existing = existing.as_array().cloned().unwrap_or_default();
    for wanted in wanted {
        let found = existing
            .iter()
            .find(|item| text(item, "/Spec/Name") == wanted.name);
        let id = match (found, &wanted.create) {
            (None, None) => bail!("{kind} not found: {}", wanted.name),
            (Some(found), None) => text(found, "/ID").to_owned(),
            (Some(found), Some(spec)) => {
                let id = text(found, "/ID");
                let labels = |spec: &Value| significant(&spec["Labels"]);
                // A config shows its data; a secret's is compared by the daemon.
                let same_data = kind == "config" && found["Spec"]["Data"] == spec["Data"];
                if !(same_data && labels(&found["Spec"]) == labels(spec)) {
                    let target = Target::new(&format!("/{kind}s/{{}}/update"), &[id]);
                    let target = target.arg("version", number(found, "/Version/Index"));
                    client
                        .post(target, spec.clone())
                        .await
                        .with_context(|| format!("failed to update {kind} {}", wanted.name))?;
                }
                id.to_owned()
            }
            (None, Some(spec)) => {
                output::line(format!("Creating {kind} {}", wanted.name));
                let target = Target::new(&format!("/{kind}s/create"), &[]);
                let made = client
                    .post(target, spec.clone())
                    .await
                    .with_context(|| format!("failed to create {kind} {}", wanted.name))?;
                text(&made, "/ID").to_owned()
            }
        };
        ids.insert(wanted.name.clone(), id);
    }
    Ok(ids)
}

impl Remove {
    async fn run(self, client: &Client) -> Result<()> {
        let mut errors = Vec::new();
        for stack in &self.stacks {
            if let Err(error) = remove(stack, self.detach, client).await {
                errors.push(format!("{error:#}"));
            }
        }
        output::fail_with(errors)
    }
}

async fn remove(stack: &str, detach: bool, client: &Client) -> Result<()> {
    let filter = [of_stack(stack)];
    let services = service::fetch(&filter, client).await?;
    let fetch = async |path: &str| -> Result<Vec<Value>> {
        let mut found = client.get(Target::new(path, &[]).filters(&filter)?).await?;
        Ok(found.as_array_mut().map(std::mem::take).unwrap_or_default())
    };
    let secrets = fetch("/secrets").await?;
    let configs = fetch("/configs").await?;
    let networks = fetch("/networks").await?;
    if services.is_empty() && secrets.is_empty() && configs.is_empty() && networks.is_empty() {
        output::note(format!("Nothing found in stack: {stack}"));
        return Ok(());
    }
    let mut errors = Vec::new();
    for (kind, list) in [
        ("service", &services),
        ("secret", &secrets),
        ("config", &configs),
    ] {
        for item in list {
            let name = text(item, "/Spec/Name");
            output::line(format!("Removing {kind} {name}"));
            let removed = client
                .delete(Target::new(&format!("/{kind}s/{{}}"), &[text(item, "/ID")]))
                .await;
            if let Err(error) = removed
                && !is_not_found(&error)
            {
                errors.push(format!("failed to remove {kind} {name}: {error:#}"));
            }
        }
    }
    for item in &networks {
        let name = text(item, "/Name");
        output::line(format!("Removing network {name}"));
        if let Err(error) = remove_network(text(item, "/Id"), detach, client).await {
            errors.push(format!("failed to remove network {name}: {error:#}"));
        }
    }
    output::fail_with(errors)
}

/// Removes a network as soon as the last task has left it.
async fn remove_network(id: &str, detach: bool, client: &Client) -> Result<()> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        match network::remove(id, client).await {
            Err(error) if is_not_found(&error) => return Ok(()),
            Err(error)
                if format!("{error:#}").contains("in use")
                    && !detach
                    && attempts < NETWORK_ATTEMPTS => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_is_the_same_with_its_defaults_filled_in() {
        let new = json!({"Name": "a", "Mode": {"Replicated": {"Replicas": 1}}, "TaskTemplate": {"ContainerSpec": {"Image": "x"}}});
        let old = json!({"Name": "a", "Labels": {}, "Mode": {"Replicated": {"Replicas": 1}}, "EndpointSpec": {"Mode": "vip"},
            "TaskTemplate": {"ContainerSpec": {"Image": "x", "StopGracePeriod": 10_000_000_000_i64}, "ForceUpdate": 0, "Runtime": "container",
                "Resources": {"Limits": {}}, "RestartPolicy": {"Condition": "any", "Delay": 5_000_000_000_i64, "MaxAttempts": 0},
                "Placement": {"Platforms": [{"OS": "linux"}]}}});
        assert!(is_same(&old, &new));
        let mut other = new.clone();
        other["TaskTemplate"]["ContainerSpec"]["Env"] = json!(["A=1"]);
        assert!(!is_same(&old, &other) && !is_same(&other, &old));
    }

    #[test]
    fn names_become_ids() {
        let mut spec = json!({"TaskTemplate": {"Networks": [{"Target": "n"}], "ContainerSpec": {"Secrets": [{"SecretName": "s"}]}}});
        let ids = |name: &str| BTreeMap::from([(name.to_owned(), format!("{name}-id"))]);
        resolve(&mut spec, &ids("n"), &ids("s"), &BTreeMap::new()).unwrap();
        assert_eq!(
            spec,
            json!({"TaskTemplate": {"Networks": [{"Target": "n-id"}], "ContainerSpec": {"Secrets": [{"SecretID": "s-id", "SecretName": "s"}]}}})
        );
        let missing =
            resolve(&mut spec, &ids("n"), &BTreeMap::new(), &BTreeMap::new()).unwrap_err();
        assert_eq!(missing.to_string(), "secret not found: s");
    }
}
