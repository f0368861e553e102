//! Which daemon is meant: flags, then the environment, then the context in use, as docker decides it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use shoal_ca::{ApiClientTls, KeyFiles};

use crate::{
    client::{Client, DEFAULT_HOST},
    config_file::{self, ConfigFile},
    context::{self, Store, TLS_FILES},
};

/// The flags before a command.
#[derive(clap::Args, Default)]
pub(crate) struct Globals {
    /// Daemon socket to connect to
    #[arg(short = 'H', long, value_name = "host")]
    pub(crate) host: Option<String>,
    /// Name of the context to use to connect to the daemon (overrides SHOAL_HOST, DOCKER_HOST and the context set with
    /// "shoal context use")
    #[arg(short, long, value_name = "string")]
    pub(crate) context: Option<String>,
    /// Location of client config files (default "~/.docker")
    #[arg(long, value_name = "string")]
    pub(crate) config: Option<PathBuf>,
    /// Set the logging level ("debug", "info", "warn", "error", "fatal")
    #[arg(short, long, value_name = "string", value_parser = ["trace", "debug", "info", "warn", "error", "fatal", "panic"])]
    log_level: Option<String>,
    /// Use TLS; implied by --tlsverify
    #[arg(long)]
    tls: bool,
    /// Trust certs signed only by this CA (default "~/.docker/ca.pem")
    #[arg(long, value_name = "string")]
    tlscacert: Option<PathBuf>,
    /// Path to TLS certificate file (default "~/.docker/cert.pem")
    #[arg(long, value_name = "string")]
    tlscert: Option<PathBuf>,
    /// Path to TLS key file (default "~/.docker/key.pem")
    #[arg(long, value_name = "string")]
    tlskey: Option<PathBuf>,
    /// Use TLS and verify the remote
    #[arg(long)]
    tlsverify: bool,
}

/// A variable of the environment that says something.
pub(crate) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The host of the environment: ours before docker's.
pub(crate) fn environment_host() -> Option<String> {
    environment("SHOAL_HOST").or_else(|| environment("DOCKER_HOST"))
}

/// The platform of images when none is said.
pub(crate) fn default_platform() -> Option<String> {
    environment("DOCKER_DEFAULT_PLATFORM")
}

impl Globals {
    /// The level that was said before a command.
    pub(crate) fn said_log_level(&self) -> Option<String> {
        self.log_level.clone()
    }

    /// Name of the context that is meant.
    pub(crate) fn context_name(&self) -> Result<String> {
        if self.context.is_some() && self.host.is_some() {
            bail!("conflicting options: cannot specify both --host and --context");
        }
        if let Some(name) = &self.context {
            return Ok(name.clone());
        }
        if self.host.is_some() || environment_host().is_some() {
            return Ok(context::DEFAULT.to_owned());
        }
        if let Some(name) = environment("DOCKER_CONTEXT") {
            return Ok(name);
        }
        let file = ConfigFile::load()?;
        Ok(file
            .text("currentContext")
            .unwrap_or(context::DEFAULT)
            .to_owned())
    }

    /// Where the default context leads.
    pub(crate) fn default_host(&self) -> String {
        let said = self.host.clone().or_else(environment_host);
        said.unwrap_or_else(|| DEFAULT_HOST.to_owned())
    }

    /// A client of the daemon that is meant.
    pub(crate) fn client(&self) -> Result<Client> {
        let name = self.context_name()?;
        if name == context::DEFAULT {
            return Client::new(&self.default_host(), self.tls()?);
        }
        let store = Store::open();
        let found = store.read(&name).map_err(|error| {
            anyhow::anyhow!("{error:#}; \"shoal context ls\" lists those that there are")
        })?;
        let folder = store.tls(&name);
        let [ca, cert, key] = TLS_FILES.map(|(_, file)| folder.join(file));
        let tls = if [&ca, &cert, &key].iter().any(|path| path.exists()) || found.skip_tls_verify {
            let roots = (!found.skip_tls_verify).then_some(ca.as_path());
            Some(tls(roots, &cert, &key)?)
        } else {
            None
        };
        Client::new(&found.host, tls)
    }

    fn tls(&self) -> Result<Option<ApiClientTls>> {
        let verify = self.tlsverify || environment("DOCKER_TLS_VERIFY").is_some();
        let named = self.tlscacert.is_some() || self.tlscert.is_some() || self.tlskey.is_some();
        if !verify && !self.tls && !named {
            return Ok(None);
        }
        let folder =
            environment("DOCKER_CERT_PATH").map_or_else(config_file::folder, PathBuf::from);
        let file =
            |said: &Option<PathBuf>, name: &str| said.clone().unwrap_or_else(|| folder.join(name));
        let ca = file(&self.tlscacert, "ca.pem");
        let roots = verify.then_some(ca.as_path());
        tls(
            roots,
            &file(&self.tlscert, "cert.pem"),
            &file(&self.tlskey, "key.pem"),
        )
        .map(Some)
    }
}

/// TLS with a certificate of our own if there is one.
fn tls(roots: Option<&Path>, certificate: &Path, key: &Path) -> Result<ApiClientTls> {
    let own = (certificate.exists() || key.exists()).then_some(KeyFiles { certificate, key });
    ApiClientTls::new(roots, own).context("cannot set up TLS")
}
