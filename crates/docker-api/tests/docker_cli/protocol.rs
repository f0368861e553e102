//! What no well-behaved client sends, and what only raw bytes show.

use expect_test::expect;

use crate::daemon::Daemon;

#[tokio::test]
async fn every_path_works_with_and_without_a_version() {
    let daemon = Daemon::start();
    for path in ["/_ping", "/v1.24/_ping", "/v1.51/_ping"] {
        assert_eq!(daemon.request("GET", path, "").await, "200 OK");
    }
    let ping = daemon
        .raw(
            b"HEAD /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            "\0",
        )
        .await
        .to_ascii_lowercase();
    for header in [
        "api-version: 1.51",
        "ostype: linux",
        "docker-experimental: false",
        "builder-version: 1",
        "swarm: inactive",
    ] {
        assert!(ping.contains(header), "{header} in {ping}");
    }
    expect![[r#"
        400 {"message":"client version 1.52 is too new. Maximum supported API version is 1.51"}
        400 {"message":"client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"}
        404 {"message":"page not found"}
        404 {"message":"page not found"}
        404 {"message":"page not found"}
        200 [{"Containers":-1,"Created":1577836800,"Id":"sha256:1111111111111111111111111111111111111111111111111111111111111111","Labels":null,"ParentId":"","RepoDigests":[],"RepoTags":["demo:latest"],"SharedSize":-1,"Size":1234567}]
    "#]].assert_eq(&answers(&daemon, &[
        ("GET", "/v1.52/info", ""),
        ("GET", "/v1.23/info", ""),
        ("GET", "/", ""),
        ("GET", "/v1.51/nothing", ""),
        ("PATCH", "/info", ""),
        ("GET", "/images//json/", ""),
    ]).await);
    daemon.stop().await;
}

async fn answers(daemon: &Daemon, requests: &[(&str, &str, &str)]) -> String {
    let mut answers = String::new();
    for (method, path, body) in requests {
        answers.push_str(&daemon.request(method, path, body).await);
        answers.push('\n');
    }
    answers
}

#[tokio::test]
async fn rubbish_is_refused_with_its_place() {
    let daemon = Daemon::start();
    let create = "/containers/create";
    expect![[r#"
        400 {"message":"invalid JSON: unexpected EOF"}
        400 {"message":"invalid body: expected an object, not a list"}
        400 {"message":"no command specified"}
        400 {"message":"invalid Env: invalid type: string \"A=b\", expected a sequence"}
        400 {"message":"invalid HostConfig.Memory: -5 is negative"}
        400 {"message":"HostConfig.Frobnicate is not supported"}
        400 {"message":"invalid restart policy: unknown policy 'sometimes'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"}
        400 {"message":"invalid port specification: \"99999\""}
        400 {"message":"invalid HostConfig.PortBindings: invalid port specification: \"http\""}
        400 {"message":"invalid mount config for type \"cluster\": mount type unknown"}
        400 {"message":"invalid filters: ["}
        400 {"message":"invalid filter 'colour'"}
        400 {"message":"invalid filter 'status=happy'"}
        400 {"message":"invalid value for t: \"soon\""}
        400 {"message":"invalid condition: \"whenever\""}
        400 {"message":"Bad parameters: you must choose at least one stream"}
        404 {"message":"No such container: x"}
        400 {"message":"invalid platform \"toaster\""}
        400 {"message":"invalid X-Registry-Auth header: Invalid symbol 33, offset 0."}
        501 {"message":"building images is not supported by this version of shoal"}
        501 {"message":"copying files is not supported by this version of shoal"}
        400 {"message":"at least 1 RemoteAddr is required to join"}
        400 {"message":"invalid data path port number (must be between 1024 and 49151): 80"}
    "#]]
    .assert_eq(
        &(answers(
            &daemon,
            &[
                ("POST", create, r#"{"Image":"#),
                ("POST", create, "[]"),
                ("POST", create, "{}"),
                ("POST", create, r#"{"Image":"a","Env":"A=b"}"#),
                ("POST", create, r#"{"Image":"a","HostConfig":{"Memory":-5}}"#),
                ("POST", create, r#"{"Image":"a","HostConfig":{"Frobnicate":{"x":[true]}}}"#),
                ("POST", create, r#"{"Image":"a","HostConfig":{"RestartPolicy":{"Name":"sometimes"}}}"#),
                ("POST", create, r#"{"Image":"a","HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"99999"}]}}}"#),
                ("POST", create, r#"{"Image":"a","HostConfig":{"PortBindings":{"http":[]}}}"#),
                ("POST", create, r#"{"Image":"a","HostConfig":{"Mounts":[{"Type":"cluster","Target":"/x"}]}}"#),
                ("GET", "/containers/json?filters=%5B", ""),
                ("GET", "/containers/json?filters=%7B%22colour%22:%5B%22red%22%5D%7D", ""),
                ("GET", "/containers/json?filters=%7B%22status%22:%5B%22happy%22%5D%7D", ""),
                ("POST", "/containers/x/stop?t=soon", ""),
                ("POST", "/containers/x/wait?condition=whenever", ""),
                ("GET", "/containers/x/logs", ""),
                ("GET", "/containers/x/json", ""),
                ("POST", "/images/create?fromImage=a&platform=toaster", ""),
            ],
        )
        .await
            + &with_auth(&daemon, "!!").await
            + &answers(
                &daemon,
                &[
                    ("POST", "/build", ""),
                    ("GET", "/containers/x/archive?path=/", ""),
                    ("POST", "/swarm/join", r#"{"JoinToken":"x"}"#),
                    ("POST", "/swarm/init", r#"{"DataPathPort":80}"#),
                ],
            )
            .await),
    );
    daemon.stop().await;
}

#[tokio::test]
async fn addresses_that_are_none_are_refused_with_their_place() {
    let daemon = Daemon::start();
    let configs = [
        r#"{"Subnet":"10.0.0.0/33"}"#,
        r#"{"Subnet":"10.0.0.0"}"#,
        r#"{"Subnet":"10.0.0/24"}"#,
        r#"{"Subnet":"10.0.0.0/-1"}"#,
        r#"{"Subnet":"fd00::/129"}"#,
        r#"{"Subnet":["10.0.0.0/24"]}"#,
        r#"{"Subnet":"10.0.0.0/24","IPRange":"10.0.0.0/x"}"#,
        r#"{"Subnet":"10.0.0.0/24","Gateway":"10.0.0.256"}"#,
        r#"{"Subnet":"10.0.0.0/24","Gateway":"10.0.0.1/24"}"#,
        r#"{"Subnet":"10.0.0.0/24","AuxiliaryAddresses":{"a":"10.0.1.1"}}"#,
        r#"{"Subnet":"10.0.0.0/24","Mask":"255.0.0.0"}"#,
        "7",
    ];
    let bodies = configs.map(|config| {
        format!(r#"{{"Name":"odd","Driver":"overlay","IPAM":{{"Config":[{config}]}}}}"#)
    });
    let requests: Vec<_> = bodies
        .iter()
        .map(|body| ("POST", "/networks/create", &**body))
        .collect();
    expect![[r#"
        400 {"message":"invalid IPAM.Config[0].Subnet: \"10.0.0.0/33\": invalid IP address syntax"}
        400 {"message":"invalid IPAM.Config[0].Subnet: \"10.0.0.0\": invalid IP address syntax"}
        400 {"message":"invalid IPAM.Config[0].Subnet: \"10.0.0/24\": invalid IP address syntax"}
        400 {"message":"invalid IPAM.Config[0].Subnet: \"10.0.0.0/-1\": invalid IP address syntax"}
        400 {"message":"invalid IPAM.Config[0].Subnet: \"fd00::/129\": invalid IP address syntax"}
        400 {"message":"invalid IPAM.Config[0].Subnet: invalid type: sequence, expected a string"}
        400 {"message":"invalid IPAM.Config[0].IPRange: \"10.0.0.0/x\": invalid IP address syntax"}
        400 {"message":"invalid IPAM.Config[0].Gateway: \"10.0.0.256\": invalid IP address syntax"}
        400 {"message":"invalid IPAM.Config[0].Gateway: \"10.0.0.1/24\": invalid IP address syntax"}
        400 {"message":"no matching subnet for aux-address a=10.0.1.1"}
        400 {"message":"IPAM.Config[0].Mask is not supported"}
        400 {"message":"invalid IPAM.Config[0]: expected an object, not a number"}
    "#]]
    .assert_eq(&answers(&daemon, &requests).await);
    daemon.stop().await;
}

async fn with_auth(daemon: &Daemon, auth: &str) -> String {
    let request = format!(
        "POST /images/create?fromImage=a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Registry-Auth: {auth}\r\n\r\n"
    );
    let answer = daemon.raw(request.as_bytes(), "\0").await;
    let status = answer.split_whitespace().nth(1).unwrap_or_default();
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    format!("{status} {body}")
}

#[tokio::test]
async fn service_specs_are_refused_by_field() {
    let daemon = Daemon::start();
    daemon.request("POST", "/swarm/init", "{}").await;
    let service = |task: &str| format!(r#"{{"Name":"x","TaskTemplate":{task}}}"#);
    let bodies = [
        r#"{"Name":"x"}"#.to_owned(),
        service(r#"{"Runtime":"plugin"}"#),
        service(r#"{"ContainerSpec":{"Image":"a","Privileges":{"NoNewPrivileges":true}}}"#),
        service(r#"{"ContainerSpec":{"Image":"a"},"Networks":[{"Target":"nowhere"}]}"#),
        service(r#"{"ContainerSpec":{"Image":"a","Mounts":[{"Type":"npipe"}]}}"#),
        service(
            r#"{"ContainerSpec":{"Image":"a","Secrets":[{"SecretID":"no id!","File":{"Name":"x"}}]}}"#,
        ),
        service(r#"{"ContainerSpec":{"Image":"a","Configs":[{"ConfigID":"x","Runtime":{}}]}}"#),
        r#"{"TaskTemplate":{"ContainerSpec":{}},"Mode":{"Global":{},"Replicated":{}}}"#.to_owned(),
        r#"{"TaskTemplate":{"ContainerSpec":{}},"UpdateConfig":{"Order":"both-first"}}"#.to_owned(),
        r#"{"TaskTemplate":{"ContainerSpec":{}},"EndpointSpec":{"Ports":[{"TargetPort":70000}]}}"#
            .to_owned(),
    ];
    let requests: Vec<_> = bodies
        .iter()
        .map(|body| ("POST", "/services/create", body.as_str()))
        .collect();
    expect![[r#"
        400 {"message":"TaskTemplate: missing task template"}
        400 {"message":"invalid TaskTemplate.Runtime: \"plugin\" is not supported"}
        400 {"message":"TaskTemplate.ContainerSpec.Privileges is not supported"}
        404 {"message":"network nowhere not found"}
        400 {"message":"invalid TaskTemplate.ContainerSpec.Mounts[0].Type: \"npipe\" is not one of volume, bind, tmpfs"}
        400 {"message":"invalid TaskTemplate.ContainerSpec.Secrets[0].SecretID: \"no id!\": invalid secret id \"no id!\": expected 1 to 64 characters of a-z, A-Z, 0-9"}
        400 {"message":"invalid TaskTemplate.ContainerSpec.Configs[0].File: a target file is needed"}
        400 {"message":"must specify only one service mode"}
        400 {"message":"invalid UpdateConfig.Order: \"both-first\" is not one of stop-first, start-first"}
        400 {"message":"invalid EndpointSpec.Ports[0].TargetPort: invalid value: integer `70000`, expected u16"}
    "#]].assert_eq(&answers(&daemon, &requests).await);
    daemon.stop().await;
}

#[tokio::test]
async fn a_huge_body_is_refused_and_the_server_lives() {
    let daemon = Daemon::start();
    let body = format!(r#"{{"Image":"{}"}}"#, "x".repeat(5 << 20));
    let answer = daemon.request("POST", "/containers/create", &body).await;
    expect![[r#"413 {"message":"request body is larger than 4194304 bytes"}"#]].assert_eq(&answer);
    let deep = format!(r#"{{"Image":"a","Labels":{}"#, "{\"a\":".repeat(200_000));
    let answer = daemon.request("POST", "/containers/create", &deep).await;
    assert!(answer.starts_with("400 "), "{answer}");
    assert_eq!(daemon.request("GET", "/_ping", "").await, "200 OK");
    daemon.stop().await;
}

#[tokio::test]
async fn who_sends_all_of_a_refused_archive_still_sees_why() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let daemon = Daemon::start();
    let archive = vec![0; 16 << 20];
    let mut answers = String::new();
    for request in [
        "POST /build",
        "PUT /containers/x/archive?path=/",
        "POST /v1.52/images/load",
    ] {
        let socket = daemon.dir.path().join("sock");
        let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
        let head = format!(
            "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            archive.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&archive).await.expect("nobody hangs up");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
        answers.push_str(&format!("{} {body}", &head[9..12]));
    }
    expect![[r#"
        501 {"message":"building images is not supported by this version of shoal"}
        501 {"message":"copying files is not supported by this version of shoal"}
        400 {"message":"client version 1.52 is too new. Maximum supported API version is 1.51"}
    "#]]
    .assert_eq(&answers);
    daemon.stop().await;
}

#[tokio::test]
async fn a_connection_is_taken_over_or_streams_raw() {
    let daemon = Daemon::start();
    let create = r#"{"Image":"demo","Cmd":["hi"],"AttachStdout":true}"#;
    assert!(
        daemon
            .request("POST", "/containers/create?name=a", create)
            .await
            .starts_with("201")
    );
    assert!(
        daemon
            .request("POST", "/containers/create?name=b", create)
            .await
            .starts_with("201")
    );
    for name in ["a", "b"] {
        daemon
            .request("POST", &format!("/containers/{name}/start"), "")
            .await;
    }
    let taken = daemon
        .raw(
            b"POST /containers/a/attach?stream=1&stdout=1&stderr=1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
            "err hi",
        )
        .await;
    assert!(taken.starts_with("HTTP/1.1 101 "), "{taken}");
    assert!(
        taken
            .to_ascii_lowercase()
            .contains("content-type: application/vnd.docker.multiplexed-stream")
    );
    assert!(
        taken.contains("\u{1}\0\0\0\0\0\0\u{7}out hi\n\u{2}\0\0\0\0\0\0\u{7}err hi"),
        "{taken:?}"
    );
    let plain = daemon
        .raw(
            b"POST /v1.41/containers/b/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            "err hi",
        )
        .await;
    assert!(plain.starts_with("HTTP/1.1 200 "), "{plain}");
    assert!(
        plain
            .to_ascii_lowercase()
            .contains("content-type: application/vnd.docker.raw-stream")
    );
    daemon.stop().await;
}

#[tokio::test]
async fn a_stop_ends_what_would_go_on_for_ever() {
    let daemon = Daemon::start();
    let create = r#"{"Image":"demo","Cmd":["sleep"]}"#;
    daemon
        .request("POST", "/containers/create?name=a", create)
        .await;
    daemon.request("POST", "/containers/a/start", "").await;
    // The header is there although nothing has ended.
    let waiting = daemon
        .raw(
            b"POST /containers/a/wait HTTP/1.1\r\nHost: x\r\n\r\n",
            "\r\n\r\n",
        )
        .await;
    assert!(waiting.starts_with("HTTP/1.1 200 "), "{waiting}");
    let socket = daemon.dir.path().join("sock");
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(
        &mut stream,
        b"POST /containers/a/wait HTTP/1.1\r\nHost: x\r\n\r\n",
    )
    .await
    .unwrap();
    let started = std::time::Instant::now();
    daemon.stop().await;
    assert!(started.elapsed() < std::time::Duration::from_secs(10));
}

#[tokio::test]
async fn an_update_that_names_no_swarm_leaves_its_name() {
    let daemon = Daemon::start();
    daemon.request("POST", "/swarm/init", "{}").await;
    let swarm = async || -> serde_json::Value {
        let answer = daemon.request("GET", "/swarm", "").await;
        serde_json::from_str(answer.trim_start_matches("200 ")).expect("JSON")
    };
    let version = swarm().await["Version"]["Index"].clone();
    let answer = daemon
        .request(
            "POST",
            &format!("/swarm/update?version={version}"),
            r#"{"Orchestration":{"TaskHistoryRetentionLimit":3}}"#,
        )
        .await;
    assert_eq!(answer, "200 ");
    let spec = swarm().await["Spec"].clone();
    assert_eq!(
        (
            &spec["Name"],
            &spec["Orchestration"]["TaskHistoryRetentionLimit"]
        ),
        (&"default".into(), &3.into())
    );
    daemon.stop().await;
}
