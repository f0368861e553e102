//! `shoal network`.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::{ListArgs, prune};
use crate::{
    client::{Client, Payload, Target},
    flags::{self, network::Attachment},
    human::short_id,
    json::{is, labels, text},
    output::{self, column, hidden, row},
};

/// Manage networks
#[derive(Subcommand)]
pub(crate) enum Command {
    Connect(Connect),
    Create(Box<Create>),
    Disconnect(Disconnect),
    Inspect(Inspect),
    #[command(visible_alias = "list")]
    Ls(List),
    Prune(prune::Networks),
    #[command(visible_alias = "remove")]
    Rm(Remove),
}

/// Connect a container to a network
#[derive(Args)]
pub(crate) struct Connect {
    network: String,
    container: String,
    /// Add network-scoped alias for the container
    #[arg(long, value_name = "strings")]
    alias: Vec<String>,
    /// IPv4 address
    #[arg(long, value_name = "string", default_value = "")]
    ip: String,
    /// IPv6 address
    #[arg(long, value_name = "string", default_value = "")]
    ip6: String,
    /// Add link to another container
    #[arg(long, value_name = "list")]
    link: Vec<String>,
    /// Add a link-local address for the container
    #[arg(long, value_name = "strings", value_delimiter = ',')]
    link_local_ip: Vec<String>,
    /// driver options for the network
    #[arg(long, value_name = "strings")]
    driver_opt: Vec<String>,
    /// Highest gw-priority provides the default gateway. Accepts positive and negative values
    #[arg(
        long,
        value_name = "int",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    gw_priority: i64,
}

/// Disconnect a container from a network
#[derive(Args)]
pub(crate) struct Disconnect {
    network: String,
    container: String,
    /// Force the container to disconnect from a network
    #[arg(short, long)]
    force: bool,
}

/// Create a network
#[derive(Args)]
#[command(
    after_help = "Examples:\n  shoal network create mine\n  shoal network create -d overlay --attachable --subnet 10.9.0.0/24 shared"
)]
pub(crate) struct Create {
    /// Name of the network
    #[arg(value_name = "NETWORK")]
    name: String,
    /// Driver to manage the Network
    #[arg(short, long, value_name = "string", default_value = "bridge")]
    driver: String,
    /// Enable manual container attachment
    #[arg(long)]
    attachable: bool,
    /// Create swarm routing-mesh network
    #[arg(long)]
    ingress: bool,
    /// Restrict external access to the network
    #[arg(long)]
    internal: bool,
    /// Enable or disable IPv6 address assignment
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "bool")]
    ipv6: Option<bool>,
    /// Enable or disable IPv4 address assignment
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "bool")]
    ipv4: Option<bool>,
    /// Subnet in CIDR format that represents a network segment
    #[arg(long, value_name = "strings", value_delimiter = ',')]
    subnet: Vec<String>,
    /// IPv4 or IPv6 Gateway for the subnet
    #[arg(long, value_name = "strings", value_delimiter = ',')]
    gateway: Vec<String>,
    /// Allocate container ip from a sub-range
    #[arg(long, value_name = "strings", value_delimiter = ',')]
    ip_range: Vec<String>,
    /// Auxiliary IPv4 or IPv6 addresses used by Network driver
    #[arg(long, value_name = "map")]
    aux_address: Vec<String>,
    /// IP Address Management Driver
    #[arg(long, value_name = "string", default_value = "default")]
    ipam_driver: String,
    /// Set IPAM driver specific options
    #[arg(long, value_name = "map")]
    ipam_opt: Vec<String>,
    /// The network from which to copy the configuration
    #[arg(long, value_name = "string")]
    config_from: Option<String>,
    /// Create a configuration only network
    #[arg(long)]
    config_only: bool,
    /// Set driver specific options
    #[arg(short, long, value_name = "map")]
    opt: Vec<String>,
    /// Set metadata on a network
    #[arg(long, value_name = "list")]
    label: Vec<String>,
    /// Control the network's scope
    #[arg(long, value_name = "string")]
    scope: Option<String>,
}

/// Display detailed information on one or more networks
#[derive(Args)]
pub(crate) struct Inspect {
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
    /// Format output using a custom template
    #[arg(short, long, value_name = "string")]
    format: Option<String>,
    /// Verbose output for diagnostics
    #[arg(short, long)]
    verbose: bool,
}

/// List networks
#[derive(Args)]
pub(crate) struct List {
    #[command(flatten)]
    list: ListArgs,
    /// Do not truncate the output
    #[arg(long)]
    no_trunc: bool,
}

/// Remove one or more networks
#[derive(Args)]
pub(crate) struct Remove {
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
    /// Do not error if the network does not exist
    #[arg(short, long)]
    force: bool,
}

impl Command {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        match self {
            Self::Connect(args) => {
                let options = flags::object(&args.driver_opt);
                let endpoint = Attachment {
                    aliases: args.alias,
                    driver_options: options.as_object().cloned().unwrap_or_default(),
                    ip: args.ip,
                    ip6: args.ip6,
                    links: args.link,
                    link_local: args.link_local_ip,
                    priority: args.gw_priority,
                    ..Attachment::default()
                };
                let body = json!({"Container": args.container, "EndpointConfig": endpoint.body()});
                client
                    .post(Target::new("/networks/{}/connect", &[&args.network]), body)
                    .await?;
                Ok(())
            }
            Self::Create(args) => {
                let body = args.body()?;
                let made = client
                    .post(Target::new("/networks/create", &[]), body)
                    .await?;
                let warning = text(&made, "/Warning");
                if !warning.is_empty() {
                    output::note(format!("WARNING: {warning}"));
                }
                output::line(text(&made, "/Id"));
                Ok(())
            }
            Self::Disconnect(args) => {
                let body = json!({"Container": args.container, "Force": args.force});
                client
                    .post(
                        Target::new("/networks/{}/disconnect", &[&args.network]),
                        body,
                    )
                    .await?;
                Ok(())
            }
            Self::Inspect(args) => {
                output::inspect_each(
                    args.format.as_deref(),
                    &args.networks,
                    async |name: String| {
                        let target = Target::new("/networks/{}", &[&name]);
                        client.get(target.flag("verbose", args.verbose)).await
                    },
                )
                .await
            }
            Self::Ls(args) => list(args, client).await,
            Self::Prune(args) => args.run(client).await,
            Self::Rm(args) => {
                output::each(&args.networks, async |name: String| {
                    match client.delete(Target::new("/networks/{}", &[&name])).await {
                        Err(error) if args.force && crate::client::is_not_found(&error) => Ok(None),
                        Err(error) => Err(error),
                        Ok(_) => Ok(Some(name)),
                    }
                })
                .await
            }
        }
    }
}

impl Create {
    fn body(&self) -> Result<Value> {
        Ok(json!({
            "Name": self.name,
            "Driver": self.driver,
            "Scope": self.scope.clone().unwrap_or_default(),
            "EnableIPv4": self.ipv4,
            "EnableIPv6": self.ipv6,
            "Internal": self.internal,
            "Attachable": self.attachable,
            "Ingress": self.ingress,
            "Options": flags::object(&self.opt),
            "Labels": flags::object(&self.label),
            "ConfigOnly": self.config_only,
            "ConfigFrom": self.config_from.as_ref().map(|name| json!({"Network": name})),
            "IPAM": {
                "Driver": self.ipam_driver,
                "Options": flags::object(&self.ipam_opt),
                "Config": self.pools()?,
            },
        }))
    }

    /// One pool per subnet, with the range and gateway that lie in it.
    fn pools(&self) -> Result<Vec<Value>> {
        let mut pools: Vec<(ipnet::IpNet, Map<String, Value>)> = Vec::new();
        for subnet in &self.subnet {
            let net: ipnet::IpNet = subnet.parse().map_err(|_| {
                anyhow::anyhow!("invalid subnet {subnet:?}: expected for instance 10.9.0.0/24")
            })?;
            if pools
                .iter()
                .any(|(other, _)| other.contains(&net) || net.contains(other))
            {
                anyhow::bail!("multiple overlapping subnet configuration is not supported");
            }
            let fields = [("Subnet".to_owned(), subnet.as_str().into())];
            pools.push((net, fields.into_iter().collect()));
        }
        let mut place =
            |field: &str, given: &str, inside: &dyn Fn(&ipnet::IpNet) -> bool| match pools
                .iter_mut()
                .find(|(net, _)| inside(net))
            {
                Some((_, fields)) => {
                    fields.insert(field.to_owned(), given.into());
                    Ok(())
                }
                None => Err(anyhow::anyhow!(
                    "no matching subnet for {} {given}",
                    field.to_lowercase()
                )),
            };
        for range in &self.ip_range {
            let net: ipnet::IpNet = range
                .parse()
                .map_err(|_| anyhow::anyhow!("invalid ip-range {range:?}"))?;
            place("IPRange", range, &|subnet| subnet.contains(&net))?;
        }
        for gateway in &self.gateway {
            let addr: std::net::IpAddr = gateway
                .parse()
                .map_err(|_| anyhow::anyhow!("invalid gateway {gateway:?}"))?;
            place("Gateway", gateway, &|subnet| subnet.contains(&addr))?;
        }
        for auxiliary in &self.aux_address {
            let (name, address) = flags::pair(auxiliary);
            let addr: std::net::IpAddr = address
                .parse()
                .map_err(|_| anyhow::anyhow!("invalid aux-address {auxiliary:?}"))?;
            let pool = pools.iter_mut().find(|(net, _)| net.contains(&addr));
            let (_, fields) =
                pool.ok_or_else(|| anyhow::anyhow!("no matching subnet for aux-address {addr}"))?;
            let all = fields
                .entry("AuxiliaryAddresses")
                .or_insert_with(|| json!({}));
            all[name] = address.into();
        }
        Ok(pools.into_iter().map(|(_, fields)| fields.into()).collect())
    }
}

async fn list(args: List, client: &Client) -> Result<()> {
    let target = Target::new("/networks", &[]).filters(&args.list.filter)?;
    let networks = client.get(target).await?;
    let mut networks = networks.as_array().cloned().unwrap_or_default();
    networks.sort_by(|a, b| text(a, "/Name").cmp(text(b, "/Name")));
    let rows = networks
        .iter()
        .map(|network| {
            let id = text(network, "/Id");
            row! {
                "ID" => if args.no_trunc { id } else { short_id(id) },
                "Name" => text(network, "/Name"),
                "Driver" => text(network, "/Driver"),
                "Scope" => text(network, "/Scope"),
                "IPv6" => is(network, "/EnableIPv6").to_string(),
                "Internal" => is(network, "/Internal").to_string(),
                "Labels" => labels(network, "/Labels"),
                "CreatedAt" => text(network, "/Created"),
            }
        })
        .collect();
    let columns = [
        column("ID", "NETWORK ID"),
        column("Name", "NAME"),
        column("Driver", "DRIVER"),
        column("Scope", "SCOPE"),
        hidden("IPv6", "IPV6"),
        hidden("Internal", "INTERNAL"),
        hidden("Labels", "LABELS"),
        hidden("CreatedAt", "CREATED AT"),
    ];
    args.list.format.print(&columns, "ID", rows)
}

/// Removes networks that nothing uses any more, unless that is certain to fail.
pub(crate) async fn remove(id: &str, client: &Client) -> Result<()> {
    client
        .send(
            hyper::Method::DELETE,
            Target::new("/networks/{}", &[id]),
            Payload::Empty,
        )
        .await?;
    Ok(())
}
