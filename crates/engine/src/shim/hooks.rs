//! Programs of the host that are called while a container is made, as CDI specifications ask for.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use oci_spec::runtime::Hook;
use serde_json::json;

use super::exec::pidfd_open;
use super::protocol::Failure;

/// Calls hooks in their order; what they are told is the state of the container as the OCI runtime specification has it.
pub(super) fn call(
    hooks: Option<&Vec<Hook>>,
    id: &str,
    bundle: &Path,
    status: &str,
) -> Result<(), Failure> {
    let Some(hooks) = hooks.filter(|hooks| !hooks.is_empty()) else {
        return Ok(());
    };
    // As the host numbers it: the container's own numbers mean nothing to a hook.
    let link = std::fs::read_link("/proc/self").unwrap_or_default();
    let pid: i32 = link
        .to_str()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1);
    let state = json!({
        "ociVersion": "1.2.0",
        "id": id,
        "status": status,
        "pid": pid,
        "bundle": bundle,
    });
    for hook in hooks {
        run(hook, state.to_string().as_bytes()).map_err(|err| {
            Failure::new(format!(
                "error running hook {}: {err}",
                hook.path().display()
            ))
        })?;
    }
    Ok(())
}

fn run(hook: &Hook, state: &[u8]) -> io::Result<()> {
    use std::os::unix::process::CommandExt as _;
    let mut command = Command::new(hook.path());
    if let Some([name, args @ ..]) = hook.args().as_deref() {
        command.arg0(name).args(args);
    }
    let env = hook.env().iter().flatten();
    let mut child = command
        .env_clear()
        .envs(env.filter_map(|entry| entry.split_once('=')))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(state) {
            // Not every hook wants to know.
            Err(err) if err.kind() != io::ErrorKind::BrokenPipe => return Err(err),
            Ok(()) | Err(_) => {}
        }
    }
    if let Some(seconds) = hook
        .timeout()
        .and_then(|seconds| u64::try_from(seconds).ok())
        && !ends_within(&child, Duration::from_secs(seconds))?
    {
        child.kill()?;
        child.wait()?;
        return Err(io::Error::other(format!(
            "it did not end within {seconds} s"
        )));
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!(
        "{}: {}",
        output.status,
        said.trim()
    )))
}

fn ends_within(child: &std::process::Child, most: Duration) -> io::Result<bool> {
    use nix::errno::Errno;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd as _;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    let pidfd = pidfd_open(nix::unistd::Pid::from_raw(pid))?;
    let end = Instant::now() + most;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(
            &mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)],
            timeout,
        ) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
    }
}
