//! Streams of many lines and many bytes arrive whole and in order, whichever way they go.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, ensure};
use shoal_tests::{lab::program, wait};

use super::{cli::host, there_is_a_client};

const LINES: usize = 100_000;
const BYTES: usize = 32 << 20;

/// Runs a client that is given `input` while what it prints is read.
fn told(socket: &str, client: &str, words: &[&str], input: &[u8]) -> Result<Output> {
    let mut child = Command::new(client)
        .env("DOCKER_HOST", socket)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("the pipe was asked for")?;
    std::thread::scope(|scope| {
        // What is not taken is told by what comes back.
        scope.spawn(move || {
            let _ = stdin.write_all(input);
        });
        Ok(child.wait_with_output()?)
    })
}

fn counted() -> String {
    (1..=LINES).fold(String::new(), |mut text, number| {
        text.push_str(&number.to_string());
        text.push('\n');
        text
    })
}

#[test]
fn long_streams_arrive_whole() -> Result<()> {
    if !there_is_a_client() {
        return Ok(());
    }
    let lab = host(&[])?;
    let socket = lab.docker_host("n1");
    let shoal = program().display().to_string();
    let lines = counted();
    let last = LINES.to_string();
    // Bytes of every value, in no order that a lost or doubled piece would fit into.
    let bytes: Vec<u8> = (0..BYTES)
        .map(|at| (at.wrapping_mul(at >> 7) >> 3) as u8)
        .collect();
    for client in ["docker", &shoal] {
        let run = |words: &[&str], input: &[u8], expected: &[u8]| -> Result<()> {
            let output = told(&socket, client, words, input)?;
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success(), "{client} {words:?}: {told}");
            ensure!(
                output.stdout == expected,
                "{client} {words:?}: {} bytes of {}",
                output.stdout.len(),
                expected.len()
            );
            Ok(())
        };
        let image = "busybox:test";
        run(&["run", "--rm", image, "seq", &last], b"", lines.as_bytes())?;
        run(&["run", "--rm", "-i", image, "cat"], &bytes, &bytes)?;
        // Whoever attaches sees all that comes from then on, and what he types arrives.
        let script = format!("read go; seq {last}");
        let made = ["create", "-i", "--name", "told", image, "sh", "-c", &script];
        let made = told(&socket, client, &made, b"")?;
        ensure!(made.status.success(), "create: {made:?}");
        let started = told(&socket, client, &["start", "told"], b"")?;
        ensure!(started.status.success(), "start: {started:?}");
        run(&["attach", "told"], b"go\n", lines.as_bytes())?;
        wait("the whole log", || {
            let log = told(&socket, client, &["logs", "told"], b"")?.stdout;
            Ok(if log == lines.as_bytes() {
                Ok(())
            } else {
                Err(format!("{} bytes", log.len()))
            })
        })?;
        run(&["rm", "told"], b"", b"told\n")?;
        // Both at once through a process beside the container's own.
        let up = told(
            &socket,
            client,
            &["run", "-d", "--name", "idle", image, "sleep", "1000"],
            b"",
        )?;
        ensure!(up.status.success(), "run -d: {up:?}");
        run(&["exec", "-i", "idle", "cat"], &bytes, &bytes)?;
        run(&["exec", "idle", "seq", &last], b"", lines.as_bytes())?;
        run(&["rm", "-f", "idle"], b"", b"idle\n")?;
    }
    Ok(())
}
