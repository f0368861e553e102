//! The commands, one file per noun.

mod container;
mod container_flags;
mod daemon;
mod data;
mod exec;
mod image;
mod inspect;
mod lab;
mod network;
mod node;
mod run;
mod service;
mod service_flags;
mod service_logs;
mod service_parts;
mod service_update;
mod stack;
mod swarm;
mod system;
mod task;
mod volume;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

use crate::client::{Client, DEFAULT_HOST};

pub(crate) use service_parts::words;

/// What `shoal --help` says; a test compares it with the commands that there are.
const HELP: &str = "\
Usage:  shoal [OPTIONS] COMMAND

Runs services on many Linux hosts as if they were one

Common Commands:
  run         Create and run a new container from an image
  exec        Execute a command in a running container
  ps          List containers
  pull        Download an image from a registry
  push        Upload an image to a registry
  images      List images
  version     Show the version information
  info        Display system-wide information

Management Commands:
  container   Manage containers
  image       Manage images
  network     Manage networks
  system      Manage the engine
  volume      Manage volumes

Cluster Commands:
  config      Manage configs
  node        Manage nodes
  secret      Manage secrets
  service     Manage services
  stack       Manage stacks
  swarm       Manage the cluster

Shoal Commands:
  daemon      Run the daemon of this host
  lab         Make a cluster of several hosts on this machine

Commands:
  attach      Attach to the streams of a running container
  create      Create a new container
  inspect     Return low-level information on objects
  kill        Kill one or more running containers
  load        Load an image from a tar archive or STDIN
  logs        Fetch the logs of a container
  restart     Restart one or more containers
  rm          Remove one or more containers
  rmi         Remove one or more images
  save        Save one or more images to a tar archive (streamed to STDOUT by default)
  start       Start one or more stopped containers
  stop        Stop one or more running containers
  tag         Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE
  wait        Block until one or more containers stop, then print their exit codes

{options}

Examples:
  sudo shoal daemon                       # an engine on this host
  shoal run --rm -it debian bash          # a container
  shoal swarm init                        # a cluster of one; prints how others join
  shoal stack deploy -c demo.yml demo     # services of a compose file
  shoal lab up --nodes 3                  # three hosts on this machine, to try things out

Run 'shoal COMMAND --help' for more information on a command.
";

/// Runs services on many Linux hosts as if they were one
#[derive(Parser)]
#[command(
    name = "shoal",
    version,
    disable_version_flag = true,
    disable_help_subcommand = true
)]
#[command(help_template = HELP.replace("{options}", "Global Options:\n{options}"), max_term_width = 100)]
pub(crate) struct Cli {
    /// Daemon socket to connect to
    #[arg(
        short = 'H',
        long,
        env = "SHOAL_HOST",
        hide_env = true,
        value_name = "host"
    )]
    host: Option<String>,
    /// Print version information and quit
    #[arg(short = 'v', long, action = clap::ArgAction::Version)]
    version: (),
    /// Enable debug mode
    #[arg(short = 'D', long, global = true)]
    debug: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Attach(run::Attach),
    #[command(subcommand)]
    Config(data::ConfigCommand),
    #[command(subcommand)]
    Container(container::Command),
    Create(Box<run::Create>),
    Daemon(daemon::Args),
    Exec(exec::Args),
    #[command(subcommand)]
    Image(image::Command),
    Images(image::List),
    Info(system::Info),
    Inspect(inspect::Args),
    Kill(container::Kill),
    #[command(subcommand)]
    Lab(lab::Command),
    Load(image::Load),
    Logs(container::Logs),
    #[command(subcommand)]
    Network(network::Command),
    #[command(subcommand)]
    Node(node::Command),
    Ps(container::List),
    Pull(image::Pull),
    Push(image::Push),
    Restart(container::Restart),
    Rm(container::Remove),
    Rmi(image::Remove),
    Run(Box<run::Run>),
    Save(image::Save),
    #[command(subcommand)]
    Secret(data::SecretCommand),
    #[command(subcommand)]
    Service(service::Command),
    #[command(subcommand)]
    Stack(stack::Command),
    Start(run::Start),
    Stop(container::Stop),
    #[command(subcommand)]
    Swarm(swarm::Command),
    #[command(subcommand)]
    System(system::Command),
    Tag(image::Tag),
    Version(system::Version),
    #[command(subcommand)]
    Volume(volume::Command),
    Wait(container::Wait),
}

/// Runs the command that was given.
pub(crate) fn run(cli: Cli) -> Result<()> {
    let host = cli
        .host
        .or_else(|| {
            std::env::var("DOCKER_HOST")
                .ok()
                .filter(|host| !host.is_empty())
        })
        .unwrap_or_else(|| DEFAULT_HOST.to_owned());
    match cli.command {
        // These make their own runtime, or need none.
        Command::Daemon(args) => return daemon::run(args, cli.debug),
        Command::Lab(command) => return lab::run(command),
        _ => {}
    }
    let client = Client::new(&host)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(dispatch(cli.command, &client));
    // A read of standard input that nobody waits for any more must not hold us up.
    runtime.shutdown_background();
    result
}

async fn dispatch(command: Command, client: &Client) -> Result<()> {
    match command {
        Command::Attach(args) => args.run(client).await,
        Command::Config(command) => command.run(client).await,
        Command::Container(command) => command.run(client).await,
        Command::Create(args) => args.run(client).await,
        Command::Exec(args) => args.run(client).await,
        Command::Image(command) => command.run(client).await,
        Command::Images(args) => args.run(client).await,
        Command::Info(args) => args.run(client).await,
        Command::Inspect(args) => args.run(client).await,
        Command::Kill(args) => args.run(client).await,
        Command::Load(args) => args.run(client).await,
        Command::Logs(args) => args.run(client).await,
        Command::Network(command) => command.run(client).await,
        Command::Node(command) => command.run(client).await,
        Command::Ps(args) => args.run(client).await,
        Command::Pull(args) => args.run(client).await,
        Command::Push(args) => args.run(client).await,
        Command::Restart(args) => args.run(client).await,
        Command::Rm(args) => args.run(client).await,
        Command::Rmi(args) => args.run(client).await,
        Command::Run(args) => args.run(client).await,
        Command::Save(args) => args.run(client).await,
        Command::Secret(command) => command.run(client).await,
        Command::Service(command) => command.run(client).await,
        Command::Stack(command) => command.run(client).await,
        Command::Start(args) => args.run(client).await,
        Command::Stop(args) => args.run(client).await,
        Command::Swarm(command) => command.run(client).await,
        Command::System(command) => command.run(client).await,
        Command::Tag(args) => args.run(client).await,
        Command::Version(args) => args.run(client).await,
        Command::Volume(command) => command.run(client).await,
        Command::Wait(args) => args.run(client).await,
        // Both have returned above.
        Command::Daemon(_) | Command::Lab(_) => Ok(()),
    }
}

/// Narrows and shapes a list.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ListArgs {
    /// Filter output based on conditions provided
    #[arg(short, long, value_name = "key=value", value_parser = filter)]
    pub(crate) filter: Vec<String>,
    #[command(flatten)]
    pub(crate) format: crate::output::ListFormat,
}

/// Reads a filter, so that a wrong one is told before anything is asked.
fn filter(text: &str) -> Result<String, &'static str> {
    if text.contains('=') {
        Ok(text.to_owned())
    } else {
        Err("bad format of filter (expected name=value)")
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_names_every_command() {
        for command in Cli::command().get_subcommands() {
            let line = format!("\n  {:<12}", command.get_name());
            assert!(HELP.contains(&line), "{}", command.get_name());
        }
    }

    #[test]
    fn every_command_says_what_it_does() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{path} has no description");
            for sub in command.get_subcommands() {
                check(sub, &path);
            }
        }
        check(&Cli::command(), "");
    }
}
