//! `shoal container` and its short forms that neither start nor attach: `ps`, `logs`, `stop`, `kill`, `rm`, `wait`.

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::Value;
use shoal_api::Timestamp;
use tokio_util::io::StreamReader;

use super::{
    ListArgs,
    container_more::{Commit, Diff, Export, Pause, Port, Rename, Top, Unpause, Update},
    copy, exec, prune, run, stats,
};
use crate::{
    client::{Client, Payload, Target, chunks},
    flags::quantity,
    human::{ago, ellipsis, short_id, size},
    json::{is, items, labels, number, pairs, text, texts},
    output::{self, column, hidden, row},
    terminal,
};

/// Characters of a command in a table.
const COMMAND_WIDTH: usize = 20;

/// Manage containers
#[derive(Subcommand)]
pub(crate) enum Command {
    Attach(run::Attach),
    Commit(Commit),
    Cp(copy::Args),
    Create(Box<run::Create>),
    Diff(Diff),
    Exec(exec::Args),
    Export(Export),
    Inspect(Inspect),
    Kill(Kill),
    Logs(Logs),
    #[command(visible_aliases = ["list", "ps"])]
    Ls(List),
    Pause(Pause),
    Port(Port),
    Prune(prune::Containers),
    Rename(Rename),
    Restart(Restart),
    #[command(visible_alias = "remove")]
    Rm(Remove),
    Run(Box<run::Run>),
    Start(run::Start),
    Stats(stats::Args),
    Stop(Stop),
    Top(Top),
    Unpause(Unpause),
    Update(Box<Update>),
    Wait(Wait),
}

/// List containers
#[derive(Args)]
#[command(
    after_help = "Examples:\n  shoal ps -a\n  shoal ps --filter label=com.docker.stack.namespace=demo --format '{{.Names}}'"
)]
pub(crate) struct List {
    /// Show all containers (default shows just running)
    #[arg(short, long)]
    all: bool,
    /// Show n last created containers (includes all states)
    #[arg(short = 'n', long, value_name = "int", allow_negative_numbers = true)]
    last: Option<i64>,
    /// Show the latest created container (includes all states)
    #[arg(short, long)]
    latest: bool,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Display total file sizes
    #[arg(short, long)]
    size: bool,
    #[command(flatten)]
    list: ListArgs,
}

/// Fetch the logs of a container
#[derive(Args)]
pub(crate) struct Logs {
    container: String,
    #[command(flatten)]
    pub(crate) wanted: LogArgs,
}

/// Which lines of a log, and how.
#[derive(Args)]
pub(crate) struct LogArgs {
    /// Show extra details provided to logs
    #[arg(long)]
    details: bool,
    /// Follow log output
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)
    #[arg(long, value_name = "string")]
    since: Option<String>,
    /// Show logs before a timestamp or relative
    #[arg(long, value_name = "string")]
    until: Option<String>,
    /// Number of lines to show from the end of the logs
    #[arg(short = 'n', long, value_name = "string", default_value = "all")]
    tail: String,
    /// Show timestamps
    #[arg(short, long)]
    timestamps: bool,
}

/// Stop one or more running containers
#[derive(Args)]
pub(crate) struct Stop {
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
    /// Signal to send to the container
    #[arg(short, long, value_name = "string")]
    signal: Option<String>,
    /// Seconds to wait before killing the container
    #[arg(
        short,
        long,
        visible_alias = "time",
        value_name = "int",
        allow_negative_numbers = true
    )]
    timeout: Option<i64>,
}

/// Restart one or more containers
#[derive(Args)]
pub(crate) struct Restart {
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
    /// Signal to send to the container
    #[arg(short, long, value_name = "string")]
    signal: Option<String>,
    /// Seconds to wait before killing the container
    #[arg(
        short,
        long,
        visible_alias = "time",
        value_name = "int",
        allow_negative_numbers = true
    )]
    timeout: Option<i64>,
}

/// Kill one or more running containers
#[derive(Args)]
pub(crate) struct Kill {
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
    /// Signal to send to the container
    #[arg(short, long, value_name = "string")]
    signal: Option<String>,
}

/// Remove one or more containers
#[derive(Args)]
pub(crate) struct Remove {
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
    /// Force the removal of a running container (uses SIGKILL)
    #[arg(short, long)]
    force: bool,
    /// Remove the specified link
    #[arg(short, long)]
    link: bool,
    /// Remove anonymous volumes associated with the container
    #[arg(short, long)]
    volumes: bool,
}

/// Block until one or more containers stop, then print their exit codes
#[derive(Args)]
pub(crate) struct Wait {
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Display detailed information on one or more containers
#[derive(Args)]
pub(crate) struct Inspect {
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
    /// Format output using a custom template
    #[arg(short, long, value_name = "string")]
    format: Option<String>,
    /// Display total file sizes
    #[arg(short, long)]
    size: bool,
}

impl Command {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        match self {
            Self::Attach(args) => args.run(client).await,
            Self::Commit(args) => args.run(client).await,
            Self::Cp(args) => args.run(client).await,
            Self::Create(args) => args.run(client).await,
            Self::Diff(args) => args.run(client).await,
            Self::Exec(args) => args.run(client).await,
            Self::Export(args) => args.run(client).await,
            Self::Inspect(args) => {
                output::inspect_each(
                    args.format.as_deref(),
                    &args.containers,
                    async |name: String| {
                        let target = Target::new("/containers/{}/json", &[&name]);
                        client.get(target.flag("size", args.size)).await
                    },
                )
                .await
            }
            Self::Kill(args) => args.run(client).await,
            Self::Logs(args) => args.run(client).await,
            Self::Ls(args) => args.run(client).await,
            Self::Pause(args) => args.run(client).await,
            Self::Port(args) => args.run(client).await,
            Self::Prune(args) => args.run(client).await,
            Self::Rename(args) => args.run(client).await,
            Self::Restart(args) => args.run(client).await,
            Self::Rm(args) => args.run(client).await,
            Self::Run(args) => args.run(client).await,
            Self::Start(args) => args.run(client).await,
            Self::Stats(args) => args.run(client).await,
            Self::Stop(args) => args.run(client).await,
            Self::Top(args) => args.run(client).await,
            Self::Unpause(args) => args.run(client).await,
            Self::Update(args) => args.run(client).await,
            Self::Wait(args) => args.run(client).await,
        }
    }
}

impl Stop {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        output::each(&self.containers, async |name: String| {
            let target = Target::new("/containers/{}/stop", &[&name])
                .maybe("signal", self.signal.as_deref())
                .maybe("t", self.timeout);
            client.post(target, Payload::Empty).await?;
            Ok(Some(name))
        })
        .await
    }
}

impl Restart {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        output::each(&self.containers, async |name: String| {
            let target = Target::new("/containers/{}/restart", &[&name])
                .maybe("signal", self.signal.as_deref())
                .maybe("t", self.timeout);
            client.post(target, Payload::Empty).await?;
            Ok(Some(name))
        })
        .await
    }
}

impl Kill {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        output::each(&self.containers, async |name: String| {
            let target = Target::new("/containers/{}/kill", &[&name])
                .maybe("signal", self.signal.as_deref());
            client.post(target, Payload::Empty).await?;
            Ok(Some(name))
        })
        .await
    }
}

impl Remove {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        output::each(&self.containers, async |name: String| {
            let target = Target::new("/containers/{}", &[name.trim_matches('/')])
                .flag("force", self.force)
                .flag("link", self.link)
                .flag("v", self.volumes);
            match client.delete(target).await {
                Err(error) if self.force && crate::client::is_not_found(&error) => {
                    output::note(format!("{error:#}"));
                    Ok(None)
                }
                Err(error) => Err(error),
                Ok(_) => Ok(Some(name)),
            }
        })
        .await
    }
}

impl Wait {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        output::each(&self.containers, async |name: String| {
            let done = client
                .post(Target::new("/containers/{}/wait", &[&name]), Payload::Empty)
                .await?;
            if let Some(error) = done.pointer("/Error/Message").and_then(Value::as_str) {
                bail!("{error}");
            }
            Ok(Some(number(&done, "/StatusCode").to_string()))
        })
        .await
    }
}

impl LogArgs {
    /// Whether each line begins with its time.
    pub(crate) fn timestamps(&self) -> bool {
        self.timestamps
    }

    /// The target with these wishes.
    pub(crate) fn apply(&self, target: Target, now: Timestamp) -> Target {
        let moment = |text: &Option<String>| text.as_deref().map(|text| moment(text, now));
        target
            .arg("stdout", 1)
            .arg("stderr", 1)
            .flag("follow", self.follow)
            .flag("timestamps", self.timestamps)
            .flag("details", self.details)
            .arg("tail", &self.tail)
            .maybe("since", moment(&self.since))
            .maybe("until", moment(&self.until))
    }
}

/// A time as the API takes it, from RFC 3339, seconds of the era, or a duration back from now.
pub(crate) fn moment(text: &str, now: Timestamp) -> String {
    let at = match (quantity::duration(text), Timestamp::parse_rfc3339(text)) {
        (Ok(back), _) => Timestamp(now.0 - back),
        (_, Some(at)) => at,
        // The daemon knows more forms, or says what is wrong.
        _ => return text.to_owned(),
    };
    format!("{}.{:09}", at.seconds(), at.0.rem_euclid(1_000_000_000))
}

impl Logs {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let container = client
            .get(Target::new("/containers/{}/json", &[&self.container]))
            .await?;
        let target = Target::new("/containers/{}/logs", &[text(&container, "/Id")]);
        let target = self.wanted.apply(target, Timestamp::now());
        let response = client.send(Method::GET, target, Payload::Empty).await?;
        let stream = futures_util::StreamExt::map(chunks(response), |chunk| {
            chunk.map_err(std::io::Error::other)
        });
        terminal::copy_out(StreamReader::new(stream), is(&container, "/Config/Tty")).await
    }
}

impl List {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let limit = if self.latest {
            Some(1)
        } else {
            self.last.filter(|n| *n > 0)
        };
        let target = Target::new("/containers/json", &[])
            .flag("all", self.all || limit.is_some())
            .maybe("limit", limit)
            .flag("size", self.size)
            .filters(&self.list.filter)?;
        let containers = client.get(target).await?;
        let now = Timestamp::now();
        let rows = containers
            .as_array()
            .into_iter()
            .flatten()
            .map(|container| {
                let id = text(container, "/Id");
                let command = text(container, "/Command");
                let image = match text(container, "/Image") {
                    "" => "<no image>".to_owned(),
                    image if self.no_trunc => image.to_owned(),
                    image if image.starts_with("sha256:") => short_id(image).to_owned(),
                    image => image.to_owned(),
                };
                let created = Timestamp(number(container, "/Created") * 1_000_000_000);
                row! {
                    "ID" => if self.no_trunc { id } else { short_id(id) },
                    "Image" => image,
                    "Command" => if self.no_trunc { format!("\"{command}\"") } else { format!("\"{}\"", ellipsis(command, COMMAND_WIDTH)) },
                    "RunningFor" => ago(now, created),
                    "CreatedAt" => zoned(created),
                    "Status" => text(container, "/Status"),
                    "State" => text(container, "/State"),
                    "Ports" => ports(container),
                    "Names" => names(container, self.no_trunc),
                    "Labels" => labels(container, "/Labels"),
                    "Networks" => pairs(container, "/NetworkSettings/Networks").map(|(name, _)| name).collect::<Vec<_>>().join(","),
                    "Mounts" => mounts(container),
                    "LocalVolumes" => items(container, "/Mounts").iter().filter(|m| text(m, "/Driver") == "local").count().to_string(),
                    "Size" => sizes(container),
                    "Platform" => Value::Null,
                }
            })
            .collect();
        let size = if self.size {
            column("Size", "SIZE")
        } else {
            hidden("Size", "SIZE")
        };
        let columns = [
            column("ID", "CONTAINER ID"),
            column("Image", "IMAGE"),
            column("Command", "COMMAND"),
            column("RunningFor", "CREATED"),
            column("Status", "STATUS"),
            column("Ports", "PORTS"),
            column("Names", "NAMES"),
            size,
            hidden("CreatedAt", "CREATED AT"),
            hidden("State", "STATE"),
            hidden("Labels", "LABELS"),
            hidden("Networks", "NETWORKS"),
            hidden("Mounts", "MOUNTS"),
            hidden("LocalVolumes", "LOCAL VOLUMES"),
        ];
        self.list.format.print(&columns, "ID", rows)
    }
}

/// A time as Go prints it by itself.
pub(crate) fn zoned(time: Timestamp) -> String {
    let text = Timestamp(time.seconds() * 1_000_000_000).to_string();
    text.replace('T', " ").replace('Z', " +0000 UTC")
}

fn sizes(container: &Value) -> String {
    let own = size(number(container, "/SizeRw").unsigned_abs());
    match number(container, "/SizeRootFs").unsigned_abs() {
        0 => own,
        whole => format!("{own} (virtual {})", size(whole)),
    }
}

fn names(container: &Value, all: bool) -> String {
    let names = texts(container, "/Names");
    // A link's name has a slash in it; the container's own has none.
    let names: Vec<&str> = names
        .iter()
        .map(|name| name.trim_start_matches('/'))
        .filter(|name| all || !name.contains('/'))
        .collect();
    names.join(",")
}

fn mounts(container: &Value) -> String {
    let all: Vec<String> = items(container, "/Mounts")
        .iter()
        .map(|mount| match text(mount, "/Name") {
            "" => ellipsis(text(mount, "/Source"), 15),
            name => ellipsis(name, 15),
        })
        .collect();
    all.join(",")
}

/// Ports as docker's `DisplayablePorts`: neighbours of one group as ranges, then those with another number outside.
fn ports(container: &Value) -> String {
    let mut all: Vec<(String, i64, i64, String)> = items(container, "/Ports")
        .iter()
        .map(|port| {
            (
                text(port, "/Type").to_owned(),
                number(port, "/PrivatePort"),
                number(port, "/PublicPort"),
                text(port, "/IP").to_owned(),
            )
        })
        .collect();
    all.sort_by(|a, b| (a.1, &a.3, a.2, &a.0).cmp(&(b.1, &b.3, b.2, &b.0)));
    let mut done = Vec::new();
    let mut mapped = Vec::new();
    let mut groups: Vec<(String, String, i64, i64)> = Vec::new();
    for (protocol, private, public, ip) in all {
        let ip = if ip.contains(':') {
            format!("[{ip}]")
        } else {
            ip
        };
        if !ip.is_empty() && public != private {
            mapped.push(format!("{ip}:{public}->{private}/{protocol}"));
            continue;
        }
        let group = groups
            .iter_mut()
            .find(|(group_ip, group_protocol, ..)| *group_ip == ip && *group_protocol == protocol);
        match group {
            None => groups.push((ip, protocol, private, private)),
            Some((.., last)) if private == *last + 1 => *last = private,
            Some(group) => {
                done.push(shown(group));
                (group.2, group.3) = (private, private);
            }
        }
    }
    done.extend(groups.iter().map(shown));
    done.extend(mapped);
    done.join(", ")
}

fn shown((ip, protocol, first, last): &(String, String, i64, i64)) -> String {
    let range = if first == last {
        first.to_string()
    } else {
        format!("{first}-{last}")
    };
    if ip.is_empty() {
        format!("{range}/{protocol}")
    } else {
        format!("{ip}:{range}->{range}/{protocol}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn neighbouring_ports_are_one_range() {
        let port = |ip: &str, private: u16, public: u16| json!({"IP": ip, "PrivatePort": private, "PublicPort": public, "Type": "tcp"});
        let container = json!({"Ports": [
            port("0.0.0.0", 9000, 9000), port("0.0.0.0", 9001, 9001), port("::", 80, 8080), port("", 443, 0), port("", 444, 0),
        ]});
        assert_eq!(
            ports(&container),
            "443-444/tcp, 0.0.0.0:9000-9001->9000-9001/tcp, [::]:8080->80/tcp"
        );
    }

    #[test]
    fn moments_are_seconds() {
        let now = Timestamp(1_000_000_000_000);
        assert_eq!(moment("1m", now), "940.000000000");
        assert_eq!(moment("1970-01-01T00:00:01.5Z", now), "1.500000000");
        assert_eq!(moment("12345", now), "12345");
    }
}
