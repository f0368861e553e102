//! `shoal completion`: what a shell needs to complete our words.

use anyhow::Result;
use clap::ValueEnum;

use crate::output;

/// Shells that are known.
#[derive(Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Fish,
    Zsh,
}

/// Generate the autocompletion script for the specified shell
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  shoal completion bash > /etc/bash_completion.d/shoal\n  source <(shoal completion zsh)\n  shoal completion fish > ~/.config/fish/completions/shoal.fish"
)]
pub(crate) struct Args {
    shell: Shell,
}

impl Args {
    pub(crate) fn run(self) -> Result<()> {
        let mut command = super::grammar();
        let mut script = Vec::new();
        let name = crate::program();
        match self.shell {
            Shell::Bash => generate(clap_complete::Shell::Bash, &mut command, name, &mut script),
            Shell::Fish => generate(clap_complete::Shell::Fish, &mut command, name, &mut script),
            Shell::Zsh => generate(clap_complete::Shell::Zsh, &mut command, name, &mut script),
        }
        output::write(&script);
        Ok(())
    }
}

fn generate(
    shell: clap_complete::Shell,
    command: &mut clap::Command,
    name: &str,
    to: &mut Vec<u8>,
) {
    clap_complete::generate(shell, command, name, to);
}
