//! `shoal run`, `create`, `start` and `attach`: commands that bring containers up and hold on to them.

mod api_socket;

use anyhow::{Result, bail};
use clap::Args;
use hyper::Method;
use serde_json::Value;

use super::{container_flags::Flags, image};
use crate::{
    Exit,
    client::{Client, Payload, Refused, Target, document, is_not_found},
    connect,
    flags::environment,
    json::{is, number, text},
    output,
    progress::Lines,
    terminal::{self, DetachKeys, Ended, RawMode},
};

/// Create and run a new container from an image
#[derive(Args)]
#[command(disable_help_flag = true)]
#[command(
    after_help = "Examples:\n  shoal run --rm debian:13 echo hello\n  shoal run -it --rm debian:13 bash\n  shoal run -d --name web -p 8080:80 -v site:/usr/share/nginx/html:ro nginx"
)]
pub(crate) struct Run {
    /// Run container in background and print container ID
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_default_value = true, value_name = "bool")]
    detach: bool,
    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "string")]
    detach_keys: Option<String>,
    /// Proxy received signals to the process
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", value_name = "bool")]
    sig_proxy: bool,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    flags: Flags,
    /// Image, and the command with its arguments
    #[arg(required = true, trailing_var_arg = true, value_names = ["IMAGE", "COMMAND"], num_args = 1..)]
    image_and_command: Vec<String>,
}

/// Create a new container
#[derive(Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Create {
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    flags: Flags,
    /// Image, and the command with its arguments
    #[arg(required = true, trailing_var_arg = true, value_names = ["IMAGE", "COMMAND"], num_args = 1..)]
    image_and_command: Vec<String>,
}

/// Start one or more stopped containers
#[derive(Args)]
pub(crate) struct Start {
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
    /// Attach STDOUT/STDERR and forward signals
    #[arg(short, long)]
    attach: bool,
    /// Attach container's STDIN
    #[arg(short, long)]
    interactive: bool,
    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "string")]
    detach_keys: Option<String>,
}

/// Attach to the streams of a running container
#[derive(Args)]
pub(crate) struct Attach {
    container: String,
    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "string")]
    detach_keys: Option<String>,
    /// Do not attach STDIN
    #[arg(long)]
    no_stdin: bool,
    /// Proxy all received signals to the process
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", value_name = "bool")]
    sig_proxy: bool,
}

/// What of a container to hold on to.
#[derive(Clone)]
struct Hold {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
    sig_proxy: bool,
    /// Ends with the container's removal instead of its next exit.
    removed: bool,
    keys: DetachKeys,
}

/// Makes the error of a container that could not be run into docker's exit code and text.
fn cannot_run(error: anyhow::Error) -> anyhow::Error {
    let lower = format!("{error:#}").to_lowercase();
    let any = |texts: &[&str]| texts.iter().any(|text| lower.contains(text));
    let code = match () {
        () if any(&[
            "executable file not found",
            "no such file or directory",
            "not found in $path",
        ]) =>
        {
            127
        }
        () if any(&["permission denied", "is a directory", "exec format error"]) => 126,
        () => 125,
    };
    let message = explained(&error);
    Exit { code, message }.into()
}

fn explained(error: &anyhow::Error) -> String {
    let program = crate::program();
    format!("{program}: {error:#}\n\nRun '{program} run --help' for more information")
}

/// Errors before a container exists end with 125.
fn cannot_create(error: anyhow::Error) -> anyhow::Error {
    let message = explained(&error);
    Exit { code: 125, message }.into()
}

fn exit_with(code: i64) -> Result<()> {
    match i32::try_from(code) {
        Ok(0) => Ok(()),
        Ok(code) => Err(Exit {
            code,
            message: String::new(),
        }
        .into()),
        Err(_) => bail!("the container ended with {code}"),
    }
}

impl Run {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let flags = &self.flags;
        let attached = |stream: &str| {
            flags
                .attach
                .iter()
                .any(|name| name.eq_ignore_ascii_case(stream))
        };
        let all = flags.attach.is_empty() && !self.detach;
        let hold = Hold {
            stdin: flags.interactive && (all || attached("stdin")),
            stdout: all || attached("stdout"),
            stderr: all || attached("stderr"),
            tty: flags.tty,
            sig_proxy: self.sig_proxy && !flags.tty,
            removed: flags.rm,
            keys: DetachKeys::wanted(self.detach_keys.as_deref())?,
        };
        if self.detach && !flags.attach.is_empty() {
            bail!("conflicting options: cannot specify both --attach and --detach");
        }
        if !self.detach {
            terminal::check_tty(hold.stdin, hold.tty)?;
        }
        let id = create(flags, &self.image_and_command, Some(&hold), client)
            .await
            .map_err(cannot_create)?;
        if self.detach {
            start(&id, client).await.map_err(cannot_run)?;
            output::line(id);
            return Ok(());
        }
        let status = run_attached(&id, hold, client).await?;
        exit_with(status)
    }
}

impl Create {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let id = create(&self.flags, &self.image_and_command, None, client).await?;
        output::line(id);
        Ok(())
    }
}

impl Start {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        if !self.attach && !self.interactive {
            let started = output::each(&self.containers, async |name: String| {
                start(&name, client).await?;
                Ok(Some(name))
            });
            return started.await.map_err(|error| {
                anyhow::anyhow!(
                    "{error:#}\nfailed to start containers: {}",
                    self.containers.join(", ")
                )
            });
        }
        let [name] = &self.containers[..] else {
            bail!("you cannot start and attach multiple containers at once");
        };
        let container = client
            .get(Target::new("/containers/{}/json", &[name]))
            .await?;
        let tty = is(&container, "/Config/Tty");
        let hold = Hold {
            stdin: self.interactive && is(&container, "/Config/OpenStdin"),
            stdout: true,
            stderr: true,
            tty,
            sig_proxy: !tty,
            removed: is(&container, "/HostConfig/AutoRemove"),
            keys: DetachKeys::wanted(self.detach_keys.as_deref())?,
        };
        let status = run_attached(text(&container, "/Id"), hold, client).await?;
        exit_with(status)
    }
}

impl Attach {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let container = client
            .get(Target::new("/containers/{}/json", &[&self.container]))
            .await?;
        if !is(&container, "/State/Running") {
            bail!("cannot attach to a stopped container, start it first");
        }
        if is(&container, "/State/Paused") {
            bail!("cannot attach to a paused container, unpause it first");
        }
        let tty = is(&container, "/Config/Tty");
        let hold = Hold {
            stdin: !self.no_stdin && is(&container, "/Config/OpenStdin"),
            stdout: true,
            stderr: true,
            tty,
            sig_proxy: self.sig_proxy && !tty,
            removed: false,
            keys: DetachKeys::wanted(self.detach_keys.as_deref())?,
        };
        terminal::check_tty(hold.stdin, tty)?;
        let status = hold_on(text(&container, "/Id"), hold, false, client).await?;
        exit_with(status)
    }
}

async fn start(id: &str, client: &Client) -> Result<()> {
    client
        .post(Target::new("/containers/{}/start", &[id]), Payload::Empty)
        .await?;
    Ok(())
}

/// Makes the container, pulling its image if need be, and returns its id.
async fn create(
    flags: &Flags,
    image_and_command: &[String],
    hold: Option<&Hold>,
    client: &Client,
) -> Result<String> {
    let (image, command) = image_and_command
        .split_first()
        .expect("clap demands one value");
    let mut body = flags.body(image, command, &environment::process)?;
    // What `create` makes is to be attached to later, if at all.
    let (stdin, stdout, stderr) = hold.map_or((flags.interactive, true, true), |hold| {
        (hold.stdin, hold.stdout, hold.stderr)
    });
    body["AttachStdin"] = stdin.into();
    body["AttachStdout"] = stdout.into();
    body["AttachStderr"] = stderr.into();
    // The container's input ends when the one attached client's does.
    body["StdinOnce"] = stdin.into();
    if let (true, Some((width, height))) = (flags.tty, terminal_size::terminal_size()) {
        body["HostConfig"]["ConsoleSize"] = serde_json::json!([height.0, width.0]);
    }
    if flags.uses_api_socket() {
        api_socket::lend(&mut body, client)?;
    }
    if let Some(path) = &flags.cidfile
        && std::path::Path::new(path).exists()
    {
        bail!(
            "container ID file found, make sure the other container isn't running or delete {path}"
        );
    }
    let lines = || (!flags.quiet).then(Lines::on_stderr);
    let platform = flags.platform.clone().or_else(connect::default_platform);
    let platform = platform.as_deref();
    if flags.pull == "always" {
        image::pull(image, platform, lines(), client).await?;
    }
    let target = || {
        Target::new("/containers/create", &[])
            .maybe("name", flags.name.as_deref())
            .maybe("platform", platform)
    };
    let made = match client.post(target(), body.clone()).await {
        Err(error) if flags.pull == "missing" && is_not_found(&error) && is_about_image(&error) => {
            if !flags.quiet {
                let name = crate::image_ref::with_default_tag(image);
                output::note(format!("Unable to find image '{name}' locally"));
            }
            image::pull(image, platform, lines(), client).await?;
            client.post(target(), body).await?
        }
        answer => answer?,
    };
    for warning in crate::json::texts(&made, "/Warnings") {
        output::note(format!("WARNING: {warning}"));
    }
    let id = text(&made, "/Id").to_owned();
    if flags.uses_api_socket() {
        api_socket::lend_credentials(&id, client).await?;
    }
    if let Some(path) = &flags.cidfile {
        std::fs::write(path, &id)?;
    }
    Ok(id)
}

/// A container may be refused with 404 for its network, too; pulling would not help that.
fn is_about_image(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<Refused>()
        .is_some_and(|refused| refused.message.to_lowercase().contains("image"))
}

async fn run_attached(id: &str, hold: Hold, client: &Client) -> Result<i64> {
    hold_on(id, hold, true, client).await
}

/// Attaches to a container, starts it if wanted, copies its streams, and returns its exit code.
async fn hold_on(id: &str, hold: Hold, start_it: bool, client: &Client) -> Result<i64> {
    let target = Target::new("/containers/{}/attach", &[id])
        .arg("stream", 1)
        .arg("detachKeys", &hold.keys.text)
        .flag("stdin", hold.stdin)
        .flag("stdout", hold.stdout)
        .flag("stderr", hold.stderr);
    let stream = client
        .hijack(target, Payload::Empty)
        .await
        .map_err(cannot_create)?;
    // Asked before the start, so that even the shortest run is not missed: its head arrives once the daemon listens.
    let condition = match (start_it, hold.removed) {
        (_, true) => "removed",
        (true, false) => "next-exit",
        (false, false) => "not-running",
    };
    let target = Target::new("/containers/{}/wait", &[id]).arg("condition", condition);
    let ended = client
        .send(Method::POST, target, Payload::Empty)
        .await
        .map_err(cannot_create)?;
    let raw = if hold.tty && hold.stdin {
        RawMode::enter()?
    } else {
        None
    };
    let copy = terminal::copy(stream, hold.stdin, hold.tty, &hold.keys);
    let up = tokio::sync::Notify::new();
    let work = async {
        if start_it {
            // The output is read meanwhile, or a talkative process would block.
            let started = async {
                start(id, client).await.map_err(cannot_run)?;
                up.notify_one();
                Ok(())
            };
            let (copied, ()) = tokio::try_join!(copy, started)?;
            Ok(copied)
        } else {
            up.notify_one();
            copy.await
        }
    };
    let resize = async {
        if hold.tty && output::is_terminal() {
            // A container has no terminal to be sized before it is up.
            up.notified().await;
            terminal::follow_size(client, "/containers/{}/resize", id).await;
        }
        std::future::pending::<()>().await;
    };
    let signals = async {
        if hold.sig_proxy {
            terminal::proxy_signals(client, id).await;
        }
        std::future::pending::<()>().await;
    };
    let finish = async {
        let copied = work.await?;
        if copied == Ended::Detached {
            return Ok(Value::Null);
        }
        document(ended).await
    };
    let status = tokio::select! {
        status = finish => status,
        () = resize => unreachable!("it never ends"),
        () = signals => unreachable!("it never ends"),
    };
    drop(raw);
    let status = status?;
    if let Some(error) = status.pointer("/Error/Message").and_then(Value::as_str) {
        bail!("{error}");
    }
    Ok(number(&status, "/StatusCode"))
}
