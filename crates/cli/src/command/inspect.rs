//! `shoal inspect`: whatever has that name.

use anyhow::{Result, bail};
use clap::Args as ClapArgs;

use crate::{
    client::{Client, Target, is_not_found},
    output,
};

/// Kinds in the order in which a name is looked for.
const KINDS: [(&str, &str); 9] = [
    ("container", "/containers/{}/json"),
    ("image", "/images/{}/json"),
    ("network", "/networks/{}"),
    ("volume", "/volumes/{}"),
    ("service", "/services/{}"),
    ("task", "/tasks/{}"),
    ("node", "/nodes/{}"),
    ("secret", "/secrets/{}"),
    ("config", "/configs/{}"),
];

/// Return low-level information on objects
#[derive(ClapArgs)]
#[command(
    after_help = "Examples:\n  shoal inspect web\n  shoal inspect --type service --format '{{.Spec.Name}}' web"
)]
pub(crate) struct Args {
    /// Names or ids of containers, images, networks, volumes, services, tasks, nodes, secrets, configs
    #[arg(required = true, value_name = "NAME|ID")]
    names: Vec<String>,
    /// Only inspect objects of the given type
    #[arg(long = "type", value_name = "string")]
    kind: Option<String>,
    /// Format output using a custom template
    #[arg(short, long, value_name = "string")]
    format: Option<String>,
    /// Display total file sizes if the type is container
    #[arg(short, long)]
    size: bool,
}

impl Args {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let kinds: Vec<_> = KINDS
            .into_iter()
            .filter(|(kind, _)| self.kind.as_deref().is_none_or(|wanted| wanted == *kind))
            .collect();
        if kinds.is_empty() {
            let kind = self.kind.unwrap_or_default();
            let mut known = KINDS.map(|(kind, _)| format!("{kind:?}"));
            known.sort();
            bail!(
                "unknown type: {kind:?}: must be one of {}",
                known.join(", ")
            );
        }
        output::inspect_each(self.format.as_deref(), &self.names, async |name: String| {
            for (kind, path) in &kinds {
                let target = Target::new(path, &[&name]);
                match client
                    .get(target.flag("size", self.size && *kind == "container"))
                    .await
                {
                    Ok(found) => return Ok(found),
                    Err(error) if kinds.len() == 1 => return Err(error),
                    Err(error) if elsewhere(&error) => {}
                    Err(error) => return Err(error),
                }
            }
            bail!("Error: No such object: {name}")
        })
        .await
    }
}

/// Whether the name may still be that of another kind: unknown here, or this node is no manager, or no such kind.
fn elsewhere(error: &anyhow::Error) -> bool {
    use hyper::StatusCode as S;
    is_not_found(error)
        || error
            .downcast_ref::<crate::client::Refused>()
            .is_some_and(|refused| {
                [S::SERVICE_UNAVAILABLE, S::NOT_IMPLEMENTED, S::BAD_REQUEST]
                    .contains(&refused.status)
            })
}
