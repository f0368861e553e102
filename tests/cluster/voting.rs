//! Docker's example voting app, or its twin: a stack file that knows nothing of us, deployed by docker's own client.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use shoal_tests::{
    images::{Image, Layer, debian, save},
    lab::{TestLab, get, text},
    skipped, wait,
};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/voting/stack.yml");
const APP: &str = include_str!("voting/app.py");
const POSTGRES: &str = include_str!("voting/postgres.sh");

/// The images that the file names, out of Debian's packages, in one archive.
fn make_images(folder: &Path) -> Result<PathBuf> {
    let root = folder.join("debian");
    debian("python3-psycopg2,redis-server,postgresql", &root)?;
    fs::create_dir_all(root.join("srv"))?;
    fs::write(root.join("srv/app.py"), APP)?;
    fs::write(root.join("srv/postgres.sh"), POSTGRES)?;
    let layer = Layer::pack(&root, &folder.join("layer.tar"))?;
    fs::remove_dir_all(&root)?;
    let image = |name: &str, entrypoint: &'static [&'static str]| Image {
        name: name.to_owned(),
        layers: vec![&layer],
        entrypoint,
    };
    let redis = &["redis-server", "--protected-mode", "no", "--save", ""];
    let images = [
        image("redis:alpine", redis),
        image("postgres:15-alpine", &["sh", "/srv/postgres.sh"]),
        image(
            "dockersamples/examplevotingapp_vote:latest",
            &["python3", "-u", "/srv/app.py", "vote"],
        ),
        image(
            "dockersamples/examplevotingapp_result:latest",
            &["python3", "-u", "/srv/app.py", "result"],
        ),
        image(
            "dockersamples/examplevotingapp_worker:latest",
            &["python3", "-u", "/srv/app.py", "worker"],
        ),
    ];
    let archive = folder.join("images.tar");
    save(&images, folder, &archive)?;
    Ok(archive)
}

#[test]
fn docker_s_voting_app_deploys_unchanged_and_counts() -> Result<()> {
    let found = Command::new("docker").arg("--version").output();
    if !found.is_ok_and(|said| said.status.success()) {
        skipped("docker's client is not on PATH");
        return Ok(());
    }
    let lab = TestLab::up(2, 1)?;
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let archive = make_images(folder.path())?;
    for host in ["n1", "n2"] {
        lab.on(host, &["load", "-q", "-i", &archive.to_string_lossy()])?;
    }
    fs::remove_file(&archive)?;
    let docker = |words: &[&str]| -> Result<String> {
        let mut docker = Command::new("docker");
        docker.env("DOCKER_HOST", lab.docker_host("n1"));
        docker.args(words).stdin(Stdio::null());
        text(&docker.output()?).with_context(|| format!("docker {}", words.join(" ")))
    };

    docker(&["stack", "deploy", "-c", FILE, "poll"])?;
    for (service, tasks) in [
        ("db", 1),
        ("redis", 1),
        ("result", 1),
        ("vote", 2),
        ("worker", 1),
    ] {
        lab.wait_running(&format!("poll_{service}"), tasks)?;
    }
    let format = "{{.Name}} {{.Replicas}}";
    let mut services: Vec<String> = docker(&["stack", "services", "--format", format, "poll"])?
        .lines()
        .map(str::to_owned)
        .collect();
    services.sort();
    assert_eq!(
        services,
        [
            "poll_db 1/1",
            "poll_redis 1/1",
            "poll_result 1/1",
            "poll_vote 2/2",
            "poll_worker 1/1"
        ]
    );

    // Votes go in at either host and come out at either, through all five services.
    for voter in 0..20 {
        let host = lab.addr(["n1", "n2"][voter % 2]);
        let choice = ["cats", "dogs", "cats", "cats"][voter % 4];
        let vote = format!("/{voter}/{choice}");
        // A task runs before its program listens, and who votes again has one vote.
        wait("a vote to be taken", || {
            Ok(get(&host, 5000, &vote).map_err(|error| error.to_string()))
        })?;
    }
    let wait_count = |want: &str| {
        wait(&format!("the result {want}"), || {
            for host in ["n1", "n2"] {
                match get(&lab.addr(host), 5001, "/") {
                    Ok(said) if said.trim() == want => {}
                    other => return Ok(Err(format!("{other:?}"))),
                }
            }
            Ok(Ok(()))
        })
    };
    wait_count("cats=15 dogs=5")?;

    // The same file again replaces nothing.
    let tasks = |lab: &TestLab| {
        let words = ["stack", "ps", "-q", "--no-trunc", "poll"];
        lab.on("n1", &words)
    };
    let before = tasks(&lab)?;
    docker(&["stack", "deploy", "--detach=false", "-c", FILE, "poll"])?;
    assert_eq!(tasks(&lab)?, before);

    // The database comes back with what it knew.
    docker(&["service", "update", "-q", "--force", "poll_db"])?;
    wait_count("cats=15 dogs=5")?;

    docker(&["stack", "rm", "poll"])?;
    wait("nothing of the stack", || {
        let left = docker(&["network", "ls", "-q", "-f", "name=poll_"])?;
        let left = left + &docker(&["service", "ls", "-q"])?;
        Ok(if left.is_empty() { Ok(()) } else { Err(left) })
    })?;
    // Docker leaves volumes; whoever wants them gone says so.
    let volumes = |lab: &TestLab| lab.on("n1", &["volume", "ls", "-q"]);
    assert_eq!(volumes(&lab)?, "poll_db-data\n");
    let said = lab.on("n1", &["stack", "rm", "--volumes", "poll"])?;
    assert_eq!(said, "Removing volume poll_db-data on n1\n");
    assert_eq!(volumes(&lab)?, "");
    Ok(())
}
