//! `shoal service`: everything but the two big sets of flags, which have their own files.

use anyhow::{Result, anyhow, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use shoal_api::Timestamp;

use super::{
    ListArgs, image, service_exec, service_flags, service_logs, service_more, service_pretty,
    service_update, task,
};
use crate::{
    client::{Client, Target, is_not_found},
    image_ref,
    json::{items, number, text, texts},
    output::{self, ListFormat, Row, column, hidden, row},
    progress::service::converge,
};

/// Manage services
#[derive(Subcommand)]
pub(crate) enum Command {
    Create(Box<service_flags::Create>),
    Exec(service_exec::Exec),
    Explain(service_more::Explain),
    History(service_more::History),
    Inspect(Inspect),
    Logs(service_logs::Logs),
    /// List services
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    Ps(Ps),
    #[command(visible_alias = "remove")]
    Rm(Remove),
    Rollback(Rollback),
    Scale(Scale),
    Update(Box<service_update::Update>),
}

/// Display detailed information on one or more services
#[derive(Args)]
pub(crate) struct Inspect {
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
    /// Format output using a custom template
    #[arg(short, long, value_name = "string")]
    format: Option<String>,
    /// Print the information in a human friendly format
    #[arg(long)]
    pretty: bool,
}

/// List the tasks of one or more services
#[derive(Args)]
pub(crate) struct Ps {
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
    #[command(flatten)]
    list: ListArgs,
    #[command(flatten)]
    shape: task::Shape,
}

/// Remove one or more services
#[derive(Args)]
pub(crate) struct Remove {
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

/// Revert changes to a service's configuration
#[derive(Args)]
pub(crate) struct Rollback {
    service: String,
    /// Go back to this revision (see 'shoal service history') instead of the one before
    #[arg(long, value_name = "REVISION")]
    to: Option<u64>,
    #[command(flatten)]
    wait: Wait,
}

/// Scale one or multiple replicated services
#[derive(Args)]
#[command(after_help = "Example:\n  shoal service scale web=6 worker=2")]
pub(crate) struct Scale {
    #[arg(required = true, value_name = "SERVICE=REPLICAS")]
    scales: Vec<String>,
    /// Exit immediately instead of waiting for the service to converge
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_default_value = true, value_name = "bool")]
    detach: bool,
}

/// Whether to wait for a service, and how loudly.
#[derive(Args, Clone, Copy)]
pub(crate) struct Wait {
    /// Exit immediately instead of waiting for the service to converge
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_default_value = true, value_name = "bool")]
    pub(crate) detach: bool,
    /// Suppress progress output
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

impl Wait {
    /// Waits for the service unless told not to.
    pub(crate) async fn done(self, id: &str, client: &Client) -> Result<()> {
        if self.detach {
            return Ok(());
        }
        converge(id, self.quiet, client).await
    }
}

impl Command {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        match self {
            Self::Create(args) => args.run(client).await,
            Self::Exec(args) => args.run(client).await,
            Self::Explain(args) => args.run(client).await,
            Self::History(args) => args.run(client).await,
            Self::Inspect(args) => inspect(args, client).await,
            Self::Logs(args) => args.run(client).await,
            Self::Ls(args) => {
                let services = fetch(&args.filter, client).await?;
                list(services, &args.format)
            }
            Self::Ps(args) => ps(args, client).await,
            Self::Rm(args) => {
                output::each(&args.services, async |name: String| {
                    client.delete(Target::new("/services/{}", &[&name])).await?;
                    Ok(Some(name))
                })
                .await
            }
            Self::Rollback(args) => {
                let service = client
                    .get(Target::new("/services/{}", &[&args.service]))
                    .await?;
                match args.to {
                    None => {
                        update(&service, service["Spec"].clone(), true, None, client).await?;
                    }
                    Some(to) => {
                        let id = text(&service, "/ID");
                        let target = Target::new("/shoal/services/{}/rollback", &[id])
                            .arg("version", number(&service, "/Version/Index"))
                            .arg("to", to);
                        client.post(target, Value::Null).await?;
                    }
                }
                output::line(&args.service);
                args.wait.done(text(&service, "/ID"), client).await
            }
            Self::Scale(args) => scale(args, client).await,
            Self::Update(args) => args.run(client).await,
        }
    }
}

/// Asks for the services that pass the filters, by name.
pub(crate) async fn fetch(filters: &[String], client: &Client) -> Result<Vec<Value>> {
    let target = Target::new("/services", &[])
        .arg("status", true)
        .filters(filters)?;
    let services = client.get(target).await?;
    let mut services = services.as_array().cloned().unwrap_or_default();
    services.sort_by(|a, b| text(a, "/Spec/Name").cmp(text(b, "/Spec/Name")));
    Ok(services)
}

/// Prints services as a table or otherwise.
pub(crate) fn list(services: Vec<Value>, format: &ListFormat) -> Result<()> {
    let columns = [
        column("ID", "ID"),
        column("Name", "NAME"),
        column("Mode", "MODE"),
        column("Replicas", "REPLICAS"),
        column("Image", "IMAGE"),
        column("Ports", "PORTS"),
        hidden("Labels", "LABELS"),
    ];
    let rows = services.iter().map(list_row).collect();
    format.print(&columns, "ID", rows)
}

fn list_row(service: &Value) -> Row {
    let id = text(service, "/ID");
    row! {
        "ID" => crate::human::short_id(id),
        "Name" => text(service, "/Spec/Name"),
        "Mode" => mode(service),
        "Replicas" => replicas(service),
        "Image" => image_ref::familiar(text(service, "/Spec/TaskTemplate/ContainerSpec/Image")),
        "Ports" => ports(items(service, "/Endpoint/Ports")),
        "Labels" => crate::json::labels(service, "/Spec/Labels"),
    }
}

/// `replicated`, `global`, `replicated job` or `global job`.
pub(crate) fn mode(service: &Value) -> &'static str {
    let has = |name: &str| {
        service
            .pointer(&format!("/Spec/Mode/{name}"))
            .is_some_and(|mode| !mode.is_null())
    };
    match () {
        () if has("Global") => "global",
        () if has("ReplicatedJob") => "replicated job",
        () if has("GlobalJob") => "global job",
        () => "replicated",
    }
}

fn replicas(service: &Value) -> String {
    let running = number(service, "/ServiceStatus/RunningTasks");
    let desired = number(service, "/ServiceStatus/DesiredTasks");
    let completed = number(service, "/ServiceStatus/CompletedTasks");
    let mut out = format!("{running}/{desired}");
    match mode(service) {
        "replicated job" => {
            let total = number(service, "/Spec/Mode/ReplicatedJob/TotalCompletions");
            out.push_str(&format!(" ({completed}/{total} completed)"));
        }
        "global job" => out.push_str(&format!(" ({completed}/{} completed)", desired + completed)),
        _ => match number(service, "/Spec/TaskTemplate/Placement/MaxReplicas") {
            0 => {}
            max => out.push_str(&format!(" (max {max} per node)")),
        },
    }
    out
}

/// Ports of the ingress mesh, neighbours as ranges: `*:8080->80/tcp`.
fn ports(ports: &[Value]) -> String {
    let mut all: Vec<(String, i64, i64)> = ports
        .iter()
        .filter(|port| text(port, "/PublishMode") != "host")
        .map(|port| {
            (
                text(port, "/Protocol").to_owned(),
                number(port, "/PublishedPort"),
                number(port, "/TargetPort"),
            )
        })
        .collect();
    all.sort();
    let mut groups: Vec<(String, i64, i64, i64, i64)> = Vec::new();
    for (protocol, published, target) in all {
        match groups.last_mut() {
            Some((group, _, last, _, last_target))
                if *group == protocol && published == *last + 1 && target == *last_target + 1 =>
            {
                *last = published;
                *last_target = target;
            }
            _ => groups.push((protocol, published, published, target, target)),
        }
    }
    let range = |from: i64, to: i64| {
        if from == to {
            from.to_string()
        } else {
            format!("{from}-{to}")
        }
    };
    let shown: Vec<String> = groups
        .into_iter()
        .map(|(protocol, from, to, first, last)| {
            format!("*:{}->{}/{protocol}", range(from, to), range(first, last))
        })
        .collect();
    shown.join(", ")
}

async fn inspect(args: Inspect, client: &Client) -> Result<()> {
    if args.pretty {
        for name in &args.services {
            let target = Target::new("/services/{}", &[name]).arg("insertDefaults", true);
            let service = client.get(target).await?;
            let networks = service_pretty::networks(&service, client).await;
            let shown = service_pretty::pretty(&service, &networks, Timestamp::now());
            output::write(shown.as_bytes());
        }
        return Ok(());
    }
    output::inspect_each(
        args.format.as_deref(),
        &args.services,
        async |name: String| {
            let target = Target::new("/services/{}", &[&name]).arg("insertDefaults", true);
            client.get(target).await
        },
    )
    .await
}

async fn ps(args: Ps, client: &Client) -> Result<()> {
    let mut filters = args.list.filter.clone();
    let mut errors = Vec::new();
    let mut found = false;
    for name in &args.services {
        match client.get(Target::new("/services/{}", &[name])).await {
            Ok(service) => {
                filters.push(format!("service={}", text(&service, "/ID")));
                found = true;
            }
            Err(error) if is_not_found(&error) => errors.push(format!("no such service: {name}")),
            Err(error) => return Err(error),
        }
    }
    if found {
        task::print(&filters, &args.list.format, &args.shape, client).await?;
    }
    output::fail_with(errors)
}

/// Writes a service's spec; prints the daemon's warnings.
pub(crate) async fn update(
    service: &Value,
    spec: Value,
    rollback: bool,
    auth: Option<String>,
    client: &Client,
) -> Result<()> {
    let target = Target::new("/services/{}/update", &[text(service, "/ID")])
        .arg("version", number(service, "/Version/Index"))
        .maybe("rollback", rollback.then_some("previous"))
        .registry_auth(auth);
    let answer = client.post(target, spec).await?;
    for warning in texts(&answer, "/Warnings") {
        output::note(warning);
    }
    Ok(())
}

async fn scale(args: Scale, client: &Client) -> Result<()> {
    let mut wanted = Vec::new();
    for text in &args.scales {
        let Some((name, count)) = text.split_once('=') else {
            bail!("invalid scale specifier '{text}'. Use service=replicas");
        };
        let count: u64 = count
            .parse()
            .map_err(|_| anyhow!("invalid replicas value {count}: expected a number"))?;
        wanted.push((name, count));
    }
    let mut errors = Vec::new();
    let mut scaled = Vec::new();
    for (name, count) in wanted {
        match scale_one(name, count, client).await {
            Ok(id) => {
                output::line(format!("{name} scaled to {count}"));
                scaled.push(id);
            }
            Err(error) => errors.push(format!("{name}: {error:#}")),
        }
    }
    if !args.detach {
        for id in scaled {
            converge(&id, false, client).await?;
        }
    }
    output::fail_with(errors)
}

async fn scale_one(name: &str, count: u64, client: &Client) -> Result<String> {
    let service = client.get(Target::new("/services/{}", &[name])).await?;
    let mut spec = service["Spec"].clone();
    match mode(&service) {
        "replicated" => spec["Mode"]["Replicated"]["Replicas"] = count.into(),
        "replicated job" => spec["Mode"]["ReplicatedJob"]["TotalCompletions"] = count.into(),
        other => {
            bail!("scale can only be used with replicated or replicated-job mode, not with {other}")
        }
    }
    update(&service, spec, false, None, client).await?;
    Ok(text(&service, "/ID").to_owned())
}

/// Pins a service's image to the digest and platforms that its registry tells.
///
/// Returns a warning where it cannot: as docker, a service may start with an image that only its nodes can reach.
///
/// # Errors
/// The registry was asked and has no such image, and neither has this host.
pub(crate) async fn pin_image(spec: &mut Value, client: &Client) -> Result<Option<String>> {
    let template = &mut spec["TaskTemplate"];
    let image = text(template, "/ContainerSpec/Image").to_owned();
    if image.is_empty() || image_ref::split(&image).2.is_some() {
        return Ok(None);
    }
    let target =
        Target::new("/distribution/{}/json", &[&image]).registry_auth(image::registry_auth(&image));
    let found = match client.get(target).await {
        Ok(found) => found,
        Err(error) if is_not_found(&error) && !is_here(&image, client).await => {
            return Err(error.context(format!("image {image} does not exist")));
        }
        Err(_) => {
            return Ok(Some(format!(
                "image {image} could not be accessed on a registry to record\nits digest. Each node will access {image} independently,\npossibly leading to different nodes running different\nversions of the image.\n"
            )));
        }
    };
    let digest = text(&found, "/Descriptor/digest");
    if !digest.is_empty() {
        let pinned = format!("{}@{digest}", image_ref::with_default_tag(&image));
        template["ContainerSpec"]["Image"] = pinned.into();
    }
    let platforms: Vec<Value> = items(&found, "/Platforms")
        .iter()
        .map(|platform| json!({"Architecture": text(platform, "/architecture"), "OS": text(platform, "/os")}))
        .collect();
    if !platforms.is_empty() {
        template["Placement"]["Platforms"] = platforms.into();
    }
    Ok(None)
}

/// Whether the host that is asked has an image.
async fn is_here(image: &str, client: &Client) -> bool {
    let target = Target::new("/images/{}/json", &[image]);
    client.get(target).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_tells_what_runs() {
        let service = json!({
            "ID": "abcdefghijklmnop",
            "Spec": {"Name": "web", "Mode": {"Replicated": {"Replicas": 3}},
                "TaskTemplate": {"ContainerSpec": {"Image": "nginx:1@sha256:00"}, "Placement": {"MaxReplicas": 1}}},
            "Endpoint": {"Ports": [
                {"Protocol": "tcp", "PublishedPort": 8081, "TargetPort": 81, "PublishMode": "ingress"},
                {"Protocol": "tcp", "PublishedPort": 8080, "TargetPort": 80, "PublishMode": "ingress"},
                {"Protocol": "udp", "PublishedPort": 53, "TargetPort": 53, "PublishMode": "host"}]},
            "ServiceStatus": {"RunningTasks": 2, "DesiredTasks": 3},
        });
        assert_eq!(
            Value::Object(list_row(&service)),
            json!({"ID": "abcdefghijkl", "Name": "web", "Mode": "replicated", "Replicas": "2/3 (max 1 per node)",
                "Image": "nginx:1", "Ports": "*:8080-8081->80-81/tcp", "Labels": ""})
        );
    }
}
