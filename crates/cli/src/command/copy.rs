//! `shoal cp`: files into a container, out of it, or through standard streams.

use std::{
    io::{IsTerminal as _, Read as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Args as ClapArgs;
use futures_util::{StreamExt as _, TryStreamExt as _};
use hyper::Method;
use serde_json::Value;
use tokio_util::io::{ReaderStream, StreamReader, SyncIoBridge};

use crate::{
    client::{Client, Payload, Target, chunks, is_not_found},
    human::size,
    json::{number, text},
    output,
    tarball::{self, PackOptions},
};

/// Bit of a folder and of a symbolic link in Go's `os.FileMode`.
const GO_DIR: i64 = 1 << 31;
const GO_SYMLINK: i64 = 1 << 27;

/// Copy files/folders between a container and the local filesystem
#[derive(ClapArgs)]
#[command(
    after_help = "Use '-' as the source to read a tar archive from stdin and extract it to a directory in a container.\nUse '-' as the destination to stream a tar archive of a container source to stdout.\n\nExamples:\n  shoal cp web:/etc/nginx/nginx.conf .\n  shoal cp site/. web:/usr/share/nginx/html\n  shoal cp web:/var/log - | tar t"
)]
pub(crate) struct Args {
    /// CONTAINER:PATH, PATH, or - for a tar archive on standard input
    #[arg(value_name = "SRC_PATH")]
    source: String,
    /// CONTAINER:PATH, PATH, or - for a tar archive on standard output
    #[arg(value_name = "DEST_PATH")]
    destination: String,
    /// Archive mode (copy all uid/gid information)
    #[arg(short, long)]
    archive: bool,
    /// Always follow symbol link in SRC_PATH
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Suppress progress output during copy
    #[arg(short, long)]
    quiet: bool,
}

/// Container and path, or a path here.
fn place(text: &str) -> (Option<&str>, &str) {
    if text.starts_with('/') || text.starts_with('.') {
        return (None, text);
    }
    match text.split_once(':') {
        Some((container, path)) if !container.is_empty() => (Some(container), path),
        _ => (None, text),
    }
}

/// Whether a path says that it is a folder: `/` or `/.` at its end.
fn says_folder(path: &str) -> bool {
    path.ends_with('/') || path.ends_with("/.") || path == "."
}

/// Whether what is in a folder is meant, not the folder.
fn means_contents(path: &str) -> bool {
    path.ends_with("/.") || path == "."
}

/// The last name of a path, as Go's `path.Base`.
fn base(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    let path = path
        .strip_suffix("/.")
        .unwrap_or(path)
        .trim_end_matches('/');
    match path.rsplit('/').next() {
        None | Some("") => "/",
        Some(name) => name,
    }
}

/// What the daemon says of a path in a container.
struct Stat {
    mode: i64,
    link_target: String,
}

async fn stat(container: &str, path: &str, client: &Client) -> Result<Stat> {
    let target = Target::new("/containers/{}/archive", &[container]).arg("path", path);
    let answer = client.send(Method::HEAD, target, Payload::Empty).await?;
    let header = answer.headers().get("X-Docker-Container-Path-Stat");
    let found: Value = header
        .and_then(|header| STANDARD.decode(header.as_bytes()).ok())
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .context("unable to decode container path stat header")?;
    Ok(Stat {
        mode: number(&found, "/mode"),
        link_target: text(&found, "/linkTarget").to_owned(),
    })
}

impl Args {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        match (place(&self.source), place(&self.destination)) {
            ((Some(_), _), (Some(_), _)) => bail!("copying between containers is not supported"),
            ((None, _), (None, _)) => bail!("must specify at least one container source"),
            ((Some(container), from), (None, to)) => self.out_of(container, from, to, client).await,
            ((None, from), (Some(container), to)) => {
                self.into_container(container, from, to, client).await
            }
        }
    }

    /// Tells people; programs do not ask for it.
    fn done(&self, bytes: u64, to: &str) {
        if !self.quiet && std::io::stderr().is_terminal() {
            output::note(format!("Successfully copied {} to {to}", size(bytes)));
        }
    }

    async fn out_of(&self, container: &str, from: &str, to: &str, client: &Client) -> Result<()> {
        if from.is_empty() {
            bail!("container source path cannot be empty");
        }
        let mut from = from.to_owned();
        if self.follow_link {
            let found = stat(container, &from, client).await;
            if let Ok(found) = found
                && found.mode & GO_SYMLINK != 0
            {
                // The link's target is told from the container's root.
                from = if found.link_target.starts_with('/') {
                    found.link_target
                } else {
                    let above = from.rsplit_once('/').map_or("", |(above, _)| above);
                    format!("{above}/{}", found.link_target)
                };
            }
        }
        let target = Target::new("/containers/{}/archive", &[container]).arg("path", &from);
        let answer = client.send(Method::GET, target, Payload::Empty).await?;
        let is_dir = {
            let header = answer.headers().get("X-Docker-Container-Path-Stat");
            let found: Value = header
                .and_then(|header| STANDARD.decode(header.as_bytes()).ok())
                .and_then(|bytes| serde_json::from_slice(&bytes).ok())
                .context("unable to decode container path stat header")?;
            number(&found, "/mode") & GO_DIR != 0
        };
        if to == "-" {
            let mut pieces = chunks(answer);
            while let Some(piece) = pieces.next().await {
                output::write(&piece?);
            }
            return Ok(());
        }
        let destination = Path::new(to);
        let exists = destination.exists();
        let (folder, name) = if destination.is_dir() {
            (destination.to_owned(), None)
        } else {
            if says_folder(to) && !is_dir {
                if exists {
                    bail!("cannot copy a file to {to}: not a directory");
                }
                bail!("invalid output path: directory {to:?} does not exist");
            }
            if exists && is_dir {
                bail!("cannot copy directory");
            }
            let absolute = std::path::absolute(to)?;
            let above = absolute.parent().context("invalid output path")?.to_owned();
            if !above.is_dir() {
                bail!(
                    "invalid output path: directory {:?} does not exist",
                    above.display().to_string()
                );
            }
            (
                above,
                absolute
                    .file_name()
                    .map(|name| name.to_string_lossy().into_owned()),
            )
        };
        // The archive's first name: that of what was asked for. Its contents alone are to have another, or none.
        let contents = means_contents(&from);
        let (folder, rename) = match (name, contents && is_dir) {
            (None, false) => (folder, None),
            (None, true) => (folder, Some((base(&from).to_owned(), ".".to_owned()))),
            (Some(name), true) => (
                folder.join(name),
                Some((base(&from).to_owned(), ".".to_owned())),
            ),
            (Some(name), false) => (folder, Some((base(&from).to_owned(), name))),
        };
        let counted = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let counter = counted.clone();
        let pieces = chunks(answer)
            .map_err(std::io::Error::other)
            .inspect_ok(move |piece| {
                let bytes = piece.len() as u64;
                counter.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
            });
        let reader = SyncIoBridge::new(StreamReader::new(pieces));
        let owners = self.archive;
        let unpacked = tokio::task::spawn_blocking(move || {
            let rename = rename
                .as_ref()
                .map(|(from, to)| (from.as_str(), to.as_str()));
            let mut reader = reader;
            tarball::unpack(&mut reader, &folder, rename, owners)?;
            // What follows the archive's end still belongs to the answer.
            std::io::copy(&mut reader, &mut std::io::sink())?;
            Ok::<_, anyhow::Error>(())
        });
        unpacked.await??;
        let to = std::path::absolute(to)?;
        self.done(
            counted.load(std::sync::atomic::Ordering::Relaxed),
            &to.display().to_string(),
        );
        Ok(())
    }

    async fn into_container(
        &self,
        container: &str,
        from: &str,
        to: &str,
        client: &Client,
    ) -> Result<()> {
        if to.is_empty() {
            bail!("destination path cannot be empty");
        }
        let mut to = to.to_owned();
        let mut found = stat(container, &to, client).await;
        if let Ok(link) = &found
            && link.mode & GO_SYMLINK != 0
        {
            to = if link.link_target.starts_with('/') {
                link.link_target.clone()
            } else {
                let above = to.rsplit_once('/').map_or("", |(above, _)| above);
                format!("{above}/{}", link.link_target)
            };
            found = stat(container, &to, client).await;
        }
        let folder_there = match &found {
            Ok(found) => Some(found.mode & GO_DIR != 0),
            Err(error) if is_not_found(error) => None,
            Err(_) => return found.map(drop),
        };
        if from == "-" {
            if folder_there != Some(true) {
                bail!("destination \"{container}:{to}\" must be a directory");
            }
            let archive = Payload::Tar(Box::pin(ReaderStream::with_capacity(
                tokio::io::stdin(),
                256 << 10,
            )));
            return self.put(container, &to, archive, client).await;
        }
        let meta = if self.follow_link {
            std::fs::metadata(from)
        } else {
            std::fs::symlink_metadata(from)
        };
        let meta = meta.with_context(|| format!("lstat {from}"))?;
        if says_folder(from) && !meta.is_dir() {
            bail!("{from}: not a directory");
        }
        let source = if self.follow_link {
            std::fs::canonicalize(from)?
        } else {
            PathBuf::from(from)
        };
        let absolute = std::path::absolute(&source)?;
        let own_name = base(&absolute.display().to_string()).to_owned();
        let (folder, name) = match folder_there {
            Some(true) if meta.is_dir() && means_contents(from) => (to.clone(), ".".to_owned()),
            Some(true) => (to.clone(), own_name),
            Some(false) if meta.is_dir() => bail!("cannot copy directory"),
            None if says_folder(&to) && !meta.is_dir() => {
                bail!("no such directory")
            }
            Some(false) | None => {
                let path = to.trim_end_matches('/');
                let above = path.rsplit_once('/').map_or("/", |(above, _)| above);
                let above = if above.is_empty() { "/" } else { above };
                (above.to_owned(), base(path).to_owned())
            }
        };
        let options = PackOptions {
            owners: self.archive,
        };
        let total = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let counter = total.clone();
        let archive = tarball::stream(move |archive| {
            tarball::add_all(archive, &absolute, Path::new(&name), options)
        });
        let Payload::Tar(pieces) = archive else {
            unreachable!("a stream is an archive")
        };
        let pieces = pieces.inspect(move |piece| {
            let bytes = piece.as_ref().map_or(0, |piece| piece.len() as u64);
            counter.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
        });
        self.put(container, &folder, Payload::Tar(Box::pin(pieces)), client)
            .await?;
        let bytes = total.load(std::sync::atomic::Ordering::Relaxed);
        self.done(bytes, &self.destination);
        Ok(())
    }

    async fn put(
        &self,
        container: &str,
        folder: &str,
        archive: Payload,
        client: &Client,
    ) -> Result<()> {
        let target = Target::new("/containers/{}/archive", &[container])
            .arg("path", folder)
            .arg("noOverwriteDirNonDir", true)
            .flag("copyUIDGID", self.archive);
        client.send(Method::PUT, target, archive).await?;
        Ok(())
    }
}

/// Reads all of standard input, for what must be looked at before it is sent.
pub(crate) fn all_of_stdin() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .read_to_end(&mut bytes)
        .context("cannot read standard input")?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        assert_eq!(place("web:/etc"), (Some("web"), "/etc"));
        assert_eq!(place("./a:b"), (None, "./a:b"));
        assert_eq!(place("/a:b"), (None, "/a:b"));
        assert_eq!(place("-"), (None, "-"));
        assert_eq!(place("dir"), (None, "dir"));
    }

    #[test]
    fn the_end_of_a_path_means_something() {
        assert!(says_folder("a/") && says_folder("a/.") && says_folder(".") && !says_folder("a"));
        assert!(means_contents("a/.") && !means_contents("a/"));
        assert_eq!(
            [base("/a/b/"), base("/a/."), base("/"), base("a")],
            ["b", "a", "/", "a"]
        );
    }
}
