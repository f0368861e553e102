//! `shoal image` and its short forms `images`, `pull`, `push`, `load`, `save`, `rmi`, `tag`.

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, engine::general_purpose::URL_SAFE};
use bytes::Bytes;
use clap::{Args, Subcommand};
use futures_util::{Stream, StreamExt as _};
use hyper::Method;
use shoal_api::Timestamp;
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::ReaderStream;

use super::{
    ListArgs, build,
    image_more::{History, Import},
    prune,
};
pub(crate) use crate::config_file::registry_auth;
use crate::{
    client::{Client, Payload, Target, chunks, values},
    connect,
    human::{ago, short_id, size},
    image_ref::{familiar, registry, split, with_default_tag},
    json::{number, text, texts},
    output::{self, column, hidden, row},
    progress::{self, Lines},
};

/// Manage images
#[derive(Subcommand)]
pub(crate) enum Command {
    Build(Box<build::Args>),
    History(History),
    Import(Import),
    Inspect(Inspect),
    Load(Load),
    #[command(visible_alias = "list")]
    Ls(List),
    Prune(prune::Images),
    Pull(Pull),
    Push(Push),
    #[command(visible_alias = "remove")]
    Rm(Remove),
    Save(Save),
    Tag(Tag),
}

/// List images
#[derive(Args)]
pub(crate) struct List {
    /// Only those of this repository, or with this tag
    #[arg(value_name = "REPOSITORY[:TAG]")]
    reference: Option<String>,
    /// Show all images (default hides intermediate images)
    #[arg(short, long)]
    all: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    #[command(flatten)]
    list: ListArgs,
}

/// Display detailed information on one or more images
#[derive(Args)]
pub(crate) struct Inspect {
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Format output using a custom template
    #[arg(short, long, value_name = "string")]
    format: Option<String>,
    /// Inspect a specific platform of the multi-platform image
    #[arg(long, value_name = "string", value_parser = platform)]
    platform: Option<String>,
}

/// Download an image from a registry
#[derive(Args)]
#[command(
    after_help = "Examples:\n  shoal pull debian:13\n  shoal pull localhost:5000/app@sha256:…"
)]
pub(crate) struct Pull {
    /// Name of the image
    #[arg(value_name = "NAME[:TAG|@DIGEST]")]
    image: String,
    /// Download all tagged images in the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Skip image verification (images are verified by digest alone)
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", value_name = "bool")]
    disable_content_trust: bool,
    /// Set platform if server is multi-platform capable
    #[arg(long, value_name = "string")]
    platform: Option<String>,
    /// Suppress verbose output
    #[arg(short, long)]
    quiet: bool,
}

/// Upload an image to a registry
#[derive(Args)]
pub(crate) struct Push {
    /// Name of the image
    #[arg(value_name = "NAME[:TAG]")]
    image: String,
    /// Push all tags of an image to the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Skip image signing (images are not signed)
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", value_name = "bool")]
    disable_content_trust: bool,
    /// Push a platform-specific manifest as a single-platform image to the registry
    #[arg(long, value_name = "string", value_parser = platform)]
    platform: Option<String>,
    /// Suppress verbose output
    #[arg(short, long)]
    quiet: bool,
}

/// Load an image from a tar archive or STDIN
#[derive(Args)]
#[command(after_help = "Examples:\n  shoal load -i app.tar\n  docker save app | shoal load")]
pub(crate) struct Load {
    /// Read from tar archive file, instead of STDIN
    #[arg(short, long, value_name = "string")]
    input: Option<String>,
    /// Load only the given platform(s)
    #[arg(long, value_name = "strings", value_delimiter = ',', value_parser = platform)]
    platform: Vec<String>,
    /// Suppress the load output
    #[arg(short, long)]
    quiet: bool,
}

/// Save one or more images to a tar archive (streamed to STDOUT by default)
#[derive(Args)]
pub(crate) struct Save {
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Write to a file, instead of STDOUT
    #[arg(short, long, value_name = "string")]
    output: Option<String>,
    /// Save only the given platform(s)
    #[arg(long, value_name = "strings", value_delimiter = ',', value_parser = platform)]
    platform: Vec<String>,
}

/// Remove one or more images
#[derive(Args)]
pub(crate) struct Remove {
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Force removal of the image
    #[arg(short, long)]
    force: bool,
    /// Do not delete untagged parents
    #[arg(long)]
    no_prune: bool,
    /// Remove only the given platform variant
    #[arg(long, value_name = "strings", value_delimiter = ',', value_parser = platform)]
    platform: Vec<String>,
}

/// Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE
#[derive(Args)]
pub(crate) struct Tag {
    #[arg(value_name = "SOURCE_IMAGE[:TAG]")]
    source: String,
    #[arg(value_name = "TARGET_IMAGE[:TAG]")]
    target: String,
}

impl Command {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        match self {
            Self::Build(args) => args.run(client).await,
            Self::History(args) => args.run(client).await,
            Self::Import(args) => args.run(client).await,
            Self::Inspect(args) => {
                output::inspect_each(
                    args.format.as_deref(),
                    &args.images,
                    async |name: String| {
                        let target = Target::new("/images/{}/json", &[&name]);
                        client
                            .get(target.maybe("platform", args.platform.as_deref()))
                            .await
                    },
                )
                .await
            }
            Self::Load(args) => args.run(client).await,
            Self::Ls(args) => args.run(client).await,
            Self::Prune(args) => args.run(client).await,
            Self::Pull(args) => args.run(client).await,
            Self::Push(args) => args.run(client).await,
            Self::Rm(args) => args.run(client).await,
            Self::Save(args) => args.run(client).await,
            Self::Tag(args) => args.run(client).await,
        }
    }
}

/// Pulls an image, telling how it goes on `lines`.
pub(crate) async fn pull(
    image: &str,
    platform: Option<&str>,
    lines: Option<Lines>,
    client: &Client,
) -> Result<()> {
    let (name, tag, digest) = split(image);
    let tag = digest.or(tag).unwrap_or("latest");
    let target = Target::new("/images/create", &[])
        .arg("fromImage", name)
        .arg("tag", tag)
        .maybe("platform", platform)
        .registry_auth(registry_auth(image));
    let response = client.send(Method::POST, target, Payload::Empty).await?;
    progress::show(values(response), lines).await?;
    Ok(())
}

impl Pull {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        trust(self.disable_content_trust)?;
        let platform = self.platform.or_else(connect::default_platform);
        let platform = platform.as_deref();
        if self.all_tags {
            let (name, tag, digest) = split(&self.image);
            if tag.or(digest).is_some() {
                bail!("tag can't be used with --all-tags/-a");
            }
            let target = Target::new("/images/create", &[])
                .arg("fromImage", name)
                .maybe("platform", platform)
                .registry_auth(registry_auth(&self.image));
            let response = client.send(Method::POST, target, Payload::Empty).await?;
            progress::show(values(response), (!self.quiet).then(Lines::new)).await?;
            let full = canonical(name);
            output::line(full.strip_suffix(":latest").unwrap_or(&full));
            return Ok(());
        }
        if !self.quiet && with_default_tag(&self.image) != self.image {
            output::line("Using default tag: latest");
        }
        let lines = (!self.quiet).then(Lines::new);
        pull(&self.image, platform, lines, client).await?;
        output::line(canonical(&self.image));
        Ok(())
    }
}

/// Reads `os/architecture[/variant]` as the API takes it.
pub(crate) fn platform(text: &str) -> Result<String> {
    let mut parts = text.split('/');
    let (os, architecture) = (parts.next().unwrap_or_default(), parts.next());
    let variant = parts.next().unwrap_or_default();
    match architecture {
        Some(architecture)
            if !os.is_empty() && !architecture.is_empty() && parts.next().is_none() =>
        {
            Ok(
                serde_json::json!({"os": os, "architecture": architecture, "variant": variant})
                    .to_string(),
            )
        }
        _ => bail!("invalid platform {text:?}: expected for instance linux/arm64 or linux/arm/v7"),
    }
}

/// Refuses what nobody would check.
pub(crate) fn trust(disabled: bool) -> Result<()> {
    if disabled {
        return Ok(());
    }
    bail!("content trust is not supported: images are verified by digest alone")
}

/// The whole name of an image, `docker.io/library/debian:13`.
fn canonical(image: &str) -> String {
    let full = with_default_tag(image);
    match (registry(&full), full.contains('/')) {
        ("docker.io", false) => format!("docker.io/library/{full}"),
        ("docker.io", true) if !full.starts_with("docker.io/") => format!("docker.io/{full}"),
        _ => full,
    }
}

impl Push {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let (name, tag, digest) = split(&self.image);
        if digest.is_some() {
            bail!("cannot push a digest reference");
        }
        trust(self.disable_content_trust)?;
        let tag = match (tag, self.all_tags) {
            (Some(_), true) => bail!("tag can't be used with --all-tags/-a"),
            (None, true) => None,
            (tag, false) => Some(tag.unwrap_or("latest")),
        };
        // A registry wants to hear of somebody, even if it is nobody.
        let auth = registry_auth(&self.image).unwrap_or_else(|| URL_SAFE.encode("{}"));
        let target = Target::new("/images/{}/push", &[name])
            .maybe("tag", tag)
            .maybe("platform", self.platform.as_deref())
            .registry_auth(Some(auth));
        let response = client.send(Method::POST, target, Payload::Empty).await?;
        progress::show(values(response), (!self.quiet).then(Lines::new)).await?;
        if self.quiet {
            output::line(canonical(&self.image));
        }
        Ok(())
    }
}

impl Load {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let archive = match &self.input {
            Some(path) => {
                let file = tokio::fs::File::open(path)
                    .await
                    .with_context(|| format!("open {path}"))?;
                Payload::Tar(Box::pin(ReaderStream::with_capacity(file, 256 << 10)))
            }
            None if std::io::stdin().is_terminal() => {
                bail!("requested load from stdin, but stdin is empty")
            }
            None => Payload::Tar(Box::pin(ReaderStream::with_capacity(
                tokio::io::stdin(),
                256 << 10,
            ))),
        };
        let mut target = Target::new("/images/load", &[]).arg("quiet", u8::from(self.quiet));
        for platform in &self.platform {
            target = target.arg("platform", platform);
        }
        let response = client.send(Method::POST, target, archive).await?;
        progress::show(values(response), (!self.quiet).then(Lines::new)).await?;
        Ok(())
    }
}

impl Save {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        if self.output.is_none() && output::is_terminal() {
            bail!("cowardly refusing to save to a terminal. Use the -o flag or redirect");
        }
        let mut target = Target::new("/images/get", &[]);
        for image in &self.images {
            target = target.arg("names", image);
        }
        for platform in &self.platform {
            target = target.arg("platform", platform);
        }
        let response = client.send(Method::GET, target, Payload::Empty).await?;
        let mut archive = chunks(response);
        let Some(path) = &self.output else {
            while let Some(chunk) = archive.next().await {
                output::write(&chunk?);
            }
            return Ok(());
        };
        save_to(path, archive).await
    }
}

/// Writes an answer to a file; under another name until it is whole, so that a failure leaves no half archive behind.
pub(crate) async fn save_to(
    path: &str,
    mut pieces: impl Stream<Item = Result<Bytes>> + Unpin,
) -> Result<()> {
    let partial = format!("{path}.partial");
    let write = async {
        let mut file = tokio::fs::File::create(&partial)
            .await
            .with_context(|| format!("create {partial}"))?;
        while let Some(piece) = pieces.next().await {
            file.write_all(&piece?)
                .await
                .with_context(|| format!("write {partial}"))?;
        }
        file.sync_all()
            .await
            .with_context(|| format!("write {partial}"))?;
        std::fs::rename(&partial, path).with_context(|| format!("create {path}"))
    };
    let written = write.await;
    if written.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    written
}

impl Remove {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        output::each(&self.images, async |image: String| {
            let target = Target::new("/images/{}", &[&image])
                .flag("force", self.force)
                .flag("noprune", self.no_prune);
            let target = self
                .platform
                .iter()
                .fold(target, |target, wanted| target.arg("platforms", wanted));
            let removed = client.delete(target).await?;
            let lines: Vec<String> = removed
                .as_array()
                .into_iter()
                .flatten()
                .map(|item| match text(item, "/Untagged") {
                    "" => format!("Deleted: {}", text(item, "/Deleted")),
                    name => format!("Untagged: {name}"),
                })
                .collect();
            Ok((!lines.is_empty()).then(|| lines.join("\n")))
        })
        .await
    }
}

impl Tag {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let (repo, tag, digest) = split(&self.target);
        if digest.is_some() {
            bail!("refusing to create a tag with a digest reference");
        }
        let target = Target::new("/images/{}/tag", &[&self.source])
            .arg("repo", repo)
            .arg("tag", tag.unwrap_or("latest"));
        client.post(target, Payload::Empty).await?;
        Ok(())
    }
}

impl List {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let mut filters = self.list.filter.clone();
        if let Some(reference) = &self.reference {
            filters.push(format!("reference={reference}"));
        }
        let target = Target::new("/images/json", &[])
            .flag("all", self.all)
            .filters(&filters)?;
        let images = client.get(target).await?;
        let now = Timestamp::now();
        let mut rows = Vec::new();
        let mut images = images.as_array().cloned().unwrap_or_default();
        images.sort_by_key(|image| std::cmp::Reverse(number(image, "/Created")));
        for image in &images {
            let id = text(image, "/Id");
            let digests = texts(image, "/RepoDigests");
            let mut names = texts(image, "/RepoTags");
            if names.is_empty() {
                names = match digests.first() {
                    Some(digest) => vec![format!("{}:<none>", split(digest).0)],
                    None => vec!["<none>:<none>".to_owned()],
                };
            }
            for name in names {
                let name = if name.contains('<') {
                    name
                } else {
                    familiar(&name)
                };
                let (repository, tag) = name.rsplit_once(':').unwrap_or((&name, "<none>"));
                let digest = digests
                    .iter()
                    .find(|digest| {
                        split(digest).0 == repository || familiar(split(digest).0) == repository
                    })
                    .and_then(|digest| split(digest).2)
                    .unwrap_or("<none>");
                let created = Timestamp(number(image, "/Created") * 1_000_000_000);
                rows.push(row! {
                    "Repository" => repository,
                    "Tag" => tag,
                    "Digest" => digest,
                    "ID" => if self.no_trunc { id } else { short_id(id) },
                    "CreatedSince" => if created == Timestamp::ZERO { "N/A".to_owned() } else { ago(now, created) },
                    "CreatedAt" => super::container::zoned(created),
                    "Size" => size(number(image, "/Size").unsigned_abs()),
                });
            }
        }
        let digest = if self.digests {
            column("Digest", "DIGEST")
        } else {
            hidden("Digest", "DIGEST")
        };
        let columns = [
            column("Repository", "REPOSITORY"),
            column("Tag", "TAG"),
            digest,
            column("ID", "IMAGE ID"),
            column("CreatedSince", "CREATED"),
            column("Size", "SIZE"),
            hidden("CreatedAt", "CREATED AT"),
        ];
        self.list.format.print(&columns, "ID", rows)
    }
}
