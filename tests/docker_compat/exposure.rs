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

/// A program that tells of its call: whoever is called by one of these names would change the host's own firewall.
const CALLED: &str = "#!/bin/sh\necho \"$0 $*\" >> /run/shoal/called\n";
const FIREWALL_PROGRAMS: [&str; 6] = [
    "iptables",
    "ip6tables",
    "iptables-save",
    "iptables-restore",
    "iptables-nft",
    "iptables-legacy",
];

#[test]
fn the_hosts_own_firewall_is_left_alone() -> Result<()> {
    // It belongs to a group that was told, too.
    let lab = host(&["--group=nogroup"])?;
    assert!(answers(&lab, "65534", "65534")?);
    assert!(!answers(&lab, "65534", "65533")?);

    let on = |script: &str| text(&lab.output("n1", &["sh", "-ec", script])?);
    on("nft add table inet mine
        nft add chain inet mine guard '{ type filter hook forward priority 10; policy accept; }'
        nft add rule inet mine guard ip saddr 192.0.2.7 counter drop comment mine
        nft add table ip nat
        nft add chain ip nat POSTROUTING '{ type nat hook postrouting priority 100; }'
        nft add rule ip nat POSTROUTING ip saddr 192.0.2.8 masquerade")?;
    let own = || on("nft -a list table inet mine; nft -a list table ip nat");
    let before = own()?;
    // Where those programs are they are hidden, and where they are not there are some now.
    let folder = tempfile::tempdir()?;
    for name in FIREWALL_PROGRAMS {
        let program = folder.path().join(name);
        fs::write(&program, CALLED)?;
        fs::set_permissions(
            &program,
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )?;
    }
    let trap = folder.path().display().to_string();
    on(&format!(
        "for real in /usr/sbin/xtables-*-multi /sbin/xtables-*-multi; do
            if test -e $real; then mount --bind {trap}/iptables $real; fi
        done"
    ))?;
    let path = format!("{trap}:{}", std::env::var("PATH")?);
    let start = || {
        let mut start = Command::new(shoal_tests::lab::program());
        start.args(["lab", "start", "--name", lab.name(), "n1"]);
        text(&start.env("PATH", &path).output()?)
    };
    lab.lab("kill", &["--daemon", "n1"])?;
    start()?;

    let server = lab.docker_host("n1");
    let shoal = |line: &str| {
        let words: Vec<&str> = ["-H", &server].into_iter().chain(line.split(' ')).collect();
        lab.shoal(&words)
    };
    shoal("network create --subnet 10.221.0.0/24 made")?;
    shoal("network create --internal closed")?;
    shoal("run -d --name web --network made -p 8080:80 busybox:test httpd -f -p 80 -h /etc")?;
    shoal("network connect closed web")?;
    let ask = || on("curl -sgm5 http://127.0.0.1:8080/group");
    shoal_tests::wait("the published port", || {
        Ok(ask().map(drop).map_err(|error| format!("{error:#}")))
    })?;
    assert_eq!(own()?, before);
    lab.lab("kill", &["--daemon", "n1"])?;
    start()?;
    assert!(ask()?.starts_with("root:x:0:"));
    assert_eq!(own()?, before);
    shoal("rm -f web")?;
    shoal("network rm made closed")?;
    assert_eq!(own()?, before);
    let called = "cat /run/shoal/called 2>/dev/null || true";
    assert_eq!(on(called)?, "");
    // A call would have been seen.
    on(&format!("PATH={path} iptables -L"))?;
    assert!(on(called)?.ends_with("iptables -L\n"));
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
        // Whoever calls it docker is told of docker.
        let wrong = Command::new("chroot")
            .arg(root.path())
            .args([&format!("/{name}"), "nosuchcommand"])
            .output()?;
        let wrong = String::from_utf8_lossy(&wrong.stderr).into_owned();
        let expected = format!("{name}: unknown command: {name} nosuchcommand");
        assert!(wrong.starts_with(&expected), "{wrong}");
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
