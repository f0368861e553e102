//! `shoal version`, `shoal info`, and the group `system`.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use shoal_api::Timestamp;

use super::{disk_usage, prune};
use crate::{
    client::{self, Client, Target, values},
    human::binary_size,
    json::{is, items, number, text, texts},
    output, template,
};

/// Manage the engine
#[derive(Subcommand)]
pub(crate) enum Command {
    Df(disk_usage::Args),
    #[command(hide = true)]
    DialStdio(DialStdio),
    Events(Events),
    Info(Info),
    Prune(prune::System),
}

/// Proxy the stdio stream to the daemon connection
#[derive(Args)]
pub(crate) struct DialStdio;

/// Get real time events from the server
#[derive(Args)]
#[command(
    after_help = "Examples:\n  shoal events --since 10m --filter type=container --filter event=die\n  shoal events --since 1h --until 0s --format '{{.Action}} {{.Actor.ID}}'"
)]
pub(crate) struct Events {
    /// Filter output based on conditions provided
    #[arg(short, long, value_name = "key=value", value_parser = super::filter)]
    filter: Vec<String>,
    /// Show all events created since timestamp
    #[arg(long, value_name = "string")]
    since: Option<String>,
    /// Stream events until this timestamp
    #[arg(long, value_name = "string")]
    until: Option<String>,
    /// Format output using a custom template
    #[arg(long, value_name = "string")]
    format: Option<String>,
}

/// Show the version information
#[derive(Args)]
#[command(after_help = "Example:\n  shoal version --format '{{.Server.Version}}'")]
pub(crate) struct Version {
    /// Format output using a custom template
    #[arg(short, long, value_name = "string")]
    format: Option<String>,
}

/// Display system-wide information
#[derive(Args)]
#[command(after_help = "Example:\n  shoal info --format '{{.Swarm.LocalNodeState}}'")]
pub(crate) struct Info {
    /// Format output using a custom template
    #[arg(short, long, value_name = "string")]
    format: Option<String>,
}

impl Command {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        match self {
            Self::Df(args) => args.run(client).await,
            Self::DialStdio(DialStdio) => {
                client.relay(tokio::io::stdin(), tokio::io::stdout()).await
            }
            Self::Events(args) => args.run(client).await,
            Self::Info(args) => args.run(client).await,
            Self::Prune(args) => args.run(client).await,
        }
    }
}

impl Events {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        use futures_util::StreamExt as _;
        let now = Timestamp::now();
        let moment = |text: Option<&str>, now| text.map(|text| super::container::moment(text, now));
        let target = Target::new("/events", &[])
            .maybe("since", moment(self.since.as_deref(), now))
            .maybe("until", moment(self.until.as_deref(), now))
            .filters(&self.filter)?;
        let template = match self.format.as_deref() {
            Some("json") | None => None,
            Some(format) => Some(template::compile(format)?),
        };
        let response = client
            .send(hyper::Method::GET, target, client::Payload::Empty)
            .await?;
        let mut events = values(response);
        while let Some(event) = events.next().await {
            let event = event?;
            match (&template, &self.format) {
                (Some(template), _) => output::line(template.render(&event)?),
                (None, Some(_)) => output::line(event),
                (None, None) => output::line(shown(&event)),
            }
        }
        Ok(())
    }
}

fn shown(event: &Value) -> String {
    let nanos = number(event, "/timeNano");
    let attributes: Vec<String> = crate::json::pairs(event, "/Actor/Attributes")
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    format!(
        "{} {} {} {} ({})",
        Timestamp(nanos),
        text(event, "/Type"),
        text(event, "/Action"),
        text(event, "/Actor/ID"),
        attributes.join(", ")
    )
}

impl Version {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let own = json!({
            "Version": env!("CARGO_PKG_VERSION"),
            "ApiVersion": client::api_version(),
            "DefaultAPIVersion": client::API,
            "Os": std::env::consts::OS,
            "Arch": architecture(),
        });
        let server = client.get(Target::new("/version", &[])).await;
        let known = server.as_ref().unwrap_or(&Value::Null).clone();
        match self.format.as_deref() {
            None => {
                let mut out = String::from("Client:\n");
                for (name, field) in [("Version", "/Version"), ("API version", "/ApiVersion")] {
                    out.push_str(&format!(
                        " {:<18}{}\n",
                        format!("{name}:"),
                        text(&own, field)
                    ));
                }
                let arch = format!("{}/{}", text(&own, "/Os"), text(&own, "/Arch"));
                out.push_str(&format!(" {:<18}{arch}\n", "OS/Arch:"));
                if !known.is_null() {
                    out.push_str("\nServer:\n Engine:\n");
                    let minimum = text(&known, "/MinAPIVersion");
                    for (name, value) in [
                        ("Version", text(&known, "/Version").to_owned()),
                        (
                            "API version",
                            format!(
                                "{} (minimum version {minimum})",
                                text(&known, "/ApiVersion")
                            ),
                        ),
                        ("Kernel version", text(&known, "/KernelVersion").to_owned()),
                        (
                            "OS/Arch",
                            format!("{}/{}", text(&known, "/Os"), text(&known, "/Arch")),
                        ),
                    ] {
                        out.push_str(&format!("  {:<17}{value}\n", format!("{name}:")));
                    }
                }
                output::write(out.as_bytes());
            }
            Some(format) => {
                let both = json!({"Client": own, "Server": known});
                if format == "json" {
                    output::line(both);
                } else {
                    output::line(template::compile(format)?.render(&gos(both))?);
                }
            }
        }
        server.map(|_| ())
    }
}

/// The same with the names that these fields have in Go, which templates of docker's use.
fn gos(mut both: Value) -> Value {
    for side in ["Client", "Server"] {
        let Some(fields) = both[side].as_object_mut() else {
            continue;
        };
        if let Some(version) = fields.get("ApiVersion").cloned() {
            fields.insert("APIVersion".to_owned(), version);
        }
    }
    both
}

/// Go's name of the processor.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Info {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let info = client.get(Target::new("/info", &[])).await?;
        match self.format.as_deref() {
            Some("json") => output::line(&info),
            Some(format) => output::line(template::compile(format)?.render(&info)?),
            None => output::write(summary(&info).as_bytes()),
        }
        for warning in texts(&info, "/Warnings") {
            output::note(warning);
        }
        Ok(())
    }
}

fn summary(info: &Value) -> String {
    let mut out = format!(
        "Client:\n Version:    {}\n\nServer:\n",
        env!("CARGO_PKG_VERSION")
    );
    let mut say = |indent: usize, name: &str, value: String| {
        if !value.is_empty() {
            out.push_str(&format!("{}{name}: {value}\n", " ".repeat(indent)));
        }
    };
    let field = |pointer: &str| text(info, pointer).to_owned();
    let count = |pointer: &str| number(info, pointer).to_string();
    say(1, "Containers", count("/Containers"));
    say(2, "Running", count("/ContainersRunning"));
    say(2, "Paused", count("/ContainersPaused"));
    say(2, "Stopped", count("/ContainersStopped"));
    say(1, "Images", count("/Images"));
    say(1, "Server Version", field("/ServerVersion"));
    say(1, "Storage Driver", field("/Driver"));
    // What the engine says of itself beyond docker's own fields, by name.
    for pair in items(info, "/DriverStatus") {
        say(2, text(pair, "/0"), text(pair, "/1").to_owned());
    }
    say(1, "Logging Driver", field("/LoggingDriver"));
    say(1, "Cgroup Driver", field("/CgroupDriver"));
    say(1, "Cgroup Version", field("/CgroupVersion"));
    say(1, "Swarm", field("/Swarm/LocalNodeState"));
    if text(info, "/Swarm/LocalNodeState") != "inactive" {
        say(2, "NodeID", field("/Swarm/NodeID"));
        say(2, "Error", field("/Swarm/Error"));
        let control = is(info, "/Swarm/ControlAvailable");
        say(2, "Is Manager", control.to_string());
        if control {
            say(2, "ClusterID", field("/Swarm/Cluster/ID"));
            say(2, "Managers", count("/Swarm/Managers"));
            say(2, "Nodes", count("/Swarm/Nodes"));
            let pools = texts(info, "/Swarm/Cluster/DefaultAddrPool");
            say(2, "Default Address Pool", pools.join("  "));
            say(2, "Data Path Port", count("/Swarm/Cluster/DataPathPort"));
        }
        say(2, "Node Address", field("/Swarm/NodeAddr"));
        let managers: Vec<String> = items(info, "/Swarm/RemoteManagers")
            .iter()
            .map(|manager| text(manager, "/Addr").to_owned())
            .collect();
        say(2, "Manager Addresses", managers.join(" "));
    }
    say(
        1,
        "Runtimes",
        crate::json::pairs(info, "/Runtimes")
            .map(|(name, _)| name)
            .collect::<Vec<_>>()
            .join(" "),
    );
    say(
        1,
        "Security Options",
        texts(info, "/SecurityOptions").join(" "),
    );
    say(1, "Kernel Version", field("/KernelVersion"));
    say(1, "Operating System", field("/OperatingSystem"));
    say(1, "OSType", field("/OSType"));
    say(1, "Architecture", field("/Architecture"));
    say(1, "CPUs", count("/NCPU"));
    say(
        1,
        "Total Memory",
        binary_size(number(info, "/MemTotal").unsigned_abs()),
    );
    say(1, "Name", field("/Name"));
    say(1, "ID", field("/ID"));
    say(1, "Root Dir", field("/DockerRootDir"));
    say(1, "Debug Mode", is(info, "/Debug").to_string());
    out
}
