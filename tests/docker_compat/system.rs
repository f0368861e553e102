//! The daemon itself: its configuration, TLS, what it remembers, and how it bears odd requests.

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use shoal_tests::{
    lab::{Place, TestLab, program, text},
    wait,
};

use super::{
    cli::{host, host_in},
    sdk::scripts,
    there_is_a_client,
};

/// Makes a root with a server's and a client's certificate, as docker's documentation tells.
fn certificates(folder: &Path, address: &str) -> Result<()> {
    let script = format!(
        "set -e; cd '{}'
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=root -keyout ca-key.pem -out ca.pem 2>/dev/null
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=stranger -keyout other-key.pem -out other.pem 2>/dev/null
        for name in server client; do
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=$name -keyout $name-key.pem -out $name.csr 2>/dev/null
            printf 'subjectAltName=IP:{address},DNS:localhost\\nextendedKeyUsage=serverAuth,clientAuth\\n' > $name.ext
            openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 2 -extfile $name.ext -out $name.pem 2>/dev/null
        done
        mkdir client; cp ca.pem client; cp client.pem client/cert.pem; cp client-key.pem client/key.pem",
        folder.display()
    );
    text(&Command::new("sh").args(["-c", &script]).output()?)
        .map(drop)
        .context("openssl is not installed")
}

fn quiet(command: &mut Command) -> Result<Output> {
    Ok(command.stdin(Stdio::null()).output()?)
}

#[test]
fn the_daemon_takes_dockers_configuration_and_serves_tls() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("daemon.json");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let place = Place::take();
    let address = place.addr("n1");
    certificates(folder.path(), &address)?;
    let mut config = json!({
        "hosts": ["unix:///run/shoal/shoal.sock", "tcp://0.0.0.0:2376"],
        "tlsverify": true, "tlscacert": at("ca.pem"), "tlscert": at("server.pem"), "tlskey": at("server-key.pem"),
        "labels": ["zone=a"], "log-opts": {"max-size": "1m"}, "pidfile": "/run/shoal/daemon.pid",
        "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 100, "Hard": 200}},
        "iptables": false, "live-restore": true
    });
    fs::write(&file, config.to_string())?;
    let lab = host_in(place, &[&format!("--config-file={}", file.display())])?;
    let socket = lab.docker_host("n1");
    let shoal = |words: &[&str]| lab.shoal(&[&["-H", &socket], words].concat());

    // TLS: who has a certificate under the root gets in, and nobody else.
    let host = format!("tcp://{address}:2376");
    let curl = |words: &[&str]| {
        let url = format!("https://{address}:2376/_ping");
        quiet(
            Command::new("curl")
                .args(["-s", "-S", "-m", "10"])
                .args(words)
                .arg(url),
        )
    };
    let (ca, cert, key) = (at("ca.pem"), at("client.pem"), at("client-key.pem"));
    let known = ["--cacert", &ca, "--cert", &cert, "--key", &key];
    assert_eq!(text(&curl(&known)?)?, "OK");
    assert!(!curl(&["--cacert", &ca])?.status.success());
    let (cert, key) = (at("other.pem"), at("other-key.pem"));
    assert!(
        !curl(&["--cacert", &ca, "--cert", &cert, "--key", &key])?
            .status
            .success()
    );
    let plain = format!("http://{address}:2376/_ping");
    assert!(
        !quiet(Command::new("curl").args(["-s", "-m", "10", &plain]))?
            .status
            .success()
    );

    let mut clients = vec![program()];
    if there_is_a_client() {
        clients.push("docker".into());
    }
    for client in clients {
        let with = |folder: &str, words: &[&str]| {
            let mut client = Command::new(&client);
            client
                .env("DOCKER_CERT_PATH", folder)
                .env("DOCKER_HOST", &host);
            quiet(client.args(["--tlsverify"]).args(words))
        };
        assert!(
            text(&with(&at("client"), &["images", "-q"])?)?
                .contains(|c: char| c.is_ascii_hexdigit())
        );
        let said = text(&with(
            &at("client"),
            &["run", "--rm", "-i", "busybox:test", "echo", "over TLS"],
        )?)?;
        assert_eq!(said, "over TLS\n");
        assert!(!with(&at("nothing"), &["ps"])?.status.success());
    }

    // The rest of the file.
    let said = shoal(&[
        "run",
        "--rm",
        "busybox:test",
        "sh",
        "-c",
        "ulimit -Sn; ulimit -Hn",
    ])?;
    assert_eq!(said, "100\n200\n");
    assert_eq!(
        shoal(&["info", "--format", "{{json .Labels}}"])?,
        "[\"zone=a\"]\n"
    );
    let log = fs::read_to_string(lab.folder("n1").join("daemon.log"))?;
    assert!(log.contains("iptables has no effect: "), "{log}");
    shoal(&["create", "--name", "kept", "busybox:test"])?;
    let format =
        "{{.HostConfig.LogConfig.Type}} {{index .HostConfig.LogConfig.Config \"max-size\"}}";
    assert_eq!(shoal(&["inspect", "-f", format, "kept"])?, "json-file 1m\n");

    // SIGHUP: what may change does, the rest stays.
    let told = |what: &str| -> Result<bool> {
        assert!(shoal(&["inspect", "--type", "container", what]).is_err());
        let log = fs::read_to_string(lab.folder("n1").join("daemon.log"))?;
        Ok(log
            .lines()
            .any(|line| line.contains("request refused") && line.contains(what)))
    };
    assert!(
        !told("nobody-before")?,
        "who is not asked for debugging keeps to himself"
    );
    config["labels"] = json!(["zone=b"]);
    config["debug"] = json!(true);
    config["data-root"] = json!("/nowhere");
    fs::write(&file, config.to_string())?;
    let hangup = ["sh", "-c", "kill -HUP $(cat /run/shoal/daemon.pid)"];
    text(&lab.output("n1", &hangup)?)?;
    let events = |filter: &str| {
        shoal(&[
            "events",
            "--since",
            "10m",
            "--until",
            "0s",
            "--filter",
            filter,
            "--format",
            "{{json .}}",
        ])
    };
    let reloaded: Value = wait("the reload event", || {
        let said = events("type=daemon")?;
        Ok(said
            .lines()
            .last()
            .map(serde_json::from_str)
            .transpose()?
            .ok_or(said))
    })?;
    assert_eq!(reloaded["Action"], "reload");
    assert_eq!(reloaded["Actor"]["Attributes"]["labels"], "[\"zone=b\"]");
    assert_eq!(
        shoal(&["info", "--format", "{{json .Labels}} {{.Debug}}"])?,
        "[\"zone=b\"] true\n"
    );
    assert!(told("nobody-after")?, "debugging tells of refused requests");
    // A mistake in the file changes nothing and ends nothing.
    fs::write(&file, "{\"colour\": 1}")?;
    text(&lab.output("n1", &hangup)?)?;
    wait("the complaint", || {
        let log = fs::read_to_string(lab.folder("n1").join("daemon.log"))?;
        let said =
            log.contains("the following directives don't match any configuration option: colour");
        Ok(if said { Ok(()) } else { Err(log) })
    })?;
    assert_eq!(
        shoal(&["info", "--format", "{{json .Labels}}"])?,
        "[\"zone=b\"]\n"
    );
    fs::write(
        &file,
        config.to_string().replace("/nowhere", "/var/lib/shoal"),
    )?;

    // What happened is known after a restart, kill -9 included.
    let before = events("type=container")?;
    assert!(before.lines().count() >= 4, "{before}");
    lab.lab("kill", &["--daemon", "n1"])?;
    lab.lab("start", &["n1"])?;
    let after = events("type=container")?;
    assert!(after.starts_with(&before), "{before}\n{after}");
    Ok(())
}

#[test]
fn a_daemon_that_cannot_be_set_up_says_why() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("daemon.json");
    let validate = |content: &str, words: &[&str]| {
        fs::write(&file, content)?;
        let mut shoal = Command::new(program());
        let output = quiet(
            shoal
                .args(["daemon", "--validate", "--config-file"])
                .arg(&file)
                .args(words),
        )?;
        let said = [output.stdout, output.stderr].concat();
        anyhow::Ok((
            output.status.code(),
            String::from_utf8_lossy(&said).into_owned(),
        ))
    };
    assert_eq!(
        validate("{}", &[])?,
        (Some(0), "configuration OK\n".to_owned())
    );
    for (content, words, problem) in [
        (
            "{\"colour\": 1}",
            &[][..],
            "don't match any configuration option: colour",
        ),
        (
            "{\"labels\": [\"a=b\"]}",
            &["--label", "c=d"],
            "specified both as a flag and in the configuration file: labels: (from flag: [c=d], from file: [a=b])",
        ),
        ("{", &[], "EOF while parsing"),
        (
            "{}",
            &["-H", "tcp://0.0.0.0:2375"],
            "without --tlsverify is refused",
        ),
        ("{}", &["-H", "ftp://a"], "unable to parse daemon host"),
        ("{}", &["--label", "a"], "bad attribute format: a"),
        (
            "{\"userns-remap\": \"default\"}",
            &[],
            "user namespaces are not remapped",
        ),
    ] {
        let (code, said) = validate(content, words)?;
        assert!(
            code == Some(1) && said.contains(problem),
            "{content} {words:?}: {code:?} {said}"
        );
    }
    Ok(())
}

/// Runs a script against a host's socket.
fn script(lab: &TestLab, name: &str) -> Result<()> {
    let mut python = Command::new("python3");
    python
        .arg(scripts().join(name))
        .arg(lab.folder("n1").join("run/shoal.sock"))
        .arg(lab.addr("n1"));
    let output = quiet(&mut python)?;
    if !output.status.success() {
        bail!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

#[test]
fn no_body_shakes_the_api_and_no_stream_is_kept() -> Result<()> {
    let lab = host(&[])?;
    script(&lab, "bodies.py")?;
    script(&lab, "streams.py")?;
    script(&lab, "filters.py")
}

#[test]
fn every_list_is_json_for_those_who_ask() -> Result<()> {
    let lab = host(&[])?;
    let socket = lab.docker_host("n1");
    lab.shoal(&[
        "-H",
        &socket,
        "run",
        "-d",
        "--name",
        "one",
        "-v",
        "data:/v",
        "busybox:test",
        "sleep",
        "1000",
    ])?;
    lab.on(
        "n1",
        &["swarm", "init", "--advertise-addr", &lab.addr("n1")],
    )?;
    lab.on(
        "n1",
        &[
            "service",
            "create",
            "-q",
            "--name",
            "web",
            "busybox:test",
            "sleep",
            "1000",
        ],
    )?;
    let mut clients = vec![program()];
    if there_is_a_client() {
        clients.push("docker".into());
    }
    for client in clients {
        for list in [
            "ps -a",
            "images",
            "network ls",
            "volume ls",
            "system df",
            "history busybox:test",
            "stats --no-stream one",
            "node ls",
            "node ps",
            "service ls",
            "service ps web",
            "stack ls",
            "secret ls",
            "config ls",
            "context ls",
            "events --since 1m --until 0s",
            "info",
            "version",
            "inspect one",
        ] {
            let mut words: Vec<&str> = list.split(' ').collect();
            words.extend(["--format", "{{json .}}"]);
            let mut command = Command::new(&client);
            let said = text(&quiet(command.env("DOCKER_HOST", &socket).args(&words))?);
            let said = said.with_context(|| format!("{} {list}", client.display()))?;
            let needs_rows = !["stack ls", "secret ls", "config ls"].contains(&list);
            assert!(!needs_rows || !said.trim().is_empty(), "{list}");
            for line in said.lines() {
                let row: Value = serde_json::from_str(line)
                    .with_context(|| format!("{} {list}: {line}", client.display()))?;
                assert!(row.is_object(), "{list}: {line}");
            }
        }
    }
    Ok(())
}
