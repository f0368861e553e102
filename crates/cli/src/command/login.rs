//! `shoal login` and `logout`: credentials of registries, kept where docker keeps them.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use nix::sys::termios::{self, LocalFlags, SetArg};

use crate::{
    client::{Client, Target},
    config_file::{ConfigFile, Credentials, DEFAULT_REGISTRY, auth, server_name},
    json::text,
    output,
};

/// Authenticate to a registry
#[derive(Args)]
#[command(
    after_help = "Examples:\n  shoal login registry.example:5000\n  cat password | shoal login -u me --password-stdin registry.example:5000"
)]
pub(crate) struct Login {
    /// Registry; without one that of Docker Hub
    server: Option<String>,
    /// Username
    #[arg(short, long, value_name = "string")]
    username: Option<String>,
    /// Password or Personal Access Token (PAT)
    #[arg(short, long, value_name = "string")]
    password: Option<String>,
    /// Take the Password or Personal Access Token (PAT) from stdin
    #[arg(long)]
    password_stdin: bool,
}

/// Log out from a registry
#[derive(Args)]
#[command(after_help = "Example:\n  shoal logout registry.example:5000")]
pub(crate) struct Logout {
    /// Registry; without one that of Docker Hub
    server: Option<String>,
}

/// The registry's name as the configuration writes it.
fn configured(server: Option<&str>) -> String {
    let server = server.unwrap_or("docker.io");
    let bare = server.split_once("://").map_or(server, |(_, rest)| rest);
    if server == DEFAULT_REGISTRY {
        return server.to_owned();
    }
    let host = bare.split('/').next().unwrap_or(bare);
    server_name(host).to_owned()
}

impl Login {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        if self.password.is_some() {
            if self.password_stdin {
                bail!("--password and --password-stdin are mutually exclusive");
            }
            output::note(
                "WARNING! Using --password via the CLI is insecure. Use --password-stdin.",
            );
        }
        if self.password_stdin && self.username.as_deref().is_none_or(str::is_empty) {
            bail!("Must provide --username with --password-stdin");
        }
        let server = configured(self.server.as_deref());
        let mut file = ConfigFile::load()?;
        let given = if self.password_stdin {
            let mut password = String::new();
            std::io::stdin()
                .read_to_string(&mut password)
                .context("cannot read the password")?;
            Credentials {
                username: self.username.unwrap_or_default(),
                password: password.trim_end_matches(['\r', '\n']).to_owned(),
                ..Credentials::default()
            }
        } else if let (Some(username), Some(password)) = (&self.username, &self.password) {
            Credentials {
                username: username.clone(),
                password: password.clone(),
                ..Credentials::default()
            }
        } else {
            // Who is known to the registry is not asked again, unless as somebody else.
            let known = file.credentials(&server)?;
            let known = known.filter(|known| {
                self.username
                    .as_ref()
                    .is_none_or(|user| *user == known.username)
                    && self.password.is_none()
            });
            if let Some(known) = known {
                output::note("Authenticating with existing credentials...");
                match login(&server, known, client).await {
                    Ok((said, _)) => {
                        output::line(said);
                        return Ok(());
                    }
                    Err(error) => output::note(format!("Login did not succeed, error: {error:#}")),
                }
            }
            asked(self.username, self.password)?
        };
        if given.password.is_empty() {
            bail!("password is empty");
        }
        let (said, kept) = login(&server, given, client).await?;
        if file.store(&server, &kept)? {
            output::note(format!(
                "\nWARNING! Your credentials are stored unencrypted in '{}'.\nConfigure a credential helper to remove \
                 this warning. See\nhttps://docs.docker.com/go/credential-store/\n",
                file.path().display()
            ));
        }
        output::line(said);
        Ok(())
    }
}

/// Asks the daemon to try the credentials; returns what it said, and what is to be kept.
async fn login(
    server: &str,
    mut given: Credentials,
    client: &Client,
) -> Result<(String, Credentials)> {
    let answer = client
        .post(Target::new("/auth", &[]), auth(server, &given))
        .await?;
    match text(&answer, "/IdentityToken") {
        "" => {}
        token => {
            token.clone_into(&mut given.identity_token);
            given.password.clear();
        }
    }
    Ok((text(&answer, "/Status").to_owned(), given))
}

/// Asks the user for what was not said.
fn asked(username: Option<String>, password: Option<String>) -> Result<Credentials> {
    if !std::io::stdin().is_terminal() {
        bail!("Error: Cannot perform an interactive login from a non TTY device");
    }
    let username = match username {
        Some(username) => username,
        None => prompt("Username: ", true)?,
    };
    if username.is_empty() {
        bail!("Error: Non-null Username Required");
    }
    let password = match password {
        Some(password) => password,
        None => prompt("Password: ", false)?,
    };
    if password.is_empty() {
        bail!("Error: Password Required");
    }
    Ok(Credentials {
        username,
        password,
        ..Credentials::default()
    })
}

/// Reads a line from the terminal; what is typed is shown only if `echo`.
fn prompt(question: &str, echo: bool) -> Result<String> {
    let stdin = std::io::stdin();
    output::write(question.as_bytes());
    let before = termios::tcgetattr(&stdin).context("cannot read the terminal's mode")?;
    if !echo {
        let mut quiet = before.clone();
        quiet.local_flags.remove(LocalFlags::ECHO);
        termios::tcsetattr(&stdin, SetArg::TCSANOW, &quiet)
            .context("cannot set the terminal's mode")?;
    }
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    if !echo {
        termios::tcsetattr(&stdin, SetArg::TCSANOW, &before)
            .context("cannot set the terminal's mode")?;
        output::line("");
    }
    let _ = std::io::stdout().flush();
    read.context("cannot read from the terminal")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

impl Logout {
    pub(crate) fn run(self) -> Result<()> {
        let server = configured(self.server.as_deref());
        let shown = if server == DEFAULT_REGISTRY {
            DEFAULT_REGISTRY
        } else {
            &server
        };
        let mut file = ConfigFile::load()?;
        output::line(format!("Removing login credentials for {shown}"));
        if !file.erase(&server)? {
            output::line(format!("Not logged in to {shown}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_named_as_in_the_configuration() {
        assert_eq!(configured(None), DEFAULT_REGISTRY);
        assert_eq!(configured(Some("docker.io")), DEFAULT_REGISTRY);
        assert_eq!(configured(Some("https://r:5000/v2/")), "r:5000");
        assert_eq!(configured(Some("r:5000")), "r:5000");
    }
}
