//! `shoal build`: packs the context and lets the daemon build, step by step (the classic builder).

use std::{
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, engine::general_purpose::URL_SAFE};
use clap::Args as ClapArgs;
use futures_util::StreamExt as _;
use hyper::Method;
use serde_json::{Map, Value, json};

use super::copy::all_of_stdin;
use crate::{
    Exit,
    client::{Client, Payload, Target, values},
    config_file::ConfigFile,
    connect,
    dockerignore::Patterns,
    flags::{environment, quantity},
    json::{number, text},
    output,
    tarball::{self, PackOptions, Pieces},
};

/// Name under which a Dockerfile of elsewhere travels within the context.
const FOREIGN_DOCKERFILE: &str = ".dockerfile.of.the.client";

/// Build an image from a Dockerfile
#[derive(ClapArgs)]
#[command(
    after_help = "Examples:\n  shoal build -t app .\n  shoal build -f deploy/Dockerfile --target release --build-arg VERSION=2 -t app:2 .\n  shoal build - < Dockerfile\n  tar c . | shoal build -t app -"
)]
pub(crate) struct Args {
    /// Folder of the context, - for an archive or a Dockerfile on standard input, or an address
    #[arg(value_name = "PATH | URL | -")]
    context: String,
    /// Name and optionally a tag in the "name:tag" format
    #[arg(short, long, value_name = "list")]
    tag: Vec<String>,
    /// Name of the Dockerfile (Default is "PATH/Dockerfile")
    #[arg(short, long, value_name = "string")]
    file: Option<String>,
    /// Set build-time variables
    #[arg(long, value_name = "list")]
    build_arg: Vec<String>,
    /// Set the target build stage to build
    #[arg(long, value_name = "string")]
    target: Option<String>,
    /// Do not use cache when building the image
    #[arg(long)]
    no_cache: bool,
    /// Always attempt to pull a newer version of the image
    #[arg(long)]
    pull: bool,
    /// Suppress the build output and print image ID on success
    #[arg(short, long)]
    quiet: bool,
    /// Write the image ID to the file
    #[arg(long, value_name = "string")]
    iidfile: Option<String>,
    /// Set metadata for an image
    #[arg(long, value_name = "list")]
    label: Vec<String>,
    /// Set platform if server is multi-platform capable
    #[arg(long, value_name = "string")]
    platform: Option<String>,
    /// Remove intermediate containers after a successful build
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", value_name = "bool")]
    rm: bool,
    /// Always remove intermediate containers
    #[arg(long)]
    force_rm: bool,
    /// Images to consider as cache sources
    #[arg(long, value_name = "strings", value_delimiter = ',')]
    cache_from: Vec<String>,
    /// Set the networking mode for the RUN instructions during build
    #[arg(long, value_name = "string")]
    network: Option<String>,
    /// Add a custom host-to-IP mapping (host:ip)
    #[arg(long, value_name = "list")]
    add_host: Vec<String>,
    /// Security options
    #[arg(long, value_name = "strings")]
    security_opt: Vec<String>,
    /// Memory limit
    #[arg(short, long, value_name = "bytes", value_parser = quantity::bytes)]
    memory: Option<i64>,
    /// Swap limit equal to memory plus swap: -1 to enable unlimited swap
    #[arg(long, value_name = "bytes", value_parser = quantity::bytes, allow_negative_numbers = true)]
    memory_swap: Option<i64>,
    /// CPU shares (relative weight)
    #[arg(short, long, value_name = "int")]
    cpu_shares: Option<i64>,
    /// Limit the CPU CFS (Completely Fair Scheduler) period
    #[arg(long, value_name = "int")]
    cpu_period: Option<i64>,
    /// Limit the CPU CFS (Completely Fair Scheduler) quota
    #[arg(long, value_name = "int")]
    cpu_quota: Option<i64>,
    /// CPUs in which to allow execution (0-3, 0,1)
    #[arg(long, value_name = "string")]
    cpuset_cpus: Option<String>,
    /// MEMs in which to allow execution (0-3, 0,1)
    #[arg(long, value_name = "string")]
    cpuset_mems: Option<String>,
    /// Size of "/dev/shm"
    #[arg(long, value_name = "bytes", value_parser = quantity::bytes)]
    shm_size: Option<i64>,
    /// Ulimit options
    #[arg(long, value_name = "ulimit", value_parser = quantity::ulimit)]
    ulimit: Vec<Value>,
    /// Set the parent cgroup for the RUN instructions during build
    #[arg(long, value_name = "string")]
    cgroup_parent: Option<String>,
    /// Squash newly built layers into a single new layer
    #[arg(long)]
    squash: bool,
    /// Compress the build context using gzip (accepted; the socket is faster without)
    #[arg(long)]
    compress: bool,
    /// Container isolation technology
    #[arg(long, value_name = "string")]
    isolation: Option<String>,
    /// Skip image verification (images are verified by digest alone)
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", value_name = "bool")]
    disable_content_trust: bool,
}

/// What is sent: an archive, the name of the Dockerfile within it, or an address that the daemon fetches.
struct Sent {
    payload: Payload,
    dockerfile: String,
    remote: Option<String>,
}

impl Args {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        super::image::trust(self.disable_content_trust)?;
        let sent = self.context()?;
        let target = self.target(&sent.dockerfile, sent.remote.as_deref())?;
        let answer = client.send(Method::POST, target, sent.payload).await?;
        let mut messages = values(answer);
        let (mut id, mut kept) = (String::new(), Vec::new());
        while let Some(message) = messages.next().await {
            let message = message?;
            let problem = match text(&message, "/errorDetail/message") {
                "" => text(&message, "/error"),
                problem => problem,
            };
            if !problem.is_empty() {
                // A quiet build that failed shows what it kept to itself.
                output::write_error(&kept);
                let code = match i32::try_from(number(&message, "/errorDetail/code")) {
                    Ok(code) if code != 0 => code,
                    _ => 1,
                };
                let message = problem.to_owned();
                return Err(Exit { code, message }.into());
            }
            match text(&message, "/aux/ID") {
                "" => {}
                found => found.clone_into(&mut id),
            }
            let said = match message.get("stream").and_then(Value::as_str) {
                Some(said) => said.to_owned(),
                None => match (text(&message, "/id"), text(&message, "/status")) {
                    (_, "") => continue,
                    ("", status) => format!("{status}\n"),
                    // The bytes of a layer that comes are no news.
                    _ if !message["progressDetail"]["current"].is_null() => continue,
                    (layer, status) => format!("{layer}: {status}\n"),
                },
            };
            if self.quiet {
                kept.extend_from_slice(said.as_bytes());
            } else {
                output::write(said.as_bytes());
            }
        }
        if self.quiet {
            output::line(if id.is_empty() {
                String::from_utf8_lossy(&kept).trim().to_owned()
            } else {
                id.clone()
            });
        }
        if let Some(path) = &self.iidfile {
            if id.is_empty() {
                bail!("server did not provide an image ID. Cannot write {path}");
            }
            std::fs::write(path, &id).with_context(|| format!("cannot write {path}"))?;
        }
        Ok(())
    }

    fn context(&self) -> Result<Sent> {
        let dockerfile = self.file.as_deref().unwrap_or_default();
        if let Some(path) = &self.iidfile {
            // An old id must not be taken for the new one.
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("removing image ID file {path}"));
                }
                _ => {}
            }
        }
        if self.context == "-" {
            if dockerfile == "-" {
                bail!("invalid argument: can't use stdin for both build context and dockerfile");
            }
            if io::stdin().is_terminal() {
                bail!("standard input is a terminal: expected an archive or a Dockerfile");
            }
            return from_stdin(all_of_stdin()?, dockerfile);
        }
        let remote = ["http://", "https://", "git://", "github.com/", "git@"]
            .iter()
            .any(|start| self.context.starts_with(start));
        if remote {
            return Ok(Sent {
                payload: Payload::Empty,
                dockerfile: dockerfile.to_owned(),
                remote: Some(self.context.clone()),
            });
        }
        from_folder(Path::new(&self.context), dockerfile)
    }

    fn target(&self, dockerfile: &str, remote: Option<&str>) -> Result<Target> {
        let arguments = variables(&self.build_arg);
        let labels: Map<String, Value> = self
            .label
            .iter()
            .map(|label| {
                let (key, value) = crate::flags::pair(label);
                (key, value.into())
            })
            .collect();
        let mut target = Target::new("/build", &[])
            .arg("dockerfile", dockerfile)
            .arg("version", 1)
            .arg("rm", u8::from(self.rm))
            .arg("buildargs", Value::Object(arguments))
            .arg("labels", Value::Object(labels))
            .arg("cachefrom", json!(self.cache_from))
            .arg("ulimits", json!(self.ulimit))
            .maybe("remote", remote)
            .maybe("isolation", self.isolation.as_deref())
            .maybe("target", self.target.as_deref())
            .maybe(
                "platform",
                self.platform.clone().or_else(connect::default_platform),
            )
            .maybe("networkmode", self.network.as_deref())
            .maybe("memory", self.memory)
            .maybe("memswap", self.memory_swap)
            .maybe("cpushares", self.cpu_shares)
            .maybe("cpuperiod", self.cpu_period)
            .maybe("cpuquota", self.cpu_quota)
            .maybe("cpusetcpus", self.cpuset_cpus.as_deref())
            .maybe("cpusetmems", self.cpuset_mems.as_deref())
            .maybe("shmsize", self.shm_size)
            .maybe("cgroupparent", self.cgroup_parent.as_deref())
            .flag("nocache", self.no_cache)
            .flag("pull", self.pull)
            .flag("q", self.quiet)
            .flag("forcerm", self.force_rm)
            .flag("squash", self.squash);
        for tag in &self.tag {
            target = target.arg("t", tag);
        }
        for host in &self.add_host {
            target = target.arg("extrahosts", host);
        }
        if !self.security_opt.is_empty() {
            target = target.arg("securityopt", json!(self.security_opt));
        }
        let known = ConfigFile::load()?.all_credentials();
        Ok(target.registry_config(URL_SAFE.encode(known.to_string())))
    }
}

/// `NAME=value`, or `NAME` with the caller's value; null takes what the Dockerfile says.
fn variables(words: &[String]) -> Map<String, Value> {
    words
        .iter()
        .map(|word| match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.into()),
            None => (
                word.clone(),
                environment::process(word).map_or(Value::Null, Into::into),
            ),
        })
        .collect()
}

/// Whether these bytes begin an archive, compressed or not.
fn is_archive(bytes: &[u8]) -> bool {
    const STARTS: [&[u8]; 4] = [b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
    STARTS.iter().any(|start| bytes.starts_with(start))
        || bytes.get(257..262).is_some_and(|magic| magic == b"ustar")
}

fn from_stdin(bytes: Vec<u8>, dockerfile: &str) -> Result<Sent> {
    if is_archive(&bytes) {
        let piece = futures_util::stream::iter([Ok(bytes.into())]);
        return Ok(Sent {
            payload: Payload::Tar(Box::pin(piece)),
            dockerfile: dockerfile.to_owned(),
            remote: None,
        });
    }
    if !dockerfile.is_empty() {
        bail!("ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles");
    }
    let payload = tarball::stream(move |archive| add_bytes(archive, "Dockerfile", &bytes));
    Ok(Sent {
        payload,
        dockerfile: "Dockerfile".to_owned(),
        remote: None,
    })
}

fn add_bytes(archive: &mut tar::Builder<Pieces>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o600);
    archive.append_data(&mut header, name, bytes)
}

fn from_folder(folder: &Path, dockerfile: &str) -> Result<Sent> {
    let root = folder.canonicalize().with_context(|| {
        format!(
            "unable to prepare context: path {:?} not found",
            folder.display().to_string()
        )
    })?;
    if !root.is_dir() {
        bail!(
            "unable to prepare context: context must be a directory: {}",
            folder.display()
        );
    }
    // A Dockerfile of elsewhere travels along under a name of its own.
    let (name, foreign) = match dockerfile {
        "" if !root.join("Dockerfile").exists() && root.join("dockerfile").exists() => {
            ("dockerfile".to_owned(), None)
        }
        "" => ("Dockerfile".to_owned(), None),
        "-" => (FOREIGN_DOCKERFILE.to_owned(), Some(all_of_stdin()?)),
        said => {
            let path = std::path::absolute(said)?;
            let path = path
                .canonicalize()
                .or_else(|_| root.join(said).canonicalize());
            let path = path.with_context(|| {
                format!("unable to prepare context: unable to evaluate symlinks in Dockerfile path: {said}")
            })?;
            match path.strip_prefix(&root) {
                Ok(inside) => (inside.display().to_string(), None),
                Err(_) => {
                    let bytes = std::fs::read(&path)
                        .with_context(|| format!("unable to open Dockerfile: {said}"))?;
                    (FOREIGN_DOCKERFILE.to_owned(), Some(bytes))
                }
            }
        }
    };
    if foreign.is_none() && !root.join(&name).exists() {
        bail!(
            "unable to prepare context: unable to evaluate symlinks in Dockerfile path: lstat {}: no such file or directory",
            root.join(&name).display()
        );
    }
    let patterns = match std::fs::read_to_string(root.join(".dockerignore")) {
        Ok(text) => Patterns::parse(&text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Patterns::default(),
        Err(error) => return Err(error).context("cannot read .dockerignore"),
    };
    let dockerfile = name.clone();
    let payload = tarball::stream(move |archive| {
        let context = ContextFolder {
            root,
            patterns,
            always: vec![name.clone(), ".dockerignore".to_owned()],
        };
        context.add_below(archive, &mut Vec::new())?;
        match foreign {
            Some(bytes) => add_bytes(archive, &name, &bytes),
            None => Ok(()),
        }
    });
    Ok(Sent {
        payload,
        dockerfile,
        remote: None,
    })
}

struct ContextFolder {
    root: PathBuf,
    patterns: Patterns,
    /// Sent even if a pattern fits: the daemon reads them, and leaves them out of what is copied.
    always: Vec<String>,
}

impl ContextFolder {
    fn add_below(
        &self,
        archive: &mut tar::Builder<Pieces>,
        at: &mut Vec<String>,
    ) -> io::Result<()> {
        let folder = at
            .iter()
            .fold(self.root.clone(), |path, name| path.join(name));
        for entry in tarball::sorted(&folder)? {
            let path = folder.join(&entry);
            at.push(entry.to_string_lossy().into_owned());
            let parts: Vec<&str> = at.iter().map(String::as_str).collect();
            let name = parts.join("/");
            let out = self.patterns.leaves_out(&parts) && !self.always.contains(&name);
            let is_dir = path.symlink_metadata()?.is_dir();
            if !out {
                tarball::add(archive, &path, Path::new(&name), PackOptions::default())?;
            }
            let wanted_below = || {
                let inside = format!("{name}/");
                self.patterns.may_take_back_below(&parts)
                    || self.always.iter().any(|file| file.starts_with(&inside))
            };
            if is_dir && (!out || wanted_below()) {
                self.add_below(archive, at)?;
            }
            at.pop();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn names(sent: Sent) -> Vec<String> {
        let Payload::Tar(mut pieces) = sent.payload else {
            panic!("an archive")
        };
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.next().await {
            bytes.extend_from_slice(&piece.unwrap());
        }
        let mut archive = tar::Archive::new(&bytes[..]);
        let entries = archive.entries().unwrap();
        entries
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect()
    }

    #[tokio::test]
    async fn a_context_leaves_out_what_it_is_told_to() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["src", "target/deep", "docs"] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        for name in [
            "Dockerfile",
            "src/main",
            "target/deep/big",
            "docs/a.md",
            "docs/keep.md",
        ] {
            std::fs::write(at(name), "x").unwrap();
        }
        std::fs::write(
            at(".dockerignore"),
            "Dockerfile\ntarget\ndocs/*\n!docs/keep.md\n",
        )
        .unwrap();
        let sent = from_folder(folder.path(), "").unwrap();
        assert_eq!(sent.dockerfile, "Dockerfile");
        assert_eq!(
            names(sent).await,
            [
                ".dockerignore",
                "Dockerfile",
                "docs",
                "docs/keep.md",
                "src",
                "src/main"
            ]
        );
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        let sent = from_folder(folder.path(), elsewhere.path().to_str().unwrap()).unwrap();
        assert_eq!(sent.dockerfile, FOREIGN_DOCKERFILE);
        assert!(names(sent).await.contains(&FOREIGN_DOCKERFILE.to_owned()));
    }

    #[tokio::test]
    async fn standard_input_is_an_archive_or_a_dockerfile() {
        let sent = from_stdin(b"FROM scratch\n".to_vec(), "").unwrap();
        assert_eq!(names(sent).await, ["Dockerfile"]);
        assert!(from_stdin(b"FROM scratch\n".to_vec(), "other").is_err());
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        archive.append_data(&mut header, "a", io::empty()).unwrap();
        let bytes = archive.into_inner().unwrap();
        assert!(is_archive(&bytes) && is_archive(b"\x1f\x8b\x08") && !is_archive(b"FROM x"));
        assert_eq!(names(from_stdin(bytes, "other").unwrap()).await, ["a"]);
    }

    #[test]
    fn a_missing_context_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = from_folder(folder.path(), "").err().unwrap().to_string();
        assert!(
            error.contains("Dockerfile: no such file or directory"),
            "{error}"
        );
        let error = from_folder(Path::new("/nothing/there"), "").err().unwrap();
        assert!(error.to_string().contains("/nothing/there"), "{error}");
    }
}
