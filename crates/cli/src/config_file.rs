//! Docker's client configuration: the folder `~/.docker`, its `config.json`, and the credential helpers named there.
//!
//! What is in the file and not known here is kept as it is: other programs share it.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context as _, Result, bail};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE},
};
use serde_json::{Map, Value, json};

use crate::{image_ref::registry, json::text};

/// The registry that is meant when none is named, as it stands in the file.
pub(crate) const DEFAULT_REGISTRY: &str = "https://index.docker.io/v1/";
/// User name under which a helper keeps an identity token instead of a password (docker-credential-helpers).
const TOKEN_USER: &str = "<token>";

static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// Uses another folder than that of the environment; the first word counts.
pub(crate) fn use_folder(folder: PathBuf) {
    let _ = FOLDER.set(folder);
}

/// The folder of the configuration: `--config`, `DOCKER_CONFIG`, `~/.docker`.
pub(crate) fn folder() -> PathBuf {
    if let Some(folder) = FOLDER.get() {
        return folder.clone();
    }
    match std::env::var_os("DOCKER_CONFIG") {
        Some(folder) if !folder.is_empty() => folder.into(),
        _ => {
            let home = std::env::var_os("HOME").unwrap_or_else(|| "/".into());
            Path::new(&home).join(".docker")
        }
    }
}

/// Credentials of one registry.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) username: String,
    pub(crate) password: String,
    /// Instead of a password.
    pub(crate) identity_token: String,
}

/// `config.json`.
pub(crate) struct ConfigFile {
    path: PathBuf,
    content: Map<String, Value>,
}

impl ConfigFile {
    /// Reads it; one that is not there is empty.
    pub(crate) fn load() -> Result<Self> {
        Self::read(folder().join("config.json"))
    }

    fn read(path: PathBuf) -> Result<Self> {
        let content = match fs::read(&path) {
            Ok(bytes) if bytes.iter().all(u8::is_ascii_whitespace) => Map::new(),
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is not valid JSON", path.display()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Map::new(),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        Ok(Self { path, content })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A text member of it.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        let value = self.content.get(name)?.as_str()?;
        (!value.is_empty()).then_some(value)
    }

    /// Sets a text member, or takes it away.
    pub(crate) fn set_text(&mut self, name: &str, value: Option<&str>) {
        match value {
            Some(value) => self.content.insert(name.to_owned(), value.into()),
            None => self.content.remove(name),
        };
    }

    /// Writes it, whole or not at all; nobody else may read it.
    pub(crate) fn save(&self) -> Result<()> {
        // A link is followed, so that a file kept elsewhere stays there.
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let folder = path.parent().unwrap_or(Path::new("/"));
        let saved = || -> io::Result<()> {
            fs::create_dir_all(folder)?;
            let partial = path.with_extension(format!("json.{}", std::process::id()));
            let mut file = fs::File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&partial)?;
            let text = serde_json::to_string_pretty(&self.content).map_err(io::Error::from)?;
            let written = file
                .write_all(text.replace("  ", "\t").as_bytes())
                .and_then(|()| file.sync_all())
                .and_then(|()| fs::rename(&partial, &path));
            if written.is_err() {
                let _ = fs::remove_file(&partial);
            }
            written
        };
        saved().with_context(|| format!("cannot save {}", self.path.display()))
    }

    /// The program that keeps the credentials of a registry, if not this file.
    pub(crate) fn helper(&self, server: &str) -> Option<String> {
        let of_server = self.content.get("credHelpers").and_then(|all| {
            let all = all.as_object()?;
            let named = all.iter().find(|(name, _)| bare(name) == bare(server))?;
            named.1.as_str().filter(|name| !name.is_empty())
        });
        let name = of_server.or_else(|| self.text("credsStore"))?;
        Some(format!("docker-credential-{name}"))
    }

    /// The credentials of a registry, if there are any.
    pub(crate) fn credentials(&self, server: &str) -> Result<Option<Credentials>> {
        if let Some(helper) = self.helper(server) {
            return helped(&helper, server);
        }
        let Some(all) = self.content.get("auths").and_then(Value::as_object) else {
            return Ok(None);
        };
        let entry = all.get(server).or_else(|| {
            let found = all.iter().find(|(name, _)| bare(name) == bare(server))?;
            Some(found.1)
        });
        let Some(entry) = entry else {
            return Ok(None);
        };
        let mut found = Credentials {
            username: text(entry, "/username").to_owned(),
            password: text(entry, "/password").to_owned(),
            identity_token: text(entry, "/identitytoken").to_owned(),
        };
        let packed = text(entry, "/auth");
        if !packed.is_empty() {
            let plain = STANDARD
                .decode(packed)
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok());
            let Some((user, password)) = plain.as_deref().and_then(|plain| plain.split_once(':'))
            else {
                bail!("invalid auth configuration file: the entry of {server}");
            };
            user.clone_into(&mut found.username);
            password.trim_matches('\0').clone_into(&mut found.password);
        }
        Ok((found != Credentials::default()).then_some(found))
    }

    /// Keeps credentials: by the helper if there is one, else in this file. Answers whether they are in the file.
    pub(crate) fn store(&mut self, server: &str, given: &Credentials) -> Result<bool> {
        let helper = self.helper(server);
        let entry = if let Some(helper) = &helper {
            let (user, secret) = match given.identity_token.as_str() {
                "" => (given.username.as_str(), given.password.as_str()),
                token => (TOKEN_USER, token),
            };
            let told = json!({"ServerURL": server, "Username": user, "Secret": secret});
            ask(helper, "store", &told.to_string())?;
            json!({})
        } else {
            let token = !given.identity_token.is_empty();
            let password = if token { "" } else { given.password.as_str() };
            let mut entry =
                json!({"auth": STANDARD.encode(format!("{}:{password}", given.username))});
            if token {
                entry["identitytoken"] = given.identity_token.clone().into();
            }
            entry
        };
        let auths = self.content.entry("auths").or_insert_with(|| json!({}));
        auths[server] = entry;
        self.save()?;
        Ok(helper.is_none())
    }

    /// Forgets the credentials of a registry. Answers whether there were any.
    pub(crate) fn erase(&mut self, server: &str) -> Result<bool> {
        let known = self.credentials(server).is_ok_and(|found| found.is_some());
        if let Some(helper) = self.helper(server) {
            ask(&helper, "erase", server)?;
        }
        let Some(all) = self.content.get_mut("auths").and_then(Value::as_object_mut) else {
            return Ok(known);
        };
        let before = all.len();
        all.retain(|name, _| bare(name) != bare(server));
        let listed = all.len() != before;
        if listed {
            self.save()?;
        }
        Ok(known || listed)
    }

    /// All registries with credentials, as `X-Registry-Config` of a build carries them.
    pub(crate) fn all_credentials(&self) -> Value {
        let names = ["auths", "credHelpers"].into_iter().filter_map(|member| {
            let all = self.content.get(member)?.as_object()?;
            Some(all.keys().cloned())
        });
        let mut out = Map::new();
        for server in names.flatten() {
            // A helper that is not there is no reason not to build.
            if let Ok(Some(found)) = self.credentials(&server) {
                out.insert(server.clone(), auth(&server, &found));
            }
        }
        out.into()
    }
}

/// The server's name alone, without scheme and path: old entries have them.
fn bare(server: &str) -> &str {
    let rest = server.split_once("://").map_or(server, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

/// Runs a helper (docker-credential-helpers' protocol): `action` as argument, one message in, one out.
fn ask(helper: &str, action: &str, input: &str) -> Result<String> {
    let mut child = Command::new(helper)
        .arg(action)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .with_context(|| format!("error getting credentials - err: exec: \"{helper}\""))?;
    let mut stdin = child.stdin.take().context("the pipe was asked for")?;
    // One that does not read what it is told says so itself.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() {
        bail!(
            "error getting credentials - err: {}, out: `{said}`",
            output.status
        );
    }
    Ok(said)
}

fn helped(helper: &str, server: &str) -> Result<Option<Credentials>> {
    let said = match ask(helper, "get", server) {
        Ok(said) => said,
        Err(error) if error.to_string().contains("credentials not found") => return Ok(None),
        Err(error) => return Err(error),
    };
    let said: Value = serde_json::from_str(&said)
        .with_context(|| format!("{helper} answered something that is not JSON"))?;
    let (user, secret) = (text(&said, "/Username"), text(&said, "/Secret"));
    Ok(Some(if user == TOKEN_USER {
        Credentials {
            identity_token: secret.to_owned(),
            ..Credentials::default()
        }
    } else {
        Credentials {
            username: user.to_owned(),
            password: secret.to_owned(),
            ..Credentials::default()
        }
    }))
}

/// The API's form of credentials.
pub(crate) fn auth(server: &str, given: &Credentials) -> Value {
    let mut auth = json!({"serveraddress": server});
    for (name, value) in [
        ("username", &given.username),
        ("password", &given.password),
        ("identitytoken", &given.identity_token),
    ] {
        if !value.is_empty() {
            auth[name] = value.clone().into();
        }
    }
    auth
}

/// The name in the configuration of the registry that a server is: that of the default one is an address.
pub(crate) fn server_name(server: &str) -> &str {
    match server {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
        server => server,
    }
}

/// What the configuration knows about the registry of an image, as `X-Registry-Auth`.
pub(crate) fn registry_auth(image: &str) -> Option<String> {
    let server = server_name(registry(image));
    // Without credentials the registry may still let us in; what it says counts.
    let found = ConfigFile::load().and_then(|file| file.credentials(server));
    let found = found.ok().flatten()?;
    Some(URL_SAFE.encode(auth(server, &found).to_string()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn credentials(user: &str, password: &str) -> Credentials {
        Credentials {
            username: user.to_owned(),
            password: password.to_owned(),
            ..Credentials::default()
        }
    }

    #[test]
    fn credentials_are_kept_beside_what_others_wrote() {
        let folder = std::env::temp_dir().join(format!("shoal-config-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("config.json");
        fs::write(
            &path,
            r#"{"proxies": {"default": {}}, "auths": {"https://old:5000/v1/": {"auth": "YTpi"}}}"#,
        )
        .unwrap();
        let mut file = ConfigFile::read(path.clone()).unwrap();
        assert!(file.credentials("old:5000").unwrap() == Some(credentials("a", "b")));
        assert!(file.credentials("new:5000").unwrap().is_none());
        assert!(file.store("new:5000", &credentials("me", "a:b")).unwrap());

        let mut file = ConfigFile::read(path.clone()).unwrap();
        assert!(file.credentials("new:5000").unwrap() == Some(credentials("me", "a:b")));
        assert_eq!(file.content["proxies"], json!({"default": {}}));
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(file.erase("old:5000").unwrap() && !file.erase("old:5000").unwrap());
        assert!(file.credentials("old:5000").unwrap().is_none());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_helper_is_asked_where_one_is_named() {
        let file = ConfigFile {
            path: PathBuf::new(),
            content: serde_json::from_value(
                json!({"credsStore": "all", "credHelpers": {"r:5000": "one"}}),
            )
            .unwrap(),
        };
        assert_eq!(file.helper("r:5000").unwrap(), "docker-credential-one");
        assert_eq!(file.helper("other").unwrap(), "docker-credential-all");
        let error = file.credentials("r:5000").err().unwrap();
        assert!(format!("{error:#}").contains("docker-credential-one"));
    }
}
