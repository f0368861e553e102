//! Attach, terminals and execs.

use shoal_api::container::ExecSpec;
use shoal_engine::shim::protocol::Streams;
use tokio::io::AsyncWriteExt;
use tokio_stream::StreamExt;

use crate::host::{Host, cmd, read, sh};

const ALL: Streams = Streams {
    stdin: true,
    stdout: true,
    stderr: true,
};

#[tokio::test(flavor = "multi_thread")]
async fn stdin_flows_in_and_its_end_too() {
    let host = Host::new().await;
    let mut spec = cmd(&["cat"]);
    spec.open_stdin = true;
    spec.stdin_once = true;
    let id = host.engine.create(spec).await.expect("create");
    let mut attachment = host.engine.attach(id.as_str(), ALL).await.expect("attach");
    host.engine.start(id.as_str()).await.expect("start");
    let mut input = attachment.input.take().expect("stdin");
    // More than any pipe or buffer on the way holds.
    let big: Vec<u8> = (0..3_000_000_u32).map(|n| b'a' + (n % 26) as u8).collect();
    let sent = big.clone();
    let writer = tokio::spawn(async move {
        input.write_all(&sent).await.expect("write");
        input.shutdown().await.expect("shutdown");
        input
    });
    let mut received = Vec::new();
    while let Some((_, piece)) = attachment.output.next().await {
        received.extend_from_slice(&piece);
    }
    assert!(
        received == big,
        "{} bytes of {} came back",
        received.len(),
        big.len()
    );
    writer.await.expect("writer");
    assert_eq!(host.wait(&id).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_may_open_its_own_streams() {
    let host = Host::new().await;
    let mut spec = sh("echo one > /dev/stdout; echo two > /dev/stderr; exec sleep 1000");
    spec.user = Some("user".into());
    let id = host.start(spec).await;
    host.wait_for_output(&id, "one\ntwo\n").await;
    let said = host
        .exec(&id, &["sh", "-c", "echo three > /dev/stdout"])
        .await;
    assert_eq!(said, (0, "three\n".into()));
    let null = std::fs::metadata("/dev/null").expect("null device");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&null), 0);
    host.engine
        .remove(id.as_str(), true, true)
        .await
        .expect("remove");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_a_size_and_an_echo() {
    let host = Host::new().await;
    let mut spec = sh("test -c /dev/console && echo ready; read line; stty size; echo got $line");
    spec.tty = true;
    spec.open_stdin = true;
    let id = host.engine.create(spec).await.expect("create");
    let mut attachment = host.engine.attach(id.as_str(), ALL).await.expect("attach");
    host.engine.start(id.as_str()).await.expect("start");
    host.wait_for_output(&id, "ready").await;
    host.engine
        .resize(id.as_str(), 40, 100)
        .await
        .expect("resize");
    attachment
        .input
        .as_mut()
        .expect("stdin")
        .write_all(b"hello\n")
        .await
        .expect("write");
    let text = read(attachment).await;
    assert!(
        text.contains("hello\r\n40 100\r\ngot hello\r\n"),
        "{text:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_size_that_comes_before_an_execs_process_is_kept_for_it() {
    let host = Host::new().await;
    let id = host.start(sh("echo up; sleep 1000")).await;
    host.wait_for_output(&id, "up").await;
    let exec = || {
        let spec = ExecSpec {
            cmd: vec!["stty".into(), "size".into()],
            tty: true,
            attach_stdout: true,
            ..ExecSpec::default()
        };
        host.engine.exec_create(id.as_str(), spec)
    };
    let before = exec().expect("exec create");
    let resized = host.engine.exec_resize(&before, 30, 90).await;
    resized.expect("resize before the start");
    let attachment = host.engine.exec_start(&before).await.expect("exec start");
    assert_eq!(read(attachment).await, "30 90\r\n");
    let gone = host.engine.exec_resize(&before, 31, 91).await;
    gone.expect_err("its process has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn execs_join_the_container_with_its_limits() {
    let host = Host::new().await;
    let mut spec = sh("echo up; exec sleep 1000");
    spec.env = vec!["COLOR=red".into()];
    let id = host.start(spec).await;
    host.wait_for_output(&id, "up").await;
    assert_eq!(
        host.exec(&id, &["sh", "-c", "echo $COLOR $HOME; exit 5"])
            .await,
        (5, "red /root\n".into())
    );
    let (_, inside) = host.exec(&id, &["cat", "/proc/self/status"]).await;
    let (_, init) = host.exec(&id, &["cat", "/proc/1/status"]).await;
    for field in [
        "Seccomp:",
        "CapBnd:",
        "CapEff:",
        "CapPrm:",
        "CapInh:",
        "CapAmb:",
        "NoNewPrivs:",
        "SigIgn:",
        "SigBlk:",
    ] {
        let line = |text: &str| {
            text.lines()
                .find(|line| line.starts_with(field))
                .map(str::to_owned)
        };
        assert_eq!(line(&inside), line(&init));
    }
    assert!(
        inside.contains("Seccomp:\t2") && inside.contains("CapBnd:\t00000000a80425fb"),
        "{inside}"
    );
    let (_, groups) = host
        .exec(
            &id,
            &[
                "sh",
                "-c",
                "cat /proc/1/cgroup > /tmp/a; cat /proc/self/cgroup",
            ],
        )
        .await;
    let (_, first) = host.exec(&id, &["cat", "/tmp/a"]).await;
    assert_eq!(groups, first);
    let (code, said) = host
        .exec(
            &id,
            &[
                "sh",
                "-c",
                "ls -l /proc/self/fd 2>/dev/null | grep -v -e pipe: -e /dev/null -e total -e ' 3$'",
            ],
        )
        .await;
    assert_eq!(
        (code, said.as_str()),
        (1, ""),
        "an exec has no other descriptors than its pipes"
    );

    let exec = |spec: ExecSpec| {
        host.engine
            .exec_create(id.as_str(), spec)
            .expect("exec create")
    };
    let missing = exec(ExecSpec {
        cmd: vec!["nowhere".into()],
        ..ExecSpec::default()
    });
    let err = host
        .engine
        .exec_start(&missing)
        .await
        .expect_err("no such program");
    assert!(
        err.to_string()
            .contains(r#"exec: "nowhere": executable file not found in $PATH"#),
        "{err}"
    );
    assert_eq!(
        host.engine
            .exec_inspect(&missing)
            .expect("inspect")
            .exit_code,
        Some(127)
    );

    let as_user = exec(ExecSpec {
        cmd: vec![
            "sh".into(),
            "-c".into(),
            "id; pwd; cat; grep CapEff /proc/self/status".into(),
        ],
        user: Some("user".into()),
        working_dir: Some("/tmp".into()),
        attach_stdin: true,
        attach_stdout: true,
        ..ExecSpec::default()
    });
    let mut attachment = host.engine.exec_start(&as_user).await.expect("start");
    let mut input = attachment.input.take().expect("stdin");
    input.write_all(b"typed\n").await.expect("write");
    input.shutdown().await.expect("shutdown");
    let text = read(attachment).await;
    let expected = "uid=1000(user) gid=1000(user) groups=2000(extra)\n/tmp\ntyped\nCapEff:\t0000000000000000\n";
    assert_eq!(text.replace("groups=1000(user),", "groups="), expected);

    let terminal = exec(ExecSpec {
        cmd: vec![
            "sh".into(),
            "-c".into(),
            "stty size; readlink /proc/self/fd/0; test -t 1 && echo yes".into(),
        ],
        tty: true,
        attach_stdout: true,
        console_size: Some((30, 90)),
        ..ExecSpec::default()
    });
    let text = read(host.engine.exec_start(&terminal).await.expect("start")).await;
    assert_eq!(text, "30 90\r\n/dev/pts/0\r\nyes\r\n");

    let lasting = exec(ExecSpec {
        cmd: vec!["sleep".into(), "1000".into()],
        ..ExecSpec::default()
    });
    drop(host.engine.exec_start(&lasting).await.expect("start"));
    assert!(host.engine.exec_inspect(&lasting).expect("inspect").running);
    host.engine.kill(id.as_str(), None).await.expect("kill");
    assert_eq!(host.wait(&id).await, 137);
    assert_eq!(
        host.engine
            .exec_inspect(&lasting)
            .expect("inspect")
            .exit_code,
        Some(137)
    );
    host.cgroups_gone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_begins_with_the_size_of_its_client() {
    let host = Host::new().await;
    let mut spec = sh("stty size; exec sleep 1000");
    spec.tty = true;
    spec.host.console_size = Some((31, 91));
    let id = host.start(spec).await;
    host.wait_for_output(&id, "31 91\r\n").await;
}

/// Who reads the first line of a container may send it a signal before its start is written down.
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_that_comes_during_the_start_arrives() {
    let host = Host::new().await;
    for _ in 0..20 {
        let spec = sh("trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done");
        let id = host.engine.create(spec).await.expect("create");
        let attachment = host.engine.attach(id.as_str(), ALL).await.expect("attach");
        let signal = async {
            let mut output = attachment.output;
            output.next().await.expect("its first line");
            host.engine.kill(id.as_str(), Some("TERM")).await
        };
        let (started, sent) = tokio::join!(host.engine.start(id.as_str()), signal);
        started.expect("start");
        sent.expect("kill");
        assert_eq!(host.wait(&id).await, 9);
    }
}
