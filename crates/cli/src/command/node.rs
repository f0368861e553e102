//! `shoal node`: the members of the cluster.

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::Value;

use super::{ListArgs, task};
use crate::{
    client::{Client, Target},
    flags::pair,
    json::{is, labels, number, pairs, text},
    output::{self, Row, column, hidden, row},
};

/// Manage nodes
#[derive(Subcommand)]
pub(crate) enum Command {
    Demote(Names),
    Inspect(Inspect),
    /// List nodes in the swarm
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    Promote(Names),
    Ps(Ps),
    #[command(visible_alias = "remove")]
    Rm(Remove),
    Update(Update),
}

/// Change the role of one or more nodes
#[derive(Args)]
pub(crate) struct Names {
    /// Hostnames or ids
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

/// Display detailed information on one or more nodes
#[derive(Args)]
pub(crate) struct Inspect {
    /// Hostnames or ids; `self` is the node that is asked
    #[arg(value_name = "self|NODE", required = true)]
    nodes: Vec<String>,
    /// Format output using a custom template
    #[arg(short, long, value_name = "string")]
    format: Option<String>,
    /// Print the information in a human friendly format
    #[arg(long)]
    pretty: bool,
}

/// List tasks running on one or more nodes, defaults to current node
#[derive(Args)]
pub(crate) struct Ps {
    /// Hostnames or ids
    #[arg(value_name = "NODE", default_value = "self")]
    nodes: Vec<String>,
    #[command(flatten)]
    list: ListArgs,
    #[command(flatten)]
    shape: task::Shape,
}

/// Remove one or more nodes from the swarm
#[derive(Args)]
pub(crate) struct Remove {
    /// Hostnames or ids
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
    /// Force remove a node from the swarm
    #[arg(short, long)]
    force: bool,
}

/// Update a node
#[derive(Args)]
#[command(
    after_help = "Examples:\n  shoal node update --availability drain n2\n  shoal node update --label-add zone=a n2"
)]
pub(crate) struct Update {
    /// Hostname or id
    node: String,
    /// Availability of the node ("active", "pause", "drain")
    #[arg(long, value_name = "string", value_parser = ["active", "pause", "drain"])]
    availability: Option<String>,
    /// Role of the node ("worker", "manager")
    #[arg(long, value_name = "string", value_parser = ["worker", "manager"])]
    role: Option<String>,
    /// Add or update a node label ("key=value")
    #[arg(long, value_name = "list")]
    label_add: Vec<String>,
    /// Remove a node label if exists
    #[arg(long, value_name = "list")]
    label_rm: Vec<String>,
}

impl Command {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        match self {
            Self::Ls(args) => list(args, client).await,
            Self::Inspect(args) => inspect(args, client).await,
            Self::Promote(args) => set_role(args, "manager", client).await,
            Self::Demote(args) => set_role(args, "worker", client).await,
            Self::Ps(args) => ps(args, client).await,
            Self::Rm(args) => {
                output::each(&args.nodes, async |node: String| {
                    let target = Target::new("/nodes/{}", &[&node]).flag("force", args.force);
                    client.delete(target).await?;
                    Ok(Some(node))
                })
                .await
            }
            Self::Update(args) => update(args, client).await,
        }
    }
}

/// The id that a node's name stands for; `self` is the node that is asked.
pub(crate) async fn resolve(reference: &str, client: &Client) -> Result<String> {
    if reference != "self" {
        return Ok(reference.to_owned());
    }
    let info = client.get(Target::new("/info", &[])).await?;
    match text(&info, "/Swarm/NodeID") {
        // The answer of a manager says what is missing.
        "" => {
            client.get(Target::new("/nodes", &[])).await?;
            bail!("this node is not part of a swarm")
        }
        id => Ok(id.to_owned()),
    }
}

async fn list(args: ListArgs, client: &Client) -> Result<()> {
    let target = Target::new("/nodes", &[]).filters(&args.filter)?;
    let nodes = client.get(target).await?;
    let info = client.get(Target::new("/info", &[])).await?;
    let me = text(&info, "/Swarm/NodeID");
    let mut nodes = nodes.as_array().cloned().unwrap_or_default();
    nodes.sort_by(|a, b| text(a, "/Description/Hostname").cmp(text(b, "/Description/Hostname")));
    let rows: Vec<Row> = nodes
        .iter()
        .map(|node| {
            let id = text(node, "/ID");
            let own = id == me;
            let shown = match (own, args.format.quiet || args.format.format.is_some()) {
                (_, true) => id.to_owned(),
                (true, false) => format!("{id} *"),
                (false, false) => format!("{id}  "),
            };
            row! {
                "ID" => shown,
                "Hostname" => text(node, "/Description/Hostname"),
                "Status" => title(text(node, "/Status/State")),
                "Availability" => title(text(node, "/Spec/Availability")),
                "ManagerStatus" => manager_status(node),
                "EngineVersion" => text(node, "/Description/Engine/EngineVersion"),
                "TLSStatus" => "Ready",
                "Self" => own,
            }
        })
        .collect();
    let columns = [
        column("ID", "ID"),
        column("Hostname", "HOSTNAME"),
        column("Status", "STATUS"),
        column("Availability", "AVAILABILITY"),
        column("ManagerStatus", "MANAGER STATUS"),
        column("EngineVersion", "ENGINE VERSION"),
        hidden("TLSStatus", "TLS STATUS"),
        hidden("Self", "SELF"),
    ];
    args.format.print(&columns, "ID", rows)
}

fn manager_status(node: &Value) -> String {
    if is(node, "/ManagerStatus/Leader") {
        "Leader".to_owned()
    } else {
        title(text(node, "/ManagerStatus/Reachability"))
    }
}

fn title(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    first.chain(chars).collect()
}

async fn inspect(args: Inspect, client: &Client) -> Result<()> {
    let mut nodes = Vec::new();
    for node in &args.nodes {
        nodes.push(resolve(node, client).await?);
    }
    if args.pretty {
        for node in &nodes {
            let node = client.get(Target::new("/nodes/{}", &[node])).await?;
            output::write(pretty(&node).as_bytes());
        }
        return Ok(());
    }
    output::inspect_each(args.format.as_deref(), &nodes, async |node: String| {
        client.get(Target::new("/nodes/{}", &[&node])).await
    })
    .await
}

fn pretty(node: &Value) -> String {
    let mut out = String::new();
    let mut say = |indent: &str, name: &str, value: String| {
        let colon = if name.is_empty() { "" } else { ":\t" };
        out.push_str(format!("{indent}{name}{colon}{value}").trim_end());
        out.push('\n');
    };
    say("", "ID", text(node, "/ID").to_owned());
    if pairs(node, "/Spec/Labels").next().is_some() {
        say("", "Labels", String::new());
        for (key, value) in pairs(node, "/Spec/Labels") {
            let value = value.as_str().unwrap_or_default();
            say(" - ", "", format!("{key}={value}"));
        }
    }
    say(
        "",
        "Hostname",
        text(node, "/Description/Hostname").to_owned(),
    );
    say("", "Joined at", text(node, "/CreatedAt").to_owned());
    say("", "Status", String::new());
    say(" ", "State", title(text(node, "/Status/State")));
    if !text(node, "/Status/Message").is_empty() {
        say(" ", "Message", text(node, "/Status/Message").to_owned());
    }
    say(" ", "Availability", title(text(node, "/Spec/Availability")));
    say(" ", "Address", text(node, "/Status/Addr").to_owned());
    if node
        .get("ManagerStatus")
        .is_some_and(|status| !status.is_null())
    {
        say("", "Manager Status", String::new());
        say(" ", "Address", text(node, "/ManagerStatus/Addr").to_owned());
        say(
            " ",
            "Raft Status",
            title(text(node, "/ManagerStatus/Reachability")),
        );
        let leader = is(node, "/ManagerStatus/Leader");
        say(" ", "Leader", if leader { "Yes" } else { "No" }.to_owned());
    }
    say("", "Platform", String::new());
    say(
        " ",
        "Operating System",
        text(node, "/Description/Platform/OS").to_owned(),
    );
    say(
        " ",
        "Architecture",
        text(node, "/Description/Platform/Architecture").to_owned(),
    );
    say("", "Resources", String::new());
    let cpus = number(node, "/Description/Resources/NanoCPUs") / 1_000_000_000;
    say(" ", "CPUs", cpus.to_string());
    let memory = number(node, "/Description/Resources/MemoryBytes").unsigned_abs();
    say(" ", "Memory", crate::human::binary_size(memory));
    say(
        "",
        "Engine Version",
        text(node, "/Description/Engine/EngineVersion").to_owned(),
    );
    let engine = labels(node, "/Description/Engine/Labels");
    if !engine.is_empty() {
        say("", "Engine Labels", engine);
    }
    out
}

async fn set_role(args: Names, role: &str, client: &Client) -> Result<()> {
    let (done, already) = match role {
        "manager" => ("promoted to a manager", "is already a manager"),
        _ => ("demoted in the swarm", "is already a worker"),
    };
    output::each(&args.nodes, async |name: String| {
        let mut node = client.get(Target::new("/nodes/{}", &[&name])).await?;
        let mut spec = node["Spec"].take();
        if spec["Role"] == role {
            return Ok(Some(format!("Node {name} {already}.")));
        }
        spec["Role"] = role.into();
        post(&name, &node, spec, client).await?;
        Ok(Some(match role {
            "manager" => format!("Node {name} {done} in the swarm."),
            _ => format!("Manager {name} {done}."),
        }))
    })
    .await
}

async fn update(args: Update, client: &Client) -> Result<()> {
    let mut node = client.get(Target::new("/nodes/{}", &[&args.node])).await?;
    let mut spec = node["Spec"].take();
    if let Some(availability) = args.availability {
        spec["Availability"] = availability.into();
    }
    if let Some(role) = args.role {
        spec["Role"] = role.into();
    }
    for label in &args.label_add {
        let (key, value) = pair(label);
        spec["Labels"][key] = value.into();
    }
    for key in &args.label_rm {
        let removed = spec["Labels"]
            .as_object_mut()
            .and_then(|labels| labels.remove(key));
        if removed.is_none() {
            bail!("key {key} doesn't exist in node's labels");
        }
    }
    post(&args.node, &node, spec, client).await?;
    output::line(args.node);
    Ok(())
}

async fn post(name: &str, node: &Value, spec: Value, client: &Client) -> Result<()> {
    let id = match text(node, "/ID") {
        "" => name,
        id => id,
    };
    let target =
        Target::new("/nodes/{}/update", &[id]).arg("version", number(node, "/Version/Index"));
    client.post(target, spec).await?;
    Ok(())
}

async fn ps(args: Ps, client: &Client) -> Result<()> {
    let mut filters = args.list.filter.clone();
    for node in &args.nodes {
        let id = resolve(node, client).await?;
        let node = client.get(Target::new("/nodes/{}", &[&id])).await?;
        filters.push(format!("node={}", text(&node, "/ID")));
    }
    task::print(&filters, &args.list.format, &args.shape, client).await
}
