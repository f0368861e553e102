//! Containers, networks, volumes and processes that come and go leave nothing, however often.

use std::fs;

use anyhow::Result;
use shoal_tests::wait;

use super::Bench;
use crate::cli::host;

#[test]
fn hundreds_of_lives_with_networks_and_volumes_leave_nothing() -> Result<()> {
    let lives: usize = std::env::var("SHOAL_LIVES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(24);
    let bench = Bench::new(host(&[])?, None);
    // The first ones make what stays.
    for number in 0..4 {
        life(&bench, number)?;
    }
    let (before, open) = (bench.residue_at_rest()?, descriptors(&bench)?);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let bench = &bench;
                scope.spawn(move || {
                    (worker..lives)
                        .step_by(4)
                        .try_for_each(|number| life(bench, number))
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("a life does not panic"))
    })?;
    wait("nothing left", || {
        Ok(match bench.residue()?.difference(&before) {
            None => Ok(()),
            Some(difference) => Err(difference),
        })
    })?;
    wait("no descriptor left", || {
        let now = descriptors(&bench)?;
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

/// One container with all that may hang on it, from its making to its removal.
fn life(bench: &Bench, number: usize) -> Result<()> {
    let worker = number % 4;
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
