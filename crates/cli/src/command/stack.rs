//! `shoal stack`: services of a compose file, deployed and removed together.

mod check;
mod deploy;
mod plan;
mod remove;
mod report;

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use super::{ListArgs, service, task};
use crate::{
    client::Client,
    compose::{self, NAMESPACE},
    flags::environment,
    json::text,
    output::{self, ListFormat, column, row},
};

/// Manage stacks
#[derive(Subcommand)]
pub(crate) enum Command {
    Config(Config),
    #[command(visible_alias = "up")]
    Deploy(Deploy),
    /// List stacks
    #[command(visible_alias = "list")]
    Ls(ListFormat),
    Plan(Plan),
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
    #[command(flatten)]
    shape: Shape,
    /// Exit immediately instead of waiting for the stack services to converge
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", value_name = "bool")]
    detach: bool,
    /// Wait for the stack services to converge; if they do not, say why and fail
    #[arg(short, long)]
    wait: bool,
    /// Time after which --wait fails
    #[arg(long, value_name = "duration", requires = "wait")]
    timeout: Option<String>,
    /// If the stack does not converge, take the services that were updated back to what they were
    #[arg(long, requires = "wait")]
    rollback: bool,
    /// Suppress progress output
    #[arg(short, long)]
    quiet: bool,
    /// Send registry authentication details to Swarm agents
    #[arg(long)]
    with_registry_auth: bool,
}

/// What a deployment does besides what its files say
#[derive(Args)]
pub(crate) struct Shape {
    /// Prune services that are no longer referenced, after all others have been updated
    #[arg(long)]
    prune: bool,
    /// Query the registry to resolve image digest and supported platforms ("always", "changed", "never")
    #[arg(long, value_name = "string", default_value = "always", value_parser = ["always", "changed", "never"])]
    resolve_image: String,
}

/// Show what a deployment would create, update and remove, without doing it
#[derive(Args)]
#[command(after_help = "Example:\n  shoal stack plan -c demo.yml demo")]
pub(crate) struct Plan {
    /// Name of the stack
    stack: String,
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    shape: Shape,
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
    /// Do not wait until tasks and networks are gone
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_default_value = true, value_name = "bool")]
    detach: bool,
    /// Remove the stack's volumes, too, on all nodes, with what is in them
    #[arg(long, conflicts_with = "detach")]
    volumes: bool,
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
            Self::Plan(args) => args.run(client).await,
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
