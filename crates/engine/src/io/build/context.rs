//! The build context: what came with the request, or is fetched from a URL.

mod git;

use std::{
    fs,
    io::{self, Cursor, Read},
    path::{Path, PathBuf},
};

use super::{
    BuildError,
    tree::{Kind, Tree},
};
use crate::{
    core::build::IgnoreList,
    io::images::{self, Workspace, rootdir},
};

/// A Dockerfile or `.dockerignore`; no honest one comes near.
const TEXT_BYTES_MAX: u64 = 8 << 20;

/// Begins the name under which clients send a Dockerfile that is not of the context; it is no file to be copied.
const FOREIGN_PREFIX: &str = ".dockerfile.";

/// A context on disk.
pub(super) struct Context {
    pub tree: Tree,
    pub dockerfile: String,
}

/// Takes in a context: an archive, packed or not, or the text of a Dockerfile alone. Blocks.
pub(super) fn receive(
    source: impl Read,
    workspace: &Workspace,
    dockerfile: &str,
) -> Result<Context, BuildError> {
    let dir = workspace.path().join("context");
    fs::create_dir(&dir).map_err(BuildError::io("make room for the context"))?;
    let root = rootdir::open_directory(&dir).map_err(BuildError::io("open the context"))?;
    let mut source = source;
    let mut start = Vec::new();
    (&mut source)
        .take(images::SNIFF_BYTES)
        .read_to_end(&mut start)
        .map_err(images_or_io("read the context"))?;
    let whole = Cursor::new(start.clone()).chain(source);
    let alone = if start.is_empty() || images::is_tar(Cursor::new(&start)) {
        images::extract(whole, &root)?;
        None
    } else {
        Some(text_of(whole, "Dockerfile")?)
    };
    let everything = Tree::new(
        root.try_clone()
            .map_err(BuildError::io("open the context"))?,
        IgnoreList::default(),
    );
    let mut ignored = read(&everything, Path::new(".dockerignore"))?.unwrap_or_default();
    if dockerfile.starts_with(FOREIGN_PREFIX) {
        ignored.push_str(&format!("\n{dockerfile}\n"));
    }
    let ignore =
        IgnoreList::parse(&ignored).map_err(|error| BuildError::Invalid(error.to_string()))?;
    let dockerfile = match alone {
        Some(text) => text,
        None => locate(&everything, dockerfile)?,
    };
    Ok(Context {
        tree: Tree::new(root, ignore),
        dockerfile,
    })
}

fn locate(tree: &Tree, name: &str) -> Result<String, BuildError> {
    let wanted = if name.is_empty() { "Dockerfile" } else { name };
    let cleaned = crate::core::build::destination("", wanted).path;
    let path = Path::new(cleaned.trim_start_matches('/'));
    let mut text = read(tree, path)?;
    if text.is_none() && wanted == "Dockerfile" {
        text = read(tree, Path::new("dockerfile"))?;
    }
    let text = text.ok_or_else(|| {
        BuildError::Invalid(format!("Cannot locate specified Dockerfile: {wanted}"))
    })?;
    match text.is_empty() {
        true => Err(BuildError::Invalid(format!(
            "the Dockerfile ({wanted}) cannot be empty"
        ))),
        false => Ok(text),
    }
}

fn read(tree: &Tree, path: &Path) -> Result<Option<String>, BuildError> {
    let shown = path.display();
    match tree
        .find(path)
        .map_err(BuildError::io("read the context"))?
    {
        None => Ok(None),
        Some((Kind::File, _)) => {
            let file = tree
                .read(path)
                .map_err(BuildError::io("read the context"))?;
            text_of(file, &shown.to_string()).map(Some)
        }
        Some(_) => Err(BuildError::Invalid(format!(
            "{shown} is not a regular file"
        ))),
    }
}

fn text_of(source: impl Read, name: &str) -> Result<String, BuildError> {
    let mut bytes = Vec::new();
    source
        .take(TEXT_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(images_or_io("read the context"))?;
    if bytes.len() as u64 > TEXT_BYTES_MAX {
        return Err(BuildError::Invalid(format!(
            "{name} has more than {TEXT_BYTES_MAX} bytes"
        )));
    }
    String::from_utf8(bytes)
        .map_err(|_| BuildError::Invalid(format!("{name} is not text in UTF-8")))
}

fn images_or_io(action: &'static str) -> impl FnOnce(io::Error) -> BuildError {
    move |error| match error.downcast::<images::ImageError>() {
        Ok(error) => error.into(),
        Err(error) => BuildError::io(action)(error),
    }
}

/// Brings a context from elsewhere, as an archive or the text of a Dockerfile.
pub(super) async fn fetch_remote(remote: &str, into: &Path) -> Result<Fetched, BuildError> {
    const NAME: &str = "remote";
    if let Some(repository) = git::Repository::of(remote)? {
        return repository.fetch(into, NAME).await;
    }
    check_remote(remote)?;
    fetch(remote, into, NAME).await
}

/// Refuses what this builder cannot fetch.
fn check_remote(remote: &str) -> Result<(), BuildError> {
    match remote.starts_with("http://") || remote.starts_with("https://") {
        true => Ok(()),
        false => Err(BuildError::Invalid(format!(
            "remote context {remote:?} is neither a git repository nor an http or https URL"
        ))),
    }
}

/// A file that was fetched.
pub(super) struct Fetched {
    pub path: PathBuf,
}

/// The last component of a URL's path, which names the file that `ADD` makes of it.
pub(super) fn name_in_url(url: &str) -> Option<String> {
    let rest = url.split_once("://")?.1;
    let path = rest.split(['?', '#']).next()?.split_once('/')?.1;
    let name = path.rsplit('/').next()?;
    Some(name.to_owned()).filter(|name| !matches!(name.as_str(), "" | "." | ".."))
}

/// Downloads a URL into a file of the directory, which is read as a tree afterwards.
pub(super) async fn fetch(url: &str, into: &Path, name: &str) -> Result<Fetched, BuildError> {
    let path = into.join(name);
    let time = images::download(url, &path).await?;
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .map_err(BuildError::io("protect a download"))?;
    // Without a date from the server the file has none that means anything.
    let time = time.unwrap_or(std::time::SystemTime::UNIX_EPOCH);
    fs::File::open(&path)
        .and_then(|file| file.set_modified(time))
        .map_err(BuildError::io("date a download"))?;
    Ok(Fetched { path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remotes_are_archives_by_http() {
        assert!(check_remote("http://h/a.tar.gz").is_ok());
        let refused = |remote| check_remote(remote).unwrap_err().to_string();
        assert!(refused("/etc").contains("neither"));
        assert_eq!(
            name_in_url("http://h/a/b.txt?x=1").as_deref(),
            Some("b.txt")
        );
        assert_eq!(name_in_url("http://h/a/"), None);
        assert_eq!(name_in_url("http://h"), None);
    }
}
