//! Calls that fail: the same status and text as Docker's own daemon gives.

use std::process::Command;

use anyhow::Result;
use shoal_tests::{images, lab::text};

use super::{cli::host, sdk::scripts};

#[test]
fn failing_calls_answer_as_docker_does() -> Result<()> {
    let lab = host(&[])?;
    let folder = tempfile::tempdir()?;
    let archive = images::busybox(folder.path())?;
    let golden = scripts().join("../golden");
    let output = Command::new("python3")
        .arg(scripts().join("golden.py"))
        .arg(lab.folder("n1").join("run/shoal.sock"))
        .arg(archive)
        .arg(golden)
        .output()?;
    // How many were compared, and the differences.
    text(&output)
        .map(drop)
        .map_err(|error| error.context(String::from_utf8_lossy(&output.stdout).into_owned()))
}
