//! Daemons of managers die while clients write; what was acknowledged is there afterwards.

use std::{
    collections::BTreeSet,
    env,
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use shoal_tests::{lab::TestLab, wait};

/// Daemons that are killed, unless `SHOAL_TEST_KILLS` says how many.
const KILLS: usize = 4;
/// Acknowledged writes between two kills.
const WRITES_BETWEEN: usize = 20;
/// Clients of each manager.
const CLIENTS: usize = 3;
const HOSTS: [&str; 3] = ["n1", "n2", "n3"];

/// How long a client leaves a daemon alone that takes no connections.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a client rests between two writes: 200 kills take minutes, and what was written stays.
const REST: Duration = Duration::from_millis(10);
/// After so many kills it is looked whether everything is there, and said how far it is.
const KILLS_TOLD: usize = 20;

/// Makes a config over a daemon's socket; whether that was acknowledged. `false`: it was not, and may be there or not.
///
/// # Errors
/// The daemon takes no connections.
fn write(socket: &str, name: &str) -> Result<bool> {
    let body = format!(r#"{{"Name":"{name}","Data":"eA=="}}"#);
    let mut stream = UnixStream::connect(socket)?;
    write!(
        stream,
        "POST /configs/create HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    // A daemon that dies says nothing more.
    let _ = stream.read_to_string(&mut answer);
    // Each name is asked for once: it can be taken by nobody but the same request, passed on twice.
    assert!(!answer.starts_with("HTTP/1.1 409"), "{name}: {answer}");
    Ok(answer.starts_with("HTTP/1.1 201"))
}

#[test]
fn no_acknowledged_write_is_lost_when_managers_are_killed() -> Result<()> {
    let kills = match env::var("SHOAL_TEST_KILLS") {
        Ok(number) => number.parse()?,
        Err(_) => KILLS,
    };
    let lab = TestLab::up(3, 3)?;
    let acknowledged = Mutex::new(BTreeSet::new());
    let is_over = AtomicBool::new(false);
    let began = Instant::now();
    let count = || acknowledged.lock().expect("nobody panics").len();
    let sockets = HOSTS.map(|host| lab.docker_host(host).replace("unix://", ""));
    thread::scope(|scope| {
        for (place, socket) in sockets.iter().enumerate() {
            for client in 0..CLIENTS {
                let (acknowledged, is_over) = (&acknowledged, &is_over);
                scope.spawn(move || {
                    for number in 0.. {
                        if is_over.load(Ordering::Relaxed) {
                            return;
                        }
                        let name = format!("c{place}-{client}-{number}");
                        match write(socket, &name) {
                            Ok(true) => {
                                acknowledged.lock().expect("nobody panics").insert(name);
                            }
                            Ok(false) => {}
                            Err(_) => thread::sleep(PAUSE),
                        }
                        thread::sleep(REST);
                    }
                });
            }
        }
        let outcome = (0..kills).try_for_each(|kill| -> Result<()> {
            let before = count();
            wait("writes to be acknowledged", || {
                let now = count() - before;
                Ok(if now >= WRITES_BETWEEN {
                    Ok(())
                } else {
                    Err(format!("{now}"))
                })
            })?;
            let victim = HOSTS[kill % HOSTS.len()];
            lab.lab("kill", &["--daemon", victim])?;
            lab.lab("start", &[victim])?;
            if (kill + 1) % KILLS_TOLD == 0 {
                let so_far = acknowledged.lock().expect("nobody panics").clone();
                check(&lab, victim, &so_far)?;
                println!(
                    "{} of {kills} managers killed in {} s, {} writes acknowledged, none lost so far",
                    kill + 1,
                    began.elapsed().as_secs(),
                    so_far.len()
                );
            }
            Ok(())
        });
        is_over.store(true, Ordering::Relaxed);
        outcome
    })?;
    let acknowledged = acknowledged.into_inner().expect("nobody panics");
    for host in HOSTS {
        check(&lab, host, &acknowledged)?;
    }
    println!(
        "{kills} managers killed, {} writes acknowledged, none lost",
        acknowledged.len()
    );
    Ok(())
}

/// Whether a host knows of everything that was acknowledged.
fn check(lab: &TestLab, host: &str, acknowledged: &BTreeSet<String>) -> Result<()> {
    let listed = wait("an answer", || {
        Ok(lab
            .on(host, &["config", "ls", "--format", "{{.Name}}"])
            .map_err(|e| e.to_string()))
    })?;
    let there: BTreeSet<&str> = listed.lines().collect();
    let lost: Vec<&String> = acknowledged
        .iter()
        .filter(|name| !there.contains(name.as_str()))
        .collect();
    if !lost.is_empty() {
        bail!(
            "{} of {} acknowledged writes are lost on {host}: {lost:?}",
            lost.len(),
            acknowledged.len()
        );
    }
    Ok(())
}
