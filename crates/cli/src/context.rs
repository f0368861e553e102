//! Docker's store of contexts: named daemons with their certificates, shared with docker's own client.
//!
//! A context is `contexts/meta/<SHA-256 of its name>/meta.json`, its certificates are in `contexts/tls/<same>/docker`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::{config_file, json::text};

/// The context that is always there: flags and the environment.
pub(crate) const DEFAULT: &str = "default";

/// Names of certificate files, and the keys of `--docker` that give them.
pub(crate) const TLS_FILES: [(&str, &str); 3] =
    [("ca", "ca.pem"), ("cert", "cert.pem"), ("key", "key.pem")];

/// A context.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Context {
    pub(crate) name: String,
    pub(crate) description: String,
    /// `unix:///…`, `tcp://…`.
    pub(crate) host: String,
    /// Whether the server's certificate is not checked.
    pub(crate) skip_tls_verify: bool,
}

/// The store in the configuration folder.
pub(crate) struct Store {
    folder: PathBuf,
}

impl Store {
    /// That of the configuration folder.
    pub(crate) fn open() -> Self {
        Self {
            folder: config_file::folder().join("contexts"),
        }
    }

    fn meta(&self, name: &str) -> PathBuf {
        self.folder.join("meta").join(digest(name))
    }

    /// Folder of the certificates of a context; it may not be there.
    pub(crate) fn tls(&self, name: &str) -> PathBuf {
        self.folder.join("tls").join(digest(name)).join("docker")
    }

    /// Where a context is kept, for `context inspect`.
    pub(crate) fn places(&self, name: &str) -> (PathBuf, PathBuf) {
        let tls = self.folder.join("tls").join(digest(name));
        (self.meta(name), tls)
    }

    /// Reads a context.
    pub(crate) fn read(&self, name: &str) -> Result<Context> {
        match fs::read(self.meta(name).join("meta.json")) {
            Ok(bytes) => parse(&bytes).with_context(|| format!("context {name:?} is damaged")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                bail!("context {name:?} does not exist")
            }
            Err(error) => Err(error).with_context(|| format!("cannot read context {name:?}")),
        }
    }

    /// All contexts, by name.
    pub(crate) fn list(&self) -> Result<Vec<Context>> {
        let entries = match fs::read_dir(self.folder.join("meta")) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context("cannot list the contexts"),
        };
        let mut all = Vec::new();
        for entry in entries {
            let path = entry?.path().join("meta.json");
            let bytes =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            all.push(parse(&bytes).with_context(|| format!("{} is damaged", path.display()))?);
        }
        all.sort_by(|a: &Context, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Keeps a context with the certificates at these paths, in the order of [`TLS_FILES`]; `None` keeps what is there.
    pub(crate) fn write(&self, context: &Context, tls: Option<[Option<String>; 3]>) -> Result<()> {
        let meta = self.meta(&context.name);
        let document = json!({
            "Name": context.name,
            "Metadata": if context.description.is_empty() { json!({}) } else { json!({"Description": context.description}) },
            "Endpoints": {"docker": {"Host": context.host, "SkipTLSVerify": context.skip_tls_verify}},
        });
        // Certificates first: a context without them would be used as it is.
        if let Some(files) = tls {
            let folder = self.tls(&context.name);
            let _ = fs::remove_dir_all(&folder);
            for (from, (_, name)) in files.into_iter().zip(TLS_FILES) {
                let Some(from) = from else { continue };
                let pem = fs::read(&from).with_context(|| format!("cannot read {from}"))?;
                make(&folder)?;
                write(&folder.join(name), &pem)?;
            }
        }
        make(&meta)?;
        write(&meta.join("meta.json"), document.to_string().as_bytes())
    }

    /// Keeps a context that was exported under whatever name: its metadata, and certificates by endpoint and file.
    pub(crate) fn import(
        &self,
        name: &str,
        meta: &[u8],
        tls: Vec<(String, String, Vec<u8>)>,
    ) -> Result<()> {
        let mut document: Value =
            serde_json::from_slice(meta).context("invalid context: metadata is no JSON")?;
        parse(meta).context("invalid context")?;
        document["Name"] = name.into();
        let (folder, secrets) = self.places(name);
        for (endpoint, file, bytes) in tls {
            let below = secrets.join(endpoint);
            make(&below)?;
            write(&below.join(file), &bytes)?;
        }
        make(&folder)?;
        write(&folder.join("meta.json"), document.to_string().as_bytes())
    }

    /// Forgets a context.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        let (meta, tls) = self.places(name);
        fs::remove_dir_all(&meta).with_context(|| format!("cannot remove context {name:?}"))?;
        match fs::remove_dir_all(tls) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove context {name:?}"))
            }
            _ => Ok(()),
        }
    }
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let written = fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(bytes));
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn parse(bytes: &[u8]) -> Result<Context> {
    let document: Value = serde_json::from_slice(bytes)?;
    Ok(Context {
        name: text(&document, "/Name").to_owned(),
        description: text(&document, "/Metadata/Description").to_owned(),
        host: text(&document, "/Endpoints/docker/Host").to_owned(),
        skip_tls_verify: crate::json::is(&document, "/Endpoints/docker/SkipTLSVerify"),
    })
}

/// SHA-256 in hexadecimal digits, the name of a context's folders.
fn digest(name: &str) -> String {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(name.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Refuses names that docker refuses.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let mut bytes = name.bytes();
    let good = bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphanumeric())
        && name.len() > 1
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.+-".contains(&byte));
    if name == DEFAULT {
        bail!("\"default\" is a reserved context name");
    }
    if !good {
        bail!(
            "context name {name:?} is invalid, names are validated against regexp \"^[a-zA-Z0-9][a-zA-Z0-9_.+-]+$\""
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_kept_where_docker_looks_for_it() {
        let folder = std::env::temp_dir().join(format!("shoal-context-{}", std::process::id()));
        let store = Store {
            folder: folder.clone(),
        };
        let context = Context {
            name: "far".to_owned(),
            description: "a far host".to_owned(),
            host: "tcp://far:2376".to_owned(),
            skip_tls_verify: false,
        };
        fs::create_dir_all(&folder).unwrap();
        let pem = folder.join("pem");
        fs::write(&pem, "key").unwrap();
        let files = [None, None, Some(pem.display().to_string())];
        store.write(&context, Some(files)).unwrap();
        // What `printf far | sha256sum` says.
        assert_eq!(
            digest("far"),
            "512eea46ceb3921dff4363c7069d89d4964d1d9fccaa0f411851a7aa60a5c868"
        );
        assert_eq!(store.read("far").unwrap(), context);
        assert_eq!(store.list().unwrap(), [context.clone()]);
        assert_eq!(fs::read(store.tls("far").join("key.pem")).unwrap(), b"key");
        store.remove("far").unwrap();
        assert!(
            store
                .read("far")
                .unwrap_err()
                .to_string()
                .contains("does not exist")
        );
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn names_are_checked() {
        assert!(check_name("far-1.x").is_ok());
        for bad in ["default", "a", "-a", "a b", "a/b", ""] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
