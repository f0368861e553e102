//! `shoal import`, `history` and `search`.

use anyhow::{Context as _, Result};
use clap::Args;
use hyper::Method;
use shoal_api::Timestamp;
use tokio_util::io::ReaderStream;

use crate::{
    client::{Client, Payload, Target, values},
    config_file::registry_auth,
    human::{ago, ellipsis, short_id, size},
    image_ref::split,
    json::{is, number, text},
    output::{ListFormat, column, row},
    progress::{self, Lines},
};

/// Characters of an instruction and of a description in a table.
const INSTRUCTION_WIDTH: usize = 45;

/// Import the contents from a tarball to create a filesystem image
#[derive(Args)]
#[command(
    after_help = "Examples:\n  shoal import rootfs.tar base:1\n  tar c -C rootfs . | shoal import -c 'CMD [\"sh\"]' - base:1"
)]
pub(crate) struct Import {
    /// Archive, - for standard input, or an address
    #[arg(value_name = "file|URL|-")]
    source: String,
    #[arg(
        value_name = "REPOSITORY[:TAG]",
        default_value = "",
        hide_default_value = true
    )]
    reference: String,
    /// Apply Dockerfile instruction to the created image
    #[arg(short, long, value_name = "list")]
    change: Vec<String>,
    /// Set commit message for imported image
    #[arg(
        short,
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    message: String,
    /// Set platform if server is multi-platform capable
    #[arg(long, value_name = "string")]
    platform: Option<String>,
}

/// Show the history of an image
#[derive(Args)]
#[command(after_help = "Example:\n  shoal history --no-trunc app:1")]
pub(crate) struct History {
    image: String,
    #[command(flatten)]
    format: ListFormat,
    /// Print sizes and dates in human readable format
    #[arg(short = 'H', long, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", value_name = "bool")]
    human: bool,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Show history for the given platform
    #[arg(long, value_name = "string", value_parser = super::image::platform)]
    platform: Option<String>,
}

/// Search for images in a registry
#[derive(Args)]
#[command(after_help = "Example:\n  shoal search --limit 5 --filter is-official=true nginx")]
pub(crate) struct Search {
    term: String,
    /// Filter output based on conditions provided
    #[arg(short, long, value_name = "filter", value_parser = super::filter)]
    filter: Vec<String>,
    /// Format output using a custom template: 'table', 'table TEMPLATE', 'json', or a Go template
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// Max number of search results
    #[arg(long, value_name = "int")]
    limit: Option<u32>,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
}

impl Import {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let (repo, tag, _) = split(&self.reference);
        let (source, payload) = if self.source == "-" {
            let stdin = ReaderStream::with_capacity(tokio::io::stdin(), 256 << 10);
            ("-", Payload::Tar(Box::pin(stdin)))
        } else if self.source.starts_with("http://") || self.source.starts_with("https://") {
            (self.source.as_str(), Payload::Empty)
        } else {
            let file = tokio::fs::File::open(&self.source)
                .await
                .with_context(|| format!("open {}", self.source))?;
            let pieces = ReaderStream::with_capacity(file, 256 << 10);
            ("-", Payload::Tar(Box::pin(pieces)))
        };
        let mut target = Target::new("/images/create", &[])
            .arg("fromSrc", source)
            .arg("repo", repo)
            .arg("tag", tag.unwrap_or_default())
            .arg("message", &self.message)
            .maybe("platform", self.platform.as_deref());
        for change in &self.change {
            target = target.arg("changes", change);
        }
        let answer = client.send(Method::POST, target, payload).await?;
        progress::show(values(answer), Some(Lines::new())).await?;
        Ok(())
    }
}

impl History {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let history = client
            .get(
                Target::new("/images/{}/history", &[&self.image])
                    .maybe("platform", self.platform.as_deref()),
            )
            .await?;
        let now = Timestamp::now();
        let rows = history
            .as_array()
            .into_iter()
            .flatten()
            .map(|step| {
                let id = text(step, "/Id");
                let by = text(step, "/CreatedBy").replace('\t', " ");
                let created = Timestamp(number(step, "/Created") * 1_000_000_000);
                let bytes = number(step, "/Size").unsigned_abs();
                row! {
                    "ID" => if self.no_trunc { id } else { short_id(id) },
                    "CreatedSince" => if self.human { ago(now, created) } else { created.to_string() },
                    "CreatedAt" => created.to_string(),
                    "CreatedBy" => if self.no_trunc { by } else { ellipsis(&by, INSTRUCTION_WIDTH) },
                    "Size" => if self.human { size(bytes) } else { bytes.to_string() },
                    "Comment" => text(step, "/Comment"),
                }
            })
            .collect();
        let columns = [
            column("ID", "IMAGE"),
            column("CreatedSince", "CREATED"),
            column("CreatedBy", "CREATED BY"),
            column("Size", "SIZE"),
            column("Comment", "COMMENT"),
            crate::output::hidden("CreatedAt", "CREATED AT"),
        ];
        self.format.print(&columns, "ID", rows)
    }
}

impl Search {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let target = Target::new("/images/search", &[])
            .arg("term", &self.term)
            .maybe("limit", self.limit)
            .filters(&self.filter)?
            .registry_auth(registry_auth(&self.term));
        let found = client.get(target).await?;
        let rows = found
            .as_array()
            .into_iter()
            .flatten()
            .map(|image| {
                let told = text(image, "/description").replace(['\n', '\r'], " ");
                let mark = |pointer: &str| if is(image, pointer) { "[OK]" } else { "" };
                row! {
                    "Name" => text(image, "/name"),
                    "Description" => if self.no_trunc { told } else { ellipsis(&told, INSTRUCTION_WIDTH) },
                    "StarCount" => number(image, "/star_count").to_string(),
                    "IsOfficial" => mark("/is_official"),
                    "IsAutomated" => mark("/is_automated"),
                }
            })
            .collect();
        let columns = [
            column("Name", "NAME"),
            column("Description", "DESCRIPTION"),
            column("StarCount", "STARS"),
            column("IsOfficial", "OFFICIAL"),
            crate::output::hidden("IsAutomated", "AUTOMATED"),
        ];
        let format = ListFormat {
            format: self.format,
            quiet: false,
        };
        format.print(&columns, "Name", rows)
    }
}
