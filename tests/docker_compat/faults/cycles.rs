//! Containers, networks, volumes and processes that come and go leave nothing, however often.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
};

use anyhow::{Context, Result, ensure};
use shoal_tests::wait;

use super::Bench;
use crate::cli::host;

/// At a time.
const WORKERS: usize = 4;

fn count(variable: &str, otherwise: usize) -> usize {
    let set = std::env::var(variable).ok();
    set.and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn lives_of_containers_with_all_that_may_hang_on_them_leave_nothing() -> Result<()> {
    let bench = Bench::new(host(&[])?, None);
    leave_nothing(&bench, count("SHOAL_LIVES", 24), life)
}

#[test]
fn five_hundred_containers_made_started_and_removed_leave_nothing() -> Result<()> {
    let bench = Bench::new(host(&[])?, None);
    for worker in 0..WORKERS {
        bench.run(&format!("network create net{worker}"))?;
    }
    leave_nothing(&bench, count("SHOAL_CYCLES", 500), cycle)
}

/// What there is after the first turns is what there is after all.
fn leave_nothing(
    bench: &Bench,
    turns: usize,
    turn: impl Fn(&Bench, usize) -> Result<()> + Copy + Sync + Send,
) -> Result<()> {
    // The first ones make what stays.
    for number in 0..WORKERS {
        turn(bench, number)?;
    }
    let (before, open) = (bench.residue_at_rest()?, descriptors(bench)?);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                scope.spawn(move || {
                    (worker..turns)
                        .step_by(WORKERS)
                        .try_for_each(|number| turn(bench, number))
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("a turn does not panic"))
    })?;
    wait("nothing left", || {
        Ok(match bench.residue()?.difference(&before) {
            None => Ok(()),
            Some(difference) => Err(difference),
        })
    })?;
    wait("no descriptor left", || {
        let now = descriptors(bench)?;
        Ok(if now <= open + 4 {
            Ok(())
        } else {
            Err(format!("{now}, {open} before"))
        })
    })?;
    bench.usage_adds_up()
}

fn descriptors(bench: &Bench) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{}/fd", bench.daemon()?))?.count())
}

/// One container with a network, a port and a volume, by the API.
fn cycle(bench: &Bench, number: usize) -> Result<()> {
    let worker = number % WORKERS;
    let port = 8190 + worker;
    let body = format!(
        r#"{{"Image":"busybox:test","Cmd":["sleep","1000"],"HostConfig":{{"NetworkMode":"net{worker}",
            "PortBindings":{{"80/tcp":[{{"HostPort":"{port}"}}]}},"Binds":["/anonymous"],"Tmpfs":{{"/t":""}}}}}}"#
    );
    let name = format!("cycle{worker}");
    call(
        bench,
        "POST",
        &format!("/containers/create?name={name}"),
        &body,
    )?;
    call(bench, "POST", &format!("/containers/{name}/start"), "")?;
    call(
        bench,
        "DELETE",
        &format!("/containers/{name}?force=1&v=1"),
        "",
    )
}

/// One request of the Engine API, which must succeed.
fn call(bench: &Bench, method: &str, path: &str, body: &str) -> Result<()> {
    let socket = bench.socket.trim_start_matches("unix://");
    let mut stream = UnixStream::connect(socket)?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: shoal\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).context("no answer")?;
    ensure!(status.starts_with('2'), "{method} {path}: {answer}");
    Ok(())
}

/// One container with all that may hang on it, from its making to its removal.
fn life(bench: &Bench, number: usize) -> Result<()> {
    let worker = number % WORKERS;
    let (name, net, volume) = (
        format!("life{worker}"),
        format!("net{worker}"),
        format!("kept{worker}"),
    );
    let port = 8090 + worker;
    for words in [
        format!("network create {net}"),
        format!("volume create {volume}"),
        format!(
            "create --name {name} --network {net} --network-alias here -p {port}:80 -v {volume}:/v -v /anonymous \
             busybox:test sleep 1000"
        ),
        format!("start {name}"),
        format!("exec {name} sh -c true"),
        format!("network connect bridge {name}"),
        format!("network disconnect {net} {name}"),
        if number.is_multiple_of(2) {
            format!("rm -f -v {name}")
        } else {
            format!("stop -t 0 {name}")
        },
        format!("run --rm --network {net} -v {volume}:/v busybox:test true"),
    ] {
        bench.run(&words)?;
    }
    if !number.is_multiple_of(2) {
        bench.run(&format!("rm -v {name}"))?;
    }
    bench.run(&format!("volume rm {volume}"))?;
    bench.run(&format!("network rm {net}")).map(drop)
}
