//! `swarm unlock` and `swarm unlock-key`.

use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;

use crate::{
    client::{Client, Target},
    json::{number, text},
    output, terminal,
};

/// Unlock swarm: give a restarted manager the key that opens its disk
#[derive(Args)]
#[command(
    after_help = "Example:\n  shoal swarm unlock    # asks for the key, or reads it from standard input"
)]
pub(crate) struct Unlock {}

impl Unlock {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let info = client.get(Target::new("/info", &[])).await?;
        match text(&info, "/Swarm/LocalNodeState") {
            "inactive" => bail!("this node is not part of a swarm"),
            "locked" => {}
            _ => bail!("swarm is not locked"),
        }
        let key = terminal::ask_secret("Enter unlock key: ")?;
        let body = json!({"UnlockKey": key});
        client.post(Target::new("/swarm/unlock", &[]), body).await?;
        Ok(())
    }
}

/// Manage the unlock key
#[derive(Args)]
#[command(after_help = "Examples:\n  shoal swarm unlock-key -q\n  shoal swarm unlock-key --rotate")]
pub(crate) struct UnlockKey {
    /// Only display token
    #[arg(short, long)]
    quiet: bool,
    /// Rotate unlock key
    #[arg(long)]
    rotate: bool,
}

impl UnlockKey {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        if self.rotate {
            let swarm = client.get(Target::new("/swarm", &[])).await?;
            if !crate::json::is(&swarm, "/Spec/EncryptionConfig/AutoLockManagers") {
                bail!("cannot rotate because autolock is not turned on");
            }
            let target = Target::new("/swarm/update", &[])
                .arg("version", number(&swarm, "/Version/Index"))
                .arg("rotateManagerUnlockKey", true);
            client.post(target, swarm["Spec"].clone()).await?;
            if !self.quiet {
                output::line("Successfully rotated manager unlock key.\n");
            }
        }
        if self.quiet {
            output::line(key(client).await?);
            return Ok(());
        }
        print_unlock_command(client).await
    }
}

async fn key(client: &Client) -> Result<String> {
    let answer = client.get(Target::new("/swarm/unlockkey", &[])).await?;
    match text(&answer, "/UnlockKey") {
        "" => bail!("no unlock key is set"),
        key => Ok(key.to_owned()),
    }
}

/// Says how a manager is unlocked, with the key.
pub(super) async fn print_unlock_command(client: &Client) -> Result<()> {
    let key = key(client).await?;
    output::line(format!(
        "To unlock a swarm manager after it restarts, run the `shoal swarm unlock`\ncommand and provide the following \
         key:\n\n    {key}\n\nRemember to store this key in a password manager, since without it you\nwill not be able \
         to restart the manager."
    ));
    Ok(())
}
