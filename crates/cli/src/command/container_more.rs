//! `pause`, `unpause`, `rename`, `port`, `top`, `diff`, `update`, `export` and `commit`.

use anyhow::{Result, bail};
use clap::Args;
use futures_util::StreamExt as _;
use hyper::Method;
use serde_json::{Value, json};

use crate::{
    client::{Client, Payload, Target, chunks},
    flags::quantity,
    image_ref::split,
    json::{items, pairs, text, texts},
    output,
};

/// Pause all processes within one or more containers
#[derive(Args)]
#[command(after_help = "Example:\n  shoal pause web")]
pub(crate) struct Pause {
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Unpause all processes within one or more containers
#[derive(Args)]
#[command(after_help = "Example:\n  shoal unpause web")]
pub(crate) struct Unpause {
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Rename a container
#[derive(Args)]
#[command(after_help = "Example:\n  shoal rename web old-web")]
pub(crate) struct Rename {
    container: String,
    new_name: String,
}

/// List port mappings or a specific mapping for the container
#[derive(Args)]
#[command(after_help = "Examples:\n  shoal port web\n  shoal port web 80/tcp")]
pub(crate) struct Port {
    container: String,
    /// Port inside, for instance 80 or 53/udp
    #[arg(value_name = "PRIVATE_PORT[/PROTO]")]
    port: Option<String>,
}

/// Display the running processes of a container
#[derive(Args)]
#[command(after_help = "Examples:\n  shoal top web\n  shoal top web -eo pid,comm")]
pub(crate) struct Top {
    container: String,
    /// Words for ps
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ps OPTIONS"
    )]
    options: Vec<String>,
}

/// Inspect changes to files or directories on a container's filesystem
#[derive(Args)]
#[command(after_help = "Example:\n  shoal diff web   # C changed, A added, D deleted")]
pub(crate) struct Diff {
    container: String,
}

/// Export a container's filesystem as a tar archive
#[derive(Args)]
#[command(after_help = "Example:\n  shoal export -o web.tar web")]
pub(crate) struct Export {
    container: String,
    /// Write to a file, instead of STDOUT
    #[arg(short, long, value_name = "string")]
    output: Option<String>,
}

/// Create a new image from a container's changes
#[derive(Args)]
#[command(
    after_help = "Example:\n  shoal commit -m 'with my settings' -c 'CMD [\"nginx\"]' web web:mine"
)]
pub(crate) struct Commit {
    container: String,
    #[arg(value_name = "REPOSITORY[:TAG]")]
    reference: Option<String>,
    /// Author (e.g., "John Hannibal Smith <hannibal@a-team.com>")
    #[arg(
        short,
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    author: String,
    /// Apply Dockerfile instruction to the created image
    #[arg(short, long, value_name = "list")]
    change: Vec<String>,
    /// Commit message
    #[arg(
        short,
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    message: String,
    /// Pause container during commit
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", value_name = "bool")]
    pause: bool,
}

/// Update configuration of one or more containers
#[derive(Args)]
#[command(after_help = "Example:\n  shoal update --memory 512m --restart unless-stopped web")]
pub(crate) struct Update {
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
    /// Block IO (relative weight), between 10 and 1000, or 0 to disable
    #[arg(long, value_name = "uint16")]
    blkio_weight: Option<u16>,
    /// Limit CPU CFS (Completely Fair Scheduler) period
    #[arg(long, value_name = "int")]
    cpu_period: Option<i64>,
    /// Limit CPU CFS (Completely Fair Scheduler) quota
    #[arg(long, value_name = "int", allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// Limit the CPU real-time period in microseconds
    #[arg(long, value_name = "int")]
    cpu_rt_period: Option<i64>,
    /// Limit the CPU real-time runtime in microseconds
    #[arg(long, value_name = "int")]
    cpu_rt_runtime: Option<i64>,
    /// CPU shares (relative weight)
    #[arg(short, long, value_name = "int")]
    cpu_shares: Option<i64>,
    /// Number of CPUs
    #[arg(long, value_name = "decimal", value_parser = quantity::cpus)]
    cpus: Option<i64>,
    /// CPUs in which to allow execution (0-3, 0,1)
    #[arg(long, value_name = "string")]
    cpuset_cpus: Option<String>,
    /// MEMs in which to allow execution (0-3, 0,1)
    #[arg(long, value_name = "string")]
    cpuset_mems: Option<String>,
    /// Memory limit
    #[arg(short, long, value_name = "bytes", value_parser = quantity::bytes)]
    memory: Option<i64>,
    /// Memory soft limit
    #[arg(long, value_name = "bytes", value_parser = quantity::bytes)]
    memory_reservation: Option<i64>,
    /// Swap limit equal to memory plus swap: -1 to enable unlimited swap
    #[arg(long, value_name = "bytes", value_parser = quantity::bytes, allow_negative_numbers = true)]
    memory_swap: Option<i64>,
    /// Tune container pids limit (set -1 for unlimited)
    #[arg(long, value_name = "int", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// Restart policy to apply when a container exits
    #[arg(long, value_name = "string")]
    restart: Option<String>,
}

/// POSTs an action without a body to each of some containers, and prints the names that went well.
async fn act_on(containers: &[String], action: &str, client: &Client) -> Result<()> {
    let path = format!("/containers/{{}}/{action}");
    output::each(containers, async |name: String| {
        client
            .post(Target::new(&path, &[&name]), Payload::Empty)
            .await?;
        Ok(Some(name))
    })
    .await
}

impl Pause {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        act_on(&self.containers, "pause", client).await
    }
}

impl Unpause {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        act_on(&self.containers, "unpause", client).await
    }
}

impl Rename {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let (old, new) = (self.container.trim(), self.new_name.trim());
        if old.is_empty() || new.is_empty() {
            bail!("Error: Neither old nor new names may be empty");
        }
        let target = Target::new("/containers/{}/rename", &[old]).arg("name", new);
        client.post(target, Payload::Empty).await.map(drop)
    }
}

impl Port {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let container = client
            .get(Target::new("/containers/{}/json", &[&self.container]))
            .await?;
        let address = |binding: &Value| {
            let host = text(binding, "/HostIp");
            let host = if host.contains(':') {
                format!("[{host}]")
            } else {
                host.to_owned()
            };
            format!("{host}:{}", text(binding, "/HostPort"))
        };
        if let Some(wanted) = &self.port {
            let said = wanted;
            let wanted = if said.contains('/') {
                said.clone()
            } else {
                format!("{said}/tcp")
            };
            let number = wanted.split('/').next().unwrap_or_default();
            if number.parse::<u16>().is_err() {
                bail!("Error: invalid port ({said}): invalid port number");
            }
            let ports = container.pointer("/NetworkSettings/Ports");
            let bindings = ports
                .and_then(|ports| ports.get(&wanted))
                .and_then(Value::as_array)
                .filter(|bindings| !bindings.is_empty());
            let Some(bindings) = bindings else {
                bail!(
                    "Error: No public port '{said}' published for {}",
                    self.container
                );
            };
            for binding in bindings {
                output::line(address(binding));
            }
            return Ok(());
        }
        let mut lines = Vec::new();
        for (port, bindings) in pairs(&container, "/NetworkSettings/Ports") {
            for binding in bindings.as_array().into_iter().flatten() {
                let number: u16 = port
                    .split('/')
                    .next()
                    .unwrap_or_default()
                    .parse()
                    .unwrap_or(0);
                lines.push((number, format!("{port} -> {}", address(binding))));
            }
        }
        // By number, not as text.
        lines.sort_by_key(|(number, _)| *number);
        for (_, line) in lines {
            output::line(line);
        }
        Ok(())
    }
}

impl Top {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let target = Target::new("/containers/{}/top", &[&self.container]);
        let target = if self.options.is_empty() {
            target
        } else {
            target.arg("ps_args", self.options.join(" "))
        };
        let seen = client.get(target).await?;
        let mut rows = vec![texts(&seen, "/Titles")];
        for process in items(&seen, "/Processes") {
            rows.push(texts(process, ""));
        }
        output::write(output::wide_table(&rows).as_bytes());
        Ok(())
    }
}

impl Diff {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        if self.container.is_empty() {
            bail!("Container name cannot be empty");
        }
        let changes = client
            .get(Target::new("/containers/{}/changes", &[&self.container]))
            .await?;
        for change in changes.as_array().into_iter().flatten() {
            let kind = match crate::json::number(change, "/Kind") {
                0 => "C",
                1 => "A",
                _ => "D",
            };
            output::line(format!("{kind} {}", text(change, "/Path")));
        }
        Ok(())
    }
}

impl Export {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        if self.output.is_none() && output::is_terminal() {
            bail!("cowardly refusing to save to a terminal. Use the -o flag or redirect");
        }
        let target = Target::new("/containers/{}/export", &[&self.container]);
        let answer = client.send(Method::GET, target, Payload::Empty).await?;
        match &self.output {
            Some(path) => super::image::save_to(path, chunks(answer)).await,
            None => {
                let mut pieces = chunks(answer);
                while let Some(piece) = pieces.next().await {
                    output::write(&piece?);
                }
                Ok(())
            }
        }
    }
}

impl Commit {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let (repo, tag) = match self.reference.as_deref().map(split) {
            None => ("", ""),
            Some((_, _, Some(_))) => bail!("refusing to create a tag with a digest reference"),
            Some((repo, tag, None)) => (repo, tag.unwrap_or("latest")),
        };
        let mut target = Target::new("/commit", &[])
            .arg("container", &self.container)
            .arg("repo", repo)
            .arg("tag", tag)
            .arg("comment", &self.message)
            .arg("author", &self.author)
            .arg("pause", u8::from(self.pause));
        for change in &self.change {
            target = target.arg("changes", change);
        }
        let made = client.post(target, json!({})).await?;
        output::line(text(&made, "/Id"));
        Ok(())
    }
}

impl Update {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let body = self.body()?;
        let warnings = std::cell::RefCell::new(Vec::new());
        let updated = output::each(&self.containers, async |name: String| {
            let target = Target::new("/containers/{}/update", &[&name]);
            let answer = client.post(target, body.clone()).await?;
            warnings.borrow_mut().extend(texts(&answer, "/Warnings"));
            Ok(Some(name))
        })
        .await;
        for warning in warnings.into_inner() {
            output::note(warning);
        }
        updated
    }

    fn body(&self) -> Result<Value> {
        let mut body = json!({});
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                body[name] = value;
            }
        };
        put("BlkioWeight", self.blkio_weight.map(Into::into));
        put("CpuPeriod", self.cpu_period.map(Into::into));
        put("CpuQuota", self.cpu_quota.map(Into::into));
        put("CpuRealtimePeriod", self.cpu_rt_period.map(Into::into));
        put("CpuRealtimeRuntime", self.cpu_rt_runtime.map(Into::into));
        put("CpuShares", self.cpu_shares.map(Into::into));
        put("NanoCpus", self.cpus.map(Into::into));
        put("CpusetCpus", self.cpuset_cpus.clone().map(Into::into));
        put("CpusetMems", self.cpuset_mems.clone().map(Into::into));
        put("Memory", self.memory.map(Into::into));
        put("MemoryReservation", self.memory_reservation.map(Into::into));
        put("MemorySwap", self.memory_swap.map(Into::into));
        put("PidsLimit", self.pids_limit.map(Into::into));
        if let Some(policy) = &self.restart {
            let (name, retries) = super::container_flags::restart(policy)?;
            put(
                "RestartPolicy",
                Some(json!({"Name": name, "MaximumRetryCount": retries})),
            );
        }
        if body.as_object().is_some_and(serde_json::Map::is_empty) {
            bail!("you must provide one or more flags when using this command");
        }
        Ok(body)
    }
}
