//! A process of the herd's: started, lost in one way or the other, and started again.

use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How a process is started.
#[derive(Clone)]
pub(crate) struct Recipe {
    pub(crate) program: String,
    pub(crate) words: Vec<String>,
    /// Whether we talk to it; what it says is of no interest otherwise.
    pub(crate) talks: bool,
}

/// A process. Killed when dropped.
pub(crate) struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Program {
    pub(crate) fn start(recipe: &Recipe) -> Result<Self> {
        let mut command = Command::new(&recipe.program);
        command.args(&recipe.words);
        if recipe.talks {
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
        } else {
            command.stdin(Stdio::null()).stdout(Stdio::null());
            command.stderr(Stdio::null());
        }
        let name = &recipe.program;
        let child = command.spawn();
        Ok(Self(child.with_context(|| format!("cannot start {name}"))?))
    }

    /// Kills it, if it is there, and starts it as the recipe says.
    pub(crate) fn restart(&mut self, recipe: &Recipe) -> Result<()> {
        self.kill();
        *self = Self::start(recipe)?;
        Ok(())
    }

    /// Its input and output, of one that talks; once.
    pub(crate) fn talk(&mut self) -> Result<(ChildStdin, ChildStdout)> {
        let input = self.0.stdin.take().context("its input is not ours")?;
        let output = self.0.stdout.take().context("its output is not ours")?;
        Ok((input, output))
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(&mut self) {
        let _ = self.0.kill(); // it may be gone
        let _ = self.0.wait();
    }

    /// Stops it where it is, or lets it go on.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.0.id())?);
        Ok(kill(pid, signal)?)
    }

    /// Memory that it has in use, in bytes, and the most that it had (proc_pid_status(5)).
    pub(crate) fn memory(&self) -> Result<(u64, u64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
            kilobytes.and_then(|number| number.trim().parse::<u64>().ok())
        };
        let missing = "a process without a size";
        Ok((
            field("VmRSS:").context(missing)? * 1024,
            field("VmHWM:").context(missing)? * 1024,
        ))
    }
}
