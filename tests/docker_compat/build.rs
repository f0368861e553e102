//! Images that docker's client has built, committed and imported.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail};
use shoal_tests::lab::{TestLab, text};

use super::{Docker, there_is_a_client};

/// Runs docker's client in a folder, with this on its standard input, as the classic builder's.
fn classic(docker: &Docker<'_>, folder: &Path, words: &[&str], stdin: &[u8]) -> Result<Output> {
    let mut child = Command::new("docker")
        .env("DOCKER_HOST", docker.lab.docker_host("n1"))
        .env("DOCKER_BUILDKIT", "0")
        .args(words)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("no standard input")?;
    input.write_all(stdin)?;
    drop(input);
    Ok(child.wait_with_output()?)
}

fn build(docker: &Docker<'_>, folder: &Path, words: &[&str], stdin: &[u8]) -> Result<String> {
    let mut all = vec!["build"];
    all.extend(words);
    text(&classic(docker, folder, &all, stdin)?)
        .with_context(|| format!("docker {}", all.join(" ")))
}

/// Exit code and complaint of a build that must fail.
fn refused(docker: &Docker<'_>, folder: &Path, dockerfile: &str) -> Result<(i32, String)> {
    let output = classic(
        docker,
        folder,
        &["build", "--force-rm", "-"],
        dockerfile.as_bytes(),
    )?;
    if output.status.success() {
        bail!("{dockerfile:?} was built");
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines = said.lines().filter(|line| !line.is_empty());
    let last = lines.last().unwrap_or_default().to_owned();
    Ok((output.status.code().unwrap_or(-1), last))
}

/// Builds `base` of busybox and nothing else.
fn base(docker: &Docker<'_>, folder: &Path) -> Result<String> {
    fs::copy("/bin/busybox", folder.join("busybox"))?;
    fs::write(
        folder.join("Dockerfile"),
        "FROM scratch\nCOPY busybox /bin/\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\nCMD [\"sh\"]\n",
    )?;
    build(docker, folder, &["-t", "base", "-t", "base:2", "."], b"")
}

#[test]
fn docker_builds_here() -> Result<()> {
    if !there_is_a_client() {
        return Ok(());
    }
    let lab = TestLab::up(1, 0)?;
    let docker = Docker { lab: &lab };
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    let said = base(&docker, at)?;
    assert!(
        said.contains("Step 1/4 : FROM scratch\n ---> \nStep 2/4 : COPY busybox /bin/\n ---> "),
        "{said}"
    );
    assert!(
        said.ends_with("Successfully tagged base:latest\nSuccessfully tagged base:2\n"),
        "{said}"
    );
    assert_eq!(docker.run(&["run", "--rm", "base", "echo", "hi"])?, "hi\n");
    assert_eq!(docker.run(&["ps", "-aq"])?, "");

    // A Dockerfile alone, with a network; an archive; a file of another name, an argument, a label and a target.
    let said = build(
        &docker,
        at,
        &["-"],
        b"FROM base\nRUN cat /sys/class/net/eth0/operstate\n",
    )?;
    assert!(said.contains("\nup\n"), "{said}");
    let mut tar = Command::new("tar");
    let archive = tar
        .args(["-cz", "Dockerfile", "busybox"])
        .current_dir(at)
        .output()?;
    let said = build(&docker, at, &["-"], &archive.stdout)?;
    assert_eq!(said.matches("Using cache").count(), 3, "{said}");
    fs::write(at.join(".dockerignore"), "secret*\n")?;
    fs::write(at.join("secret"), "s")?;
    fs::write(
        at.join("other"),
        "ARG B=none\nFROM ${B} AS one\nARG V\nRUN echo $V > /v\nFROM one AS two\nCOPY . /all\nFROM two\n",
    )?;
    let words = [
        "-q",
        "-f",
        "other",
        "--build-arg",
        "B=base",
        "--build-arg",
        "V=7",
        "--label",
        "l=x y",
        "--target",
        "two",
        "-t",
        "two",
        ".",
    ];
    let id = build(&docker, at, &words, b"")?;
    assert!(id.starts_with("sha256:") && id.trim().len() == 71, "{id}");
    assert_eq!(
        docker.run(&["run", "--rm", "two", "sh", "-c", "cat /v; ls /all"])?,
        "7\nDockerfile\nbusybox\nother\n"
    );
    assert_eq!(
        docker.run(&["inspect", "-f", "{{.Config.Labels.l}} {{.Id}}", "two"])?,
        format!("x y {id}")
    );

    // What was built once of three stages is built of what is there.
    let stages = b"FROM base AS one\nRUN echo 1 > /one\nFROM base AS two\nCOPY --from=one /one /two\nRUN cat /two > /three\n\
        FROM base\nCOPY --from=two /three /end\nCMD cat /end\n";
    let first = build(&docker, at, &["-t", "staged", "-"], stages)?;
    assert_eq!(first.matches("Running in").count(), 2, "{first}");
    let second = build(&docker, at, &["-t", "staged", "-"], stages)?;
    assert_eq!(second.matches("Using cache").count(), 5, "{second}");
    assert!(!second.contains("Running in"), "{second}");
    assert_eq!(docker.run(&["run", "--rm", "staged"])?, "1\n");
    // Flags reach the steps.
    let flags = [
        "--network",
        "none",
        "--add-host",
        "far:192.0.2.9",
        "--shm-size",
        "96m",
        "--ulimit",
        "nofile=77:88",
        "--memory",
        "64m",
        "--memory-swap",
        "64m",
        "--cpu-shares",
        "77",
        "--cpuset-cpus",
        "0",
        "--no-cache",
        "--iidfile",
        "iid",
        "-",
    ];
    let steps = b"FROM base\nRUN echo networks $(ls /sys/class/net)\nRUN grep far /etc/hosts\nRUN echo shm $(df -k /dev/shm | tail -1)\n\
        RUN echo files $(ulimit -Sn) $(ulimit -Hn)\n\
        RUN cd /sys/fs/cgroup; echo memory $(cat memory.max memory/memory.limit_in_bytes 2>/dev/null)\n\
        RUN cd /sys/fs/cgroup; echo shares $(cat cpu/cpu.shares cpu.weight 2>/dev/null) $(grep Cpus_allowed_list /proc/self/status)\n";
    let said = build(&docker, at, &flags, steps)?;
    for line in [
        "networks lo\n",
        "192.0.2.9\tfar\n",
        "shm shm 98304 ",
        "files 77 88\n",
        "memory 67108864\n",
        "Cpus_allowed_list: 0\n",
    ] {
        assert!(said.contains(line), "{line} in {said}");
    }
    assert!(
        said.contains("shares 77 ") || said.contains("shares 3 "),
        "{said}"
    );
    let written = fs::read_to_string(at.join("iid"))?;
    assert!(written.starts_with("sha256:"), "{written}");

    assert_eq!(
        refused(&docker, at, "FROM base\nFOO bar")?,
        (1, "Error response from daemon: dockerfile parse error on line 2: unknown instruction: FOO".to_owned())
    );
    assert_eq!(
        refused(&docker, at, "FROM base\nRUN exit 7")?,
        (
            7,
            "The command '/bin/sh -c exit 7' returned a non-zero code: 7".to_owned()
        )
    );
    let (code, said) = refused(
        &docker,
        at,
        "FROM base\nRUN --mount=type=cache,target=/c true",
    )?;
    assert!(
        code == 1 && said.contains("the --mount option requires BuildKit"),
        "{said}"
    );
    assert_eq!(docker.run(&["ps", "-aq"])?, "");

    // Steps are kept for the cache, out of sight, and go when they are pruned.
    let shown = docker.run(&["images", "-q", "--no-trunc"])?.lines().count();
    let all = docker
        .run(&["images", "-aq", "--no-trunc"])?
        .lines()
        .count();
    assert!(all > shown, "{all} {shown}");
    let history = docker.run(&[
        "history",
        "--no-trunc",
        "--format",
        "{{.ID}} {{.CreatedBy}}",
        "base",
    ])?;
    assert!(
        history.lines().all(|line| line.starts_with("sha256:")),
        "{history}"
    );
    assert!(
        history.contains("/bin/busybox --install -s /bin\n"),
        "{history}"
    );
    assert!(docker.run(&["system", "df"])?.contains("Build Cache"));
    docker.run(&["builder", "prune", "-af"])?;
    let after = docker
        .run(&["images", "-aq", "--no-trunc"])?
        .lines()
        .count();
    assert!(after < all, "{after} {all}");
    assert_eq!(docker.run(&["run", "--rm", "two", "cat", "/v"])?, "7\n");
    Ok(())
}

#[test]
fn docker_commits_imports_and_saves_here() -> Result<()> {
    if !there_is_a_client() {
        return Ok(());
    }
    let lab = TestLab::up(1, 0)?;
    let docker = Docker { lab: &lab };
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    base(&docker, at)?;
    docker.run(&[
        "run",
        "--name",
        "con",
        "base",
        "sh",
        "-c",
        "echo x > /file; rm /bin/ls",
    ])?;
    let words = [
        "commit",
        "-a",
        "me",
        "-m",
        "why",
        "-c",
        "ENV A=b",
        "-c",
        "CMD [\"cat\", \"/file\"]",
        "con",
        "made:1",
    ];
    let id = docker.run(&words)?;
    assert_eq!(docker.run(&["run", "--rm", "made:1"])?, "x\n");
    assert_eq!(docker.code(&["run", "--rm", "made:1", "ls"])?, 127);
    let format = "{{.Author}} {{.Comment}} {{.Id}} {{index .Config.Env 1}}";
    assert_eq!(
        docker.run(&["inspect", "-f", format, "made:1"])?,
        format!("me why {} A=b\n", id.trim())
    );
    docker.run(&["rm", "con"])?;

    // Ids stay the same on the way out and in again.
    let file = at.join("saved.tar");
    let file = file.to_str().context("a path in UTF-8")?;
    docker.run(&["save", "-o", file, "made:1", "base"])?;
    docker.run(&["rmi", "made:1", "base", "base:2"])?;
    assert!(docker.run(&["inspect", "made:1"]).is_err());
    let said = docker.run(&["load", "-i", file])?;
    assert!(
        said.contains("Loaded image: made:1\n") && said.contains("Loaded image: base:latest\n"),
        "{said}"
    );
    assert_eq!(docker.run(&["inspect", "-f", "{{.Id}}", "made:1"])?, id);

    let exported = at.join("root.tar");
    let exported = exported.to_str().context("a path in UTF-8")?;
    docker.run(&["create", "--name", "con2", "made:1"])?;
    docker.run(&["export", "-o", exported, "con2"])?;
    docker.run(&["rm", "con2"])?;
    docker.run(&[
        "import",
        "-m",
        "from a file",
        "-c",
        "CMD [\"/bin/cat\", \"/file\"]",
        exported,
        "flat:1",
    ])?;
    assert_eq!(docker.run(&["run", "--rm", "flat:1"])?, "x\n");
    let packed = Command::new("xz").args(["-0c", exported]).output()?;
    if packed.status.success() {
        let said = text(&classic(
            &docker,
            at,
            &["import", "-", "flat:xz"],
            &packed.stdout,
        )?)?;
        assert!(said.starts_with("sha256:"), "{said}");
    }
    assert_eq!(docker.run(&["history", "-q", "flat:1"])?.lines().count(), 1);

    let said = docker.run(&["search", "127.0.0.1:1/x"]).unwrap_err();
    assert!(
        format!("{said:#}").contains("http://127.0.0.1:1/v1/search"),
        "{said:#}"
    );
    let said = docker.run(&["commit", "nobody"]).unwrap_err();
    assert!(
        format!("{said:#}").contains("No such container: nobody"),
        "{said:#}"
    );
    let said = classic(&docker, at, &["import", "-", "Bad:name"], b"x")?;
    assert!(String::from_utf8_lossy(&said.stderr).contains("must be lowercase"));
    Ok(())
}

#[test]
fn docker_mounts_what_volumes_ask_for() -> Result<()> {
    if !there_is_a_client() {
        return Ok(());
    }
    let lab = TestLab::up(1, 0)?;
    let docker = Docker { lab: &lab };
    let folder = tempfile::tempdir()?;
    base(&docker, folder.path())?;
    let create = [
        "volume",
        "create",
        "-o",
        "type=tmpfs",
        "-o",
        "device=tmpfs",
        "-o",
        "o=size=1m,uid=5",
        "mem",
    ];
    docker.run(&create)?;
    let shown = docker.run(&[
        "volume",
        "inspect",
        "-f",
        "{{.Options.o}} {{.Driver}}",
        "mem",
    ])?;
    assert_eq!(shown, "size=1m,uid=5 local\n");
    let command = "stat -c %u /v; grep ' /v ' /proc/mounts | cut -d' ' -f3";
    assert_eq!(
        docker.run(&["run", "--rm", "-v", "mem:/v", "base", "sh", "-c", command])?,
        "5\ntmpfs\n"
    );
    // What was in memory went with the last user.
    docker.run(&["run", "--rm", "-v", "mem:/v", "base", "touch", "/v/file"])?;
    assert_eq!(
        docker.run(&["run", "--rm", "-v", "mem:/v", "base", "ls", "/v"])?,
        ""
    );
    let mount = "type=volume,src=opts,dst=/v,volume-opt=type=tmpfs,volume-opt=device=tmpfs";
    let words = ["run", "--rm", "--mount", mount, "base", "sh", "-c", command];
    assert_eq!(docker.run(&words)?, "0\ntmpfs\n");
    docker.run(&["volume", "rm", "opts"])?;
    let said = docker
        .run(&["volume", "create", "-o", "type=nfs", "bad"])
        .unwrap_err();
    assert!(
        format!("{said:#}").contains("missing required option: \"device\""),
        "{said:#}"
    );
    docker.run(&[
        "run", "-d", "--name", "user", "-v", "mem:/v", "base", "sleep", "1000",
    ])?;
    let said = docker.run(&["volume", "rm", "mem"]).unwrap_err();
    assert!(
        format!("{said:#}").contains("remove mem: volume is in use - ["),
        "{said:#}"
    );
    docker.run(&["rm", "-f", "user"])?;

    docker.run(&["volume", "create", "--label", "keep=1", "kept"])?;
    docker.run(&["volume", "prune", "-f"])?;
    let left = || docker.run(&["volume", "ls", "-q"]);
    assert_eq!(left()?, "kept\nmem\n");
    docker.run(&["volume", "prune", "-af", "--filter", "label!=keep"])?;
    assert_eq!(left()?, "kept\n");
    Ok(())
}
