//! Log drivers.

use std::io::Read;
use std::os::unix::net::UnixDatagram;

use shoal_api::container::{ContainerSpec, LogConfig, LogQuery};

use crate::host::{Host, sh};

fn with(command: &str, driver: &str, options: &[(&str, &str)]) -> ContainerSpec {
    let mut spec = sh(command);
    spec.host.log = LogConfig {
        driver: Some(driver.into()),
        options: options
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
    };
    spec
}

async fn ended(host: &Host, spec: ContainerSpec) -> shoal_api::container::ContainerId {
    let id = host.start(spec).await;
    host.wait(&id).await;
    id
}

/// The lines of the streams that are asked for.
async fn read(host: &Host, id: &shoal_api::container::ContainerId, query: LogQuery) -> String {
    use tokio_stream::StreamExt;
    let lines = host.engine.logs(id.as_str(), query).expect("logs");
    let lines: Vec<_> = lines.collect().await;
    let lines = lines.into_iter().map(|line| line.expect("line").bytes);
    lines
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_local_driver_rotates_compresses_and_keeps_every_byte() {
    let host = Host::new().await;
    let options = [("max-size", "2k"), ("max-file", "3")];
    let spec = with(
        "for n in $(seq 1 300); do echo line $n; done; printf 'odd \\377 end' >&2",
        "local",
        &options,
    );
    let id = ended(&host, spec).await;
    let dir = host.root.join("lib/containers").join(id.as_str());
    let mut names: Vec<String> = std::fs::read_dir(&dir)
        .expect("directory")
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter_map(|name| {
            name.split_once("-json.log")
                .map(|(_, rest)| rest.to_owned())
        })
        .collect();
    names.sort();
    assert_eq!(names, ["", ".1.gz", ".2.gz"]);
    let query = LogQuery {
        stdout: true,
        ..LogQuery::default()
    };
    let all = read(&host, &id, query.clone()).await;
    let lines: Vec<&str> = all.lines().collect();
    assert!(lines.len() > 60, "{} lines", lines.len());
    // Rotation drops the oldest and nothing in between.
    let first: usize = lines[0]
        .trim_start_matches("line ")
        .parse()
        .expect("number");
    for (index, line) in lines
        .iter()
        .take_while(|line| line.starts_with("line"))
        .enumerate()
    {
        assert_eq!(*line, format!("line {}", first + index));
    }
    assert!(all.contains("line 300\n"));
    let tail = LogQuery {
        tail: Some(40),
        stderr: true,
        ..query
    };
    assert_eq!(read(&host, &id, tail).await.lines().count(), 40);
    use tokio_stream::StreamExt;
    let query = LogQuery {
        stderr: true,
        ..LogQuery::default()
    };
    let mut errors = host.engine.logs(id.as_str(), query).expect("logs");
    let line = errors.next().await.expect("a line").expect("readable");
    assert_eq!(line.bytes, b"odd \xff end");
}

#[tokio::test(flavor = "multi_thread")]
async fn syslog_gets_every_line_and_the_engine_can_still_read_them() {
    let host = Host::new().await;
    let path = host.root.join("log.sock");
    let service = UnixDatagram::bind(&path).expect("socket");
    service
        .set_read_timeout(Some(std::time::Duration::from_secs(20)))
        .expect("timeout");
    let address = format!("unixgram://{}", path.display());
    let spec = with(
        "echo one; echo two >&2",
        "syslog",
        &[
            ("syslog-address", &address),
            ("tag", "{{.Name}}"),
            ("syslog-facility", "local0"),
        ],
    );
    let id = ended(
        &host,
        ContainerSpec {
            name: Some("web".into()),
            ..spec
        },
    )
    .await;
    let mut messages: Vec<String> = (0..2)
        .map(|_| {
            let mut buffer = [0; 512];
            let size = service.recv(&mut buffer).expect("a message");
            String::from_utf8_lossy(&buffer[..size]).into_owned()
        })
        .collect();
    messages.sort();
    assert!(
        messages[0].starts_with("<131>") && messages[0].ends_with(": two"),
        "{messages:?}"
    );
    assert!(
        messages[1].starts_with("<134>") && messages[1].contains(" web["),
        "{messages:?}"
    );
    let mut said: Vec<String> = host
        .logs(&id, LogQuery::default())
        .await
        .lines()
        .map(str::to_owned)
        .collect();
    said.sort();
    assert_eq!(said, ["one", "two"]);

    // Over TCP, without a copy here.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
    let address = format!("tcp://{}", listener.local_addr().expect("address"));
    let options = [
        ("syslog-address", address.as_str()),
        ("syslog-format", "rfc5424"),
        ("cache-disabled", "true"),
    ];
    let id = ended(&host, with("echo three", "syslog", &options)).await;
    let (mut connection, _) = listener.accept().expect("connection");
    let mut text = String::new();
    connection.read_to_string(&mut text).expect("text");
    assert!(
        text.starts_with("<30>1 ") && text.ends_with(" - three\n"),
        "{text}"
    );
    let err = host
        .engine
        .logs(id.as_str(), LogQuery::default())
        .expect_err("no copy");
    assert_eq!(
        err.report(),
        "configured logging driver does not support reading"
    );

    // A service that is not there is told at the start.
    let gone = format!("unix://{}/nothing", host.root.display());
    let id = host
        .engine
        .create(with("true", "syslog", &[("syslog-address", &gone)]))
        .await
        .expect("create");
    let err = host
        .engine
        .start(id.as_str())
        .await
        .expect_err("nobody listens");
    assert!(
        err.report().contains("failed to initialize logging driver"),
        "{}",
        err.report()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn json_lines_tell_of_their_container() {
    let host = Host::new().await;
    let mut spec = with(
        "echo x",
        "json-file",
        &[("tag", "{{.Name}}"), ("env", "A"), ("labels", "l")],
    );
    spec.name = Some("web".into());
    spec.env = vec!["A=b".into()];
    spec.labels = [("l".to_owned(), "m".to_owned())].into();
    let id = ended(&host, spec).await;
    let path = host
        .engine
        .inspect(id.as_str(), false)
        .await
        .expect("inspect")
        .log_path;
    let text = std::fs::read_to_string(path).expect("log");
    assert!(
        text.contains(r#""attrs":{"A":"b","l":"m","tag":"web"}"#),
        "{text}"
    );
    assert_eq!(host.logs(&id, LogQuery::default()).await, "x\n");
    for (driver, options, said) in [
        (
            "odd",
            &[][..],
            "logger: no log driver named 'odd' is registered",
        ),
        (
            "json-file",
            &[("odd", "1")][..],
            "unknown log opt 'odd' for json-file log driver",
        ),
    ] {
        let err = host
            .engine
            .create(with("true", driver, options))
            .await
            .expect_err(driver);
        assert_eq!(err.report(), said);
    }
}
