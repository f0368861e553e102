//! Contexts that are git repositories: fetched by the git of this host, one commit deep, and packed without being checked
//! out.

use std::{path::Path, process::Stdio};

use tokio::process::Command;

use super::Fetched;
use crate::io::build::BuildError;

/// A repository, what of it is wanted, and the folder in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Repository {
    url: String,
    reference: String,
    folder: String,
}

impl Repository {
    /// Reads `URL[#[reference][:folder]]`; `None` if it is no repository.
    pub(super) fn of(remote: &str) -> Result<Option<Self>, BuildError> {
        let (url, rest) = remote.split_once('#').unwrap_or((remote, ""));
        let path = url.split('?').next().unwrap_or_default();
        let is_http = url.starts_with("http://") || url.starts_with("https://");
        let is_git = ["git://", "git@", "ssh://", "github.com/"]
            .iter()
            .any(|start| url.starts_with(start));
        if !is_git && !(is_http && path.ends_with(".git")) {
            return Ok(None);
        }
        let (reference, folder) = rest.split_once(':').unwrap_or((rest, ""));
        let reference = if reference.is_empty() {
            "HEAD"
        } else {
            reference
        };
        // What begins with a dash would be an option of git.
        let invalid =
            |why: &str| BuildError::Invalid(format!("invalid git context {remote:?}: {why}"));
        if reference.starts_with('-') {
            return Err(invalid("the reference begins with a dash"));
        }
        if folder.split('/').any(|part| part == "..") {
            return Err(invalid("the folder leads out of the repository"));
        }
        let url = if url.starts_with("github.com/") {
            format!("https://{url}")
        } else {
            url.to_owned()
        };
        Ok(Some(Self {
            url,
            reference: reference.to_owned(),
            folder: folder.trim_matches('/').to_owned(),
        }))
    }

    /// Fetches it and packs what is wanted into an archive.
    pub(super) async fn fetch(&self, into: &Path, name: &str) -> Result<Fetched, BuildError> {
        let (git_dir, path) = (into.join("git"), into.join(name));
        let run = async |words: &[&str]| self.run(&git_dir, words).await;
        run(&["init", "--quiet", "--bare"]).await?;
        let fetched = [
            "fetch",
            "--quiet",
            "--depth=1",
            "--no-tags",
            "--",
            &self.url,
            &self.reference,
        ];
        run(&fetched).await?;
        let tree = if self.folder.is_empty() {
            "FETCH_HEAD".to_owned()
        } else {
            format!("FETCH_HEAD:{}", self.folder)
        };
        let output = format!("--output={}", path.display());
        run(&["archive", "--format=tar", &output, &tree]).await?;
        Ok(Fetched { path })
    }

    async fn run(&self, git_dir: &Path, words: &[&str]) -> Result<(), BuildError> {
        let output = Command::new("git")
            .arg("--git-dir")
            .arg(git_dir)
            // Of the host's own configuration nothing is to run.
            .args(["-c", "core.hooksPath=/dev/null"])
            .args(words)
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ALLOW_PROTOCOL", "git:http:https:ssh")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => BuildError::Invalid(format!(
                    "cannot fetch {:?}: git is not installed on this host; install it, or send the files instead",
                    self.url
                )),
                _ => BuildError::io("run git")(error),
            })?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(BuildError::Invalid(format!(
            "error fetching git context {:?}: {}",
            self.url,
            said.trim()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_told_from_archives() {
        let read = |remote: &str| {
            let found = Repository::of(remote).expect("a good one")?;
            Some(format!(
                "{} {} {}",
                found.url, found.reference, found.folder
            ))
        };
        assert_eq!(
            read("https://h/a.git#main:docker/app").as_deref(),
            Some("https://h/a.git main docker/app")
        );
        assert_eq!(
            read("github.com/a/b").as_deref(),
            Some("https://github.com/a/b HEAD ")
        );
        assert_eq!(read("git@h:a/b#v1").as_deref(), Some("git@h:a/b v1 "));
        assert_eq!(read("https://h/a.tar.gz"), None);
        assert_eq!(read("ext::sh"), None);
        for bad in ["git://h/a#--upload-pack=x", "git://h/a#main:../.."] {
            assert!(Repository::of(bad).is_err(), "{bad}");
        }
    }
}
