//! Who reaches the daemon and what leaves its networks.

use std::{fs, net::UdpSocket, os::unix::fs::MetadataExt, process::Command};

use anyhow::{Context, Result};
use shoal_tests::lab::{TestLab, text};

use super::cli::host;

const SOCKET: &str = "/run/shoal/shoal.sock";

/// Whether a process of this user and group gets an answer.
fn answers(lab: &TestLab, user: &str, group: &str) -> Result<bool> {
    let words = [
        "setpriv",
        "--reuid",
        user,
        "--regid",
        group,
        "--clear-groups",
        "curl",
        "-s",
        "--unix-socket",
        SOCKET,
        "http://d/_ping",
    ];
    Ok(text(&lab.output("n1", &words)?).is_ok_and(|said| said == "OK"))
}

#[test]
fn a_default_daemon_is_reached_by_root_and_its_group_only() -> Result<()> {
    let lab = host(&[])?;
    // No port of any kind is open.
    for kind in ["-Hltn", "-Hlun"] {
        let open = text(&lab.output("n1", &["ss", kind])?)?;
        assert_eq!(open, "", "ss {kind}");
    }
    let socket = lab.folder("n1").join("run/shoal.sock");
    let mode = |path: &std::path::Path| anyhow::Ok(fs::metadata(path)?.mode() & 0o777);
    assert_eq!(mode(&socket)?, 0o660);
    assert!(answers(&lab, "0", "0")?);
    assert!(!answers(&lab, "65534", "65534")?);
    // Whatever lay there before and whatever it allowed.
    lab.lab("kill", &["--daemon", "n1"])?;
    fs::remove_file(&socket)?;
    let open = std::os::unix::net::UnixListener::bind(&socket)?;
    fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    drop(open);
    lab.lab("start", &["n1"])?;
    assert_eq!(mode(&socket)?, 0o660);
    assert!(!answers(&lab, "65534", "65534")?);

    // A container that gets the socket gets it with a warning, to the user and in the log.
    let server = lab.docker_host("n1");
    for source in [SOCKET, "/run/shoal"] {
        let created = Command::new(shoal_tests::lab::program())
            .args(["-H", &server, "create", "-v"])
            .arg(format!("{source}:/mnt/api"))
            .args(["busybox:test", "true"])
            .output()?;
        let warned = String::from_utf8_lossy(&created.stderr).into_owned();
        assert!(
            warned.contains("all rights on this host"),
            "{source}: {warned}"
        );
        text(&created)?;
    }
    let log = fs::read_to_string(lab.folder("n1").join("daemon.log"))?;
    assert_eq!(log.matches("all rights on this host").count(), 2, "{log}");
    Ok(())
}

#[test]
fn an_internal_network_asks_nobody_outside() -> Result<()> {
    let lab = host(&[])?;
    let server = lab.docker_host("n1");
    // Who hears every question that leaves a container.
    let upstream = UdpSocket::bind(format!("{}:53", lab.machine()))
        .context("the machine's port 53 on the test's network")?;
    upstream.set_nonblocking(true)?;
    lab.shoal(&["-H", &server, "network", "create", "--internal", "inside"])?;
    lab.shoal(&["-H", &server, "network", "create", "outside"])?;
    let machine = lab.machine();
    let ask = |network: &str, name: &str| -> Result<()> {
        let mut words = vec![
            "-H",
            &server,
            "run",
            "--rm",
            "--network",
            network,
            "--dns",
            machine.as_str(),
        ];
        words.extend(["busybox:test", "nslookup", name]);
        // Nobody answers, so it fails on either network.
        Command::new(shoal_tests::lab::program())
            .args(words)
            .output()?;
        Ok(())
    };
    let heard = || {
        let mut packet = [0; 512];
        let mut all = Vec::new();
        while let Ok(length) = upstream.recv(&mut packet) {
            all.push(String::from_utf8_lossy(&packet[..length]).into_owned());
        }
        all
    };
    ask("inside", "secret.example")?;
    assert_eq!(heard(), Vec::<String>::new());
    ask("outside", "public.example")?;
    let all = heard();
    assert!(
        all.iter().any(|packet| packet.contains("public")),
        "{all:?}"
    );
    assert!(
        !all.iter().any(|packet| packet.contains("secret")),
        "{all:?}"
    );
    Ok(())
}

#[test]
fn the_program_is_one_file_that_needs_no_other() -> Result<()> {
    // With nothing beside it: no loader, no library, no configuration.
    let root = tempfile::tempdir()?;
    for name in ["shoal", "docker"] {
        fs::copy(shoal_tests::lab::program(), root.path().join(name))?;
        let said = Command::new("chroot")
            .arg(root.path())
            .args([&format!("/{name}"), "--version"])
            .output()?;
        let said = text(&said)?;
        assert!(said.starts_with("shoal "), "{said}");
    }
    // Names are found all the same.
    let lab = host(&[])?;
    let (_, known) = lab.refused("n1", &["pull", "localhost:1/image"])?;
    assert!(known.contains("refused"), "{known}");
    let (_, unknown) = lab.refused("n1", &["pull", "nowhere.invalid:1/image"])?;
    assert!(
        !unknown.contains("refused") && unknown.contains("nowhere.invalid"),
        "{unknown}"
    );
    Ok(())
}
