//! A process in a task, asked for at one host and running on another.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use shoal_tests::{
    busybox::{self, BUSYBOX},
    lab::{TestLab, program},
    wait,
};

/// Runs `shoal` on a host with this on its standard input; returns code, output and complaint.
fn with_input(
    lab: &TestLab,
    host: &str,
    words: &[&str],
    input: &[u8],
) -> Result<(i32, String, String)> {
    let mut child = Command::new(program())
        .args(["lab", "exec", "--name", lab.name(), host, "--", "shoal"])
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let input = input.to_vec();
    let typing = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output()?;
    let _ = typing.join().expect("the writer does not panic");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((
        output.status.code().unwrap_or(-1),
        text(&output.stdout),
        text(&output.stderr),
    ))
}

/// Types Ctrl-C at a terminal on a host to what has been started there in a task, and would end by nothing else; returns
/// its exit code.
fn interrupted(lab: &TestLab, host: &str, task: &str) -> Result<Option<i32>> {
    let waits = "trap \"exit 6\" INT; echo ready; while true; do sleep 0.1; done";
    let line = format!("exec shoal service exec -it {task} sh -c '{waits}'");
    let mut child = Command::new(program())
        .args(["lab", "exec", "--name", lab.name(), host, "--"])
        .args(["script", "-qec", &line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let output = BufReader::new(child.stdout.take().context("no output")?);
    let mut lines = output.lines();
    let ready = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("ready")));
    ready.context("nothing was started")??;
    stdin.write_all(b"\x03")?;
    Ok(child.wait()?.code())
}

#[test]
fn a_process_runs_in_a_task_of_another_host() -> Result<()> {
    let lab = TestLab::up(3, 2)?;
    busybox::load(&lab, &["n1", "n2", "n3"])?;
    let create = [
        "service",
        "create",
        "--detach",
        "--name",
        "box",
        "--mode",
        "global",
        "--hostname",
        "on-{{.Node.Hostname}}",
        BUSYBOX,
        "sleep",
        "100000",
    ];
    lab.on("n1", &create)?;
    lab.wait_running("box", 3)?;
    let exec = |from: &str, words: &[&str], input: &[u8]| {
        with_input(&lab, from, &[&["service", "exec"], words].concat(), input)
    };

    // From the leader and from another manager, to every host.
    for from in ["n1", "n2"] {
        for to in ["n1", "n2", "n3"] {
            let (code, out, err) = exec(from, &[&format!("box.{to}"), "--", "hostname"], b"")?;
            assert_eq!(
                (code, out),
                (0, format!("on-{to}\n")),
                "{from} to {to}: {err}"
            );
        }
    }
    // Exit codes, and which stream says what.
    let (code, out, err) = exec(
        "n2",
        &["box.n3", "sh", "-c", "echo out; echo err >&2; exit 7"],
        b"",
    )?;
    assert_eq!((code, out.as_str(), err.as_str()), (7, "out\n", "err\n"));
    let (code, _, err) = exec("n1", &["box.n3", "/nothing"], b"")?;
    assert_eq!(code, 127, "{err}");
    // What is typed arrives whole, and so does its end; environment, folder and user are those asked for.
    let typed: Vec<u8> = (0..300_000).map(|i| b"0123456789\n"[i % 11]).collect();
    let (code, out, err) = exec("n2", &["-i", "box.n3", "wc", "-c"], &typed)?;
    assert_eq!((code, out.trim()), (0, "300000"), "{err}");
    let (_, out, err) = exec("n1", &["-i", "box.n3", "cat"], &typed)?;
    assert_eq!(out.len(), 300_000, "{err}");
    let words = [
        "-e",
        "A=b",
        "-w",
        "/tmp",
        "-u",
        "user",
        "box.n2",
        "sh",
        "-c",
        "echo $A $PWD $(id -un)",
    ];
    let (_, out, err) = exec("n1", &words, b"")?;
    assert_eq!(out, "b /tmp user\n", "{err}");

    // A terminal of the right size, whose process has an exit code as well.
    let size = "stty rows 31 cols 77; exec shoal service exec -it box.n3 sh -c 'sleep 0.3; stty size; tty; exit 9'";
    for from in ["n1", "n2"] {
        let (code, seen) = wait("a terminal of 31 rows and 77 columns", || {
            let output = lab.output(from, &["script", "-qec", size, "/dev/null"])?;
            let out = String::from_utf8_lossy(&output.stdout).into_owned();
            Ok(if out.contains("31 77") {
                Ok((output.status.code(), out))
            } else {
                Err(out)
            })
        })?;
        assert!(seen.contains("/dev/pts/"), "{seen}");
        assert_eq!(code, Some(9), "{from}: {seen}");
    }
    assert_eq!(interrupted(&lab, "n2", "box.n3")?, Some(6));

    // Who is asked for must be there; workers cannot ask.
    let (code, said) = lab.refused("n1", &["service", "exec", "box.n9", "true"])?;
    assert_eq!((code, said.as_str()), (1, "box.n9: there is no such task"));
    let (_, said) = lab.refused("n1", &["service", "exec", "nobody", "true"])?;
    assert!(said.contains("no such task or service: nobody"), "{said}");
    let (_, said) = lab.refused("n3", &["service", "exec", "box.n1", "true"])?;
    assert!(said.contains("This node is not a swarm manager"), "{said}");

    // A node that goes takes the process with it, and whoever waits for it is told.
    let waiting = std::thread::scope(|scope| {
        let waiting =
            scope.spawn(|| exec("n1", &["box.n3", "sh", "-c", "echo here; sleep 4321"], b""));
        wait("the process to run", || {
            let seen = lab.output("n3", &["ps", "-ef"])?;
            let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
            // The shell's own line has both words; it has echoed when there is one with the second alone.
            let sleeps = |line: &str| line.contains("sleep 4321") && !line.contains("echo");
            Ok(if seen.lines().any(sleeps) {
                Ok(())
            } else {
                Err(seen)
            })
        })?;
        lab.lab("kill", &["n3"])?;
        waiting.join().expect("no panic")
    })?;
    assert!(waiting.0 != 0 && waiting.1 == "here\n", "{waiting:?}");
    Ok(())
}
