//! The commands, one file per noun.

mod build;
mod cluster;
mod completion;
mod container;
mod container_flags;
mod container_more;
mod context;
mod copy;
mod daemon;
mod data;
mod disk_usage;
mod doctor;
mod exec;
mod image;
mod image_more;
mod inspect;
mod lab;
mod login;
mod network;
mod node;
mod prune;
mod run;
mod service;
mod service_beyond;
mod service_exec;
mod service_flags;
mod service_logs;
mod service_more;
mod service_parts;
mod service_pretty;
mod service_update;
mod stack;
mod stats;
mod swarm;
mod system;
mod task;
mod volume;

use anyhow::{Context as _, Result};
use clap::{
    ArgAction, ArgMatches, CommandFactory as _, FromArgMatches, Parser, Subcommand,
    error::ErrorKind,
};

use crate::{client::Client, config_file, connect, connect::Globals};

pub(crate) use service_parts::words;

/// What `shoal --help` says; a test compares it with the commands that there are.
const HELP: &str = "\
Usage:  shoal [OPTIONS] COMMAND

Runs services on many Linux hosts as if they were one

Common Commands:
  run         Create and run a new container from an image
  exec        Execute a command in a running container
  ps          List containers
  build       Build an image from a Dockerfile
  pull        Download an image from a registry
  push        Upload an image to a registry
  images      List images
  login       Authenticate to a registry
  logout      Log out from a registry
  search      Search for images in a registry
  version     Show the version information
  info        Display system-wide information

Management Commands:
  builder     Manage builds
  container   Manage containers
  context     Manage contexts
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
  cluster     Back up, restore and recover the cluster
  completion  Generate the autocompletion script for the specified shell
  daemon      Run the daemon of this host
  doctor      Find what is wrong with the cluster
  lab         Make a cluster of several hosts on this machine

Commands:
  attach      Attach to the streams of a running container
  commit      Create a new image from a container's changes
  cp          Copy files/folders between a container and the local filesystem
  create      Create a new container
  diff        Inspect changes to files or directories on a container's filesystem
  events      Get real time events from the server
  export      Export a container's filesystem as a tar archive
  history     Show the history of an image
  import      Import the contents from a tarball to create a filesystem image
  inspect     Return low-level information on objects
  kill        Kill one or more running containers
  load        Load an image from a tar archive or STDIN
  logs        Fetch the logs of a container
  pause       Pause all processes within one or more containers
  port        List port mappings or a specific mapping for the container
  rename      Rename a container
  restart     Restart one or more containers
  rm          Remove one or more containers
  rmi         Remove one or more images
  save        Save one or more images to a tar archive (streamed to STDOUT by default)
  start       Start one or more stopped containers
  stats       Display a live stream of container(s) resource usage statistics
  stop        Stop one or more running containers
  tag         Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE
  top         Display the running processes of a container
  unpause     Unpause all processes within one or more containers
  update      Update configuration of one or more containers
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
/// The help; without the commands that the nouns have as well if `DOCKER_HIDE_LEGACY_COMMANDS` says so, as in docker.
fn help() -> String {
    let mut help = HELP.to_owned();
    let hides = connect::environment("DOCKER_HIDE_LEGACY_COMMANDS").is_some();
    if let (true, Some(from), Some(to)) =
        (hides, help.find("\nCommands:\n"), help.find("\n{options}"))
    {
        help.replace_range(from..to, "");
    }
    help.replace("{options}", "Global Options:\n{options}")
}

#[derive(Parser)]
#[command(
    name = "shoal",
    version,
    disable_version_flag = true,
    disable_help_subcommand = true
)]
#[command(help_template = help(), max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    globals: Globals,
    /// Print version information and quit
    #[arg(short = 'v', long, action = clap::ArgAction::Version)]
    version: (),
    /// Enable debug mode
    #[arg(short = 'D', long)]
    debug: bool,
    #[command(subcommand)]
    command: Command,
}

/// Makes the enumeration of the commands, each with its flags or with verbs of its own, and how it is read.
///
/// By hand, since only the command that is asked for is to get its grammar: that of all the others takes longer to make
/// than most calls.
macro_rules! commands {
    ($($name:literal $kind:ident $command:ident($args:ty),)*) => {
        enum Command {
            $($command($args),)*
        }

        impl Subcommand for Command {
            fn augment_subcommands(all: clap::Command) -> clap::Command {
                all$(.subcommand(clap::Command::new($name).defer(|one| {
                    as_in_docker(commands!(@$kind $args, one))
                })))*
            }

            fn augment_subcommands_for_update(all: clap::Command) -> clap::Command {
                Self::augment_subcommands(all)
            }

            fn has_subcommand(name: &str) -> bool {
                [$($name),*].contains(&name)
            }
        }

        impl FromArgMatches for Command {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                Self::from_arg_matches_mut(&mut matches.clone())
            }

            fn from_arg_matches_mut(matches: &mut ArgMatches) -> Result<Self, clap::Error> {
                let (name, mut matches) = matches
                    .remove_subcommand()
                    .ok_or_else(|| clap::Error::new(ErrorKind::MissingSubcommand))?;
                $(if name == $name {
                    return <$args>::from_arg_matches_mut(&mut matches).map(Self::$command);
                })*
                Err(clap::Error::new(ErrorKind::InvalidSubcommand))
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                *self = Self::from_arg_matches(matches)?;
                Ok(())
            }
        }
    };
    (@flags $args:ty, $one:ident) => { <$args as clap::Args>::augment_args($one) };
    (@verbs $args:ty, $one:ident) => {
        <$args as Subcommand>::augment_subcommands($one)
            .subcommand_required(true)
            .arg_required_else_help(true)
    };
}

commands! {
    "attach" flags Attach(run::Attach),
    "build" flags Build(Box<build::Args>),
    "builder" verbs Builder(BuilderCommand),
    "commit" flags Commit(container_more::Commit),
    "completion" flags Completion(completion::Args),
    "cluster" verbs Cluster(cluster::Command),
    "config" verbs Config(data::ConfigCommand),
    "container" verbs Container(container::Command),
    "context" verbs Context(context::Command),
    "cp" flags Cp(copy::Args),
    "create" flags Create(Box<run::Create>),
    "daemon" flags Daemon(Box<daemon::Args>),
    "diff" flags Diff(container_more::Diff),
    "doctor" verbs Doctor(doctor::Command),
    "events" flags Events(system::Events),
    "exec" flags Exec(exec::Args),
    "export" flags Export(container_more::Export),
    "history" flags History(image_more::History),
    "image" verbs Image(image::Command),
    "images" flags Images(image::List),
    "import" flags Import(image_more::Import),
    "info" flags Info(system::Info),
    "inspect" flags Inspect(inspect::Args),
    "kill" flags Kill(container::Kill),
    "lab" verbs Lab(lab::Command),
    "load" flags Load(image::Load),
    "login" flags Login(login::Login),
    "logout" flags Logout(login::Logout),
    "logs" flags Logs(container::Logs),
    "network" verbs Network(network::Command),
    "node" verbs Node(node::Command),
    "pause" flags Pause(container_more::Pause),
    "port" flags Port(container_more::Port),
    "ps" flags Ps(container::List),
    "pull" flags Pull(image::Pull),
    "push" flags Push(image::Push),
    "rename" flags Rename(container_more::Rename),
    "restart" flags Restart(container::Restart),
    "rm" flags Rm(container::Remove),
    "rmi" flags Rmi(image::Remove),
    "run" flags Run(Box<run::Run>),
    "save" flags Save(image::Save),
    "search" flags Search(image_more::Search),
    "secret" verbs Secret(data::SecretCommand),
    "service" verbs Service(service::Command),
    "stack" verbs Stack(stack::Command),
    "start" flags Start(run::Start),
    "stats" flags Stats(stats::Args),
    "stop" flags Stop(container::Stop),
    "swarm" verbs Swarm(swarm::Command),
    "system" verbs System(system::Command),
    "tag" flags Tag(image::Tag),
    "top" flags Top(container_more::Top),
    "unpause" flags Unpause(container_more::Unpause),
    "update" flags Update(Box<container_more::Update>),
    "version" flags Version(system::Version),
    "volume" verbs Volume(volume::Command),
    "wait" flags Wait(container::Wait),
}

/// The grammar of all commands; that of each is made when it is asked for, or by `build`. As in docker's, a flag may be given its value (`--rm=false`), and of a flag that is given
/// twice the last one counts.
pub(crate) fn grammar() -> clap::Command {
    as_in_docker(Cli::command())
}

fn as_in_docker(command: clap::Command) -> clap::Command {
    let command = command
        .disable_help_subcommand(true)
        .args_override_self(true)
        .mut_args(|arg| {
            if !matches!(arg.get_action(), ArgAction::SetTrue) {
                return arg;
            }
            let says_true = !arg.get_default_values().is_empty();
            let arg = arg
                .action(ArgAction::Set)
                .value_parser(clap::builder::BoolishValueParser::new())
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .value_name("bool");
            if says_true {
                arg
            } else {
                arg.default_value("false").hide_default_value(true)
            }
        });
    command.mut_subcommands(as_in_docker)
}

/// Reads the command line.
pub(crate) fn parse() -> Result<Cli, clap::Error> {
    let mut grammar = grammar();
    let mut matches = grammar.try_get_matches_from_mut(std::env::args_os())?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut grammar))
}

/// Manage builds
#[derive(Subcommand)]
enum BuilderCommand {
    Build(Box<build::Args>),
    Prune(prune::Builds),
}

/// Runs the command that was given.
pub(crate) fn run(cli: Cli) -> Result<()> {
    if let Some(folder) = &cli.globals.config {
        config_file::use_folder(folder.clone());
    }
    let globals = cli.globals;
    match cli.command {
        // These make their own runtime, or need none.
        Command::Completion(args) => return args.run(),
        Command::Context(command) => return command.run(&globals),
        Command::Daemon(args) => return daemon::run(*args, cli.debug, &globals),
        Command::Lab(command) => return lab::run(command),
        Command::Logout(args) => return args.run(),
        _ => {}
    }
    let client = globals.client()?;
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
        Command::Build(args) => args.run(client).await,
        Command::Builder(BuilderCommand::Build(args)) => args.run(client).await,
        Command::Builder(BuilderCommand::Prune(args)) => args.run(client).await,
        Command::Commit(args) => args.run(client).await,
        Command::Cluster(command) => command.run(client).await,
        Command::Config(command) => command.run(client).await,
        Command::Container(command) => command.run(client).await,
        Command::Cp(args) => args.run(client).await,
        Command::Create(args) => args.run(client).await,
        Command::Diff(args) => args.run(client).await,
        Command::Doctor(command) => command.run(client).await,
        Command::Events(args) => args.run(client).await,
        Command::Exec(args) => args.run(client).await,
        Command::Export(args) => args.run(client).await,
        Command::History(args) => args.run(client).await,
        Command::Image(command) => command.run(client).await,
        Command::Images(args) => args.run(client).await,
        Command::Import(args) => args.run(client).await,
        Command::Info(args) => args.run(client).await,
        Command::Inspect(args) => args.run(client).await,
        Command::Kill(args) => args.run(client).await,
        Command::Load(args) => args.run(client).await,
        Command::Login(args) => args.run(client).await,
        Command::Logs(args) => args.run(client).await,
        Command::Network(command) => command.run(client).await,
        Command::Node(command) => command.run(client).await,
        Command::Pause(args) => args.run(client).await,
        Command::Port(args) => args.run(client).await,
        Command::Ps(args) => args.run(client).await,
        Command::Pull(args) => args.run(client).await,
        Command::Push(args) => args.run(client).await,
        Command::Rename(args) => args.run(client).await,
        Command::Restart(args) => args.run(client).await,
        Command::Rm(args) => args.run(client).await,
        Command::Rmi(args) => args.run(client).await,
        Command::Run(args) => args.run(client).await,
        Command::Save(args) => args.run(client).await,
        Command::Search(args) => args.run(client).await,
        Command::Secret(command) => command.run(client).await,
        Command::Service(command) => command.run(client).await,
        Command::Stack(command) => command.run(client).await,
        Command::Start(args) => args.run(client).await,
        Command::Stats(args) => args.run(client).await,
        Command::Stop(args) => args.run(client).await,
        Command::Swarm(command) => command.run(client).await,
        Command::System(command) => command.run(client).await,
        Command::Tag(args) => args.run(client).await,
        Command::Top(args) => args.run(client).await,
        Command::Unpause(args) => args.run(client).await,
        Command::Update(args) => args.run(client).await,
        Command::Version(args) => args.run(client).await,
        Command::Volume(command) => command.run(client).await,
        Command::Wait(args) => args.run(client).await,
        // These have returned above.
        Command::Completion(_)
        | Command::Context(_)
        | Command::Daemon(_)
        | Command::Lab(_)
        | Command::Logout(_) => Ok(()),
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
    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        grammar().debug_assert();
    }

    #[test]
    fn flags_take_values_and_the_last_one_counts() {
        let line = "shoal run --rm=false --read-only=1 --name a --name b -it image --rm";
        let matches = grammar()
            .try_get_matches_from(line.split(' '))
            .expect("docker takes it");
        let run = matches.subcommand_matches("run").expect("run was said");
        let flag = |name: &str| run.get_one::<bool>(name).copied();
        assert_eq!(
            (flag("rm"), flag("read_only"), flag("privileged")),
            (Some(false), Some(true), Some(false))
        );
        assert_eq!(
            flag("sig_proxy"),
            Some(true),
            "what is on by itself stays on"
        );
        assert_eq!(run.get_one::<String>("name").map(String::as_str), Some("b"));
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
        let mut all = grammar();
        all.build();
        check(&all, "");
    }
}
