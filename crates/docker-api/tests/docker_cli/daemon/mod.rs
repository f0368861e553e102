//! A daemon for tests: the real server over backends that keep everything in memory and run nothing.

mod cluster;
mod engine;

use std::{process::Output, sync::Arc};

use shoal_docker_api::Server;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    process::Command,
};
use tokio_util::sync::CancellationToken;

pub(crate) use cluster::MemoryCluster;
pub(crate) use engine::MemoryEngine;

pub(crate) struct Daemon {
    pub(crate) engine: Arc<MemoryEngine>,
    pub(crate) cluster: Arc<MemoryCluster>,
    pub(crate) dir: tempfile::TempDir,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory for the socket");
        let listener = UnixListener::bind(dir.path().join("sock")).expect("a socket");
        let (engine, cluster) = (
            Arc::new(MemoryEngine::default()),
            Arc::new(MemoryCluster::default()),
        );
        let stop = CancellationToken::new();
        let server = Server::new(engine.clone(), cluster.clone());
        let until = stop.clone();
        let served = tokio::spawn(async move { server.serve(listener, until).await });
        Self {
            engine,
            cluster,
            dir,
            stop,
            served,
        }
    }

    /// Stops the server and waits for its end.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.served
            .await
            .expect("the server does not panic")
            .expect("the server ends well");
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command
            .args(words)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.dir.path())
            .env("DOCKER_CONFIG", self.dir.path().join("config"))
            .env(
                "DOCKER_HOST",
                format!("unix://{}", self.dir.path().join("sock").display()),
            )
            .current_dir(self.dir.path())
            .kill_on_drop(true);
        command
    }

    /// Runs the docker client to its end.
    pub(crate) async fn run(&self, line: &str) -> Output {
        let words: Vec<&str> = line.split_whitespace().collect();
        self.run_words(&words, "").await
    }

    /// Runs the docker client with these words and this input.
    pub(crate) async fn run_words(&self, words: &[&str], input: &str) -> Output {
        use std::process::Stdio;
        let mut child = self
            .command(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker starts");
        let mut stdin = child.stdin.take().expect("piped");
        // The client may be done before it has read everything.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        child.wait_with_output().await.expect("docker ends")
    }

    /// Runs the docker client and expects success; answers what it printed.
    pub(crate) async fn ok(&self, line: &str) -> String {
        let output = self.run(line).await;
        let text = text(&output);
        assert!(output.status.success(), "docker {line}: {text}");
        text
    }

    /// Sends bytes as they are and reads until the server closes or `enough` is in the answer.
    pub(crate) async fn raw(&self, request: &[u8], enough: &str) -> String {
        let mut stream = UnixStream::connect(self.dir.path().join("sock"))
            .await
            .expect("the socket is there");
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&answer).contains(enough) {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(n) => answer.extend_from_slice(&buffer[..n]),
            }
        }
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Sends a request with a JSON body; answers status line and body.
    pub(crate) async fn request(&self, method: &str, path: &str, body: &str) -> String {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: shoal\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = self.raw(request.as_bytes(), "\0never\0").await;
        let status = answer.split_whitespace().nth(1).unwrap_or_default();
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        format!("{status} {}", body.trim())
    }
}

/// What a process printed, errors last.
pub(crate) fn text(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    format!("{out}{err}")
}

/// Whether the docker client is there; says so where it is not.
pub(crate) fn docker_is_missing() -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join("docker").is_file()));
    if !found {
        println!("skipped, because docker is not on PATH");
    }
    !found
}
