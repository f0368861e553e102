//! Logs that a disk has damaged: at their end, where a crash does it, and in the middle, where nothing may.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use shoal_tests::{lab::TestLab, wait};

use crate::membership::wait_nodes;

/// The files of the second manager's log, in order.
fn segments(lab: &TestLab) -> Result<Vec<PathBuf>> {
    let folder = lab.folder("n2").join("lib/swarm/manager/raft");
    let mut files = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.starts_with("wal-") {
            files.push(path);
        }
    }
    files.sort();
    ensure!(!files.is_empty(), "no log below {}", folder.display());
    Ok(files)
}

/// Changes one byte of a file, where `place` says.
fn damage(file: &PathBuf, place: impl FnOnce(&[u8]) -> Option<usize>) -> Result<()> {
    let mut content = fs::read(file)?;
    let at = place(&content).context("no place to damage")?;
    content[at] ^= 1;
    Ok(fs::write(file, content)?)
}

#[test]
fn a_damaged_end_is_dropped_and_told_and_a_damaged_middle_refused_with_the_way_out() -> Result<()> {
    let lab = TestLab::up(3, 3)?;
    for number in 0..20 {
        let name = format!("c{number}");
        lab.on("n1", &["config", "create", &name, "/etc/hostname"])?;
    }

    // What a crash leaves: the last record is not whole. The others have what it held.
    lab.lab("kill", &["--daemon", "n2"])?;
    let last = segments(&lab)?.pop().context("a log")?;
    damage(&last, |content| content.iter().rposition(|byte| *byte != 0))?;
    lab.lab("start", &["n2"])?;
    wait_nodes(&lab, "n1", &["n2 Ready Reachable"])?;
    let log = fs::read_to_string(lab.folder("n2").join("daemon.log"))?;
    assert!(
        log.contains("the last write was cut short; dropping it"),
        "{log}"
    );
    let configs = lab.on("n2", &["config", "ls", "-q"])?;
    assert_eq!(configs.lines().count(), 20, "{configs}");

    // What only a broken disk does: to go on would take back what was promised.
    lab.lab("kill", &["--daemon", "n2"])?;
    let first = segments(&lab)?.remove(0);
    damage(&first, |content| {
        let used = content.iter().rposition(|byte| *byte != 0)?;
        Some(used / 2)
    })?;
    lab.lab("start", &["n2"])?;
    wait("the reason at the damaged manager", || {
        let said = lab.on("n2", &["info", "--format", "{{.Swarm.Error}}"])?;
        let is_whole = said.contains("wal-")
            && said.contains("is damaged at byte")
            && said.contains("remove this manager from the cluster and join it again");
        Ok(if is_whole { Ok(()) } else { Err(said) })
    })?;
    // The others go on, and the way out is the one that it names.
    lab.on("n1", &["node", "demote", "n2"])?;
    lab.on("n1", &["node", "rm", "--force", "n2"])?;
    lab.on("n2", &["swarm", "leave", "--force"])?;
    let token = lab.on("n1", &["swarm", "join-token", "-q", "manager"])?;
    let remote = format!("{}:2377", lab.addr("n1"));
    lab.on("n2", &["swarm", "join", "--token", token.trim(), &remote])?;
    wait_nodes(&lab, "n1", &["n2 Ready Reachable"])?;
    let configs = lab.on("n2", &["config", "ls", "-q"])?;
    assert_eq!(configs.lines().count(), 20, "{configs}");
    Ok(())
}
