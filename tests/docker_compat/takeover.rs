//! A daemon that dies, and one of another version that comes after it: containers do not notice.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};
use shoal_tests::{
    lab::{TestLab, get, program, text},
    wait,
};

use super::cli::host;

/// What must be the same before and after.
const STATE: &str = "{{.Id}} {{.State.Pid}} {{.State.StartedAt}} {{.State.Status}} {{.RestartCount}} \
    {{.NetworkSettings.IPAddress}} {{json .NetworkSettings.Ports}}";

fn shoal(lab: &TestLab, words: &[&str]) -> Result<String> {
    lab.shoal(&[&["-H", lab.docker_host("n1").as_str()], words].concat())
}

/// Calls the API itself, for what the clients do not tell.
fn call(lab: &TestLab, path: &str, body: Option<&str>) -> Result<serde_json::Value> {
    let url = format!("http://d/{path}");
    let mut words = vec!["curl", "-s", "--unix-socket", "/run/shoal/shoal.sock"];
    if let Some(body) = body {
        words.extend(["-H", "Content-Type: application/json", "-d", body]);
    }
    words.push(&url);
    let said = text(&lab.output("n1", &words)?)?;
    if said.is_empty() {
        return Ok(serde_json::Value::Null);
    }
    serde_json::from_str(&said).with_context(|| said)
}

/// Starts a process in `web` that waits for a file; returns its id.
fn begin_exec(lab: &TestLab) -> Result<String> {
    let command = "while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 6";
    let wish = serde_json::json!({"Cmd": ["sh", "-c", command]}).to_string();
    let made = call(lab, "containers/web/exec", Some(&wish))?;
    let id = made["Id"].as_str().context("an id")?.to_owned();
    call(lab, &format!("exec/{id}/start"), Some("{\"Detach\": true}"))?;
    Ok(id)
}

fn exec_state(lab: &TestLab, id: &str) -> Result<(bool, serde_json::Value)> {
    let exec = call(lab, &format!("exec/{id}/json"), None)?;
    Ok((exec["Running"] == true, exec["ExitCode"].clone()))
}

/// Everything that a user may have running: a port, a health check, an exec, a policy, a log that grows.
fn furnish(lab: &TestLab) -> Result<()> {
    let serve = "mkdir -p /srv/www; echo here > /srv/www/index.html; httpd -p 80 -h /srv/www; n=0; \
        while true; do n=$((n+1)); echo line $n; sleep 0.1; done";
    let words = [
        "run",
        "-d",
        "--name",
        "web",
        "-p",
        "8080:80",
        "--restart",
        "always",
        "--health-cmd",
        "test ! -e /tmp/ill",
        "--health-interval",
        "200ms",
        "--health-retries",
        "1",
        "-v",
        "kept:/kept",
        "busybox:test",
        "sh",
        "-c",
        serve,
    ];
    shoal(lab, &words)?;
    shoal(
        lab,
        &[
            "run",
            "-d",
            "--name",
            "held",
            "busybox:test",
            "sleep",
            "1000",
        ],
    )?;
    shoal(lab, &["pause", "held"])?;
    wait("a healthy container", || health_is(lab, "healthy"))
}

fn health_is(lab: &TestLab, wanted: &str) -> Result<std::result::Result<(), String>> {
    let said = shoal(lab, &["inspect", "-f", "{{.State.Health.Status}}", "web"])?;
    Ok(if said.trim() == wanted {
        Ok(())
    } else {
        Err(said)
    })
}

fn lines(lab: &TestLab) -> Result<Vec<u64>> {
    let said = shoal(lab, &["logs", "web"])?;
    let number = |line: &str| line.strip_prefix("line ")?.parse().ok();
    Ok(said.lines().filter_map(number).collect())
}

/// Ends the daemon by force, starts the one of `program` and sees that nothing has changed.
fn replaced_by(lab: &TestLab, program: &Path, exec: &str) -> Result<()> {
    let states = |lab: &TestLab| shoal(lab, &["inspect", "-f", STATE, "web", "held"]);
    let before = states(lab)?;
    lab.lab("kill", &["--daemon", "n1"])?;
    // Nobody is there, and yet it answers, and what it writes is kept.
    let addr = lab.addr("n1");
    assert_eq!(get(&addr, 8080, "/")?, "here\n");
    let start = ["lab", "start", "--name", lab.name(), "n1"];
    text(&Command::new(program).args(start).output()?)?;
    assert_eq!(states(lab)?, before);
    assert_eq!(health_is(lab, "healthy")?, Ok(()));
    assert_eq!(get(&addr, 8080, "/")?, "here\n");
    assert_eq!(exec_state(lab, exec)?, (true, serde_json::Value::Null));
    // Without a gap and without a repetition.
    let seen = lines(lab)?;
    let last = *seen.last().context("lines")?;
    assert_eq!(seen, (1..=last).collect::<Vec<_>>());
    wait("a log that goes on", || {
        Ok(if lines(lab)?.len() as u64 > last + 2 {
            Ok(())
        } else {
            Err(String::new())
        })
    })?;
    // The checks go on, too: they see an illness and its end.
    shoal(lab, &["exec", "web", "touch", "/tmp/ill"])?;
    wait("an unhealthy container", || health_is(lab, "unhealthy"))?;
    shoal(lab, &["exec", "web", "rm", "/tmp/ill"])?;
    wait("a healthy container", || health_is(lab, "healthy"))
}

#[test]
fn a_newer_daemon_takes_over_what_an_older_one_left_running() -> Result<()> {
    let lab = host(&[])?;
    furnish(&lab)?;
    // The same daemon again, then one of another program file: the old one's is away, as after an upgrade.
    let exec = begin_exec(&lab)?;
    replaced_by(&lab, &program(), &exec)?;
    let folder = tempfile::tempdir()?;
    let newer = folder.path().join("shoal-new");
    fs::copy(program(), &newer)?;
    replaced_by(&lab, &newer, &exec)?;
    fs::remove_file(&newer)?;
    // All of it can still be used and ended by the new daemon, though its shims are the old one's.
    shoal(&lab, &["exec", "web", "touch", "/tmp/go"])?;
    wait("the end of the exec", || {
        let state = exec_state(&lab, &exec)?;
        Ok(if state == (false, 6.into()) {
            Ok(())
        } else {
            Err(format!("{state:?}"))
        })
    })?;
    shoal(&lab, &["unpause", "held"])?;
    shoal(&lab, &["exec", "held", "true"])?;
    shoal(&lab, &["stop", "-t", "0", "held"])?;
    shoal(&lab, &["restart", "-t", "0", "web"])?;
    wait("the port after the restart", || {
        Ok(get(&lab.addr("n1"), 8080, "/")
            .map_err(|error| error.to_string())
            .map(drop))
    })?;
    shoal(&lab, &["rm", "-f", "-v", "web", "held"]).map(drop)
}
