//! `shoal exec`: another process in a running container.

use anyhow::Result;
use clap::Args as ClapArgs;
use serde_json::json;

use crate::{
    Exit,
    client::{Client, Target},
    flags::environment,
    json::{number, text},
    output,
    terminal::{self, DetachKeys, Ended, RawMode},
};

/// Execute a command in a running container
#[derive(ClapArgs)]
#[command(after_help = "Examples:\n  shoal exec web cat /etc/hosts\n  shoal exec -it web sh")]
pub(crate) struct Args {
    /// Detached mode: run command in the background
    #[arg(short, long)]
    detach: bool,
    #[command(flatten)]
    process: Process,
    /// Container, and the command with its arguments
    #[arg(required = true, trailing_var_arg = true, value_names = ["CONTAINER", "COMMAND"], num_args = 2..)]
    container_and_command: Vec<String>,
}

/// What a further process in a container is like
#[derive(ClapArgs)]
pub(crate) struct Process {
    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "string")]
    detach_keys: Option<String>,
    /// Keep STDIN open even if not attached
    #[arg(short, long)]
    interactive: bool,
    /// Allocate a pseudo-TTY
    #[arg(short, long)]
    tty: bool,
    /// Set environment variables
    #[arg(short, long, value_name = "list")]
    env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long, value_name = "list")]
    env_file: Vec<String>,
    /// Give extended privileges to the command
    #[arg(long)]
    privileged: bool,
    /// Username or UID (format: "<name|uid>[:<group|gid>]")
    #[arg(
        short,
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    user: String,
    /// Working directory inside the container
    #[arg(
        short,
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    workdir: String,
}

impl Args {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let (container, command) = self
            .container_and_command
            .split_first()
            .expect("clap demands two values");
        let create = Target::new("/containers/{}/exec", &[container]);
        self.process
            .run(create, "", command, self.detach, client)
            .await
    }
}

impl Process {
    /// Makes the process and attaches to it; `api` is what stands before `/exec` in the API's paths.
    pub(crate) async fn run(
        &self,
        create: Target,
        api: &str,
        command: &[String],
        detach: bool,
        client: &Client,
    ) -> Result<()> {
        let stdin = self.interactive && !detach;
        if !detach {
            terminal::check_tty(stdin, self.tty)?;
        }
        let keys = DetachKeys::wanted(self.detach_keys.as_deref())?;
        let mut body = json!({
            "AttachStdin": stdin,
            "AttachStdout": !detach,
            "AttachStderr": !detach,
            "Tty": self.tty,
            "Cmd": command,
            "Env": environment::variables(&self.env, &self.env_file, &environment::process)?,
            "Privileged": self.privileged,
            "User": self.user,
            "WorkingDir": self.workdir,
            "DetachKeys": keys.text,
        });
        if let (true, Some((width, height))) = (self.tty, terminal_size::terminal_size()) {
            body["ConsoleSize"] = json!([height.0, width.0]);
        }
        let made = client.post(create, body).await?;
        let id = text(&made, "/Id");
        let path = |verb: &str| format!("{api}/exec/{{}}/{verb}");
        let start = json!({"Detach": detach, "Tty": self.tty});
        let target = Target::new(&path("start"), &[id]);
        if detach {
            client.post(target, start).await?;
            return Ok(());
        }
        let stream = client.hijack(target, start).await.map_err(cannot_exec)?;
        let raw = if self.tty && stdin {
            RawMode::enter()?
        } else {
            None
        };
        let resize = async {
            if self.tty && output::is_terminal() {
                terminal::follow_size(client, &path("resize"), id).await;
            }
            std::future::pending::<Ended>().await
        };
        let ended = tokio::select! {
            ended = terminal::copy(stream, stdin, self.tty, &keys) => ended,
            never = resize => Ok(never),
        };
        drop(raw);
        if ended? == Ended::Detached {
            return Ok(());
        }
        let state = client.get(Target::new(&path("json"), &[id])).await?;
        match number(&state, "/ExitCode") {
            0 => Ok(()),
            code => {
                let code = i32::try_from(code).unwrap_or(1);
                Err(Exit {
                    code,
                    message: String::new(),
                }
                .into())
            }
        }
    }
}

/// As docker: 127 for a command that is not there, 126 for one that cannot be run.
fn cannot_exec(error: anyhow::Error) -> anyhow::Error {
    let message = format!("{error:#}");
    let lower = message.to_lowercase();
    let code = match () {
        () if lower.contains("executable file not found")
            || lower.contains("no such file or directory") =>
        {
            127
        }
        () if lower.contains("permission denied") || lower.contains("is a directory") => 126,
        () => return error,
    };
    Exit { code, message }.into()
}
